"""The options of the command, one list: the parser is made of it, and so are the keys of a case."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xgradcheck._bench import SECONDS
from xgradcheck._constraints import NAMES
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import BITS
from xgradcheck._measured import FORWARD, REVERSE
from xgradcheck._probes import PROBES
from xgradcheck._stages import COVERAGES, METHODS
from xgradcheck._stated import SURROGATE

CHECK, AUDIT, BENCH = ("check",), ("audit",), ("bench",)
JUDGING = CHECK + AUDIT
ANY = JUDGING + BENCH
BACKENDS = ("numpy", "torch", "jax")
KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option, and what it may be."""

    name: str
    """In a case file and in the code; ``--min-sensitivity`` is ``min_sensitivity``."""
    verbs: tuple[str, ...]
    help: str
    kinds: tuple[type, ...] = (str,)
    """What a case file may give; the command reads text as the first of them."""
    default: Any = None
    metavar: str | None = None
    choices: tuple[Any, ...] | None = None
    is_list: bool = False
    is_function: bool = False
    """Whether it names a function, relative to the case file, which a Python one may hand over."""
    of_a_case: bool = True
    """Whether a case file may have it."""
    least: int | None = None
    wins: bool = False
    """Whether the command line has the last word even over a case's own."""

    @property
    def flag(self) -> str:
        return "-k" if self.name == "k" else "--" + self.name.replace("_", "-")

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """What is not given is absent, so that it can be told from what is given."""
        common: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS}
        common["help"] = self.help.replace("%", "%%")
        if self.kinds == (bool,):
            parser.add_argument(self.flag, action="store_true", **common)
            return
        common |= {"type": self.kinds[0], "metavar": self.metavar, "choices": self.choices}
        if self.is_list:
            common["action"] = "append"
        elif bool in self.kinds:
            common |= {"nargs": "?", "const": True}
        parser.add_argument(self.flag, **common)

    def words(self, value: Any) -> list[str]:
        """How a shell says it."""
        if value is True:
            return [self.flag]
        parts = value if self.is_list else [value]
        return [word for part in parts for word in self._said(str(part))]

    def _said(self, text: str) -> list[str]:
        # What begins like an option would be read as one.
        return [f"{self.flag}={text}"] if text.startswith("-") else [self.flag, text]

    def taken(self, value: Any, is_python: bool) -> Any:
        """The value of a case, refused unless it is one; only Python can hand over an object."""
        parts = list(value) if self.is_list and isinstance(value, list | tuple) else [value]
        for part in parts:
            if is_python and self._is_object(part):
                if self.is_list:
                    return value
                continue
            if not any(_is(part, kind) for kind in self.kinds):
                kinds = " or ".join(KINDS[kind] for kind in self.kinds)
                raise InvalidCase(f"{self.name} = {part!r} is not {kinds}.")
            self.refuse_too_small(part)
            if self.choices is not None and part not in self.choices:
                raise InvalidCase(
                    f"{self.name} = {part!r} is not one of {', '.join(map(repr, self.choices))}."
                )
        return parts if self.is_list else value

    def refuse_too_small(self, value: Any) -> None:
        if self.least is not None and value < self.least:
            raise InvalidCase(f"{self.flag} {value} is too small: give {self.least} or more.")

    def _is_object(self, value: Any) -> bool:
        if self.name == "wrt":
            return not isinstance(value, str | int | float)
        return self.is_function and not isinstance(value, str)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


