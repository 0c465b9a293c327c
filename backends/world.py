"""The user's world while a function is evaluated many times: what it may change, held still and
put back.

Nothing is restored that did not move: every state is compared once after the first evaluation, and
only those that the function changed are reset before each of the following ones.
"""

import ctypes
import functools
import operator
import random
import struct
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from xgradcheck._layout import Vector
from xgradcheck._tree import flatten


@dataclass(slots=True)
class State:
    """One thing that a function may change: how to copy it, how to put it back."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]
    is_random: bool = False
    holder: Any = None
    """The tensor or array whose contents this is, where there is one."""
    is_as: Callable[[Any], bool] | None = None
    """Whether all is as in a reading, where that can be told without taking another one."""
    changed: Callable[[Any], list[str]] | None = None
    """The names of what differs from a reading, where this is more than one thing."""

    def same(self, found: Any) -> bool:
        """Whether all is as it was read."""
        return same(self.read(), found) if self.is_as is None else self.is_as(found)

    def names(self, found: Any) -> list[str]:
        """What differs from a reading, as far as something does."""
        return [self.name] if self.changed is None else self.changed(found)


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of two readings: NaN equals itself, 0.0 differs from -0.0."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and same_bytes(a, b)
    if isinstance(a, Contents):
        return isinstance(b, Contents) and a.same(b)
    if type(a) is tuple and set(map(type, a)) == {int}:  # 625 of them in a random state
        return bool(a == b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


@dataclass(slots=True)
class World:
    """All states that one problem can reach."""

    states: list[State]
    numbers: Sequence[State] = ()
    """Numbers that the function keeps from call to call: held only if it does not repeat itself."""
    books: Sequence[State] = ()
    """What networks count and note down: put back on leaving alone."""
    is_read: bool = False
    """Whether the last reading still holds: nothing has run since."""
    is_settled: bool = False
    """Whether nothing has run since the last comparison."""
    _found: list[Any] = field(default_factory=list)
    _found_numbers: list[Any] = field(default_factory=list)
    _found_books: list[Any] = field(default_factory=list)
    _moving: dict[int, list[str]] = field(default_factory=dict)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Remember every state; put back on leaving whatever differs, also after an exception or
        Ctrl-C.
        """
        if not self.is_read:
            self._found = [state.read() for state in self.states]
            self._found_numbers = [state.read() for state in self.numbers]
            self._found_books = [state.read() for state in self.books]
        self.is_read = self.is_settled = False
        try:
            yield
        finally:
            with ExitStack() as rest:  # which is put back even where one cannot be
                rest.callback(self._put_books_back)
                for number in reversed([] if self.is_settled else self._changed()):
                    rest.callback(self.states[number].restore, self._found[number])

    def _put_books_back(self) -> None:
        for state, found in zip(self.books, self._found_books, strict=True):
            if not state.same(found):
                state.restore(found)

    @property
    def is_moving(self) -> bool:
        """Whether the function is known to change anything."""
        return bool(self._moving)

    @property
    def moving(self) -> list[str]:
        """What the function is known to change."""
        return [name for names in self._moving.values() for name in names]

    @property
    def is_drawing(self) -> bool:
        """Whether the function is known to draw random numbers."""
        return any(self.states[number].is_random for number in self._moving)

    @property
    def written(self) -> list[Any]:
        """The tensors and arrays that the function is known to write to."""
        holders = (self.states[number].holder for number in self._moving)
        return [holder for holder in holders if holder is not None]

    def hold_numbers(self) -> list[str]:
        """Hold still those numbers too that the function has changed; their names."""
        pairs = zip(self.numbers, self._found_numbers, strict=True)
        changed = [(state, found) for state, found in pairs if not same(state.read(), found)]
        for state, found in changed:
            if state not in self.states:
                self._moving[len(self.states)] = [state.name]
                self.states.append(state)
                self._found.append(found)
        self.reset()
        return [state.name for state, _ in changed]

    @contextmanager
    def moved(self, move: Callable[[Vector], None], found: Vector, point: Vector) -> Iterator[None]:
        """The leaves moved to another point, as long as the context lasts; the world there is the
        one that is held still.
        """
        self.reset()
        kept = self._found
        try:
            move(point)
            self._found = [state.read() for state in self.states]
            yield
        finally:
            self._found = kept
            move(found)

    def _changed(self) -> list[int]:
        pairs = enumerate(zip(self.states, self._found, strict=True))
        return [number for number, (state, found) in pairs if not state.same(found)]

    def watch(self) -> None:
        """Compare after an evaluation; what moved is put back now, and before each evaluation to
        come.
        """
        for number in self._changed():
            known, names = self._moving.setdefault(number, []), self.states[number].names
            known += [name for name in names(self._found[number]) if name not in known]
        self.reset()

    def reset(self) -> None:
        """Put back what the function is known to change."""
        for number in self._moving:
            self.states[number].restore(self._found[number])

    def rewind(self) -> None:
        """Put back the random states alone: a backward has to draw what its forward drew."""
        for number in self._moving:
            if self.states[number].is_random:
                self.states[number].restore(self._found[number])

    def draws(self) -> list[Any]:
        """The random states as they are now."""
        return [state.read() for state in self.states if state.is_random]

    @property
    def keeps(self) -> bool:
        """Whether the function is known to change more than the random states."""
        return any(not self.states[number].is_random for number in self._moving)

    def left(self) -> dict[tuple[int, Any], Any]:
        """What a call left behind that the function is known to change, in copies; no random
        states.
        """
        found: dict[tuple[int, Any], Any] = {}
        for number in self._moving:
            state, before = self.states[number], self._found[number]
            if state.is_random or state.same(before):
                continue
            now = state.read()
            if isinstance(now, list):
                arrays = (n.value for n in flatten(now) if _is_array(n.value))
                found[number, None] = [*map(np.array, arrays)]
                continue
            if not isinstance(now, Contents):
                found[number, None] = now
                continue
            new = {
                key: part for key, part in now.items.items() if part is not before.items.get(key)
            }
            found |= {(number, key): np.array(part) for key, part in new.items()}
        return found


