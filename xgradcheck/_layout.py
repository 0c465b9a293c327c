"""The table of leaves: names and shapes to slices of the flat vector, positions back to indices."""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from xgradcheck._errors import InvalidCase

Vector = npt.NDArray[np.float64]
ComplexVector = npt.NDArray[np.complex128]
Direction = npt.NDArray[np.floating[Any]]
"""In float64, or in float32 where that holds it exactly."""
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

DOUBLE = 53
BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
"""Significant bits of the formats below float64."""


class Operands(IntEnum):
    """Significant bits of formats that no dtype has: products in float32 round to them what they
    multiply.
    """

    TF32 = 11


COMPLEX = {"complex64": 24, "complex128": DOUBLE}


def to_bits(values: Vector, bits: int | Positions) -> Vector:
    """Values rounded to significands of so many bits."""
    significands, exponents = np.frexp(values)
    return np.asarray(np.ldexp(np.round(np.ldexp(significands, bits)), exponents - bits))


def bits_of(dtype: str) -> int:
    """The significant bits of a format, by its name."""
    return BITS.get(dtype) or COMPLEX.get(dtype, DOUBLE)


BATCHED = 8
"""The size of the smallest leaf whose points may be evaluated together."""


@dataclass(frozen=True)
class Leaf:
    """One named array and its place in the flat vector, where a complex one lies twice: first all
    real parts, then the imaginary ones.

    ``names`` holds every name of a tied leaf; ``name`` joins them.
    """

    name: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str
    start: int
    names: tuple[str, ...]

    @property
    def is_complex(self) -> bool:
        """Whether each element is two numbers."""
        return self.dtype in COMPLEX

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of the leaf's numbers in the flat vector."""
        return (2, *self.shape) if self.is_complex else self.shape

    @functools.cached_property
    def size(self) -> int:
        """How many numbers it is made of."""
        return math.prod(self.grid)

    @functools.cached_property
    def part(self) -> slice:
        """Where the leaf lies in the flat vector."""
        return slice(self.start, self.start + self.size)

    def index(self, position: int) -> tuple[int, ...]:
        """The index, inside the leaf, of a position of the flat vector."""
        index = tuple(int(i) for i in np.unravel_index(position - self.start, self.grid))
        return index[1:] if self.is_complex else index

    def component(self, position: int) -> str:
        """Which part of a complex element a position is: "real" or "imag"."""
        if not self.is_complex:
            return ""
        return "real" if 2 * (position - self.start) < self.size else "imag"

    def turned(self, values: Vector) -> Vector:
        """The numbers of a leaf of square matrices as they are in the transposes of these; in the
        conjugate transposes of complex ones.
        """
        matrices = values.reshape(self.grid).swapaxes(-1, -2)
        return np.stack([matrices[0], -matrices[1]]) if self.is_complex else matrices

    def element(self, index: tuple[int | str, ...]) -> str:
        """``W1[2, 0]``, as a reader would type it; the bare name for a 0-d leaf."""
        return f"{self.name}[{', '.join(map(str, index))}]" if index else self.name

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Layout:
    """The leaves in the order in which the flat vector holds them."""

    leaves: tuple[Leaf, ...]

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    @functools.cached_property
    def size(self) -> int:
        return sum(leaf.size for leaf in self.leaves)

    @property
    def names(self) -> list[str]:
        return [leaf.name for leaf in self.leaves]

    @functools.cached_property
    def bits(self) -> int:
        """The shortest significand of all leaves."""
        return min((bits_of(leaf.dtype) for leaf in self.leaves), default=DOUBLE)

    def significands(self) -> Positions:
        """For each position the significant bits of its leaf's dtype."""
        return np.repeat(
            [bits_of(leaf.dtype) for leaf in self.leaves], [leaf.size for leaf in self.leaves]
        )

    def owners(self, positions: Positions) -> Positions:
        """For each position of the flat vector the number of the leaf that holds it."""
        # "right" with the starts: an empty leaf shares its start with the next one, which wins.
        starts = np.array([leaf.start for leaf in self.leaves], dtype=np.intp)
        return np.searchsorted(starts, positions, side="right") - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A leaf before it has a place: what an adapter knows of it."""

    names: tuple[str, ...]
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str


def lay_out(entries: Iterable[Entry]) -> Layout:
    """Place the leaves one behind the other, in the order given."""
    leaves: list[Leaf] = []
    start = 0
    for entry in entries:
        name = " = ".join(entry.names)
        leaf = Leaf(name, entry.path, entry.shape, entry.dtype, start, entry.names)
        leaves.append(leaf)
        start += leaf.size
    return Layout(tuple(leaves))


def refuse_unless_known(name: str, dtype: str, convert: str) -> None:
    """Raise for a leaf or output of a dtype that differences cannot judge."""
    known = ("float64", *BITS, *COMPLEX)
    if dtype not in known:
        raise InvalidCase(f"{name} is {dtype}: {convert}; the dtypes are {', '.join(known)}.")


def refuse_unless_finite(name: str, values: npt.NDArray[Any]) -> None:
    """Raise for NaN or infinity in an argument: no difference can be taken from it."""
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        place = f"{name}[{', '.join(map(str, index))}]" if index else name
        raise InvalidCase(
            f"{place} is {values[index]}: give finite arguments ({int(bad.sum())} bad), or choose "
            f"others with wrt=."
        )
