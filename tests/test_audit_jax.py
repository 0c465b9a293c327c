"""The verb audit over JAX's own functions: nothing right is accused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from jax import lax, nn, tree_util

from xgradcheck import Verdict, audit

Array = Any
JAX_FUNCTIONS: dict[str, Any] = {}
NEVER_DONE = {"exp1"}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def single(value: Any) -> Any:
    """An array in float32, or complex64, of JAX's; what holds no such numbers as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc":
        return value
    return jnp.asarray(value, jnp.complex64 if value.dtype.kind == "c" else jnp.float32)


def entered(*args: Any, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
    """A function of JAX's and its arguments, in the table: every second one in float32."""

    def enter(fn: Any) -> Any:
        title = name or fn.__name__
        assert title not in JAX_FUNCTIONS
        given = tree_util.tree_map(single, args) if len(JAX_FUNCTIONS) % 2 else args
        JAX_FUNCTIONS[title] = fn, given, options
        return fn

    return enter


X, Y = normal(3, 4), normal(3, 4, seed=1)
POSITIVE = np.exp(normal(3, 4, seed=2))
WITHIN = np.tanh(X)
SQUARE = normal(4, 4, seed=3)
DEFINITE = SQUARE @ SQUARE.T + 4 * np.eye(4)
COMPLEX = X + 1j * Y
IMAGES = normal(2, 3, 6, 6, seed=4)
LABELS = np.array([1, 0, 3])

for activation in (
    "relu", "relu6", "sigmoid", "softplus", "soft_sign", "silu", "mish", "log_sigmoid", "elu",
    "celu", "selu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "squareplus", "sparse_plus", "softmax", "log_softmax", "logsumexp", "standardize",
):  # fmt: skip
    entered(X)(getattr(nn, activation))
for elementwise in ("exp", "sin", "tanh", "arctan", "square", "expm1", "abs", "sinc", "arcsinh"):
    entered(X)(getattr(jnp, elementwise))
for of_positive in ("log", "sqrt", "reciprocal", "log1p", "cbrt"):
    entered(POSITIVE)(getattr(jnp, of_positive))
for special in ("gammaln", "digamma", "entr", "exp1"):
    entered(POSITIVE)(getattr(jsp.special, special))
for special in ("erf", "erfc", "i0e", "i1e", "ndtr", "log_ndtr"):
    entered(X)(getattr(jsp.special, special))
entered((1 + WITHIN) / 2)(jsp.special.ndtri)
entered(WITHIN)(jsp.special.erfinv)
for binary in ("multiply", "divide", "arctan2", "hypot", "logaddexp", "maximum", "power"):
    entered(POSITIVE, np.exp(Y))(getattr(jnp, binary))
entered(POSITIVE, np.exp(Y))(jsp.special.gammainc)
entered(POSITIVE, np.exp(Y))(jsp.special.betaln)
entered(POSITIVE, np.exp(Y))(jsp.special.rel_entr)
for reduction in ("sum", "mean", "prod", "var", "std", "max", "median", "ptp"):
    entered(X)(getattr(jnp, reduction))
for running in ("cumsum", "cumprod"):
    entered(X, 1)(getattr(jnp, running))
entered(X, 1)(lax.cummax)
entered(X, 1)(lax.cumlogsumexp)
entered(X)(jnp.sort)
entered(X, 2)(lax.top_k)
for matrix in ("det", "slogdet", "inv", "pinv", "qr"):
    entered(DEFINITE)(getattr(jnp.linalg, matrix))
for symmetric in ("cholesky", "eigvalsh"):
    entered(DEFINITE, constraint="symmetric")(getattr(jnp.linalg, symmetric))
entered(DEFINITE, SQUARE)(jnp.linalg.solve)
entered(np.tril(DEFINITE), SQUARE, kwargs={"lower": True})(jsp.linalg.solve_triangular)
entered(SQUARE / 4)(jsp.linalg.expm)
entered(X)(jnp.linalg.norm)
entered(X, normal(4, 5, seed=1))(jnp.matmul)
entered(normal(2, 3, 4), normal(3, 4, 2, seed=1))(jnp.tensordot)
entered(X, normal(5, seed=1))(jnp.outer)
entered(normal(6), normal(3, seed=1))(jnp.convolve)
entered(normal(8))(jnp.fft.rfft)
entered(COMPLEX)(jnp.fft.fft)
entered(COMPLEX)(jnp.fft.irfft)
entered(COMPLEX)(jnp.angle)
entered(X, np.array([2, 0, 2]), 1)(jnp.take)
entered(X, np.array([[0, 0], [1, 3], [2, 2]]), 1)(jnp.take_along_axis)
entered(X, (1, 2), (2, 2))(lax.dynamic_slice)
entered(X, 1, 1)(jnp.roll)
entered(X, ((1, 0), (2, 1)), "reflect")(jnp.pad)
entered(X, -0.5, 0.7)(jnp.clip)
entered(X > 0, X, Y)(jnp.where)
entered(normal(5), np.arange(4.0), normal(4, seed=1), wrt=(0, 2))(jnp.interp)
entered(normal(6, 2), np.array([0, 2, 2, 0, 1, 2]), 3)(jax.ops.segment_sum)
entered(X, normal(2, 5, seed=1) + 1.5, 1)(jsp.ndimage.map_coordinates)
entered(X, (5, 6), "linear")(jax.image.resize)
entered(X)(jsp.stats.norm.logpdf)
entered(normal(2, 3, 2, 4), normal(2, 3, 2, 4, seed=1), normal(2, 3, 2, 4, seed=2))(
    nn.dot_product_attention
)
entered(X, normal(4, 4, seed=1), kwargs={"precision": "highest"})(jnp.dot)
entered(IMAGES, normal(4, 3, 3, 3, seed=1), (1, 1), "SAME")(lax.conv_general_dilated)
entered(normal(2, 4, 4, 2), normal(3, 3, 2, 2, seed=1), (2, 2), "SAME")(lax.conv_transpose)
entered(lax.add, X, name="associative_scan")(lax.associative_scan)


@entered(X, normal(5, 4, seed=1))
def einsum(x: Array, y: Array) -> Array:
    return jnp.einsum("ij,kj,j->ik", x, y, y[0])


@entered(X)
def at_add(x: Array) -> Array:
    return x.at[np.array([0, 2, 0]), 1].add(x[:, 3])


@entered(X)
def at_set(x: Array) -> Array:
    return x.at[1].set(2 * x[0]).at[:, 2].multiply(3)


@entered(X)
def gather(x: Array) -> Array:
    return x[np.array([0, 2, 2]), np.array([1, 3, 3])]


@entered(X)
def scatter_max(x: Array) -> Array:
    return x.at[np.array([0, 2])].max(-x[:2])


@entered(X, LABELS)
def cross_entropy(x: Array, labels: Array) -> Array:
    return -jnp.take_along_axis(nn.log_softmax(x), labels[:, None], 1).mean()


@entered(X, LABELS)
def cross_entropy_of_one_hot(x: Array, labels: Array) -> Array:
    return -(nn.one_hot(labels, 4) * nn.log_softmax(x)).sum(1)


@entered(X, Y)
def mean_squared_error(x: Array, y: Array) -> Array:
    return jnp.mean((x - y) ** 2)


@entered(X, Y)
def huber(x: Array, y: Array) -> Array:
    apart = jnp.abs(x - y)
    return jnp.where(apart < 1, apart**2 / 2, apart - 0.5).mean()


@entered(X, X > 0)
def binary_cross_entropy(x: Array, is_one: Array) -> Array:
    return -jnp.where(is_one, nn.log_sigmoid(x), nn.log_sigmoid(-x)).mean()


@entered(X, Y)
def divergence(x: Array, y: Array) -> Array:
    p = nn.log_softmax(x)
    return (jnp.exp(p) * (p - nn.log_softmax(y))).sum(1)


@entered(X, X > 0)
def hinge(x: Array, is_one: Array) -> Array:
    return jnp.maximum(0, 1 - jnp.where(is_one, x, -x)).sum(1)


@entered(X, Y)
def cosine_similarity(x: Array, y: Array) -> Array:
    sizes = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1)
    return (x * y).sum(1) / sizes


