"""A forward and a backward pass in their pieces, for experiments on them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from xgradcheck._adapters import COTANGENT, Trial
from xgradcheck._layout import Vector
from xgradcheck._tree import flatten

from .torch_call import Call
from .torch_exchanged import eager, exchanged
from .torch_tensors import Grads, paired, pulled, read_into

Tensors = list[torch.Tensor]


class Pass:
    """The passes of one call, whose world is held."""

    def __init__(self, call: Call, cotangent: Vector) -> None:
        self._call, self._cotangent = call, cotangent
        self.works: Tensors = [slot.work for slot in call.slots]

    def outs(self) -> Tensors:
        """The outputs of a forward pass, with their graph."""
        self._call.world.reset()
        with torch.enable_grad():
            return self._call.outputs.tensors(self._call.run())

    def parts(self, cotangent: Vector | None = None) -> Tensors:
        """A cotangent, by outputs and in their dtypes."""
        own = self._cotangent if cotangent is None else cotangent
        outputs = self._call.outputs
        return outputs.in_dtypes(outputs.cotangents(own))

    def pulled(
        self,
        outs: Sequence[torch.Tensor],
        parts: Sequence[torch.Tensor | None],
        works: Tensors | None = None,
        again: bool = False,
    ) -> Grads:
        """The gradients of leaves; an output without a cotangent takes no part."""
        return pulled(outs, self.works if works is None else works, parts, retain_graph=again)

    def flat(self, grads: Sequence[torch.Tensor | None]) -> Vector:
        """Gradients of all leaves as one vector; zero where there is none."""
        flat = np.zeros(self._call.layout.size)
        for leaf, grad in zip(self._call.layout, grads, strict=True):
            if grad is not None:
                read_into(flat[leaf.part], grad, leaf)
        return flat

    def vjp(self, parts: Sequence[torch.Tensor | None]) -> Vector:
        return self.flat(self.pulled(self.outs(), parts))

    def tried(
        self,
        what: str,
        run: Callable[[], Vector],
        expected: Vector | None = None,
        beside: Vector | None = None,
        leaves: Sequence[int] | None = None,
        refuses: bool = False,
    ) -> Trial:
        """What a run gives, or raises."""
        try:
            got = run()
        except Exception as error:  # whatever a function has against it
            return Trial(what, error=error, refuses=refuses)
        finally:
            self._call.world.watch()
        return Trial(what, got, expected, beside, None if leaves is None else tuple(leaves))

    @contextmanager
    def called_with(self, others: dict[int, torch.Tensor]) -> Iterator[None]:
        """Other tensors among the arguments, by the ids of those they stand for; in the place of
        those that the function has from elsewhere functions meet the others.
        """
        left = dict(others)

        def other(leaf: Any) -> Any:
            left.pop(id(leaf), None)
            return others.get(id(leaf), leaf)

        with self._call.called_with(other):
            if not left:
                yield
                return
            with eager(), exchanged(left):
                yield

    def tensors(self) -> Tensors:
        """The tensors among the arguments."""
        nodes = flatten((self._call.args, self._call.kwargs))
        return [node.value for node in nodes if isinstance(node.value, torch.Tensor)]

    def names(self) -> list[str]:
        """What cotangents are called, by outputs."""
        outputs = self._call.outputs.layout
        if len(outputs) == 1:
            return [COTANGENT]
        return [f"{COTANGENT} of {leaf.name}" for leaf in outputs]

    def value_of(self, outs: Sequence[torch.Tensor]) -> float:
        """phi, as these outputs give it."""
        return paired(self._call.outputs.cotangents(self._cotangent), outs)

    def size_of(self, outs: Sequence[torch.Tensor]) -> float:
        """How large phi is, or what cancels in it."""
        parts = self._call.outputs.cotangents(self._cotangent)
        pairs = zip(parts, outs, strict=True)
        return float(sum((part.abs() * out.detach().abs()).sum() for part, out in pairs))

    def usual(self) -> tuple[float, Vector]:
        """phi and the gradient, as they usually come."""
        outs = self.outs()
        return self.value_of(outs), self.flat(self.pulled(outs, self.parts()))
