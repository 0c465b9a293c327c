"""Gradients at many kinks at once: that of one side of all of them is right, and others are not."""

from typing import Any

import audited
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xgradcheck import check

DOUBLE = torch.float64


def function(forward: Any, backward: Any) -> Any:
    """A function of one tensor with this backward pass: ``backward(cotangent, x)``."""

    def save(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return forward(x)

    return audited.function(save, lambda ctx, u: backward(u, *ctx.saved_tensors))


def rectified(*shape: int) -> torch.Tensor:
    """What a relu leaves: half of it are zeros."""
    drawn = np.random.default_rng(0).normal(size=shape)
    return torch.from_numpy(np.maximum(drawn, 0)).requires_grad_()


def whole(*shape: int) -> torch.Tensor:
    drawn = np.random.default_rng(0).integers(-2, 3, size=shape)
    return torch.from_numpy(drawn.astype(float)).requires_grad_()


def relu(at_zero: float) -> Any:
    def backward(u: Any, x: Any) -> Any:
        return u * torch.where(x == 0, at_zero, (x > 0).to(x.dtype))

    return function(lambda x: x.clamp(min=0), backward)


RIGHT = {
    "relu, 0 at 0": (relu(0.0), rectified),
    "relu, 1 at 0": (relu(1.0), rectified),
    "relu, a half at 0": (relu(0.5), rectified),
    "abs": (torch.abs, rectified),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), rectified),
    "in a network": (lambda x: torch.tanh(torch.relu(x).mean(0)), rectified),
    "clip to what is clipped": (lambda x: x.clamp(-1, 1), lambda *s: whole(*s) / 2),
    "between two bounds": (lambda x: F.hardtanh(x, -1, 2), whole),
    "hinge at its margin": (lambda x: torch.relu(1 - x).mean(), whole),
    "total variation": (lambda x: (x[1:] - x[:-1]).abs().sum(), whole),
    "largest so far": (lambda x: x.cummax(-1).values, rectified),
}


@pytest.mark.parametrize("rows", [10, 100])
@pytest.mark.parametrize("name", RIGHT)
def test_the_gradient_of_one_side_or_of_the_mean_of_both_is_right(name: str, rows: int) -> None:
    fn, made = RIGHT[name]
    x = made(rows, 80)
    report = check(fn, x)
    assert report.evaluations < 100 < x.numel()


@pytest.mark.parametrize("shape", [(1, 2, 20, 20), (2, 4, 40, 40)])
def test_windows_of_a_pool_that_tie_are_right(shape: tuple[int, ...]) -> None:
    assert check(lambda x: F.max_pool2d(x, 2), rectified(*shape)).evaluations < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_below_float64_too(dtype: torch.dtype) -> None:
    x = rectified(80, 80).detach().to(dtype).requires_grad_()
    assert check(torch.relu, x).evaluations < 100


def test_kinks_are_counted() -> None:
    x = rectified(70, 80)
    report = check(torch.relu, x)
    count = int((x == 0).sum())
    assert f"args[0]: a kink at {count} of 5600 elements" in " ".join(report.notes)


@pytest.mark.parametrize("rows", [10, 100])
@pytest.mark.parametrize("at_zero", [2.0, -0.5])
def test_what_no_mean_of_both_sides_is_is_wrong(at_zero: float, rows: int) -> None:
    report = check(relu(at_zero), rectified(rows, 80), raise_exception=False)
    assert report.verdict == "FAIL"


WRONG = {
    "a thousandth too much": lambda u, x: 1.001 * u * (x > 0),
    "one row is not written": lambda u, x: torch.cat([0 * u[:1], (u * (x > 0))[1:]]),
    "nothing is": lambda u, x: 0 * u,
    "all passes": lambda u, x: u,
}


@pytest.mark.parametrize("rows", [10, 100])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_on_every_side_does_not_pass(name: str, rows: int) -> None:
    fn, x = function(lambda x: x.clamp(min=0), WRONG[name]), rectified(rows, 80)
    assert check(fn, x, raise_exception=False).verdict != "PASS"
    # Without kinks, too.
    assert check(fn, x.detach() - 0.3, raise_exception=False).verdict == "FAIL"


