"""PyTorch functions below float64: raised without being changed, judged in both precisions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xgradcheck import check


class Scale(torch.autograd.Function):
    """``x * w``, whose gradient for x is ``factor`` times the right one."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return Scale.factor * g * w, g * x


scale = Scale.apply


class InBuffers(torch.autograd.Function):
    """``sin``, with a backward that works in buffers of float32."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        buffer = torch.zeros(x.shape, dtype=torch.float32)
        buffer.copy_(torch.cos(x))
        return Scale.factor * g * buffer.mul_(g / g)


CAPTURED = torch.linspace(-1.0, 2.0, 6)


def writes_into_zeros(x):
    h = torch.zeros(6, 2)
    for row in range(6):
        h[row, 0] = scale(x, CAPTURED)[row].sin()
        h[row, 1] = 2.0 * h[row, 0]
    return h.sum(1)


def copies_into_zeros(x):
    h = torch.zeros(6)
    h.copy_(scale(x, x).sin())
    return h


def adds_to_a_row(x):
    h = torch.ones(3, 6)
    h[0] += scale(x, CAPTURED)
    h[1].mul_(x)
    return h.prod(0)


def adds_to_what_it_keeps():
    kept = torch.zeros(6)

    def fn(x):
        kept.add_(CAPTURED)
        return scale(x, CAPTURED) * kept

    return fn


def writes_out(x):
    out = torch.zeros(6)
    torch.mul(CAPTURED, 2.0, out=out)
    return scale(x, out).tanh()


def takes_a_captured_tensor(x):
    return scale(x, CAPTURED).exp()


def linear_of_two_dtypes(x):
    weight = torch.full((2, 6), 0.3, dtype=torch.float32)
    return F.linear(scale(x, CAPTURED).reshape(1, 6), weight)


def normalises(x):
    mean, variance = torch.zeros(2), torch.ones(2)
    y = scale(x, CAPTURED).reshape(3, 2)
    return F.batch_norm(y, mean, variance, torch.ones(2), torch.zeros(2), training=True)


def cross_entropy(x):
    return F.binary_cross_entropy(torch.sigmoid(scale(x, CAPTURED)), torch.full((6,), 0.3))


def casts(x):
    return scale(x.float(), CAPTURED.to(torch.float32)).type(torch.float32).sin()


def drops(x):
    return F.dropout(scale(x, CAPTURED), 0.3, training=True) * 1.5


def draws_normal(x):
    return scale(x, torch.randn(6)) + torch.randn_like(x) * x


def draws_uniform(x):
    return scale(x, torch.rand(6)).sin() * torch.empty(6).uniform_(1.0, 2.0)


def draws_bernoulli(x):
    mask = torch.bernoulli(torch.full((6,), 0.7))
    return scale(x, mask) + x.detach().new_empty(6).bernoulli_(0.5) * x


def attends(x):
    q = scale(x, CAPTURED).reshape(1, 1, 3, 2)
    return F.scaled_dot_product_attention(q, q + 1.0, q * 2.0, dropout_p=0.2)


def works_in_buffers(x):
    return InBuffers.apply(x)


FUNCTIONS = [
    writes_into_zeros,
    copies_into_zeros,
    adds_to_a_row,
    adds_to_what_it_keeps(),
    writes_out,
    takes_a_captured_tensor,
    linear_of_two_dtypes,
    normalises,
    cross_entropy,
    casts,
    drops,
    draws_normal,
    draws_uniform,
    draws_bernoulli,
    attends,
    works_in_buffers,
]


def point(dtype=torch.float32):
    return torch.tensor([0.7, -0.4, 1.3, 0.2, -1.1, 0.9], dtype=dtype)


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__qualname__.split(".")[0])
def test_a_float32_function_is_judged_twice(fn, monkeypatch):
    report = check(fn, point())
    (leaf,) = report.leaves.values()
    assert [row.judged for row in leaf.rows] == ["float64", "float32 as run"]
    assert [row.precision for row in leaf.rows] == ["float64", "float32"]
    monkeypatch.setattr(Scale, "factor", 1.01)
    wrong = check(fn, point(), raise_exception=False)
    assert [row.verdict for leaf in wrong.leaves.values() for row in leaf.rows] == ["FAIL", "FAIL"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_judged_by_a_truth_in_float64(dtype, monkeypatch):
    def fn(x):
        return scale(x, CAPTURED.to(dtype)).sin()

    (leaf,) = check(fn, point(dtype)).leaves.values()
    name = str(dtype).removeprefix("torch.")
    assert [row.judged for row in leaf.rows] == ["float64", f"{name} as run"]
    monkeypatch.setattr(Scale, "factor", 1.3)
    assert check(fn, point(dtype), raise_exception=False).verdict == "FAIL"


def test_a_mistake_below_float32_is_one_of_the_mathematics(monkeypatch):
    monkeypatch.setattr(Scale, "factor", 1 + 1e-5)
    report = check(takes_a_captured_tensor, point(), raise_exception=False)
    (leaf,) = report.leaves.values()
    assert [row.verdict for row in leaf.rows] == ["FAIL", "PASS"]
    assert report.verdict == leaf.verdict == "FAIL"
    assert report.findings[0].text.startswith("float64: x")


class WrongInSingle(torch.autograd.Function):
    """Right in float64, with its sign flipped below."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() * (1 if x.dtype == torch.float64 else -1)


