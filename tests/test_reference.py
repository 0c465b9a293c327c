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


def kernel(forward: Any, backward: Any) -> Any:
    """A kernel of this gradient, which gets the cotangent and the arguments."""

    def kept(ctx: Any, *args: Tensor) -> Tensor:
        ctx.save_for_backward(*args)
        return forward(*args)

    return function(kept, lambda ctx, grad: backward(grad, *ctx.saved_tensors), "Kernel")


def scaled(x: Tensor, gain: Tensor) -> Tensor:
    return x * gain


def of_scaled(grad: Tensor, x: Tensor, gain: Tensor) -> Any:
    return grad * gain, (grad * x).sum(0)


SCALED = kernel(scaled, of_scaled)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": 2}, "order=2 goes beyond the gradient.*by itself, without reference="),
        ({"modes": "forward"}, "modes='forward' asks for forward mode.*without reference="),
        ({"modes": ("reverse", "forward")}, "asks for forward mode"),
        ({"rtol": 1e-3}, "rtol and atol are held against differences.*with factors="),
        ({"atol": 1e-3}, "rtol and atol are held against differences"),
        ({"grads": {"x": X}}, "grads= belongs to one function"),
        ({"order": 3}, "order=3 is not 1 or 2"),
        ({"modes": "both"}, "modes='both' is not"),
    ],
)
def test_what_would_not_be_asked_of_the_kernel_is_refused_before_it_runs(
    options: Any, said: str
) -> None:
    def never(*args: Tensor) -> Tensor:
        raise AssertionError("it ran")

    with pytest.raises(InvalidCase, match=said):
        check(never, X, WEIGHT, BIAS, reference=never, **options)


def test_options_that_say_what_is_done_anyway_are_none_too_many() -> None:
    options: Any = {"order": 1, "modes": ["reverse"], "rtol": None, "atol": 0}
    assert beside(layer_norm(), dtypes="float32", **options).verdict is Verdict.PASS


def test_an_audit_is_told_once_what_a_gradient_has_to_be() -> None:
    with pytest.raises(InvalidCase, match="expect= says what the gradient is meant to be"):
        audit(layer_norm(), X, WEIGHT, BIAS, reference=reference, expect="surrogate")


@pytest.mark.parametrize("dtypes", ["bfloat16", ("float64", "float32")])
def test_arguments_by_name_are_compared_in_every_dtype_too(dtypes: Any) -> None:
    wrong = kernel(scaled, lambda grad, x, gain: (grad * gain, 1.1 * (grad * x).sum(0)))
    for own, verdict in ((SCALED, Verdict.PASS), (wrong, Verdict.FAIL)):
        report = check(
            lambda x, *, gain, own=own: own(x, gain),
            X,
            kwargs={"gain": WEIGHT},
            reference=lambda x, *, gain: x * gain,
            dtypes=dtypes,
            raise_exception=False,
        )
        assert report.verdict is verdict, str(report)
        rows = [row.judged for row in report.leaves["gain"].rows]
        assert rows == ["reference", *([dtypes] if isinstance(dtypes, str) else dtypes)]


def test_leaves_that_can_be_walked_once_are_those_of_both() -> None:
    report = check(SCALED, X, WEIGHT, reference=scaled, wrt=iter([1]))
    assert [*report.leaves] == ["gain"]


def test_what_the_comparison_holds_counts_as_memory() -> None:
    x = normal(1 << 17)
    own = kernel(torch.sin, lambda grad, x: grad * x.cos())
    with pytest.raises(InvalidCase, match="it would hold 19MiB"):
        check(own, x, reference=torch.sin, memory="8MiB")
    assert check(own, x, reference=torch.sin, memory="24MiB")


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.softmax(query @ key.T / 4, -1) @ value


