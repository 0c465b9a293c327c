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
NARROWER = (-15, -18, -21)
NARROWEST = (-27, -33, -39, -45)


def climb(
    pairs: Pairs,
    point: Vector,
    index: Positions,
    scale: Vector,
    value: float,
    noise: float,
    undecided_by: Callable[[Estimate], Mask],
    rungs: Vector | None = None,
) -> tuple[Estimate, Mask]:
    """Slopes at the coordinates ``index`` and where phi jumps.

    Four evaluations each beside ``rungs``, those that are known already, as (steps, phi above, phi
    below) in a row; more where undecided.
    Noise asks for wider steps, a kink or a fast oscillation near by for narrower ones, and a
    coordinate much smaller than its neighbours for steps of its own size.
    """
    magnitude = np.abs(point[index])
    own = np.where(magnitude > 0, magnitude, scale)
    known = np.empty((3, 0, len(index))) if rungs is None else rungs[:, None, :]
    steps, plus, minus = known
    best: Estimate | None = None
    for unit, exponents, wanted in _plans(scale, own):
        chosen = np.arange(len(index))
        if best is not None:
            chosen = np.flatnonzero(undecided_by(best) & wanted(best))
        if not chosen.size:
            continue
        for level, exponent in enumerate(exponents):
            step = representable(
                point[index[chosen]], unit[chosen] * FACTORS[level % len(FACTORS)] * 2.0**exponent
            )
            rung = np.full((3, len(index)), np.nan)
            rung[0, chosen] = np.where(step > 0, step, np.nan)
            rung[1, chosen], rung[2, chosen] = pairs(index[chosen], step)
            steps, plus, minus = (
                np.vstack([old, new]) for old, new in zip((steps, plus, minus), rung, strict=True)
            )
        best = estimate(steps, plus, minus, value, noise)
    assert best is not None
    return best, _jumps(steps, plus - value, noise) | _jumps(steps, value - minus, noise)


def _plans(
    scale: Vector, own: Vector
) -> list[tuple[Vector, tuple[int, ...], Callable[[Estimate], Mask]]]:
    def coarse(best: Estimate) -> Mask:
        return np.asarray(~best.settled | (best.truncation > NOISE_SIGMAS * best.noise))

    return [
        (scale, WIDE, lambda best: best.settled),
        (scale, MIDDLE, coarse),
        (scale, WIDER, lambda best: best.settled),
        (scale, BETWEEN, lambda best: best.settled),
        (scale, NARROWER, coarse),
        (scale, NARROWEST, lambda best: ~best.settled),
        (own, WIDE + MIDDLE, lambda best: 16 * own < scale),
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
