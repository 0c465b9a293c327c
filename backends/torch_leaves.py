"""Which tensors of a call are leaves, under which names, and which of them are moved in place."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from xgradcheck import _handed
from xgradcheck._adapters import Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Positions, refuse_unless_known
from xgradcheck._selection import Candidate, argument_nodes, closure_nodes, select
from xgradcheck._tree import Node, Path

from .torch_batches import offsets, width

CONVERT = "convert it with .float() or .double()"


@dataclass(slots=True)
class Slot:
    """A leaf: the tensor of the user, and the one that the function gets to see and that is
    perturbed.
    """

    names: tuple[str, ...]
    path: Path
    found: torch.Tensor
    work: torch.Tensor

    @property
    def name(self) -> str:
        return " = ".join(self.names)


@dataclass(slots=True)
class Binding:
    """The leaves of one call, and what stands around them."""

    slots: list[Slot]
    places: _handed.Places
    skipped: list[str]
    nodes: list[Node]
    """Every leaf of the arguments."""


def bound(case: Case) -> Binding:
    """The leaves of a call; refuses what cannot be checked."""
    if isinstance(case.fn, nn.Module):
        return _of_module(case, case.fn)
    return _of_closure(case) if case.is_closure else _of_arguments(case)


def _of_arguments(case: Case) -> Binding:
    """Leaves of a function's arguments: those that require grad, or all floating ones if none
    does.
    """
    nodes = argument_nodes(case)
    tensors = _grouped(
        (node.suffix, node.path, node.value) for node in nodes if is_floating(node.value)
    )
    if case.wrt is None and case.grads is None:
        chosen = [slot for slot in tensors if slot.found.requires_grad] or tensors
    else:
        chosen = _selected(0 if case.wrt is None else case.wrt, tensors, len(case.args))
    reason = "does not require grad" if case.wrt is None else "not in wrt"
    skipped = [f"{slot.name}: {reason}" for slot in tensors if slot not in chosen]
    return _binding([_in_copy(slot) for slot in chosen], nodes, skipped)


def _of_module(case: Case, module: nn.Module) -> Binding:
    """Leaves of a module: its parameters, in place, and its inputs where they are asked for."""
    nodes = argument_nodes(case, module.forward)
    inputs = _grouped(
        (node.suffix, node.path, node.value) for node in nodes if is_floating(node.value)
    )
    parameters = _grouped(_parameters(module))
    taken = {name for slot in parameters for name in slot.names}
    for slot in inputs:
        slot.names = tuple(f"input {name}" if name in taken else name for name in slot.names)
    if case.wrt is None:
        chosen = [slot for slot in parameters if slot.found.requires_grad] or inputs
        skipped = [
            f"{slot.name}: frozen (requires_grad is False)"
            for slot in parameters
            if slot not in chosen
        ]
        skipped += [f"{slot.name}: an input, not in wrt" for slot in inputs if slot not in chosen]
    else:
        chosen = _selected(case.wrt, [*parameters, *inputs], len(case.args))
        skipped = [
            f"{slot.name}: not in wrt" for slot in (*parameters, *inputs) if slot not in chosen
        ]
    given = {id(slot) for slot in inputs}
    return _binding(
        [_in_copy(slot) if id(slot) in given else _in_place(slot) for slot in chosen],
        nodes,
        skipped,
    )


def _of_closure(case: Case) -> Binding:
    """Leaves of a closure: the tensors and parameters in ``wrt``, in place, since only they reach
    the function.
    """
    found: list[tuple[str, Path, torch.Tensor]] = []
    for node in closure_nodes(case.wrt):
        if isinstance(node.value, nn.Module):
            prefix = f"{node.suffix}." if node.path else ""
            found += [
                (prefix + name, (*node.path, *path), tensor)
                for name, path, tensor in _parameters(node.value)
            ]
        elif is_floating(node.value):
            found.append((node.suffix, node.path, node.value))
    tensors = _grouped(found)
    frozen = [
        slot
        for slot in tensors
        if isinstance(slot.found, nn.Parameter) and not slot.found.requires_grad
    ]
    skipped = [f"{slot.name}: frozen (requires_grad is False)" for slot in frozen]
    slots = [_in_place(slot) for slot in tensors if slot not in frozen]
    return Binding(
        slots,
        _handed.Places([slot.path for slot in slots], [path for _, path, _ in found]),
        skipped,
        [],
    )


def _binding(slots: list[Slot], nodes: list[Node], skipped: list[str]) -> Binding:
    plain = [
        node
        for node in nodes
        if isinstance(node.value, torch.Tensor) and not is_floating(node.value)
    ]
    skipped += [f"{node.suffix}: {dtype_of(node.value)}, not differentiable" for node in plain]
    paths = [node.path for node in nodes]
    places = (
        _handed.places([slot.path for slot in slots], paths) if slots else _handed.Places([], [])
    )
    return Binding(slots, places, skipped, nodes)


def _selected(wrt: Any, slots: list[Slot], arguments: int) -> list[Slot]:
    candidates = [Candidate(slot.names, slot.path) for slot in slots]
    return [slots[number] for number in select(wrt, candidates, arguments)]


def _parameters(module: nn.Module) -> Iterator[tuple[str, Path, torch.Tensor]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(parameter):
            raise InvalidCase(
                f"parameter {name!r} is not initialised yet: run the module once on its input "
                f"first."
            )
        yield name, tuple(name.split(".")), parameter


def _grouped(found: Iterable[tuple[str, Path, torch.Tensor]]) -> list[Slot]:
    """One slot per tensor object, under all the names it is found by."""
    slots: dict[int, Slot] = {}
    for name, path, tensor in found:
        if id(tensor) in slots:
            slots[id(tensor)].names += (name,)
        else:
            slots[id(tensor)] = Slot((name,), path, tensor, tensor)
    return list(slots.values())


def _in_copy(slot: Slot) -> Slot:
    """Let a copy be perturbed: same values and, unless elements overlap, same strides, on which a
    backward may lean.
    """
    _refuse(slot)
    found = slot.found.detach()
    if found.is_contiguous() or overlaps(found):
        slot.work = found.clone(memory_format=torch.contiguous_format)
    else:
        slot.work = torch.empty_strided(
            found.shape, found.stride(), dtype=found.dtype, device=found.device
        )
        slot.work.copy_(found)
    return slot


def _in_place(slot: Slot) -> Slot:
    """Let the user's own tensor be perturbed."""
    _refuse(slot)
    if slot.found.is_conj() or slot.found.is_neg():
        raise InvalidCase(
            f"{slot.name} is conjugated or negated on reading: pass {slot.name}.resolve_conj() or "
            f".resolve_neg()."
        )
    return slot


