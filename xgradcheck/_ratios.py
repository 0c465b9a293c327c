"""How many times the error of a plain reference a kernel has, in norm, in the worst element and
along the gradient itself, where a wrong factor shows first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xgradcheck._differences import norm, rms
from xgradcheck._layout import BITS, Vector

COHERENT, WORST = 4.0, 2.0
"""Units of rounding that an error along the gradient, and one of an element, may always have."""
SHARED, SHARED_IN_SINGLE = 0.25, 1.0
"""Units of rounding, a quarter of those allowed, that a factor may be off by which all elements
share: the scale of a norm, say. In float32 a GPU divides and exponentiates to two ulps, which are
four such units.
"""
MIDWAY = 0.75
"""The same of the middle element, where errors are shared by rows and few decide: three roundings.
"""
DRAWN = 2.0
"""What is beside the error of a reference, over the root of how many elements it is of: it is a
sample, too, and three deviations below its mean it is that much too small.
"""
DRIFTS = 2.5
"""How many times what errors of random signs add up to."""
MIDDLE, LARGE, LOOKED_AT = 24, 0.1, 1 << 18
"""How many elements the middle of their relative errors takes, how large they are beside the rms,
and how many are looked at.
"""
LUCK = 4.0
"""Of n numbers the reference may be right by chance: units of rounding over the root of n."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many times the error of the reference a kernel has."""

    norm: float
    worst: float
    bias: float

    def excess(self, factors: Mapping[str, float]) -> str:
        """What is beyond the factors; nothing where all is well."""
        said = {
            "norm": f"its error is {self.norm:.3g} x that of the reference",
            "worst": f"its worst element is off by {self.worst:.3g} x that of the reference",
            "bias": f"its size is off by {self.bias:.3g} x that of the reference",
        }
        for name, text in said.items():
            value = getattr(self, name)
            if not value <= factors[name]:
                return f"{text}, {factors[name]:g} x allowed"
        return ""


@dataclass(frozen=True, slots=True)
class Units:
    """What the error of a kernel is measured in: that of the reference in the same dtype, and no
    less than rounding may always do.
    """

    norm: float
    worst: float
    bias: float
    shift: float
    """That of the middle of the relative errors: few elements that lose much do not move it."""
    scale: Vector
    """How large each element is, among its neighbours."""

    @classmethod
    def of(cls, usual: Vector, truth: Vector, bits: int, whole: Vector | None = None) -> "Units":
        """The error of ``usual``, which was computed in so many ``bits``. ``whole`` is what was
        rounded, where the truth is a part of that.
        """
        whole = truth if whole is None else whole
        unit, size, known = 2.0**-bits, norm(whole), usual - truth
        tiny = float(np.finfo(float).tiny)
        lucky, lost = 1 + LUCK / np.sqrt(truth.size), norm(known)
        seen = max(norm(truth), tiny)
        along = abs(float(known @ truth)) / seen
        count = _count(known)
        scale = np.abs(whole) + rms(whole)
        # What errors of that size add up to along the gradient where their signs are random.
        drift = norm(known * (truth / seen))
        chance = COHERENT * unit * size / np.sqrt(truth.size) + DRIFTS * drift
        middle, spread = _middle(known, truth)
        shared = SHARED_IN_SINGLE if bits == BITS["float32"] else SHARED
        sample = 1 + DRAWN / float(np.sqrt(count))
        return cls(
            norm=max(lost * sample, lucky * unit * size, tiny),
            worst=max(_worst(known, scale) * sample, lucky * WORST * unit),
            bias=max(along / 2, chance, shared * unit * size, tiny),
            shift=max(abs(middle) / 2, spread, max(MIDWAY, shared) * unit * max(size / seen, 1)),
            scale=scale,
        )


def _count(error: Vector) -> float:
    """Of how many elements an error is, as its norm goes."""
    largest = float(np.max(np.abs(error), initial=0.0))
    if not 0 < largest < np.inf:
        return float(error.size)
    squares = (error / largest) ** 2
    return float(squares.sum() ** 2 / (squares @ squares))


def _middle(error: Vector, truth: Vector) -> tuple[float, float]:
    """The median of the relative errors, and its standard deviation; infinite where there are few.

    That of a median of n normal numbers is 1.25 / sqrt(n) of theirs, which is 1.48 times the median
    of their distances from the middle.
    """
    every = max(1, truth.size // LOOKED_AT)
    error, truth = error[::every], truth[::every]
    large = (np.abs(truth) > LARGE * rms(truth)) & np.isfinite(error)
    if np.count_nonzero(large) < MIDDLE:
        return 0.0, np.inf
    relative = error[large] / truth[large]
    middle = float(np.median(relative))
    spread = 1.48 * float(np.median(np.abs(relative - middle)))
    return middle, 1.25 * spread / np.sqrt(relative.size)


def _worst(error: Vector, scale: Vector) -> float:
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.abs(error) / scale, initial=0.0))


def ratios(found: Vector, truth: Vector, units: Units) -> Ratios:
    """The error of ``found`` beside that of the reference in the same dtype."""
    if not np.isfinite(found).all():
        return Ratios(np.inf, np.inf, np.inf)
    error = found - truth
    along = abs(float(error @ truth)) / max(norm(truth), float(np.finfo(float).tiny))
    bias = max(along / units.bias, abs(_middle(error, truth)[0]) / units.shift)
    return Ratios(norm(error) / units.norm, _worst(error, units.scale) / units.worst, bias)