TORCH = "torch's random"
TWISTER = 2500
"""Bytes of MT19937: 624 words and the place in them."""


def random_states() -> Iterator[State]:
    """The global generators of Python, NumPy and PyTorch, as far as they are loaded."""
    yield _python_state()
    yield _numpy_state()
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_rng_state"):
        yield _torch_state(torch)


def _fields(node: Any) -> bytes:
    """What an object of CPython's keeps outside of its dict, to the bit: a state is taken for
    changed rather than for the same.
    """
    return ctypes.string_at(id(node), type(node).__basicsize__)[object.__basicsize__ :]


_readings: dict[str, tuple[Any, Any]] = {}
"""The last reading of each generator, and the memory that it was made from."""


def _read_anew(name: str, memory: Callable[[], Any], state: Callable[[], Any]) -> tuple[Any, Any]:
    """The state of a generator and its memory: the last ones, where nobody has drawn since."""
    now = memory()
    if now is None or name not in _readings or _readings[name][1] != now:
        _readings[name] = state(), now
    return _readings[name]


def _python_state() -> State:
    owner: Any = random.getstate.__self__  # type: ignore[attr-defined]

    def memory() -> Any:
        return _fields(owner), owner.gauss_next

    def restore(found: Any) -> None:
        owner.setstate(found[0])

    def is_as(found: Any) -> bool:
        # Making 625 numbers takes 20 us, and as a rule nobody has drawn.
        return bool(memory() == found[1] or owner.getstate() == found[0])

    read = functools.partial(_read_anew, "Python's random", memory, owner.getstate)
    return State("Python's random", read, restore, True, is_as=is_as)


def _numpy_state() -> State:
    library: Any = np.random
    owner = library.get_state.__self__
    state = functools.partial(owner.get_state, legacy=False)

    def memory() -> Any:
        """All that the generator is made of: its own fields, a normal number kept for later among
        them, and the twister's.
        """
        bits = library.get_bit_generator()
        if not isinstance(bits, np.random.MT19937):
            return None
        return _fields(owner), ctypes.string_at(bits.ctypes.state_address, TWISTER)

    def restore(found: Any) -> None:
        owner.set_state(found[0])

    def is_as(found: Any) -> bool:
        # get_state takes 40 us, and as a rule nobody has drawn.
        now = memory()
        is_same = now is not None and now == found[1]
        return is_same or same(state(), found[0])

    read = functools.partial(_read_anew, "numpy.random", memory, state)
    return State("numpy.random", read, restore, True, is_as=is_as)


