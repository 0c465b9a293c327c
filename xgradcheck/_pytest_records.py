"""The reports of a test run: kept by test, sent from the processes of xdist, written at its end."""

import base64
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from xgradcheck._errors import short
from xgradcheck._pytest_options import Options
from xgradcheck._pytest_traceback import leave_out_own

if TYPE_CHECKING:
    from xgradcheck._bench_report import BenchReport
    from xgradcheck._report import Report

SENT = "xgradcheck"
"""The attribute of a test's report that carries its entries, between processes too."""
PROPERTY = "xgradcheck."
GRAVITY = ("PASS", "INCONCLUSIVE", "FAIL")


@dataclass(frozen=True, slots=True)
class Entry:
    """A report with its test; the gravest one and the cost of all, where hypothesis made many."""

    test: str
    verb: str
    report: "Report | BenchReport"
    examples: int
    evaluations: int
    elapsed_s: float
    failed: bool = False
    """Whether the test failed, for this reason or another."""

    @property
    def floors(self) -> "list[tuple[float, str]]":
        """The finite floors of the leaves that passed, and whose they are."""
        leaves = getattr(self.report, "leaves", {})
        return [
            (leaf.floor, leaf.name)
            for leaf in leaves.values()
            if leaf.verdict == "PASS" and leaf.floor < float("inf")
        ]

    def beside(self, later: "Entry") -> "Entry":
        """One entry for both."""
        is_graver = _gravity(later.report) >= _gravity(self.report)
        return replace(
            self,
            report=later.report if is_graver else self.report,
            examples=self.examples + later.examples,
            evaluations=self.evaluations + later.evaluations,
            elapsed_s=self.elapsed_s + later.elapsed_s,
        )


def _gravity(report: "Report | BenchReport") -> tuple[int, float]:
    """Of those that are wrong the last is shown: hypothesis ends with the simplest example."""
    rank = GRAVITY.index(report.verdict)
    distance = getattr(report, "distance", 0.0) if rank == 0 else 0.0
    return rank, distance if distance == distance else 0.0


class Recorder:
    """The hooks of pytest that keep reports."""

    def __init__(self, options: Options, is_worker: bool) -> None:
        self.entries: list[Entry] = []
        self.item: pytest.Item
        self._options = options
        self._is_worker = is_worker
        self._own: list[Entry] = []
        self._failed = True
        self._complaints: list[str] = []

    @property
    def test(self) -> str:
        """The node id of the test that is running, as a command line takes it."""
        # With --dist=loadgroup xdist appends the group to the node id.
        usual = f"{self.item.parent.nodeid}::{self.item.name}" if self.item.parent else ""
        return usual if usual and self.item.nodeid.startswith(usual) else self.item.nodeid

    @property
    def command(self) -> str:
        """The same as a command line takes it where pytest was called."""
        file, colons, rest = self.test.partition("::")
        config = self.item.config
        try:
            file = os.path.relpath(config.rootpath / file, config.invocation_params.dir)
        except ValueError:  # on another drive
            file = str(config.rootpath / file)
        return Path(file).as_posix() + colons + rest

    def add(self, verb: str, report: "Report | BenchReport") -> None:
        """Keep a report of the test that is running."""
        measured: Any = getattr(report, "records", (report,))
        evaluations = sum(each.evaluations for each in measured)
        entry = Entry(self.test, verb, report, 1, evaluations, report.elapsed_s)
        if getattr(getattr(self.item, "obj", None), "is_hypothesis_test", False):
            for number, earlier in enumerate(self._own):
                if (earlier.verb, earlier.report.name) == (verb, report.name):
                    self._own[number] = earlier.beside(entry)
                    return
        self._own.append(entry)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self.item, self._own, self._failed = item, [], True

    # First, so that it sees what others make of an expected failure; and in the older of the two
    # ways to write it, which every pytest takes.
    @pytest.hookimpl(tryfirst=True, hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, None]:
        if self._own:
            others = [own for own in item.user_properties if not own[0].startswith(PROPERTY)]
            item.user_properties[:] = [*others, *properties(self._own)]
        if call.excinfo is not None and not item.config.option.fulltrace:
            leave_out_own(call.excinfo.value)
        outcome = yield
        report = outcome.get_result()
        if call.when == "call":
            self._failed = report.outcome == "failed"
        elif call.when == "teardown" and self._own:
            own = [replace(entry, failed=self._failed) for entry in self._own]
            report.__dict__[SENT] = packed(own)
            self._own = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._is_worker and SENT in report.__dict__:
            self.entries += unpacked(report.__dict__.pop(SENT))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._is_worker or session.config.option.collectonly:
            return
        self.entries.sort(key=lambda entry: entry.test)
        self._write(session, self._options.json, write_json)
        self._write(session, self._options.html, write_html)

    def _write(
        self,
        session: pytest.Session,
        path: Path | None,
        write: Callable[[Sequence[Entry], Path], None],
    ) -> None:
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(self.entries, path)
        except Exception as error:  # the results of the tests are to be seen whatever happens here
            self._complaints.append(f"{path.name} was not written: {short(error)}")
            if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> None:
        if self.entries or self._complaints:
            from xgradcheck._pytest_summary import summarise

            summarise(self.entries, self._complaints, terminalreporter)


def packed(entries: Sequence[Entry]) -> str:
    """Entries as text that any process can read."""
    return base64.b64encode(pickle.dumps([_portable(entry) for entry in entries])).decode()


def unpacked(text: str) -> list[Entry]:
    found: list[Entry] = pickle.loads(base64.b64decode(text))
    return found


def _portable(entry: Entry) -> Entry:
    """The same without objects of the user's, which may not exist elsewhere: keys of a path are
    what a report writes them as.
    """
    from xgradcheck._report import Report, portable

    report = entry.report
    return replace(entry, report=portable(report)) if isinstance(report, Report) else entry


def properties(entries: Sequence[Entry]) -> Iterator[tuple[str, object]]:
    """What JUnit's file says of a test: numbered, where it has several reports."""
    for number, entry in enumerate(entries, 1):
        several = len(entries) > 1
        prefix = f"{PROPERTY}{number}." if several else PROPERTY
        report: Any = entry.report
        if several:
            yield prefix + "name", report.name
        yield prefix + "verdict", str(report.verdict)
        if hasattr(report, "distance"):
            yield prefix + "distance", f"{report.distance:.3g}"
        if entry.floors:
            yield prefix + "floor", f"{max(entry.floors)[0]:.3g}"
        yield prefix + "evaluations", str(entry.evaluations)
        yield prefix + "seed", str(report.seed)


def write_json(entries: Sequence[Entry], path: Path) -> None:
    from xgradcheck._report import SCHEMA
    from xgradcheck._written import as_json, write

    reports = [
        entry.report.to_dict()
        | {"test": entry.test, "verb": entry.verb, "examples": entry.examples}
        for entry in entries
    ]
    written = {"schema": SCHEMA, "reports": reports}
    write(path, as_json(written) + "\n")


def write_html(entries: Sequence[Entry], path: Path) -> None:
    from xgradcheck._html import write_page
    from xgradcheck._report import Report

    shown = [(e.test, e.report) for e in entries if isinstance(e.report, Report)]
    write_page(shown, path)
