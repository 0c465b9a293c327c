"""Functions that rounding alone moves: their gradient is zero, and a wrong one is not."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import nn
from torch.nn import functional as F

from xgradcheck import GradientMismatch, check

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
CONSTANT = {
    "softmax": lambda x: torch.softmax(x, -1).sum(),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]).sum(),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True).sum(),
    "unit vectors": lambda x: (x / x.norm(dim=-1, keepdim=True)).pow(2).sum(),
    "circle": lambda x: (x.sin() ** 2 + x.cos() ** 2).sum(),
}


def point(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return drawn.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONSTANT)
def test_what_rounding_leaves_of_a_zero_is_right(name, dtype):
    for seed in range(3):
        report = check(CONSTANT[name], point(seed, dtype, 4, 6))
        assert report.verdict == "PASS"
        assert any("nothing moves the output" in note for note in report.notes)
        assert report.distance == 0
        assert report.evaluations < 100


def test_of_many_coordinates_too():
    report = check(CONSTANT["softmax"], point(0, torch.float32, 500, 100))
    assert report.verdict == "PASS"
    assert report.evaluations < 100


class Softmax(torch.autograd.Function):
    """One whose backward forgets what the sum does."""

    @staticmethod
    def forward(ctx, x):
        out = torch.softmax(x, -1)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, cotangent):
        (out,) = ctx.saved_tensors
        return out * cotangent


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_of_a_constant_is_wrong(dtype):
    with pytest.raises(GradientMismatch):
        check(lambda x: Softmax.apply(x).sum(), point(0, dtype, 4, 6))


def test_a_gradient_that_is_small_and_no_rounding_is_wrong():
    def value(p):
        return p["x"].sum() * 0 + 3.0 + 1e-9 * np.sin(p["x"]).sum()

    x = {"x": np.linspace(0.3, 2, 5)}
    check(value, x, grads=lambda p: {"x": 1e-9 * np.cos(p["x"])})
    with pytest.raises(GradientMismatch):
        check(value, x, grads=lambda p: {"x": -1e-9 * np.cos(p["x"])})
    with pytest.raises(GradientMismatch):
        check(lambda p: 3.0 + 0 * p["x"].sum(), x, grads=lambda p: {"x": 1e-9 * p["x"]})


def test_standing_still_near_by_alone_is_not_being_constant():
    # Zero at x = 0, where the backward is wrong by its sign, and nowhere else.
    def value(p):
        return np.cos(p["x"]).sum()

    x = {"x": np.zeros(4)}
    with pytest.raises(GradientMismatch, match="only right at this point"):
        check(value, x, grads=lambda p: {"x": np.sin(p["x"])})


def test_jax_and_numpy():
    x = np.random.default_rng(0).normal(size=(3, 5))
    assert check(lambda x: nn.softmax(x).sum(), jnp.asarray(x)).verdict == "PASS"

    def standardised(p):
        centred = p["x"] - p["x"].mean(0)
        return (centred / np.sqrt((centred**2).mean(0) + 1e-5)).sum()

    assert check(standardised, {"x": x}, grads=lambda p: {"x": 0 * x}).verdict == "PASS"
    with pytest.raises(GradientMismatch):
        check(standardised, {"x": x}, grads=lambda p: {"x": 0 * x + 0.1})
