"""The second look: at every coordinate whose one pair cannot decide, until its leaf is decided."""

from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._complex import PRECISION, complex_slopes
from xgradcheck._differences import (
    BAR_SIGMAS,
    EVEN,
    NOISE_SIGMAS,
    Noise,
    even_part,
    norm,
    representable,
    rms,
)
from xgradcheck._extrapolation import Estimate
from xgradcheck._judge import NEGLIGIBLE, Tolerance, exceeds, stand_still
from xgradcheck._kinds import Kind, remainder_order
from xgradcheck._ladder import climb
from xgradcheck._layout import Leaf, Mask, Positions, Vector
from xgradcheck._meetings import is_right_apart, meeting, picks_of_each, untied
from xgradcheck._ties import Kinks, suits_each_output, wrong_ties
from xgradcheck._truth import AUTO, Sweep, Truth

GROSS = 0.1
"""How far a gradient is from the slope where it belongs to another of several equal numbers."""
NARROW = 2.0**-27
"""Of a coordinate's scale: a step that a kink at the point has on both sides."""
UNEVEN = 0.5
"""How far the slopes of both sides may differ, as a share of the largest there is."""
BATCH = 32
WIDER, SAFE = 2.0, 4.0
"""How much wider the steps of one more pair are; and how many times more than both pairs tell the
first one is taken to be cut short.
"""
NOTHING = 1e-3
"""Of how much an element may err unseen: where it agrees, more steps would tell little more."""
FAR, HALVED, LITTLE = range(2, 28, 2), 30, 1e-6
"""Exponents of two, of a coordinate's scale: how far out to look for a phi that does not move; how
often the place is halved at which it begins to; and which share of its moves is little.
"""


def settle_suspicious(work: Sweep, truth: Truth) -> None:
    """Look again at what one pair could not decide, the worst first, until the leaf's verdict
    cannot change.
    """
    met, differ = truth.kinds == Kind.MEETING, _differ_from_raised(work)
    _narrow_bars(work, truth)
    for leaf in work.layout:
        queue = leaf.start + np.flatnonzero(suspicious(work, truth, leaf.part))
        queue = queue[~truth.analytic[queue] & differ[queue]]
        queue = queue[~_could_err_by_nothing(work, truth, leaf, queue)]
        if truth.scored is not None and not _eps_suffices(
            truth, work.gradient, leaf, work.allowance
        ):
            queue = queue[_outside(work, truth, leaf, queue)]
        with np.errstate(all="ignore"):
            excess = np.abs(work.gradient - truth.value)[queue] / truth.bar[queue]
        queue = queue[np.argsort(-np.nan_to_num(excess, nan=np.inf), kind="stable")]
        size = BATCH
        while queue.size:
            batch, queue = queue[:size], queue[size:]
            accused = _outside(work, truth, leaf, batch)
            wrong, undecided = _look_again(work, truth, leaf, batch)
            if wrong.any() or undecided.any():
                queue = queue[_outside(work, truth, leaf, queue)]
            if wrong.any() and not (accused & ~wrong).any():
                # The single pairs accused nobody wrongly so far: they are believed about the rest.
                truth.settled[queue] = True
                break
            size *= 2
    if work.raised is not None:
        _leave_other_choices_open(work, truth, met, differ)
        return
    _settle_kinks(work, truth)
    slopes, accused = truth.value.copy(), accused_by(work, truth)
    _settle_ties(work, truth)
    _settle_meetings(work, truth, slopes, accused)


def _narrow_bars(work: Sweep, truth: Truth) -> None:
    """Bars of their own, from one more pair at wider steps, for coordinates of which the worst of
    their leaf leaves open whether they are right.
    """
    if work.pairs is None:
        return
    queue = np.concatenate([_open_coordinates(work, truth, leaf) for leaf in work.layout])
    if not queue.size:
        return
    steps, value = work.pairs[0, queue], truth.value[queue]
    wide = representable(work.point[queue], WIDER * steps, work.noise.bits)
    plus, minus = work.phi.pairs(queue, wide)
    with np.errstate(all="ignore"):
        ratio, apart = wide / steps, np.abs((plus - minus) / (2 * wide) - value)
        truncation = SAFE * apart / (ratio**2 - 1)
        noise = BAR_SIGMAS * work.slope_noise(plus, minus, steps)
        bar = truncation + noise + 2.0**-52 * np.abs(value)
    truth.bar[queue] = np.fmin(bar, truth.bar[queue])


