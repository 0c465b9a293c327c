"""Which arrays of a call are leaves, and what they are called: those of its arguments, and those
of a function that is a tree of them itself.
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from xgradcheck._adapters import Case
from xgradcheck._layout import DOUBLE, bits_of
from xgradcheck._tree import Node, argument_names

OWN = "the function itself"
"""Under which name a function is an argument of its own: no keyword of a call can be that."""


def _is_network(fn: Any) -> bool:
    """Whether this is a tree of JAX's with floating arrays in it, and none by itself."""
    leaves = tree_util.tree_leaves(fn)
    return not tree_util.all_leaves([fn]) and any(map(is_floating, leaves))


def with_its_own(case: Case) -> Case:
    """The same call with the arrays of a function that is a tree of them, as those of a network, or
    a method of one, as one more argument.
    """
    fn: Any = case.fn
    owner, method = fn, None
    if inspect.ismethod(fn) and not isinstance(fn.__self__, type):
        owner, method = fn.__self__, fn.__func__
    if case.grads is not None or not _is_network(owner):
        return case

    def called(*args: Any, **kwargs: Any) -> Any:
        return method(kwargs.pop(OWN), *args, **kwargs)  # type: ignore[misc]

    whole = _called if method is None else called
    return replace(case, fn=whole, kwargs={**case.kwargs, OWN: owner})


def closed_over(fn: Any) -> Iterator[str]:
    """Networks that a transformed function was made of, whose arrays are none of its arguments."""
    while (inner := getattr(fn, "__wrapped__", None) or getattr(fn, "func", None)) is not None:
        fn = getattr(inner, "__self__", inner)
        if _is_network(fn):
            name = type(fn).__name__
            yield f"the arrays of {name}: the function closes over them; pass the {name} to it"
            return


def _called(*args: Any, **kwargs: Any) -> Any:
    """What a function gives that is an argument itself."""
    return kwargs.pop(OWN)(*args, **kwargs)


def narrowed(case: Case) -> Case | None:
    """The same call with arrays of NumPy's as JAX would read them; None where it has them so."""
    leaves = tree_util.tree_leaves((case.args, case.kwargs))
    own = [leaf for leaf in leaves if isinstance(leaf, jax.Array) and is_floating(leaf)]
    if is_x64() or all(bits_of(str(leaf.dtype)) == DOUBLE for leaf in own):
        return None

    def read(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and is_floating(leaf):
            return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
        return leaf

    args, kwargs = tree_util.tree_map(read, (case.args, dict(case.kwargs)))
    return replace(case, args=args, kwargs=kwargs)


def is_floating(value: Any) -> bool:
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    return is_array and bool(jnp.issubdtype(value.dtype, jnp.inexact))


def is_whole(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iub"


def argument_nodes(case: Case) -> list[Node]:
    """Every leaf of the arguments, named as JAX writes key paths."""
    names = argument_names(case.kwargs.get(OWN, case.fn), len(case.args))
    roots: list[tuple[Any, str, Any]] = [(n, names[n], tree) for n, tree in enumerate(case.args)]
    # JAX sorts the keys of a dict, and the leaves have to come in its order.
    roots += [(key, "" if key == OWN else key, tree) for key, tree in sorted(case.kwargs.items())]
    nodes = [
        Node((key, *map(plain, path)), name + tree_util.keystr(path), value)
        for key, name, tree in roots
        for path, value in tree_util.tree_flatten_with_path(tree)[0]
    ]
    others = {node.suffix for node in nodes if node.path[0] != OWN}
    return [
        replace(node, suffix=_own_name(node.suffix, others)) if node.path[0] == OWN else node
        for node in nodes
    ]


def _own_name(suffix: str, others: set[str]) -> str:
    """What an array of the function itself is called beside those of its arguments."""
    name = suffix.removeprefix(".")
    return f"self{suffix}" if name in others or name.startswith("[") else name


def plain(entry: Any) -> Any:
    """The dict key, index or attribute name inside one of JAX's key path entries."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def is_x64() -> bool:
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
