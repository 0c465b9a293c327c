"""What a backward pass has to do beside giving the right numbers once, tried on PyTorch: other
memory layouts, other cotangents, other orders of calls, other wishes for gradients.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xgradcheck import _handed
from xgradcheck._adapters import Trial
from xgradcheck._layout import Leaf, Vector

from .states import same_bytes
from .torch_call import Call
from .torch_forms import forms
from .torch_pass import Pass, Tensors
from .torch_tensors import Grads, bits_of_tensor, graph_of
from .torch_transforms import Operators, Transforms


def _transposed(tensor: torch.Tensor) -> torch.Tensor | None:
    if tensor.dim() < 2:
        return None
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _spread(tensor: torch.Tensor) -> torch.Tensor | None:
    if not tensor.dim():
        return None
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)[..., ::2]
    return wide.copy_(tensor)


def _pitched(tensor: torch.Tensor) -> torch.Tensor | None:
    if tensor.dim() < 2:
        return None
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), torch.nan)
    return wide[..., : tensor.shape[-1]].copy_(tensor)


def _shifted(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.new_full((tensor.numel() + 3,), torch.nan)
    return flat[3:].view(tensor.shape).copy_(tensor)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else None


def _one_number(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()[:1].view([1] * tensor.dim()).expand(tensor.shape)


def _one_row(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor[:1].expand(tensor.shape) if tensor.dim() > 1 else None


Lay = Callable[[torch.Tensor], torch.Tensor | None]
# What lies between the numbers is NaN: whoever reads it shows it.
LAYOUTS: dict[str, Lay] = {
    "in contiguous memory": torch.Tensor.contiguous,
    "with its last two axes transposed in memory": _transposed,
    "as every second element of a wider buffer": _spread,
    "as rows of a wider buffer": _pitched,
    "at an offset into its storage": _shifted,
    "in channels_last memory": _channels_last,
}
EXPANDED: dict[str, Lay] = {
    "expanded from one number, as sum() gives it": _one_number,
    "expanded from one row": _one_row,
}
Make = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
# What comes after a layer in a network, and the cotangent of that.
MADE: dict[str, Make] = {
    "cat": lambda out, part: (
        torch.cat([out, out.detach()], -1),
        torch.cat([part, torch.full_like(part, 7.0)], -1),
    ),
    "stack": lambda out, part: (
        torch.stack([out.detach(), out], -1),
        torch.stack([torch.full_like(part, 7.0), part], -1),
    ),
    "a transposition": lambda out, part: (
        out.transpose(0, -1),
        part.transpose(0, -1).contiguous(),
    ),
}
WIDEST, PAIRS = 5, 10
"""Of so many leaves every subset is tried, and so many pairs of arguments."""
POISON = 1e4


def probes(call: Call, cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that this call allows, by the name of the probe."""
    if call.is_handed:
        return {}
    probing = Probing(call, cotangent)
    return {
        "layout": probing.layouts,
        "cotangents": probing.cotangents,
        "form": probing.forms,
        "purity": probing.purity,
        "repetition": probing.repetition,
        "subsets": probing.subsets,
        "aliasing": probing.aliasing,
        "memory": probing.memory,
        "transforms": Transforms(call, cotangent).trials,
        "opcheck": Operators(call, cotangent).trials,
    }


