"""Programs that are kept from one check to the next, and how it is known that they still are those
of the same function.

JAX traces a function once and never looks at it again. A check must not: a rule that was mended
between two checks has to be judged anew. So a program goes by all that tracing could have read: the
code of the function, of those that it calls, and the values that they close over or name.
"""

import functools
import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

KEPT = 16
"""How many functions are remembered."""
LIMIT = 1000
"""How many objects are looked at before a function counts as too entangled to be known."""
ARRAY_BYTES = 1 << 22
LIBRARIES = sys.stdlib_module_names | {"jax", "jaxlib", "numpy"}
HIDING = {"eval", "exec", "globals", "getattr", "__import__", "import_module", "vars", "environ"}
"""A function that uses one of these may read what its code does not name."""


class Unknown(Exception):
    """Something that may change without being seen."""


class Same:
    """An object that stands for itself; kept alive, so that no other one gets its address."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __hash__(self) -> int:
        return id(self._owner)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._owner is other._owner


class Kept:
    """What was found out about functions, the last used ones, by all that they can read."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """What is known; None where that is nothing."""
        if key is None or key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key]

    def put(self, key: Hashable, found: Any) -> None:
        """Remember what was found out, and forget what was not used for the longest time."""
        if key is None:
            return
        self._found[key] = found
        if len(self._found) > KEPT:
            self._found.popitem(last=False)


def key_of(*roots: Any) -> Hashable | None:
    """What tracing a function could read, as a key; None where that cannot be told."""
    seen: dict[int, Any] = {}
    try:
        key = tuple(_key(root, seen) for root in roots)
        hash(key)
    except (Unknown, TypeError, RecursionError):
        return None
    return key


def _key(node: Any, seen: dict[int, Any]) -> Hashable:
    kind = type(node)
    if node is None or kind in (bool, int, str, bytes, CodeType):
        return kind, node
    if kind in (float, complex):  # 0.0 is not -0.0
        return kind, repr(node)
    if id(node) in seen:
        return "again", seen[id(node)][0]
    if len(seen) >= LIMIT:
        raise Unknown
    seen[id(node)] = len(seen), node
    return kind, *_parts(node, seen)


def _parts(node: Any, seen: dict[int, Any]) -> Iterator[Hashable]:
    if isinstance(node, jax.Array):
        yield Same(node)
    elif isinstance(node, np.ndarray | np.generic):
        if node.nbytes > ARRAY_BYTES or node.dtype.hasobject:
            raise Unknown
        yield from (node.shape, str(node.dtype), node.tobytes())
    elif isinstance(node, dict):
        for item in node.items():
            yield from (_key(part, seen) for part in item)
    elif isinstance(node, list | tuple):
        yield from (_key(part, seen) for part in node)
    elif isinstance(node, FunctionType):
        yield from _of_function(node, seen)
    elif isinstance(node, MethodType):
        yield from (_key(node.__self__, seen), _key(node.__func__, seen))
    elif isinstance(node, functools.partial):
        yield from (_key(part, seen) for part in (node.func, node.args, node.keywords))
    elif isinstance(node, BuiltinFunctionType | ModuleType):
        yield Same(node)
    elif isinstance(node, type):
        yield from _of_type(node, seen)
    else:
        yield from _of_object(node, seen)


def _is_of_library(module: Any) -> bool:
    return str(module).partition(".")[0] in LIBRARIES


def _of_function(node: FunctionType, seen: dict[int, Any]) -> Iterator[Hashable]:
    yield node.__code__
    yield from (_key(part, seen) for part in (node.__defaults__, node.__kwdefaults__))
    for cell in node.__closure__ or ():
        try:
            yield _key(cell.cell_contents, seen)
        except ValueError:  # a name that is not bound yet
            yield "empty"
    if _is_of_library(node.__globals__.get("__name__")):
        yield Same(node.__globals__)
        return
    yield _key({k: v for k, v in vars(node).items() if k != "__wrapped__"}, seen)
    names = sorted(set(_names(node.__code__)))
    for name in names:
        if name in HIDING:
            raise Unknown
        named = node.__globals__.get(name, sys.modules.get(name))
        yield from _named(name, named, names, seen)


def _named(name: str, named: Any, names: list[str], seen: dict[int, Any]) -> Iterator[Hashable]:
    """What a name of a function's code stands for; of a module what else is named in it."""
    yield name
    if not isinstance(named, ModuleType):
        yield _key(named, seen)
    elif _is_of_library(named.__name__) or id(named) in seen:
        yield Same(named)
    else:
        seen[id(named)] = len(seen), named
        for inner in names:
            if inner in vars(named):
                yield from _named(inner, vars(named)[inner], names, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _of_type(node: type, seen: dict[int, Any]) -> Iterator[Hashable]:
    yield Same(node)
    for base in node.__mro__:
        if not _is_of_library(base.__module__):
            for name, value in vars(base).items():
                if not name.startswith("__") or isinstance(value, FunctionType):
                    yield from (name, _key(value, seen))


def _of_object(node: Any, seen: dict[int, Any]) -> Iterator[Hashable]:
    wrapped = getattr(node, "__wrapped__", None)
    plain = wrapped if isinstance(wrapped, FunctionType) and not wrapped.__closure__ else None
    if plain and _is_of_library(plain.__globals__.get("__name__")):  # as jnp.tanh
        yield Same(node)
        return
    if hasattr(type(node), "__slots__") and not hasattr(node, "__dict__"):
        raise Unknown
    if isinstance(node, property | staticmethod | classmethod):
        parts = [getattr(node, name, None) for name in ("fget", "fset", "__func__")]
        yield from (_key(part, seen) for part in parts)
    elif isinstance(getattr(node, "__dict__", None), dict):
        own = _is_of_library(type(node).__module__)
        yield Same(type(node)) if own else _key(type(node), seen)
        # A jitted function has what it was made of among its attributes.
        yield from (Same(node), _key(vars(node), seen))
    elif hasattr(node, "__wrapped__"):
        yield from (Same(node), _key(node.__wrapped__, seen))
    elif _is_of_library(type(node).__module__):
        yield node
    else:
        raise Unknown
