"""What the code of a function says of it, where no graph does: NumPy keeps none."""

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

SWITCHING = {"greater", "heaviside", "less", "sign"}
ROUNDING = {"around", "ceil", "fix", "floor", "rint", "round", "trunc"}


def rounds(node: Any) -> bool:
    """Whether a function rounds anything to whole numbers."""
    return _uses(ROUNDING, node)


def switches(node: Any) -> bool:
    """Whether a function compares anything."""
    return _uses(SWITCHING, node) or _compares(node)


def _codes(node: Any) -> Iterator[CodeType]:
    """The code of a function, and that of those that are written inside of it."""
    code = node if isinstance(node, CodeType) else getattr(node, "__code__", None)
    if isinstance(code, CodeType):
        yield code
        for part in code.co_consts:
            if isinstance(part, CodeType):
                yield from _codes(part)


def _uses(names: set[str], node: Any) -> bool:
    """Whether a function has one of these names, or uses it."""
    if getattr(node, "__name__", None) in names:
        return True
    return any(not names.isdisjoint(code.co_names) for code in _codes(node))


def _compares(node: Any) -> bool:
    """Whether a function compares anything by an operator."""
    steps = (step for code in _codes(node) for step in dis.get_instructions(code))
    return any(step.opname == "COMPARE_OP" for step in steps)
