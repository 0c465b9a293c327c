"""The compiled programs of one traced function, each made when it is first asked for."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgradcheck import _handed
from xgradcheck._layout import Layout, Vector

from .jax_numbers import conj
from .jax_traced import Functions, Known, Traced
from .world import World

# A small check compiles for longer than it runs: compiling quickly is worth more than running fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
QUICK_BELOW = 1000
QUICK_ALONE_BELOW = 50_000
"""The same for a program that takes its points one by one."""
CHUNK_BYTES, WORK_BYTES = 1 << 24, 1 << 28
"""How much memory one batch of points may take, and all that is computed for it on the way: large
enough to fill the cores, small enough for any machine.
"""
FEWEST, MOST = 8, 64
"""Points in a batch, where they fit."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What runs, and for leaves of which dtypes: those of the user, or wider ones."""

    traced: Traced
    functions: Functions
    dtypes: list[str]
    is_wide: bool
    """Whether it runs where JAX has float64."""
    draws_low: bool = False
    """Whether random numbers are drawn in float32."""


class Programs:
    """All of one function in one setting, for this check and for later ones."""

    def __init__(
        self, setting: Setting, known: Known, layout: Layout, point: Vector, world: World
    ) -> None:
        self.known = known
        self.way: str | None = None
        """By which programs points are evaluated one by one; None as long as that is not known."""
        self.traced = copy.copy(setting.traced)
        is_plain = setting.functions.everything == setting.traced.everything_at
        self._functions = self.traced.functions if is_plain else setting.functions
        self._dtypes, self._is_wide = setting.dtypes, setting.is_wide
        self._layout, self._point, self._world = layout, point, world
        self.chunk = self.points_at_once(layout.size)
        """How many points the program for many takes."""
        self._many: Callable[[Any, Any], Any] | None = None
        self._of_leaves: dict[int, Callable[..., Any]] = {}
        # What is compiled quickly may round otherwise: not what is judged as it runs.
        quick = setting.is_wide and layout.size <= QUICK_ALONE_BELOW
        options = QUICK if quick else None
        self.whole: Callable[..., Any] = jax.jit(self._whole_at, compiler_options=options)
        self.backward: Callable[..., Any] = jax.jit(
            self._functions.pulled, compiler_options=options
        )
        self.outputs: Callable[..., Any] = jax.jit(
            self._functions.everything, compiler_options=options
        )

    def points_at_once(self, size: int) -> int:
        """A function of shapes alone, so that a report can be repeated to the bit."""
        width = 8 * (size + self.known.outputs.size)
        fitting = min(CHUNK_BYTES // width, WORK_BYTES // max(self.known.computed, 1))
        wanted = max(min(2 * size, fitting, MOST), min(fitting, FEWEST), 1)
        return 1 << (int(wanted).bit_length() - 1)

    def many(self) -> Callable[[Any, Any], Any]:
        """The program for many points at once, compiled when it is first asked for."""
        if self._many is None:
            self._world.reset()
            self._many = self._first_that_works()
        return self._many

    def of_leaf(self, owner: int) -> Callable[..., Any]:
        """phi with one leaf moved, at one place and along a direction; many points of it."""
        if owner in self._of_leaves:
            return self._of_leaves[owner]
        leaf = self._layout.leaves[owner]

        def moved(
            point: Any, place: Any, step: Any, wide: Any, direction: Any, cotangent: Any
        ) -> Any:
            own = point[leaf.part].at[place].add(step) + wide * direction
            parts = _handed.cut(point, self._layout)
            parts[owner] = own.reshape(leaf.shape)
            pairs = zip(parts, self._dtypes, strict=True)
            outs = self._functions.everything([part.astype(dtype) for part, dtype in pairs])[0]
            return jnp.real(self._inner(outs, cotangent))

        batch = jax.jit(jax.vmap(moved, in_axes=(None, 0, 0, 0, None, None)))
        self._of_leaves[owner] = batch
        return batch

    def _whole_at(self, leaves: Any, cotangents: Any) -> tuple[Any, Any]:
        """All outputs, and the backward pass with the outputs of its own forward pass: a custom
        rule may give others.
        """
        everything = self._functions.everything(leaves)
        self._world.reset()
        return everything, self._functions.pulled(leaves, cotangents)

    def _outputs_of(self, point: Any) -> list[Any]:
        parts = _handed.cut(point, self._layout)
        if not jnp.iscomplexobj(point):  # no complex step
            pairs = zip(parts, self._dtypes, strict=True)
            parts = [part.astype(dtype) for part, dtype in pairs]
        return self._functions.everything(parts)[0]

    def _phi(self, point: Any, cotangent: Any) -> Any:
        total = self._inner(self._outputs_of(point), cotangent)
        # In a complex step the imaginary part is what is asked for.
        return total if jnp.iscomplexobj(point) else jnp.real(total)

    def _inner(self, outs: Sequence[Any], cotangent: Any) -> Any:
        parts = _handed.cut(cotangent, self.known.outputs)
        return sum(jnp.sum(part * out) for part, out in zip(parts, outs, strict=True))

    def _first_that_works(self) -> Callable[[Any, Any], Any]:
        """Batched if the function has batching rules, else compiled, else as Python runs it.

        One program serves all points of a check: the values of two programs may differ by rounding.
        """
        options = QUICK if self._is_wide and self._layout.size <= QUICK_BELOW else None
        # Below float64 the sum over the outputs is left to NumPy: it would round like them.
        inside = self._is_wide
        compute = self._phi if inside else lambda point, cotangent: self._outputs_of(point)
        one = jax.jit(compute, compiler_options=options)

        def summed(found: Any, cotangent: Any) -> Any:
            if inside:
                return np.asarray(found)
            rows = [
                conj(out).reshape(-1, *leaf.shape)
                for out, leaf in zip(found, self.known.outputs, strict=True)
            ]
            points = zip(*rows, strict=True)
            flat = [np.concatenate([_handed.numbers(part) for part in point]) for point in points]
            return np.array(flat) @ cotangent

        def together(points: Any, cotangent: Any) -> Any:
            return summed(batched(points, cotangent), cotangent)

        def singly(points: Any, cotangent: Any) -> Any:
            found = [np.ravel(summed(one(point, cotangent), cotangent)) for point in points]
            return np.concatenate(found)

        def eagerly(points: Any, cotangent: Any) -> Any:
            values = np.empty(len(points))
            for number, point in enumerate(points):
                self._world.reset()
                found = compute(jnp.asarray(point), jnp.asarray(cotangent))
                values[number] = float(np.ravel(summed(found, cotangent))[0])
            return values

        batched = jax.jit(jax.vmap(compute, in_axes=(0, None)), compiler_options=options)
        points = np.broadcast_to(self._point, (self.chunk, self._point.size))
        for program in (together, singly):
            if program is together and self.known.convolves:
                self.chunk, points = 1, points[:1]
                continue
            try:
                np.asarray(program(points, np.ones(self.known.outputs.size)))
            except Exception:
                # no batching rule, or no tracing at all: the next program will do, or tell why not
                self.chunk = 1
                self._world.reset()
                points = points[:1]
                continue
            return program
        if self.known.is_traced:  # and is no more: running it tells, with the user's own exception
            pairs = zip(_handed.cut(self._point, self._layout), self._dtypes, strict=True)
            parts = [np.asarray(part, jnp.dtype(dtype)) for part, dtype in pairs]
            self._functions.everything([jnp.asarray(part) for part in parts])
        return eagerly
