"""``modes="forward"``: tangents of the framework, judged beside the same differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from xgradcheck import InvalidCase, check

X = np.array([0.3, -1.2, 0.7])
BOTH = ("reverse", "forward")


class Sine(torch.autograd.Function):
    """With rules for both modes, each of which can be spoiled."""

    backward_factor = 1.0
    forward_factor = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return Sine.backward_factor * g * torch.cos(x)

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return Sine.forward_factor * tangent * torch.cos(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spoiled", [None, "backward_factor", "forward_factor"])
def test_the_rule_that_is_wrong_is_named(dtype, spoiled, monkeypatch):
    if spoiled is not None:
        monkeypatch.setattr(Sine, spoiled, 1.01)
    x = torch.from_numpy(X).to(dtype)
    report = check(Sine.apply, x, modes=BOTH, raise_exception=False)
    (leaf,) = report.leaves.values()
    wrong = {row.judged for row in leaf.rows if row.verdict == "FAIL"}
    reverse = {"float64"} if dtype is torch.float64 else {"float64", "float32 as run"}
    assert {row.judged for row in leaf.rows} == reverse | {"forward"}
    assert (
        wrong == {None: set(), "backward_factor": reverse, "forward_factor": {"forward"}}[spoiled]
    )
    assert report.verdict == ("FAIL" if spoiled else "PASS")


def test_forward_mode_alone(monkeypatch):
    monkeypatch.setattr(Sine, "backward_factor", 1.01)
    x = torch.from_numpy(X)
    assert check(Sine.apply, x, modes="forward")
    report = check(Sine.apply, x, modes="reverse", raise_exception=False)
    assert report.verdict == "FAIL"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_a_custom_jvp_of_jax(factor, verdict):
    @jax.custom_jvp
    def scaled(x, w):
        return jnp.sin(x) * w

    @scaled.defjvp
    def scaled_jvp(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        return scaled(x, w), dx * jnp.cos(x) * w + factor * dw * jnp.sin(x)

    report = check(scaled, X, X + 2, backend="jax", modes=BOTH, raise_exception=False)
    assert {name: str(leaf.verdict) for name, leaf in report.leaves.items()} == {
        "x": "PASS",
        "w": verdict,
    }


def test_complex_numbers_and_several_arguments():
    z = torch.tensor([0.3 - 1.2j, 0.7 + 0.4j])
    assert check(lambda z, w: (torch.fft.fft(z * w), z.abs()), z, z + 1, modes=BOTH)
    assert check(lambda z: z**2 * jnp.exp(z), z.numpy(), backend="jax", modes=BOTH)


class Scaled(nn.Module):
    """A parameter that a custom Function reads, beside a layer of torch's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.w = nn.Linear(3, 2), nn.Parameter(torch.tensor([0.4, -0.9]))

    def forward(self, x):
        return self.inner(x).tanh() * Sine.apply(self.w)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("as_closure", [False, True])
def test_modules_and_closures(dtype, as_closure, monkeypatch):
    model, x = Scaled().to(dtype), torch.from_numpy(X).to(dtype)

    def report():
        if as_closure:
            return check(lambda: model(x), wrt=model, modes=BOTH, raise_exception=False)
        return check(model, x, modes=BOTH, raise_exception=False)

    assert report().verdict == "PASS"
    monkeypatch.setattr(Sine, "forward_factor", 1.01)
    leaves = report().leaves
    assert {name: str(leaf.verdict) for name, leaf in leaves.items()} == {
        "w": "FAIL",
        "inner.weight": "PASS",
        "inner.bias": "PASS",
    }
    assert {row.judged for row in leaves["w"].rows if row.verdict == "FAIL"} == {"forward"}


def test_second_order_in_forward_mode():
    x = torch.from_numpy(X)
    assert check(lambda x: x.sin() * x.sum(), x, order=2, modes=BOTH)
    assert check(lambda x: jnp.sin(x) * x.sum(), X, backend="jax", order=2, modes=BOTH)


def test_refusals():
    x = torch.from_numpy(X)
    with pytest.raises(InvalidCase, match="modes='sideways'"):
        check(torch.sin, x, modes="sideways")
    with pytest.raises(InvalidCase, match="forward"):
        check(lambda x: (x**2).sum(), X, grads=lambda x: 2 * x, modes=BOTH)


