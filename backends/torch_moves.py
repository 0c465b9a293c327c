"""Tensors moved along a direction, or in one element, and put back."""

import math
from collections.abc import Callable

import numpy as np
import torch

from xgradcheck._layout import Direction, Vector

from .moves import displaced, element_writer
from .torch_tensors import PIECE, put_numbers

LEAST = np.iinfo(np.int64).min
"""The bits of -0.0, as a whole number."""
WHOLE_BITS = (0.0, 0.5, -0.5)
"""Significands of zero and of the powers of two, by which products are exact."""
MERGED = 1 << 16
"""Up to so many coordinates are moved together, which takes as much memory again."""


class Stretches:
    """Neighbouring leaves in float64, all of each, to be moved along a direction by one sum."""

    def __init__(self, works: list[torch.Tensor], numbers: Vector, direction: Direction) -> None:
        self._works, self._numbers = works, torch.from_numpy(numbers)
        self._way = torch.from_numpy(direction).double()
        self._moved = torch.empty_like(self._numbers)
        self._found, self._parts = self._cut(self._numbers), self._cut(self._moved)

    def _cut(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        parts = torch.split(numbers, [work.numel() for work in self._works])
        return [part.view(work.shape) for part, work in zip(parts, self._works, strict=True)]

    def move(self, step: float) -> None:
        """Have the leaves lie at ``point + step * direction``."""
        # One after the other, so that the product is rounded.
        torch.mul(self._way, step, out=self._moved).add_(self._numbers)
        self._put(self._parts)

    def put_back(self) -> None:
        """Have the leaves lie at the point again."""
        self._put(self._found)

    def _put(self, parts: list[torch.Tensor]) -> None:
        torch._foreach_copy_([work.data for work in self._works], parts)


class Stretch:
    """A part of one leaf, to be moved along a direction and put back."""

    def __init__(
        self, work: torch.Tensor, numbers: Vector, part: slice, direction: Direction, adds: bool
    ) -> None:
        self._work, self._numbers, self._part, self._direction = work, numbers, part, direction
        self._base, self._is_whole = numbers[part], direction.size == numbers.size
        self._is_plain = not work.is_complex() and (self._is_whole or work.is_contiguous())
        self._there = torch.from_numpy(self._base)
        if self._is_plain and self._is_whole:
            self._there = self._there.view(work.shape)
        self._adds = adds and self._is_plain and work.dtype is torch.float64 and work.is_cpu
        self._way = torch.from_numpy(direction).view(self._there.shape) if self._adds else None

    def move(self, step: float) -> None:
        """Have the leaf lie at ``point + step * direction`` here."""
        if self._way is None:
            self._write(lambda piece: displaced(self._base[piece], self._direction[piece], step))
            return
        memory, way = self._memory(), self._way
        if way.dtype is not torch.float64:
            way = memory.copy_(way)
        if math.frexp(step)[0] in WHOLE_BITS:
            torch.add(self._there, way, alpha=step, out=memory)
        else:
            # Added in one go, the product would not be rounded, and the sum another one.
            torch.mul(way, step, out=memory).add_(self._there)

    def put_back(self) -> None:
        """Have the leaf lie at the point again."""
        if self._is_plain:
            self._memory().copy_(self._there)
        else:
            self._write(self._base.__getitem__)

    def _memory(self) -> torch.Tensor:
        """Where the numbers lie now: a function may put other memory under its tensors."""
        memory = self._work.data
        return memory if self._is_whole else memory.view(-1)[self._part]

    def _write(self, numbers: Callable[[slice], Vector]) -> None:
        if self._is_plain and self._work.is_contiguous():
            memory = self._memory().view(-1)
            for start in range(0, len(self._base), PIECE):
                piece = slice(start, start + PIECE)
                memory[piece].copy_(torch.from_numpy(numbers(piece)))
            return
        moved = self._numbers.copy()
        moved[self._part] = numbers(slice(None))
        put_numbers(self._work, moved)


def writer(tensor: torch.Tensor) -> Callable[[int, float], None]:
    """How to set one element of a tensor by its position in C order, as cheaply as its memory
    allows.
    """
    data = tensor.detach()
    if data.is_complex():
        count, put = data.numel(), writer(torch.view_as_real(data))
        return lambda place, value: put(2 * (place % count) + place // count, value)
    if data.device.type != "cpu" or data.dtype in (torch.float16, torch.bfloat16):
        return lambda place, value: data.__setitem__(np.unravel_index(place, data.shape), value)
    return element_writer(data.numpy())


def is_plain_double(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float64 and tensor.is_cpu
