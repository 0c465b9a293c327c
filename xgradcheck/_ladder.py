"""A ladder of steps at single coordinates, lengthened only where the rungs so far decide
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS, Noise, even_part, multiples, representable
from xgradcheck._extrapolation import Estimate, chosen_from, estimate, widest_first
from xgradcheck._kinds import Kind, Kinds, kinds, may_jump
from xgradcheck._layout import Mask, Positions, Vector

QUANTA, RESOLVED_SIGMAS = 4.0, 10.0
"""What tells two slopes apart: so many units in the last place of phi, and so much noise."""
STRAIGHT = 16.0
"""How many times less than that phi may bend over such a step."""

WIDE, STEPS, SIDED = 2.0**-14, 3, 0.1
"""Which steps are wide, of a coordinate's scale; how many of them speak for a gradient, and how
near to it their slope has to be, as a share of its distance to that of narrow ones.
"""

Pairs = Callable[[Positions, Vector], tuple[Vector, Vector]]
Outcome = Callable[[Estimate], tuple[Mask, Mask]]


@dataclass(frozen=True, slots=True)
class Exponents:
    """Steps as exponents of two, of a coordinate's scale, for an arithmetic of so many bits."""

    sample: tuple[int, ...]
    """Where a leaf's curvature is looked at."""
    coarsest: int
    finest: int
    """Of the pair that every coordinate gets: wider steps meet more kinks."""
    wide: tuple[int, ...]
    middle: tuple[int, ...] = ()
    wider: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    narrower: tuple[int, ...] = ()
    narrowest: tuple[int, ...] = ()
    inmost: tuple[int, ...] = ()
    """Where two estimates are to share no step, of what bends beside its argument's last digits."""
    farthest: tuple[int, ...] = ()


EXPONENTS = {
    53: Exponents(
        sample=(-9, -12, -15),
        coarsest=-11,
        finest=-18,
        wide=(-7, -9),
        middle=(-11, -13),
        wider=(-1, -2, -3, -4, -5),
        between=(-8, -10, -12),
        narrower=(-15, -18, -21, -24),
        narrowest=(-27, -33, -39, -45),
        inmost=(-22, -25, -26, -28, -30, -32),
        farthest=(2, 1, 0, -1, -2, -3),
    ),
    24: Exponents(
        sample=(-2, -4, -6),
        coarsest=-3,
        finest=-8,
        wide=(-3, -5),
        middle=(-6, -7),
        wider=(-1, -2, -4),
        narrower=(-8, -9, -11),
        narrowest=(-13,),
    ),
    11: Exponents(
        sample=(-1, -2, -3), coarsest=-2, finest=-4, wide=(-2, -4), middle=(-3,), narrower=(-5, -6)
    ),
    8: Exponents(
        sample=(-1, -2, -3), coarsest=-2, finest=-3, wide=(-2, -3), middle=(-4,), narrower=(-5,)
    ),
}


@dataclass(frozen=True, slots=True)
class Climb:
    """Slopes at m coordinates, the kind of point of each, and the rungs that tell, of shape
    (3, levels, m): steps, phi above and phi below.
    """

    best: Estimate
    kinds: Kinds
    rungs: Vector


