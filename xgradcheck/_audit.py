"""The verb ``audit``: a check, and every probe that applies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from xgradcheck._adapters import Case, Problem, Trial, claim
from xgradcheck._errors import InvalidCase, short
from xgradcheck._judge import Verdict
from xgradcheck._kernel import KERNEL, beside_any
from xgradcheck._measured import FORWARD
from xgradcheck._memory import memory_of
from xgradcheck._probes import (
    CORE,
    NOTHING,
    PROBES,
    Usual,
    judged,
    trials,
    varied,
)
from xgradcheck._progress import progress
from xgradcheck._report import Finding, ProbeReport, Report
from xgradcheck._residuals import whole
from xgradcheck._seeds import of_seeds
from xgradcheck._stages import cotangent_of, materialised, report_on, title_of
from xgradcheck._stated import stated_on
from xgradcheck._variants import FORMS, VARIANTS, is_resolved

if TYPE_CHECKING:
    from xgradcheck._slices import Batch

ALL_PROBES = "all"
TANGENTS = 2000
"""Of so many coordinates tangents are asked for one by one."""
REFUSE = "a backward pass that is not meant to be differentiated has to refuse it"
DIFFERENCED = ("second order", "forward mode")
"""Probes that make differences, and nothing else."""
ANOTHER = "its gradient is not meant to be that of the function"


def audit(
    fn: Callable[..., Any],
    *args: Any,
    probes: str | Sequence[str] = ALL_PROBES,
    shapes: Callable[[int], tuple[Any, ...]] | Mapping[Any, tuple[Any, ...]] | None = None,
    batch: "Batch | None" = None,
    large: bool | int = False,
    expect: Any = None,
    strict: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    loss: Callable[[Any], Any] | None = None,
    grads: Any = None,
    seed: int = 0,
    name: str | None = None,
    backend: str | None = None,
    raise_exception: bool = True,
    **options: Any,
) -> Report:
    """Raise unless the backward pass of ``fn`` is right and keeps its contract.

    >>> import torch
    >>> x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    >>> report = audit(torch.tanh, x)
    >>> report.verdict, [probe.name for probe in report.probes][:3]
    (<Verdict.PASS: 'PASS'>, ['layout', 'cotangents', 'form'])

    ``check`` sees whether the numbers are right at one point. Most mistakes of real backward passes
    need something else to vary: the memory layout of a cotangent, which gradients are wanted, what
    was called before. Each probe varies one such thing and compares with the usual run.

    Parameters
    ----------
    fn, *args, kwargs, wrt, loss, grads, seed, name, backend, raise_exception, **options
        As in ``check``.
    probes
        ``"all"``, one name or several: layout, cotangents, form, purity, repetition, subsets,
        aliasing, memory, seeds, transforms, opcheck, dtypes, optional, values, shapes, slices,
        "second order", "forward mode".
    shapes
        Other arguments to check: a function of a size that returns them as a tuple, called with
        sizes around those of blocks; or a dict of such tuples.
    batch
        Arguments whose samples do not depend on each other, by name or number, along axis 0; a dict
        gives other axes. The batch is compared with parts of it.
    large
        Compare a few samples with a launch of so many elements too; ``True`` is 2**31.
    expect
        What the gradient is meant to be, where that is not the gradient of ``fn``: a gradient in
        the form of ``grads``, as of a straight-through estimator; or ``"surrogate"``, which is
        compared with nothing. The report says so.
    strict
        Let probes that were skipped fail.

    Raises
    ------
    GradientMismatch, GradientInconclusive, InvalidCase
        As in ``check``; a probe that fails is a mismatch.

    ``report.probes`` holds a verdict for each probe, what was tried, and what was found. Traps: a
    probe compares with the usual run, so that a gradient that is wrong everywhere in the same way
    is left to the check. The second order is differenced, which takes as long as the check again.
    """
    __tracebackhide__ = True
    title = name or title_of(fn)
    wrt = materialised(wrt)
    options |= {"kwargs": kwargs, "wrt": wrt, "loss": loss, "grads": grads}
    options |= {"seed": seed, "backend": backend}
    try:
        chosen = _chosen(probes)
        if large and batch is None:
            raise InvalidCase("large compares samples: name the arguments that hold them in batch.")
        if expect is not None and options.get("reference") is not None:
            raise InvalidCase(
                "expect= says what the gradient is meant to be, and so does reference=: leave one "
                "of them out."
            )
        if expect is None:
            checked: Checked = partial(report_on, fn, title=title)
        else:
            checked = partial(stated_on, fn, title=title, expect=expect)
        # With its reference once: probes vary what is around it.
        beside = {name: options.pop(name) for name in KERNEL if name in options}
        report = beside_any(checked, fn, args, title, **options, **beside)
        case = whole(Case(fn, args, dict(kwargs or {}), wrt, loss, grads))
        adapter = claim(case, backend)
        found = _probed(case, adapter, seed, title, [name for name in chosen if name not in CORE])
        for probe in [name for name in CORE if name in chosen]:
            if probe == "slices":
                limit = memory_of(options.get("memory"))
                found.append(_sliced(case, adapter, batch, large, seed, limit))
            elif expect is not None and (probe in DIFFERENCED or not callable(expect)):
                found.append(_skipped(probe, ANOTHER))
            elif probe in VARIANTS:
                found.append(_varied(probe, case, adapter, shapes, checked, options))
            else:
                found.append(_differenced(probe, report, partial(checked, args), options))
    except InvalidCase as refusal:
        raise InvalidCase(f"{title}: {refusal}") from None
    report = _with(report, found, strict)
    if raise_exception and (verdict := report.error()) is not None:
        raise verdict
    return report


def _chosen(probes: Any) -> list[str]:
    """The names of these probes, in the order of the table."""
    if isinstance(probes, str) and probes == ALL_PROBES:
        return [*PROBES]
    asked = [probes] if isinstance(probes, str) else list(probes)
    for name in asked:
        if name not in PROBES:
            raise InvalidCase(f"there is no probe {name!r}; the probes are {', '.join(PROBES)}.")
    return [name for name in PROBES if name in asked]


def _skipped(probe: str, reason: str) -> ProbeReport:
    return ProbeReport(probe, Verdict.SKIPPED, PROBES[probe], reason=reason)


def _probed(
    case: Case, adapter: Any, seed: int, title: str, chosen: list[str]
) -> list[ProbeReport]:
    """What experiments on one problem come to."""
    if not chosen:
        return []
    problem: Problem = adapter.bind(case)
    cotangent = cotangent_of(problem, seed)
    found = []
    with problem.held(), progress(title) as tick, np.errstate(all="ignore"):
        probes: Mapping[str, Callable[[], Iterator[Trial]]] = (
            adapter.probes(problem, cotangent) if hasattr(adapter, "probes") else {}
        )
        usual = Usual.of(problem, cotangent)
        for number, name in enumerate(chosen):
            tick(number, len(chosen), name)
            own = probes[name]() if name in probes else ()
            if name == "seeds":
                own = of_seeds(problem, case, adapter, usual.gradient)
            found.append(judged(name, chain(trials(name, usual, cotangent), own), usual))
    return found


def _sliced(
    case: Case,
    adapter: Any,
    batch: "Batch | None",
    large: bool | int,
    seed: int,
    memory: int | None,
) -> ProbeReport:
    """What a batch comes to beside parts of it."""
    if batch is None or (case.grads is not None and not callable(case.grads)):
        return _skipped("slices", NOTHING["slices"])
    from xgradcheck._slices import HUGE, Dependent, of_slices, rows_of  # only batches ask

    rows = rows_of(case, adapter, batch)
    huge = HUGE if large is True else int(large) or None
    done, failed, said, reason = list[str](), list[str](), list[Finding](), ""
    try:
        for trial in of_slices(rows, seed, huge, memory):
            done.append(trial.what)
            if trial.fault:
                failed.append(trial.what)
                said.append(Finding("", "slices", f"{trial.what}: {trial.fault}"))
    except Dependent as refusal:
        reason = str(refusal)
    if not done:
        return _skipped("slices", reason)
    verdict, refused = Verdict.of([Verdict.FAIL] * bool(said)), (reason,) * bool(reason)
    told = tuple(said), refused, tuple(failed)
    return ProbeReport("slices", verdict, PROBES["slices"], tuple(done), "", *told)


Checked = Callable[..., Report]


def _varied(
    probe: str,
    case: Case,
    adapter: Any,
    shapes: Any,
    checked: Checked,
    options: dict[str, Any],
) -> ProbeReport:
    """What checks with something else come to."""
    variants, fault = VARIANTS[probe]

    def run(scope: AbstractContextManager[Any], args: tuple[Any, ...]) -> Report | str:
        with scope:
            if probe == "values" and not is_resolved(replace(case, args=args), adapter):
                raise ArithmeticError("rounding the arguments changes the output there")
            try:
                return checked(args, **options)
            except Exception as error:
                # What the forward pass takes, the backward pass has to take as well.
                own = replace(case, args=args)
                if probe in FORMS and (raised := _raised_backward(own, adapter, error)) is not None:
                    return raised
                raise

    runs = (
        (what, partial(run, scope, args)) for what, args, scope in variants(case, adapter, shapes)
    )
    return varied(probe, runs, fault)


def _raised_backward(case: Case, adapter: Any, error: Exception) -> str | None:
    """What a backward pass raises, nothing where it does not; None where the forward pass raises,
    or where there is nothing to run.
    """
    try:
        case.output(case.args, case.kwargs)
        if not isinstance(error, InvalidCase):
            return f"raises {short(error)}"
        problem = adapter.bind(case)  # all of it is empty
        cotangent = np.ones(problem.outputs.size)
    except Exception:
        return None
    try:
        with problem.held():
            problem.gradient(cotangent)
    except Exception as raised:
        return f"raises {short(raised)}"
    return ""


def _differenced(
    probe: str, report: Report, checked: Callable[..., Report], options: dict[str, Any]
) -> ProbeReport:
    """A probe that is a check of its own."""
    if probe == "second order":
        special: dict[str, Any] = {"order": 2, "order_alone": True}
    else:
        special = {"modes": FORWARD}
    holds = PROBES[probe]
    size = sum(leaf.size for leaf in report.leaves.values())
    if probe == "forward mode" and size > TANGENTS:
        reason = f"tangents of {size} coordinates are asked for one by one: choose some with wrt="
        return _skipped(probe, reason)
    try:
        found = checked(**(options | special))
    except InvalidCase as refusal:
        return _skipped(probe, str(refusal))
    except Exception as error:  # what has no such derivative says so in its own words
        return _skipped(probe, short(error))
    said = [replace(finding, kind=probe) for finding in found.findings]
    if probe == "second order" and found.verdict is Verdict.FAIL:
        said.append(Finding("", probe, REFUSE))
    failed = [name for name, leaf in found.leaves.items() if leaf.verdict is Verdict.FAIL]
    told = tuple(said), (), tuple(failed)
    return ProbeReport(probe, found.verdict, holds, tuple(found.leaves), "", *told)


def _failed(probe: ProbeReport) -> ProbeReport:
    """A probe that was skipped and must not be."""
    finding = Finding("", probe.name, f"skipped: {probe.reason}")
    return replace(probe, verdict=Verdict.FAIL, findings=(finding,))


def _with(report: Report, probes: list[ProbeReport], strict: bool) -> Report:
    """A report with its probes."""
    if strict:
        probes = [_failed(probe) if probe.verdict is Verdict.SKIPPED else probe for probe in probes]
    verdicts = [report.verdict, *(probe.verdict for probe in probes)]
    findings = [finding for probe in probes for finding in probe.findings]
    return replace(
        report,
        verdict=Verdict.of(verdicts),
        probes=tuple(probes),
        findings=(*report.findings, *findings),
    )
