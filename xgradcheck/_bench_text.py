"""The table of a benchmark. Rendering reads records and computes nothing."""

import math
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from xgradcheck._judge import Verdict
from xgradcheck._text import STYLES, bare_table, hanging, printable

if TYPE_CHECKING:
    from xgradcheck._bench_report import BenchRecord, BenchReport, Times

COLUMNS = ("", "verdict", "error", "forward", "backward", "both", "beside", "memory")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def text(report: "BenchReport") -> RenderableType:
    head = Text()
    head.append(str(report.verdict), STYLES[report.verdict])
    head.append(printable(f"  {report.name}: {headline(report)}"))
    table = bare_table()
    table.padding = (0, 1, 0, 0)
    for number, column in enumerate(COLUMNS):
        right = column in COLUMNS[2:]
        table.add_column(
            column,
            justify="right" if right else "left",
            no_wrap=number > 0,
            overflow="fold",
            min_width=12 if number == 0 else None,
        )
    place = ""
    for record in report.records:
        if record.place != place:
            place = record.place
            table.add_row(Text(printable(place), style="bold"))
        table.add_row(*_row(report, record))
    said = [f"{r.name} {r.place}: {r.reason}" for r in report.records if r.reason]
    said += [f"note: {note}" for note in report.notes]
    foot = Text(f"{report.device}, {report.elapsed_s:.2g} s, seed {report.seed}", style="dim")
    return Group(head, Text(), table, Text(), *map(hanging, said), foot)


def _row(report: "BenchReport", record: "BenchRecord") -> list[RenderableType]:
    fastest = report.fastest(record.dtype, record.shape)
    is_fastest = record is fastest
    name = Text(printable(f"  {record.name}"), style="bold green" if is_fastest else "")
    return [
        name,
        Text(str(record.verdict), STYLES[record.verdict]),
        error(record),
        median(record.forward),
        median(record.backward),
        times(record.both),
        beside(record, fastest),
        memory(record.peak_bytes),
    ]


def headline(report: "BenchReport") -> str:
    """How many are right."""
    names = dict.fromkeys(record.name for record in report.records)
    wrong = {record.name for record in report.records if record.verdict is not Verdict.PASS}
    many = "implementation is" if len(names) == 1 else "implementations are"
    return f"{len(names) - len(wrong)} of {len(names)} {many} right"


def error(record: "BenchRecord") -> str:
    """The error beside that of the reference."""
    if record.error is None:
        return "-"
    return f"{record.error:.2g} x" if record.error < 1000 else "> 999 x"


def median(own: "Times | None") -> str:
    """A median alone: 1.23 ms."""
    if own is None:
        return "-"
    middle, _, unit = _parts(own)
    return f"{middle} {unit}"


def times(own: "Times | None") -> str:
    """A median with half of the distance between the quartiles: 1.23 ±0.04 ms."""
    if own is None:
        return "-"
    middle, spread, unit = _parts(own)
    return f"{middle} ±{spread} {unit}"


def _parts(own: "Times") -> tuple[str, str, str]:
    size, unit = next((u for u in UNITS if own.median >= u[0]), UNITS[-1])
    middle, spread = own.median / size, (own.upper - own.lower) / 2 / size
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f}", f"{spread:.{digits}f}", unit


def beside(record: "BenchRecord", fastest: "BenchRecord | None") -> str:
    """How many times as long as the fastest one it takes."""
    if record is fastest and fastest is not None:
        return "fastest"
    if record.both is None or fastest is None or fastest.both is None:
        return "-"
    ratio = record.both.median / fastest.both.median
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.3g} x"


def memory(count: int | None) -> str:
    """Bytes as a person writes them."""
    if count is None:
        return "-"
    power = min(int(math.log2(max(count, 1)) // 10), 3)
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
