"""A kernel of low precision beside a plain reference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from audited import function, normal
from torch import Tensor
from torch.nn import functional as F

from xgradcheck import GradientMismatch, InvalidCase, Report, Verdict, audit, check
from xgradcheck._precision import looks_like

LOW = ("float32", "bfloat16", "float16")
X, WEIGHT, BIAS = normal(32, 64), normal(64, seed=1), normal(64, seed=2)


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def with_another_epsilon(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, 0.05)


Change = Callable[[Tensor], Tensor]


def layer_norm(of_x: Change = lambda grad: grad, of_weight: Change = lambda grad: grad) -> Any:
    """By hand, in other orders of operations than torch's; the gradients as they are changed."""

    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        normed = centred * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight + bias

    def backward(ctx: Any, grad: Tensor) -> Any:
        normed, scale, weight = ctx.saved_tensors
        inner = grad * weight
        mean, along = inner.mean(-1, keepdim=True), (inner * normed).mean(-1, keepdim=True)
        return (
            of_x(scale * (inner - mean - normed * along)),
            of_weight((grad * normed).sum(0)),
            grad.sum(0),
        )

    return function(forward, backward, "LayerNorm")


def beside(kernel: Any, other: Any = reference, dtypes: Any = LOW, **options: Any) -> Report:
    options = {"raise_exception": False, **options}
    return check(kernel, X, WEIGHT, BIAS, reference=other, dtypes=dtypes, **options)


def verdicts(report: Report, name: str) -> dict[str, str]:
    return {row.judged: str(row.verdict) for row in report.leaves[name].rows}


@pytest.mark.parametrize("seed", range(5))
def test_a_right_kernel_passes_in_every_dtype(seed: int) -> None:
    report = beside(layer_norm(), seed=seed)
    assert report.verdict is Verdict.PASS, str(report)
    for name in ("x", "weight", "bias"):
        assert verdicts(report, name) == dict.fromkeys(["reference", *LOW], "PASS")
    assert "error = " in str(report) and " x baseline" in str(report)


WRONG: dict[str, tuple[Any, str]] = {
    "another factor": (layer_norm(of_x=lambda grad: grad * 1.05), "x"),
    "the last block": (layer_norm(of_x=lambda grad: zeroed(grad, -4)), "x"),
    "the scale lost": (layer_norm(of_weight=lambda grad: grad / 2), "weight"),
    "not finite": (layer_norm(of_weight=lambda grad: grad / 0), "weight"),
}


def zeroed(grad: Tensor, start: int) -> Tensor:
    grad = grad.clone()
    grad[-1, start:] = 0
    return grad


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_fails_in_its_leaf_alone(name: str, dtype: str) -> None:
    kernel, leaf = WRONG[name]
    report = beside(kernel, dtypes=dtype)
    wrong = [own.name for own in report.leaves.values() if own.verdict is Verdict.FAIL]
    assert wrong == [leaf], str(report)
    assert verdicts(report, leaf)["reference"] == "PASS"
    assert f"{leaf} in {dtype}: its " in report.findings[0].text


def test_a_mistake_in_one_dtype_alone_is_told_of_that() -> None:
    def in_half(grad: Tensor) -> Tensor:
        return -grad if grad.dtype is torch.float16 else grad

    report = beside(layer_norm(of_x=in_half))
    assert verdicts(report, "x") == {
        "reference": "PASS",
        "float32": "PASS",
        "bfloat16": "PASS",
        "float16": "FAIL",
    }


def test_accumulating_in_bfloat16_shows_in_float32() -> None:
    def narrow(grad: Tensor) -> Tensor:
        return grad.bfloat16().to(grad.dtype)

    report = beside(layer_norm(of_x=narrow), dtypes=("float32", "bfloat16"))
    assert verdicts(report, "x") == {"reference": "PASS", "float32": "FAIL", "bfloat16": "PASS"}


def test_another_function_is_a_verdict_of_its_own() -> None:
    report = beside(layer_norm(), with_another_epsilon)
    assert report.verdict is Verdict.FAIL
    assert "the reference is a different function" in str(report).splitlines()[0]
    assert [finding.kind for finding in report.findings] == ["another function"]
    assert all(leaf.verdict is Verdict.PASS for leaf in report.leaves.values())


def test_a_wrong_reference_proves_nothing() -> None:
    wrong = layer_norm(of_x=lambda grad: grad * 1.01)
    report = beside(layer_norm(), wrong)
    assert report.verdict is Verdict.FAIL
    assert all(finding.text.startswith("reference: ") for finding in report.findings)
    assert [row.judged for row in report.leaves["args[0]"].rows] in ([], ["reference"])