def test_a_jump_is_no_kink() -> None:
    """Its gradient is that of the side on which it is what it is at the point."""

    def jumping(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, 1 + x, 0 * x)

    report = check(jumping, rectified(100, 80), raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"


def test_kinks_that_pick_their_sides_apart_are_not_passed_for_one() -> None:
    """Slopes of two sides that exclude each other: x > 0 and x < 0 at one place."""

    def backward(u: Any, x: Any) -> Any:
        # |x| as relu(x) + relu(-x), with 1 at zero for both: their sum is 0, and 1 - 0 is not.
        return u * torch.where(x == 0, 2.0, torch.sign(x))

    report = check(function(torch.abs, backward), rectified(100, 80), raise_exception=False)
    assert report.verdict == "FAIL"


def test_gradients_that_were_handed_in_are_asked_for_as_a_function() -> None:
    x = rectified(100, 80).detach().numpy()

    def cost(x: Any) -> Any:
        return float(np.sum(np.tanh(np.maximum(x, 0)) ** 2)) + float(np.sum(np.abs(x - 1)))

    def grads(x: Any) -> Any:
        t = np.tanh(np.maximum(x, 0))
        return 2 * t * (1 - t**2) * (x > 0) + np.sign(x - 1)

    y = np.where(x > 0.5, 1.0, x)
    assert check(cost, y, grads=grads)
    report = check(cost, y, grads=grads(y), raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"
    assert "give grads as a function" in report.findings[0].text


@pytest.mark.parametrize("seed", range(4))
def test_mistakes_at_equal_numbers_do_not_cancel_under_every_cotangent(seed: int) -> None:
    """Moving all zeros at once bears out a gradient by chance, if outputs have all signs."""
    torch.manual_seed(seed)
    x = torch.relu(torch.randn(300, dtype=DOUBLE)).requires_grad_()
    assert check(relu(2.0), x, raise_exception=False).verdict == "FAIL"


@pytest.mark.parametrize("name", ["topk", "sort"])
def test_a_choice_among_many_that_tie_is_called_wrong_by_nobody(name: str) -> None:
    """Where more are chosen than differ from zero, some zeros are, and no order says which."""
    fn = {"topk": lambda x: x.topk(60, -1).values, "sort": lambda x: x.sort(-1).values}[name]
    x = rectified(100, 80)
    assert check(fn, x, raise_exception=False).verdict != "FAIL"

    def backward(u: Any, x: Any) -> Any:
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(fn(own), own, u)
        return torch.where(x == 0, 2 * grad, grad)

    wrong = check(function(fn, backward), x, raise_exception=False)
    assert wrong.verdict == "FAIL"


def test_a_leaf_without_kinks_is_certified_where_it_is() -> None:
    """A mistake in a branch for small arguments is seen beside another leaf that lies on kinks."""

    def shared(v: Any) -> Any:
        return torch.where(v.abs() < 1e-8, 1 + v / 2, torch.expm1(v) / v)

    def backward(u: Any, v: Any) -> Any:
        far = (v * v.exp() - torch.expm1(v)) / v**2
        return u * torch.where(v.abs() < 1e-3, 0.98 * (0.5 + v / 3), far)

    fn = function(shared, backward)
    x, v = rectified(40, 80), torch.full((1,), 1e-5, dtype=DOUBLE, requires_grad=True)
    report = check(
        lambda x, v: torch.relu(x).tanh().sum() + fn(v).sum(), x, v, raise_exception=False
    )
    assert report.leaves["v"].verdict == "FAIL"


@pytest.mark.parametrize("seed", range(4))
def test_what_a_large_offset_hides_is_not_passed_for_a_kink(seed: int) -> None:
    """Near zero a slope is dropped, and the rounding of the value is as large as short moves."""

    def backward(u: Any, x: Any) -> Any:
        slope = torch.where(x.abs() < 1e-3, 0.0, 1 - torch.tanh(x) ** 2)
        return u * (slope + (x > 0).double())

    fn = function(lambda x: torch.tanh(x) + x.clamp(min=0), backward)
    drawn = np.random.default_rng(seed).normal(size=700)
    drawn[350] = 0.0
    x = torch.from_numpy(np.where(np.abs(drawn) < 1e-2, 0.0, drawn)).requires_grad_()
    report = check(lambda x: fn(x).sum() + 1e5, x, seed=seed, raise_exception=False)
    assert report.verdict != "PASS"


@pytest.mark.parametrize(("shape", "axis"), [((2, 300), 1), ((12, 100), 1), ((90, 6), 0)])
@pytest.mark.parametrize("mistake", ["none", "one percent", "the next one's"])
def test_equal_numbers_of_each_line_are_sorted_in_some_order(shape, axis, mistake):
    weights = torch.arange(shape[axis], dtype=torch.float64).sin()
    weights = weights.reshape([-1 if n == axis else 1 for n in range(2)])

    class Sorted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            values, places = x.sort(axis)
            ctx.save_for_backward(places)
            return (values * weights).sum()

        @staticmethod
        def backward(ctx, cotangent):
            (places,) = ctx.saved_tensors
            found = torch.zeros(shape, dtype=torch.float64)
            found = found.scatter(axis, places, weights.expand(shape).contiguous())
            found = found.roll(1, axis) if mistake == "the next one's" else found
            return cotangent * found * (1.01 if mistake == "one percent" else 1.0)

    draws = torch.Generator().manual_seed(0)
    x = torch.relu(torch.randn(*shape, generator=draws, dtype=torch.float64) - 0.3)
    report = check(Sorted.apply, x, raise_exception=False)
    assert report.verdict == ("PASS" if mistake == "none" else "FAIL")
    assert report.evaluations < 200
