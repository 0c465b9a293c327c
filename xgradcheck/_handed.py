"""A gradient that the user hands in, as a tree or from a callable, matched to the leaves by
name.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._adapters import Backward
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Layout, Leaf, Vector
from xgradcheck._tree import Path, flatten, positional_parameters, takes_any_number

ELSEWHERE = 0.875
"""What other arguments are times these, where a probe asks for any: inside of most domains."""
FROM_ZERO = 0.125
"""What other arguments are where these are zero."""
ToArray = Callable[[Any], Any]
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Places:
    """Where the gradients lie in the tree: one path for each leaf, and all paths that may occur."""

    leaves: Sequence[Path]
    known: Sequence[Path]


def another(point: Vector) -> Vector:
    """Another point, of which every number differs."""
    return np.where(point == 0, FROM_ZERO, point * ELSEWHERE)


def places(leaves: Sequence[Path], known: Sequence[Path]) -> Places:
    """The shape of ``grads`` for leaves of a function's arguments.

    For leaves of one argument it is a tree like that argument, for several a tuple of such trees
    in their order.
    """
    arguments = list(dict.fromkeys(path[0] for path in leaves))

    def inside(path: Path) -> Path:
        return path[1:] if len(arguments) == 1 else (arguments.index(path[0]), *path[1:])

    return Places(
        [inside(path) for path in leaves], [inside(path) for path in known if path[0] in arguments]
    )


def takes_cotangent(grads: Any, arguments: int, keywords: Collection[str], outputs: Layout) -> bool:
    """Whether ``grads`` asks for one positional argument more than the function got: the
    cotangent. One that takes any number gets it where the output is no scalar.
    """
    if not callable(grads):
        return False
    required = [p for p in positional_parameters(grads) if p.default is p.empty]
    if len([p for p in required if p.name not in keywords]) > arguments:
        return True
    return outputs.size != 1 and takes_any_number(grads)


def read(returned: Any, layout: Layout, where: Places, to_array: ToArray) -> Backward:
    """The flat gradient out of what the user returned: a tree like the leaves, or a (cost, tree)
    pair.
    """
    value, returned = without_value(returned, layout, where, to_array)
    returned = _in_order(_by_own_names(returned, where), layout, where)
    have = ", ".join(map(repr, layout.names))
    gradient = np.zeros(layout.size)
    severed, parts = set(), []
    for number, (leaf, place) in enumerate(zip(layout, where.leaves, strict=True)):
        part = _look_up(returned, place)
        if part is _ABSENT:
            given = _found(returned)
            advice = "" if isinstance(returned, Mapping) else ": choose those it is of with wrt="
            raise InvalidCase(
                f"grads lacks {leaf.name!r}{given}; the parameters are {have}{advice}."
            )
        parts.append(part)
        if part is None:
            severed.add(number)
            continue
        gradient[leaf.part] = numbers(_values(part, leaf, to_array))
    for node in flatten(returned):
        # What is read as an array may be a list of numbers, and an object may hold several.
        if node.path and not any(_same(*_as_far(node.path, path)) for path in where.known):
            raise InvalidCase(
                f"grads has {node.path[-1]!r}, which is no parameter; the parameters are {have}."
            )
    return Backward(value, gradient, frozenset(severed), tuple(parts))


def without_value(
    returned: Any, layout: Layout, where: Places, to_array: ToArray
) -> tuple[float | None, Any]:
    """The cost, where there is one beside the gradients, and those alone."""
    if not _is_pair(returned, layout, where, to_array):
        return None, returned
    return float(np.reshape(to_array(returned[0]), ())), returned[1]


def _by_own_names(returned: Any, where: Places) -> Any:
    """Gradients that are all named after their parameters in one way, under the names of those:
    where there are an x and a dx, ddx is the gradient of the second.
    """
    names = list(dict.fromkeys(path[0] for path in where.leaves if path))
    if not isinstance(returned, Mapping) or not all(isinstance(name, str) for name in names):
        return returned
    for keys in zip(*map(spellings, names), strict=True):
        if set(keys) == set(returned):
            return {name: returned[key] for name, key in zip(names, keys, strict=True)}
    return returned


def _in_order(returned: Any, layout: Layout, where: Places) -> Any:
    """Gradients of several arguments that lie under their names, in their order."""
    if (
        not isinstance(returned, Mapping)
        or not all(where.leaves)
        or any(place[0] in returned for place in where.leaves)
    ):
        return returned
    names = {place[0]: leaf.names[0] for leaf, place in zip(layout, where.leaves, strict=True)}
    if [*names] != [*range(len(names))]:
        return returned
    keys = [next((k for k in spellings(name) if k in returned), None) for name in names.values()]
    is_all = None not in keys and len(keys) == len(returned)
    return tuple(returned[key] for key in keys) if is_all else returned


def _found(returned: Any) -> str:
    """What was handed in instead of what is missing."""
    if isinstance(returned, Mapping):
        return f", it has {', '.join(map(repr, returned)) or 'nothing'}"
    if isinstance(returned, list | tuple):
        return f", it is a {type(returned).__name__} of {len(returned)}"
    shape = getattr(returned, "shape", None)
    return f", it is a {type(returned).__name__}" + ("" if shape is None else f" of shape {shape}")


def _values(part: Any, leaf: Leaf, to_array: ToArray) -> Any:
    name, shape = leaf.name, leaf.shape
    try:
        raw = np.asarray(to_array(part))
        values = raw.astype(np.complex128 if np.iscomplexobj(raw) else np.float64)
    except (TypeError, ValueError, RuntimeError):  # torch's own, of tensors in a tuple
        raise InvalidCase(
            f"the gradient of {name} is a {type(part).__name__}, not an array of shape {shape}: "
            "grads has to be a tree like the parameters (several arguments are checked with "
            "wrt=(0, 1, ...))."
        ) from None
    if np.iscomplexobj(values) and not leaf.is_complex:
        raise InvalidCase(f"the gradient of {name} is complex and {name} is not: return its .real.")
    if isinstance(part, tuple | list) and values.shape == (len(part), *shape):
        raise InvalidCase(
            f"the gradient of {name} is a {type(part).__name__} of {len(part)}: give its array "
            f"alone, or say wrt=(0, 1, ...) where several arguments are checked."
        )
    if values.shape != shape:
        raise InvalidCase(
            f"the gradient of {name} has shape {values.shape} but {name} has shape {shape}: "
            f"{_remedy(values.shape, shape)}."
        )
    return values.astype(np.complex128) if leaf.is_complex else values


def _remedy(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What makes a gradient of one shape one of another."""
    if found == shape[::-1] != shape:
        return "transpose it"
    if np.prod(found) == np.prod(shape):
        return f"reshape it, as with .reshape({shape})"
    axes = range(len(found))
    for count in axes:
        for over in itertools.combinations(axes, count + 1):
            if tuple(found[axis] for axis in axes if axis not in over) == shape:
                which = f"axis {over[0]}" if len(over) == 1 else f"axes {', '.join(map(str, over))}"
                return f"sum it over {which}, along which the parameter was broadcast"
    return "return one number for each element, in the same shape"


