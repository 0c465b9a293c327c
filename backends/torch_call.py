"""One call of a PyTorch function: its leaves, its outputs, and how it is run."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import (
    BITS,
    DOUBLE,
    Entry,
    Layout,
    Positions,
    Vector,
    lay_out,
    refuse_unless_finite,
)
from xgradcheck._tree import flatten

from .random_states import TORCH
from .torch_exchanged import eager, mapped
from .torch_leaves import Binding, apart, dtype_of, refuse_freed, refuse_shared
from .torch_outputs import Outputs, outputs_of
from .torch_precision import bits_of_autocast, bits_of_products, shortest
from .torch_raising import Draws, raised
from .torch_surroundings import Here, Surroundings
from .torch_tensors import (
    array_of,
    has_custom,
    put_numbers,
    read_into,
    single_steps,
    told_by_graph,
)
from .torch_watched import Computed, computed_by


class Call:
    """A function with its arguments, and the world that it runs in."""

    backward_bits = DOUBLE
    """What the backward pass was raised to."""
    differentiates = False
    """Whether the outputs are gradients themselves."""

    def __init__(self, case: Case, binding: Binding) -> None:
        if not binding.slots:
            raise InvalidCase(
                "there is no floating tensor to check: pass one, or name the parameters with wrt=."
            )
        self.case, self.binding, self.slots = case, binding, binding.slots
        self.layout = lay_out(
            Entry(s.names, s.path, tuple(s.found.shape), dtype_of(s.found)) for s in self.slots
        )
        self.point: Vector = np.empty(self.layout.size)
        for slot, leaf in zip(self.slots, self.layout, strict=True):
            read_into(self.point[leaf.part], slot.found, leaf)
        self._here = Here(self.point)
        # A sum takes no memory; it may overflow where all is finite.
        if not math.isfinite(torch.from_numpy(self.point).sum()):
            for slot in self.slots:
                refuse_unless_finite(slot.name, array_of(slot.found))
        self.skipped = list(binding.skipped)
        # Read at once, which copies: the function may overwrite the gradients it left behind.
        self.given = None if case.grads is None or callable(case.grads) else self.read(case.grads)
        works = {slot.path: slot.work for slot in self.slots}
        own = {id(slot.found): slot.work for slot in self.slots}
        works |= {n.path: own[id(n.value)] for n in binding.nodes if id(n.value) in own}
        self.args, self.kwargs = case.arguments(works)
        refuse_shared(self.slots)
        self.around = Surroundings(case, binding)
        self.world = self.around.world(self.layout, self._here)
        self.grad_mode: Callable[[], Any] | None = None
        """The mode in which it is evaluated; None as long as that is not known."""
        self._learned: list[torch.Tensor] | None = None
        self._scope: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._seen_inside: dict[Any, Computed | None] = {}
        self.outputs = Outputs(Layout(()), [], [])
        self.bits, self.frozen = DOUBLE, np.empty(0, np.intp)
        with self.held():
            self._learn_outputs()
            self.bits = min(self.bits, self.layout.bits)
            self.world.is_settled = True

    @property
    def is_handed(self) -> bool:
        return self.case.grads is not None

    def read(self, returned: Any) -> Backward:
        """A gradient that the user gives."""
        return _handed.read(returned, self.layout, self.binding.places, array_of)

    @contextmanager
    def held(self) -> Iterator[None]:
        own = self.case.grads is None
        asked = [slot.work for slot in self.slots if own and not slot.work.requires_grad]
        try:
            for work in asked:
                work.requires_grad_()
            with torch.inference_mode(False), apart(self.slots), self.world.held():
                yield
        finally:
            for work in asked:
                work.requires_grad_(False)
        # The world is as it was found, and what was read of it holds until something runs again.
        self.world.is_read = True

    @property
    def moving(self) -> list[str]:
        names, dropping = self.world.moving, self.around.dropping
        if TORCH in names and dropping:
            names[names.index(TORCH)] = f"{TORCH} (dropout in {', '.join(dropping)})"
        return names

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        with self.world.moved(self._move, self.point, point):
            yield

    def _move(self, point: Vector) -> None:
        self.point = self._here.point = point
        for slot, leaf in zip(self.slots, self.layout, strict=True):
            put_numbers(slot.work, point[leaf.part])

    @contextmanager
    def called_with(self, other: Callable[[Any], Any]) -> Iterator[None]:
        """Other leaves in the arguments, as long as the context lasts."""
        found = self.args, self.kwargs
        try:
            self.args, self.kwargs = mapped(other, found)
            yield
        finally:
            self.args, self.kwargs = found

    def run(self) -> Any:
        """What the function returns for the leaves as they stand."""
        # Whoever calls again may write to what a graph has kept.
        self._learned = None
        with self._scope():
            return self.case.output(self.args, self.kwargs)

    def forward(self) -> list[torch.Tensor]:
        """The outputs with their graph: those that were looked at, if nothing ran since."""
        outs, self._learned = self._learned, None
        return self.outputs.tensors(self.run()) if outs is None else outs

    def _learn_outputs(self) -> None:
        """One forward pass as the backward will see it: which outputs there are, and which carry a
        gradient.
        """
        with torch.enable_grad():
            nodes = list(flatten(self.run(), (), "output"))
        refuse_freed(self.slots)
        self.world.watch()
        self.outputs, outs, said = outputs_of(nodes)
        self._say(said)
        bits, rows = told_by_graph(outs)
        bits = min(bits, bits_of_products(single_steps(outs), self._devices))
        # Raised functions draw in the dtype that they would draw in.
        is_short = min(self.layout.bits, self.outputs.layout.bits) < DOUBLE
        is_low = self._scope is nullcontext and is_short
        hides = is_low and has_custom(outs)
        if is_low:
            # The backward pass runs under it as well, also of what forward leaves alone.
            bits = min(bits, bits_of_autocast(self._devices))
        if hides:
            bits = min(bits, self._computed_bits())
        self.bits = min(self.outputs.layout.bits, bits)
        self.frozen = self._padding(rows)
        # The gradient can start from here, unless its backward is to find what a forward changed.
        is_stale = hides or self.world.is_moving or self.is_handed
        self._learned = None if is_stale else outs

    def _say(self, said: list[str]) -> None:
        self.skipped += [text for text in said if text not in self.skipped]

    def _padding(self, rows: dict[int, int]) -> Positions:
        """The rows of embeddings that are padding: torch gives them no gradient, whatever they do
        to the output.
        """
        found = [np.empty(0, np.intp)]
        for slot, leaf in zip(self.slots, self.layout, strict=True) if rows else ():
            row = rows.get(id(slot.work))
            if row is not None and slot.work.dim() == 2:
                columns = slot.work.shape[1]
                found.append(leaf.start + row * columns + np.arange(columns))
                self._say([f"{slot.name}[{row}]: the padding row, which torch holds constant"])
        return np.concatenate(found)

    @property
    def _devices(self) -> list[torch.device]:
        """Where the outputs lie, and the leaves."""
        return [*self.outputs.devices, *(slot.work.device for slot in self.slots)]

    @property
    def device(self) -> torch.device:
        """Where the work is done: an accelerator, where any of it is."""
        found = self._devices
        return next((device for device in found if device.type != "cpu"), found[0])

    def _computed_bits(self) -> int:
        """The shortest significand of all that is computed: the graph does not show what custom
        Functions compute in, as under autocast.
        """
        computed = self._watched()
        if computed is None:
            return DOUBLE
        products = bits_of_products(computed.single, self._devices)
        return min(shortest(computed.dtypes), products)

    @property
    def inside(self) -> Computed | None:
        """All that is computed, watched once for each dtype that it runs in; None for what cannot
        be watched.
        """
        if self._scope not in self._seen_inside:
            self._seen_inside[self._scope] = self._watched()
        return self._seen_inside[self._scope]

    def _watched(self) -> Computed | None:
        self.world.reset()
        try:
            with torch.enable_grad():
                return computed_by(self.run)
        finally:
            self.world.watch()

    def tried_without_graph(self, evaluate: Callable[[], Any]) -> Any:
        """The first evaluation without a graph: it tells whether the function itself needs one, as
        one that differentiates inside.
        """
        try:
            with torch.no_grad():
                found = evaluate()
        except Exception:
            self.world.reset()
            with torch.enable_grad():
                found = evaluate()
            self.grad_mode = torch.enable_grad
        else:
            self.grad_mode = torch.no_grad
        return found

    def graphless(self) -> AbstractContextManager[Any]:
        """The grad mode in which the function is evaluated."""
        if self.grad_mode is None:
            self.world.reset()
            self.tried_without_graph(self.run)
            self.world.reset()
        assert self.grad_mode is not None
        mode: AbstractContextManager[Any] = self.grad_mode()
        return mode

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        is_short = self.layout.bits < BITS["float32"]
        wider = [torch.float64, torch.float32] if is_short else [torch.float64]
        return [functools.partial(self._raised, dtype) for dtype in wider]

    @contextmanager
    def _raised(self, to: torch.dtype) -> Iterator[None]:
        draws = any(name.startswith(TORCH) for name in self.moving)
        kept = self.world, self.outputs, self.bits, self.backward_bits, self.grad_mode
        scope = self._scope
        native, default = self.slots[0].found.dtype.to_real(), torch.get_default_dtype()
        self.world.reset()
        with raised([*self.around.tensors(), *self.around.buffers()], to) as mode:

            def drawing() -> AbstractContextManager[Any]:
                return Draws(native, default, to) if draws else nullcontext()

            @contextmanager
            def drawing_eagerly() -> Iterator[None]:
                # A compiler cannot follow custom Functions as they are called now.
                with drawing(), eager():
                    yield

            @contextmanager
            def raising() -> Iterator[None]:
                with drawing_eagerly(), mode:
                    yield

            try:
                self.world = self.around.world(self.layout, self._here)
                self._scope, self.backward_bits = raising, shortest([to])
                with self.world.held():
                    self._learn_outputs()
                    # The tensors that it met are raised by now: without others, all goes its way.
                    mode.busy, self.grad_mode = False, None
                    self.tried_without_graph(self.run)
                    self._scope = raising if mode.busy else drawing_eagerly
                    yield
            finally:
                self._learned, self._scope = None, scope
                self.world, self.outputs, self.bits, self.backward_bits, self.grad_mode = kept