@entered(X, normal(4), normal(4, seed=1))
def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    return nn.standardize(x) * scale[None] + shift[None]


@entered(X)
def rms_norm(x: Array) -> Array:
    return x * lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + 1e-6)


@entered(IMAGES)
def max_pool(x: Array) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


@entered(IMAGES)
def mean_pool(x: Array) -> Array:
    return lax.reduce_window(x, 0.0, lax.add, (1, 1, 3, 3), (1, 1, 2, 2), "SAME") / 9


@entered(X)
def conditional(x: Array) -> Array:
    return lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)


@entered(X)
def switched(x: Array) -> Array:
    branches = [jnp.sin, jnp.cos, jnp.tanh]
    return lax.switch(jnp.int32(x[0, 0] > 0) + jnp.int32(x[0, 1] > 0), branches, x)


@entered(X)
def loop(x: Array) -> Array:
    return lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + i * x, x)


@entered(X, normal(2, 2, seed=1), normal(4, 2, seed=2))
def recurrent(x: Array, weight: Array, inward: Array) -> Array:
    def step(state: Array, row: Array) -> Any:
        state = jnp.tanh(state @ weight + row @ inward)
        return state, state

    return lax.scan(step, jnp.zeros_like(weight[0]), x)


@entered(X)
def checkpointed(x: Array) -> Array:
    return jax.checkpoint(lambda x: jnp.sin(jnp.exp(x)))(x)


