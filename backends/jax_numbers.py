"""Arrays of JAX as numbers of the core, in float64 and paired with a flat vector."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xgradcheck import _handed
from xgradcheck._layout import Layout, Leaf, Vector

from .jax_leaves import is_floating

CONVERT = "convert it with .astype(jnp.float32)"


def double(value: Any) -> Any:
    """The numbers of an array of any floating dtype, bfloat16 among them, in float64."""
    array = np.asarray(value)
    wide = np.complex128 if np.iscomplexobj(array) else np.float64
    return array.astype(wide, copy=False)


def conj(value: Any) -> Any:
    """What is paired with a flat vector without conjugation, as JAX has it: of an output u its
    inner product is Re sum(u f), of a gradient g the derivatives are Re g and -Im g.
    """
    found = double(value)
    return np.conj(found) if np.iscomplexobj(found) else found


def paired(outs: Sequence[Any], cotangent: Vector) -> float:
    """phi of these outputs."""
    flat = [_handed.numbers(conj(out)) for out in outs]
    # NumPy adds up in pairs, which loses fewer digits than a scalar product.
    return float(np.sum((flat[0] if len(flat) == 1 else np.concatenate(flat)) * cotangent))


def flat(grads: Sequence[Any], layout: Layout) -> Vector:
    """Gradients of all leaves, as JAX gives them, as one vector."""
    gradient = np.empty(layout.size)
    for leaf, grad in zip(layout, grads, strict=True):
        gradient[leaf.part] = _handed.numbers(conj(grad))
    return gradient


def wide(leaf: Leaf) -> str:
    return "complex128" if leaf.is_complex else "float64"


def is_output(value: Any) -> bool:
    return is_floating(value) or isinstance(value, float | complex)


def kind_of(value: Any) -> str:
    return str(value.dtype) if hasattr(value, "dtype") else type(value).__name__
