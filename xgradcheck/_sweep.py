"""Every coordinate differenced: one central pair for all, more where one pair cannot decide.

A pair costs two evaluations, so the sweep costs 2n. What the pairs cannot tell, their own error,
is measured on a few coordinates of each leaf; and every coordinate whose error is not clearly
inside what is allowed is looked at again, with a ladder of steps of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from xgradcheck._complex import PRECISION, complex_slopes
from xgradcheck._diagnose import Kind, Kinds, remainder_order
from xgradcheck._differences import (
    BAR_SIGMAS,
    FACTORS,
    NOISE_SIGMAS,
    UNIT,
    Noise,
    norm,
    representable,
    rms,
)
from xgradcheck._extrapolation import Estimate
from xgradcheck._judge import Tolerance, exceeds, zero_below
from xgradcheck._ladder import EXPONENTS, climb
from xgradcheck._layout import Layout, Leaf, Mask, Positions, Vector
from xgradcheck._phi import Phi
from xgradcheck._ties import wrong_ties

Tick = Callable[[int, int], None]

QUIET = (-9, -12, -15)
"""Exponents of two, of a coordinate's natural scale."""
RESOLUTION = 16.0
"""Changes of phi below this many units of rounding may be absorbed inside, by sums larger than
their outcome.
"""
SAMPLED, SAMPLED_FULLY, SAMPLED_LEAVES = 12, 24, 36
"""Coordinates of the sample, how many get all its steps, and the most leaves it looks at."""
UNEVEN = 0.5
BATCH = 32
AUTO, COMPLEX = "auto", "complex-step"
BLOCK = 32


@dataclass(slots=True)
class Truth:
    """The numerical gradient, element by element.

    ``settled``: the differences converged. ``still``: neither gradient nor phi takes notice.
    ``kinds``: what kind of point it is, where that was looked at. ``noise`` is that of phi,
    ``zero_below`` what counts as zero. ``scored`` is what the textbook's eps gave, with its bar,
    where the user asked for it. ``analytic``: a complex step was taken. ``remainder``: the order of
    the central Taylor remainder where the gradient is wrong.
    """

    value: Vector
    bar: Vector
    noise: Noise
    zero_below: Vector
    scored: tuple[Vector, Vector] | None = None
    settled: Mask = field(init=False)
    still: Mask = field(init=False)
    analytic: Mask = field(init=False)
    kinds: Kinds = field(init=False)
    remainder: dict[int, float] = field(default_factory=dict)
    sides: dict[int, tuple[float, float]] = field(default_factory=dict)
    """At kinks: the slopes ahead and behind."""

    def __post_init__(self) -> None:
        self.settled, self.still, self.analytic = np.zeros((3, self.value.size), bool)
        self.kinds = np.full(self.value.size, Kind.SMOOTH, np.uint8)


@dataclass(slots=True)
class Sweep:
    """What all steps of one sweep share."""

    phi: Phi
    layout: Layout
    point: Vector
    gradient: Vector
    value: float
    noise: Noise
    allowance: Tolerance
    slack: Vector
    """By how much the gradient differs from one run of the backward pass to the next."""
    method: str
    tick: Tick
    scale: Vector = field(init=False)
    common: Vector = field(init=False)
    pairs: Vector | None = None
    """Steps of the pair that every coordinate got, and phi above and below."""

    def __post_init__(self) -> None:
        self.scale, self.common = self.phi.scales()

    def allowed(self, gradient: Vector, truth: Vector, leaf_rms: float, where: Any) -> Vector:
        """The allowed error of the elements at ``where``."""
        return np.asarray(self.allowance.allowed(gradient, truth, leaf_rms) + self.slack[where])


def sweep(
    phi: Phi,
    gradient: Vector,
    value: float,
    noise: Noise,
    allowance: Tolerance,
    slack: Vector,
    method: str,
    eps: Vector | None,
    seed: int,
    tick: Tick,
) -> Truth:
    """The numerical gradient at every coordinate, good enough to judge ``gradient`` by
    ``allowance``.
    """
    problem = phi.problem
    work = Sweep(
        phi, problem.layout, problem.point, gradient, value, noise, allowance, slack, method, tick
    )
    rng = np.random.default_rng([seed, 0x5EED])
    if eps is None:
        steps, curvature = _steps(work, rng)
        truth = _one_pair_each(work, steps, curvature)
    else:
        truth = _textbook(work, eps)
    if method == COMPLEX:
        _take_complex_steps(work, truth, np.arange(work.point.size, dtype=np.intp))
    _settle_quiet(work, truth, rng)
    _settle_suspicious(work, truth)
    return truth


