"""The gradients of a call as the outputs of another one."""

from dataclasses import replace
from typing import Any

import torch

from xgradcheck import _handed
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Vector

from .torch_call import Call
from .torch_leaves import Slot
from .torch_tensors import graph_of, in_their_dtypes, pulled

REFUSED = "torch::autograd::Error"


class Gradients(Call):
    """The call that returns the gradients of another one, which depend on its cotangent too."""

    differentiates = True

    def __init__(self, first: Call, cotangent: Vector) -> None:
        self._first, found = first, first.binding
        self._parts = first.outputs.in_dtypes(first.outputs.cotangents(cotangent))
        parts = zip(_handed.cotangent_names(first.outputs.layout), self._parts, strict=True)
        # A gradient depends on its cotangent too: its derivative is the gradient's jvp.
        cotangents = [Slot((name,), (name,), part, part) for name, part in parts]
        super().__init__(first.case, replace(found, slots=[*found.slots, *cotangents]))

    def run(self) -> Any:
        graph, slots = torch.is_grad_enabled(), self._first.slots
        with torch.enable_grad():
            outs = self._first.outputs.tensors(super().run())
            # A backward that is marked once_differentiable says so: its cotangent requires grad.
            parts = in_their_dtypes(self._parts, outs)
            grads = pulled(outs, [slot.work for slot in slots], parts, create_graph=graph)
        if any(node.name() == REFUSED for node in graph_of(g for g in grads if g is not None)):
            raise InvalidCase("its backward pass is once_differentiable: check it with order=1.")
        return {
            slot.name: torch.zeros_like(slot.work) if grad is None else grad
            for slot, grad in zip(slots, grads, strict=True)
        }
