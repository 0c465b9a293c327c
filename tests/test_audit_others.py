"""The verb audit over functions of JAX and of NumPy."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import right

from xgradcheck import InvalidCase, Report, Verdict, audit, check

Array = Any
X = np.random.default_rng(0).normal(size=(3, 4))
JX = jnp.asarray(X, jnp.float32)


def failed(report: Report) -> set[str]:
    return {probe.name for probe in report.probes if probe.verdict is Verdict.FAIL}


def ruled(backward: Callable[..., Any]) -> Any:
    """A square in JAX with this rule."""

    @jax.custom_vjp
    def square(x: Array) -> Array:
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, grad: (backward(x, grad),))
    return square


def right_rule(x: Array, grad: Array) -> Array:
    return 2 * x * grad


def clipped_rule(x: Array, grad: Array) -> Array:
    return 2 * x * jnp.clip(grad, -2, 2)


@jax.custom_batching.custom_vmap
def doubled(x: Array) -> Array:
    return 2 * x


@doubled.def_vmap
def doubled_in_a_batch(size: int, is_batched: Any, x: Array) -> Any:
    return 3 * x, True


def wrong_in_a_batch(x: Array, grad: Array) -> Array:
    return doubled(x) * grad


JAX_RULES = {"cotangents": clipped_rule, "transforms": wrong_in_a_batch}


@pytest.mark.parametrize("probe", JAX_RULES)
def test_a_probe_sees_a_wrong_rule_of_jax(probe: str) -> None:
    report = audit(ruled(JAX_RULES[probe]), JX, raise_exception=False)
    assert failed(report) == {probe}, str(report)
    assert audit(ruled(right_rule), JX).verdict is Verdict.PASS


def test_what_cannot_be_transformed_is_no_mistake() -> None:
    @jax.custom_vjp
    def square(x: Array) -> Array:
        return jax.pure_callback(np.square, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    square.defvjp(lambda x: (square(x), x), lambda x, grad: (2 * x * grad,))
    report = audit(square, JX, probes="transforms")
    assert report.verdict is Verdict.PASS
    assert "under jit" in report.probes[0].trials
    assert "under vmap" not in report.probes[0].trials


def squares(x: Array) -> Array:
    return x**2


BUFFER = np.zeros((3, 4))


def scaled_in_place(grad: Array, x: Array) -> Array:
    x *= 2
    return x * grad


def into_a_buffer(grad: Array, x: Array) -> Array:
    np.multiply(2 * x, grad, out=BUFFER)
    return BUFFER


def clipped(grad: Array, x: Array) -> Array:
    return 2 * x * np.clip(grad, -2, 2)


def in_fresh_memory(grad: Array, x: Array) -> Array:
    out, rest = np.empty_like(x), np.empty(3)
    out[...] = 2 * x * grad
    rest[:2] = 0
    return out + (np.nan if np.isnan(rest[2]) else max(rest[2], 999) - 999)


BY_HAND = {
    "purity": scaled_in_place,
    "repetition": into_a_buffer,
    "cotangents": clipped,
    "memory": in_fresh_memory,
}


@pytest.mark.parametrize("probe", BY_HAND)
def test_a_probe_sees_a_wrong_backward_by_hand(probe: str) -> None:
    report = audit(squares, X.copy(), grads=BY_HAND[probe], raise_exception=False)
    assert probe in failed(report), str(report)
    report = audit(squares, X.copy(), grads=lambda grad, x: 2 * x * grad)
    assert report.verdict is Verdict.PASS


def test_a_gradient_that_is_an_argument_itself_is_told() -> None:
    x = X.copy()
    report = audit(lambda x: (x**2).sum() / 2, x, grads=lambda x: x, raise_exception=False)
    assert failed(report) == {"purity"}
    said = [finding.text for finding in report.findings]
    assert said == ["the gradient of x is the memory of x itself"]
    assert audit(lambda x: (x**2).sum() / 2, x, grads=lambda x: 1 * x).verdict is Verdict.PASS


def test_np_empty_is_left_as_it_was() -> None:
    found = np.empty, np.empty_like
    audit(squares, X.copy(), grads=lambda grad, x: 2 * x * grad)
    assert (np.empty, np.empty_like) == found

    def raising(grad: Array, x: Array) -> Array:
        if np.empty is not found[0]:
            raise KeyboardInterrupt
        return 2 * x * grad

    with pytest.raises(KeyboardInterrupt):
        audit(squares, X.copy(), grads=raising)
    assert (np.empty, np.empty_like) == found


# A backward pass that saves what its forward pass computed has a second derivative that is wrong.
NOT_TWICE = {"custom_cross_entropy"}
# A mask of all that equals the maximum counts ties twice.
NOT_AT_TIES = {"numpy-max_pooling"}


def named(number: int, row: right.Right) -> Any:
    # JAX compiles for every probe.
    is_slow = number % (27 if row.backend == "jax" else 4)
    marks = [pytest.mark.slow] if is_slow else []
    return pytest.param(row, id=f"{row.backend}-{row.run.__name__}", marks=marks)


@pytest.mark.parametrize("row", [named(number, row) for number, row in enumerate(right._rows)])
def test_no_alarm_over_right_gradients(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def audited(*args: Any, **options: Any) -> Report:
        return audit(*args, **{"raise_exception": False, **options})

    monkeypatch.setattr(right, "report_on", audited)
    monkeypatch.setattr(
        right, "report_on_jax", lambda *a, **options: audited(*a, backend="jax", **options)
    )
    report = row.run(0)
    expected = {"second order"} if row.run.__name__ in NOT_TWICE else set()
    expected |= {"values"} if f"{row.backend}-{row.run.__name__}" in NOT_AT_TIES else set()
    assert failed(report) == expected, str(report)
    unsure = {p.name for p in report.probes if p.verdict is Verdict.INCONCLUSIVE}
    assert not unsure, str(report)


def test_a_backward_by_hand_that_writes_to_what_it_was_given_is_seen() -> None:
    report = check(squares, X.copy(), grads=scaled_in_place, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert "the backward pass writes to x," in str(report)

    def into_the_cotangent(grad: Array, x: Array) -> Array:
        grad *= 2 * x
        return grad

    # Layers by hand do, all the time, and hand it on to nobody else.
    report = check(squares, X.copy(), grads=into_the_cotangent)
    assert any("writes to the cotangent" in note for note in report.notes)
    report = audit(squares, X.copy(), grads=into_the_cotangent, raise_exception=False)
    assert failed(report) == {"purity"}


def test_a_layer_that_keeps_its_first_input_alone_fails_the_second_step() -> None:
    class Layer:
        def __init__(self, is_stale: bool) -> None:
            self.x, self.is_stale = None, is_stale

        def forward(self, x: Array) -> Array:
            if self.x is None or not self.is_stale:
                self.x = x.copy()
            return np.tanh(x)

        def backward(self, dout: Array) -> Array:
            return dout * (1 - np.tanh(self.x) ** 2)

    for is_stale in (False, True):
        layer = Layer(is_stale)
        report = audit(layer.forward, X.copy(), grads=layer.backward, raise_exception=False)
        assert failed(report) == ({"repetition"} if is_stale else set()), str(report)


WITHOUT_BFLOAT16 = """
import sys
sys.modules["ml_dtypes"] = None  # as where it is not installed
import numpy as np
from xgradcheck import InvalidCase, audit, check

