"""A progress bar for sweeps that take long, on a terminal only."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 2.0


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function that is told (done, total); a bar appears once two seconds have gone by, and goes
    when it ends.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
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

    def tick(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > PATIENCE_S:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield tick
    finally:
        if shown:
            bar.stop()
