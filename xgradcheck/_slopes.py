"""Slopes of a leaf along random directions, each with its own bar: what is left where a function is
too noisy for a certificate.
"""

from dataclasses import dataclass

import numpy as np

from xgradcheck._certificate import DEVIATION, factor
from xgradcheck._derivative import derivative
from xgradcheck._differences import Noise, norm, rms
from xgradcheck._directions import drawn, influence_of, unit_of
from xgradcheck._judge import Tolerance, exceeds
from xgradcheck._layout import DOUBLE, Leaf, Vector
from xgradcheck._phi import Phi

FIRST, ALL = 3, 8
"""How many directions are taken, and how many where those leave it open."""
ABOVE, BELOW = 1.5, 0.5
"""How many times what bars alone would leave open an error may seem to be for a leaf to pass; and
from which share of that on it fails, unless it is less than is allowed.
"""
BEYOND = 2.0
"""How many times their bars residuals of a function below float64 are where it is wrong. Of 516
leaves that are right, in float16 and bfloat16, the largest share was 0.94.
"""
LIKELY = 1.6
"""How many times its usual size, at most, the rms of eight residuals is."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A leaf that is wrong along one direction, at the point or away from it."""

    analytic: float
    truth: float
    bar: float


@dataclass(frozen=True, slots=True)
class Slope:
    """What a gradient and differences give along one direction of a leaf."""

    residual: float
    bar: float
    mistake: Mistake | None
    """Where they differ by more than is allowed, beyond doubt."""


def slope_along(
    phi: Phi,
    leaf: Leaf,
    gradient: Vector,
    lost: Vector,
    direction: Vector,
    value: float,
    noise: Noise,
    allowance: Tolerance,
) -> Slope:
    """The slope along one direction of a leaf, with all care."""
    found = derivative(
        lambda direction, steps: phi.along(direction, steps, leaf.start),
        phi.problem.point[leaf.part],
        direction,
        value,
        noise,
        target=0.1 * allowance.rtol * norm(gradient * direction),
    )
    terms = gradient * found.direction
    residual = float(terms.sum()) - found.value
    if found.value == found.bar == 0:
        # phi does not move at all there: nothing tells what is much and what is little.
        return Slope(residual, 0.0 if residual == 0 else np.inf, None)
    # Terms that cancel in the sum carry their own rounding: what is allowed goes by their size.
    size = max(norm(terms), abs(found.value))
    allowed = allowance.rtol * size + allowance.atol * norm(found.direction)
    allowed += norm(lost * found.direction)
    error, bar = np.array([residual]), np.array([found.bar])
    mistake = None
    if found.settled and exceeds(np.abs(error), bar, np.array([allowed])).all():
        mistake = Mistake(float(terms.sum()), found.value, found.bar)
    return Slope(residual, found.bar if found.settled else np.inf, mistake)


@dataclass(frozen=True, slots=True)
class Account:
    """What directions tell about one leaf, relative to the norm of its gradient."""

    floor: float
    """Errors of this size would have been seen."""
    distance: float
    is_right: bool
    mistake: Mistake | None


def account_of(
    phi: Phi,
    leaf: Leaf,
    gradient: Vector,
    lost: Vector,
    value: float,
    noise: Noise,
    allowance: Tolerance,
    seed: int,
    faint: float,
) -> Account:
    """The gradient of a leaf beside slopes along a few directions; right only to a floor that is no
    more than ``faint``.
    """
    unit, slopes = unit_of(phi.problem.point[leaf.part]), list[Slope]()
    size = influence_of(gradient, unit)
    for count in (FIRST, ALL):
        for turn in range(len(slopes), count):
            direction = drawn(leaf, unit, seed, turn).astype(float)
            slopes.append(
                slope_along(phi, leaf, gradient, lost, direction, value, noise, allowance)
            )
        residuals = np.abs([slope.residual for slope in slopes])
        bars = np.array([slope.bar for slope in slopes])
        known = factor(count, looks=2) / DEVIATION
        floor = ABOVE * known * rms(np.fmax(bars, 1e-3 * residuals))
        largest = known * rms(residuals + bars)
        size = size or float(np.max(residuals))
        if largest <= max(floor, allowance.distance * size):
            bound = max(floor, largest)
            if count == ALL and noise.bits < DOUBLE:
                # Rounding knows nothing of a direction: it hides no mistake along all of them.
                bound = known * rms(residuals)
            if bound <= faint * size:
                distance = rms(residuals) / DEVIATION / (2 * size) if size else 0.0
                return Account(bound / size if size else 0.0, distance, True, None)
    least = rms(np.fmax(residuals - bars, 0.0)) / DEVIATION / LIKELY
    mistakes = [slope.mistake for slope in slopes if slope.mistake is not None]
    is_wrong = len(mistakes) > 1 and least > max(BELOW * floor, allowance.distance * size)
    if noise.bits < DOUBLE:
        is_wrong |= len(mistakes) > 1 and rms(residuals) > BEYOND * rms(bars)
    distance = min(rms(residuals) / DEVIATION / (2 * size), 1.0)
    return Account(floor / size, distance, False, mistakes[0] if is_wrong else None)
