"""The README runs, block by block, and prints what it says it prints."""

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str) -> list[tuple[str, str]]:
    """(code, expected output) of every Python block; the output is the text block that follows."""
    found = FENCE.findall(text)
    pairs = []
    for place, (language, body) in enumerate(found):
        if language == "python":
            follower = found[place + 1] if place + 1 < len(found) else ("", "")
            pairs.append((body, follower[1] if follower[0] == "text" else ""))
    return pairs


def run(text: str) -> None:
    names: dict[str, Any] = {}
    for code, want in blocks(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(README), "exec"), names)
        # Error bars and distances are rounding: another processor has other ones.
        want = re.sub(r"± \S+|\b\d\.\de-\d\d\b|\d+ evaluations", "...", want)
        example = doctest.Example(code, want)
        if not doctest.OutputChecker().check_output(want, printed.getvalue(), FLAGS):
            raise AssertionError(
                doctest.OutputChecker().output_difference(example, printed.getvalue(), FLAGS)
            )


def test_every_block_runs_and_prints_what_the_readme_shows() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(blocks(text)) >= 10
    run(text)


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nassert 1 == 2\n```\n",
    ],
)
def test_a_readme_that_lies_is_caught(text: str) -> None:
    with pytest.raises(AssertionError):
        run(text)
