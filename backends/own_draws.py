"""Whether a gradient that is handed in draws random numbers of its own, other ones than the forward
pass did: a mask that is drawn anew is another mask.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import CodeType, FrameType
from typing import Any

import numpy as np

from xgradcheck._adapters import Case
from xgradcheck._layout import Vector
from xgradcheck._tree import flatten

from .states import same
from .world import World

Returned = dict[CodeType, list[Any]]
"""What functions returned, by their code."""


def _is_given_a_generator(case: Case) -> bool:
    """Whether random numbers come from an argument: then a pass draws what it is told to."""
    values = (node.value for node in flatten((case.args, dict(case.kwargs))))
    return any(hasattr(value, "bit_generator") or hasattr(value, "get_state") for value in values)


def draws_its_own(
    case: Case,
    world: World,
    forward: Callable[[], Any],
    gradient: Callable[[], Vector],
    elsewhere: Callable[[], AbstractContextManager[None]],
    array_of: Callable[[Any], Any],
) -> bool:
    """Whether ``gradient`` depends on where the forward pass left the random numbers, and runs no
    part of it: then it draws its own.
    """
    if not world.is_drawing or _is_given_a_generator(case):
        return False

    def after(is_rewound: bool) -> Vector:
        world.reset()
        forward()
        if is_rewound:
            world.rewind()
        return gradient()

    try:
        if np.array_equal(after(is_rewound=False), after(is_rewound=True), equal_nan=True):
            return False
        world.reset()
        with _drawing(world, array_of) as here:
            forward()
        with elsewhere(), _drawing(world, array_of) as there:
            forward()
        world.reset()
        forward()
        world.rewind()
        with _drawing(world, array_of) as own:
            gradient()
    except Exception:  # in the user's words, where it is asked for in earnest
        return False
    finally:
        world.reset()
    # What returns the same wherever the leaves are draws a mask, say, and is no forward pass.
    passes = {code: out for code, out in here.items() if not same(out, there.get(code))}
    return not any(same(out, own.get(code, [])[: len(out)]) for code, out in passes.items())


@contextmanager
def _drawing(world: World, array_of: Callable[[Any], Any]) -> Iterator[Returned]:
    """Every function of Python's that draws random numbers while the context lasts, itself or in
    what it calls, with what it returned.
    """
    found: Returned = {}
    before: list[Any] = []

    def follow(frame: FrameType, event: str, returned: Any) -> None:
        if event == "call":
            before.append(world.draws())
        elif event == "return" and before and not same(before.pop(), world.draws()):
            arrays = [np.array(array_of(node.value)) for node in flatten(returned)]
            found.setdefault(frame.f_code, []).extend(arrays)

    others = sys.getprofile()
    sys.setprofile(follow)
    try:
        yield found
    finally:
        sys.setprofile(others)
