"""The user's world while a function is evaluated many times: what it may change, held still and
put back.

Nothing is restored that did not move: every state is compared once after the first evaluation, and
only those that the function changed are reset before each of the following ones.
"""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np


@dataclass(slots=True)
class State:
    """One thing that a function may change: how to copy it, how to put it back."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of two readings: NaN equals itself, 0.0 differs from -0.0."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    return bool(a == b)


@dataclass(slots=True)
class World:
    """All states that one problem can reach."""

    states: Sequence[State]
    _found: list[Any] = field(default_factory=list)
    _moving: list[int] = field(default_factory=list)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Remember every state; put back on leaving whatever differs, also after an exception or
        Ctrl-C.
        """
        self._found = [state.read() for state in self.states]
        try:
            yield
        finally:
            for number in self._changed():
                self.states[number].restore(self._found[number])

    def _changed(self) -> list[int]:
        pairs = enumerate(zip(self.states, self._found, strict=True))
        return [number for number, (state, found) in pairs if not same(state.read(), found)]

    def watch(self) -> None:
        """Compare after an evaluation; what moved is put back now, and before each evaluation to
        come.
        """
        self._moving += [number for number in self._changed() if number not in self._moving]
        self.reset()

    def reset(self) -> None:
        """Put back what the function is known to change."""
        for number in self._moving:
            self.states[number].restore(self._found[number])


def random_states() -> list[State]:
    """The global generators of Python and NumPy."""
    return [
        State("Python's random", random.getstate, random.setstate),
        State("numpy.random", np.random.get_state, np.random.set_state),
    ]


def generator_state(generator: np.random.Generator | np.random.RandomState) -> State:
    """A generator that the function draws from."""
    if isinstance(generator, np.random.RandomState):
        return State("a numpy RandomState", generator.get_state, generator.set_state)
    bits = generator.bit_generator

    def restore(state: Any) -> None:
        bits.state = state

    return State("a numpy Generator", lambda: bits.state, restore)


def array_state(name: str, array: np.ndarray[Any, Any]) -> State:
    """An array that the function might write to."""

    def restore(saved: Any) -> None:
        array[...] = saved

    return State(name, lambda: array.copy(order="K"), restore)


def reachable(fn: Any, *roots: Any) -> list[Any]:
    """Objects that a call can see without being perturbed: what ``fn`` is bound to, closes over or
    names.

    One step deep into lists, tuples and dicts; for generators, modules and arrays whose state may
    have to be held.
    """
    found: list[Any] = []
    seen: set[int] = set()
    pending: list[Any] = [fn, *roots]
    while pending:
        node = pending.pop()
        if id(node) in seen or node is None or isinstance(node, str | bytes | int | float | type):
            continue
        seen.add(id(node))
        found.append(node)
        if isinstance(node, dict):
            pending.extend(node.values())
        elif isinstance(node, list | tuple | set | frozenset):
            pending.extend(node)
        elif isinstance(node, functools.partial):
            pending.extend((node.func, node.args, node.keywords))
        else:
            pending.extend(_seen_by(node))
    return found


def _seen_by(fn: Any) -> Iterator[Any]:
    """What a callable refers to: the object it is bound to, its closure, the globals it names."""
    if isinstance(fn, MethodType):
        yield fn.__self__
        yield from getattr(fn.__self__, "__dict__", {}).values()
        fn = fn.__func__
    if not isinstance(fn, FunctionType):
        if callable(fn):
            yield from getattr(fn, "__dict__", {}).values()
        return
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell: a name that is not bound yet
            continue
    for name in fn.__code__.co_names:
        named = fn.__globals__.get(name)
        # A function of another file is somebody's library: following it would lead everywhere.
        elsewhere = isinstance(named, FunctionType) and named.__globals__ is not fn.__globals__
        if not elsewhere and not isinstance(named, ModuleType | BuiltinFunctionType):
            yield named


def element_writer(array: Any) -> Callable[[int, float], None]:
    """How to set one element by its position in C order, as cheaply as the memory allows."""
    flat: Any = array.flat
    if array.flags.c_contiguous:
        # A memoryview takes 50 ns where an array takes a microsecond.
        flat = memoryview(np.asarray(array).reshape(-1))  # type: ignore[arg-type]
    set_element: Callable[[int, float], None] = flat.__setitem__
    return set_element