def _open_coordinates(work: Sweep, truth: Truth, leaf: Leaf) -> Positions:
    """The coordinates of a leaf that are right as far as one pair tells, which is not enough."""
    part = leaf.part
    gradient, value = work.gradient[part], truth.value[part]
    error = np.abs(gradient - value)
    near = error <= work.allowed(gradient, value, rms(value), part)
    near &= (gradient != 0) & ~truth.analytic[part] & ~_uneven(work, truth, part)
    return leaf.start + np.flatnonzero(near & suspicious(work, truth, part))


def _could_err_by_nothing(work: Sweep, truth: Truth, leaf: Leaf, index: Positions) -> Mask:
    """What agrees with its slope, and could err by nothing beside its leaf."""
    gradient, value, size = work.gradient[index], truth.value[index], rms(truth.value[leaf.part])
    agrees = np.abs(gradient - value) <= work.allowed(gradient, value, size, index)
    most = NOTHING * work.allowance.little * np.fmax(np.abs(value), size)
    is_straight = ~_uneven(work, truth, leaf.part)[index - leaf.start]
    return np.asarray(agrees & (truth.bar[index] <= most) & is_straight)


def accused_by(work: Sweep, truth: Truth) -> Mask:
    """Where a gradient would be called wrong."""
    accused = truth.settled & np.isfinite(work.gradient)
    for leaf in work.layout:
        accused[leaf.part] &= _outside(work, truth, leaf, leaf.part)
    return accused


def _settle_meetings(work: Sweep, truth: Truth, slopes: Vector, alone: Mask) -> None:
    """Acquit or leave open what is right but for several kinks that meet. ``slopes`` are those
    along single coordinates, ``alone`` marks what they call wrong without regard to ties.
    """
    accused, kinked = accused_by(work, truth), truth.kinds == Kind.KINK
    unclear = kinked & ~accused & _unclear(work, truth)
    if not (accused | unclear).any():
        return
    found, known = np.flatnonzero(accused), np.flatnonzero(accused & ~alone)
    tied = meeting(work.phi, work.gradient, slopes, found, known, work.scale, work.value)
    # Between equal numbers no kink need show along one of them, where weights are equal too.
    apart, largest = np.abs(work.gradient - slopes), np.fmax(np.abs(work.gradient), np.abs(slopes))
    gross, asked = apart > GROSS * largest, unclear.copy()
    asked[tied] = kinked[tied]
    rng, right = np.random.default_rng(0xA9A27), [np.zeros(0, np.intp)]
    for leaf in work.layout:
        part = leaf.part
        _, which, counts = np.unique(work.point[part], return_inverse=True, return_counts=True)
        asked[part] |= alone[part] & (kinked[part] | (counts[which] > 1) & gross[part])
        for places in untied(work.point, leaf.start + np.flatnonzero(asked[part])):
            if is_right_apart(work.phi, places, work.common, rng):
                right.append(places)
    away = np.concatenate(right)
    chosen = away[kinked[away]]
    fine = chosen[picks_of_each(work.phi, chosen, work.common, work.gradient, rng)]
    left_open = np.union1d(tied, away[accused[away]])
    truth.bar[left_open], truth.settled[left_open] = np.inf, False
    truth.kinds[left_open] = Kind.MEETING
    truth.value[fine], truth.bar[fine], truth.settled[fine] = work.gradient[fine], 0.0, True
    truth.kinds[fine] = Kind.KINK


def _unclear(work: Sweep, truth: Truth) -> Mask:
    """Where an error may be larger than is allowed, as far as bars tell."""
    error = np.abs(work.gradient - truth.value) + truth.bar
    found = [
        error[leaf.part]
        > work.allowed(
            work.gradient[leaf.part], truth.value[leaf.part], rms(truth.value[leaf.part]), leaf.part
        )
        for leaf in work.layout
    ]
    return np.concatenate(found)


