"""The backward pass under test: that of JAX, or a gradient that the user gives."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util

from xgradcheck import _handed
from xgradcheck._adapters import Backward
from xgradcheck._layout import Vector

from .jax_call import Call
from .jax_numbers import flat, is_output, paired
from .jax_programs import lowest_bits
from .jax_rules import remedies, rules


def gradient(call: Call, cotangent: Vector) -> Backward:
    if call.given is not None:
        return call.given
    call.world.reset()
    return _from_user(call, cotangent) if call.is_handed else _vjp(call, cotangent)


def bits_of_backward(call: Call, cotangent: Vector) -> int:
    """The shortest significand of what the backward pass computes, which may ask for one by its
    name where the function itself does not; 0 where that is not known.
    """
    if not call.known.is_traced or call.is_handed:
        return 0
    given = call.parts(), call.cotangents(cotangent)
    compiled: Any = call.programs.whole if call.is_shared else call.programs.backward
    try:
        # What is traced here is not traced again where it runs.
        program = compiled.trace(*given).jaxpr
    except Exception:  # a loop that has forward mode only, or a rule that is wrong
        return 0
    return lowest_bits(program.jaxpr)


def _vjp(call: Call, cotangent: Vector) -> Backward:
    parts, cotangents = call.parts(), call.cotangents(cotangent)
    try:
        if call.is_shared:
            outs, grads = call.programs.whole(parts, cotangents)[1]
        else:
            outs, grads = call.programs.backward(parts, cotangents)
    except Exception:
        # Not traceable, or wrong: running it tells, with the user's own exception.
        call.world.reset()
        outs, grads = _as_python_pulls(call, cotangents)
    value = paired(outs, cotangent)
    return Backward(value, flat(grads, call.layout), call.known.unread)


def _as_python_pulls(call: Call, cotangents: Any) -> tuple[list[Any], list[Any]]:
    """The outputs and the gradients; what a rule raises is told with what it takes to mend."""
    with rules() as told:
        try:
            given = list(map(jnp.asarray, cotangents))
            return call.setting.functions.pulled(call.arrays(), given)
        except Exception as error:
            for text in remedies(error, told):
                error.add_note(f"xgradcheck: {text}")
            raise


def _from_user(call: Call, cotangent: Vector) -> Backward:
    arguments = call.setting.traced.arguments
    values = [node.value for node in arguments.nodes]
    if call.is_moved:
        moved = _handed.cut(call.point, call.layout)
        for number, dtype, part in zip(arguments.numbers, call.setting.dtypes, moved, strict=True):
            is_jax = isinstance(values[number], jax.Array)
            values[number] = (
                jnp.asarray(part, dtype) if is_jax else part.astype(values[number].dtype)
            )
    args, kwargs = arguments.tree(values)
    if not call.unit_cotangent:
        out = call.case.fn(*args, **kwargs)
        parts = map(jnp.asarray, call.cotangents(cotangent))
        shaped = tree_util.tree_map(lambda leaf: next(parts) if is_output(leaf) else leaf, out)
        args = (shaped, *args)
    return call.read(call.case.grads(*args, **kwargs))
