"""Rows as a table on the terminal, and as JSON beside the script that found them."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def show(title: str, rows: list[Row], width: int = 130) -> None:
    """Print rows, numbers to the right."""
    table = Table(title=title)
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(said, row.values()))
    Console(width=width).print(table)


def said(value: Any) -> str:
    """A value as a table has it."""
    if isinstance(value, float):
        return f"{value:.0f}" if 100 <= value < 1e5 else f"{value:.2g}"
    return str(value)


def write(script: str, **parts: Any) -> None:
    """Write a record beside its script."""
    Path(script).with_suffix(".json").write_text(json.dumps(parts, indent=2) + "\n")