def tanh(x): return np.tanh(x)
def slope(u, x): return u * (1 - np.tanh(x) ** 2)

x = np.linspace(-1.1, 2.0, 6)
(probe,) = audit(tanh, x, grads=slope, probes=["dtypes"]).probes
print(probe.verdict, probe.trials)
"""


def test_numpy_is_audited_in_the_dtypes_that_it_has() -> None:
    command = [sys.executable, "-c", WITHOUT_BFLOAT16]
    finished = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert finished.stdout == "PASS ('in float32', 'in float16')\n", finished.stderr


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (2.0, "FAIL")])
def test_the_gradient_of_a_layer_is_run_beside_the_one_that_is_expected(factor, verdict):
    class Tanh:
        def forward(self, x):
            self.x = x
            return np.tanh(x)

        def backward(self, cotangent):
            return factor * cotangent / np.cosh(self.x) ** 2

    layer, x = Tanh(), np.random.default_rng(0).normal(size=(3, 4))

    def expected(cotangent, x):
        return cotangent / np.cosh(x) ** 2

    told = {"grads": layer.backward, "expect": expected, "raise_exception": False}
    assert audit(layer.forward, x, **told).verdict == verdict
    with pytest.raises(InvalidCase, match="seed=-1 is no seed"):
        audit(layer.forward, x, **told, seed=-1)
