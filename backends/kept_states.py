"""The states of what Python objects keep: arrays, dicts, lists, attributes and variables."""

import functools
import operator
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from types import CellType, FunctionType
from typing import Any

import numpy as np

from xgradcheck._tree import flatten

from .random_states import generator_state
from .reach import attributes_of, is_of_the_user, reachable
from .states import Contents, State, is_array, same_bytes


def mapping_state(name: str, mapping: MutableMapping[Any, Any]) -> State:
    """The arrays in a dict, or among an object's attributes, that the function may exchange.

    Arrays alone: what a network counts and notes down is put back in the end, and a counter or a
    log that the user keeps elsewhere is none of our business.
    """

    def read() -> Contents:
        arrays = {key: value for key, value in mapping.items() if is_array(value)}
        others = {key: value for key, value in mapping.items() if key not in arrays}
        return Contents(arrays, others)

    def restore(saved: Contents) -> None:
        for key in read().items.keys() - saved.items.keys():
            if key in saved.others:  # None, as before what is made at need
                mapping[key] = saved.others[key]
            else:
                del mapping[key]
        mapping.update(saved.items)

    return State(name, read, restore)


def sequence_state(name: str, sequence: Any) -> State:
    """What a list or deque of an object's holds, as far as there are arrays in it: a network may
    push them for its backward pass to pop.
    """

    def arrays(held: Any) -> list[Any]:
        return [part for part in held if _has_arrays(part)]

    def is_as(saved: Any) -> bool:
        return _holds(arrays(sequence), arrays(saved))

    return State(name, lambda: [*sequence], functools.partial(_refill, sequence), is_as=is_as)


def _has_arrays(value: Any) -> bool:
    return any(is_array(node.value) for node in flatten(value))


LARGE = 10_000
"""What holds more is a store of data, and no log of a few calls."""


CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)


def _contents(value: Any) -> Any:
    """What a container of Python's own holds, in its order; None where it is none, or a store."""
    return None if type(value) not in CONTAINERS or len(value) > LARGE else _listed(value)