class Probing:
    """The experiments on one call, whose world is held."""

    def __init__(self, call: Call, cotangent: Vector) -> None:
        self._call, self._cotangent = call, cotangent
        self._slots, self._layout = call.slots, call.layout
        self._pass = Pass(call, cotangent)
        self._names = self._pass.names()
        self._given = {id(slot.found) for slot in call.slots if slot.work is not slot.found}

    def layouts(self) -> Iterator[Trial]:
        """The same cotangents and the same inputs in other memory, handed over as they are and as
        a graph brings them.
        """
        yield from self._cotangents_laid()
        yield from self._cotangents_of_graphs()
        for number, slot in enumerate(self._slots):
            if id(slot.found) not in self._given or not slot.work.is_leaf or not slot.work.numel():
                continue  # others may read the memory of the user's own tensors
            for laid, lay in LAYOUTS.items():
                moved = lay(slot.work.detach())
                if moved is None or not _is_elsewhere(moved, slot.work):
                    continue
                # Whoever refuses a layout gives no wrong gradient.
                what = f"{slot.name} {laid}"
                with _in_memory(slot.work, moved):
                    yield self._pass.tried(what, self._usual, refuses=True)
                with torch.enable_grad():
                    made: Any = lay(slot.work)
                run = partial(self._with, number, made, slot.work)
                yield self._pass.tried(f"{what}, from a graph", run, refuses=True)
            for laid, lay in EXPANDED.items():
                moved = lay(slot.work.detach())
                if moved is not None and _is_elsewhere(moved, slot.work):
                    yield from self._expanded(number, f"{slot.name} {laid}", moved)

    def _usual(self) -> Vector:
        return self._pass.vjp(self._pass.parts())

    def _expanded(self, number: int, what: str, moved: torch.Tensor) -> Iterator[Trial]:
        """An input whose elements share memory, beside one of the same values. Of elements that tie
        the sum of their gradients counts. Where all rows are the same a matrix is singular, and
        what its gradient is there may be up to rounding.
        """
        base = moved[tuple(slice(1) if not by else slice(None) for by in moved.stride())].clone()
        base.requires_grad_()

        def of_base(other: torch.Tensor) -> Vector:
            with self._pass.called_with({id(self._pass.works[number]): other}):
                works = [base if n == number else w for n, w in enumerate(self._pass.works)]
                grads = self._pass.pulled(self._pass.outs(), self._pass.parts(), works)
            grad = grads[number]
            if grad is not None:
                sums = torch.zeros(moved.shape, dtype=grad.dtype)
                sums.view(-1)[: grad.numel()] = grad.reshape(-1)
                grads[number] = sums
            return self._pass.flat(grads)

        with torch.enable_grad():
            shared = base.expand(moved.shape)
            dense = shared.clone(memory_format=torch.contiguous_format)
            uneven = torch.arange(dense.numel(), dtype=torch.float64).cos().view(dense.shape)
            rounded = dense + torch.finfo(dense.dtype).eps * uneven.sign().to(dense.dtype) * dense
        try:
            expected, beside = of_base(dense), of_base(rounded)
        except Exception:  # these values are not meant to be the same
            return
        if not np.isfinite(expected).all():
            return
        run = partial(of_base, shared)
        yield self._pass.tried(what, run, expected, beside, [number], refuses=True)

    def _cotangents_laid(self) -> Iterator[Trial]:
        for number, name in enumerate(self._names):
            for laid, lay in chain(LAYOUTS.items(), EXPANDED.items()):
                parts = self._pass.parts()
                moved = lay(parts[number]) if parts[number].numel() else None
                if moved is None or not _is_elsewhere(moved, parts[number]):
                    continue
                expected = None
                if laid in EXPANDED:
                    parts[number] = moved.contiguous()
                    expected = self._pass.vjp(parts)
                parts[number] = moved
                yield self._pass.tried(f"{name} {laid}", partial(self._pass.vjp, parts), expected)

    def _cotangents_of_graphs(self) -> Iterator[Trial]:
        for number, name in enumerate(self._names):
            for made, make in MADE.items():
                if not self._pass.parts()[number].dim():
                    continue

                def run(number: int = number, make: Make = make) -> Vector:
                    outs, parts = self._pass.outs(), self._pass.parts()
                    if not outs[number].requires_grad:
                        return self._pass.flat(self._pass.pulled(outs, parts))
                    with torch.enable_grad():
                        outs[number], parts[number] = make(outs[number], parts[number])
                    return self._pass.flat(self._pass.pulled(outs, parts))

                yield self._pass.tried(f"{name} from the graph of {made}", run)

    def cotangents(self) -> Iterator[Trial]:
        """An output without a cotangent counts as one whose cotangent is zero."""
        if len(self._call.outputs.layout) < 2:
            return
        outputs = self._call.outputs.layout
        ways: dict[str, tuple[Leaf, ...]] = {
            f"{leaf.name} alone, the others without a cotangent": (leaf,) for leaf in outputs
        }
        if len(outputs) > 2:
            ways |= {
                f"{leaf.name} without a cotangent": tuple(o for o in outputs if o is not leaf)
                for leaf in outputs
            }
        for what, asked in ways.items():
            some = np.zeros_like(self._cotangent)
            for leaf in asked:
                some[leaf.part] = self._cotangent[leaf.part]
            expected = self._pass.vjp(self._pass.parts(some))
            given = [
                part if any(leaf is own for own in asked) else None
                for leaf, part in zip(outputs, self._pass.parts(), strict=True)
            ]
            yield self._pass.tried(what, partial(self._pass.vjp, given), expected)

    def forms(self) -> Iterator[Trial]:
        """What custom Functions return."""
        with forms() as told:
            self._pass.pulled(self._pass.outs(), self._pass.parts())
        self._call.world.watch()
        for name, fault in told.items():
            yield Trial(f"what the backward of {name} returns", fault=fault)

    def purity(self) -> Iterator[Trial]:
        """Nobody else's numbers are written to."""
        call = self._call
        leaves = {slot.name: slot.work for slot in self._slots}
        around = {
            node.suffix: node.value
            for node in call.binding.nodes
            if isinstance(node.value, torch.Tensor) and id(node.value) not in self._given
        }
        for module_name, module in call.around.modules.items():
            own = module.named_parameters(recurse=False)
            around |= {f"{module_name}.{name}": tensor for name, tensor in own}
        call.world.reset()
        before = _bytes_of(leaves)
        outs = self._pass.outs()
        yield Trial("the forward pass", fault=_written(leaves, before))
        parts = self._pass.parts()
        watched = leaves | around
        watched |= {leaf.name: out for leaf, out in zip(call.outputs.layout, outs, strict=True)}
        watched |= dict(zip(self._names, parts, strict=True))
        watched |= _saved(outs)
        found = _bytes_of(watched)
        try:
            grads = self._pass.pulled(outs, parts, again=True)
        except Exception as error:
            yield Trial("the backward pass", error=error)
            return
        finally:
            written = _written(watched, found)
            call.world.watch()
        yield Trial("the backward pass", fault=written)
        memory = {_memory(t): name for name, t in (around | leaves).items() if t.numel()}
        for slot, grad in zip(self._slots, grads, strict=True):
            shared = None if grad is None or not grad.numel() else memory.get(_memory(grad))
            fault = f"is the memory of {shared} itself" if shared else ""
            yield Trial(f"the gradient of {slot.name}", fault=fault)

    def repetition(self) -> Iterator[Trial]:
        """Calls leave each other alone."""
        other = 3 * np.flip(self._cotangent)
        yield self._pass.tried("a second backward pass over one graph", lambda: self._twice(other))
        kept: list[Vector] = []

        def first() -> Vector:
            grads = self._pass.pulled(self._pass.outs(), self._pass.parts())
            kept.append(self._pass.flat(grads))
            self._pass.vjp(self._pass.parts(other))
            return self._pass.flat(grads)

        trial = self._pass.tried("gradients that were returned, after another call", first)
        yield Trial(trial.what, trial.got, kept[0] if kept else None, error=trial.error)
        yield self._pass.tried("a .grad that is there already", self._accumulated)
        for order in ("a later call's backward pass first", "another call in between"):
            trial_of = self._between(order.startswith("a later"))
            if trial_of is not None:
                yield self._pass.tried(order, trial_of, refuses=True)

    def _twice(self, other: Vector) -> Vector:
        outs = self._pass.outs()
        self._pass.pulled(outs, self._pass.parts(other), again=True)
        return self._pass.flat(self._pass.pulled(outs, self._pass.parts()))

    def _accumulated(self) -> Vector:
        works = [work for work in self._pass.works if work.is_leaf]
        found = [work.grad for work in works]
        outs, parts = self._pass.outs(), self._pass.parts()
        try:
            for work in works:
                work.grad = torch.ones_like(work)
            pairs = [p for p in zip(outs, parts, strict=True) if p[0].requires_grad]
            tensors, given = zip(*pairs, strict=True) if pairs else ((), ())
            torch.autograd.backward(tensors, given, inputs=works)
            grads: Grads = [
                work.grad - 1 if work.is_leaf and work.grad is not None else None
                for work in self._pass.works
            ]
        finally:
            for work, grad in zip(works, found, strict=True):
                work.grad = grad
        return self._pass.flat(grads)

    def _between(self, is_first: bool) -> Callable[[], Vector] | None:
        """A backward pass after another call, elsewhere, whose own may come first."""
        floating = {id(leaf): leaf for leaf in self._pass.tensors() if leaf.is_floating_point()}
        if not floating:
            return None

        def run() -> Vector:
            outs = self._pass.outs()
            elsewhere = {
                key: (leaf.detach() * _handed.ELSEWHERE).requires_grad_(leaf.requires_grad)
                for key, leaf in floating.items()
            }
            with self._pass.called_with(elsewhere):
                others = self._pass.outs()
            if is_first:
                works = [elsewhere.get(id(work), work) for work in self._pass.works]
                self._pass.pulled(others, self._pass.parts(), works)
            return self._pass.flat(self._pass.pulled(outs, self._pass.parts()))

        return run

    def subsets(self) -> Iterator[Trial]:
        """A gradient does not depend on which others are wanted."""
        count = len(self._pass.works)
        if count < 2 or not all(work.is_leaf for work in self._pass.works):
            return
        sizes: Iterable[int] = range(1, count) if count <= WIDEST else (1, count - 1)
        if count > WIDEST * WIDEST:
            sizes = (1,)
        for chosen in chain.from_iterable(combinations(range(count), size) for size in sizes):
            names = ", ".join(self._slots[number].name for number in chosen[:3])
            more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
            yield self._pass.tried(
                f"the gradient of {names}{more} alone",
                partial(self._of_subset, chosen),
                leaves=chosen,
            )

    def _of_subset(self, chosen: Sequence[int]) -> Vector:
        works = [self._pass.works[number] for number in chosen]
        try:
            for number, work in enumerate(self._pass.works):
                work.requires_grad_(number in chosen)
            found = dict(
                zip(
                    chosen,
                    self._pass.pulled(self._pass.outs(), self._pass.parts(), works),
                    strict=True,
                )
            )
        finally:
            for work in self._pass.works:
                work.requires_grad_(True)
        return self._pass.flat([found.get(number) for number in range(len(self._pass.works))])

    def aliasing(self) -> Iterator[Trial]:
        """One tensor passed twice, or one parameter in two places, gets the sum of both
        gradients; so does one beside a view of it.
        """
        works = self._pass.works
        pairs = [
            (a, b)
            for a, b in combinations(range(len(works)), 2)
            if works[a].shape == works[b].shape and works[a].dtype is works[b].dtype
        ]
        for first, second in pairs[:PAIRS]:
            twin = works[first].detach().clone().requires_grad_()
            try:
                expected = self._with(second, twin, twin)
            except Exception:  # these values are not meant to be the same
                continue
            if not np.isfinite(expected).all():
                continue
            one, two = self._layout.leaves[first].part, self._layout.leaves[second].part
            expected[one] += expected[two]
            names = self._slots[first].name, self._slots[second].name
            with torch.enable_grad():
                view = works[first].view_as(works[first])
            for what, tensor in {
                f"one tensor as {names[0]} and {names[1]}": works[first],
                f"a view of {names[0]} as {names[1]}": view,
            }.items():
                run = partial(self._with, second, tensor, None)
                yield self._pass.tried(what, run, expected, leaves=[first])

    def _with(self, number: int, other: torch.Tensor, asked: torch.Tensor | None) -> Vector:
        """The gradients where another tensor stands for a leaf; for it, if that is asked for."""
        works = [asked if n == number else work for n, work in enumerate(self._pass.works)]
        wanted = [work for work in works if work is not None]
        with self._pass.called_with({id(self._pass.works[number]): other}):
            found = iter(self._pass.pulled(self._pass.outs(), self._pass.parts(), wanted))
        return self._pass.flat([None if work is None else next(found) for work in works])

    def memory(self) -> Iterator[Trial]:
        """Nothing is read that was not written before."""
        ways: dict[str, AbstractContextManager[Any]] = {
            "NaN": _filled_with_nan(),
            f"{POISON:g}": Poisoned(),  # type: ignore[no-untyped-call]
        }
        value = self._pass.usual()[0]
        for what, poisoned in ways.items():
            name = f"fresh memory full of {what}"
            try:
                with poisoned:
                    found, gradient = self._pass.usual()
            except Exception as error:
                yield Trial(name, error=error, refuses=True)
                continue
            finally:
                self._call.world.watch()
            is_same = np.allclose(found, value, rtol=2.0 ** (8 - self._call.bits), atol=0)
            fault = "" if is_same or not np.isfinite(value) else "the output is another"
            yield Trial(name, None if fault else gradient, fault=fault)


