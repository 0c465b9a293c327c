"""A float64 function that computes in fewer bits on its way is recognised, and judged as such."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xgradcheck import check

X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

PLACES = {
    "at the entrance": lambda x, w: (x.float() @ w.float()).double().tanh(),
    "in the middle": lambda x, w: (x @ w).float().double().tanh(),
    "at the exit": lambda x, w: (x @ w).tanh().sum().float().double(),
}


def kinds(report):
    return [finding.kind for finding in report.findings]


@pytest.mark.parametrize("place", PLACES)
def test_float32_is_seen_wherever_it_is(place):
    report = check(PLACES[place], X, W)
    assert report.verdict == "PASS"
    assert report.precision == "float32"
    assert kinds(report) == ["low precision inside"]
    assert "(float32)" in str(report)


class Square(torch.autograd.Function):
    factor = 2.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x.float() ** 2).double()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * Square.factor * x


def test_float32_is_seen_inside_a_function_with_a_backward_of_its_own(monkeypatch):
    assert check(Square.apply, X).precision == "float32"
    monkeypatch.setattr(Square, "factor", 2.002)
    assert check(Square.apply, X, raise_exception=False).verdict == "FAIL"


def test_float32_is_seen_in_jax():
    def fn(x):
        return jnp.tanh(x.astype(jnp.float32) * 2).astype(jnp.float64)

    report = check(fn, X.numpy(), backend="jax")
    assert report.precision == "float32" and kinds(report) == ["low precision inside"]


def test_float32_is_seen_in_numpy_where_no_graph_tells():
    def fn(x):
        return float(np.tanh(x.astype(np.float32)).sum() * np.pi)

    report = check(fn, X.numpy(), grads=lambda x: np.pi / np.cosh(x) ** 2)
    assert report.precision == "float32"


def test_a_side_branch_without_noise_changes_nothing():
    """Comparisons and masks in float32 are exact."""

    def fn(x):
        mask = (x.float() > 0).float()
        return (x * mask.double()).sum()

    report = check(fn, X)
    assert report.precision == "float64" and report.findings == ()


def test_float64_is_not_taken_for_less():
    for fn in (torch.sin, torch.cumsum):
        report = check(fn, X, *([0] if fn is torch.cumsum else []))
        assert report.precision == "float64"


def test_the_tolerance_asked_for_holds_in_any_precision():
    report = check(PLACES["at the exit"], X, W, rtol=1e-9, raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"


def test_random_numbers_of_float32_in_jax_are_not_computed_from_the_arguments():
    """Dropout draws in float32 beside a float64 program."""
    key = jax.random.key(0)

    @jax.jit
    def fn(x):
        mask = jax.random.bernoulli(key, np.float32(0.5), x.shape)
        return jnp.where(mask, x, 0.0) * jax.random.uniform(key, x.shape, jnp.float32).astype(
            jnp.float64
        )

    report = check(fn, X.numpy(), backend="jax")
    assert report.verdict == "PASS" and report.precision == "float64"


def test_values_that_differ_by_their_last_bits_are_no_low_precision():
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    report = check(lambda x: x.softmax(-1).sum(), x, raise_exception=False)
    assert report.verdict != "FAIL" and report.precision == "float64"
