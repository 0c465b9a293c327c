"""How long a call takes."""

import time
from collections.abc import Callable
from typing import Any


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
