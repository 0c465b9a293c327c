"""NumPy: backprop by hand. The gradient is always handed in; the arrays lie in trees, or in an
object.
"""

import dis
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from types import CodeType
from typing import Any

import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case, Trial
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import (
    DOUBLE,
    ComplexVector,
    Direction,
    Entry,
    Layout,
    Positions,
    Vector,
    bits_of,
    lay_out,
    refuse_unless_finite,
    refuse_unless_known,
)
from xgradcheck._selection import Candidate, argument_nodes, closure_nodes, select
from xgradcheck._tree import Node, Path, flatten, replaced

from .own_draws import draws_its_own
from .world import (
    State,
    World,
    array_places,
    array_state,
    attributes_of,
    book_states,
    displaced,
    element_writer,
    number_states,
    plain_states,
    random_states,
    reachable,
    same,
    same_bytes,
)

CONVERT = "convert it with .astype(np.float64)"
CLOSE = 1e-3
"""How near two gradients are that are the same but for rounding, relative."""
PROBES = 3
"""How often a leaf is moved to see whether anything depends on it."""
NAMED = 5
"""How many arguments are named in a refusal."""


def owns(contents: Any) -> bool:
    """Whether any floating NumPy array is in the call."""
    return any(
        isinstance(node.value, np.ndarray) and _is_floating(node.value)
        for node in flatten(contents)
    )


def from_numpy(array: Any) -> Any:
    """An array of this framework; NumPy's is one already."""
    return array


def cast(array: Any, dtype: str) -> Any:
    """The same numbers in another dtype, which is named as the core has it."""
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise InvalidCase(f"NumPy has no {dtype}: import ml_dtypes, which brings it.") from None
    return array.astype(kind)


def array_of(value: Any) -> Any:
    """The numbers of an array, on the side of NumPy."""
    return np.asarray(value)


def planted(forward: Any, backward: Any, count: int) -> tuple[Any, Any]:
    """A function of ``count`` arrays with this backward pass, both in the operations of this
    framework; and its ``grads``, where those have to be handed in.
    """

    def grads(*given: Any) -> Any:
        # Where the output is a number no cotangent is given.
        args = given[-count:]
        found = backward(np, 1.0 if len(given) == count else given[0], *args)
        return found if len(found) > 1 else found[0]

    return partial(forward, np), grads


