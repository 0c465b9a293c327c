"""JAX programs kept from one check to the next, and never longer than the function is the same."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from xgradcheck.backends.jax_kept import key_of
from xgradcheck.backends.jax_traced import Traced

from xgradcheck import check

X = np.linspace(-1.2, 1.3, 6)


def scaled(bound):
    """``sin`` with a backward pass that is ``bound.factor`` times the right one."""

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (bound.factor * g * jnp.cos(x),))
    return sine


def closes_over_a_number():
    factor = 1.0

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * g * jnp.cos(x),))

    def spoil():
        nonlocal factor
        factor = 1.01

    return lambda x: sine(x) ** 2, spoil


def closes_over_an_object():
    bound = types.SimpleNamespace(factor=1.0)
    sine = scaled(bound)
    return lambda x: sine(x) ** 2, lambda: setattr(bound, "factor", 1.01)


class Model:
    def __init__(self):
        self.factor = 1.0
        self.sine = scaled(self)

    def __call__(self, x):
        return self.sine(x).sum()


def is_an_object():
    model = Model()
    return model, lambda: setattr(model, "factor", 1.01)


def is_mapped():
    bound = types.SimpleNamespace(factor=1.0)
    return jax.vmap(scaled(bound)), lambda: setattr(bound, "factor", 1.01)


def is_partial_with_a_list():
    factors = [1.0]

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factors[0] * g * jnp.cos(x),))
    spoilt = functools.partial(factors.__setitem__, 0, 1.01)
    return functools.partial(lambda scale, x: sine(x) * scale, 2.0), spoilt


def names_another_function():
    right, wrong = (scaled(types.SimpleNamespace(factor=f)) for f in (1.0, 1.01))
    space = {"jnp": jnp, "sine": right}
    exec("def fn(x): return [jnp.sum(sine(row)) for row in (x, 2 * x)]", space)
    return space["fn"], lambda: space.update(sine=wrong)


MENDED = [
    closes_over_a_number,
    closes_over_an_object,
    is_an_object,
    is_mapped,
    is_partial_with_a_list,
    names_another_function,
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("build", MENDED)
def test_a_backward_pass_that_changed_between_two_checks_is_judged_anew(build, dtype):
    fn, spoil = build()
    x = X.astype(dtype)
    assert check(fn, x, backend="jax").verdict == "PASS"
    assert check(fn, 2 * x, backend="jax").verdict == "PASS"
    spoil()
    assert check(fn, x, backend="jax", raise_exception=False).verdict == "FAIL"


def test_the_same_function_is_compiled_once(monkeypatch):
    def fn(x, power):
        return jnp.sin(x) ** power

    assert check(fn, X, 2, backend="jax").verdict == "PASS"
    traced = []
    found = Traced.first_outputs_at
    monkeypatch.setattr(
        Traced,
        "first_outputs_at",
        lambda self, leaves: (traced.append(1), found(self, leaves))[1],
    )
    assert check(fn, 2 * X, 2, backend="jax", seed=1).verdict == "PASS"
    assert not traced
    assert check(fn, X, 3, backend="jax").verdict == "PASS"
    assert check(fn, X[:5], 2, backend="jax").verdict == "PASS"
    assert traced


def test_a_function_that_reads_what_its_code_does_not_name_is_not_known():
    assert key_of(lambda x: getattr(x, "T")) is None  # noqa: B009
    assert key_of(lambda x: eval("x")) is None
    assert key_of(lambda x: x + 1) is not None


def test_numbers_that_are_equal_and_not_the_same_are_told_apart():
    assert key_of(0.0) != key_of(-0.0)
    assert key_of(1) != key_of(True)
    assert key_of(np.float32(1)) != key_of(np.float64(1))


def test_a_program_that_takes_no_constant_of_numpys_is_compiled_all_the_same() -> None:
    """An adjoint by hand of an equation whose right side closes over the parameters: JAX refuses
    an array of NumPy's in it, and Python would compile its loops anew for each evaluation.
    """
    calls = 0

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def integrated(f: Any, start: Any, *held: Any) -> Any:
        return jax.lax.fori_loop(0, 6, lambda _, y: y + f(y, *held) / 6, start)

    def forward(f: Any, start: Any, *held: Any) -> Any:
        def step(y: Any, _: Any) -> Any:
            return y + f(y, *held) / 6, y

        end, path = jax.lax.scan(step, start, None, length=6)
        return end, (path, held)

    def backward(f: Any, residuals: Any, u: Any) -> Any:
        path, held = residuals

        def step(carried: Any, y: Any) -> Any:
            a, sums = carried
            own, *others = jax.vjp(f, y, *held)[1](a / 6)
            return (a + own, [x + z for x, z in zip(sums, others, strict=True)]), None

        (a, sums), _ = jax.lax.scan(
            step, (u, [jnp.zeros_like(h) for h in held]), path, reverse=True
        )
        return a, *sums

    integrated.defvjp(forward, backward)

    def model(w: Any, starts: Any) -> Any:
        nonlocal calls
        calls += 1
        f, held = jax.closure_convert(lambda y: jnp.tanh(w @ y), starts[0])
        return jax.vmap(lambda y: integrated(lambda y, *h: f(y, *h), y, *held))(starts)

    drawn = np.random.default_rng(0)
    report = check(
        model, drawn.normal(size=(3, 3)), drawn.normal(size=(2, 3)), backend="jax", wrt=0
    )
    assert calls < report.evaluations / 2
