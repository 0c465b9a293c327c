"""Compiled kernels as they are: they take float64 and compute in float32 nevertheless, or refuse
it, or round what they multiply; none of that can be seen from outside.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from audited import Changed, function
from torch import Tensor
from torch.nn import functional as F

from xgradcheck import Report, Verdict, check
from xgradcheck._report import LeafReport

DTYPES = [torch.float32, torch.bfloat16]
Plain = Callable[..., Tensor]


def kernel(plain: Plain, takes: tuple[torch.dtype, ...] = (*DTYPES, torch.float64)) -> Any:
    """A function that is computed in float32, whatever it is given, as a compiled one would."""

    def inside(xs: tuple[Tensor, ...]) -> list[Tensor]:
        return [x.detach().float().requires_grad_() for x in xs]

    def forward(ctx: Any, *xs: Tensor) -> Tensor:
        if xs[0].dtype not in takes:
            raise KeyError(xs[0].dtype)
        ctx.save_for_backward(*xs)
        with torch._C.DisableTorchFunction():  # nothing is seen of what a kernel does
            return plain(*inside(xs)).detach().to(xs[0].dtype)

    def backward(ctx: Any, cotangent: Tensor) -> Any:
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            xs = inside(ctx.saved_tensors)
            found = torch.autograd.grad(plain(*xs), xs, cotangent.float())
            return tuple(g.to(x.dtype) for g, x in zip(found, ctx.saved_tensors, strict=True))

    return function(forward, backward, "Kernel")


def cast_gate() -> Any:
    """SwiGLU that casts the gate alone."""

    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with torch._C.DisableTorchFunction():
            return F.silu(a.float()).to(b.dtype) * b

    def backward(ctx: Any, cotangent: Tensor) -> Any:
        a, b = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            wide = a.float()
            chance = torch.sigmoid(wide)
            silu = wide * chance
            slope = (silu * (1 - chance) + chance).to(b.dtype)
            return cotangent * slope * b, cotangent * silu.to(b.dtype)

    return function(forward, backward, "SwiGLU")


def to_tf32(x: Tensor, is_cut: bool) -> Tensor:
    """Rounded, or cut as some cards do."""
    bits = x.contiguous().view(torch.int32)
    return ((bits if is_cut else bits + 0x1000) & ~0x1FFF).view(torch.float32)


def product(a: Tensor, b: Tensor, is_cut: bool = False) -> Tensor:
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return to_tf32(a, is_cut) @ to_tf32(b, is_cut)

    def backward(ctx: Any, cotangent: Tensor) -> Any:
        a, b = ctx.saved_tensors
        rounded = to_tf32(cotangent, is_cut)
        return rounded @ to_tf32(b, is_cut).mT, to_tf32(a, is_cut).mT @ rounded

    found: Tensor = function(forward, backward, "Product")(a, b)
    return found


def cut(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b, is_cut=True)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return product(F.softmax(product(q, k.mT) / q.shape[-1] ** 0.5, -1), v)


def divergence(x: Tensor) -> Tensor:
    """The float32 of the rows is gone once they are summed in float64."""
    shares = torch.linspace(0.01, 1, x.shape[-1]).softmax(-1)
    rows = kernel(lambda y: F.kl_div(y, shares.expand_as(y), reduction="none").sum(-1))
    found: Tensor = rows(x.log_softmax(-1)).double().mean()
    return found


def loss_of(labels: Tensor) -> Plain:
    return lambda x, w: F.cross_entropy(x @ w.T, labels)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


MADE: dict[str, Callable[[], tuple[Any, tuple[Tensor, ...]]]] = {
    "softmax": lambda: (kernel(lambda x: x.softmax(-1)), (drawn(32, 300),)),
    "layer norm": lambda: (
        kernel(lambda x, w: F.layer_norm(x, x.shape[-1:], w)),
        (drawn(64, 200), drawn(200)),
    ),
    "gate": lambda: (cast_gate(), (drawn(32, 200), drawn(32, 200))),
    "divergence": lambda: (divergence, (drawn(32, 100),)),
    "softmax that refuses float64": lambda: (
        kernel(lambda x: x.softmax(-1), (*DTYPES,)),
        (drawn(32, 300),),
    ),
    "loss that refuses float64": lambda: (
        kernel(loss_of(torch.arange(64)), (*DTYPES,)),
        (drawn(64, 32), 0.2 * drawn(64, 32)),
    ),
    "a few that refuse float64": lambda: (kernel(torch.tanh, (*DTYPES,)), (drawn(3, 4),)),
}


def spoilt(fn: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The function, with the gradient of its first argument changed."""
    return lambda x, *others: fn(Changed.apply(x, lambda u: change(u.contiguous())), *others)