def of_attended(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Any:
    scores = query @ key.T / 4
    shares = torch.exp(scores - scores.logsumexp(-1, keepdim=True))
    inner = shares * (grad @ value.T - (grad * (shares @ value)).sum(-1, keepdim=True))
    return inner @ key / 4, inner.T @ query / 4, shares.T @ grad


@pytest.mark.parametrize("seed", range(8))
def test_a_kernel_in_float64_may_lose_what_the_reference_loses_there(seed: int) -> None:
    args = [normal(*shape, seed=9 * seed + n) for n, shape in enumerate([(20, 16), (30, 16)] * 2)]
    args = [*args[:2], args[3][:, :12].contiguous()]
    options: dict[str, Any] = {"dtypes": "float64", "raise_exception": False, "seed": seed}
    assert check(kernel(attended, of_attended), *args, reference=attended, **options)

    def in_single(grad: Tensor, *args: Tensor) -> Any:
        found = of_attended(grad.float(), *(arg.float() for arg in args))
        return tuple(own.double() for own in found)

    report = check(kernel(attended, in_single), *args, reference=attended, **options)
    assert report.verdict is Verdict.FAIL


ONES, MASK = torch.ones(8), torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1])
ROWS, SQUARE = normal(6, 8).float(), normal(8, 8, seed=1).float()
SHARES, UNIT = SQUARE.softmax(-1), F.normalize(SQUARE, dim=-1)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain


def of_rms_norm(grad: Tensor, x: Tensor, gain: Tensor, with_gain: bool = True) -> Any:
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    normed, inner = x * scale, grad * gain if with_gain else grad
    along = (inner * normed).mean(-1, keepdim=True)
    return scale * (inner - normed * along), (grad * normed).sum(0)


def without_gain(grad: Tensor, x: Tensor, gain: Tensor) -> Any:
    return of_rms_norm(grad, x, gain, with_gain=False)


def product_of(x: Tensor, square: Tensor) -> Tensor:
    return x @ square