def _listed(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(contents)


def _holds(container: Any, contents: Any) -> bool:
    """Whether a container holds the very objects that it held."""
    if contents is None:
        return True
    if len(container) != len(contents):
        return False
    now = _listed(container)
    if isinstance(container, dict):
        now, contents = ([x for pair in pairs for x in pair] for pairs in (now, contents))
    return all(map(operator.is_, now, contents))


def attributes_state(
    prefix: str, attributes: MutableMapping[str, Any], but: set[str], added_name: str
) -> State:
    """What an object's attributes are bound to, all ``but`` some, which there are, and what lists,
    dicts and their like among them hold: an array that is put back needs the flag beside it that
    says that it is there.
    """

    def read() -> dict[str, Any]:
        kept = {key: value for key, value in attributes.items() if key not in but}
        return {key: (value, _contents(value)) for key, value in kept.items()}

    def restore(saved: dict[str, Any]) -> None:
        for key in attributes.keys() - but - saved.keys():
            del attributes[key]
        for key, (value, contents) in saved.items():
            attributes[key] = value
            if not _holds(value, contents):
                _refill(value, contents)

    def is_kept(key: str, saved: dict[str, Any]) -> bool:
        return attributes.get(key, saved) is saved[key][0] and _holds(*saved[key])

    def is_as(saved: dict[str, Any]) -> bool:
        return attributes.keys() - but == saved.keys() and all(is_kept(k, saved) for k in saved)

    def changed(saved: dict[str, Any]) -> list[str]:
        added = attributes.keys() - but - saved.keys()
        exchanged = [prefix + key for key in saved if not is_kept(key, saved)]
        return exchanged + [added_name] * bool(added)

    return State(added_name, read, restore, is_as=is_as, changed=changed)


def plain_states(objects: Sequence[Any]) -> Iterator[State]:
    """The states of NumPy and of Python's own objects among ``objects``."""
    for node in objects:
        if isinstance(node, np.random.Generator | np.random.RandomState):
            yield generator_state(node)
        elif type(node) is random.Random:  # SystemRandom has no state to hold
            yield State("a Random of Python's", node.getstate, node.setstate, True)
        elif isinstance(node, np.ndarray):
            if node.flags.writeable:
                yield array_state("an array", node)
        elif type(node) is dict:
            yield mapping_state("a dict", node)
        else:
            for attributes in attributes_of(node):
                yield mapping_state(f"the attributes of {type(node).__name__}", attributes)


def pushed_states(objects: Sequence[Any]) -> Iterator[State]:
    """The states of lists and deques among the attributes of objects of the user's."""
    for node in objects:
        for attributes in attributes_of(node):
            for name, held in attributes.items():
                if type(held) in (list, deque) and len(held) <= LARGE:
                    yield sequence_state(f"{type(node).__name__}.{name}", held)


def number_states(objects: Sequence[Any]) -> Iterator[State]:
    """Numbers that a function may keep from call to call: in attributes, in dicts, in variables
    that it closes over, and in globals that it names.
    """
    return _kept_in(objects, _is_number, "number")


def book_states(
    objects: Sequence[Any], leaves: Sequence[Any], roots: Sequence[Any]
) -> Iterator[State]:
    """All that networks of the user's keep in their attributes: objects that hold ``leaves``, or
    what is in ``roots``, as the very dict that a function is called with.
    """
    own: set[int] | None = None
    for node in objects:
        for attributes in attributes_of(node):
            if own is None:
                own = {id(leaf) for leaf in (*leaves, *reachable(None, *roots))}
            if id(node) not in own and own.isdisjoint(map(id, attributes.values())):
                continue
            owner = type(node).__name__
            yield attributes_state(f"{owner}.", attributes, set(), f"new attributes of {owner}")


def wide_array_states(objects: Sequence[Any]) -> Iterator[State]:
    """The same of arrays of NumPy's with eight bytes or more to a number: which ones are kept, and
    not what is in them.
    """
    return _kept_in(objects, _is_wide, "array")


def array_places(objects: Sequence[Any], arrays: Sequence[Any]) -> Iterator[State]:
    """Where objects keep these very arrays: reading gives the array, and restoring puts another one
    in its place.
    """
    own = {id(array) for array in arrays}

    def wanted(value: Any) -> bool:
        return id(value) in own

    yield from _kept_in(objects, wanted, "array")
    for node in objects:
        for place, value in enumerate(node if type(node) is list else ()):
            if wanted(value):
                write = functools.partial(operator.setitem, node, place)
                yield State("an array of a list", functools.partial(node.__getitem__, place), write)
    for kind in {kind for node in objects if is_of_the_user(node) for kind in type(node).__mro__}:
        for name, value in vars(kind).items():
            if wanted(value):
                read, write = functools.partial(getattr, kind), functools.partial(setattr, kind)
                yield State(name, functools.partial(read, name), functools.partial(write, name))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_wide(value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype.kind in "iufc" and value.itemsize >= 8


Wanted = Callable[[Any], bool]


def _kept_in(objects: Sequence[Any], wanted: Wanted, kind: str) -> Iterator[State]:
    for node in objects:
        if type(node) is dict:
            yield from _some_of(node, list(node), wanted, f"the {kind} {{!r}} of a dict".format)
        elif isinstance(node, FunctionType):
            cells = zip(node.__code__.co_freevars, node.__closure__ or (), strict=True)
            yield from (state for own in cells if (state := _cell_state(*own, wanted)))
            names = node.__code__.co_names
            yield from _some_of(node.__globals__, names, wanted, "the global {}".format)
        else:
            owner = type(node).__name__
            for attributes in attributes_of(node):
                named = f"{owner}.{{}}".format
                yield from _some_of(attributes, list(attributes), wanted, named)


def _some_of(
    mapping: MutableMapping[Any, Any],
    keys: Iterable[Any],
    wanted: Wanted,
    named: Callable[[Any], str],
) -> Iterator[State]:
    for key in keys:
        if wanted(mapping.get(key)):
            read, write = functools.partial(mapping.get, key), mapping.__setitem__
            yield State(named(key), read, functools.partial(write, key))


def _cell_state(name: str, cell: CellType, wanted: Wanted) -> State | None:
    def read() -> Any:
        try:
            return cell.cell_contents
        except ValueError:  # not bound yet
            return None

    def restore(saved: Any) -> None:
        cell.cell_contents = saved

    return State(f"the variable {name}", read, restore) if wanted(read()) else None


def array_state(name: str, array: np.ndarray[Any, Any]) -> State:
    """An array that the function might write to."""

    def restore(saved: Any) -> None:
        array[...] = saved

    def is_as(saved: Any) -> bool:
        return same_bytes(array, saved)

    # A subclass may have a copy() of its own.
    return State(name, lambda: np.array(array, order="K", subok=True), restore, is_as=is_as)
