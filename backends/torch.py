"""PyTorch: functions of tensors, modules, and closures over tensors; the gradient comes from
autograd.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import (
    BATCHED,
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
from xgradcheck._selection import Candidate, argument_nodes, closure_nodes, select
from xgradcheck._tree import Node, Path, flatten, replaced

from .torch_batches import FEWEST, Rows, offsets, points_at_once, together, width
from .torch_exchanged import eager, exchanged, mapped
from .torch_forms import forms
from .torch_probes import probes as probes
from .torch_raising import Draws, raised
from .torch_tensors import (
    Computed,
    bits_of_tensor,
    graph_of,
    has_custom,
    inner,
    paired,
    put_numbers,
    read_into,
    set_bits,
)
from .torch_tensors import (
    array_of as array_of,
)
from .world import (
    TORCH,
    State,
    World,
    attributes_state,
    displaced,
    element_writer,
    number_states,
    plain_states,
    random_states,
    reachable,
    same_bytes,
)

# What modules keep for themselves; their mode and their buffers have states of their own.
OWN = {*vars(nn.Module())}
REFUSED = "torch::autograd::Error"
INSIDE = "incompatible with .grad()"
"""What a checkpoint that runs a backward pass of its own says to ``torch.autograd.grad``."""
CONVERT = "convert it with .float() or .double()"


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


def autocast() -> AbstractContextManager[Any]:
    """What a network may be called in."""
    return torch.autocast("cpu", torch.bfloat16)


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
        if isinstance(case.fn, nn.Module):
            return TorchProblem(case, _of_module(case, case.fn))
        return TorchProblem(case, _of_closure(case) if case.is_closure else _of_arguments(case))


def timed(case: Case) -> Any:
    """What runs one implementation again and again."""
    from .torch_timing import TorchTimed  # only benchmarks ask

    return TorchTimed(case)


def flags() -> dict[str, str]:
    """What torch was told of precision, and what it runs on."""
    matmul = torch.backends.cuda.matmul
    found = {
        "matmul precision": torch.get_float32_matmul_precision(),
        "reduced precision sums": str(bool(matmul.allow_bf16_reduced_precision_reduction)),
        "cudnn TF32": str(torch.backends.cudnn.allow_tf32),
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


@dataclass(slots=True)
class Slot:
    """A leaf: the tensor of the user, and the one that the function gets to see and that is
    perturbed.
    """

    names: tuple[str, ...]
    path: Path
    found: torch.Tensor
    work: torch.Tensor

    @property
    def name(self) -> str:
        return " = ".join(self.names)


@dataclass(slots=True)
class Binding:
    """The leaves of one call, and what stands around them."""

    slots: list[Slot]
    places: _handed.Places
    skipped: list[str]
    nodes: list[Node]
    """Every leaf of the arguments."""


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _of_arguments(case: Case) -> Binding:
    """Leaves of a function's arguments: those that require grad, or all floating ones if none
    does.
    """
    nodes = argument_nodes(case)
    tensors = _grouped(
        (node.suffix, node.path, node.value) for node in nodes if _is_floating(node.value)
    )
    if case.wrt is None and case.grads is None:
        chosen = [slot for slot in tensors if slot.found.requires_grad] or tensors
    else:
        chosen = _selected(0 if case.wrt is None else case.wrt, tensors, len(case.args))
    reason = "does not require grad" if case.wrt is None else "not in wrt"
    skipped = [f"{slot.name}: {reason}" for slot in tensors if slot not in chosen]
    return _binding([_in_copy(slot) for slot in chosen], nodes, skipped)


def _of_module(case: Case, module: nn.Module) -> Binding:
    """Leaves of a module: its parameters, in place, and its inputs where they are asked for."""
    nodes = argument_nodes(case, module.forward)
    inputs = _grouped(
        (node.suffix, node.path, node.value) for node in nodes if _is_floating(node.value)
    )
    parameters = _grouped(_parameters(module))
    taken = {name for slot in parameters for name in slot.names}
    for slot in inputs:
        slot.names = tuple(f"input {name}" if name in taken else name for name in slot.names)
    if case.wrt is None:
        chosen = [slot for slot in parameters if slot.found.requires_grad] or inputs
        skipped = [
            f"{slot.name}: frozen (requires_grad is False)"
            for slot in parameters
            if slot not in chosen
        ]
        skipped += [f"{slot.name}: an input, not in wrt" for slot in inputs if slot not in chosen]
    else:
        chosen = _selected(case.wrt, [*parameters, *inputs], len(case.args))
        skipped = [
            f"{slot.name}: not in wrt" for slot in (*parameters, *inputs) if slot not in chosen
        ]
    given = {id(slot) for slot in inputs}
    return _binding(
        [_in_copy(slot) if id(slot) in given else _in_place(slot) for slot in chosen],
        nodes,
        skipped,
    )


def _of_closure(case: Case) -> Binding:
    """Leaves of a closure: the tensors and parameters in ``wrt``, in place, since only they reach
    the function.
    """
    found: list[tuple[str, Path, torch.Tensor]] = []
    for node in closure_nodes(case.wrt):
        if isinstance(node.value, nn.Module):
            prefix = f"{node.suffix}." if node.path else ""
            found += [
                (prefix + name, (*node.path, *path), tensor)
                for name, path, tensor in _parameters(node.value)
            ]
        elif _is_floating(node.value):
            found.append((node.suffix, node.path, node.value))
    tensors = _grouped(found)
    frozen = [
        slot
        for slot in tensors
        if isinstance(slot.found, nn.Parameter) and not slot.found.requires_grad
    ]
    skipped = [f"{slot.name}: frozen (requires_grad is False)" for slot in frozen]
    slots = [_in_place(slot) for slot in tensors if slot not in frozen]
    return Binding(
        slots,
        _handed.Places([slot.path for slot in slots], [path for _, path, _ in found]),
        skipped,
        [],
    )


def _binding(slots: list[Slot], nodes: list[Node], skipped: list[str]) -> Binding:
    plain = [
        node
        for node in nodes
        if isinstance(node.value, torch.Tensor) and not _is_floating(node.value)
    ]
    skipped += [f"{node.suffix}: {_dtype(node.value)}, not differentiable" for node in plain]
    paths = [node.path for node in nodes]
    places = (
        _handed.places([slot.path for slot in slots], paths) if slots else _handed.Places([], [])
    )
    return Binding(slots, places, skipped, nodes)


def _selected(wrt: Any, slots: list[Slot], arguments: int) -> list[Slot]:
    candidates = [Candidate(slot.names, slot.path) for slot in slots]
    return [slots[number] for number in select(wrt, candidates, arguments)]


def _parameters(module: nn.Module) -> Iterator[tuple[str, Path, torch.Tensor]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(parameter):
            raise InvalidCase(
                f"parameter {name!r} is not initialised yet: run the module once on its input "
                f"first."
            )
        yield name, tuple(name.split(".")), parameter


def _grouped(found: Iterable[tuple[str, Path, torch.Tensor]]) -> list[Slot]:
    """One slot per tensor object, under all the names it is found by."""
    slots: dict[int, Slot] = {}
    for name, path, tensor in found:
        if id(tensor) in slots:
            slots[id(tensor)].names += (name,)
        else:
            slots[id(tensor)] = Slot((name,), path, tensor, tensor)
    return list(slots.values())


def _in_copy(slot: Slot) -> Slot:
    """Let a copy be perturbed: same values and, unless elements overlap, same strides, on which a
    backward may lean.
    """
    _refuse(slot)
    found = slot.found.detach()
    if found.is_contiguous() or _overlaps(found):
        slot.work = found.clone(memory_format=torch.contiguous_format)
    else:
        slot.work = torch.empty_strided(
            found.shape, found.stride(), dtype=found.dtype, device=found.device
        )
        slot.work.copy_(found)
    return slot


def _in_place(slot: Slot) -> Slot:
    """Let the user's own tensor be perturbed."""
    _refuse(slot)
    if slot.found.is_conj() or slot.found.is_neg():
        raise InvalidCase(
            f"{slot.name} is conjugated or negated on reading: pass {slot.name}.resolve_conj() or "
            f".resolve_neg()."
        )
    return slot


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether several elements lie on one number, as after expand, unfold or as_strided."""
    if tensor.is_contiguous():
        return False
    spans = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1
    )
    reach = 0
    for stride, size in spans:
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _refuse_shared(slots: list[Slot]) -> None:
    """Raise where two leaves lie on the same numbers: no step moves one of them alone."""
    owners: dict[int, list[Slot]] = {}
    for slot in slots:
        if slot.work.numel():
            owners.setdefault(slot.work.untyped_storage().data_ptr(), []).append(slot)
    for sharing in owners.values():
        for first, second in combinations(sharing, 2):
            if _meet(first.work, second.work):
                raise InvalidCase(
                    f"{first.name} and {second.name} lie in the same memory, and no step moves "
                    f"one alone: make them one tensor, or name one with wrt=."
                )


def _meet(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors over one storage have an element in common."""
    (low, high), (least, most) = _span(first), _span(second)
    if high <= least or most <= low:
        return False
    return bool(np.intersect1d(_places(first), _places(second)).size)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The part of its storage that a tensor reaches over, in bytes."""
    start, size = tensor.data_ptr(), tensor.itemsize
    return start, start + size * width(tensor.shape, tensor.stride())


def _places(tensor: torch.Tensor) -> Positions:
    """Where the elements lie in their storage, in bytes."""
    places = offsets(tensor.shape, tensor.stride()) + tensor.storage_offset()
    return np.asarray(places * tensor.itemsize)


def _refuse(slot: Slot) -> None:
    """Raise for a tensor that differences cannot judge."""
    refuse_unless_known(slot.name, _dtype(slot.found), CONVERT)
    if slot.found.layout is not torch.strided:
        raise InvalidCase(f"{slot.name} is a sparse tensor: pass it dense, with .to_dense().")


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
            Entry(s.names, s.path, tuple(s.found.shape), _dtype(s.found)) for s in self._slots
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
        _refuse_shared(self._slots)
        self._found = reachable(case.fn, case.args, case.kwargs, case.wrt, case.loss, case.grads)
        self._modules = _named_modules(self._found)
        _refuse_quantised(self._modules)
        self._others = [n.value for n in binding.nodes if isinstance(n.value, torch.Tensor)]
        self._world = self._surroundings()
        self._grad_mode: Callable[[], Any] | None = None
        self._learned: list[torch.Tensor] | None = None
        pairs = zip(self._slots, self.layout, strict=True)
        self._spans = [(slot, leaf.start, leaf.start + leaf.size) for slot, leaf in pairs]
        self._scanned: Vector | None = None
        self._has_minus_zero = False
        self._scope: Callable[[], AbstractContextManager[Any]] = nullcontext
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
        states = _states(self._found, self._modules)
        leaves, origin = {}, Here(self._here.origin)
        names = {id(slot.work): slot.name for slot in self._slots}
        for slot, leaf in zip(self._slots, self.layout, strict=True):
            leaves[id(slot.found)] = functools.partial(origin.part, leaf.part)
            leaves[id(slot.work)] = functools.partial(self._here.part, leaf.part)
        for tensor in self._tensors_around():
            if tensor.layout is torch.strided:
                name = names.get(id(tensor), "a tensor")
                states.append(_tensor_state(tensor, name, leaves.get(id(tensor))))
        return World(states, list(number_states(self._found)))

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
        return [self._raised]

    @contextmanager
    def _raised(self) -> Iterator[None]:
        draws = any(name.startswith(TORCH) for name in self.moving)
        kept = self._world, self.outputs, self.bits, self._grad_mode, self._scope
        native, default = self._slots[0].found.dtype.to_real(), torch.get_default_dtype()
        self._world.reset()
        with raised([*self._tensors_around(), *self._buffers()]) as mode:

            def drawing() -> AbstractContextManager[Any]:
                return Draws(native, default) if draws else nullcontext()

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
                with self._world.held():
                    self._learn_outputs()
                    # The tensors that it met are raised by now: without others, all goes its way.
                    mode.busy, self._grad_mode = False, None
                    self._tried_without_graph(self._call)
                    self._scope = raising if mode.busy else drawing_eagerly
                    yield
            finally:
                self._learned = None
                self._world, self.outputs, self.bits, self._grad_mode, self._scope = kept

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
        shared = [slot.work for slot in self._slots if _overlaps(slot.work)]
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
        dropping = [name for name, part in self._modules.items() if _drops_out(part)]
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
        self._world.watch()
        floating = [node for node in nodes if _is_floating(node.value)]
        if not floating:
            kinds = ", ".join(type(node.value).__name__ for node in nodes) or "nothing"
            raise InvalidCase(
                f"the function returned {kinds}, no floating tensor: let it return its value."
            )
        kept = [node for node in floating if node.value.requires_grad] or floating
        for node in kept:
            refuse_unless_known(node.suffix, _dtype(node.value), CONVERT)
        left = [node for node in nodes if node not in kept]
        said = [f"{node.suffix}: {_kind(node.value)}, not differentiable" for node in left]
        self.skipped += [text for text in said if text not in self.skipped]
        self.outputs = lay_out(
            Entry((n.suffix,), n.path, tuple(n.value.shape), _dtype(n.value)) for n in kept
        )
        outs, self._paths = [node.value for node in kept], [node.path for node in kept]
        bits, rows = _told_by_graph(outs)
        # Raised functions draw in the dtype that they would draw in.
        is_low = self._scope is nullcontext and min(self.layout.bits, self.outputs.bits) < DOUBLE
        hides = is_low and has_custom(outs)
        if hides:
            bits = min(bits, self._computed_bits())
        self.bits = min(self.outputs.bits, bits)
        self._device = outs[0].device
        self.frozen = self._padding(rows)
        # The gradient can start from here, unless its backward is to find what a forward changed.
        is_stale = hides or self._world.is_moving or self.is_handed
        self._learned = None if is_stale else outs

    def _computed_bits(self) -> int:
        """The shortest significand of all that is computed: the graph does not show what custom
        Functions compute in, as under autocast.
        """
        computed = self._watched()
        return DOUBLE if computed is None else _shortest(computed.dtypes)

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

    @property
    def rounds(self) -> bool:
        computed = self._watched()
        return computed is not None and computed.rounds

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
        return [torch.from_numpy(np.asarray(part)).to(self._device) for part in parts]

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
        return floating, [other.cpu().numpy() for other in others if not _is_floating(other)]

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
        if adds and is_all and all(_is_plain_double(slot.work) for slot, _, _ in spans):
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
        put = _writer(self._slots[owner].work)
        steps = zip(places.tolist(), moved.tolist(), base.tolist(), strict=True)
        with self._graphless():
            for number, (place, there, here) in enumerate(steps):
                self._world.reset()
                try:
                    put(place, there)
                    values[number] = evaluate()
                finally:
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
        nodes = [node for node in argument_nodes(case) if _is_floating(node.value)]
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
        written = () if is_same else ("the cotangent",)
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
                if INSIDE not in str(error):
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
        args = self._args
        with torch.no_grad():
            # Forward first: a class keeps what its backward needs from the last forward, and phi
            # comes with it.
            out = self._call()
            parts = self._cotangents(cotangent)
            outs = self._tensors(out)
            value = paired(parts, outs)
            if not self.unit_cotangent:
                parts = [part.to(out.dtype) for out, part in zip(outs, parts, strict=True)]
                args = (replaced(out, dict(zip(self._paths, parts, strict=True))), *args)
        self._world.rewind()
        answer = self._read(self._case.grads(*args, **self._kwargs))
        return answer if answer.value is not None else answer._replace(value=value)

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


def _told_by_graph(outs: list[torch.Tensor]) -> tuple[int, dict[int, int]]:
    """The shortest significand on the backward path of the outputs; and, for tensors that
    embeddings read, all with one padding row, the number of that row.
    """
    dtypes: set[torch.dtype] = set()
    rows: dict[int, set[int]] = {}
    for node in graph_of(outs):
        entries = getattr(node, "_input_metadata", ())
        # Beside others, what looks like a lone float32 is an output that nobody asked for.
        dtypes |= {
            entry.dtype
            for entry in entries
            if entry.dtype is not torch.float32 or len(entries) == 1 or entry.shape
        }
        # Embeddings without such a row say -1, and whatever else reads a tensor says nothing.
        if (padding := getattr(node, "_saved_padding_idx", None)) is None:
            continue
        for follower, _ in node.next_functions:
            if (variable := getattr(follower, "variable", None)) is not None:
                rows.setdefault(id(variable), set()).add(padding)
    alone = {key: found.pop() for key, found in rows.items() if len(found) == 1}
    return _shortest(dtypes), {key: row for key, row in alone.items() if 0 <= row < 1 << 62}


def _shortest(dtypes: Iterable[torch.dtype]) -> int:
    """The shortest significand among these, in bits."""
    kinds = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return min((1 - round(math.log2(torch.finfo(kind).eps)) for kind in kinds), default=DOUBLE)


def _is_plain_double(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float64 and tensor.is_cpu


class Stretches:
    """Neighbouring leaves in float64, all of each, to be moved along a direction by one sum."""

    def __init__(self, works: list[torch.Tensor], numbers: Vector, direction: Direction) -> None:
        self._works, self._numbers = works, torch.from_numpy(numbers)
        self._way = torch.from_numpy(direction).double()
        self._moved = torch.empty_like(self._numbers)
        self._found, self._parts = self._cut(self._numbers), self._cut(self._moved)

    def _cut(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        parts = torch.split(numbers, [work.numel() for work in self._works])
        return [part.view(work.shape) for part, work in zip(parts, self._works, strict=True)]

    def move(self, step: float) -> None:
        """Have the leaves lie at ``point + step * direction``."""
        # One after the other, so that the product is rounded.
        torch.mul(self._way, step, out=self._moved).add_(self._numbers)
        self._put(self._parts)

    def put_back(self) -> None:
        """Have the leaves lie at the point again."""
        self._put(self._found)

    def _put(self, parts: list[torch.Tensor]) -> None:
        torch._foreach_copy_([work.data for work in self._works], parts)


class Stretch:
    """A part of one leaf, to be moved along a direction and put back."""

    def __init__(
        self, work: torch.Tensor, numbers: Vector, part: slice, direction: Direction, adds: bool
    ) -> None:
        self._work, self._numbers, self._part, self._direction = work, numbers, part, direction
        self._base, self._is_whole = numbers[part], direction.size == numbers.size
        self._is_plain = not work.is_complex() and (self._is_whole or work.is_contiguous())
        self._there = torch.from_numpy(self._base)
        if self._is_plain and self._is_whole:
            self._there = self._there.view(work.shape)
        self._adds = adds and self._is_plain and work.dtype is torch.float64 and work.is_cpu
        self._way = torch.from_numpy(direction).view(self._there.shape) if self._adds else None

    def move(self, step: float) -> None:
        """Have the leaf lie at ``point + step * direction`` here."""
        if self._way is None:
            self._write(lambda piece: displaced(self._base[piece], self._direction[piece], step))
            return
        memory, way = self._memory(), self._way
        if way.dtype is not torch.float64:
            way = memory.copy_(way)
        if math.frexp(step)[0] in WHOLE_BITS:
            torch.add(self._there, way, alpha=step, out=memory)
        else:
            # Added in one go, the product would not be rounded, and the sum another one.
            torch.mul(way, step, out=memory).add_(self._there)

    def put_back(self) -> None:
        """Have the leaf lie at the point again."""
        if self._is_plain:
            self._memory().copy_(self._there)
        else:
            self._write(self._base.__getitem__)

    def _memory(self) -> torch.Tensor:
        """Where the numbers lie now: a function may put other memory under its tensors."""
        memory = self._work.data
        return memory if self._is_whole else memory.view(-1)[self._part]

    def _write(self, numbers: Callable[[slice], Vector]) -> None:
        if self._is_plain and self._work.is_contiguous():
            memory = self._memory().view(-1)
            for start in range(0, len(self._base), PIECE):
                piece = slice(start, start + PIECE)
                memory[piece].copy_(torch.from_numpy(numbers(piece)))
            return
        moved = self._numbers.copy()
        moved[self._part] = numbers(slice(None))
        put_numbers(self._work, moved)


LEAST = np.iinfo(np.int64).min
"""The bits of -0.0, as a whole number."""
WHOLE_BITS = (0.0, 0.5, -0.5)
"""Significands of zero and of the powers of two, by which products are exact."""
MERGED = 1 << 16
"""Up to so many coordinates are moved together, which takes as much memory again."""
PIECE = 1 << 18
"""How many numbers below float64 are computed at a time."""


def _writer(tensor: torch.Tensor) -> Callable[[int, float], None]:
    """How to set one element of a tensor by its position in C order, as cheaply as its memory
    allows.
    """
    data = tensor.detach()
    if data.is_complex():
        count, put = data.numel(), _writer(torch.view_as_real(data))
        return lambda place, value: put(2 * (place % count) + place // count, value)
    if data.device.type != "cpu" or data.dtype in (torch.float16, torch.bfloat16):
        return lambda place, value: data.__setitem__(np.unravel_index(place, data.shape), value)
    return element_writer(data.numpy())


@contextmanager
def _refused_without_rule() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise InvalidCase(
            f"it has no rule for forward mode ({str(error).splitlines()[0]}): leave modes out."
        ) from None


def _kind(value: Any) -> str:
    return _dtype(value) if isinstance(value, torch.Tensor) else type(value).__name__


def _named_modules(found: list[Any]) -> dict[str, nn.Module]:
    """Every module that a call can reach, by its dotted name; the outermost by its class."""
    named: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for node in found:
        for name, part in node.named_modules() if isinstance(node, nn.Module) else ():
            if id(part) not in seen:
                seen.add(id(part))
                named[name or type(part).__name__] = part
    return named


def _refuse_quantised(modules: dict[str, nn.Module]) -> None:
    """Raise for modules that round to a grid: their gradients are meant to be no derivatives."""
    for name, module in modules.items():
        kind = type(module)
        if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise InvalidCase(
                f"module {name!r} is quantised ({kind.__name__}): it computes with whole numbers "
                f"and has no gradient; check the model before it is converted."
            )
        if not any("FakeQuantize" in base.__name__ for base in kind.__mro__):
            continue
        # torch's own and torchao's; both can be switched off.
        enabled = getattr(module, "fake_quant_enabled", getattr(module, "enabled", True))
        if bool(torch.as_tensor(enabled).any()):
            raise InvalidCase(
                f"module {name!r} is quantisation-aware ({kind.__name__}): its gradient is a "
                f"straight-through estimate and no derivative; check the model before it is "
                f"prepared, or with fake quantisation disabled."
            )


def _drops_out(module: nn.Module) -> bool:
    share = getattr(module, "p", None) or getattr(module, "dropout", None)
    return module.training and isinstance(share, float | int) and share > 0


def _states(found: list[Any], modules: dict[str, nn.Module]) -> list[State]:
    """Everything a PyTorch function can change that its caller would notice, or its next
    evaluation, beside tensors.
    """
    states = [*random_states(), _modes_state()]
    for name, module in modules.items():
        states += _module_states(name, module)
    states += [_torch_generator_state(node) for node in found if isinstance(node, torch.Generator)]
    states += plain_states([n for n in found if not isinstance(n, nn.Module | torch.Tensor)])
    return states


def _torch_generator_state(generator: torch.Generator) -> State:
    def restore(saved: Any) -> None:
        generator.set_state(torch.from_numpy(saved))

    return State("a torch Generator", lambda: generator.get_state().numpy(), restore, True)


def _modes_state() -> State:
    """The global switches of PyTorch."""

    def read() -> Any:
        deterministic = torch.are_deterministic_algorithms_enabled()
        only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
        return [torch.get_default_dtype(), torch.is_grad_enabled(), deterministic, only_warn]

    def restore(saved: Any) -> None:
        torch.set_default_dtype(saved[0])
        torch.set_grad_enabled(saved[1])
        torch.use_deterministic_algorithms(saved[2], warn_only=saved[3])

    return State("torch's modes", read, restore, is_as=lambda found: bool(read() == found))


def _has(tensor: torch.Tensor, numbers: Vector) -> bool:
    """Whether a leaf holds the numbers of its part of the point, to the bit."""
    if tensor.dtype is torch.float64 and tensor.device.type == "cpu":
        return same_bytes(tensor.detach().resolve_neg().numpy().reshape(-1), numbers)
    flat = tensor.detach().reshape(-1)
    halves = (flat.real, flat.imag) if flat.is_complex() else (flat,)
    there = torch.from_numpy(numbers).view(len(halves), -1)
    for half, part in zip(halves, there, strict=True):
        for start in range(0, len(half), PIECE):
            piece = slice(start, start + PIECE)
            if not same_bytes(
                bits_of_tensor(half[piece]), bits_of_tensor(part[piece].to(half.dtype))
            ):
                return False
    return True


def _module_states(name: str, module: nn.Module) -> Iterator[State]:
    """The training flag of one module and its buffers, without its children's."""

    def set_training(saved: Any) -> None:
        module.training = saved

    yield State(f"the mode of {name}", lambda: module.training, set_training)
    if isinstance(module, torch.jit.ScriptModule):  # keeps its attributes for itself
        for own, tensor in module.named_buffers(recurse=False):
            yield _tensor_state(tensor, f"the buffer {own}")
        return
    prefix = "" if name == type(module).__name__ else f"{name}."
    for key, buffer in module._buffers.items():
        yield _buffer_state(f"the buffer {prefix}{key}", module, key, buffer)
    yield attributes_state("", module._buffers, {*module._buffers}, f"new buffers of {name}")
    added = f"new attributes of {name}"
    yield attributes_state(prefix or f"{name}.", vars(module), OWN, added)


