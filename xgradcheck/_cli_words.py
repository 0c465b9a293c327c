"""The command as it was typed, and the records that are made of its words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xgradcheck._cli_inputs import is_part
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict

TARGET = re.compile(r"[^=\[\]{}()'\"]+:[A-Za-z_][\w.]*")
CASE_FILE = re.compile(r"[^=\[\]{}()'\"]+\.(toml|py)")


@dataclass(frozen=True, slots=True)
class Command:
    """The command as it was typed. It crosses to other processes, and cases do not."""

    verb: str
    words: tuple[str, ...]
    given: Mapping[str, Any]
    """The options, those alone that were given."""


@dataclass(slots=True)
class Target:
    """One target of the command line, and the arguments that follow it."""

    written: str
    arguments: list[str] = field(default_factory=list)

    @property
    def is_case_file(self) -> bool:
        return _is_case_file(self.written)


@dataclass(frozen=True, slots=True)
class NamedCase:
    """One function to check, with its arguments and every option."""

    name: str
    verb: str
    target: Any
    """As it was written, or the function itself."""
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    replay: str
    """The command that does this again."""
    expected: Verdict = Verdict.PASS
    folder: Path = Path()
    """Relative to which its files are."""
    source: str = ""
    """The case file that it is from."""
    title: str | None = None
    """What its report is called; None for what its function is called."""


def _is_case_file(word: str) -> bool:
    # A file that is there may be called anything.
    return bool(CASE_FILE.fullmatch(word)) or (
        word.lower().endswith((".toml", ".py")) and Path(word).is_file()
    )


def _is_target(word: str) -> bool:
    where, _, name = word.rpartition(":")
    is_there = where.endswith(".py") and name.isidentifier() and Path(where).is_file()
    return is_there or bool(TARGET.fullmatch(word) and not is_part(word))


def targets(words: Sequence[str]) -> list[Target]:
    """The targets among the words, and what follows each; none where the first word is none."""
    found: list[Target] = []
    for word in words:
        if _is_target(word) or _is_case_file(word):
            found.append(Target(word))
        elif found:
            found[-1].arguments.append(word)
        else:
            raise InvalidCase(
                f"the first word has to be a target, file.py:function, or a case file, cases.toml "
                f"or cases.py (got {word!r})."
            )
    return found
