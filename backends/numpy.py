"""NumPy: backprop by hand. The gradient is always handed in; the arrays lie in trees, or in an
object.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import COTANGENT, Backward, Case
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
from xgradcheck._selection import argument_nodes
from xgradcheck._tree import Path, flatten, replaced

from .kept_states import (
    array_places,
    array_state,
    book_states,
    number_states,
    plain_states,
    pushed_states,
)
from .moves import displaced
from .numpy_code import rounds, switches
from .numpy_leaves import (
    CONVERT,
    Binding,
    Slot,
    dtype_of,
    in_copies,
    in_place,
    is_floating,
    is_object,
    kind_of,
    places_of_gradients,
    possible_gradients,
    raised,
    with_twins,
    writer,
)
from .numpy_probes import probes as probes
from .own_draws import draws_its_own
from .random_states import random_states
from .reach import reachable
from .states import State, same, same_bytes
from .world import World

CLOSE = 1e-3
"""How near two gradients are that are the same but for rounding, relative."""
ABSENT = (None,)
"""A place where nothing lies."""
PROBES = 3
"""How often a leaf is moved to see whether anything depends on it."""


def owns(contents: Any) -> bool:
    """Whether any floating NumPy array is in the call."""
    return any(
        isinstance(node.value, np.ndarray) and is_floating(node.value) for node in flatten(contents)
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


def bind(case: Case) -> "NumpyProblem":
    """The problem that this call poses; refuses what cannot be checked."""
    if case.grads is None:
        raise InvalidCase("NumPy has no backward pass: give the gradient with grads=.")
    if not case.is_closure:
        return NumpyProblem(case, in_copies(case))
    problem = NumpyProblem(case, in_place(case))
    if not is_object(case.wrt) or not callable(case.grads):
        return problem
    given, is_inner = problem.given(), False
    if not given:
        # Nothing of its own: what its layers hold.
        problem, is_inner = NumpyProblem(case, in_place(case, is_inner=True)), True
        given = problem.given()
    if not given:
        raise InvalidCase(
            f"the backward pass of {type(case.wrt).__name__} leaves no gradient beside an array of "
            f"it, as dW beside W: give its parameters as wrt=, and as grads= a function that "
            f"returns their gradients."
        )
    whole = len(given) == len(problem.layout)
    return problem if whole else NumpyProblem(case, in_place(case, given, is_inner))


class NumpyProblem:
    """One call of a NumPy function, seen from the core."""

    batch = 1
    frozen: Positions = np.empty(0, np.intp)

    def __init__(self, case: Case, binding: Binding) -> None:
        self._case, self._slots, self._places = case, binding.slots, binding.places
        for slot in self._slots:
            refuse_unless_known(slot.name, dtype_of(slot.found), CONVERT)
            refuse_unless_finite(slot.name, np.asarray(slot.found))
        self.layout = lay_out(
            Entry((slot.name,), slot.path, np.shape(slot.found), dtype_of(slot.found))
            for slot in self._slots
        )
        self.point: Vector = np.concatenate(
            [np.zeros(0), *(_handed.numbers(slot.found) for slot in self._slots)]
        ).astype(np.float64)
        self.skipped = list(binding.skipped)
        # Read at once, which copies: many forwards overwrite the gradients they left behind.
        self._given = None if callable(case.grads) else self._read(case.grads)
        self._writers = [writer(slot.work) for slot in self._slots]
        self._has_numbers = any(not isinstance(slot.found, np.ndarray) for slot in self._slots)
        self._wide: dict[Path, Any] = {}
        self._gives_copies, self._has_tried_copies = False, case.is_closure
        self._arguments = self._rebuilt()
        self._world = self._surroundings()
        self._runs_forward: bool | None = None
        self._draws_its_own: bool | None = None
        self._written_gradients: list[Any] | None = None
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
        leaves = [slot.found for slot in self._slots]
        # A method may note things down in its object, as well as in what it is given.
        roots = [self._case.args, self._case.kwargs, getattr(self._case.fn, "__self__", None)]
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
                slot.work, slot.put = raised(slot.work), slot.give
                if slot.put is not None:
                    slot.put(slot.current)
                for place in places[slot.name]:
                    place.restore(slot.current)
            self._wide = {
                node.path: raised(node.value)
                for node in argument_nodes(self._case)
                if is_floating(node.value) and bits_of(dtype_of(node.value)) < DOUBLE
            }
            self._writers = [writer(slot.work) for slot in self._slots]
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
        found = self._reachable()
        yield from plain_states(found)
        yield from pushed_states(found)
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
        return any(map(rounds, self._reachable()))

    @property
    def switches(self) -> bool:
        """Whether the code that a call can reach compares anything."""
        return any(map(switches, self._reachable()))

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
                    f"nor the {kind_of(slot.holder)} that holds it. Pass the very array, dict or "
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
        kept = [node for node in nodes if is_floating(node.value)]
        if not kept:
            raise InvalidCase(
                f"the function returned {kind_of(out)}, no floating number: let it return its "
                f"value."
            )
        for node in kept:
            refuse_unless_known(node.suffix, dtype_of(node.value), CONVERT)
        left = [node for node in nodes if not is_floating(node.value) and node.value is not None]
        said = [f"{node.suffix}: {kind_of(node.value)}, not differentiable" for node in left]
        self.skipped += [text for text in said if text not in self.skipped]
        layout = lay_out(
            Entry((n.suffix,), n.path, np.shape(n.value), dtype_of(n.value)) for n in kept
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
        if self._runs_forward:
            return False
        parts = _handed.cut(cotangent, self.outputs)

        def gradient() -> Vector:
            return self._read(self._returned(parts)[0]).gradient

        def elsewhere() -> AbstractContextManager[None]:
            return self.at(_handed.another(self.point))

        return draws_its_own(self._case, self._world, self._call, gradient, elsewhere, np.asarray)

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
        self._zero_gradients()
        value = self._reduced(self._call(), parts)
        if self._runs_forward:
            self._world.reset()
            self._zero_gradients()
        else:
            self._world.rewind()
        returned, given = self._returned(parts)
        pairs = zip(given, parts, strict=False)
        is_same = all(np.array_equal(part, own.astype(part.dtype)) for part, own in pairs)
        return returned, value, () if is_same else (COTANGENT,)

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

    def _zero_gradients(self) -> None:
        """Zeros where an object keeps gradients that a pass writes to, as before every step of a
        training: what it adds to is what an earlier pass has left.
        """
        owner = self._case.wrt
        if not (self._case.is_closure and is_object(owner)):
            return
        if self._written_gradients is None:
            self._written_gradients = self._find_written_gradients()
        for array in self._written_gradients:
            array[...] = 0

    def _find_written_gradients(self) -> list[Any]:
        own = {id(slot.found) for slot in self._slots}
        arrays = [part for part in self._own_gradients() if isinstance(part, np.ndarray)]
        arrays = [array for array in arrays if array.flags.writeable and id(array) not in own]
        before = [array.copy() for array in arrays]
        try:
            self._call()
            self._returned(_handed.cut(np.ones(self.outputs.size), self.outputs))
        except Exception:  # in the user's words, where it is asked for in earnest
            pass
        written = [not same_bytes(a, b) for a, b in zip(arrays, before, strict=True)]
        self._world.watch()
        return [array for array, is_written in zip(arrays, written, strict=True) if is_written]

    def _own_gradients(self) -> list[Any]:
        """What lies in an object beside each leaf as its gradient; None where nothing does."""
        paths = [slot.path for slot in self._slots]
        known = possible_gradients(self._case.wrt, paths)
        places = places_of_gradients(paths, known)
        return [known.get(places.get(slot.path, ABSENT)) for slot in self._slots]

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
            returned = _handed.without_value(returned, self.layout, self._places, np.asarray)[1]
            if returned is owner:
                found = with_twins(everything, possible_gradients(owner, everything))
                return {path for path in found if not self._is_left_behind(path)}
            if not (isinstance(returned, Mapping) or is_object(returned)):
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
        owner = self._case.wrt
        if returned is not owner or not is_object(owner):
            return _handed.read(returned, self.layout, self._places, np.asarray)
        found = self._own_gradients()
        parts = [
            np.zeros(leaf.shape) if part is None else part
            for leaf, part in zip(self.layout, found, strict=True)
        ]
        order = [(number,) for number in range(len(parts))]
        where = _handed.Places(order, order)
        answer = _handed.read(tuple(parts), self.layout, where, np.asarray)
        lacking = frozenset(number for number, part in enumerate(found) if part is None)
        return answer._replace(severed=answer.severed | lacking)
