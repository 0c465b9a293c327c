"""The records of a check."""

import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xgradcheck._budget import Plan
from xgradcheck._errors import GradientInconclusive, GradientMismatch, XGradCheckError
from xgradcheck._evidence import Evidence
from xgradcheck._judge import Grade, Verdict
from xgradcheck._written import as_json, write

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Element:
    """One measured element: what the backward pass gives, what differences give, and how sure they
    are.
    """

    index: tuple[int, ...]
    analytic: float
    truth: float
    error_bar: float
    allowed: float
    component: str = ""
    """Of a complex element: "real" or "imag"."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The smallest planted errors of a leaf that a run would have caught."""

    scale: float
    """A factor of 1 + this on all elements."""
    element: float
    """One element off by this times the leaf's rms, whichever it is."""
    row: float
    """A factor of 1 + this on one row of the last axis, whichever it is."""

    @staticmethod
    def worst(found: "Iterable[Sensitivity]") -> "Sensitivity":
        """The least sensitive of several, kind by kind."""
        return Sensitivity(*map(max, zip(*map(astuple, found), strict=True)))


KINDS = ("scale", "element", "row")


@dataclass(frozen=True, slots=True)
class LeafReport:
    """What was found out about one leaf. ``worst`` is None where no single element was measured."""

    name: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    distance: float
    grade: Grade
    floor: float
    worst: Element | None
    wrong: int = 0
    """How many elements are wrong."""
    undecided: int = 0
    names: tuple[str, ...] = ()
    precision: str = "float64"
    """The lowest precision that was computed in."""
    as_run: bool = False
    """Whether this is the backward pass as it runs, below float64."""
    mode: str = "reverse"
    baseline: float | None = None
    """Its error in units of that of the reference, where there is one."""
    sensitivity: Sensitivity | None = None
    """What errors would have been caught; None where nothing tells."""
    is_estimate: bool = False
    """Whether only a part of those that count as wrong was differenced."""
    rows: "tuple[LeafReport, ...]" = ()
    """Where it was judged more than once, each outcome; the gravest is told here as well."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """Of a wrong leaf, the numbers that the page draws; no part of the data."""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * (2 if self.dtype.startswith("complex") else 1)

    @property
    def wrong_of(self) -> str:
        """How many elements are wrong, of how many."""
        about = "~" if self.is_estimate else ""
        return f"{about}{self.wrong} of {self.size}" if self.wrong else "-"

    @property
    def judged(self) -> str:
        """What this was judged as: "float64", "float32 as run" or "forward"."""
        if self.mode != "reverse":
            return self.mode
        return f"{self.precision} as run" if self.as_run else "float64"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing said about one place, with the numbers that support it."""

    leaf: str
    kind: str
    text: str
    indices: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What one probe of an audit came to."""

    name: str
    verdict: Verdict
    holds: str
    """What it looks at: "the same in every memory layout"."""
    trials: tuple[str, ...] = ()
    """What was tried."""
    reason: str = ""
    """Why it was skipped."""
    findings: tuple[Finding, ...] = ()
    refused: tuple[str, ...] = ()
    """What could not be tried, and why: "under vmap: raises RuntimeError: ..."."""
    failed: tuple[str, ...] = ()
    """Which of the trials went wrong."""


class Leaves(dict[str, LeafReport]):
    """Leaf reports by name; a tied leaf answers to each of its names, and any leaf to the end of
    its path.

    ``report.leaves["W1"]`` finds ``params['W1']`` as long as no other leaf ends in W1.
    """

    def __missing__(self, name: str) -> LeafReport:
        found = [leaf for leaf in self.values() if name in leaf.names]
        found = found or [leaf for leaf in self.values() if leaf.path and leaf.path[-1] == name]
        if len(found) != 1:
            raise KeyError(
                f"{name!r} is {'ambiguous' if found else 'no leaf'}; the leaves are "
                f"{', '.join(self)}"
            )
        return found[0]


@contextmanager
def same_numbers() -> Iterator[None]:
    """Leave Python's random numbers alone: rich and others draw some when they are loaded."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


class Written:
    """What can be printed and written: a record that gives its rendering and its dict."""

    if TYPE_CHECKING:

        def __rich__(self) -> RenderableType: ...
        def to_dict(self) -> dict[str, Any]: ...

    def __str__(self) -> str:
        with same_numbers():
            from xgradcheck._text import plain  # rich is loaded where something is rendered

            return plain(self)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """``to_dict()`` as JSON text; written to ``path`` too, where one is given."""
        text = as_json(self.to_dict())
        if path is not None:
            write(path, text + "\n")
        return text


