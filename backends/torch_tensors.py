"""Tensors as the core sees them, as numbers in a flat vector, and as memory: bits that are compared
and put back.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from xgradcheck._layout import Leaf, Vector

from .torch_precision import shortest

PIECE = 1 << 18
"""How many numbers below float64 are computed at a time."""


def graph_of(outs: Iterable[torch.Tensor]) -> set[Any]:
    """Every step of the graph that outputs hang on."""
    seen: set[Any] = set()
    pending: list[Any] = [out.grad_fn for out in outs]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [follower for follower, _ in node.next_functions]
    return seen


def has_custom(outs: Iterable[torch.Tensor]) -> bool:
    """Whether a custom Function is in the graph of outputs."""
    return any(hasattr(node, "_forward_cls") for node in graph_of(outs))


def single_steps(outs: list[torch.Tensor]) -> Iterator[str]:
    """The names of the steps in float32 on the backward path of the outputs."""
    for node in graph_of(outs):
        entries = getattr(node, "_input_metadata", ())
        if any(entry.dtype is torch.float32 for entry in entries):
            yield node.name()


def told_by_graph(outs: list[torch.Tensor]) -> tuple[int, dict[int, int]]:
    """The shortest significand on the backward path of the outputs; and, for tensors that
    embeddings read, all with one padding row, the number of that row.
    """
    dtypes: set[torch.dtype] = set()
    rows: dict[int, set[int]] = {}
    for node in graph_of(outs):
        entries = getattr(node, "_input_metadata", ())
        # Beside others, what looks like a lone float32 is an output that nobody asked for.
        dtypes |= {
            entry.dtype
            for entry in entries
            if entry.dtype is not torch.float32 or len(entries) == 1 or entry.shape
        }
        # Embeddings without such a row say -1, and whatever else reads a tensor says nothing.
        if (padding := getattr(node, "_saved_padding_idx", None)) is None:
            continue
        for follower, _ in node.next_functions:
            if (variable := getattr(follower, "variable", None)) is not None:
                rows.setdefault(id(variable), set()).add(padding)
    alone = {key: found.pop() for key, found in rows.items() if len(found) == 1}
    return shortest(dtypes), {key: row for key, row in alone.items() if 0 <= row < 1 << 62}


def paired(cotangents: Sequence[torch.Tensor], outs: Sequence[torch.Tensor]) -> float:
    """The inner product of cotangent and output: phi."""
    if len(outs) == 1 and not outs[0].is_complex():
        return float((cotangents[0] * outs[0].detach()).sum())
    return float(inner(cotangents, [out.detach() for out in outs]))


def inner(cotangents: Sequence[torch.Tensor], outs: Sequence[torch.Tensor]) -> Any:
    """The same as a tensor, with its graph."""
    # Multiply and sum: torch.dot loses a digit or two against this pairwise sum.
    pairs = zip(cotangents, outs, strict=True)
    # With the cotangent conjugated, as autograd has it: the real part of an inner product.
    sums = [(part.conj() * out.to(part.dtype)).sum().real for part, out in pairs]
    return sum(one.to(sums[0].device) for one in sums)


Grads = list[torch.Tensor | None]


def in_their_dtypes(
    parts: Sequence[torch.Tensor], outs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Cotangents in the dtypes of these outputs."""
    return [part.to(out.dtype) for part, out in zip(parts, outs, strict=True)]


def pulled(
    outs: Iterable[torch.Tensor],
    works: Sequence[torch.Tensor],
    parts: Iterable[torch.Tensor | None],
    **options: Any,
) -> Grads:
    """The gradients of ``works``, as autograd gives them for these cotangents; an output that hangs
    on no graph, or has no cotangent, takes no part.
    """
    pairs = zip(outs, parts, strict=True)
    reached = [(out, part) for out, part in pairs if out.requires_grad and part is not None]
    if not reached:
        return [None] * len(works)
    tensors, given = zip(*reached, strict=True)
    return [*torch.autograd.grad(tensors, works, given, allow_unused=True, **options)]


def array_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        dense = value.detach() if value.layout is torch.strided else value.detach().to_dense()
        wide = torch.complex128 if dense.is_complex() else torch.float64
        return dense.resolve_conj().resolve_neg().to("cpu", wide).numpy()
    return np.asarray(value)


def read_into(numbers: Vector, tensor: torch.Tensor, leaf: Leaf) -> None:
    """Copy what a leaf, or its gradient, holds into its part of the flat vector."""
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    there = torch.from_numpy(numbers).view(leaf.grid)
    if leaf.is_complex:
        there[0].copy_(dense.real)
        there[1].copy_(dense.imag if dense.is_complex() else torch.zeros_like(dense))
    else:
        there.copy_(dense)


def put_numbers(tensor: torch.Tensor, numbers: Vector) -> None:
    """Write a leaf's part of the flat vector to its tensor."""
    there = torch.from_numpy(numbers)
    if tensor.is_complex():
        there = torch.complex(*there.view(2, -1))
    tensor.data.copy_(there.view(tensor.shape))


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of_tensor(tensor: torch.Tensor) -> Any:
    """The values of a tensor as whole numbers, over the same memory where that can be: NaN and -0.0
    count as they are. Those of a sparse tensor are bytes of its parts, one after the other.
    """
    if tensor.layout is not torch.strided:
        return np.concatenate([_bytes_of(part) for part in _parts(tensor)])
    dense = tensor.detach().resolve_conj().resolve_neg().cpu()
    if dense.is_complex():
        dense = torch.view_as_real(dense)
    return dense.view(INTEGERS[dense.itemsize]).numpy()


COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The strided tensors of real numbers that a sparse one is made of; a dense one of others."""
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        places, values = [tensor._indices()], tensor._values()
    elif tensor.layout in COMPRESSED:
        places = [getattr(tensor, name)() for name in COMPRESSED[tensor.layout]]
        values = tensor.values()
    else:
        places, values = [], tensor.to_dense()
    return [*places, torch.view_as_real(values) if values.is_complex() else values]


def _bytes_of(part: torch.Tensor) -> Any:
    return np.ascontiguousarray(bits_of_tensor(part)).reshape(-1).view(np.uint8)


def set_bits(tensor: torch.Tensor, saved: Any) -> None:
    if tensor.layout is not torch.strided:
        for part in _parts(tensor):
            own, saved = np.split(saved, [part.numel() * part.itemsize])
            set_bits(part, own.view(f"i{part.itemsize}").reshape(part.shape))
        return
    values = torch.from_numpy(saved)
    if tensor.is_complex():
        values = torch.view_as_complex(values.view(tensor.dtype.to_real()))
    tensor.data.copy_(values.view(tensor.dtype))
