"""The verb audit: every probe sees its planted mistake, and nothing right is accused."""

import hashlib
from typing import Any, ClassVar

import pytest
import torch
from audited import PLANTED, function, normal
from torch import nn

from xgradcheck import GradientMismatch, InvalidCase, Verdict, audit, check
from xgradcheck._probes import PROBES


def failed(report: Any) -> set[str]:
    return {probe.name for probe in report.probes if probe.verdict is Verdict.FAIL}


@pytest.mark.parametrize("name", PLANTED)
def test_a_probe_sees_its_mistake_and_accepts_the_right_twin(name: str) -> None:
    planted = PLANTED[name]
    fn, args = planted.wrong()
    report = audit(fn, *args, probes=planted.probe, raise_exception=False)
    assert planted.probe in failed(report), str(report)
    assert report.verdict is Verdict.FAIL
    assert any(finding.kind == planted.probe for finding in report.findings)
    fn, args = planted.right()
    report = audit(fn, *args, raise_exception=False)
    assert report.verdict is Verdict.PASS, str(report)


TORCH_FUNCTIONS: dict[str, Any] = {}


def entered(*args: Any, **options: Any) -> Any:
    """A function of torch's and its arguments, in the table."""

    def enter(fn: Any) -> Any:
        TORCH_FUNCTIONS[fn.__name__] = fn, args, options
        return fn

    return enter


X, Y = normal(3, 4), normal(3, 4, seed=1)
POSITIVE = normal(3, 4, seed=2).exp()
SQUARE = normal(4, 4, seed=3)
DEFINITE = SQUARE @ SQUARE.T + 4 * torch.eye(4, dtype=torch.float64)
IMAGES = normal(2, 3, 6, 6, seed=4)
LABELS = torch.tensor([1, 0, 3])
F = nn.functional

for unary in (
    "tanh", "sigmoid", "softplus", "gelu", "silu", "mish", "elu", "selu", "celu", "hardtanh",
    "leaky_relu", "relu", "relu6", "hardswish", "logsigmoid", "softsign", "tanhshrink",
):  # fmt: skip
    entered(X)(getattr(F, unary))
for elementwise in ("exp", "sin", "erf", "sinh", "atan", "square", "expm1", "abs"):
    entered(X)(getattr(torch, elementwise))
for of_positive in ("log", "sqrt", "rsqrt", "reciprocal", "log1p", "lgamma", "digamma"):
    entered(POSITIVE)(getattr(torch, of_positive))
for binary in ("mul", "add", "sub", "div", "atan2", "hypot", "logaddexp", "maximum", "minimum"):
    entered(X, POSITIVE)(getattr(torch, binary))
for reduction in ("sum", "mean", "prod", "logsumexp", "cumsum", "cumprod", "amax", "var", "norm"):
    dims = (1,) if reduction in ("logsumexp", "cumsum", "cumprod", "amax") else ()
    entered(X, *dims)(getattr(torch, reduction))
for matrix in ("det", "slogdet", "inv", "svdvals", "pinv"):
    entered(DEFINITE)(getattr(torch.linalg, matrix))
for triangle in ("cholesky", "eigvalsh"):
    entered(DEFINITE, constraint="symmetric")(getattr(torch.linalg, triangle))
entered(DEFINITE, SQUARE)(torch.linalg.solve)
entered(X, Y.T.contiguous())(torch.matmul)
entered(normal(2, 3, 4), normal(2, 4, 5, seed=1))(torch.bmm)
entered(X, normal(5, 4, seed=1), normal(5, seed=2))(F.linear)
entered(X, (4,), normal(4), normal(4, seed=1))(F.layer_norm)
entered(IMAGES, 3, normal(3), normal(3, seed=1))(F.group_norm)
entered(IMAGES, normal(4, 3, 3, 3, seed=1), normal(4, seed=2))(F.conv2d)
entered(IMAGES, normal(3, 2, 3, 3, seed=1))(F.conv_transpose2d)
entered(IMAGES, 2)(F.avg_pool2d)
entered(IMAGES, 2)(F.max_pool2d)
entered(IMAGES, (1, 2, 0, 1), "reflect")(F.pad)
entered(X, 1)(F.softmax)
entered(X, 1)(F.log_softmax)
entered(X, LABELS)(F.cross_entropy)
entered(X, Y)(F.mse_loss)
entered(X, Y)(F.smooth_l1_loss)
entered(X, Y, torch.tensor([1, -1, 1]))(F.cosine_embedding_loss)
entered(X, torch.sigmoid(Y))(F.binary_cross_entropy_with_logits)
entered(X)(F.normalize)
entered(X, Y)(F.cosine_similarity)
entered(X, 1, torch.tensor([[0, 0], [1, 3], [2, 2]]))(torch.gather)
entered(X, 0, torch.tensor([2, 0, 2]))(torch.index_select)
entered(normal(4))(torch.fft.rfft)
entered(X, 1, 1)(torch.roll)
entered(torch.tensor([0, 2, 2]), normal(4, 3))(F.embedding)
entered(normal(2, 3, 4), normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2))(
    F.scaled_dot_product_attention
)


