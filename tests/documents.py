"""Documents that run: what their blocks print has to be what stands below them.

A ``python`` block is executed, in order with the others of its page, in one namespace and in a
folder of the page's own; what it prints is the ``text`` block that follows. In a ``console`` block
each line that begins with ``$ `` is run in that folder, and its output follows. The first line of a
block may say more, where readers see it:

    # ops.py                    written to that file as well
    # needs triton              left out where that package is not installed
    # ops.py, needs triton      both
    # not run: needs a GPU      of a ``py`` block, which is not run

To have all outputs of some pages rewritten by what is really printed:

    python -m tests.documents docs/*.md README.md
"""

import argparse
import contextlib
import doctest
import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"# (?:(?P<file>[\w./-]+\.\w+)(?:, )?)?(?:needs (?P<package>\w+))?\n")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Error bars, distances, evaluations and last digits come from rounding: another processor has other
# ones. So does the element that comes nearest to its allowance, which stands below a PASS.
ROUNDED = {
    re.compile(r"± ?\S+|\b\d\.\de-\d\d\b|\d+\.\d{8,}|\d+ evaluations"): "...",
    re.compile(r"(?m)^(PASS  .*\n(?:\S.*\n)?)(?: {4}.*\n)+"): r"\1...\n",
}
# Every run takes another time: what is written as seconds, by pytest, in a table of cases.
TIMES = {
    re.compile(r"\b\d[\d.e+-]* s\b"): "... s",
    re.compile(r"\bin \d+\.\d+s\b"): "in ...s",
    re.compile(r"(?m)^((?:PASS|FAIL|INCONCLUSIVE)\b.* )\d+\.\d\d(?=$|  )"): r"\1...",
}


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences."""

    language: str
    body: str
    start: int
    end: int
    """Where the body lies in the page."""

    @property
    def file(self) -> str | None:
        """The file that it is written to."""
        found = TITLE.match(self.body)
        return found["file"] if found else None

    @property
    def package(self) -> str | None:
        """The package without which it is left out."""
        found = TITLE.match(self.body)
        return found["package"] if found else None

    @property
    def is_left_out(self) -> bool:
        """Whether it cannot be run here."""
        return self.package is not None and importlib.util.find_spec(self.package) is None


@dataclass(frozen=True, slots=True)
class Printed:
    """What a block prints, and what the page says that it does."""

    said: str
    got: str
    start: int
    end: int
    """Which part of the page gives way to ``put`` where that is not the same."""
    put: str

    @property
    def difference(self) -> str:
        """How both differ; nothing where they do not."""
        want = self.said
        for digits, written in ROUNDED.items():
            want = digits.sub(written, want)
        checker = doctest.OutputChecker()
        if checker.check_output(want, self.got, FLAGS):
            return ""
        return checker.output_difference(doctest.Example("", want), self.got, FLAGS)


def blocks(text: str) -> list[Block]:
    """All blocks of a page, in order."""
    return [Block(m[1], m[2], m.start(2), m.end(2)) for m in FENCE.finditer(text)]


def followed(text: str) -> Iterator[tuple[Block, Block | None]]:
    """Each block that is run, and the text block that follows it."""
    found = blocks(text)
    for block, after in zip_longest(found, found[1:]):
        if block.language in ("python", "console"):
            yield block, after if after and after.language == "text" else None


@dataclass(slots=True)
class Page:
    """A page that is being run, in a folder of its own."""

    text: str
    name: str
    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    status: int = 0

    def printed(self) -> Iterator[Printed]:
        """Run all blocks."""
        for block in blocks(self.text):
            if block.file and block.language != "python" and not block.is_left_out:
                self.write(block)
        for block, output in followed(self.text):
            if block.is_left_out:
                continue
            if block.language == "console":
                said = self.ran(block.body)
                yield Printed(block.body, said, block.start, block.end, said)
                continue
            if block.file:
                self.write(block)
            got, said = self.executed(block), output.body if output else ""
            fence = block.end + len("```")
            if output is None:
                yield Printed(said, got, fence, fence, f"\n\n```text\n{got}```")
            elif got:
                yield Printed(said, got, output.start, output.end, got)
            else:
                yield Printed(said, got, fence, output.end + len("```"), "")

    def write(self, block: Block) -> None:
        """Write a block to its file. Where there was one, what was imported from the folder is
        imported anew.
        """
        assert block.file is not None
        path = self.folder / block.file
        if path.exists():
            self.forget()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.body, encoding="utf-8")
        importlib.invalidate_caches()

    def forget(self) -> None:
        """Have no module of the folder imported."""
        for name, module in [*sys.modules.items()]:
            if str(getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                del sys.modules[name]

    def executed(self, block: Block) -> str:
        """What a Python block prints. Its lines have the numbers that they have in the page."""
        code = "\n" * self.text.count("\n", 0, block.start) + block.body
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, self.name, "exec"), self.names)
        return self.lasting(printed.getvalue())

    def ran(self, body: str) -> str:
        """What commands print, below each."""
        shown = []
        for line in body.splitlines():
            if line.startswith("$ "):
                # So that `echo $?` tells of the command before it.
                command = f"(exit {self.status}); {line.removeprefix('$ ')}"
                done = subprocess.run(
                    command,
                    shell=True,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=120,
                )
                self.status = done.returncode
                shown.append(f"{line}\n{self.lasting(done.stdout)}")
        return "".join(shown)

    def lasting(self, output: str) -> str:
        """An output without what is another one in each run."""
        lines = [
            line.rstrip() for line in output.replace(f"{self.folder}{os.sep}", "").splitlines()
        ]
        text = "\n".join(lines).rstrip("\n")
        for time, written in TIMES.items():
            text = time.sub(written, text)
        return f"{text}\n" if text else ""


@contextlib.contextmanager
def page(text: str, name: str) -> Iterator[Page]:
    """A page that can be run. Afterwards environment, folder and imports are as before."""
    environment, path = {**os.environ}, [*sys.path]
    with tempfile.TemporaryDirectory(prefix="xgradcheck-docs-") as written:
        folder = Path(written).resolve()
        for key in [key for key in os.environ if key.startswith(("PYTEST_", "FORCE_COLOR"))]:
            del os.environ[key]
        scripts = str(Path(sys.executable).parent)
        os.environ |= {
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "COLUMNS": "80",
            "NO_COLOR": "1",
            # A file that is written twice in one second may be taken for the one compiled before.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        sys.path.insert(0, str(folder))
        own = Page(text, name, folder)
        try:
            with contextlib.chdir(folder):
                yield own
        finally:
            own.forget()
            sys.path[:] = path
            os.environ.clear()
            os.environ |= environment


def run(text: str, name: str) -> None:
    """Raise unless a page prints what it says."""
    with page(text, name) as own:
        for printed in own.printed():
            if printed.difference:
                line = text.count("\n", 0, printed.start) + 1
                raise AssertionError(f"{name}, line {line}:\n{printed.difference}")


def rewritten(text: str, name: str) -> str:
    """The page with what it really prints."""
    with page(text, name) as own:
        found = [*own.printed()]
    for printed in reversed(found):
        if printed.said != printed.got:
            text = text[: printed.start] + printed.put + text[printed.end :]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Rewrite the outputs in pages that run.")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    # As the tests have it: the arrays are small, and all of them on the CPU.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if len(options.pages) > 1:
        # What one page imports or registers is nothing that another one has.
        command = [sys.executable, "-m", "tests.documents", *["--check"] * options.check]
        return max([subprocess.run([*command, str(path)]).returncode for path in options.pages])
    path = options.pages[0].resolve()
    text = path.read_text(encoding="utf-8")
    if options.check:
        run(text, str(path))
    elif (new := rewritten(text, str(path))) != text:
        path.write_text(new, encoding="utf-8")
        print(f"{options.pages[0]}: outputs rewritten")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
