"""The places of some elements of an array, in words: rows, columns, the tail, every fourth, what
lies above the diagonal or at the rim.
"""

from dataclasses import dataclass

import numpy as np

from xgradcheck._layout import Mask, Positions

FULL, FEW = 0.75, 32
"""What share of a place has to be wrong: some elements are right by chance, as zeros are. All of it
in arrays of few elements, where much looks like a place by chance.
"""
WHOLE = 0.95
"""What share is as good as all of it."""
STRIDES = (2, 3, 4, 8, 16, 32, 64, 128)
LARGEST = 0.5
"""What share of an array a block is at most: nearly all of it is no pattern."""
LISTED = 4
"""How many rows are named one by one."""
SMALLEST = 3
"""How many rows and columns matrices have at least whose diagonals or rim are a pattern."""
FEWEST = 8
"""Elements that an array has at least where a part of it is a pattern."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the elements of a mask lie: its ``kind`` ("tail", "rows", ...), and its ``words``."""

    kind: str
    words: str
    inside: Mask
    """The whole place, of the shape of the array."""


def place_of(mask: Mask, shape: tuple[int, ...]) -> Place | None:
    """The place that a mask fills; None where it is scattered, or everywhere.

    >>> place_of(np.arange(12) >= 9, (12,)).words
    'the last 3 of 12 elements'
    >>> place_of(np.arange(12) % 4 == 1, (3, 4)).words
    'column 1'
    """
    count, size = int(mask.sum()), mask.size
    if not 1 < count < size or size < FEWEST:
        return None
    ways = (
        _slices(mask.reshape(shape)) if len(long_axes(shape)) > 1 else None,
        _end(mask, shape),
        _stride(mask, shape),
        _box(mask.reshape(shape)),
        _diagonals(mask.reshape(shape)),
        _rim(mask.reshape(shape)),
    )
    found = [place for place in ways if place is not None]
    # The first that is full; a smaller place where that has gaps.
    return max(found, key=lambda place: min(count / place.inside.sum(), WHOLE), default=None)


def _fills(mask: Mask, inside: Mask) -> bool:
    """Whether a mask is nearly all of a place, and nothing else."""
    return not mask[~inside].any() and mask.sum() >= _full(mask) * inside.sum()


def _full(mask: Mask) -> float:
    return FULL if mask.size >= FEW else 1.0


def _slices(mask: Mask) -> Place | None:
    """Whole rows, columns, slices along one axis."""
    for axis, length in enumerate(mask.shape):
        if length < 2 or mask.size // length < 3:
            continue
        others = tuple(other for other in range(mask.ndim) if other != axis)
        share = mask.mean(axis=others)
        on = share >= _full(mask)
        if not on.any() or on.all() or share[~on].any():
            continue
        where = np.flatnonzero(on)
        inside = np.broadcast_to(np.expand_dims(on, others), mask.shape)
        return Place(
            f"{slice_name(axis, mask.shape)[0]}s", _words(where, axis, mask.shape), inside.ravel()
        )
    return None