def _settle_kinks(work: Sweep, truth: Truth) -> None:
    """Acquit gradients outside the slopes of a kink that are right for every output alone."""
    accused = (truth.kinds == Kind.KINK) & accused_by(work, truth)
    places = np.flatnonzero(accused)
    found = suits_each_output(work.phi, places, work.scale) if places.size else None
    if found is None:
        return
    tested, fine, complete = found
    # What was not asked about, beside what was found right, stays open.
    doubtful = places if fine.all() else tested[fine]
    truth.bar[doubtful], truth.settled[doubtful] = np.inf, False
    if complete:
        truth.value[tested[fine]] = work.gradient[tested[fine]]
        truth.bar[tested[fine]], truth.settled[tested[fine]] = 0.0, True


def _settle_ties(work: Sweep, truth: Truth) -> None:
    """Where the gradients of several kinks do not go together, call them wrong."""
    where = np.array(sorted(truth.sides), np.intp)
    if len(where) < 2:
        return
    where = where[_at_the_point(work, where, np.array([truth.sides[int(n)] for n in where]))]
    if len(where) < 2:
        return
    sides = np.array([truth.sides[int(n)] for n in where]).T
    found = Kinks(
        work.phi,
        work.layout,
        where,
        work.scale[where],
        work.gradient[where],
        sides,
        work.value,
        work.noise,
    )
    for tie in wrong_ties(found):
        excess = tie.excess / work.scale[tie.members]
        truth.value[tie.members] = work.gradient[tie.members] - excess
        truth.bar[tie.members], truth.settled[tie.members] = 0.0, True


def _differ_from_raised(work: Sweep) -> Mask:
    """Where what is known of a gradient in float64 is not known of this one as well."""
    if work.raised is None:
        return np.ones(work.gradient.size, bool)
    found = np.zeros(work.gradient.size, bool)
    for leaf in work.layout:
        own, raised = work.gradient[leaf.part], work.raised[leaf.part]
        allowed = work.allowed(own, raised, rms(raised), leaf.part)
        found[leaf.part] = ~(np.abs(own - raised) <= allowed)
    return found


def _leave_other_choices_open(work: Sweep, truth: Truth, met: Mask, differ: Mask) -> None:
    """Kinks, where a gradient runs in fewer bits: where it differs from the one in float64 and is
    another choice among the slopes, or where several ``met`` before. What ties has to share alike,
    and which does is not known from one coordinate.
    """
    kinked = truth.kinds == Kind.KINK
    beyond = np.flatnonzero(kinked & differ & ~met & accused_by(work, truth))
    rng = np.random.default_rng(0xA9A27)
    wrong = beyond[~picks_of_each(work.phi, beyond, work.common, work.gradient, rng)]
    where = met | kinked & differ
    where[wrong] = False
    truth.bar[where], truth.settled[where] = np.inf, False
    truth.kinds[where] = Kind.MEETING


def _at_the_point(work: Sweep, where: Positions, sides: Vector) -> Mask:
    """Which of these kinks are at the point itself, as far as noise tells: beside a large number a
    step of its size leaps over others.
    """
    steps = representable(work.point[where], NARROW * work.scale[where], work.noise.bits)
    plus, minus = work.phi.pairs(where, steps)
    # What looks like noise over wider steps may be kinks that those cross.
    noise = Noise(min(work.noise.sigma, work.noise.fine), work.noise.bits)
    with np.errstate(all="ignore"):
        still = even_part(plus, minus, work.value)
        blurred = EVEN * NOISE_SIGMAS * noise.of(np.fmax(np.abs(plus), np.abs(minus)))
        differ = UNEVEN * steps * np.abs(sides[:, 0] - sides[:, 1])
    return np.asarray(~(still + blurred < differ))


def _eps_suffices(truth: Truth, gradient: Vector, leaf: Leaf, allowance: Tolerance) -> bool:
    assert truth.scored is not None
    slope, bar = truth.scored[0][leaf.part], truth.scored[1][leaf.part]
    return norm(bar) <= allowance.distance * (norm(slope) + norm(gradient[leaf.part]))


