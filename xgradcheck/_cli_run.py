"""One case, from its words to what became of it."""

import os
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from xgradcheck._adapters import Case
from xgradcheck._audit import ALL_PROBES, audit
from xgradcheck._check import check
from xgradcheck._cli_arguments import arguments
from xgradcheck._cli_targets import backend_of, load, named, owner_of, refuse_part
from xgradcheck._cli_words import NamedCase
from xgradcheck._errors import InvalidCase
from xgradcheck._measured import REVERSE
from xgradcheck._outcomes import RAISED, REFUSED, Outcome
from xgradcheck._report import Report
from xgradcheck._sensitivity import limits, missed
from xgradcheck._stated import SURROGATE


def outcome_of(case: NamedCase) -> Outcome:
    """What becomes of one case; nothing that its function raises gets any further."""
    started, here = time.perf_counter(), os.getcwd()
    found = Outcome(case.name, expected=case.expected)
    try:
        asked = limits(map(str, case.options["min_sensitivity"] or ()))
        report = replace(_report(case), replay=case.replay)
        said = missed(report, asked) if report else []
        found = replace(found, report=report, missed=tuple(said))
    except InvalidCase as refusal:
        found = replace(found, fault=REFUSED, error=str(refusal))
    except (Exception, SystemExit) as error:  # the user's: show where, in the user's files
        found = replace(found, fault=RAISED, error=traceback_of(error))
    finally:
        os.chdir(here)
    return replace(found, elapsed_s=time.perf_counter() - started)


def traceback_of(error: BaseException) -> str:
    """The traceback, from the first frame on that is not ours; all of it where there is none, but
    for a call that Python itself refuses, and a file that it cannot read.
    """
    frame, last = error.__traceback__, ""
    while frame is not None and _is_ours(frame):
        last = frame.tb_frame.f_code.co_qualname
        frame = frame.tb_next
    is_refused = isinstance(error, TypeError) and last == Case.output.__qualname__
    if frame is None and (is_refused or isinstance(error, SyntaxError)):
        return "".join(traceback.format_exception_only(error)).rstrip()
    shown = error if frame is None else error.with_traceback(frame)
    return "".join(traceback.format_exception(shown)).rstrip()


def _is_ours(frame: TracebackType) -> bool:
    name = str(frame.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in ("xgradcheck", "importlib")


def _report(case: NamedCase) -> Report:
    options, folder = case.options, case.folder
    is_named = isinstance(case.target, str)
    fn, module = load(case.target, folder) if is_named else (case.target, None)
    grads = named(options["grads"], folder)
    backend = (
        options["backend"]
        or _owner(case, fn, grads)
        or backend_of(fn, module, case.name, grads is not None)
    )
    if backend == "numpy" and grads is None:
        raise InvalidCase(
            f"{case.name} imports neither torch nor jax, and NumPy has no backward pass: name the "
            f"gradient's function with --grads file.py:function, or the framework with --backend."
        )
    inputs, seed, device = options["inputs"], options["seed"], options["device"]
    args, kwargs = arguments(case.args, case.kwargs, inputs, fn, backend, seed, folder, device)
    if is_named:
        refuse_part(fn, case.target, len(args) + len(kwargs))
    run: Callable[..., Report] = audit if case.verb == "audit" else check
    budget = options["budget"]
    return run(
        fn,
        *args,
        **_of_verb(case),
        kwargs=kwargs,
        wrt=leaves(options["wrt"]),
        grads=grads,
        reference=named(options["reference"], folder),
        dtypes=options["dtype"],
        constraint=options["constraint"],
        coverage=options["coverage"],
        method=options["method"],
        eps=options["eps"],
        rtol=options["rtol"],
        atol=options["atol"],
        budget=int(budget) if isinstance(budget, str) and budget.isdecimal() else budget,
        memory=options["memory"],
        seed=options["seed"],
        name=case.title,
        backend=backend,
        raise_exception=False,
    )


def _owner(case: NamedCase, fn: Any, grads: Any) -> str | None:
    """The framework of arrays that a Python case brings along; words bring none."""
    return owner_of(Case(fn, (*case.args,), dict(case.kwargs), case.options["wrt"], None, grads))


def leaves(asked: Any) -> Any:
    """The leaves that were asked for: numbers of arguments are numbers."""
    if not isinstance(asked, list) or not all(isinstance(word, str | int) for word in asked):
        return asked
    return [
        int(w) if isinstance(w, str) and re.fullmatch(r"-?\d+", w) else w for w in asked
    ] or None


def _of_verb(case: NamedCase) -> dict[str, Any]:
    """The options that only one verb has."""
    options = case.options
    if case.verb == "audit":
        expect = options["expect"]
        return {
            "probes": options["probe"] or ALL_PROBES,
            "shapes": named(options["shapes"], case.folder),
            "batch": _batch(options["batch"]) if options["batch"] else None,
            "large": options["large"],
            "expect": expect if expect == SURROGATE else named(expect, case.folder),
            "strict": options["strict"],
        }
    return {"order": options["order"], "modes": options["mode"] or (REVERSE,)}


def _batch(written: Sequence[str]) -> dict[str | int, int]:
    """Batch axes as ``name:axis`` means them, or ``name`` for the first."""
    axes: dict[str | int, int] = {}
    for word in written:
        name, _, axis = word.partition(":")
        if axis and not axis.isdecimal():
            raise InvalidCase(f"--batch {word} is no batch axis: write NAME, or NAME:AXIS.")
        axes[int(name) if name.isdecimal() else name] = int(axis or 0)
    return axes
