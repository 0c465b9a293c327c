"""Models and functions as people have them, in PyTorch and in JAX, in float32 and in float64.

A row draws its numbers from a seed. ``forms`` are the ways in which the same model is handed to
``check``; ``spoilt`` is the same model with one leaf whose gradient is wrong by 1 %.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from xgradcheck import Report, check

PERCENT = 1.01


class Spoil(torch.autograd.Function):
    """The identity, with a gradient that is 1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return PERCENT * u


@dataclass(frozen=True, slots=True)
class Model:
    """A module or a function with its arguments, and what makes a number of its output."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    loss: Callable[[Any], Any] | None = None

    def report(self, seed: int) -> Report:
        """What ``check`` says of it."""
        return check(self.fn, *self.args, loss=self.loss, seed=seed, raise_exception=False)


@dataclass(frozen=True, slots=True)
class Row:
    """A model by seed and dtype."""

    name: str
    make: Callable[[int, torch.dtype], Model]


ROWS: list[Row] = []


def row(make: Callable[[Any], Model]) -> Callable[[Any], Model]:
    """Enter a model that is made of normal numbers into the table."""

    def made(seed: int, dtype: torch.dtype) -> Model:
        torch.manual_seed(seed)
        model = make(Normal(dtype))
        fn = model.fn.to(dtype) if isinstance(model.fn, nn.Module) else model.fn
        return replace(model, fn=fn)

    ROWS.append(Row(make.__name__, made))
    return make


@dataclass(frozen=True, slots=True)
class Normal:
    """Draws normal numbers of a dtype."""

    dtype: torch.dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(self.dtype)


def first(out: Any) -> Tensor:
    """The first of several outputs."""
    found: Tensor = out[0]
    return found


def modules() -> dict[str, Callable[[Any], Model]]:
    """Modules that take normal numbers."""

    def of(
        module: Callable[[], nn.Module], *shape: int, loss: Any = None
    ) -> Callable[[Any], Model]:
        return lambda normal: Model(module(), (normal(*shape),), loss)

    def sequence(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(*(part() for part in parts))

    def weighed(module: nn.Module) -> nn.Module:
        return parametrizations.weight_norm(module)

    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        return net

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * (x + x.mT)

    def symmetric() -> nn.Module:
        net = nn.Linear(4, 4)
        parametrize.register_parametrization(net, "weight", Halves())
        return net

    # Spectral norm in training moves its vectors along with the weight, and torch leaves that out.
    return {
        "linear": of(lambda: nn.Linear(5, 3), 4, 5),
        "linear_without_bias": of(lambda: nn.Linear(5, 3, bias=False), 2, 3, 5),
        "deep_tanh": of(sequence(lambda: nn.Linear(4, 6), nn.Tanh, lambda: nn.Linear(6, 2)), 5, 4),
        "deep_relu": of(sequence(lambda: nn.Linear(4, 6), nn.ReLU, lambda: nn.Linear(6, 2)), 5, 4),
        "residual_gelu": of(
            sequence(lambda: nn.LayerNorm(4), lambda: nn.Linear(4, 8), nn.GELU), 3, 4
        ),
        "silu_and_softplus": of(sequence(lambda: nn.Linear(3, 3), nn.SiLU, nn.Softplus), 4, 3),
        "prelu": of(lambda: nn.PReLU(3), 4, 3),
        "conv1d": of(lambda: nn.Conv1d(2, 3, 3, padding=1), 2, 2, 6),
        "conv2d": of(lambda: nn.Conv2d(2, 3, 3), 2, 2, 5, 5),
        "conv2d_in_groups": of(lambda: nn.Conv2d(4, 4, 3, groups=2, dilation=2), 1, 4, 6, 6),
        "conv3d": of(lambda: nn.Conv3d(1, 2, 2), 1, 1, 3, 3, 3),
        "conv_transpose": of(lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), 1, 2, 3, 3),
        "conv_and_batch_norm": of(
            sequence(lambda: nn.Conv2d(2, 3, 3), lambda: nn.BatchNorm2d(3), nn.ReLU), 3, 2, 5, 5
        ),
        "conv_and_max_pool": of(
            sequence(lambda: nn.Conv2d(1, 2, 3), lambda: nn.MaxPool2d(2), nn.Tanh), 2, 1, 6, 6
        ),
        "average_pool": of(
            sequence(lambda: nn.Conv2d(1, 2, 2), lambda: nn.AdaptiveAvgPool2d(2)), 1, 1, 6, 6
        ),
        "pixel_shuffle": of(
            sequence(lambda: nn.Conv2d(1, 4, 1), lambda: nn.PixelShuffle(2)), 1, 1, 3, 3
        ),
        "layer_norm": of(lambda: nn.LayerNorm((3, 4)), 2, 3, 4),
        "rms_norm": of(lambda: nn.RMSNorm(5), 3, 5),
        "group_norm": of(lambda: nn.GroupNorm(2, 4), 2, 4, 3),
        "instance_norm": of(lambda: nn.InstanceNorm2d(2, affine=True), 2, 2, 4, 4),
        "batch_norm": of(lambda: nn.BatchNorm1d(3), 6, 3),
        "batch_norm_in_evaluation": of(lambda: nn.BatchNorm1d(3).eval(), 6, 3),
        "bias_before_batch_norm": of(
            sequence(lambda: nn.Linear(3, 4), lambda: nn.BatchNorm1d(4), nn.Tanh), 6, 3
        ),
        "dropout": of(
            sequence(lambda: nn.Linear(4, 6), lambda: nn.Dropout(0.4), lambda: nn.Linear(6, 2)),
            3,
            4,
        ),
        "rnn": of(lambda: nn.RNN(3, 4, nonlinearity="tanh"), 4, 2, 3, loss=first),
        "lstm": of(lambda: nn.LSTM(3, 2), 4, 2, 3, loss=first),
        "lstm_both_ways": of(lambda: nn.LSTM(2, 2, 2, bidirectional=True), 3, 1, 2, loss=first),
        "gru": of(lambda: nn.GRU(3, 3, batch_first=True), 2, 4, 3, loss=first),
        "transformer_layer": of(
            lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.1, batch_first=True), 1, 3, 4
        ),
        "transformer_layer_in_evaluation": of(
            lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval(), 1, 3, 4
        ),
        "weight_norm": of(lambda: weighed(nn.Linear(4, 3)), 3, 4),
        "spectral_norm": of(lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), 3, 4),
        "orthogonal": of(lambda: parametrizations.orthogonal(nn.Linear(3, 3)), 3, 3),
        "symmetric_weight": of(symmetric, 3, 4),
        "tied_weights": of(tied, 3, 4),
        "softmax_at_the_end": of(sequence(lambda: nn.Linear(4, 5), lambda: nn.LogSoftmax(1)), 3, 4),
        "glu": of(sequence(lambda: nn.Linear(4, 6), nn.GLU), 3, 4),
    }


for _name, _make in modules().items():
    _make.__name__ = _name
    row(_make)


@row
def bilinear(normal: Any) -> Model:
    return Model(nn.Bilinear(3, 4, 2), (normal(5, 3), normal(5, 4)))


@row
def attention(normal: Any) -> Model:
    x = normal(2, 3, 4)
    return Model(nn.MultiheadAttention(4, 2, batch_first=True), (x, x, x), first)


@row
def decoder_layer(normal: Any) -> Model:
    return Model(nn.TransformerDecoderLayer(4, 2, 5, 0.0), (normal(2, 1, 4), normal(3, 1, 4)))


@row
def embedding(normal: Any) -> Model:
    return Model(nn.Embedding(7, 3), (torch.randint(7, (2, 4)),))


@row
def sparse_embedding(normal: Any) -> Model:
    return Model(nn.Embedding(7, 3, sparse=True, padding_idx=0), (torch.randint(7, (2, 4)),))


@row
def embedding_bag(normal: Any) -> Model:
    return Model(nn.EmbeddingBag(7, 3, mode="mean"), (torch.randint(7, (2, 4)),))


@row
def cross_entropy(normal: Any) -> Model:
    labels = torch.randint(4, (6,))
    return Model(lambda x: F.cross_entropy(x, labels, label_smoothing=0.1), (normal(6, 4),))


@row
def binary_cross_entropy(normal: Any) -> Model:
    targets = torch.rand(5, 2).to(normal.dtype)
    return Model(lambda x: F.binary_cross_entropy_with_logits(x, targets), (normal(5, 2),))


@row
def kl_divergence(normal: Any) -> Model:
    target = normal(4, 5).softmax(1)
    return Model(
        lambda x: F.kl_div(x.log_softmax(1), target, reduction="batchmean"), (normal(4, 5),)
    )


@row
def huber(normal: Any) -> Model:
    return Model(lambda x, y: F.smooth_l1_loss(x, y), (normal(4, 5), normal(4, 5)))


@row
def ctc(normal: Any) -> Model:
    targets, lengths = torch.randint(1, 4, (2, 2)), torch.tensor([2, 2])

    def loss(x: Tensor) -> Tensor:
        return F.ctc_loss(x.log_softmax(2), targets, torch.tensor([6, 6]), lengths)

    return Model(loss, (normal(6, 2, 4),))


@row
def triplet(normal: Any) -> Model:
    return Model(F.triplet_margin_loss, (normal(4, 3), normal(4, 3), normal(4, 3)))


@row
def gaussian_likelihood(normal: Any) -> Model:
    return Model(
        lambda mean, raw, x: F.gaussian_nll_loss(mean, x, F.softplus(raw) + 0.1),
        (normal(4, 3), normal(4, 3), normal(4, 3)),
    )


@row
def linear_solve(normal: Any) -> Model:
    shift = 4 * torch.eye(4, dtype=normal.dtype)
    return Model(lambda a, b: torch.linalg.solve(a + shift, b), (normal(4, 4), normal(4, 2)))


@row
def cholesky(normal: Any) -> Model:
    shift = torch.eye(4, dtype=normal.dtype)
    return Model(lambda a: torch.linalg.cholesky(a @ a.mT + shift), (normal(4, 4),))


@row
def fourier(normal: Any) -> Model:
    return Model(lambda x: torch.fft.rfft(x).abs().square(), (normal(3, 6),))


@row
def grid_sample(normal: Any) -> Model:
    grid = 0.3 * normal(1, 3, 3, 2)
    return Model(
        lambda x, grid: F.grid_sample(x, grid, align_corners=False), (normal(1, 2, 4, 4), grid)
    )


@row
def bicubic(normal: Any) -> Model:
    return Model(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (normal(1, 1, 3, 4),))


@row
def scatter(normal: Any) -> Model:
    index = torch.randint(4, (6,))
    return Model(lambda x: torch.zeros(4, 3).to(x).index_add(0, index, x).exp(), (normal(6, 3),))


@row
def writes_into_a_buffer(normal: Any) -> Model:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        rows = torch.zeros(x.shape[0], w.shape[1], dtype=x.dtype)
        for number, part in enumerate(x):
            rows[number] = torch.tanh(part @ w)
        return rows

    return Model(fn, (normal(3, 4), normal(4, 2)))


@row
def checkpointed(normal: Any) -> Model:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Any:
            hidden = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
            return self.outer(torch.tanh(hidden))

    return Model(Net(), (normal(3, 4),))


def forms(model: Model) -> Iterator[tuple[str, Model]]:
    """The same model as it is, as a closure's, and as a function of its parameters."""
    yield "as it is", model
    if isinstance(model.fn, nn.Module):
        module, args = model.fn, model.args
        parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

        def function(parameters: Any) -> Any:
            return functional_call(module, parameters, args)

        yield "function", Model(function, (parameters,), model.loss)


class Spoilt(nn.Module):
    """A module with one parameter whose gradient is wrong."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, *args: Any) -> Any:
        wrong = Spoil.apply(dict(self.inner.named_parameters())[self.name])
        return functional_call(self.inner, {self.name: wrong}, args)


def spoilt(model: Model) -> tuple[Model, str]:
    """The model with one leaf spoilt, and the name of that leaf in the report."""
    if isinstance(model.fn, nn.Module):
        name = next(name for name, _ in model.fn.named_parameters())
        return replace(model, fn=Spoilt(model.fn, name)), f"inner.{name}"
    fn = model.fn

    def wrong(first: Tensor, *rest: Any) -> Any:
        return fn(Spoil.apply(first), *rest)

    return replace(model, fn=wrong), "first"
