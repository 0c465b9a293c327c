"""Calls in float64, whatever they were written for: traced anew, or as they were traced."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgradcheck import _handed
from xgradcheck._layout import DOUBLE, Layout
from xgradcheck._tree import Node

from .jax_backward import bits_of_backward
from .jax_call import Call
from .jax_compiled import Setting
from .jax_draws import drawn_low, x64
from .jax_leaves import is_floating, is_whole, is_x64
from .jax_numbers import double, wide
from .jax_programs import lowest_bits
from .jax_raising import evaluate
from .jax_traced import Functions


@contextmanager
def raised(call: Call) -> Iterator[None]:
    """The function traced anew, for arguments of float64."""
    with call.kept():
        # In the world of the user.
        low, traced = not is_x64(), call.setting.traced
        arguments = traced.arguments
        # Whole numbers stay as wide as the function found them.
        nodes = [
            Node(n.path, n.suffix, jnp.asarray(n.value)) if is_whole(n.value) else n
            for n in arguments.nodes
        ]
        with x64(), drawn_low() if low else nullcontext():
            leaves = _handed.cut(call.point, call.layout)
            chosen = dict(zip(arguments.numbers, leaves, strict=True))
            nodes = [
                Node(n.path, n.suffix, chosen[number] if number in chosen else double(n.value))
                if is_floating(n.value)
                else n
                for number, n in enumerate(nodes)
            ]
            traced = traced.with_nodes(nodes)
            call.setting = Setting(traced, traced.functions, _wide(call), True, low)
            with warnings.catch_warnings():
                # Where a dtype is asked for by name, JAX warns of what does not fit in it.
                warnings.simplefilter("ignore")
                call.programs = call.learn()
                zero = np.zeros(call.known.outputs.size)
                bits = bits_of_backward(call, zero) or DOUBLE
                call.known = replace(call.known, backward_bits=bits)
            yield


@contextmanager
def raised_as_traced(call: Call) -> Iterator[None]:
    """The operations that the function was traced to, in float64."""
    outputs, kept = call.known.outputs, call.setting.functions
    found, count = call.arrays(), len(outputs)
    cotangents = call.cotangents(np.zeros(outputs.size))
    everything = jax.make_jaxpr(kept.everything)(found)
    try:
        backward = jax.make_jaxpr(kept.pulled)(found, cotangents)
    except Exception:  # a loop that has forward mode only: nobody has asked for a gradient
        backward = None

    def run(leaves: Any) -> tuple[list[Any], list[Any]]:
        values = evaluate(everything, *leaves)
        return values[:count], values[count:]

    def pull(leaves: Any, cotangents: Any) -> tuple[list[Any], list[Any]]:
        values = evaluate(backward, *leaves, *cotangents)
        return values[:count], values[count:]

    def push(leaves: Any, tangents: Any) -> list[Any]:
        with x64(False):
            forward = jax.make_jaxpr(kept.pushed)(found, found)
        return evaluate(forward, *leaves, *tangents)

    with call.kept(), x64():
        functions = Functions(run, pull, push)
        call.setting = replace(call.setting, functions=functions, dtypes=_wide(call), is_wide=True)
        widened = Layout(tuple(replace(leaf, dtype=wide(leaf)) for leaf in outputs))
        bits = lowest_bits(jax.make_jaxpr(run)(call.arrays()).jaxpr)
        call.known = replace(call.known, outputs=widened, bits=bits)
        call.programs = call.planned()
        yield


def _wide(call: Call) -> list[str]:
    return [wide(leaf) for leaf in call.layout]
