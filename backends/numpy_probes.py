"""What a gradient that is handed in for NumPy has to do beside being right once: no writing to what
is not its own, fresh memory for each answer, and nothing read of memory that nobody has filled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import numpy as np

from xgradcheck import _handed
from xgradcheck._adapters import COTANGENT, Trial
from xgradcheck._layout import Vector

POISONS = {"NaN": np.nan, "10000": 1e4}


def probes(problem: Any, cotangent: Vector) -> dict[str, Callable[[], Iterator[Trial]]]:
    """The experiments that this problem allows, by the name of the probe."""
    if not problem.can_move:
        return {"purity": partial(_leaves_written_to, problem)}
    named = {"purity": _purity, "repetition": _repetition, "memory": _memory}
    return {name: partial(probe, problem, cotangent) for name, probe in named.items()}


def _leaves_written_to(problem: Any) -> Iterator[Trial]:
    for slot in problem._slots:
        fault = "is written to" if slot.name in problem.moving else ""
        yield Trial(slot.name, fault=fault)


def _purity(problem: Any, cotangent: Vector) -> Iterator[Trial]:
    found = problem.gradient(cotangent)
    yield from _leaves_written_to(problem)
    yield Trial(COTANGENT, fault="is written to" if COTANGENT in found.written else "")
    for slot, part in zip(problem._slots, found.parts, strict=True):
        if isinstance(part, np.ndarray) and isinstance(slot.found, np.ndarray):
            shared = any(np.shares_memory(part, own) for own in (slot.found, slot.work))
            fault = f"is the memory of {slot.name} itself" if shared else ""
            yield Trial(f"the gradient of {slot.name}", fault=fault)


def _repetition(problem: Any, cotangent: Vector) -> Iterator[Trial]:
    """Whether what was returned is still the same once another gradient was asked for."""
    world = problem._world
    world.reset()
    returned = problem._asked(cotangent)[0]
    # An object that keeps its gradients overwrites them each time.
    parts = problem._read(returned).parts if returned is not problem._case.wrt else ()
    first = [np.asarray(part) for part in parts if part is not None]
    before = [part.copy() for part in first]
    try:
        problem._write_all(_handed.another(problem.point))
        problem._asked(cotangent * _handed.ELSEWHERE)
    finally:
        problem._write_all(problem.point)
        # Before the world is put back, and with it what the function keeps.
        now = [part.copy() for part in first]
        world.watch()
    is_same = all(map(partial(np.array_equal, equal_nan=True), now, before))
    fault = "" if is_same else "are overwritten: hand out copies"
    yield Trial("gradients that were returned, by another call,", fault=fault)
    if world.is_drawing:
        return
    # As in training: what a call with other values has left is not put back.
    usual = problem.gradient(cotangent)
    try:
        world.reset()
        problem._write_all(_handed.another(problem.point))
        problem._asked(cotangent * _handed.ELSEWHERE)
        problem._write_all(problem.point)
        returned, value, _ = problem._asked(cotangent)
        got = problem._read(returned).gradient.copy()
    finally:
        problem._write_all(problem.point)
        world.watch()
    # One that goes on from its state is another function then.
    if value == usual.value:
        yield Trial("after a call with other values", got)


def _memory(problem: Any, cotangent: Vector) -> Iterator[Trial]:
    for what, poison in POISONS.items():
        with _poisoned(poison):
            yield Trial(f"np.empty full of {what}", problem.gradient(cotangent).gradient)


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
