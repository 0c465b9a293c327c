"""Right gradients where differences have a hard time: never wrong, at worst not to be told."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

from xgradcheck import check

F64 = torch.float64
INPUTS = torch.tensor([[0.1, 0.7], [0.3, 0.9], [0.5, 0.2]], dtype=F64)
BEST = torch.tensor([0.3, 0.6], dtype=F64)


def near(offset: float, *shape: int) -> Callable[[], Tensor]:
    return lambda: offset + torch.randn(*shape, dtype=F64)


def hilbert(size: int) -> Tensor:
    index = torch.arange(size, dtype=F64)
    return 1 / (index[:, None] + index + 1)


def orthogonal() -> Tensor:
    return torch.linalg.qr(torch.randn(4, 4, dtype=F64))[0]


HARD: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "an oscillation of 1e7": (lambda x: torch.sin(1e7 * x), near(0, 5)),
    "an oscillation of 1e8": (lambda x: torch.sin(1e8 * x), near(0, 5)),
    "sine at 1e10": (torch.sin, near(1e10, 5)),
    "sine at 1e11": (torch.sin, lambda: 1e11 * torch.randn(12, dtype=F64)),
    "log-sum-exp at 1e7": (lambda x: torch.logsumexp(x, 0), near(1e7, 5)),
    "softmax at 1e7": (lambda x: torch.softmax(x, 0), near(1e7, 5)),
    "sort at 1e6": (lambda x: x.sort(-1).values, near(1e6, 3, 4)),
    "distances at 1e6": (lambda x: torch.cdist(x, x + 0.5, p=1), near(1e6, 3, 4)),
    "kernel at 1e6": (
        lambda x: torch.exp(-((x[:, None] - x[None]) ** 2).sum(-1)),
        near(1e6, 3, 4),
    ),
    "standardised at 1e6": (lambda x: (x - x.mean()) / x.std(), near(1e6, 3, 4)),
    "qr at 1e6": (lambda x: torch.linalg.qr(x.T)[1], near(1e6, 3, 4)),
    "lost beside 1": (lambda x: torch.log(1 + x * x), lambda: torch.tensor([1e-9], dtype=F64)),
    "a jump at -0.0": (
        lambda x: torch.atan2(x[0], x[1]),
        lambda: torch.tensor([-0.0, -1.0], dtype=F64),
    ),
    "a loss without a doubt": (
        lambda x: -x.log_softmax(0)[0],
        lambda: torch.tensor([100, 0.2, 1.1], dtype=F64),
    ),
    "saturated": (torch.special.ndtr, near(10, 3, 4)),
    "saturated to the last bits": (torch.tanh, lambda: 8 + 12 * torch.rand(3, dtype=F64)),
    "saturated all the way": (lambda x: -torch.log(x.sigmoid()).mean(), near(34, 3)),
    "rounded inside": (torch.nn.functional.gelu, near(-7.5, 1)),
    "zero inside": (torch.nn.functional.gelu, lambda: torch.tensor([-20.0, -30.0], dtype=F64)),
    "cancelled by the norm": (
        lambda b: torch.nn.functional.batch_norm(INPUTS.T + b, None, None, training=True),
        near(0, 3),
    ),
    "next to a singularity": (
        lambda x: torch.log((x - 1).abs()),
        lambda: torch.tensor([1 + 1e-12, 2.3], dtype=F64),
    ),
    "nearly singular": (lambda a: torch.linalg.slogdet(a)[1], lambda: hilbert(9)),
    "an infinite slope": (torch.special.entr, lambda: torch.tensor([0.0, 0.5, 1.0], dtype=F64)),
    "an oscillation of 1e12": (lambda x: torch.sin(1e12 * x), near(0, 5)),
    "bfloat16 inside": (lambda x: x.bfloat16().double() @ INPUTS.T, near(0, 3, 2)),
    "float16 inside": (lambda x: (x.half() @ INPUTS.half().T).double().tanh(), near(0, 3, 2)),
}


@pytest.mark.parametrize("name", HARD)
def test_a_right_gradient_is_not_called_wrong(name: str) -> None:
    fn, draw = HARD[name]
    for seed in range(4):
        torch.manual_seed(seed)
        report = check(fn, draw(), seed=seed, raise_exception=False)
        assert report.verdict != "FAIL", str(report)


EXACT: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "least squares": (lambda w: ((INPUTS @ (w - BEST)) ** 2).sum(), BEST.clone),
    "rounded residuals": (lambda w: ((INPUTS @ w - INPUTS @ BEST) ** 2).sum(), BEST.clone),
    "orthogonality": (lambda w: ((w.T @ w - torch.eye(4, dtype=F64)) ** 2).sum(), orthogonal),
    "variance": (lambda x: x.var(-1), lambda: torch.ones(3, 4, dtype=F64)),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_rounding_at_a_minimum_is_zero(name: str) -> None:
    """The gradient there is what rounding left of it, and so is the difference."""
    fn, draw = EXACT[name]
    for seed in range(4):
        torch.manual_seed(seed)
        report = check(fn, draw(), seed=seed)
        assert "zero gradient" in str(report)


class Residuals(torch.autograd.Function):
    """The cost of ``least squares`` with a gradient that lacks its factor."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return ((INPUTS @ (w - BEST)) ** 2).sum()

    @staticmethod
    def backward(ctx, g):
        (w,) = ctx.saved_tensors
        return g * INPUTS.T @ (INPUTS @ (w - BEST))


