"""How much a check may cost, and what it is going to."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xgradcheck._errors import InvalidCase

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(slots=True)
class Budget:
    """Evaluations and seconds, counted over all that a check does; what is left out once they are
    spent is known to be.
    """

    evaluations: float = float("inf")
    seconds: float = float("inf")
    spent: int = 0
    is_cut: bool = False
    """Whether anything was left out."""
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def allows(self, count: int) -> int:
        """How many of so many evaluations there is budget for."""
        allowed = min(count, max(self.evaluations - self.spent, 0))
        if self.seconds < float("inf") and self.clock() - self.started > self.seconds:
            allowed = 0
        self.is_cut |= allowed < count
        return int(allowed)


def budget_of(given: Any) -> Budget:
    """The budget as the user wrote it: a number of evaluations, or seconds like "2s".

    >>> budget_of("1.5s").seconds, budget_of(500).evaluations
    (1.5, 500)
    """
    if given is None:
        return Budget()
    if isinstance(given, int | np.integer) and not isinstance(given, bool) and given > 0:
        return Budget(evaluations=int(given))
    written = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(ms|s|min|m|h)\s*", str(given))
    try:
        seconds = float(written[1]) * UNITS[written[2]] if written else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidCase(
            f"budget={given!r} is no budget: give a number of evaluations, as 500, or a time, as "
            f"'2s'."
        )
    return Budget(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a check is expected to cost: made before the first difference, from the time that one
    run of the backward pass took.
    """

    coverage: str
    evaluations: int
    seconds: float
    bytes: int


FORWARD_SHARE = 1 / 3
"""What share of a backward pass, with its forward pass, a forward pass alone takes."""
CERTIFIED, EXTRA = 4, 50
"""Evaluations of a certificate, and those of a sweep beside two a coordinate."""
VECTORS = {"sweep": 14, "rows": 5, "projection": 5}
"""Arrays of the size of the point that are held at once, about."""


def plan(coverage: str, size: int, rows: int, backward_s: float) -> Plan:
    """What this coverage of so many coordinates, in so many rows, is going to cost."""
    evaluations = {
        "sweep": 2 * size + EXTRA,
        "rows": CERTIFIED * rows,
        "projection": CERTIFIED,
    }[coverage]
    seconds = evaluations * backward_s * FORWARD_SHARE
    return Plan(coverage, evaluations, seconds, 8 * size * VECTORS[coverage])