OPTIONS = (
    Option(
        "inputs",
        ANY,
        "the arguments from a file, as one of the words (below)",
        metavar="FILE",
    ),
    Option("grads", JUDGING, "the gradient's function, where the framework has none",
           metavar="TARGET", is_function=True),
    Option("reference", ANY, "a plain function to compare a kernel with",
           metavar="TARGET", is_function=True),
    Option("dtype", ANY, "to compare in, with --reference; may be given more than once (the "
           "arguments' own)", choices=("float64", *sorted(BITS)), is_list=True),
    Option("backend", ANY, "where the target's file does not tell", choices=BACKENDS),
    Option("device", ANY, "where the arguments lie, as cuda or cuda:1; for PyTorch (cpu)"),
    Option("wrt", ANY, "a leaf to check: name, glob or number; may be given more than once",
           kinds=(str, int), metavar="NAME", is_list=True),
    Option("order", CHECK, "2: the second derivative as well (1)", kinds=(int,), default=1,
           choices=(1, 2)),
    Option("mode", CHECK, "what is checked; may be given twice (reverse)",
           choices=(REVERSE, FORWARD), is_list=True),
    Option("probe", AUDIT, f"may be given more than once, all if left out: {', '.join(PROBES)}",
           metavar="NAME", choices=(*PROBES,), is_list=True),
    Option("shapes", AUDIT + BENCH, "a function that makes the arguments of a size",
           metavar="TARGET", is_function=True),
    Option("batch", AUDIT, "an argument that holds samples, by name or number; may be given more "
           "than once", metavar="NAME[:AXIS]", is_list=True),
    Option("large", AUDIT, "compare samples with a launch of so many elements (2147483648)",
           kinds=(int, bool), default=False, metavar="COUNT"),
    Option("expect", AUDIT, f"what the gradient is meant to be: its function, or {SURROGATE!r}",
           metavar="TARGET", is_function=True),
    Option("strict", AUDIT, "let probes that are skipped fail", kinds=(bool,), default=False),
    Option("eps", JUDGING, "the textbook's step; chosen for each element if left out",
           kinds=(float,)),
    Option("method", JUDGING, "differences or the complex step (chosen where left out)",
           default="auto", choices=METHODS),
    Option("coverage", JUDGING, "a sweep up to 256 coordinates, directions beyond (auto)",
           default="auto", choices=COVERAGES),
    Option("budget", JUDGING, "when to stop: evaluations, as 500, or a time, as 2s",
           kinds=(str, int), wins=True),
    Option("memory", JUDGING, "what it may hold, as 4GiB (a quarter of what is free)",
           kinds=(str, int)),
    Option("constraint", JUDGING, "of every argument that satisfies it", choices=NAMES),
    Option("sensitivity", JUDGING, "print the smallest errors that this run would have caught",
           kinds=(bool,), default=False),
    Option("min_sensitivity", JUDGING, "fail where an error of that size would not have been "
           "caught: scale (if left out), element or row", kinds=(str, float),
           metavar="[KIND=]NUMBER", is_list=True),
    Option("rtol", JUDGING, "relative error allowed (1e-6)", kinds=(float,)),
    Option("atol", JUDGING, "absolute error allowed on top (0)", kinds=(float,), default=0.0),
    Option("seconds", BENCH, f"how long each is timed ({SECONDS})", kinds=(float,),
           default=SECONDS, of_a_case=False),
    Option("seed", ANY, "of the arguments' values and every other choice (0)", kinds=(int,),
           default=0, least=0, wins=True),
    Option("k", JUDGING, "only those whose name contains TEXT; =TEXT: the one that is called so",
           metavar="TEXT", of_a_case=False),
    Option("jobs", JUDGING, "how many processes share the cases (1); 0: this one, for a debugger",
           kinds=(int,), default=1, metavar="N", least=0, of_a_case=False),
    Option("verbose", JUDGING, "print all that was found out, of those that pass too",
           kinds=(bool,), default=False, of_a_case=False),
    Option("json", ANY, "write the report here too; - for standard output instead",
           metavar="PATH", of_a_case=False),
    Option("junit", JUDGING, "write XML as test runners do", metavar="PATH", of_a_case=False),
    Option("markdown", ANY, "write a table for a pull request", metavar="PATH", of_a_case=False),
    Option("html", ANY, "write a page", metavar="PATH", of_a_case=False),
)  # fmt: skip
BY_NAME = {option.name: option for option in OPTIONS}
FILES = ("json", "junit", "markdown", "html")


def of_verb(verb: str) -> tuple[Option, ...]:
    """The options of one verb."""
    return tuple(option for option in OPTIONS if verb in option.verbs)


def complete(verb: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a verb: the last layer that has it, else the default."""
    found = {option.name: option.default for option in of_verb(verb)}
    for layer in layers:
        found |= {name: value for name, value in layer.items() if name in found}
    return found


def in_words(given: Mapping[str, Any], verb: str) -> list[str]:
    """Options as a shell takes them, those that may stand in a case alone."""
    options = (option for option in of_verb(verb) if option.of_a_case and option.name in given)
    return [word for option in options for word in option.words(given[option.name])]
