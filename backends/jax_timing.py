"""A function of JAX arrays run over and over, with other numbers in them, and timed."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import COTANGENT, Backward, Taken
from xgradcheck._layout import Vector

from .jax_call import Call
from .jax_numbers import conj, double

_ready: Any = jax.block_until_ready


class JaxTimed:
    """One call of a function; its forward pass, and its backward pass with what that has kept,
    compiled apart where they can be.
    """

    def __init__(self, problem: Any, call: Call) -> None:
        self.problem, self._call = problem, call
        self._first: list[Any] = []
        self._leaves: list[Any] = []
        self._parts: list[Any] = []
        self._before: list[Any] = []
        self._outs: list[Any] = []
        self._grads: list[Any] = []
        outputs = call.setting.traced.outputs_at
        self._outputs_at: Any = outputs
        self._vjp_at: Any = lambda leaves: jax.vjp(outputs, leaves)
        self._pull: Any = lambda pull, parts: pull(parts)[0]
        if call.known.is_traced:
            self._outputs_at, self._vjp_at = jax.jit(self._outputs_at), jax.jit(self._vjp_at)
            self._pull = jax.jit(self._pull)

    @property
    def device(self) -> str:
        return str(jax.devices()[0].device_kind)

    def start(self, cotangent: Vector) -> None:
        parts = map(jnp.asarray, self._call.cotangents(cotangent))
        self._first = [*self._call.arrays(), *parts]

    def stir(self, seed: int, share: float) -> None:
        keys = jax.random.split(jax.random.key(seed), len(self._first))
        stirred = [
            (first * (1 + share * jax.random.uniform(key, first.shape, minval=-1.0))).astype(
                first.dtype
            )
            for key, first in zip(keys, self._first, strict=True)
        ]
        count = len(self._first) - len(self._call.known.outputs)
        self._leaves, self._parts = stirred[:count], stirred[count:]
        self._before = [np.array(array) for array in stirred]

    def run(self) -> tuple[float, float]:
        # The value alone, then the gradient from what its own forward pass keeps.
        started = time.perf_counter()
        _ready(self._outputs_at(self._leaves))
        forward = time.perf_counter()
        outs, pull = _ready(self._vjp_at(self._leaves))
        ready = time.perf_counter()
        grads = _ready(self._pull(pull, self._parts))
        ended = time.perf_counter()
        self._outs, self._grads = outs, grads
        return forward - started, ended - ready

    def taken(self) -> Taken:
        arguments = self._call.setting.traced.arguments
        values = [node.value for node in arguments.nodes]
        for number, leaf in zip(arguments.numbers, self._leaves, strict=True):
            values[number] = leaf
        args, kwargs = arguments.tree(values)
        gradient = np.concatenate([_handed.numbers(conj(grad)) for grad in self._grads])
        return Taken(
            args,
            kwargs,
            np.concatenate([_handed.numbers(double(part)) for part in self._parts]),
            np.concatenate([_handed.numbers(double(out)) for out in self._outs]),
            Backward(None, gradient, frozenset()),
        )

    @property
    def written(self) -> list[str]:
        names = [*self._call.layout.names, *[COTANGENT] * len(self._parts)]
        pairs = zip((*self._leaves, *self._parts), self._before, strict=True)
        same = [np.array_equal(np.asarray(now), was, equal_nan=True) for now, was in pairs]
        return [name for name, is_same in zip(names, same, strict=True) if not is_same]

    def peak(self) -> int:
        """Bytes of all that the backward pass with its forward computes, as the compiler plans
        it.
        """
        pulled = jax.jit(self._call.setting.functions.pulled)
        plan: Any = pulled.lower(self._leaves, self._parts).compile().memory_analysis()
        return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)
