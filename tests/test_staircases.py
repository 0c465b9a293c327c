"""Functions whose slope is zero wherever they have one: what rounds, and what compares."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from audited import function

from xgradcheck import Report, Verdict, check

Staircase = Callable[[Any], Any]

TORCH: dict[str, Staircase] = {
    "quantiser": lambda x: torch.round(7 * x) / 7,
    "spike": lambda x: (x > 0).to(x.dtype),
    "sign": torch.sign,
}
JAX: dict[str, Staircase] = {
    "quantiser": lambda x: jnp.round(7 * x) / 7,
    "spike": lambda x: (x > 0).astype(x.dtype),
    "sign": jnp.sign,
    "step": lambda x: jnp.where(x > 0.5, 1.0, -1.0).astype(x.dtype),
}
NUMPY: dict[str, Staircase] = {
    "quantiser": lambda x: np.round(7 * x) / 7,
    "spike": lambda x: (x > 0).astype(x.dtype),
    "sign": np.sign,
}
CASES = [
    *(("torch", name) for name in TORCH),
    *(("jax", name) for name in JAX),
    *(("numpy", name) for name in NUMPY),
]


def judged(framework: str, name: str, x: np.ndarray, factor: float, seed: int) -> Report:
    """With ``factor`` times the cotangent for its gradient."""
    options: dict[str, Any] = {"seed": seed, "raise_exception": False}
    if framework == "torch":
        steps = TORCH[name]
        fn = function(lambda ctx, x: steps(x), lambda ctx, u: factor * u)
        return check(fn, torch.from_numpy(x), **options)
    if framework == "jax":
        rule = jax.custom_vjp(JAX[name])
        rule.defvjp(lambda x: (JAX[name](x), None), lambda _, u: (factor * u,))
        return check(rule, x, backend="jax", **options)
    return check(NUMPY[name], x, grads=lambda u, x: factor * u, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [20, 300, 2000])
@pytest.mark.parametrize(("framework", "name"), CASES)
def test_zero_is_right_and_a_straight_through_gradient_is_wrong(framework, name, size, dtype):
    for seed in range(2):
        x = np.random.default_rng(seed).normal(size=size).astype(dtype)
        report = judged(framework, name, x, 0.0, seed)
        assert report.verdict is Verdict.PASS, str(report)
        report = judged(framework, name, x, 1.0, seed)
        assert report.verdict is Verdict.FAIL, str(report)
        (said,) = (found.text for found in report.findings if found.kind == "staircase")
        assert "whose slope is 0" in said
        assert "expect=" in said


@pytest.mark.parametrize("shape", [(8, 6), (30, 20)])
def test_what_compares_and_computes_in_float32_is_no_staircase(shape):
    weights = np.random.default_rng(3).normal(size=shape[1]).astype(np.float32)

    def value(x):
        low = x.astype(np.float32) * weights
        kept = np.where(low > 0, low, np.float32(0.1) * low)
        return np.tanh(kept).astype(np.float64).sum()

    def slope(x):
        low = x.astype(np.float32) * weights
        kept = np.where(low > 0, low, np.float32(0.1) * low)
        return (1 - np.tanh(kept) ** 2) * np.where(low > 0, 1, 0.1) * weights

    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=shape)
        report = check(value, x, grads=slope, raise_exception=False)
        assert report.verdict is not Verdict.FAIL, str(report)
        wrong = check(value, x, grads=lambda x: 1.05 * slope(x), raise_exception=False)
        assert wrong.verdict is Verdict.FAIL
