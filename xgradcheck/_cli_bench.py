"""``xgradcheck bench``: implementations of one function, timed where they are right."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xgradcheck._bench import bench
from xgradcheck._bench_report import BenchReport
from xgradcheck._cli_arguments import arguments
from xgradcheck._cli_options import complete
from xgradcheck._cli_output import complain, show
from xgradcheck._cli_run import leaves, traceback_of
from xgradcheck._cli_targets import backend_of, load, named
from xgradcheck._cli_words import Command, Target, targets
from xgradcheck._errors import InvalidCase
from xgradcheck._outcomes import MISUSE, STATUS
from xgradcheck._written import write

HERE = Path()


def run_bench(command: Command) -> int:
    """Time the targets, print the table and write it; the exit status."""
    options = complete(command.verb, command.given)
    try:
        report = _timed(targets(command.words), options)
        _write(report, options)
    except InvalidCase as refusal:
        complain(str(refusal))
        return MISUSE
    except Exception as error:  # what makes the arguments: show where, in the user's files
        print(traceback_of(error), file=sys.stderr)
        return MISUSE
    if options["json"] == "-":
        print(report.to_json())
    else:
        show(report)
    return STATUS[report.verdict]


def _write(report: BenchReport, options: Mapping[str, Any]) -> None:
    path = None
    try:
        if path := options["html"]:
            report.to_html(path)
        if path := options["markdown"]:
            from xgradcheck._markdown import markdown_of_bench  # loaded where it is asked for

            write(path, markdown_of_bench(report))
        if options["json"] != "-" and (path := options["json"]):
            report.to_json(path)
    except OSError as error:
        raise InvalidCase(f"the report cannot be written to {path}: {error.strerror}.") from None


def _timed(written: list[Target], options: Mapping[str, Any]) -> BenchReport:
    """What comes of the targets, which share the arguments behind the last of them."""
    *others, last = written
    if any(target.arguments for target in others):
        raise InvalidCase(
            "the arguments follow the last target: all implementations take the same."
        )
    if files := [target.written for target in written if target.is_case_file]:
        raise InvalidCase(f"{files[0]} is a case file, and bench takes targets: file.py:function.")
    loaded = [(target.written, *load(target.written, HERE)) for target in written]
    made: dict[str, Any] = {}
    for name, found, _ in loaded:
        short = name.rpartition(":")[2]
        made |= found if isinstance(found, Mapping) else {name if short in made else short: found}
    first = next(iter(made.values()), None)
    backend = options["backend"] or backend_of(first, loaded[0][2], loaded[0][0], False)
    seed = options["seed"]
    inputs, device = options["inputs"], options["device"]
    args, kwargs = arguments(last.arguments, {}, inputs, first, backend, seed, HERE, device)
    return bench(
        made,
        *args,
        kwargs=kwargs,
        reference=named(options["reference"], HERE),
        dtypes=options["dtype"],
        shapes=named(options["shapes"], HERE),
        wrt=leaves(options["wrt"]),
        seconds=options["seconds"],
        seed=seed,
        backend=backend,
    )
