"""``xgradcheck diff``: what changed between two reports, as text, JSON and Markdown."""

import argparse
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from xgradcheck._cli_output import refuse_unwritable, show
from xgradcheck._diff import WORSE, Difference, difference
from xgradcheck._errors import InvalidCase
from xgradcheck._markdown import code, escaped, table
from xgradcheck._outcomes import FAILED, PASSED
from xgradcheck._text import bare_table, printable
from xgradcheck._written import as_json, write

COLUMNS = ("what", "case", "before", "after")


def run_diff(options: argparse.Namespace) -> int:
    """Compare two files; the exit status."""
    if not options.factor > 1:
        raise InvalidCase(f"--factor {options.factor} is no factor: give a number above 1.")
    refuse_unwritable({"json": options.json, "markdown": options.markdown})
    found = difference(Path(options.before), Path(options.after), options.factor)
    written = as_json(found.to_dict())
    path = ""
    try:
        if (path := options.json) and path != "-":
            write(path, written + "\n")
        if path := options.markdown:
            write(path, _markdown(found))
    except OSError as error:
        raise InvalidCase(f"the difference cannot be written to {path}: {error.strerror}") from None
    if options.json == "-":
        print(written)
    else:
        show(_text(found))
    return FAILED if found.is_worse else PASSED


def _text(found: Difference) -> Group:
    head = Text(found.headline, style="bold red" if found.is_worse else "bold")
    return Group(head, Text(), _table(found)) if found.changes else Group(head)


def _table(found: Difference) -> Table:
    rows = bare_table()
    for column in COLUMNS:
        rows.add_column(column, overflow="fold")
    for change in found.changes:
        style = "red" if change.kind == WORSE else ""
        told = (change.what, change.case or "all", change.before, change.after)
        rows.add_row(*(Text(printable(part), style) for part in told))
    return rows


def _markdown(found: Difference) -> str:
    rows = [
        [
            f"**{escaped(change.what)}**" if change.kind == WORSE else escaped(change.what),
            code(change.case) if change.case else "all",
            escaped(change.before),
            escaped(change.after),
        ]
        for change in found.changes
    ]
    parts = [f"**xgradcheck diff**: {found.headline}"]
    return "\n\n".join([*parts, *([table(COLUMNS, rows)] if rows else [])]) + "\n"
