"""What every coverage is made of: the gradient under test, and one row of a report, measured at
every coordinate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xgradcheck._as_run import Errors, errors_near_by, rounding
from xgradcheck._constraints import Tangent
from xgradcheck._differences import Noise, rms
from xgradcheck._errors import InvalidCase
from xgradcheck._generic import NearBy, look_near_by
from xgradcheck._judge import ZERO, Tolerance, tolerance, zero_below
from xgradcheck._kinds import Kind
from xgradcheck._layout import BITS, DOUBLE, Layout, Leaf, Mask, Vector
from xgradcheck._measured import FORWARD, REVERSE, SMALLEST, Measured, Run
from xgradcheck._phi import Phi, noise_of
from xgradcheck._progress import Tick
from xgradcheck._saturated import nothing_beside, saturated
from xgradcheck._second_look import accused_by, settle_suspicious, suspicious
from xgradcheck._sweep import look_at, sweep
from xgradcheck._truth import Sweep, Truth

REPEATABLE_ULPS = 64
DUST, DUST_AS_RUN = 2.0**9, 4.0
"""What rounding may leave of a gradient that is zero, in units of the rounding of phi, for a full
change; the first where differences alone tell that it is zero.
"""
ACCURATE = 16.0
"""To how many units of its rounding an element is accurate."""
LARGEST, FEW = 8, 4
"""How many of a leaf tell what is lost in the rest, and at least how many a common factor."""
FEW_CHANGES = 2
"""How many other values a gradient takes at the points near by where it is counted in units."""
HIDDEN, PART = 2.0**-40, 0.1
"""What may be lost inside next to 1, and to what a leaf can do to phi, if less: some units of
rounding, over a full change of many units; and as what part of a slope.
"""
STAYS = 0.5
"""At which share of other points what is wrong as it runs is so, too, at most, where it may be no
mistake.
"""
RUNS, STEADY = 4, 1e-3
"""Of a backward pass that does not repeat itself; and how much what each of them adds may differ,
where it is the same but for rounding.
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked of a check, beside the call itself."""

    method: str
    rtol: float | None
    atol: float
    steps: Vector | None
    """The textbook's eps for every coordinate."""
    seed: int
    spaces: Mapping[int, Tangent]
    tick: Tick
    modes: Sequence[str] = (REVERSE,)
    order: int = 1
    """Of the derivative: the second one of a linear function is zero, and no mistake."""
    coverage: str = "auto"
    influence: float = 0.0
    """The largest that any leaf has, where not all leaves are looked at."""


def settled_value(phi: Phi) -> tuple[float, float]:
    """phi and by how much it varies, with the plain numbers held still that the function keeps, if
    it does not repeat itself without.
    """
    value, spread = _value(phi)
    if varies(phi, value, spread) and phi.problem.hold_numbers():
        value, spread = _value(phi)
    return value, spread


def _value(phi: Phi) -> tuple[float, float]:
    """phi at the point, and by how much it varies there."""
    values = phi.here(3)
    value = float(values[0])
    if not np.isfinite(values).all():
        raise InvalidCase(
            f"the function returns {_not_finite(phi, value)} at this point: give arguments at "
            f"which it is finite."
        )
    return value, float(np.max(values) - np.min(values))


def _not_finite(phi: Phi, value: float) -> str:
    """What of the outputs is not finite, or their sum, which may be as large."""
    found, layout = phi.problem.values()[0], phi.problem.outputs
    places = np.flatnonzero(~np.isfinite(found))
    if found.size == 1 or not places.size:
        return str(value)
    leaf = layout.leaves[int(layout.owners(places[:1])[0])]
    return f"{found[places[0]]} in {leaf.element(leaf.index(int(places[0])))}"


def varies(phi: Phi, value: float, spread: float) -> bool:
    """Whether a spread is more than sums taken in another order explain."""
    unit = 2.0 ** (DOUBLE - phi.problem.outputs.bits) * float(np.spacing(abs(value)))
    return spread > REPEATABLE_ULPS * unit


