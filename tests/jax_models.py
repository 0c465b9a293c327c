"""Models and functions as people have them in JAX, in float32 and in float64, as in models.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

from xgradcheck import Report, check

PERCENT = 1.01


@jax.custom_vjp
def spoil(x: Any) -> Any:
    """The identity, with a gradient that is 1 % too large."""
    return x


spoil.defvjp(lambda x: (x, None), lambda _, u: (PERCENT * u,))


@dataclass(frozen=True, slots=True)
class Model:
    """A function and its arguments, of which the first are looked at."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    wrt: Any = 0

    def report(self, seed: int) -> Report:
        """What ``check`` says of it."""
        return check(
            self.fn, *self.args, wrt=self.wrt, seed=seed, raise_exception=False, backend="jax"
        )

    def forms(self, compiled: bool) -> list[tuple[str, "Model"]]:
        """The same function as it is, and compiled."""
        jitted = Model(jax.jit(self.fn), self.args, self.wrt)
        return [("as it is", self), *([("jit", jitted)] if compiled else [])]

    def spoilt(self) -> tuple["Model", str]:
        """The same function, its first leaf with a wrong gradient, and the name of that leaf."""

        def wrong(first: Any, *rest: Any) -> Any:
            leaves, structure = jax.tree.flatten(first)
            floating = [n for n, leaf in enumerate(leaves) if is_floating(leaf)]
            leaves[floating[0]] = spoil(leaves[floating[0]])
            return self.fn(jax.tree.unflatten(structure, leaves), *rest)

        paths = jax.tree_util.tree_flatten_with_path(self.args[0])[0]
        path = next(path for path, leaf in paths if is_floating(leaf))
        return Model(wrong, self.args, self.wrt), "first" + jax.tree_util.keystr(path)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of floating numbers."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


@dataclass(frozen=True, slots=True)
class Row:
    """A function by seed and dtype."""

    name: str
    make: Callable[[int, str], Model]


ROWS: list[Row] = []
Draw = Any


def row(make: Callable[[Draw], Model]) -> Callable[[Draw], Model]:
    """Enter a function of drawn numbers into the table."""
    ROWS.append(Row(make.__name__, lambda seed, dtype: make(Drawn(seed, dtype))))
    return make


class Drawn:
    """Normal numbers of a dtype, and whole ones."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.rng, self.dtype, self.key = np.random.default_rng(seed), dtype, jax.random.key(seed)

    def __call__(self, *shape: int) -> Any:
        return self.like(self.rng.normal(size=shape))

    def like(self, tree: Any) -> Any:
        """A tree of the dtype: NumPy's arrays in float64, which JAX itself would not keep."""
        kind = np.asarray if self.dtype == "float64" else jnp.asarray

        def made(leaf: Any) -> Any:
            floating = isinstance(leaf, jax.Array | np.ndarray) and is_floating(leaf)
            return kind(np.asarray(leaf, self.dtype)) if floating else leaf

        return jax.tree.map(made, tree)

    def whole(self, high: int, *shape: int) -> Any:
        """Whole numbers below ``high``."""
        return self.rng.integers(high, size=shape)


def of(fn: Callable[..., Any], *shapes: tuple[int, ...], wrt: Any = 0) -> Callable[[Draw], Model]:
    """A function of arrays of these shapes."""
    return lambda draw: Model(fn, tuple(draw(*shape) for shape in shapes), wrt)


def dense(params: Any, x: Any) -> Any:
    """A network with one hidden layer."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def layer_norm(x: Any, g: Any, b: Any) -> Any:
    """Each row to mean 0 and variance 1, scaled and moved."""
    centred = x - x.mean(-1, keepdims=True)
    return g[None] * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + b[None]


def attend(q: Any, k: Any, v: Any) -> Any:
    """Attention of one head, which sees nothing that comes later."""
    scores = q @ k.T / np.sqrt(q.shape[-1])
    seen = np.tril(np.ones(scores.shape, bool))
    return nn.softmax(jnp.where(seen, scores, -jnp.inf)) @ v


def gru(params: Any, xs: Any) -> Any:
    """A gated recurrent unit over a sequence."""

    def step(h: Any, x: Any) -> Any:
        z, r = jnp.split(nn.sigmoid(x @ params["x"] + h @ params["h"]), 2)
        new = jnp.tanh(x @ params["xn"] + (r * h) @ params["hn"])
        h = (1 - z) * h + z * new
        return h, h

    return lax.scan(step, jnp.zeros_like(params["hn"][0]), xs)[1]


def lstm(params: Any, xs: Any) -> Any:
    """A long short-term memory over a sequence."""

    def step(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x @ params["x"] + h @ params["h"] + params["b"], 4)
        c = nn.sigmoid(f + 1) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros_like(params["h"][:, 0])
    return lax.scan(step, (zero, zero), xs)[1]


def convolve(x: Any, w: Any) -> Any:
    """A convolution over images."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME")


