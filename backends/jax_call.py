"""One call of a JAX function: its leaves, the world that it runs in, and what is known of it."""

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import Backward, Case
from xgradcheck._layout import (
    DOUBLE,
    Entry,
    Layout,
    Vector,
    bits_of,
    lay_out,
    refuse_unless_finite,
    refuse_unless_known,
)

from .jax_arguments import Pulled, arguments_of
from .jax_compiled import Programs, Setting
from .jax_draws import x64
from .jax_kept import Kept, key_of
from .jax_leaves import closed_over, is_x64
from .jax_numbers import CONVERT, conj, double
from .jax_traced import Known, Traced, learned
from .kept_states import number_states, plain_states
from .random_states import random_states
from .world import World

SHARED_BELOW = 50_000
"""Up to here one program gives values and gradients: compiling another one takes longer than a
backward pass that nobody asked for.
"""
# Larger functions are not kept: their arguments would be, too.
KEPT_BELOW = 1 << 21
_kept_programs = Kept()


class Call:
    """A function with its arguments; or, of second order, its gradients for a cotangent."""

    def __init__(self, case: Case, pulled: Pulled | None = None) -> None:
        self.case, self._is_second = case, pulled is not None
        arguments = arguments_of(case, pulled)
        leaves = arguments.leaves
        for node in leaves:
            refuse_unless_known(node.suffix, str(node.value.dtype), CONVERT)
            refuse_unless_finite(node.suffix, double(node.value))
        self.layout = lay_out(
            Entry((n.suffix,), n.path, np.shape(n.value), str(n.value.dtype)) for n in leaves
        )
        self.point: Vector = np.concatenate([_handed.numbers(double(n.value)) for n in leaves])
        traced = Traced(case, arguments, is_x64())
        # Where all is below float64 the function runs in the world of its user.
        is_wide = any(bits_of(leaf.dtype) == DOUBLE for leaf in self.layout)
        dtypes = [leaf.dtype for leaf in self.layout]
        self.setting = Setting(traced, traced.functions, dtypes, is_wide)
        self.known = Known([*arguments.left_out, *closed_over(case.fn)], Layout(()))
        self._places = _handed.places(
            [node.path for node in leaves], [node.path for node in arguments.nodes]
        )
        # Read at once, which copies.
        self.given = None if case.grads is None or callable(case.grads) else self.read(case.grads)
        states = [*random_states(), *plain_states(traced.reachable)]
        self.world = World(states, list(number_states(traced.reachable)))
        self.is_moved = False
        """Whether the leaves lie elsewhere than in the arguments."""
        with self.held():
            self.programs = self.learn()
        self.unit_cotangent = case.grads is not None and not _handed.takes_cotangent(
            case.grads, len(case.args), case.kwargs, self.known.outputs
        )

    @property
    def is_handed(self) -> bool:
        return self.case.grads is not None

    @property
    def is_shared(self) -> bool:
        """Whether one program gives values and gradients. What Python computes is not computed more
        often than it is asked for.
        """
        is_small = self.layout.size <= SHARED_BELOW
        return is_small and not self.known.calls_back and not self.is_handed

    def read(self, returned: Any) -> Backward:
        """A gradient that the user gives."""
        return _handed.read(returned, self.layout, self._places, conj)

    @contextmanager
    def held(self) -> Iterator[None]:
        with x64() if self.setting.is_wide else nullcontext(), self.world.held(), _unlogged():
            yield

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        found = self.point, self.is_moved
        try:
            self.point, self.is_moved = point, True
            yield
        finally:
            self.point, self.is_moved = found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All that is known of the function in one setting, for as long as it is in another."""
        found = self.setting, self.known, self.programs
        try:
            yield
        finally:
            self.setting, self.known, self.programs = found

    def learn(self) -> Programs:
        """Find out what there is to know of the function in this setting; its programs."""
        key = self._key()
        programs: Programs | None = _kept_programs.get(key)
        if programs is not None:
            self.known = programs.known
            return programs
        setting, parts = self.setting, self.parts()
        self.known = learned(setting.traced, setting.dtypes, parts, self.world, self.known)
        programs = self.planned()
        if self.known.is_traced and not self.world.moving:
            _kept_programs.put(key, programs)
        return programs

    def planned(self) -> Programs:
        """How points are evaluated; nothing is compiled before it is used."""
        return Programs(self.setting, self.known, self.layout, self.point, self.world)

    def _key(self) -> Hashable | None:
        """What the function is known by in a later check; None where it is not remembered."""
        if self._is_second or self.is_handed or self.layout.size > KEPT_BELOW:
            return None
        case, arguments, dtypes = self.case, self.setting.traced.arguments, self.setting.dtypes
        read = key_of(case.fn, case.loss, [node.value for node in arguments.others.values()])
        world = (is_x64(), jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        shapes = tuple(
            (leaf.name, leaf.shape, str(d)) for leaf, d in zip(self.layout, dtypes, strict=True)
        )
        numbers = tuple(arguments.numbers)
        return read and (
            read,
            arguments.structure,
            shapes,
            numbers,
            world,
            self.setting.draws_low,
        )

    def parts(self) -> list[Any]:
        """The leaves at the point, as NumPy arrays: compiled programs take them as they are."""
        parts = zip(_handed.cut(self.point, self.layout), self.setting.dtypes, strict=True)
        return [np.asarray(part, jnp.dtype(dtype)) for part, dtype in parts]

    def arrays(self) -> list[Any]:
        """The same as arrays of JAX's."""
        return [jnp.asarray(part) for part in self.parts()]

    def cotangents(self, cotangent: Vector) -> list[Any]:
        """The cotangents of the outputs, in their dtypes."""
        outputs = self.known.outputs
        parts = zip(_handed.cut(cotangent, outputs), outputs, strict=True)
        return [np.asarray(part, jnp.dtype(leaf.dtype)) for part, leaf in parts]


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
