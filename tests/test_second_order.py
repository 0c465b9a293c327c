"""``order=2``: the backward pass is differenced, and differentiated by the framework."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from xgradcheck import InvalidCase, check

X = np.array([0.3, -1.2, 0.7])


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class CubeFromConstant(torch.autograd.Function):
    """Right once: what it multiplies by was computed in the forward, and counts as a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x**2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class CubeOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


def verdicts(report):
    return {name: str(leaf.verdict) for name, leaf in report.leaves.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_term_that_is_lost_in_the_second_derivative_is_seen(dtype):
    x = torch.from_numpy(X).to(dtype)
    assert check(Cube.apply, x, order=2)
    assert check(CubeFromConstant.apply, x)
    report = check(CubeFromConstant.apply, x, order=2, raise_exception=False)
    assert verdicts(report) == {
        "args[0]": "PASS",
        "args[0] (order 2)": "FAIL",
        "cotangent (order 2)": "PASS",
    }
    assert report.findings[0].text.startswith("order 2: ")
    assert report.findings[0].leaf == "args[0] (order 2)"


def test_an_honest_refusal_is_named():
    x = torch.from_numpy(X)
    assert check(CubeOnce.apply, x)
    with pytest.raises(InvalidCase, match="once_differentiable"):
        check(CubeOnce.apply, x, order=2)


def test_a_linear_function_has_no_second_derivative():
    assert check(lambda x: 3 * x, torch.from_numpy(X), order=2)
    assert check(lambda x: 3 * x, X, backend="jax", order=2)


def test_a_module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    report = check(model, torch.randn(5, 3, dtype=torch.float64), order=2)
    assert len(report.leaves) == 13 and report.precision == "float64"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_custom_rule_of_jax(dtype, is_lost):
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    def pull_back(x, g):
        slope = jnp.cos(x)
        return (g * (jax.lax.stop_gradient(slope) if is_lost else slope),)

    sine.defvjp(lambda x: (jnp.sin(x), x), pull_back)
    x = X if dtype is np.float64 else jnp.asarray(X, dtype)
    report = check(sine, x, backend="jax", order=2, raise_exception=False)
    assert verdicts(report) == {
        "x": "PASS",
        "x (order 2)": "FAIL" if is_lost else "PASS",
        "cotangent (order 2)": "PASS",
    }


class SineOfDetached(torch.autograd.Function):
    """Its backward is right, and forgets in turn that it is a function of its cotangent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g.detach() * torch.cos(x)


def test_the_derivative_with_respect_to_the_cotangent():
    x = torch.from_numpy(X)
    report = check(lambda x: (SineOfDetached.apply(x), 2 * x), x, order=2, raise_exception=False)
    assert verdicts(report) == {
        "x": "PASS",
        "x (order 2)": "PASS",
        "cotangent of output[0] (order 2)": "FAIL",
        "cotangent of output[1] (order 2)": "PASS",
    }


def test_the_derivative_with_respect_to_the_cotangent_in_jax():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jax.lax.stop_gradient(g) * jnp.cos(x),))
    report = check(sine, X, backend="jax", order=2, raise_exception=False)
    assert verdicts(report) == {
        "x": "PASS",
        "x (order 2)": "PASS",
        "cotangent (order 2)": "FAIL",
    }


def test_a_gradient_that_is_handed_in_has_no_second_one():
    with pytest.raises(InvalidCase, match="order=2"):
        check(lambda x: (x**2).sum(), X, grads=lambda x: 2 * x, order=2)
    with pytest.raises(InvalidCase, match="order=3"):
        check(torch.sin, torch.from_numpy(X), order=3)
