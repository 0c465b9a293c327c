"""JAX: pytrees in, pytrees out; points are batched with vmap under jit. float64 is switched on
where it is asked for, whatever the global flag says.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case, Trial
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import ComplexVector, Layout, Positions, Vector

from . import jax_backward, jax_probes, jax_tangents
from .jax_call import Call
from .jax_leaves import narrowed, with_its_own
from .jax_points import Points
from .jax_raised import raised, raised_as_traced

FLUSHES = True
"""Whether numbers below the smallest normal one are taken for zero: XLA does so."""


def owns(contents: Any) -> bool:
    """Whether a JAX array is in the call."""
    try:
        leaves = tree_util.tree_leaves(contents)
    except ValueError:  # a dict whose keys JAX cannot sort: no tree of its own
        return False
    return any(isinstance(leaf, jax.Array) for leaf in leaves)


def made(fn: Any) -> bool:
    """Whether JAX made this of a function, as ``jit`` and ``custom_vjp`` do."""
    return type(fn).__module__.partition(".")[0] in ("jax", "jaxlib")


def from_numpy(array: Any) -> Any:
    """Left as it is: JAX takes NumPy arrays, and would make float32 of float64 ones outside our
    scope.
    """
    return array


def cast(array: Any, dtype: str) -> Any:
    """The same numbers in another dtype, which is named as the core has it."""
    # Outside of a scope of its own JAX has no float64, and NumPy has.
    wide = np.dtype(jnp.dtype(dtype)).itemsize == (16 if dtype.startswith("complex") else 8)
    return (np.asarray(array) if wide else array).astype(jnp.dtype(dtype))


def array_of(value: Any) -> Any:
    """The numbers of an array, on the side of NumPy."""
    return np.asarray(value)


def planted(forward: Any, backward: Any, count: int) -> tuple[Any, Any]:
    """A function of ``count`` arrays with this backward pass, both in the operations of this
    framework; and its ``grads``, where those have to be handed in.
    """
    ruled = jax.custom_vjp(lambda *args: forward(jnp, *args))
    ruled.defvjp(
        lambda *args: (forward(jnp, *args), args),
        lambda args, cotangent: tuple(backward(jnp, cotangent, *args)),
    )
    return ruled, None


def bind(case: Case) -> "JaxProblem":
    """The problem that this call poses; refuses what cannot be checked."""
    case = with_its_own(case)
    if case.is_closure:
        raise InvalidCase(
            "JAX functions are pure: pass the parameters as arguments, check(fn, params)."
        )
    try:
        return JaxProblem(Call(case))
    except TypeError:
        # To JAX arrays of NumPy's are as wide as its own; float64 beside float32 many operations
        # refuse.
        narrow = narrowed(case)
        if narrow is None:
            raise
        return JaxProblem(Call(narrow))


def timed(case: Case) -> Any:
    """What runs one implementation again and again."""
    from .jax_timing import JaxTimed  # only benchmarks ask

    problem = bind(case)
    return JaxTimed(problem, problem.call)


def flags() -> dict[str, str]:
    """What JAX was told of precision, and what it runs on."""
    read: Any = jax.config
    return {
        "jax matmul precision": str(read.jax_default_matmul_precision or "default"),
        "jax x64": str(bool(read.jax_enable_x64)),
        "jax device": str(jax.devices()[0].device_kind),
    }


def probes(problem: "JaxProblem", cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that this problem allows, by the name of the probe."""
    return jax_probes.probes(problem.call, cotangent)


class JaxProblem:
    """One call of a JAX function, seen from the core."""

    frozen: Positions = np.empty(0, np.intp)
    traces = True

    def __init__(self, call: Call) -> None:
        self.call, self.layout = call, call.layout
        self._points = Points(call)
        self.unit_cotangent = call.unit_cotangent
        self.is_handed, self.can_move = call.is_handed, call.given is None

    @property
    def point(self) -> Vector:
        return self.call.point

    @property
    def outputs(self) -> Layout:
        return self.call.known.outputs

    @property
    def skipped(self) -> list[str]:
        return self.call.known.skipped

    @property
    def bits(self) -> int:
        return self.call.known.bits

    @property
    def backward_bits(self) -> int:
        return self.call.known.backward_bits

    @property
    def rounds(self) -> bool:
        return self.call.known.rounds

    @property
    def switches(self) -> bool:
        return self.call.known.switches

    @property
    def moving(self) -> list[str]:
        return self.call.world.moving

    def held(self) -> AbstractContextManager[None]:
        return self.call.held()

    def hold_numbers(self) -> list[str]:
        return self.call.world.hold_numbers()

    def at(self, point: Vector) -> AbstractContextManager[None]:
        return self.call.at(point)

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        # Only the function itself takes gradients that are handed in.
        ways = [raised] if self.is_handed else [raised, raised_as_traced]
        return [functools.partial(way, self.call) for way in ways]

    def values(self) -> tuple[Vector, list[Any]]:
        return self._points.values()

    def along(self, direction: Vector, steps: Vector, start: int, cotangent: Vector) -> Vector:
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
        return not any(leaf.is_complex for leaf in (*self.layout, *self.outputs))

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        return self._points.imaginary(index, steps, cotangent)

    def gradient(self, cotangent: Vector) -> Backward:
        return jax_backward.gradient(self.call, cotangent)

    def bits_of_backward(self, cotangent: Vector) -> int:
        return jax_backward.bits_of_backward(self.call, cotangent)

    def pushed(self, cotangent: Vector) -> Backward:
        return jax_tangents.pushed(self.call, cotangent)

    def second(self, cotangent: Vector) -> "JaxProblem":
        if self.is_handed:
            raise _handed.no_second_order()
        return JaxProblem(Call(self.call.case, (self.outputs, cotangent)))
