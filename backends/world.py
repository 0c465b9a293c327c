"""The user's world while a function is evaluated many times: what it may change, held still and
put back.

Nothing is restored that did not move: every state is compared once after the first evaluation, and
only those that the function changed are reset before each of the following ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xgradcheck._layout import Vector
from xgradcheck._tree import flatten

from .states import Contents, State, is_array, same


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
                arrays = (n.value for n in flatten(now) if is_array(n.value))
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
