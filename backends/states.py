"""Things that a function may change, how they are read and how they are put back."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class State:
    """One thing that a function may change: how to copy it, how to put it back."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]
    is_random: bool = False
    holder: Any = None
    """The tensor or array whose contents this is, where there is one."""
    is_as: Callable[[Any], bool] | None = None
    """Whether all is as in a reading, where that can be told without taking another one."""
    changed: Callable[[Any], list[str]] | None = None
    """The names of what differs from a reading, where this is more than one thing."""

    def same(self, found: Any) -> bool:
        """Whether all is as it was read."""
        return same(self.read(), found) if self.is_as is None else self.is_as(found)

    def names(self, found: Any) -> list[str]:
        """What differs from a reading, as far as something does."""
        return [self.name] if self.changed is None else self.changed(found)


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of two readings: NaN equals itself, 0.0 differs from -0.0."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and same_bytes(a, b)
    if isinstance(a, Contents):
        return isinstance(b, Contents) and a.same(b)
    if type(a) is tuple and set(map(type, a)) == {int}:  # 625 of them in a random state
        return bool(a == b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


@dataclass(frozen=True, slots=True)
class Contents:
    """The arrays that a dict held: the objects themselves, not their values; and what else it held,
    for keys that hold arrays later.
    """

    items: dict[Any, Any]
    others: dict[Any, Any]

    def same(self, other: "Contents") -> bool:
        """Whether the same keys hold the same objects."""
        if self.items.keys() != other.items.keys():
            return False
        return all(value is other.items[key] for key, value in self.items.items())


def is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def same_bytes(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype == object:
        return all(x is y for x, y in zip(a.flat, b.flat, strict=True))
    if a.nbytes <= SHORT:
        return a.tobytes() == b.tobytes()
    a, b = _words(a), _words(b)
    step = PIECE // a.itemsize
    pieces = (slice(start, start + step) for start in range(0, a.size, step))
    return all((a[piece] == b[piece]).all() for piece in pieces)


SHORT, PIECE = 1 << 14, 1 << 18
"""How many bytes are copied to be compared at once, which is quickest for few; and how many are
compared at a time, so that what comes of it stays where it is quick to get at.
"""


def _words(array: np.ndarray[Any, Any]) -> Any:
    """The bits of an array as whole numbers, as wide as its size allows."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8 if array.nbytes % 8 else np.int64)
