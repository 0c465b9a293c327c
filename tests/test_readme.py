"""The README runs, block by block, and prints what it says it prints."""

from pathlib import Path

import pytest
from documents import followed, run

README = Path(__file__).parents[1] / "README.md"


def test_every_block_runs_and_prints_what_the_readme_shows() -> None:
    text = README.read_text(encoding="utf-8")
    assert len([*followed(text)]) >= 10
    run(text, str(README))


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nassert 1 == 2\n```\n",
    ],
)
def test_a_readme_that_lies_is_caught(text: str) -> None:
    with pytest.raises(AssertionError):
        run(text, str(README))