def _torch_state(torch: Any) -> State:
    def read() -> Any:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return [bytearray(state.numpy()) for state in (torch.get_rng_state(), *cuda)]

    def restore(saved: Any) -> None:
        states = [torch.frombuffer(state, dtype=torch.uint8).clone() for state in saved]
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state_all(states[1:])

    return State(TORCH, read, restore, True, is_as=lambda found: bool(read() == found))


def generator_state(generator: np.random.Generator | np.random.RandomState) -> State:
    """A generator that the function draws from."""
    if isinstance(generator, np.random.RandomState):
        return State("a numpy RandomState", generator.get_state, generator.set_state, True)
    bits = generator.bit_generator

    def restore(state: Any) -> None:
        bits.state = state

    return State("a numpy Generator", lambda: bits.state, restore, True)


@dataclass(frozen=True, slots=True)
class Contents:
    """The arrays that a dict held: the objects themselves, not their values; and what else it held,
    for keys that hold arrays later.
    """

    items: dict[Any, Any]
    others: dict[Any, Any]

    def same(self, other: "Contents") -> bool:
        """Whether the same keys hold the same objects."""
        if self.items.keys() != other.items.keys():
            return False
        return all(value is other.items[key] for key, value in self.items.items())


def mapping_state(name: str, mapping: MutableMapping[Any, Any]) -> State:
    """The arrays in a dict, or among an object's attributes, that the function may exchange.

    Arrays alone: what a network counts and notes down is put back in the end, and a counter or a
    log that the user keeps elsewhere is none of our business.
    """

    def read() -> Contents:
        arrays = {key: value for key, value in mapping.items() if _is_array(value)}
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
    return any(_is_array(node.value) for node in flatten(value))


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


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def same_bytes(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype == object:
        return all(x is y for x, y in zip(a.flat, b.flat, strict=True))
    if a.nbytes <= SHORT:
        return a.tobytes() == b.tobytes()
    a, b = _words(a), _words(b)
    step = PIECE // a.itemsize
    pieces = (slice(start, start + step) for start in range(0, a.size, step))
    return all((a[piece] == b[piece]).all() for piece in pieces)


SHORT, PIECE = 1 << 14, 1 << 18
"""How many bytes are copied to be compared at once, which is quickest for few; and how many are
compared at a time, so that what comes of it stays where it is quick to get at.
"""


def _words(array: np.ndarray[Any, Any]) -> Any:
    """The bits of an array as whole numbers, as wide as its size allows."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8 if array.nbytes % 8 else np.int64)


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


# Framework objects keep books of their own, and what they hold is reached through their interfaces.
FOREIGN = ("numpy", "torch", "jax", "jaxlib", "builtins", "functools", "random", "types")


MADE = 1 << 9
"""The flag of a class that Python code has made (Py_TPFLAGS_HEAPTYPE)."""


def _is_of_the_user(node: Any) -> bool:
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
    if not _is_of_the_user(node):
        return
    if isinstance(getattr(node, "__dict__", None), dict):
        yield vars(node)
    if slots := Slots(node):
        yield slots


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
    for kind in {kind for node in objects if _is_of_the_user(node) for kind in type(node).__mro__}:
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


def displaced(point: Vector, direction: Any, step: float) -> Vector:
    """``point + step * direction``; what does not move keeps its bits, -0.0 among them."""
    shift: Vector = np.multiply(direction, step, dtype=np.float64)
    moved = point + shift
    # Only a sum that is zero can have lost the sign of one.
    return moved if moved.all() else np.where(shift == 0, point, moved)


def element_writer(array: Any) -> Callable[[int, float], None]:
    """How to set one element by its position in C order, as cheaply as the memory allows."""
    flat: Any = array.flat
    if array.flags.c_contiguous and array.dtype.itemsize > 2:
        # A memoryview takes 50 ns where an array takes a microsecond.
        flat = memoryview(np.asarray(array).reshape(-1))  # type: ignore[arg-type]
    set_element: Callable[[int, float], None] = flat.__setitem__
    return set_element
