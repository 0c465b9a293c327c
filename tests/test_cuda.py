"""What only a GPU can show; skipped where there is none."""

from typing import Any

import pytest
import torch
from audited import function
from models import ROWS, forms, spoilt
from tally import seen
from torch import Tensor, nn

from xgradcheck import Report, Verdict, check

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # PyTorch's own, where the first product in a process is that of a backward pass.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]


def on_card(model: Any) -> Any:
    if isinstance(model.fn, nn.Module):
        model.fn.to("cuda")
    return type(model)(model.fn, tuple(arg.cuda() for arg in model.args), model.loss)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_models_on_a_card(row: Any, dtype: torch.dtype) -> None:
    with torch.device("cuda"):
        right, twin = on_card(row.make(0, dtype)), on_card(row.make(0, dtype))
    for form, model in forms(right):
        report = model.report(0)
        assert report.verdict is Verdict.PASS, f"{form}: {report}"
    wrong, name = spoilt(twin)
    report = wrong.report(0)
    assert seen(report, name) == "named", str(report)


def multiplied(factor: float) -> Any:
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return grad @ b.mT, factor * (a.mT @ grad)

    return function(forward, backward, "Multiplied")


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_products_in_tf32(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    a, b = (torch.randn(96, 96, device="cuda") for _ in range(2))
    report: Report = check(multiplied(factor), a, b, raise_exception=False)
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL), str(report)
    assert report.leaves["args[0]"].verdict is Verdict.PASS


def test_outputs_on_two_devices() -> None:
    x = torch.randn(4, dtype=torch.float64, device="cuda")
    y = torch.randn(4, dtype=torch.float64)
    assert check(lambda x, y: (x.sin(), (y * x.cpu()).exp()), x, y)
    assert check(lambda x, y: ((y * x.cpu()).exp(), x.sin()), x, y)
