"""From what was measured to the report: a verdict for each leaf, and what is said about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Backward, Problem
from xgradcheck._constraints import Tangent
from xgradcheck._diagnose import Kind, Kinds
from xgradcheck._differences import rms
from xgradcheck._generic import DIAGONAL, SYMMETRIC, Mistake, NearBy
from xgradcheck._judge import (
    Judged,
    Tolerance,
    Verdict,
    accepted_impostors,
    distance,
    grade,
    judge,
)
from xgradcheck._layout import BITS, DOUBLE, Leaf, Mask, Vector
from xgradcheck._report import Element, Finding, LeafReport, Leaves, Report
from xgradcheck._truth import Sweep, Truth

SHOWN = 20
"""How many indices of wrong elements a finding lists."""
HALVES = ((np.triu, 1), (np.tril, -1))
NAMED = 3
"""How many leaves a note names."""
ROUNDING = 1e-10
"""What the order of a sum can change, relative; more is no rounding."""


@dataclass(frozen=True, slots=True)
class Run:
    """The backward pass under test, and what its elements may err by on top of any allowance."""

    backward: Backward
    slack: Vector
    """By how much each element of the gradient varies from run to run."""
    rounding: Vector | float = 0.0
    """By how much rounding may have changed each element."""
    bits: int | None = None
    """The significant bits that it ran in, where it is judged as it runs, below float64."""

    @property
    def excused(self) -> Vector:
        """What each element may err by."""
        return np.asarray(self.slack + self.rounding)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of the backward pass under test, and the numerical gradient."""

    spread: float
    """By how much phi varies from call to call at one point."""
    run: Run
    work: Sweep
    truth: Truth
    near_by: NearBy
    refusals: int
    refusal: Exception | None
    """How often the function raised beside the point, and what first."""
    spaces: Mapping[int, Tangent]
    """The tangent spaces of constrained leaves, by number."""
    held: list[str]
    """What the function changes whenever it runs, held still."""
    unraised: str = ""
    """Why the truth was not computed in float64, where the function runs below that."""

    @property
    def value(self) -> float:
        """phi at the point."""
        return self.work.value

    @property
    def backward(self) -> Backward:
        """What the backward pass gave."""
        return self.run.backward

    @property
    def allowance(self) -> Tolerance:
        """What error it is allowed."""
        return self.work.allowance

    @property
    def bits(self) -> int:
        """The significant bits of what was judged."""
        return min(self.truth.noise.bits, self.run.bits or DOUBLE)


def outcome(
    problem: Problem,
    rows: Sequence[Measured],
    eps: Vector | None,
    frame: dict[str, Any],
) -> Report:
    """The report of a sweep: of the backward pass in float64, as it runs, or both in this order."""
    leaves = Leaves()
    findings: list[Finding] = []
    notes: list[str] = []
    verdicts = []
    measured = rows[0]
    for number, leaf in enumerate(problem.layout):
        if leaf.size == 0:
            notes.append(f"{leaf.name} is empty")
        if number in measured.spaces:
            words = measured.spaces[number].words
            notes.append(f"{leaf.name}: compared in the tangent space of {words}")
        entry, said, noted = _together([_leaf(leaf, number, problem, row, eps) for row in rows])
        leaves[leaf.name] = entry
        findings += said
        notes += noted
        verdicts.append(entry.verdict)
    if measured.held:
        notes.append(f"held still from call to call: {', '.join(measured.held)}")
    if measured.spread:
        ulps = measured.spread / float(np.spacing(abs(measured.value)))
        notes.append(f"the forward pass repeats itself to {ulps:.0f} ulps only, taken for noise")
    if rows[-1].run.slack.any():
        rounded, random = _on_repeats(problem, rows[-1])
        notes += rounded
        findings += random
        for finding in random:
            if leaves[finding.leaf].verdict is Verdict.PASS:
                unsure = replace(leaves[finding.leaf], verdict=Verdict.INCONCLUSIVE)
                leaves[finding.leaf] = unsure
            verdicts.append(Verdict.INCONCLUSIVE)
    notes += _note_on_near_by(problem, measured.near_by)
    if measured.refusal is not None:
        raised, times = repr(measured.refusal), measured.refusals
        notes.append(
            f"the function raised {raised} at {times} of the points beside this one, "
            f"which was taken for the edge of its domain"
        )
    if (low := _low_precision(measured)) is not None:
        findings.append(low)
    if (mismatch := _forward_mismatch(problem, measured)) is not None:
        findings.append(mismatch)
        verdicts.append(Verdict.FAIL)
    if measured.unraised:
        findings.append(_unraised(measured))
    scored = rows[-1].truth.scored
    overall = distance(
        rows[-1].backward.gradient, scored[0] if scored is not None else rows[-1].truth.value
    )
    return Report(
        verdict=Verdict.of(verdicts),
        distance=overall,
        grade=grade(overall),
        leaves=leaves,
        findings=tuple(findings),
        probes=(),
        notes=tuple(notes),
        precision=_precision(min(row.bits for row in rows)),
        **frame,
    )


