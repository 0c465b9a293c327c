"""Numbers of a point moved, where only what moves may change a bit."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xgradcheck._layout import Vector


def displaced(point: Vector, direction: Any, step: float) -> Vector:
    """``point + step * direction``; what does not move keeps its bits, -0.0 among them."""
    shift: Vector = np.multiply(direction, step, dtype=np.float64)
    moved = point + shift
    # Only a sum that is zero can have lost the sign of one.
    return moved if moved.all() else np.where(shift == 0, point, moved)


def element_writer(array: Any) -> Callable[[int, float], None]:
    """How to set one element by its position in C order, as cheaply as the memory allows."""
    flat: Any = array.flat
    if array.flags.c_contiguous and array.dtype.itemsize > 2:
        # A memoryview takes 50 ns where an array takes a microsecond.
        flat = memoryview(np.asarray(array).reshape(-1))  # type: ignore[arg-type]
    set_element: Callable[[int, float], None] = flat.__setitem__
    return set_element
