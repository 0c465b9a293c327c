"""One leaf in one row: its verdict, and what is said of it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Problem
from xgradcheck._differences import norm, rms
from xgradcheck._findings import (
    MEETING,
    indices,
    mirrored,
    notes_on_points,
    only_here,
    precision,
    unsure,
    wrong_gradient,
)
from xgradcheck._generic import is_symmetric
from xgradcheck._judge import ZERO, Judged, Verdict, accepted_impostors, distance, grade, judge
from xgradcheck._kinds import Kind
from xgradcheck._layout import DOUBLE, Leaf, Mask, Vector
from xgradcheck._measured import SMALLEST, Measured
from xgradcheck._precision import looks_like, said_of
from xgradcheck._report import Element, Finding, LeafReport
from xgradcheck._sensitivity import of_elements

ABOUT, SMALL = 10.0, 1e-3
"""In how many distances that are allowed a symmetric matrix is right as a whole, and how large its
bars may be beside its gradient.
"""
ROUNDED, FAR_OFF = 8.0, 0.5
"""How many units of rounding of all that a leaf can do to phi its rounding may leave of it; and how
far off it may be, where it is not as small itself.
"""
HALVES = ((np.triu, 1), (np.tril, -1))

Account = tuple[LeafReport, list[Finding], list[str]]


def together(accounts: list[Account]) -> Account:
    """What several looks at one leaf come to; the gravest decides, the last where they agree."""
    if len(accounts) == 1:
        return accounts[0]
    rows = [entry for entry, _, _ in accounts]
    gravest = Verdict.of([row.verdict for row in rows])
    if all(row.verdict is gravest for row in rows):
        findings = accounts[0][1]
    else:
        findings = [
            replace(finding, text=f"{entry.judged}: {finding.text}")
            for entry, said, _ in accounts
            for finding in said
        ]
    entry = [row for row in rows if row.verdict is gravest][-1]
    notes = next((noted for _, _, noted in accounts if noted), [])
    return replace(entry, rows=tuple(rows)), findings, notes


@dataclass(frozen=True, slots=True)
class Seen:
    """One leaf in one row: what the backward pass gives, the truth, and how they compare."""

    leaf: Leaf
    number: int
    measured: Measured
    gradient: Vector
    allowed: Vector
    is_rounding: bool
    """Whether little but rounding is left of it, and another row tells of the formula."""
    judged: Judged

    @property
    def value(self) -> Vector:
        """The truth."""
        return self.measured.truth.value[self.leaf.part]

    @property
    def bar(self) -> Vector:
        """How well it is known."""
        return self.measured.truth.bar[self.leaf.part]

    @property
    def excused(self) -> Vector:
        """What rounding of the run may add to what is allowed."""
        return self.measured.run.excused[self.leaf.part]

    @property
    def mode(self) -> str:
        """In which mode the gradient was computed."""
        return self.measured.run.mode

    def accepted(self, excused: Vector) -> list[str]:
        """Which plainly wrong gradients would pass as well."""
        return accepted_impostors(self.value, self.bar, self.measured.allowance, excused)

    @property
    def is_severed(self) -> bool:
        """Whether the backward pass does not reach the leaf."""
        return self.number in self.measured.backward.severed

    def inconclusive(self, kind: str, text: str) -> "Decision":
        """INCONCLUSIVE for this reason."""
        return Verdict.INCONCLUSIVE, [Finding(self.leaf.name, kind, text)], []


Decision = tuple[Verdict, list[Finding], list[str]]


def account(
    leaf: Leaf,
    number: int,
    problem: Problem,
    measured: Measured,
    eps: Vector | None,
    is_beside: bool = False,
) -> Account:
    """What is said of one leaf in one row; ``is_beside`` another one, in float64."""
    seen = _seen(leaf, number, measured, is_beside)
    verdict, findings, notes = _decided(seen, problem.point, eps)
    return _entry(seen, verdict), findings, notes + _notes(seen)


def _seen(leaf: Leaf, number: int, measured: Measured, is_beside: bool) -> Seen:
    truth, run, part = measured.truth, measured.run, leaf.part
    found, value, bar = measured.backward.gradient[part], truth.value[part], truth.bar[part]
    # An infinite slope is no mistake where the slope is infinite: the bar there is, too.
    steep = (truth.kinds[part] == Kind.STEEP) & np.isinf(found)
    gradient = np.where(steep, value, found)
    below = truth.zero_below
    if measured.near_by.zero_below is not None:
        below = np.fmax(below, measured.near_by.zero_below)
    scored = None if truth.scored is None else (truth.scored[0][part], truth.scored[1][part])
    is_rounding = is_beside and _is_rounding(measured, part)
    judged = judge(
        gradient,
        value,
        bar,
        truth.settled[part],
        measured.allowance,
        below[part],
        truth.still[part],
        run.excused[part],
        scored,
        truth.faint[part],
        is_rounding,
    )
    allowed = measured.allowance.allowed(gradient, value, rms(value)) + run.excused[part]
    return Seen(leaf, number, measured, gradient, allowed, is_rounding, judged)


def _decided(seen: Seen, point: Vector, eps: Vector | None) -> Decision:
    leaf, judged = seen.leaf, seen.judged
    if judged.verdict is Verdict.PASS:
        return _passed(seen)
    if judged.verdict is Verdict.INCONCLUSIVE:
        doubt = unsure(leaf, seen.measured, judged, seen.allowed, eps)
        near_by = seen.measured.near_by
        mistake = (near_by.mistakes or {}).get(seen.number)
        # Where kinks meet, the point tells nothing, and another one does.
        if mistake is not None and doubt.kind == MEETING and seen.number not in near_by.kept:
            return (
                Verdict.FAIL,
                [only_here(leaf, seen.number, mistake, near_by, seen.mode, True)],
                [],
            )
        return Verdict.INCONCLUSIVE, [doubt], []
    if _is_right_symmetrised(leaf, point, seen.measured):
        text = (
            f"{leaf.name}: wrong element by element, right once symmetrised: if it is meant for "
            f"{mirrored(leaf)} matrices, say constraint='symmetric'"
        )
        found = Finding(leaf.name, "symmetric", text, indices(leaf, judged.failed))
        return Verdict.INCONCLUSIVE, [found], []
    return Verdict.FAIL, _mistakes(seen), []


def _mistakes(seen: Seen) -> list[Finding]:
    """What is said of a wrong gradient."""
    leaf, name = seen.leaf, seen.leaf.name
    if seen.is_severed:
        text = (
            f"no gradient for {name}: the backward pass does not reach it, and the output depends "
            f"on it"
        )
        others = leaf.size < seen.measured.run.backward.gradient.size
        if others and seen.measured.order == 1:
            text += "; if it is meant as a constant, name the others in wrt="
        return [Finding(name, "no gradient", text)]
    gradient, value, measured = seen.gradient, seen.value, seen.measured
    findings = [wrong_gradient(leaf, gradient, value, seen.judged, measured.truth)]
    point = measured.work.point[leaf.part]
    if dtype := looks_like(gradient, value, measured.run.bits or DOUBLE, seen.bar, point):
        findings.append(Finding(name, "precision", f"{name}: {said_of(dtype)}"))
    return findings


def _passed(seen: Seen) -> Decision:
    """A gradient that is right, unless as much would be said of plainly wrong ones, or it is wrong
    near by.
    """
    name, measured, notes = seen.leaf.name, seen.measured, list[str]()
    if seen.is_severed and seen.leaf.size:
        notes.append(f"{name} gets no gradient, and the output does not depend on it")
    if not seen.judged.is_zero and (accepted := seen.accepted(seen.excused)):
        text = f"{name}: these tolerances would also accept {' and '.join(accepted)}: "
        if seen.accepted(measured.run.slack[seen.leaf.part]):
            return seen.inconclusive("loose tolerance", text + "lower rtol or atol")
        if not seen.is_rounding:
            return seen.inconclusive("rounding", text + "its rounding may be as large")
        notes.append(
            f"{name}: in {precision(measured.bits)} little but rounding is left of its gradient at "
            f"this point: float64 alone tells that it is right"
        )
    mistake = (measured.near_by.mistakes or {}).get(seen.number)
    if mistake is None:
        return Verdict.PASS, [], notes
    is_kept = seen.number in measured.near_by.kept
    verdict = Verdict.INCONCLUSIVE if is_kept else Verdict.FAIL
    finding = only_here(seen.leaf, seen.number, mistake, measured.near_by, seen.mode)
    return verdict, [finding], notes


def _notes(seen: Seen) -> list[str]:
    """What is worth knowing of a leaf whatever its verdict is."""
    leaf, judged, truth, notes = seen.leaf, seen.judged, seen.measured.truth, list[str]()
    if judged.is_zero and leaf.size:
        limit = float(np.max(seen.bar + seen.excused))
        told = f"anything above {limit:.1e} would have been seen"
        notes.append(
            f"{leaf.name}: zero gradient; {told if limit > 0 else 'the output does not move'}"
        )
    if analytic := int(truth.analytic[leaf.part].sum()):
        notes.append(
            f"{leaf.name}: a complex step at {analytic} of {leaf.size} elements, which takes the "
            f"function to be analytic"
        )
    return notes + notes_on_points(leaf, truth.kinds[leaf.part][~judged.failed & ~judged.undecided])


def _entry(seen: Seen, verdict: Verdict) -> LeafReport:
    leaf, measured, judged = seen.leaf, seen.measured, seen.judged
    found, still = measured.backward.gradient[leaf.part], measured.truth.still[leaf.part]
    worst = element_at(leaf, found, seen.value, seen.bar, seen.allowed, judged, still)
    floor = float("nan") if judged.is_zero else judged.floor
    told = None if judged.is_zero else of_elements(leaf, seen.value, seen.allowed + seen.bar)
    return leaf_entry(
        leaf,
        verdict,
        judged.distance,
        floor,
        worst,
        wrong=int(judged.failed.sum()),
        undecided=int(judged.undecided.sum()),
        precision=precision(measured.bits),
        as_run=measured.run.bits is not None,
        mode=measured.run.mode,
        sensitivity=told,
    )


def leaf_entry(
    leaf: Leaf,
    verdict: Verdict,
    score: float = math.nan,
    floor: float = math.nan,
    worst: Element | None = None,
    **known: Any,
) -> LeafReport:
    """The report on one leaf, with what else is ``known``, by the names of its fields."""
    return LeafReport(
        name=leaf.name,
        path=leaf.path,
        shape=leaf.shape,
        dtype=leaf.dtype,
        verdict=verdict,
        distance=float(score),
        grade=grade(score),
        floor=float(floor),
        worst=worst,
        names=leaf.names,
        **known,
    )


def _is_rounding(measured: Measured, part: slice) -> bool:
    """Whether what is excused in a run below float64 is as good as zero there: float64 has judged
    the formula, and no more is asked of the rounding.
    """
    bits, excused = measured.run.bits, measured.run.excused[part]
    if bits is None:
        return False
    units = ROUNDED * 2.0**-bits / ZERO[DOUBLE] / np.sqrt(max(excused.size, 1))
    limit = units * measured.truth.faint[part] + SMALLEST[bits]
    value, gradient = measured.truth.value[part], measured.backward.gradient[part]
    is_near = norm(gradient - value) <= FAR_OFF * norm(value)
    return bool((excused <= limit).all() and (is_near or (np.abs(value) <= limit).all()))


def element_at(
    leaf: Leaf,
    gradient: Vector,
    value: Vector,
    bar: Vector,
    allowed: Vector,
    judged: Judged,
    still: Mask,
) -> Element | None:
    """Of the wrong elements the one that is off by most; else the one nearest to what is not
    allowed, those that stand still last.
    """
    if leaf.size == 0:
        return None
    error = np.abs(gradient - value)
    if judged.failed.any():
        merit = np.where(judged.failed, np.nan_to_num(error, nan=np.inf), -1.0)
    else:
        among = judged.undecided if judged.undecided.any() else ~still | still.all()
        with np.errstate(all="ignore"):
            merit = np.where(among, np.nan_to_num((error + bar) / allowed, nan=0.0), -1.0)
    place = int(np.argmax(merit))
    position = leaf.start + place
    return Element(
        index=leaf.index(position),
        analytic=float(gradient[place]),
        truth=float(value[place]),
        error_bar=float(bar[place]),
        allowed=float(allowed[place]),
        component=leaf.component(position),
    )


def _is_right_symmetrised(leaf: Leaf, point: Vector, measured: Measured) -> bool:
    """Whether a symmetric matrix has a gradient that is wrong element by element and right along
    symmetric directions, as that of a function which reads one triangle alone.

    A transposed gradient is that too, but it follows no convention: neither it nor the truth is
    symmetric or triangular.
    """
    if not is_symmetric(leaf, point[leaf.part]):
        return False
    turned = [
        part[leaf.part].reshape(leaf.grid)
        for part in (measured.backward.gradient, measured.truth.value, measured.truth.bar)
    ]
    if not np.isfinite(turned).all():
        return False
    gradient, value, bar = (np.ravel(part + leaf.turned(part)) / 2 for part in turned)
    allowed = (
        measured.allowance.allowed(gradient, value, rms(value)) + measured.run.excused[leaf.part]
    )
    # Once a leaf is called wrong, its other elements are known no better than that took.
    size, lost = norm(value), norm(measured.run.excused[leaf.part])
    apart = distance(gradient, value) * size
    if apart > ABOUT * measured.allowance.distance * size + lost or norm(bar) > SMALL * size:
        return False
    given, truth, slack = turned[0], turned[1], allowed.reshape(leaf.grid) + turned[2]
    conventions = [given - leaf.turned(given)]
    conventions += [half(part, k) for part in (given, truth) for half, k in HALVES]
    return any((np.abs(part) <= slack).all() for part in conventions)
