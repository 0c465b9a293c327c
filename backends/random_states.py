"""The states of generators of random numbers."""

import ctypes
import functools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .states import State, same

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
