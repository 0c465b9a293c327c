"""What there is to do: the targets of the command, and the cases of its case files."""

import difflib
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from xgradcheck._cli_case_files import cases_in
from xgradcheck._cli_options import complete, in_words
from xgradcheck._cli_words import Command, NamedCase, Target, targets
from xgradcheck._errors import InvalidCase


def cases_of(command: Command) -> list[NamedCase]:
    """Everything that the command is to do, in its order, each under a name of its own."""
    written = targets(command.words)
    found: list[NamedCase] = []
    for target in written:
        if not target.is_case_file:
            found.append(_of_target(target, command, len(written) == 1))
        elif target.arguments:
            raise InvalidCase(
                f"{target.arguments[0]!r} follows the case file {target.written}, whose cases have "
                f"arguments of their own: write them there."
            )
        else:
            own = _told_apart(cases_in(target.written, command))
            names = [case.name for case in own]
            found += [
                replace(case, replay=_replay(case, names, command), title=case.name) for case in own
            ]
    return _selected(_told_apart(found), command.given.get("k"))


def _of_target(target: Target, command: Command, is_alone: bool) -> NamedCase:
    options = complete(command.verb, command.given)
    given = {**command.given, "seed": options["seed"]}
    words = [target.written, *target.arguments, *in_words(given, command.verb)]
    return NamedCase(
        name=target.written,
        verb=command.verb,
        target=target.written,
        args=target.arguments,
        kwargs={},
        options=options,
        replay=shlex.join(["xgradcheck", command.verb, *words]),
        title=None if is_alone else target.written,
    )


def _told_apart(found: list[NamedCase]) -> list[NamedCase]:
    """Two that have the same name are numbered."""
    seen: Counter[str] = Counter()
    made = []
    for case in found:
        seen[case.name] += 1
        number = seen[case.name]
        made.append(replace(case, name=f"{case.name} ({number})") if number > 1 else case)
    return made


def _selected(found: list[NamedCase], asked: str | None) -> list[NamedCase]:
    """Those whose name has this text in it; for =TEXT the one that is called so."""
    if asked is None:
        return found
    chosen = [case for case in found if _matches(case.name, asked)]
    if not chosen:
        names = [case.name for case in found]
        close = difflib.get_close_matches(asked.removeprefix("="), names, 1, 0)
        raise InvalidCase(f"-k {asked} is in no name of a case; the nearest is {close[0]!r}.")
    return chosen


def _matches(name: str, asked: str) -> bool:
    return name == asked[1:] if asked.startswith("=") else asked in name


def _replay(case: NamedCase, names: Sequence[str], command: Command) -> str:
    """The command that does one case of a file again, with what was given beside it."""
    alone = [name for name in names if _matches(name, case.name)] == [case.name]
    is_plain = alone and case.name[0] not in "=-"
    chosen = case.name if is_plain else f"={case.name}"
    given = {**command.given, "seed": case.options["seed"]}
    words = [case.source, "-k", chosen, *in_words(given, command.verb)]
    return shlex.join(["xgradcheck", command.verb, *words])
