"""JAX: pytrees in, pytrees out; points are batched with vmap under jit. float64 is switched on
where it is asked for, whatever the global flag says.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import (
    DOUBLE,
    ComplexVector,
    Entry,
    Layout,
    Leaf,
    Positions,
    Vector,
    bits_of,
    lay_out,
    refuse_unless_finite,
    refuse_unless_known,
)
from xgradcheck._selection import Candidate, select
from xgradcheck._tree import Node

from .jax_draws import drawn_low, x64
from .jax_kept import Kept, key_of
from .jax_leaves import (
    argument_nodes,
    closed_over,
    is_floating,
    is_whole,
    is_x64,
    narrowed,
    plain,
    with_its_own,
)
from .jax_probes import probes as probes
from .jax_programs import (
    bytes_computed,
    calls_back,
    convolves,
    lowest_bits,
    rounds,
    switches,
    unread,
)
from .jax_raising import evaluate
from .jax_rules import remedies, rules
from .world import (
    State,
    World,
    displaced,
    number_states,
    plain_states,
    random_states,
    reachable,
    wide_array_states,
)

CONVERT = "convert it with .astype(jnp.float32)"
# A small check compiles for longer than it runs: compiling quickly is worth more than running fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
QUICK_BELOW = 1000
QUICK_ALONE_BELOW = 50_000
"""The same for a program that takes its points one by one."""
SHARED_BELOW = 50_000
"""Up to here one program gives values and gradients: compiling another one takes longer than a
backward pass that nobody asked for.
"""
CHUNK_BYTES, WORK_BYTES = 1 << 24, 1 << 28
"""How much memory one batch of points may take, and all that is computed for it on the way: large
enough to fill the cores, small enough for any machine.
"""
FEWEST, MOST = 8, 64
"""Points in a batch, where they fit."""
LARGE = 2048
"""The smallest leaf that gets a program of its own, in which the others are not batched: computing
them with it costs more than compiling then.
"""

FLUSHES = True
"""Whether numbers below the smallest normal one are taken for zero: XLA does so."""
# Larger leaves are copied one by one as they move: a program copies its arguments all at once.
HEAVY = 1 << 20
# Larger functions are not kept: their arguments would be, too.
KEPT_BELOW = 1 << 21
_kept_problems = Kept()


def owns(contents: Any) -> bool:
    """Whether a JAX array is in the call."""
    try:
        leaves = tree_util.tree_leaves(contents)
    except ValueError:  # a dict whose keys JAX cannot sort: no tree of its own
        return False
    return any(isinstance(leaf, jax.Array) for leaf in leaves)


def made(fn: Any) -> bool:
    """Whether JAX made this of a function, as ``jit`` and ``custom_vjp`` do."""
    return type(fn).__module__.partition(".")[0] in ("jax", "jaxlib")


def from_numpy(array: Any) -> Any:
    """Left as it is: JAX takes NumPy arrays, and would make float32 of float64 ones outside our
    scope.
    """
    return array


def cast(array: Any, dtype: str) -> Any:
    """The same numbers in another dtype, which is named as the core has it."""
    # Outside of a scope of its own JAX has no float64, and NumPy has.
    wide = np.dtype(jnp.dtype(dtype)).itemsize == (16 if dtype.startswith("complex") else 8)
    return (np.asarray(array) if wide else array).astype(jnp.dtype(dtype))


def array_of(value: Any) -> Any:
    """The numbers of an array, on the side of NumPy."""
    return np.asarray(value)


def planted(forward: Any, backward: Any, count: int) -> tuple[Any, Any]:
    """A function of ``count`` arrays with this backward pass, both in the operations of this
    framework; and its ``grads``, where those have to be handed in.
    """
    ruled = jax.custom_vjp(lambda *args: forward(jnp, *args))
    ruled.defvjp(
        lambda *args: (forward(jnp, *args), args),
        lambda args, cotangent: tuple(backward(jnp, cotangent, *args)),
    )
    return ruled, None


def bind(case: Case) -> "JaxProblem":
    """The problem that this call poses; refuses what cannot be checked."""
    case = with_its_own(case)
    if case.is_closure:
        raise InvalidCase(
            "JAX functions are pure: pass the parameters as arguments, check(fn, params)."
        )
    try:
        return JaxProblem(case)
    except TypeError:
        # To JAX arrays of NumPy's are as wide as its own; float64 beside float32 many operations
        # refuse.
        narrow = narrowed(case)
        if narrow is None:
            raise
        return JaxProblem(narrow)


def timed(case: Case) -> Any:
    """What runs one implementation again and again."""
    from .jax_timing import JaxTimed  # only benchmarks ask

    return JaxTimed(case)


def flags() -> dict[str, str]:
    """What JAX was told of precision, and what it runs on."""
    read: Any = jax.config
    return {
        "jax matmul precision": str(read.jax_default_matmul_precision or "default"),
        "jax x64": str(bool(read.jax_enable_x64)),
        "jax device": str(jax.devices()[0].device_kind),
    }


@dataclass(frozen=True, slots=True)
class Functions:
    """What is run: for leaves all outputs, floating ones first; for leaves and cotangents the
    outputs and the gradients; for leaves and tangents the tangents of the outputs.
    """

    everything: Callable[[Any], tuple[list[Any], list[Any]]]
    pulled: Callable[[Any, Any], tuple[list[Any], list[Any]]]
    pushed: Callable[[Any, Any], list[Any]]


def _wide(leaf: Leaf) -> str:
    return "complex128" if leaf.is_complex else "float64"


class JaxProblem:
    """One call of a JAX function, seen from the core."""

    frozen: Positions = np.empty(0, np.intp)
    traces = True
    _compiled_whole: Callable[..., Any]
    _compiled_backward: Callable[..., Any]
    _compiled_outputs: Callable[..., Any]

    def __init__(self, case: Case, pulled: "tuple[Layout, Vector] | None" = None) -> None:
        self._case = case
        # Of second order: what the outputs are and for which cotangent their gradients are meant.
        self._pulled = pulled
        self._nodes = argument_nodes(case)
        self._structure = tree_util.tree_structure((case.args, dict(case.kwargs)))
        self._numbers = self._chosen()
        self._own, before = len(self._numbers), len(self._nodes)
        self._nodes += self._cotangent_nodes()
        self._numbers += range(before, len(self._nodes))
        leaves = [self._nodes[number] for number in self._numbers]
        for node in leaves:
            refuse_unless_known(node.suffix, str(node.value.dtype), CONVERT)
            refuse_unless_finite(node.suffix, _double(node.value))
        self.layout = lay_out(
            Entry((n.suffix,), n.path, np.shape(n.value), str(n.value.dtype)) for n in leaves
        )
        self.point: Vector = np.concatenate([_handed.numbers(_double(n.value)) for n in leaves])
        # Where all is below float64 the function runs in the world of its user.
        self._is_wide = any(bits_of(leaf.dtype) == DOUBLE for leaf in self.layout)
        self._is_wide_outside, self._is_apart = is_x64(), False
        self.skipped = [*self._left_out(), *closed_over(case.fn)]
        self._places = _handed.places(
            [node.path for node in leaves], [node.path for node in self._nodes]
        )
        # Read at once, which copies.
        self._given = None if case.grads is None or callable(case.grads) else self._read(case.grads)
        self._world = World(list(self._states()), list(number_states(self._reachable())))
        self._is_moved = self._is_single = False
        self._programs: dict[int, Callable[..., Any]] = {}
        self._program: Callable[[Any, Any], Any] | None = None
        self._way: str | None = None
        self._made = self
        self._is_traced = self._calls_back = self._draws_low = False
        self._computed, self._convolves = 0, False
        self.rounds = self.switches = False
        self._seen: list[Node] = []
        self._now = Functions(self._everything_at, self._pulled_back, self._pushed_at)
        self._unread: frozenset[int] = frozenset()
        self.bits = self.backward_bits = DOUBLE
        self._gives_jax_arrays = False
        self.outputs = Layout(())
        self._dtypes = [leaf.dtype for leaf in self.layout]
        with self.held():
            self._learn()
        self.unit_cotangent = case.grads is not None and not _handed.takes_cotangent(
            case.grads, len(case.args), case.kwargs, self.outputs
        )

    def _cotangent_nodes(self) -> list[Node]:
        """Of second order the cotangents are leaves too: a gradient depends on them."""
        if self._pulled is None:
            return []
        outputs, cotangent = self._pulled
        parts = zip(_handed.cut(cotangent, outputs), outputs, strict=True)
        values = [np.asarray(part, jnp.dtype(leaf.dtype)) for part, leaf in parts]
        names = zip(_handed.cotangent_names(outputs), values, strict=True)
        return [Node((name,), name, value) for name, value in names]

    def _learn(self) -> None:
        key = self._key()
        made = _kept_problems.get(key)
        if made is None:
            self._learn_outputs()
            self._plan()
            if self._is_traced and not self._world.moving:
                _kept_problems.put(key, self._made)
            return
        self.outputs, self.bits = made.outputs, made.bits
        self.rounds, self.switches = made.rounds, made.switches
        self._unread, self._calls_back = made._unread, made._calls_back
        self._computed, self._convolves = made._computed, made._convolves
        self._is_traced, self._made = True, made
        self.skipped = list(made.skipped)

    def _key(self) -> Hashable | None:
        """What the function is known by in a later check; None where it is not remembered."""
        if self._pulled is not None or self.is_handed or self.layout.size > KEPT_BELOW:
            return None
        chosen, case = set(self._numbers), self._case
        still = [node.value for n, node in enumerate(self._nodes) if n not in chosen]
        read = key_of(case.fn, case.loss, still)
        world = (is_x64(), jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        shapes = tuple(
            (leaf.name, leaf.shape, str(d))
            for leaf, d in zip(self.layout, self._dtypes, strict=True)
        )
        return read and (
            read,
            self._structure,
            shapes,
            tuple(self._numbers),
            world,
            self._draws_low,
        )

    def _snapshot(self) -> "JaxProblem":
        """This problem as it is now, to make programs of later and for later checks."""
        made = copy.copy(self)
        made._made, made.skipped = made, list(self.skipped)
        if self._now.everything == self._everything_at:
            made._now = Functions(made._everything_at, made._pulled_back, made._pushed_at)
        return made

    def _plan(self) -> None:
        """How points are evaluated from now on; nothing is compiled before it is used."""
        self._chunk = self._points_at_once(self.layout.size)
        self._programs, self._program, self._way = {}, None, None
        # What is compiled quickly may round otherwise: not what is judged as it runs.
        quick = self._is_wide and self.layout.size <= QUICK_ALONE_BELOW
        options, made = QUICK if quick else None, self._snapshot()
        made._compiled_whole = jax.jit(made._whole_at, compiler_options=options)
        made._compiled_backward = jax.jit(made._now.pulled, compiler_options=options)
        made._compiled_outputs = jax.jit(made._now.everything, compiler_options=options)
        self._made = made

    @property
    def _is_shared(self) -> bool:
        """Whether one program gives values and gradients. What Python computes is not computed more
        often than it is asked for.
        """
        return self.layout.size <= SHARED_BELOW and not self._calls_back and not self.is_handed

    def raisings(self) -> Sequence[Callable[[], AbstractContextManager[None]]]:
        # Only the function itself takes gradients that are handed in.
        return [self._raised] if self.is_handed else [self._raised, self._raised_as_traced]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """All that is known of the function in one world, for as long as it is in another."""
        names = (
            "skipped",
            "_nodes",
            "_dtypes",
            "_is_wide",
            "_unread",
            "_now",
            "_made",
            "_is_traced",
            "_draws_low",
            "_calls_back",
            "_computed",
            "_convolves",
            "rounds",
            "switches",
            "outputs",
            "bits",
            "backward_bits",
        )
        kept = [getattr(self, name) for name in names]
        try:
            yield
        finally:
            for name, value in zip(names, kept, strict=True):
                setattr(self, name, value)

    @contextmanager
    def _raised(self) -> Iterator[None]:
        """The function traced anew, for arguments of float64."""
        with self._kept():
            # In the world of the user.
            self._draws_low = low = not is_x64()
            # Whole numbers stay as wide as the function found them.
            nodes = [
                Node(n.path, n.suffix, jnp.asarray(n.value)) if is_whole(n.value) else n
                for n in self._nodes
            ]
            with x64(), drawn_low() if low else nullcontext():
                chosen = dict(zip(self._numbers, _handed.cut(self.point, self.layout), strict=True))
                self._nodes = [
                    Node(n.path, n.suffix, chosen[number] if number in chosen else _double(n.value))
                    if is_floating(n.value)
                    else n
                    for number, n in enumerate(nodes)
                ]
                self._widen()
                with warnings.catch_warnings():
                    # Where a dtype is asked for by name, JAX warns of what does not fit in it.
                    warnings.simplefilter("ignore")
                    self._learn()
                    self.backward_bits = (
                        self.bits_of_backward(np.zeros(self.outputs.size)) or DOUBLE
                    )
                yield

    def bits_of_backward(self, cotangent: Vector) -> int:
        """The shortest significand of what the backward pass computes, which may ask for one by its
        name where the function itself does not; 0 where that is not known.
        """
        if not self._is_traced or self.is_handed:
            return 0
        made, given = self._made, (self._parts(), self._cotangents(cotangent))
        compiled: Any = made._compiled_whole if self._is_shared else made._compiled_backward
        try:
            # What is traced here is not traced again where it runs.
            program = compiled.trace(*given).jaxpr
        except Exception:  # a loop that has forward mode only, or a rule that is wrong
            return 0
        return lowest_bits(program.jaxpr)

    @contextmanager
    def _raised_as_traced(self) -> Iterator[None]:
        """The operations that the function was traced to, in float64."""
        found, count, kept = self._found(), len(self.outputs), self._now
        cotangents = self._cotangents(np.zeros(self.outputs.size))
        everything = jax.make_jaxpr(kept.everything)(found)
        try:
            backward = jax.make_jaxpr(kept.pulled)(found, cotangents)
        except Exception:  # a loop that has forward mode only: nobody has asked for a gradient
            backward = None

        def run(leaves: Any) -> tuple[list[Any], list[Any]]:
            values = evaluate(everything, *leaves)
            return values[:count], values[count:]

        def pull(leaves: Any, cotangents: Any) -> tuple[list[Any], list[Any]]:
            values = evaluate(backward, *leaves, *cotangents)
            return values[:count], values[count:]

        def push(leaves: Any, tangents: Any) -> list[Any]:
            with x64(False):
                forward = jax.make_jaxpr(kept.pushed)(found, found)
            return evaluate(forward, *leaves, *tangents)

        with self._kept(), x64():
            self._widen()
            wide = [replace(leaf, dtype=_wide(leaf)) for leaf in self.outputs]
            self.outputs = Layout(tuple(wide))
            self._now = Functions(run, pull, push)
            self.bits = lowest_bits(jax.make_jaxpr(run)(self._found()).jaxpr)
            self._plan()
            yield

    def _widen(self) -> None:
        self._is_wide = True
        self._dtypes = [_wide(leaf) for leaf in self.layout]

    def _chosen(self) -> list[int]:
        case = self._case
        floating = [number for number, node in enumerate(self._nodes) if is_floating(node.value)]
        wrt = 0 if case.wrt is None and case.grads is not None else case.wrt
        if wrt is not None:
            if isinstance(wrt, int | str | tuple | list) and case.args:
                # A Python number is a constant, a rate of dropout, say; unless the argument that is
                # asked for holds nothing else, as in jax.grad(f)(3.0).
                arrays = {self._nodes[number].path[0] for number in floating}
                named = (wrt,) if isinstance(wrt, int | str) else wrt
                places = {n % len(case.args) for n in named if isinstance(n, int)} - arrays
                for number, node in enumerate(self._nodes):
                    is_asked = node.path[0] in places or node.suffix in named
                    if is_asked and isinstance(node.value, float):
                        self._nodes[number] = Node(node.path, node.suffix, np.float64(node.value))
                floating = [
                    number for number, node in enumerate(self._nodes) if is_floating(node.value)
                ]
            candidates = [
                Candidate((self._nodes[n].suffix,), self._nodes[n].path) for n in floating
            ]
            floating = [floating[number] for number in select(wrt, candidates, len(case.args))]
        if not floating:
            raise InvalidCase(
                "there is no floating array in the arguments: pass one, or name it with wrt=."
            )
        return floating

    def _left_out(self) -> list[str]:
        left = [node for number, node in enumerate(self._nodes) if number not in self._numbers]
        arrays = [node for node in left if isinstance(node.value, jax.Array | np.ndarray)]
        numbers = [node for node in left if type(node.value) is float]
        constants = [f"{node.suffix}: a Python number, unless wrt names it" for node in numbers]
        return constants + [
            f"{node.suffix}: not in wrt"
            if is_floating(node.value)
            else f"{node.suffix}: {node.value.dtype}, not differentiable"
            for node in arrays
        ]

    def _states(self) -> Iterator[State]:
        yield from random_states()
        yield from plain_states(self._reachable())

    def _reachable(self) -> list[Any]:
        case = self._case
        return reachable(case.fn, case.args, case.kwargs, case.loss, case.grads)

    @property
    def moving(self) -> list[str]:
        return self._world.moving

    def hold_numbers(self) -> list[str]:
        return self._world.hold_numbers()

    @contextmanager
    def held(self) -> Iterator[None]:
        with x64() if self._is_wide else nullcontext(), self._world.held(), _unlogged():
            yield

    @property
    def is_handed(self) -> bool:
        return self._case.grads is not None

    @property
    def can_move(self) -> bool:
        return self._given is None

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        found = self.point, self._is_moved
        try:
            self.point, self._is_moved = point, True
            yield
        finally:
            self.point, self._is_moved = found

    def pushed(self, cotangent: Vector) -> Backward:
        if self.is_handed:
            raise _handed.no_forward_mode()
        self._world.reset()

        def push(tangent: Any) -> Any:
            parts = zip(_handed.cut(tangent, self.layout), self._dtypes, strict=True)
            tangents = [part.astype(dtype) for part, dtype in parts]
            return self._now.pushed(found, tangents)

        found, compiled = self._found(), jax.jit(push)
        gradient = np.empty(self.layout.size)
        for position, tangent in _handed.one_by_one(self.layout.size):
            try:
                outs = compiled(tangent)
            except TypeError as error:
                if "custom_vjp" not in str(error):
                    raise
                raise InvalidCase(
                    "a custom_vjp function has no rule for forward mode: leave modes out."
                ) from None
            pushed = np.concatenate([_handed.numbers(_conj(out)) for out in outs])
            gradient[position] = pushed @ cotangent
        return Backward(None, gradient, frozenset())

    def second(self, cotangent: Vector) -> "JaxProblem":
        if self.is_handed:
            raise _handed.no_second_order()
        return JaxProblem(self._case, (self.outputs, cotangent))

    def _pushed_at(self, leaves: Any, tangents: Any) -> list[Any]:
        with self._apart(leaves):
            pushed: list[Any] = jax.jvp(self._outputs_at, (leaves,), (tangents,))[1]
        return pushed

    @contextmanager
    def _apart(self, leaves: Iterable[Any]) -> Iterator[None]:
        """The function traced with arrays of its own where numbers are wider than in the world of
        its user: what JAX made of an array of NumPy's there, it would take for it in the other.
        """
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        if self._is_apart or self._is_wide_outside or not is_traced or not is_x64():
            yield
            return
        states = list(wide_array_states(self._reachable()))
        found = [state.read() for state in states]
        copies = {id(array): array.copy() for array in found}
        try:
            self._is_apart = True
            for state, array in zip(states, found, strict=True):
                state.restore(copies[id(array)])
            yield
        finally:
            for state, array in zip(states, found, strict=True):
                state.restore(array)
            self._is_apart = False

    def _outputs_at(self, leaves: Sequence[Any]) -> list[Any]:
        """The floating outputs of the function, or their gradients."""
        with self._apart(leaves):
            return self._own_outputs_at(leaves)

    def _own_outputs_at(self, leaves: Sequence[Any]) -> list[Any]:
        if self._pulled is None:
            return self._first_outputs_at(leaves)
        outs, pull = jax.vjp(self._first_outputs_at, leaves[: self._own])
        parts = zip(leaves[self._own :], outs, strict=True)
        grads = pull([part.astype(out.dtype) for part, out in parts])[0]
        names = [self._nodes[number].suffix for number in self._numbers[: self._own]]
        self._seen = [
            Node((name,), f"output[{name!r}]", grad)
            for name, grad in zip(names, grads, strict=True)
        ]
        return list(grads)

    def _first_outputs_at(self, leaves: Sequence[Any]) -> list[Any]:
        """The floating outputs as a list; notes on the way what the function returned."""
        # JAX takes an array of whole numbers that it knows from a world of other integers for what
        # it was there.
        values = [
            node.value.copy() if is_whole(node.value) else node.value
            for node in self._nodes[: len(self._nodes) - len(self._numbers) + self._own]
        ]
        for number, leaf in zip(self._numbers[: self._own], leaves, strict=True):
            values[number] = leaf
        if self._gives_jax_arrays:
            values = [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in values]
        args, kwargs = tree_util.tree_unflatten(self._structure, values)
        out = self._case.output(args, kwargs)
        paths = tree_util.tree_flatten_with_path(out)[0]
        self._seen = [
            Node(tuple(map(plain, path)), "output" + tree_util.keystr(path), v) for path, v in paths
        ]
        return [node.value for node in self._seen if _is_output(node.value)]

    def _everything_at(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The floating outputs, and the other arrays among them."""
        floating = self._outputs_at(leaves)
        values = [node.value for node in self._seen if not _is_output(node.value)]
        return floating, [v for v in values if isinstance(v, jax.Array | np.ndarray | np.generic)]

    def _whole_at(self, leaves: Any, cotangents: Any) -> tuple[Any, Any]:
        """All outputs, and the backward pass with the outputs of its own forward pass: a custom
        rule may give others.
        """
        everything = self._now.everything(leaves)
        self._world.reset()
        return everything, self._now.pulled(leaves, cotangents)

    def _everything_of(self, leaves: Any, cotangent: Vector) -> tuple[list[Any], list[Any]]:
        """All outputs, by the first way that works at all: one program serves all points of a
        check, as the values of two may differ by rounding.
        """
        self._world.reset()
        made, ways = self._made, {"whole": self._by_whole, "outputs": self._by_outputs}
        if made._way is not None:
            return ways.get(made._way, self._as_python_runs_it)(leaves, cotangent)
        # Some programs take no array of NumPy's for a constant.
        has_constants = any(isinstance(node.value, np.ndarray) for node in self._nodes)
        for made._gives_jax_arrays in (False, True) if has_constants else (False,):
            for name, way in ways.items():
                if name == "whole" and not self._is_shared:
                    continue
                try:
                    found = way(leaves, cotangent)
                except Exception:  # no backward pass, or no tracing: the next will do, or say so
                    self._world.reset()
                    continue
                made._way = name
                return found
        made._way, made._gives_jax_arrays = "Python", False
        return self._as_python_runs_it(leaves, cotangent)

    def _by_whole(self, leaves: Any, cotangent: Vector) -> tuple[list[Any], list[Any]]:
        everything: tuple[list[Any], list[Any]]
        everything = self._made._compiled_whole(leaves, self._cotangents(cotangent))[0]
        return everything

    def _by_outputs(self, leaves: Any, cotangent: Vector) -> tuple[list[Any], list[Any]]:
        everything: tuple[list[Any], list[Any]] = self._made._compiled_outputs(leaves)
        return everything

    def _as_python_runs_it(self, leaves: Any, cotangent: Vector) -> tuple[list[Any], list[Any]]:
        return self._now.everything([jnp.asarray(leaf) for leaf in leaves])

    def _value_at(self, leaves: Any, cotangent: Vector) -> float:
        return _paired(self._everything_of(leaves, cotangent)[0], cotangent)

    def values(self) -> tuple[Vector, list[Any]]:
        floating, others = self._everything_of(self._parts(), np.zeros(self.outputs.size))
        whole = np.concatenate([_handed.numbers(_double(part)) for part in floating])
        return whole, [np.asarray(other) for other in others]

    def _found(self) -> list[Any]:
        return [jnp.asarray(part) for part in self._parts()]

    def _parts(self) -> list[Any]:
        """The leaves at the point, as NumPy arrays: compiled programs take them as they are."""
        parts = zip(_handed.cut(self.point, self.layout), self._dtypes, strict=True)
        return [np.asarray(part, jnp.dtype(dtype)) for part, dtype in parts]

    def _learn_outputs(self) -> None:
        try:
            self._is_traced = False
            program = jax.make_jaxpr(self._outputs_at)(self._parts()).jaxpr
            self._is_traced = True
            self._unread = unread(program)
            self._calls_back = calls_back(program)
            bits = lowest_bits(program)
            self._computed = bytes_computed(program)
            self._convolves = convolves(program)
            self.rounds, self.switches = rounds(program), switches(program)
        except Exception:
            # Not traceable, or wrong: running it tells, with the user's own exception.
            self._world.watch()
            self._outputs_at(self._found())
            bits = DOUBLE
        kept = [node for node in self._seen if _is_output(node.value)]
        if not kept:
            kinds = ", ".join(type(node.value).__name__ for node in self._seen) or "nothing"
            raise InvalidCase(
                f"the function returned {kinds}, no floating array: let it return its value."
            )
        dtypes = [str(jnp.result_type(node.value)) for node in kept]
        for node, dtype in zip(kept, dtypes, strict=True):
            refuse_unless_known(node.suffix, dtype, CONVERT)
        left = [node for node in self._seen if not _is_output(node.value)]
        said = [f"{node.suffix}: {_kind(node.value)}, not differentiable" for node in left]
        self.skipped = list(dict.fromkeys([*self.skipped, *said]))
        self.outputs = lay_out(
            Entry((n.suffix,), n.path, np.shape(n.value), dtype)
            for n, dtype in zip(kept, dtypes, strict=True)
        )
        self.bits = min(bits, self.outputs.bits, *map(bits_of, self._dtypes))
        self._world.watch()

    def _outputs_of(self, point: Any) -> list[Any]:
        parts = _handed.cut(point, self.layout)
        if not jnp.iscomplexobj(point):  # no complex step
            pairs = zip(parts, self._dtypes, strict=True)
            parts = [part.astype(dtype) for part, dtype in pairs]
        return self._now.everything(parts)[0]

    def _phi(self, point: Any, cotangent: Any) -> Any:
        total = self._inner(self._outputs_of(point), cotangent)
        # In a complex step the imaginary part is what is asked for.
        return total if jnp.iscomplexobj(point) else jnp.real(total)

    def _inner(self, outs: Sequence[Any], cotangent: Any) -> Any:
        parts = _handed.cut(cotangent, self.outputs)
        return sum(jnp.sum(part * out) for part, out in zip(parts, outs, strict=True))

    def _points_at_once(self, size: int) -> int:
        """A function of shapes alone, so that a report can be repeated to the bit."""
        width = 8 * (size + self.outputs.size)
        fitting = min(CHUNK_BYTES // width, WORK_BYTES // max(self._computed, 1))
        wanted = max(min(2 * size, fitting, MOST), min(fitting, FEWEST), 1)
        return 1 << (int(wanted).bit_length() - 1)

    def _first_program_that_works(self) -> Callable[[Any, Any], Any]:
        """Batched if the function has batching rules, else compiled, else as Python runs it.

        One program serves all points of a check: the values of two programs may differ by rounding.
        """
        options = QUICK if self._is_wide and self.layout.size <= QUICK_BELOW else None
        # Below float64 the sum over the outputs is left to NumPy: it would round like them.
        inside = self._is_wide
        compute = self._phi if inside else lambda point, cotangent: self._outputs_of(point)
        one = jax.jit(compute, compiler_options=options)

        def summed(found: Any, cotangent: Any) -> Any:
            if inside:
                return np.asarray(found)
            rows = [
                _conj(out).reshape(-1, *leaf.shape)
                for out, leaf in zip(found, self.outputs, strict=True)
            ]
            points = zip(*rows, strict=True)
            flat = [np.concatenate([_handed.numbers(part) for part in point]) for point in points]
            return np.array(flat) @ cotangent

        def together(points: Any, cotangent: Any) -> Any:
            return summed(batched(points, cotangent), cotangent)

        def singly(points: Any, cotangent: Any) -> Any:
            found = [np.ravel(summed(one(point, cotangent), cotangent)) for point in points]
            return np.concatenate(found)

        def eagerly(points: Any, cotangent: Any) -> Any:
            values = np.empty(len(points))
            for number, point in enumerate(points):
                self._world.reset()
                found = compute(jnp.asarray(point), jnp.asarray(cotangent))
                values[number] = float(np.ravel(summed(found, cotangent))[0])
            return values

        batched = jax.jit(jax.vmap(compute, in_axes=(0, None)), compiler_options=options)
        points = np.broadcast_to(self.point, (self._chunk, self.point.size))
        for program in (together, singly):
            if program is together and self._convolves:
                self._chunk, points = 1, points[:1]
                continue
            try:
                np.asarray(program(points, np.ones(self.outputs.size)))
            except Exception:
                # no batching rule, or no tracing at all: the next program will do, or tell why not
                self._chunk = 1
                self._world.reset()
                points = points[:1]
                continue
            return program
        if self._is_traced:  # and is no more: running it tells, with the user's own exception
            self._now.everything(self._found())
        return eagerly

    def _values(self, points: Any, cotangent: Vector) -> Any:
        program = self._batching()
        chunk = self._made._chunk
        missing = -len(points) % chunk
        if missing:
            points = np.concatenate(
                [points, np.broadcast_to(self.point, (missing, self.point.size))]
            )
        chunks = points.reshape(-1, chunk, self.point.size)
        values = np.concatenate([np.asarray(program(part, cotangent)) for part in chunks])
        return values[: len(values) - missing]

    def _batching(self) -> Callable[[Any, Any], Any]:
        """The program for many points at once, compiled when it is first asked for."""
        made = self._made
        if made._program is None:
            self._world.reset()
            made._program = made._first_program_that_works()
        return made._program

    def along(self, direction: Vector, steps: Vector, start: int, cotangent: Vector) -> Vector:
        still = self._parts()
        return np.array(
            [
                self._value_at(self._moved(still, direction, step, start), cotangent)
                for step in steps
            ]
        )

    def _moved(self, still: list[Any], direction: Vector, step: float, start: int) -> list[Any]:
        """The leaves moved, one after another: no more than one of them lies in memory twice."""
        moved, stop = list(still), start + direction.size
        for number, leaf in enumerate(self.layout):
            first, last = max(leaf.start, start), min(leaf.start + leaf.size, stop)
            if first >= last:
                continue
            own = self.point[leaf.part]
            if last - first == leaf.size:
                own = displaced(own, direction[first - start : last - start], step)
            else:
                own, inside = own.copy(), slice(first - leaf.start, last - leaf.start)
                own[inside] = displaced(own[inside], direction[first - start : last - start], step)
            grid = own.reshape(leaf.grid)
            values = grid[0] + 1j * grid[1] if leaf.is_complex else grid
            values = values.astype(jnp.dtype(self._dtypes[number]), copy=False)
            moved[number] = jax.device_put(values) if leaf.size > HEAVY else values
        return moved

    @property
    def batch(self) -> int:
        return max(map(self._points_of, range(len(self.layout))))

    def _points_of(self, owner: int) -> int:
        """How many points of a leaf its own program takes at once; 1 where it has none."""
        leaf = self.layout.leaves[owner]
        if self._is_single or not self._is_wide or leaf.size < LARGE or leaf.is_complex:
            return 1
        self._batching()
        if self._made._chunk == 1:
            return 1
        return self._points_at_once(leaf.size)

    def one_by_one(self) -> None:
        self._is_single = True

    def each(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        values, owners = np.empty(len(index)), self.layout.owners(index)
        for owner in np.unique(owners):
            own = np.flatnonzero(owners == owner)
            one = self._of_leaf if len(own) >= self._points_of(owner) > 1 else self._of_all
            values[own] = one(index[own], steps[own], cotangent)
        return values

    def _of_all(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        """Points that move at one coordinate each, by the program for all points."""
        self._batching()
        if (chunk := self._made._chunk) == 1:
            still, one = self._parts(), np.ones(1)
            pairs = zip(index, steps, strict=True)
            return np.array(
                [self._value_at(self._moved(still, one, h, int(i)), cotangent) for i, h in pairs]
            )
        values, here = np.empty(len(index)), self._value_at(self._parts(), cotangent)
        for first in range(0, len(index), chunk - 1):
            part = slice(first, first + chunk - 1)
            points = np.repeat(self.point[None], 1 + len(index[part]), axis=0)
            points[1 + np.arange(len(points) - 1), index[part]] += steps[part]
            found = self._values(points, cotangent)
            # The first row is the point itself: how this program rounds is taken out.
            values[part] = here + (found[1:] - found[0])
        return values

    def _of_leaf(self, index: Positions, steps: Vector, cotangent: Vector) -> Vector:
        """Points of one leaf, by a program that batches nothing else."""
        owner = int(self.layout.owners(index[:1])[0])
        leaf, count = self.layout.leaves[owner], self._points_of(owner)
        try:
            program, values = self._made._program_of(owner), np.empty(len(index))
            here = self._value_at(self._parts(), cotangent)
            for first in range(0, len(index), count - 1):
                part = slice(first, first + count - 1)
                places, moves = np.zeros(count, np.intp), np.zeros(count)
                places[1 : 1 + len(index[part])] = index[part] - leaf.start
                moves[1 : 1 + len(index[part])] = steps[part]
                still = np.zeros(count), np.zeros(leaf.size)
                found = np.asarray(program(self.point, places, moves, *still, cotangent))
                # The first row is the point itself: how this program rounds is taken out.
                values[part] = here + (found[1 : 1 + len(index[part])] - found[0])
        except Exception:  # the program for all points will do, or tell why not
            self.one_by_one()
            return self._of_all(index, steps, cotangent)
        return values

    def batched(
        self, direction: Vector, steps: Vector, start: int, cotangent: Vector
    ) -> Vector | None:
        owner = int(self.layout.owners(np.array([start]))[0])
        count = self._points_of(owner)
        if count < len(steps):
            return None
        places, moves, wide = np.zeros(count, np.intp), np.zeros(count), np.zeros(count)
        wide[: len(steps)] = steps
        try:
            program = self._made._program_of(owner)
            found = np.asarray(program(self.point, places, moves, wide, direction, cotangent))
        except Exception:  # the program for all points will do, or tell why not
            self.one_by_one()
            return None
        return found[: len(steps)]

    def _program_of(self, owner: int) -> Callable[..., Any]:
        """phi with one leaf moved, at one place and along a direction; many points of it."""
        if owner in self._programs:
            return self._programs[owner]
        leaf = self.layout.leaves[owner]

        def moved(
            point: Any, place: Any, step: Any, wide: Any, direction: Any, cotangent: Any
        ) -> Any:
            own = point[leaf.part].at[place].add(step) + wide * direction
            parts = _handed.cut(point, self.layout)
            parts[owner] = own.reshape(leaf.shape)
            pairs = zip(parts, self._dtypes, strict=True)
            outs = self._now.everything([part.astype(dtype) for part, dtype in pairs])[0]
            return jnp.real(self._inner(outs, cotangent))

        batch = jax.jit(jax.vmap(moved, in_axes=(None, 0, 0, 0, None, None)))
        self._programs[owner] = batch
        return batch

    @property
    def can_be_complex(self) -> bool:
        return not any(leaf.is_complex for leaf in (*self.layout, *self.outputs))

    def imaginary(self, index: Positions, steps: Vector, cotangent: Vector) -> ComplexVector:
        points = np.repeat(self.point[None].astype(complex), len(index), axis=0)
        points[np.arange(len(index)), index] += 1j * steps
        with warnings.catch_warnings():
            # What casts to real numbers on its way is found out by its value.
            warnings.simplefilter("ignore")
            values: Any = self._values(points, cotangent)
        return values if np.iscomplexobj(values) else np.full(len(index), complex(np.nan))

    def gradient(self, cotangent: Vector) -> Backward:
        if self._given is not None:
            return self._given
        self._world.reset()
        return self._from_user(cotangent) if self._case.grads is not None else self._vjp(cotangent)

    def _vjp(self, cotangent: Vector) -> Backward:
        parts, cotangents = self._parts(), self._cotangents(cotangent)
        try:
            if self._is_shared:
                outs, grads = self._made._compiled_whole(parts, cotangents)[1]
            else:
                outs, grads = self._made._compiled_backward(parts, cotangents)
        except Exception:
            # Not traceable, or wrong: running it tells, with the user's own exception.
            self._world.reset()
            outs, grads = self._as_python_pulls(cotangents)
        value = _paired(outs, cotangent)
        return Backward(value, self.flat(grads), self._unread)

    def _as_python_pulls(self, cotangents: Any) -> tuple[list[Any], list[Any]]:
        """The outputs and the gradients; what a rule raises is told with what it takes to mend."""
        with rules() as told:
            try:
                return self._now.pulled(self._found(), list(map(jnp.asarray, cotangents)))
            except Exception as error:
                for text in remedies(error, told):
                    error.add_note(f"xgradcheck: {text}")
                raise

    def flat(self, grads: Sequence[Any]) -> Vector:
        """Gradients of all leaves, as JAX gives them, as one vector."""
        gradient = np.empty(self.layout.size)
        for leaf, grad in zip(self.layout, grads, strict=True):
            gradient[leaf.part] = _handed.numbers(_conj(grad))
        return gradient

    def _cotangents(self, cotangent: Vector) -> list[Any]:
        parts = zip(_handed.cut(cotangent, self.outputs), self.outputs, strict=True)
        return [np.asarray(part, jnp.dtype(leaf.dtype)) for part, leaf in parts]

    def _pulled_back(self, leaves: Any, cotangents: Any) -> Any:
        with self._apart([*leaves, *cotangents]):
            outs, pull = jax.vjp(self._outputs_at, leaves)
            return outs, pull(cotangents)[0]

    def _from_user(self, cotangent: Vector) -> Backward:
        values = [node.value for node in self._nodes]
        if self._is_moved:
            moved = _handed.cut(self.point, self.layout)
            for number, dtype, part in zip(self._numbers, self._dtypes, moved, strict=True):
                is_jax = isinstance(values[number], jax.Array)
                values[number] = (
                    jnp.asarray(part, dtype) if is_jax else part.astype(values[number].dtype)
                )
        args, kwargs = tree_util.tree_unflatten(self._structure, values)
        if not self.unit_cotangent:
            out = self._case.fn(*args, **kwargs)
            parts = map(jnp.asarray, self._cotangents(cotangent))
            shaped = tree_util.tree_map(lambda leaf: next(parts) if _is_output(leaf) else leaf, out)
            args = (shaped, *args)
        return self._read(self._case.grads(*args, **kwargs))

    def _read(self, returned: Any) -> Backward:
        return _handed.read(returned, self.layout, self._places, _conj)


def _double(value: Any) -> Any:
    """The numbers of an array of any floating dtype, bfloat16 among them, in float64."""
    array = np.asarray(value)
    wide = np.complex128 if np.iscomplexobj(array) else np.float64
    return array.astype(wide, copy=False)


def _conj(value: Any) -> Any:
    """What is paired with a flat vector without conjugation, as JAX has it: of an output u its
    inner product is Re sum(u f), of a gradient g the derivatives are Re g and -Im g.
    """
    found = _double(value)
    return np.conj(found) if np.iscomplexobj(found) else found


def _paired(outs: Sequence[Any], cotangent: Vector) -> float:
    """phi of these outputs."""
    flat = [_handed.numbers(_conj(out)) for out in outs]
    # NumPy adds up in pairs, which loses fewer digits than a scalar product.
    return float(np.sum((flat[0] if len(flat) == 1 else np.concatenate(flat)) * cotangent))


def _is_output(value: Any) -> bool:
    return is_floating(value) or isinstance(value, float | complex)


def _kind(value: Any) -> str:
    return str(value.dtype) if hasattr(value, "dtype") else type(value).__name__


@contextmanager
def _unlogged() -> Iterator[None]:
    """What callbacks raise is not logged as well: at points beside this one it is no news."""
    logger = logging.getLogger("jax._src.callback")

    def nothing(record: Any) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
