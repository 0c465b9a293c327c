"""JAX: pytrees, custom rules, and functions that cannot be batched or traced."""

import functools
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from xgradcheck.backends.jax_compiled import Programs

from xgradcheck import InvalidCase, Verdict, check

X = np.linspace(-1.2, 1.3, 6)
Point = namedtuple("Point", "x y")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["act"])
@dataclass
class Layer:
    w: Any
    act: str


def in_jax(fn: Any, *args: Any, **options: Any) -> Any:
    return check(fn, *args, backend="jax", **options)


def test_leaves_of_every_kind_pass_through_or_are_named_as_jax_names_them() -> None:
    def fn(tree: Any, scale: Any) -> Any:
        noise = jax.random.normal(tree["key"], (6,)) + jax.random.normal(tree["old"], (6,))
        layer = tree["layers"][0]
        hidden = getattr(jnp, layer.act)(layer.w * scale)
        return tree["fn"](hidden) * tree["p"].x * tree["n"] + noise * tree["mask"]

    tree = {
        "layers": [Layer(X, "tanh")],
        "p": Point(X[::-1].copy(), None),
        "n": 3,
        "mask": np.arange(6) % 2 == 0,
        "ids": np.arange(6),
        "key": jax.random.key(0),
        "old": jax.random.PRNGKey(1),
        "fn": jnp.sin,
        "text": "x",
    }
    report = in_jax(fn, tree, 2.0)
    assert set(report.leaves) == {"tree['layers'][0].w", "tree['p'].x"}
    assert report.leaves["tree['layers'][0].w"].path == (0, "layers", 0, "w")


def test_argnums_choose_arguments() -> None:
    def fn(a: Any, b: Any) -> Any:
        return jnp.sum(a * b)

    assert tuple(in_jax(fn, X, X).leaves) == ("a", "b")
    assert tuple(in_jax(fn, X, X, wrt=1).leaves) == ("b",)
    assert tuple(in_jax(fn, X, X, wrt=(0, 1)).leaves) == ("a", "b")
    assert tuple(in_jax(fn, 3.0, X, wrt=0).leaves) == ("a",)


def test_a_custom_vjp_against_the_closed_form() -> None:
    @jax.custom_vjp
    def cube(x: Any) -> Any:
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3.3 * x**2 * g,))
    report = in_jax(lambda x: cube(x)[5], X, raise_exception=False)
    worst = report.leaves["x"].worst
    assert worst is not None and worst.index == (5,)
    assert worst.analytic / worst.truth == pytest.approx(1.1)


@pytest.mark.parametrize(("power", "verdict"), [(2.0, "PASS"), (2.5, "FAIL")])
def test_nondiff_argnums(power: float, verdict: str) -> None:
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
    def apply(fn: Any, x: Any, name: str) -> Any:
        return fn(x) ** 2

    def forward(fn: Any, x: Any, name: str) -> Any:
        return fn(x) ** 2, x

    def backward(fn: Any, name: str, x: Any, g: Any) -> Any:
        return (power * fn(x) * jnp.cos(x) * g,)

    apply.defvjp(forward, backward)
    assert in_jax(apply, jnp.sin, X, "name", raise_exception=False).verdict == verdict


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_a_custom_jvp(factor: float, verdict: str) -> None:
    @jax.custom_jvp
    def sine(x: Any) -> Any:
        return jnp.sin(x)

    sine.defjvps(lambda t, ans, x: factor * t * jnp.cos(x))
    assert in_jax(sine, X, raise_exception=False).verdict == verdict


def test_a_forward_rule_that_gives_another_value_is_found() -> None:
    @jax.custom_vjp
    def sine(x: Any) -> Any:
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x) + 1, x), lambda x, g: (g * jnp.cos(x),))
    report = in_jax(sine, X, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert [finding.kind for finding in report.findings] == ["forward"]


def test_control_flow_on_values_runs_eagerly() -> None:
    def fn(x: Any) -> Any:
        return jnp.sum(x**2) if x[0] < 0 else jnp.sum(x)

    assert in_jax(fn, X)


def test_a_function_without_batching_rule_runs_one_by_one() -> None:
    @jax.custom_vjp
    def host(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x)), shape, x)

    host.defvjp(lambda x: (host(x), x), lambda x, g: (g * jnp.cos(x),))
    assert in_jax(host, X)


def test_outputs_that_carry_no_gradient_are_listed() -> None:
    def fn(x: Any) -> Any:
        return {"y": jnp.sin(x), "order": jnp.argsort(x), "none": None}

    assert in_jax(fn, X).skipped == ("output['order']: int64, not differentiable",)


@pytest.mark.parametrize("flag", [False, True])
def test_the_global_flag_is_not_touched(flag: bool) -> None:
    found = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", flag)
    try:
        assert in_jax(lambda x: jnp.sin(x), X)
        assert jax.config.jax_enable_x64 is flag
        assert jnp.zeros(1).dtype == (jnp.float64 if flag else jnp.float32)
    finally:
        jax.config.update("jax_enable_x64", found)


