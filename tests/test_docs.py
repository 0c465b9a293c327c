"""The pages in docs/ run, print what they say, and lead where they point."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import Block, blocks, page, rewritten, run

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALONE = set() if "TRITON_INTERPRET" in os.environ else {"recipes.md"}
"""What sets a variable that Triton reads when it is imported, unless it is set already."""
RUN, SHOWN = {"python", "console"}, {"text", "math", "yaml", "toml", "py"}
LINK = re.compile(r"\]\(([^)#\s]+\.\w+)?(?:#([\w-]+))?\)")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_block_runs_and_prints_what_the_page_shows(path: Path) -> None:
    if path.name in ALONE:
        command = [sys.executable, "-W", "error", "-m", "tests.documents", "--check", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    else:
        run(text_of(path), str(path))
    left_out = {block.package for block in blocks(text_of(path)) if block.is_left_out}
    if left_out:
        pytest.skip(f"all is right, but what needs {', '.join(map(str, left_out))} was left out")


def faults(text: str) -> list[str]:
    """What of a page would escape being run."""
    found = [f"{block.language} is no language of a page" for block in blocks(text)
             if block.language not in RUN | SHOWN]  # fmt: skip
    found += [
        f"nothing prints {block.body!r}"
        for before, block in zip([Block("", "", 0, 0), *blocks(text)], blocks(text), strict=False)
        if block.language == "text" and before.language != "python"
    ]
    found += [
        f"no reason for not running {block.body!r}"
        for block in blocks(text)
        if block.language == "py" and not re.match(r"# not run: \w", block.body)
    ]
    if text.count("```") != 2 * len(blocks(text)):
        found.append("fences have to begin a line, name a language and be closed")
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_nothing_on_a_page_escapes(path: Path) -> None:
    assert not faults(text_of(path))


def anchors(text: str) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for name, anchor in LINK.findall(text_of(path)):
        target = path.parent / name if name else path
        assert target.exists(), name
        assert not anchor or anchor in anchors(text_of(target)), f"{name}#{anchor}"


def test_every_page_is_in_the_map() -> None:
    linked = {name for name, _ in LINK.findall(text_of(ROOT / "docs" / "index.md"))}
    assert {path.name for path in PAGES} - {"index.md"} <= linked


def shown(language: str, body: str) -> str:
    return f"```{language}\n{body}```\n"


@pytest.mark.parametrize(
    "text",
    [
        shown("python", "print(1)\n") + shown("text", "2\n"),
        shown("python", "print(1)\n"),
        shown("python", "1\n") + shown("text", "1\n"),
        shown("python", "assert 1 == 2\n"),
        shown("python", "# own.py\nx = 1\n")
        + shown("python", "from own import x\nprint(x)\n")
        + shown("text", "2\n"),
        shown("python", "print('PASS  f: right\\n    x[1]: 1\\n\\nx  PASS')\n")
        + shown("text", "PASS  f: right\n    x[2]: 1\n\ny  PASS\n"),
        shown("console", "$ python -c 'print(1)'\n2\n"),
        shown("console", "$ python -c 'raise SystemExit(3)'\n$ echo $?\n0\n"),
        shown("python", "# own.py\nprint(1)\n")
        + shown("text", "1\n")
        + shown("console", "$ python own.py\n2\n"),
    ],
)
def test_a_page_that_lies_is_caught_and_mended(text: str) -> None:
    with pytest.raises(AssertionError):
        run(text, "page.md")
    if "assert" not in text:
        mended = rewritten(text, "page.md")
        assert mended != text
        run(mended, "page.md")


@pytest.mark.parametrize(
    "text",
    [
        shown("python", "print('a  b', 1.0e-12, '12 evaluations')\n")
        + shown("text", "a b 2.0e-13 95 evaluations\n"),
        shown("python", "print('PASS  f: right\\n    x[1]: 1\\n\\nx  PASS')\n")
        + shown("text", "PASS  f: right\n    x[2]: 0\n    2\n\nx  PASS\n"),
        shown("python", "# own.py\nx = 1\n") + shown("console", "$ python -c 'import own'\n"),
        shown("python", "# own.py\nx = 1\n")
        + shown("python", "import own\n")
        + shown("python", "# own.py\nx = 2\n")
        + shown("python", "import own\nprint(own.x)\n")
        + shown("text", "2\n"),
        shown("console", "$ python -c 'raise SystemExit(3)'\n$ echo $?\n3\n"),
        shown("python", "# needs no_such_package\nimport no_such_package\n"),
        shown("python", "print('took 0.25 s')\n") + shown("text", "took ... s\n"),
    ],
)
def test_a_page_that_tells_the_truth_passes(text: str) -> None:
    run(text, "page.md")


def test_only_outputs_are_rewritten() -> None:
    before = "# Title\n\n" + shown("python", "print(1)\n") + "\nBetween.\n\n"
    after = shown("python", "print(2)\nprint(3)\n") + "\n" + shown("text", "2\n") + "\nAfter.\n"
    assert rewritten(before + after, "page.md") == (
        "# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\nBetween.\n\n"
        "```python\nprint(2)\nprint(3)\n```\n\n```text\n2\n3\n```\n\nAfter.\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        shown("text", "PASS\n"),
        shown("sh", "true\n"),
        shown("py", "launch()\n"),
        "   " + shown("python", "print(1)\n"),
        "```\nPASS\n```\n",
    ],
)
def test_what_would_escape_is_told(text: str) -> None:
    assert faults(text)


def test_errors_name_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("# Title\n\n" + shown("python", "x = 0\n1 / x\n"), "page.md")
    last = caught.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 5)


def test_a_page_leaves_the_world_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    before = Path.cwd(), [*sys.path]
    text = shown("python", "# own.py\nimport os\nos.environ['COLUMNS'] = '60'\n")
    with page(text + shown("python", "import own\n"), "page.md") as opened:
        assert [printed.got for printed in opened.printed()] == ["", ""]
        assert "own" in sys.modules
    assert (Path.cwd(), sys.path, os.environ["COLUMNS"]) == (*before, "120")
    assert "own" not in sys.modules