@entered(X)
def mapped(x: Array) -> Array:
    return lax.map(lambda row: nn.softmax(row) * row.sum(), x)


@entered(DEFINITE, normal(4))
def conjugate_gradients(matrix: Array, right: Array) -> Array:
    return jsp.sparse.linalg.cg(partial(jnp.matmul, (matrix + matrix.T) / 2), right, tol=1e-14)[0]


@entered(SQUARE)
def singular_values(x: Array) -> Array:
    return jnp.linalg.svd(x, compute_uv=False)


@entered(COMPLEX)
def filtered(z: Array) -> Array:
    return jnp.abs(jnp.fft.ifft(jnp.fft.fft(z) * jnp.exp(1j * jnp.arange(4.0))[None]))


def test_there_are_sixty_functions_of_jax() -> None:
    assert len(JAX_FUNCTIONS) >= 60


# Its softmax is computed in float32, whatever it is given: of float64 that is not enough.
IN_FLOAT32 = {"dot_product_attention"}


def named(number: int, name: str) -> Any:
    if name in NEVER_DONE:
        marks = [pytest.mark.skip("beside larger numbers, one near zero keeps JAX busy for hours")]
    else:  # JAX compiles for every probe
        marks = [pytest.mark.slow] if number % 18 else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [named(*item) for item in enumerate(JAX_FUNCTIONS)])
def test_no_alarm_over_functions_of_jax(name: str) -> None:
    fn, args, options = JAX_FUNCTIONS[name]
    report = audit(fn, *args, **options, backend="jax", raise_exception=False)
    # Directions may bear out what rounding leaves of single elements.
    allowed = [Verdict.PASS] + [Verdict.INCONCLUSIVE] * (name in IN_FLOAT32)
    assert report.verdict in allowed, str(report)


def test_slopes_at_zero_that_do_not_go_together_are_seen() -> None:
    def cross_entropy(x: Array) -> Array:
        return jnp.maximum(x, 0) - x + jnp.log1p(jnp.exp(-jnp.abs(x)))

    is_right = jax.grad(cross_entropy)(0.0) == -0.5  # where that of abs is 0 at 0, and not 1
    report = audit(cross_entropy, X, backend="jax", probes="values", raise_exception=False)
    assert report.verdict is (Verdict.PASS if is_right else Verdict.FAIL)
    said = [finding.text for finding in report.findings]
    assert is_right or said[0].startswith("values of zero: x, every element")


def test_a_function_that_is_given_its_arguments_for_good_is_audited() -> None:
    @jax.custom_vjp
    def product(x: Any, y: Any) -> Any:
        return x * y

    product.defvjp(lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1], g * r[0]))
    given = jax.jit(product, donate_argnums=0)
    assert audit(given, jnp.array([0.3, 1.0, -2.0]), jnp.array([0.5, 0.6, 1.7])).verdict == "PASS"