def test_a_mistake_below_float64_alone_is_seen_as_it_runs():
    report = check(WrongInSingle.apply, point(), raise_exception=False)
    (leaf,) = report.leaves.values()
    assert [row.verdict for row in leaf.rows] == ["PASS", "FAIL"]
    assert report.verdict == leaf.verdict == "FAIL"
    assert report.findings[0].text.startswith("float32 as run: ")
    assert check(WrongInSingle.apply, point(torch.float64))


class OnlyInSingle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return Scale.factor * g * x.cos()


def test_what_cannot_be_raised_is_differenced_as_it_runs(monkeypatch):
    report = check(OnlyInSingle.apply, point())
    (leaf,) = report.leaves.values()
    assert not leaf.rows and leaf.judged == "float32 as run"
    assert report.findings[0].kind == "truth in float32"
    assert "float32 only" in report.findings[0].text
    monkeypatch.setattr(Scale, "factor", 1.01)
    assert check(OnlyInSingle.apply, point(), raise_exception=False).verdict == "FAIL"


def test_a_function_that_raising_changes_is_differenced_as_it_runs():
    def fn(x):
        return x.sin() * (3.0 if x.dtype == torch.float32 else 4.0)

    report = check(fn, point())
    assert [finding.kind for finding in report.findings] == ["truth in float32"]


def test_the_world_is_as_it_was_after_raising():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    model(x).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    places = [p.data_ptr() for p in model.parameters()]
    random = torch.get_rng_state()
    applied = vars(torch.autograd.Function.__mro__[1]).get("apply")

    class Broken(Exception):
        pass

    calls = 0

    def breaks(y):
        nonlocal calls
        calls += 1
        if calls > 60:
            raise Broken
        return y.sum()

    assert check(model, x)
    with pytest.raises(Broken):
        check(model, x, loss=breaks)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert places == [p.data_ptr() for p in model.parameters()]
    assert all(map(torch.equal, grads, (p.grad for p in model.parameters())))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_default_dtype() is torch.float32
    assert vars(torch.autograd.Function.__mro__[1]).get("apply") is applied
    assert model.training


def test_what_draws_and_computes_in_one_step_leaves_parameters_alone():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(point())

        def forward(self, x):
            noise = torch.empty(6, dtype=torch.int64).random_(1, 4)
            return (F.rrelu(self.weight, training=True) * x * noise).sum()

    model = Leaky()
    assert check(model, torch.tensor(1.5))
    assert model.weight.is_leaf and model.weight.dtype == torch.float32


