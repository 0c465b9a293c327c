"""JAX functions below float64: raised without being changed, else judged by their own precision."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from xgradcheck.backends.jax_draws import x64
from xgradcheck.backends.jax_raising import STEPS

from xgradcheck import InvalidCase, check

KEY = jax.random.key(3)
X = jnp.array([0.7, -0.4, 1.3, 0.2, -1.1, 0.9], jnp.float32)


def scaled(factor):
    """``x * w``, whose gradient for x is ``factor`` times the right one."""

    @jax.custom_vjp
    def scale(x, w):
        return x * w

    def pull_back(residuals, g):
        x, w = residuals
        return (factor * g * w).astype(x.dtype), (g * x).astype(w.dtype)

    scale.defvjp(lambda x, w: (x * w, (x, w)), pull_back)
    return scale


def captures(scale, x):
    return scale(x, jnp.linspace(-1, 2, 6, dtype=jnp.float32)).sum()


def drops(scale, x):
    kept = jax.random.bernoulli(KEY, 0.7, x.shape)
    return jnp.where(kept, scale(x, jnp.sin(x)) / 0.7, 0.0)


def samples(scale, x):
    noise = jax.random.normal(KEY, x.shape) + jax.random.uniform(KEY, x.shape, minval=1.0)
    return jnp.tanh(scale(x, noise)) + jax.random.gumbel(KEY, x.shape, dtype=x.dtype)


def samples_in_turn(scale, x):
    def body(carry, key):
        return jnp.tanh(scale(carry, jnp.cos(x))) + jax.random.normal(key, x.shape), None

    return jax.lax.scan(body, x, jax.random.split(KEY, 3))[0]


def picks(scale, x):
    chosen = jax.random.permutation(KEY, 6)[:4], jax.random.randint(KEY, (2,), 0, 6)
    return scale(x, jnp.sin(x))[jnp.concatenate(chosen)]


def casts(scale, x):
    return jnp.sin(scale(x.astype(jnp.float32), x).astype(jnp.float32))


def scans(scale, x):
    def body(carry, w):
        return jnp.tanh(scale(carry, w)).astype(jnp.float32), carry.sum()

    return jax.lax.scan(body, jnp.ones(6, jnp.float32), jnp.stack([x, x * x, 1 - x]))


def carries_single(scale, x):
    def body(carry, w):
        return carry + scale(w, jnp.cos(w)), None

    return jax.lax.scan(body, jnp.zeros((), jnp.float32), x)[0]


def runs_a_kernel(scale, x):
    def kernel(x_ref, y_ref):
        y_ref[...] = 2.0 * x_ref[...]

    doubled = pl.pallas_call(kernel, jax.ShapeDtypeStruct((6,), jnp.float32), interpret=True)
    # The kernel has no derivative: it computes what the other factor is.
    return scale(x, jax.lax.stop_gradient(doubled(jnp.ones(6, jnp.float32))))


def calls_back(scale, x):
    shape = jax.ShapeDtypeStruct((6,), jnp.float32)
    constant = jax.pure_callback(lambda: np.linspace(1, 2, 6, dtype=np.float32), shape)
    return scale(x, constant) ** 2


FUNCTIONS = [captures, drops, samples, picks, casts, scans, carries_single, runs_a_kernel]
FUNCTIONS += [calls_back, samples_in_turn]


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_a_float32_function_is_judged(fn):
    def right(x):
        return fn(scaled(1.0), x)

    report = check(right, X)
    (leaf,) = report.leaves.values()
    assert [row.judged for row in leaf.rows] == ["float64", "float32 as run"]
    assert [row.precision for row in leaf.rows] == ["float64", "float32"]
    assert report.findings == ()

    def wrong(x):
        return fn(scaled(1.01), x)

    report = check(wrong, X, raise_exception=False)
    assert report.verdict == "FAIL"
    assert jax.random.normal.__module__.startswith("jax._src")
    assert jnp.zeros(()).dtype == jnp.float32


def loops(x):
    return jax.lax.fori_loop(0, 4, lambda n, h: jnp.sin(h * (n + 1.0)).astype(jnp.float32), x)


def branches(x):
    return jax.lax.cond(x.sum() > 0, jnp.square, jnp.exp, x).astype(jnp.float32)


def scatters(x):
    rows = np.array([0, 1, 1, 3, 2, 0])
    return jnp.zeros(4, jnp.float32).at[rows].add(jnp.exp(x)) + x[:4]


def multiplies(x):
    w = jnp.asarray(np.arange(18.0).reshape(6, 3), jnp.bfloat16)
    return jnp.dot(x.astype(jnp.bfloat16), w, preferred_element_type=jnp.float32)


def factorises(x):
    return jnp.linalg.cholesky((jnp.outer(x, x) + 2 * jnp.eye(6)).astype(jnp.float32))


def recomputes(x):
    return jax.checkpoint(lambda x: jnp.sin(x).astype(jnp.float32))(x) * x


def convolves(x):
    rows = x.astype(jnp.float32)[None, None]
    out = jax.lax.conv_general_dilated(rows, jnp.ones((1, 1, 3), jnp.float32), (1,), "SAME")
    return jax.lax.reduce_window(out, -jnp.inf, jax.lax.max, (1, 1, 2), (1, 1, 2), "VALID")


def counts(x):
    """Whole numbers that would grow with x64, as in the state of a normalisation layer."""
    count = jnp.asarray(3)
    return jax.lax.cond(count > 2, lambda c: c + 1, lambda c: c * 2, count) * jnp.sin(x)


def solves(x):
    a = (jnp.outer(x, x) + 2 * jnp.eye(6)).astype(jnp.float32)
    return jnp.linalg.solve(a, jnp.ones(6, jnp.float32)) + jnp.linalg.slogdet(a)[1]


def subtracts(x):
    return jnp.ones(6, jnp.float32).at[jnp.array([0, 2])].subtract(jnp.exp(x[:2]).astype(x.dtype))


def reduces(x):
    """By functions that JAX does not know, and cannot differentiate: of what is constant."""
    rows, zero = jnp.stack([jnp.cos(jnp.arange(6.0)), jnp.arange(6.0)]), jnp.float32(0)
    total = jax.lax.reduce(rows, zero, lambda a, b: a + b, (0,))
    windows = jax.lax.reduce_window(rows, zero, lambda a, b: a + b, (2, 2), (1, 1), "SAME")
    return jnp.sin(x).astype(jnp.float32) * (total + windows.sum(0))


def spectrum(x):
    return jnp.abs(jnp.fft.fft(x.astype(jnp.float32)))


def stops_by_itself(x):
    """A loop in a batch, each example of which has its own end; beside it, to be differentiated."""

    def halved(v):
        return jax.lax.while_loop(lambda s: s > 0.3, lambda s: (s / 2).astype(jnp.float32), v)

    return jnp.sin(x).astype(jnp.float32) * jax.vmap(halved)(jax.lax.stop_gradient(x * 0 + 1.7))


def draws_gamma(x):
    return jax.random.gamma(KEY, 2.0, (6,)).astype(jnp.float32) * x.astype(jnp.float32)


TRACED = [solves, subtracts, reduces, spectrum, stops_by_itself, draws_gamma]
TRACED += [loops, branches, scatters, multiplies, factorises, recomputes, convolves, counts]


def named(fn):
    slow = [pytest.mark.slow] if fn is draws_gamma else []  # its program is a long one
    return pytest.param(fn, id=fn.__name__, marks=slow)


@pytest.mark.parametrize("fn", [*map(named, TRACED)])
def test_casts_inside_are_no_obstacle_to_float64(fn):
    fn = jax.jit(fn) if TRACED.index(fn) % 2 else fn
    spoil = scaled(1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (leaf,) = check(fn, X).leaves.values()
        wrong = check(lambda x: fn(spoil(x, jnp.ones(6))), X, raise_exception=False)
    assert leaf.rows[0].judged == "float64" and leaf.rows[0].precision == "float64"
    assert wrong.verdict == "FAIL"


@pytest.mark.parametrize("fn", [solves, spectrum, draws_gamma], ids=lambda fn: fn.__name__)
def test_nothing_is_printed_below_python(fn, capfd):
    check(fn, X)
    assert capfd.readouterr() == ("", "")


def test_a_loop_that_has_forward_mode_only():
    def fn(x):
        def body(state):
            return state[0] + 1, jnp.sin(state[1]).astype(jnp.float32)

        return jax.lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1]

    (leaf,) = check(fn, X, modes="forward").leaves.values()
    assert leaf.rows[0].precision == "float64"


def test_a_custom_vjp_has_no_forward_mode():
    with pytest.raises(InvalidCase, match="custom_vjp"):
        check(lambda x: scaled(1.0)(x, x), X, modes=("reverse", "forward"))


def test_a_custom_jvp_that_casts_is_judged_in_forward_mode_too():
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x).astype(jnp.float32)

    @sine.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        return sine(x), 1.01 * jnp.cos(x) * t

    report = check(sine, X, modes=("reverse", "forward"), raise_exception=False)
    (leaf,) = report.leaves.values()
    assert {row.judged: str(row.verdict) for row in leaf.rows} == dict.fromkeys(
        ("float64", "forward", "float32 as run"), "FAIL"
    )


def _kernel(x):
    def kernel(x_ref, y_ref):
        y_ref[...] = jnp.sin(x_ref[...])

    return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, jnp.float32), interpret=True)(x)


def _callback(x):
    shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return jax.pure_callback(
        lambda x: np.sin(np.asarray(x, np.float32)), shape, x, vmap_method="sequential"
    )


@pytest.mark.parametrize("forward", [_kernel, _callback])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_a_forward_of_fixed_dtype_is_judged_in_its_own(forward, factor, verdict):
    @jax.custom_vjp
    def sine(x):
        return forward(x)

    sine.defvjp(
        lambda x: (forward(x), x), lambda x, g: ((factor * g * jnp.cos(x)).astype(x.dtype),)
    )
    report = check(sine, X, raise_exception=False)
    assert report.verdict == verdict, str(report)
    assert report.findings[-1].kind in ("low precision inside", "truth in float32")


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bits_are_judged_by_a_truth_in_float64(dtype):
    def fn(factor, x):
        return jnp.sin(scaled(factor)(x, jnp.linspace(-1, 2, 6, dtype=dtype)))

    (leaf,) = check(lambda x: fn(1.0, x), X.astype(dtype)).leaves.values()
    name = jnp.dtype(dtype).name
    assert [row.judged for row in leaf.rows] == ["float64", f"{name} as run"]
    wrong = check(lambda x: fn(1.3, x), X.astype(dtype), raise_exception=False)
    assert wrong.verdict == "FAIL"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    # Other algorithms are for other machines.
    [("BF16_BF16_F32", "bfloat16"), ("F32_F32_F32", "float32"), ("BF16_BF16_F32_X3", "float32")],
)
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.3, "FAIL")])
def test_a_product_that_rounds_what_it_multiplies_is_raised_without_that(
    precision, dtype, factor, verdict
):
    def fn(x):
        rows = jnp.stack([x, jnp.cos(x)])
        product = jax.lax.dot(rows, rows.T, precision=precision, preferred_element_type=jnp.float32)
        return scaled(factor)(jnp.tanh(product), jnp.ones((2, 2), jnp.float32))

    report = check(fn, X.astype(dtype), raise_exception=False)
    assert report.verdict == verdict, str(report)
    (leaf,) = report.leaves.values()
    assert [row.judged for row in leaf.rows] == ["float64", f"{dtype} as run"]


WIDE_POINT = np.random.default_rng(0).normal(size=(4, 3))
WIDE_MATRIX, WIDE_LABELS = np.random.default_rng(1).normal(size=(3, 3)), np.array([0, 2, 1, 2])


class OfItsOwn:
    """Keeps arrays in attributes, and in a dict."""

    def __init__(self):
        self.matrix, self.kept = WIDE_MATRIX.copy(), {"labels": WIDE_LABELS.copy()}

    def __call__(self, x):
        return jnp.tanh(x @ self.matrix)[np.arange(4), self.kept["labels"]].sum()


def by_its_own_rule():
    @jax.custom_vjp
    def squared(x):
        return jnp.sum((x @ WIDE_MATRIX) ** 2)

    squared.defvjp(
        lambda x: (squared(x), x), lambda x, u: (u * 2 * (x @ WIDE_MATRIX) @ WIDE_MATRIX.T,)
    )
    return squared


def by_the_rule_of_another():
    def plain(x):
        return jnp.sum((WIDE_POINT + x) ** 2)

    squared = jax.custom_vjp(plain)
    squared.defvjp(lambda x: (plain(x), x), lambda x, u: (u * 2 * (WIDE_POINT + x),))
    return squared


CLOSED_OVER = {
    "labels": lambda: lambda x: -jax.nn.log_softmax(x)[np.arange(4), WIDE_LABELS].mean(),
    "rows": lambda: lambda x: jnp.take(x, WIDE_LABELS, axis=0).sum(),
    "a matrix": lambda: lambda x: jnp.sum((x @ WIDE_MATRIX) ** 2),
    "an object": OfItsOwn,
    "a rule": by_its_own_rule,
    "a rule for another": by_the_rule_of_another,
    "compiled": lambda: jax.jit(lambda x: jnp.sum((x @ WIDE_MATRIX) ** 2)),
}


@pytest.mark.parametrize("name", CLOSED_OVER)
def test_a_check_in_float64_leaves_a_function_fit_for_float32(name):
    fn, narrow = CLOSED_OVER[name](), jnp.asarray(WIDE_POINT, jnp.float32)
    held = vars(fn).copy() if name == "an object" else {}
    for _ in range(2):
        assert check(fn, WIDE_POINT, backend="jax").verdict == "PASS"
        assert fn(narrow).dtype == jnp.float32
        assert check(fn, narrow).verdict == "PASS"
    assert all(vars(fn)[key] is value for key, value in held.items())


def test_wide_arrays_beside_narrow_parameters_are_read_as_jax_reads_them():
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 3)), jnp.float32)

    def convolved(kernel, x):
        return jax.lax.conv(x[None], kernel, (1,), "SAME")

    x = np.random.default_rng(3).normal(size=(2, 6))
    report = check(convolved, kernel, x, wrt=(0, 1))
    assert report.verdict == "PASS"
    assert {row.precision for leaf in report.leaves.values() for row in leaf.rows} == {
        "float64",
        "float32",
    }


class Groups:
    """How JAX 0.11 tells what of a scan's arguments is constant, carried and scanned over."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def update(self, values):
        self.values = values
        return self

    def unpack(self):
        stops = np.cumsum(self.sizes)
        return [
            self.values[stop - size : stop] for size, stop in zip(self.sizes, stops, strict=True)
        ]


