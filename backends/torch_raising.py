"""PyTorch functions computed in float64, whatever they were written for; those of 16 bits that have
something against it in float32.

Tensors below that are raised where they lie: another storage is put under them for as long as
the context lasts, so that what is written to a tensor, or to a view of it, is seen by all who hold
it. What only comes into being on the way is raised as it comes: a mode sees every function that is
called on tensors, and every custom ``Function`` on its way in and in its backward. Random numbers
are drawn in the dtype that they would have been drawn in, since torch draws others in float64.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from .torch_exchanged import backwards_applied, functions_applied, mapped
from .torch_watched import Watching

SHORT = (torch.float16, torch.bfloat16)
LOW = (torch.float32, *SHORT)
WIDER = {
    torch.float64: dict.fromkeys(LOW, torch.float64)
    | {torch.complex64: torch.complex128, torch.complex32: torch.complex128},
    torch.float32: dict.fromkeys(SHORT, torch.float32) | {torch.complex32: torch.complex64},
}
"""What is raised to a dtype, and to what."""

# These name no dtype that could be exchanged.
CASTS = {
    torch.Tensor.float: torch.float32,
    torch.Tensor.half: torch.float16,
    torch.Tensor.bfloat16: torch.bfloat16,
}
CAST_TO = {torch.float64: torch.Tensor.double, torch.float32: torch.Tensor.float}


class Raised:
    """Tensors that lie in a wider dtype for a while, and where they lay before."""

    def __init__(self, to: torch.dtype) -> None:
        self.to, self.wider = to, WIDER[to]
        self._found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        self._storages: dict[Any, tuple[Any, torch.Tensor]] = {}

    def raise_in_place(self, tensor: torch.Tensor) -> None:
        """Put a wider storage under a tensor, the same one under all that share theirs."""
        wide = self.wider[tensor.dtype]
        found = tensor.data
        storage = found.untyped_storage()
        # Another dtype over the same bytes would be another storage; kept alive, its address is
        # nobody else's.
        address = storage.data_ptr() if storage.nbytes() else id(storage)
        key = address, tensor.dtype, found.device
        if key not in self._storages:
            length = storage.nbytes() // tensor.dtype.itemsize
            flat = torch.empty(0, dtype=tensor.dtype, device=found.device)
            flat = flat.set_(storage, 0, (length,), (1,))
            self._storages[key] = storage, flat.to(wide)
        flat, grad = self._storages[key][1], tensor.grad
        self._found.append((tensor, found, grad))
        tensor.grad = None  # it has to be of the dtype of its tensor
        tensor.data = flat.as_strided(found.shape, found.stride(), found.storage_offset())
        if grad is not None and grad.layout is torch.strided:
            tensor.grad = grad.to(wide)

    def put_back(self) -> None:
        """Every tensor over the storage it was found with."""
        for tensor, found, grad in reversed(self._found):
            tensor.grad = None
            tensor.data = found
            tensor.grad = grad
        self._found.clear()
        self._storages.clear()


class Raising(TorchFunctionMode):
    """Raises what functions are given and what they return; ``busy`` tells whether it had to."""

    def __init__(self, raised: Raised) -> None:
        super().__init__()
        self._raised = raised
        self.busy = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = mapped(self.wide, (args, kwargs or {}))
        if CASTS.get(func) in self._raised.wider:
            self.busy, func = True, CAST_TO[self._raised.to]
        return mapped(self.wide, func(*args, **kwargs))

    def wide(self, value: Any) -> Any:
        """A tensor or dtype raised, if it is one of those that are; anything else as it is."""
        wider = self._raised.wider
        if isinstance(value, torch.dtype):
            self.busy |= value in wider
            return wider.get(value, value)
        if not isinstance(value, torch.Tensor) or value.dtype not in wider:
            return value
        self.busy = True
        if not can_be_raised_in_place(value):
            return value.to(wider[value.dtype])
        self._raised.raise_in_place(value)
        return value


def can_be_raised_in_place(tensor: torch.Tensor) -> bool:
    """Whether another storage can be put under a tensor: not under a step of a graph."""
    return (
        tensor.layout is torch.strided
        and tensor.grad_fn is None
        and not tensor.is_inference()
        and tensor.device.type != "meta"
        and type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    )


FACTORIES = ("rand", "randn")
COMPUTING = ("rrelu_with_noise", "rrelu_with_noise_")
"""What draws and computes in one step is left alone: it would compute in the lower dtype too."""
DROPOUT = "native_dropout"
"""What draws a mask, and returns it beside what it makes of it."""


class Draws(Watching):
    """Draws random numbers in the dtype that they were drawn in before all was raised, and computes
    in it what is made of them alone: ``u > 0.1`` is another mask in another dtype.
    """

    def __init__(self, dtype: torch.dtype, default: torch.dtype, to: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype, self._default, self._to = dtype, default, to
        self._drawn = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags and not self._is_of_draws(args):
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name in COMPUTING:
            return func(*args, **kwargs)
        low, low_kwargs = tree_map(self._narrow, (args, kwargs))
        if name == DROPOUT and args[0].dtype is self._to and args[2] is not False:
            share, (_, mask) = args[1], func(*low, **low_kwargs)
            return args[0] * mask * (1 / (1 - share) if share < 1 else 0.0), mask
        if name in FACTORIES and low_kwargs.get("dtype") is None:
            low_kwargs["dtype"] = self._default
        drawn = func(*low, **low_kwargs)
        written = [
            (found, narrow)
            for found, narrow, argument in zip(args, low, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for found, narrow in written:
            if found is not narrow:
                found.copy_(narrow)
                self._drawn[found] = True
        return written[0][0] if name.endswith("_") and written else tree_map(self._widened, drawn)

    def _is_of_draws(self, args: Any) -> bool:
        """Whether all floating tensors among the arguments were drawn, or made of such."""
        if not self._drawn:
            return False
        found = [part for part in tree_leaves(args) if isinstance(part, torch.Tensor)]
        floating = [part for part in found if part.is_floating_point()]
        return bool(floating) and all(part in self._drawn for part in floating)

    def _narrow(self, value: Any) -> Any:
        if value is self._to:
            return self._dtype
        if isinstance(value, torch.Tensor) and value.dtype is self._to:
            return value.to(self._dtype)
        return value

    def _widened(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype not in LOW:
            return value
        wide = value.to(self._to)
        self._drawn[wide] = True
        return wide


@contextmanager
def raised(tensors: Iterable[torch.Tensor], to: torch.dtype) -> Iterator[Raising]:
    """These tensors in a wider dtype, and a mode that raises all others on their way through
    functions; the mode is not entered.
    """
    found = Raised(to)
    mode = Raising(found)
    default = torch.get_default_dtype()
    try:
        for tensor in tensors:
            if tensor.dtype in found.wider and can_be_raised_in_place(tensor):
                found.raise_in_place(tensor)
        torch.set_default_dtype(found.wider.get(default, default))
        with _functions_wrapped(mode):
            yield mode
    finally:
        torch.set_default_dtype(default)
        found.put_back()


@contextmanager
def _functions_wrapped(mode: Raising) -> Iterator[None]:
    """Custom Functions given what is raised, and their backward passes run under the mode."""

    def apply(usual: Callable[..., Any], cls: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = mapped(mode.wide, (args, kwargs))
        return mapped(mode.wide, usual(*args, **kwargs))

    def pull_back(usual: Callable[..., Any], ctx: Any, cotangents: Any) -> Any:
        with mode:
            return usual(ctx, *cotangents)

    with backwards_applied(pull_back), functions_applied(apply):
        yield
