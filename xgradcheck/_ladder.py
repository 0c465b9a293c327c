"""A ladder of steps at single coordinates, lengthened only where the rungs so far decide
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._diagnose import Kind, Kinds, kinds, may_jump
from xgradcheck._differences import FACTORS, NOISE_SIGMAS, Noise, representable
from xgradcheck._extrapolation import Estimate, chosen_from, estimate, widest_first
from xgradcheck._layout import Mask, Positions, Vector

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
    rungs: Vector | None = None,
) -> Climb:
    """Slopes at the coordinates ``index``.

    Four evaluations each beside ``rungs``, those known already, as (steps, phi above, phi below) in
    a row; more where ``outcome``, which tells (wrong, undecided), is not content. Noise asks for
    wider steps, a kink or a fast oscillation near by for narrower ones. Nothing is wrong on the
    word of wide steps alone: they may agree on a slope by skipping over whole periods. And nothing
    is wrong unless every other step alone, and the steps between them alone, call it so.
    """
    rungs = np.empty((3, 0, len(index))) if rungs is None else rungs[:, None, :]

    def lengthened(rungs: Vector, chosen: Positions, wished: Vector, exponents: Any) -> Vector:
        for level, exponent in enumerate(exponents):
            unit = wished[chosen] * FACTORS[level % len(FACTORS)] * 2.0**exponent
            step = representable(point[index[chosen]], unit, noise.bits)
            rung = np.full((3, 1, len(index)), np.nan)
            rung[0, 0, chosen] = np.where(step > 0, step, np.nan)
            rung[1, 0, chosen], rung[2, 0, chosen] = pairs(index[chosen], step)
            rungs = np.concatenate([rungs, rung], axis=1)
        return rungs

    best: Estimate | None = None
    exponents = EXPONENTS[noise.bits]
    for unit, wanted_steps, wanted in _plans(*scales, exponents):
        chosen = np.arange(len(index))
        if best is not None:
            leaps = may_jump(rungs, best.middle, value, noise)
            chosen = np.flatnonzero(wanted(best, *outcome(best), leaps))
        if not chosen.size:
            continue
        rungs = lengthened(rungs, chosen, unit, wanted_steps)
        before = best
        best = estimate(rungs, value, noise)
        if before is not None and unit is scales[1]:
            # Steps of the neighbours' size may leap over all there is to see: they only acquit.
            best.settled &= ~outcome(best)[0] | outcome(before)[0]
    assert best is not None
    doubted = outcome(best)[0]
    if doubted.any():
        doubted &= ~_confirmed(rungs, value, noise, outcome)
    if doubted.any():
        chosen = np.flatnonzero(doubted)
        rungs = lengthened(rungs, chosen, scales[0], exponents.between + exponents.wider)
        best = chosen_from(doubted, estimate(rungs, value, noise), best)
        best.settled &= ~doubted | _confirmed(rungs, value, noise, outcome)
    if noise.fine < np.inf and (wrong := outcome(best)[0]).any():
        # What looks like noise may be an oscillation: then its own slope has to say so too.
        rungs = lengthened(rungs, np.flatnonzero(wrong), scales[0], exponents.narrowest)
        near = np.where(rungs[0] < scales[0] * 2.0**-20, rungs, np.nan)
        finer = estimate(near, value, Noise(noise.fine, noise.bits))
        best.settled &= ~wrong | outcome(finer)[0]
    found = kinds(rungs, best.middle, value, noise)
    found[(best.low < best.high) & (found < Kind.STEEP)] = Kind.KINK
    return Climb(best, found, rungs)


def _confirmed(rungs: Vector, value: float, noise: Noise, outcome: Outcome) -> Mask:
    """What is wrong by two estimates that share no step."""
    rungs = widest_first(rungs)
    first, second = (outcome(estimate(rungs[:, n::2], value, noise))[0] for n in (0, 1))
    return np.asarray(first & second)


Plan = tuple[Vector, tuple[int, ...], Callable[[Estimate, Mask, Mask, Mask], Mask]]


def _plans(scale: Vector, common: Vector, steps: Exponents) -> list[Plan]:
    """What to try in turn: the scale of the steps, their exponents, and who wants them, by what is
    known of it so far: wrong, undecided, perhaps at a jump.
    """

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
        (
            common,
            steps.wide + steps.middle,
            lambda best, wrong, undecided, leaps: undecided & (scale < common),
        ),
    ]