Account = tuple[LeafReport, list[Finding], list[str]]


def _together(accounts: list[Account]) -> Account:
    """What two looks at one leaf come to; the graver one decides, the last where they agree."""
    if len(accounts) == 1:
        return accounts[0]
    (wide, said, noted), (low, said_low, noted_low) = accounts
    gravest = Verdict.of([wide.verdict, low.verdict])
    if wide.verdict is low.verdict:
        findings = said or said_low
    else:
        findings = [
            replace(finding, text=f"{entry.judged}: {finding.text}")
            for entry, own in ((wide, said), (low, said_low))
            for finding in own
        ]
    entry = low if low.verdict is gravest else wide
    return replace(entry, rows=(wide, low)), findings, noted or noted_low


def stochastic(problem: Problem, value: float, spread: float, frame: dict[str, Any]) -> Report:
    """The report on a function that does not repeat itself: nothing was differenced."""
    text = (
        f"the function is not repeatable: at one point it gave values that differ by "
        f"{spread:.2g} (the first was "
        f"{value:.6g}). Draw its random numbers from a seed, pass its generator as an argument, "
        f"or use eval() mode."
    )
    nan = float("nan")
    leaves = Leaves()
    for leaf in problem.layout:
        leaves[leaf.name] = _entry(leaf, Verdict.INCONCLUSIVE, nan, nan, None, 0, leaf.size)
    return Report(
        verdict=Verdict.INCONCLUSIVE,
        distance=nan,
        grade=grade(nan),
        leaves=leaves,
        findings=(Finding("", "stochastic", text),),
        probes=(),
        notes=(),
        **frame,
    )


def _entry(
    leaf: Leaf,
    verdict: Verdict,
    score: float,
    floor: float,
    worst: Element | None,
    wrong: int,
    undecided: int,
) -> LeafReport:
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
        wrong=wrong,
        undecided=undecided,
        names=leaf.names,
    )


