"""What the command prints and writes of what became of its cases."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from xgradcheck._cli_words import NamedCase
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict
from xgradcheck._outcomes import FAILED, MISUSE, PASSED, RAISED, UNSURE, Outcome, Run, floor_of
from xgradcheck._report import Report
from xgradcheck._sensitivity import lines
from xgradcheck._text import STYLES, measured, plain, printable, text
from xgradcheck._written import as_json, write

WORDS = {PASSED: "PASS", FAILED: "FAIL", UNSURE: "INCONCLUSIVE", MISUSE: "ERROR"}
NAMES = 38
"""How wide names may make their column."""


def refuse_unwritable(paths: Mapping[str, str | None]) -> None:
    """Raise before anything is run for a file that could not be written afterwards; the paths are
    those of options. Standard output takes the JSON, and nothing else.
    """
    for name, path in paths.items():
        if path == "-":
            if name == "json":
                continue
            raise InvalidCase(f"--{name} writes a file: give a path in the place of -.")
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise InvalidCase(
                f"the report cannot be written to {path}: there is no folder {Path(path).parent}."
            )
        if path is not None and Path(path).is_dir():
            raise InvalidCase(f"the report cannot be written to {path}: that is a folder.")


def show(rendered: RenderableType) -> None:
    """On standard output: in colours on a terminal, else as plain text. Text alone is one line,
    however long.
    """
    console = Console()
    is_line = isinstance(rendered, Text)
    if not console.is_terminal:
        print(rendered.plain if isinstance(rendered, Text) else plain(rendered), flush=True)
        return
    # Printed and not written by the console, since a bar below catches what is printed alone.
    with console.capture() as caught:
        console.print(rendered, soft_wrap=is_line, crop=False)
    print(caught.get(), end="", flush=True)


def complain(text: str) -> None:
    """One sentence on standard error."""
    print(f"xgradcheck: {text}", file=sys.stderr, flush=True)


class Display:
    """What is said of each case, as soon as it is done, and what is said at the end.

    Targets of the command are shown in full, cases of a file in a line each.
    """

    def __init__(self, cases: Sequence[NamedCase], options: dict[str, Any]) -> None:
        self._in_lines = any(case.source for case in cases)
        self._quiet = options["json"] == "-"
        self._options = options
        self._width = min(max((len(printable(case.name)) for case in cases), default=0), NAMES)
        self._lines = 0

    def of_one(self, outcome: Outcome) -> None:
        """Say what became of one case."""
        print(outcome.out, end="", file=sys.stderr if self._quiet else sys.stdout, flush=True)
        print(outcome.err, end="", file=sys.stderr, flush=True)
        if not self._in_lines:
            self._in_full(outcome)
        elif not self._quiet:
            if not self._lines:
                show(Text(_row("verdict", "case", "distance", "floor", "seconds", self._width)))
            self._lines += 1
            show(_line(outcome, self._width))

    def of_all(self, run: Run) -> None:
        """Say what a line has no room for, and how many came out how."""
        if self._in_lines:
            for outcome in run.outcomes:
                self._beneath(outcome)
        if run.interrupted:
            done, total = len(run.outcomes), len(run.outcomes) + len(run.left)
            many = "case" if total == 1 else "cases"
            complain(f"interrupted: {done or 'none'} of {total} {many} done.")
        if self._in_lines and not self._quiet:
            print(f"\n{run.counts}; {run.elapsed_s:.3g} s", flush=True)

    def _in_full(self, outcome: Outcome) -> None:
        if outcome.report is None:
            if outcome.fault == RAISED:
                print(outcome.error, file=sys.stderr, flush=True)
            else:
                complain(outcome.error)
            return
        if self._quiet:
            print(outcome.report.to_json(), flush=True)
        else:
            self._show(outcome.report, is_full=True)
        self._complain_of_missed(outcome)

    def _beneath(self, outcome: Outcome) -> None:
        """What stands below the lines: all of what is not as it should be."""
        if outcome.report is None:
            if outcome.fault == RAISED:
                complain(f"{outcome.name}: raised an exception:")
                print(outcome.error, file=sys.stderr, flush=True)
            else:
                own = f"{outcome.name}: "
                complain(own + outcome.error.removeprefix(own))
            return
        is_full = bool(outcome.status) or self._options["verbose"]
        if not self._quiet and (is_full or self._options["sensitivity"]):
            print()
            if not is_full:
                print(f"{outcome.name}:")
            self._show(outcome.report, is_full)
        self._complain_of_missed(outcome)

    def _show(self, report: Report, is_full: bool) -> None:
        if is_full:
            show(text(report, self._options["verbose"]))
        if self._options["sensitivity"]:
            print("\n".join(lines(report)), flush=True)

    def _complain_of_missed(self, outcome: Outcome) -> None:
        for said in outcome.missed:
            complain(f"not sensitive enough: {said}")


def _row(verdict: str, name: str, distance: str, floor: str, seconds: str, width: int) -> str:
    return f"{verdict:<12}  {name:<{width}}  {distance:>8}  {floor:>5}  {seconds:>7}"


def _line(outcome: Outcome, width: int) -> Text:
    report, distance, floor = outcome.report, "-", "-"
    if report is not None:
        found = floor_of(report)
        distance = measured(report.distance)
        floor = "-" if found is None else f"{found:.0e}"
    seconds = f"{outcome.elapsed_s:.2f}"
    row = _row(outcome.verdict, printable(outcome.name), distance, floor, seconds, width)
    line = Text(f"{row}  {outcome.remark}".rstrip())
    style = STYLES[Verdict.FAIL] if report is None else STYLES[report.verdict]
    line.stylize(style if outcome.status else "green", 0, len(outcome.verdict))
    return line


def write_files(run: Run, in_lines: bool, options: dict[str, Any]) -> None:
    """Write what was asked for; reports of targets alone go to a file each."""
    path = ""
    try:
        if path := options["json"]:
            _write_json(run, in_lines, path)
        if path := options["junit"]:
            from xgradcheck._junit import junit  # loaded where it is asked for

            write(path, junit(run))
        if path := options["markdown"]:
            from xgradcheck._markdown import markdown

            write(path, markdown(run))
        if path := options["html"]:
            from xgradcheck._html import Expectations, write_page

            stopped = ", interrupted" if run.interrupted else ""
            title = f"{run.title}: {run.counts}{stopped}" if run.is_several else ""
            reports = [(o.name, o.report) for o in run.outcomes if o.report is not None]
            faults = [(o.name, o.said) for o in run.outcomes if o.report is None]
            faults += [(name, "not run: interrupted") for name in run.left]
            verdict = WORDS[run.status] if run.is_several or faults else ""
            remarks = {outcome.name: outcome.remark for outcome in run.outcomes}
            write_page(reports, path, title, Expectations(verdict, remarks, faults))
    except OSError as error:
        raise InvalidCase(f"the report cannot be written to {path}: {error.strerror}") from None


def _write_json(run: Run, in_lines: bool, path: str) -> None:
    if in_lines:
        text = as_json(run.to_dict())
        if path == "-":
            print(text)
        else:
            write(path, text + "\n")
    elif path != "-":
        for number, outcome in enumerate(run.outcomes, 1):
            own = Path(path)
            if run.is_several:
                own = own.with_name(f"{own.stem}-{number}{own.suffix}")
            if outcome.report is not None:
                outcome.report.to_json(own)
