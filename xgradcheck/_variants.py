"""Other arguments for the same function: of lower precision, other values or sizes, or left out."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Case
from xgradcheck._differences import rms
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import BITS, DOUBLE, bits_of
from xgradcheck._probes import any_fault, gross_fault
from xgradcheck._report import Report
from xgradcheck._tree import Node, Path, flatten, forward_parameters, replaced

LOWER = ("float32", "bfloat16", "float16")
TINY = "below the smallest normal number"
FAMILIES: dict[str, Callable[[Any], Any]] = {
    "times 0.001": lambda x: x * 1e-3,
    "times 100": lambda x: x * 100,
    "plus 1000": lambda x: x + 1000,
    "of zero": lambda x: x * 0,
    "that tie": lambda x: (x * 2).round() / 2,
    "with heavy tails": lambda x: x * x * x,
    "of one sign": lambda x: (x * x + 0.01) ** 0.5,
    "with one that dominates": lambda x: x * (1 + 30 * (abs(x) == abs(x).max())),
    TINY: lambda x: x * 1e-310,
}
"""What becomes of the arguments' values."""
BLOCKS, PRIME = (8, 16, 32, 64, 128), 37
"""What sizes are guessed to matter."""


LEAP = 1 / 16
"""By what share of itself an output may change with the last bits of the arguments."""


def around(blocks: Sequence[int]) -> list[int]:
    """0, 1, 2, 3, a prime, and the sizes around blocks: B - 1, B, B + 1, 2 B - 1.

    >>> around((8,))
    [0, 1, 2, 3, 7, 8, 9, 15, 37]
    """
    sizes = {0, 1, 2, 3, PRIME}
    for block in blocks:
        sizes |= {block - 1, block, block + 1, 2 * block - 1}
    return sorted(sizes)


Variant = tuple[str, tuple[Any, ...], AbstractContextManager[Any]]
"""What it is, other arguments, and what is entered for the time."""


def other_dtypes(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    """The arguments in lower precision, and under autocast."""
    kinds = [*kinds_of(case).values()]
    if not kinds:
        return
    highest = max(map(bits_of, kinds))
    has_complex = any(kind.startswith("complex") for kind in kinds)
    for name in LOWER[:1] if has_complex else LOWER:
        if BITS[name] < highest:
            try:
                args = cast_to(case, adapter, name)
            except InvalidCase:  # a dtype that the framework lacks
                continue
            yield f"in {name}", args, nullcontext()
    if hasattr(adapter, "autocast"):
        args = cast_to(case, adapter, "float32") if highest == DOUBLE else case.args
        yield "under autocast", args, adapter.autocast(args)


def kinds_of(case: Case) -> dict[Path, str]:
    """The dtypes of the floating arguments; none where a gradient belongs to these values."""
    return {node.path: _kind(node.value) for node in _floating(case)}


COMPLEX_OF = {"float64": "complex128"}


def cast_to(case: Case, adapter: Any, name: str) -> tuple[Any, ...]:
    """The arguments with all floating ones in another dtype."""
    changed: dict[Any, Any] = {}
    for node in _floating(case):
        is_complex = _kind(node.value).startswith("complex")
        own = COMPLEX_OF.get(name, "complex64") if is_complex else name
        changed[node.path] = adapter.cast(node.value, own)
    return tuple(replaced(case.args, changed))


def all_kinds(case: Case) -> dict[Path, str]:
    """The same of all arguments, those by name too."""
    named = kinds_of(_of_names(case))
    return kinds_of(case) | {path[1:]: kind for path, kind in named.items()}


def in_dtype(case: Case, adapter: Any, name: str) -> Case:
    """The case with all floating arguments in another dtype, those by name too."""
    (kwargs,) = cast_to(_of_names(case), adapter, name)
    return replace(case, args=cast_to(case, adapter, name), kwargs=kwargs)


def _of_names(case: Case) -> Case:
    """The arguments by name, as if they were one."""
    return replace(case, args=(dict(case.kwargs),))


def other_values(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    """Other values of the same arguments. Operators do, which all frameworks have."""
    nodes = _floating(case)
    flushes = getattr(adapter, "FLUSHES", False)
    for name, change in FAMILIES.items() if nodes else ():
        if name == TINY and flushes:
            continue  # they are zeros
        try:
            changed = {node.path: change(node.value) for node in nodes}
        except Exception:  # complex numbers are not rounded
            continue
        yield f"values {name}", replaced(case.args, changed), nullcontext()
    whole = [node for node in flatten(case.args) if _repeats(node.value)] if nodes else []
    if whole:
        changed = {node.path: node.value * 0 + node.value.reshape(-1)[0] for node in whole}
        yield "indices that are all the same", replaced(case.args, changed), nullcontext()


def is_resolved(case: Case, adapter: Any) -> bool:
    """Whether a function is the same between neighbouring numbers: a sine of 1e27 is not, and has
    no gradient that differences could see.
    """
    problem = adapter.bind(case)
    beside = problem.point * (1 + np.ldexp(4.0, -problem.layout.significands()))
    with problem.held(), np.errstate(all="ignore"):
        here = problem.values()[0]
        with problem.at(beside):
            there = problem.values()[0]
        size = np.abs(here)
        return not (np.abs(there - here) > LEAP * (size + rms(size))).any()


def _repeats(value: Any) -> bool:
    """Whether this may be indices, of which some could be the same."""
    return "int" in _kind(value) and math.prod(value.shape) > 1


def without(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    """The arrays that may be left out, left out one at a time."""
    parameters = forward_parameters(case.fn)
    for number, parameter in enumerate(parameters[: len(case.args)]):
        if parameter.default is None and hasattr(case.args[number], "shape"):
            given = (*case.args[:number], None, *case.args[number + 1 :])
            yield f"without {parameter.name}", given, nullcontext()


def _floating(case: Case) -> list[Node]:
    """The floating arrays among the arguments; none where a gradient belongs to this point."""
    if case.grads is not None and not callable(case.grads):
        return []
    return [node for node in flatten(case.args) if _is_floating(node.value)]


def _is_floating(value: Any) -> bool:
    return hasattr(value, "shape") and any(word in _kind(value) for word in ("float", "complex"))


def _kind(value: Any) -> str:
    """The name of a dtype, as the core has it."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2]


def other_shapes(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    if callable(shapes):
        shapes = {f"size {size}": shapes(size) for size in around(BLOCKS)}
    if shapes is not None and not isinstance(shapes, Mapping):
        raise InvalidCase(
            f"shapes={shapes!r} is neither a dict of arguments by name nor a function of a size."
        )
    for name, args in (shapes or {}).items():
        yield str(name), args if isinstance(args, tuple) else (args,), nullcontext()


Variants = Callable[[Case, Any, Any], Iterator[Variant]]
VARIANTS: dict[str, tuple[Variants, Callable[[Report], str]]] = {
    "dtypes": (other_dtypes, any_fault),
    "optional": (without, any_fault),
    "values": (other_values, gross_fault),
    "shapes": (other_shapes, gross_fault),
}
"""Probes that check with something else, and what counts as a fault there."""
FORMS = ("optional", "shapes")
"""Those in which a forward pass that runs wants a backward pass that does."""
