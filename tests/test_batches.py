"""Many points of a leaf at once: as many evaluations, far fewer calls, the same verdicts."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fingerprint import fingerprint
from torch import nn
from torch.autograd.function import _SingleLevelFunction
from torch.nn import functional as F
from xgradcheck.backends.torch_exchanged import IS_BUILT_IN

from xgradcheck import GradientMismatch, Verdict, check

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: Any = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=F64, generator=generator).to(dtype)


X = normal(6, 8)
PLACES = torch.arange(48).reshape(6, 8) % 8


class Calls:
    """A function that counts its calls."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn, self.calls = fn, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.fn(*args, **kwargs)


class Square(torch.autograd.Function):
    """In the old form, which torch's vmap refuses."""

    factor = 2.0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        assert ctx.needs_input_grad == (True,)
        return ctx.saved_tensors[0] ** 2 if hasattr(ctx, "never") else x**2

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        return Square.factor * u * ctx.saved_tensors[0]


class WithSetup(torch.autograd.Function):
    """In the new form, still without a rule for batches."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        return u * ctx.saved_tensors[0].cos()


class WrongRule(WithSetup):
    """Right, but for what it gives in batches."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        return x.sin() * (1 + 1e-7 * x), in_dims[0]


class RightRule(WithSetup):
    """With a rule of its own, which counts how often it is asked."""

    asked = 0

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        RightRule.asked += 1
        return x.sin(), in_dims[0]


class Generated(WithSetup):
    """With a rule that torch makes."""

    generate_vmap_rule = True


class ThroughNumpy(Square):
    """Looks into the values."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)


def mask_of(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.3) * torch.rand_like(x)


BATCHED: dict[str, Callable[[torch.Tensor], Any]] = {
    "torch's own": lambda x: torch.softmax(x @ x.T, 1).log(),
    "the argument itself": lambda x: {"same": x, "sum": x.sum()},
    "a custom Function": lambda x: Square.apply(x).sum(1),
    "a Function that was bound before": Calls(Square.apply),
    "the form with setup_context": lambda x: WithSetup.apply(x),
    "a rule of its own": lambda x: RightRule.apply(x),
    "a rule that is generated": lambda x: Generated.apply(x),
    "dropout": mask_of,
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "complex numbers on the way": lambda x: torch.fft.rfft(x).abs(),
}
POOL = ThreadPoolExecutor(1)
KEPT: list[torch.Tensor] = []


def keeps(x: torch.Tensor) -> torch.Tensor:
    out = x.sin()
    KEPT.append(out)
    return out


def elsewhere(x: torch.Tensor) -> torch.Tensor:
    """Modes and batches are those of one thread."""
    small: torch.Tensor = POOL.submit(lambda: (x[0] ** 2).sum() * 0.01).result()
    return small + 10 * x[1:].sin().sum()


ONE_BY_ONE: dict[str, Callable[[torch.Tensor], Any]] = {
    "another thread": elsewhere,
    "a list that keeps what is computed": keeps,
    "an operation without a rule": lambda x: torch.zeros(6, 8, dtype=F64).scatter_(1, PLACES, x),
    "dropout in another order of memory": lambda x: F.dropout(x.T * 1, 0.5),
    "a look at the values": lambda x: x.exp() if x.sum() > -100 else x,
    "numpy inside": lambda x: ThroughNumpy.apply(x),
    "a wrong rule for batches": lambda x: WrongRule.apply(x),
    "an array that is written to": lambda x: torch.zeros(6, 8, dtype=F64).copy_(x).square(),
    "a Python number": lambda x: x.sin() + x * float(x.sum() > 99),
}


NOT_SINCE_2_14 = {"a Function that was bound before", "attention"}
"""A method that was bound before is none of Python's there; attention has no rule for batches."""


