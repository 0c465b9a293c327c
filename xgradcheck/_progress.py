"""A progress bar for checks that take long, on a terminal only."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 2.0

Tick = Callable[[int, int | None, str], None]
"""How much is done, of how much where that is known, and of what: "sweep", "certificate"."""


_shown: list[str] = []
"""What a bar is shown of: a bar inside of another one is not."""


def _silent(done: int, total: int | None, phase: str = "") -> None:
    pass


@contextmanager
def progress(title: str) -> Iterator[Tick]:
    """A function that is told (done, total, phase); a bar appears once two seconds have gone by,
    and goes when it ends.
    """
    if _shown or not sys.stderr.isatty():
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


@contextmanager
def bar_of_cases(total: int) -> Iterator[Callable[[int, str], None]]:
    """A function that is told how many are done, and which one is next; a bar where there is more
    than one case, which takes the place of those of the cases.
    """
    if total < 2 or not sys.stderr.isatty():
        yield lambda done, name: None
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.markup import escape

    columns = (
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.description}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        _shown.append("cases")
        try:
            yield lambda done, name: bar.update(task, completed=done, description=escape(name))
        finally:
            _shown.remove("cases")
