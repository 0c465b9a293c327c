"""A problem of which only some coordinates are looked at: everything that can be asked of a problem
can be asked of these.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._adapters import Backward, Problem
from xgradcheck._layout import ComplexVector, Direction, Layout, Leaf, Positions, Vector


@dataclass(frozen=True)
class Part(Leaf):
    """Some coordinates of a leaf."""

    places: Positions
    """Where they lie in the flat vector of the whole problem."""
    whole: Leaf

    @property
    def grid(self) -> tuple[int, ...]:
        return (self.places.size,)

    def index(self, position: int) -> tuple[int, ...]:
        return self.whole.index(int(self.places[position - self.start]))

    def component(self, position: int) -> str:
        return self.whole.component(int(self.places[position - self.start]))


class Restricted:
    """A problem restricted to some coordinates, leaf by leaf; the rest stands still."""

    def __init__(self, problem: Problem, chosen: Mapping[int, Positions | None]) -> None:
        self.whole = problem
        leaves: list[Leaf] = []
        places, start = [], 0
        for number in sorted(chosen):
            whole, own = problem.layout.leaves[number], chosen[number]
            positions = np.arange(whole.start, whole.start + whole.size) if own is None else own
            shared = (whole.name, whole.path, whole.shape, whole.dtype, start, whole.names)
            leaves.append(Leaf(*shared) if own is None else Part(*shared, positions, whole))
            places.append(positions)
            start += positions.size
        self.numbers = sorted(chosen)
        """Which leaves of the whole problem these are."""
        self.layout = Layout(tuple(leaves))
        self.places: Positions = np.concatenate(places).astype(np.intp)
        self.point: Vector = problem.point[self.places]
        self.frozen: Positions = np.flatnonzero(np.isin(self.places, problem.frozen))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def along(self, direction: Direction, steps: Vector, start: int, cotangent: Vector) -> Vector:
        places = self.places[start : start + direction.size]
        first, last = int(places.min(initial=0)), int(places.max(initial=0))
        whole = np.zeros(last - first + 1)
        whole[places - first] = direction
        return self.whole.along(whole, steps, first, cotangent)

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        return self.whole.each(self.places[index], steps, cotangent)

    def gradient(self, cotangent: Vector) -> Backward:
        """The backward pass under test, of which these coordinates are kept."""
        return self.kept(self.whole.gradient(cotangent))

    def kept(self, found: Backward) -> Backward:
        """What a backward pass of the whole problem gives for these coordinates."""
        severed = frozenset(place for place, n in enumerate(self.numbers) if n in found.severed)
        return found._replace(gradient=found.gradient[self.places], severed=severed, parts=())

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        return self.whole.imaginary(self.places[index], steps, cotangent)

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        places = self.places[start : start + direction.size]
        owner = int(self.whole.layout.owners(places[:1])[0])
        leaf = self.whole.layout.leaves[owner]
        whole = np.zeros(leaf.size)
        whole[places - leaf.start] = direction
        return self.whole.batched(whole, steps, leaf.start, cotangent)

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        whole = self.whole.point.copy()
        whole[self.places] = point
        with self.all_at(whole):
            yield

    @contextmanager
    def all_at(self, whole: Vector) -> Iterator[None]:
        """Move what is not looked at, too."""
        found = self.point
        with self.whole.at(whole):
            self.point = whole[self.places]
            try:
                yield
            finally:
                self.point = found