def test_a_wrong_gradient_at_a_minimum_is_seen_near_by() -> None:
    report = check(Residuals.apply, BEST.clone(), raise_exception=False)
    assert report.verdict == "FAIL"
    assert [finding.kind for finding in report.findings] == ["only right at this point"]


class Spoiled(torch.autograd.Function):
    """``tanh``, whose gradient is off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return ctx.factor * g / torch.cosh(x) ** 2, None


@pytest.mark.parametrize("start", [0.5, 3.0, 7.0])
def test_a_wrong_gradient_is_seen_before_all_is_saturated(start: float) -> None:
    x = start + torch.linspace(0, 0.3, 3, dtype=F64)
    assert check(Spoiled.apply, x, 1.0)
    report = check(Spoiled.apply, x, 1.01, raise_exception=False)
    assert report.verdict == "FAIL"


def test_numbers_of_very_different_size_get_the_steps_that_suit_them() -> None:
    x = torch.tensor([1e-12, 1e-6, 0.1, 10.0, 1e6], dtype=F64)
    assert check(torch.log1p, x)
    wrong = check(
        lambda x: torch.log1p(x), x, grads=lambda u, x: 1.001 * u / (1 + x), raise_exception=False
    )
    assert wrong.verdict == "FAIL"


def test_an_infinite_gradient_is_wrong_where_the_slope_is_finite() -> None:
    x = torch.tensor([0.3, 0.5], dtype=F64)
    wrong = torch.tensor([float("inf"), 1.0], dtype=F64)
    report = check(lambda x: torch.sin(x).sum(), x, grads=wrong, raise_exception=False)
    assert report.verdict == "FAIL"


@pytest.mark.parametrize("seed", [18, 61])
def test_kinks_near_a_large_number_are_no_ties(seed: int) -> None:
    """Steps of its size leap over its neighbours, as if it were equal to them."""
    generator = torch.Generator().manual_seed(seed)
    x = 1e6 + torch.randn(3, 4, dtype=F64, generator=generator)
    report = check(lambda x: x.sort(-1).values, x, seed=seed, raise_exception=False)
    assert report.verdict != "FAIL", str(report)


FLAT: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "a relu": (lambda x: x.clamp(min=0), [-0.5, 1.2, -2.0, 0.3]),
    "a relu alone": (lambda x: x.clamp(min=0), [-0.5]),
    "a hinge far from here": (lambda x: (x.square().sum() - 1e4).clamp(min=0), [0.3, -1.2, 0.7]),
    "a square beyond a bound": (lambda x: (x - 50).clamp(min=0).square(), [0.3, -1.2]),
    "a clip at both ends": (lambda x: x.clamp(-1, 1), [2.5, 0.3, -7.0]),
}


@pytest.mark.parametrize("slope", [0.2, 0.01, -1e-4])
@pytest.mark.parametrize("name", FLAT)
def test_a_slope_where_phi_is_flat_is_wrong(name: str, slope: float) -> None:
    flat, point = FLAT[name]

    class Leaking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, more: float) -> Tensor:
            ctx.save_for_backward(x)
            ctx.more = more
            return flat(x)

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (right,) = torch.autograd.grad(flat(x), x, u)
            return right + ctx.more * (right == 0) * u.mean(), None

    x = torch.tensor(point, dtype=F64)
    assert check(lambda x: Leaking.apply(x, 0.0), x).verdict == "PASS"
    assert check(lambda x: Leaking.apply(x, slope), x, raise_exception=False).verdict == "FAIL"


@pytest.mark.parametrize("seed", range(6))
def test_a_product_with_a_zero_in_it_does_not_jump(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=5)
    x[2] = 0.0

    def others(x: np.ndarray) -> np.ndarray:
        return np.array([np.prod(np.delete(x, place)) for place in range(x.size)])

    assert check(np.prod, x, grads=others).verdict == "PASS"
    report = check(np.prod, x, grads=lambda x: others(x) * (x != 0), raise_exception=False)
    assert report.verdict == "FAIL"


class Through(torch.autograd.Function):
    """A staircase, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stairs: Callable[[Tensor], Tensor]) -> Tensor:
        return stairs(x)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return u, None


