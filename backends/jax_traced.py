"""The function of a call as a function of its leaves alone, and what tracing it tells."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from xgradcheck._adapters import Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import DOUBLE, Entry, Layout, bits_of, lay_out, refuse_unless_known
from xgradcheck._tree import Node

from .jax_arguments import Arguments
from .jax_leaves import is_whole, is_x64, plain
from .jax_numbers import CONVERT, is_output, kind_of
from .jax_programs import (
    bytes_computed,
    calls_back,
    convolves,
    lowest_bits,
    rounds,
    switches,
    unread,
)
from .kept_states import wide_array_states
from .reach import reachable
from .world import World


@dataclass(frozen=True, slots=True)
class Functions:
    """What is run: for leaves all outputs, floating ones first; for leaves and cotangents the
    outputs and the gradients; for leaves and tangents the tangents of the outputs.
    """

    everything: Callable[[Any], tuple[list[Any], list[Any]]]
    pulled: Callable[[Any, Any], tuple[list[Any], list[Any]]]
    pushed: Callable[[Any, Any], list[Any]]


class Traced:
    """A function of leaves, which stand in its arguments; or, of second order, its gradients."""

    gives_jax_arrays = False
    """Whether arrays of NumPy's among the arguments are given as JAX's."""

    def __init__(self, case: Case, arguments: Arguments, is_wide_outside: bool) -> None:
        self.case, self.arguments = case, arguments
        self.seen: list[Node] = []
        """What the last call returned."""
        self._is_second = len(arguments.numbers) > arguments.own
        self._is_wide_outside, self._is_apart = is_wide_outside, False

    def with_nodes(self, nodes: list[Node]) -> "Traced":
        """The same function of other arguments."""
        return Traced(self.case, replace(self.arguments, nodes=nodes), self._is_wide_outside)

    @property
    def functions(self) -> Functions:
        return Functions(self.everything_at, self.pulled_back, self.pushed_at)

    @property
    def reachable(self) -> list[Any]:
        """What the call can see."""
        case = self.case
        return reachable(case.fn, case.args, case.kwargs, case.loss, case.grads)

    def outputs_at(self, leaves: Sequence[Any]) -> list[Any]:
        """The floating outputs of the function, or their gradients."""
        with self._apart(leaves):
            return self._gradients_at(leaves) if self._is_second else self.first_outputs_at(leaves)

    def everything_at(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The floating outputs, and the other arrays among them."""
        floating = self.outputs_at(leaves)
        values = [node.value for node in self.seen if not is_output(node.value)]
        return floating, [v for v in values if isinstance(v, jax.Array | np.ndarray | np.generic)]

    def pulled_back(self, leaves: Any, cotangents: Any) -> Any:
        with self._apart([*leaves, *cotangents]):
            outs, pull = jax.vjp(self.outputs_at, leaves)
            return outs, pull(cotangents)[0]

    def pushed_at(self, leaves: Any, tangents: Any) -> list[Any]:
        with self._apart(leaves):
            pushed: list[Any] = jax.jvp(self.outputs_at, (leaves,), (tangents,))[1]
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
        states = list(wide_array_states(self.reachable))
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

    def first_outputs_at(self, leaves: Sequence[Any]) -> list[Any]:
        """The floating outputs as a list; notes on the way what the function returned."""
        arguments = self.arguments
        # JAX takes an array of whole numbers that it knows from a world of other integers for what
        # it was there.
        values = [
            node.value.copy() if is_whole(node.value) else node.value
            for node in arguments.own_nodes
        ]
        for number, leaf in zip(arguments.numbers[: arguments.own], leaves, strict=True):
            values[number] = leaf
        if self.gives_jax_arrays:
            values = [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in values]
        out = self.case.output(*arguments.tree(values))
        paths = tree_util.tree_flatten_with_path(out)[0]
        self.seen = [
            Node(tuple(map(plain, path)), "output" + tree_util.keystr(path), v) for path, v in paths
        ]
        return [node.value for node in self.seen if is_output(node.value)]

    def _gradients_at(self, leaves: Sequence[Any]) -> list[Any]:
        own = self.arguments.own
        outs, pull = jax.vjp(self.first_outputs_at, leaves[:own])
        parts = zip(leaves[own:], outs, strict=True)
        grads = pull([part.astype(out.dtype) for part, out in parts])[0]
        names = [node.suffix for node in self.arguments.leaves[:own]]
        self.seen = [
            Node((name,), f"output[{name!r}]", grad)
            for name, grad in zip(names, grads, strict=True)
        ]
        return list(grads)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a function once it was traced, or run."""

    skipped: list[str]
    outputs: Layout
    bits: int = DOUBLE
    backward_bits: int = DOUBLE
    is_traced: bool = False
    unread: frozenset[int] = frozenset()
    """The numbers of leaves that no operation reads."""
    calls_back: bool = False
    computed: int = 0
    """Bytes of all that is computed on the way."""
    convolves: bool = False
    rounds: bool = False
    switches: bool = False


def learned(
    traced: Traced, dtypes: list[str], parts: list[Any], world: World, known: Known
) -> Known:
    """What is known of a function with leaves of these dtypes, beside what was known before."""
    known = replace(known, is_traced=False)
    try:
        program = jax.make_jaxpr(traced.outputs_at)(parts).jaxpr
        known = replace(known, is_traced=True)
        bits = lowest_bits(program)
        known = replace(
            known,
            unread=unread(program),
            calls_back=calls_back(program),
            computed=bytes_computed(program),
            convolves=convolves(program),
            rounds=rounds(program),
            switches=switches(program),
        )
    except Exception:
        # Not traceable, or wrong: running it tells, with the user's own exception.
        world.watch()
        traced.outputs_at([jnp.asarray(part) for part in parts])
        bits = DOUBLE
    outputs, said = _outputs_of(traced.seen)
    skipped = list(dict.fromkeys([*known.skipped, *said]))
    bits = min(bits, outputs.bits, *map(bits_of, dtypes))
    world.watch()
    return replace(known, skipped=skipped, outputs=outputs, bits=bits)


def _outputs_of(nodes: list[Node]) -> tuple[Layout, list[str]]:
    """The outputs among what a function returned, and why the rest is left out."""
    kept = [node for node in nodes if is_output(node.value)]
    if not kept:
        kinds = ", ".join(type(node.value).__name__ for node in nodes) or "nothing"
        raise InvalidCase(
            f"the function returned {kinds}, no floating array: let it return its value."
        )
    dtypes = [str(jnp.result_type(node.value)) for node in kept]
    for node, dtype in zip(kept, dtypes, strict=True):
        refuse_unless_known(node.suffix, dtype, CONVERT)
    left = [node for node in nodes if not is_output(node.value)]
    said = [f"{node.suffix}: {kind_of(node.value)}, not differentiable" for node in left]
    pairs = zip(kept, dtypes, strict=True)
    entries = [Entry((n.suffix,), n.path, np.shape(n.value), dtype) for n, dtype in pairs]
    return lay_out(entries), said
