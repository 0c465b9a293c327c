"""What a rule of JAX has to do beside giving the right numbers once: the same under every
transformation, whatever is asked for, and in the form of its arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import Trial
from xgradcheck._layout import Vector

from .jax_backward import gradient
from .jax_call import Call
from .jax_numbers import flat
from .jax_rules import LEAK, rules

Pulled = tuple[Sequence[Any], Sequence[Any]]
"""Outputs and gradients."""
WIDEST = 4
"""Of so many leaves every subset is tried."""


def probes(call: Call, cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that this call allows, by the name of the probe."""
    if call.is_handed:
        return {}
    probing = Probing(call, cotangent)
    return {
        "cotangents": probing.cotangents,
        "form": probing.forms,
        "subsets": probing.subsets,
        "transforms": probing.transforms,
    }


class Probing:
    """The backward pass under the transformations of JAX."""

    def __init__(self, call: Call, cotangent: Vector) -> None:
        self._call, self._cotangent = call, cotangent
        self._parts = [jnp.asarray(part) for part in call.cotangents(cotangent)]

    @property
    def _leaves(self) -> list[Any]:
        """The leaves, new ones each time: a function that is given them for good deletes them."""
        return [jnp.array(leaf) for leaf in self._call.parts()]

    # What every experiment is made of.

    def _outs(self, leaves: Any) -> Any:
        return self._call.setting.traced.outputs_at(leaves)

    def _pull(self, leaves: Any, parts: Any) -> Pulled:
        outs, pull = jax.vjp(self._outs, leaves)
        return outs, pull(parts)[0]

    def _phi(self, outs: Sequence[Any]) -> tuple[float, float]:
        """phi, as these outputs give it, and how large it is, or what cancels in it."""
        pairs = [(np.asarray(p), np.asarray(o)) for p, o in zip(self._parts, outs, strict=True)]
        terms = [(p.conj() * o.astype(p.dtype)).real.ravel() for p, o in pairs]
        return float(sum(t.sum() for t in terms)), float(sum(np.abs(t).sum() for t in terms))

    def _tried(self, what: str, run: Callable[[], Any], **options: Any) -> Trial:
        """The gradient that a run gives; what cannot be transformed is told so by JAX."""
        self._call.world.reset()
        try:
            return Trial(what, flat(run(), self._call.layout), **options)
        except Exception as error:
            # A leak gives nobody a wrong gradient, and is a mistake of the rule all the same.
            return Trial(what, error=error, refuses=not isinstance(error, LEAK))
        finally:
            self._call.world.watch()

    # The experiments.

    def cotangents(self) -> Iterator[Trial]:
        """An output that nobody differentiates counts as one whose cotangent is zero."""
        if len(self._parts) < 2:
            return
        for number, leaf in enumerate(self._call.known.outputs):
            alone = np.zeros_like(self._cotangent)
            alone[leaf.part] = self._cotangent[leaf.part]
            expected = gradient(self._call, alone).gradient

            def run(number: int = number) -> Any:
                _, pull = jax.vjp(lambda leaves: self._outs(leaves)[number], self._leaves)
                return pull(self._parts[number])[0]

            yield self._tried(f"{leaf.name} alone, the others unused", run, expected=expected)

    def forms(self) -> Iterator[Trial]:
        """What rules return. A jitted function that was called before does not run them again."""
        told: dict[str, str] = {}
        for scope in (jax.disable_jit, nullcontext):
            self._call.world.reset()
            try:
                with scope(), rules() as told:
                    self._pull(self._leaves, self._parts)
                break
            except Exception:
                continue
            finally:
                self._call.world.watch()
        for name, fault in told.items():
            yield Trial(f"the backward rule of {name}", fault=fault)

    def subsets(self) -> Iterator[Trial]:
        """A gradient does not depend on which others are wanted."""
        count = len(self._leaves)
        sizes = range(1, count) if count <= WIDEST else range(1, 2)
        for chosen in chain.from_iterable(combinations(range(count), size) for size in sizes):
            names = ", ".join(self._call.layout.names[number] for number in chosen)
            run = partial(self._of_subset, chosen)
            yield self._tried(f"the gradient of {names} alone", run, leaves=chosen)

    def _of_subset(self, chosen: Sequence[int]) -> Sequence[Any]:
        def outs(some: Sequence[Any]) -> Any:
            given = dict(zip(chosen, some, strict=True))
            return self._outs([given.get(n, leaf) for n, leaf in enumerate(self._leaves)])

        found = jax.vjp(outs, [self._leaves[n] for n in chosen])[1](self._parts)[0]
        given = dict(zip(chosen, found, strict=True))
        return [given.get(n, jnp.zeros_like(leaf)) for n, leaf in enumerate(self._leaves)]

    def transforms(self) -> Iterator[Trial]:
        """Each of them, as far as the function can be transformed."""
        ways: dict[str, Callable[[], Pulled]] = {
            "without jit": self._eager,
            "under jit": lambda: jax.jit(self._pull)(self._leaves, self._parts),
            "under vmap": lambda: self._batched(jax.vmap(self._pull)),
            "under jit of vmap": lambda: self._batched(jax.jit(jax.vmap(self._pull))),
            "differentiated through vmap": lambda: self._batched(self._quick(self._pull_of_batch)),
            "with cotangents under vmap": lambda: self._of(self._batched_cotangents),
            "under checkpoint": lambda: self._of(self._checkpointed),
            "inside of scan, which it closes over": lambda: self._of(self._scanned),
            "linearized and transposed": lambda: self._of(self._linearized),
        }
        if others := self._other_arrays():
            ways["under jit, with all arrays traced"] = lambda: self._traced(others)
        if not all(np.ndim(leaf) for leaf in self._leaves):
            ways["with plain numbers for arrays without axes"] = self._of_numbers
        if (mesh := self._mesh()) is not None:
            ways[f"sharded over {mesh.size} devices"] = lambda: self._sharded(mesh)
        usual, _ = self._phi(self._outs(self._leaves))
        for what, way in ways.items():
            yield self._compared(what, way, usual)

    def _compared(self, what: str, way: Callable[[], Pulled], usual: float) -> Trial:
        found = list[Sequence[Any]]()

        def run() -> Sequence[Any]:
            outs, grads = way()
            found.append(outs)
            return grads

        trial = self._tried(what, run)
        if trial.error is not None:
            return trial
        value, size = self._phi(found[0])
        return replace(trial, phi=(value, usual, size))

    def _of(self, pull: Callable[[Any, Any], Pulled]) -> Pulled:
        return self._quick(pull)(self._leaves, self._parts)

    def _quick(self, pull: Callable[[Any, Any], Pulled]) -> Callable[[Any, Any], Pulled]:
        """The same under jit, if that can be: one program is compiled sooner than each operation
        by itself.
        """

        def run(leaves: Any, parts: Any) -> Pulled:
            try:
                pulled: Pulled = jax.jit(pull)(leaves, parts)
            except Exception:
                self._call.world.reset()
                return pull(leaves, parts)
            return pulled

        return run

    def _eager(self) -> Pulled:
        with jax.disable_jit():
            return self._pull(self._leaves, self._parts)

    def _traced(self, others: dict[int, Any]) -> Pulled:
        """Whole numbers as well, which are constants elsewhere."""
        nodes = self._call.setting.traced.arguments.nodes

        def pull(arrays: dict[int, Any], leaves: Any, parts: Any) -> Pulled:
            found = [*nodes]
            try:
                for number, array in arrays.items():
                    nodes[number] = replace(nodes[number], value=array)
                return self._pull(leaves, parts)
            finally:
                nodes[:] = found

        pulled: Pulled = jax.jit(pull)(others, self._leaves, self._parts)
        return pulled

    def _batched(self, transformed: Callable[[Any, Any], Pulled]) -> Pulled:
        leaves = [jnp.stack([leaf * _handed.ELSEWHERE, leaf]) for leaf in self._leaves]
        parts = [jnp.stack([2 * part, part]) for part in self._parts]
        outs, grads = transformed(leaves, parts)
        return [out[1] for out in outs], [grad[1] for grad in grads]

    def _pull_of_batch(self, leaves: Any, parts: Any) -> Pulled:
        outs, pull = jax.vjp(jax.vmap(self._outs), leaves)
        return outs, pull(parts)[0]

    def _batched_cotangents(self, leaves: Any, parts: Any) -> Pulled:
        outs, pull = jax.vjp(self._outs, leaves)
        grads = jax.vmap(pull)([jnp.stack([2 * part, part]) for part in parts])[0]
        return outs, [grad[1] for grad in grads]

    def _checkpointed(self, leaves: Any, parts: Any) -> Pulled:
        outs, pull = jax.vjp(jax.checkpoint(self._outs), leaves)
        return outs, pull(parts)[0]

    def _scanned(self, leaves: Any, parts: Any) -> Pulled:
        def scanned(leaves: Any) -> Any:
            def body(carry: Any, _: Any) -> Any:
                return carry, self._outs(leaves)

            return [out[0] for out in jax.lax.scan(body, 0.0, None, length=1)[1]]

        outs, pull = jax.vjp(scanned, leaves)
        return outs, pull(parts)[0]

    def _linearized(self, leaves: Any, parts: Any) -> Pulled:
        outs, push = jax.linearize(self._outs, leaves)
        return outs, jax.linear_transpose(push, leaves)(parts)[0]

    def _of_numbers(self) -> Pulled:
        """Plain numbers have a weak type."""
        leaves = [leaf if np.ndim(leaf) else leaf.item() for leaf in self._leaves]
        return self._pull(leaves, self._parts)

    def _other_arrays(self) -> dict[int, Any]:
        """Arrays among the arguments that are no leaves, by their numbers."""
        others = self._call.setting.traced.arguments.others.items()
        return {n: o.value for n, o in others if isinstance(o.value, jax.Array | np.ndarray)}

    def _mesh(self) -> Any:
        """All devices in a row, where there are several and they can share some leaf."""
        devices = jax.devices()
        fits = [np.ndim(leaf) and leaf.shape[0] % len(devices) == 0 for leaf in self._leaves]
        return jax.sharding.Mesh(devices, "rows") if len(devices) > 1 and any(fits) else None

    def _sharded(self, mesh: Any) -> Pulled:
        def put(leaf: Any) -> Any:
            fits = np.ndim(leaf) and leaf.shape[0] % mesh.size == 0
            spec: Any = jax.sharding.PartitionSpec
            sharding = jax.sharding.NamedSharding(mesh, spec("rows") if fits else spec())
            return jax.device_put(leaf, sharding)

        pulled: Pulled = jax.jit(self._pull)([put(leaf) for leaf in self._leaves], self._parts)
        return pulled