def climb(
    pairs: Pairs,
    point: Vector,
    index: Positions,
    scales: tuple[Vector, Vector],
    value: float,
    noise: Noise,
    outcome: Outcome,
    gradient: Vector,
    rungs: Vector | None = None,
) -> Climb:
    """Slopes at the coordinates ``index``.

    Four evaluations each beside ``rungs``, those known already, as (steps, phi above, phi below) in
    a row; more where ``outcome``, which tells (wrong, undecided), is not content. Noise asks for
    wider steps, a kink or a fast oscillation near by for narrower ones. Nothing is wrong on the
    word of wide steps alone: they may agree on a slope by skipping over whole periods. And nothing
    is wrong unless every other step alone, and the steps between them alone, call it so, and unless
    the narrowest step that tells ``gradient`` from the slope found speaks for the slope.
    """
    rungs = np.empty((3, 0, len(index))) if rungs is None else rungs[:, None, :]
    rungs = np.where(rungs[0] < noise.least, np.nan, rungs)

    def lengthened(rungs: Vector, chosen: Positions, wished: Vector, exponents: Any) -> Vector:
        units = multiples(exponents)[:, None] * wished[chosen]
        steps = representable(point[index[chosen]], units, noise.bits)
        level, place = np.nonzero((steps > 0) & (steps >= noise.least))
        told = steps[level, place]
        found = np.full((3, len(exponents), len(index)), np.nan)
        found[:, level, chosen[place]] = told, *pairs(index[chosen[place]], told)
        return np.concatenate([rungs, found], axis=1)

    best: Estimate | None = None
    exponents = EXPONENTS[noise.bits]
    for number, (unit, wanted_steps, wanted) in enumerate(_plans(*scales, exponents)):
        chosen = np.arange(len(index))
        if best is not None:
            leaps = may_jump(rungs, best.middle, value, noise)
            chosen = np.flatnonzero(wanted(best, *outcome(best), leaps))
        if not chosen.size:
            continue
        rungs = lengthened(rungs, chosen, unit, wanted_steps)
        before = best
        best = estimate(rungs, value, noise)
        if before is not None and number >= OF_ITS_OWN:
            # Steps of the neighbours' size may leap over all there is to see: they only acquit.
            best.settled &= ~outcome(best)[0] | outcome(before)[0]
    assert best is not None
    doubted = outcome(best)[0]
    if doubted.any():
        doubted &= ~_confirmed(rungs, value, noise, outcome)
    for further in (exponents.between + exponents.wider, exponents.inmost):
        if doubted.any() and further:
            rungs = lengthened(rungs, np.flatnonzero(doubted), scales[0], further)
            best = chosen_from(doubted, estimate(rungs, value, noise), best)
            doubted &= ~(outcome(best)[0] & _confirmed(rungs, value, noise, outcome))
    best.settled &= ~doubted
    if noise.fine < np.inf and (wrong := outcome(best)[0]).any():
        # What looks like noise may be an oscillation: then its own slope has to say so too.
        rungs = lengthened(rungs, np.flatnonzero(wrong), scales[0], exponents.narrowest)
        near = np.where(rungs[0] < scales[0] * 2.0**-20, rungs, np.nan)
        finer = estimate(near, value, Noise(noise.fine, noise.bits))
        # Too coarse to converge, it may still have that very slope.
        finer.settled |= np.abs(finer.middle - best.middle) <= finer.bar + best.bar
        best.settled &= ~wrong | outcome(finer)[0]
    if (wrong := outcome(best)[0]).any():
        best.settled &= ~wrong | _speaks_for(best, gradient, rungs, value, noise)
        best.settled &= ~wrong | ~_is_staircase(best, gradient, rungs, scales[0])
    found = kinds(rungs, best.middle, value, noise)
    found[(best.low < best.high) & (found < Kind.STEEP)] = Kind.KINK
    return Climb(best, found, rungs)


def _confirmed(rungs: Vector, value: float, noise: Noise, outcome: Outcome) -> Mask:
    """What is wrong by two estimates that share no step."""
    rungs = widest_first(rungs)
    first, second = (outcome(estimate(rungs[:, n::2], value, noise))[0] for n in (0, 1))
    return np.asarray(first & second)