def run_of(phi: Phi, mode: str, once: bool = False) -> Run:
    """The gradient under test, and by how much each element varies from run to run, unless it is
    asked for ``once`` alone.
    """
    problem = phi.problem
    if mode == FORWARD:
        pushed = problem.pushed(phi.cotangent)
        gradient = phi.adjoint(pushed.gradient)
        return Run(pushed._replace(gradient=gradient), np.zeros_like(gradient), mode=mode)
    backward = phi.gradient()
    first = backward.gradient
    runs = [first]
    # A tree that was handed in is what it is; everything else is asked twice, and if need be more.
    once |= not problem.can_move
    for _ in range(0 if once else RUNS - 1):
        runs.append(phi.gradient().gradient)
        if len(runs) == 2 and np.array_equal(runs[1], first, equal_nan=True):
            break
    if once or len(runs) == 2:
        return Run(backward, np.broadcast_to(0.0, first.shape))
    # What was no number in any run, as memory that was never written, is none.
    lost = np.isfinite(first) & ~np.isfinite(runs).all(axis=0)
    if lost.any():
        backward = backward._replace(gradient=np.where(lost, np.nan, first))
    added = np.diff(runs, axis=0)
    if np.isfinite(added).all() and _is_steady(added):
        later = backward._replace(gradient=runs[-1])
        return Run(later, np.broadcast_to(0.0, first.shape), grows=True)
    with np.errstate(invalid="ignore"):
        slack = np.nan_to_num(np.ptp(runs, axis=0), nan=0.0, posinf=0.0)
    return Run(backward, np.asarray(slack))


def _is_steady(added: Vector) -> bool:
    """Whether the same was added from run to run, as by a sum that is never set to zero."""
    apart, size = np.ptp(added, axis=0), np.abs(added).max(axis=0)
    return bool((apart <= STEADY * size.max()).all())


def swept(
    phi: Phi,
    value: float,
    spread: float,
    run: Run,
    asked: Asked,
    noise: Noise | None = None,
    is_part: bool = False,
    is_suspect: bool = False,
) -> Measured:
    """The numerical gradient, good enough to judge this run of the backward pass. ``is_suspect``
    says that this is a part, and wrong as far as is known.
    """
    problem, gradient = phi.problem, run.backward.gradient
    if noise is None:
        noise = noise_of(phi, value, asked.seed)
        noise = replace(noise, sigma=max(noise.sigma, spread))
    bits = min(noise.bits, run.bits or DOUBLE)
    allowance = tolerance(asked.rtol, asked.atol, bits, run.given)
    slack, influence = run.excused, asked.influence
    work = Sweep(phi, gradient, value, noise, allowance, slack, asked.method, asked.tick, influence)
    truth = look_at(work) if is_suspect else sweep(work, asked.steps, asked.seed)
    if run.bits is None:
        dust = _dust(work, truth, gradient, DOUBLE, abs(value))
        run = replace(run, rounding=np.fmax(run.rounding, dust))
    doubtful = [x for x in problem.layout if x.size and suspicious(work, truth, x.part).any()]
    if doubtful:
        truth.faint = faint(work, truth, doubtful)
        _leave_drowned_open(work, truth)
    if phi.refusal is not None and not phi.answers:
        raise phi.refusal
    near_by = NearBy({}, None, True)
    if not (is_part or phi.budget.is_cut):
        zeros = _zeros(problem.layout, gradient, truth)
        near_by = near_by_of(phi, run, zeros, allowance, asked.seed)
    return Measured(
        spread=spread,
        run=run,
        work=work,
        truth=truth,
        near_by=near_by,
        refusals=phi.refusals,
        refusal=phi.refusal,
        spaces=asked.spaces,
        held=problem.moving,
        order=asked.order,
    )


def near_by_of(phi: Phi, run: Run, zeros: list[int], allowance: Tolerance, seed: int) -> NearBy:
    """What the gradient of a run's mode shows at a generic point near by."""
    problem = phi.problem
    ask = problem.pushed if run.mode == FORWARD else problem.gradient
    return look_near_by(phi, ask, run.backward, zeros, allowance, seed)


def _leave_drowned_open(work: Sweep, truth: Truth) -> None:
    """Nothing is called wrong by less than rounding may hide without a trace, as p log(p) is lost
    next to p = 1, in leaves that can do far more to phi. What is lost is a part of the slope.
    """
    error = np.abs(work.gradient - truth.value)
    most = np.fmin(truth.faint * work.scale / ZERO[DOUBLE], 1.0)
    drowned = accused_by(work, truth) & (error * work.scale <= HIDDEN * most)
    drowned &= error <= PART * np.fmax(np.abs(work.gradient), np.abs(truth.value))
    truth.bar[drowned], truth.settled[drowned] = np.inf, False
    truth.kinds[drowned] = Kind.DROWNED


