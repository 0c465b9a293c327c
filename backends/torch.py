"""PyTorch: functions of tensors, modules, and closures over tensors; the gradient comes from
autograd.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case, Trial
from xgradcheck._errors import InvalidCase, short
from xgradcheck._layout import (
    DOUBLE,
    ComplexVector,
    Direction,
    Layout,
    Positions,
    Vector,
)
from xgradcheck._tree import flatten

from . import torch_imaginary, torch_probes, torch_tangents
from .torch_backward import UnderTest
from .torch_call import Call
from .torch_exchanged import looked_up, mapped
from .torch_leaves import bound
from .torch_points import Points
from .torch_precision import autocast_on, matmul_precision, shortest, switches
from .torch_second import Gradients
from .torch_tensors import array_of as array_of
from .torch_watched import computed_by


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
        return TorchProblem(Call(case, bound(case)))


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


def probes(problem: "TorchProblem", cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that this problem allows, by the name of the probe."""
    return torch_probes.probes(problem.call, cotangent)


class TorchProblem:
    """One call of a PyTorch function, seen from the core."""

    def __init__(self, call: Call) -> None:
        self.call, self.layout, self.skipped = call, call.layout, call.skipped
        self._points, self._backward = Points(call), UnderTest(call)
        self.unit_cotangent = self._backward.unit_cotangent
        self.is_handed, self.can_move = call.is_handed, call.given is None

    @property
    def point(self) -> Vector:
        return self.call.point

    @property
    def outputs(self) -> Layout:
        return self.call.outputs.layout

    @property
    def bits(self) -> int:
        return self.call.bits

    @property
    def backward_bits(self) -> int:
        return self.call.backward_bits

    @property
    def frozen(self) -> Positions:
        return self.call.frozen

    @property
    def moving(self) -> list[str]:
        return self.call.moving

    def held(self) -> AbstractContextManager[None]:
        return self.call.held()

    def hold_numbers(self) -> list[str]:
        return self.call.world.hold_numbers()

    def at(self, point: Vector) -> AbstractContextManager[None]:
        return self.call.at(point)

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        return self.call.raisings()

    def values(self) -> tuple[Vector, list[Any]]:
        return self._points.values()

    def along(self, direction: Direction, steps: Vector, start: int, cotangent: Vector) -> Vector:
        return self._points.along(direction, steps, start, cotangent)

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        return self._points.each(index, steps, cotangent)

    @property
    def batch(self) -> int:
        return self._points.batch

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        return self._points.batched(direction, steps, start, cotangent)

    def one_by_one(self) -> None:
        self._points.one_by_one()

    @property
    def can_be_complex(self) -> bool:
        return torch_imaginary.can_be_complex(self.call)

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        return torch_imaginary.imaginary(self.call, index, steps, cotangent)

    def gradient(self, cotangent: Vector) -> Backward:
        return self._backward.gradient(cotangent)

    def bits_of_backward(self, cotangent: Vector) -> int:
        """The shortest significand of all that the backward pass computes; 0 where that is not
        known.
        """
        computed = computed_by(functools.partial(self.gradient, cotangent))
        return 0 if computed is None else shortest(computed.dtypes)

    def pushed(self, cotangent: Vector) -> Backward:
        return torch_tangents.pushed(self.call, cotangent)

    def second(self, cotangent: Vector) -> "TorchProblem":
        if self.is_handed:
            raise _handed.no_second_order()
        return TorchProblem(Gradients(self.call, cotangent))

    @property
    def rounds(self) -> bool:
        inside = self.call.inside
        return inside is not None and inside.rounds

    @property
    def switches(self) -> bool:
        """Whether truth values, or signs, become numbers."""
        inside = self.call.inside
        return inside is not None and inside.switches

    @property
    def bits_inside(self) -> int:
        """The shortest significand of all that is computed, be it on the way to the output or
        beside it.
        """
        inside = self.call.inside
        return DOUBLE if inside is None else shortest(inside.dtypes)