def _speaks_for(
    best: Estimate, gradient: Vector, rungs: Vector, value: float, noise: Noise
) -> Mask:
    """Where the narrowest step over which gradient and slope differ by more than phi can resolve
    moves phi as the slope says: next to a singularity, or where phi saturates to its last bits,
    only steps do that over which it is no straight line. At a kink each side speaks for itself.
    """
    steps, plus, minus = widest_first(rungs)
    # What looks like noise may be phi itself.
    sigma = Noise(min(noise.sigma, noise.fine), noise.bits)

    def speaks(moved: Vector, width: Vector, bent: Vector | float) -> Mask:
        left = np.fmin(np.abs(moved - width * best.low), np.abs(moved - width * best.high))
        missed = np.abs(moved - width * gradient)
        peak = np.abs(value) + np.abs(moved)
        resolved = np.fmax(
            RESOLVED_SIGMAS * sigma.of(peak), QUANTA * 2.0 ** (1 - noise.bits) * peak
        )
        fits = (left <= missed / 2) & (
            bent <= np.fmax(np.fmax(missed, np.abs(moved)) / STRAIGHT, resolved)
        )
        tells = missed > resolved
        row = len(steps) - 1 - np.argmax(tells[::-1], axis=0)[None]
        # Over narrower steps both have to be right, as far as phi can resolve.
        narrower = np.arange(len(steps))[:, None] > row
        denied = (narrower & (left > 2 * resolved)).any(axis=0)
        return np.asarray(tells.any(axis=0) & ~denied & np.take_along_axis(fits, row, axis=0)[0])

    ahead, behind = plus - value, value - minus
    both = np.isfinite(plus + minus)
    middle = np.where(both, plus - minus, 2 * np.fmax(ahead, behind))
    bent = np.where(both, even_part(plus, minus, value), 0.0)
    kink = speaks(ahead, steps, 0.0) & speaks(behind, steps, 0.0)
    smooth = speaks(middle, 2 * steps, bent)
    return np.where(best.low < best.high, kink, smooth) | ~np.isfinite(gradient)


def _is_staircase(best: Estimate, gradient: Vector, rungs: Vector, scale: Vector) -> Mask:
    """Where several wide steps have nearly the slope that the gradient says: narrow ones may see
    the slope of one stair only.
    """
    steps, plus, minus = rungs
    near = bear_out((plus - minus) / (2 * steps), gradient, best.middle)
    return np.asarray(np.sum(near & (steps > WIDE * scale), axis=0) >= STEPS)


def bear_out(slopes: Vector, gradient: Vector | float, truth: Vector | float) -> Mask:
    """Which slopes are so much nearer to a gradient than to what is taken for its truth that they
    speak for the gradient.
    """
    close = SIDED * np.fmin(np.abs(truth - gradient), np.abs(gradient))
    return np.asarray(np.abs(slopes - gradient) < close)


OF_ITS_OWN = 6
"""How many of the plans take steps of a coordinate's own size."""

Plan = tuple[Vector, tuple[int, ...], Callable[[Estimate, Mask, Mask, Mask], Mask]]


def _plans(scale: Vector, common: Vector, steps: Exponents) -> list[Plan]:
    """What to try in turn: the scale of the steps, their exponents, and who wants them, by what is
    known of it so far: wrong, undecided, perhaps at a jump.
    """

    apart = scale < common

    def coarse(best: Estimate) -> Mask:
        return np.asarray(~best.settled | (best.truncation > NOISE_SIGMAS * best.noise))

    return [
        (scale, steps.wide, lambda best, wrong, undecided, leaps: undecided),
        (scale, steps.middle, lambda best, wrong, undecided, leaps: undecided & coarse(best)),
        (scale, steps.wider, lambda best, wrong, undecided, leaps: undecided & best.settled),
        (scale, steps.between, lambda best, wrong, undecided, leaps: undecided & best.settled),
        (
            scale,
            steps.narrower,
            lambda best, wrong, undecided, leaps: wrong | leaps | undecided & coarse(best),
        ),
        (scale, steps.narrowest, lambda best, wrong, undecided, leaps: undecided & coarse(best)),
        # From a coordinate's own size to that of its neighbours.
        *(
            (
                unit,
                steps.wide + steps.middle,
                lambda best, wrong, undecided, leaps: undecided & apart,
            )
            for unit in (scale * (common / scale) ** share for share in (1 / 3, 2 / 3, 1))
        ),
        # Far out, noise is least: a parabola is one there too.
        (
            common,
            steps.farthest,
            lambda best, wrong, undecided, leaps: undecided & best.settled,
        ),
    ]