def _leaf(
    leaf: Leaf, number: int, problem: Problem, measured: Measured, eps: Vector | None
) -> Account:
    truth, found = measured.truth, measured.backward.gradient[leaf.part]
    allowance = measured.allowance
    value, bar = truth.value[leaf.part], truth.bar[leaf.part]
    # An infinite slope is no mistake where the slope is infinite: the bar there is, too.
    steep = (truth.kinds[leaf.part] == Kind.STEEP) & np.isinf(found)
    gradient = np.where(steep, value, found)
    scored = (
        None if truth.scored is None else (truth.scored[0][leaf.part], truth.scored[1][leaf.part])
    )
    part = leaf.part
    below = truth.zero_below
    if measured.near_by.zero_below is not None:
        below = np.fmax(below, measured.near_by.zero_below)
    judged = judge(
        gradient,
        value,
        bar,
        truth.settled[part],
        allowance,
        below[part],
        truth.still[part],
        measured.run.excused[part],
        scored,
    )
    verdict, findings, notes = judged.verdict, [], []
    if verdict is Verdict.FAIL and _is_right_symmetrised(leaf, problem.point, measured):
        verdict = Verdict.INCONCLUSIVE
    allowed = allowance.allowed(gradient, value, rms(value)) + measured.run.excused[part]
    if number in measured.backward.severed:
        if verdict is Verdict.FAIL:
            text = (
                f"no gradient for {leaf.name}: the backward pass does not reach it, and the "
                f"output depends on it"
            )
            findings.append(Finding(leaf.name, "no gradient", text))
        elif verdict is Verdict.PASS and leaf.size:
            notes.append(f"{leaf.name} gets no gradient, and the output does not depend on it")
    elif verdict is Verdict.FAIL:
        findings.append(_wrong(leaf, gradient, value, judged, truth))
    if verdict is not judged.verdict:
        text = (
            f"{leaf.name}: wrong element by element, right once symmetrised: if it is meant for "
            f"symmetric matrices, say constraint='symmetric'"
        )
        findings.append(Finding(leaf.name, "symmetric", text, _indices(leaf, judged.failed)))
    elif verdict is Verdict.INCONCLUSIVE:
        findings.append(_unsure(leaf, measured, judged, allowed, eps))
    elif (
        verdict is Verdict.PASS
        and not judged.is_zero
        and (accepted := accepted_impostors(value, bar, allowance, measured.run.excused[part]))
    ):
        verdict = Verdict.INCONCLUSIVE
        text = f"{leaf.name}: these tolerances would also accept {' and '.join(accepted)}: "
        if accepted_impostors(value, bar, allowance, measured.run.slack[part]):
            findings.append(Finding(leaf.name, "loose tolerance", text + "lower rtol or atol"))
        else:
            text += "the gradient changes by as much when its arguments change by one ulp"
            findings.append(Finding(leaf.name, "rounding", text))
    mistake = (measured.near_by.mistakes or {}).get(number)
    if verdict is Verdict.PASS and mistake is not None:
        verdict = Verdict.FAIL
        findings.append(_only_here(leaf, mistake, measured.near_by.why))
    if judged.is_zero and leaf.size:
        seen = float(np.max(bar + measured.run.excused[part]))
        limit = f"anything above {seen:.1e} would have been seen"
        notes.append(
            f"{leaf.name}: zero gradient; {limit if seen > 0 else 'the output does not move'}"
        )
    if truth.analytic[part].any():
        notes.append(
            f"{leaf.name}: a complex step at {int(truth.analytic[part].sum())} of {leaf.size} "
            f"elements, which takes the function to be analytic"
        )
    notes += _notes_on_points(leaf, truth.kinds[part][~judged.failed & ~judged.undecided])
    worst = _worst(leaf, found, value, bar, allowed, judged, truth.still[part])
    floor = float("nan") if judged.is_zero else judged.floor
    counts = int(judged.failed.sum()), int(judged.undecided.sum())
    entry = _entry(leaf, verdict, judged.distance, floor, worst, *counts)
    entry = replace(
        entry, precision=_precision(measured.bits), as_run=measured.run.bits is not None
    )
    return entry, findings, notes


NO_DERIVATIVE = {
    Kind.JUMP: ("jump", "the function jumps here, it has no derivative"),
    Kind.STEEP: ("infinite slope", "the slope is infinite here, no difference can converge"),
    Kind.MEETING: (
        "kinks meet",
        "several kinks meet here, and no slope along one coordinate tells which gradient is right:",
    ),
}


def _notes_on_points(leaf: Leaf, kinds: Kinds) -> list[str]:
    """What kind of points the elements are at that were found right."""
    said = {
        Kind.KINK: "a kink at {}, where the gradient is a valid subgradient",
        Kind.EDGE: "the edge of the domain at {}, differenced on one side",
    }
    counts = {kind: int((kinds == kind).sum()) for kind in said}
    return [
        f"{leaf.name}: " + text.format(f"{counts[kind]} of {leaf.size} elements")
        for kind, text in said.items()
        if counts[kind]
    ]


