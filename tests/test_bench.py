"""Benchmarks: no time beside what is wrong, and no way to look right for as long as it is timed."""

import hashlib
import json
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

from xgradcheck import BenchReport, InvalidCase, Verdict, bench

X, WEIGHT = normal(16, 32).float(), normal(32, seed=1).float()
QUICK: dict[str, Any] = {"seconds": 0.02}


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[1:], weight, 1e-5)


def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return x * scale * weight, scale


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight, scale = ctx.saved_tensors
    normed, weighted = x * scale, grad * weight
    along = (weighted * normed).mean(-1, keepdim=True)
    return scale * (weighted - normed * along), (grad * normed).sum(0)


def norm(
    change_value: Callable[..., Tensor] = lambda y, *_: y,
    change_gradient: Callable[..., Tensor] = lambda grad: grad,
) -> Any:
    """RMS norm by hand, its output and the gradient of its first argument as they are changed."""

    def run(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        y, scale = forward(x, weight)
        ctx.save_for_backward(x, weight, scale)
        return change_value(y, x)

    def back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_weight = backward(ctx, grad)
        return change_gradient(of_x), of_weight

    return function(run, back, "Norm")


def of_one(fn: Any, *args: Any, **options: Any) -> Any:
    report = bench({"it": fn}, *(args or (X, WEIGHT)), **QUICK, **options)
    (record,) = report.records
    return record, report


def test_what_is_right_gets_its_times() -> None:
    report = bench({"torch": plain, "mine": norm()}, X, WEIGHT, reference=plain, **QUICK)
    assert report and report.verdict is Verdict.PASS
    for record in report.records:
        assert record.verdict is Verdict.PASS and record.error is not None and record.error < 2
        for times in (record.forward, record.backward, record.both):
            assert times is not None and 0 < times.lower <= times.median <= times.upper
            assert times.runs >= 5
        assert record.peak_bytes is not None and record.peak_bytes >= X.numel() * 4
    fastest = report.fastest("float32")
    assert fastest is not None and f"{fastest.name}" in str(report)
    assert str(report).count("fastest") == 1


class Replay:
    """Answers from memory where it has seen the address before."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        return self.seen.setdefault(x.data_ptr(), y.clone()).clone()


class Drift:
    """Does its work while somebody looks."""

    def __init__(self, lazy: Callable[[Tensor], Tensor], after: int = 4) -> None:
        self.lazy, self.after, self.calls = lazy, after, 0

    def __call__(self, y: Tensor, *_: Tensor) -> Tensor:
        self.calls += 1
        return y if self.calls < self.after else self.lazy(y)


def erased(y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.zero_()
    return y


EXPLOITS: dict[str, tuple[Callable[[], Any], str]] = {
    "zeros": (lambda: norm(lambda y, x: torch.zeros_like(y)), "is a different function"),
    "a gradient of zeros": (lambda: norm(change_gradient=torch.zeros_like), "its error is"),
    "an input erased": (lambda: norm(erased), "writes to args[0]"),
    "memory that was freed": (lambda: norm(lambda y, x: torch.empty_like(y)), "different function"),
    "an answer from memory": (lambda: norm(Replay()), "is a different function"),
    "lazy once it is timed": (
        lambda: norm(Drift(torch.zeros_like, after=9)),
        "right at first, and not while it is timed",
    ),
    "a gradient that grows lazy": (
        lambda: norm(change_gradient=Drift(torch.zeros_like, after=9)),
        "right at first, and not while it is timed",
    ),
    "another factor": (lambda: norm(change_gradient=lambda grad: 1.01 * grad), "its error is"),
    "a leaf without gradient": (
        lambda: function(
            lambda ctx, x, weight: (
                ctx.save_for_backward(x, weight, forward(x, weight)[1]) or forward(x, weight)[0]
            ),
            lambda ctx, grad: (backward(ctx, grad)[0], None),
        ),
        "weight in float32: it has no gradient",
    ),
    "no graph": (lambda: torch.no_grad()(plain), "no backward: no gradient reaches x, weight"),
    "no backward": (
        lambda: function(
            lambda ctx, x, weight: plain(x, weight),
            lambda ctx, grad: (_ for _ in ()).throw(NotImplementedError("not yet")),
        ),
        "no backward: raises NotImplementedError: not yet",
    ),
    "no function": (lambda: lambda x, weight: 1 / 0, "raises ZeroDivisionError"),
    "another shape": (lambda: lambda x, weight: plain(x, weight).sum(0), "the reference returns"),
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_no_time_beside_what_is_wrong(name: str) -> None:
    made, said = EXPLOITS[name]
    record, report = of_one(made(), reference=plain)
    assert record.verdict is Verdict.FAIL, str(report)
    assert said in record.reason
    assert record.forward is record.backward is record.both is record.peak_bytes is None
    assert report.fastest("float32") is None
    assert "µs" not in str(report) and " ms" not in str(report)
    assert said.split()[0] in " ".join(str(report).split())


@pytest.mark.parametrize("name", ["an answer from memory", "an input erased", "another factor"])
def test_without_a_reference_differences_tell(name: str) -> None:
    assert of_one(norm())[0].verdict is Verdict.PASS
    record, report = of_one(EXPLOITS[name][0]())
    assert record.verdict is Verdict.FAIL, str(report)
    assert record.both is None


def test_labels_that_are_written_to_are_seen() -> None:
    def spoils(scores: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(scores, labels.clone())
        labels.zero_()
        return loss

    labels = torch.arange(16) % 32
    record, _ = of_one(F.cross_entropy, X, labels, reference=F.cross_entropy)
    assert record.verdict is Verdict.PASS
    record, _ = of_one(spoils, X, labels, reference=F.cross_entropy)
    assert record.verdict is Verdict.FAIL and "writes to an argument" in record.reason
    assert labels[1] == 1


def test_laziness_on_every_other_call_is_seen() -> None:
    class Sometimes:
        calls = 0

        def __call__(self, y: Tensor, *_: Tensor) -> Tensor:
            self.calls += 1
            return torch.zeros_like(y) if self.calls > 12 and self.calls % 2 else y

    record, report = of_one(norm(Sometimes()), reference=plain)
    assert record.verdict is Verdict.FAIL and record.both is None, str(report)


def test_a_dtype_that_is_wrong_has_no_times_and_the_others_have() -> None:
    def in_bfloat16(grad: Tensor) -> Tensor:
        return -grad if grad.dtype is torch.bfloat16 else grad

    report = bench(
        {"mine": norm(change_gradient=in_bfloat16)},
        X,
        WEIGHT,
        reference=plain,
        dtypes=("float64", "float32", "bfloat16"),
        **QUICK,
    )
    assert [str(record.verdict) for record in report.records] == ["PASS", "PASS", "FAIL"]
    assert [record.both is not None for record in report.records] == [True, True, False]


def test_a_wrong_reference_proves_nobody_wrong() -> None:
    wrong = norm(change_gradient=lambda grad: 1.1 * grad)
    record, report = of_one(norm(), reference=wrong)
    assert record.verdict is Verdict.INCONCLUSIVE and record.both is None
    assert "the reference is FAIL" in str(report)


def test_shapes_are_timed_one_by_one() -> None:
    def made(size: int) -> tuple[Tensor, Tensor]:
        return normal(8, size).float(), normal(size, seed=1).float()

    report = bench({"mine": norm()}, shapes={"8 x 8": made(8), "8 x 40": made(40)}, **QUICK)
    assert [record.shape for record in report.records] == ["8 x 8", "8 x 40"]
    report = bench({"mine": norm()}, shapes=made, reference=plain, **QUICK)
    assert [record.shape for record in report.records] == ["64", "256", "1024"]


def ruled(factor: float) -> Any:
    @jax.custom_vjp
    def softmax(x: Any) -> Any:
        return jax.nn.softmax(x)

    softmax.defvjp(
        lambda x: (jax.nn.softmax(x),) * 2,
        lambda p, u: (factor * p * (u - (p * u).sum(-1, keepdims=True)),),
    )
    return softmax


def test_functions_of_jax() -> None:
    x = jnp.asarray(X.numpy())
    made = {
        "jax": jax.nn.softmax,
        "mine": ruled(1.0),
        "wrong": ruled(1.05),
        "none": lambda x: 1 / 0,
    }
    report = bench(made, x, reference=jax.nn.softmax, dtypes=("float32", "bfloat16"), **QUICK)
    assert [str(record.verdict) for record in report.records] == [
        "PASS",
        "PASS",
        "FAIL",
        "FAIL",
    ] * 2
    assert all(record.peak_bytes for record in report.records if record.both)


def test_the_callers_world_is_left_as_it_was() -> None:
    def found() -> str:
        numbers = np.random.get_state()[1]  # noqa: NPY002
        parts = (x.detach().numpy(), torch.get_rng_state().numpy(), numbers)
        return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in parts)).hexdigest()

    x = X.clone().requires_grad_()
    before = found()
    for fn in (norm(), norm(erased), lambda x, weight: 1 / 0):
        bench({"it": fn}, x, WEIGHT, reference=plain, **QUICK)
        assert found() == before and x.grad is None and x.requires_grad


def written(report: BenchReport, path: Any) -> dict[str, Any]:
    report.to_json(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_records_are_written(tmp_path: Any) -> None:
    report = bench(
        {"<b>mine</b>": norm(), "wrong": norm(change_gradient=torch.neg)},
        X,
        WEIGHT,
        reference=plain,
        name="rms norm",
        **QUICK,
    )
    found = written(report, tmp_path / "bench.json")
    assert found["verdict"] == "FAIL" and found["schema"] == 1
    right, wrong = found["records"]
    assert right["fastest"] and right["both"]["median"] > 0
    assert not wrong["fastest"] and wrong["both"] is None and wrong["reason"]
    assert "torch matmul precision" in found["environment"]
    page = report.to_html(tmp_path / "bench.html")
    assert (tmp_path / "bench.html").read_text(encoding="utf-8") == page
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page and "rms norm" in page


def test_what_is_no_benchmark_is_refused() -> None:
    with pytest.raises(InvalidCase, match="give the implementations as a dict"):
        bench(plain, X, WEIGHT)  # type: ignore[arg-type]
    with pytest.raises(InvalidCase, match="give the implementations as a dict"):
        bench({}, X)
    with pytest.raises(InvalidCase, match="mine is a int"):
        bench({"mine": 3}, X)  # type: ignore[dict-item]
    with pytest.raises(InvalidCase, match="there are no arguments"):
        bench({"mine": plain})
    with pytest.raises(InvalidCase, match="dtypes has 'float7'"):
        bench({"mine": plain}, X, WEIGHT, dtypes="float7")
    with pytest.raises(InvalidCase, match="seconds=0 is no time"):
        bench({"mine": plain}, X, WEIGHT, seconds=0)
    with pytest.raises(InvalidCase, match="no backward pass to time"):
        bench({"mine": np.sin}, X.numpy(), backend="numpy")
    with pytest.raises(InvalidCase, match="hold no floating arrays"):
        bench({"mine": torch.sin}, torch.arange(3))