def _is_elsewhere(moved: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in its storage in another way."""
    found = [(x.stride(), x.storage_offset()) for x in (moved, tensor)]
    return found[0] != found[1]


@contextmanager
def _in_memory(tensor: torch.Tensor, moved: torch.Tensor) -> Iterator[None]:
    """The numbers of a leaf in other memory."""
    found = tensor.data
    try:
        tensor.data = moved
        yield
    finally:
        tensor.data = found


def _memory(tensor: torch.Tensor) -> tuple[Any, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _bytes_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: bits_of_tensor(tensor).copy() for name, tensor in tensors.items()}


def _written(tensors: dict[str, torch.Tensor], before: dict[str, Any]) -> str:
    """Which of these are not what they were."""
    changed = [
        n for n, found in before.items() if not same_bytes(bits_of_tensor(tensors[n]), found)
    ]
    return f"writes to {', '.join(changed)}" if changed else ""


def _saved(outs: Tensors) -> dict[str, torch.Tensor]:
    """What custom Functions have kept for their backward pass."""
    found: dict[str, torch.Tensor] = {}
    for node in graph_of(outs):
        if not hasattr(node, "_forward_cls"):
            continue
        name = node._forward_cls.__name__
        for number, tensor in enumerate(node.saved_tensors):
            if tensor is not None:
                found[f"saved_tensors[{number}] of {name}"] = tensor
        for key, value in vars(node).items():
            if isinstance(value, torch.Tensor):
                found[f"ctx.{key} of {name}"] = value
    return found


@contextmanager
def _filled_with_nan() -> Iterator[None]:
    """Memory that torch hands out filled with NaN, or the largest whole number."""
    settings: Any = torch.utils.deterministic
    found = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings.fill_uninitialized_memory = True
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
    finally:
        torch.use_deterministic_algorithms(found[0], warn_only=found[1])
        settings.fill_uninitialized_memory = found[2]


class Poisoned(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fresh memory filled with a number that nobody would notice."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        is_fresh = name.startswith(("empty", "new_empty")) and isinstance(out, torch.Tensor)
        if is_fresh and (out.is_floating_point() or out.is_complex()):
            out.fill_(POISON)
        return out
