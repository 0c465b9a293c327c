"""From what was measured to the report: a verdict for each leaf, and what is said about it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._account import account, leaf_entry, together
from xgradcheck._adapters import COTANGENT, Problem
from xgradcheck._budget import Budget
from xgradcheck._errors import short
from xgradcheck._findings import (
    draws_its_own,
    forward_mismatch,
    grows,
    low_precision,
    not_raised,
    notes_on_near_by,
    on_repeats,
    precision,
    writes,
)
from xgradcheck._judge import (
    Verdict,
    distance,
    grade,
    largest_distance,
)
from xgradcheck._layout import DOUBLE, Vector
from xgradcheck._measured import Measured, Told
from xgradcheck._report import Finding, LeafReport, Leaves, Report


def outcome(
    problem: Problem,
    rows: Sequence[Measured],
    eps: Vector | None,
    frame: dict[str, Any],
) -> Report:
    """The report of a sweep: of the backward pass in float64, as it runs, or both in this order."""
    leaves = Leaves()
    findings: list[Finding] = []
    notes: list[str] = []
    measured, last = rows[0], rows[-1]
    for number, leaf in enumerate(problem.layout):
        if leaf.size == 0:
            notes.append(f"{leaf.name} is empty")
        if number in measured.spaces:
            words = measured.spaces[number].words
            notes.append(f"{leaf.name}: compared in the tangent space of {words}")
        entry, said, noted = together(
            [account(leaf, number, problem, row, eps, row is not measured) for row in rows]
        )
        leaves[leaf.name] = entry
        findings += said
        notes += noted
    if measured.is_constant:
        notes.append(
            "nothing moves the output by more than rounding: a function whose parts cancel in its "
            "sum shows little of its backward pass; check it without the sum"
        )
    scored = last.truth.value if last.truth.scored is None else last.truth.scored[0]
    told = Told(
        value=measured.value,
        spread=measured.spread,
        sigma=measured.truth.noise.sigma,
        bits=measured.truth.noise.bits,
        runs=[row.run for row in rows],
        rtol=measured.allowance.rtol,
        allowance=last.allowance,
        influence=lambda: float(np.max(np.abs(measured.backward.gradient * measured.work.scale))),
        near_by=measured.near_by,
        held=measured.held,
        refusals=measured.refusals,
        refusal=measured.refusal,
        unraised=measured.unraised,
    )
    # Zeros that are apart by rounding are no distance apart, in the leaves and together.
    is_apart = any(leaf.distance != 0 for leaf in leaves.values())
    overall = distance(last.backward.gradient, scored) if is_apart else 0.0
    return concluded(problem, leaves, findings, notes, told, overall, frame)


def concluded(
    problem: Problem,
    leaves: Leaves,
    findings: list[Finding],
    notes: list[str],
    told: Told,
    score: float,
    frame: dict[str, Any],
) -> Report:
    """The report: what was found leaf by leaf, and what the calls told of the function."""
    verdicts = [leaf.verdict for leaf in leaves.values()]
    if told.held:
        notes.append(f"held still from call to call: {', '.join(told.held)}")
    if told.spread:
        ulps = told.spread / float(np.spacing(abs(told.value)))
        notes.append(f"the forward pass repeats itself to {ulps:.0f} ulps only, taken for noise")
    if told.runs[0].grows:
        findings.append(grows())
    if told.runs[-1].slack.any():
        rounded, random = on_repeats(problem, told)
        notes += rounded
        # No kink and no noise of the function is to blame.
        varying = {finding.leaf for finding in random}
        findings = [x for x in findings if x.kind != "not certified" or x.leaf not in varying]
        findings += random
        for finding in random:
            if leaves[finding.leaf].verdict is Verdict.PASS:
                unsure = replace(leaves[finding.leaf], verdict=Verdict.INCONCLUSIVE)
                leaves[finding.leaf] = unsure
            verdicts.append(Verdict.INCONCLUSIVE)
    notes += notes_on_near_by(problem, told.near_by)
    if told.refusal is not None:
        notes.append(
            f"the function raised {_said(told.refusal)} at {told.refusals} of the points beside "
            f"this one, which was taken for the edge of its domain"
        )
    bits = min(told.bits, *(run.bits or DOUBLE for run in told.runs))
    if told.bits < DOUBLE and not told.unraised:
        findings.append(low_precision(told.bits, told.rtol))
    elif bits < DOUBLE == min(told.bits, problem.layout.bits, problem.outputs.bits):
        findings.append(low_precision(bits, told.allowance.rtol, is_raised=True))
    if (mismatch := forward_mismatch(problem, told)) is not None:
        findings.append(mismatch)
        verdicts.append(Verdict.FAIL)
    written = list(told.runs[0].backward.written)
    if problem.is_handed and COTANGENT in written:
        # Layers by hand hand it on to each other, and nobody else.
        written.remove(COTANGENT)
        notes.append(f"the backward pass writes to {COTANGENT}: right while nothing else reads it")
    if written:
        findings.append(writes(written))
        verdicts.append(Verdict.FAIL)
    if told.runs[0].backward.draws_its_own:
        # Without a cotangent it may be a whole pass of its own, for a loss of its own draw.
        if problem.unit_cotangent:
            notes.append(draws_its_own().text)
        else:
            findings.append(draws_its_own())
            verdicts.append(Verdict.INCONCLUSIVE)
    notes += [f"{text}: the framework made it fit" for text in told.runs[0].backward.misfits]
    if told.unraised:
        is_wider = told.bits > problem.layout.bits
        found = told.bits if is_wider else bits
        findings.append(not_raised(found, told.unraised, is_wider))
    return Report(
        verdict=Verdict.of(verdicts),
        distance=score,
        grade=grade(score),
        leaves=leaves,
        findings=tuple(findings),
        probes=(),
        notes=tuple(notes),
        precision=precision(bits),
        **frame,
    )


def _said(error: Exception) -> str:
    """An exception as Python writes it; of what is long one line, the last that names an exception
    where a traceback is quoted.
    """
    text, quoted = repr(error), QUOTED.findall(str(error))
    if len(text) <= SAID:
        return text
    return quoted[-1][:SAID] if quoted else short(error)


SAID = 160
"""How many letters of an exception are shown."""
QUOTED = re.compile(r"^[\w.]+(?:Error|Exception)\b.*", re.MULTILINE)
SECOND = " (order 2)"


def joined(first: Report, second: Report) -> Report:
    """The report on a gradient and on the gradient of that gradient."""
    leaves = Leaves(first.leaves)
    for name, leaf in second.leaves.items():
        rows = tuple(replace(row, name=row.name + SECOND) for row in leaf.rows)
        leaves[name + SECOND] = replace(leaf, name=name + SECOND, names=(), rows=rows)
    findings = [
        replace(
            finding,
            leaf=finding.leaf and finding.leaf + SECOND,
            text=f"order 2: {finding.text}",
        )
        for finding in second.findings
    ]
    worse = largest_distance([first.distance, second.distance])
    return replace(
        first,
        verdict=Verdict.of([first.verdict, second.verdict]),
        distance=worse,
        grade=grade(worse),
        leaves=leaves,
        findings=(*first.findings, *findings),
        notes=(*first.notes, *(f"order 2: {note}" for note in second.notes)),
        evaluations=first.evaluations + second.evaluations,
        elapsed_s=first.elapsed_s + second.elapsed_s,
    )


OPEN = ("no convergence", "not certified", "noise")


def within_budget(report: Report, budget: Budget) -> Report:
    """A report that was stopped early: what it holds, holds; the rest was not looked at."""
    text = (
        f"stopped after {budget.spent} evaluations, where the budget ended: what is open was not "
        f"looked at until then"
    )
    kept = [finding for finding in report.findings if finding.kind not in OPEN]
    leaves = Leaves({name: _not_looked_at(leaf) for name, leaf in report.leaves.items()})
    distance = largest_distance(leaf.distance for leaf in leaves.values())
    return replace(
        report,
        leaves=leaves,
        distance=distance,
        grade=grade(distance),
        findings=(*kept, Finding("", "budget", text)),
    )


def _not_looked_at(leaf: LeafReport) -> LeafReport:
    """A leaf of which not all was differenced: no number is told that was not measured."""
    if leaf.verdict is not Verdict.INCONCLUSIVE:
        return leaf
    nan = float("nan")
    rows = tuple(map(_not_looked_at, leaf.rows))
    return replace(leaf, worst=None, distance=nan, grade=grade(nan), floor=nan, rows=rows)


def stochastic(problem: Problem, value: float, spread: float, frame: dict[str, Any]) -> Report:
    """The report on a function that does not repeat itself: nothing was differenced."""
    text = (
        f"the function is not repeatable: at one point it gave values that differ by "
        f"{spread:.2g} (the first was "
        f"{value:.6g}). Draw its random numbers from a seed, pass its generator as an argument, "
        f"or use eval() mode."
    )
    nan = float("nan")
    leaves = Leaves()
    for leaf in problem.layout:
        leaves[leaf.name] = leaf_entry(leaf, Verdict.INCONCLUSIVE, undecided=leaf.size)
    return Report(
        verdict=Verdict.INCONCLUSIVE,
        distance=nan,
        grade=grade(nan),
        leaves=leaves,
        findings=(Finding("", "stochastic", text),),
        probes=(),
        notes=(),
        **frame,
    )
