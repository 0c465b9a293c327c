"""Many points of one leaf evaluated at once, by ``torch.func.vmap``.

The leaf alone is batched: what a function computes before it meets the leaf is computed once. Where
an operation has no rule for batches, or something looks into the values, this raises, and points
are evaluated one by one.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch._functorch.autograd_function import custom_function_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from xgradcheck._layout import Positions, Vector

from .torch_exchanged import Exchanged, eager, functions_applied
from .torch_watched import Watching

BATCH_BYTES = 3 << 23
"""How much all that is computed on the way may take: larger batches only wait for the memory."""
FEWEST, MOST = 8, 192
"""Points in a batch: fewer gain nothing, and more wait for fresh memory."""


class Counted(Watching):
    """Adds up the bytes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if func.is_view:
            return out
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        return out


class Kept(TorchFunctionMode):
    """Remembers what functions return, to tell what outlives a call."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        given = set(map(id, tree_leaves((args, kwargs))))
        found = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.made += [weakref.ref(tensor) for tensor in found if id(tensor) not in given]
        return out


def points_at_once(call: Callable[[], Any], largest: int) -> int:
    """How many points to evaluate together, by what one evaluation computes; 1 where that is too
    much already, or where a call keeps what it computes: nobody could use what it would keep of a
    batch. ``largest`` is the size of the largest leaf, in bytes.
    """
    with eager(), Counted() as counted, Kept() as kept:
        call()
    if any(made() is not None for made in kept.made):
        return 1
    fitting = BATCH_BYTES // max(counted.bytes + largest, 1)
    return 1 if fitting < FEWEST else min(fitting, MOST)


def width(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements of memory a tensor reaches over."""
    return 1 + sum((n - 1) * by for n, by in zip(shape, strides, strict=True))


def offsets(shape: Sequence[int], strides: Sequence[int]) -> Positions:
    """Where the elements lie in memory, in C order, counted in elements from the first."""
    return np.asarray(np.array(strides, np.intp) @ np.indices(shape).reshape(len(shape), -1))


class Rows:
    """Copies of a leaf, strides and all where it is dense; in each of them one element moves."""

    def __init__(self, leaf: torch.Tensor, count: int) -> None:
        found, strides = leaf.detach(), leaf.stride()
        span = width(found.shape, strides)
        if span > found.numel():  # a part of something larger: what lies between is left out
            strides = torch.empty(found.shape, device="meta").stride()
            span = found.numel()
        memory = torch.empty(count * span, dtype=found.dtype, device=found.device)
        self.tensor = memory.as_strided((count, *found.shape), (span, *strides))
        self.tensor.copy_(found)
        self._offsets = offsets(found.shape, strides)
        self._width = span
        self._is_complex = found.is_complex()
        self._memory = torch.view_as_real(memory).reshape(-1) if self._is_complex else memory

    def put(self, places: Positions, values: Vector) -> None:
        """Set element ``places[j]``, in the order of the flat vector, in row j + 1."""
        size = len(self._offsets)
        there = np.arange(1, len(places) + 1) * self._width + self._offsets[places % size]
        if self._is_complex:
            there = 2 * there + places // size
        self._memory[torch.from_numpy(there)] = torch.from_numpy(values).to(self._memory)

    def put_whole(self, row: int, values: torch.Tensor) -> None:
        """Set all elements of one row."""
        self.tensor[row].copy_(values)


def together(
    rows: Rows,
    leaf: torch.Tensor,
    written: Sequence[torch.Tensor],
    phi: Callable[[Callable[[Any], Any]], torch.Tensor],
) -> Vector:
    """phi for each of the rows in the place of ``leaf``.

    ``phi`` computes it as a tensor, and is given what stands in for what the function returns.
    ``written`` are the tensors that the function writes to; each row gets copies of its own.
    """

    def one(row: torch.Tensor, *copies: torch.Tensor) -> torch.Tensor:
        others = dict(zip(map(id, (leaf, *written)), (row, *copies), strict=True))
        with Exchanged(others) as exchanged, _functions_opened(exchanged):
            return phi(exchanged.other)

    count = len(rows.tensor)
    written = [tensor for tensor in written if tensor is not leaf]
    copies = [tensor.detach().expand(count, *tensor.shape).clone() for tensor in written]
    with without_fallback(), eager():
        values = torch.func.vmap(one, randomness="same")(rows.tensor, *copies)
    return np.asarray(values.detach().to("cpu", torch.float64).numpy())


@contextmanager
def without_fallback() -> Iterator[None]:
    """An operation without a rule for batches raises, and is not run point by point inside."""
    library: Any = torch._C._functorch
    found = library._is_vmap_fallback_enabled()
    library._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        library._set_vmap_fallback_enabled(found)


class Context:
    """Stands in for the ctx of a forward pass that no backward pass will follow."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keeps them for nobody, as a forward may read them back."""
        self.saved_tensors = tensors

    def _without_effect(self, *args: Any) -> None:
        pass

    save_for_forward = mark_dirty = mark_non_differentiable = _without_effect
    set_materialize_grads = _without_effect


@contextmanager
def _functions_opened(exchanged: Exchanged) -> Iterator[None]:
    """Custom Functions without a rule for batches run as their plain forward.

    ``Function.apply`` refuses them where it sees a transform, and else goes on to its base class.
    """
    library: Any = torch._C
    sees = library._are_functorch_transforms_active

    def sees_none() -> bool:
        return False

    def apply(usual: Callable[..., Any], cls: Any, args: Any, kwargs: Any) -> Any:
        with library.DisableTorchFunction():
            needs = tuple(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)
        args, kwargs = exchanged.arguments(args, kwargs)
        if cls.vmap is not torch.autograd.Function.vmap:
            library._are_functorch_transforms_active = sees
            try:
                return custom_function_call(cls, *args, **kwargs)
            finally:
                library._are_functorch_transforms_active = sees_none
        if torch.is_grad_enabled():
            raise RuntimeError("a plain forward pass leaves no graph")
        if cls.setup_context is not torch.autograd.Function.setup_context:
            return cls.forward(*args, **kwargs)
        return cls.forward(Context(needs), *args, **kwargs)

    library._are_functorch_transforms_active = sees_none
    try:
        with functions_applied(apply):
            yield
    finally:
        library._are_functorch_transforms_active = sees
