"""RMS norm in Pallas with a ``custom_vjp``; and one that sums a gradient in bfloat16.

On a machine without an accelerator the kernels are interpreted:

    xgradcheck check examples/kernels/pallas_rms_norm.py:rms_norm \\
        'f32[48,64]' 'f32[64]' --reference examples/kernels/pallas_rms_norm.py:plain
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

EPSILON = 1e-5
INTERPRET = jax.default_backend() == "cpu"
ROWS = 16
"""How many rows one program takes; the number of rows is a multiple of it. A GPU wants a power of
two for the number of columns, too.
"""


def forward_kernel(x_ref: Any, weight_ref: Any, y_ref: Any, scale_ref: Any) -> None:
    x = x_ref[...].astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + EPSILON)
    y_ref[...] = (x * scale * weight_ref[...].astype(jnp.float32)[None]).astype(y_ref.dtype)
    scale_ref[...] = scale


def backward_kernel(
    grad_ref: Any, x_ref: Any, weight_ref: Any, scale_ref: Any, of_x_ref: Any, of_weight_ref: Any
) -> None:
    grad, x = grad_ref[...].astype(jnp.float32), x_ref[...].astype(jnp.float32)
    scale = scale_ref[...]
    normed, weighted = x * scale, grad * weight_ref[...].astype(jnp.float32)[None]
    along = jnp.mean(weighted * normed, axis=1, keepdims=True)
    of_x_ref[...] = (scale * (weighted - normed * along)).astype(of_x_ref.dtype)

    def add(row: Any, total: Array) -> Array:
        own = grad_ref[row, :].astype(jnp.float32) * x_ref[row, :].astype(jnp.float32)
        return total + (own * scale_ref[row, 0]).astype(total.dtype)

    total = jnp.zeros(x.shape[1], of_weight_ref.dtype)
    of_weight_ref[0, :] = jax.lax.fori_loop(0, ROWS, add, total)


def over_rows(columns: int) -> Any:
    return pl.BlockSpec((ROWS, columns), lambda block: (block, 0))


def forward(x: Array, weight: Array) -> tuple[Array, Any]:
    rows, columns = x.shape
    y, scale = pl.pallas_call(
        forward_kernel,
        grid=(rows // ROWS,),
        in_specs=[over_rows(columns), pl.BlockSpec((columns,), lambda block: (0,))],
        out_specs=(over_rows(columns), over_rows(1)),
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((rows, 1), jnp.float32),
        ),
        interpret=INTERPRET,
    )(x, weight)
    return y, (x, weight, scale)


def backward_summing_in(dtype: Any) -> Callable[..., Any]:
    def backward(residuals: Any, grad: Array) -> tuple[Array, Array]:
        x, weight, scale = residuals
        rows, columns = x.shape
        of_x, of_weight = pl.pallas_call(
            backward_kernel,
            grid=(rows // ROWS,),
            in_specs=[
                over_rows(columns),
                over_rows(columns),
                pl.BlockSpec((columns,), lambda block: (0,)),
                over_rows(1),
            ],
            out_specs=(over_rows(columns), pl.BlockSpec((1, columns), lambda block: (block, 0))),
            out_shape=(
                jax.ShapeDtypeStruct(x.shape, x.dtype),
                jax.ShapeDtypeStruct((rows // ROWS, columns), dtype),
            ),
            interpret=INTERPRET,
        )(grad, x, weight, scale)
        return of_x, of_weight.sum(0).astype(weight.dtype)

    return backward


def rule(backward: Callable[..., Any]) -> Callable[[Array, Array], Array]:
    @jax.custom_vjp
    def rms_norm(x: Array, weight: Array) -> Array:
        return forward(x, weight)[0]

    rms_norm.defvjp(forward, backward)
    return rms_norm


rms_norm = rule(backward_summing_in(jnp.float32))
summed_in_bfloat16 = rule(backward_summing_in(jnp.bfloat16))


def plain(x: Array, weight: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + EPSILON) * weight[None]