def ruled(jvp, backward):
    """``x * w`` in torch, with these rules."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            ctx.save_for_forward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved_tensors)

        @staticmethod
        def jvp(ctx, *tangents):
            return jvp(*tangents, *ctx.saved_tensors)

    return Product.apply


def pushed(dx, dw, x, w):
    return dx * w + x * dw


def pulled(g, x, w):
    return g * w, (g * x).sum(0)


def forgets_the_gain(dx, dw, x, w):
    return dx + x * dw


SHAPES = pytest.mark.parametrize("shape", [(3, 4), (20, 20)])


@SHAPES
@pytest.mark.parametrize("modes", ["forward", BOTH])
def test_a_jvp_that_is_right_among_ones_alone_fails(shape, modes):
    x = torch.linspace(-1, 1.1, shape[0] * shape[1]).double().cos().reshape(shape)
    gain = torch.ones(shape[1], dtype=torch.float64)
    assert check(ruled(pushed, pulled), x, gain, modes=modes)
    report = check(ruled(forgets_the_gain, pulled), x, gain, modes=modes, raise_exception=False)
    leaf = report.leaves["args[0]"]
    assert leaf.verdict == report.verdict == "FAIL"
    wrong = {row.judged for row in leaf.rows or (leaf,) if row.verdict == "FAIL"}
    assert wrong == {"forward"}
    (finding,) = report.findings
    assert finding.kind == "only right at this point" and "the jvp gives" in finding.text


@SHAPES
def test_a_backward_that_is_right_among_ones_alone_is_told_as_such(shape):
    x = torch.linspace(-1, 1.1, shape[0] * shape[1]).double().cos().reshape(shape)
    gain = torch.ones(shape[1], dtype=torch.float64)
    product = ruled(pushed, lambda g, x, w: (g, (g * x).sum(0)))
    report = check(product, x, gain, modes=BOTH, raise_exception=False)
    wrong = {row.judged for row in report.leaves["args[0]"].rows if row.verdict == "FAIL"}
    assert wrong == {"float64"} and "backward gives" in report.findings[0].text
    assert check(product, x, gain, modes="forward")


@pytest.mark.parametrize(("factor", "verdict"), [(lambda x: 2 * x, "PASS"), (lambda x: 2, "FAIL")])
def test_a_custom_jvp_of_jax_that_is_right_among_ones_alone(factor, verdict):
    @jax.custom_jvp
    def square(x):
        return x**2

    square.defjvp(lambda primals, tangents: (square(*primals), factor(*primals) * tangents[0]))
    for modes in ("forward", BOTH):
        how = {"backend": "jax", "modes": modes, "raise_exception": False}
        assert check(square, np.ones(4), **how).verdict == verdict


def test_a_function_without_a_backward_is_looked_at_near_by():
    def loop(x):
        go, step = lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x)
        return jax.lax.while_loop(go, step, (0, jnp.ones_like(x)))[1]

    report = check(loop, np.ones(4), backend="jax", modes="forward")
    assert "so another one near by was looked at too" in report.notes[-1]


def test_texts_say_what_gave_a_gradient(monkeypatch):
    monkeypatch.setattr(Sine, "forward_factor", 1.01)
    report = check(Sine.apply, torch.from_numpy(X), modes="forward", raise_exception=False)
    assert "the jvp gives" in str(report) and "backward gives" not in str(report)


@pytest.mark.parametrize("coverage", ["auto", "rows"])
@pytest.mark.parametrize("count", [1, 400])
def test_a_finding_counts_what_the_table_counts(coverage, count):
    def spoiled(dx, dw, x, w):
        factor = torch.ones(400, dtype=x.dtype)
        factor[160 if count == 1 else slice(None)] = 1.05
        return dx * w * factor.reshape(20, 20) + x * dw

    x = torch.linspace(-1, 1.1, 400).double().cos().reshape(20, 20)
    w = torch.linspace(0.3, 1.4, 20).double().exp()
    how = {"modes": BOTH, "coverage": coverage, "raise_exception": False}
    report = check(ruled(spoiled, pulled), x, w, **how)
    (row,) = [row for row in report.leaves["args[0]"].rows if row.verdict == "FAIL"]
    (finding,) = [found for found in report.findings if found.kind == "wrong gradient"]
    assert (row.judged, row.wrong) == ("forward", count)
    assert ("1 of 400 elements" if count == 1 else "every element") in finding.text