HIDDEN: dict[str, tuple[Any, Any, Any, tuple[Tensor, ...], str]] = {
    "a forgotten gain of ones": (rms_norm, of_rms_norm, without_gain, (ROWS, ONES), "x"),
    "a product with a symmetric matrix that was not transposed": (
        product_of,
        lambda grad, x, square: (grad @ square.T, x.T @ grad),
        lambda grad, x, square: (grad @ square, x.T @ grad),
        (ROWS, SQUARE + SQUARE.T),
        "x",
    ),
    "a forgotten square beside zeros": (
        lambda x, bias: x * (1 + bias + bias**2),
        lambda grad, x, bias: (grad * (1 + bias + bias**2), (grad * x * (1 + 2 * bias)).sum(0)),
        lambda grad, x, bias: (grad * (1 + bias + bias**2), (grad * x).sum(0)),
        (ROWS, 0 * ONES),
        "bias",
    ),
    "another power of a mask": (
        scaled,
        of_scaled,
        lambda grad, x, mask: (grad * mask, (grad * x * (1 + mask - mask**2)).sum(0)),
        (ROWS, MASK),
        "gain",
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_mistake_that_the_point_hides_shows_near_by(name: str, dtype: str) -> None:
    forward, right, wrong, args, leaf = HIDDEN[name]
    options: dict[str, Any] = {"reference": forward, "dtypes": dtype, "raise_exception": False}
    report = check(kernel(forward, right), *args, **options)
    assert report.verdict is Verdict.PASS, str(report)
    report = check(kernel(forward, wrong), *args, **options)
    assert [own.name for own in report.leaves.values() if own.verdict is Verdict.FAIL] == [leaf]
    (finding,) = report.findings
    assert (finding.leaf, finding.kind) == (leaf, "only right at this point")
    assert f"wrong near by: in {dtype} its " in finding.text
    assert verdicts(report, leaf) == {"reference": "PASS", dtype: "FAIL"}
    assert any("so another one near by was looked at too" in note for note in report.notes)


def test_a_mistake_of_the_forward_pass_shows_near_by_too() -> None:
    forgets = kernel(lambda x, gain: x * 1, of_scaled)
    report = check(forgets, ROWS, ONES, reference=scaled, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert [finding.kind for finding in report.findings] == ["only right at this point"]
    assert "another function near by: of output, its error" in report.findings[0].text
    assert check(SCALED, ROWS, ONES, reference=scaled)


def test_a_mistake_that_one_dtype_has_is_told_of_that_near_by() -> None:
    def in_half(grad: Tensor, x: Tensor, gain: Tensor) -> Any:
        return of_rms_norm(grad, x, gain, with_gain=grad.dtype is not torch.bfloat16)

    report = check(
        kernel(rms_norm, in_half),
        ROWS,
        ONES,
        reference=rms_norm,
        dtypes=("float32", "bfloat16"),
        raise_exception=False,
    )
    assert verdicts(report, "x") == {"reference": "PASS", "float32": "PASS", "bfloat16": "FAIL"}


@pytest.mark.parametrize("dtypes", ["float64", LOW])
@pytest.mark.parametrize("seed", range(3))
def test_right_kernels_at_points_that_hide_mistakes_pass(seed: int, dtypes: Any) -> None:
    def entropy(x: Tensor, shares: Tensor) -> Tensor:
        return -(x.softmax(-1) * (shares + 1e-3).log()).sum(-1)

    def of_entropy(grad: Tensor, x: Tensor, shares: Tensor) -> Any:
        p, log, grad = x.softmax(-1), (shares + 1e-3).log(), grad[:, None]
        return -grad * p * (log - (p * log).sum(-1, keepdim=True)), -grad * p / (shares + 1e-3)

    def rectified(x: Tensor, bias: Tensor) -> Tensor:
        return (x + bias).relu()

    def of_rectified(grad: Tensor, x: Tensor, bias: Tensor) -> Any:
        inner = grad * (x + bias > 0).to(grad.dtype)
        return inner, inner.flip(0).sum(0)

    def of_product(grad: Tensor, x: Tensor, square: Tensor) -> Any:
        return (square @ grad.T).T, (grad.T @ x).T

    own = (kernel(product_of, of_product), product_of)
    for fn, plain, *args in (
        (kernel(entropy, of_entropy), entropy, SQUARE, SHARES),
        (kernel(entropy, of_entropy), entropy, SQUARE, F.one_hot(SQUARE.argmax(-1)).float()),
        (kernel(rectified, of_rectified), rectified, ROWS.relu(), 0 * ONES),
        (kernel(rectified, of_rectified), rectified, ROWS.round(), ONES),
        (kernel(rms_norm, of_rms_norm), rms_norm, ROWS, ONES),
        (SCALED, scaled, ROWS, MASK),
        *((*own, ROWS, square) for square in (UNIT, SQUARE + SQUARE.T, torch.eye(8))),
    ):
        report = check(fn, *args, reference=plain, dtypes=dtypes, seed=seed, raise_exception=False)
        assert report.verdict is Verdict.PASS, str(report)


def test_a_kernel_is_not_held_to_what_its_arguments_are_not() -> None:
    of_switches = kernel(lambda x, mask: torch.where(mask != 0, x, 0 * x), of_scaled)
    assert check(of_switches, ROWS, MASK, reference=scaled)

    def one_triangle(x: Tensor, square: Tensor) -> Tensor:
        return x @ (square.tril() + square.tril(-1).T)

    half = kernel(one_triangle, lambda grad, x, square: (grad @ square.T, x.T @ grad))
    assert check(half, ROWS, SQUARE + SQUARE.T, reference=product_of)


def test_what_is_right_for_probabilities_alone_is_left_open() -> None:
    def squares(shares: Tensor) -> Tensor:
        return shares.square().sum(-1)

    def of_squares(grad: Tensor, shares: Tensor) -> Tensor:
        return 2 * grad[:, None] * shares * shares.sum(-1, keepdim=True) ** 2

    own = kernel(squares, of_squares)
    report = check(own, SHARES, reference=squares, raise_exception=False)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert [finding.kind for finding in report.findings] == ["only on its constraint"]
    assert check(own, SHARES, reference=squares, constraint="simplex")


@pytest.mark.parametrize("other", ["raises", "not finite"])
def test_a_point_near_by_outside_of_the_domain_is_no_news(other: str) -> None:
    def forward(x: Tensor, gain: Tensor) -> Tensor:
        is_one = bool((gain == 1).all())
        if not is_one and other == "raises":
            raise ValueError("it is written for ones")
        return scaled(x, gain) if is_one else x / 0

    report = check(kernel(forward, of_scaled), ROWS, ONES, reference=scaled)
    assert report.verdict is Verdict.PASS
    assert any(
        note.startswith("kernel: ") and "no other was found in the domain" in note
        for note in report.notes
    )


def test_only_a_point_that_hides_mistakes_has_others_compared() -> None:
    runs = []

    def counted(grad: Tensor, x: Tensor, gain: Tensor) -> Any:
        runs.append(x)
        return of_scaled(grad, x, gain)

    check(kernel(scaled, counted), ROWS, WEIGHT[:8].float(), reference=scaled)
    assert len(runs) == 1
    check(kernel(scaled, counted), ROWS, ONES, reference=scaled)
    assert len(runs) == 3


def test_a_mistake_of_a_kernel_of_jax_that_the_point_hides_shows_near_by() -> None:
    x, gain = jnp.asarray(ROWS.numpy(), jnp.bfloat16), jnp.ones((1, 8), jnp.bfloat16)

    def ruled(with_gain: bool) -> Any:
        @jax.custom_vjp
        def scale(x: Any, gain: Any) -> Any:
            return x * gain

        def backward(kept: Any, grad: Any) -> Any:
            x, gain = kept
            return grad * gain if with_gain else grad, (grad * x).sum(0, keepdims=True)

        scale.defvjp(lambda x, gain: (x * gain, (x, gain)), backward)
        return scale

    options: dict[str, Any] = {"dtypes": ("bfloat16", "float32"), "raise_exception": False}
    options["reference"] = lambda x, gain: x * gain
    assert check(ruled(True), x, gain, **options)
    report = check(ruled(False), x, gain, **options)
    assert verdicts(report, "x") == {"reference": "PASS", "bfloat16": "FAIL", "float32": "FAIL"}


def shannon(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


@pytest.mark.parametrize("dtypes", ["float64", "float32", ("float32", "bfloat16"), "bfloat16"])
def test_what_leaves_a_constraint_is_free_for_a_kernel_too(dtypes: Any) -> None:
    own = kernel(shannon, lambda grad, p: 3 - grad[:, None] * p.log())
    options: dict[str, Any] = {"reference": shannon, "dtypes": dtypes, "raise_exception": False}
    report = check(own, SHARES, constraint="simplex", **options)
    assert report.verdict is Verdict.PASS, str(report)
    assert "p: compared in the tangent space of the simplex" in report.notes
    assert check(own, SHARES, **options).verdict is Verdict.FAIL
    wrong = kernel(shannon, lambda grad, p: 3 - 1.2 * grad[:, None] * p.log())
    report = check(wrong, SHARES, constraint={"p": "simplex"}, **options)
    assert report.verdict is Verdict.FAIL and verdicts(report, "p")["reference"] == "PASS"


def test_a_point_satisfies_its_constraint_as_closely_as_its_dtype_lets_it() -> None:
    for args in (SHARES, SHARES.bfloat16()):
        assert check(shannon, args, constraint="simplex")
        assert check(shannon, args, reference=shannon, constraint="simplex")
        assert check(shannon, args, reference=shannon, constraint="simplex", dtypes="float64")
    with pytest.raises(InvalidCase, match="p does not sum to 1"):
        check(shannon, SHARES * 1.001, reference=shannon, constraint="simplex")
    with pytest.raises(InvalidCase, match="p does not sum to 1"):
        check(shannon, SHARES.double(), reference=shannon, constraint="simplex")


def test_a_gradient_that_a_constraint_hides_altogether_is_zero() -> None:
    own = kernel(lambda p: p.sum(-1), lambda grad, p: grad[:, None] * torch.ones_like(p))
    dtypes = ("float64", *LOW)
    report = check(own, SHARES, reference=lambda p: p.sum(-1), constraint="simplex", dtypes=dtypes)
    assert verdicts(report, "p") == dict.fromkeys(["reference", *dtypes], "PASS")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_kernel_on_the_sphere_is_compared_along_it(dtype: str) -> None:
    def cubes(x: Tensor) -> Tensor:
        return (x**3).sum(-1)

    def on_sphere(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    options: dict[str, Any] = {"reference": cubes, "constraint": on_sphere, "dtypes": dtype}
    options["raise_exception"] = False
    free = kernel(cubes, lambda grad, x: grad[:, None] * (3 * x**2 + x))
    assert check(free, UNIT, **options)
    wrong = kernel(cubes, lambda grad, x: grad[:, None] * (3.3 * x**2 + x))
    assert check(wrong, UNIT, **options).verdict is Verdict.FAIL
