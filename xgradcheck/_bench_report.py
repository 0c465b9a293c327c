"""The records of a benchmark."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xgradcheck._judge import Verdict
from xgradcheck._report import SCHEMA, Written, number
from xgradcheck._written import write

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run: the median of several, and the quartiles."""

    median: float
    lower: float
    upper: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """Of the seconds of each run.

        >>> Times.of([1.0, 2.0, 3.0]).median
        2.0
        """
        lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
        return cls(float(median), float(lower), float(upper), len(seconds))


@dataclass(frozen=True, slots=True)
class BenchRecord:
    """One implementation in one dtype with one set of arguments. Times are None unless the verdict
    is PASS.
    """

    name: str = ""
    dtype: str = ""
    shape: str = ""
    verdict: Verdict = Verdict.PASS
    reason: str = ""
    """Why the verdict is not PASS."""
    error: float | None = None
    """Of its gradient, in units of the error of the reference run in the same dtype."""
    forward: Times | None = None
    backward: Times | None = None
    both: Times | None = None
    peak_bytes: int | None = None
    evaluations: int = 0
    """What it took to prove the gradient by differences."""

    @property
    def place(self) -> str:
        """The arguments and the dtype: "64 float32"."""
        return f"{self.shape} {self.dtype}".strip()


@dataclass(frozen=True)
class BenchReport(Written):
    """The outcome of a benchmark. True where every implementation is right; ``str()`` is the
    table.
    """

    name: str
    records: tuple[BenchRecord, ...]
    notes: tuple[str, ...]
    device: str
    seed: int
    elapsed_s: float
    environment: Mapping[str, str]
    schema: int = field(default=SCHEMA)

    @property
    def verdict(self) -> Verdict:
        """FAIL if any record is, else INCONCLUSIVE if any is, else PASS."""
        return Verdict.of([record.verdict for record in self.records])

    def __bool__(self) -> bool:
        return self.verdict is Verdict.PASS

    def fastest(self, dtype: str, shape: str = "") -> BenchRecord | None:
        """The one that takes least for forward and backward together, of those that are right."""
        right = [r for r in self.records if (r.dtype, r.shape) == (dtype, shape) and r.both]
        return min(right, key=_median, default=None)

    def __rich__(self) -> "RenderableType":
        from xgradcheck._bench_text import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, under the names of the attributes."""
        fastest = {(r.dtype, r.shape): self.fastest(r.dtype, r.shape) for r in self.records}
        return {
            "schema": self.schema,
            "name": self.name,
            "verdict": str(self.verdict),
            "records": [
                asdict(record)
                | {"verdict": str(record.verdict), "error": number(record.error)}
                | {"fastest": record is fastest[record.dtype, record.shape]}
                for record in self.records
            ],
            "notes": list(self.notes),
            "device": self.device,
            "seed": self.seed,
            "elapsed_s": self.elapsed_s,
            "environment": dict(self.environment),
        }

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page of its own, without scripts; written to ``path`` too, where one is given. Needs
        jinja2.
        """
        from xgradcheck._bench_page import page

        text = page(self)
        if path is not None:
            write(path, text)
        return text


def _median(record: BenchRecord) -> float:
    return float("inf") if record.both is None else record.both.median