def first(report: Report) -> LeafReport:
    return next(iter(report.leaves.values()))


def without_a_row(gradient: Tensor) -> Tensor:
    gradient[1] = 0
    return gradient


def off_in_one(gradient: Tensor) -> Tensor:
    gradient[0, 1] += 2 * gradient.float().square().mean().sqrt().to(gradient.dtype)
    return gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MADE)
def test_kernels_that_compute_in_float32(name: str, dtype: torch.dtype) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        fn, args = MADE[name]()
        args = tuple(x.to(dtype) for x in args)
        report = check(fn, *args, seed=seed, raise_exception=False)
        assert report.verdict is Verdict.PASS, str(report)
        assert report.evaluations < 500, str(report)
        for change in (without_a_row, off_in_one):
            report = check(spoilt(fn, change), *args, seed=seed, raise_exception=False)
            assert report.verdict is Verdict.FAIL, str(report)
            assert first(report).verdict is Verdict.FAIL


def test_what_refuses_float64_is_raised_to_float32() -> None:
    torch.manual_seed(0)
    fn, x = kernel(lambda x: x.softmax(-1), (*DTYPES,)), torch.randn(8, 9).bfloat16()
    report = check(fn, x)
    assert [row.judged for row in first(report).rows] == ["float32 as run", "bfloat16 as run"]
    (finding,) = report.findings
    assert finding.kind == "truth in float32"
    assert "raising to float64 changes this function (KeyError" in finding.text
    assert "raised to float32 and differenced there" in finding.text
    report = check(fn, x.float())
    assert "differenced as it runs" in report.findings[0].text
    only = kernel(lambda x: x.softmax(-1), (torch.bfloat16,))
    report = check(only, x, raise_exception=False)
    assert "bfloat16: raising to float64" in report.findings[-1].text


@pytest.mark.parametrize("fn", [product, cut, attention])
def test_products_that_round_what_they_multiply(fn: Any) -> None:
    torch.manual_seed(0)
    count = 3 if fn is attention else 2
    args = [torch.randn(64, 64) for _ in range(count)]
    report = check(fn, *args)
    assert report.precision == "TF32"
    for change in (lambda g: 1.1 * g, without_a_row):
        report = check(spoilt(fn, change), *args, raise_exception=False)
        assert report.verdict is Verdict.FAIL
        assert first(report).verdict is Verdict.FAIL


def test_sums_that_cancel_are_computed_as_they_are() -> None:
    """A phi near zero is no noise."""
    torch.manual_seed(0)
    for _ in range(20):
        x = torch.randn(400)
        weights = torch.randn(400)
        weights -= x.sin() * (weights @ x.sin()) / (x.sin() @ x.sin())
        report = check(lambda x, w=weights: (w * x.sin()).sum(), x)
        assert [row.precision for row in report.leaves["x"].rows] == ["float64", "float32"]


def test_large_kernels_are_told_by_a_few_of_their_coordinates() -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        x = drawn(1200, 1024).to(dtype)
        assert check(divergence, x, raise_exception=False).verdict is Verdict.PASS
        report = check(spoilt(divergence, lambda u: u * 1.05), x, raise_exception=False)
        assert report.verdict is Verdict.FAIL, str(report)


