"""The gradient by forward mode, tangent by tangent."""

from typing import Any

import jax
import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import Backward
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Vector

from .jax_call import Call
from .jax_numbers import conj


def pushed(call: Call, cotangent: Vector) -> Backward:
    """The gradient, each of its elements from a tangent of its own."""
    if call.is_handed:
        raise _handed.no_forward_mode()
    call.world.reset()

    def push(tangent: Any) -> Any:
        parts = zip(_handed.cut(tangent, call.layout), call.setting.dtypes, strict=True)
        tangents = [part.astype(dtype) for part, dtype in parts]
        return call.setting.functions.pushed(found, tangents)

    found, compiled = call.arrays(), jax.jit(push)
    gradient = np.empty(call.layout.size)
    for position, tangent in _handed.one_by_one(call.layout.size):
        try:
            outs = compiled(tangent)
        except TypeError as error:
            if "custom_vjp" not in str(error):
                raise
            raise InvalidCase(
                "a custom_vjp function has no rule for forward mode: leave modes out."
            ) from None
        moved = np.concatenate([_handed.numbers(conj(out)) for out in outs])
        gradient[position] = moved @ cotangent
    return Backward(None, gradient, frozenset())
