"""What a wrong leaf was judged by, kept for pictures: numbers beside numbers, and no verdicts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xgradcheck._layout import Mask, Positions, Vector

KEPT, MARKED = 1 << 16, 1 << 24
"""Elements that are kept: a picture shows no more; and elements of a leaf of which each is marked.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """phi beside one element of a leaf, at the steps that were taken."""

    index: tuple[int, ...]
    steps: Vector
    above: Vector
    below: Vector
    analytic: float
    truth: float
    error_bar: float


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A gradient beside its truth: at the elements of which that is known, or at some of them."""

    places: Positions
    """Where they lie in the leaf, in the order of memory."""
    analytic: Vector
    truth: Vector
    error_bar: Vector
    size: int
    """How many elements the leaf has."""
    known: int
    """Of how many of them the truth is known."""
    packed: npt.NDArray[np.uint8] | None = None
    """Which elements are wrong, eight to a byte."""
    steps: Steps | None = None

    @property
    def wrong(self) -> Mask | None:
        """Which elements are wrong, those too that only a search has told of."""
        if self.packed is None:
            return None
        return np.unpackbits(self.packed, count=self.size).astype(bool)


def some_of(off: Vector, count: int) -> Positions:
    """Which elements are kept of many: a quarter those that are off by most, and others at
    random.
    """
    if off.size <= count:
        return np.arange(off.size)
    worst = np.argpartition(np.nan_to_num(off, nan=np.inf), -(count // 4))[-(count // 4) :]
    others = np.random.default_rng(0xE71D).choice(off.size, count - worst.size, replace=False)
    return np.unique(np.concatenate([worst, others]))


def evidence_of(
    places: Positions,
    gradient: Vector,
    truth: Vector,
    bar: Vector,
    wrong: Mask | None = None,
    steps: Steps | None = None,
) -> Evidence:
    """Evidence from a gradient of a whole leaf, and its truth at ``places``: those that are off by
    most, and others at random, where they are many.
    """
    known = places.size
    if known > KEPT:
        chosen = some_of(np.abs(gradient[places] - truth), KEPT)
        places, truth, bar = places[chosen], truth[chosen], bar[chosen]
    packed = None if wrong is None or wrong.size > MARKED else np.packbits(wrong)
    return Evidence(places, gradient[places], truth, bar, gradient.size, known, packed, steps)