def _buffer_state(name: str, module: nn.Module, key: str, found: torch.Tensor | None) -> State:
    def read() -> Any:
        buffer = module._buffers.get(key)
        return buffer, None if buffer is None else bits_of_tensor(buffer).copy()

    def restore(saved: Any) -> None:
        module._buffers[key] = found
        if found is not None:
            set_bits(found, saved[1])

    def is_as(saved: Any) -> bool:
        buffer = module._buffers.get(key)
        same = buffer is saved[0]
        return same and (buffer is None or same_bytes(bits_of_tensor(buffer), saved[1]))

    return State(name, read, restore, holder=found, is_as=is_as)


def _tensor_state(
    tensor: torch.Tensor, name: str = "a tensor", values: Callable[[], Vector] | None = None
) -> State:
    """A tensor's values, its ``.grad`` and whether it requires one.

    A leaf has its ``values`` in the point: another copy of them would be as large as the model.
    """

    def own_grad() -> torch.Tensor | None:
        found = tensor.grad if tensor.is_leaf else None
        return found if found is None or found.layout is torch.strided else None

    grad = own_grad()

    def read() -> Any:
        now = own_grad()
        return (
            bits_of_tensor(tensor).copy() if values is None else None,
            tensor.requires_grad,
            now,
            None if now is None else bits_of_tensor(now).copy(),
        )

    def restore(saved: Any) -> None:
        if values is None:
            set_bits(tensor, saved[0])
        else:
            put_numbers(tensor, values())
        if tensor.is_leaf:
            tensor.requires_grad_(saved[1])
            if grad is not None or saved[2] is not None or own_grad() is not None:
                tensor.grad = grad
            if grad is not None:
                set_bits(grad, saved[3])

    def is_as(saved: Any) -> bool:
        now = own_grad()
        if tensor.requires_grad is not saved[1] or now is not saved[2]:
            return False
        if now is not None and not same_bytes(bits_of_tensor(now), saved[3]):
            return False
        return holds(saved)

    def holds(saved: Any) -> bool:
        if values is None:
            return same_bytes(bits_of_tensor(tensor), saved[0])
        return _has(tensor, values())

    def changed(saved: Any) -> list[str]:
        return [f"the .grad of {name}" if holds(saved) else name]

    return State(name, read, restore, holder=tensor, is_as=is_as, changed=changed)
