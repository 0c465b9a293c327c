"""What of PyTorch a call can change: modes, modules, buffers, tensors and their ``.grad``."""

from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any

import torch
from torch import nn

from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Vector

from .kept_states import attributes_state, plain_states
from .random_states import random_states
from .states import State, same_bytes
from .torch_tensors import PIECE, bits_of_tensor, put_numbers, set_bits

# What modules keep for themselves; their mode and their buffers have states of their own.
OWN = {*vars(nn.Module())}


def named_modules(found: list[Any]) -> dict[str, nn.Module]:
    """Every module that a call can reach, by its dotted name; the outermost by its class. Parts of
    two networks may have the same name: the second is "0 (2)".
    """
    named: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for node in found:
        for name, part in node.named_modules() if isinstance(node, nn.Module) else ():
            if id(part) not in seen:
                seen.add(id(part))
                own = name or type(part).__name__
                others = (f"{own} ({number})" for number in count(2))
                named[next(free for free in chain([own], others) if free not in named)] = part
    return named


def refuse_quantised(modules: dict[str, nn.Module]) -> None:
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


def drops_out(module: nn.Module) -> bool:
    shares = (getattr(module, name, None) for name in ("p", "dropout"))
    return module.training and any(isinstance(n, float | int) and n > 0 for n in shares)


def states_of(found: list[Any], modules: dict[str, nn.Module]) -> list[State]:
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


def _module_states(name: str, module: nn.Module) -> Iterator[State]:
    """The training flag of one module and its buffers, without its children's."""

    def set_training(saved: Any) -> None:
        module.training = saved

    yield State(f"the mode of {name}", lambda: module.training, set_training)
    if isinstance(module, torch.jit.ScriptModule):  # keeps its attributes for itself
        for own, tensor in module.named_buffers(recurse=False):
            yield tensor_state(tensor, f"the buffer {own}")
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
        if buffer is None:
            return None, None, False
        return buffer, bits_of_tensor(buffer).copy(), buffer.requires_grad

    def restore(saved: Any) -> None:
        module._buffers[key] = found
        if found is not None:
            set_bits(found, saved[1])
            if found.is_leaf:
                found.requires_grad_(saved[2])

    def is_as(saved: Any) -> bool:
        buffer = module._buffers.get(key)
        if buffer is None or buffer is not saved[0] or buffer.requires_grad is not saved[2]:
            return buffer is saved[0] is None
        return same_bytes(bits_of_tensor(buffer), saved[1])

    return State(name, read, restore, holder=found, is_as=is_as)


def tensor_state(
    tensor: torch.Tensor, name: str = "a tensor", values: Callable[[], Vector] | None = None
) -> State:
    """A tensor's values, its ``.grad`` and whether it requires one.

    A leaf has its ``values`` in the point: another copy of them would be as large as the model.
    """

    def own_grad() -> torch.Tensor | None:
        found = tensor.grad if tensor.is_leaf else None
        return found if found is None or found.layout is torch.strided else None

    grad = own_grad()
    memory = tensor.untyped_storage() if tensor.layout is torch.strided else None
    size = 0 if memory is None else memory.nbytes()

    def is_freed() -> bool:
        return memory is not None and memory.nbytes() < size

    def read() -> Any:
        now = own_grad()
        return (
            bits_of_tensor(tensor).copy() if values is None else None,
            tensor.requires_grad,
            now,
            None if now is None else bits_of_tensor(now).copy(),
        )

    def restore(saved: Any) -> None:
        if memory is not None and is_freed():
            memory.resize_(size)
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
        if is_freed():
            return False
        if values is None:
            return same_bytes(bits_of_tensor(tensor), saved[0])
        return _has(tensor, values())

    def changed(saved: Any) -> list[str]:
        return [f"the .grad of {name}" if holds(saved) else name]

    return State(name, read, restore, holder=tensor, is_as=is_as, changed=changed)


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
