"""A progress bar for checks that take long, on a terminal only."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 2.0

Tick = Callable[[int, int | None, str], None]
"""How much is done, of how much where that is known, and of what: "sweep", "certificate"."""


def _silent(done: int, total: int | None, phase: str = "") -> None:
    pass


@contextmanager
def progress(title: str) -> Iterator[Tick]:
    """A function that is told (done, total, phase); a bar appears once two seconds have gone by,
    and goes when it ends.
    """
    if not sys.stderr.isatty():
        yield _silent
        return
    # Loaded where a bar may be shown: a test run has no terminal and does not pay for it.
    from rich import progress as bars
    from rich.console import Console

    started = time.monotonic()
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    bar = bars.Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(f"checking {title}", total=None)
    shown = False

    def tick(done: int, total: int | None, phase: str = "") -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > PATIENCE_S:
            bar.start()
            shown = True
        said = f"checking {title}" + (f", {phase}" if phase else "")
        bar.update(task, completed=done, total=total, description=said)

    try:
        yield tick
    finally:
        if shown:
            bar.stop()
