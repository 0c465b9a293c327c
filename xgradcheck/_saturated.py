"""Slopes that are next to nothing beside what they are on the way to the origin: at a saturated
unit they are the difference of numbers as large as the slope is elsewhere, as in ``s (1 - s)``.
"""

import numpy as np

from xgradcheck._judge import ZERO
from xgradcheck._layout import BITS, DOUBLE, Leaf, Mask, Positions, Vector
from xgradcheck._phi import Phi

WAY = (0.75, 0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Where slopes are looked at on the way to the origin, as a share of the point: from far off, all
that is not flat lies near the end of it.
"""
OFFSETS, FAR_FROM_NOTHING = (-0.5, 0.5, -1.0), 1e6
"""How far to go, as a multiple of the point; and how many times what is nothing beside a step of
those no other one will make nothing.
"""
LOOKED_AT, STEP = 64, 2.0**-10
"""Of how many coordinates, and over how much of their scale."""
LARGER = 4.0
"""How much larger phi may be on the way than at the point, and opposite of it."""
UNITS, UNITS_SHORT = 16.0, 8.0
"""How many units of rounding the steepest slope on the way there may have lost; the second in 16
bits, of which that is much.
"""


def nothing_beside(phi: Phi, leaf: Leaf, value: float, off: float) -> float:
    """What is nothing beside all that a leaf can do to phi, on the way to the origin or as far in
    the other direction. A large constant in phi is no such thing. So far out a loop may never end:
    what is ``off`` by far more than nothing is not asked on.
    """
    most = 0.0
    for offset in OFFSETS:
        moved = phi.along(phi.problem.point[leaf.part], np.array([offset]), leaf.start)
        most = max(most, float(np.nan_to_num(abs(moved[0] - value), posinf=0.0)))
        if off > FAR_FROM_NOTHING * ZERO[DOUBLE] * most > 0:
            break
    return ZERO[DOUBLE] * most


def saturated(phi: Phi, places: Positions, errors: Vector, bits: int) -> Mask:
    """Which of these coordinates err by no more than a backward pass of so many bits may lose:
    where phi is so much steeper on the way to the origin, and is finite there.
    """
    found = np.zeros(len(places), bool)
    chosen = places[:LOOKED_AT]
    point, layout = phi.problem.point.copy(), phi.problem.layout
    moves = np.zeros_like(point)
    for number in np.unique(layout.owners(chosen)):
        moves[layout.leaves[number].part] = point[layout.leaves[number].part]
    ends = phi.along(-moves, np.array([0.0, 1.0, 2.0]))
    if not np.isfinite(ends).all():
        return found
    most = LARGER * float(np.max(np.abs(ends[[0, 2]])))
    steepest, step = np.zeros(len(chosen)), STEP * phi.scales()[0][chosen]
    for share in WAY:
        with phi.problem.at(point - moves * (1 - share)), phi.anew() as there:
            above, below = there.pairs(chosen, step)
        if not np.abs(above).max() <= most:
            continue  # a pole, and no plateau
        with np.errstate(all="ignore"):
            steepest = np.fmax(steepest, np.abs(above - below) / (2 * step))
    units = UNITS if bits >= BITS["float32"] else UNITS_SHORT
    found[: len(chosen)] = errors[: len(chosen)] <= units * 2.0**-bits * steepest
    return found
