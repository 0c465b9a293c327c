"""Nested containers as paths: dict, list, tuple, namedtuple and dataclass.

JAX brings a tree of its own; this one serves NumPy and PyTorch, whose users nest plain Python.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One leaf of a tree: where it is, how Python would write that, and what lies there."""

    path: Path
    suffix: str
    value: Any


def _children(tree: Any) -> Iterator[tuple[Any, str, Any]] | None:
    """(key, how Python writes it, child) of a container; None for anything else."""
    if isinstance(tree, Mapping):
        return ((key, f"[{key!r}]", child) for key, child in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return ((key, f".{key}", getattr(tree, key)) for key in tree._fields)
    if isinstance(tree, list | tuple):
        return ((key, f"[{key}]", child) for key, child in enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        return ((key, f".{key}", getattr(tree, key)) for key in names if hasattr(tree, key))
    return None


def flatten(tree: Any, path: Path = (), suffix: str = "") -> Iterator[Node]:
    """Every leaf of ``tree``, in order; what is no container is a leaf, None too."""
    children = _children(tree)
    if children is None:
        yield Node(path, suffix, tree)
        return
    for key, written, child in children:
        yield from flatten(child, (*path, key), suffix + written)


def replaced(tree: Any, values: Mapping[Path, Any], path: Path = ()) -> Any:
    """``tree`` with the leaves at the paths in ``values`` exchanged; containers on the way are
    new.
    """
    if path in values:
        return values[path]
    children = _children(tree)
    if children is None:
        return tree
    made = {key: replaced(child, values, (*path, key)) for key, _, child in children}
    if isinstance(tree, list | tuple):
        parts = list(made.values())
        if isinstance(tree, list):
            return parts
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    renewed = copy.copy(tree)
    for key, child in made.items():
        if isinstance(tree, Mapping):
            renewed[key] = child
        else:
            object.__setattr__(renewed, key, child)
    return renewed


def argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    """The name of each of ``count`` positional arguments: the function's own, else ``args[0]``."""
    own = _positional_names(fn)[:count]
    return [*own, *(f"args[{position}]" for position in range(len(own), count))]


def _positional_names(fn: Callable[..., Any]) -> Sequence[str]:
    """The names of the positional parameters that ``fn`` declares."""
    if type(fn) is MethodType:
        return _positional_names(fn.__func__)[1:]
    # A plain function is its own witness; to ask for its signature takes many times as long.
    if type(fn) is FunctionType and not vars(fn):
        return fn.__code__.co_varnames[: fn.__code__.co_argcount]
    return [parameter.name for parameter in positional_parameters(fn)]


def parameters_of(fn: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    """The parameters that ``fn`` declares; none where it does not tell (a builtin)."""
    try:
        return [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        return ()


def positional_parameters(fn: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    """The positional ones among them."""
    known = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in parameters_of(fn) if parameter.kind in known]


def takes_any_number(fn: Callable[..., Any]) -> bool:
    """Whether ``fn`` declares ``*args``."""
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters_of(fn))


def forward_parameters(fn: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    """The positional parameters that a call of ``fn`` fills; none where it does not tell.

    A callable that passes its arguments on to a ``forward``, of itself or of its class, takes what
    that takes.
    """
    owner = getattr(fn, "__self__", fn)
    forward = getattr(owner, "forward", None)
    spoken_for = forward if callable(forward) else fn
    parameters = positional_parameters(spoken_for)
    is_class = isinstance(owner, type) and spoken_for is forward
    has_context = is_class and bool(parameters) and parameters[0].name == "ctx"
    return parameters[1:] if has_context else parameters


def required_arguments(fn: Callable[..., Any]) -> int:
    """How many positional arguments ``fn`` cannot do without, as far as it tells."""
    return len([p for p in forward_parameters(fn) if p.default is p.empty])
