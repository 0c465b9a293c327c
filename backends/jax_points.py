"""phi at many points: along a direction, and with single coordinates moved."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgradcheck import _handed
from xgradcheck._layout import ComplexVector, Positions, Vector

from .jax_call import Call
from .jax_numbers import double, paired
from .moves import displaced

LARGE = 2048
"""The smallest leaf that gets a program of its own, in which the others are not batched: computing
them with it costs more than compiling then.
"""
# Larger leaves are copied one by one as they move: a program copies its arguments all at once.
HEAVY = 1 << 20
Everything = tuple[list[Any], list[Any]]
"""The floating outputs, and the others."""


class Points:
    """How phi of one call is evaluated."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_single = False

    def _everything_of(self, leaves: Any, cotangent: Vector) -> Everything:
        """All outputs, by the first way that works at all: one program serves all points of a
        check, as the values of two may differ by rounding.
        """
        call = self._call
        call.world.reset()
        programs, ways = call.programs, {"whole": self._by_whole, "outputs": self._by_outputs}
        if programs.way is not None:
            return ways.get(programs.way, self._as_python_runs_it)(leaves, cotangent)
        # Some programs take no array of NumPy's for a constant.
        nodes = call.setting.traced.arguments.nodes
        has_constants = any(isinstance(node.value, np.ndarray) for node in nodes)
        traced = programs.traced
        for traced.gives_jax_arrays in (False, True) if has_constants else (False,):
            for name, way in ways.items():
                if name == "whole" and not call.is_shared:
                    continue
                try:
                    found = way(leaves, cotangent)
                except Exception:  # no backward pass, or no tracing: the next will do, or say so
                    call.world.reset()
                    continue
                programs.way = name
                return found
        programs.way, traced.gives_jax_arrays = "Python", False
        return self._as_python_runs_it(leaves, cotangent)

    def _by_whole(self, leaves: Any, cotangent: Vector) -> Everything:
        call = self._call
        everything: Everything = call.programs.whole(leaves, call.cotangents(cotangent))[0]
        return everything

    def _by_outputs(self, leaves: Any, cotangent: Vector) -> Everything:
        everything: Everything = self._call.programs.outputs(leaves)
        return everything

    def _as_python_runs_it(self, leaves: Any, cotangent: Vector) -> Everything:
        return self._call.setting.functions.everything([jnp.asarray(leaf) for leaf in leaves])

    def _value_at(self, leaves: Any, cotangent: Vector) -> float:
        return paired(self._everything_of(leaves, cotangent)[0], cotangent)

    def values(self) -> tuple[Vector, list[Any]]:
        """The outputs at the point, and what else the function returns."""
        call = self._call
        zero = np.zeros(call.known.outputs.size)
        floating, others = self._everything_of(call.parts(), zero)
        whole = np.concatenate([_handed.numbers(double(part)) for part in floating])
        return whole, [np.asarray(other) for other in others]

    def along(self, direction: Vector, steps: Vector, start: int, cotangent: Vector) -> Vector:
        still = self._call.parts()
        return np.array(
            [
                self._value_at(self._moved(still, direction, step, start), cotangent)
                for step in steps
            ]
        )

    def _moved(self, still: list[Any], direction: Vector, step: float, start: int) -> list[Any]:
        """The leaves moved, one after another: no more than one of them lies in memory twice."""
        call = self._call
        moved, stop = list(still), start + direction.size
        for number, leaf in enumerate(call.layout):
            first, last = max(leaf.start, start), min(leaf.start + leaf.size, stop)
            if first >= last:
                continue
            own = call.point[leaf.part]
            if last - first == leaf.size:
                own = displaced(own, direction[first - start : last - start], step)
            else:
                own, inside = own.copy(), slice(first - leaf.start, last - leaf.start)
                own[inside] = displaced(own[inside], direction[first - start : last - start], step)
            grid = own.reshape(leaf.grid)
            values = grid[0] + 1j * grid[1] if leaf.is_complex else grid
            values = values.astype(jnp.dtype(call.setting.dtypes[number]), copy=False)
            moved[number] = jax.device_put(values) if leaf.size > HEAVY else values
        return moved

    @property
    def batch(self) -> int:
        return max(map(self._points_of, range(len(self._call.layout))))

    def _points_of(self, owner: int) -> int:
        """How many points of a leaf its own program takes at once; 1 where it has none."""
        call, leaf = self._call, self._call.layout.leaves[owner]
        if self._is_single or not call.setting.is_wide or leaf.size < LARGE or leaf.is_complex:
            return 1
        call.programs.many()
        if call.programs.chunk == 1:
            return 1
        return call.programs.points_at_once(leaf.size)

    def one_by_one(self) -> None:
        self._is_single = True

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        values, owners = np.empty(len(index)), self._call.layout.owners(index)
        for owner in np.unique(owners):
            own = np.flatnonzero(owners == owner)
            one = self._of_leaf if len(own) >= self._points_of(owner) > 1 else self._of_all
            values[own] = one(index[own], steps[own], cotangent)
        return values

    def _of_all(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        """Points that move at one coordinate each, by the program for all points."""
        call = self._call
        call.programs.many()
        if (chunk := call.programs.chunk) == 1:
            still, one = call.parts(), np.ones(1)
            pairs = zip(index, steps, strict=True)
            return np.array(
                [self._value_at(self._moved(still, one, h, int(i)), cotangent) for i, h in pairs]
            )
        values, here = np.empty(len(index)), self._value_at(call.parts(), cotangent)
        for first in range(0, len(index), chunk - 1):
            part = slice(first, first + chunk - 1)
            points = np.repeat(call.point[None], 1 + len(index[part]), axis=0)
            points[1 + np.arange(len(points) - 1), index[part]] += steps[part]
            found = self._many(points, cotangent)
            # The first row is the point itself: how this program rounds is taken out.
            values[part] = here + (found[1:] - found[0])
        return values

    def _many(self, points: Any, cotangent: Vector) -> Any:
        call = self._call
        program: Callable[[Any, Any], Any] = call.programs.many()
        chunk, point = call.programs.chunk, call.point
        missing = -len(points) % chunk
        if missing:
            points = np.concatenate([points, np.broadcast_to(point, (missing, point.size))])
        chunks = points.reshape(-1, chunk, point.size)
        values = np.concatenate([np.asarray(program(part, cotangent)) for part in chunks])
        return values[: len(values) - missing]

    def _of_leaf(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        """Points of one leaf, by a program that batches nothing else."""
        call = self._call
        owner = int(call.layout.owners(index[:1])[0])
        leaf, count = call.layout.leaves[owner], self._points_of(owner)
        try:
            program, values = call.programs.of_leaf(owner), np.empty(len(index))
            here = self._value_at(call.parts(), cotangent)
            for first in range(0, len(index), count - 1):
                part = slice(first, first + count - 1)
                places, moves = np.zeros(count, np.intp), np.zeros(count)
                places[1 : 1 + len(index[part])] = index[part] - leaf.start
                moves[1 : 1 + len(index[part])] = steps[part]
                still = np.zeros(count), np.zeros(leaf.size)
                found = np.asarray(program(call.point, places, moves, *still, cotangent))
                # The first row is the point itself: how this program rounds is taken out.
                values[part] = here + (found[1 : 1 + len(index[part])] - found[0])
        except Exception:  # the program for all points will do, or tell why not
            self.one_by_one()
            return self._of_all(index, steps, cotangent)
        return values

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        call = self._call
        owner = int(call.layout.owners(np.array([start]))[0])
        count = self._points_of(owner)
        if count < len(steps):
            return None
        places, moves, wide = np.zeros(count, np.intp), np.zeros(count), np.zeros(count)
        wide[: len(steps)] = steps
        try:
            program = call.programs.of_leaf(owner)
            found = np.asarray(program(call.point, places, moves, wide, direction, cotangent))
        except Exception:  # the program for all points will do, or tell why not
            self.one_by_one()
            return None
        return found[: len(steps)]

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        points = np.repeat(self._call.point[None].astype(complex), len(index), axis=0)
        points[np.arange(len(index)), index] += 1j * steps
        with warnings.catch_warnings():
            # What casts to real numbers on its way is found out by its value.
            warnings.simplefilter("ignore")
            values: Any = self._many(points, cotangent)
        return values if np.iscomplexobj(values) else np.full(len(index), complex(np.nan))
