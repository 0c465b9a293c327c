"""PyTorch: functions of tensors, modules, and closures over tensors; the gradient comes from
autograd.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad

from xgradcheck import _handed
from xgradcheck._adapters import COTANGENT, Backward, Case
from xgradcheck._errors import InvalidCase, short
from xgradcheck._layout import (
    BATCHED,
    BITS,
    DOUBLE,
    ComplexVector,
    Direction,
    Entry,
    Layout,
    Positions,
    Vector,
    lay_out,
    refuse_unless_finite,
    refuse_unless_known,
)
from xgradcheck._selection import argument_nodes
from xgradcheck._tree import Path, flatten, replaced

from .own_draws import draws_its_own
from .torch_batches import FEWEST, Rows, points_at_once, together
from .torch_exchanged import eager, exchanged, looked_up, mapped
from .torch_forms import forms
from .torch_leaves import (
    CONVERT,
    Binding,
    Slot,
    bound,
    dtype_of,
    is_floating,
    overlaps,
    refuse_freed,
    refuse_shared,
)
from .torch_moves import LEAST, MERGED, Stretch, Stretches, is_plain_double, writer
from .torch_precision import (
    autocast_on,
    bits_of_autocast,
    bits_of_products,
    matmul_precision,
    shortest,
    switches,
)
from .torch_probes import probes as probes
from .torch_raising import Draws, raised
from .torch_tensors import (
    Computed,
    graph_of,
    has_custom,
    inner,
    paired,
    put_numbers,
    read_into,
    single_steps,
    told_by_graph,
)
from .torch_tensors import (
    array_of as array_of,
)
from .torch_world import drops_out, named_modules, refuse_quantised, states_of, tensor_state
from .world import (
    TORCH,
    World,
    book_states,
    displaced,
    number_states,
    reachable,
)

REFUSED = "torch::autograd::Error"
INSIDE = ("incompatible with .grad()", ".backward()")
"""What a checkpoint that runs a backward pass of its own says to ``torch.autograd.grad``."""


def owns(contents: Any) -> bool:
    """Whether a tensor or a module is in the call."""
    return any(isinstance(node.value, torch.Tensor | nn.Module) for node in flatten(contents))


def from_numpy(array: Any) -> torch.Tensor:
    """A tensor of the same values and dtype."""
    return torch.from_numpy(np.array(array))


def read_file(path: Any, as_tensors: bool) -> Any:
    """What a file of tensors holds, or the same as NumPy arrays."""
    from .torch_files import read  # only the command asks

    return read(path, as_tensors)


def cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """The same numbers in another dtype, which is named as the core has it."""
    return tensor.detach().to(getattr(torch, dtype)).requires_grad_(tensor.requires_grad)


def on_device(contents: Any, device: str) -> Any:
    """Containers with their tensors on another device."""

    def moved(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().to(device).requires_grad_(value.requires_grad)

    try:
        return mapped(moved, contents)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without it
        raise InvalidCase(f"no tensor can lie on device {device!r} ({short(error)}).") from None


def autocast(args: Any) -> AbstractContextManager[Any]:
    """What a network may be called in with these arguments."""
    return autocast_on(node.value for node in flatten(args))


def planted(forward: Any, backward: Any, count: int) -> tuple[Any, Any]:
    """A function of ``count`` arrays with this backward pass, both in the operations of this
    framework; and its ``grads``, where those have to be handed in.
    """

    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: torch.Tensor) -> Any:
            ctx.save_for_backward(*args)
            return forward(torch, *args)

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            return backward(torch, cotangents[0], *ctx.saved_tensors)

    return Planted.apply, None


def bind(case: Case) -> "TorchProblem":
    """The problem that this call poses; refuses what cannot be checked."""
    with torch.inference_mode(False):
        case = replace(case, fn=looked_up(case.fn))
        return TorchProblem(case, bound(case))


def timed(case: Case) -> Any:
    """What runs one implementation again and again."""
    from .torch_timing import TorchTimed  # only benchmarks ask

    return TorchTimed(case)


def flags() -> dict[str, str]:
    """What torch was told of precision, and what it runs on."""
    matmul, told = torch.backends.cuda.matmul, switches()
    found = {
        "matmul precision": matmul_precision(),
        "cudnn precision": f"conv {told['conv']}, rnn {told['rnn']}",
        "reduced precision sums": str(bool(matmul.allow_bf16_reduced_precision_reduction)),
        "autocast": str(torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return {f"torch {name}": value for name, value in found.items()}


def devices() -> dict[str, str]:
    """What torch could run on."""
    if not torch.cuda.is_available():
        return {"torch devices": "cpu"}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"torch devices": ", ".join(["cpu", *names]), "torch cuda": str(torch.version.cuda)}


class Here:
    """Where the leaves lie now, and where they were found."""

    # Of its own, so that what compares with it need not know the problem: a circle of references
    # would keep arrays as large as the model until somebody collects it.

    def __init__(self, origin: Vector) -> None:
        self.origin = self.point = origin

    def part(self, part: slice) -> Vector:
        """The numbers of one leaf, as they are now."""
        return self.point[part]


class TorchProblem:
    """One call of a PyTorch function, seen from the core."""

    backward_bits = DOUBLE
    """What the backward pass was raised to."""
    _differentiates = False
    """Whether the outputs are gradients themselves."""

    def __init__(self, case: Case, binding: Binding) -> None:
        if not binding.slots:
            raise InvalidCase(
                "there is no floating tensor to check: pass one, or name the parameters with wrt=."
            )
        self._case, self._binding = case, binding
        self._slots, self._places = binding.slots, binding.places
        self.layout = lay_out(
            Entry(s.names, s.path, tuple(s.found.shape), dtype_of(s.found)) for s in self._slots
        )
        self.point: Vector = np.empty(self.layout.size)
        for slot, leaf in zip(self._slots, self.layout, strict=True):
            read_into(self.point[leaf.part], slot.found, leaf)
        self._here = Here(self.point)
        # A sum takes no memory; it may overflow where all is finite.
        if not math.isfinite(torch.from_numpy(self.point).sum()):
            for slot in self._slots:
                refuse_unless_finite(slot.name, array_of(slot.found))
        self.skipped = list(binding.skipped)
        # Read at once, which copies: the function may overwrite the gradients it left behind.
        self._given = None if case.grads is None or callable(case.grads) else self._read(case.grads)
        works = {slot.path: slot.work for slot in self._slots}
        own = {id(slot.found): slot.work for slot in self._slots}
        works |= {n.path: own[id(n.value)] for n in binding.nodes if id(n.value) in own}
        self._args, self._kwargs = case.arguments(works)
        refuse_shared(self._slots)
        self._found = reachable(case.fn, case.args, case.kwargs, case.wrt, case.loss, case.grads)
        self._modules = named_modules(self._found)
        refuse_quantised(self._modules)
        self._others = [n.value for n in binding.nodes if isinstance(n.value, torch.Tensor)]
        self._world = self._surroundings()
        self._grad_mode: Callable[[], Any] | None = None
        self._learned: list[torch.Tensor] | None = None
        self._draws_its_own: bool | None = None
        pairs = zip(self._slots, self.layout, strict=True)
        self._spans = [(slot, leaf.start, leaf.start + leaf.size) for slot, leaf in pairs]
        self._scanned: Vector | None = None
        self._has_minus_zero = False
        self._scope: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._seen_inside: dict[Any, Computed | None] = {}
        self._paths: list[Path] = []
        self._batch: int | None = None
        # A gradient for a leaf inside a batch would be one for the leaf outside of it.
        self._is_single = self._differentiates
        self.outputs = Layout(())
        self.bits, self.frozen = DOUBLE, np.empty(0, np.intp)
        with self.held():
            self._learn_outputs()
            self.bits = min(self.bits, self.layout.bits)
            self._world.is_settled = True
        self.unit_cotangent = case.grads is not None and not _handed.takes_cotangent(
            case.grads, len(case.args), case.kwargs, self.outputs
        )

    def _surroundings(self) -> World:
        states = states_of(self._found, self._modules)
        leaves, origin = {}, Here(self._here.origin)
        names = {id(slot.work): slot.name for slot in self._slots}
        for slot, leaf in zip(self._slots, self.layout, strict=True):
            leaves[id(slot.found)] = functools.partial(origin.part, leaf.part)
            leaves[id(slot.work)] = functools.partial(self._here.part, leaf.part)
        for tensor in self._tensors_around():
            if tensor.layout is torch.strided:
                name = names.get(id(tensor), "a tensor")
                states.append(tensor_state(tensor, name, leaves.get(id(tensor))))
        plain = [node for node in self._found if not isinstance(node, nn.Module | torch.Tensor)]
        holders = [self._case.wrt] if self._case.is_closure else []
        found, roots = [slot.found for slot in self._slots], [self._case.args, self._case.kwargs]
        books = book_states(plain, [*holders, *found], roots)
        return World(states, list(number_states(self._found)), list(books))

    def _tensors_around(self) -> list[torch.Tensor]:
        """Every tensor that a call is known to reach, each once; buffers stand with their
        modules.
        """
        tensors = [slot.work for slot in self._slots] + self._others
        for module in self._modules.values():
            tensors += [v for v in vars(module).values() if isinstance(v, torch.Tensor)]
            tensors += module.parameters(recurse=False)
        tensors += [node for node in self._found if isinstance(node, torch.Tensor)]
        held = {id(buffer) for buffer in self._buffers()}
        return list({id(t): t for t in tensors if id(t) not in held}.values())

    def _buffers(self) -> Iterator[torch.Tensor]:
        for module in self._modules.values():
            yield from (buffer for buffer in module._buffers.values() if buffer is not None)

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        is_short = self.layout.bits < BITS["float32"]
        wider = [torch.float64, torch.float32] if is_short else [torch.float64]
        return [functools.partial(self._raised, dtype) for dtype in wider]

    @contextmanager
    def _raised(self, to: torch.dtype) -> Iterator[None]:
        draws = any(name.startswith(TORCH) for name in self.moving)
        kept = self._world, self.outputs, self.bits, self.backward_bits, self._grad_mode
        scope = self._scope
        native, default = self._slots[0].found.dtype.to_real(), torch.get_default_dtype()
        self._world.reset()
        with raised([*self._tensors_around(), *self._buffers()], to) as mode:

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
                self._world, self._scope = self._surroundings(), raising
                self.backward_bits = shortest([to])
                with self._world.held():
                    self._learn_outputs()
                    # The tensors that it met are raised by now: without others, all goes its way.
                    mode.busy, self._grad_mode = False, None
                    self._tried_without_graph(self._call)
                    self._scope = raising if mode.busy else drawing_eagerly
                    yield
            finally:
                self._learned, self._scope = None, scope
                self._world, self.outputs, self.bits, self.backward_bits, self._grad_mode = kept

    @contextmanager
    def held(self) -> Iterator[None]:
        own = self._case.grads is None
        asked = [slot.work for slot in self._slots if own and not slot.work.requires_grad]
        try:
            for work in asked:
                work.requires_grad_()
            with torch.inference_mode(False), self._apart(), self._world.held():
                yield
        finally:
            for work in asked:
                work.requires_grad_(False)
        # The world is as it was found, and what was read of it holds until something runs again.
        self._world.is_read = True

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Elements that lie on one number, as after expand, each in a place of its own."""
        shared = [slot.work for slot in self._slots if overlaps(slot.work)]
        found = [work.data for work in shared]
        try:
            for work in shared:
                work.data = work.detach().clone(memory_format=torch.contiguous_format)
            yield
        finally:
            for work, data in zip(shared, found, strict=True):
                work.data = data

    @property
    def moving(self) -> list[str]:
        names = self._world.moving
        dropping = [name for name, part in self._modules.items() if drops_out(part)]
        if TORCH in names and dropping:
            names[names.index(TORCH)] = f"{TORCH} (dropout in {', '.join(dropping)})"
        return names

    def hold_numbers(self) -> list[str]:
        return self._world.hold_numbers()

    @property
    def is_handed(self) -> bool:
        return self._case.grads is not None

    @property
    def can_move(self) -> bool:
        return self._given is None

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        with self._world.moved(self._move, self.point, point):
            yield

    def _move(self, point: Vector) -> None:
        self.point = self._here.point = point
        for slot, leaf in zip(self._slots, self.layout, strict=True):
            put_numbers(slot.work, point[leaf.part])

    def _call(self) -> Any:
        # Whoever calls again may write to what a graph has kept.
        self._learned = None
        with self._scope():
            return self._case.output(self._args, self._kwargs)

    def _learn_outputs(self) -> None:
        """One forward pass as the backward will see it: which outputs there are, and which carry a
        gradient.
        """
        with torch.enable_grad():
            nodes = list(flatten(self._call(), (), "output"))
        refuse_freed(self._slots)
        self._world.watch()
        floating = [node for node in nodes if is_floating(node.value)]
        if not floating:
            kinds = ", ".join(type(node.value).__name__ for node in nodes) or "nothing"
            raise InvalidCase(
                f"the function returned {kinds}, no floating tensor: let it return its value."
            )
        kept = [node for node in floating if node.value.requires_grad] or floating
        for node in kept:
            refuse_unless_known(node.suffix, dtype_of(node.value), CONVERT)
        left = [node for node in nodes if node not in kept]
        said = [f"{node.suffix}: {_kind(node.value)}, not differentiable" for node in left]
        self.skipped += [text for text in said if text not in self.skipped]
        self.outputs = lay_out(
            Entry((n.suffix,), n.path, tuple(n.value.shape), dtype_of(n.value)) for n in kept
        )
        outs, self._paths = [node.value for node in kept], [node.path for node in kept]
        self._devices = [out.device for out in outs]
        bits, rows = told_by_graph(outs)
        bits = min(bits, bits_of_products(single_steps(outs), self._all_devices))
        # Raised functions draw in the dtype that they would draw in.
        is_low = self._scope is nullcontext and min(self.layout.bits, self.outputs.bits) < DOUBLE
        hides = is_low and has_custom(outs)
        if is_low:
            # The backward pass runs under it as well, also of what forward leaves alone.
            bits = min(bits, bits_of_autocast(self._all_devices))
        if hides:
            bits = min(bits, self._computed_bits())
        self.bits = min(self.outputs.bits, bits)
        self.frozen = self._padding(rows)
        # The gradient can start from here, unless its backward is to find what a forward changed.
        is_stale = hides or self._world.is_moving or self.is_handed
        self._learned = None if is_stale else outs

    def _computed_bits(self) -> int:
        """The shortest significand of all that is computed: the graph does not show what custom
        Functions compute in, as under autocast.
        """
        computed = self._watched()
        if computed is None:
            return DOUBLE
        products = bits_of_products(computed.single, self._all_devices)
        return min(shortest(computed.dtypes), products)

    @property
    def _all_devices(self) -> list[torch.device]:
        """Where the outputs lie, and the leaves."""
        return [*self._devices, *(slot.work.device for slot in self._slots)]

    @property
    def device(self) -> torch.device:
        """Where the work is done: an accelerator, where any of it is."""
        found = self._all_devices
        return next((device for device in found if device.type != "cpu"), found[0])

    def _watched(self) -> Computed | None:
        """All that is computed once; None for what cannot be watched."""
        self._world.reset()
        computed = Computed()
        try:
            with torch.enable_grad(), eager(), computed:
                self._call()
        except Exception:
            return None
        finally:
            self._world.watch()
        return computed

    def bits_of_backward(self, cotangent: Vector) -> int:
        """The shortest significand of all that the backward pass computes; 0 where that is not
        known.
        """
        computed = Computed()
        try:
            with eager(), computed:
                self.gradient(cotangent)
        except Exception:
            return 0
        return shortest(computed.dtypes)

    @property
    def rounds(self) -> bool:
        return self._inside is not None and self._inside.rounds

    @property
    def switches(self) -> bool:
        """Whether truth values, or signs, become numbers."""
        return self._inside is not None and self._inside.switches

    @property
    def bits_inside(self) -> int:
        """The shortest significand of all that is computed, be it on the way to the output or
        beside it.
        """
        return DOUBLE if self._inside is None else shortest(self._inside.dtypes)

    @property
    def _inside(self) -> Computed | None:
        """The same, watched once for each dtype that it runs in."""
        if self._scope not in self._seen_inside:
            self._seen_inside[self._scope] = self._watched()
        return self._seen_inside[self._scope]

    def _padding(self, rows: dict[int, int]) -> Positions:
        """The rows of embeddings that are padding: torch gives them no gradient, whatever they do
        to the output.
        """
        found = [np.empty(0, np.intp)]
        for slot, leaf in zip(self._slots, self.layout, strict=True) if rows else ():
            row = rows.get(id(slot.work))
            if row is not None and slot.work.dim() == 2:
                columns = slot.work.shape[1]
                found.append(leaf.start + row * columns + np.arange(columns))
                said = f"{slot.name}[{row}]: the padding row, which torch holds constant"
                self.skipped += [] if said in self.skipped else [said]
        return np.concatenate(found)

    def _tried_without_graph(self, evaluate: Callable[[], Any]) -> Any:
        """The first evaluation without a graph: it tells whether the function itself needs one, as
        one that differentiates inside.
        """
        try:
            with torch.no_grad():
                found = evaluate()
        except Exception:
            self._world.reset()
            with torch.enable_grad():
                found = evaluate()
            self._grad_mode = torch.enable_grad
        else:
            self._grad_mode = torch.no_grad
        return found

    def _graphless(self) -> AbstractContextManager[Any]:
        """The grad mode in which the function is evaluated."""
        if self._grad_mode is None:
            self._world.reset()
            self._tried_without_graph(self._call)
            self._world.reset()
        assert self._grad_mode is not None
        mode: AbstractContextManager[Any] = self._grad_mode()
        return mode

    def _tensors(self, out: Any) -> list[torch.Tensor]:
        if self._paths == [()]:
            return [out]
        parts = {node.path: node.value for node in flatten(out)}
        return [parts[path] for path in self._paths]

    def _cotangents(self, cotangent: Vector) -> list[torch.Tensor]:
        """The cotangents of the outputs, for the function under test to do with as it likes."""
        return self._cut(cotangent.copy())

    def _cut(self, cotangent: Vector) -> list[torch.Tensor]:
        parts = _handed.cut(cotangent, self.outputs)
        # The parts of a complex number put together are a number, and no array.
        pairs = zip(parts, self._devices, strict=True)
        return [torch.from_numpy(np.asarray(part)).to(device) for part, device in pairs]

    def pushed(self, cotangent: Vector) -> Backward:
        if self.is_handed:
            raise _handed.no_forward_mode()
        self._refuse_views_made_before()
        parts, gradient = self._cotangents(cotangent), np.empty(self.layout.size)
        self._refuse_dropped_tangents()
        for position, tangent in _handed.one_by_one(self.layout.size):
            self._world.reset()
            with _refused_without_rule():
                tangents = self._tangents(tangent)
            pairs = zip(parts, tangents, strict=True)
            moved = [(part, own) for part, own in pairs if own is not None]
            gradient[position] = paired(*zip(*moved, strict=True)) if moved else 0.0
        return Backward(None, gradient, frozenset())

    def _refuse_dropped_tangents(self) -> None:
        """Raise where operators have no rule for tangents. Without a graph some say nothing, and
        drop them.
        """
        self._world.reset()
        try:
            with _refused_without_rule():
                self._tangents(np.ones(self.layout.size), with_graph=True)
        except RuntimeError:  # a leaf that is written to, which has to be no leaf then
            pass
        finally:
            self._world.watch()

    def _refuse_views_made_before(self) -> None:
        """Raise where something else reads the memory of a leaf: no tangent gets there."""
        memory = {slot.work.untyped_storage().data_ptr(): slot for slot in self._slots}
        works = {id(slot.work) for slot in self._slots} | {id(slot.found) for slot in self._slots}
        for tensor in self._found:
            if not isinstance(tensor, torch.Tensor) or id(tensor) in works:
                continue
            if tensor.layout is torch.strided and tensor.numel():
                slot = memory.get(tensor.untyped_storage().data_ptr())
                if slot is not None:
                    raise InvalidCase(
                        f"a view of {slot.name} was made before the call, and tangents do not "
                        f"reach it: make it inside the function, or leave modes out."
                    )

    def _tangents(self, tangent: Vector, with_graph: bool = False) -> list[torch.Tensor | None]:
        """What forward mode makes of a tangent of the leaves, output by output."""
        ad: Any = forward_ad
        found, duals = (self._args, self._kwargs), {}
        with ad.dual_level():
            parts = _handed.cut(tangent, self.layout)
            for slot, part in zip(self._slots, parts, strict=True):
                moved = torch.from_numpy(part.copy()).to(slot.work)
                has_graph = with_graph or self._differentiates
                with warnings.catch_warnings(), torch.set_grad_enabled(has_graph):
                    # Loading its own rules, torch warns of itself.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    duals[id(slot.work)] = ad.make_dual(slot.work, moved)
            try:
                self._args, self._kwargs = mapped(lambda leaf: duals.get(id(leaf), leaf), found)
                with torch.set_grad_enabled(with_graph), eager(), exchanged(duals) as mode:
                    outs = [mode.other(out) for out in self._tensors(self._call())]
            finally:
                self._args, self._kwargs = found
            return [ad.unpack_dual(out).tangent for out in outs]

    def second(self, cotangent: Vector) -> "TorchProblem":
        if self.is_handed:
            raise _handed.no_second_order()
        return _Second(self, cotangent)

    def values(self) -> tuple[Vector, list[Any]]:
        mode = self._graphless()
        self._world.reset()
        with mode:
            out = self._call()
        floating = np.concatenate([_handed.numbers(array_of(t)) for t in self._tensors(out)])
        others = [node.value for node in flatten(out) if isinstance(node.value, torch.Tensor)]
        return floating, [other.cpu().numpy() for other in others if not is_floating(other)]

    def _evaluator(self, cotangent: Vector) -> Callable[[], float]:
        """phi as a function of the leaves as they stand, with as little Python on the way as can
        be.
        """
        call = self._call
        if self._paths == [()] and self.outputs.size == 1:
            scale = float(cotangent[0])

            def scalar() -> float:
                return scale * float(call().detach())

            return scalar

        cotangents = self._cut(cotangent if cotangent.flags.writeable else cotangent.copy())

        def reduced() -> float:
            return paired(cotangents, self._tensors(call()))

        return reduced

    def along(self, direction: Direction, steps: Vector, start: int, cotangent: Vector) -> Vector:
        values, evaluate = np.empty(len(steps)), self._evaluator(cotangent)
        moved = self._stretches(direction, start)

        def at(step: float) -> float:
            self._world.reset()
            for stretch in moved:
                stretch.move(step)
            return evaluate()

        try:
            todo = list(enumerate(steps.tolist()))
            if todo and self._grad_mode is None:
                first, step = todo.pop(0)
                values[first] = self._tried_without_graph(functools.partial(at, step))
            with self._graphless():
                for number, step in todo:
                    values[number] = at(step)
        finally:
            for stretch in moved:
                stretch.put_back()
        return values

    def _stretches(self, direction: Direction, start: int) -> "list[Stretch] | list[Stretches]":
        """What of the leaves lies under a direction."""
        if not (direction.flags.c_contiguous and direction.flags.writeable):
            direction = direction.copy()
        stop, adds, found = start + direction.size, self._moves_by_sums(), []
        spans = [span for span in self._spans if start <= span[1] and span[2] <= stop]
        is_all = sum(last - first for _, first, last in spans) == direction.size <= MERGED
        if adds and is_all and all(is_plain_double(slot.work) for slot, _, _ in spans):
            works = [slot.work for slot, _, _ in spans]
            return [Stretches(works, self.point[start:stop], direction)]
        for slot, begin, end in self._spans:
            first, last = max(start, begin), min(stop, end)
            if first < last:
                part = direction[first - start : last - start]
                within, numbers = slice(first - begin, last - begin), self.point[begin:end]
                found.append(Stretch(slot.work, numbers, within, part, adds))
        return found

    def _moves_by_sums(self) -> bool:
        """Whether a sum leaves what does not move as it is: minus zero plus zero is zero."""
        if self._scanned is not self.point:
            self._scanned = self.point
            # Of all bits, taken for whole numbers, those of -0.0 are the least; to find the least
            # takes no memory.
            self._has_minus_zero = bool(self.point.view(np.int64).min(initial=0) == LEAST)
        return not self._has_minus_zero

    @property
    def batch(self) -> int:
        if self._batch is None:
            self._batch = 1 if self._is_single else self._points_at_once()
        return self._batch

    def one_by_one(self) -> None:
        self._is_single, self._batch = True, 1

    def _points_at_once(self) -> int:
        largest = max(slot.work.numel() * slot.work.itemsize for slot in self._slots)
        mode = self._graphless()
        self._world.reset()
        try:
            with mode:
                return points_at_once(self._call, largest)
        except Exception:  # what cannot even be counted
            return 1
        finally:
            self._world.reset()

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        values, owners = np.empty(len(index)), self.layout.owners(index)
        for owner in np.unique(owners):
            own = np.flatnonzero(owners == owner)
            places, moved = index[own] - self.layout.leaves[owner].start, self.point[index[own]]
            moved = moved + steps[own]
            found = self._together(owner, places, moved, cotangent)
            values[own] = self._singly(owner, places, moved, cotangent) if found is None else found
        return values

    def _singly(self, owner: int, places: Positions, moved: Vector, cotangent: Vector) -> Vector:
        values, evaluate = np.empty(len(places)), self._evaluator(cotangent)
        base = self.point[self.layout.leaves[owner].start + places]
        work = self._slots[owner].work
        put, memory = writer(work), work.data_ptr()
        steps = zip(places.tolist(), moved.tolist(), base.tolist(), strict=True)
        with self._graphless():
            for number, (place, there, here) in enumerate(steps):
                self._world.reset()
                try:
                    put(place, there)
                    values[number] = evaluate()
                finally:
                    # A function may put other memory under its tensors, as cuDNN's networks do.
                    if work.data_ptr() != memory:
                        put, memory = writer(work), work.data_ptr()
                    put(place, here)
        return values

    def _together(
        self, owner: int, places: Positions, moved: Vector, cotangent: Vector
    ) -> Vector | None:
        """Many points of one leaf in batches; None where single ones are as good, or have to be."""
        if len(places) < FEWEST or not self._has_batches(owner):
            return None
        count = min(self.batch, len(places) + 1)
        base = self.point[self.layout.leaves[owner].start + places]

        def run() -> Vector:
            rows, values = Rows(self._slots[owner].work, count), np.empty(len(places))
            phi = self._phi_of_rows(rows, owner, cotangent)
            self._world.reset()
            here = self._evaluator(cotangent)()
            for first in range(0, len(places), count - 1):
                part = slice(first, first + count - 1)
                rows.put(places[part], moved[part])
                found = phi()
                # The first row is the point itself: what rounding in batches does to it, it does
                # to all.
                values[part] = here + (found[1 : 1 + len(values[part])] - found[0])
                rows.put(places[part], base[part])
            return values

        return self._tried(run)

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        owner = int(self.layout.owners(np.array([start]))[0])
        if not self._has_batches(owner):
            return None
        leaf = self.layout.leaves[owner]

        def run() -> Vector:
            rows = Rows(self._slots[owner].work, len(steps))
            for row, step in enumerate(steps):
                moved = displaced(self.point[leaf.part], direction, step).reshape(leaf.grid)
                whole = moved[0] + 1j * moved[1] if leaf.is_complex else moved
                rows.put_whole(row, torch.from_numpy(whole))
            return self._phi_of_rows(rows, owner, cotangent)()

        return self._tried(run)

    def _has_batches(self, owner: int) -> bool:
        return self.layout.leaves[owner].size >= BATCHED and self.batch > 1

    def _tried(self, run: Callable[[], Vector]) -> Vector | None:
        """What batches give; None, and single points from now on, where there is no rule for them,
        or something looks at the values.
        """
        mode = self._graphless()
        try:
            with mode:
                return run()
        except Exception:
            self.one_by_one()
            self._world.watch()
            return None

    def _phi_of_rows(self, rows: Rows, owner: int, cotangent: Vector) -> Callable[[], Vector]:
        """phi for the rows as they stand, in the place of a leaf."""
        parts, work = self._cotangents(cotangent), self._slots[owner].work

        def of_one(other: Callable[[Any], Any]) -> Any:
            return inner(parts, [other(out) for out in self._tensors(self._call())])

        def of_all() -> Vector:
            self._world.reset()
            return together(rows, work, self._world.written, of_one)

        return of_all

    @property
    def can_be_complex(self) -> bool:
        # Parameters of modules and tensors of closures are the user's own, and those are real.
        if self._case.is_closure or isinstance(self._case.fn, nn.Module):
            return False
        return not any(leaf.is_complex for leaf in (*self.layout, *self.outputs))

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        case, values = self._case, np.empty(len(index), complex)
        cotangents = self._cotangents(cotangent)
        # Operations on mixed kinds are refused: what is no leaf becomes complex as well.
        nodes = [node for node in argument_nodes(case) if is_floating(node.value)]
        still = {id(node.value): node.value.detach().to(torch.complex128) for node in nodes}
        for number, (position, step) in enumerate(zip(index, steps, strict=True)):
            point = self.point.astype(complex)
            point[position] += 1j * step
            parts = _handed.cut(point, self.layout)
            moved = still | {
                id(slot.found): torch.from_numpy(part).to(slot.found.device)
                for slot, part in zip(self._slots, parts, strict=True)
            }
            self._world.reset()
            args, kwargs = case.arguments({node.path: moved[id(node.value)] for node in nodes})
            with torch.no_grad(), warnings.catch_warnings():
                # What is cast to real numbers on its way makes a warning: no complex step then.
                warnings.simplefilter("error")
                outs = self._tensors(case.output(args, kwargs))
                total = sum(complex((u * o).sum()) for u, o in zip(cotangents, outs, strict=True))
            values[number] = total if any(map(torch.is_complex, outs)) else np.nan
        return values

    def gradient(self, cotangent: Vector) -> Backward:
        if self._given is not None:
            return self._given
        self._world.reset()
        before = set(self._world.moving)
        answer = (
            self._autograd(cotangent) if self._case.grads is None else self._from_user(cotangent)
        )
        self._world.watch()
        # What a forward pass writes to is known by now.
        new = [name for name in self._world.moving if name not in before]
        written = [slot.name for slot in self._slots if slot.name in new]
        return answer._replace(written=(*answer.written, *written)) if written else answer

    def _autograd(self, cotangent: Vector) -> Backward:
        with torch.enable_grad():
            outs, self._learned = self._learned, None
            outs = self._tensors(self._call()) if outs is None else outs
            cotangents = self._cotangents(cotangent)
            value = paired(cotangents, outs)
            given = self._in_their_dtypes(self._cotangents(cotangent), outs)
            reached = [
                (out, part) for out, part in zip(outs, given, strict=True) if out.requires_grad
            ]
            found: list[torch.Tensor | None] = [None] * len(self._slots)
            told: dict[str, str] = {}
            if reached:
                tensors, parts = zip(*reached, strict=True)
                with forms() as told:
                    found = self._pulled_back(tensors, parts)
        severed = frozenset(number for number, grad in enumerate(found) if grad is None)
        gradient = np.zeros(self.layout.size)
        for number, leaf in enumerate(self.layout):
            # Each is let go once it is read: all of them are as large as the model.
            grad, found[number] = found[number], None
            if grad is not None:
                read_into(gradient[leaf.part], grad, leaf)
        pairs = zip(given, self._in_their_dtypes(cotangents, outs), strict=True)
        is_same = all(torch.equal(part, own) for part, own in pairs)
        written = () if is_same else (COTANGENT,)
        misfits = [
            f"what the backward of {name} returns {text}" for name, text in told.items() if text
        ]
        return Backward(value, gradient, severed, written=written, misfits=tuple(misfits))

    def _pulled_back(
        self, outs: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """The gradients of the leaves; those that a backward pass inside of a custom Function's
        reaches, as that of a reentrant checkpoint does, are left in ``.grad`` alone.
        """
        works = [slot.work for slot in self._slots]
        leaves = [work for work in works if work.is_leaf]
        kept = [work.grad for work in leaves]
        try:
            for work in leaves:
                work.grad = None
            try:
                found: list[torch.Tensor | None] = [
                    *torch.autograd.grad(outs, works, parts, allow_unused=True)
                ]
            except RuntimeError as error:
                if not any(text in str(error) for text in INSIDE):
                    raise
            else:
                is_all = all(own is not None for own in found)
                if (is_all or not has_custom(outs)) and all(w.grad is None for w in leaves):
                    return found
            for work in leaves:
                work.grad = None
            self._world.reset()
            again = [out for out in self._tensors(self._call()) if out.requires_grad]
            torch.autograd.backward(again, parts)
            return [work.grad if work.is_leaf else None for work in works]
        finally:
            for work, grad in zip(leaves, kept, strict=True):
                work.grad = grad

    @staticmethod
    def _in_their_dtypes(
        parts: list[torch.Tensor], outs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        return [part.to(out.dtype) for part, out in zip(parts, outs, strict=True)]

    def _from_user(self, cotangent: Vector) -> Backward:
        with torch.no_grad():
            # Forward first: a class keeps what its backward needs from the last forward, and phi
            # comes with it.
            out = self._call()
            value = paired(self._cotangents(cotangent), self._tensors(out))
        self._world.rewind()
        answer = self._asked(out, cotangent)
        if self._draws_its_own is None:
            self._draws_its_own = self._draws_beside(out, cotangent)
        answer = answer._replace(draws_its_own=self._draws_its_own)
        return answer if answer.value is not None else answer._replace(value=value)

    def _asked(self, out: Any, cotangent: Vector) -> Backward:
        """What the user's function of the gradient returns, beside this output."""
        args = self._args
        if not self.unit_cotangent:
            parts = self._in_their_dtypes(self._cotangents(cotangent), self._tensors(out))
            args = (replaced(out, dict(zip(self._paths, parts, strict=True))), *args)
        return self._read(self._case.grads(*args, **self._kwargs))

    def _draws_beside(self, out: Any, cotangent: Vector) -> bool:
        """Whether the gradient is one for other random numbers than those of the forward pass."""

        def forward() -> None:
            with torch.no_grad():
                self._call()

        def gradient() -> Vector:
            return self._asked(out, cotangent).gradient

        def elsewhere() -> AbstractContextManager[None]:
            return self.at(_handed.another(self.point))

        return draws_its_own(self._case, self._world, forward, gradient, elsewhere, array_of)

    def _read(self, returned: Any) -> Backward:
        return _handed.read(returned, self.layout, self._places, array_of)


class _Second(TorchProblem):
    """The gradients of a problem as the outputs of another one."""

    _differentiates = True

    def __init__(self, first: TorchProblem, cotangent: Vector) -> None:
        pairs = zip(first._cotangents(cotangent), first.outputs, strict=True)
        self._parts = [part.to(getattr(torch, leaf.dtype)) for part, leaf in pairs]
        names = _handed.cotangent_names(first.outputs)
        parts = zip(names, self._parts, strict=True)
        # A gradient depends on its cotangent too: its derivative is the gradient's jvp.
        cotangents = [Slot((name,), (name,), part, part) for name, part in parts]
        self._first, found = first, first._binding
        super().__init__(first._case, replace(found, slots=[*found.slots, *cotangents]))

    def _call(self) -> Any:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            outs = self._first._tensors(super()._call())
            # A backward that is marked once_differentiable says so: its cotangent requires grad.
            pairs = zip(outs, self._parts, strict=True)
            reached = [(out, part.to(out.dtype)) for out, part in pairs if out.requires_grad]
            slots = self._first._slots
            works = [slot.work for slot in slots]
            grads: Sequence[torch.Tensor | None] = [None] * len(works)
            if reached:
                tensors, parts = zip(*reached, strict=True)
                grads = torch.autograd.grad(
                    tensors, works, parts, create_graph=graph, allow_unused=True
                )
        if any(node.name() == REFUSED for node in graph_of(g for g in grads if g is not None)):
            raise InvalidCase("its backward pass is once_differentiable: check it with order=1.")
        return {
            slot.name: torch.zeros_like(slot.work) if grad is None else grad
            for slot, grad in zip(slots, grads, strict=True)
        }


@contextmanager
def _refused_without_rule() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise InvalidCase(
            f"it has no rule for forward mode ({str(error).splitlines()[0]}): leave modes out."
        ) from None


def _kind(value: Any) -> str:
    return dtype_of(value) if isinstance(value, torch.Tensor) else type(value).__name__
