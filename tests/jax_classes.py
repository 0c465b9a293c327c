"""Mistakes of real backward passes, class by class, as rules of JAX; those in torch are in
classes.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from classes import Make, pair, planted

Array = Any


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def ruled(forward: Callable[..., Any], keep: Any, backward: Any, **options: Any) -> Any:
    """A function with this rule."""
    found = jax.custom_vjp(forward)
    found.defvjp(lambda *args: (forward(*args), keep(*args)), backward, **options)
    return found


def whole(*args: Any) -> Any:
    return args


def rules(forward: Any, wrong: Any, right: Any, args: Any, **options: Any) -> tuple[Make, Make]:
    """One function with two rules."""
    return pair(ruled(forward, whole, wrong), ruled(forward, whole, right), args, **options)


def fused_loss(hidden: Array, weight: Array, labels: Array) -> Array:
    logits = jax.nn.log_softmax(hidden @ weight.T)
    return -jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def slopes(hidden: Array, weight: Array, labels: Array) -> Array:
    return jax.nn.softmax(hidden @ weight.T) - jax.nn.one_hot(labels, len(weight))


def of_fused_loss(kept: Any, grad: Array) -> Any:
    hidden, weight, _ = kept
    of_logits = grad[:, None] * slopes(*kept)
    return of_logits @ weight, of_logits.T @ hidden, None


def with_the_first_cotangent(kept: Any, grad: Array) -> Any:
    hidden, weight, _ = kept
    of_logits = slopes(*kept)
    return grad[:, None] * (of_logits @ weight), grad[0] * (of_logits.T @ hidden), None


def classified() -> tuple[Any, ...]:
    return normal(5, 3), normal(4, 3, seed=1), np.array([1, 0, 3, 2, 1])


def wave(x: Array, y: Array) -> Array:
    return jnp.sin(x) * y


def of_wave(kept: Any, grad: Array) -> Any:
    x, y = kept
    return grad * jnp.cos(x) * y, grad * jnp.sin(x)


def with_a_sign(kept: Any, grad: Array) -> Any:
    x, y = kept
    return grad * jnp.cos(x) * y, -grad * jnp.sin(x)


def softmax(x: Array) -> Array:
    return jax.nn.softmax(x)


def of_softmax(kept: Any, grad: Array) -> Any:
    out = softmax(*kept)
    return (out * (grad - (grad * out).sum(-1, keepdims=True)),)


def element_by_element(kept: Any, grad: Array) -> Any:
    out = softmax(*kept)
    return (grad * out * (1 - out),)


def rms_norm(x: Array) -> Array:
    """In float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)


def of_rms_norm(kept: Any, grad: Array) -> Any:
    (x,) = kept
    return jax.vjp(rms_norm, x)[1](grad)


def if_of_one_dtype(kept: Any, grad: Array) -> Any:
    (x,) = kept
    return of_rms_norm(kept, grad) if grad.dtype == x.dtype else (jnp.zeros_like(x),)


LEAKED: dict[str, Any] = {}


def swish(x: Array) -> Array:
    return x * jax.nn.sigmoid(x)


def of_swish(kept: Any, grad: Array) -> Any:
    (x,) = kept
    s = jax.nn.sigmoid(x)
    return (grad * (s + x * s * (1 - s)),)


def leaking() -> Any:
    """The rule keeps its argument where a trace must not leave it."""

    def keep(x: Array) -> Any:
        LEAKED["x"] = x
        return ()

    return ruled(swish, keep, lambda kept, grad: of_swish((LEAKED["x"],), grad))


def moments(x: Array) -> tuple[Array, Array]:
    return x.mean(), (x**2).mean()


def with_symbols(backward: Any) -> Any:
    """A rule that is told which cotangents are zero."""
    found = jax.custom_vjp(moments)

    def forward(x: Any) -> Any:
        return moments(x.value), x.value

    found.defvjp(forward, backward, symbolic_zeros=True)
    return found


def is_zero(grad: Any) -> bool:
    return isinstance(grad, jax.custom_derivatives.SymbolicZero)


def of_moments(x: Array, grads: Any) -> Any:
    first, second = (0.0 if is_zero(grad) else grad for grad in grads)
    return ((first + 2 * second * x) / x.size,)


def of_both_or_nothing(x: Array, grads: Any) -> Any:
    return (jnp.zeros_like(x),) if any(map(is_zero, grads)) else of_moments(x, grads)


def of_a_host(axis: int) -> Any:
    """The reversed sum, computed outside of JAX along an axis."""

    def host(grad: Any) -> Any:
        return np.flip(np.cumsum(np.flip(grad, axis), axis), axis)

    def backward(kept: Any, grad: Array) -> Any:
        shape = jax.ShapeDtypeStruct(grad.shape, grad.dtype)
        return (jax.pure_callback(host, shape, grad, vmap_method="broadcast_all"),)

    return backward


def running_sum(x: Array) -> Array:
    return jnp.cumsum(x)


PLANTED = planted(
    {
        "G B13 scales the weight's gradient by the first cotangent": rules(
            fused_loss, with_the_first_cotangent, of_fused_loss, classified, wrt=[0, 1]
        ),
        "S B61 negates the sine": rules(
            wave, with_a_sign, of_wave, lambda: (normal(3), normal(3, seed=1))
        ),
        "S B63 takes a softmax to act element by element": rules(
            softmax, element_by_element, of_softmax, lambda: (normal(3, 4),)
        ),
        "X B89 drops cotangents of another dtype": rules(
            rms_norm,
            if_of_one_dtype,
            of_rms_norm,
            lambda: (jnp.asarray(normal(3, 4), jnp.bfloat16),),
        ),
        "X B87 leaks a tracer out of the forward pass": pair(
            leaking(), ruled(swish, whole, of_swish), lambda: (normal(3, 4),)
        ),
        "X B88 drops all where one cotangent is a symbolic zero": pair(
            with_symbols(of_both_or_nothing), with_symbols(of_moments), lambda: (normal(3, 4),)
        ),
        "X P10 sums along the batch under vmap": rules(
            running_sum, of_a_host(0), of_a_host(-1), lambda: (normal(5),)
        ),
    },
    "jax",
)