def long_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes that have more than one place: a matrix of one row or column is a vector."""
    return [axis for axis, length in enumerate(shape) if length > 1]


def slice_name(axis: int, shape: tuple[int, ...]) -> tuple[str, str]:
    """What a slice along an axis is called: "row" or "column", else "slice" and " along axis 2"."""
    long = long_axes(shape)
    if len(long) == 2 and axis in long:
        return ("row", "column")[long.index(axis)], ""
    return "slice", f" along axis {axis}"


def _words(where: np.ndarray, axis: int, shape: tuple[int, ...]) -> str:
    length, count = shape[axis], len(where)
    name, along = slice_name(axis, shape)
    names = f"{name}s"
    if count == 1:
        if along:
            index = ", ".join(str(where[0]) if a == axis else ":" for a in range(len(shape)))
            return f"[{index}]"
        return f"{name} {where[0]}"
    if count > 2 and where[-1] == length - 1 and where[0] == length - count:
        return f"the last {count} of {length} {names}{along}"
    if count > 2 and where[0] == 0 and where[-1] == count - 1:
        return f"the first {count} of {length} {names}{along}"
    steps = np.diff(where)
    if count > LISTED - 1 and (steps == steps[0]).all() and steps[0] > 1:
        last = f" to {where[-1]}" if where[-1] + steps[0] < length else ""
        return f"every {_nth(int(steps[0]))} {name} from {where[0]}{last}{along}"
    if count > LISTED and (steps == 1).all():
        return f"{names} {where[0]} to {where[-1]}{along}"
    if count <= LISTED:
        return f"{names} {', '.join(map(str, where[:-1]))} and {where[-1]}{along}"
    return f"{count} of {length} {names}{along}"


def _end(mask: Mask, shape: tuple[int, ...]) -> Place | None:
    """The tail or the head, in the order of memory."""
    where, size = np.flatnonzero(mask), mask.size
    first, last = int(where[0]), int(where[-1])
    inside = np.zeros(size, bool)
    elements = "elements" if len(long_axes(shape)) == 1 else "elements in memory"
    if len(where) > 1 and last == size - 1 and first >= size // 8:
        inside[first:] = True
        if _fills(mask, inside):
            return Place("tail", f"the last {size - first} of {size} {elements}", inside)
    if len(where) > 1 and first == 0 and last < size - size // 8:
        inside[:] = False
        inside[: last + 1] = True
        if _fills(mask, inside):
            return Place("head", f"the first {last + 1} of {size} {elements}", inside)
    return None


def _stride(mask: Mask, shape: tuple[int, ...]) -> Place | None:
    """Every second, third, fourth element."""
    number = np.arange(mask.size)
    elements = "element" if len(long_axes(shape)) == 1 else "element in memory"
    for stride in STRIDES:
        if mask.size < 4 * stride:
            return None
        share = np.bincount(number[mask] % stride, minlength=stride) / np.bincount(number % stride)
        on = share >= _full(mask)
        if on.sum() != 1 or share[~on].any():
            continue
        phase = int(np.flatnonzero(on)[0])
        words = f"every {_nth(stride)} {elements} from {phase}"
        return Place("stride", words, on[number % stride])
    return None


def _box(mask: Mask) -> Place | None:
    """A block."""
    if len(long_axes(mask.shape)) < 2:
        return _run(mask.ravel())
    where = np.nonzero(mask)
    sides = [(int(axis.min()), int(axis.max()) + 1) for axis in where]
    inside = np.zeros(mask.shape, bool)
    inside[tuple(slice(*side) for side in sides)] = True
    if not 4 <= inside.sum() <= LARGEST * mask.size or not _fills(mask.ravel(), inside.ravel()):
        return None
    whole = zip(sides, mask.shape, strict=True)
    words = ", ".join(":" if side == (0, n) else f"{side[0]}:{side[1]}" for side, n in whole)
    return Place("block", f"[{words}]", inside.ravel())


def _diagonals(mask: Mask) -> Place | None:
    """Neighbouring diagonals of matrices: what lies on the diagonal, above it, below it."""
    if mask.ndim < 2 or min(mask.shape[-2:]) < SMALLEST:
        return None
    rows, columns = np.indices(mask.shape[-2:])
    number = np.asarray(columns - rows)  # 0 on the diagonal, more above it
    lowest, highest = int(number.min()), int(number.max())
    on = _labels(mask, number - lowest)
    if on is None or not (np.diff(np.flatnonzero(on)) == 1).all():
        return None
    low, high = (int(end) + lowest for end in np.flatnonzero(on)[[0, -1]])
    inside = on[_spread(number - lowest, mask.shape)]
    return Place("diagonals", _diagonal_words(low, high, lowest, highest), inside)


def _diagonal_words(low: int, high: int, lowest: int, highest: int) -> str:
    """What diagonals from one to another are called, of those that there are."""
    if low == high:
        return f"diagonal {low:+d}" if low else "the diagonal"
    if high == highest and low in (0, 1):
        return "the part above the diagonal" if low else "the diagonal and the part above it"
    if low == lowest and high in (0, -1):
        return "the part below the diagonal" if high else "the diagonal and the part below it"
    return f"diagonals {low:+d} to {high:+d}"


def _rim(mask: Mask) -> Place | None:
    """The outermost rows and columns of matrices, as those that a convolution pads."""
    if mask.ndim < 2 or min(mask.shape[-2:]) < 2 * SMALLEST:
        return None
    sides = [np.fmin(n, n[::-1]) for n in map(np.arange, mask.shape[-2:])]
    number = np.asarray(np.fmin.outer(*sides))  # 0 at the rim
    on = _labels(mask, number)
    if on is None or not on[: (wide := int(on.sum()))].all():
        return None
    words = f"the rim, {wide} wide" if wide > 1 else "the rim"
    return Place("rim", words, on[_spread(number, mask.shape)])


def _labels(mask: Mask, label: Positions) -> Mask | None:
    """The labels of matrices that a mask fills, and no others; None where there are none such."""
    share = np.bincount(_spread(label, mask.shape), mask.ravel()) / np.bincount(
        _spread(label, mask.shape)
    )
    on = share >= _full(mask)
    return None if not on.any() or on.all() or share[~on].any() else on


def _spread(label: Positions, shape: tuple[int, ...]) -> Positions:
    return np.broadcast_to(label, shape).ravel()


def _run(mask: Mask) -> Place | None:
    """A run of neighbours in the middle of a vector."""
    where = np.flatnonzero(mask)
    first, last = int(where[0]), int(where[-1]) + 1
    inside = np.zeros(mask.size, bool)
    inside[first:last] = True
    if not 4 <= inside.sum() <= LARGEST * mask.size or not _fills(mask, inside):
        return None
    return Place("block", f"[{first}:{last}]", inside)


def _nth(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
