"""PyTorch: functions, modules and closures, and what their leaves are called."""

import functools
import warnings
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from audited import function
from torch import nn
from torch.nn import functional as F

from xgradcheck import ALL, InvalidCase, Verdict, check

F64 = torch.float64
X = torch.linspace(-1.2, 1.3, 12, dtype=F64).reshape(3, 4)
Point = namedtuple("Point", "x y")


class Cube(torch.autograd.Function):
    factor = 3.0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return Cube.factor * ctx.saved_tensors[0] ** 2 * grad


def test_a_custom_function_is_checked_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(check(Cube.apply, X).leaves) == ("args[0]",)
    monkeypatch.setattr(Cube, "factor", 2.0)
    report = check(Cube.apply, X, raise_exception=False)
    assert report.verdict is Verdict.FAIL and report.name == "Cube"


def test_the_worst_element_against_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cube, "factor", 3.1)
    report = check(lambda x: Cube.apply(x)[2, 3], X, raise_exception=False)
    worst = report.leaves["x"].worst
    assert worst is not None and worst.index == (2, 3)
    assert worst.analytic / worst.truth == pytest.approx(3.1 / 3)


def test_nested_arguments_are_named_as_python_writes_them() -> None:
    def fn(tree: Any, *, gain: Any, rank: int) -> Any:
        return (tree["a"][0] * tree["p"].x * gain).sum() * rank

    tree = {"a": [X[0].clone()], "p": Point(X[1].clone(), "unused")}
    report = check(fn, tree, kwargs={"gain": torch.tensor(2.0, dtype=F64), "rank": 3})
    assert tuple(report.leaves) == ("tree['a'][0]", "tree['p'].x", "gain")
    assert report.leaves["tree['p'].x"].path == (0, "p", "x")


def test_only_what_requires_grad_is_checked_if_anything_does() -> None:
    a, b = X.clone().requires_grad_(), X.clone()
    report = check(lambda a, b: (a * b).sum(), a, b)
    assert tuple(report.leaves) == ("a",)
    assert report.skipped == ("b: does not require grad",)
    assert tuple(check(lambda a, b: (a * b).sum(), a, b, wrt=(0, 1)).leaves) == ("a", "b")


def test_outputs_that_carry_no_gradient_are_listed() -> None:
    def fn(x: Any) -> Any:
        return {"y": x.sin(), "order": x.argsort(), "none": None, "cut": [x.detach() * 5]}

    report = check(fn, X)
    assert set(report.skipped) == {
        "output['order']: int64, not differentiable",
        "output['none']: NoneType, not differentiable",
        "output['cut'][0]: float64, not differentiable",
    }


def test_strides_reach_the_function_as_they_were() -> None:
    seen = []

    def fn(x: Any) -> Any:
        seen.append(x.stride())
        return x.sin()

    for x in (X.T, X[:, ::2], X[1:, 1:], torch.zeros(1, dtype=F64).expand(3)):
        seen.clear()
        check(fn, x)
        overlapping = 0 in x.stride()
        assert set(seen) == {(1,) if overlapping else x.stride()}


def test_a_tensor_passed_twice_is_one_leaf() -> None:
    report = check(lambda a, b: (a * b).sum(), X, X)
    assert tuple(report.leaves) == ("a = b",)
    assert report.leaves["b"] is report.leaves["a = b"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.4)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.drop(self.norm(torch.tanh(self.encode(x))))) * self.frozen


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_module_is_checked_parameter_by_parameter(net: Net) -> None:
    batch = torch.randn(6, 4, dtype=F64)
    report = check(net, batch, loss=lambda y: y.square().mean())
    tied = "encode.weight = decode.weight"
    names = {tied, "encode.bias", "decode.bias", "norm.weight", "norm.bias"}
    assert set(report.leaves) == names
    assert report.leaves["decode.weight"] is report.leaves[tied]
    assert report.leaves["encode.bias"].path == ("encode", "bias")
    assert "frozen: frozen (requires_grad is False)" in report.skipped
    assert set(check(net, batch, wrt=ALL).leaves) == {*names, "frozen", "x"}


