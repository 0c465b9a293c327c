"""What a call can reach: what it is bound to, closes over or names, and what that holds."""

import functools
from collections.abc import Iterable, Iterator, MutableMapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

# Framework objects keep books of their own, and what they hold is reached through their interfaces.
FOREIGN = ("numpy", "torch", "jax", "jaxlib", "builtins", "functools", "random", "types")


MADE = 1 << 9
"""The flag of a class that Python code has made (Py_TPFLAGS_HEAPTYPE)."""


def is_of_the_user(node: Any) -> bool:
    """Whether this may be an object of the user's, whose attributes a method may exchange."""
    if isinstance(node, FunctionType | MethodType | ModuleType | type):
        return False
    kind = type(node)
    # A class that was made by exec may call itself one of Python's own.
    is_made = kind.__module__ == "builtins" and bool(kind.__flags__ & MADE)
    return is_made or kind.__module__.partition(".")[0] not in FOREIGN


class Slots(MutableMapping[str, Any]):
    """The attributes of an object that it keeps in ``__slots__``."""

    def __init__(self, node: Any) -> None:
        self._node = node
        found = (vars(kind).get("__slots__", ()) for kind in type(node).__mro__)
        names = [name for slots in found for name in ([slots] if isinstance(slots, str) else slots)]
        self._names = [name for name in names if not name.startswith("__")]

    def __getitem__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self._node, name)
        except AttributeError:  # not bound yet
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        object.__setattr__(self._node, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self._node, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if hasattr(self._node, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def attributes_of(node: Any) -> Iterator[MutableMapping[str, Any]]:
    """Where an object of the user's keeps its attributes: in a dict, in slots, or in both."""
    if not is_of_the_user(node):
        return
    if isinstance(getattr(node, "__dict__", None), dict):
        yield vars(node)
    if slots := Slots(node):
        yield slots


REACH = 10_000


RULES = ("__wrapped__", "fwd", "bwd", "jvp")
"""What functions of JAX that are made of others keep of those."""


def reachable(fn: Any, *roots: Any) -> list[Any]:
    """What a call can see: what ``fn`` is bound to, closes over or names, and what that holds.

    For generators, modules, arrays and dicts whose state may have to be held still.
    """
    found: list[Any] = []
    seen: set[int] = set()
    pending: list[Any] = [fn, *roots]
    while pending and len(found) < REACH:
        node = pending.pop()
        if id(node) in seen or node is None or isinstance(node, str | bytes | int | float | type):
            continue
        seen.add(id(node))
        found.append(node)
        # One by one: subclasses of tuple may have no length.
        pending.extend(held for held in _held_by(node))
    return found


def _held_by(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, list | tuple | set | frozenset):
        return node
    if isinstance(node, functools.partial):
        return node.func, node.args, node.keywords
    if isinstance(node, MethodType):
        return node.__self__, node.__func__
    if isinstance(node, FunctionType):
        return _named_by(node)
    held = [value for attributes in attributes_of(node) for value in attributes.values()]
    if type(node).__module__.partition(".")[0] in ("jax", "jaxlib"):
        # A compiled function, or one with a rule of its own, and the parts of that rule.
        held += [getattr(node, name, None) for name in RULES]
    return held


def _named_by(fn: FunctionType) -> Iterator[Any]:
    """What a function closes over, and the globals it names."""
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell: a name that is not bound yet
            continue
    for name in _names_in(fn.__code__):
        named = fn.__globals__.get(name)
        # A function of another file is somebody's library: following it would lead everywhere.
        elsewhere = isinstance(named, FunctionType) and named.__globals__ is not fn.__globals__
        if not elsewhere and not isinstance(named, ModuleType | BuiltinFunctionType):
            yield named


def _names_in(code: CodeType) -> Iterator[str]:
    """The names that a function uses, and those that functions inside of it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