def _steps(work: Sweep, rng: np.random.Generator) -> tuple[Vector, Vector]:
    """For every coordinate the step of its pair and the curvature of its leaf.

    Curvature is the worst third derivative of the leaf's sample, times scale^3 / 6; truncation at
    ``scale 2^e`` is that times ``4^e``. Where there are too many leaves to look at each, the others
    count as the worst that was seen.
    """
    leaves = [leaf for leaf in work.layout if leaf.size]
    looked_at = [leaves[place] for place in _some(rng, len(leaves), SAMPLED_LEAVES)]
    each = max(1, SAMPLED // len(looked_at))
    index = np.concatenate([leaf.start + _some(rng, leaf.size, each) for leaf in looked_at])
    exponents = EXPONENTS[work.noise.bits].sample
    bend = _curvature(work, index, exponents if len(index) <= SAMPLED_FULLY else exponents[:2])
    owners = work.layout.owners(index)
    steps, curvature = np.empty_like(work.point), np.zeros(work.point.size)
    for number, leaf in enumerate(work.layout):
        own = bend[owners == number]
        worst = min(float(np.max(own if own.size else bend)), 1e300)
        unit = work.scale[leaf.part] * FACTORS[2] * 2.0 ** _best_exponent(worst, work.noise)
        steps[leaf.part] = representable(work.point[leaf.part], unit, work.noise.bits)
        curvature[leaf.part] = worst
    return steps, curvature


def _some(rng: np.random.Generator, size: int, count: int) -> Positions:
    return np.sort(rng.choice(size, min(size, count), replace=False)).astype(np.intp)


def _best_exponent(bend: float, noise: Noise) -> int:
    # 3 bend 4^e + 5 sigma 2^-e / sqrt2 is least where 2^(3e) = 5 sigma / (6 sqrt2 bend).
    limits = EXPONENTS[noise.bits]
    if bend <= 0:
        return limits.coarsest
    if noise.sigma <= 0 or not np.isfinite(bend):
        return limits.finest
    best = float(np.log2(NOISE_SIGMAS * noise.sigma / (6 * np.sqrt(2) * bend))) / 3
    return int(np.clip(round(best), limits.finest, limits.coarsest))


def _curvature(work: Sweep, index: Positions, exponents: tuple[int, ...]) -> Vector:
    """The third derivative at each coordinate, times scale^3 / 6, from slopes at a few steps."""
    slopes = []
    for level, exponent in enumerate(exponents):
        unit = work.scale[index] * FACTORS[level] * 2.0**exponent
        step = representable(work.point[index], unit, work.noise.bits)
        plus, minus = work.phi.pairs(index, step)
        with np.errstate(invalid="ignore", over="ignore"):
            slopes.append((plus - minus) / (2 * step))
        work.tick(0, work.point.size)
    found = []
    for wide, narrow in pairwise(range(len(exponents))):
        spread = 4.0 ** exponents[wide] - 4.0 ** exponents[narrow]
        with np.errstate(invalid="ignore", over="ignore"):
            found.append(np.abs(slopes[wide] - slopes[narrow]) * work.scale[index] / spread)
    # The least of them: a kink that only the widest step crosses is no curvature.
    least = np.fmin.reduce(found)
    return np.where(np.isfinite(least), least, np.inf)


def _one_pair_each(work: Sweep, steps: Vector, curvature: Vector) -> Truth:
    plus, minus = _pairs_in_blocks(work, steps, 0, work.point.size)
    work.pairs = np.array([steps, plus, minus])
    with np.errstate(all="ignore"):
        slope = (plus - minus) / (2 * steps)
        truncation = 3 * curvature / work.scale * (steps / work.scale) ** 2
        noise = _slope_noise(work, plus, minus, steps)
    bar = truncation + BAR_SIGMAS * noise + 2.0**-52 * np.abs(slope)
    return _truth(work, slope, bar)


def _slope_noise(work: Sweep, plus: Vector, minus: Vector, steps: Vector) -> Vector:
    """The standard deviation of a central difference: phi's noise, or its rounding where larger."""
    peak = np.fmax(np.abs(plus), np.abs(minus))
    return np.asarray(work.noise.of(peak) / (np.sqrt(2) * steps))


def _truth(work: Sweep, slope: Vector, bar: Vector) -> Truth:
    known = np.isfinite(slope) & np.isfinite(bar)
    slope, bar = np.where(known, slope, 0.0), np.where(known, bar, np.inf)
    below = zero_below(work.layout, work.scale, (work.gradient, slope), work.noise.bits)
    return Truth(slope, bar, work.noise, below)


def _pairs_in_blocks(work: Sweep, steps: Vector, done: int, total: int) -> tuple[Vector, Vector]:
    """All coordinates, leaf by leaf and in blocks, so that a long sweep can say how far it is."""
    plus, minus = np.empty_like(steps), np.empty_like(steps)
    for first in range(0, steps.size, BLOCK):
        index = np.arange(first, min(first + BLOCK, steps.size), dtype=np.intp)
        plus[index], minus[index] = work.phi.pairs(index, steps[index])
        work.tick(done + len(index) + first, total)
    return plus, minus


def _textbook(work: Sweep, eps: Vector) -> Truth:
    """``(f(x + eps) - f(x - eps)) / (2 eps)`` to the letter; the bar from one more step, 2 eps,
    and the noise.
    """
    total = 2 * work.point.size
    plus, minus = _pairs_in_blocks(work, eps, 0, total)
    plus2, minus2 = _pairs_in_blocks(work, 2 * eps, work.point.size, total)
    with np.errstate(all="ignore"):
        slope = (plus - minus) / (2 * eps)
        # Twice the step errs by four times the truncation: the difference holds three times that
        # of eps.
        truncation = np.abs((plus2 - minus2) / (4 * eps) - slope)
        noise = _slope_noise(work, plus, minus, eps)
        # theta + eps is rounded: the step that was taken is not the step that is divided by.
        travelled = (work.point + eps) - (work.point - eps)
        misstep = np.abs(slope) * np.abs(travelled / (2 * eps) - 1)
        unmoved = travelled == 0
    bar = np.where(
        unmoved, np.inf, truncation + BAR_SIGMAS * noise + misstep + 2.0**-52 * np.abs(slope)
    )
    truth = _truth(work, slope, bar)
    truth.scored = (truth.value.copy(), truth.bar.copy())
    return truth


def _take_complex_steps(work: Sweep, truth: Truth, index: Positions) -> Mask:
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
    return believed


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


def _suspicious(work: Sweep, truth: Truth, part: slice) -> Any:
    """Whose error is not clearly inside what is allowed."""
    gradient, value, bar = work.gradient[part], truth.value[part], truth.bar[part]
    allowed = work.allowed(gradient, value, rms(value), part)
    with np.errstate(invalid="ignore"):
        inside = np.abs(gradient - value) + bar <= allowed
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
        gap = np.abs((plus - work.value) + (minus - work.value)) / steps
        noise = NOISE_SIGMAS * 2.5 * work.noise.sigma / steps
        return (gap > noise) & (gap > UNEVEN * np.fmax(size, np.abs(truth.value[part])))


def _room(work: Sweep, truth: Truth, part: slice) -> float:
    """How large a bar may be where all of them together leave no room for the leaf's distance."""
    gradient, value, bar = work.gradient[part], truth.value[part], truth.bar[part]
    bar = bar[np.isfinite(bar) & np.isfinite(gradient)]
    finite = np.where(np.isfinite(gradient), gradient, 0.0)
    room = 0.5 * work.allowance.distance * (norm(value) + norm(finite))
    return room / float(np.sqrt(len(bar))) if norm(bar) > room else np.inf


def _settle_quiet(work: Sweep, truth: Truth, rng: np.random.Generator) -> None:
    """Coordinates that do not move phi at all, like the weights of a dead unit, decided together.

    Where phi stands still to the bit while all of them move at once, at random signs and twice,
    what they do to it is below the resolution of its arithmetic.
    """
    for leaf in work.layout:
        still = (
            (truth.value[leaf.part] == 0)
            & (work.gradient[leaf.part] == 0)
            & _suspicious(work, truth, leaf.part)
        )
        if not still.any():
            continue
        scale = work.scale[leaf.part]
        for exponent in QUIET:
            moves = np.where(still, rng.choice([-1.0, 1.0], (2, leaf.size)) * scale, 0.0)
            steps = np.array([2.0**exponent, -(2.0**exponent)])
            if all((work.phi.along(move, steps, leaf.start) == work.value).all() for move in moves):
                bound = RESOLUTION * UNIT * abs(work.value) / (steps[0] * scale)
                truth.bar[leaf.part] = np.where(still, bound, truth.bar[leaf.part])
                truth.still[leaf.part] = still
                break


def _settle_suspicious(work: Sweep, truth: Truth) -> None:
    """Look again at what one pair could not decide, the worst first, until the leaf's verdict
    cannot change.
    """
    for leaf in work.layout:
        queue = leaf.start + np.flatnonzero(_suspicious(work, truth, leaf.part))
        queue = queue[~truth.analytic[queue]]
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
        _settle_ties(work, truth, leaf)


def _settle_ties(work: Sweep, truth: Truth, leaf: Leaf) -> None:
    """Where the gradients of several kinks do not go together, call them wrong."""
    kinks = np.array([n for n in sorted(truth.sides) if leaf.start <= n < leaf.part.stop], np.intp)
    if len(kinks) < 2:
        return
    sides = np.array([truth.sides[int(n)] for n in kinks]).T
    scale, gradient = work.scale[kinks], work.gradient[kinks]
    for tie in wrong_ties(work.phi, kinks, scale, sides, gradient, work.value, work.noise):
        for place in (tie.first, tie.second):
            truth.value[place] = work.gradient[place] - tie.excess / (2 * work.scale[place])
            truth.bar[place], truth.settled[place] = 0.0, True


def _eps_suffices(truth: Truth, gradient: Vector, leaf: Leaf, allowance: Tolerance) -> bool:
    assert truth.scored is not None
    slope, bar = truth.scored[0][leaf.part], truth.scored[1][leaf.part]
    return norm(bar) <= allowance.distance * (norm(slope) + norm(gradient[leaf.part]))


def _outside(work: Sweep, truth: Truth, leaf: Leaf, index: Positions) -> Any:
    """Whose error clearly exceeds what is allowed, by the bar of its one pair."""
    gradient, value = work.gradient[index], truth.value[index]
    allowed = work.allowed(gradient, value, rms(truth.value[leaf.part]), index)
    return exceeds(np.abs(gradient - value), truth.bar[index], allowed)


def _look_again(work: Sweep, truth: Truth, leaf: Leaf, index: Positions) -> tuple[Any, Any]:
    """A ladder of steps at each of these coordinates; (wrong, undecided) afterwards."""
    gradient, leaf_rms = work.gradient[index], rms(truth.value[leaf.part])
    below = truth.zero_below[index] if _may_be_zero(work, truth, leaf.part) else -1.0
    room = _room(work, truth, leaf.part)

    def outcome(best: Estimate) -> tuple[Any, Any]:
        near, bar = best.near(gradient), best.bar
        error, allowed = np.abs(gradient - near), work.allowed(gradient, near, leaf_rms, index)
        with np.errstate(invalid="ignore"):
            null = np.abs(gradient) + np.abs(near) + bar <= below
            null |= (best.low + bar < gradient) & (gradient < best.high - bar)
            wrong = ~null & best.settled & exceeds(error, bar, allowed)
            return wrong, ~wrong & ~null & ~((error + bar <= allowed) & (bar <= room))

    climbed = climb(
        work.phi.pairs,
        work.point,
        index,
        (work.scale[index], work.common[index]),
        work.value,
        work.noise,
        outcome,
        None if work.pairs is None else work.pairs[:, index],
    )
    best = climbed.best
    room = np.inf
    wrong, undecided = outcome(best)
    # Strictly between the slopes of both sides a gradient is right, however uncertain those are.
    between = (best.low + best.bar < gradient) & (gradient < best.high - best.bar)
    truth.value[index] = best.near(gradient)
    truth.bar[index] = np.where(between, 0.0, best.bar)
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
            climbed.rungs[:, :, place], gradient[place], work.noise.sigma
        )
    wrong, undecided = wrong & ~none, undecided | none
    doubtful = np.flatnonzero(undecided & ~none & best.settled)
    if work.method == AUTO and doubtful.size and work.phi.can_be_complex:
        undecided[doubtful] &= ~_rescued(work, truth, leaf, index[doubtful])
    return wrong, undecided


def _rescued(work: Sweep, truth: Truth, leaf: Leaf, index: Positions) -> Mask:
    """Where a complex step finds a gradient right that differences are too noisy to judge.

    Nothing is found wrong this way: that would rest on the assumption that phi is analytic.
    """
    value, bar, settled = truth.value[index], truth.bar[index], truth.settled[index]
    _take_complex_steps(work, truth, index)
    gradient, found = work.gradient[index], truth.value[index]
    allowed = work.allowed(gradient, found, rms(truth.value[leaf.part]), index)
    right = truth.analytic[index] & (np.abs(gradient - found) + truth.bar[index] <= allowed)
    truth.analytic[index] = right
    for part, old in ((truth.value, value), (truth.bar, bar), (truth.settled, settled)):
        part[index] = np.where(right, part[index], old)
    return right