def _outside(work: Sweep, truth: Truth, leaf: Leaf, index: Positions | slice) -> Any:
    """Whose error clearly exceeds what is allowed, by the bar of its one pair."""
    gradient, value = work.gradient[index], truth.value[index]
    allowed = work.allowed(gradient, value, rms(truth.value[leaf.part]), index)
    return exceeds(np.abs(gradient - value), truth.bar[index], allowed)


def _look_again(work: Sweep, truth: Truth, leaf: Leaf, index: Positions) -> tuple[Any, Any]:
    """A ladder of steps at each of these coordinates; (wrong, undecided) afterwards."""
    zero = work.point[index] == 0
    if work.noise.at_zeros is None or not zero.any():
        return _climbed(work, truth, leaf, index, work.noise)
    # All that are 0 in a leaf have one scale.
    at_zeros = work.noise.at_zeros
    near = replace(at_zeros, least=at_zeros.least * float(work.scale[index[zero][0]]))
    wrong, undecided = np.zeros((2, len(index)), bool)
    for where, noise in ((zero, near), (~zero, work.noise)):
        if where.any():
            wrong[where], undecided[where] = _climbed(work, truth, leaf, index[where], noise)
    return wrong, undecided


def _climbed(
    work: Sweep, truth: Truth, leaf: Leaf, index: Positions, noise: Noise
) -> tuple[Any, Any]:
    gradient, leaf_rms = work.gradient[index], rms(truth.value[leaf.part])
    below = truth.zero_below[index] if _may_be_zero(work, truth, leaf.part) else -1.0
    room = _room(work, truth, leaf.part)

    def outcome(best: Estimate) -> tuple[Any, Any]:
        near, bar = best.near(gradient), best.bar
        error, allowed = np.abs(gradient - near), work.allowed(gradient, near, leaf_rms, index)
        with np.errstate(invalid="ignore"):
            between = (best.low + bar < gradient) & (gradient < best.high - bar)
            null = np.abs(gradient) + np.abs(near) + bar <= below
            wrong = ~(null | between) & best.settled & exceeds(error, bar, allowed)
            if len(index) <= BATCH:
                # What is seen to be no zero is judged like any other; of many that would cost much.
                seen = np.abs(near) + np.abs(gradient)
                null &= (np.abs(near) <= bar) | (seen <= NEGLIGIBLE * below)
            known = null | between | (error + bar <= allowed) & (bar <= room)
            return wrong, ~wrong & ~known

    climbed = climb(
        work.phi.pairs,
        work.point,
        index,
        (work.scale[index], work.common[index]),
        work.value,
        noise,
        outcome,
        gradient,
        None if work.pairs is None else work.pairs[:, index],
    )
    best = climbed.best
    room = np.inf  # asked for, and all that could be had
    flat = outcome(best)[0] & (np.abs(best.middle) <= best.bar)
    best.settled &= ~_absorbed(work, index, climbed.rungs, flat)
    wrong, undecided = outcome(best)
    # Strictly between the slopes of both sides a gradient is right, however uncertain those are.
    between = (best.low + best.bar < gradient) & (gradient < best.high - best.bar)
    near = best.near(gradient)
    truth.value[index], truth.bar[index] = near, np.where(between, 0.0, best.bar)
    # What stood still for small steps may move for wide ones: an offset hid it.
    truth.still[index] &= np.abs(truth.value[index]) <= truth.bar[index]
    # Where there is no derivative, no gradient is right or wrong; a steep point may only look so.
    jump = climbed.kinds == Kind.JUMP
    none = jump | (climbed.kinds == Kind.STEEP) & (wrong | undecided | ~best.settled)
    truth.kinds[index] = np.where(none | (climbed.kinds < Kind.STEEP), climbed.kinds, Kind.SMOOTH)
    truth.settled[index] = best.settled & ~none
    truth.bar[index[none]] = np.inf
    for place in np.flatnonzero((climbed.kinds == Kind.KINK) & ~wrong & ~undecided):
        steps, plus, minus = climbed.rungs[:, :, place]
        last = np.nanargmin(np.where(np.isfinite(plus + minus), steps, np.nan))
        moves = plus[last] - work.value, work.value - minus[last]
        truth.sides[int(index[place])] = (moves[0] / steps[last], moves[1] / steps[last])
    for place in np.flatnonzero(wrong & ~none):
        truth.remainder[int(index[place])] = remainder_order(
            climbed.rungs[:, :, place], gradient[place], noise.sigma
        )
    if (wrong & ~none).any():
        worst = int(np.argmax(np.where(wrong & ~none, np.abs(gradient - near), -1)))
        truth.rungs[int(index[worst])] = climbed.rungs[:, :, worst].copy()
    wrong, undecided = wrong & ~none, undecided | none
    # What could err by little is no reason to leave the others as they are.
    allowed = work.allowed(gradient, near, leaf_rms, index)
    undecided &= none | ~work.allowance.is_near(gradient, near, best.bar, allowed, leaf_rms)
    doubtful = np.flatnonzero(undecided & ~none & best.settled)
    if work.method == AUTO and doubtful.size and work.phi.can_be_complex:
        undecided[doubtful] &= ~_rescued(work, truth, leaf, index[doubtful])
    return wrong, undecided


