"""Random directions over many leaves at once, balanced so that a weak leaf beside a strong one is
seen, and drawn leaf by leaf from its name, so that another leaf changes nothing in this one's.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from xgradcheck._differences import norm, rms
from xgradcheck._judge import ZERO
from xgradcheck._layout import DOUBLE, Direction, Layout, Leaf, Vector

Places = slice | npt.NDArray[np.intp]

NOTHING = 2.0**-37
"""Beside phi, and the largest influence: below this share differences cannot tell a gradient from
zero.
"""
BALANCED = 10
"""Leaves whose influence differs by more than so many powers of two are certified apart."""


@dataclass(slots=True)
class Band:
    """Leaves that one direction moves together."""

    layout: Layout
    units: dict[int, float]
    """Leaf numbers, and what 1 means in a direction: powers of two."""
    size: float
    """The least norm of a leaf's gradient, in its unit."""
    is_zero: bool = False
    """Whether these are the leaves that have no gradient to speak of."""
    seed: int = 0
    without: tuple[Places, ...] = ()
    """What does not move: the positions of the flat vector."""
    first: int = 0
    """What number the first of its directions has."""
    _drawn: tuple[int, Direction] | None = field(default=None, repr=False)

    @property
    def leaves(self) -> list[Leaf]:
        """In their order."""
        return [self.layout.leaves[number] for number in self.units]

    @property
    def start(self) -> int:
        """Where directions begin."""
        return self.leaves[0].start

    def direction(self, number: int) -> Direction:
        """The part of a direction from the first of the leaves to the last one."""
        if self._drawn is None or self._drawn[0] != number:
            last, start = self.leaves[-1], self.start
            whole = np.zeros(last.start + last.size - start, np.float32)
            for leaf, unit in zip(self.leaves, self.units.values(), strict=True):
                part = slice(leaf.start - start, leaf.start - start + leaf.size)
                whole[part] = drawn(leaf, unit, self.seed, self.first + number)
            for places in self.without:
                whole[_moved(places, start, whole.size)] = 0.0
            self._drawn = number, whole
        return self._drawn[1]

    def product(self, gradient: Vector, number: int) -> float:
        """A gradient times a direction."""
        direction, start = self.direction(number), self.start
        parts = (slice(leaf.start, leaf.start + leaf.size) for leaf in self.leaves)
        return math.fsum(
            float(np.dot(gradient[part], direction[part.start - start : part.stop - start]))
            for part in parts
        )


def _moved(places: Places, start: int, size: int) -> Places:
    if isinstance(places, slice):
        # Slices step forwards; what lies before the first of the leaves is cut off.
        first = places.start - start
        if first < 0:
            first %= places.step or 1
        return slice(first, max(places.stop - start, 0), places.step)
    own = places - start
    return own[(own >= 0) & (own < size)]


def drawn(leaf: Leaf, unit: float, seed: int, number: int) -> Direction:
    """The part of one direction in a leaf: odd multiples of 2^-16, times a power of two, exact in
    half the memory.
    """
    bits = np.random.SFC64([seed, zlib.crc32(leaf.name.encode()), number])
    raw = bits.random_raw((leaf.size + 3) // 4).view(np.int16)[: leaf.size]
    direction = raw.astype(np.float32)
    # Odd numbers: no coordinate ever stands still.
    direction *= np.float32(2.0**-15)
    direction += np.float32(2.0**-16)
    if unit != 1:
        direction *= np.float32(unit)
    return direction


def unit_of(values: Vector) -> float:
    """A power of two near the size of a leaf; 1 for zeros."""
    size = rms(values)
    return 2.0 ** min(max(round(math.log2(size)), -120), 120) if size > 0 else 1.0


def influence(layout: Layout, point: Vector, gradient: Vector) -> float:
    """The largest that any leaf has by a gradient: its norm, in the unit of the leaf."""
    sizes = (unit_of(point[leaf.part]) * norm(gradient[leaf.part]) for leaf in layout)
    return max((size for size in sizes if math.isfinite(size)), default=0.0)


def bands(
    layout: Layout,
    point: Vector,
    gradient: Vector,
    value: float,
    seed: int,
    among: Iterable[int],
    without: Sequence[Places] = (),
    first: int = 0,
) -> list[Band]:
    """The leaves, in bands of similar influence; those without a gradient last, beside the largest
    influence that any leaf has or, where none has any, beside the ``value`` of phi.
    """
    units, influence = {}, {}
    for number, leaf in enumerate(layout):
        units[number] = unit_of(point[leaf.part])
        influence[number] = units[number] * norm(gradient[leaf.part])
    largest = max(influence.values(), default=0.0)
    chosen = [number for number in among if layout.leaves[number].size]
    nothing = min(ZERO[DOUBLE] * largest, NOTHING * max(largest, abs(value)))
    zeros = [number for number in chosen if influence[number] <= nothing]
    found, rest = [], sorted(set(chosen) - set(zeros), key=lambda number: influence[number])
    while rest:
        weakest = influence[rest[0]]
        near = [number for number in rest if influence[number] <= weakest * 2.0**BALANCED]
        rest = rest[len(near) :]
        own = {
            number: units[number] * 2.0 ** -round(math.log2(influence[number] / weakest))
            for number in sorted(near)
        }
        size = min(own[number] / units[number] * influence[number] for number in near)
        found.append(Band(layout, own, size, False, seed, tuple(without), first))
    if zeros:
        own = {number: units[number] for number in zeros}
        found.append(
            Band(layout, own, largest or abs(value) or 1.0, True, seed, tuple(without), first)
        )
    return found
