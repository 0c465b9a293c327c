"""A forward and a backward pass in their pieces, for experiments on them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from xgradcheck._adapters import Trial
from xgradcheck._layout import Vector
from xgradcheck._tree import flatten

from .torch_exchanged import eager, exchanged, mapped
from .torch_tensors import paired, read_into

Tensors = list[torch.Tensor]
Grads = list[torch.Tensor | None]


class Pass:
    """The passes of one problem, whose world is held."""

    def __init__(self, problem: Any, cotangent: Vector) -> None:
        self._problem, self._cotangent = problem, cotangent
        self._layout = problem.layout
        self.works: Tensors = [slot.work for slot in problem._slots]

    def outs(self) -> Tensors:
        """The outputs of a forward pass, with their graph."""
        self._problem._world.reset()
        with torch.enable_grad():
            outs: Tensors = self._problem._tensors(self._problem._call())
        return outs

    def parts(self, cotangent: Vector | None = None) -> Tensors:
        """A cotangent, by outputs and in their dtypes."""
        own = self._cotangent if cotangent is None else cotangent
        parts = zip(self._problem._cotangents(own), self._problem.outputs, strict=True)
        return [part.to(getattr(torch, leaf.dtype)) for part, leaf in parts]

    def pulled(
        self,
        outs: Sequence[torch.Tensor],
        parts: Sequence[torch.Tensor | None],
        works: Tensors | None = None,
        again: bool = False,
    ) -> Grads:
        """The gradients of leaves; an output without a cotangent takes no part."""
        works = self.works if works is None else works
        pairs = [
            (out, part)
            for out, part in zip(outs, parts, strict=True)
            if out.requires_grad and part is not None
        ]
        if not pairs:
            return [None] * len(works)
        tensors, given = zip(*pairs, strict=True)
        return [*torch.autograd.grad(tensors, works, given, allow_unused=True, retain_graph=again)]

    def flat(self, grads: Sequence[torch.Tensor | None]) -> Vector:
        """Gradients of all leaves as one vector; zero where there is none."""
        flat = np.zeros(self._layout.size)
        for leaf, grad in zip(self._layout, grads, strict=True):
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
            self._problem._world.watch()
        return Trial(what, got, expected, beside, None if leaves is None else tuple(leaves))

    @contextmanager
    def called_with(self, others: dict[int, torch.Tensor]) -> Iterator[None]:
        """Other tensors among the arguments, by the ids of those they stand for; in the place of
        those that the function has from elsewhere functions meet the others.
        """
        problem = self._problem
        found = problem._args, problem._kwargs
        left = dict(others)

        def other(leaf: Any) -> Any:
            left.pop(id(leaf), None)
            return others.get(id(leaf), leaf)

        try:
            args, kwargs = mapped(other, found)
            problem._args, problem._kwargs = args, kwargs
            if not left:
                yield
                return
            with eager(), exchanged(left):
                yield
        finally:
            problem._args, problem._kwargs = found

    def tensors(self) -> Tensors:
        """The tensors among the arguments."""
        nodes = flatten((self._problem._args, self._problem._kwargs))
        return [node.value for node in nodes if isinstance(node.value, torch.Tensor)]

    def names(self) -> list[str]:
        """What cotangents are called, by outputs."""
        count = len(self._problem.outputs)
        return [
            "the cotangent" if count == 1 else f"the cotangent of {leaf.name}"
            for leaf in self._problem.outputs
        ]

    def value_of(self, outs: Sequence[torch.Tensor]) -> float:
        """phi, as these outputs give it."""
        return paired(self._problem._cotangents(self._cotangent), outs)

    def size_of(self, outs: Sequence[torch.Tensor]) -> float:
        """How large phi is, or what cancels in it."""
        parts = self._problem._cotangents(self._cotangent)
        pairs = zip(parts, outs, strict=True)
        return float(sum((part.abs() * out.detach().abs()).sum() for part, out in pairs))

    def usual(self) -> tuple[float, Vector]:
        """phi and the gradient, as they usually come."""
        outs = self.outs()
        return self.value_of(outs), self.flat(self.pulled(outs, self.parts()))
