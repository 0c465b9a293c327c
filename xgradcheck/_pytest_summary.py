"""What pytest's terminal shows at the end of a run that checked gradients."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from xgradcheck._text import printable

if TYPE_CHECKING:
    from pytest import TerminalReporter

    from xgradcheck._pytest_records import Entry

NOUNS = {"check": "check", "audit": "audit", "bench": "benchmark"}
GRAVE = ("FAIL", "INCONCLUSIVE")
SHOWN = 10
"""How many reports that did not pass are listed."""
SLOWEST = 3
INDENT = 9


def summarise(
    entries: "Sequence[Entry]", complaints: Sequence[str], terminal: "TerminalReporter"
) -> None:
    """A section for reports, at most a line where pytest is quiet."""
    width = shutil.get_terminal_size().columns
    counted = counts(entries) if entries else "none was checked"
    if terminal.verbosity < 0:
        if entries and terminal.verbosity == -1:
            terminal.write_line(f"gradients: {counted}")
    else:
        terminal.write_sep("=", "gradients")
        _write(terminal, counted, width)
        _grave(entries, terminal, width)
        _weakest(entries, terminal, width)
        _slowest(entries, terminal)
    for complaint in complaints:
        terminal.write_line(complaint, red=True)


def counts(entries: "Sequence[Entry]") -> str:
    """How many, with which verdict, and what they cost."""
    verbs = Counter(entry.verb for entry in entries)
    kinds = [_many(verbs[verb], noun) for verb, noun in NOUNS.items() if verbs[verb]]
    verdicts = Counter(str(entry.report.verdict) for entry in entries)
    found = [f"{verdicts[verdict]} {verdict}" for verdict in ("PASS", *GRAVE)]
    said = ", ".join(word for word in found if not word.startswith("0 "))
    evaluations = _many(sum(entry.evaluations for entry in entries), "evaluation")
    elapsed_s = sum(entry.elapsed_s for entry in entries)
    return f"{', '.join(kinds)}: {said}; {evaluations}, {_seconds(elapsed_s)}"


def headline(entry: "Entry") -> str:
    """What the first line of the report says after its verdict and its title."""
    lines = str(replace(entry.report, name="")).splitlines()
    first = " ".join(takewhile(lambda line: line[:1].strip(), lines)).partition(": ")[2]
    title = printable(entry.report.name)
    said = first if entry.test.endswith(f"::{title}") else f"{title}: {first}"
    if entry.examples > 1:
        said += f" (the gravest of {entry.examples} examples)"
    return said if entry.failed else f"{said} (the test did not fail)"


def _grave(entries: "Sequence[Entry]", terminal: "TerminalReporter", width: int) -> None:
    grave = [entry for verdict in GRAVE for entry in entries if entry.report.verdict == verdict]
    for entry in grave[:SHOWN]:
        verdict, said = str(entry.report.verdict), headline(entry)
        terminal.write(verdict, bold=True, red=verdict == "FAIL", yellow=verdict != "FAIL")
        place = f"  {entry.test}"
        if len(f"{verdict}{place}: {said}") <= width:
            terminal.write_line(f"{place}: {said}")
        else:
            terminal.write_line(place)
            _write(terminal, said, width, " " * 4, " " * 4)
    if len(grave) > SHOWN:
        terminal.write_line(f"and {len(grave) - SHOWN} more that did not pass")


def _weakest(entries: "Sequence[Entry]", terminal: "TerminalReporter", width: int) -> None:
    floors = [(*floor, entry.test) for entry in entries for floor in entry.floors]
    if floors:
        floor, leaf, test = max(floors, key=lambda found: found[0])
        said = f"a relative error of {printable(leaf)} below {floor:.0e} would not have been seen"
        _write(terminal, f"{said} ({test})", width, f"{'weakest:':{INDENT}}", " " * INDENT)


def _slowest(entries: "Sequence[Entry]", terminal: "TerminalReporter") -> None:
    if len(entries) < 2:
        return
    label = "slowest:"
    for entry in sorted(entries, key=lambda entry: -entry.elapsed_s)[:SLOWEST]:
        terminal.write_line(f"{label:{INDENT}}{entry.elapsed_s:.2f} s  {entry.test}")
        label = ""


def _write(
    terminal: "TerminalReporter", text: str, width: int, first: str = "", others: str = ""
) -> None:
    lines = textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        terminal.write_line(line)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:.1f} s" if elapsed_s >= 1 else f"{elapsed_s:.2g} s"