def _absorbed(work: Sweep, index: Positions, rungs: Vector, among: Mask) -> Mask:
    """Where, ``among`` these, phi does not move at all for narrow steps, and does for wide ones,
    but by no less than what a gradient says of the widest that do not move it: what it adds is lost
    beside something larger, as in log(1 + x^2) at 1e-9 or x - (x - exp(x)) at -30. Beyond a kink,
    as that of a clip, phi would move by as little as one likes.
    """
    steps, plus, minus = rungs
    moved = np.fmax(np.abs(plus - work.value), np.abs(minus - work.value))
    known = np.isfinite(plus + minus)
    moving = np.min(np.where(known & (moved > 0), steps, np.inf), axis=0, initial=np.inf)
    still = np.max(np.where(known & (steps < moving), steps, 0.0), axis=0, initial=0.0)
    chosen = np.flatnonzero((still > 0) & among & (work.gradient[index] != 0))
    absorbed = np.zeros(len(index), bool)
    if chosen.size:
        bounds = still[chosen], moving[chosen]
        absorbed[chosen] = _moves_by_quanta(work, index[chosen], *bounds)
    return absorbed


def _moves_by_quanta(work: Sweep, index: Positions, still: Vector, moving: Vector) -> Mask:
    """Whether the least that phi moves by at these coordinates, sought between the widest step that
    leaves it ``still`` and the narrowest ``moving`` it, infinite where none is known, is more than
    their gradients say of the former, and little beside what far steps do.
    """

    def moves(steps: Vector) -> Vector:
        moved = np.max(np.abs(np.array(work.phi.pairs(index, steps)) - work.value), axis=0)
        return np.where(np.isfinite(moved), moved, 0.0)

    gradient, scale = np.abs(work.gradient[index]), work.scale[index]
    far = np.array([moves(scale * 2.0**exponent) for exponent in FAR])
    begins = np.argmax(far > 0, axis=0)
    far_off = np.isinf(moving)
    low = np.where(far_off & (begins > 0), scale * 2.0 ** np.array(FAR)[begins - 1], still)
    high = np.where(far_off, scale * 2.0 ** np.array(FAR)[begins], moving)
    least = np.where(far_off, np.take_along_axis(far, begins[None], axis=0)[0], moves(high))
    for _ in range(HALVED):
        if not (gradient * low < least).any():
            break
        middle = np.sqrt(low * high)
        moved = moves(middle)
        low, high = np.where(moved > 0, low, middle), np.where(moved > 0, middle, high)
        least = np.where(moved > 0, np.fmin(least, moved), least)
    # A staircase goes up as steeply far off, and what is lost beside something larger does not.
    steepest = np.fmax.reduce(far / (scale * 2.0 ** np.array(FAR)[:, None]), axis=0)
    is_quantum = (least > 0) & (least < LITTLE * steepest * high)
    return np.asarray(is_quantum & (gradient * low < least))


