"""What is written for others to read: files of text, and JSON."""

import json
import os
from pathlib import Path
from typing import Any


def write(path: str | os.PathLike[str], text: str) -> None:
    """A file of text; a message may hold what no encoding has."""
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def as_json(whole: Any) -> str:
    """Plain dicts, lists, strings and numbers as JSON text."""
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False, default=str)
