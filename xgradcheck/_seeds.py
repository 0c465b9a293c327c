"""Functions that draw random numbers: the same seed gives the same, and what was dropped has no
gradient.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from xgradcheck._adapters import Case, Problem, Trial
from xgradcheck._layout import Vector
from xgradcheck._tree import argument_names, flatten

SEED, RANDOM = "seed", "random"
"""What the name of a seed holds, and that of a random state."""
MOVED = 1.5
"""What is dropped is times this, to see whether it is."""


def seeds(case: Case) -> list[str]:
    """The names of the arguments that are seeds: whole numbers that are called so."""
    names = argument_names(case.fn, len(case.args))
    given = [*zip(names, case.args, strict=True), *case.kwargs.items()]
    return [name for name, value in given if SEED in name.lower() and _is_whole(value)]


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    kind = str(getattr(value, "dtype", ""))
    return isinstance(value, int) or ("int" in kind and np.size(value) == 1)


def of_seeds(problem: Problem, case: Case, adapter: Any, usual: Vector) -> Iterator[Trial]:
    """The experiments, where there is a seed or something is drawn."""
    names = seeds(case)
    if names:
        # Nothing is put back between these two: whoever has a seed draws from nothing else.
        first, second = ([*_arrays(case, adapter)] for _ in range(2))
        same = len(first) == len(second) and all(map(np.array_equal, first, second))
        fault = "" if same else "gives other outputs"
        yield Trial(f"the same {' and '.join(names)} again", fault=fault)
    if names or any(RANDOM in name for name in problem.moving):
        yield from _of_what_was_dropped(problem, usual)


def _arrays(case: Case, adapter: Any) -> Iterator[Any]:
    for node in flatten(case.output(case.args, case.kwargs)):
        if hasattr(node.value, "dtype"):
            # The bits: where it is NaN twice it is the same.
            yield np.ascontiguousarray(adapter.array_of(node.value)).view(np.uint8)


def _of_what_was_dropped(problem: Problem, usual: Vector) -> Iterator[Trial]:
    """A gradient vanishes exactly where the forward pass dropped its argument."""
    outputs = problem.values()[0]
    for leaf in problem.layout:
        for out in problem.outputs:
            if out.shape != leaf.shape or leaf.size != out.size:
                continue
            zero = outputs[out.part] == 0
            there = np.zeros(problem.layout.size, bool)
            there[leaf.part] = zero & (problem.point[leaf.part] != 0)
            if not there.any() or there[leaf.part].all():
                continue
            with problem.at(np.where(there, MOVED * problem.point, problem.point)):
                moved = problem.values()[0]
            if np.array_equal(moved, outputs):  # all of it was dropped, and nothing else is zero
                left = np.flatnonzero(usual * there)
                names = [leaf.element(leaf.index(int(place))) for place in left[:1]]
                fault = f"has a gradient, first at {names[0]}" if names else ""
                yield Trial(f"what the forward pass dropped of {leaf.name}", fault=fault)
