"""The rounding noise of a function, read off its own values.

What a polynomial through neighbouring points leaves over is noise (Hamming; More and Wild 2011,
SIAM J. Sci. Comput. 33). The points are irregular, so that a quantised function cannot alias with
their spacing.
"""

from collections.abc import Callable

import numpy as np

from xgradcheck._differences import LEAST_NOISE
from xgradcheck._layout import Vector

# All on one side of x, so that a kink or jump at x itself is no noise.
_PROBE = np.array([17, 59, 103, 151, 211, 263, 331, 397]) / 64.0
_USUAL, _WIDER, _NARROWER = -22, (-14, -7, -4), (-32, -42)


def measure_noise(
    along: Callable[[Vector, Vector], Vector],
    value: float,
    point: Vector,
    scale: Vector,
    rng: np.random.Generator,
) -> float:
    """The standard deviation of phi's rounding noise, from its values on a line through ``point``.

    Eight evaluations; more where phi stands still on that scale (it is quantised: low precision
    inside) or bends.
    """
    least = LEAST_NOISE * abs(value)
    first = _noise_on_a_line(along, value, point, scale, rng)
    if first <= 50 * least:
        return max(first, least)
    # A kink on the line looks like noise; a second line seldom crosses one too.
    return max(least, min(first, _noise_on_a_line(along, value, point, scale, rng)))


def _noise_on_a_line(
    along: Callable[[Vector, Vector], Vector],
    value: float,
    point: Vector,
    scale: Vector,
    rng: np.random.Generator,
) -> float:
    direction = scale * rng.choice([-1.0, 1.0], point.size) * rng.uniform(0.5, 1.0, point.size)
    unit = abs(value) or 1.0

    def scan(exponent: int) -> Vector:
        exact = _snapped(point, direction, exponent)
        values = along(exact, _PROBE * 2.0**exponent)
        if not np.isfinite(values).all():
            values = along(exact, -_PROBE * 2.0**exponent)
        return values

    values = scan(_USUAL)
    if len(np.unique(values)) <= 3:
        for exponent in _WIDER:
            wider = scan(exponent)
            if not np.isfinite(wider).all():
                break
            values = wider
            if len(np.unique(values)) > 3:
                break
    else:
        for exponent in _NARROWER:
            if np.isfinite(values).all() and not _bends(values / unit):
                break
            narrower = scan(exponent)
            if len(np.unique(narrower)) <= 3:
                break
            values = narrower
    if not np.isfinite(values).all():
        return 0.0
    residuals = _residuals(values / unit)
    return unit * (residuals[4] if _bends(values / unit) else max(residuals[3], residuals[4]))


def _snapped(point: Vector, direction: Vector, exponent: int) -> Vector:
    """The direction rounded so that every point of the probe is exact: the argument's rounding is
    no noise of phi.
    """
    _, magnitude = np.frexp(np.abs(point) + np.abs(direction) * 2.0 ** (exponent + 3))
    quantum = np.ldexp(1.0, np.maximum(magnitude - 52 - (exponent - 6), -1000))
    return np.asarray(np.round(direction / quantum) * quantum)


def _residuals(values: Vector) -> dict[int, float]:
    """Degree of the fitted polynomial to the standard deviation of what it leaves over."""
    values = values - values[0]
    left = {}
    for degree in (2, 3, 4):
        basis, _ = np.linalg.qr(np.vander(_PROBE / _PROBE[-1], degree + 1))
        rest = values - basis @ (basis.T @ values)
        left[degree] = float(np.sqrt(np.sum(rest**2) / (len(values) - degree - 1)))
    return left


def _bends(values: Vector) -> bool:
    """Whether higher degrees keep explaining more: curvature, not noise."""
    left = _residuals(values)
    return left[3] < 0.3 * left[2] and left[4] < 0.3 * left[3]
