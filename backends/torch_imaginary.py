"""phi at complex points."""

import warnings

import numpy as np
import torch
from torch import nn

from xgradcheck import _handed
from xgradcheck._layout import ComplexVector, Positions, Vector
from xgradcheck._selection import argument_nodes

from .torch_call import Call
from .torch_leaves import is_floating


def can_be_complex(call: Call) -> bool:
    """Whether the leaves can be given as complex numbers."""
    # Parameters of modules and tensors of closures are the user's own, and those are real.
    if call.case.is_closure or isinstance(call.case.fn, nn.Module):
        return False
    return not any(leaf.is_complex for leaf in (*call.layout, *call.outputs.layout))


def imaginary(call: Call, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
    """phi with an imaginary step in one coordinate after the other."""
    case, outputs, values = call.case, call.outputs, np.empty(len(index), complex)
    cotangents = outputs.cotangents(cotangent)
    # Operations on mixed kinds are refused: what is no leaf becomes complex as well.
    nodes = [node for node in argument_nodes(case) if is_floating(node.value)]
    still = {id(node.value): node.value.detach().to(torch.complex128) for node in nodes}
    for number, (position, step) in enumerate(zip(index, steps, strict=True)):
        point = call.point.astype(complex)
        point[position] += 1j * step
        parts = _handed.cut(point, call.layout)
        moved = still | {
            id(slot.found): torch.from_numpy(part).to(slot.found.device)
            for slot, part in zip(call.slots, parts, strict=True)
        }
        call.world.reset()
        args, kwargs = case.arguments({node.path: moved[id(node.value)] for node in nodes})
        with torch.no_grad(), warnings.catch_warnings():
            # What is cast to real numbers on its way makes a warning: no complex step then.
            warnings.simplefilter("error")
            outs = outputs.tensors(case.output(args, kwargs))
            total = sum(complex((u * o).sum()) for u, o in zip(cotangents, outs, strict=True))
        values[number] = total if any(map(torch.is_complex, outs)) else np.nan
    return values
