"""A ladder of steps at single coordinates, lengthened only where the rungs so far decide
nothing.
"""

from collections.abc import Callable

import numpy as np

from xgradcheck._differences import FACTORS, NOISE_SIGMAS, Estimate, estimate, representable
from xgradcheck._layout import Mask, Positions, Vector

Pairs = Callable[[Positions, Vector], tuple[Vector, Vector]]

# Exponents of two, of a coordinate's scale.
WIDE = (-7, -9)
MIDDLE = (-11, -13)
BETWEEN = (-8, -10, -12)
WIDER = (-1, -2, -3, -4, -5)
NARROWER = (-15, -18, -21, -24)
NARROWEST = (-27, -33, -39, -45)


def climb(
    pairs: Pairs,
    point: Vector,
    index: Positions,
    scales: tuple[Vector, Vector],
    value: float,
    noise: float,
    outcome: Callable[[Estimate], tuple[Mask, Mask]],
    rungs: Vector | None = None,
) -> tuple[Estimate, Mask]:
    """Slopes at the coordinates ``index`` and where phi jumps.

    Four evaluations each beside ``rungs``, those known already, as (steps, phi above, phi below) in
    a row; more where ``outcome``, which tells (wrong, undecided), is not content. Noise asks for
    wider steps, a kink or a fast oscillation near by for narrower ones. Nothing is wrong on the
    word of wide steps alone: they may agree on a slope by skipping over whole periods.
    """
    known = np.empty((3, 0, len(index))) if rungs is None else rungs[:, None, :]
    steps, plus, minus = known
    best: Estimate | None = None
    for unit, exponents, wanted in _plans(*scales):
        chosen = np.arange(len(index))
        if best is not None:
            chosen = np.flatnonzero(wanted(best, *outcome(best)))
        if not chosen.size:
            continue
        for level, exponent in enumerate(exponents):
            wished = unit[chosen] * FACTORS[level % len(FACTORS)] * 2.0**exponent
            step = representable(point[index[chosen]], wished)
            rung = np.full((3, len(index)), np.nan)
            rung[0, chosen] = np.where(step > 0, step, np.nan)
            rung[1, chosen], rung[2, chosen] = pairs(index[chosen], step)
            steps, plus, minus = (
                np.vstack([old, new]) for old, new in zip((steps, plus, minus), rung, strict=True)
            )
        before = best
        best = estimate(steps, plus, minus, value, noise)
        if before is not None and unit is scales[1]:
            # Steps of the neighbours' size may leap over all there is to see: they only acquit.
            best.settled &= ~outcome(best)[0] | outcome(before)[0]
    assert best is not None
    return best, _jumps(steps, plus - value, noise) | _jumps(steps, value - minus, noise)


Plan = tuple[Vector, tuple[int, ...], Callable[[Estimate, Mask, Mask], Mask]]


def _plans(scale: Vector, common: Vector) -> list[Plan]:
    """What to try in turn: the scale of the steps, their exponents, and who wants them."""

    def coarse(best: Estimate) -> Mask:
        return np.asarray(~best.settled | (best.truncation > NOISE_SIGMAS * best.noise))

    return [
        (scale, WIDE, lambda best, wrong, undecided: undecided),
        (scale, MIDDLE, lambda best, wrong, undecided: undecided & coarse(best)),
        (scale, WIDER, lambda best, wrong, undecided: undecided & best.settled),
        (scale, BETWEEN, lambda best, wrong, undecided: undecided & best.settled),
        (scale, NARROWER, lambda best, wrong, undecided: wrong | undecided & coarse(best)),
        (scale, NARROWEST, lambda best, wrong, undecided: undecided & ~best.settled),
        (common, WIDE + MIDDLE, lambda best, wrong, undecided: undecided & (scale < common)),
    ]


def _jumps(steps: Vector, moved: Vector, noise: float) -> Mask:
    """Where phi moves by as much over the smallest step as over one several times larger."""
    finite = np.where(np.isfinite(steps) & np.isfinite(moved), steps, np.inf)
    order = np.argsort(finite, axis=0)[:2]
    if len(order) < 2:
        return np.zeros(steps.shape[1], bool)
    least, next_least = np.abs(np.take_along_axis(moved, order, axis=0))
    with np.errstate(invalid="ignore"):
        return np.asarray((least > 100 * noise) & (least > 0.7 * next_least))
