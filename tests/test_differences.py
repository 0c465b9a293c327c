"""Differences against closed forms: their value, and that their bar covers their error."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgradcheck import Verdict, check
from xgradcheck._differences import UNIT, Noise, natural_scale, norm, representable
from xgradcheck._extrapolation import estimate
from xgradcheck._kinds import Kind, kinds
from xgradcheck._ladder import climb
from xgradcheck._layout import Entry, lay_out
from xgradcheck._noise import measure_noise

finite = st.floats(min_value=-1e100, max_value=1e100, allow_subnormal=False)


@given(x=finite, exponent=st.integers(-24, -2), factor=st.floats(1.0, 2.0))
def test_steps_are_representable(x: float, exponent: int, factor: float) -> None:
    point = np.array([x])
    scale = max(abs(x), 1e-100)
    step = representable(point, np.array([factor * scale * 2.0**exponent]))
    assert (point + step) - point == step
    assert point - (point - step) == step
    assert step == pytest.approx(factor * scale * 2.0**exponent, rel=0.5)


@given(step=st.floats(1e-12, 1e3), x=st.floats(-1e-3, 1e-3, allow_subnormal=False))
def test_steps_wider_than_the_coordinate_are_representable_too(step: float, x: float) -> None:
    point = np.array([x])
    found = representable(point, np.array([step]))
    assert (point + found) - point == found
    assert point - (point - found) == found


def test_the_norm_of_huge_and_tiny_vectors_is_finite_and_not_zero() -> None:
    assert norm(np.full(4, 1e300)) == pytest.approx(2e300)
    assert norm(np.full(4, 1e-300)) == pytest.approx(2e-300)


def test_a_small_coordinate_moves_on_the_scale_of_its_leaf_and_not_of_another() -> None:
    layout = lay_out([Entry(("a",), (0,), (4,), "float64"), Entry(("b",), (1,), (2,), "float64")])
    scale = natural_scale(np.array([1.0, -1.0, 1.0, 0.02, 1e-9, 0.0]), layout)[0]
    assert scale[:3] == pytest.approx(1.0)
    assert 0.05 < scale[3] < 0.1
    assert 0.05e-9 < scale[5] < 0.1e-9
    assert natural_scale(np.zeros(6), layout)[0] == pytest.approx(1.0)


FAMILIES: dict[
    str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[mpmath.mpf], mpmath.mpf]]
] = {
    "sin": (np.sin, mpmath.sin),
    "exp": (np.exp, mpmath.exp),
    "tanh": (np.tanh, mpmath.tanh),
    "cube": (lambda x: x**3, lambda x: x**3),
    "linear": (lambda x: 3 * x, lambda x: 3 * x),
    "log cosh": (lambda x: np.log(np.cosh(x)), lambda x: mpmath.log(mpmath.cosh(x))),
    "rational": (lambda x: 1 / (1 + x**2), lambda x: 1 / (1 + x**2)),
    "fast": (lambda x: np.sin(40 * x), lambda x: mpmath.sin(40 * x)),
    "offset": (lambda x: 1e6 + np.sin(x), lambda x: 1e6 + mpmath.sin(x)),
    "sqrt": (lambda x: np.sqrt(x), mpmath.sqrt),
    "logarithm": (lambda x: np.log(x), mpmath.log),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bar_covers_the_error_against_mpmath(family: str) -> None:
    function, exact = FAMILIES[family]
    rng = np.random.default_rng(len(family))
    points = rng.uniform(0.2, 2.0, 60)
    with mpmath.workdps(40):
        truth = np.array([float(mpmath.diff(exact, mpmath.mpf(float(x)))) for x in points])
    for x, slope in zip(points, truth, strict=True):
        value = float(function(np.array(x)))
        # sin, exp and the like are good to one unit, of their argument 40 x too; the offset's noise
        # is that of a million.
        noise = 1.5 * UNIT * max(abs(value), 40.0 * 2 if family == "fast" else 1.0)

        def pairs(index: np.ndarray, steps: np.ndarray, x: float = x) -> tuple[np.ndarray, ...]:
            return function(x + steps), function(x - steps)

        climbed = climb(
            pairs,
            np.array([x]),
            np.array([0]),
            (np.array([x]),) * 2,
            value,
            Noise(noise),
            lambda e: (e.bar < 0, e.bar > 1e-9),
            np.array([np.nan]),
        )
        best = climbed.best
        error = abs(best.low[0] - slope)
        assert error <= best.bar[0], (x, error, best.bar[0])
        assert best.settled[0] and climbed.kinds[0] != Kind.JUMP
        assert best.bar[0] <= (1e-4 if family == "offset" else 1e-8) * max(abs(slope), 0.1)


def at(function: Callable[[np.ndarray], np.ndarray], x: float) -> tuple[float, float, bool, bool]:
    """(low, high, settled, jump) of the slopes of a function at one point."""

    def pairs(index: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, ...]:
        return function(x + steps), function(x - steps)

    climbed = climb(
        pairs,
        np.array([x]),
        np.array([0]),
        (np.array([max(abs(x), 1.0)]),) * 2,
        float(function(np.array(x))),
        Noise(1e-16),
        lambda best: (best.bar < 0, ~best.settled | (best.bar > 1e-9)),
        np.array([np.nan]),
    )
    best, jumps = climbed.best, climbed.kinds[0] == Kind.JUMP
    return float(best.low[0]), float(best.high[0]), bool(best.settled[0]), bool(jumps)


def test_a_kink_at_the_point_gives_both_slopes() -> None:
    low, high, settled, _ = at(np.abs, 0.0)
    assert settled
    assert (low, high) == (pytest.approx(-1.0), pytest.approx(1.0))


@pytest.mark.parametrize("exponent", [-4, -8, -10, -12, -14, -17])
def test_a_kink_near_by_does_not_spoil_the_slope(exponent: int) -> None:
    far = 2.0**exponent
    low, high, settled, _ = at(lambda x: np.where(x > 1 + far, 5 * (x - 1 - far), 0) + np.sin(x), 1)
    assert settled
    assert low == high == pytest.approx(np.cos(1.0), rel=1e-7)


def test_a_jump_at_the_point_is_seen_as_one() -> None:
    *_, jump = at(lambda x: np.sign(x) + x, 0.0)
    assert jump


def test_one_side_outside_the_domain_leaves_the_other() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(x >= 1, np.sin(x), np.nan)

    low, high, settled, _ = at(function, 1.0)
    assert settled
    assert low == high == pytest.approx(np.cos(1.0), rel=1e-7)


def test_an_infinite_slope_never_settles() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.abs(x))

    _, _, settled, jump = at(function, 0.0)
    assert not settled or jump


def test_missing_levels_are_no_obstacle() -> None:
    steps = 2.0 ** -np.array([[7.0], [9.0], [11.0], [13.0]])
    plus, minus = np.exp(steps), np.exp(-steps)
    plus[0] = np.nan
    steps[1] = np.nan
    best = estimate(np.stack([steps, plus, minus]), 1.0, Noise(UNIT))
    assert abs(best.low[0] - 1) <= best.bar[0] <= 1e-4


def line(function: Callable[[np.ndarray], float], point: np.ndarray) -> Callable[..., np.ndarray]:
    def along(direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return np.array([function(point + step * direction) for step in steps])

    return along


def noise_of(function: Callable[[np.ndarray], float], seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    point = rng.normal(size=20)
    value = function(point)
    return measure_noise(line(function, point), value, point, np.abs(point), rng).sigma


def test_the_noise_of_a_smooth_function_is_of_the_order_of_rounding() -> None:
    noise = noise_of(lambda x: float(np.sum(np.sin(x)) + 5))
    assert 0.3 * UNIT < noise < 30 * UNIT


def test_the_noise_of_an_offset_is_seen() -> None:
    assert noise_of(lambda x: float(np.sum(np.sin(x)) + 1e9)) > 0.3 * UNIT * 1e9


@pytest.mark.parametrize("seed", range(10))
def test_the_noise_of_a_float32_inside_is_seen(seed: int) -> None:
    def function(x: np.ndarray) -> float:
        return float(np.sum(np.sin(x.astype(np.float32))))

    assert 1e-9 < noise_of(function, seed) < 1e-5


def test_curvature_is_not_taken_for_noise() -> None:
    noise = noise_of(lambda x: float(np.sum(np.sin(1e4 * x))))
    # sin(1e4 x) of an exact argument: the argument's rounding after the product is the noise.
    assert noise < 1e-10


@pytest.mark.parametrize("seed", range(20))
def test_float32_inside_is_never_blamed_on_the_gradient(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def cost(w: np.ndarray) -> float:
        return float(np.sum(np.tanh(w.astype(np.float32)) ** 2))

    w = rng.normal(size=8)
    right = 2 * np.tanh(w) * (1 - np.tanh(w) ** 2)
    report = check(cost, w, grads=right, raise_exception=False)
    assert report.verdict is not Verdict.FAIL
    wrong = check(cost, w, grads=1.2 * right, raise_exception=False)
    assert wrong.verdict is not Verdict.PASS


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("seed", range(5))
def test_a_large_offset_is_never_blamed_on_the_gradient(offset: float, seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=6)

    def cost(w: np.ndarray) -> float:
        return offset + float(np.sum(np.sin(w)))

    report = check(cost, w, grads=np.cos(w), raise_exception=False)
    assert report.verdict is not Verdict.FAIL
    assert check(cost, w, grads=-np.cos(w), raise_exception=False).verdict is Verdict.FAIL


def test_leaves_of_very_different_size_get_steps_of_their_own() -> None:
    params = {"tiny": np.array([1e-9, 2e-9]), "huge": np.array([1e11, -3e11])}

    def cost(p: dict[str, np.ndarray]) -> float:
        return float(np.sum(np.sin(p["tiny"] * 1e9)) + np.sum(np.cos(p["huge"] / 1e11)))

    grads = {
        "tiny": 1e9 * np.cos(params["tiny"] * 1e9),
        "huge": -np.sin(params["huge"] / 1e11) / 1e11,
    }
    assert check(cost, params, grads=grads)
    flipped = {**grads, "huge": -grads["huge"]}
    report = check(cost, params, grads=flipped, raise_exception=False)
    assert report.leaves["huge"].verdict is Verdict.FAIL
    assert report.leaves["tiny"].verdict is Verdict.PASS


@pytest.mark.parametrize("size", [1e-9, 1e-30, 1e-200, 1e200])
def test_a_flipped_sign_fails_at_any_size_of_the_gradient(size: float) -> None:
    w = np.random.default_rng(0).normal(size=5)

    def cost(w: np.ndarray) -> float:
        return size * float(np.sum(np.sin(w)))

    right = size * np.cos(w)
    assert check(cost, w, grads=right)
    assert check(cost, w, grads=-right, raise_exception=False).verdict is Verdict.FAIL


@pytest.mark.parametrize("n", [1, 10, 100, 1000])
def test_a_sweep_costs_two_evaluations_a_coordinate_and_at_most_two_hundred_more(n: int) -> None:
    w = 0.5 + np.random.default_rng(n).random(n)  # cos(w) stays away from zero: none is suspicious
    report = check(lambda w: float(np.sum(np.sin(w / 2))), w, grads=lambda w: np.cos(w / 2) / 2)
    assert report.evaluations <= 2 * n + 200


def test_units_that_are_dead_do_not_cost_more_than_units_that_live() -> None:
    n = 400
    w = np.random.default_rng(0).normal(size=n)
    alive = np.arange(n) < 40
    w = np.where(alive, np.abs(w) + 0.5, -np.abs(w) - 0.5)

    def gradient(w: np.ndarray) -> np.ndarray:
        return np.where(w > 0, 2 * w, 0.0)

    report = check(lambda w: float(np.sum(np.maximum(w, 0) ** 2)), w, grads=gradient)
    assert report.evaluations <= 2 * n + 200


@pytest.mark.parametrize(("error", "verdict"), [(0.0, "PASS"), (1e-8, "FAIL"), (1e-6, "FAIL")])
def test_elements_that_are_nothing_beside_their_leaf_cost_no_ladder(error, verdict) -> None:
    # A third of the slopes is 1e-2 to 1e-6 of the others, and phi is noisy to 1e-9 of those.
    slopes = np.ones(60)
    slopes[::3] = np.logspace(-2, -6, 20)
    w = np.random.default_rng(0).normal(size=60)
    given = slopes * np.cos(w)
    given[57] += error
    report = check(
        lambda w: float(np.sum(slopes * np.sin(w)) + 30),
        w,
        grads=given,
        coverage="sweep",
        raise_exception=False,
    )
    assert report.verdict == verdict
    assert report.evaluations < 300


@pytest.mark.parametrize(("threshold", "verdict"), [(0.31, "PASS"), (0.29, "FAIL")])
def test_a_unit_that_wide_steps_revive_is_dead_all_the_same(threshold: float, verdict: str) -> None:
    """Steps that stay below the threshold leave more noise than small neighbours are allowed."""

    def cost(w: np.ndarray) -> float:
        return 1 + 3e-6 * float(np.sin(w[0])) + 3e-6 * max(float(w[1]) - threshold, 0.0)

    def gradient(w: np.ndarray) -> np.ndarray:
        return np.array([3e-6 * np.cos(w[0]), 0.0])

    report = check(cost, np.array([1.0, 0.3]), grads=gradient, raise_exception=False)
    assert report.verdict == verdict


@pytest.mark.parametrize("factor", [1 + 1e-4, 1 + 1e-5, 1 + 3e-6])
def test_a_small_relative_error_is_caught(factor: float) -> None:
    w = np.random.default_rng(1).normal(size=30)

    def cost(w: np.ndarray) -> float:
        return float(np.sum(np.tanh(w)))

    right = 1 - np.tanh(w) ** 2
    assert check(cost, w, grads=right)
    assert check(cost, w, grads=factor * right, raise_exception=False).verdict is Verdict.FAIL


def test_an_error_within_rtol_is_allowed_and_one_beyond_is_not() -> None:
    w = np.random.default_rng(1).normal(size=30)

    def verdict(error: float) -> Verdict:
        grads = (1 + error) * (1 - np.tanh(w) ** 2)
        options = {"rtol": 1e-3, "raise_exception": False}
        return check(lambda w: float(np.sum(np.tanh(w))), w, grads=grads, **options).verdict

    assert verdict(5e-4) is Verdict.PASS
    assert verdict(2e-3) is Verdict.FAIL


def test_tolerances_that_would_accept_zero_prove_nothing() -> None:
    w = np.random.default_rng(1).normal(size=5)
    report = check(
        lambda w: float(np.sum(1e-3 * w**2)), w, grads=2e-3 * w, atol=1.0, raise_exception=False
    )
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "would also accept zero" in str(report)


@pytest.mark.parametrize(
    ("slope", "verdict"),
    [(0.0, "PASS"), (1.0, "PASS"), (0.5, "PASS"), (1.5, "FAIL"), (-0.1, "FAIL")],
)
def test_at_a_kink_any_slope_between_the_sides_is_right(slope: float, verdict: str) -> None:
    def cost(w: np.ndarray) -> float:
        return float(np.sum(np.maximum(w, 0)))

    w = np.array([1.0, 0.0, -1.0])
    report = check(cost, w, grads=np.array([1.0, slope, 0.0]), raise_exception=False)
    assert report.verdict == verdict
    assert "kink" in str(report)


def test_a_jump_is_inconclusive_and_named() -> None:
    def cost(w: np.ndarray) -> float:
        return float(np.sum(np.sign(w) + w))

    report = check(cost, np.array([1.0, 0.0]), grads=np.ones(2), raise_exception=False)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert [finding.kind for finding in report.findings] == ["jump"]


@pytest.mark.parametrize("frequency", [40.0, 3e3, 1e4, 1e5])
@pytest.mark.parametrize("seed", range(10))
def test_a_fast_function_is_never_blamed_on_the_gradient(frequency: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=8)

    def wave(x: np.ndarray) -> float:
        return float(np.sum(np.sin(frequency * x)))

    right = frequency * np.cos(frequency * x)
    assert check(wave, x, grads=right, raise_exception=False).verdict is not Verdict.FAIL
    assert check(wave, x, grads=1.1 * right, raise_exception=False).verdict is Verdict.FAIL


@pytest.mark.parametrize("neighbour", [1.0, 1e3, 1e5, 1e9])
def test_an_element_much_smaller_than_its_leaf_is_moved_on_its_own_scale(neighbour: float) -> None:
    x = np.array([0.5, neighbour, 2 * neighbour])

    def cost(x: np.ndarray) -> float:
        return float(np.exp(-(x[0] ** 2)) + np.sum(x[1:]) / neighbour)

    slope = np.full(3, 1 / neighbour)
    slope[0] = -2 * x[0] * np.exp(-(x[0] ** 2))
    assert check(cost, x, grads=slope)
    forgotten = np.where(np.arange(3) == 0, 0.0, slope)
    assert check(cost, x, grads=forgotten, raise_exception=False).leaves["x"].wrong == 1


def test_a_zero_gradient_under_an_offset_is_not_believed() -> None:
    x = np.array([1.0, 2.0, 3.0])

    def cost(x: np.ndarray) -> float:
        return 1e6 + 2e-9 * float(np.sum(x**2))

    report = check(cost, x, grads=0 * x, raise_exception=False)
    assert report.verdict is not Verdict.PASS


def test_the_largest_floats_end_in_a_verdict_without_a_warning() -> None:
    report = check(lambda x: np.exp(x[0]), np.array([709.7]), grads=np.exp, raise_exception=False)
    assert report.verdict is not Verdict.FAIL


@pytest.mark.parametrize(
    ("moved", "kind"),
    [
        (lambda h: 3e-13 * -np.expm1(-h / 0.2), Kind.SMOOTH),
        (lambda h: 3e-13 * np.sqrt(h), Kind.STEEP),
        (lambda h: 3e-12 * h ** (2 / 3), Kind.STEEP),
    ],
    ids=["a plateau", "a square root", "another root"],
)
def test_the_way_to_a_plateau_is_no_infinite_slope(moved, kind):
    """Between single bits and the plateau a few steps grow as those of a root do."""
    steps = np.array([0.004, 0.0085, 0.028, 0.068, 0.124, 0.222, 0.542, 0.994])[:, None]
    rungs = np.array([steps, moved(steps), -moved(steps)])
    assert kinds(rungs, np.zeros(1), 0.0, Noise(3e-15)) == kind


def test_a_bias_beside_a_huge_input_is_not_taken_for_nothing():
    """It is seen by wide steps alone, and is no zero for being little beside the weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 5))
    x[:, 0] = 1.7e9
    u = rng.normal(size=(16, 3))
    p = {"W": rng.normal(size=(5, 3)) / 2, "b": np.array([0.4, -0.3, 0.2])}

    def cost(p):
        return float(np.sum(u * (x @ p["W"] + p["b"])))

    assert check(cost, p, grads={"dW": x.T @ u, "db": u.sum(0)}).verdict == "PASS"
    wrong = {"dW": x.T @ u, "db": 1.01 * u.sum(0)}
    assert check(cost, p, grads=wrong, raise_exception=False).verdict == "FAIL"
