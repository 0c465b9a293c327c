"""How long a call takes."""

import time
from collections.abc import Callable
from typing import Any


def seconds_of(run: Callable[[], Any]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several runs."""
    return min(seconds_of(run) for _ in range(repeats))


def side_by_side(*runs: Callable[[], Any], least: int = 3, seconds: float = 1.5) -> list[float]:
    """Seconds of the fastest run of each, which take turns: at least so many, and for so long."""
    best = [float("inf")] * len(runs)
    turns, started = 0, time.perf_counter()
    while turns < least or time.perf_counter() - started < seconds:
        best = [min(own, seconds_of(run)) for own, run in zip(best, runs, strict=True)]
        turns += 1
    return best
