"""What all differences share: how long a step may be, where it lands, and what noise it carries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xgradcheck._layout import DOUBLE, Direction, Layout, Leaf, Vector, bits_of

UNIT = 2.0**-53
NOISE_SIGMAS = 5.0
BAR_SIGMAS = 3.3
"""Standard deviations of noise: in a bar, which then covers 99.9%; and where a million coordinates
must raise no alarm, in what counts as more than noise."""

# Short dyadic factors make the steps of a ladder incommensurate. Powers of two alone are aliased
# as a whole by a function whose period divides the smallest of them: every level then agrees on
# one wrong slope.
FACTORS = (1409 / 1024, 1153 / 1024, 1291 / 1024)
APART, HUGE = 16.0, 1e3
LEFT = 64.0
"""Units of rounding of a complex number that may be left in a part of it that is none."""
OFFSET, FEW_OFF, RESOLVED = 2.0**10, 2.0**5, 12
"""How much larger numbers are than they differ that have an offset, in sum and any two of them, and
in how many bits they differ at least.
"""
EVEN = 2.5


@dataclass(frozen=True, slots=True)
class Noise:
    """The rounding noise of phi: its standard deviation, and the significant bits of the arithmetic
    inside, 53 unless a shorter one was recognised.
    """

    sigma: float
    bits: int = DOUBLE
    fine: float = np.inf
    """The noise over far narrower steps, where it is far less: what looks like noise is then
    either the function itself, oscillating, or rounding that stands still over such steps.
    """
    least: float = 0.0
    """Steps narrower than this tell nothing."""
    power: float = 0.0
    """The power of a step beyond the least by which the noise falls."""
    at_zeros: "Noise | None" = None
    """That of coordinates that are 0, where phi divides by its argument and is noisy near 0; the
    least step is a share of their scale.
    """

    def of(self, value: Vector, steps: Vector | None = None) -> Vector:
        """The standard deviation at a value of phi, some steps away: no less than that of rounding
        the value alone, which is about 0.6 u |f| at worst.
        """
        sigma: Vector | float = self.sigma
        if steps is not None and self.power:
            sigma = sigma * (self.least / np.fmax(steps, self.least)) ** self.power
        return np.asarray(np.fmax(sigma, 0.6 * 2.0**-self.bits * np.abs(value)))


def natural_scale(point: Vector, layout: Layout) -> tuple[Vector, Vector]:
    """How large a full change of each coordinate is, and how large a change of its neighbours.

    A weight that happens to lie near zero still moves on the scale of its leaf, a tenth of the rms.
    One that is smaller by more than ``APART`` may be of another kind, an age beside a salary, and
    counts by its own magnitude, a zero beside ``HUGE`` ones as 1. A leaf of zeros counts as 1, and
    numbers that differ by far less than they are by what they differ: times since 1970. A part of a
    complex number that may be all that rounding left of it is of no other kind than its leaf.
    """
    own, common = np.abs(point), np.empty_like(point)
    # Leaf by leaf: what is needed beside these two would be as large as the model.
    for leaf in layout:
        magnitude = own[leaf.part]
        size = rms(magnitude)
        if (spread := _spread(point[leaf.part], size)) is not None:
            own[leaf.part] = common[leaf.part] = spread
            continue
        usual = np.fmax(magnitude, 0.1 * size if size > 0 else 1.0)
        apart = (magnitude > 0) & (APART * _whole(leaf, magnitude) < usual)
        usual_own = np.where((magnitude == 0) & (usual > HUGE), 1.0, usual)
        own[leaf.part] = np.where(apart, magnitude, usual_own)
        common[leaf.part] = usual
    return own, common


def _whole(leaf: Leaf, magnitude: Vector) -> Vector:
    """How large the numbers of a leaf are; a part of a complex one that may be left by rounding
    counts as the whole of it.
    """
    if not leaf.is_complex or leaf.grid != (2, *leaf.shape):
        return magnitude
    modulus = np.tile(np.hypot(*magnitude.reshape(2, -1)), 2)
    left = magnitude <= LEFT * 2.0 ** -bits_of(leaf.dtype) * modulus
    return np.where(left, modulus, magnitude)


def _spread(values: Vector, size: float) -> float | None:
    """By how much numbers of this rms differ that have an offset; None where they have none."""
    # As a rule two of them tell.
    if values.size < 2 or abs(values[0] - values[-1]) > size / FEW_OFF:
        return None
    spread = rms(values - values.mean())
    return spread if 2.0 ** (RESOLVED - DOUBLE) * size < spread < size / OFFSET else None


def further(influence: float, enough: float, step: float, furthest: float) -> float:
    """How many times further one moves what has so little ``influence`` over its own ``step``, to
    have ``enough``: no further than others are moved, or zeros.
    """
    return max(min(enough / influence, min(furthest, 1.0) / step), 1.0)


def multiples(exponents: Sequence[int]) -> Vector:
    """The steps of a ladder at these exponents of two, as multiples of a scale."""
    return np.asarray(np.resize(FACTORS, len(exponents)) * 2.0 ** np.array(exponents))


def representable(x: Vector, step: Vector, bits: int = DOUBLE) -> Vector:
    """Steps near ``step`` with ``(x + h) - x == h`` and ``x - (x - h) == h``: both points lie
    exactly where we say, in an arithmetic of ``bits`` bits if x itself does.

    x + h is rounded, and that rounding is as large as the error we hunt.
    """
    if bits < DOUBLE:
        _, magnitude = np.frexp(np.abs(x) + step)
        quantum = np.ldexp(1.0, magnitude - bits)
        step = np.fmax(np.round(step / quantum), 1.0) * quantum
    # Away from zero: x + h is the coarser of the two sums, so what it can represent, x - h can.
    step = np.copysign(step, x)
    for _ in range(4):
        step = (x + step) - x
        step = x - (x - step)
    return np.abs(step)


def snapped(point: Vector, direction: Vector, widest: int, narrowest: int, bits: int) -> Vector:
    """The direction rounded so that ``point ± h direction`` is exact in an arithmetic of ``bits``
    bits, for every multiple h of ``2**narrowest`` up to ``2**widest``.
    """
    _, magnitude = np.frexp(np.abs(point) + np.abs(direction) * 2.0**widest)
    quantum = np.ldexp(1.0, np.maximum(magnitude - bits + 1 - narrowest, -1000))
    return np.asarray(np.round(direction / quantum) * quantum)


def even_part(plus: Vector, minus: Vector, value: float) -> Vector:
    """``|f(x + h) + f(x - h) - 2 f(x)|``: what a straight line lacks. Its noise is ``EVEN`` times
    that of phi.
    """
    return np.asarray(np.abs((plus - value) + (minus - value)))


ALONE = 8192
"""So many products are summed at a time: libraries call for other threads beyond about 10,000, and
those get in the way of the framework's own.
"""


def dot(a: Direction, b: Direction) -> float:
    """The inner product of two vectors."""
    if len(a) <= ALONE:
        return float(np.dot(a, b))
    pieces = [slice(start, start + ALONE) for start in range(0, len(a), ALONE)]
    return float(np.sum([np.dot(a[piece], b[piece]) for piece in pieces]))


def norm(vector: Vector) -> float:
    """The Euclidean norm, safe from overflow and underflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = dot(vector, vector)
    if 1e-250 < square < 1e250:
        return math.sqrt(square)
    largest = float(np.max(np.abs(vector), initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(vector / largest))


def rms(vector: Vector) -> float:
    """Root mean square; 0 for an empty vector."""
    return norm(vector) / math.sqrt(vector.size) if vector.size else 0.0
