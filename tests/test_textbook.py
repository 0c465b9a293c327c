"""The textbook method, to the letter: ``coverage="sweep", method="central", eps=1e-7``."""

import numpy as np
import pytest

from xgradcheck import Report, Verdict, check
from xgradcheck._judge import distance, grade

Params = dict[str, np.ndarray]


def cost(params: Params) -> float:
    hidden = np.tanh(params["W1"] @ np.array([0.3, -1.2, 0.8]) + params["b1"])
    return float(np.sum((params["W2"] @ hidden) ** 2) + 0.05 * np.sum(params["W1"] ** 2))


def gradient(params: Params) -> Params:
    x = np.array([0.3, -1.2, 0.8])
    hidden = np.tanh(params["W1"] @ x + params["b1"])
    residual = 2 * params["W2"] @ hidden
    inner = (params["W2"].T @ residual) * (1 - hidden**2)
    return {
        "dW1": np.outer(inner, x) + 0.1 * params["W1"],
        "db1": inner,
        "dW2": np.outer(residual, hidden),
    }


@pytest.fixture
def params() -> Params:
    rng = np.random.default_rng(5)
    return {
        "W1": rng.normal(size=(4, 3)),
        "b1": rng.normal(size=4),
        "W2": rng.normal(size=(2, 4)),
    }


def by_the_book(params: Params, eps: float) -> np.ndarray:
    """g_i = (J(theta + eps e_i) - J(theta - eps e_i)) / (2 eps), theta all parameters in a row."""
    theta = np.concatenate([params[key].ravel() for key in params])

    def value(theta: np.ndarray) -> float:
        shapes = [params[key].shape for key in params]
        ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        parts = np.split(theta, ends)
        arrays = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return cost(dict(zip(params, arrays, strict=True)))

    numerical = np.empty_like(theta)
    for i in range(theta.size):
        up, down = theta.copy(), theta.copy()
        up[i] += eps
        down[i] -= eps
        numerical[i] = (value(up) - value(down)) / (2 * eps)
    return numerical


def textbook(params: Params, grads: Params, eps: float = 1e-7) -> Report:
    return check(
        cost,
        params,
        grads=grads,
        coverage="sweep",
        method="central",
        eps=eps,
        raise_exception=False,
    )


@pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-7])
def test_distance_and_grade_are_the_textbooks_to_the_last_digit(params: Params, eps: float) -> None:
    analytic = gradient(params)
    numerical = by_the_book(params, eps)
    flat = np.concatenate([analytic[key].ravel() for key in ("dW1", "db1", "dW2")])

    def score(part: slice) -> float:
        error = np.linalg.norm(numerical[part] - flat[part])
        return float(error / (np.linalg.norm(numerical[part]) + np.linalg.norm(flat[part])))

    report = textbook(params, analytic, eps)
    # The two sides sum the norms in different orders: a few roundings, of numbers of size 1e-9.
    assert report.distance == pytest.approx(score(slice(None)), rel=1e-12)
    for name, part in (("W1", slice(0, 12)), ("b1", slice(12, 16)), ("W2", slice(16, 24))):
        assert report.leaves[name].distance == pytest.approx(score(part), rel=1e-12)
        assert report.leaves[name].grade == grade(score(part))


def test_a_right_gradient_is_great_with_the_textbooks_eps(params: Params) -> None:
    report = textbook(params, gradient(params))
    assert report.verdict is Verdict.PASS
    assert report.grade == "great"


def test_a_forgotten_regularisation_term_is_wrong_in_w1_alone(params: Params) -> None:
    broken = gradient(params)
    broken["dW1"] = broken["dW1"] - 0.1 * params["W1"]
    report = textbook(params, broken)
    verdicts = {name: report.leaves[name].verdict for name in ("W1", "b1", "W2")}
    assert verdicts == {"W1": "FAIL", "b1": "PASS", "W2": "PASS"}
    assert report.leaves["W1"].grade == "wrong"


@pytest.mark.parametrize("eps", [1e-15, 1e-12, 1e-2, 0.3, 100.0])
def test_a_bad_eps_is_inconclusive_and_never_fail(params: Params, eps: float) -> None:
    report = textbook(params, gradient(params), eps)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "leave eps out" in " ".join(str(report).split())


@pytest.mark.parametrize("eps", 10.0 ** np.arange(-16, 3))
def test_no_eps_whatever_makes_a_right_gradient_fail(params: Params, eps: float) -> None:
    assert textbook(params, gradient(params), float(eps)).verdict is not Verdict.FAIL


def test_an_eps_that_does_not_move_the_point_is_inconclusive() -> None:
    report = check(
        lambda w: float(np.sum(2 * w)),
        np.full(3, 1e11),
        grads=np.full(3, 2.0),
        eps=1e-7,
        raise_exception=False,
    )
    assert report.verdict is Verdict.INCONCLUSIVE


def test_eps_may_differ_from_leaf_to_leaf(params: Params) -> None:
    eps = {"params['W1']": 1e-6, "params['b1']": 1e-5, "params['W2']": 1e-7}
    report = check(cost, params, grads=gradient(params), eps=eps)
    expected = np.concatenate(
        [
            by_the_book(params, 1e-6)[:12],
            by_the_book(params, 1e-5)[12:16],
            by_the_book(params, 1e-7)[16:],
        ]
    )
    analytic = gradient(params)
    flat = np.concatenate([analytic[key].ravel() for key in ("dW1", "db1", "dW2")])
    assert report.distance == pytest.approx(distance(flat, expected), rel=1e-12)


def test_nothing_over_nothing_is_distance_zero() -> None:
    assert distance(np.zeros(3), np.zeros(3)) == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e300])
def test_distance_does_not_depend_on_the_scale(scale: float) -> None:
    gradient, truth = np.array([1.0, 2.0]), np.array([1.0, -2.0])
    assert distance(scale * gradient, scale * truth) == pytest.approx(4 / (2 * np.sqrt(5)))


def test_a_gradient_that_is_not_finite_is_as_far_as_can_be() -> None:
    assert distance(np.array([1.0, np.nan]), np.ones(2)) == 1.0


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.0, "great"),
        (1e-7, "great"),
        (1.01e-7, "okay"),
        (1e-5, "okay"),
        (1.01e-5, "suspicious"),
        (1e-3, "suspicious"),
        (1.01e-3, "wrong"),
        (1.0, "wrong"),
    ],
)
def test_grades_begin_and_end_where_the_textbook_says(value: float, name: str) -> None:
    assert grade(value) == name