def test_a_reference_that_is_ill_conditioned_is_inconclusive() -> None:
    def cancelling(x: Tensor) -> Tensor:
        return ((x + 100) ** 2 - x**2 - 200 * x - 10000) * x

    right = function(
        lambda ctx, x: ctx.save_for_backward(x) or cancelling(x),
        lambda ctx, grad: torch.autograd.functional.vjp(cancelling, ctx.saved_tensors[0], grad)[1],
    )
    report = check(right, X, reference=cancelling, dtypes="bfloat16", raise_exception=False)
    assert report.verdict is not Verdict.PASS


def test_the_dtype_of_the_arguments_is_the_default() -> None:
    half = [part.bfloat16() for part in (X, WEIGHT, BIAS)]
    report = check(layer_norm(), *half, reference=reference)
    assert [row.judged for row in report.leaves["x"].rows] == ["reference", "bfloat16"]


def test_factors_can_be_adjusted() -> None:
    slightly = layer_norm(of_x=lambda grad: grad * (1 + 2.0**-22))
    assert beside(slightly, dtypes="float32").verdict is Verdict.FAIL
    lenient = {"norm": 100, "worst": 100, "bias": 100}
    assert beside(slightly, dtypes="float32", factors=lenient).verdict is Verdict.PASS
    with pytest.raises(InvalidCase, match="factors has 'norms'; they are norm, worst, bias"):
        beside(slightly, factors={"norms": 3})


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InvalidCase, match="dtypes and factors go with reference="):
        check(torch.tanh, X, dtypes="float32")
    with pytest.raises(InvalidCase, match="dtypes has 'float8'; the dtypes are float64, bfloat16"):
        beside(layer_norm(), dtypes="float8")
    with pytest.raises(InvalidCase, match="the reference returns \\[32\\], and the function"):
        check(torch.tanh, X, reference=lambda x: x.tanh().sum(1))
    with pytest.raises(GradientMismatch):
        beside(layer_norm(), with_another_epsilon, raise_exception=True)


def test_kernels_of_jax() -> None:
    x = jnp.asarray(X.numpy(), jnp.bfloat16)

    def ruled(factor: float) -> Any:
        @jax.custom_vjp
        def softmax(x: Any) -> Any:
            return jax.nn.softmax(x)

        def backward(p: Any, u: Any) -> Any:
            return (factor * p * (u - (p * u).sum(-1, keepdims=True)),)

        softmax.defvjp(lambda x: (jax.nn.softmax(x),) * 2, backward)
        return softmax

    assert check(ruled(1.0), x, reference=jax.nn.softmax, dtypes=("bfloat16", "float32"))
    report = check(ruled(1.1), x, reference=jax.nn.softmax, raise_exception=False)
    assert verdicts(report, "x") == {"reference": "PASS", "bfloat16": "FAIL"}


def test_the_callers_arrays_are_left_as_they_were() -> None:
    x = X.clone().requires_grad_()
    before = x.detach().numpy().tobytes(), torch.get_rng_state().numpy().tobytes()
    check(layer_norm(), x, WEIGHT, BIAS, reference=reference, dtypes=LOW)
    assert (x.detach().numpy().tobytes(), torch.get_rng_state().numpy().tobytes()) == before
    assert x.requires_grad and x.grad is None


def test_the_record_holds_the_error_beside_the_reference() -> None:
    rows = beside(layer_norm(), dtypes="float32").to_dict()["leaves"]["x"]["rows"]
    assert [row["mode"] for row in rows] == ["reference", "float32"]
    assert rows[0]["baseline"] is None
    assert np.isfinite(rows[1]["baseline"])


def test_an_audit_of_a_kernel_has_its_reference_once() -> None:
    options: dict[str, Any] = {"reference": reference, "dtypes": "bfloat16", "probes": "layout"}
    report = audit(layer_norm(), X, WEIGHT, BIAS, **options)
    assert [row.judged for row in report.leaves["x"].rows] == ["reference", "bfloat16"]
    assert report.probes[0].verdict is Verdict.PASS
    wrong = layer_norm(of_x=lambda grad: grad * 1.05)
    report = audit(wrong, X, WEIGHT, BIAS, raise_exception=False, **options)
    assert report.leaves["x"].verdict is Verdict.FAIL


def to_tf32(x: Tensor) -> Tensor:
    """Rounded to the eleven bits that tensor cores multiply."""
    bits = (x.float().view(torch.int32) + 0x1000) & ~0x1FFF
    return bits.view(torch.float32).to(x.dtype)


