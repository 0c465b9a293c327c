"""The gradient by forward mode, tangent by tangent."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from xgradcheck import _handed
from xgradcheck._adapters import Backward
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Vector

from .torch_call import Call
from .torch_exchanged import eager, exchanged
from .torch_tensors import paired


def pushed(call: Call, cotangent: Vector) -> Backward:
    """The gradient, each of its elements from a tangent of its own."""
    if call.is_handed:
        raise _handed.no_forward_mode()
    _refuse_views_made_before(call)
    parts, gradient = call.outputs.cotangents(cotangent), np.empty(call.layout.size)
    _refuse_dropped_tangents(call)
    for position, tangent in _handed.one_by_one(call.layout.size):
        call.world.reset()
        with _refused_without_rule():
            tangents = _tangents(call, tangent)
        pairs = zip(parts, tangents, strict=True)
        moved = [(part, own) for part, own in pairs if own is not None]
        gradient[position] = paired(*zip(*moved, strict=True)) if moved else 0.0
    return Backward(None, gradient, frozenset())


def _refuse_views_made_before(call: Call) -> None:
    """Raise where something else reads the memory of a leaf: no tangent gets there."""
    memory = {slot.work.untyped_storage().data_ptr(): slot for slot in call.slots}
    works = {id(slot.work) for slot in call.slots} | {id(slot.found) for slot in call.slots}
    for tensor in call.around.found:
        if not isinstance(tensor, torch.Tensor) or id(tensor) in works:
            continue
        if tensor.layout is torch.strided and tensor.numel():
            slot = memory.get(tensor.untyped_storage().data_ptr())
            if slot is not None:
                raise InvalidCase(
                    f"a view of {slot.name} was made before the call, and tangents do not "
                    f"reach it: make it inside the function, or leave modes out."
                )


def _refuse_dropped_tangents(call: Call) -> None:
    """Raise where operators have no rule for tangents. Without a graph some say nothing, and drop
    them.
    """
    call.world.reset()
    try:
        with _refused_without_rule():
            _tangents(call, np.ones(call.layout.size), with_graph=True)
    except RuntimeError:  # a leaf that is written to, which has to be no leaf then
        pass
    finally:
        call.world.watch()


def _tangents(call: Call, tangent: Vector, with_graph: bool = False) -> list[torch.Tensor | None]:
    """What forward mode makes of a tangent of the leaves, output by output."""
    ad: Any = forward_ad
    duals: dict[int, torch.Tensor] = {}
    with ad.dual_level():
        parts = _handed.cut(tangent, call.layout)
        for slot, part in zip(call.slots, parts, strict=True):
            moved = torch.from_numpy(part.copy()).to(slot.work)
            has_graph = with_graph or call.differentiates
            with warnings.catch_warnings(), torch.set_grad_enabled(has_graph):
                # Loading its own rules, torch warns of itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                duals[id(slot.work)] = ad.make_dual(slot.work, moved)
        with (
            call.called_with(lambda leaf: duals.get(id(leaf), leaf)),
            torch.set_grad_enabled(with_graph),
            eager(),
            exchanged(duals) as mode,
        ):
            outs = [mode.other(out) for out in call.outputs.tensors(call.run())]
        return [ad.unpack_dual(out).tangent for out in outs]


@contextmanager
def _refused_without_rule() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise InvalidCase(
            f"it has no rule for forward mode ({str(error).splitlines()[0]}): leave modes out."
        ) from None
