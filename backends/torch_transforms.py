"""A backward pass under the transformations of PyTorch, and operators as they are registered."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from xgradcheck import _handed
from xgradcheck._adapters import Trial
from xgradcheck._layout import Vector

from .random_states import TORCH
from .torch_batches import without_fallback
from .torch_call import Call
from .torch_exchanged import eager, exchanged, mapped
from .torch_pass import Pass, Tensors
from .torch_precision import autocast_on
from .torch_tensors import Grads, inner

Way = Callable[[], tuple[Sequence[torch.Tensor], Grads]]
"""The outputs and the gradients that one way leads to."""
OF_TORCH = ("aten", "prim", "prims")
"""Namespaces of operators that are torch's own."""
HUGE = 2.0**24
BACKEND = "aot_eager"
"""Traces forward and backward as every backend does, and compiles nothing."""


class Transforms:
    """Other ways to ask for the same gradient."""

    def __init__(self, call: Call, cotangent: Vector) -> None:
        self._call, self._pass = call, Pass(call, cotangent)
        self._given = [s.work for s in call.slots if s.work is not s.found]

    def trials(self) -> Iterator[Trial]:
        """Each of them, as far as the function can be transformed."""
        usual, _ = self._pass.usual()
        draws = any(name.startswith(TORCH) for name in self._call.moving)
        ways: dict[str, Way] = {
            "under checkpoint": self._checkpointed,
            "with cotangents under vmap": self._with_batched_cotangents,
        }
        if not draws:  # other numbers are drawn there
            ways |= {
                "under torch.func.vjp": self._by_vjp,
                "under vmap": self._batched,
                "under vmap of torch.func.vjp": self._batched_vjp,
                f"under torch.compile ({BACKEND})": self._compiled,
            }
        for what, way in ways.items():
            yield self._tried(what, way, usual)
        yield self._pass.tried("through a graph of other operations", self._within)
        yield from self._autocast()

    def _tried(self, what: str, way: Way, usual: float) -> Trial:
        self._call.world.reset()
        try:
            with _quiet():
                outs, grads = way()
        except Exception as error:  # what cannot be transformed is told so by torch
            return Trial(what, error=error, refuses=True)
        finally:
            self._call.world.watch()
        phi = self._pass.value_of(outs), usual, self._pass.size_of(outs)
        return Trial(what, self._pass.flat(grads), phi=phi)

    def _checkpointed(self) -> tuple[Tensors, Grads]:
        with torch.enable_grad():
            outs = torch.utils.checkpoint.checkpoint(
                lambda *_: self._call.outputs.tensors(self._call.run()),
                *self._pass.works,
                use_reentrant=False,
            )
        return outs, self._pass.pulled(outs, self._pass.parts())

    def _with_batched_cotangents(self) -> tuple[Tensors, Grads]:
        outs = self._pass.outs()
        pairs = zip(outs, self._pass.parts(), strict=True)
        reached = [(out, torch.stack([2 * part, part])) for out, part in pairs if out.requires_grad]
        tensors, parts = zip(*reached, strict=True)
        grads = torch.autograd.grad(
            tensors, self._pass.works, parts, allow_unused=True, is_grads_batched=True
        )
        return outs, [None if grad is None else grad[1] for grad in grads]

    def _of_leaves(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The function of its leaves, wherever it has them from."""
        others = dict(zip(map(id, self._pass.works), leaves, strict=True))
        with eager(), exchanged(others) as mode:
            return tuple(map(mode.other, self._call.outputs.tensors(self._call.run())))

    def _by_vjp(self) -> tuple[Sequence[torch.Tensor], Grads]:
        vjp: Any = torch.func.vjp
        with torch.enable_grad():
            outs, pull = vjp(self._of_leaves, *(work.detach() for work in self._pass.works))
        return outs, self._met(pull(tuple(self._pass.parts())))

    def _batched(self) -> tuple[Sequence[torch.Tensor], Grads]:
        leaves = [
            torch.stack([work * _handed.ELSEWHERE, work]).detach().requires_grad_()
            for work in self._pass.works
        ]
        with torch.enable_grad(), without_fallback():
            outs = torch.func.vmap(self._of_leaves, randomness="same")(*leaves)
        parts = [torch.stack([2 * part, part]) for part in self._pass.parts()]
        grads = self._pass.pulled(outs, parts, leaves)
        own: Grads = [None if grad is None else grad[1] for grad in grads]
        return [out[1] for out in outs], self._met(own)

    def _batched_vjp(self) -> tuple[Sequence[torch.Tensor], Grads]:
        vjp: Any = torch.func.vjp

        def pulled(leaves: Any, parts: Any) -> Any:
            outs, pull = vjp(self._of_leaves, *leaves)
            return outs, pull(parts)

        works = [work.detach() for work in self._pass.works]
        leaves = tuple(torch.stack([work * _handed.ELSEWHERE, work]) for work in works)
        parts = tuple(torch.stack([2 * part, part]) for part in self._pass.parts())
        with torch.enable_grad(), without_fallback():
            outs, grads = torch.func.vmap(pulled, randomness="same")(leaves, parts)
        return [out[1] for out in outs], self._met([grad[1] for grad in grads])

    def _met(self, grads: Sequence[torch.Tensor | None]) -> Grads:
        """The same gradients; raises where a function may not have met what stood in for a leaf of
        its own, as scripted modules do not.
        """
        for work, grad in zip(self._pass.works, grads, strict=True):
            is_own = not any(work is given for given in self._given)
            if is_own and (grad is None or not grad.any()):
                raise RuntimeError("it has leaves of its own, which no transformation follows")
        return [*grads]

    def _compiled(self) -> tuple[Tensors, Grads]:
        fn, loss = self._call.case.fn, self._call.case.loss

        def call(args: Any, kwargs: Any) -> Any:
            out = fn(*args, **kwargs)
            return out if loss is None else loss(out)

        for is_whole in (True, False):
            # What was compiled is kept with the code: with one of its own it goes when this ends.
            own = FunctionType(call.__code__.replace(), globals(), "call", None, call.__closure__)
            compiled = torch.compile(own, backend=BACKEND, fullgraph=is_whole)
            self._call.world.reset()
            try:
                with torch.enable_grad():
                    out = compiled(self._call.args, self._call.kwargs)
                    outs = self._call.outputs.tensors(out)
                return outs, self._pass.pulled(outs, self._pass.parts())
            except Exception:  # what it cannot trace as a whole it may in parts
                if not is_whole:
                    raise
        raise AssertionError

    def _autocast(self) -> Iterator[Trial]:
        """bfloat16 reaches as far as float32: what overflows is computed in float16."""
        low = {
            id(leaf): leaf.detach().float().requires_grad_(leaf.requires_grad)
            for leaf in self._pass.tensors()
            if leaf.dtype is torch.float64
        }
        works = [low.get(id(work), work) for work in self._pass.works]
        if any(work.dtype is not torch.float32 for work in works):
            return

        def pulled(factor: float) -> Vector:
            with autocast_on(works), self._pass.called_with(low):
                outs = self._pass.outs()
                parts = zip(self._pass.parts(), outs, strict=True)
                given = [(factor * part).to(out.dtype) for part, out in parts]
                return self._pass.flat(self._pass.pulled(outs, given, works)) / factor

        what = "a huge cotangent under autocast"
        try:
            usual, found = pulled(1.0), pulled(HUGE)
        except Exception as error:  # something that has to be given in float64
            yield Trial(what, error=error, refuses=True)
            return
        known = np.isfinite(usual)
        size = float(np.max(np.abs(usual[known]), initial=0.0))
        is_same = np.allclose(found[known], usual[known], rtol=2.0**-6, atol=2.0**-6 * size)
        fault = "" if is_same else "gives another gradient, as where float16 overflows"
        yield Trial(what, fault=fault)

    def _within(self) -> Vector:
        # What comes before and after a layer in a network: leaves are no leaves any more, and a
        # cotangent is what some other backward pass gives.
        with (
            torch.enable_grad(),
            self._pass.called_with({id(work): work * 1 for work in self._given}),
        ):
            total = torch.as_tensor(inner(self._pass.parts(), self._pass.outs()))
        return self._pass.flat(self._pass.pulled([total], [torch.ones_like(total)]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said of what cannot be transformed: the refusal tells it."""
    found = logging.root.manager.disable
    try:
        logging.disable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(found)


class Operators:
    """The operators of ``torch.library`` that a function calls, as they are registered."""

    def __init__(self, call: Call, cotangent: Vector) -> None:
        self._call, self._pass = call, Pass(call, cotangent)

    def trials(self) -> Iterator[Trial]:
        """What ``torch.library.opcheck`` says of each."""
        with Met() as met:
            self._pass.outs()
        for name, (operator, args, kwargs) in met.calls.items():
            with _quiet():
                said = torch.library.opcheck(operator, args, kwargs, raise_exception=False)
            self._call.world.watch()
            for test, outcome in said.items():
                what = f"{test} of {name}"
                yield Trial(what, error=outcome if isinstance(outcome, Exception) else None)


class Met(TorchFunctionMode):
    """The first call of every operator that is not torch's own, with copies of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, Any, Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload | OpOverloadPacket):
            name = str(func).removesuffix(".default")
            if name.partition(".")[0] not in OF_TORCH and name not in self.calls:
                self.calls[name] = func, *mapped(_copied, (args, kwargs))
        return func(*args, **kwargs)


def _copied(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)
