"""phi at many points: along a direction, and with single coordinates moved, one by one or many
together.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from xgradcheck import _handed
from xgradcheck._layout import BATCHED, Direction, Positions, Vector
from xgradcheck._tree import flatten

from .moves import displaced
from .torch_batches import FEWEST, Rows, points_at_once, together
from .torch_call import Call
from .torch_leaves import is_floating
from .torch_moves import LEAST, MERGED, Stretch, Stretches, is_plain_double, writer
from .torch_tensors import array_of, inner, paired


class Points:
    """How phi of one call is evaluated."""

    def __init__(self, call: Call) -> None:
        self._call = call
        pairs = zip(call.slots, call.layout, strict=True)
        self._spans = [(slot, leaf.start, leaf.start + leaf.size) for slot, leaf in pairs]
        self._scanned: Vector | None = None
        self._has_minus_zero = False
        self._batch: int | None = None
        # A gradient for a leaf inside a batch would be one for the leaf outside of it.
        self._is_single = call.differentiates

    def values(self) -> tuple[Vector, list[Any]]:
        """The outputs at the point, and what else the function returns."""
        call = self._call
        mode = call.graphless()
        call.world.reset()
        with mode:
            out = call.run()
        outs = call.outputs.tensors(out)
        floating = np.concatenate([_handed.numbers(array_of(t)) for t in outs])
        others = [node.value for node in flatten(out) if isinstance(node.value, torch.Tensor)]
        return floating, [other.cpu().numpy() for other in others if not is_floating(other)]

    def _evaluator(self, cotangent: Vector) -> Callable[[], float]:
        """phi as a function of the leaves as they stand, with as little Python on the way as can
        be.
        """
        run, outputs = self._call.run, self._call.outputs
        if outputs.are_one_number:
            scale = float(cotangent[0])

            def scalar() -> float:
                return scale * float(run().detach())

            return scalar

        cotangents = outputs.cut(cotangent if cotangent.flags.writeable else cotangent.copy())

        def reduced() -> float:
            return paired(cotangents, outputs.tensors(run()))

        return reduced

    def along(self, direction: Direction, steps: Vector, start: int, cotangent: Vector) -> Vector:
        call = self._call
        values, evaluate = np.empty(len(steps)), self._evaluator(cotangent)
        moved = self._stretches(direction, start)

        def at(step: float) -> float:
            call.world.reset()
            for stretch in moved:
                stretch.move(step)
            return evaluate()

        try:
            todo = list(enumerate(steps.tolist()))
            if todo and call.grad_mode is None:
                first, step = todo.pop(0)
                values[first] = call.tried_without_graph(functools.partial(at, step))
            with call.graphless():
                for number, step in todo:
                    values[number] = at(step)
        finally:
            for stretch in moved:
                stretch.put_back()
        return values

    def _stretches(self, direction: Direction, start: int) -> "list[Stretch] | list[Stretches]":
        """What of the leaves lies under a direction."""
        if not (direction.flags.c_contiguous and direction.flags.writeable):
            direction = direction.copy()
        point = self._call.point
        stop, adds, found = start + direction.size, self._moves_by_sums(), []
        spans = [span for span in self._spans if start <= span[1] and span[2] <= stop]
        is_all = sum(last - first for _, first, last in spans) == direction.size <= MERGED
        if adds and is_all and all(is_plain_double(slot.work) for slot, _, _ in spans):
            works = [slot.work for slot, _, _ in spans]
            return [Stretches(works, point[start:stop], direction)]
        for slot, begin, end in self._spans:
            first, last = max(start, begin), min(stop, end)
            if first < last:
                part = direction[first - start : last - start]
                within, numbers = slice(first - begin, last - begin), point[begin:end]
                found.append(Stretch(slot.work, numbers, within, part, adds))
        return found

    def _moves_by_sums(self) -> bool:
        """Whether a sum leaves what does not move as it is: minus zero plus zero is zero."""
        point = self._call.point
        if self._scanned is not point:
            self._scanned = point
            # Of all bits, taken for whole numbers, those of -0.0 are the least; to find the least
            # takes no memory.
            self._has_minus_zero = bool(point.view(np.int64).min(initial=0) == LEAST)
        return not self._has_minus_zero

    @property
    def batch(self) -> int:
        if self._batch is None:
            self._batch = 1 if self._is_single else self._points_at_once()
        return self._batch

    def one_by_one(self) -> None:
        self._is_single, self._batch = True, 1

    def _points_at_once(self) -> int:
        call = self._call
        largest = max(slot.work.numel() * slot.work.itemsize for slot in call.slots)
        mode = call.graphless()
        call.world.reset()
        try:
            with mode:
                return points_at_once(call.run, largest)
        except Exception:  # what cannot even be counted
            return 1
        finally:
            call.world.reset()

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        call = self._call
        values, owners = np.empty(len(index)), call.layout.owners(index)
        for owner in np.unique(owners):
            own = np.flatnonzero(owners == owner)
            places, moved = index[own] - call.layout.leaves[owner].start, call.point[index[own]]
            moved = moved + steps[own]
            found = self._together(owner, places, moved, cotangent)
            values[own] = self._singly(owner, places, moved, cotangent) if found is None else found
        return values

    def _singly(self, owner: int, places: Positions, moved: Vector, cotangent: Vector) -> Vector:
        call = self._call
        values, evaluate = np.empty(len(places)), self._evaluator(cotangent)
        base = call.point[call.layout.leaves[owner].start + places]
        work = call.slots[owner].work
        put, memory = writer(work), work.data_ptr()
        steps = zip(places.tolist(), moved.tolist(), base.tolist(), strict=True)
        with call.graphless():
            for number, (place, there, here) in enumerate(steps):
                call.world.reset()
                try:
                    put(place, there)
                    values[number] = evaluate()
                finally:
                    # A function may put other memory under its tensors, as cuDNN's networks do.
                    if work.data_ptr() != memory:
                        put, memory = writer(work), work.data_ptr()
                    put(place, here)
        return values

    def _together(
        self, owner: int, places: Positions, moved: Vector, cotangent: Vector
    ) -> Vector | None:
        """Many points of one leaf in batches; None where single ones are as good, or have to be."""
        if len(places) < FEWEST or not self._has_batches(owner):
            return None
        call, count = self._call, min(self.batch, len(places) + 1)
        base = call.point[call.layout.leaves[owner].start + places]

        def run() -> Vector:
            rows, values = Rows(call.slots[owner].work, count), np.empty(len(places))
            phi = self._phi_of_rows(rows, owner, cotangent)
            call.world.reset()
            here = self._evaluator(cotangent)()
            for first in range(0, len(places), count - 1):
                part = slice(first, first + count - 1)
                rows.put(places[part], moved[part])
                found = phi()
                # The first row is the point itself: what rounding in batches does to it, it does
                # to all.
                values[part] = here + (found[1 : 1 + len(values[part])] - found[0])
                rows.put(places[part], base[part])
            return values

        return self._tried(run)

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        call = self._call
        owner = int(call.layout.owners(np.array([start]))[0])
        if not self._has_batches(owner):
            return None
        leaf = call.layout.leaves[owner]

        def run() -> Vector:
            rows = Rows(call.slots[owner].work, len(steps))
            for row, step in enumerate(steps):
                moved = displaced(call.point[leaf.part], direction, step).reshape(leaf.grid)
                whole = moved[0] + 1j * moved[1] if leaf.is_complex else moved
                rows.put_whole(row, torch.from_numpy(whole))
            return self._phi_of_rows(rows, owner, cotangent)()

        return self._tried(run)

    def _has_batches(self, owner: int) -> bool:
        return self._call.layout.leaves[owner].size >= BATCHED and self.batch > 1

    def _tried(self, run: Callable[[], Vector]) -> Vector | None:
        """What batches give; None, and single points from now on, where there is no rule for them,
        or something looks at the values.
        """
        mode = self._call.graphless()
        try:
            with mode:
                return run()
        except Exception:
            self.one_by_one()
            self._call.world.watch()
            return None

    def _phi_of_rows(self, rows: Rows, owner: int, cotangent: Vector) -> Callable[[], Vector]:
        """phi for the rows as they stand, in the place of a leaf."""
        call = self._call
        parts, work = call.outputs.cotangents(cotangent), call.slots[owner].work

        def of_one(other: Callable[[Any], Any]) -> Any:
            return inner(parts, [other(out) for out in call.outputs.tensors(call.run())])

        def of_all() -> Vector:
            call.world.reset()
            return together(rows, work, call.world.written, of_one)

        return of_all
