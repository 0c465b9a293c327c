"""Kernels that run in one dtype below float64 alone: found out, said so, judged as they run."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from audited import function
from test_audit import TORCH_FUNCTIONS
from torch import Tensor

from xgradcheck import Report, Verdict, _measure, check
from xgradcheck._projected import NeedsNear

LOW = ("bfloat16", "float16", "float32")
OPTIONS = ("wrt", "kwargs", "loss", "constraint")


def in_one_dtype(fn: Callable[..., Any], dtype: torch.dtype, factor: float) -> Callable[..., Any]:
    """The function as a kernel of one dtype has it; its gradients multiplied by ``factor``."""
    scaled = function(lambda ctx, x: x.clone(), lambda ctx, grad: grad * factor)

    def only(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if x.dtype is not dtype:
            raise TypeError(f"this kernel is one of {dtype}, not of {x.dtype}")
        return scaled(x)

    return lambda *args, **kwargs: fn(*map(only, args), **kwargs)


def judged(name: str, dtype: str, factor: float) -> Report | None:
    """The report; None where torch has no such operator in that dtype."""
    fn, args, options = TORCH_FUNCTIONS[name]
    kind = getattr(torch, dtype)
    low = [a.to(kind) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    try:
        fn(*low, **options.get("kwargs", {}))
    except (RuntimeError, NotImplementedError):
        return None
    own = {key: value for key, value in options.items() if key in OPTIONS}
    return check(in_one_dtype(fn, kind, factor), *low, raise_exception=False, **own)


# Steps of eight bits cross their kinks; the differences of a symmetric matrix are its own.
LEFT_OPEN = {"maximum", "minimum", "linalg_eigvalsh"}


def some(every: int) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if number % every else [])
        for number, name in enumerate(TORCH_FUNCTIONS)
    ]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", some(16))
def test_a_right_kernel_passes(name: str, dtype: str) -> None:
    report = judged(name, dtype, 1.0)
    if report is None:
        pytest.skip("not in this dtype")
    assert report or (report.verdict is Verdict.INCONCLUSIVE and name in LEFT_OPEN), str(report)
    assert any(f"truth in {dtype}" in finding.kind for finding in report.findings)


@pytest.mark.parametrize("factor", [-1.0, 2.0, 1.3, 0.0])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", some(28))
def test_a_wrong_kernel_never_passes(name: str, dtype: str, factor: float) -> None:
    report = judged(name, dtype, factor)
    if report is None:
        pytest.skip("not in this dtype")
    floor = max(leaf.floor for leaf in report.leaves.values())
    assert not report or floor >= abs(factor - 1) / max(1, abs(factor)), str(report)
    # Differences of 16 bits do not tell everything from rounding.
    if dtype == "float32" or (dtype == "float16" and factor != 1.3):
        assert report.verdict is Verdict.FAIL, str(report)


def test_a_layer_norm_in_bfloat16_is_passed_and_failed_by_directions() -> None:
    def layer_norm(factor: float) -> Any:
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            assert x.dtype is torch.bfloat16, "a kernel of bfloat16"
            centred = x.float() - x.float().mean(-1, keepdim=True)
            scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
            ctx.save_for_backward(centred * scale, scale, weight.float())
            return (centred * scale * weight.float()).to(x.dtype)

        def backward(ctx: Any, grad: Tensor) -> Any:
            normed, scale, weight = ctx.saved_tensors
            inner = grad.float() * weight
            along = (inner * normed).mean(-1, keepdim=True)
            of_x = scale * (inner - inner.mean(-1, keepdim=True) - normed * along)
            of_weight = (grad.float() * normed).sum(0)
            return (factor * of_x).to(grad.dtype), of_weight.to(grad.dtype)

        return function(forward, backward, "LayerNorm")

    generator = torch.Generator().manual_seed(0)
    for seed in range(4):
        x, weight = (
            torch.randn(*shape, generator=generator).bfloat16() for shape in ((16, 40), (40,))
        )
        assert check(layer_norm(1.0), x, weight, seed=seed)
        report = check(layer_norm(-1.0), x, weight, seed=seed, raise_exception=False)
        assert report.verdict is Verdict.FAIL, str(report)
        assert report.leaves["args[0]"].verdict is Verdict.FAIL
        assert report.leaves["args[1]"].verdict is not Verdict.FAIL


def test_a_sweep_asks_what_rounding_does_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions may ask that of a few coordinates, and leave all to a sweep then."""
    asked = []

    def given_up(phi: Any, value: Any, spread: Any, runs: Any, *_: Any, **__: Any) -> None:
        asked.append(runs[-1].near)
        if runs[-1].near is None:
            raise NeedsNear(np.array([0, 1]), cast(Any, object()))

    monkeypatch.setattr(_measure, "projected", given_up)
    x = torch.linspace(-1, 1, 40)
    wrong = function(lambda ctx, x: x.clone(), lambda ctx, grad: grad * 1.01)
    for fn, verdict in ((torch.sin, "PASS"), (lambda x: wrong(x).sin(), "FAIL")):
        report = check(fn, x, coverage="projection", raise_exception=False)
        assert report.verdict == verdict and report.coverage == "sweep"
    assert [near is None for near in asked[:2]] == [True, False]


@pytest.mark.parametrize("seed", range(35, 65))
@pytest.mark.parametrize(("error", "verdict"), [(0.0, "PASS"), (1e-6, "FAIL")])
def test_constants_of_a_float32_function_may_be_float32(seed, error, verdict):
    """Two terms cancel to nearly nothing, and each has a constant that is rounded."""
    rng = np.random.default_rng(seed)
    X, W = (rng.normal(size=s).astype(np.float32) for s in ((6, 3), (3, 4)))

    def cost(W):
        return -np.mean(np.tanh(X @ W) ** 2) + 0.05 * np.sum(W**2)

    def gradient(W):
        t = np.tanh(X @ W)
        found = np.float32(0.1) * W - X.T @ (np.float32(2 / 24) * t * (1 - t * t))
        found[0, 0] += error * np.sqrt(np.mean(found**2)) + error * abs(found[0, 0])
        return found

    report = check(cost, W, grads=gradient, raise_exception=False)
    assert report.verdict == verdict


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wrong", [False, True])
def test_numbers_that_tie_in_16_bits_are_no_mistake(seed, wrong):
    """Of numbers next to 1 another one is the largest once they are rounded; a row that 16 bits
    lose is one all the same.
    """
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(seed)) * 0.01

    def lost(ctx: Any, cotangent: Tensor) -> Tensor:
        if wrong and cotangent.dtype == torch.bfloat16:
            return torch.cat([0 * cotangent[:1], cotangent[1:]])
        return cotangent

    through = function(lambda ctx, x: x.clone(), lost)
    largest = check(lambda x: (1 + x).amax(-1), x.bfloat16(), raise_exception=False)
    assert largest.verdict in ("PASS", "INCONCLUSIVE")
    report = check(lambda x: torch.tanh(through(x)), x.bfloat16(), raise_exception=False)
    assert report.verdict == ("FAIL" if wrong else "PASS")