@pytest.mark.parametrize("name", BATCHED)
def test_points_are_evaluated_together(name: str) -> None:
    if IS_BUILT_IN and name in NOT_SINCE_2_14:
        pytest.skip("this version of torch has no way to")
    fn = Calls(BATCHED[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check(fn, X)
    assert report.evaluations > 2 * X.numel() and fn.calls < 50


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_what_cannot_be_batched_is_evaluated_one_by_one(name: str) -> None:
    fn = Calls(ONE_BY_ONE[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check(fn, X)
    assert report.verdict is Verdict.PASS and fn.calls >= 2 * X.numel()


def test_what_a_function_keeps_can_be_used() -> None:
    KEPT.clear()
    check(keeps, X)
    assert KEPT and all(np.isfinite(out.sum().item()) for out in KEPT)


def test_nothing_is_printed_below_python(capfd: pytest.CaptureFixture[str]) -> None:
    check(ONE_BY_ONE["an operation without a rule"], X)
    assert capfd.readouterr() == ("", "")


class Drop(torch.autograd.Function):
    """Its backward draws the mask again, in another order of memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return x * torch.empty_like(x).bernoulli_(0.5)

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return u * torch.empty(u.shape, dtype=u.dtype).bernoulli_(0.5)


def test_a_mask_that_is_drawn_again_in_another_order() -> None:
    assert check(lambda x: Drop.apply(x * 1), X)
    report = check(lambda x: Drop.apply(x.T * 1), X, raise_exception=False)
    assert report.verdict is Verdict.FAIL


class Flat(nn.Module):
    """Layers that are views of one parameter, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(normal(24))
        self.views = [self.flat[4:16].view(3, 4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.views[0].T + self.flat[:3]


def test_views_that_were_made_before() -> None:
    assert check(Flat(), normal(5, 4)).verdict is Verdict.PASS
    w = normal(24).requires_grad_()
    head = w.detach()[:3]
    report = check(
        lambda: (10 * w[3:] ** 2).sum() + 0.01 * head.sum(), wrt=[w], raise_exception=False
    )
    assert report.verdict is Verdict.FAIL


def test_a_wrong_element_is_found_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Square, "factor", 2.00001)
    with pytest.raises(GradientMismatch):
        check(Square.apply, X)


def test_a_batch_says_what_single_points_say() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x @ x.T).tanh() / (1 + x.square().sum(1))

    def looked_at(x: torch.Tensor) -> torch.Tensor:
        return fn(x) if x[0, 0].item() < 100 else x

    one, many = check(looked_at, X).leaves["x"], check(fn, X).leaves["x"]
    # Both know the derivative to rounding: sums over 48 numbers near 1, over steps of 1e-5.
    assert one.distance == pytest.approx(0, abs=1e-9) and many.distance == pytest.approx(
        0, abs=1e-9
    )
    assert one.verdict is many.verdict is Verdict.PASS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 5)
    return nn.Sequential(*parts).to(F64)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_modules_with_buffers_that_move(dtype: Any) -> None:
    net = network().to(dtype)
    before, calls = fingerprint(net), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    report = check(net, X.to(dtype), loss=lambda y: y.square().sum())
    assert fingerprint(net) == before
    # In float32 dropout draws in the old dtype, which no batch can do.
    assert dtype != F64 or len(calls) < 0.6 * report.evaluations


def test_closures_over_parameters_and_tensors() -> None:
    net, scale = network(), normal(8).requires_grad_()
    calls = []

    def loss() -> torch.Tensor:
        calls.append(1)
        return net(X * scale).square().mean()

    report = check(loss, wrt={"net": net, "scale": scale})
    assert len(calls) < 0.6 * report.evaluations


def test_a_complex_leaf_that_is_not_contiguous() -> None:
    z = torch.complex(normal(4, 3), normal(4, 3, seed=1)).T
    fn = Calls(lambda z: (z**2).sum(1))
    assert check(fn, z).verdict is Verdict.PASS
    assert fn.calls < 50


def test_batches_keep_the_strides() -> None:
    seen = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.stride())
        return x.cos()

    check(fn, X.T)
    assert set(seen) == {(1, 8)}


def test_few_points_at_once_where_much_is_computed() -> None:
    data = normal(4000, 50)
    largest = []

    def fn(w: torch.Tensor) -> torch.Tensor:
        hidden = data @ w
        largest.append(hidden.numel())
        return hidden.tanh().mean()

    calls = Calls(fn)
    check(calls, normal(50, 4))
    # 4,000 x 4 numbers twice, 8 bytes each: some hundred of them in 24 MiB.
    assert 20 < calls.calls < 200


def test_lstm_has_no_rule() -> None:
    torch.manual_seed(0)
    net = nn.LSTM(3, 4).to(F64)
    assert check(net, normal(5, 2, 3), loss=lambda y: y[0].sum()).verdict is Verdict.PASS


class Stop(BaseException):
    """As Ctrl-C."""


def test_what_is_put_in_place_for_a_batch_is_taken_away_again() -> None:
    net = network()
    before = fingerprint(net), dict(vars(_SingleLevelFunction)), dict(vars(torch._C))
    count = 0

    def stopping(y: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        if torch._C._functorch.maybe_current_level() is not None:
            raise Stop
        return y.sum()

    with pytest.raises(Stop):
        check(net, X, loss=stopping)
    assert (fingerprint(net), dict(vars(_SingleLevelFunction)), dict(vars(torch._C))) == before
    assert count > 1 and check(net, X, loss=lambda y: y.sum()).verdict is Verdict.PASS


def test_a_report_is_the_same_to_the_bit() -> None:
    def numbers() -> Any:
        report = check(lambda x: torch.softmax(x, 1).log(), X)
        return [(leaf.distance, leaf.floor) for leaf in report.leaves.values()]

    assert numbers() == numbers()
    assert np.isfinite(numbers()).all()