@pytest.mark.parametrize("share", [0.4, 0.0, 1.0])
def test_dropout_in_one_step_with_its_mask_is_raised(share):
    def fn(x, w):
        kept, _ = torch.native_dropout(scale(x, w), share, True)
        still, _ = torch.native_dropout(w, share, False)
        return kept.sin() + still

    args = point(), torch.linspace(0.5, 1.5, 6)
    report = check(fn, *args)
    for leaf in report.leaves.values():
        assert [row.judged for row in leaf.rows] == ["float64", "float32 as run"]
    if share < 1:
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patched:
            patched.setattr(Scale, "factor", 1.01)
            assert check(fn, *args, raise_exception=False).leaves["x"].verdict == "FAIL"


def test_a_shape_stays_a_shape():
    (leaf,) = check(lambda x: x.sin().sum() / x.shape.numel(), point()).leaves.values()
    assert len(leaf.rows) == 2


CONFIDENT = torch.tensor([[9.0, 1.0, -2.0], [0.5, 11.0, -1.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_a_confident_prediction(dtype, monkeypatch):
    """What is left of it after subtraction carries the rounding of the scores."""
    labels = torch.tensor([0, 1])
    assert check(lambda x: F.cross_entropy(x, labels), CONFIDENT.to(dtype))
    monkeypatch.setattr(Scale, "factor", 1.01)
    one = torch.ones(2, 3, dtype=dtype)
    wrong = check(
        lambda x: F.cross_entropy(scale(x, one), labels), CONFIDENT.to(dtype), raise_exception=False
    )
    assert wrong.verdict == "FAIL"


class Hinge(torch.autograd.Function):
    """``relu(1 - x)``, wrong in float32 alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.relu(1 - x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return -g * (x < 1) * (1.0 if x.dtype == torch.float64 else Scale.factor)


def test_elements_at_a_kink_excuse_no_others(monkeypatch):
    x = torch.linspace(0.0, 0.9, 60)
    x[:3] = 1.0
    assert check(Hinge.apply, x)
    monkeypatch.setattr(Scale, "factor", 1.1)
    report = check(Hinge.apply, x, raise_exception=False)
    (leaf,) = report.leaves.values()
    assert [row.verdict for row in leaf.rows] == ["PASS", "FAIL"] and leaf.wrong == 57


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.clamp(0.25, 0.5),
        lambda x: F.max_pool1d(x.reshape(1, 1, 4), 2),
        lambda x: F.l1_loss(x, torch.full((4,), 0.25)),
    ],
)
def test_kinks_in_float32(fn):
    assert check(fn, torch.tensor([0.25, 0.5, 0.3, 0.3]))


class ThroughNumpy(torch.autograd.Function):
    """``sin``, with a backward that computes in float32 whatever it is given."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = np.cos(x.numpy().astype(np.float32))
        return torch.from_numpy(g.numpy().astype(np.float32) * slope * Scale.factor)


def test_a_backward_of_fixed_dtype_is_not_asked_for_more(monkeypatch):
    x = torch.linspace(-3, 3, 40)
    assert check(ThroughNumpy.apply, x)
    monkeypatch.setattr(Scale, "factor", np.float32(1.001))
    assert check(ThroughNumpy.apply, x, raise_exception=False).verdict == "FAIL"


def test_a_backward_that_fills_grads():
    x, weight = torch.randn(5, 3), nn.Parameter(torch.randn(3, 2))
    (x @ weight).sum().backward()
    kept, values = weight.grad, weight.grad.clone()

    def gradients():
        weight.grad = None
        with torch.enable_grad():
            (x @ weight).square().sum().backward()
        return [weight.grad]

    assert check(lambda: (x @ weight).square().sum(), wrt=[weight], grads=gradients)
    assert weight.grad is kept and torch.equal(kept, values)


class Remembers(nn.Module):
    """Fills a buffer once, grows another, and keeps its last output."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("scale", torch.ones(3))
        self.is_ready, self.longest, self.last = False, 0, None

    def forward(self, x):
        if not self.is_ready:
            self.scale.copy_(1 / x.std(0))
            self.is_ready = True
        if len(x) > self.longest:
            self.longest = len(x)
            self.register_buffer("turns", torch.cos(torch.arange(float(self.longest))))
        y = x * self.scale * self.weight * self.turns[: len(x), None]
        self.last = y.detach()
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_module_remembers_is_forgotten(dtype):
    model = Remembers().to(dtype)
    assert check(model, torch.randn(5, 3, dtype=dtype))
    assert (model.is_ready, model.longest, model.last) == (False, 0, None)
    assert list(model._buffers) == ["scale"] and (model.scale == 1).all()
    model(torch.randn(4, 3, dtype=dtype))


def test_a_simplex_in_float32():
    probabilities = torch.softmax(torch.randn(3, 4), -1)
    assert check(lambda p: (p * p.log()).sum(), probabilities, constraint="simplex")


def test_a_domain_that_ends_at_the_point_in_float32():
    """Points near by lie outside, where the loss raises."""
    x = torch.tensor([0.9998, 0.3, 0.999])
    report = check(lambda x: F.binary_cross_entropy(x, torch.ones(3)), x)
    assert "edge of its domain" in str(report).replace("\n", " ")


@pytest.mark.parametrize("scale", [1.0, 0.05, 0.01])
def test_a_loss_of_predictions_that_hardly_differ_is_raised(scale):
    """What is left of it is rounded as the ones are that it is made of."""
    torch.manual_seed(0)
    student, teacher = (scale * torch.randn(4, 5) for _ in range(2))

    def distilled(student, teacher):
        return torch.nn.functional.kl_div(
            student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean"
        )

    report = check(distilled, student, teacher)
    assert [row.judged for row in report.leaves["student"].rows] == ["float64", "float32 as run"]


@pytest.mark.parametrize("scale", [0.003, 0.01])
def test_a_function_that_is_another_in_float64_is_judged_as_it_runs(scale):
    """The epsilon of this norm is that of its dtype."""
    torch.manual_seed(0)
    x, w = scale * torch.randn(4, 6), scale * torch.randn(6)
    report = check(lambda x, w: torch.nn.functional.rms_norm(x, (6,), w).square().mean(), x, w)
    assert all(leaf.rows == () for leaf in report.leaves.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("method", ["data", "set_"])
def test_a_function_may_put_other_memory_under_its_tensors(dtype, method, monkeypatch):
    """As networks of cuDNN do, which put all their weights into one stretch."""

    def fn(w, x):
        with torch.no_grad():
            if method == "data":
                w.data = w.data.clone()
            else:
                w.set_(w.detach().clone())
        return scale(w, x).tanh() + w.square()

    args = point(dtype), torch.linspace(0.5, 1.5, 6, dtype=dtype)
    assert check(fn, *args)
    monkeypatch.setattr(Scale, "factor", 1.5)
    report = check(fn, *args, raise_exception=False)
    assert [str(leaf.verdict) for leaf in report.leaves.values()] == ["FAIL", "PASS"]


@pytest.mark.parametrize("size", [30, 1800])
@pytest.mark.parametrize(
    ("low", "verdict"), [(torch.float32, "PASS"), (torch.float16, "FAIL"), (torch.bfloat16, "FAIL")]
)
def test_a_backward_that_stores_what_it_returns_in_16_bits_is_seen(size, low, verdict):
    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.tanh())
            return x.tanh()

        @staticmethod
        def backward(ctx, u):
            (y,) = ctx.saved_tensors
            return (u * (1 - y * y)).to(low).to(u.dtype)

    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    report = check(Tanh.apply, x, raise_exception=False)
    assert report.verdict == verdict, str(report)
    wide, own = report.leaves["args[0]"].rows
    assert wide.verdict == "PASS" and own.judged == "float32 as run"
    if verdict == "FAIL":
        told = {torch.float16: "TF32 or float16", torch.bfloat16: "bfloat16"}[low]
        assert f"consistent with rounding to {told}" in str(report.findings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("h", [1e-4, 1e-5])
def test_differences_of_large_numbers_went_through_no_16_bits(h, seed):
    """They have few digits as well, each in a unit of its own, and are off by more than half."""
    generator = torch.Generator().manual_seed(seed)
    x, w = 2 * torch.randn(12, generator=generator), torch.randn(12, generator=generator)
    report = check(lambda w, x: (w * ((x + h).exp() - x.exp())).sum(), w, x, raise_exception=False)
    assert report.verdict != "FAIL", str(report)


class SVD(torch.autograd.Function):
    """The singular value decomposition of a tall matrix; the term for that may be left out."""

    @staticmethod
    def forward(ctx, a, is_whole):
        u, s, vt = torch.linalg.svd(a, full_matrices=False)
        ctx.save_for_backward(u, s, vt)
        ctx.is_whole = is_whole
        return u, s, vt

    @staticmethod
    def backward(ctx, du, ds, dvt):
        u, s, vt = ctx.saved_tensors
        square = s**2
        gap = square - square[:, None]
        share = torch.where(gap == 0, 0.0, 1 / gap)
        left, right = u.T @ du, vt @ dvt.T
        inner = share * (left - left.T) * s + s[:, None] * share * (right - right.T)
        outer = (du - u @ left) / s
        found = u @ (inner + ds.diag())
        return (found + outer if ctx.is_whole else found) @ vt, None


def test_vectors_that_are_known_up_to_their_sign_may_turn_in_float64():
    turned = 0
    for seed in range(4):
        torch.manual_seed(seed)
        a = torch.randn(12, 6)
        apart = torch.linalg.svd(a)[0] - torch.linalg.svd(a.double())[0].float()
        turned += bool(apart.abs().max() > 0.1)
        report = check(lambda a: SVD.apply(a, True), a, raise_exception=False)
        assert report.verdict == "PASS", str(report)
        assert [row.as_run for row in report.leaves["a"].rows] == [False, True]
        report = check(lambda a: SVD.apply(a, False), a, raise_exception=False)
        assert report.verdict == "FAIL", str(report)
    assert turned  # else nothing was tested


def test_what_has_other_values_in_float64_is_not_turned():
    def other(x):
        return torch.where(torch.tensor(x.dtype == torch.float64), -2.0 * x.sin(), x.sin())

    x = torch.linspace(0.1, 1, 40)
    report = check(other, x, raise_exception=False)
    assert not any(row.precision == "float64" for row in report.leaves["x"].rows)


MASKS = {
    "compared": lambda x, share: (torch.rand_like(x) > share).to(x.dtype),
    "rounded down": lambda x, share: (torch.rand_like(x) + (1 - share)).floor_(),
    "of uniform numbers made by hand": lambda x, share: (
        torch.empty_like(x).uniform_().sub_(share) > 0
    ).to(x.dtype),
}


class Dropped(torch.autograd.Function):
    """Dropout by hand, and what its backward multiplies with besides the mask."""

    @staticmethod
    def forward(ctx, x, mask, share, factor):
        kept = MASKS[mask](x, share) / (1 - share)
        ctx.save_for_backward(kept * factor)
        return x * kept

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0], None, None, None


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_what_is_made_of_random_numbers_in_16_bits_stays_what_it_was(mask, share):
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(2000).bfloat16()

        def report(factor, x=x, seed=seed):
            return check(
                lambda x: Dropped.apply(x.tanh(), mask, share, factor),
                x,
                seed=seed,
                raise_exception=False,
            )

        right = report(1.0)
        assert right.verdict == "PASS", str(right)
        assert right.leaves["x"].rows[0].precision == "float64"
        assert report(1.5).verdict == "FAIL"


@pytest.mark.parametrize("length", [100, 400])
def test_places_along_a_long_axis_are_raised(length):
    def sampled(x, offset):
        place = torch.arange(length, dtype=x.dtype) + offset
        below = place.floor()
        share, below = place - below, below.long()
        above = (below + 1).clamp(0, length - 1)
        return x[below.clamp(0, length - 1)] * (1 - share) + x[above] * share

    for seed in range(3):
        torch.manual_seed(seed)
        x, offset = torch.randn(length), torch.randn(length)
        report = check(sampled, x, offset, seed=seed, raise_exception=False)
        assert report.verdict == "PASS", str(report)
        assert "raising" not in str(report)
