"""Random directions over many leaves at once, balanced so that a weak leaf beside a strong one is
seen, and drawn leaf by leaf from its name, so that another leaf changes nothing in this one's.
"""

import functools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

from xgradcheck._differences import dot, further, norm, rms
from xgradcheck._judge import ZERO
from xgradcheck._layout import DOUBLE, Direction, Layout, Leaf, Vector

Places = slice | npt.NDArray[np.intp]
Unit = float | Vector

NOTHING = 2.0**-37
"""Beside phi, and the largest influence: below this share differences cannot tell a gradient from
zero.
"""
APART, SAMPLED = 16.0, 4096
"""How much smaller most elements of a leaf are than its rms where they are of several kinds; and of
how many that is told.
"""
WEAK = -14
"""From which influence on, beside the largest and as a power of two, leaves are moved further than
their size: a bias of 1e-6, of which rounding would leave nothing.
"""
BALANCED = 10
"""Leaves whose influence differs by more than so many powers of two are certified apart."""


@dataclass(slots=True)
class Band:
    """Leaves that one direction moves together."""

    layout: Layout
    units: dict[int, Unit]
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
    sizes: dict[int, float] = field(default_factory=dict)
    """The norm of each leaf's gradient, in its unit."""
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
            is_wide = any(map(_is_wide, self.units.values()))
            dtype = np.float64 if is_wide else np.float32
            whole: Direction = np.zeros(last.start + last.size - start, dtype)
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
            dot(gradient[part], direction[part.start - start : part.stop - start]) for part in parts
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


class _Mixed(ISeedSequence):
    """What a generator starts from: seeds that are mixed once, which takes longer than to draw a
    few numbers. Leaves of one name come again and again.
    """

    def __init__(self, *seeds: int) -> None:
        self._seeds = np.random.SeedSequence(seeds)
        self._found: dict[tuple[int, npt.DTypeLike], npt.NDArray[Any]] = {}

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[Any]:
        """So many words."""
        asked = n_words, dtype
        if asked not in self._found:
            self._found[asked] = self._seeds.generate_state(n_words, dtype)  # type: ignore[arg-type]
        return self._found[asked]


_mixed = functools.lru_cache(1 << 10)(_Mixed)


def uniform(leaf: Leaf, *seeds: int) -> npt.NDArray[np.float32]:
    """Random numbers on [-1, 1], drawn from the name of a leaf: odd multiples of 2^-16."""
    mixed = _mixed(seeds[0], zlib.crc32(leaf.name.encode()), *seeds[1:])
    bits = np.random.SFC64(mixed)  # type: ignore[arg-type]
    raw = bits.random_raw((leaf.size + 3) // 4).view(np.int16)[: leaf.size]
    numbers = raw.astype(np.float32)
    # Odd numbers: no coordinate ever stands still.
    numbers *= np.float32(2.0**-15)
    numbers += np.float32(2.0**-16)
    return numbers


def drawn(leaf: Leaf, unit: Unit, seed: int, number: int) -> Direction:
    """The part of one direction in a leaf: in powers of two, exact in half the memory where the
    range of float32 suffices.
    """
    direction: Direction = uniform(leaf, seed, number)
    if _is_wide(unit):
        return direction * unit
    direction *= np.asarray(unit, np.float32)
    return direction


def _is_wide(unit: Unit) -> bool:
    if isinstance(unit, float):
        return not 2.0**-100 <= unit <= 2.0**100
    return bool(np.max(unit) > 2.0**100 or np.min(unit) < 2.0**-100)


def power_near(size: float) -> float:
    """The power of two near a size; 1 for none."""
    return 2.0 ** round(math.log2(size)) if size > 0 else 1.0


def unit_of(values: Vector) -> Unit:
    """A power of two near the size of a leaf, 1 for zeros; one for each element where they are of
    several kinds, of which the largest would hide the others.
    """
    size = rms(values)
    if size == 0 or not math.isfinite(size):
        return 1.0
    sample = np.abs(values[:: max(1, values.size // SAMPLED)])
    # As many as are small, told without a sort.
    small = int(np.count_nonzero(sample * APART < size))
    zeros = small and sample.size - int(np.count_nonzero(sample))
    if small - zeros > (sample.size - zeros) / 2:
        own = np.abs(values)
        own[own == 0] = float(np.median(sample[sample > 0]))
        return np.asarray(2.0 ** np.round(np.log2(own)))
    return power_near(size)


def influence_of(gradient: Vector, unit: Unit) -> float:
    """How much a leaf can do to phi, by a gradient."""
    return norm(gradient * unit) if isinstance(unit, np.ndarray) else unit * norm(gradient)


def influence(layout: Layout, point: Vector, gradient: Vector) -> float:
    """The largest that any leaf has by a gradient."""
    parts = ((gradient[leaf.part], point[leaf.part]) for leaf in layout)
    sizes = (influence_of(given, unit_of(values)) for given, values in parts)
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
    influence that any leaf has.
    """
    units, influence = dict[int, Unit](), dict[int, float]()
    for number, leaf in enumerate(layout):
        units[number] = unit_of(point[leaf.part])
        influence[number] = influence_of(gradient[leaf.part], units[number])
    largest = max((size for size in influence.values() if math.isfinite(size)), default=0.0)
    enough = largest * 2.0**WEAK
    weak = [number for number, size in influence.items() if 0 < size < enough]
    furthest = max(float(np.max(unit)) for unit in units.values()) if weak else 0.0
    for number in weak:
        # What does next to nothing for being small.
        step = float(np.max(units[number]))
        times = 2.0 ** math.floor(math.log2(further(influence[number], enough, step, furthest)))
        units[number], influence[number] = units[number] * times, influence[number] * times
    chosen = [number for number in among if layout.leaves[number].size]
    nothing = min(ZERO[DOUBLE] * largest, NOTHING * max(largest, abs(value)))
    zeros = [number for number in chosen if influence[number] <= nothing]
    found, rest = [], sorted(set(chosen) - set(zeros), key=lambda number: influence[number])
    while rest:
        weakest = influence[rest[0]]
        near = [number for number in rest if influence[number] <= weakest * 2.0**BALANCED]
        rest = rest[len(near) :]
        powers = {n: 2.0 ** -round(math.log2(influence[n] / weakest)) for n in sorted(near)}
        own = {number: units[number] * power for number, power in powers.items()}
        sizes = {number: influence[number] * power for number, power in powers.items()}
        least = min(sizes.values())
        found.append(Band(layout, own, least, False, seed, tuple(without), first, sizes))
    if zeros:
        own = {number: units[number] for number in zeros}
        # Beside nothing at all, only a phi that does not move by a bit is one without slope.
        beside = largest or 2.0**-55 * (abs(value) or 1.0)
        found.append(Band(layout, own, beside, True, seed, tuple(without), first))
    return found