def to_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def product(rounded: Change, factor: float = 1.0) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = map(rounded, ctx.saved_tensors)
        return factor * rounded(grad) @ b.T, factor * a.T @ rounded(grad)

    return function(lambda ctx, a, b: ctx.save_for_backward(a, b) or a @ b, backward, "Product")


A, B = normal(8, 12).float(), normal(12, 10, seed=1).float()
ROUNDED = {"TF32 or float16": to_tf32, "bfloat16": to_bfloat16}


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("seed", range(3))
def test_an_error_of_low_precision_is_called_by_its_name(name: str, seed: int) -> None:
    wrong = product(ROUNDED[name])
    options: dict[str, Any] = {"raise_exception": False, "seed": seed}
    report = check(wrong, A, B, reference=torch.matmul, **options)
    said = [finding.text for finding in report.findings]
    assert len(said) == 2 and all(text.endswith(f"with rounding to {name}") for text in said)
    report = check(wrong, A.double(), B.double(), **options)
    assert report.verdict is Verdict.FAIL
    assert f"consistent with rounding to {name}" in " ".join(str(report).split())


@pytest.mark.parametrize("factor", [1.001, 0.99, -1.0])
def test_another_mistake_is_not_taken_for_low_precision(factor: float) -> None:
    wrong = product(lambda x: x, factor)
    for options in ({"reference": torch.matmul}, {}):
        report = check(wrong, A, B, raise_exception=False, **options)
        assert report.verdict is Verdict.FAIL and "consistent with" not in str(report)
    report = beside(layer_norm(of_x=lambda grad: zeroed(grad, -4)), dtypes="float32")
    assert report.verdict is Verdict.FAIL and "consistent with" not in str(report)


def test_reports_carry_what_was_told_of_precision() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        report = check(torch.matmul, A, B)
    finally:
        torch.set_float32_matmul_precision(before)
    assert report.environment["torch matmul precision"] == "high"
    assert report.to_dict()["environment"]["torch autocast"] == "False"
    assert "jax matmul precision" in check(jnp.tanh, jnp.ones(3)).environment


def test_errors_of_any_size_can_be_looked_at() -> None:
    truth = normal(9).numpy()
    error = 1 + normal(9, seed=1).numpy().clip(-1, 1) / 512
    for size in (1e-320, 1e-300, 1.0, 1e300):
        assert looks_like(truth * size, truth * size, 24) == ""
        assert looks_like(np.full(9, np.inf), truth * size, 24) == ""
        assert looks_like(truth * size, np.zeros(9), 24) == ""
    for size in (1e-300, 1.0, 1e300):
        assert looks_like(truth * error * size, truth * size, 24) == "bfloat16"


def saturated(x: Tensor, weight: Tensor, head: Tensor) -> Tensor:
    """Most of whose elements lose digits in 1 - tanh(z)^2, and some of them nearly all."""
    return torch.tanh(x @ weight) @ head


def saturated_kernel(factor: float) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, head = ctx.saved_tensors
        hidden = torch.tanh(x @ weight)
        inner = (grad @ head.T) * (1 - hidden.square())
        return factor * (inner @ weight.T), x.T @ inner, hidden.T @ grad

    def forward(ctx: Any, *args: Tensor) -> Tensor:
        ctx.save_for_backward(*args)
        return saturated(*args)

    return function(forward, backward, "Saturated")


@pytest.mark.parametrize("seed", range(12))
def test_a_factor_of_a_few_units_is_seen_where_few_elements_lose_much(seed: int) -> None:
    args = [
        normal(*shape, seed=3 * seed + n) for n, shape in enumerate([(16, 24), (24, 25), (25, 8)])
    ]
    unit = 2.0**-23
    for factor, verdict in ((1.0, Verdict.PASS), (1 + 3 * unit, Verdict.FAIL)):
        report = check(
            saturated_kernel(factor),
            *args,
            reference=saturated,
            dtypes="float32",
            seed=seed,
            raise_exception=False,
        )
        assert report.verdict is verdict, str(report)


@pytest.mark.parametrize(
    ("units", "verdict"), [(1.5, Verdict.PASS), (-1.5, Verdict.PASS), (8, Verdict.FAIL)]
)
def test_a_factor_of_all_elements_may_be_off_by_what_a_gpu_loses_in_a_quotient(
    units: float, verdict: Verdict
) -> None:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad.double() * x.double().cos() * (1 + units * 2.0**-24)).to(x.dtype)

    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    report = check(
        function(forward, backward, "Sine"),
        normal(40, 50),
        reference=torch.sin,
        dtypes="float32",
        raise_exception=False,
    )
    assert report.verdict is verdict, str(report)