def _rescued(work: Sweep, truth: Truth, leaf: Leaf, index: Positions) -> Mask:
    """Where a complex step finds a gradient right that differences are too noisy to judge.

    Nothing is found wrong this way: that would rest on the assumption that phi is analytic.
    """
    value, bar, settled = truth.value[index], truth.bar[index], truth.settled[index]
    take_complex_steps(work, truth, index)
    gradient, found = work.gradient[index], truth.value[index]
    allowed = work.allowed(gradient, found, rms(truth.value[leaf.part]), index)
    right = truth.analytic[index] & (np.abs(gradient - found) + truth.bar[index] <= allowed)
    truth.analytic[index] = right
    for part, old in ((truth.value, value), (truth.bar, bar), (truth.settled, settled)):
        part[index] = np.where(right, part[index], old)
    return right


def _may_be_zero(work: Sweep, truth: Truth, part: slice) -> bool:
    """Whether the whole leaf could have gradient zero; its elements are then decided by what
    counts as zero.
    """
    gradient, value, bar, below = (
        work.gradient[part],
        truth.value[part],
        truth.bar[part],
        truth.zero_below[part],
    )
    return bool(((np.abs(gradient) <= below) & (np.abs(value) - bar <= below)).all())


def suspicious(work: Sweep, truth: Truth, part: slice) -> Any:
    """Whose error is not clearly inside what is allowed."""
    gradient, value, bar = work.gradient[part], truth.value[part], truth.bar[part]
    allowed = work.allowed(gradient, value, rms(value), part)
    with np.errstate(invalid="ignore"):
        inside = np.abs(gradient - value) + bar <= allowed
        inside |= stand_still(truth.still[part], bar, work.allowance, rms(value))
        if _may_be_zero(work, truth, part):
            inside |= np.abs(gradient) + np.abs(value) + bar <= truth.zero_below[part]
        inside &= bar <= _room(work, truth, part)
    return ~inside | _uneven(work, truth, part)


def _uneven(work: Sweep, truth: Truth, part: slice) -> Any:
    """Where the slopes on both sides differ by as much as slopes are large: their mean may be
    right by symmetry, at a point that has no slope.
    """
    size = rms(truth.value[part])
    if work.pairs is None or size == 0:
        return np.zeros_like(truth.value[part], bool)
    steps, plus, minus = work.pairs[:, part]
    with np.errstate(all="ignore"):
        gap = even_part(plus, minus, work.value) / steps
        noise = NOISE_SIGMAS * EVEN * work.noise.sigma / steps
        return (gap > noise) & (gap > UNEVEN * np.fmax(size, np.abs(truth.value[part])))


def _room(work: Sweep, truth: Truth, part: slice) -> float:
    """How large a bar may be where all of them together leave no room for the leaf's distance."""
    gradient, value, bar = work.gradient[part], truth.value[part], truth.bar[part]
    bar = bar[np.isfinite(bar) & np.isfinite(gradient)]
    finite = np.where(np.isfinite(gradient), gradient, 0.0)
    room = 0.5 * work.allowance.distance * (norm(value) + norm(finite))
    return room / float(np.sqrt(len(bar))) if norm(bar) > room else np.inf


def take_complex_steps(work: Sweep, truth: Truth, index: Positions) -> None:
    """Where they are to be believed, slopes by complex steps in the place of differences."""
    slopes, believed = complex_slopes(
        work.phi,
        index,
        work.scale[index],
        work.value,
        work.noise,
        truth.value[index],
        truth.bar[index],
    )
    chosen = index[believed]
    for leaf in work.layout:
        own = (leaf.start <= chosen) & (chosen < leaf.start + leaf.size)
        found = slopes[believed][own]
        truth.value[chosen[own]] = found
        size = rms(truth.value[leaf.part])
        truth.bar[chosen[own]] = PRECISION * (np.abs(found) + size)
    truth.analytic[chosen] = truth.settled[chosen] = True