def test_a_scan_is_read_in_both_of_its_forms():
    factor, start, rows = jnp.float32(0.8), jnp.float32(0.3), jnp.linspace(-1.0, 1.0, 3)

    def fn(factor, start, rows):
        def body(state, row):
            after = factor * jnp.sin(state) + row
            return after, after * state

        return jax.lax.scan(body, start, rows)

    (step,) = jax.make_jaxpr(fn)(factor, start, rows).jaxpr.eqns
    names = ("num_consts", "num_carry", "ft_in")
    shared = {key: value for key, value in step.params.items() if key not in names}
    with x64():
        for own in ({"num_consts": 1, "num_carry": 1}, {"ft_in": Groups(1, 1, 1)}):
            last, products = STEPS["scan"](shared | own, [factor, start, rows])
            assert np.isclose(last, fn(factor, start, rows)[0])
            assert np.allclose(products, fn(factor, start, rows)[1])


def gated(share: float) -> Any:
    """gelu(a) * b, of which the rule computes its slope in float32 whatever it is given."""

    @jax.custom_vjp
    def geglu(a: Any, b: Any) -> Any:
        return jax.nn.gelu(a) * b

    def backward(residuals: Any, u: Any) -> Any:
        a, b = residuals
        slope = jax.grad(lambda x: jax.nn.gelu(x).sum())(a.astype(jnp.float32))
        return (share * u * b * slope).astype(a.dtype), (u * jax.nn.gelu(a)).astype(b.dtype)

    geglu.defvjp(lambda a, b: (geglu(a, b), (a, b)), backward)
    return geglu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("seed", range(3))
def test_a_rule_that_computes_in_float32_by_its_name_is_right(dtype: str, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    weights = [jnp.asarray(0.4 * drawn.normal(size=(6, 6)), dtype) for _ in range(3)]
    x = jnp.asarray(drawn.normal(size=(3, 6)), dtype)

    def network(share: float) -> Any:
        return lambda a, b, o: gated(share)(x @ a, x @ b) @ o

    assert check(network(1.0), *weights, seed=seed)
    for share in (1.01, -1.0):
        report = check(network(share), *weights, seed=seed, raise_exception=False)
        assert [name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"] == ["a"]
