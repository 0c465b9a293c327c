"""What becomes of models at many seeds: right ones in every form, and twins with one wrong leaf."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xgradcheck import Report


def seen(report: Report, name: str) -> str:
    """Whether a twin failed in the leaf that is wrong, and in no other."""
    wrong = {found for found, leaf in report.leaves.items() if leaf.verdict == "FAIL"}
    own = {found for found in report.leaves if name in found.split(" = ")}
    if wrong == own and own:
        return "named"
    return "another leaf failed" if wrong else "not failed"


@dataclass(slots=True)
class Tally:
    """Verdicts of right forms, what was seen of twins, and every report that is not as it should
    be.
    """

    right: Counter[str] = field(default_factory=Counter)
    twins: Counter[str] = field(default_factory=Counter)
    amiss: list[str] = field(default_factory=list)

    def count(self, forms: Iterable[tuple[str, Any]], twin: tuple[Any, str], seed: int) -> None:
        """Check a model's forms and its twin."""
        for form, model in forms:
            report = model.report(seed)
            self.right[str(report.verdict)] += 1
            if report.verdict != "PASS":
                self.amiss.append(f"seed {seed}, {form}: {report}")
        model, name = twin
        report = model.report(seed)
        became = seen(report, name)
        self.twins[became] += 1
        if became != "named":
            self.amiss.append(f"seed {seed}, {name} spoilt, {became}: {report}")

    @property
    def open(self) -> float:
        """The share of right ones of which nothing could be said."""
        return self.right["INCONCLUSIVE"] / max(1, self.right.total())