def test_jitted_functions_and_scan() -> None:
    @jax.jit
    def rnn(w: Any, xs: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = jnp.tanh(w @ h + x)
            return h, h

        return jax.lax.scan(step, jnp.zeros(2), xs)

    report = in_jax(rnn, np.array([[0.3, -0.2], [0.5, 0.1]]), X.reshape(3, 2))
    assert tuple(report.leaves) == ("w", "xs")


def test_a_gradient_handed_in() -> None:
    assert in_jax(lambda x: jnp.sum(jnp.sin(x)), X, grads=np.cos(X))
    assert in_jax(jnp.sin, X, grads=lambda cotangent, x: cotangent * jnp.cos(x))


def test_keyword_arguments_reach_the_names_they_were_given_for() -> None:
    def fn(*, w: Any, b: Any) -> Any:
        assert w.shape == (6,) and b.shape == (2,)
        return jnp.sum(w**2) + jnp.sum(b**3)

    report = in_jax(fn, kwargs={"w": X, "b": X[:2]})
    assert set(report.leaves) == {"w", "b"}
    with pytest.raises(ValueError, match="wrt=0 matches no floating leaf"):
        in_jax(fn, kwargs={"w": X, "b": X[:2]}, wrt=0)


def test_a_function_that_reads_no_leaf_is_refused_and_an_unread_leaf_noted() -> None:
    with pytest.raises(ValueError, match="does not depend on x"):
        in_jax(lambda x: jnp.ones(2).sum(), X)
    report = in_jax(lambda a, b: jnp.sum(jnp.sin(a)), X, X)
    assert any(note.startswith("b gets no gradient") for note in report.notes)


def tanh_with(factor: float) -> Any:
    @jax.custom_vjp
    def tanh(x: Any) -> Any:
        return jnp.tanh(x)

    tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, u: (factor * u / jnp.cosh(x) ** 2,))
    return tanh


def test_a_large_leaf_has_a_program_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    w, b, data = rng.normal(size=(48, 50)) / 7, rng.normal(size=(1, 50)), rng.normal(size=(3, 48))
    programs = []
    found = Programs.of_leaf

    def counted(self: Any, owner: int) -> Any:
        programs.append(self._layout.leaves[owner].name)
        return found(self, owner)

    monkeypatch.setattr(Programs, "of_leaf", counted)
    right, wrong = tanh_with(1.0), tanh_with(1.0001)
    in_jax(lambda w, b: right(data @ w + b).sum(1), w, b, coverage="sweep")
    assert set(programs) == {"w"}
    report = in_jax(
        lambda w, b: wrong(data @ w + b).sum(1), w, b, coverage="sweep", raise_exception=False
    )
    assert report.leaves["w"].verdict is report.leaves["b"].verdict is Verdict.FAIL


def test_a_program_that_gives_other_values_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Programs.of_leaf

    def wrong(self: Any, owner: int) -> Any:
        program = found(self, owner)
        # Off by as little as a rounding of float32.
        return lambda x, places, moves, wide, direction, u: (
            program(x, places, moves, wide, direction, u) + 1e-7 * ((moves > 0) | (wide > 0))
        )

    monkeypatch.setattr(Programs, "of_leaf", wrong)
    x = np.random.default_rng(0).normal(size=2100)
    assert in_jax(lambda x: jnp.sin(x).sum(), x).verdict is Verdict.PASS


@jax.custom_vjp
def tempered(x, t):
    return jax.nn.softmax(x / t)


def _tempered(x, t):
    return tempered(x, t), (tempered(x, t), x, t)


def _wrong_in_t(saved, g):
    soft, x, t = saved
    inner = soft * (g - (soft * g).sum(-1, keepdims=True))
    return inner / t, (inner * x).sum() * 100


tempered.defvjp(_tempered, _wrong_in_t)


def test_a_python_number_is_told_to_be_a_constant_and_checked_by_name():
    x = np.random.default_rng(0).normal(size=(4, 3))
    report = check(tempered, x, 0.7, backend="jax")
    assert report.skipped == ("t: a Python number, unless wrt names it",)
    for wrt in (1, [0, 1], "t", ["x", "t"]):
        found = check(tempered, x, 0.7, backend="jax", wrt=wrt, raise_exception=False)
        assert found.leaves["t"].verdict == "FAIL"


def test_what_a_callback_raises_beside_the_point_is_not_printed(capfd, caplog):
    def value(x):
        if (np.asarray(x) < 1).any():
            raise ValueError("too small")
        return np.asarray(x) ** 2

    @jax.custom_vjp
    def squared(x):
        return jax.pure_callback(value, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    squared.defvjp(lambda x: (squared(x), x), lambda x, u: (2 * u * x,))
    report = check(squared, jnp.linspace(1.0, 2.0, 3), raise_exception=False)
    assert any("too small" in note for note in report.notes), str(report)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_what_jax_made_of_a_function_is_its_own_with_numpy_arrays_as_well():
    @jax.custom_vjp
    def softplus(x):
        return jnp.logaddexp(x, 0.0)

    softplus.defvjp(lambda x: (softplus(x), x), lambda x, u: (1.01 * u * jax.nn.sigmoid(x),))
    x = np.random.default_rng(0).normal(size=5)
    for fn, verdict in ((softplus, "FAIL"), (jax.jit(jnp.tanh), "PASS")):
        assert check(fn, x, raise_exception=False).verdict == verdict
    with pytest.raises(InvalidCase, match="NumPy has no backward pass"):
        check(lambda x: jnp.tanh(x), x)
