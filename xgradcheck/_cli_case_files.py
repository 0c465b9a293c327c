"""Case files: TOML, and Python, whose cases hold functions and arrays themselves."""

import difflib
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xgradcheck._cli_options import BY_NAME, JUDGING, Option, complete, of_verb
from xgradcheck._cli_targets import find_neighbours, module_from_file
from xgradcheck._cli_words import Command, NamedCase
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict

VERDICTS = (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)
OWN_KEYS = ("name", "target", "args", "kwargs", "verb", "expect")
"""What a case has beside the options of the command."""


def cases_in(written: str, command: Command) -> list[NamedCase]:
    """The cases of one file."""
    path = Path(written)
    if not path.is_file():
        raise InvalidCase(f"there is no file {path}: give a case file, or file.py:function.")
    if path.suffix == ".py":
        expected, defaults, tables = Verdict.PASS, *_from_python(path)
    else:
        expected, defaults, tables = _from_toml(path)
    if not tables:
        raise InvalidCase(f"{path} has no cases: {ABSENT[path.suffix]}.")
    find_neighbours(path.resolve().parent)
    found = [
        _case(table, number, path, expected, defaults, command)
        for number, table in enumerate(tables, 1)
    ]
    _refuse_same_names(tables, path)
    return found


ABSENT = {
    ".toml": "write one as [[case]], then target = \"file.py:function\" and args = [\"f64[4,8]\"]",
    ".py": "give it a list CASES of dicts, or a function cases() that yields them",
}  # fmt: skip


def _from_toml(path: Path) -> tuple[Verdict, dict[str, Any], list[Any]]:
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidCase(f"{path} is no TOML file ({error}): write cases as [[case]].") from None
    tables = whole.pop("case", [])
    if not isinstance(tables, list):
        raise InvalidCase(f"{path}: case is no list: write [[case]], in two brackets.")
    expected, whole = _expected(whole, str(path), Verdict.PASS)
    return expected, _options(whole, str(path), is_python=False, verbs=JUDGING), tables


def _from_python(path: Path) -> tuple[dict[str, Any], list[Any]]:
    module = module_from_file(path)
    made = getattr(module, "CASES", None)
    if made is None and callable(maker := getattr(module, "cases", None)):
        made = maker()
    if made is not None and not isinstance(made, Iterable):
        raise InvalidCase(f"{path}: CASES is no list: {ABSENT['.py']}.")
    return {}, list(made or ())


def _refuse_same_names(tables: Sequence[Any], path: Path) -> None:
    names = Counter(table["name"] for table in tables if "name" in table)
    for name, count in names.items():
        if count > 1:
            raise InvalidCase(f"{path}: {count} cases are called {name!r}: give each its own name.")


def _case(
    table: Any,
    number: int,
    path: Path,
    expected: Verdict,
    defaults: Mapping[str, Any],
    command: Command,
) -> NamedCase:
    """One case of a file: its own options first, then those of the command, then the file's."""
    where = f"{path}, case {number}"
    is_python = path.suffix == ".py"
    if not isinstance(table, Mapping):
        raise InvalidCase(f"{where} is a {type(table).__name__}: write a dict.")
    keys = dict(table)
    target = _target(keys, where, is_python)
    name = _text(keys, "name", where) or (target if isinstance(target, str) else _called(target))
    where = f"{path}, case {name!r}"
    verb = _text(keys, "verb", where) or command.verb
    if verb not in JUDGING:
        raise InvalidCase(f"{where}: verb = {verb!r} is not one of {', '.join(JUDGING)}.")
    args, kwargs = keys.pop("args", []), keys.pop("kwargs", {})
    if not isinstance(args, list | tuple):
        raise InvalidCase(f"{where}: args is a {type(args).__name__}: write a list.")
    if not isinstance(kwargs, Mapping):
        raise InvalidCase(f"{where}: kwargs is a {type(kwargs).__name__}: write a table by names.")
    expected, keys = _expected(keys, where, expected)
    own = _options(keys, where, is_python, (verb,))
    last = {name: value for name, value in command.given.items() if BY_NAME[name].wins}
    return NamedCase(
        name=name,
        verb=verb,
        target=target,
        args=args,
        kwargs=kwargs,
        options=complete(verb, defaults, command.given, own, last),
        replay="",
        expected=expected,
        folder=path.parent,
        source=str(path),
    )