@pytest.mark.parametrize(
    ("wrt", "names"),
    [
        ("norm.*", ["norm.weight", "norm.bias"]),
        ("norm", ["norm.weight", "norm.bias"]),
        (["decode.bias", "x"], ["decode.bias", "x"]),
        (0, ["x"]),
        (-1, ["x"]),
        ("decode.weight", ["encode.weight = decode.weight"]),
    ],
)
def test_wrt_chooses_leaves_by_name_glob_and_number(net: Net, wrt: Any, names: list[str]) -> None:
    assert list(check(net, torch.randn(6, 4, dtype=F64), wrt=wrt).leaves) == names


def test_an_input_of_the_name_of_a_parameter_is_told_apart() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor(2.0, dtype=F64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Cube.apply(x) * self.x

    assert set(check(Odd(), X, wrt=ALL).leaves) == {"x", "input x"}


@pytest.mark.parametrize("kind", ["module", "list", "dict", "generator", "named generator"])
def test_closures_over_parameters_of_every_kind(net: Net, kind: str) -> None:
    net.eval()
    head = net.decode.bias
    wrt: Any = {
        "module": net.norm,
        "list": [net.norm.weight, head],
        "dict": {"w": net.norm.weight, "head": head},
        "generator": net.norm.parameters(),
        "named generator": net.norm.named_parameters(),
    }[kind]
    names = {
        "module": ["weight", "bias"],
        "list": ["wrt[0]", "wrt[1]"],
        "dict": ["w", "head"],
        "generator": ["wrt[0]", "wrt[1]"],
        "named generator": ["weight", "bias"],
    }[kind]
    assert list(check(lambda: net(X).square().sum(), wrt=wrt).leaves) == names


def test_no_gradient_for_a_parameter_that_matters_is_fail() -> None:
    a, b = X.clone(), X.clone()
    report = check(lambda a, b: (a.detach() * b).sum(), a, b, raise_exception=False)
    assert report.leaves["a"].verdict is Verdict.FAIL
    assert report.leaves["b"].verdict is Verdict.PASS
    (finding,) = report.findings
    assert finding.text.startswith("no gradient for a") and finding.text.endswith("in wrt=")
    report = check(lambda a: a.detach().sum() + 0 * a.sum(), a, raise_exception=False)
    assert "wrt=" not in str(report)


def test_no_gradient_for_a_parameter_that_does_not_matter_is_noted() -> None:
    report = check(lambda a, b: a.sin().sum(), X, X.clone())
    assert any(note.startswith("b gets no gradient") for note in report.notes)


def test_a_zero_gradient_beside_others_is_right_and_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()).double()
    report = check(model, torch.randn(8, 4, dtype=F64))
    assert any("0.bias: zero gradient" in note for note in report.notes)


def test_a_function_that_differentiates_inside() -> None:
    def force(x: torch.Tensor) -> torch.Tensor:
        (grad,) = torch.autograd.grad(x.sin().sum(), x, create_graph=True)
        return grad * x

    assert check(force, X)


def test_a_gradient_handed_in_is_checked_instead_of_autograds() -> None:
    assert check(lambda x: x.sin().sum(), X, grads=X.cos())
    assert check(lambda x: x.sin(), X, grads=lambda cotangent, x: cotangent * x.cos())
    wrong = check(lambda x: x.sin().sum(), X, grads=X.sin(), raise_exception=False)
    assert wrong.verdict is Verdict.FAIL


