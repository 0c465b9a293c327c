"""The verb audit where arguments vary: seeds, samples, what may be left out, and gradients that are
not meant to be those of their function.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from audited import function, normal
from torch import Tensor

from xgradcheck import GradientMismatch, InvalidCase, Report, Verdict, audit

Array = Any
X = normal(6, 3)


def probe(report: Report) -> Any:
    assert len(report.probes) == 1
    return report.probes[0]


def said(report: Report) -> str:
    return " ".join(finding.text for finding in report.findings)


# Seeds.


def dropping(x: Tensor, seed: int, backward: Any) -> Any:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mask = mask(seed, x)
        return x * ctx.mask

    return function(forward, backward)(x)


def mask(seed: int, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(x.shape, generator=generator) > 0.4).to(x.dtype) / 0.6


def with_its_mask(ctx: Any, grad: Tensor) -> Tensor:
    return grad * ctx.mask


def with_another_mask(ctx: Any, grad: Tensor) -> Tensor:
    return grad * (ctx.mask + 1e-9 * mask(7, grad))


def test_what_was_dropped_has_no_gradient_at_all() -> None:
    def right(x: Tensor, seed: int) -> Any:
        return dropping(x, seed, with_its_mask)

    def wrong(x: Tensor, seed: int) -> Any:
        return dropping(x, seed, with_another_mask)

    report = audit(right, X, 3, probes="seeds")
    assert probe(report).trials == ("the same seed again", "what the forward pass dropped of x")
    # As small as that no difference sees it.
    report = audit(wrong, X, 3, probes="seeds", raise_exception=False)
    assert probe(report).verdict is Verdict.FAIL
    assert "what the forward pass dropped of x has a gradient, first at x[" in said(report)


def test_a_seed_is_all_that_random_numbers_come_from() -> None:
    def wrong(x: Tensor, seed: int) -> Tensor:
        return x * torch.rand(3, dtype=torch.float64)

    report = audit(wrong, X, seed=3, kwargs={"seed": 1}, probes="seeds", raise_exception=False)
    assert "the same seed again gives other outputs" in said(report)
    assert probe(audit(torch.tanh, X, probes="seeds")).verdict is Verdict.SKIPPED
    dropout = audit(torch.nn.Dropout(0.4), X, probes="seeds")
    assert probe(dropout).trials == ("what the forward pass dropped of input",)


def test_outputs_in_any_memory_are_compared() -> None:
    def transposed(x: Tensor, seed: int) -> Tensor:
        return (x * mask(seed, x)).T

    report = audit(transposed, X, 3, probes="seeds")
    assert probe(report).trials == ("the same seed again",)


def test_a_seed_in_jax() -> None:
    def dropout(x: Array, seed: int) -> Array:
        return jnp.where(jax.random.bernoulli(jax.random.key(seed), 0.6, x.shape), x / 0.6, 0)

    x = jnp.asarray(X.numpy(), jnp.float32)
    assert len(probe(audit(dropout, x, 3, probes="seeds")).trials) == 2


# What the gradient is meant to be.


def rounded(backward: Any) -> Any:
    return function(lambda ctx, x: ctx.save_for_backward(x) or x.round(), backward, "Rounded")


def straight_through(ctx: Any, grad: Tensor) -> Tensor:
    return grad.clone()


def clipped_through(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * (x.abs() <= 1)


def test_a_surrogate_is_declared_and_the_report_says_so() -> None:
    fn = rounded(straight_through)
    with pytest.raises(GradientMismatch):
        audit(fn, X)
    report = audit(fn, X, expect="surrogate")
    assert report.verdict is Verdict.PASS
    assert report.leaves["args[0]"].verdict is Verdict.SKIPPED
    text = " ".join(str(report).split())
    assert "PASS Rounded: a surrogate, whose gradient was not compared; " in text
    assert "its gradient is declared a surrogate: it was not compared with differences" in text
    skipped = {p.name for p in report.probes if p.verdict is Verdict.SKIPPED}
    assert {"values", "second order", "forward mode"} <= skipped


def test_a_surrogate_has_to_keep_its_contract_all_the_same() -> None:
    report = audit(
        rounded(lambda ctx, grad: grad.mul_(2)), X, expect="surrogate", raise_exception=False
    )
    assert report.verdict is Verdict.FAIL
    assert "the cotangent" in said(report)
    broken = audit(
        rounded(lambda ctx, grad: grad / 0), X, expect="surrogate", raise_exception=False
    )
    assert broken.leaves["args[0]"].verdict is Verdict.FAIL


def test_a_gradient_that_is_stated_is_what_the_backward_has_to_give() -> None:
    def stated(grad: Tensor, x: Tensor) -> Tensor:
        return grad * (x.abs() <= 1)

    right = audit(rounded(clipped_through), X, expect=stated)
    assert right.leaves["args[0]"].verdict is Verdict.PASS
    assert "the gradient is as expected in 1 leaf" in str(right)
    assert "comparison of 18 coordinates" in str(right)
    values = next(p for p in right.probes if p.name == "values")
    assert "values times 100" in values.trials
    wrong = audit(rounded(straight_through), X, expect=stated, raise_exception=False)
    beyond = int((X.abs() > 1).sum())
    assert wrong.leaves["args[0]"].wrong == beyond > 0
    assert "beside the gradient that is expected" in said(wrong)
    assert "expected is 0" in str(wrong)


def test_a_stated_gradient_may_be_a_tree() -> None:
    fn = rounded(straight_through)
    right = audit(fn, X, loss=torch.sum, expect=torch.ones_like(X), probes="layout")
    assert right.verdict is Verdict.PASS
    with pytest.raises(InvalidCase, match="the gradient in expect belongs to a scalar"):
        audit(fn, X, expect=torch.ones_like(X))
    with pytest.raises(InvalidCase, match="expect='surogate' is neither 'surrogate' nor"):
        audit(fn, X, expect="surogate")
    with pytest.raises(InvalidCase, match="eps is for differences, and expect= makes none"):
        audit(fn, X, expect="surrogate", eps=1e-3)


# Arguments that may be left out.


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x**2 if scale is None else x**2 * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        if scale is None:
            return 2 * x * grad, None
        return 2 * x * grad * scale, (x**2 * grad).sum(0)


class NeedsScale(Scaled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        return 2 * x * grad * scale, (x**2 * grad).sum(0)


class OnlyWithScale(Scaled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        if scale is None:
            return x * grad, None
        return 2 * x * grad * scale, (x**2 * grad).sum(0)


def test_arguments_that_may_be_left_out_are_left_out() -> None:
    scale = normal(3, seed=1)
    assert probe(audit(Scaled.apply, X, scale, probes="optional")).trials == ("without scale",)
    raising = audit(NeedsScale.apply, X, scale, probes="optional", raise_exception=False)
    assert "without scale: raises TypeError" in said(raising)
    wrong = audit(OnlyWithScale.apply, X, scale, probes="optional", raise_exception=False)
    assert "without scale: args[0], every element" in said(wrong)
    assert probe(audit(torch.tanh, X, probes="optional")).verdict is Verdict.SKIPPED


# Values and sizes.


def test_indices_that_repeat() -> None:
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return table[index]

    def overwriting(ctx: Any, grad: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        out = grad.new_zeros(ctx.rows, grad.shape[1])
        out[index] = grad
        return out, None

    def adding(ctx: Any, grad: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_add_(0, index, grad), None

    index = torch.tensor([4, 0, 2])
    wrong = audit(function(forward, overwriting), X, index, probes="values", raise_exception=False)
    assert "indices that are all the same: args[0], 3 of 18 elements" in said(wrong)
    right = audit(function(forward, adding), X, index, probes="values")
    assert "indices that are all the same" in probe(right).trials


def test_an_empty_batch_must_not_break_the_backward_alone() -> None:
    def dividing(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (len(x) * 2 // len(x)) * x

    def square(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    shapes = {"none": (normal(0, 3),), "two": (normal(2, 3),)}
    wrong = audit(
        function(square, dividing), X, shapes=shapes, probes="shapes", raise_exception=False
    )
    assert "none: raises ZeroDivisionError" in said(wrong)
    right = audit(torch.square, X, shapes=shapes, probes="shapes")
    assert probe(right).trials == ("none", "two")


# Samples.


def halves(backward: Any) -> Any:
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x * w) ** 2

    return function(forward, backward)


def by_samples(ctx: Any, grad: Tensor) -> Any:
    x, w = ctx.saved_tensors
    return 2 * x * w**2 * grad, (2 * w * x**2 * grad).sum(0)


def in_whole_blocks(ctx: Any, grad: Tensor) -> Any:
    # Of two rows; those of six are right.
    of_x, of_w = by_samples(ctx, grad)
    of_x[len(of_x) // 2 * 2 :] = 0
    return of_x, of_w


def test_a_batch_gives_what_its_parts_give() -> None:
    w = normal(3, seed=1)
    report = audit(halves(by_samples), X, w, batch=0, probes="slices")
    assert probe(report).trials == ("the first 3 and the last 3 samples",)
    wrong = audit(halves(in_whole_blocks), X, w, batch=0, probes="slices", raise_exception=False)
    assert "the first 3 and the last 3 samples: beside its parts: args[0][5, " in said(wrong)
    assert probe(audit(torch.tanh, X, probes="slices")).verdict is Verdict.SKIPPED


def test_sums_and_means_over_a_batch() -> None:
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    loss = torch.nn.functional.cross_entropy
    for reduction in ("mean", "sum", "none"):
        options: Any = {"kwargs": {"reduction": reduction}, "batch": ("input", "target")}
        report = audit(loss, X, labels, **options, probes="slices")
        assert probe(report).verdict is Verdict.PASS, str(report)
    mixing = audit(lambda x: x - x.mean(0), X, batch="x", probes="slices")
    assert "its samples depend on each other" in probe(mixing).reason


def test_a_batch_along_another_axis_and_one_that_is_none() -> None:
    report = audit(lambda x: x.softmax(0), X, batch={"x": 1}, probes="slices")
    assert probe(report).trials == ("the first 2 and the last 1 samples",)
    with pytest.raises(InvalidCase, match="batch has 'y', which is no argument; they are x"):
        audit(lambda x: x**2, X, batch="y")
    with pytest.raises(InvalidCase, match="have 3, 6 samples: name those that share"):
        audit(lambda x, w: x * w, X, normal(3), batch=("x", "w"))
    with pytest.raises(InvalidCase, match="large compares samples: name the arguments"):
        audit(lambda x: x**2, X, large=True)


def counting_in_16_bits(ctx: Any, grad: Tensor) -> Any:
    of_x, of_w = by_samples(ctx, grad)
    offsets = np.arange(of_x.numel()).astype(np.int16).reshape(of_x.shape)
    return of_x.where(torch.from_numpy(offsets.copy()) >= 0, 0.0), of_w


def test_a_large_launch_gives_what_a_small_one_gives() -> None:
    w = normal(3, seed=1)
    options: Any = {"batch": 0, "large": 2**16, "probes": "slices"}
    right = audit(halves(by_samples), X, w, **options)
    assert probe(right).trials[1] == "11 of 21849 samples"
    # The last rows lie where 16 bits begin anew, and those before them below zero.
    wrong = audit(halves(counting_in_16_bits), X, w, **options, raise_exception=False)
    assert "11 of 21849 samples: beside its parts: args[0][218" in said(wrong)
    assert probe(wrong).trials[0] == "the first 3 and the last 3 samples"


def test_a_launch_that_is_too_large_is_left_out() -> None:
    report = audit(torch.tanh, X, batch=0, large=2**40, probes="slices")
    assert probe(report).verdict is Verdict.PASS
    assert "GiB, of " in probe(report).refused[0]
    small: Any = {"batch": 0, "large": 2**16, "memory": "1MiB", "probes": "slices"}
    report = audit(torch.tanh, X, **small)
    assert probe(report).refused == ("21849 samples take 3MiB, of 1MiB allowed",)


def test_numpy_batches_and_gradients_by_hand() -> None:
    x = X.numpy().copy()

    def loss(x: Array) -> Any:
        return (x**2).mean(1).mean()

    def slope(x: Array) -> Array:
        return 2 * x / x.size

    def of_six(x: Array) -> Array:
        return 2 * x / 18

    assert probe(audit(loss, x, grads=slope, batch="x", probes="slices")).trials
    report = audit(loss, x, grads=of_six, batch="x", probes="slices", raise_exception=False)
    assert report.leaves["x"].verdict is Verdict.PASS
    assert probe(report).verdict is Verdict.FAIL
