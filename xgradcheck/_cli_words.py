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
        return CASE_FILE.fullmatch(self.written) is not None


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


def targets(words: Sequence[str]) -> list[Target]:
    """The targets among the words, and what follows each; none where the first word is none."""
    found: list[Target] = []
    for word in words:
        is_target = TARGET.fullmatch(word) and not is_part(word)
        if is_target or CASE_FILE.fullmatch(word):
            found.append(Target(word))
        elif found:
            found[-1].arguments.append(word)
        else:
            raise InvalidCase(
                f"the first word has to be a target, file.py:function, or a case file, cases.toml "
                f"or cases.py (got {word!r})."
            )
    return found
