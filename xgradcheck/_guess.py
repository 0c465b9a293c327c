"""Where mistakes lie of which only some are known: places that hold all of those, and nothing that
is known to be right. Each is a guess, to be looked at.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xgradcheck._layout import Mask, Positions

FEWEST = 8
"""Fewer that are wrong, or right, tell no place."""

REPEATED = 1.25
"""How often each row was met, on average, where whole rows may be wrong."""
TRIES = 3
"""How many elements of a row are looked at: one may be right by chance, as zeros are."""

IsWrong = Callable[[int], bool]
"""Looks at one element, by its position."""


class Guess(NamedTuple):
    """A place, as a mask of its leaf."""

    inside: Mask
    may_be_more: bool
    """Whether others of its kind may be wrong as well: some rows stand for all that are."""


def guesses(
    wrong: Positions, right: Positions, shape: tuple[int, ...], is_wrong: IsWrong
) -> Iterator[Guess]:
    """Places in a leaf of that shape, by positions in it that are wrong and others that are right;
    further ones are looked at where they decide.

    >>> wrong, right = np.arange(1, 80, 8), np.arange(0, 80, 2)
    >>> guess = next(guesses(wrong, right, (8, 10), lambda place: place % 2 == 1))
    >>> np.flatnonzero(guess.inside)[:4]
    array([1, 3, 5, 7])
    """
    if min(len(wrong), len(right)) < FEWEST:
        return
    rng = np.random.default_rng(0x60E55)
    places = (np.unravel_index(own, shape) for own in (wrong, right))
    ways = (_labels(index, shape) for index in (*places, np.indices(shape, sparse=True)))
    for bad, good, every in zip(*ways, strict=True):
        of_each = np.broadcast_to(every, shape).ravel()

        def is_label_wrong(label: int, of_each: Positions = of_each) -> bool:
            some = rng.choice(np.flatnonzero(of_each == label), TRIES)
            return any(is_wrong(place) for place in some.tolist())

        for way in (_stride, _range, _some):
            if (on := way(bad, good, int(of_each.max()) + 1, is_label_wrong)) is not None:
                yield Guess(on[of_each], way is _some)
    if len(shape) > 1 and (box := _box(wrong, right, shape, is_wrong, rng)) is not None:
        yield Guess(box.ravel(), False)


def _labels(index: Sequence[Positions], shape: tuple[int, ...]) -> Iterator[Positions]:
    """Numbers of elements by which a place may go, from 0: along each axis, of matrices their
    diagonals and how far they are from the rim, and in memory.
    """
    yield from (own for own, length in zip(index, shape, strict=True) if length > 1)
    if len(shape) > 1:
        yield index[-1] - index[-2] + shape[-2] - 1
        ends = [np.fmin(index[axis], shape[axis] - 1 - index[axis]) for axis in (-2, -1)]
        yield np.fmin(*ends)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        yield np.asarray(sum(own * by for own, by in zip(index, strides, strict=True)))


def _stride(wrong: Positions, right: Positions, count: int, is_wrong: IsWrong) -> Mask | None:
    """Every second, third, fourth label."""
    stride, first = int(np.gcd.reduce(np.diff(np.unique(wrong)))), int(wrong[0])
    if stride < 2 or 2 * stride > count or (right % stride == first % stride).any():
        return None
    return np.asarray(np.arange(count) % stride == first % stride)


def _range(wrong: Positions, right: Positions, count: int, is_wrong: IsWrong) -> Mask | None:
    """Neighbouring labels."""
    if (found := span(wrong, right, count, is_wrong)) is None:
        return None
    every = np.arange(count)
    on = (every >= found[0]) & (every < found[1])
    return None if on.all() else on


def span(
    wrong: Positions, right: Positions, count: int, is_wrong: IsWrong
) -> tuple[int, int] | None:
    """The first of so many labels that is wrong and the first behind them that is right, where all
    between are wrong; None where one is known that is not.
    """
    first, last = int(wrong.min()), int(wrong.max()) + 1
    if ((first <= right) & (right < last)).any():
        return None
    # Up to where it is right on both sides.
    low = int(max(right[right < first], default=-1)) + 1
    high = int(min(right[right >= last], default=count))
    first = low + bisect_left(range(low, first), True, key=is_wrong)
    last += bisect_left(range(last, high), True, key=lambda label: not is_wrong(label))
    return first, last


def _box(
    wrong: Positions,
    right: Positions,
    shape: tuple[int, ...],
    is_wrong: IsWrong,
    rng: np.random.Generator,
) -> Mask | None:
    """The block that holds all that is wrong."""
    bad, good = (np.unravel_index(own, shape) for own in (wrong, right))
    box = [slice(int(own.min()), int(own.max()) + 1) for own in bad]

    def holds_right() -> bool:
        sides = zip(good, box, strict=True)
        return bool(np.all([(s.start <= own) & (own < s.stop) for own, s in sides], 0).any())

    def is_slab_wrong(axis: int, place: int) -> bool:
        some = np.array([rng.integers(s.start, s.stop, TRIES) for s in box])
        some[axis] = place
        return any(map(is_wrong, np.ravel_multi_index(tuple(some), shape).tolist()))

    if holds_right():
        return None
    for axis, length in enumerate(shape):
        low, high = box[axis].start, box[axis].stop
        while low > 0 and is_slab_wrong(axis, low - 1):
            low -= 1
        while high < length and is_slab_wrong(axis, high):
            high += 1
        box[axis] = slice(low, high)
    inside = np.zeros(shape, bool)
    inside[tuple(box)] = True
    return None if inside.all() or holds_right() else inside


def _some(wrong: Positions, right: Positions, count: int, is_wrong: IsWrong) -> Mask | None:
    """Some labels."""
    on = np.unique(wrong)
    if np.isin(on, right).any() or REPEATED * on.size > len(wrong):
        return None
    return np.isin(np.arange(count), on)
