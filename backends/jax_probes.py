"""What a rule of JAX has to do beside giving the right numbers once: the same under every
transformation.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from xgradcheck import _handed
from xgradcheck._adapters import Trial
from xgradcheck._layout import Vector


def probes(problem: Any, cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that this problem allows, by the name of the probe."""
    if problem.is_handed:
        return {}
    return {"transforms": Transforms(problem, cotangent).trials}


class Transforms:
    """The backward pass under the transformations of JAX."""

    def __init__(self, problem: Any, cotangent: Vector) -> None:
        self._problem = problem
        self._leaves = [jnp.asarray(leaf) for leaf in problem._parts()]
        self._parts = [jnp.asarray(part) for part in problem._cotangents(cotangent)]

    def trials(self) -> Iterator[Trial]:
        """Each of them, as far as the function can be transformed."""
        ways: dict[str, Callable[[], Any]] = {
            "without jit": self._eager,
            "under jit": lambda: jax.jit(self._pull)(self._leaves, self._parts),
            "under vmap": lambda: self._batched(lambda pull: jax.vmap(pull)),
            "under jit of vmap": lambda: self._batched(lambda pull: jax.jit(jax.vmap(pull))),
            "with cotangents under vmap": self._batched_cotangents,
            "under checkpoint": lambda: self._pull_of(jax.checkpoint(self._outs)),
            "inside of scan": lambda: self._pull_of(self._scanned),
        }
        for what, run in ways.items():
            self._problem._world.reset()
            try:
                got = self._problem.flat(run())
            except Exception as error:  # what cannot be transformed is told so by JAX
                yield Trial(what, error=error, refuses=True)
            else:
                yield Trial(what, got)
            finally:
                self._problem._world.watch()

    def _outs(self, leaves: Any) -> Any:
        return self._problem._outputs_at(leaves)

    def _pull(self, leaves: Any, parts: Any) -> Any:
        return jax.vjp(self._outs, leaves)[1](parts)[0]

    def _pull_of(self, fn: Any) -> Any:
        return jax.vjp(fn, self._leaves)[1](self._parts)[0]

    def _eager(self) -> Any:
        with jax.disable_jit():
            return self._pull(self._leaves, self._parts)

    def _batched(self, transform: Callable[[Any], Any]) -> Any:
        leaves = [jnp.stack([leaf * _handed.ELSEWHERE, leaf]) for leaf in self._leaves]
        parts = [jnp.stack([2 * part, part]) for part in self._parts]
        return [grad[1] for grad in transform(self._pull)(leaves, parts)]

    def _batched_cotangents(self) -> Any:
        pull = jax.vjp(self._outs, self._leaves)[1]
        grads = jax.vmap(pull)([jnp.stack([2 * part, part]) for part in self._parts])[0]
        return [grad[1] for grad in grads]

    def _scanned(self, leaves: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            return carry, self._outs(leaves)

        return [out[0] for out in jax.lax.scan(body, 0.0, None, length=1)[1]]
