"""The verb ``audit``: a check, and every probe that applies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from xgradcheck._adapters import Case, Problem, Trial, claim
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict
from xgradcheck._layout import BITS, DOUBLE, bits_of
from xgradcheck._measured import FORWARD
from xgradcheck._probes import (
    CORE,
    PROBES,
    Usual,
    any_fault,
    gross_fault,
    judged,
    short,
    trials,
    varied,
)
from xgradcheck._progress import progress
from xgradcheck._report import Finding, ProbeReport, Report
from xgradcheck._stages import cotangent_of, materialised, report_on, title_of
from xgradcheck._tree import Node, flatten, replaced

ALL_PROBES = "all"
TANGENTS = 2000
"""Of so many coordinates tangents are asked for one by one."""
REFUSE = "a backward pass that is not meant to be differentiated has to refuse it"
LOWER = ("float32", "bfloat16", "float16")
FAMILIES: dict[str, Callable[[Any], Any]] = {
    "times 0.001": lambda x: x * 1e-3,
    "times 100": lambda x: x * 100,
    "plus 1000": lambda x: x + 1000,
    "of zero": lambda x: x * 0,
    "that tie": lambda x: (x * 2).round() / 2,
    "with heavy tails": lambda x: x * x * x,
    "of one sign": lambda x: (x * x + 0.01) ** 0.5,
}
"""What becomes of the arguments' values."""
SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37, 63, 64, 65, 127, 128, 129)
"""One, a prime, and those around blocks."""


def audit(
    fn: Callable[..., Any],
    *args: Any,
    probes: str | Sequence[str] = ALL_PROBES,
    shapes: Callable[[int], tuple[Any, ...]] | Mapping[Any, tuple[Any, ...]] | None = None,
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
        aliasing, memory, transforms, opcheck, dtypes, values, shapes, "second order", "forward
        mode".
    shapes
        Other arguments to check: a function of a size that returns them as a tuple, called with
        sizes around those of blocks; or a dict of such tuples.
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
        report = report_on(fn, args, title, **options)
        case = Case(fn, args, dict(kwargs or {}), wrt, loss, grads)
        found = _probed(case, backend, seed, title, [name for name in chosen if name not in CORE])
    except InvalidCase as refusal:
        raise InvalidCase(f"{title}: {refusal}") from None
    checked = partial(report_on, fn, title=title)
    for probe in [name for name in CORE if name in chosen]:
        if probe in OTHERS:
            others, fault = OTHERS[probe]
            variants = others(case, claim(case, backend), shapes)
            runs = (
                (what, partial(_within, scope, checked, others, options))
                for what, others, scope in variants
            )
            found.append(varied(probe, runs, fault))
        else:
            found.append(_differenced(probe, report, partial(checked, args), options))
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


def _probed(
    case: Case, backend: str | None, seed: int, title: str, chosen: list[str]
) -> list[ProbeReport]:
    """What the adapter's experiments come to."""
    if not chosen:
        return []
    module = claim(case, backend)
    problem: Problem = module.bind(case)
    cotangent = cotangent_of(problem, seed)
    found = []
    with problem.held(), progress(title) as tick, np.errstate(all="ignore"):
        probes: Mapping[str, Callable[[], Iterator[Trial]]] = (
            module.probes(problem, cotangent) if hasattr(module, "probes") else {}
        )
        usual = Usual.of(problem, cotangent)
        for number, name in enumerate(chosen):
            tick(number, len(chosen), name)
            own = probes[name]() if name in probes else ()
            found.append(judged(name, chain(trials(name, usual, cotangent), own), usual))
    return found


Variant = tuple[str, tuple[Any, ...], AbstractContextManager[Any]]
"""What it is, other arguments, and what is entered for the time."""


def _other_dtypes(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    """The arguments in lower precision, and under autocast."""
    nodes = _floating(case)
    kinds = {node.path: _kind(node.value) for node in nodes}
    if not nodes or not all(map(bits_of, kinds.values())):
        return
    highest = max(map(bits_of, kinds.values()))

    def cast(name: str) -> tuple[Any, ...]:
        twins = {"complex64": "complex64", "complex128": "complex64"}
        changed: dict[Any, Any] = {
            node.path: adapter.cast(node.value, twins.get(kinds[node.path], name)) for node in nodes
        }
        return tuple(replaced(case.args, changed))

    has_complex = any(kind.startswith("complex") for kind in kinds.values())
    for name in LOWER[:1] if has_complex else LOWER:
        if BITS[name] < highest:
            yield f"in {name}", cast(name), nullcontext()
    if hasattr(adapter, "autocast"):
        args = cast("float32") if highest == DOUBLE else case.args
        yield "under autocast", args, adapter.autocast()


def _other_values(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    """Other values of the same arguments. Operators do, which all frameworks have."""
    nodes = _floating(case)
    for name, change in FAMILIES.items() if nodes else ():
        try:
            changed = {node.path: change(node.value) for node in nodes}
        except Exception:  # complex numbers are not rounded
            continue
        yield f"values {name}", replaced(case.args, changed), nullcontext()


def _floating(case: Case) -> list[Node]:
    """The floating arrays among the arguments; none where a gradient belongs to this point."""
    if case.grads is not None and not callable(case.grads):
        return []
    return [node for node in flatten(case.args) if _is_floating(node.value)]


def _is_floating(value: Any) -> bool:
    return hasattr(value, "shape") and any(word in _kind(value) for word in ("float", "complex"))


def _kind(value: Any) -> str:
    """The name of a dtype, as the core has it."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2]


def _other_shapes(case: Case, adapter: Any, shapes: Any) -> Iterator[Variant]:
    if callable(shapes):
        shapes = {f"size {size}": shapes(size) for size in SIZES}
    for name, args in (shapes or {}).items():
        yield str(name), args if isinstance(args, tuple) else (args,), nullcontext()


OTHERS: dict[str, tuple[Callable[[Case, Any, Any], Iterator[Variant]], Callable[[Report], str]]] = {
    "dtypes": (_other_dtypes, any_fault),
    "values": (_other_values, gross_fault),
    "shapes": (_other_shapes, gross_fault),
}
"""Probes that check with something else, and what counts as a fault there."""


def _within(
    scope: AbstractContextManager[Any],
    checked: Callable[..., Report],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Report:
    with scope:
        return checked(args, **options)


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
        return ProbeReport(probe, Verdict.SKIPPED, holds, reason=reason)
    try:
        found = checked(**(options | special))
    except InvalidCase as refusal:
        return ProbeReport(probe, Verdict.SKIPPED, holds, reason=str(refusal))
    except Exception as error:  # what has no such derivative says so in its own words
        return ProbeReport(probe, Verdict.SKIPPED, holds, reason=short(error))
    said = [replace(finding, kind=probe) for finding in found.findings]
    if probe == "second order" and found.verdict is Verdict.FAIL:
        said.append(Finding("", probe, REFUSE))
    return ProbeReport(probe, found.verdict, holds, tuple(found.leaves), findings=tuple(said))


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
