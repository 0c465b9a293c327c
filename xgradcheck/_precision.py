"""What an error looks like that low precision leaves."""

import numpy as np

from xgradcheck._differences import norm, rms
from xgradcheck._layout import BITS, DOUBLE, Vector

FORMATS = {
    "float32": (BITS["float32"], 2.0**-28, 2.0**-19),
    "TF32 or float16": (BITS["float16"], 2.0**-15, 2.0**-11),
    "bfloat16": (BITS["bfloat16"], 2.0**-11, 2.0**-6),
}
"""The significant bits, and how large an error of a gradient is beside it, at least and at most,
where operands are rounded to them, or sums are taken in them.
"""
SPREAD, PEAK, COHERENT, LARGEST, LEAST = 0.8, 2.0**6, 0.9, 4.0, 4
"""The share of elements that such an error touches, at least; how many times the usual one the
largest is, at most; how much of it may be one factor; how many times the most of a format an
element may be off by; and how many elements tell something.
"""
MIXED, ENOUGH, STEADY = 0.3, 12, 0.5
"""In float64, where nothing is short as a rule: how often the sign of a random error changes from
one element to the next larger, and from one argument to the next, where there are enough of them;
and how large its mean may be beside it.
"""


NEXT = 0.53
"""Of the unit of its last digit, by how much a rounded number may be off."""


def looks_like(
    found: Vector,
    truth: Vector,
    bits: int,
    bar: Vector | float = 0.0,
    point: Vector | None = None,
) -> str:
    """The format, shorter than ``bits``, whose rounding an error looks like: of that size, in most
    elements, and no common factor; nor does it go with the ``point``. Empty where it looks like
    none. What ``bar`` explains is none.

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.normal(size=1000)
    >>> looks_like(truth * (1 + rng.uniform(-1, 1, 1000) / 256), truth, 24)
    'bfloat16'
    >>> looks_like(truth * 1.002, truth, 24)
    ''
    """
    unit = float(np.max(np.abs(truth), initial=0.0))
    if truth.size < LEAST or not unit or not np.isfinite(found / unit).all():
        return ""
    # In units of the largest: their squares have to be numbers, too.
    truth, error = truth / unit, (found - truth) / unit
    if not (lost := norm(error)):
        return ""
    size = norm(truth)
    relative, share = lost / size, np.abs(error) / (np.abs(truth) + rms(truth))
    along = abs(float(error @ truth)) / (lost * size)
    known = np.abs(error) > bar / unit
    touched = float(np.mean(known & (share > 2.0 ** (2 - bits))))
    if along > COHERENT or touched < SPREAD or np.max(share) > PEAK * np.median(share):
        return ""
    if bits == DOUBLE and not _is_random(truth, error, point):
        return ""
    for name, (short, least, most) in FORMATS.items():
        if short < bits and least <= relative < most and np.max(share) <= LARGEST * most:
            return name
    return ""


def _is_random(truth: Vector, error: Vector, point: Vector | None) -> bool:
    """Whether errors are spread as those of rounding are: those of a formula go with its values, or
    with what it is given.
    """
    if abs(np.mean(error)) >= STEADY * rms(error):
        return False
    if _changes(error[np.argsort(truth)]) <= MIXED:
        return False
    if point is None or point.size < ENOUGH:
        return True
    # A cotangent may have any sign.
    return _changes((error * np.sign(truth))[np.argsort(point)]) > MIXED


def _changes(errors: Vector) -> float:
    """How often the sign changes from one to the next."""
    signs = np.sign(errors)
    return float(np.mean(signs[1:] != signs[:-1]))


def went_through(found: Vector, truth: Vector, bits: int) -> str:
    """The format, shorter than ``bits``, that a wrong gradient has been stored in: an error of that
    size, no number with more digits, and each the one that is next to the truth. Numbers counted in
    one unit, as what a saturated unit leaves, and differences of larger ones have few digits as
    well, and are no such gradient.

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.normal(size=1000)
    >>> went_through(np.round(truth * 2.0**20) / 2.0**20, truth, 24)
    ''
    >>> short = np.ldexp(np.round(np.frexp(truth)[0] * 2**8), np.frexp(truth)[1] - 8)
    >>> went_through(short, truth, 24)
    'bfloat16'
    """
    name = looks_like(found, truth, bits)
    if not name or name not in FORMATS:
        return ""
    short = FORMATS[name][0]
    significands, exponents = np.frexp(found[found != 0])
    digits, own = np.ldexp(significands, short), np.ldexp(1.0, exponents - short)
    apart = np.abs(found - truth)[found != 0]
    if not ((digits == np.round(digits)) & (apart <= NEXT * own)).all():
        return ""
    whole = digits.astype(np.int64)
    lowest = np.frexp(np.abs(whole & -whole).astype(float))[1] - 1 + exponents - short
    # The largest in units of the least digit of all has more digits than the format.
    return name if np.max(exponents) - np.min(lowest) > short + 1 else ""


def said_of(name: str) -> str:
    """What to say of an error that looks like this format."""
    return f"an error of that size in nearly every element is consistent with rounding to {name}"
