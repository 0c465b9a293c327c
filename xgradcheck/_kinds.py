"""What kind of point a coordinate is at, from phi at several steps on both sides of it.

A jump moves phi by as much over a short step as over a long one, an infinite slope like a root of
the step.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from xgradcheck._differences import Noise
from xgradcheck._layout import Mask, Vector


class Kind(IntEnum):
    """The kinds of points; a kink at the point itself is found by the slopes of both sides."""

    SMOOTH = 0
    EDGE = 1
    """phi is finite on one side only."""
    KINK = 2
    STEEP = 3
    """The slope is infinite, as that of the square root at 0."""
    JUMP = 4
    MEETING = 5
    """Several kinks meet, so that no slope along one coordinate tells what is right."""
    DROWNED = 6
    """The slope is less than rounding may hide of what phi is made of."""


Kinds = npt.NDArray[np.uint8]

# phi moves like h^a: a jump has a = 0, a smooth function 1 or more.
JUMP_BELOW, STEEP_BELOW, ONE_SIDED_BELOW = 0.2, 0.8, 0.9
VISIBLE = 20.0
"""Standard deviations of noise that a move of phi must exceed to tell its order."""


def kinds(rungs: Vector, slope: Vector, value: float, noise: Noise) -> Kinds:
    """The kind of point at each of m coordinates with these slopes, from rungs of shape
    (3, levels, m): steps, phi above and phi below; NaN where a level is missing.
    """
    steps, plus, minus = _narrowest_first(rungs)
    found = np.full(steps.shape[1], Kind.SMOOTH, np.uint8)
    with np.errstate(all="ignore"):
        ends = [~np.isfinite(side[:2]).any(axis=0) for side in (plus, minus)]
        one_sided = ends[0] ^ ends[1]
        found[one_sided] = Kind.EDGE
        for sign, side in ((1, plus), (-1, minus)):
            order_of_growth = _order(steps, np.abs(side - value), noise.sigma)
            limit = np.where(one_sided, ONE_SIDED_BELOW, STEEP_BELOW)
            steep = (order_of_growth >= JUMP_BELOW) & (order_of_growth < limit)
            found[steep & (found < Kind.STEEP)] = Kind.STEEP
            rest = np.abs(side - value - sign * steps * slope)
            blur = noise.of(side[0])
            found[_leaps(rest[:2], blur) & _leaps(rest[:3], blur)] = Kind.JUMP
    return found


def may_jump(rungs: Vector, slope: Vector, value: float, noise: Noise) -> Mask:
    """Where phi may jump: the two narrowest steps alone say so."""
    steps, plus, minus = _narrowest_first(rungs)[:, :2]
    with np.errstate(all="ignore"):
        ahead, behind = plus - value - steps * slope, minus - value + steps * slope
        first, second = noise.of(plus[0]), noise.of(minus[0])
        return _leaps(np.abs(ahead), first) | _leaps(np.abs(behind), second)


def _narrowest_first(rungs: Vector) -> Vector:
    """Missing rungs last."""
    order = np.argsort(np.where(np.isfinite(rungs[0]), rungs[0], np.inf), axis=0)
    return np.take_along_axis(rungs, order[None], axis=1)


def _order(steps: Vector, moved: Vector, sigma: float) -> Vector:
    """The a of ``|f(h) - f(0)| ~ h^a`` over the narrowest steps that show it, three or up to five;
    NaN where they disagree, as on the way to a plateau.
    """
    seen = np.where(np.isfinite(moved) & (moved > VISIBLE * sigma), moved, np.nan)
    first = np.argsort(np.isnan(seen), axis=0, kind="stable")[:5]
    if len(first) < 3:
        return np.full(steps.shape[1], np.nan)
    h, size = (np.log(np.take_along_axis(part, first, axis=0)) for part in (steps, seen))
    orders = np.diff(size, axis=0) / np.diff(h, axis=0)
    agree = np.abs(orders[0] - orders[1]) < 0.25
    for later in orders[2:]:
        agree &= ~(np.abs(orders[0] - later) >= 0.25)  # fewer steps may show it
    return np.where(agree, np.max(orders[:2], axis=0), np.nan)


def _leaps(moved: Vector, blur: Vector) -> Mask:
    """Where phi, its slope taken off, moves by as much over the first step as over the last, a
    wider one; ``blur`` is the noise of its value there. Two alone may meet the same value by
    chance.
    """
    return np.asarray((moved[0] > 100 * blur) & (moved[0] > 0.7 * moved[-1]))


def remainder_order(rungs: Vector, gradient: float, sigma: float) -> float:
    """The a of ``|f(x + h) - f(x - h) - 2 h g| ~ h^a`` at one coordinate: 3 for a right gradient of
    a smooth function, 1 for a wrong one; NaN where noise hides it.

    The central Taylor remainder: the one-sided one falls like h^2 for a right gradient and hardly
    differs for one that is wrong by little.
    """
    steps, plus, minus = rungs
    with np.errstate(all="ignore"):
        rest = np.abs(plus - minus - 2 * steps * gradient)
        known = np.isfinite(rest) & (rest > 10 * 1.5 * sigma)
    order = np.argsort(steps[known])[:4]
    if len(order) < 3:
        return float("nan")
    h, size = np.log(steps[known][order]), np.log(rest[known][order])
    if h[-1] - h[0] < np.log(16):
        return float("nan")
    rows, columns = np.triu_indices(len(h), 1)
    return float(np.median((size[columns] - size[rows]) / (h[columns] - h[rows])))