def batch_norm(x: Any, g: Any) -> Any:
    """Each column to mean 0 and variance 1 over the batch."""
    return g[None] * (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None]


@jax.custom_vjp
def swish(x: Any) -> Any:
    """x sigmoid(x), with a rule of its own."""
    return x * nn.sigmoid(x)


def _swish_back(x: Any, u: Any) -> Any:
    s = nn.sigmoid(x)
    return (u * (s + x * s * (1 - s)),)


swish.defvjp(lambda x: (swish(x), x), _swish_back)


@jax.custom_jvp
def softplus(x: Any) -> Any:
    """log(1 + e^x), with a rule of its own."""
    return jnp.logaddexp(x, 0.0)


softplus.defjvp(lambda x, t: (softplus(x[0]), nn.sigmoid(x[0]) * t[0]))


def spd(a: Any) -> Any:
    """A positive definite matrix."""
    return a @ a.T + jnp.eye(len(a), dtype=a.dtype)


def pendulum(state: Any) -> Any:
    """Thirty steps of a pendulum."""

    def step(_: int, s: Any) -> Any:
        speed = s[1] - 0.1 * jnp.sin(s[0])
        return jnp.stack([s[0] + 0.1 * speed, speed])

    return lax.fori_loop(0, 30, step, state)


SIMPLE: dict[str, Callable[[Draw], Model]] = {
    "layer_norm": of(layer_norm, (3, 5), (5,), (5,), wrt=(0, 1, 2)),
    "rms_norm": of(
        lambda x, g: g[None] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), (3, 5), (5,)
    ),
    "batch_norm": of(batch_norm, (6, 3), (3,), wrt=(0, 1)),
    "attention": of(attend, (4, 3), (4, 3), (4, 3), wrt=(0, 1, 2)),
    "convolution": of(convolve, (1, 2, 5, 5), (3, 2, 3, 3), wrt=(0, 1)),
    "max_pool": of(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"), (4, 6)
    ),
    "average_pool": of(
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID") / 4, (4, 5)
    ),
    "gelu": of(lambda x: nn.gelu(x), (3, 4)),
    "relu": of(lambda x: nn.relu(x) ** 2 + nn.leaky_relu(x), (3, 4)),
    "glu": of(lambda x: nn.glu(x), (3, 4)),
    "custom_vjp": of(swish, (3, 4)),
    "custom_jvp": of(softplus, (3, 4)),
    "log_sum_exp": of(lambda x: nn.logsumexp(x, axis=1), (3, 4)),
    "log_softmax": of(lambda x: nn.log_softmax(x), (3, 4)),
    "cumulative_sums": of(lambda x: jnp.cumsum(x, 1) * lax.cumlogsumexp(x, 1), (3, 4)),
    "sorting": of(lambda x: jnp.sort(x, axis=1) * np.arange(5)[None], (3, 5)),
    "top_k": of(lambda x: lax.top_k(x, 3)[0], (3, 5)),
    "median": of(lambda x: jnp.median(x, axis=1), (3, 5)),
    "einsum": of(lambda a, b: jnp.einsum("ij,jk,ik->i", a, b, a @ b), (3, 4), (4, 2), wrt=(0, 1)),
    "cholesky": of(lambda a: jnp.linalg.cholesky(spd(a)), (4, 4)),
    "solve": of(lambda a, b: jnp.linalg.solve(spd(a), b), (4, 4), (4, 2), wrt=(0, 1)),
    "log_determinant": of(lambda a: jnp.linalg.slogdet(spd(a))[1], (4, 4)),
    "eigenvalues": of(lambda a: jnp.linalg.eigvalsh(spd(a)), (4, 4)),
    "singular_values": of(lambda a: jnp.linalg.svd(a, compute_uv=False), (4, 3)),
    "inverse": of(lambda a: jnp.linalg.inv(spd(a)), (3, 3)),
    "fourier": of(lambda x: jnp.abs(jnp.fft.rfft(x, axis=1)) ** 2, (3, 6)),
    "complex_output": of(lambda x: jnp.fft.fft(x, axis=1), (2, 5)),
    "special_functions": of(
        lambda x: jax.scipy.special.gammaln(x**2 + 1) + jax.scipy.special.erf(x), (3, 4)
    ),
    "pendulum": of(pendulum, (2, 3)),
    "while_in_scan": of(
        lambda x: lax.scan(lambda c, v: (jnp.tanh(c + v), c * v), x[0], x)[1], (4, 3)
    ),
    "conditional": of(
        lambda x: jax.vmap(lambda v: lax.cond(v > 0, jnp.exp, lambda v: 1 + v, v))(x), (7,)
    ),
    "gradient_inside": of(
        lambda w, x: jax.grad(lambda x: jnp.tanh(x @ w).sum())(x), (4, 3), (4,), wrt=(0, 1)
    ),
    "jacobian_inside": of(lambda x: jax.jacfwd(lambda v: jnp.sin(v) * v.sum())(x), (3,)),
    "per_example": of(
        lambda w, x: jax.vmap(jax.value_and_grad(lambda w, v: jnp.tanh(v @ w).sum()), (None, 0))(
            w, x
        )[1],
        (3, 2),
        (4, 3),
    ),
    "checkpoint": of(lambda w, x: jax.checkpoint(lambda h: jnp.sin(h @ w))(x), (3, 3), (2, 3)),
    "interpolation": of(
        lambda x: jnp.interp(x, np.linspace(-4, 4, 9), np.linspace(-4, 4, 9) ** 2), (7,)
    ),
    "dynamic_slices": of(lambda x: lax.dynamic_slice(x, (1, 0), (2, 3)) ** 2, (4, 4)),
    "huber": of(lambda x: jnp.where(jnp.abs(x) < 1, x**2 / 2, jnp.abs(x) - 0.5).mean(), (4, 4)),
    "norm": of(lambda x: jnp.linalg.norm(x, axis=1), (3, 4)),
    "python_loop": of(lambda x: sum(jnp.sin(n * x) / (n + 1) for n in range(4)), (6,)),
}

