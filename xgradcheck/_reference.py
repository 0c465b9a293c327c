"""A kernel beside a plain reference, whose gradient differences prove in float64; the kernel may
lose to rounding about what the reference loses in the same dtype.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._account import Account, together
from xgradcheck._adapters import Case, claim, name_of
from xgradcheck._constraints import Constraint, Tangent
from xgradcheck._errors import InvalidCase
from xgradcheck._findings import another_near_by, notes_on_near_by, precision
from xgradcheck._judge import Verdict, grade, largest_distance
from xgradcheck._kernel_near_by import compare_near_by
from xgradcheck._layout import BITS, bits_of
from xgradcheck._measured import REVERSE
from xgradcheck._memory import memory_of, refuse_beyond
from xgradcheck._report import Finding, Leaves, Report
from xgradcheck._stages import (
    environment,
    materialised,
    modes_of,
    refuse_options,
    report_on,
)
from xgradcheck._three import Bound
from xgradcheck._variants import all_kinds, in_dtype

FACTORS = {"norm": 2.0, "worst": 4.0, "bias": 4.0}
"""How many times the error of the reference a kernel may err: right kernels of 450 were measured to
reach 1.8, 2.9 and 3.3.
"""
ANOTHER = "another function"


def beside_reference(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    title: str,
    *,
    reference: Callable[..., Any],
    dtypes: str | Sequence[str] | None,
    factors: Mapping[str, float] | None,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    loss: Callable[[Any], Any] | None = None,
    grads: Any = None,
    order: int = 1,
    modes: str | Sequence[str] = (REVERSE,),
    constraint: Constraint | Mapping[str, Constraint] | None = None,
    coverage: str = "auto",
    method: str = "auto",
    eps: float | Mapping[str, float] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    memory: int | str | None = None,
    seed: int = 0,
    backend: str | None = None,
    **options: Any,
) -> Report:
    """The report on a kernel that has a reference."""
    started = time.perf_counter()
    allowed = known_factors(factors)
    refuse_options(fn, args, kwargs, loss, order, coverage, method, eps, rtol, atol, seed)
    _refuse_beside(grads, order, modes, rtol, atol)
    wrt = materialised(wrt)
    case = Case(fn, args, dict(kwargs or {}), wrt, loss, None)
    adapter = claim(case, backend)
    kinds = all_kinds(case)
    if not kinds:
        raise InvalidCase("reference= compares functions of arrays: pass them as arguments.")
    asked = asked_dtypes(dtypes, kinds)
    first = Bound.of(case, reference, adapter, asked[0], seed).held_to(constraint, kinds)
    refuse_beyond(memory_of(memory), first.bytes)
    exact = in_dtype(in_dtype(case, adapter, asked[0]), adapter, "float64")
    proven = report_on(
        reference,
        exact.args,
        title,
        kwargs=exact.kwargs,
        wrt=wrt,
        loss=loss,
        constraint=first.tangents,
        coverage=coverage,
        method=method,
        eps=eps,
        memory=memory,
        seed=seed,
        backend=name_of(adapter),
        **options,
    )
    own = _own(constraint, first.tangents)
    bounds = (
        Bound.of(case, reference, adapter, dtype, seed).held_to(own, kinds) if later else first
        for later, dtype in enumerate(asked)
    )
    return replace(
        _beside(proven, bounds, allowed, seed),
        precision=precision(min(bits_of(dtype) for dtype in asked)),
        elapsed_s=time.perf_counter() - started,
        environment=environment(adapter),
    )


def _own(constraint: Any, tangents: Mapping[str, Tangent] | None) -> Any:
    """A constraint by the leaves that satisfy it: rounding more they satisfy no other."""
    if tangents is None or isinstance(constraint, Mapping):
        return constraint
    return dict.fromkeys(tangents, constraint)


def _refuse_beside(grads: Any, order: Any, modes: Any, rtol: float | None, atol: float) -> None:
    """Raise for options that speak of a function by itself."""
    alone = "check the kernel by itself, without reference="
    if grads is not None:
        raise InvalidCase(
            f"grads= belongs to one function, and reference= compares two: {alone}, or leave grads "
            f"out."
        )
    if order != 1:
        raise InvalidCase(
            f"order={order!r} goes beyond the gradient, and reference= compares gradients: {alone}."
        )
    if modes_of(modes) != (REVERSE,):
        raise InvalidCase(
            f"modes={modes!r} asks for forward mode, and reference= compares backward passes: "
            f"{alone}."
        )
    if rtol is not None or atol != 0:
        raise InvalidCase(
            "rtol and atol are held against differences, and reference= allows a kernel so many "
            "times the error of its reference: say how many with factors=, or " + alone + "."
        )


def _beside(
    proven: Report, bounds: Iterable[Bound], factors: Mapping[str, float], seed: int
) -> Report:
    """The report on a reference, and on what a kernel gives beside it in each dtype."""
    findings = [replace(finding, text=f"reference: {finding.text}") for finding in proven.findings]
    accounts: dict[str, list[Account]] = {
        name: [(replace(leaf, mode="reference", rows=()), [], [])]
        for name, leaf in proven.leaves.items()
    }
    verdicts, notes = [proven.verdict], [*proven.notes]
    looks = all(finding.kind != "budget" for finding in proven.findings)
    for bound in bounds if proven.verdict is not Verdict.FAIL else ():
        own, said, noted = _compared(bound, factors, seed, looks)
        for name, account in own.items():
            accounts.setdefault(name, []).append(account)
        findings += said
        notes += [f"kernel: {note}" for note in noted if note not in proven.notes]
        if said:
            verdicts.append(Verdict.FAIL)
            break  # its gradient is another one, too
    leaves = Leaves()
    for name, rows in accounts.items():
        leaves[name] = together(rows)[0]
        findings += [finding for _, told, _ in rows for finding in told]
    verdicts += [leaf.verdict for leaf in leaves.values()]
    score = largest_distance(leaf.distance for leaf in leaves.values())
    return replace(
        proven,
        verdict=Verdict.of(verdicts),
        distance=score,
        grade=grade(score),
        leaves=leaves,
        findings=tuple(findings),
        notes=tuple(dict.fromkeys(notes)),
    )


def _compared(
    bound: Bound, factors: Mapping[str, float], seed: int, looks: bool
) -> tuple[dict[str, Account], list[Finding], list[str]]:
    """What each leaf comes to in one dtype; and, of all of them, whether it is another function,
    and what to know. ``looks``: near by too, where the point hides mistakes.
    """
    three = bound.three()
    if text := three.forward(factors):
        return {}, [Finding("", ANOTHER, f"{bound.dtype}: {text}")], []
    if not looks:
        return three.accounts(factors), [], []
    near = compare_near_by(bound, three, factors, seed)
    said = []
    if near.another:
        said.append(another_near_by(bound.dtype, near.another, near.near_by))
    notes = notes_on_near_by(bound.exact, near.near_by)
    return three.accounts(factors, near), said, notes


def known_factors(given: Mapping[str, float] | None) -> dict[str, float]:
    """How many times the error of the reference is allowed."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidCase(f"factors={given!r} is no dict, such as {{'norm': 3}}.")
    unknown = [name for name in given or {} if name not in FACTORS]
    if unknown:
        raise InvalidCase(f"factors has {unknown[0]!r}; they are {', '.join(FACTORS)}.")
    for name, factor in (given or {}).items():
        is_number = isinstance(factor, int | float | np.number) and not isinstance(factor, bool)
        if not is_number or not 0 < factor < math.inf:
            raise InvalidCase(f"factors has {name}={factor!r}: give a number larger than 0.")
    return FACTORS | dict(given or {})


def asked_dtypes(dtypes: Any, kinds: Mapping[Any, str]) -> list[str]:
    """The dtypes to compare in: those of the arguments, if none are given."""
    if dtypes is None:
        return [min(kinds.values(), key=bits_of)]
    asked = [dtypes] if isinstance(dtypes, str) else [*dtypes]
    known = ("float64", *sorted(BITS))
    for name in asked:
        if name not in known:
            raise InvalidCase(f"dtypes has {name!r}; the dtypes are {', '.join(known)}.")
    if not asked:
        raise InvalidCase(f"dtypes is empty: name some of {', '.join(known)}.")
    return asked
