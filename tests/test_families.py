"""The gradients of ``families`` are those that mpmath finds, in 80 digits, by its own means."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from families import ARITHMETICS, BITS, FAMILIES, Arithmetic, Family, Long, Problem, Vector

DRAWS = 3
ALLOWED = 1e-15
"""Of the sum of the terms of the slope. A frequency of 1e4 costs four of 19 digits."""
NEAR = {"float64": 1e-4, "float32": 1e-5, "bfloat16": 0.1}


def _elementwise(name: str) -> Callable[[Any], Any]:
    return np.frompyfunc(getattr(mpmath, name), 1, 1)


EXACT = Arithmetic(
    _elementwise("mpf"),
    **{name: _elementwise(name) for name in ("exp", "log", "log1p", "sin", "cos", "tanh", "sqrt")},
)


def _exactly(number: Long) -> mpmath.mpf:
    high = float(number)
    return mpmath.mpf(high) + mpmath.mpf(float(number - high))


def _drawn(family: Family, seed: int) -> tuple[Problem, Vector]:
    """A problem, and a direction in proportion to its point."""
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    problem = family.draw(rng)
    return problem, rng.normal(size=problem.point.size) * np.where(
        problem.point == 0, 1.0, problem.point
    )


def _distance(problem: Problem, direction: Vector, slope: Callable[[Vector], Long]) -> float:
    """How far ``slope`` is from mpmath's derivative, in parts of all its terms together."""
    with mpmath.workdps(40):
        x, v = EXACT.cast(problem.point), EXACT.cast(direction)
        truth = mpmath.diff(lambda t: problem.body(x + t * v, EXACT), 0)
        terms = sum(abs(_exactly(problem.slope(term))) for term in np.diag(direction))
        return float(abs(_exactly(slope(direction)) - truth) / terms)


def _planted(problem: Problem, direction: Vector) -> Callable[[Vector], Long]:
    """The slope with one element of the gradient, the one that counts most, off by 1e-10."""
    terms = np.diag(direction)
    worst = max(range(len(terms)), key=lambda place: abs(problem.slope(terms[place])))
    return lambda v: problem.slope(v) + Long(1e-10) * problem.slope(np.diag(v)[worst])


families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@families
def test_the_gradient_is_the_derivative_that_mpmath_finds(family: Family) -> None:
    for seed in range(DRAWS):
        problem, direction = _drawn(family, seed)
        assert _distance(problem, direction, problem.slope) < ALLOWED, seed


@families
def test_a_gradient_off_by_1e_10_in_one_element_is_not(family: Family) -> None:
    for seed in range(DRAWS):
        problem, direction = _drawn(family, seed)
        assert _distance(problem, direction, _planted(problem, direction)) > ALLOWED, seed


@families
def test_the_value_is_that_of_the_exact_function_up_to_rounding(family: Family) -> None:
    for seed in range(DRAWS):
        problem, _ = _drawn(family, seed)
        with mpmath.workdps(40):
            exact = problem.body(EXACT.cast(problem.point), EXACT)
            off = float(abs(problem.value(problem.point) - exact) / abs(exact))
        assert off < NEAR[family.precision], seed


@families
def test_the_same_seed_draws_the_same_problem(family: Family) -> None:
    (first, _), (second, _) = _drawn(family, 0), _drawn(family, 0)
    np.testing.assert_array_equal(first.point, second.point)
    assert first.value(first.point) == second.value(second.point)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.precision != "float64"], ids=lambda f: f.name
)
def test_a_low_precision_rounds_its_argument_and_not_its_point(family: Family) -> None:
    problem, _ = _drawn(family, 0)
    m = ARITHMETICS[family.precision]
    np.testing.assert_array_equal(m.q(m.cast(problem.point)).astype(float), problem.point)
    unit = 2.0 ** -BITS[family.precision]
    assert problem.value(problem.point * (1 + unit / 4)) == problem.value(problem.point)


def test_the_families_are_many_and_their_names_differ() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 24
    assert not any(family.easy and family.precision != "float64" for family in FAMILIES)
