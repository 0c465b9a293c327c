"""The rounding noise of a function, read off its own values, and how many bits its arithmetic has.

What a polynomial through neighbouring points leaves over is noise (Hamming; More and Wild 2011,
SIAM J. Sci. Comput. 33). The points are irregular, so that a quantised function cannot alias with
their spacing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS, Noise, snapped
from xgradcheck._layout import BITS, DOUBLE, Operands, Vector, to_bits

Along = Callable[[Vector, Vector], Vector]

# All on one side of x, so that a kink or jump at x itself is no noise. Odd multiples of 2^-16: on a
# coarser grid, a slope that fits the quantum of a value's rounding makes the rounding look smooth.
_PROBE = np.array([17393, 60397, 105479, 154619, 216061, 269317, 338947, 406529]) / 65536.0
# On grids that a short significand can hold.
_PROBE_24 = np.array([17, 59, 103, 151, 211, 263, 331, 397]) / 64.0
_PROBE_8 = np.array([1, 2, 4, 5, 7, 8, 10, 12]) / 2.0
_USUAL, _WIDER, _NARROWER = -22, (-14, -7, -4), (-32, -42)
_OUT = 12.0
"""How far out a spacing reaches."""
_WIDEST = -2
_BENDS, GROWS = -16, 8.0
"""Over wider steps rounding is no more, and what kinks near by add to a line is: where it is looked
at, and how much more it has to be.
"""
_WIDE, _LEAST = -9, -12
"""Where noise is looked at that falls as steps grow, and the narrowest step that is taken then."""
TREADS_OF_A_GRID, WIDE_TREADS = _NARROWER[0], -20
"""Over how narrow steps a function stands still that rounds to a grid, and one that only compares
numbers, as the treads of arithmetic in float32 are no wider.
"""
_LATTICES = (
    (-10, _PROBE_8, 11, 1),
    (-15, _PROBE_24, 24, 6),
    (-38, _PROBE, DOUBLE, 16),
    (-99, _PROBE_24, DOUBLE, 6),
)
"""From which spacing on, which points, of how many bits, and how many of them below the spacing."""
FEW, FEW_AND_COARSE = 1.1, 2.0
"""How far a fit through eight values may underrate noise; more where they are few bits long."""
CELLS = 16
"""How many cells of a short significand phi is followed through."""
INSIDE, LEAPS = 0.45, 2
"""How far from its middle a point is still inside a cell; and how many leaps between cells suffice.
Of those of a function that leaps anywhere, one in ten falls between.
"""
RESTLESS = 1 / 16
"""By what share of itself phi may change over the narrow steps of a line, and tell its bits."""
_APART, _CLOSE, _OTHER, _MOST, _BENT = -18, -38, 1 / 16, 0.75, 1 / 4
"""How far apart slopes are looked at, over which steps, by what share they are others, how many
have to be alike, and how far those between may be from one another.
"""
SINGLE = 0.3 * 2.0**-24
"""The least noise of a part that is rounded to float32, by how steep that is: 0.7 to 6 of these
2^-24 were measured, of numbers that cancel 0.07 to 0.2.
"""
FEW_COORDINATES = 256
"""Up to so many are swept, and it is worth to tell kinks far off from noise."""
TREADS = 64
"""Of so many coordinates some are on the edge of a tread."""
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
    inside: Callable[[], int] = lambda: DOUBLE,
    still: Callable[[], int | None] = lambda: None,
    coarse: float = np.inf,
) -> Noise:
    """The noise of phi, from its values on a line through ``point``.

    Eight evaluations; more where phi stands still on that scale (it is quantised: low precision
    inside) or bends. ``unit`` is what a scalar output was multiplied by: divided by it, phi is what
    the function returned, to a few units of rounding. ``told`` is the shortest significand that the
    framework knows of on the way to phi, ``inside()`` that of all it computes. ``still()`` is the
    exponent of two of steps over which phi does not move, if it is a staircase; None where it is
    none. Noise above ``coarse`` is that of arithmetic in float32, wherever it is.
    """
    is_raised = coarse < np.inf and point.size <= FEW_COORDINATES
    lines, least = _Lines(along, value, point, scale, rng, is_raised), _of_rounding(value)
    first = lines.draw()
    sigma, values = _agreed(lines, first, coarse)
    fine, at_zeros = np.inf, None
    if sigma > LOUD * least:
        # Loud as it is, and computed in less: that is what it comes of.
        told = inside() if told == DOUBLE else told
        sigma, at_zeros = _apart_from_zeros(lines, sigma)
    bits = told
    # What is left of larger numbers that cancel is a few quanta, whatever they were computed in.
    is_rest = np.ptp(values[0]) > RESTLESS * abs(value)
    if told == DOUBLE and unit is not None and not is_rest:
        bits = _bits_of(np.append(np.concatenate(values), value) / unit)
    if bits == DOUBLE and sigma > LOUD * least and (exponent := still()) is not None:
        # Treads of what is rounded at the end are no wider than the noise of float32.
        exponent = exponent if coarse == np.inf else max(exponent, WIDE_TREADS)
        sigma = least if lines.draw().stands_still(exponent) else sigma
    bits = _bits_inside(along, value, point, bits, sigma)
    if bits == DOUBLE and sigma > LOUD * least:
        bits, sigma, fine = _by_spacing(lines, first, sigma, coarse)
    if told < DOUBLE:
        # What is left of larger numbers inside is quantised like them.
        steps = np.diff(np.unique(np.append(np.concatenate(values), value)))
        sigma = max(sigma, float(np.nan_to_num(np.min(steps, initial=np.inf), posinf=0.0)) / 2)
    underrated = FEW if bits > BITS["float16"] else FEW_AND_COARSE
    sigma = max(underrated * sigma, 2.0 ** (DOUBLE - bits) * least)
    return Noise(sigma, bits, fine, at_zeros=at_zeros)


def _agreed(lines: "_Lines", first: "_Line", coarse: float) -> tuple[float, list[Vector]]:
    """The noise that two lines agree on, and what was seen on them: a kink on one looks like noise,
    and on a staircase one may lie on a tread.
    """
    sigma, least = first.noise(), _of_rounding(lines.value)
    is_loud = sigma > LOUD * least
    if not is_loud and (coarse == np.inf or lines.point.size > TREADS):
        return sigma, first.seen
    second = lines.draw()
    found = [sigma, second.noise()]
    if (found[1] > LOUD * least) != is_loud:
        found.append(lines.draw().noise())
    return sorted(found)[len(found) - 2], first.seen + second.seen


def _apart_from_zeros(lines: "_Lines", sigma: float) -> tuple[float, Noise | None]:
    """The noise without coordinates that are 0, and theirs, where they make the most of it and it
    falls as steps grow.
    """
    zero = lines.point == 0
    if not zero.any() or zero.all():
        return sigma, None
    quiet = lines.draw(~zero).noise()
    own = lines.draw(zero).divided(sigma) if quiet < sigma / 16 else None
    return (sigma, None) if own is None else (quiet, own)


def _by_spacing(
    lines: "_Lines", first: "_Line", sigma: float, coarse: float
) -> tuple[int, float, float]:
    """The significand of what looks like noise, its size, and that over narrow steps where it is
    less.

    Noise is the same at any spacing. What falls with it may be the function itself, oscillating
    faster than the points of the line, or not smooth in one of its coordinates.
    """
    size, narrow = lines.point.size, [lines.draw().noise_at(spacing) for spacing in _NARROWER]
    is_finer = min(narrow) < sigma / 16
    if sigma > coarse and not (is_finer and lines.draw().noise_at(_BENDS) > GROWS * sigma):
        return BITS["float32"], sigma, np.inf
    if not is_finer:
        return DOUBLE, sigma, np.inf
    # Along one direction what is rounded may slope as the rest does.
    others = replace(lines, rng=lines.rng.spawn(1)[0])
    climbs = (line.climbs_in_steps(sigma) for line in (first, others.draw(), others.draw()))
    if (slope := next(filter(None, climbs), 0.0)) > 0:
        # Steps as high as float32 makes them, or that do not show on the wider of the two.
        is_single = sigma > SINGLE * slope or narrow[0] < sigma / 16
        return BITS["float32"] if is_single else DOUBLE, sigma, np.inf
    if size > 1:
        # Few coordinates at once meet few kinks, and leave out the one that is not smooth.
        place = lines.rng.permutation(size)
        some = (place < size // 2, place >= size // 2, place < size // 16)
        sigma = min(sigma, *(lines.draw(mask).noise() for mask in some if mask.any()))
    return DOUBLE, sigma, max(min(narrow), _of_rounding(lines.value))


def _bits_inside(along: Along, value: float, point: Vector, bits: int, sigma: float) -> int:
    """The significand of a function of so many ``bits``, which may be noisier than they explain."""

    def is_loud(bits: int) -> bool:
        return sigma > LOUD * _of_rounding(value, bits)

    if bits == DOUBLE and is_loud(bits):
        bits = _bits_of_the_argument(along, value, point)
    is_cut = bits == BITS["float32"] and is_loud(bits) and _multiplies_in_tf32(along, value, point)
    return Operands.TF32 if is_cut else bits


def _of_rounding(size: float, bits: int = DOUBLE) -> float:
    """The noise of a number that is rounded to so many bits."""
    return float(Noise(0.0, bits).of(np.array(size)))


@dataclass(slots=True)
class _Lines:
    """Lines through the point, in random directions."""

    along: Along
    value: float
    point: Vector
    scale: Vector
    rng: np.random.Generator
    is_raised: bool = False
    """Whether there are few coordinates, and phi may compute in float32 although it was raised."""

    def draw(self, mask: Any = 1.0) -> "_Line":
        """Another line, along which only the coordinates of a mask move."""
        size = self.point.size
        signs = self.rng.choice([-1.0, 1.0], size) * self.rng.uniform(0.5, 1.0, size)
        direction = self.scale * mask * signs
        return _Line(self.along, self.value, self.point, direction, self.is_raised)


@dataclass(slots=True)
class _Line:
    """phi on a line through the point, and every value that was ``seen`` there."""

    along: Along
    value: float
    point: Vector
    direction: Vector
    is_raised: bool = False
    seen: list[Vector] = field(default_factory=list)

    def stands_still(self, exponent: int) -> bool:
        """Whether phi does over narrow steps."""
        return _stands_still(self._scan(exponent)[1])

    def climbs_in_steps(self, sigma: float) -> float:
        """How steep a part of phi is that is rounded: phi slopes alike wherever it is looked at
        closely, and alike between these places, but otherwise, by enough to look like noise of
        ``sigma``. 0 where it does not; what oscillates slopes differently everywhere.
        """
        places, step = _PROBE * 2.0**_APART, 2.0**_CLOSE
        exact = snapped(self.point, self.direction, _APART + 3, _CLOSE, DOUBLE)
        here, ahead = np.split(self.along(exact, np.append(places, places + step)), 2)
        close, between = (ahead - here) / step, np.diff(here) / np.diff(places)
        usual, over_all = np.median(close), np.median(between)
        size = max(abs(usual), abs(over_all))
        alike = np.mean(np.abs(close - usual) <= _OTHER * size) >= _MOST
        blur = NOISE_SIGMAS * np.sqrt(2) * sigma / np.diff(places)
        is_straight = bool((np.abs(between - over_all) <= _BENT * size + blur).all())
        least = max(_OTHER * size, sigma / (_PROBE[-1] * 2.0**_USUAL))
        rise = float(abs(over_all - usual))
        return rise if alike and is_straight and rise > least else 0.0

    def noise(self) -> float:
        """The noise at the usual spacing, or at the first that tells it from plateaus and bends."""
        probe, values = self._scan(_USUAL)
        if _stands_still(values):
            for exponent in _WIDER:
                wider, found = self._scan(exponent)
                if not np.isfinite(found).all():
                    break
                probe, values = wider, found
                if not _stands_still(values):
                    return self._unless_smooth(self._left_over(probe, values), exponent)
            else:
                # Only to see which numbers phi can take: so far out it may bend or jump.
                self._scan(_WIDEST)
        else:
            for exponent in _NARROWER:
                if np.isfinite(values).all() and not _falling(
                    _residuals(probe, values / self._unit)
                ):
                    break
                narrower, found = self._scan(exponent)
                if _stands_still(found):
                    break
                probe, values = narrower, found
        return self._left_over(probe, values) if np.isfinite(values).all() else 0.0

    def _unless_smooth(self, sigma: float, exponent: int) -> float:
        """The noise ``sigma`` at a wide spacing of what stands still at the point, unless it is as
        smooth out there as anything: it is a kink that lies between, as of a clip.
        """
        if not self.is_raised or sigma <= LOUD * _of_rounding(self.value):
            return sigma
        exact = snapped(self.point, self.direction, exponent + 4, _USUAL - 16, DOUBLE)
        values = self.along(exact, _OUT * 2.0**exponent + _PROBE * 2.0**_USUAL)
        if _stands_still(values) or not np.isfinite(values).all():
            return sigma
        return min(sigma, self._left_over(_PROBE, values))

    def divided(self, narrow: float) -> Noise | None:
        """The noise over wide steps of what is as noisy as ``narrow`` over the usual ones; None
        where it does not fall as steps grow. What divides by its argument, or by a power of it,
        does: (1 - cos(x)) / x^2.
        """
        wide = max(self.noise_at(_WIDE), _of_rounding(self.value))
        if not wide < narrow / 16:
            return None
        power = float(np.log2(narrow / wide)) / (_WIDE - _USUAL)
        return Noise(wide * 2.0 ** (power * (_WIDE - _LEAST)), least=2.0**_LEAST, power=power)

    def noise_at(self, exponent: int) -> float:
        """The noise at one spacing; infinite where it cannot be told."""
        probe, values = self._scan(exponent)
        if _stands_still(values) or not np.isfinite(values).all():
            return np.inf
        return self._left_over(probe, values)

    def _scan(self, exponent: int) -> tuple[Vector, Vector]:
        _, probe, bits, spare = next(row for row in _LATTICES if exponent >= row[0])
        # The argument's own rounding is no noise of phi: every point has to be exact.
        exact = snapped(self.point, self.direction, exponent + 3, exponent - spare, bits)
        values = self.along(exact, probe * 2.0**exponent)
        if not np.isfinite(values).all():
            values = self.along(exact, -probe * 2.0**exponent)
        self.seen.append(values)
        return probe, values

    @property
    def _unit(self) -> float:
        return abs(self.value) or 1.0

    def _left_over(self, probe: Vector, values: Vector) -> float:
        left = _residuals(probe, values / self._unit)
        return self._unit * (left[4] if _falling(left) else max(left[3], left[4]))


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


def _falling(left: dict[int, float]) -> bool:
    """Whether higher degrees keep explaining more: curvature, not noise."""
    return left[3] < 0.3 * left[2] and left[4] < 0.3 * left[3]


def _bits_of(values: Vector) -> int:
    """The shortest significand that holds all these values; 53 where they tell nothing.

    Dividing phi by a cotangent leaves two units of rounding, and a longer significand comes that
    near to a shorter one by chance once in 10^8 values.
    """
    values = np.unique(values[np.isfinite(values) & (values != 0)])
    if len(values) < 3:
        return DOUBLE
    significands, exponents = np.frexp(values)
    for bits in BITS.values():
        grid = np.ldexp(significands, bits)
        fits = (np.abs(grid - np.round(grid)) <= np.ldexp(4.0, bits - DOUBLE)).all()
        # Values that differ by their last bits alone are one value.
        if fits and len(np.unique(np.ldexp(np.round(grid), exponents))) >= 3:
            return bits
    return DOUBLE


def _bits_of_the_argument(along: Along, value: float, point: Vector) -> int:
    """The significand that the argument is rounded to on entering the function; 53 if to none."""
    for bits in BITS.values():
        if _is_rounded(along, value, point, bits, to_bits(point, bits)):
            return bits
    return DOUBLE


def _multiplies_in_tf32(along: Along, value: float, point: Vector) -> bool:
    """Whether the argument is rounded to the operands of such products, or cut to them."""
    bits = Operands.TF32
    significands, exponents = np.frexp(point)
    digits = np.trunc(np.ldexp(significands, bits))
    middle = np.ldexp(digits + np.copysign(0.5, digits) * (digits != 0), exponents - bits)
    nearest = to_bits(point, bits)
    return any(_is_rounded(along, value, point, bits, start) for start in (nearest, middle))


def _is_rounded(along: Along, value: float, point: Vector, bits: int, start: Vector) -> bool:
    """Whether phi is the same to the bit wherever the argument lies in the cells of so many bits
    around ``start``, which is near it, and leaps from cell to cell. Where something larger absorbs
    small moves it leaps as well, but anywhere.
    """
    significands, exponents = np.frexp(point)
    # Each number to the far side of its binade, where all cells are of one size.
    inwards = np.where(np.abs(significands) > 0.75, -1.0, 1.0) * np.sign(point)
    # What lies between two cells may belong to either, and stays where it is.
    is_tie = np.abs(np.ldexp(significands, bits)) % 1 == 0.5
    cell = np.where(is_tie, 0.0, inwards * np.ldexp(1.0, exponents - bits))
    origin = np.where(is_tie, 0.0, start - point)

    def at(place: float) -> float:
        return float(along(origin + place * cell, np.ones(1))[0])

    leaps, last = 0, value
    for number in range(CELLS + 1):
        # Below a power of two, as there are among numbers of few bits, cells are half as wide.
        below = INSIDE if number else INSIDE / 2
        inner, outer = at(number - below), at(number + INSIDE)
        if inner != outer or (number == 0 and inner != value):
            return False
        leaps, last = leaps + (inner != last), inner
        if leaps == LEAPS:
            break
    return leaps > 0