def probes(problem: "NumpyProblem", cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that an audit makes with this problem, by the names of the probes."""
    if not problem.can_move:
        return {"purity": problem.purity}

    def memory() -> Iterator[Trial]:
        for what, poison in POISONS.items():
            with _poisoned(poison):
                yield Trial(f"np.empty full of {what}", problem.gradient(cotangent).gradient)

    def purity() -> Iterator[Trial]:
        found = problem.gradient(cotangent)
        yield from problem.purity()
        for slot, part in zip(problem._slots, found.parts, strict=True):
            if isinstance(part, np.ndarray) and isinstance(slot.found, np.ndarray):
                shared = any(np.shares_memory(part, own) for own in (slot.found, slot.work))
                fault = f"is the memory of {slot.name} itself" if shared else ""
                yield Trial(f"the gradient of {slot.name}", fault=fault)

    repetition = partial(problem.handed_out, cotangent)
    return {"purity": purity, "repetition": repetition, "memory": memory}


POISONS = {"NaN": np.nan, "10000": 1e4}


@contextmanager
def _poisoned(poison: float) -> Iterator[None]:
    """Memory that np.empty and np.empty_like hand out, to Python alone, full of one number."""
    numpy: Any = np
    found = numpy.empty, numpy.empty_like

    def filled(make: Any) -> Any:
        @wraps(make)
        def fresh(*args: Any, **kwargs: Any) -> Any:
            array = make(*args, **kwargs)
            if array.dtype.kind in "fc":
                array.fill(poison)
            return array

        return fresh

    try:
        numpy.empty, numpy.empty_like = map(filled, found)
        yield
    finally:
        numpy.empty, numpy.empty_like = found


def bind(case: Case) -> "NumpyProblem":
    """The problem that this call poses; refuses what cannot be checked."""
    if case.grads is None:
        raise InvalidCase("NumPy has no backward pass: give the gradient with grads=.")
    if not case.is_closure:
        return NumpyProblem(case, _in_copies(case))
    problem = NumpyProblem(case, _in_place(case))
    if not _is_object(case.wrt) or not callable(case.grads):
        return problem
    given, is_inner = problem.given(), False
    if not given:
        # Nothing of its own: what its layers hold.
        problem, is_inner = NumpyProblem(case, _in_place(case, is_inner=True)), True
        given = problem.given()
    if not given:
        raise InvalidCase(
            f"the backward pass of {type(case.wrt).__name__} leaves no gradient beside an array of "
            f"it, as dW beside W: give its parameters as wrt=, and as grads= a function that "
            f"returns their gradients."
        )
    whole = len(given) == len(problem.layout)
    return problem if whole else NumpyProblem(case, _in_place(case, given, is_inner))


def _is_floating(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return bool(np.issubdtype(value.dtype, np.inexact))
    return isinstance(value, float | complex)


@dataclass(slots=True)
class Slot:
    """A leaf, and the array that is perturbed in its stead.

    ``put`` tells the leaf's owner its value where that is no array the function shares with us: a
    plain number, or a read-only array. ``give`` could do so for any leaf of a closure that lies in
    a dict, a list or an object, its ``holder``.
    """

    name: str
    path: Path
    found: Any
    work: Any
    put: Callable[[Any], None] | None = None
    give: Callable[[Any], None] | None = None
    holder: Any = None

    @property
    def current(self) -> Any:
        """The perturbed leaf, of the type it was found as, or a float64 where it was raised."""
        if isinstance(self.found, np.ndarray):
            return self.work
        if self.work.dtype == np.asarray(self.found).dtype:
            return type(self.found)(self.work)
        return self.work[()]


@dataclass(slots=True)
class Binding:
    """The leaves of one call, where their gradients are looked for, and what stands around them."""

    slots: list[Slot]
    places: _handed.Places
    skipped: list[str]


def _in_copies(case: Case) -> Binding:
    """Leaves of arguments. Working copies are perturbed, so the user's arrays are never written."""
    nodes = argument_nodes(case)
    floating = [node for node in nodes if _is_floating(node.value)]
    if case.wrt is None and not any(node.path[0] == 0 for node in floating):
        _refuse_first(nodes, floating)
    candidates = [Candidate((node.suffix,), node.path) for node in floating]
    wrt = 0 if case.wrt is None else case.wrt
    chosen = [floating[number] for number in select(wrt, candidates, len(case.args))]
    _refuse_masked(chosen)
    slots = [
        Slot(node.suffix, node.path, node.value, np.array(node.value, order="K", subok=True))
        for node in chosen
    ]
    roots = {slot.path[0] for slot in slots}
    return Binding(
        slots=slots,
        places=_handed.places([slot.path for slot in slots], [node.path for node in nodes]),
        skipped=_not_floating(node for node in nodes if node.path[0] in roots),
    )


def _in_place(case: Case, given: Collection[Path] | None = None, is_inner: bool = False) -> Binding:
    """Leaves of a closure, those that a gradient is ``given`` for, where that is known; those of
    the objects inside, too, if asked. The user's own arrays are perturbed, since only they reach
    the function.
    """
    nodes = _inner_nodes(case.wrt) if is_inner else _closure_nodes(case.wrt)
    if any(map(_is_object, _owners(case.wrt))) and not callable(case.grads):
        floating = _with_gradients(case, nodes)
        if not floating:
            nodes = _inner_nodes(case.wrt)
            floating = _with_gradients(case, nodes)
        kept = {node.path for node in floating}
        skipped = [_ungiven(n) for n in nodes if _is_floating(n.value) and n.path not in kept]
    else:
        floating = [node for node in nodes if _is_floating(node.value)]
        skipped = _not_floating(nodes)
    if given is not None:
        skipped += [_ungiven(node) for node in floating if node.path not in given]
        floating = [node for node in floating if node.path in given]
    if case.wrt is None:
        raise InvalidCase(
            "it was given no arguments: pass them, or, to a function without any, the arrays that "
            "it reads with wrt=."
        )
    if not floating:
        raise InvalidCase("wrt holds no floating array: pass the arrays that the function reads.")
    _refuse_masked(floating)
    if given is None and _is_object(case.wrt) and callable(case.grads):
        # What is a parameter is not known yet, and caches are often the same array.
        floating = _once_each(floating)
    slots = [_slot_in_place(case.wrt, node) for node in floating]
    twins: dict[int, str] = {}
    for slot in slots:
        if (
            isinstance(slot.found, np.ndarray)
            and twins.setdefault(id(slot.found), slot.name) != slot.name
        ):
            raise InvalidCase(
                f"{twins[id(slot.found)]} and {slot.name} are one array: pass it once."
            )
    known = [node.path for node in nodes]
    return Binding(slots, _handed.Places([slot.path for slot in slots], known), skipped)


def _once_each(nodes: Iterable[Node]) -> list[Node]:
    """Nodes without those of an array that another one holds already; equal numbers are often one
    object, and are parameters each.
    """
    found: dict[Any, Node] = {}
    for node in nodes:
        found.setdefault(id(node.value) if isinstance(node.value, np.ndarray) else node.path, node)
    return list(found.values())


def _closure_nodes(owner: Any) -> list[Node]:
    """Every leaf of what ``wrt`` holds; where none is an array, those of the objects in it, as of
    the layers of a network.
    """
    nodes = closure_nodes(vars(owner) if _is_object(owner) else owner)
    has_arrays = any(isinstance(n.value, np.ndarray) and _is_floating(n.value) for n in nodes)
    return nodes if has_arrays or not any(map(_is_object, _owners(owner))) else _inner_nodes(owner)


def _with_gradients(case: Case, nodes: Sequence[Node]) -> list[Node]:
    """The leaves of an object that a gradient lies at hand for: it keeps data and caches beside its
    parameters, and often their gradients.
    """
    floating = {node.path: node for node in nodes if _is_floating(node.value)}
    gradients = {twin for path in floating for twin in _twins(path)}
    own = [node for path, node in floating.items() if path not in gradients]
    if case.grads is case.wrt:
        kept = _with_twins((node.path for node in own), floating)
        return [node for node in own if node.path in kept]
    return [node for node in own if _handed.has(case.grads, node.path)]


def _inner_nodes(owner: Any) -> list[Node]:
    """Every leaf, objects of the user's taken apart into their attributes."""
    return [Node(n.path, _from_root(n.suffix), n.value) for n in _taken_apart(owner)]


def _taken_apart(
    value: Any, path: Path = (), suffix: str = "", inside: tuple[int, ...] = ()
) -> Iterator[Node]:
    for node in flatten(value, path, suffix):
        part = node.value
        found = [] if id(part) in inside else list(attributes_of(part))
        if not found or not _is_object(part):
            yield node
            continue
        for name, own in ((name, own) for attributes in found for name, own in attributes.items()):
            place = (*node.path, name)
            yield from _taken_apart(own, place, f"{node.suffix}.{name}", (*inside, id(part)))


def _from_root(suffix: str) -> str:
    """What a part is called of a whole that has no name."""
    return f"wrt{suffix}" if suffix.startswith("[") else suffix.removeprefix(".")


def _owners(value: Any) -> Iterator[Any]:
    """An object, or those in a container."""
    return (node.value for node in flatten(value))


def _twins(path: Path) -> list[Path]:
    """Where the gradient of what lies at ``path`` may lie beside it."""
    names = _handed.twins(path[-1]) if path and isinstance(path[-1], str) else ()
    return [(*path[:-1], name) for name in names]


def _with_twins(paths: Iterable[Path], known: Collection[Path]) -> set[Path]:
    """The paths beside which a gradient lies; and those that are called alike in other layers,
    which were forgotten.
    """
    paths, known = list(paths), set(known)
    found = {path for path in paths if not known.isdisjoint(_twins(path))}
    names = {path[-1] for path in found}
    return found | {path for path in paths if len(path) > 1 and path[-1] in names}


def _ungiven(node: Node) -> str:
    return f"{node.suffix}: no gradient was given"


def _refuse_first(nodes: Sequence[Node], floating: Sequence[Node]) -> None:
    """Raise for a first argument that is not to be checked, with what to do about it."""
    kinds = dict.fromkeys(_kind(node.value) for node in nodes if node.path[0] == 0)
    told = f"argument 0 is no floating array ({', '.join(kinds) or 'there is none'})"
    if floating:
        names = ", ".join(node.suffix for node in floating[:NAMED])
        raise InvalidCase(
            f"{told}: say with wrt= which arguments are checked; floating ones are {names}."
        )
    raise InvalidCase(f"{told}, nor is another one: differences need one, {CONVERT}.")


def _refuse_masked(nodes: Iterable[Node]) -> None:
    """Raise for arrays of which parts are hidden: what moves there moves nothing."""
    for node in nodes:
        if isinstance(node.value, np.ma.MaskedArray):
            raise InvalidCase(
                f"{node.suffix} is a masked array: pass its data, and the mask as an argument or "
                f"in the function."
            )


def _is_object(owner: Any) -> bool:
    """Neither array nor container: a network that keeps its arrays as attributes."""
    is_tree = [node.path for node in flatten(owner)] != [()]
    return (
        not is_tree
        and not isinstance(owner, np.ndarray | np.generic)
        and hasattr(owner, "__dict__")
    )


def _slot_in_place(owner: Any, node: Node) -> Slot:
    is_shared = isinstance(node.value, np.ndarray) and node.value.flags.writeable
    holder = owner
    for key in node.path[:-1]:
        holder = holder[key] if isinstance(holder, dict | list | tuple) else getattr(holder, key)
    if not node.path or isinstance(holder, tuple):
        if is_shared:
            return Slot(node.suffix, node.path, node.value, node.value)
        raise InvalidCase(
            f"{node.suffix} cannot be written: pass a writable array, or its dict, list or object."
        )

    def put(value: Any) -> None:
        if isinstance(holder, dict | list):
            holder[node.path[-1]] = value
        else:
            setattr(holder, node.path[-1], value)

    if is_shared:
        return Slot(node.suffix, node.path, node.value, node.value, give=put, holder=holder)
    work = np.array(node.value, order="K", subok=True)
    return Slot(node.suffix, node.path, node.value, work, put, put, holder)


def _not_floating(nodes: Iterable[Node]) -> list[str]:
    plain = [node for node in nodes if not _is_floating(node.value) and node.value is not None]
    return [f"{node.suffix}: {_kind(node.value)}, not a floating array" for node in plain]


def _raised(value: Any) -> Any:
    return np.asarray(value).astype(np.result_type(value, np.float64))


def _writer(array: Any) -> Callable[[int, float], None]:
    """How to set one number of an array by its place in the flat vector."""
    if not np.iscomplexobj(array):
        return element_writer(array)
    halves = element_writer(array.real), element_writer(array.imag)
    return lambda place, value: halves[place // array.size](place % array.size, value)


def _dtype(value: Any) -> str:
    return str(np.asarray(value).dtype)


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray | np.generic) else type(value).__name__


class NumpyProblem:
    """One call of a NumPy function, seen from the core."""

    batch = 1
    frozen: Positions = np.empty(0, np.intp)

    def __init__(self, case: Case, binding: Binding) -> None:
        self._case, self._slots, self._places = case, binding.slots, binding.places
        for slot in self._slots:
            refuse_unless_known(slot.name, _dtype(slot.found), CONVERT)
            refuse_unless_finite(slot.name, np.asarray(slot.found))
        self.layout = lay_out(
            Entry((slot.name,), slot.path, np.shape(slot.found), _dtype(slot.found))
            for slot in self._slots
        )
        self.point: Vector = np.concatenate(
            [np.zeros(0), *(_handed.numbers(slot.found) for slot in self._slots)]
        ).astype(np.float64)
        self.skipped = list(binding.skipped)
        # Read at once, which copies: many forwards overwrite the gradients they left behind.
        self._given = None if callable(case.grads) else self._read(case.grads)
        self._writers = [_writer(slot.work) for slot in self._slots]
        self._has_numbers = any(not isinstance(slot.found, np.ndarray) for slot in self._slots)
        self._wide: dict[Path, Any] = {}
        self._gives_copies, self._has_tried_copies = False, case.is_closure
        self._arguments = self._rebuilt()
        self._world = self._surroundings()
        self._runs_forward: bool | None = None
        self._draws_its_own: bool | None = None
        with self.held():
            self.outputs, self._cotangent_tree = self._learn_outputs()
            if case.is_closure:
                self._refuse_unread()
                self._refuse_drawn_anew()
        # NumPy does not tell what a function computes in between.
        self.bits = min(self.layout.bits, self.outputs.bits)
        self.unit_cotangent = not _handed.takes_cotangent(
            case.grads, len(case.args), case.kwargs, self.outputs
        )

    def _surroundings(self) -> World:
        found = self._reachable()
        holders = [slot.holder for slot in self._slots if slot.holder is not None]
        leaves, roots = [slot.found for slot in self._slots], [self._case.args, self._case.kwargs]
        books = book_states(found, [*holders, *leaves], roots)
        return World(list(self._states()), list(number_states(found)), list(books))

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        return [self._raised]

    @contextmanager
    def _raised(self) -> Iterator[None]:
        places = self._places_of_leaves()
        kept = self._world, self._writers, self.outputs, self._cotangent_tree, self.bits
        found = [(slot.work, slot.put) for slot in self._slots]
        self._world.reset()
        try:
            for slot in self._slots:
                slot.work, slot.put = _raised(slot.work), slot.give
                if slot.put is not None:
                    slot.put(slot.current)
                for place in places[slot.name]:
                    place.restore(slot.current)
            self._wide = {
                node.path: _raised(node.value)
                for node in argument_nodes(self._case)
                if _is_floating(node.value) and bits_of(_dtype(node.value)) < DOUBLE
            }
            self._writers = [_writer(slot.work) for slot in self._slots]
            self._arguments, self._world = self._rebuilt(), self._surroundings()
            with self._world.held():
                self.outputs, self._cotangent_tree = self._learn_outputs()
                self.bits = self.outputs.bits
                self._refuse_not_exchanged(found)
                yield
        finally:
            for slot, (work, put) in zip(self._slots, found, strict=True):
                slot.work, slot.put = work, put
                if slot.give is not None:
                    slot.give(slot.found)
                for place in places[slot.name]:
                    place.restore(slot.found)
            self._wide = {}
            self._world, self._writers, self.outputs, self._cotangent_tree, self.bits = kept
            self._arguments = self._rebuilt()

    def _places_of_leaves(self) -> dict[str, list[State]]:
        """Where the objects that a closure can reach keep its leaves."""
        places: dict[str, list[State]] = {slot.name: [] for slot in self._slots}
        if self._case.is_closure:
            names = {id(slot.found): slot.name for slot in self._slots}
            arrays = [slot.found for slot in self._slots if isinstance(slot.found, np.ndarray)]
            for place in array_places(self._reachable(), arrays):
                places[names[id(place.read())]].append(place)
        return places

    def _refuse_not_exchanged(self, found: Sequence[tuple[Any, Any]]) -> None:
        """Raise for a closure that goes on reading its arrays, where others lie in their places."""
        if not self._case.is_closure:
            return
        for slot, (work, _) in zip(self._slots, found, strict=True):
            if self._moves(slot, slot.work) or not self._moves(slot, work):
                continue
            raise InvalidCase(
                f"it reads {slot.name} where no other array can be put: pass the dict, list or "
                f"object that it reads it from"
            )

    def _states(self) -> Iterator[State]:
        yield from random_states()
        yield from plain_states(self._reachable())
        for slot in self._slots:
            yield array_state(slot.name, slot.work)

    def _reachable(self) -> list[Any]:
        case = self._case
        return reachable(case.fn, case.args, case.kwargs, case.wrt, case.grads, case.loss)

    @property
    def moving(self) -> list[str]:
        return self._world.moving

    def hold_numbers(self) -> list[str]:
        return self._world.hold_numbers()

    @property
    def rounds(self) -> bool:
        # NumPy does not tell what it was asked to do: the code that a call can reach does.
        return any(_uses(ROUNDING, node) for node in self._reachable())

    @property
    def switches(self) -> bool:
        """Whether the code that a call can reach compares anything."""
        return any(_uses(SWITCHING, node) or _compares(node) for node in self._reachable())

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._world.held():
            try:
                yield
            finally:
                for slot in self._slots:
                    if slot.put is not None:
                        slot.put(slot.found)

    @property
    def is_handed(self) -> bool:
        return self._case.grads is not None

    @property
    def can_move(self) -> bool:
        return self._given is None

    def purity(self) -> Iterator[Trial]:
        """Whether the leaves were written to so far."""
        for slot in self._slots:
            fault = "is written to" if slot.name in self.moving else ""
            yield Trial(slot.name, fault=fault)

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        with self._world.moved(self._move, self.point, point):
            yield

    def _move(self, point: Vector) -> None:
        self.point = point
        self._write_all(point)

    def _rebuilt(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaves = {slot.path: slot.current for slot in self._slots}
        if self._gives_copies:
            arrays = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
            leaves |= {path: np.array(leaf, order="K", subok=True) for path, leaf in arrays.items()}
        return self._case.arguments(self._wide | leaves)

    def _call(self) -> Any:
        # Arrays are shared with the function; plain numbers have to be passed anew.
        if self._has_numbers or self._gives_copies:
            self._arguments = self._rebuilt()
        for slot in self._slots:
            if slot.put is not None:
                slot.put(slot.current)
        # Beyond the edge of a domain NaN is the answer that the core expects, not a warning.
        with np.errstate(all="ignore"):
            return self._case.output(*self._arguments)

    def _refuse_unread(self) -> None:
        """Raise for what is in ``wrt`` and not in the function: a copy, or a number in a list that
        was made for the call.
        """
        if self._given is None:
            return
        seen = reachable(self._case.fn, self._case.loss)
        known = {id(node) for node in seen}
        arrays = [node for node in seen if isinstance(node, np.ndarray)]
        for slot, leaf in zip(self._slots, self.layout, strict=True):
            if slot.holder is None or not {id(slot.found), id(slot.holder)}.isdisjoint(known):
                continue
            if any(np.may_share_memory(slot.work, array) for array in arrays):
                continue
            # Where it is zero, there is nothing to be wrong about.
            if self._given.gradient[leaf.part].any() and not self._moves(slot, slot.work):
                raise InvalidCase(
                    f"{slot.name} moves nothing: the function reads neither what wrt holds there "
                    f"nor the {_kind(slot.holder)} that holds it. Pass the very array, dict or "
                    f"object that it reads; a number has to be in one."
                )

    def _refuse_drawn_anew(self) -> None:
        """Raise for gradients that the function fills in, where each call draws other random
        numbers: those handed in belong to an earlier one.
        """
        if self._given is None or not self._world.is_drawing:
            return
        self._world.reset()
        self._call()
        now, given = self._read(self._case.grads).gradient, self._given.gradient
        self._world.reset()
        # Calls may draw an order alone; and what they add to is twice as much now.
        near = CLOSE * np.linalg.norm(given)
        if not any(np.linalg.norm(now - times * given) <= near for times in (1, 2)):
            raise InvalidCase(
                "every call of the function draws random numbers and fills in the gradients of "
                "its own, and those that were handed in are of an earlier one: hand in a function "
                "that returns them, such as grads=lambda: net.grads."
            )

    def _moves(self, slot: Slot, work: Any) -> bool:
        """Whether anything changes with an array of a leaf, by any bit."""
        rng = np.random.default_rng(0x4EAD)
        here, found = self.values()[0], work.copy()
        for _ in range(PROBES):
            signs = rng.choice([-1.0, 1.0], (2, *found.shape))
            try:
                work[...] = found * (1 + signs[0] / 4) + signs[1] / 4
                if not same_bytes(here, self.values()[0]):
                    return True
            except Exception:  # whatever it raises, it has looked
                return True
            finally:
                work[...] = found
        return False

    def _learn_outputs(self) -> tuple[Layout, Any]:
        out = self._call()
        self._world.watch()
        nodes = list(flatten(out, (), "output"))
        kept = [node for node in nodes if _is_floating(node.value)]
        if not kept:
            raise InvalidCase(
                f"the function returned {_kind(out)}, no floating number: let it return its value."
            )
        for node in kept:
            refuse_unless_known(node.suffix, _dtype(node.value), CONVERT)
        left = [node for node in nodes if not _is_floating(node.value) and node.value is not None]
        said = [f"{node.suffix}: {_kind(node.value)}, not differentiable" for node in left]
        self.skipped += [text for text in said if text not in self.skipped]
        layout = lay_out(
            Entry((n.suffix,), n.path, np.shape(n.value), _dtype(n.value)) for n in kept
        )
        return layout, out

    def pushed(self, cotangent: Vector) -> Backward:
        raise _handed.no_forward_mode()

    def second(self, cotangent: Vector) -> "NumpyProblem":
        raise _handed.no_second_order()

    def values(self) -> tuple[Vector, list[Any]]:
        self._world.reset()
        parts = {node.path: np.asarray(node.value) for node in flatten(self._call())}
        floating = {leaf.path for leaf in self.outputs}
        whole = [_handed.numbers(parts[leaf.path]).astype(np.float64) for leaf in self.outputs]
        others = [part for path, part in parts.items() if path not in floating]
        return np.concatenate(whole), [part for part in others if part.dtype.kind in "biu"]

    def _reduced(self, out: Any, cotangents: list[Any]) -> float:
        if len(cotangents) == 1 and not self.outputs.leaves[0].path:
            return float(np.sum(np.conj(cotangents[0]) * out).real)
        parts = {node.path: node.value for node in flatten(out)}
        pairs = zip(cotangents, self.outputs, strict=True)
        # With the cotangent conjugated: the real part of an inner product.
        return float(sum(np.sum(np.conj(part) * parts[leaf.path]).real for part, leaf in pairs))

    def along(self, direction: Direction, steps: Vector, start: int, cotangent: Vector) -> Vector:
        cotangents = _handed.cut(cotangent, self.outputs)
        whole = np.zeros_like(self.point)
        whole[start : start + direction.size] = direction
        values = np.empty(len(steps))
        try:
            for number, step in enumerate(steps):
                self._world.reset()
                self._write_all(displaced(self.point, whole, step))
                values[number] = self._reduced(self._call(), cotangents)
        finally:
            self._write_all(self.point)
        if self._has_tried_copies or np.ptp(values) or not (whole.any() and np.ptp(steps)):
            return values
        # A function that knows its arguments again by the array, which is one and the same, answers
        # from memory: to such it has to be another one each time.
        self._has_tried_copies = self._gives_copies = True
        again = self.along(direction, steps, start, cotangent)
        self._gives_copies = bool(np.ptp(again))
        self._arguments = self._rebuilt()
        return again

    def _write_all(self, point: Vector) -> None:
        for slot, part in zip(self._slots, _handed.cut(point, self.layout), strict=True):
            slot.work[...] = part

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        """There are no batches."""

    def one_by_one(self) -> None:
        """All points go one way as it is."""

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        cotangents = _handed.cut(cotangent, self.outputs)
        values = np.empty(len(index))
        owners = self.layout.owners(index)
        for number, (position, owner, step) in enumerate(zip(index, owners, steps, strict=True)):
            put, place = self._writers[owner], int(position) - self.layout.leaves[owner].start
            self._world.reset()
            try:
                put(place, self.point[position] + step)
                values[number] = self._reduced(self._call(), cotangents)
            finally:
                put(place, self.point[position])
        return values

    @property
    def can_be_complex(self) -> bool:
        # The arrays of a closure are the user's own, and those are real.
        if self._case.is_closure:
            return False
        return not any(leaf.is_complex for leaf in (*self.layout, *self.outputs))

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        cotangents = _handed.cut(cotangent, self.outputs)
        values = np.empty(len(index), complex)
        for number, (position, step) in enumerate(zip(index, steps, strict=True)):
            point = self.point.astype(complex)
            point[position] += 1j * step
            parts = _handed.cut(point, self.layout)
            leaves = {
                slot.path: part if isinstance(slot.found, np.ndarray) else complex(part)
                for slot, part in zip(self._slots, parts, strict=True)
            }
            self._world.reset()
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                out = self._case.output(*self._case.arguments(leaves))
            found = {node.path: node.value for node in flatten(out)}
            outs = [found[leaf.path] for leaf in self.outputs]
            total = sum(np.sum(u * out) for u, out in zip(cotangents, outs, strict=True))
            values[number] = total if any(map(np.iscomplexobj, outs)) else np.nan
        return values

    def gradient(self, cotangent: Vector) -> Backward:
        if self._given is not None:
            return self._given
        self._world.reset()
        before = set(self.moving)
        returned, value, written = self._asked(cotangent)
        answer = self._read(returned)
        self._world.watch()
        new = [slot.name for slot in self._slots if slot.name in set(self.moving) - before]
        value = answer.value if answer.value is not None else value
        if self._draws_its_own is None:
            self._draws_its_own = self._draws_beside(cotangent)
        return answer._replace(
            value=value, written=(*written, *new), draws_its_own=self._draws_its_own
        )

    def _draws_beside(self, cotangent: Vector) -> bool:
        """Whether the gradient is one for other random numbers than those of the forward pass."""
        if not self._world.is_drawing or self._runs_forward:
            return False
        parts = _handed.cut(cotangent, self.outputs)

        def gradient() -> Vector:
            return self._read(self._returned(parts)[0]).gradient

        elsewhere = self.at(_handed.another(self.point))
        return draws_its_own(self._world, self._call, gradient, elsewhere, np.asarray)

    def _asked(self, cotangent: Vector) -> tuple[Any, float, tuple[str, ...]]:
        """What the user's function of the gradient returns, phi, and whether the cotangent was
        written to.
        """
        # Forward first: a class keeps what its backward needs from the last forward, and phi comes
        # with it. Where the backward runs one of its own, that starts from where this one did.
        parts = _handed.cut(cotangent, self.outputs)
        if self._runs_forward is None:
            self._runs_forward = self._goes_on() and self._leaves_the_same(parts)
            self._world.reset()
        value = self._reduced(self._call(), parts)
        if self._runs_forward:
            self._world.reset()
        else:
            self._world.rewind()
        returned, given = self._returned(parts)
        pairs = zip(given, parts, strict=False)
        is_same = all(np.array_equal(part, own.astype(part.dtype)) for part, own in pairs)
        return returned, value, () if is_same else ("the cotangent",)

    def _returned(self, parts: Sequence[Any]) -> tuple[Any, list[Any]]:
        """What the user's function of the gradient returns, and the cotangent it was given."""
        if not self._case.is_closure:
            # A forward pass may have worked in its arguments; the backward is given them as well.
            self._write_all(self.point)
        args, kwargs = self._arguments
        given: list[Any] = []
        if not self.unit_cotangent:
            given = [
                part.astype(leaf.dtype) for part, leaf in zip(parts, self.outputs, strict=True)
            ]
            paths = [leaf.path for leaf in self.outputs]
            shaped = dict(zip(paths, given, strict=True))
            args = (replaced(self._cotangent_tree, shaped), *args)
        with np.errstate(all="ignore"):
            return self._case.grads(*args, **kwargs), given

    def _goes_on(self) -> bool:
        """Whether a call starts from what the one before it left, as that of a network does which
        keeps its state.
        """
        if not self._world.keeps:
            return False
        self._world.reset()
        first, second = ([np.array(n.value) for n in flatten(self._call())] for _ in range(2))
        return not same(first, second)

    def _leaves_the_same(self, parts: Sequence[Any]) -> bool:
        """Whether the user's function of the gradient leaves behind all that the function itself
        does: it runs the forward pass, and must not go on from the end of another one.
        """
        self._world.reset()
        self._call()
        forward = self._world.left()
        self._world.reset()
        try:
            self._returned(parts)
        except Exception:  # it wants a forward pass before it
            return False
        both = self._world.left()
        left = (key in both and same(forward[key], both[key]) for key in forward)
        return bool(forward) and all(left)

    def handed_out(self, cotangent: Vector) -> Iterator[Trial]:
        """Whether what was returned is still the same once another gradient was asked for."""
        self._world.reset()
        parts = self._read(self._asked(cotangent)[0]).parts
        first = [np.asarray(part) for part in parts if part is not None]
        before = [part.copy() for part in first]
        try:
            self._write_all(_handed.another(self.point))
            self._asked(cotangent * _handed.ELSEWHERE)
        finally:
            self._write_all(self.point)
            now = [part.copy() for part in first]
            self._world.watch()
        is_same = all(map(partial(np.array_equal, equal_nan=True), now, before))
        fault = "" if is_same else "are overwritten: hand out copies"
        yield Trial("gradients that were returned, by another call,", fault=fault)

    def given(self) -> set[Path]:
        """The leaves of an object that its gradients are given for, by a function that returns
        them, or the object itself: beside its parameters it keeps data, and what a forward pass
        left behind.
        """
        everything, owner = {slot.path for slot in self._slots}, self._case.wrt
        with self.held():
            self._world.reset()
            try:
                returned = self._asked(np.ones(self.outputs.size))[0]
            except Exception:  # in the user's words, where it is asked for in earnest
                return everything
            if type(returned) is tuple and len(returned) == 2 and np.ndim(returned[0]) == 0:
                returned = returned[1]
            if returned is owner:
                paths = {n.path for n in _inner_nodes(owner) if _is_floating(n.value)}
                found = _with_twins(everything, paths)
                return {path for path in found if not self._is_left_behind(path)}
            if not (isinstance(returned, Mapping) or _is_object(returned)):
                return everything
            left = {path for path in everything if not _handed.has(returned, path)}
            return everything - {path for path in left if self._is_left_behind(path)}

    def _is_left_behind(self, path: Path) -> bool:
        """Whether an attribute is one that every call sets anew. What is missing else was
        forgotten.
        """
        holder = next(slot.holder for slot in self._slots if slot.path == path)
        if holder is None or isinstance(holder, dict | list):
            return False
        attributes, name = vars(holder), path[-1]
        attributes[name] = other = np.copy(attributes[name])
        self._call()
        return attributes[name] is not other

    def _read(self, returned: Any) -> Backward:
        answer = _handed.read(returned, self.layout, self._places, np.asarray)
        if returned is not self._case.wrt:
            return answer
        # In an object that holds both, what lies where no gradient does is the parameter itself.
        pairs = enumerate(zip(self._slots, answer.parts, strict=True))
        lacking = [n for n, (slot, part) in pairs if part is slot.found or part is slot.work]
        for number in lacking:
            answer.gradient[self.layout.leaves[number].part] = 0.0
        return answer._replace(severed=answer.severed | frozenset(lacking))


SWITCHING = {"greater", "heaviside", "less", "sign"}
ROUNDING = {"around", "ceil", "fix", "floor", "rint", "round", "trunc"}


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
