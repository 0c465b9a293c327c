"""Products in float32 that round what they multiply to TF32: right ones pass, wrong ones do not."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from audited import function
from torch import Tensor

from xgradcheck import Report, Verdict, check
from xgradcheck._layout import DOUBLE, Operands
from xgradcheck.backends import jax_programs, torch_precision

CARD = torch.device("cuda")
BITS_OF_TF32 = -1 << 13
"""A mask for those bits of a float32 that TF32 has."""


HAS_NEWER = hasattr(torch.backends.cudnn, "conv")


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """What torch was told is told again at the end."""
    if not HAS_NEWER:
        found = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        yield
        torch.set_float32_matmul_precision(found[0])
        torch.backends.cudnn.allow_tf32 = found[1]
        return
    backends: Any = torch.backends
    holders = (
        backends,
        backends.cuda.matmul,
        backends.cudnn,
        backends.cudnn.conv,
        backends.cudnn.rnn,
    )
    words = [holder.fp32_precision for holder in holders]
    yield
    for holder, word in zip(holders, words, strict=True):
        holder.fp32_precision = word


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that has TF32; only asked what it can do."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def to_tf32(x: Tensor) -> Tensor:
    """What a tensor core multiplies; float64 it multiplies as it is."""
    return (x.view(torch.int32) & BITS_OF_TF32).view(torch.float32) if x.is_floating_point() else x


def product(a: Tensor, b: Tensor) -> Tensor:
    short = a.dtype is torch.float32
    return to_tf32(a) @ to_tf32(b) if short else a @ b


def by_cores(factor: float = 1.0, row: int | None = None) -> Any:
    """A product of matrices as a card computes it; a ``row`` of one gradient, or all of it, is
    ``factor`` times the right one.
    """

    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b)

    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        of_b = product(a.mT, grad)
        of_b[slice(None) if row is None else row] *= factor
        return product(grad, b.mT), of_b

    return function(forward, backward, "ByCores")


def drawn(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def judged(fn: Any, *args: Any) -> Report:
    return check(fn, *args, raise_exception=False)


@pytest.mark.parametrize("shapes", [((6, 8), (8, 5)), ((32, 64), (64, 24))])
def test_a_product_in_tf32_is_judged_as_one(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_precision, "_has_tensor_cores", lambda device: True)
    torch.set_float32_matmul_precision("high")
    report = judged(by_cores(), *drawn(*shapes))
    assert report.verdict is Verdict.PASS, str(report)
    for leaf in report.leaves.values():
        assert [row.judged for row in leaf.rows] == ["float64", "TF32 as run"]
    assert report.precision == "TF32"
    for wrong in (by_cores(1.01), by_cores(1.5, row=2), by_cores(0.0, row=-1)):
        report = judged(wrong, *drawn(*shapes))
        failed = [name for name, leaf in report.leaves.items() if leaf.verdict is Verdict.FAIL]
        assert failed == ["args[1]"], str(report)


def test_torch_says_which_products_are_rounded(card: None) -> None:
    conv, matmul, rnn = ["ConvolutionBackward0"], ["AddmmBackward0"], ["_cudnn_rnn"]
    # Neither products, nor on a card.
    for names in (["TanhBackward0", "CummaxBackward0", "LgammaBackward0"], []):
        assert torch_precision.bits_of_products(names, [CARD]) == DOUBLE
    for names in (conv, matmul, rnn):
        assert torch_precision.bits_of_products(names, [torch.device("cpu")]) == DOUBLE
    # As torch starts: cuDNN may round, products of matrices may not.
    assert torch_precision.bits_of_products(matmul, [CARD]) == DOUBLE
    for names in (conv, rnn):
        assert torch_precision.bits_of_products(names, [CARD]) is Operands.TF32
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("high")
    for names in (conv, rnn):
        assert torch_precision.bits_of_products(names, [CARD]) == DOUBLE
    for names in (["mm"], ["bmm"], ["BaddbmmBackward0"], ["ScaledDotProductEfficientAttention"]):
        assert torch_precision.bits_of_products(names, [CARD]) is Operands.TF32


def test_a_card_without_tf32_rounds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert torch_precision.bits_of_products(["convolution"], [CARD]) == DOUBLE


NEWER = {
    "matmul": (lambda: torch.backends.cuda.matmul, "tf32"),
    "all": (lambda: torch.backends, "tf32"),
    "convolutions": (lambda: torch.backends.cudnn.conv, "ieee"),
    "all, and none": (lambda: torch.backends, "ieee"),
}


@pytest.mark.skipif(not HAS_NEWER, reason="torch has one way of being told of precision")
@pytest.mark.parametrize("where", NEWER)
def test_torch_may_be_told_of_precision_in_its_newer_way(where: str) -> None:
    holder, word = NEWER[where]
    holder().fp32_precision = word
    report = judged(torch.nn.Linear(3, 2), torch.ones(4, 3))
    assert report.verdict is Verdict.PASS
    switches = torch_precision.switches()
    assert word in switches.values()
    told = report.environment
    assert told["torch cudnn precision"] == f"conv {switches['conv']}, rnn {switches['rnn']}"
    assert told["torch matmul precision"] in {*switches.values(), "high", "highest"}


def by_rule(factor: float) -> Any:
    @jax.custom_vjp
    def multiplied(a: Any, b: Any) -> Any:
        return a @ b

    def pulled(kept: Any, grad: Any) -> Any:
        a, b = kept
        return grad @ b.T, factor * (a.T @ grad)

    multiplied.defvjp(lambda a, b: (multiplied(a, b), (a, b)), pulled)
    return multiplied


def test_a_product_of_jax_on_a_gpu_is_judged_as_one_in_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax_programs, "_platform", lambda: "gpu")
    keys = jax.random.split(jax.random.key(0))
    given = jax.random.normal(keys[0], (16, 24)), jax.random.normal(keys[1], (24, 8))
    report = judged(by_rule(1.0), *given)
    assert report.verdict is Verdict.PASS, str(report)
    for leaf in report.leaves.values():
        assert [row.judged for row in leaf.rows] == ["float64", "TF32 as run"]
    report = judged(by_rule(1.01), *given)
    assert [str(leaf.verdict) for leaf in report.leaves.values()] == ["PASS", "FAIL"], str(report)


@pytest.mark.parametrize(
    ("platform", "precision", "bits"),
    [
        ("gpu", None, 11),
        ("gpu", "high", 11),
        ("gpu", "highest", 24),
        ("gpu", ("highest", "default"), 11),
        ("tpu", "default", 8),
        ("cpu", None, 24),
    ],
)
def test_jax_says_which_products_are_rounded(
    platform: str, precision: Any, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_programs, "_platform", lambda: platform)
    x = jnp.ones((4, 4), jnp.float32)

    def product(x: Any) -> Any:
        return jax.jit(lambda x: jnp.tanh(jnp.dot(x, x, precision=precision)))(x)

    assert jax_programs.lowest_bits(jax.make_jaxpr(product)(x).jaxpr) == bits
    # Only what is in float32 is rounded.
    low = jax.make_jaxpr(product)(x.astype(jnp.bfloat16)).jaxpr
    assert jax_programs.lowest_bits(low) == 8


def test_a_gpu_without_tf32_is_as_good_as_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        platform, compute_capability = "gpu", "7.5"

    class New(Old):
        compute_capability = "9.0"

    class Other(Old):
        compute_capability = "gfx90a"

    for card, name in ((Old, "cpu"), (New, "gpu"), (Other, "cpu")):
        monkeypatch.setattr(jax, "devices", lambda *_, card=card: [card()])
        assert jax_programs._platform() == name


def test_what_runs_under_autocast_is_judged_in_its_precision() -> None:
    """An inverse is computed in float32 there, and the products of its backward pass are not."""
    matrix = drawn((4, 4))[0] + 4 * torch.eye(4)
    halved = function(lambda ctx, x: x.clone(), lambda ctx, grad: grad / 2, "Halved")
    with torch.autocast("cpu", torch.bfloat16):
        report = judged(torch.linalg.inv, matrix)
        wrong = judged(lambda x: torch.linalg.inv(halved(x)), matrix)
    assert report.verdict is Verdict.PASS and report.precision == "bfloat16"
    assert wrong.verdict is Verdict.FAIL
