"""The complex step: ``f'(x) = Im f(x + i h) / h`` without any difference, hence without noise.

Error h^2 f'''/6, so h may be as small as one likes (Squire and Trapp 1998, SIAM Rev. 40). It is
right for analytic functions alone: abs, conj, max and casts to real numbers silently drop their
part. So it is believed only where it agrees with differences that need no such assumption.
"""

import numpy as np

from xgradcheck._differences import Noise
from xgradcheck._layout import Mask, Positions, Vector
from xgradcheck._phi import Phi

TINY, MODERATE = 2.0**-67, 2.0**-12
PRECISION = 2.0**-40
"""Relative error of a complex step: what the function's own arithmetic in 53 bits leaves."""
KNOWN = 0.01
"""How well differences must know a slope for a complex step to make it more precise."""


def complex_slopes(
    phi: Phi,
    index: Positions,
    scale: Vector,
    value: float,
    noise: Noise,
    slope: Vector,
    bar: Vector,
) -> tuple[Vector, Mask]:
    """Slopes at the coordinates ``index``, and where they are to be believed, given those of
    central differences with their bars.
    """
    tiny, moderate = scale * TINY, scale * MODERATE
    with np.errstate(all="ignore"):
        first = phi.imaginary(index, tiny)
        slopes = first.imag / tiny
        same = np.abs(first.real - value) <= 64 * 2.0**-52 * abs(value) + 10 * noise.sigma
        agrees = np.abs(slopes - slope) <= 1.5 * bar + 1e-14 * np.abs(slope)
        believed = same & agrees & (bar <= KNOWN * np.abs(slopes))
        chosen = np.flatnonzero(believed)
        second = phi.imaginary(index[chosen], moderate[chosen]).imag / moderate[chosen]
        near = np.abs(second - slopes[chosen]) <= 0.05 * np.abs(slopes[chosen]) + 50 * bar[chosen]
    believed[chosen] = near
    return slopes, believed
