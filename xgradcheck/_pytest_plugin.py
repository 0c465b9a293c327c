"""pytest: the fixture ``gradcheck``, the options ``--xgradcheck-*``, and what a run writes."""

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from xgradcheck._pytest_options import Options, add_options, options_of
from xgradcheck._pytest_records import Recorder

if TYPE_CHECKING:
    from xgradcheck._bench_report import BenchReport
    from xgradcheck._report import Report

CHECKS = pytest.StashKey["Checks"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist
    options = options_of(config, writes=not is_worker)
    recorder = Recorder(options, is_worker)
    config.pluginmanager.register(recorder, "xgradcheck-recorder")
    config.stash[CHECKS] = Checks(options, recorder)


class Checks:
    """The verbs, with the options of the run and the name of the test that is running; the reports
    are recorded.
    """

    def __init__(self, options: Options, recorder: Recorder) -> None:
        self._options = options
        self._recorder = recorder

    def __repr__(self) -> str:
        return "<fixture gradcheck>"

    # Imported on use: a test run that checks no gradient does not pay for it.
    def __call__(self, *args: Any, raise_exception: bool = True, **options: Any) -> "Report":
        """``xgradcheck.check``, with the same arguments."""
        __tracebackhide__ = True
        from xgradcheck._check import check

        report = check(*args, raise_exception=False, **self._differencing(options))
        report = self._recorded("check", report)
        if raise_exception and (verdict := report.error()) is not None:
            raise verdict
        return report

    def audit(self, *args: Any, raise_exception: bool = True, **options: Any) -> "Report":
        """``xgradcheck.audit``, with the same arguments; strict with ``--xgradcheck-strict``."""
        __tracebackhide__ = True
        from xgradcheck._audit import audit

        options = {"strict": self._options.strict} | self._differencing(options)
        report = audit(*args, raise_exception=False, **options)
        report = self._recorded("audit", report)
        if raise_exception and (verdict := report.error()) is not None:
            raise verdict
        return report

    def bench(self, *args: Any, **options: Any) -> "BenchReport":
        """``xgradcheck.bench``, with the same arguments: raises nothing about what it times."""
        __tracebackhide__ = True
        from xgradcheck._bench import bench

        report = bench(*args, **self._own(options))
        self._recorder.add("bench", report)
        return report

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"seed": self._options.seed, "name": self._recorder.item.name} | options

    def _differencing(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same for what makes differences, which an expected gradient is not compared with."""
        budget = self._options.budget if options.get("expect") is None else None
        return self._own({"budget": budget} | options)

    def _recorded(self, verb: str, report: "Report") -> "Report":
        seed = ("--xgradcheck-seed", str(report.seed))
        command = shlex.join(["pytest", self._recorder.command, *seed, *self._options.again])
        report = replace(report, replay=command)
        self._recorder.add(verb, report)
        return report


# Of the session, though it knows the test: hypothesis warns of fixtures that are made anew for each
# test, since they are not for each of its examples, and there is nothing to make anew here.
@pytest.fixture(scope="session")
def gradcheck(pytestconfig: pytest.Config) -> Checks:
    """``xgradcheck.check`` with the seed of ``--xgradcheck-seed`` and the test's name as its title;
    ``gradcheck.audit`` and ``gradcheck.bench`` are ``xgradcheck.audit`` and ``xgradcheck.bench``.
    """
    return pytestconfig.stash[CHECKS]
