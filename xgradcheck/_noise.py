"""The rounding noise of a function, read off its own values, and how many bits its arithmetic has.

What a polynomial through neighbouring points leaves over is noise (Hamming; More and Wild 2011,
SIAM J. Sci. Comput. 33). The points are irregular, so that a quantised function cannot alias with
their spacing.
"""

from collections.abc import Callable

import numpy as np

from xgradcheck._differences import Noise, snapped
from xgradcheck._layout import BITS, DOUBLE, Mask, Vector

Along = Callable[[Vector, Vector], Vector]

# All on one side of x, so that a kink or jump at x itself is no noise. Odd multiples of 2^-16: on a
# coarser grid, a slope that fits the quantum of a value's rounding makes the rounding look smooth.
_PROBE = np.array([17393, 60397, 105479, 154619, 216061, 269317, 338947, 406529]) / 65536.0
# On grids that a short significand can hold.
_PROBE_24 = np.array([17, 59, 103, 151, 211, 263, 331, 397]) / 64.0
_PROBE_8 = np.array([1, 2, 4, 5, 7, 8, 10, 12]) / 2.0
_USUAL, _WIDER, _NARROWER = -22, (-14, -7, -4), (-32, -42)
_WIDEST = -2
_LATTICES = ((-10, _PROBE_8, 11, 1), (-15, _PROBE_24, 24, 6), (-99, _PROBE, DOUBLE, 16))
"""From which spacing on, which points, of how many bits, and how many of them below the spacing."""
FEW, FEW_AND_COARSE = 1.1, 2.0
"""How far a fit through eight values may underrate noise; more where they are few bits long."""
LOUD = 50.0
"""Noise of so many times that of rounding the result is worth a second look."""


def measure_noise(
    along: Along,
    value: float,
    point: Vector,
    scale: Vector,
    rng: np.random.Generator,
    unit: float | None = None,
    told: int = DOUBLE,
) -> Noise:
    """The noise of phi, from its values on a line through ``point``.

    Eight evaluations; more where phi stands still on that scale (it is quantised: low precision
    inside) or bends. ``unit`` is what a scalar output was multiplied by: divided by it, phi is what
    the function returned, to a few units of rounding. ``told`` is the shortest significand that the
    framework knows of; it counts where there is noise to match.
    """
    least = float(Noise(0.0).of(np.array(value)))
    everywhere = np.ones(point.size, bool)

    def line(mask: Mask, exponent: int = _USUAL) -> tuple[float, Vector]:
        return _noise_on_a_line(along, value, point, scale * mask, rng, exponent)

    sigma, values = line(everywhere)
    if sigma > LOUD * least:
        # A kink on the line looks like noise; a second line seldom crosses one too.
        again, more = line(everywhere)
        sigma, values = min(sigma, again), np.concatenate([values, more])
    if sigma > LOUD * least and point.size > 1 and line(everywhere, _NARROWER[0])[0] < sigma / 4:
        # Noise is the same at any spacing. What falls with it comes from a coordinate at which phi
        # is not smooth, and a line through the others is free of it.
        half = rng.permutation(point.size) < point.size // 2
        sigma = min(sigma, line(half)[0], line(~half)[0])
    bits = DOUBLE if unit is None else _bits_of(np.append(values, value) / unit)
    if bits == DOUBLE and sigma > LOUD * least:
        bits = min(told, _bits_of_the_argument(along, value, point, rng))
    underrated = FEW if bits > BITS["float16"] else FEW_AND_COARSE
    return Noise(max(underrated * sigma, 2.0 ** (DOUBLE - bits) * least), bits)


