"""The derivative along a direction: its bar covers its error, at few evaluations, on functions of
every kind and in arithmetics of few bits.
"""

from collections.abc import Callable

import numpy as np
import pytest
from families import BITS, FAMILIES, Family, Vector, scales

from xgradcheck._derivative import Derivative, derivative
from xgradcheck._differences import UNIT, Noise
from xgradcheck._noise import measure_noise

DRAWS, DIRECTIONS = 6, 3


def line(value: Callable[[Vector], float], point: Vector) -> Callable[[Vector, Vector], Vector]:
    def along(direction: Vector, steps: Vector) -> Vector:
        with np.errstate(all="ignore"):
            return np.array([value(point + step * direction) for step in steps])

    return along


def measured(family: Family, draws: range) -> list[tuple[float, Derivative]]:
    """(true error, derivative) along random directions."""
    found = []
    for draw in draws:
        rng = np.random.default_rng([draw, FAMILIES.index(family)])
        problem = family.draw(rng)
        along, scale = line(problem.value, problem.point), scales(problem.point)
        value = problem.value(problem.point)
        noise = measure_noise(along, value, problem.point, scale, rng, 1.0)
        assert noise.bits == BITS[family.precision]
        for _ in range(DIRECTIONS):
            direction = scale * rng.normal(size=scale.size)
            best = derivative(along, problem.point, direction, value, noise)
            exact = problem.slope(best.direction)
            found.append((abs(float(np.longdouble(best.value) - exact)), best))
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_bar_covers_the_error(family: Family) -> None:
    found = measured(family, range(DRAWS))
    missed = [(error, best.bar) for error, best in found if not error <= best.bar]
    assert not missed, missed
    # Steps beyond the edge of a domain tell nothing and do not count: hence more at the edge.
    assert np.mean([best.evaluations for _, best in found]) <= 17


@pytest.mark.slow
def test_the_bars_cover_ten_thousand_errors_and_are_not_much_wider() -> None:
    ratios, evaluations = [], []
    for family in FAMILIES:
        found = measured(family, range(1000, 1082))
        missed = sum(not error <= best.bar for error, best in found)
        assert missed <= (0.005 if family.precision == "bfloat16" else 0.001) * len(found), family
        ratios += [best.bar / error for error, best in found if error > 0]
        evaluations += [best.evaluations for _, best in found]
    assert len(evaluations) > 10_000
    assert np.median(ratios) <= 20
    assert np.mean(evaluations) <= 12


def test_the_bar_stops_shrinking_where_the_judgement_is_content() -> None:
    along = line(lambda x: float(np.sin(x).sum()), np.ones(3))
    value, noise = 3 * np.sin(1.0), Noise(UNIT)
    exact = derivative(along, np.ones(3), np.ones(3), value, noise)
    early = derivative(along, np.ones(3), np.ones(3), value, noise, target=1e-6)
    assert early.evaluations < exact.evaluations
    assert exact.bar < early.bar <= 1e-6
    assert abs(early.value - 3 * np.cos(1.0)) <= early.bar


@pytest.mark.parametrize("frequency", np.geomspace(10, 1e5, 60))
def test_no_ladder_is_aliased_by_a_fast_oscillation(frequency: float) -> None:
    """Steps that all divide the period agree on a slope that the function does not have."""
    rng = np.random.default_rng(int(frequency))
    for _ in range(10):
        point = rng.normal(size=1)
        along = line(lambda x: float(np.sin(frequency * x[0])), point)
        value = float(np.sin(frequency * point[0]))
        noise = measure_noise(along, value, point, np.abs(point), rng, 1.0)
        best = derivative(along, point, np.abs(point), value, noise)
        exact = frequency * np.cos(np.longdouble(frequency) * np.longdouble(point[0]))
        # The argument's own rounding, which is the function's affair: 1e5 x is good to 1e-11.
        rounding = frequency * np.spacing(frequency * abs(point[0]))
        error = abs(best.value - float(exact * best.direction[0]))
        # A bar may miss one in a thousand by a little; an aliased slope is off by many bars.
        assert error <= 2 * best.bar + rounding * abs(best.direction[0]), (point, error, best)


def test_powers_of_two_alone_are_aliased() -> None:
    """What the test above is there for: w h is a multiple of 2 pi at every level."""
    frequency = 2 * np.pi * 2.0**20
    slopes = [
        (np.sin(frequency * h) - np.sin(-frequency * h)) / (2 * h) for h in (2.0**-7, 2.0**-9)
    ]
    assert abs(slopes[0] - slopes[1]) < 1e-6 * frequency
    assert abs(slopes[0]) < 1e-3 * frequency


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11)])
@pytest.mark.parametrize("entrance", [True, False])
def test_a_cast_inside_is_recognised(dtype: str, bits: int, entrance: bool) -> None:
    """At the entrance of the function, or at its exit, behind arithmetic in float64."""

    def value(x: Vector) -> float:
        if entrance:
            return float(np.sum(np.sin(x.astype(dtype).astype(np.float64)) * np.pi))
        return float(np.sum(np.sin(x)).astype(dtype))

    rng = np.random.default_rng(0)
    for _ in range(20):
        point = rng.normal(size=5)
        along = line(value, point)
        noise = measure_noise(along, value(point), point, np.abs(point), rng, 1.0)
        assert noise.bits == bits


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e12])
def test_noise_of_other_kinds_is_not_taken_for_a_cast(offset: float) -> None:
    rng = np.random.default_rng(1)
    for power in (0, 3, 6):
        point = rng.normal(size=5)
        shift = 10.0**power

        def value(x: Vector, shift: float = shift) -> float:
            return float(((x + shift) ** 2 - shift**2 - 2 * shift * x).sum()) + offset

        along = line(value, point)
        noise = measure_noise(along, value(point), point, np.abs(point), rng, 1.0)
        assert noise.bits == 53


@pytest.mark.parametrize("seed", range(6))
def test_an_offset_is_no_float32(seed: int) -> None:
    """26 bits are left of x."""

    def value(x: Vector) -> float:
        return float(((1e8 + x) - 1e8 + x**2).sum())

    rng = np.random.default_rng(seed)
    point = rng.normal(size=30)
    noise = measure_noise(line(value, point), value(point), point, np.abs(point), rng, 1.0)
    assert noise.bits == 53


def test_the_edge_of_a_domain_is_differenced_on_one_side() -> None:
    def value(x: Vector) -> float:
        return float(np.exp(x[0])) if x[0] >= 1 else float("nan")

    along = line(value, np.ones(1))
    best = derivative(along, np.ones(1), np.ones(1), np.e, Noise(UNIT * 3))
    assert abs(best.value - np.e) <= best.bar < 1e-7