def judged_beside(
    phi: Phi,
    wide: Measured,
    own: Run,
    asked: Asked,
    errors: Errors | None = None,
    is_part: bool = False,
) -> Measured:
    """Another run beside a truth that is known: the backward pass as it runs, or forward mode.
    Looked at again where the truth was good enough for the first gradient alone, and near by,
    unless this is a part, where it is of another mode.
    """
    layout, gradient, bits = phi.problem.layout, own.backward.gradient, own.bits or DOUBLE
    allowance = tolerance(asked.rtol, asked.atol, bits)
    truth, work = wide.truth.copy(), wide.work
    given = gradient, truth.value
    truth.zero_below = zero_below(layout, work.scale, given, bits, work.influence)
    if own.bits is not None:
        if errors is None:
            assert own.near is not None
            errors = errors_near_by(phi, gradient, wide.backward.gradient, own.near, bits)
        lost = rounding(errors.beside_factors(), layout)
        lost[truth.kinds == Kind.KINK] = 0.0
        size = float(np.max(np.abs(phi.problem.values()[0] * phi.cotangent)))
        dust = _dust(work, truth, gradient, bits, size)
        lost = np.fmax(lost, np.fmin(dust, _left_by_rounding(own, truth, gradient, layout, bits)))
        # The formula is judged in float64: what is right here as well needs no excuse.
        lost[_are_right(work, truth, gradient, allowance)] = 0.0
        own = replace(own, rounding=lost)
    raised = wide.backward.gradient
    work = replace(work, gradient=gradient, allowance=allowance, slack=own.excused, raised=raised)
    settle_suspicious(work, truth)
    if own.bits is not None:
        alone = accused_by(work, truth) & ~accused_by(wide.work, wide.truth)
        still = alone & _stands_still(own)
        if still.any():
            own = replace(own, rounding=own.rounding + _lost(work, truth, still, bits))
        if errors is not None and alone.any():
            left = alone & accused_by(replace(work, slack=own.excused), truth)
            leaping = _leaping(work, errors, left)
            truth.bar[leaping], truth.settled[leaping] = np.inf, False
            truth.kinds[leaping] = Kind.MEETING
        excused = [x for x in layout if x.size and (own.excused[x.part] > SMALLEST[bits]).any()]
        if excused:
            truth.faint = faint(work, truth, excused)
    below = wide.near_by.zero_below
    if below is not None:
        below = below * (ZERO[bits] / ZERO[wide.bits])
    near_by = NearBy({}, None, True)
    if own.mode != wide.run.mode and not (is_part or phi.budget.is_cut):
        near_by = near_by_of(phi, own, _zeros(layout, gradient, truth), allowance, asked.seed)
    near_by = replace(near_by, zero_below=below)
    return replace(wide, run=own, work=work, truth=truth, near_by=near_by)


def _leaping(work: Sweep, errors: Errors, alone: Mask) -> Mask:
    """Of the elements that are wrong only as they run, those of leaves in which it is others at
    points farther away: numbers that 16 bits do not tell apart tie, and another one of them is the
    largest than in float64. A mistake stays where it is.
    """
    found = np.zeros_like(alone)
    if not alone.any():
        return found
    off, exact = errors.away()
    for leaf in work.layout if len(off) else ():
        chosen, right = alone[leaf.part], exact[:, leaf.part]
        if not chosen.any():
            continue
        size = np.array([rms(row) for row in right])[:, None]
        allowed = work.allowance.allowed(right + off[:, leaf.part], right, size)
        stays = np.abs(off[:, leaf.part]) > allowed
        found[leaf.part] = chosen & (np.mean(stays[:, chosen]) <= STAYS)
    return found


def faint(work: Sweep, truth: Truth, leaves: Sequence[Leaf]) -> Vector:
    """What is nothing beside all that each of these leaves can do to phi: the slope of a saturated
    unit.
    """
    found = np.zeros_like(work.point)
    for leaf in leaves if work.noise.bits == DOUBLE else ():
        part = leaf.part
        error = np.abs(work.gradient - truth.value)[part] - truth.bar[part]
        off = float(np.nanmax(error * work.scale[part], initial=0.0))
        found[part] = nothing_beside(work.phi, leaf, work.value, off) / work.scale[part]
    return found


def _are_right(work: Sweep, truth: Truth, gradient: Vector, allowance: Tolerance) -> Mask:
    """Which elements are right without any excuse."""
    right = np.zeros(gradient.size, bool)
    for leaf in work.layout:
        part = leaf.part
        own, value = gradient[part], truth.value[part]
        with np.errstate(invalid="ignore"):
            error = np.abs(own - value) + truth.bar[part]
            right[part] = error <= allowance.allowed(own, value, rms(value))
    return right


