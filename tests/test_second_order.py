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


@pytest.mark.parametrize("eps", [1e-5, {"x": 1e-5, "w": 1e-4}])
def test_steps_that_are_given_are_those_of_the_arguments(eps):
    x, w = torch.from_numpy(X), torch.from_numpy(X + 2)
    report = check(lambda x, w: (x.sin() * w, w**3), x, w, order=2, eps=eps)
    assert "cotangent of output[1] (order 2)" in report.leaves
    wrong = check(CubeFromConstant.apply, x, order=2, eps=1e-5, raise_exception=False)
    assert verdicts(wrong)["args[0] (order 2)"] == "FAIL"
    assert check(lambda x: jnp.sin(x), X, order=2, eps=1e-5, backend="jax")
    with pytest.raises(InvalidCase, match="which is no leaf"):
        check(torch.sin, x, order=2, eps={"cotangent": 1e-5})


class WithoutSecond(torch.autograd.Function):
    """Its backward is a Function that has none."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return Doubled.apply(g, *ctx.saved_tensors)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, x):
        return 2 * g * x


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (torch.cdist, [(3, 4), (5, 4)]),
        (nn.functional.scaled_dot_product_attention, [(1, 2, 3, 4)] * 3),
        (WithoutSecond.apply, [(3,)]),
    ],
)
def test_what_torch_has_no_second_derivative_of_is_refused_in_words(fn, shapes):
    generator = torch.Generator().manual_seed(0)
    args = [torch.randn(*s, dtype=torch.float64, generator=generator) for s in shapes]
    assert check(fn, *args)
    with pytest.raises(InvalidCase, match=r"has no derivative in torch .* order=1"):
        check(fn, *args, order=2)


@pytest.mark.parametrize("kind", [NotImplementedError, RuntimeError])
def test_what_a_backward_raises_itself_passes_through(kind):
    class Raising(Doubled):
        @staticmethod
        def backward(ctx, g):
            raise kind("the derivative for 'mine' is not implemented")

    class Square(WithoutSecond):
        @staticmethod
        def backward(ctx, g):
            return Raising.apply(g, *ctx.saved_tensors)

    with pytest.raises(kind, match="'mine'") as raised:
        check(Square.apply, torch.from_numpy(X), order=2)
    assert not isinstance(raised.value, InvalidCase)


def test_at_a_kink_it_is_the_gradient_that_jumps():
    x = torch.tensor([0.0, 1.3, -0.7], dtype=torch.float64)
    report = check(torch.relu, x, order=2, raise_exception=False)
    (finding,) = report.findings
    assert "the gradient jumps here" in finding.text
    report = check(lambda x: x.sign() + x, x, raise_exception=False)
    assert "the function jumps here" in report.findings[0].text


def test_no_cotangent_is_said_to_be_left_out_with_wrt():
    class Cut(CubeFromConstant):
        @staticmethod
        def backward(ctx, g):
            return g.detach() * ctx.slope

    x = torch.from_numpy(X)
    report = check(Cut.apply, x, order=2, raise_exception=False)
    assert [finding.kind for finding in report.findings] == ["no gradient"] * 2
    assert not any("wrt=" in finding.text for finding in report.findings)
    first = check(lambda x, w: x * w.detach(), x, x + 2, raise_exception=False)
    assert "wrt=" in first.findings[0].text