@dataclass(frozen=True)
class Report(Written):
    """The outcome of a check. True for PASS alone; ``str()`` is the text, ``to_dict()`` the
    data.
    """

    name: str
    verdict: Verdict
    distance: float
    grade: Grade
    leaves: Mapping[str, LeafReport]
    findings: tuple[Finding, ...]
    probes: tuple[ProbeReport, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    coverage: str
    evaluations: int
    elapsed_s: float
    seed: int
    environment: Mapping[str, str]
    precision: str = "float64"
    """The lowest precision that the function was seen to compute in."""
    plan: Plan | None = None
    """What this was expected to cost."""
    replay: str = ""
    """The command that does this again, where it was a command."""
    schema: int = field(default=SCHEMA)

    @property
    def is_stated(self) -> bool:
        """Whether the gradient was compared with one that was stated, and not with differences."""
        return self.coverage == "comparison"

    @property
    def sensitivity(self) -> dict[str, Sensitivity]:
        """For each leaf the smallest errors that this run would have caught, however it was judged;
        only of those that were.
        """
        told = {
            name: [row.sensitivity for row in leaf.rows or (leaf,) if row.sensitivity is not None]
            for name, leaf in self.leaves.items()
        }
        return {name: Sensitivity.worst(found) for name, found in told.items() if found}

    def __bool__(self) -> bool:
        return self.verdict is Verdict.PASS

    def __rich__(self) -> "RenderableType":
        from xgradcheck._text import text

        return text(self)

    def text(self, verbose: bool = False) -> str:
        """The text of ``str()``; where ``verbose``, with every leaf, finding and note."""
        with same_numbers():
            from xgradcheck._text import plain, text

            return plain(text(self, verbose))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, under the names of the attributes.

        Infinity and NaN, which JSON lacks, become None.
        """
        return {
            "schema": self.schema,
            "name": self.name,
            "verdict": str(self.verdict),
            "distance": number(self.distance),
            "grade": str(self.grade),
            "leaves": {name: _leaf_to_dict(leaf) for name, leaf in self.leaves.items()},
            "findings": [_finding_to_dict(finding) for finding in self.findings],
            "probes": [_probe_to_dict(probe) for probe in self.probes],
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "coverage": self.coverage,
            "evaluations": self.evaluations,
            "elapsed_s": self.elapsed_s,
            "seed": self.seed,
            "environment": dict(self.environment),
            "precision": self.precision,
            "plan": None if self.plan is None else asdict(self.plan),
            "replay": self.replay,
        }

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page of its own: what is wrong, its pictures, every leaf and probe; written to ``path``
        too, where one is given. One file that needs no other, light and dark, wide and narrow.

        Raises ``InvalidCase`` where jinja2 or matplotlib is not installed: they come with
        ``xgradcheck[report]``.
        """
        with same_numbers():
            from xgradcheck._html import page

            text = page([(self.name, self)])
        if path is not None:
            write(path, text)
        return text

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        with same_numbers():
            from xgradcheck._html import fragment

            return fragment(self)

    def error(self) -> XGradCheckError | None:
        """The exception that this verdict calls for; None for PASS."""
        if self.verdict is Verdict.PASS:
            return None
        return (GradientMismatch if self.verdict is Verdict.FAIL else GradientInconclusive)(self)

    def raise_if_failed(self) -> None:
        """Raise ``GradientMismatch`` for FAIL and ``GradientInconclusive`` for INCONCLUSIVE."""
        __tracebackhide__ = True
        if (error := self.error()) is not None:
            raise error


def portable(report: Report) -> Report:
    """The same without what only one process knows the type of: keys of the user's dicts."""
    leaves = Leaves({name: _portable(leaf) for name, leaf in report.leaves.items()})
    return replace(report, leaves=leaves)


def _portable(leaf: LeafReport) -> LeafReport:
    path = tuple(map(_plain, leaf.path))
    return replace(leaf, path=path, rows=tuple(map(_portable, leaf.rows)))


def number(value: float | None) -> float | None:
    """A number as JSON has it: infinity and NaN, which it lacks, become None."""
    return float(value) if value is not None and abs(value) < float("inf") else None


def _plain(key: Any) -> Any:
    """A dict key as JSON has it: what is no number is its text."""
    for kind in (bool, int, float, str):
        if isinstance(key, kind):
            return kind(key)
    return str(key)


def _finding_to_dict(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"indices": [list(index) for index in finding.indices]}


def _probe_to_dict(probe: ProbeReport) -> dict[str, Any]:
    return {
        "name": probe.name,
        "verdict": str(probe.verdict),
        "holds": probe.holds,
        "trials": list(probe.trials),
        "reason": probe.reason,
        "refused": list(probe.refused),
        "failed": list(probe.failed),
        "findings": [_finding_to_dict(finding) for finding in probe.findings],
    }


def _leaf_to_dict(leaf: LeafReport) -> dict[str, Any]:
    worst = leaf.worst
    rows = {"rows": [_leaf_to_dict(row) for row in leaf.rows]} if leaf.rows else {}
    return {
        "path": [_plain(key) for key in leaf.path],
        "shape": list(leaf.shape),
        "dtype": leaf.dtype,
        "precision": leaf.precision,
        "as_run": leaf.as_run,
        "mode": leaf.mode,
        "baseline": number(leaf.baseline),
        "sensitivity": leaf.sensitivity
        and {kind: number(getattr(leaf.sensitivity, kind)) for kind in KINDS},
        "verdict": str(leaf.verdict),
        "distance": number(leaf.distance),
        "grade": str(leaf.grade),
        "floor": number(leaf.floor),
        "wrong": leaf.wrong,
        "is_estimate": leaf.is_estimate,
        "undecided": leaf.undecided,
        "worst": None
        if worst is None
        else {
            "index": list(worst.index),
            "analytic": number(worst.analytic),
            "truth": number(worst.truth),
            "error_bar": number(worst.error_bar),
            "allowed": number(worst.allowed),
            **({"component": worst.component} if worst.component else {}),
        },
    } | rows