def _is_pair(returned: Any, layout: Layout, where: Places, to_array: ToArray) -> bool:
    """A 2-tuple (one number, tree); one that is a tree like the leaves already is no pair."""
    if type(returned) is not tuple or len(returned) != 2:
        return False
    parts = [_look_up(returned, place) for place in where.leaves]
    try:
        pairs = zip(layout, parts, strict=True)
        if all(
            part is not _ABSENT and np.shape(to_array(part)) == leaf.shape for leaf, part in pairs
        ):
            return False
        return bool(np.size(to_array(returned[0])) == 1)
    except (TypeError, ValueError, RuntimeError):
        return np.ndim(returned[0]) == 0


def _look_up(tree: Any, path: Path) -> Any:
    for key in path:
        if isinstance(tree, Mapping):
            tree = next((tree[name] for name in spellings(key) if name in tree), _ABSENT)
        elif isinstance(tree, list | tuple) and isinstance(key, int):
            tree = tree[key] if key < len(tree) else _ABSENT
        elif isinstance(key, str):
            # dW1 first: one object often holds both, W1 the parameter and dW1 its gradient.
            names = reversed(spellings(key))
            tree = next((getattr(tree, name) for name in names if hasattr(tree, name)), _ABSENT)
        else:
            return _ABSENT
    return tree


def has(tree: Any, path: Path) -> bool:
    """Whether a gradient for the leaf at ``path`` was handed in."""
    return _look_up(tree, path) is not _ABSENT


def spellings(key: Any) -> tuple[Any, ...]:
    """Under which names the gradient of ``key`` may lie: W1, or dW1 as the textbooks write it, or
    as those do who write words out.
    """
    return (key, *twins(key)) if isinstance(key, str) else (key,)


def twins(name: str) -> tuple[str, ...]:
    """What the gradient of a parameter of that name may be called."""
    return f"d{name}", f"d_{name}", f"grad_{name}", f"{name}_grad"


def _as_far(one: Path, other: Path) -> tuple[Path, Path]:
    """Two paths as far as both go."""
    return one[: len(other)], other[: len(one)]


def _same(written: Path, path: Path) -> bool:
    if len(written) != len(path):
        return False
    return all(a in spellings(b) for a, b in zip(written, path, strict=True))


def no_forward_mode() -> InvalidCase:
    """The refusal to push tangents through a function whose gradient was handed in."""
    return InvalidCase(
        "modes='forward' asks a framework for tangents, and grads hands in a gradient: leave modes "
        "out."
    )


def no_second_order() -> InvalidCase:
    """The refusal to differentiate a gradient that was handed in."""
    return InvalidCase(
        "order=2 differentiates the backward pass of a framework, and grads hands in a gradient: "
        "check the function that returns the gradient instead."
    )


def cut(flat: Vector, layout: Layout) -> list[Any]:
    """A flat vector as arrays of the leaves' shapes."""
    parts = [(leaf, flat[leaf.part].reshape(leaf.grid)) for leaf in layout]
    return [part[0] + 1j * part[1] if leaf.is_complex else part for leaf, part in parts]


def numbers(values: Any) -> Vector:
    """The numbers of an array as a flat vector holds them: of complex ones all real parts, then
    the imaginary ones.
    """
    flat = np.ravel(values)
    return np.concatenate([flat.real, flat.imag]) if np.iscomplexobj(flat) else flat


def cotangent_names(outputs: Layout) -> list[str]:
    """What the cotangents of the outputs are called where they are leaves themselves."""
    if len(outputs) == 1:
        return ["cotangent"]
    return [f"cotangent of {leaf.name}" for leaf in outputs]


def one_by_one(size: int) -> Iterator[tuple[int, Vector]]:
    """Each coordinate and the unit vector along it, which is the same array for all of them."""
    unit = np.zeros(size)
    for position in range(size):
        unit[position] = 1.0
        yield position, unit
        unit[position] = 0.0
