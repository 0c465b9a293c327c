"""What a run says that it would have caught, it catches."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from audited import function, normal
from torch import Tensor

from xgradcheck import InvalidCase, Report, Verdict, check
from xgradcheck._cli import main
from xgradcheck._sensitivity import limits

FEW, MANY = normal(6, 8), normal(40, 30)


def tanh(plant: Callable[[Tensor], Tensor] = lambda grad: grad) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return plant(grad * (1 - y * y))

    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    return function(forward, backward, "Tanh")


def factor(size: float) -> Callable[[Tensor], Tensor]:
    return lambda grad: grad * (1 + size)


def one_row(size: float) -> Callable[[Tensor], Tensor]:
    def plant(grad: Tensor) -> Tensor:
        grad = grad.clone()
        row = grad.norm(dim=1).median(0).indices
        grad[row] *= 1 + size
        return grad

    return plant


def one_element(size: float) -> Callable[[Tensor], Tensor]:
    def plant(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad.view(-1)[grad.abs().argmin()] += size * grad.square().mean().sqrt()
        return grad

    return plant


PLANTS = {"scale": factor, "element": one_element, "row": one_row}
RUNS: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "a sweep": (FEW, {}),
    "a sweep with an rtol": (FEW, {"rtol": 1e-3}),
    "directions": (MANY, {}),
    "directions, loosely": (MANY, {"rtol": 1e-3}),
    "a kernel in float32": (FEW, {"reference": torch.tanh, "dtypes": "float32"}),
    "a kernel in bfloat16": (FEW, {"reference": torch.tanh, "dtypes": "bfloat16"}),
}


def of(report: Report) -> Any:
    (found,) = report.sensitivity.values()
    return found


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("name", RUNS)
def test_an_error_beyond_is_caught(name: str, kind: str) -> None:
    x, options = RUNS[name]
    right = check(tanh(), x, **options)
    told = getattr(of(right), kind)
    assert 0 < told < 2
    wrong = check(tanh(PLANTS[kind](1.5 * told)), x, raise_exception=False, **options)
    assert wrong.verdict is Verdict.FAIL, (told, str(wrong))


@pytest.mark.parametrize("name", ["a sweep", "a sweep with an rtol", "a kernel in float32"])
def test_what_is_told_is_no_exaggeration(name: str) -> None:
    """A tenth of a factor that is caught is not; directions may see more than they promise."""
    x, options = RUNS[name]
    told = of(check(tanh(), x, **options)).scale
    assert check(tanh(factor(told / 10)), x, **options)


def test_a_loose_tolerance_is_seen() -> None:
    strict, loose = check(tanh(), FEW), check(tanh(), FEW, rtol=1e-2)
    assert of(strict).scale < 1e-5 < 5e-3 < of(loose).scale
    written = loose.to_dict()["leaves"]["args[0]"]["sensitivity"]
    assert written == {kind: getattr(of(loose), kind) for kind in PLANTS}


def test_zero_gradients_tell_nothing() -> None:
    report = check(lambda x: torch.sign(x), FEW)
    assert report.sensitivity == {} or of(report) is not None
    assert json.loads(report.to_json())["leaves"]["x"]["sensitivity"] is None


SOURCE = "import torch\ndef tanh(x): return torch.tanh(x)\n"


def test_the_command_fails_where_too_little_would_be_caught(tmp_path: Any, capsys: Any) -> None:
    file = tmp_path / "ops.py"
    file.write_text(SOURCE)
    words = ["check", f"{file}:tanh", "f64[3,4]", "--sensitivity"]
    assert main([*words, "--min-sensitivity", "1e-4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "x: catches a wrong factor from" in said
    loose = [*words, "--rtol", "0.01"]
    assert main([*loose, "--min-sensitivity", "1e-4"]) == 1
    assert "x: a wrong factor is caught from 1.0e-02 on" in capsys.readouterr().err
    assert main([*loose, "--min-sensitivity", "0.1", "--min-sensitivity", "element=1e-3"]) == 1
    assert "one wrong element, in rms of its leaf, is caught from" in capsys.readouterr().err
    assert main([*loose, "--min-sensitivity", "colour=3"]) == 2
    assert "is no sensitivity" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["", "x", "scale=", "row=-1", "0", "colour=1"])
def test_what_is_no_sensitivity_is_refused(word: str) -> None:
    with pytest.raises(InvalidCase, match="is no sensitivity"):
        limits([word])
