"""A function of tensors run over and over on the same memory, other numbers in it, and timed."""

import platform
import time
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import reductions
from torch.utils._pytree import tree_leaves

from xgradcheck import _handed
from xgradcheck._adapters import COTANGENT, Backward, Case, Taken
from xgradcheck._layout import Vector
from xgradcheck._tree import flatten, replaced

from .torch import bind
from .torch_tensors import Grads, array_of, pulled, read_into
from .torch_watched import Watching


class TorchTimed:
    """One call of a function, in memory of its own."""

    def __init__(self, case: Case) -> None:
        args, kwargs = _copied((case.args, dict(case.kwargs)))
        self.problem = bind(Case(case.fn, args, kwargs, case.wrt, case.loss, None))
        self._call = call = self.problem.call
        self._leaves = [slot.work for slot in call.slots]
        self._names = {id(slot.work): slot.name for slot in call.slots}
        tree = flatten((call.args, call.kwargs))
        tensors = {id(node.value): node.value for node in tree if _is_tensor(node.value)}
        self._given = [t for t in tensors.values() if t.is_floating_point() or t.is_complex()]
        floating = {id(t) for t in self._given}
        self._whole = [(t, t.clone()) for t in tensors.values() if id(t) not in floating]
        self._parts: list[torch.Tensor] = []
        self._first: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []
        self._outs: list[torch.Tensor] = []
        self._grads: Grads = []
        self._is_cuda = call.device.type == "cuda"

    @property
    def device(self) -> str:
        device = self._call.device
        return torch.cuda.get_device_name(device) if self._is_cuda else platform.machine()

    def start(self, cotangent: Vector) -> None:
        outputs = self._call.outputs
        self._parts = outputs.in_dtypes(outputs.cut(cotangent))
        self._first = [tensor.detach().clone() for tensor in (*self._given, *self._parts)]

    def stir(self, seed: int, share: float) -> None:
        generators: dict[torch.device, torch.Generator] = {}
        with torch.no_grad():
            for tensor, first in zip((*self._given, *self._parts), self._first, strict=True):
                device = tensor.device
                if device not in generators:
                    generators[device] = torch.Generator(device).manual_seed(seed)
                drawn = torch.rand(tensor.shape, generator=generators[device], device=device)
                tensor.copy_(first * (1 + share * (2 * drawn - 1)))
        self._before = [tensor.detach().clone() for tensor in (*self._given, *self._parts)]

    def run(self) -> tuple[float, float]:
        self._outs, self._grads = [], []
        call, mark = self._call, self._clock
        with torch.enable_grad():
            started = mark()
            out = call.case.output(call.args, call.kwargs)
            forward = mark()
            outs = call.outputs.tensors(out)
            grads = pulled(outs, self._leaves, self._parts)
            backward = mark()
        self._outs, self._grads = [o.detach() for o in outs], grads
        return forward - started, backward - forward

    def _clock(self) -> float:
        """The time, once all that was started is done, on whatever stream."""
        if self._is_cuda:
            torch.cuda.synchronize(self._call.device)
        return time.perf_counter()

    def taken(self) -> Taken:
        layout, tree = self._call.layout, (self._call.args, self._call.kwargs)
        gradient = np.zeros(layout.size)
        for leaf, grad in zip(layout, self._grads, strict=True):
            if grad is not None:
                read_into(gradient[leaf.part], grad, leaf)
        severed = frozenset(n for n, grad in enumerate(self._grads) if grad is None)
        args, kwargs = _copied(tree)
        return Taken(
            args,
            kwargs,
            np.concatenate([_handed.numbers(array_of(part)) for part in self._parts]),
            np.concatenate([_handed.numbers(array_of(out)) for out in self._outs]),
            Backward(None, gradient, severed),
        )

    @property
    def written(self) -> list[str]:
        pairs = [*zip((*self._given, *self._parts), self._before, strict=True)]
        names = [self._names.get(id(tensor), "an argument") for tensor in self._given]
        names += [COTANGENT] * len(self._parts) + ["an argument"] * len(self._whole)
        return [
            name
            for name, (tensor, before) in zip(names, pairs + self._whole, strict=True)
            if not _is_same(tensor.detach(), before)
        ]

    def peak(self) -> int:
        """Bytes; on a CPU those of the tensors that operators of torch make."""
        self._outs, self._grads = [], []
        if not self._is_cuda:
            with _Live() as live:
                self.run()
            return int(live.most)
        device = self._call.device
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.run()
        return int(torch.cuda.max_memory_allocated(device) - before)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _copied(tree: Any) -> Any:
    """A tree with its tensors copied; what is one tensor in two places stays one."""
    copies: dict[int, torch.Tensor] = {}
    found = [node for node in flatten(tree) if _is_tensor(node.value)]
    for node in found:
        own = node.value
        if id(own) not in copies:
            copies[id(own)] = own.detach().clone().requires_grad_(own.requires_grad)
    return replaced(tree, {node.path: copies[id(node.value)] for node in found})


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit by bit, as far as arithmetic can tell; NaN is NaN."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


_weak: Any = reductions.StorageWeakRef


class _Live(Watching):
    """How much memory the tensors hold that are made, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._held: dict[int, tuple[Any, int]] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in filter(_is_tensor, tree_leaves((args, kwargs))):
            key = tensor.untyped_storage()._cdata
            if key not in self._held:
                self._known.add(key)  # was there before
        out = func(*args, **kwargs)
        for tensor in filter(_is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._held[storage._cdata] = _weak(storage), storage.nbytes()
        alive = {key: own for key, own in self._held.items() if not own[0].expired()}
        self._held, held = alive, sum(size for _, size in alive.values())
        self.most = max(self.most, held)
        return out
