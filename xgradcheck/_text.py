"""The text of a report. Rendering reads records and computes nothing."""

import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from xgradcheck._judge import Grade, Verdict, largest_floor, percent

if TYPE_CHECKING:
    from xgradcheck._report import Element, Finding, LeafReport, ProbeReport, Report

WIDTH = 80
"""How wide a text is, unless COLUMNS says something else."""
SHOWN = 3
"""Of how many leaves the text shows the worst element."""
ROWS, LINES = 12, 12
"""How many leaves the table has, and how many findings and notes follow, unless all are wanted."""
CLOSE = (Grade.GREAT, Grade.OKAY)
STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.SKIPPED: "dim",
}


def plain(report: RenderableType) -> str:
    """A report without colours, as wide as COLUMNS says."""
    columns = os.environ.get("COLUMNS", "")
    width = max(int(columns), 60) if columns.isdecimal() else WIDTH
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(report, crop=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def printable(text: str) -> str:
    """A name may hold anything: control characters are written out, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def element_name(leaf: "LeafReport", worst: "Element") -> str:
    """``W1[2, 0]`` or ``z[1].imag``, as a reader would type it."""
    place = f"[{', '.join(map(str, worst.index))}]" if worst.index else ""
    return leaf.name + place + (f".{worst.component}" if worst.component else "")


def worst_leaves(report: "Report", count: int = SHOWN) -> "list[LeafReport]":
    """The leaves whose worst element is shown first: the wrong ones, else the undecided, else the
    one that came nearest to its allowance.
    """
    shown = sorted(
        (leaf for leaf in report.leaves.values() if leaf.worst is not None),
        key=lambda leaf: -leaf.distance,
    )
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        found = [leaf for leaf in shown if leaf.verdict is verdict and _has_element(leaf)]
        if found:
            return found[:count]
    # What is wrong or open elsewhere has no element to show here.
    return shown[:1] if report.verdict is Verdict.PASS else []


def _has_element(leaf: "LeafReport") -> bool:
    """Whether a single element was found to be what the leaf is."""
    return leaf.verdict is not Verdict.FAIL or leaf.wrong > 0


def worst_sentence(leaf: "LeafReport", is_stated: bool = False) -> str:
    """What is off, by how much, against what was allowed."""
    worst = leaf.worst
    assert worst is not None
    error = abs(worst.analytic - worst.truth)
    largest = max(abs(worst.analytic), abs(worst.truth))
    digits = _digits(error, largest)
    what = "the jvp" if leaf.mode == "forward" else "backward"
    gives = f"{element_name(leaf, worst)}: {what} gives {worst.analytic:.{digits}g}"
    if math.isnan(worst.truth):
        return gives  # which says enough: nothing was differenced there
    gives += ", "
    if is_stated:
        gives += f"expected is {worst.truth:.{digits}g}"
    elif leaf.mode not in ("reverse", "forward"):
        gives += f"the reference gives {worst.truth:.{digits}g}"
    else:
        gives += f"differences give {worst.truth:.{digits}g} ± {worst.error_bar:.1g}"
    if not error < float("inf"):
        return gives
    if largest == 0 or (leaf.verdict is Verdict.PASS and error > worst.allowed):
        return f"{gives} (zero, as far as can be seen)"
    off = percent(error / largest)
    if worst.allowed > largest:
        return f"{gives} (off by {error:.1e}, allowed {worst.allowed:.1e} beside its neighbours)"
    ratio = f"ratio {worst.analytic / worst.truth:.3g}, " if worst.analytic and worst.truth else ""
    if error < 0.005 * largest:
        ratio = ""
    return f"{gives} ({ratio}off by {off}, allowed {percent(worst.allowed / largest)})"


def _digits(error: float, largest: float) -> int:
    """As many digits as it takes to see the error."""
    if not 0 < error < float("inf") or error >= largest:
        return 6
    return min(max(6, 2 + math.ceil(-math.log10(error / largest))), 12)


def text(report: "Report", verbose: bool = False) -> RenderableType:
    """The text: what is wrong first, with its place and its cause, and no more leaves, findings and
    notes than a reader reads, unless ``verbose``.
    """
    head = Text()
    head.append(str(report.verdict), STYLES[report.verdict])
    head.append(printable(f"  {report.name}: {headline(report)}"))
    parts: list[RenderableType] = [head]
    worst = worst_leaves(report, len(report.leaves) if verbose else SHOWN)
    told = {leaf.name for leaf in worst}
    for leaf in worst:
        sentence = worst_sentence(leaf, report.is_stated)
        parts.append(Padding(Text(printable(sentence)), (0, 0, 0, 4)))
        said = causes_first(f for f in report.findings if f.leaf == leaf.name)
        lines = [f"{finding.kind}: {_of_leaf(finding)}" for finding in said]
        parts += [Padding(hanging(line), (0, 0, 0, 4)) for line in lines]
    parts += [Text(), *_table(report, verbose), Text()]
    if report.probes:
        parts += [_probes(report), Text()]
    others = [finding for finding in report.findings if finding.leaf not in told]
    parts += _listed([f"{finding.kind}: {finding.text}" for finding in others], "findings", verbose)
    parts += _listed([f"note: {note}" for note in report.notes], "notes", verbose)
    if report.skipped:
        parts.append(hanging(f"not checked: {'; '.join(report.skipped)}"))
    if report.replay:
        # On one line, whatever its length, so that it can be copied.
        again = printable(f"· again: {report.replay}")
        parts.append(Text(again, no_wrap=True, overflow="ignore"))
    parts.append(Text(_foot(report), style="dim"))
    return Group(*parts)


def _of_leaf(finding: "Finding") -> str:
    """What a finding says, below the name of its leaf."""
    for start in (f"{finding.leaf}, ", f"{finding.leaf}: "):
        if finding.text.startswith(start):
            return finding.text.removeprefix(start)
    return finding.text


def _listed(lines: list[str], what: str, verbose: bool) -> list[RenderableType]:
    """Lines with a point before each; the first ones, where not all are wanted."""
    if verbose or len(lines) <= LINES + 1:
        return [*map(hanging, lines)]
    return [*map(hanging, lines[:LINES]), hanging(f"and {len(lines) - LINES} more {what}")]


def headline(report: "Report") -> str:
    leaves = list(report.leaves.values())
    wrong = [leaf for leaf in leaves if leaf.verdict is Verdict.FAIL]
    unsure = [leaf for leaf in leaves if leaf.verdict is Verdict.INCONCLUSIVE]
    many = "leaf" if len(leaves) == 1 else "leaves"
    failed = [probe.name for probe in report.probes if probe.verdict is Verdict.FAIL]
    if any(finding.kind == "another function" for finding in report.findings):
        return "the reference is a different function"
    if wrong:
        return f"the gradient is wrong in {len(wrong)} of {len(leaves)} {many}"
    if failed:
        right = "is right here, but" if not unsure else "may be right here, but"
        if report.coverage == "none":
            right = "was not compared, and"
        probes = "the probe" if len(failed) == 1 else "the probes"
        return f"the gradient {right} {probes} {', '.join(failed)} failed"
    if report.verdict is Verdict.FAIL:
        return "the backward pass is wrong"
    if unsure:
        return f"cannot say for {len(unsure)} of {len(leaves)} {many}"
    if report.verdict is Verdict.INCONCLUSIVE:
        return "cannot say"
    held = sum(probe.verdict is Verdict.PASS for probe in report.probes)
    passed = f"; {held} probe{'s' * (held > 1)} passed" if held else ""
    if report.coverage == "none":
        return f"a surrogate, whose gradient was not compared{passed}"
    word = graded(report)
    said = f" ({word})" if report.precision == "float64" else f", {word} ({report.precision})"
    said = said.removeprefix(", -")
    errors = [row.baseline for leaf in leaves for row in leaf.rows if row.baseline is not None]
    if errors:
        return (
            f"the gradient is right in {len(leaves)} {many}, error = {max(errors):.2g} x baseline"
        )
    right = "as expected" if report.is_stated else "right"
    score = f"distance {report.distance:.1e}{said}"
    return f"the gradient is {right} in {len(leaves)} {many}, {score}{passed}"


def graded(row: "LeafReport | Report") -> str:
    """A grade; a dash where it would call rounding wrong, in what has passed below float64."""
    is_low = row.verdict is Verdict.PASS and row.precision != "float64"
    return "-" if is_low and row.grade not in CLOSE else str(row.grade)


def bare_table() -> Table:
    """A table of columns and nothing else."""
    return Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False
    )


def _rows(report: "Report", verbose: bool) -> "tuple[list[LeafReport], list[LeafReport]]":
    """The leaves that the table shows, and the others: those first that are wrong, then those in
    which least would have been seen.
    """
    leaves = list(report.leaves.values())
    if verbose or len(leaves) <= ROWS + 1:
        return leaves, []
    order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.SKIPPED]

    def weight(leaf: "LeafReport") -> tuple[int, float, float]:
        floor = leaf.floor if leaf.floor == leaf.floor else 0.0
        distance = leaf.distance if leaf.distance == leaf.distance else 0.0
        return order.index(leaf.verdict), -distance, -floor

    chosen = {leaf.name for leaf in sorted(leaves, key=weight)[:ROWS]}
    shown = [leaf for leaf in leaves if leaf.name in chosen]
    return shown, [leaf for leaf in leaves if leaf.name not in chosen]


def _rest(others: "list[LeafReport]") -> str:
    """What is said of the leaves that the table does not show."""
    counts = Counter(leaf.verdict for leaf in others)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    largest = largest_floor(leaf.floor for leaf in others)
    floor = "" if math.isnan(largest) else f", floor {largest:.0e} or less"
    return f"and {len(others)} more leaves: {verdicts}{floor}"


def _table(report: "Report", verbose: bool) -> list[RenderableType]:
    table = bare_table()
    shown, others = _rows(report, verbose)
    # Where leaves are judged more than once, the shape stands below the name.
    low = any(leaf.judged != "float64" or leaf.rows for leaf in report.leaves.values())
    table.add_column("leaf", overflow="fold", ratio=None)
    table.add_column("judged" if low else "shape", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("grade", no_wrap=True)
    table.add_column("floor", justify="right", no_wrap=True)
    table.add_column("wrong", justify="right", no_wrap=True)
    rows = [cells for leaf in shown for cells in _cells(leaf, low)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_wide = sum(widths) + 2 * (len(widths) - 1) > WIDTH
    for name, judged, verdict, *numbers, wrong in rows:
        # Of how many they are the shape tells, too.
        short = wrong.partition(" of ")[0] if is_wide else wrong
        table.add_row(Text(name), judged, Text(verdict, STYLES[Verdict(verdict)]), *numbers, short)
    return [table, Text(_rest(others), style="dim")] if others else [table]


def _cells(leaf: "LeafReport", low: bool) -> Iterator[tuple[str, ...]]:
    """What stands in the rows of one leaf."""
    shape = str(list(leaf.shape))
    for number, row in enumerate(leaf.rows or (leaf,)):
        name = [leaf.name, f"  {shape}", ""][min(number, 2)]
        yield (
            printable(name),
            row.judged if low else shape,
            str(row.verdict),
            measured(row.distance),
            _grade(row, low) if row.distance == row.distance else "-",
            measured(row.floor, 0),
            row.wrong_of,
        )


def _probes(report: "Report") -> Table:
    table = bare_table()
    table.add_column("probe", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("what has to hold", overflow="fold")
    for probe in report.probes:
        table.add_row(
            probe.name,
            Text(str(probe.verdict), STYLES[probe.verdict]),
            str(len(probe.trials)) if probe.trials else "-",
            printable(_of_probe(probe)),
        )
    return table


def _of_probe(probe: "ProbeReport") -> str:
    """What has to hold, and what could not be tried; or why nothing was."""
    if probe.reason:
        return probe.reason
    refused = ", ".join(what.partition(": ")[0] for what in probe.refused)
    return f"{probe.holds}; left out: {refused}" if refused else probe.holds


def _grade(row: "LeafReport", beside: bool) -> str:
    """The grade of one row; the precision stands ``beside`` it, or has to be said. A kernel has its
    error in units of that of its reference.
    """
    if row.baseline is not None:
        return f"{row.baseline:.2g} x"
    word = graded(row)
    plain = beside or word == "-" or row.precision == "float64"
    return word if plain else f"{word} ({row.precision})"


def measured(number: float, digits: int = 1) -> str:
    """A number with so many digits behind the point; a dash where there is none."""
    return "-" if math.isnan(number) else f"{number:.{digits}e}"


def causes_first(findings: "Iterable[Finding]") -> "list[Finding]":
    """Findings with those that say no more than that something is wrong behind all others."""
    return sorted(findings, key=lambda finding: finding.kind == "wrong gradient")


def hanging(line: str) -> RenderableType:
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(Text("·"), Text(printable(line), overflow="fold"))
    return row


def _foot(report: "Report") -> str:
    count = sum(leaf.size for leaf in report.leaves.values())
    coordinates = "coordinate" if count == 1 else "coordinates"
    return (
        f"{report.coverage} of {count} {coordinates}, {report.evaluations} evaluations, "
        f"{report.elapsed_s:.2g} s, seed {report.seed}"
    )