def _target(keys: dict[str, Any], where: str, is_python: bool) -> Any:
    named = [key for key in ("target", "fn") if key in keys]
    if len(named) != 1:
        both = " and ".join(named)
        raise InvalidCase(
            f'{where} has {both or "no target"}: write target = "file.py:function"'
            f"{', or the function as fn' if is_python else ''}."
        )
    target = keys.pop(named[0])
    if not isinstance(target, str) and not (is_python and callable(target)):
        raise InvalidCase(f"{where}: {named[0]} = {target!r} is no function: name one as text.")
    return target


def _called(fn: Any) -> str:
    owner = getattr(fn, "__self__", None)
    owner = owner if isinstance(owner, type) else fn
    return str(getattr(owner, "__name__", None) or type(owner).__name__)


def _text(keys: dict[str, Any], key: str, where: str) -> str | None:
    value = keys.pop(key, None)
    if value is not None and (not isinstance(value, str) or not value):
        raise InvalidCase(f"{where}: {key} = {value!r} is no text.")
    return value


def _expected(keys: dict[str, Any], where: str, usual: Verdict) -> tuple[Verdict, dict[str, Any]]:
    """The verdict in ``expect``, and what is left of it: the gradient that an audit expects."""
    given = keys.pop("expect", [])
    parts = list(given) if isinstance(given, list | tuple) else [given]
    verdicts = [Verdict(part) for part in parts if isinstance(part, str) and part in VERDICTS]
    others = [part for part in parts if not (isinstance(part, str) and part in VERDICTS)]
    if len(verdicts) > 1 or len(others) > 1:
        raise InvalidCase(
            f"{where}: expect = {given!r} is too much: give one of {', '.join(VERDICTS)}, and of "
            f"an audit the gradient that is meant."
        )
    if others and isinstance(others[0], str) and others[0].upper() in VERDICTS:
        raise InvalidCase(f"{where}: expect = {others[0]!r} is written {others[0].upper()!r}.")
    if others:
        keys["expect"] = others[0]
    return verdicts[0] if verdicts else usual, keys


def _options(
    keys: Mapping[str, Any], where: str, is_python: bool, verbs: Sequence[str]
) -> dict[str, Any]:
    """Options under their names, refused where they are none."""
    known = {o.name: o for verb in verbs for o in of_verb(verb) if o.of_a_case}
    found = {}
    for key, value in keys.items():
        option = known.get(key.replace("-", "_")) if isinstance(key, str) else None
        if option is None:
            raise InvalidCase(f"{where}: {_unknown(str(key), known, verbs)}")
        try:
            found[option.name] = option.taken(value, is_python)
        except InvalidCase as refusal:
            raise InvalidCase(f"{where}: {refusal}") from None
    return found


def _unknown(key: str, known: Mapping[str, Option], verbs: Sequence[str]) -> str:
    other = BY_NAME.get(key.replace("-", "_"))
    if other is not None and other.of_a_case:
        verb = next(iter(other.verbs))
        return f'{key} is no option of {" and ".join(verbs)}: write verb = "{verb}".'
    if other is not None:
        return f"{key} belongs on the command line: leave it out here."
    if key in OWN_KEYS:
        return f"{key!r} belongs to one case: write it below a [[case]]."
    if key in ("cases", "CASES"):
        return "cases are written as [[case]], each."
    (near, *_) = difflib.get_close_matches(key, [*OWN_KEYS, *known], 1, 0)
    return f"{key!r} is no key of a case; the nearest is {near!r}."