class SingleSoftmax(torch.autograd.Function):
    """A softmax in float32, of whatever it is given."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        shares = x.float().softmax(-1)
        ctx.save_for_backward(shares)
        return shares.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        (shares,) = (saved.double() for saved in ctx.saved_tensors)
        return shares * (u - (shares * u).sum(-1, keepdim=True))


def with_single_softmax(q: Any, k: Any, v: Any) -> Any:
    return SingleSoftmax.apply(q @ k.mT / 2) @ v


def attention_by_hand(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    scores = (q @ k.swapaxes(-1, -2) / 2).astype(np.float32)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = (shares / shares.sum(-1, keepdims=True)).astype(np.float64)
    return shares @ v, (q, k, v, shares)


def pulled_back(factor: float) -> Any:
    def backward(u: Any, cache: Any) -> Any:
        q, k, v, shares = cache
        along = u @ v.swapaxes(-1, -2)
        scores = shares * (along - (shares * along).sum(-1, keepdims=True)) / 2
        return scores @ k, factor * scores.swapaxes(-1, -2) @ q, shares.swapaxes(-1, -2) @ u

    return backward


@pytest.mark.parametrize("length", [8, 16, 40])
@pytest.mark.parametrize("seed", range(3))
def test_a_part_in_float32_of_a_function_in_float64(length: int, seed: int) -> None:
    """What is rounded slopes like the rest along some directions, and no graph shows it."""
    rng = np.random.default_rng(seed)
    arrays = tuple(rng.normal(size=(2, length, 4)) for _ in range(3))
    tensors = [torch.from_numpy(array) for array in arrays]
    reports = [
        check(with_single_softmax, *tensors, seed=seed),
        check(attention_by_hand, *arrays, grads=pulled_back(1.0), seed=seed),
    ]
    for report in reports:
        assert report.verdict is Verdict.PASS
        assert "float32" in report.precision
    wrong = check(
        attention_by_hand, *arrays, grads=pulled_back(1.01), seed=seed, raise_exception=False
    )
    assert [name for name, leaf in wrong.leaves.items() if leaf.verdict is Verdict.FAIL] == ["k"]


class Block(torch.nn.Module):
    """Attention with shares in float32, and a relu, whose kinks forbid wide steps."""

    def __init__(self, softmax: Any, factor: float = 1.0) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(20, 16)
        self.heads = torch.nn.Linear(16, 48, bias=False)
        self.up, self.down = torch.nn.Linear(16, 64), torch.nn.Linear(64, 16, bias=False)
        self.softmax, self.factor = softmax, factor

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        q, k, v = self.heads(x).chunk(3, -1)
        x = x + self.softmax(q @ k.mT / 4) @ v
        hidden = self.up(x).relu()
        return x + self.down(Changed.apply(hidden, lambda u: self.factor * u))


@pytest.mark.parametrize(
    "softmax",
    [lambda x: x.softmax(-1, dtype=torch.float32).to(x.dtype), SingleSoftmax.apply],
    ids=["told by its graph", "hidden in a function"],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_network_that_is_in_float32_in_places_is_raised(softmax: Any, seed: int) -> None:
    torch.manual_seed(seed)
    tokens = torch.randint(0, 20, (2, 6))
    report = check(Block(softmax).double(), tokens, seed=seed)
    assert report.evaluations < 100
    assert [finding.kind for finding in report.findings] == ["low precision inside"]
    rows = report.leaves["up.weight"].rows
    assert [row.judged for row in rows] == ["float64", "float32 as run"]
    wrong = check(Block(softmax, 1.01).double(), tokens, seed=seed, raise_exception=False)
    assert wrong.verdict is Verdict.FAIL
    assert wrong.leaves["down.weight"].verdict is Verdict.PASS
    assert wrong.leaves["up.weight"].verdict is Verdict.FAIL
