"""The options of the pytest plugin, on the command line and in pytest's configuration file."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HELP = {
    "seed": "seed of every check made through the fixture gradcheck (default: 0)",
    "json": "write all reports of the run to this file",
    "html": "write a page with all reports of the run to this file",
    "strict": "let probes that an audit skipped fail",
    "budget": "when each check stops: a number of evaluations, or a time as 2s",
}
METAVARS = {"seed": "SEED", "json": "FILE", "html": "FILE", "budget": "BUDGET"}
PAGE_NEEDS = ("jinja2", "matplotlib")


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, in this order: on the command line, in the file, not at all."""

    seed: int
    budget: int | str | None
    strict: bool
    json: Path | None
    html: Path | None
    again: tuple[str, ...]
    """What the command line says of it that another run needs for the same reports."""


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("xgradcheck", "gradient checks")
    for name, said in HELP.items():
        kind: Any = None
        if name == "strict":
            group.addoption(_option(name), action="store_true", default=None, help=said)
            kind = "bool"
        else:
            group.addoption(_option(name), default=None, metavar=METAVARS[name], help=said)
            if name in ("seed", "budget") and pytest.version_tuple >= (9, 2):
                kind = int | str  # before, a number in pytest.toml has to be quoted
        parser.addini(_key(name), said, kind, None)


def options_of(config: pytest.Config, writes: bool) -> Options:
    """The options of this run, which writes files or has somebody else write them."""
    return Options(
        seed=_seed(config),
        budget=_budget(config),
        strict=bool(_given(config, "strict")[1]),
        json=_file(config, "json") if writes else None,
        html=_page(config) if writes else None,
        again=_again(config),
    )


def _option(name: str) -> str:
    return f"--xgradcheck-{name}"


def _key(name: str) -> str:
    return f"xgradcheck_{name}"


def _given(config: pytest.Config, name: str) -> tuple[str, Any]:
    """Where a value was given, and the value; None where nobody gave one."""
    if (value := config.getoption(_option(name))) is not None:
        return _option(name), value
    try:
        value = config.getini(_key(name))
    except (TypeError, ValueError) as error:  # of a pytest before 9.2
        raise pytest.UsageError(f"{_key(name)}: {error}") from error
    return _key(name), None if value == "" else value


def _seed(config: pytest.Config) -> int:
    where, value = _given(config, "seed")
    if value is None:
        return 0
    if not str(value).isdecimal():
        raise pytest.UsageError(f"{where}={value} is no seed: give an integer, 0 or more.")
    return int(value)


def _budget(config: pytest.Config) -> int | str | None:
    where, value = _given(config, "budget")
    if value is None:
        return None
    from xgradcheck._budget import budget_of  # only who has a budget asks
    from xgradcheck._errors import InvalidCase

    budget = int(value) if str(value).isdecimal() else str(value)
    try:
        budget_of(budget)
    except InvalidCase:
        raise pytest.UsageError(
            f"{where}={value} is no budget: give a number of evaluations, as 500, or a time, as 2s."
        ) from None
    return budget


def _file(config: pytest.Config, name: str) -> Path | None:
    where, value = _given(config, name)
    if value is None:
        return None
    is_typed = where == _option(name)
    path = config.invocation_params.dir if is_typed else config.rootpath
    path /= Path(value).expanduser()
    if path.is_dir():
        raise pytest.UsageError(f"{where}={value} is a directory: give the name of a file.")
    return path


def _page(config: pytest.Config) -> Path | None:
    """Where the page goes. What it needs is asked for before the tests are run, not after."""
    path = _file(config, "html")
    lacking = [] if path is None else [n for n in PAGE_NEEDS if importlib.util.find_spec(n) is None]
    if lacking:
        where = _given(config, "html")[0]
        needs = " and ".join(lacking)
        raise pytest.UsageError(f"{where} needs {needs}: pip install {' '.join(lacking)}.")
    return path


def _again(config: pytest.Config) -> tuple[str, ...]:
    budget = config.getoption(_option("budget"))
    strict = config.getoption(_option("strict"))
    said = () if budget is None else (_option("budget"), budget)
    return (*said, _option("strict")) if strict else said