for _name, _make in SIMPLE.items():
    _make.__name__ = _name
    row(_make)


@row
def network(draw: Draw) -> Model:
    params = {"w1": draw(3, 5), "b1": draw(5), "w2": draw(5, 2), "b2": draw(2)}
    return Model(dense, (params, draw(4, 3)))


@row
def gated_unit(draw: Draw) -> Model:
    params = {"x": draw(2, 6), "h": draw(3, 6), "xn": draw(2, 3), "hn": draw(3, 3)}
    return Model(gru, (params, draw(4, 2)))


@row
def long_memory(draw: Draw) -> Model:
    params = {"x": draw(2, 12), "h": draw(3, 12), "b": draw(12)}
    return Model(lstm, (params, draw(4, 2)))


@row
def cross_entropy(draw: Draw) -> Model:
    labels = draw.whole(4, 6)

    def loss(scores: Any) -> Any:
        return -jnp.take_along_axis(nn.log_softmax(scores), labels[:, None], 1).mean()

    return Model(loss, (draw(6, 4),))


@row
def dropout_from_a_key(draw: Draw) -> Model:
    def fn(x: Any, key: Any) -> Any:
        kept = jax.random.bernoulli(key, 0.7, x.shape)
        return jnp.where(kept, jnp.tanh(x) / 0.7, 0.0)

    return Model(fn, (draw(4, 5), draw.key))


@row
def sampling_from_a_key(draw: Draw) -> Model:
    def fn(params: Any, key: Any) -> Any:
        noise = jax.random.normal(key, (4, 3))
        return params["mean"][None] + nn.softplus(params["raw"])[None] * noise

    return Model(fn, ({"mean": draw(3), "raw": draw(3)}, draw.key))


@row
def gather_and_scatter(draw: Draw) -> Model:
    rows = draw.whole(4, 6)
    return Model(lambda x: jnp.zeros((4, 3), x.dtype).at[rows].add(jnp.exp(x)), (draw(6, 3),))


@row
def embedding(draw: Draw) -> Model:
    return Model(lambda table, ids: table[ids].sum(1) ** 2, (draw(6, 3), draw.whole(6, 4, 2)))


@row
def segments(draw: Draw) -> Model:
    owner = draw.whole(3, 7)
    return Model(lambda x: jax.ops.segment_sum(x, owner, 3) ** 2, (draw(7, 2),))
