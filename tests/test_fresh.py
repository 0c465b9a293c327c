"""Networks as they start: small weights, biases of zero, gradients of many sizes in one leaf."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from audited import Changed

from xgradcheck import Report, check

Change = Callable[[torch.Tensor], torch.Tensor]


def perceptron(seed: int, size: float, dtype: torch.dtype, change: Change | None = None) -> Report:
    """Two layers as textbooks start them: ``size * randn``, biases of zero."""
    draw = np.random.default_rng(seed)
    drawn = [size * draw.normal(size=(8, 6)), np.zeros(8), size * draw.normal(size=(3, 8))]
    leaves = [torch.from_numpy(part).to(dtype).requires_grad_() for part in drawn]
    x = torch.from_numpy(draw.normal(size=(16, 6))).to(dtype)
    labels = torch.from_numpy(draw.integers(0, 3, 16))

    def loss(w1, b1, w2):
        w1 = w1 if change is None else Changed.apply(w1, change)
        return F.cross_entropy(torch.relu(x @ w1.T + b1) @ w2.T, labels)

    return check(loss, *leaves, seed=seed, raise_exception=False)


def transformer(seed: int, change: Change | None = None) -> Report:
    """One block at the size that GPT-2 starts with: queries and keys get next to no gradient."""
    torch.manual_seed(seed)
    shapes = {"tokens": (7, 4), "places": (5, 4), "qkv": (4, 12), "out": (4, 4)}
    drawn = [0.02 * torch.randn(*shape, dtype=torch.float64) for shape in shapes.values()]
    leaves = [part.requires_grad_() for part in drawn]
    words = torch.randint(0, 7, (2, 5))

    def loss(tokens, places, qkv, out):
        qkv = qkv if change is None else Changed.apply(qkv, change)
        x = tokens[words] + places
        q, k, v = (x @ qkv).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ out
        scores = F.layer_norm(x, (4,)) @ tokens.T
        return F.cross_entropy(scores.flatten(0, 1), words.roll(-1, 1).flatten())

    return check(loss, *leaves, seed=seed, raise_exception=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("size", "least"), [(0.1, 6), (0.01, 6), (0.001, 3)])
def test_a_network_of_small_weights_is_right(size: float, least: int, dtype: torch.dtype) -> None:
    """At 0.001 steps between kinks are so short that noise may leave 1e-5 of a leaf unseen."""
    verdicts = [perceptron(seed, size, dtype).verdict for seed in range(6)]
    assert verdicts.count("PASS") >= least and "FAIL" not in verdicts


@pytest.mark.parametrize("seed", range(3))
def test_queries_and_keys_of_a_fresh_transformer_are_right(seed: int) -> None:
    assert transformer(seed).verdict == "PASS"


def scaled(columns: slice, factor: float) -> Change:
    def change(cotangent: Any) -> Any:
        cotangent[:, columns] *= factor
        return cotangent

    return change


def one_scaled(factor: float) -> Change:
    def change(cotangent: Any) -> Any:
        cotangent[0, 0] *= factor
        return cotangent

    return change


MISTAKES = {
    "a thousandth": lambda cotangent: 1.001 * cotangent,
    "a sign": lambda cotangent: -cotangent,
    "one element": one_scaled(0.0),
    "a hundredth of one element": one_scaled(1.01),
    "some columns": scaled(slice(0, 4), 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [0.01, 0.001])
@pytest.mark.parametrize("name", MISTAKES)
def test_its_mistakes_are_wrong(name: str, size: float, dtype: torch.dtype) -> None:
    assert perceptron(1, size, dtype, MISTAKES[name]).verdict == "FAIL"


@pytest.mark.parametrize(
    "change",
    [
        scaled(slice(0, 4), -1.0),
        scaled(slice(4, 8), 0.0),
        scaled(slice(0, 8), 1.1),
        scaled(slice(8, 12), 1.001),
        one_scaled(-1.0),
    ],
)
def test_so_are_those_in_queries_keys_and_values(change: Change) -> None:
    assert transformer(0, change).verdict == "FAIL"


def test_what_noise_may_hide_is_no_more_than_what_is_asked_for() -> None:
    """Whoever asks for more digits than noise leaves is told that they cannot be had."""
    x = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)

    def noisy(x):
        return (x.sin().sum() + 3e4) - 3e4

    assert check(noisy, x)
    assert check(noisy, x, rtol=1e-13, raise_exception=False).verdict == "INCONCLUSIVE"


PACKED = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("amplitude", [1e4, 1e8, 1e10])
@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_a_zero_beside_a_large_number_moves_on_a_scale_of_its_own(
    amplitude: float, factor: float
) -> None:
    def decay(p):
        return p[0] / amplitude * np.exp(-PACKED * p[1])

    def grads(u, p):
        own = np.exp(-PACKED * p[1])
        return np.array([(u * own).sum() / amplitude, -factor * (u * PACKED * decay(p)).sum()])

    report = check(decay, np.array([amplitude, 0.0]), grads=grads, raise_exception=False)
    assert report.verdict == ("PASS" if factor == 1.0 else "FAIL")


NARROW = {
    "a peak": (900.003, lambda x: np.exp(-(((x - 900) / 5e-3) ** 2)), 5e-3),
    "a step": (1e5 + 0.04, lambda x: 1 / (1 + np.exp(-(x - 1e5) / 0.05)), 0.05),
    "a wave": (2.4, lambda x: np.sin(100 * x), 0.01),
}


@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.0])
@pytest.mark.parametrize("name", NARROW)
def test_what_is_narrow_beside_its_place_is_wrong_where_it_is(name: str, factor: float) -> None:
    """Wide steps see nothing of it, and only narrow ones can say what is wrong."""
    place, fn, width = NARROW[name]
    # Five points: exact to the eighth power of a thousandth.
    h = width / 1000
    steps, weights = np.array([-2, -1, 1, 2]) * h, np.array([1, -8, 8, -1]) / (12 * h)
    slope = float((weights * fn(place + steps)).sum())
    x = np.array([place])
    report = check(fn, x, grads=lambda u, x: factor * u * slope, raise_exception=False)
    assert report.verdict == "FAIL"


def test_a_fast_wave_is_not_taken_for_rounding() -> None:
    """A wave of many periods per step looks like noise, in which a gradient of zero is as good."""
    days = np.array([2.46e6 + 0.123])
    report = check(
        lambda t: np.sin(2 * np.pi * (t - 2.46e6) / 0.3),
        days,
        grads=lambda u, t: 0 * t,
        raise_exception=False,
    )
    assert report.verdict != "PASS"


@pytest.mark.parametrize("width", [1e-2, 1e-3, 5e-4])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_no_gradient_of_a_line_that_is_narrower_than_steps(
    width: float, seed: int
) -> None:
    """Far from it phi is zero on both sides, and as flat as it can be."""
    x = 589 + width * np.random.default_rng(seed).normal(size=6)

    def line(x):
        return np.exp(-(((x - 589) / width) ** 2) / 2)

    right = check(line, x, grads=lambda u, x: -u * (x - 589) / width**2 * line(x), seed=seed)
    assert right
    wrong = check(line, x, grads=lambda u, x: 0 * x, seed=seed, raise_exception=False)
    assert wrong.verdict == "FAIL"
