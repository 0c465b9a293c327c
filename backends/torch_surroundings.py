"""What a call of a PyTorch function can reach, and the world of it that is held still."""

import functools
from collections.abc import Iterator

import torch
from torch import nn

from xgradcheck._adapters import Case
from xgradcheck._layout import Layout, Vector

from .kept_states import book_states, number_states
from .reach import reachable
from .torch_leaves import Binding
from .torch_world import drops_out, named_modules, refuse_quantised, states_of, tensor_state
from .world import World


class Here:
    """Where the leaves lie now, and where they were found."""

    # Of its own, so that what compares with it need not know the call: a circle of references
    # would keep arrays as large as the model until somebody collects it.

    def __init__(self, origin: Vector) -> None:
        self.origin = self.point = origin

    def part(self, part: slice) -> Vector:
        """The numbers of one leaf, as they are now."""
        return self.point[part]


class Surroundings:
    """Everything that a call can reach: arguments, modules, and what the function has from
    elsewhere.
    """

    def __init__(self, case: Case, binding: Binding) -> None:
        self._case, self._slots = case, binding.slots
        self.found = reachable(case.fn, case.args, case.kwargs, case.wrt, case.loss, case.grads)
        self.modules = named_modules(self.found)
        refuse_quantised(self.modules)
        self._others = [n.value for n in binding.nodes if isinstance(n.value, torch.Tensor)]

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that the call is known to reach, each once; buffers stand with their
        modules.
        """
        tensors = [slot.work for slot in self._slots] + self._others
        for module in self.modules.values():
            tensors += [v for v in vars(module).values() if isinstance(v, torch.Tensor)]
            tensors += module.parameters(recurse=False)
        tensors += [node for node in self.found if isinstance(node, torch.Tensor)]
        held = {id(buffer) for buffer in self.buffers()}
        return list({id(t): t for t in tensors if id(t) not in held}.values())

    def buffers(self) -> Iterator[torch.Tensor]:
        for module in self.modules.values():
            yield from (buffer for buffer in module._buffers.values() if buffer is not None)

    @property
    def dropping(self) -> list[str]:
        """The modules in which numbers drop out at random."""
        return [name for name, part in self.modules.items() if drops_out(part)]

    def world(self, layout: Layout, here: Here) -> World:
        """All of it that a call can change, as it is now."""
        states = states_of(self.found, self.modules)
        leaves, origin = {}, Here(here.origin)
        names = {id(slot.work): slot.name for slot in self._slots}
        for slot, leaf in zip(self._slots, layout, strict=True):
            leaves[id(slot.found)] = functools.partial(origin.part, leaf.part)
            leaves[id(slot.work)] = functools.partial(here.part, leaf.part)
        for tensor in self.tensors():
            if tensor.layout is torch.strided:
                name = names.get(id(tensor), "a tensor")
                states.append(tensor_state(tensor, name, leaves.get(id(tensor))))
        plain = [node for node in self.found if not isinstance(node, nn.Module | torch.Tensor)]
        holders = [self._case.wrt] if self._case.is_closure else []
        found, roots = [slot.found for slot in self._slots], [self._case.args, self._case.kwargs]
        books = book_states(plain, [*holders, *found], roots)
        return World(states, list(number_states(self.found)), list(books))
