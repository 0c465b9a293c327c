"""What became of each case of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xgradcheck._judge import Verdict, largest_floor
from xgradcheck._report import SCHEMA, Report, number

# Of several statuses the first that applies in this order is returned.
MISUSE, FAILED, UNSURE, PASSED = 2, 1, 3, 0
# As shells count SIGINT and SIGPIPE.
INTERRUPTED, CLOSED = 130, 141
STATUS = {Verdict.PASS: PASSED, Verdict.FAIL: FAILED, Verdict.INCONCLUSIVE: UNSURE}
REFUSED, RAISED, DIED = "refused", "raised", "died"


def gravest(statuses: Sequence[int]) -> int:
    """The exit status of several."""
    return next(s for s in (MISUSE, FAILED, UNSURE, PASSED) if s in (*statuses, PASSED))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A report, or why there is none."""

    name: str
    report: Report | None = None
    expected: Verdict = Verdict.PASS
    """Of a planted mistake it is FAIL."""
    fault: str = ""
    """Why there is no report: it was refused, the function raised, or the process died."""
    error: str = ""
    """The refusal in a sentence, or the traceback."""
    missed: tuple[str, ...] = ()
    """What it was asked to be sensitive to, and was not."""
    elapsed_s: float = 0.0
    out: str = ""
    """What the function printed, in a process of its own."""
    err: str = ""

    @property
    def verdict(self) -> str:
        """In a word; ERROR where there is no report."""
        return "ERROR" if self.report is None else str(self.report.verdict)

    @property
    def status(self) -> int:
        """What it counts as: a verdict that was expected is PASS, and another one instead of it is
        not.
        """
        if self.report is None:
            return MISUSE
        if self.missed:
            return FAILED
        if self.report.verdict is self.expected:
            return PASSED
        return STATUS[self.report.verdict] or FAILED

    @property
    def remark(self) -> str:
        """What the verdict alone does not say."""
        if self.report is None:
            return self.fault
        if self.missed:
            return "not sensitive enough"
        if self.report.verdict is not self.expected:
            return "" if self.expected is Verdict.PASS else f"expected {self.expected}"
        return "" if self.expected is Verdict.PASS else "as expected"

    @property
    def said(self) -> str:
        """The last line of an error: of a traceback it says what was raised."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        # Notes that were added to an exception stand behind it.
        own = [line for line in lines if not line.startswith("xgradcheck: ")]
        return (own or lines or [""])[-1]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that a command did."""

    title: str
    outcomes: Sequence[Outcome]
    left: Sequence[str] = ()
    """The names of the cases that were not run."""
    interrupted: bool = False
    elapsed_s: float = 0.0

    @property
    def status(self) -> int:
        return gravest([outcome.status for outcome in self.outcomes])

    @property
    def is_several(self) -> bool:
        return len(self.outcomes) + len(self.left) > 1

    @property
    def counts(self) -> str:
        """How many came out how: "4 cases: 3 PASS, 1 FAIL as expected"."""
        kinds: dict[str, int] = {}
        for outcome in sorted(self.outcomes, key=_order):
            remark = "" if outcome.report is None else outcome.remark
            kind = f"{outcome.verdict} {remark}".strip()
            kinds[kind] = kinds.get(kind, 0) + 1
        total = len(self.outcomes)
        many = f"{total} case" if total == 1 else f"{total} cases"
        if self.left:
            many = f"{total} of {total + len(self.left)} cases"
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        return f"{many}: {listed}" if listed else many

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {
            "schema": SCHEMA,
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed_s,
            "cases": [
                {
                    "name": outcome.name,
                    "verdict": outcome.verdict,
                    "expect": str(outcome.expected),
                    "remark": outcome.remark,
                    "error": outcome.error or None,
                    "elapsed_s": outcome.elapsed_s,
                    "report": None if outcome.report is None else outcome.report.to_dict(),
                }
                for outcome in self.outcomes
            ],
            "not_run": list(self.left),
        }


def _order(outcome: Outcome) -> tuple[int, str]:
    grave = (PASSED, UNSURE, FAILED, MISUSE).index(outcome.status)
    return grave, "" if outcome.verdict == Verdict.PASS else outcome.verdict


def floor_of(report: Report) -> float | None:
    """The largest floor of the leaves, the smallest error that would have been seen in all."""
    return number(largest_floor(leaf.floor for leaf in report.leaves.values()))