STAIRS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": torch.round,
    "floor": torch.floor,
    "an eighth": lambda x: (8 * x).round() / 8,
    "8 bits": lambda x: (127 * x).round() / 127,
    "whole numbers": lambda x: x.long().double() + 0 * x,
}


@pytest.mark.parametrize("far", [1.0, 30.0])
@pytest.mark.parametrize("name", STAIRS)
def test_a_staircase_has_no_slope(name: str, far: float) -> None:
    stairs = STAIRS[name]
    for seed in range(4):
        torch.manual_seed(seed)
        x = far * torch.randn(5, dtype=F64)
        right = check(stairs, x, raise_exception=False)
        wrong = check(lambda x: Through.apply(x, stairs), x, raise_exception=False)
        # Where a tread is narrower than the steps that were tried, it is left open.
        assert right.verdict != "FAIL" and wrong.verdict != "PASS"
        if name != "8 bits":
            assert right.verdict == "PASS"
        if name != "8 bits" and far > 1:
            assert wrong.verdict == "FAIL"


def test_a_staircase_has_no_slope_in_jax_and_numpy_either() -> None:
    x = 30 * np.random.default_rng(0).normal(size=5)
    assert check(jnp.round, x, backend="jax").verdict == "PASS"
    assert check(np.round, x, grads=lambda u, x: 0 * u).verdict == "PASS"
    stairs = jax.custom_vjp(jnp.floor)
    stairs.defvjp(lambda x: (jnp.floor(x), None), lambda _, u: (u,))
    assert check(stairs, x, backend="jax", raise_exception=False).verdict == "FAIL"
    report = check(np.floor, x, grads=lambda u, x: u, raise_exception=False)
    assert report.verdict == "FAIL"


# A function that divides by its argument, its derivative, and both of them at 0.
DIVIDED: dict[str, tuple[Callable[..., Any], Callable[..., Any], float, float]] = {
    "(exp(x) - 1) / x": (
        lambda x: (np.exp(x) - 1) / x,
        lambda x: (np.exp(x) * (x - 1) + 1) / x**2,
        1.0,
        1 / 2,
    ),
    "log(1 + x) / x": (
        lambda x: np.log(1 + x) / x,
        lambda x: 1 / (x * (1 + x)) - np.log(1 + x) / x**2,
        1.0,
        -1 / 2,
    ),
    "(1 - cos(x)) / x^2": (
        lambda x: (1 - np.cos(x)) / x**2,
        lambda x: np.sin(x) / x**2 - 2 * (1 - np.cos(x)) / x**3,
        1 / 2,
        0.0,
    ),
}


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize(("size", "zeros"), [(6, 1), (60, 20), (400, 150)])
def test_what_divides_by_a_zero_has_the_slope_of_its_limit(
    name: str, size: int, zeros: int
) -> None:
    function, derivative, limit, slope = DIVIDED[name]
    point = np.random.default_rng(7).uniform(0.3, 2.0, size)
    point[:zeros] = 0.0

    def fn(x: np.ndarray) -> np.ndarray:
        return np.where(x == 0, limit, function(np.where(x == 0, 1.0, x)))

    def verdict(at_zero: float, factor: float) -> str:
        def grads(cotangent: np.ndarray, x: np.ndarray) -> np.ndarray:
            there = factor * derivative(np.where(x == 0, 1.0, x))
            return cotangent * np.where(x == 0, at_zero, there)

        return str(check(fn, point, grads=grads, raise_exception=False).verdict)

    assert verdict(slope, 1.0) == "PASS"
    assert verdict(slope + 0.01, 1.0) == "FAIL"
    assert verdict(slope, 1.01) == "FAIL"