def _stands_still(run: Run) -> Mask:
    """Which elements hardly change from a point to others near by: what is left of them is counted
    in units of the rounding of larger numbers. A mistake moves with its gradient.
    """
    gradient, near = run.backward.gradient, run.near
    found = [] if near is None else [g for g in near.gradients.values() if g.size == gradient.size]
    ordered = np.sort([gradient, *found], axis=0)
    changes = np.sum(np.diff(ordered, axis=0) != 0, axis=0)
    return np.asarray(changes <= FEW_CHANGES if found else np.zeros(gradient.size, bool))


def beside_saturation(measured: Measured) -> Measured:
    """A gradient that was handed in below float64, and is not run at points near by, without what
    saturated units have lost.
    """
    run, work, truth = measured.run, measured.work, measured.truth
    if run.bits is None or run.bits < BITS["float32"]:
        return measured  # in 16 bits this would be much
    alone, gradient = accused_by(work, truth), run.backward.gradient
    for leaf in work.layout:
        part, unit = leaf.part, ACCURATE * 2.0**-run.bits
        alone[part] &= ~_are_in_proportion(gradient[part], truth.value[part], unit)
    if not alone.any():
        return measured
    lost = _lost(work, truth, alone, run.bits)
    return replace(measured, run=replace(run, rounding=run.rounding + lost))


def _lost(work: Sweep, truth: Truth, alone: Mask, bits: int) -> Vector:
    """What the slope of saturated units may have lost in so many bits."""
    errors = np.abs(work.gradient - truth.value)
    places, lost = np.flatnonzero(alone), np.zeros_like(errors)
    places = places[saturated(work.phi, places, errors[places], bits)]
    lost[places] = errors[places]
    return lost


def _dust(work: Sweep, truth: Truth, gradient: Vector, bits: int, size: float) -> Vector:
    """What rounding may leave of elements that are zero, or nearly: where phi is flat a backward
    pass has nothing but the difference of numbers of the ``size`` of phi or what it is made of.
    """
    # A bias is small beside what it is added to, and that is what is rounded.
    scale = work.scale if bits == DOUBLE else np.fmax(work.scale, rms(work.scale))
    reach = (DUST if bits == DOUBLE else DUST_AS_RUN) * 2.0**-bits * size / scale
    null = np.abs(truth.value) <= (truth.bar if bits == DOUBLE else reach)
    return np.where(null & (np.abs(gradient) <= reach), reach, 0.0)


def _left_by_rounding(
    run: Run, truth: Truth, gradient: Vector, layout: Layout, bits: int
) -> Vector:
    """How much of an element may be lost, where it stands still or is off by the factor of its
    leaf: beside others that are accurate no more than units of the largest of those. More is not
    lost, but was never written.
    """
    unit = ACCURATE * 2.0**-bits
    limit, still = np.full(gradient.size, np.inf), _stands_still(run)
    for leaf in layout:
        value = truth.value[leaf.part]
        accurate = _are_in_proportion(gradient[leaf.part], value, unit) & (value != 0)
        largest = accurate[np.argsort(-np.abs(value))[:LARGEST]]
        if 2 * largest.sum() >= len(largest) > 0 or 4 * accurate.sum() >= leaf.size > 0:
            most = unit * float(np.max(np.abs(value[accurate])))
            limit[leaf.part][still[leaf.part] | accurate] = most
    return limit


def _are_in_proportion(gradient: Vector, value: Vector, unit: float) -> Mask:
    """Which elements of a leaf are off by a factor that most of it has, 1 where all is well, to so
    much of themselves: a mistake, and no rounding.
    """
    with np.errstate(all="ignore"):
        ratio = (gradient / value)[(value != 0) & (gradient != 0) & np.isfinite(gradient)]
    factor = float(np.median(ratio)) if ratio.size >= FEW else 1.0
    return np.asarray(np.abs(gradient - factor * value) <= unit * np.abs(value))


def _zeros(layout: Layout, gradient: Vector, truth: Truth) -> list[int]:
    """The leaves that have gradient zero, as far as one can see, and nothing to compare it with."""
    null = (np.abs(gradient) <= truth.bar) & (np.abs(truth.value) <= truth.bar) & ~truth.still
    null |= truth.stationary
    return [
        number
        for number, leaf in enumerate(layout)
        if leaf.size
        and null[leaf.part].all()
        and not (truth.bar[leaf.part] <= truth.zero_below[leaf.part]).all()
    ]