def _worst(
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
    index = leaf.index(leaf.start + place)
    return Element(index, *(float(part[place]) for part in (gradient, value, bar, allowed)))


def _indices(leaf: Leaf, mask: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.index(leaf.start + int(place)) for place in np.flatnonzero(mask)[:SHOWN])


def _wrong(leaf: Leaf, gradient: Vector, value: Vector, judged: Judged, truth: Truth) -> Finding:
    count = int(judged.failed.sum())
    where = _indices(leaf, judged.failed)
    if not np.isfinite(gradient).all():
        bad = int((~np.isfinite(gradient)).sum())
        text = (
            f"{leaf.name}: the gradient is not finite at {bad} of {leaf.size} elements, first at "
            f"{leaf.element(where[0])}"
        )
        return Finding(leaf.name, "not finite", text, where)
    kinks = (truth.kinds[leaf.part] == Kind.KINK) & judged.failed
    if kinks.any():
        text = (
            f"{leaf.name}: at a kink the gradient lies outside the slopes of both sides, at "
            f"{leaf.element(_indices(leaf, kinks)[0])}"
        )
        return Finding(leaf.name, "kink", text, where)
    if count == leaf.size:
        text = leaf.name if leaf.size == 1 else f"{leaf.name}, every element"
    else:
        text = f"{leaf.name}, {count} of {leaf.size} elements, {_places(leaf, judged.failed)}"
    return Finding(leaf.name, "wrong gradient", text + _remainder(leaf, truth), where)


def _remainder(leaf: Leaf, truth: Truth) -> str:
    """A second sign that the gradient is wrong and not the differences."""
    part = leaf.part
    orders = [order for n, order in truth.remainder.items() if part.start <= n < part.stop]
    known = [order for order in orders if np.isfinite(order)]
    if not known or not abs(float(np.median(known)) - 1) < 0.2:
        return ""
    return (
        f"; the Taylor remainder falls like h^{float(np.median(known)):.1f}, that of a right "
        f"gradient like h^3"
    )


def _places(leaf: Leaf, mask: Any) -> str:
    few = [leaf.element(index) for index in _indices(leaf, mask)]
    count = int(np.sum(mask))
    return "at " + ", ".join(few[:4]) + (" ..." if count > 4 else "")


def _unsure(
    leaf: Leaf, measured: Measured, judged: Judged, allowed: Vector, eps: Vector | None
) -> Finding:
    truth = measured.truth
    bar, undecided = truth.bar[leaf.part], judged.undecided
    where = _indices(leaf, undecided)
    at = _places(leaf, undecided) if where else ""
    limit = measured.allowance.distance
    if eps is not None and not judged.distance + judged.distance_bar <= limit:
        text = (
            f"{leaf.name}: with eps={eps[leaf.start]:g} the distance is {judged.distance:.1e} ± "
            f"{judged.distance_bar:.1e}; "
            "leave eps out to have the steps chosen"
        )
        return Finding(leaf.name, "eps", text, where)
    for kind, (word, text) in NO_DERIVATIVE.items():
        there = undecided & (truth.kinds[leaf.part] == kind)
        if there.any():
            return Finding(leaf.name, word, f"{leaf.name}: {text} {_places(leaf, there)}", where)
    if (undecided & ~truth.settled[leaf.part]).any():
        text = (
            f"{leaf.name}: the differences do not converge {at}: there may be a kink, a jump, the "
            f"edge of a domain or more noise than slope; move the point"
        )
        return Finding(leaf.name, "no convergence", text, where)
    noisy = f"phi = {measured.value:.3g} carries rounding noise of {truth.noise.sigma:.1g}"
    if not where:
        text = (
            f"{leaf.name}: the distance is {judged.distance:.1e} ± {judged.distance_bar:.1e}, "
            f"where {limit:.0e} is allowed: {noisy}"
        )
        return Finding(leaf.name, "noise", text)
    place = int(np.argmax(np.where(undecided, bar, -1)))
    text = (
        f"{leaf.name}: differences are good to ±{bar[place]:.1g} {at}, where "
        f"{allowed[place]:.1g} is allowed: {noisy}"
    )
    return Finding(leaf.name, "noise", text, where)


def _only_here(leaf: Leaf, mistake: Mistake, why: dict[int, str]) -> Finding:
    text = (
        f"{leaf.name}: right at this point, which hides mistakes, and wrong near by: along a "
        f"random direction backward gives {mistake.analytic:.6g}, differences give "
        f"{mistake.truth:.6g} ± {mistake.bar:.1g}"
    )
    if {SYMMETRIC, DIAGONAL} & set(why.values()):
        text += "; if it is meant for symmetric matrices alone, say constraint='symmetric'"
    return Finding(leaf.name, "only right at this point", text)


def _on_repeats(problem: Problem, measured: Measured) -> tuple[list[str], list[Finding]]:
    """Notes on leaves whose gradient varies by rounding, findings on those where it is random."""
    notes: list[str] = []
    findings: list[Finding] = []
    for leaf in problem.layout:
        slack, gradient = measured.run.slack[leaf.part], measured.backward.gradient[leaf.part]
        if not slack.any():
            continue
        largest, size = float(np.max(slack)), float(np.max(np.abs(gradient), initial=0.0))
        limit = ROUNDING if measured.run.bits is None else measured.allowance.of_rms
        if largest <= limit * size:
            unit = 2.0 ** (DOUBLE - measured.bits) * float(np.spacing(size))
            ulps = largest / unit
            text = f"the backward pass repeats itself to {ulps:.0f} ulps only, which are allowed"
            notes.append(f"{leaf.name}: {text}")
        else:
            text = (
                f"{leaf.name}: the gradient is another whenever the backward pass runs, by up to "
                f"{largest:.2g} where it is {size:.2g}: draw what is random in the forward pass"
            )
            findings.append(Finding(leaf.name, "stochastic backward", text))
    return notes, findings


def _note_on_near_by(problem: Problem, near_by: NearBy) -> list[str]:
    if not near_by.why:
        return []
    names: dict[str, list[str]] = {why: [] for why in near_by.why.values()}
    for number, why in near_by.why.items():
        names[why].append(problem.layout.leaves[number].name)
    hidden = "; ".join(f"{_few(leaves)}: {why}" for why, leaves in names.items())
    if not near_by.can_move or near_by.is_stale:
        advice = "give grads as a function to have another point looked at"
        return [f"this point hides mistakes ({hidden}): {advice}"]
    if near_by.mistakes is None:
        return [f"this point hides mistakes ({hidden}), and no other was found in the domain"]
    return [f"this point hides mistakes ({hidden}), so another one near by was looked at too"]


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _is_right_symmetrised(leaf: Leaf, point: Vector, measured: Measured) -> bool:
    """Whether a symmetric matrix has a gradient that is wrong element by element and right along
    symmetric directions, as that of a function which reads one triangle alone.

    A transposed gradient is that too, but it follows no convention: neither it nor the truth is
    symmetric or triangular.
    """
    values = point[leaf.part].reshape(leaf.shape)
    if values.ndim < 2 or values.shape[-1] != values.shape[-2]:
        return False
    turned = [
        part[leaf.part].reshape(leaf.shape)
        for part in (measured.backward.gradient, measured.truth.value, measured.truth.bar)
    ]
    if not (values == values.swapaxes(-1, -2)).all() or not np.isfinite(turned).all():
        return False
    gradient, value, bar = (np.ravel(part + part.swapaxes(-1, -2)) / 2 for part in turned)
    allowed = (
        measured.allowance.allowed(gradient, value, rms(value)) + measured.run.excused[leaf.part]
    )
    if not (np.abs(gradient - value) + bar <= allowed).all():
        return False
    given, truth, slack = turned[0], turned[1], allowed.reshape(leaf.shape) + turned[2]
    conventions = [given - given.swapaxes(-1, -2)]
    conventions += [half(part, k) for part in (given, truth) for half, k in HALVES]
    return any((np.abs(part) <= slack).all() for part in conventions)


def _precision(bits: int) -> str:
    return next((name for name, length in BITS.items() if length == bits), "float64")


def _unraised(measured: Measured) -> Finding:
    dtype = _precision(measured.bits)
    text = (
        f"{dtype}: raising changes this function ({measured.unraised}), so it was differenced as "
        f"it runs"
    )
    return Finding("", f"truth in {dtype}", text)


def _low_precision(measured: Measured) -> Finding | None:
    bits, allowance = measured.truth.noise.bits, measured.allowance
    if bits == DOUBLE or measured.unraised:
        return None
    dtype = _precision(bits)
    text = (
        f"{dtype}: the function computes in {dtype} on its way, so its differences are noisier and "
        f"rtol {allowance.rtol:.0e} is allowed"
    )
    return Finding("", "low precision inside", text)


def _forward_mismatch(problem: Problem, measured: Measured) -> Finding | None:
    """A forward pass that gives another value when the backward is wanted belongs to another
    function.
    """
    value, own = measured.value, measured.backward.value
    if own is None or abs(own - value) <= max(1000 * measured.truth.noise.sigma, 1e-9 * abs(value)):
        return None
    text = (
        f"the forward pass that the backward belongs to gives {own:.9g}, the plain one {value:.9g}"
    )
    return Finding("", "forward", text)