# Forward takes a bias without a weight, and backward does not.
TRUE_ALARMS = {"group_norm": ["without weight: raises RuntimeError: tensor does not have a device"]}


def test_there_are_sixty_functions_of_torch() -> None:
    assert len(TORCH_FUNCTIONS) >= 60


def named(number: int, name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.slow] if number % 4 else [])


@pytest.mark.parametrize("name", [named(*item) for item in enumerate(TORCH_FUNCTIONS)])
def test_no_alarm_over_functions_of_torch(name: str) -> None:
    fn, args, options = TORCH_FUNCTIONS[name]
    report = audit(fn, *args, **options, raise_exception=False)
    told = [finding.text for finding in report.findings]
    assert told == TRUE_ALARMS.get(name, []), str(report)


class Net(nn.Module):
    """Buffers that move, noise, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.second = nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Any) -> Any:
        return self.dropout(self.norm(self.first(x)).tanh()) + self.second(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_module_passes_and_is_left_as_it_was(dtype: Any) -> None:
    torch.manual_seed(0)
    net, x = Net().to(dtype), normal(6, 4).to(dtype)
    net.first.bias.grad = torch.ones_like(net.first.bias)
    torch.use_deterministic_algorithms(False)

    def world() -> str:
        parts = [*net.state_dict().values(), x, torch.get_rng_state(), net.first.bias.grad]
        seen = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts))
        flags = [
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            [p.requires_grad for p in net.parameters()],
            [p.grad is None for p in net.parameters()],
            [m.training for m in net.modules()],
            [p.data_ptr() for p in net.parameters()],
        ]
        return seen.hexdigest() + str(flags)

    before = world()
    report = audit(net, x, raise_exception=False)
    assert report.verdict is Verdict.PASS, str(report)
    assert world() == before


def test_the_world_is_left_as_it_was_where_a_probe_meets_an_exception() -> None:
    calls = []

    class Tired(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            calls.append(len(calls))
            if len(calls) > 10:
                raise KeyboardInterrupt
            return 2 * ctx.saved_tensors[0] * grad

    x = normal(3, 4).requires_grad_()
    found = torch.utils.deterministic.fill_uninitialized_memory
    before = x.detach().numpy().tobytes(), torch.get_rng_state().numpy().tobytes()
    with pytest.raises(KeyboardInterrupt):
        audit(Tired.apply, x)
    assert (x.detach().numpy().tobytes(), torch.get_rng_state().numpy().tobytes()) == before
    assert x.requires_grad
    assert x.grad is None
    assert torch.utils.deterministic.fill_uninitialized_memory is found
    assert not torch.are_deterministic_algorithms_enabled()


def test_probes_are_chosen_by_name() -> None:
    report = audit(torch.tanh, X, probes=["purity", "layout"])
    assert [probe.name for probe in report.probes] == ["layout", "purity"]
    assert [probe.name for probe in audit(torch.tanh, X, probes="form").probes] == ["form"]
    assert [probe.name for probe in audit(torch.tanh, X).probes] == [*PROBES]
    with pytest.raises(InvalidCase, match="no probe 'layouts'; the probes are layout, "):
        audit(torch.tanh, X, probes=["layouts"])


def test_a_failed_probe_raises_and_is_told() -> None:
    fn, args = PLANTED["view of the cotangent"].wrong()
    with pytest.raises(GradientMismatch) as raised:
        audit(fn, *args, name="square")
    said = str(raised.value.report)
    assert said.startswith("FAIL  square: the gradient is right here, but the probe layout failed")
    assert "layout: the cotangent with its last two axes transposed in memory: raises" in said
    told = raised.value.report.to_dict()["probes"][0]
    assert (told["name"], told["verdict"]) == ("layout", "FAIL")
    assert len(told["trials"]) == 19


def test_what_was_skipped_fails_where_that_is_asked_for() -> None:
    assert audit(torch.tanh, X, probes="form").verdict is Verdict.PASS
    with pytest.raises(GradientMismatch, match="form: skipped: there is no custom rule"):
        audit(torch.tanh, X, probes="form", strict=True)
    assert audit(torch.tanh, X, probes="layout", strict=True).verdict is Verdict.PASS


def test_what_cannot_be_transformed_is_left_out_and_told() -> None:
    fn, args = PLANTED["view of the cotangent"].right()
    report = audit(fn, *args, probes="transforms")
    probe = report.probes[0]
    assert "under torch.compile (aot_eager)" in probe.trials
    assert [what.partition(":")[0] for what in probe.refused] == [
        "under torch.func.vjp",
        "under vmap",
        "under vmap of torch.func.vjp",
    ]
    assert "must override the setup_context" in probe.refused[0]
    assert "left out: under torch.func.vjp, under vmap, under vmap of torch.func.vjp" in " ".join(
        str(report).split()
    )
    assert report.to_dict()["probes"][0]["refused"] == [*probe.refused]


def test_operators_are_told_from_functions() -> None:
    fn, args = PLANTED["an operator of another shape"].right()
    probe = audit(fn, *args, probes="opcheck").probes[0]
    assert "test_faketensor of xgradcheck_tests.right" in probe.trials
    assert audit(torch.tanh, X, probes="opcheck").probes[0].verdict is Verdict.SKIPPED
    # Without a graph its tangent is dropped in silence: that there is no rule is told all the same.
    forward = audit(fn, *args, probes="forward mode").probes[0]
    assert forward.verdict is Verdict.SKIPPED
    assert "it has no rule for forward mode" in forward.reason


def test_a_gradient_that_is_wrong_is_told_beside_the_probes() -> None:
    report = audit(lambda x: 0.5 * x**2, X, grads=lambda g, x: 2 * x * g, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert "the gradient is wrong in 1 of 1 leaf" in str(report)


def in_blocks(size: int) -> Any:
    """A square whose backward pass handles whole blocks of so many numbers."""

    class Blocks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            slope = 2 * ctx.saved_tensors[0] * grad
            slope[len(slope) // size * size :] = 0
            return slope

    return Blocks.apply


def vector(size: int) -> tuple[Any]:
    return (normal(size, seed=size),)


def test_other_sizes_are_checked() -> None:
    report = audit(in_blocks(16), *vector(32), shapes=vector, raise_exception=False)
    assert failed(report) == {"shapes"}
    said = [finding.text for finding in report.findings][-1]
    assert said.startswith("wrong at size 1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 37, 63, ")
    assert said.endswith("right at size 0, 16, 32, 64, 128")
    assert audit(in_blocks(1), *vector(32), shapes=vector).verdict is Verdict.PASS
    with pytest.raises(GradientMismatch, match="odd: args"):
        audit(in_blocks(16), *vector(32), shapes={"even": vector(32), "odd": vector(33)[0]})


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("name", ["cotangent written to", "saved tensor written to"])
def test_a_check_sees_who_writes_to_what_others_read(name: str, size: int) -> None:
    fn, _ = PLANTED[name].wrong()
    report = check(fn, normal(3, size), raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert [finding.kind for finding in report.findings] == ["purity"]
    said = "the cotangent" if name.startswith("cotangent") else "args[0]"
    assert f"the backward pass writes to {said}," in report.findings[0].text
    fn, _ = PLANTED[name].right()
    assert check(fn, normal(3, size)).verdict is Verdict.PASS


@pytest.mark.parametrize("name", ["gradient in float32", "gradient of another shape"])
def test_a_check_notes_what_autograd_makes_fit(name: str) -> None:
    fn, _ = PLANTED[name].wrong()
    report = check(fn, X.round())
    assert "what the backward of Planted returns is of" in " ".join(report.notes)
    fn, _ = PLANTED[name].right()
    assert "returns" not in " ".join(check(fn, X.round()).notes)


def test_tangents_of_many_coordinates_are_not_asked_for_one_by_one() -> None:
    report = audit(torch.sin, normal(2001), probes="forward mode")
    assert report.probes[0].verdict is Verdict.SKIPPED
    assert "2001 coordinates" in report.probes[0].reason


def test_complex_functions_are_audited() -> None:
    z = torch.complex(normal(3, 3), normal(3, 3, seed=1))
    report = audit(lambda z: torch.linalg.inv(z) @ z.conj(), z)
    assert report.verdict is Verdict.PASS
    values = next(probe for probe in report.probes if probe.name == "values")
    assert "values times 100" in values.trials


class Weighed(torch.autograd.Function):
    """A product whose weight gets one gradient for each address."""

    seen: ClassVar[set[int]] = set()
    once = True

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight = ctx.saved_tensors
        is_known = weight.data_ptr() in Weighed.seen
        Weighed.seen.add(weight.data_ptr())
        return grad @ weight, None if is_known and Weighed.once else grad.T @ x


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(normal(4, 4, seed=n)) for n in (5, 6))

    def forward(self, x: Any) -> Any:
        Weighed.seen.clear()
        return Weighed.apply(Weighed.apply(x, self.first).tanh(), self.second)


def test_parameters_that_could_be_tied_are_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    report = audit(Tied(), X, probes="aliasing", raise_exception=False)
    assert "one tensor as first and second: first[" in report.findings[0].text
    monkeypatch.setattr(Weighed, "once", False)
    report = audit(Tied(), X, probes="aliasing")
    assert report.probes[0].trials == (
        "one tensor as first and second",
        "a view of first as second",
    )


@pytest.mark.parametrize("is_right", [False, True])
def test_one_cotangent_of_three_is_undefined(is_right: bool) -> None:
    def three(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return x.sin(), x.cos(), x**2

    def of_three(ctx: Any, a: Any, b: Any, c: Any) -> Any:
        (x,) = ctx.saved_tensors
        if not is_right and c is None and a is not None and b is not None:
            return a * x.cos()
        found = torch.zeros_like(x)
        for part, slope in ((a, x.cos()), (b, -x.sin()), (c, 2 * x)):
            found = found if part is None else found + part * slope
        return found

    report = audit(function(three, of_three), X, probes="cotangents", raise_exception=False)
    assert (report.verdict is Verdict.PASS) is is_right
    assert "output[2] without a cotangent" in report.probes[0].trials
