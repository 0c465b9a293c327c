"""A gradient that is not meant to be that of its function: declared a surrogate, or stated."""

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._account import element_at, leaf_entry
from xgradcheck._adapters import Backward, Case, Problem
from xgradcheck._differences import natural_scale, rms
from xgradcheck._errors import InvalidCase
from xgradcheck._findings import beside_stated, writes
from xgradcheck._judge import Verdict, distance, grade, judge, tolerance, zero_below
from xgradcheck._layout import Leaf, Vector
from xgradcheck._report import Finding, LeafReport, Leaves, Report
from xgradcheck._residuals import whole
from xgradcheck._stages import (
    cotangent_of,
    environment,
    materialised,
    posed,
    refuse_options,
    report_on,
)

SURROGATE = "surrogate"
DECLARED = "its gradient is declared a surrogate: it was not compared with differences"
STATED = "its gradient was compared with the one that is expected, and not with differences"


def stated_on(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    title: str,
    *,
    expect: Any,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    loss: Callable[[Any], Any] | None = None,
    grads: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    seed: int = 0,
    backend: str | None = None,
    **others: Any,
) -> Report:
    """The report on a gradient that has to be the one that is expected, in the form of ``grads``;
    or that is not compared with anything.
    """
    usual = inspect.signature(report_on).parameters
    if unfit := [name for name, value in others.items() if value != usual[name].default]:
        raise InvalidCase(f"{unfit[0]} is for differences, and expect= makes none.")
    if isinstance(expect, str) and expect != SURROGATE:
        raise InvalidCase(
            f"expect={expect!r} is neither {SURROGATE!r} nor a gradient in the form of grads."
        )
    refuse_options(fn, args, kwargs, loss, 1, "auto", "auto", None, rtol, atol, seed)
    started = time.perf_counter()
    case = whole(Case(fn, args, dict(kwargs or {}), materialised(wrt), loss, grads))
    adapter, problem = posed(case, backend)
    twin = None if isinstance(expect, str) else adapter.bind(replace(case, grads=expect))
    if twin is not None and twin.unit_cotangent and problem.outputs.size != 1:
        raise InvalidCase(
            f"the output has {problem.outputs.size} elements and the gradient in expect belongs to "
            f"a scalar: reduce the output with loss=, or give a function expect(cotangent, *args)."
        )
    cotangent = cotangent_of(problem if twin is None else twin, seed)
    with problem.held(), np.errstate(all="ignore"):
        backward = problem.gradient(cotangent)
    leaves, findings = Leaves(), list[Finding]()
    truth = _truth(twin, cotangent)
    for number, leaf in enumerate(problem.layout):
        leaves[leaf.name], said = _account(problem, leaf, number, backward, truth, rtol, atol)
        findings += said
    if backward.written:
        findings.append(writes(backward.written))
    verdicts = [leaf.verdict for leaf in leaves.values()] + [Verdict.FAIL] * len(findings)
    score = float("nan") if truth is None else distance(backward.gradient, truth)
    return Report(
        name=title,
        verdict=Verdict.of(verdicts),
        distance=score,
        grade=grade(score),
        leaves=leaves,
        findings=tuple(findings),
        probes=(),
        skipped=tuple(problem.skipped),
        notes=(DECLARED if truth is None else STATED,),
        coverage="none" if truth is None else "comparison",
        evaluations=0,
        elapsed_s=time.perf_counter() - started,
        seed=int(seed),
        environment=environment(adapter),
    )


def _truth(twin: Problem | None, cotangent: Vector) -> Vector | None:
    if twin is None:
        return None
    with twin.held(), np.errstate(all="ignore"):
        return twin.gradient(cotangent).gradient


def _account(
    problem: Problem,
    leaf: Leaf,
    number: int,
    backward: Backward,
    truth: Vector | None,
    rtol: float | None,
    atol: float,
) -> tuple[LeafReport, list[Finding]]:
    gradient = backward.gradient[leaf.part]
    if not np.isfinite(gradient).all():
        text = f"{leaf.name}: the gradient is not finite"
        return leaf_entry(leaf, Verdict.FAIL), [Finding(leaf.name, "not finite", text)]
    if truth is None:
        return leaf_entry(leaf, Verdict.SKIPPED), []
    value, allowance = truth[leaf.part], tolerance(rtol, atol, problem.bits)
    zeros, none = np.zeros(leaf.size), np.zeros(leaf.size, bool)
    scale = natural_scale(problem.point, problem.layout)[0]
    below = zero_below(problem.layout, scale, (backward.gradient, truth), problem.bits)[leaf.part]
    judged = judge(gradient, value, zeros, ~none, allowance, below, none, zeros)
    allowed = allowance.allowed(gradient, value, rms(value))
    worst = element_at(leaf, gradient, value, zeros, allowed, judged, none)
    wrong = int(judged.failed.sum())
    # Without bars there is no doubt: what is too far away as a whole is wrong.
    verdict = Verdict.PASS if judged.verdict is Verdict.PASS else Verdict.FAIL
    entry = leaf_entry(leaf, verdict, judged.distance, judged.floor, worst, wrong=wrong)
    if verdict is Verdict.PASS:
        return entry, []
    severed = number in backward.severed
    return entry, [beside_stated(leaf, judged, severed)]