def test_a_gradient_handed_in_that_draws_its_own_mask_is_told_so() -> None:
    def kept(x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand_like(x) > 0.5)

    def again(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return u * (kept(x) / x)

    assert check(kept, X, grads=again)
    anew = check(kept, X, grads=lambda u, x: u * (torch.rand_like(x) > 0.5), raise_exception=False)
    assert anew.verdict is Verdict.INCONCLUSIVE
    assert [finding.kind for finding in anew.findings] == ["stochastic backward"]


def test_inference_mode_is_left_for_the_check() -> None:
    with torch.inference_mode():
        assert check(lambda x: x.sin(), torch.ones(2, dtype=F64))
        assert torch.is_inference_mode_enabled()


def test_a_lazy_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'weight' is not initialised yet"):
        check(nn.LazyLinear(3), X)


def test_quantised_modules_are_refused_by_name() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(nn.Linear(4, 3)).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to move all this to torchao
        model = quantization.prepare_qat(model)
        model(X.float())
        with pytest.raises(InvalidCase, match=r"'0\.weight_fake_quant' is quantisation-aware"):
            check(model, X.float())
        with pytest.raises(InvalidCase, match=r"'0\.weight_fake_quant' is quantisation-aware"):
            check(lambda: model(X.float()).sum(), wrt=model)
        model.apply(quantization.disable_fake_quant)
        assert check(model, X.float())
        with pytest.raises(InvalidCase, match="'0' is quantised"):
            check(quantization.convert(model.eval()), X.float())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_padding_row_of_an_embedding_is_a_constant(dtype: Any, sparse: bool) -> None:
    index = torch.tensor([[1, 0, 3], [0, 2, 1]])
    net = nn.Embedding(5, 2, padding_idx=0, sparse=sparse).to(dtype)
    with torch.no_grad():
        net.weight[0] = 0.7
    report = check(net, index)
    assert "weight[0]: the padding row, which torch holds constant" in report.skipped

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, index: Any) -> Any:
            return F.embedding(index, Half.apply(self.inner.weight), padding_idx=0)

    # Behind another step the row is no longer torch's own: what it lacks is a mistake.
    assert check(Wrong(), index, raise_exception=False).verdict is Verdict.FAIL


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad / 2


def test_a_wrong_gradient_beside_a_padding_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net, index = nn.Embedding(5, 2, padding_idx=0).double(), torch.tensor([1, 0, 3])
    monkeypatch.setattr(Cube, "factor", 3.03)
    report = check(net, index, loss=Cube.apply, raise_exception=False)
    worst = report.leaves["weight"].worst
    assert report.verdict is Verdict.FAIL and worst is not None and worst.index[0] in (1, 3)


def test_sparse_gradients_are_read() -> None:
    module = nn.Embedding(5, 2, sparse=True).double()
    index = torch.tensor([1, 3, 1])
    module(index).sum().backward()
    assert check(module, index)


def test_buffers_are_never_perturbed(net: Net) -> None:
    report = check(net, torch.randn(6, 4, dtype=F64), wrt=ALL)
    assert not any("running" in name for name in report.leaves)
    assert np.isfinite(report.distance)


@pytest.mark.parametrize("rows", [2, 80])
def test_an_argument_that_is_written_to_hides_no_mistake(rows: int) -> None:
    def threshold(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = x.sort(-1, descending=True).values
        excess = ordered.cumsum(-1) - 1
        count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        kept = (count * ordered > excess).sum(-1, keepdim=True)
        return excess.gather(-1, kept - 1) / kept, kept

    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x -= x.amax(-1, keepdim=True)  # as sparsemax is often written
        low, count = threshold(x)
        out = (x - low).clamp(min=0)
        ctx.save_for_backward(out, count)
        return out

    def backward(ctx: Any, u: torch.Tensor, masked: bool) -> torch.Tensor:
        out, count = ctx.saved_tensors
        own = torch.where(out == 0, 0.0, u) if masked else u
        return torch.where(out == 0, own, own - own.sum(-1, keepdim=True) / count)

    x = torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for masked, verdict in ((True, "PASS"), (False, "FAIL")):
        fn = function(forward, functools.partial(backward, masked=masked))
        assert check(fn, x.clone(), raise_exception=False).verdict == verdict