def _noise_on_a_line(
    along: Along,
    value: float,
    point: Vector,
    scale: Vector,
    rng: np.random.Generator,
    usual: int,
) -> tuple[float, Vector]:
    """The noise, and every value that was seen on the way."""
    direction = scale * rng.choice([-1.0, 1.0], point.size) * rng.uniform(0.5, 1.0, point.size)
    unit = abs(value) or 1.0
    seen = []

    def scan(exponent: int) -> tuple[Vector, Vector]:
        _, probe, bits, spare = next(row for row in _LATTICES if exponent >= row[0])
        # The argument's own rounding is no noise of phi: every point has to be exact.
        exact = snapped(point, direction, exponent + 3, exponent - spare, bits)
        values = along(exact, probe * 2.0**exponent)
        if not np.isfinite(values).all():
            values = along(exact, -probe * 2.0**exponent)
        seen.append(values)
        return probe, values

    probe, values = scan(usual)
    if _stands_still(values):
        for exponent in _WIDER:
            wider, found = scan(exponent)
            if not np.isfinite(found).all():
                break
            probe, values = wider, found
            if not _stands_still(values):
                break
        else:
            # Only to see which numbers phi can take: so far out it may bend or jump.
            scan(_WIDEST)
    else:
        for exponent in _NARROWER:
            if np.isfinite(values).all() and not _bends(probe, values / unit):
                break
            _, narrower = scan(exponent)
            if _stands_still(narrower):
                break
            values = narrower
    every = np.concatenate(seen)
    if not np.isfinite(values).all():
        return 0.0, every
    left = _residuals(probe, values / unit)
    return unit * (left[4] if _falling(left) else max(left[3], left[4])), every


def _stands_still(values: Vector) -> bool:
    return len(np.unique(values)) <= 3


def _residuals(probe: Vector, values: Vector) -> dict[int, float]:
    """Degree of the fitted polynomial to the standard deviation of what it leaves over."""
    values = values - values[0]
    left = {}
    for degree in (2, 3, 4):
        basis, _ = np.linalg.qr(np.vander(probe / probe[-1], degree + 1))
        rest = values - basis @ (basis.T @ values)
        left[degree] = float(np.sqrt(np.sum(rest**2) / (len(values) - degree - 1)))
    return left


def _bends(probe: Vector, values: Vector) -> bool:
    """Whether higher degrees keep explaining more: curvature, not noise."""
    return _falling(_residuals(probe, values))


def _falling(left: dict[int, float]) -> bool:
    return left[3] < 0.3 * left[2] and left[4] < 0.3 * left[3]


def _bits_of(values: Vector) -> int:
    """The shortest significand that holds all these values; 53 where they tell nothing.

    Dividing phi by a cotangent leaves two units of rounding, and a longer significand comes that
    near to a shorter one by chance once in 10^8 values.
    """
    values = np.unique(values[np.isfinite(values) & (values != 0)])
    if len(values) < 3:
        return DOUBLE
    significands, _ = np.frexp(values)
    for bits in BITS.values():
        grid = np.ldexp(significands, bits)
        if (np.abs(grid - np.round(grid)) <= np.ldexp(4.0, bits - DOUBLE)).all():
            return bits
    return DOUBLE


def _bits_of_the_argument(
    along: Along, value: float, point: Vector, rng: np.random.Generator
) -> int:
    """The significand that the argument is rounded to on entering the function; 53 if to none.

    Then phi is the same to the bit wherever the argument lies in its rounding cell, and another in
    the cells beside it. Noise of other kinds does not keep to those cells.
    """
    for bits in BITS.values():
        significands, exponents = np.frexp(point)
        center = np.ldexp(np.round(np.ldexp(significands, bits)), exponents - bits)
        cell = np.ldexp(1.0, exponents - bits) * (point != 0)
        within = [center - point + cell * rng.uniform(-0.2, 0.2, point.size) for _ in range(3)]
        beside = center - point + cell * rng.choice([-2.0, 2.0], point.size)
        one = np.ones(1)
        if all((along(move, one) == value).all() for move in within):
            return bits if (along(beside, one) != value).any() else DOUBLE
    return DOUBLE