class Table(torch.autograd.Function):
    """Linear interpolation at places of a table, with a gradient that is off by a factor."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, places: Tensor, table: Tensor) -> Tensor:
        below = places.floor().clamp(0, len(table) - 2)
        share, below = places - below, below.long()
        ctx.save_for_backward(table[below + 1] - table[below])
        return table[below] * (1 - share) + table[below + 1] * share

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return Table.factor * cotangents[0] * ctx.saved_tensors[0], None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["a random walk", "a wave"])
@pytest.mark.parametrize("seed", range(3))
def test_kinks_near_by_are_no_arithmetic_in_float32(
    kind: str, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    walk, wave = torch.randn(3001).cumsum(0), torch.sin(0.17 * torch.arange(3001))
    table = (walk if kind == "a random walk" else wave).to(dtype)
    places = (3000 * torch.rand(200)).to(dtype)

    def report(factor: float) -> Any:
        Table.factor = factor
        return check(Table.apply, places, table, wrt=0, seed=seed, raise_exception=False)

    right = report(1.0)
    assert right.verdict == "PASS", str(right)
    assert "low precision" not in str(right)
    assert report(1.01).verdict == "FAIL"


class Decays(torch.autograd.Function):
    """Decays between events, whose times may count from anywhere; its gradients times factors."""

    factors = (1.0, 1.0)

    @staticmethod
    def plain(times: Tensor, tau: Tensor) -> Tensor:
        return torch.exp(-(times[:, None] - times).abs() / tau).sum(1)

    @staticmethod
    def forward(ctx: Any, times: Tensor, tau: Tensor) -> Tensor:
        ctx.save_for_backward(times, tau)
        return Decays.plain(times, tau)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            found = torch.autograd.grad(Decays.plain(*inputs), inputs, cotangents[0])
        return tuple(f * x for f, x in zip(Decays.factors, found, strict=True))


@pytest.mark.parametrize("offset", [0.0, 1e4, 2.45e6, 1.7e9])
@pytest.mark.parametrize("seed", range(3))
def test_an_offset_hides_nothing(offset: float, seed: int) -> None:
    torch.manual_seed(seed)
    times, tau = offset + torch.rand(12, dtype=F64).cumsum(0), torch.tensor(0.8, dtype=F64)

    def verdicts(*factors: float) -> list[str]:
        Decays.factors = factors
        report = check(Decays.apply, times, tau, seed=seed, raise_exception=False)
        return [str(leaf.verdict) for leaf in report.leaves.values()]

    assert verdicts(1.0, 1.0) == ["PASS", "PASS"]
    assert verdicts(1.01, 1.0) == ["FAIL", "PASS"]
    assert verdicts(1.0, 0.0) == ["PASS", "FAIL"]


@pytest.mark.parametrize(("offset", "step"), [(1.7e9, 128.0), (1e7, 1.0), (6.4e6, 5.0)])
def test_an_offset_in_float32_hides_nothing_either(offset: float, step: float) -> None:
    x = (offset + step * torch.arange(12)).float()

    class Wave(torch.autograd.Function):
        factor = 1.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.sin((x - offset) / (2 * step))

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            slope = torch.cos((x - offset) / (2 * step)) / (2 * step)
            return Wave.factor * cotangents[0] * slope

    for factor, verdict in ((1.0, "PASS"), (1.01, "FAIL"), (0.0, "FAIL")):
        Wave.factor = factor
        assert check(Wave.apply, x, raise_exception=False).verdict == verdict


@pytest.mark.parametrize("size", [1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_a_few_parameters_of_next_to_no_size(size: float, factor: float, verdict: str) -> None:
    """Swept: their own steps would move phi by less than its rounding."""
    rng = np.random.default_rng(4)
    x, w, b = rng.normal(size=(5, 4)), rng.normal(size=(4, 6)), size * rng.normal(size=6)

    def gradients(x: Any, w: Any, b: Any) -> Any:
        slope = 1 / np.cosh(x @ w + b) ** 2
        return slope @ w.T, x.T @ slope, factor * slope.sum(0)

    report = check(
        lambda x, w, b: np.tanh(x @ w + b).sum(),
        *(x, w, b),
        wrt=(0, 1, 2),
        grads=gradients,
        raise_exception=False,
    )
    verdicts = [str(leaf.verdict) for leaf in report.leaves.values()]
    assert verdicts == ["PASS", "PASS", verdict]
