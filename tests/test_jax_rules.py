"""Rules of custom_vjp that JAX refuses, or that break their contract under a transformation."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero

from xgradcheck import Verdict, audit, check

Array = Any
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
Y = 2 * X + 1


def product(backward: Callable[..., Any], nondiff: tuple[int, ...] = ()) -> Any:
    """The product of two arrays with this rule."""

    @jax.custom_vjp
    def times(x: Array, y: Array) -> Array:
        return x * y

    def forward(x: Array, y: Array) -> Any:
        return x * y, (x, y)

    ruled = jax.custom_vjp(times.fun, nondiff_argnums=nondiff)
    ruled.defvjp(forward, backward)
    return ruled


def around(x: Array, y: Array) -> Array:
    """A rule that reads an array of the function around it."""

    @jax.custom_vjp
    def times(x: Array) -> Array:
        return x * y

    times.defvjp(lambda x: (x * y, None), lambda _, u: (u * y,))
    return times(x)


REFUSED = {
    "too few": (
        product(lambda xy, u: (u * xy[1],)),
        "times returns 1 gradient for 2 arguments: return a tuple with one gradient for each of "
        "x, y, None where there is none.",
    ),
    "no tuple": (
        product(lambda xy, u: u * xy[1]),
        "times returns one float32[3, 4]: return a tuple with one gradient for each of x, y",
    ),
    "shape": (
        product(lambda xy, u: (u * xy[1], (u * xy[0]).sum())),
        "times returns float32[] for y, which is float32[3, 4]: sum over what was broadcast",
    ),
    "structure": (
        product(lambda xy, u: ((u * xy[1], u), u * xy[0])),
        "times returns PyTreeDef((*, *)) for x, which is PyTreeDef(*): give both the same",
    ),
    "array among nondiff_argnums": (
        product(lambda y, xy, u: (u * y,), nondiff=(1,)),
        "nondiff_argnums is for what holds no arrays",
    ),
    "closure over a tracer": (around, "a rule reads an array of the function around it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jax_refuses_is_told_with_its_remedy(name: str) -> None:
    fn, remedy = REFUSED[name]
    with pytest.raises(Exception) as raised:
        check(fn, X, Y)
    assert remedy in "\n".join(raised.value.__notes__)


def test_an_exception_of_another_kind_has_no_remedy() -> None:
    def broken(xy: Any, u: Array) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError) as raised:
        check(product(broken), X, Y)
    assert not any("return" in note for note in raised.value.__notes__)
    assert check(product(lambda xy, u: (u * xy[1], u * xy[0])), X, Y)


def test_the_class_of_rules_is_left_as_it_was() -> None:
    found = jax.custom_vjp.__call__
    with pytest.raises(TypeError):
        check(product(lambda xy, u: (u * xy[1],)), X, Y)
    assert jax.custom_vjp.__call__ is found


def in_half(xy: Any, u: Array) -> Any:
    return u * xy[1], (u * xy[0]).astype(jnp.float16)


def with_symbols(forward: Any, backward: Any) -> Any:
    @jax.custom_vjp
    def both(x: Array, y: Array) -> Any:
        return jnp.sin(x) * y, x * y

    both.defvjp(forward, backward, symbolic_zeros=True)
    return both


def noting(x: Any, y: Any) -> Any:
    values = x.value, y.value
    return (jnp.sin(x.value) * y.value, x.value * y.value), (*values, x.perturbed)


def dense(u: Any, like: Array) -> Array:
    return jnp.zeros_like(like) if isinstance(u, SymbolicZero) else u


def right_of_both(kept: Any, given: Any) -> Any:
    x, y, _ = kept
    u, v = (dense(part, x) for part in given)
    return u * jnp.cos(x) * y + v * y, u * jnp.sin(x) + v * x


def second_needs_first(kept: Any, given: Any) -> Any:
    of_x, of_y = right_of_both(kept, given)
    return of_x, of_y if kept[2] else 0 * of_y


def both_or_nothing(kept: Any, given: Any) -> Any:
    of_x, of_y = right_of_both(kept, given)
    if any(isinstance(part, SymbolicZero) for part in given):
        return 0 * of_x, 0 * of_y
    return of_x, of_y


def taking(nondiff: tuple[int, ...]) -> Any:
    """Columns of an array, whose numbers are an argument."""

    def take(x: Array, columns: Array) -> Array:
        return x[:, columns]

    def backward(*given: Any) -> Any:
        x, columns = given[-2]
        of_x = jnp.zeros_like(x).at[:, columns].add(given[-1])
        return (of_x,) if nondiff else (of_x, None)

    ruled = jax.custom_vjp(take, nondiff_argnums=nondiff)
    ruled.defvjp(lambda x, columns: (x[:, columns], (x, columns)), backward)
    return ruled


COLUMNS = jnp.array([1, 0, 1])
PLANTED = {
    "form": (product(in_half), product(lambda xy, u: (u * xy[1], u * xy[0])), (X, Y)),
    "subsets": (
        with_symbols(noting, second_needs_first),
        with_symbols(noting, right_of_both),
        (X, Y),
    ),
    "cotangents": (
        with_symbols(noting, both_or_nothing),
        with_symbols(noting, right_of_both),
        (X, Y),
    ),
    "transforms": (taking((1,)), taking(()), (X, COLUMNS)),
}


@pytest.mark.parametrize("probe", PLANTED)
def test_a_probe_sees_its_mistake_and_accepts_the_right_twin(probe: str) -> None:
    wrong, right, args = PLANTED[probe]
    report = audit(wrong, *args, probes=probe, raise_exception=False)
    assert report.probes[0].verdict is Verdict.FAIL, str(report)
    assert audit(right, *args, probes=probe).probes[0].verdict is Verdict.PASS


def test_plain_numbers_and_whole_numbers_are_tried() -> None:
    scaled = audit(lambda x, s: jnp.sin(x) * s, X, jnp.float32(1.5), probes="transforms")
    assert "with plain numbers for arrays without axes" in scaled.probes[0].trials
    taken = audit(taking(()), X, COLUMNS, probes="transforms")
    assert "under jit, with all arrays traced" in taken.probes[0].trials


SHARDED = """
import jax.numpy as jnp
from xgradcheck import audit
report = audit(jnp.sin, jnp.arange(8.0) / 7, probes="transforms")
print(report.probes[0].trials[-1], report.verdict)
"""


def test_arrays_are_sharded_where_there_are_several_devices() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | flags, capture_output=True, text=True
    )
    assert run.stdout.strip() == "sharded over 4 devices PASS", run.stderr


@pytest.mark.parametrize(("transposed", "verdict"), [(True, "PASS"), (False, "FAIL")])
def test_a_loop_that_ends_near_the_point_alone_is_not_followed_away_from_it(transposed, verdict):
    """A fixed point, differentiated implicitly: at one and a half times W there is none, and its
    loop never ends.
    """

    def step(W, b, z):
        return jnp.tanh(W @ z + b)

    def solve(W, b):
        return jax.lax.while_loop(
            lambda c: jnp.max(jnp.abs(c[0] - c[1])) > 1e-12,
            lambda c: (c[1], step(W, b, c[1])),
            (b + 1, b),
        )[1]

    def backward(residuals, cotangent):
        W, b, z = residuals
        J = jax.jacobian(lambda z: step(W, b, z))(z)
        u = jnp.linalg.solve(jnp.eye(len(z)) - (J.T if transposed else J), cotangent)
        return jax.vjp(lambda W, b: step(W, b, z), W, b)[1](u)

    fixed_point = jax.custom_vjp(solve)
    fixed_point.defvjp(lambda W, b: ((z := solve(W, b)), (W, b, z)), backward)
    rng = np.random.default_rng(0)
    W = 0.8 * np.linalg.qr(rng.normal(size=(4, 4)))[0]
    b = 0.05 * rng.normal(size=4)
    report = check(fixed_point, W, b, backend="jax", raise_exception=False)
    assert report.verdict == verdict
