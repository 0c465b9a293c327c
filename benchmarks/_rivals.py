"""Other ways to the derivative of a function of one number at 0, and the error bars they give.

``phi(t)`` is f(x + t v), where t = 1 is a full relative change.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numdifftools
import numpy as np
from numpy.typing import NDArray
from scipy.differentiate import derivative

Phi = Callable[[float], float]
Vector = NDArray[np.floating]
EPS = float(np.finfo(np.float64).eps)


class Answer(NamedTuple):
    value: float
    """Not finite where the method met values that are not."""
    bar: float | None
    """None where the method gives none, or says that it has none."""
    evaluations: int


class Counted:
    """``phi``, which counts its calls and takes arrays of one number too."""

    def __init__(self, phi: Phi) -> None:
        self.phi = phi
        self.evaluations = 0

    def __call__(self, t: Any) -> float:
        self.evaluations += 1
        return float(self.phi(float(t)))

    def answer(self, value: Any, bar: Any = math.nan) -> Answer:
        bar = float(bar)
        return Answer(float(value), None if math.isnan(bar) else bar, self.evaluations)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _central(phi: Phi, eps: float) -> Answer:
    counted = Counted(phi)
    with _quiet():
        return counted.answer((counted(eps) - counted(-eps)) / (2 * eps))


def central_1e_7(phi: Phi) -> Answer:
    return _central(phi, 1e-7)


def central_1e_6(phi: Phi) -> Answer:
    return _central(phi, 1e-6)


def scipy_derivative(phi: Phi) -> Answer:
    counted = Counted(phi)
    with _quiet():
        found = derivative(np.vectorize(counted, otypes=[float]), 0.0)
        return counted.answer(found.df, found.error)


def numdifftools_derivative(phi: Phi) -> Answer:
    counted = Counted(phi)
    with _quiet():
        found = numdifftools.Derivative(counted, full_output=True)(0.0)
        return counted.answer(found.estimate, found.error_estimate)


FIVE, SLOPE = np.arange(-2.0, 3.0), np.array([1.0, -8, 0, 8, -1]) / 12
SEVEN = np.arange(-3.0, 4.0)
FIFTH_BEFORE = np.array([-3.0, 16, -35, 40, -25, 8, -1]) / 2
FIFTH_THERE = np.array([-1.0, 4, -5, 0, 5, -4, 1]) / 2
FIFTH = np.stack([FIFTH_BEFORE, FIFTH_THERE, -FIFTH_BEFORE[::-1]])
"""Weights for the fifth derivative one step before 0, there, and one step after."""


def _step(weights: Vector, grid: Vector, order: int, next_size: float, noise: float) -> Vector:
    """The step with the least bound on the error, and the bound.

    error: noise * sum|w| / h^order + |next derivative| * sum|w grid^p| / p! * h^(p - order)
    """
    p = len(grid)
    rounding = noise * np.abs(weights).sum()
    truncation = next_size * np.abs(weights * grid**p).sum() / math.factorial(p)
    h = (order / (p - order) * rounding / truncation) ** (1 / p)
    return np.array([h, rounding / h**order + truncation * h ** (p - order)])


def five_points(phi: Phi) -> Answer:
    """A five-point stencil at the step that the fifth derivative and the rounding suggest.

    As ``central_fdm(5, 1)`` of FiniteDifferences.jl, which supposes a condition number of 10 where
    it knows no derivative yet, and goes no further than 1000 times the step which that gives.
    """
    counted = Counted(phi)
    with _quiet():
        first, _ = _step(FIFTH_THERE, SEVEN, 5, 10.0, EPS)
        values = np.array([counted(t) for t in first * SEVEN])
        fifth, size = np.abs(FIFTH @ values / first**5).max(), np.abs(values).max()
        usual = _step(SLOPE, FIVE, 1, 10.0, EPS)
        known = fifth != 0 and size != 0
        h, bar = _step(SLOPE, FIVE, 1, fifth, np.spacing(size)) if known else usual
        if h > 1000 * usual[0]:
            h, bar = 1000 * usual[0], math.nan
        values = np.array([counted(t) for t in h * FIVE])
        return counted.answer(SLOPE @ values / h, bar)


RIVALS: dict[str, Callable[[Phi], Answer]] = {
    "central, eps = 1e-7": central_1e_7,
    "central, eps = 1e-6": central_1e_6,
    "scipy.differentiate": scipy_derivative,
    "numdifftools": numdifftools_derivative,
    "five points, adapted": five_points,
}