def _refuse(slot: Slot) -> None:
    """Raise for a tensor that differences cannot judge."""
    refuse_unless_known(slot.name, dtype_of(slot.found), CONVERT)
    if slot.found.layout is not torch.strided:
        raise InvalidCase(f"{slot.name} is a sparse tensor: pass it dense, with .to_dense().")


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether several elements lie on one number, as after expand, unfold or as_strided."""
    if tensor.is_contiguous():
        return False
    spans = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1
    )
    reach = 0
    for stride, size in spans:
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


@contextmanager
def apart(slots: list[Slot]) -> Iterator[None]:
    """Elements that lie on one number, as after expand, each in a place of its own."""
    shared = [slot.work for slot in slots if overlaps(slot.work)]
    found = [work.data for work in shared]
    try:
        for work in shared:
            work.data = work.detach().clone(memory_format=torch.contiguous_format)
        yield
    finally:
        for work, data in zip(shared, found, strict=True):
            work.data = data


def refuse_freed(slots: Iterable[Slot]) -> None:
    """Raise for leaves whose memory a call gives back, as reversible layers do with their inputs:
    there is none left to perturb.
    """
    for slot in slots:
        work = slot.work
        if work.layout is torch.strided and work.numel() and not work.untyped_storage().nbytes():
            raise InvalidCase(
                f"the call frees the memory of {slot.name}: pass it a copy, as in "
                f"lambda x: module(x.clone())."
            )


def refuse_shared(slots: list[Slot]) -> None:
    """Raise where two leaves lie on the same numbers: no step moves one of them alone."""
    owners: dict[int, list[Slot]] = {}
    for slot in slots:
        if slot.work.numel():
            owners.setdefault(slot.work.untyped_storage().data_ptr(), []).append(slot)
    for sharing in owners.values():
        for first, second in combinations(sharing, 2):
            if _meet(first.work, second.work):
                raise InvalidCase(
                    f"{first.name} and {second.name} lie in the same memory, and no step moves "
                    f"one alone: make them one tensor, or name one with wrt=."
                )


def _meet(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors over one storage have an element in common."""
    (low, high), (least, most) = _span(first), _span(second)
    if high <= least or most <= low:
        return False
    return bool(np.intersect1d(_places(first), _places(second)).size)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The part of its storage that a tensor reaches over, in bytes."""
    start, size = tensor.data_ptr(), tensor.itemsize
    return start, start + size * width(tensor.shape, tensor.stride())


def _places(tensor: torch.Tensor) -> Positions:
    """Where the elements lie in their storage, in bytes."""
    places = offsets(tensor.shape, tensor.stride()) + tensor.storage_offset()
    return np.asarray(places * tensor.itemsize)


def is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
