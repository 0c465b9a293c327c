"""A batch beside parts of it: what samples give does not depend on how many there are.

So large launches are compared with small ones, where no differences can be made.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Case, Problem, Trial
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Leaf, Positions, Vector
from xgradcheck._memory import SHARE, free, written
from xgradcheck._probes import Usual
from xgradcheck._stages import cotangent_of, run
from xgradcheck._tree import Path, argument_names, flatten

Batch = str | int | Sequence[str | int] | Mapping[str | int, int]
HUGE = 2**31
"""Beyond so many elements numbers of 32 bits do not count any more."""
AROUND = 3
"""So many rows on each side of a place are compared."""
HOLDS = 48
"""Bytes that an element of a large launch takes: its gradient and cotangent too, in float64."""
ALIKE = 8
"""By so many bits less than all of them the same outputs may differ."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The arrays that have a batch axis."""

    case: Case
    adapter: Any
    axes: dict[Path, int]
    count: int

    @property
    def arrays(self) -> dict[Path, Any]:
        """The arrays themselves."""
        trees: dict[Any, Any] = {**dict(enumerate(self.case.args)), **self.case.kwargs}
        nodes = [node for key, tree in trees.items() for node in flatten(tree, (key,))]
        return {node.path: node.value for node in nodes if node.path in self.axes}

    @property
    def widths(self) -> list[int]:
        """How many elements one sample of each has."""
        return [math.prod(array.shape) // self.count for array in self.arrays.values()]

    def problem(self, rows: Positions) -> Problem:
        """The problem of these samples alone."""
        taken = {
            path: array[(slice(None),) * self.axes[path] + (rows,)]
            for path, array in self.arrays.items()
        }
        args, kwargs = self.case.arguments(taken)
        problem: Problem = self.adapter.bind(replace(self.case, args=args, kwargs=kwargs))
        return problem


def rows_of(case: Case, adapter: Any, batch: Batch) -> Rows:
    """The arrays that ``batch`` names, by names or numbers of arguments, and their batch axes."""
    names = argument_names(case.fn, len(case.args))
    asked: Mapping[Any, int]
    if isinstance(batch, Mapping):
        asked = batch
    else:
        asked = dict.fromkeys([batch] if isinstance(batch, str | int) else batch, 0)
    axes, counts = dict[Path, int](), set[int]()
    for name, axis in asked.items():
        key = names.index(name) if name in names else name
        known = key in case.kwargs or (isinstance(key, int) and 0 <= key < len(case.args))
        if not known:
            listed = ", ".join([*names, *case.kwargs])
            raise InvalidCase(f"batch has {name!r}, which is no argument; they are {listed}.")
        tree = case.kwargs[key] if isinstance(key, str) else case.args[key]
        arrays = [node for node in flatten(tree, (key,)) if hasattr(node.value, "shape")]
        for node in arrays:
            if len(node.value.shape) <= axis:
                raise InvalidCase(f"batch names axis {axis} of {name!r}, which has no such axis.")
            axes[node.path] = axis
            counts.add(int(node.value.shape[axis]))
    if len(counts) != 1:
        raise InvalidCase(
            f"the arrays in batch have {', '.join(map(str, sorted(counts))) or 'no'} samples: name "
            f"those that share a batch axis."
        )
    return Rows(case, adapter, axes, counts.pop())


class Dependent(Exception):
    """Samples depend on each other, so that there is nothing to compare."""


def of_slices(rows: Rows, seed: int, huge: int | None, memory: int | None) -> Iterator[Trial]:
    """The experiments: two parts beside the whole, and a few rows beside a large launch."""
    if rows.count < 2:
        raise Dependent("there is one sample alone")
    cut = (rows.count + 1) // 2
    samples = np.arange(rows.count)
    halves = Beside(rows, samples, (samples[:cut], samples[cut:]), seed)
    yield halves.trial(f"the first {cut} and the last {rows.count - cut} samples")
    if huge is None:
        return
    width = max(rows.widths)
    count = -(-huge // width) + AROUND
    needed = HOLDS * count * sum(rows.widths)
    allowed = free() // SHARE if memory is None else memory
    if needed > allowed:
        raise Dependent(f"{count} samples take {written(needed)}, of {written(allowed)} allowed")
    edges = np.array([0, *(edge // width for edge in range(huge, count * width, huge)), count - 1])
    near = edges[:, None] + np.arange(-AROUND, AROUND + 1)
    some = np.unique(near[(near >= 0) & (near < count)])
    launch = Beside(rows, np.arange(count) % rows.count, (some,), seed, halves.is_mean)
    yield launch.trial(f"{len(some)} of {count} samples")


class Beside:
    """A batch of samples beside some of its rows alone; each part is rows of the batch."""

    def __init__(
        self,
        rows: Rows,
        samples: Positions,
        parts: Sequence[Positions],
        seed: int,
        is_mean: bool = False,
    ) -> None:
        self._rows, self._parts = rows, parts
        self._count = len(samples)
        self._whole = rows.problem(samples)
        self._smaller = [rows.problem(samples[part]) for part in parts]
        pairs = zip(self._whole.outputs, self._smaller[0].outputs, strict=True)
        self._axes = [_axis(leaf, small) for leaf, small in pairs]
        self._is_all = sum(map(len, parts)) == self._count
        cotangent = self._of_parts(cotangent_of(self._whole, seed))
        self._values, self._got = _run(self._whole, cotangent)
        runs = zip(self._smaller, parts, strict=True)
        self._found = [_run(small, self._of(part, cotangent)) for small, part in runs]
        self.is_mean = is_mean
        """Whether an output without a batch axis is a mean over the batch, and not a sum."""
        if self._is_all and None in self._axes:
            apart = {mean: self._apart(mean).sum() for mean in (False, True)}
            self.is_mean = bool(apart[True] < apart[False])

    def trial(self, what: str) -> Trial:
        """The gradient of the batch beside those of its parts; raises where the outputs themselves
        are others.
        """
        size = np.abs(self._values).max(initial=0.0)
        if not (self._apart(self.is_mean) <= 2.0 ** (ALIKE - self._whole.bits) * size).all():
            raise Dependent("its samples depend on each other, or on how many there are")
        layout, expected, compared = self._whole.layout, self._got.copy(), []
        for number, leaf in enumerate(layout):
            axis = self._rows.axes.get(leaf.path)
            if axis is None and not self._is_all and None in self._axes:
                continue  # what all the other rows add is not known
            compared.append(number)
            there = expected[leaf.part].reshape(leaf.grid)
            if axis is None or None not in self._axes:
                there[...] = 0
            for part, small, (_, gradient) in zip(
                self._parts, self._smaller, self._found, strict=True
            ):
                own = small.layout.leaves[number]
                block = self._share(part) * gradient[own.part].reshape(own.grid)
                if axis is None:
                    there += block
                else:
                    there[_at(leaf, axis, part)] = block
        usual = Usual.beside(self._whole, expected)
        fault = usual.fault(Trial("beside its parts", self._got, leaves=tuple(compared)))
        return Trial(what, fault=fault)

    def _share(self, part: Positions) -> float:
        return len(part) / self._count if self.is_mean else 1.0

    def _of(self, part: Positions, vector: Vector) -> Vector:
        """What belongs to some rows in a vector over the outputs."""
        blocks = [
            vector[leaf.part].reshape(leaf.grid)[... if axis is None else _at(leaf, axis, part)]
            for leaf, axis in zip(self._whole.outputs, self._axes, strict=True)
        ]
        return np.concatenate([block.ravel() for block in blocks])

    def _of_parts(self, cotangent: Vector) -> Vector:
        """A cotangent that is zero but in the rows of the parts."""
        kept = np.zeros_like(cotangent)
        for leaf, axis in zip(self._whole.outputs, self._axes, strict=True):
            there, own = (v[leaf.part].reshape(leaf.grid) for v in (kept, cotangent))
            for part in self._parts:
                place = ... if axis is None else _at(leaf, axis, part)
                there[place] = own[place]
        return kept

    def _apart(self, is_mean: bool) -> Vector:
        """How far the outputs of the batch are from what those of its parts make."""
        made = self._values.copy()
        for number, (leaf, axis) in enumerate(zip(self._whole.outputs, self._axes, strict=True)):
            there = made[leaf.part].reshape(leaf.grid)
            if axis is None and self._is_all:
                there[...] = 0
            for part, small, (values, _) in zip(
                self._parts, self._smaller, self._found, strict=True
            ):
                own = small.outputs.leaves[number]
                block = values[own.part].reshape(own.grid)
                if axis is not None:
                    there[_at(leaf, axis, part)] = block
                elif self._is_all:
                    there += block * (len(part) / self._count if is_mean else 1.0)
        return np.abs(self._values - made)


def _at(leaf: Leaf, axis: int, rows: Positions) -> tuple[Any, ...]:
    """The index of some rows along an axis of a leaf, whose grid has one axis more where it is
    complex.
    """
    return (slice(None),) * (len(leaf.grid) - len(leaf.shape) + axis) + (rows,)


def _axis(leaf: Leaf, small: Leaf) -> int | None:
    """The batch axis of an output: the one that is shorter where there are fewer samples."""
    if leaf.shape == small.shape:
        return None
    if len(leaf.shape) == len(small.shape):
        others = [n for n, (a, b) in enumerate(zip(leaf.shape, small.shape, strict=True)) if a != b]
        if len(others) == 1:
            return others[0]
    raise Dependent(f"the shape of {leaf.name} does not follow that of the batch")


def _run(problem: Problem, cotangent: Vector) -> tuple[Vector, Vector]:
    values, backward = run(problem, cotangent)
    return values, backward.gradient
