"""The backward pass under test: that of autograd, or a gradient that the user gives."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from xgradcheck import _handed
from xgradcheck._adapters import COTANGENT, Backward
from xgradcheck._layout import Vector

from .own_draws import draws_its_own
from .torch_call import Call
from .torch_forms import forms, refused_without_second
from .torch_tensors import (
    Grads,
    array_of,
    has_custom,
    in_their_dtypes,
    paired,
    pulled,
    read_into,
)

INSIDE = ("incompatible with .grad()", ".backward()")
"""What a checkpoint that runs a backward pass of its own says to ``torch.autograd.grad``."""


class UnderTest:
    """The backward pass of one call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._draws_its_own: bool | None = None
        case = call.case
        self.unit_cotangent = case.grads is not None and not _handed.takes_cotangent(
            case.grads, len(case.args), case.kwargs, call.outputs.layout
        )

    def gradient(self, cotangent: Vector) -> Backward:
        call = self._call
        if call.given is not None:
            return call.given
        call.world.reset()
        before = set(call.world.moving)
        with refused_without_second() if call.differentiates else nullcontext():
            answer = self._from_user(cotangent) if call.is_handed else self._autograd(cotangent)
        call.world.watch()
        # What a forward pass writes to is known by now.
        new = [name for name in call.world.moving if name not in before]
        written = [slot.name for slot in call.slots if slot.name in new]
        return answer._replace(written=(*answer.written, *written)) if written else answer

    def _autograd(self, cotangent: Vector) -> Backward:
        call = self._call
        with torch.enable_grad():
            outs = call.forward()
            cotangents = call.outputs.cotangents(cotangent)
            value = paired(cotangents, outs)
            given = in_their_dtypes(call.outputs.cotangents(cotangent), outs)
            found: Grads = [None] * len(call.slots)
            told: dict[str, str] = {}
            if any(out.requires_grad for out in outs):
                with forms() as told:
                    found = self._pulled_back(outs, given)
        severed = frozenset(number for number, grad in enumerate(found) if grad is None)
        gradient = np.zeros(call.layout.size)
        for number, leaf in enumerate(call.layout):
            # Each is let go once it is read: all of them are as large as the model.
            grad, found[number] = found[number], None
            if grad is not None:
                read_into(gradient[leaf.part], grad, leaf)
        pairs = zip(given, in_their_dtypes(cotangents, outs), strict=True)
        is_same = all(torch.equal(part, own) for part, own in pairs)
        written = () if is_same else (COTANGENT,)
        misfits = [
            f"what the backward of {name} returns {text}" for name, text in told.items() if text
        ]
        return Backward(value, gradient, severed, written=written, misfits=tuple(misfits))

    def _pulled_back(self, outs: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> Grads:
        """The gradients of the leaves; those that a backward pass inside of a custom Function's
        reaches, as that of a reentrant checkpoint does, are left in ``.grad`` alone.
        """
        call, works = self._call, [slot.work for slot in self._call.slots]
        leaves = [work for work in works if work.is_leaf]
        kept = [work.grad for work in leaves]
        try:
            for work in leaves:
                work.grad = None
            try:
                found = pulled(outs, works, parts)
            except RuntimeError as error:
                if not any(text in str(error) for text in INSIDE):
                    raise
            else:
                is_all = all(own is not None for own in found)
                if (is_all or not has_custom(outs)) and all(w.grad is None for w in leaves):
                    return found
            for work in leaves:
                work.grad = None
            call.world.reset()
            again = [out for out in call.outputs.tensors(call.run()) if out.requires_grad]
            pairs = zip(outs, parts, strict=True)
            torch.autograd.backward(again, [part for out, part in pairs if out.requires_grad])
            return [work.grad if work.is_leaf else None for work in works]
        finally:
            for work, grad in zip(leaves, kept, strict=True):
                work.grad = grad

    def _from_user(self, cotangent: Vector) -> Backward:
        call = self._call
        with torch.no_grad():
            # Forward first: a class keeps what its backward needs from the last forward, and phi
            # comes with it.
            out = call.run()
            value = paired(call.outputs.cotangents(cotangent), call.outputs.tensors(out))
        call.world.rewind()
        answer = self._asked(out, cotangent)
        if self._draws_its_own is None:
            self._draws_its_own = self._draws_beside(out, cotangent)
        answer = answer._replace(draws_its_own=self._draws_its_own)
        return answer if answer.value is not None else answer._replace(value=value)

    def _asked(self, out: Any, cotangent: Vector) -> Backward:
        """What the user's function of the gradient returns, beside this output."""
        call = self._call
        args = call.args
        if not self.unit_cotangent:
            parts = call.outputs.cotangents(cotangent)
            given = in_their_dtypes(parts, call.outputs.tensors(out))
            args = (call.outputs.replaced(out, given), *args)
        return call.read(call.case.grads(*args, **call.kwargs))

    def _draws_beside(self, out: Any, cotangent: Vector) -> bool:
        """Whether the gradient is one for other random numbers than those of the forward pass."""
        call = self._call

        def forward() -> None:
            with torch.no_grad():
                call.run()

        def gradient() -> Vector:
            return self._asked(out, cotangent).gradient

        def elsewhere() -> AbstractContextManager[None]:
            return call.at(_handed.another(call.point))

        return draws_its_own(call.case, call.world, forward, gradient, elsewhere, array_of)
