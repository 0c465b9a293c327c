"""Which arrays and numbers of a call are leaves, under which names, and how they are moved: copies
of arguments, and what a closure reads in place, also in the attributes of an object.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import Case
from xgradcheck._errors import InvalidCase
from xgradcheck._selection import Candidate, argument_nodes, closure_nodes, select
from xgradcheck._tree import Node, Path, flatten

from .moves import element_writer
from .reach import attributes_of

CONVERT = "convert it with .astype(np.float64)"
NAMED = 5
"""How many arguments or arrays are named in a sentence."""


def is_floating(value: Any) -> bool:
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


def in_copies(case: Case) -> Binding:
    """Leaves of arguments. Working copies are perturbed, so the user's arrays are never written."""
    nodes = argument_nodes(case)
    floating = [node for node in nodes if is_floating(node.value)]
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
        skipped=[*_not_floating(node for node in nodes if node.path[0] in roots), *_own(case.fn)],
    )


def _own(fn: Any) -> list[str]:
    """The arrays of an object whose method is checked in its arguments."""
    owner = getattr(fn, "__self__", fn)
    if not is_object(owner):
        return []
    arrays = [n for n in inner_nodes(owner) if isinstance(n.value, np.ndarray)]
    names = [node.suffix for node in arrays if is_floating(node.value)]
    if not names:
        return []
    kind, more = type(owner).__name__, ", ..." if len(names) > NAMED else ""
    return [f"{', '.join(names[:NAMED])}{more}: of the {kind} itself, for a closure with wrt="]


