"""Parts of a leaf, and what was found to be wrong in them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from xgradcheck._directions import Places
from xgradcheck._layout import Leaf, Positions


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a leaf, by its positions in the flat vector: every one or every n-th of a range, or
    those of a box.
    """

    leaf: Leaf
    places: Places
    residual: float
    bar: float
    depth: int = 0
    streak: int = 0
    """How often in a row both halves were wrong."""
    box: tuple[tuple[int, int], ...] | None = None
    """Of a box, where it begins and ends along each axis of the leaf."""

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        if isinstance(self.places, slice):
            return len(range(self.places.start, self.places.stop, self.places.step))
        return self.places.size

    def position(self, place: int) -> int:
        """Where one of its coordinates lies in the flat vector."""
        if isinstance(self.places, slice):
            return int(self.places.start) + place * int(self.places.step)
        return int(self.places[place])

    def cut(self, first: int, last: int) -> Places:
        """The positions of its coordinates from ``first`` up to ``last``."""
        if isinstance(self.places, slice):
            start, step = self.places.start, self.places.step
            return slice(start + first * step, start + last * step, step)
        return self.places[first:last]

    def holds(self, position: int) -> bool:
        """Whether a position is one of its coordinates."""
        if isinstance(self.places, slice):
            return position in range(self.places.start, self.places.stop, self.places.step)
        return bool((self.places == position).any())


class Off(NamedTuple):
    """What is missing from the gradient at one coordinate."""

    by: float
    bar: float
    allowed: float
    is_plain: bool
    """Whether it is so by far, where phi is straight: a kink would be seen."""
    is_kinked: bool = False
    """Whether both sides differ by more than what is missing."""


def clear(lone: dict[int, Off]) -> dict[int, Off]:
    """Those coordinates that lie on no kink, where there are any: at a kink a gradient may be right
    that no difference bears out.
    """
    return {position: off for position, off in lone.items() if not off.is_kinked} or lone


@dataclass(slots=True)
class Found:
    """What is wrong."""

    lone: dict[int, Off] = field(default_factory=dict)
    """Positions of single coordinates."""
    dense: list[Node] = field(default_factory=list)
    """Parts of which every coordinate that was looked at is wrong."""
    probed: dict[int, Off] = field(default_factory=dict)
    """The coordinates that were looked at in them."""
    right: set[int] = field(default_factory=set)
    """Coordinates that were looked at and are right."""
    cut: set[int] = field(default_factory=set)
    """Where leaves start of which parts are left that are wrong."""
    sliced: set[int] = field(default_factory=set)
    """Where leaves start of which whole slices are wrong; whatever else is, is looked for again."""
    drawn: dict[int, float] = field(default_factory=dict)
    """What share of the coordinates of a leaf is wrong, going by those that were drawn by chance,
    by where it starts: too many to be all found.
    """

    @property
    def anything(self) -> bool:
        """Whether there is anything."""
        return bool(self.lone or self.dense)


def counted_from(places: Places, start: int) -> Places:
    """Positions counted from another start."""
    if isinstance(places, slice):
        return slice(places.start - start, places.stop - start, places.step)
    return places - start


def boxed(leaf: Leaf, box: list[tuple[int, int]], residual: float, bar: float) -> Node:
    """The part of a leaf in a box."""
    ranges = np.ix_(*(np.arange(first, last) for first, last in box))
    places = np.ravel_multi_index(np.broadcast_arrays(*ranges), leaf.grid).ravel()
    return Node(leaf, (leaf.start + places).astype(np.intp), residual, bar, box=tuple(box))


def lines(leaf: Leaf, axis: int, low: int, high: int) -> tuple[Places, Positions]:
    """The positions of neighbouring rows or columns of a leaf, in order, and the number that
    each has among them.
    """
    columns = leaf.grid[-1]
    if axis == 0:
        first, last = leaf.start + low * columns, leaf.start + high * columns
        return slice(first, last, 1), np.repeat(np.arange(high - low), columns)
    rows = leaf.size // columns
    number = np.tile(np.arange(high - low), rows)
    if high - low == 1:
        return slice(leaf.start + low, leaf.start + leaf.size, columns), number
    starts = np.repeat(np.arange(rows) * columns, high - low)
    return leaf.start + low + starts + number, number
