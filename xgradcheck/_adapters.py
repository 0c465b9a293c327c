"""The seam: what an adapter gives the core, and which adapter claims the arguments.

Data crosses the seam, never operations. A framework is asked only if the user has already imported
it: its arrays cannot reach us otherwise, so looking in ``sys.modules`` is enough.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from xgradcheck._errors import InvalidCase
from xgradcheck._layout import ComplexVector, Direction, Layout, Positions, Vector
from xgradcheck._tree import Path, replaced


class _Everything:
    """The type of ``ALL``, so that it prints as it is written."""

    def __repr__(self) -> str:
        return "xgradcheck.ALL"


ALL = _Everything()


@dataclass(frozen=True, slots=True)
class Case:
    """The call as the user wrote it."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    wrt: Any
    loss: Callable[[Any], Any] | None
    grads: Any

    @property
    def is_closure(self) -> bool:
        """A function without arguments, whose parameters ``wrt`` holds."""
        return not self.args and not self.kwargs

    def output(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the function gives for these arguments, the loss applied."""
        out = self.fn(*args, **kwargs)
        return out if self.loss is None else self.loss(out)

    def arguments(self, values: dict[Path, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other values at these paths."""
        args = tuple(replaced(tree, values, (number,)) for number, tree in enumerate(self.args))
        return args, {key: replaced(tree, values, (key,)) for key, tree in self.kwargs.items()}

    @property
    def contents(self) -> tuple[Any, ...]:
        """Everything in the call that may hold arrays."""
        return (self.fn, self.args, self.kwargs, self.wrt)


COTANGENT = "the cotangent"


class Backward(NamedTuple):
    """One run of the backward pass under test."""

    value: float | None
    """phi as its own forward pass computed it; None where it does not say."""
    gradient: Vector
    severed: frozenset[int]
    """Numbers of the leaves that the backward pass never reached (None, or a cut graph)."""
    parts: tuple[Any, ...] = ()
    """The very objects that were handed in, leaf by leaf; none where the framework answered."""
    misfits: tuple[str, ...] = ()
    """What had to be made fit: "what the backward of Scale returns is of dtype ..."."""
    written: tuple[str, ...] = ()
    """What the backward pass wrote to that is not its own: leaves, or the cotangent."""
    draws_its_own: bool = False
    """Whether it draws random numbers, and other ones than its forward pass unless both start from
    the same.
    """

    def is_stale(self, before: "Backward") -> bool:
        """Whether the very same arrays were handed in as before: a tree in the form of a
        function.
        """
        pairs = zip(self.parts, before.parts, strict=True)
        return bool(self.parts) and all(one is other for one, other in pairs)


@dataclass(frozen=True, slots=True)
class Trial:
    """One experiment of a probe: the backward pass run once more, with something varied."""

    what: str
    """What that was: "the cotangent at an offset into its storage"."""
    got: Vector | None = None
    """The gradient then."""
    expected: Vector | None = None
    """What it has to be; None for the usual one."""
    beside: Vector | None = None
    """What that is a rounding away: leaves that are others there are not known well enough."""
    leaves: tuple[int, ...] | None = None
    """The numbers of the leaves in which it was asked for; None for all."""
    phi: tuple[float, float, float] | None = None
    """phi then, phi as usual, and how large all is that adds up to it; None where only the gradient
    counts.
    """
    fault: str = ""
    """What was plainly not as it has to be: "writes to x"."""
    error: Exception | None = None
    refuses: bool = False
    """Whether an exception is a refusal, which gives nobody a wrong gradient."""


class Taken(NamedTuple):
    """What one run of a function took and gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cotangent: Vector
    values: Vector
    """The floating outputs."""
    backward: Backward


class Timed(Protocol):
    """A function run over and over on the same memory, with other numbers in it."""

    @property
    def problem(self) -> "Problem":
        """The call that is run."""
        ...

    @property
    def device(self) -> str:
        """What it runs on."""
        ...

    def start(self, cotangent: Vector) -> None:
        """Take this cotangent for what ``stir`` goes out from."""
        ...

    def stir(self, seed: int, share: float) -> None:
        """Have other numbers in all floating arguments and in the cotangent, that differ from those
        at first by up to a share of themselves.
        """
        ...

    def run(self) -> tuple[float, float]:
        """Seconds of the forward and of the backward pass."""
        ...

    def taken(self) -> Taken:
        """What the last run took and gave, in copies."""
        ...

    @property
    def written(self) -> list[str]:
        """What the last run wrote to that is not its own."""
        ...

    def peak(self) -> int:
        """Bytes that a run holds at most, beside its arguments."""
        ...


class Problem(Protocol):
    """A function bound to its arguments, as the core sees it: vectors in, numbers out."""

    layout: Layout
    outputs: Layout
    point: Vector
    skipped: Sequence[str]
    """What takes no part in the comparison, and why: "parameter 'w': frozen"."""
    bits: int
    """The shortest significand, in bits, of leaves, outputs and what is computed on the way, as far
    as the framework tells; else 53. That of the backward pass by itself is in ``backward_bits``,
    where it costs nothing, and ``bits_of_backward(cotangent)`` may run one to tell it. Both are
    optional, as are ``traces``: whether the function is traced and does not run; ``switches``:
    whether it may compare numbers and go on with the answers alone, as ``x > 0`` and ``sign`` do;
    and ``bits_inside``: the shortest significand of all that is computed, where custom rules may
    hide some of it.
    """
    frozen: Positions
    """Coordinates that the framework itself holds constant, as the padding row of an embedding."""
    unit_cotangent: bool
    """Whether the gradient was handed in for cotangent 1, so that no other can be asked for."""

    @property
    def rounds(self) -> bool:
        """Whether the function is known to round to a grid, as ``round`` and ``floor`` do."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """The world of the user held still; on leaving, however that happens, it is as it was
        found.
        """
        ...

    @property
    def moving(self) -> list[str]:
        """What the function changes whenever it runs, and what is therefore put back each time."""
        ...

    def hold_numbers(self) -> list[str]:
        """Hold still the plain numbers too that the function has changed so far; their names."""
        ...

    def along(self, direction: Direction, steps: Vector, start: int, cotangent: Vector) -> Vector:
        """phi at ``point + step * direction``, the direction lying on ``point[start:]``."""
        ...

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        """phi with ``point[index[j]] += steps[j]``, for every j."""
        ...

    @property
    def batch(self) -> int:
        """How many points of one leaf of ``BATCHED`` elements or more ``each`` evaluates together;
        ``along`` takes its points one by one, or in the same way as ``each``.
        """
        ...

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        """phi along a direction in one leaf, as ``each`` computes it together; None where it takes
        its points one by one.
        """
        ...

    def one_by_one(self) -> None:
        """Evaluate all points as ``along`` does: together they gave other values."""
        ...

    def gradient(self, cotangent: Vector) -> Backward:
        """The backward pass under test."""
        ...

    def pushed(self, cotangent: Vector) -> Backward:
        """The gradient by forward mode, tangent by tangent; refuses where there is none."""
        ...

    def values(self) -> tuple[Vector, Sequence[Any]]:
        """The outputs at the point: all floating ones in one vector, and the others as arrays."""
        ...

    def second(self, cotangent: Vector) -> "Problem":
        """The problem whose outputs are the gradients of this one for a cotangent; refuses where
        the framework does not make them.
        """
        ...

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        """Ways to have everything computed in float64 for as long as a context lasts, the best
        first; entering it raises where that cannot be.
        """
        ...

    @property
    def can_be_complex(self) -> bool:
        """Whether the leaves can be given as complex numbers."""
        ...

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        """phi with ``point[index[j]] += 1j * steps[j]``, for every j, nothing conjugated; NaN where
        the function gave back real numbers.
        """
        ...

    @property
    def can_move(self) -> bool:
        """Whether the backward pass can be run at another point."""
        ...

    @property
    def is_handed(self) -> bool:
        """Whether the user gives the gradient, and not the framework."""
        ...

    def at(self, point: Vector) -> AbstractContextManager[None]:
        """The leaves moved to another point, as long as the context lasts."""
        ...


BACKENDS = ["torch", "jax"]
_modules = {name: f"xgradcheck.backends.{name}" for name in ("numpy", "torch", "jax")}


def register(name: str, module: str) -> None:
    """Let the adapter in ``module`` (its import path) claim arguments once framework ``name`` is
    imported.

    >>> import xgradcheck
    >>> xgradcheck.register("mlx", "my_package.mlx_adapter")  # doctest: +SKIP

    The module has ``owns(contents) -> bool`` and ``bind(case) -> Problem``; it may have
    ``made(fn) -> bool``, whether a function that is given NumPy arrays is the framework's own.
    """
    _modules[name] = module
    if name not in BACKENDS:
        BACKENDS.append(name)


def adapter(name: str) -> ModuleType:
    """The adapter of one framework; imports the framework."""
    if not isinstance(name, str) or name not in _modules:
        raise InvalidCase(
            f"there is no backend {name!r}: choose from {', '.join(map(repr, sorted(_modules)))}."
        )
    try:
        return importlib.import_module(_modules[name])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("xgradcheck"):
            raise
        raise InvalidCase(
            f"backend {name!r} needs the package {error.name!r}: pip install {error.name}."
        ) from None


def name_of(module: ModuleType) -> str:
    """What an adapter is called as a backend."""
    return next(name for name, path in _modules.items() if path == module.__name__)


def claim(case: Case, backend: str | None) -> ModuleType:
    """The adapter for this call: the one asked for, else the one framework whose arrays are in
    it.
    """
    if backend is not None:
        return adapter(backend)
    owners = [
        name for name in BACKENDS if name in sys.modules and adapter(name).owns(case.contents)
    ]
    if len(owners) > 1:
        listed = " and ".join(owners)
        raise InvalidCase(f"the arguments hold arrays of {listed}: say which one with backend=.")
    if owners:
        return adapter(owners[0])
    if case.is_closure and case.wrt is None:
        raise InvalidCase("there are no arguments: pass them, or name what it reads with wrt=.")
    numpy = adapter("numpy")
    if case.grads is not None or (not case.args and not case.kwargs and case.wrt is not None):
        return numpy
    if numpy.owns(case.contents):
        for module in (adapter(name) for name in BACKENDS if name in sys.modules):
            if hasattr(module, "made") and module.made(case.fn):
                return module
        raise InvalidCase(
            "the arguments are NumPy arrays and NumPy has no backward pass: give the gradient "
            "with grads=, "
            "or name the framework of the function with backend='jax' or backend='torch'."
        )
    got = (
        ", ".join(type(value).__name__ for value in (*case.args, *case.kwargs.values()))
        or "nothing"
    )
    raise InvalidCase(
        f"no backend claims the arguments (got {got}): pass arrays of torch or jax, or NumPy "
        f"arrays with grads=."
    )