def in_place(case: Case, given: Collection[Path] | None = None, is_inner: bool = False) -> Binding:
    """Leaves of a closure, those that a gradient is ``given`` for, where that is known; those of
    the objects inside, too, if asked. The user's own arrays are perturbed, since only they reach
    the function.
    """
    nodes = inner_nodes(case.wrt) if is_inner else _closure_nodes(case.wrt)
    if any(map(is_object, _owners(case.wrt))) and not callable(case.grads):
        floating = _with_gradients(case, nodes)
        if not floating:
            nodes = inner_nodes(case.wrt)
            floating = _with_gradients(case, nodes)
        kept = {node.path for node in floating}
        skipped = [_ungiven(n) for n in nodes if is_floating(n.value) and n.path not in kept]
    else:
        floating = [node for node in nodes if is_floating(node.value)]
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
    if given is None and is_object(case.wrt) and callable(case.grads):
        # What is a parameter is not known yet, and caches are often the same array.
        floating = _once_each(floating)
    slots = [_slot_in_place(case.wrt, node) for node in floating]
    shared: dict[int, str] = {}
    for slot in slots:
        if (
            isinstance(slot.found, np.ndarray)
            and shared.setdefault(id(slot.found), slot.name) != slot.name
        ):
            raise InvalidCase(
                f"{shared[id(slot.found)]} and {slot.name} are one array: pass it once."
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
    nodes = closure_nodes(vars(owner) if is_object(owner) else owner)
    has_arrays = any(isinstance(n.value, np.ndarray) and is_floating(n.value) for n in nodes)
    return nodes if has_arrays or not any(map(is_object, _owners(owner))) else inner_nodes(owner)


def _with_gradients(case: Case, nodes: Sequence[Node]) -> list[Node]:
    """The leaves of an object that a gradient lies at hand for: it keeps data and caches beside its
    parameters, and often their gradients.
    """
    floating = {node.path: node for node in nodes if is_floating(node.value)}
    gradients = {twin for path in floating for twin in twins(path)}
    own = [node for path, node in floating.items() if path not in gradients]
    if case.grads is case.wrt:
        paths = [node.path for node in own]
        kept = with_twins(paths, possible_gradients(case.wrt, paths))
        return [node for node in own if node.path in kept]
    return [node for node in own if _handed.has(case.grads, node.path)]


def inner_nodes(owner: Any) -> list[Node]:
    """Every leaf, objects of the user's taken apart into their attributes."""
    return [Node(n.path, _from_root(n.suffix), n.value) for n in _taken_apart(owner)]


def _taken_apart(
    value: Any, path: Path = (), suffix: str = "", inside: tuple[int, ...] = ()
) -> Iterator[Node]:
    for node in flatten(value, path, suffix):
        part = node.value
        found = [] if id(part) in inside else list(attributes_of(part))
        if not found or not is_object(part):
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


Ways = Callable[[Path], list[Path]]


def twins(path: Path) -> list[Path]:
    """Where the gradient of what lies at ``path`` may lie beside it, under a name made of its own:
    dW beside W.
    """
    names = _handed.twins(path[-1]) if path and isinstance(path[-1], str) else ()
    return [(*path[:-1], name) for name in names]


def _in_stores(path: Path) -> list[Path]:
    """In a store of gradients beside that of the parameters, under the same name or such a one."""
    found = []
    for place, key in enumerate(path):
        rest = path[place + 1 :]
        names = [rest, *twins(rest)] if key in STORES and rest else []
        found += [(*path[:place], other, *name) for other in GRADIENTS for name in names]
    return found


def _by_letters(path: Path) -> list[Path]:
    """Where parameters are called by a word, and their gradients by a letter."""
    letters = SHORT.get(path[-1], ()) if path else ()
    return [twin for letter in letters for twin in twins((*path[:-1], letter))]


def _in_objects(path: Path) -> list[Path]:
    """Of one parameter that is an object."""
    return [(*path[:-1], "grad")] if path and path[-1] in ("data", "value") else []


WAYS: tuple[Ways, ...] = (twins, _in_stores, _by_letters, _in_objects)
STORES, GRADIENTS = ("params", "parameters"), ("grads", "gradients")
"""What objects call the lists or dicts in which they keep their arrays, and those of gradients."""
SHORT = {"weights": ("W", "w"), "weight": ("W", "w"), "bias": ("b",), "biases": ("b",)}
"""What parameters are called for short in the names of their gradients."""


def possible_gradients(owner: Any, paths: Iterable[Path]) -> dict[Path, Any]:
    """What lies in an object that may be a gradient of what lies at these paths, by its own path:
    floating numbers; and of the very shape of its array, what a layer that counts gives, and lists.
    """
    found = {node.path: node.value for node in inner_nodes(owner) if is_floating(node.value)}
    for path in paths:
        for twin in (twin for way in WAYS for twin in way(path) if twin not in found):
            value = _at(owner, twin)
            if _could_be_gradient(value, _at(owner, path)):
                found[twin] = value
    return found


def _at(owner: Any, path: Path) -> Any:
    """What lies there; None where nothing does."""
    for key in path:
        try:
            owner = owner[key] if isinstance(owner, dict | list | tuple) else vars(owner)[key]
        except (LookupError, TypeError):
            return None
    return owner


def _could_be_gradient(value: Any, parameter: Any) -> bool:
    """Whether this is an array of another kind than floats, or a list of those, one number for each
    of the parameter's.
    """
    if not isinstance(value, np.ndarray | list | tuple) or not np.ndim(parameter):
        return False
    try:
        array = np.asarray(value)
    except ValueError:  # of rows that differ in length
        return False
    is_counted = isinstance(value, np.ndarray) and array.dtype.kind in "biuO"
    return array.shape == np.shape(parameter) and (is_counted or array.dtype.kind == "f")


def places_of_gradients(paths: Iterable[Path], known: Collection[Path]) -> dict[Path, Path]:
    """For each of these paths beside which a gradient lies, where that is. Names may mean something
    else: those that mean least by themselves count where no others are there.
    """
    paths, left, found = list(paths), set(known), dict[Path, Path]()
    for way in WAYS:
        if found and way is _in_objects:
            break
        for path in paths:
            place = next((twin for twin in way(path) if twin in left), None)
            if place is not None and path not in found:
                found[path] = place
        left -= set(found.values())
    return found


def with_twins(paths: Iterable[Path], known: Collection[Path]) -> set[Path]:
    """The paths beside which a gradient lies; and those that are called alike in other layers, or
    lie in the same store, which were forgotten.
    """
    paths = list(paths)
    places = places_of_gradients(paths, known)
    found, gradients = set(places), set(places.values())
    names = {path[-1] for path in found}
    stores = {path[: n + 1] for path in found for n, key in enumerate(path) if key in STORES}
    alike = {path for path in paths if len(path) > 1 and path[-1] in names}
    stored = {path for path in paths if any(path[: len(store)] == store for store in stores)}
    return found | (alike | stored) - gradients


def _ungiven(node: Node) -> str:
    return f"{node.suffix}: no gradient was given"


def _refuse_first(nodes: Sequence[Node], floating: Sequence[Node]) -> None:
    """Raise for a first argument that is not to be checked, with what to do about it."""
    kinds = dict.fromkeys(kind_of(node.value) for node in nodes if node.path[0] == 0)
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


def is_object(owner: Any) -> bool:
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
    plain = [node for node in nodes if not is_floating(node.value) and node.value is not None]
    return [f"{node.suffix}: {kind_of(node.value)}, not a floating array" for node in plain]


def raised(value: Any) -> Any:
    return np.asarray(value).astype(np.result_type(value, np.float64))


def writer(array: Any) -> Callable[[int, float], None]:
    """How to set one number of an array by its place in the flat vector."""
    if not np.iscomplexobj(array):
        return element_writer(array)
    halves = element_writer(array.real), element_writer(array.imag)
    return lambda place, value: halves[place // array.size](place % array.size, value)


def dtype_of(value: Any) -> str:
    return str(np.asarray(value).dtype)


def kind_of(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray | np.generic) else type(value).__name__
