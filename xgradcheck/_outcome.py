"""From what was measured to the report: a verdict for each leaf, and what is said about it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Problem
from xgradcheck._budget import Budget
from xgradcheck._differences import norm, rms
from xgradcheck._findings import (
    forward_mismatch,
    grows,
    indices,
    low_precision,
    not_raised,
    notes_on_near_by,
    notes_on_points,
    on_repeats,
    only_here,
    precision,
    unsure,
    writes,
    wrong_gradient,
)
from xgradcheck._generic import is_symmetric
from xgradcheck._judge import (
    ZERO,
    Judged,
    Verdict,
    accepted_impostors,
    distance,
    grade,
    judge,
)
from xgradcheck._kinds import Kind
from xgradcheck._layout import DOUBLE, Leaf, Mask, Vector, bits_of
from xgradcheck._measured import SMALLEST, Measured, Told
from xgradcheck._precision import looks_like, said_of
from xgradcheck._report import Element, Finding, LeafReport, Leaves, Report
from xgradcheck._sensitivity import of_elements

ABOUT, SMALL = 10.0, 1e-3
"""In how many distances that are allowed a symmetric matrix is right as a whole, and how large its
bars may be beside its gradient.
"""
ROUNDED, FAR_OFF = 8.0, 0.5
"""How many units of rounding of all that a leaf can do to phi its rounding may leave of it; and how
far off it may be, where it is not as small itself.
"""
HALVES = ((np.triu, 1), (np.tril, -1))


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
        influence=float(np.max(np.abs(measured.backward.gradient * measured.work.scale))),
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
            f"the function raised {told.refusal!r} at {told.refusals} of the points beside this "
            f"one, which was taken for the edge of its domain"
        )
    if told.bits < DOUBLE and not told.unraised:
        findings.append(low_precision(told.bits, told.rtol))
    if (mismatch := forward_mismatch(problem, told)) is not None:
        findings.append(mismatch)
        verdicts.append(Verdict.FAIL)
    if written := told.runs[0].backward.written:
        findings.append(writes(written))
        verdicts.append(Verdict.FAIL)
    notes += [f"{text}: the framework made it fit" for text in told.runs[0].backward.misfits]
    bits = min(told.bits, *(run.bits or DOUBLE for run in told.runs))
    if told.unraised:
        findings.append(not_raised(bits, told.unraised))
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


Account = tuple[LeafReport, list[Finding], list[str]]


def together(accounts: list[Account]) -> Account:
    """What several looks at one leaf come to; the gravest decides, the last where they agree."""
    if len(accounts) == 1:
        return accounts[0]
    rows = [entry for entry, _, _ in accounts]
    gravest = Verdict.of([row.verdict for row in rows])
    if all(row.verdict is gravest for row in rows):
        findings = accounts[0][1]
    else:
        findings = [
            replace(finding, text=f"{entry.judged}: {finding.text}")
            for entry, said, _ in accounts
            for finding in said
        ]
    entry = [row for row in rows if row.verdict is gravest][-1]
    notes = next((noted for _, _, noted in accounts if noted), [])
    return replace(entry, rows=tuple(rows)), findings, notes


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
    worse = max(first.distance, second.distance)
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
    known = [leaf.distance for leaf in leaves.values() if leaf.distance == leaf.distance]
    distance = max(known) if len(known) == len(leaves) else float("nan")
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
        leaves[leaf.name] = leaf_entry(leaf, Verdict.INCONCLUSIVE, nan, nan, None, 0, leaf.size)
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


def leaf_entry(
    leaf: Leaf,
    verdict: Verdict,
    score: float,
    floor: float,
    worst: Element | None,
    wrong: int,
    undecided: int,
) -> LeafReport:
    return LeafReport(
        name=leaf.name,
        path=leaf.path,
        shape=leaf.shape,
        dtype=leaf.dtype,
        verdict=verdict,
        distance=float(score),
        grade=grade(score),
        floor=float(floor),
        worst=worst,
        wrong=wrong,
        undecided=undecided,
        names=leaf.names,
    )


def account(
    leaf: Leaf,
    number: int,
    problem: Problem,
    measured: Measured,
    eps: Vector | None,
    is_beside: bool = False,
) -> Account:
    """What is said of one leaf in one row; ``is_beside`` another one, in float64."""
    truth, found = measured.truth, measured.backward.gradient[leaf.part]
    allowance = measured.allowance
    value, bar = truth.value[leaf.part], truth.bar[leaf.part]
    # An infinite slope is no mistake where the slope is infinite: the bar there is, too.
    steep = (truth.kinds[leaf.part] == Kind.STEEP) & np.isinf(found)
    gradient = np.where(steep, value, found)
    scored = (
        None if truth.scored is None else (truth.scored[0][leaf.part], truth.scored[1][leaf.part])
    )
    part = leaf.part
    below = truth.zero_below
    if measured.near_by.zero_below is not None:
        below = np.fmax(below, measured.near_by.zero_below)
    is_rounding = is_beside and _is_rounding(measured, part)
    judged = judge(
        gradient,
        value,
        bar,
        truth.settled[part],
        allowance,
        below[part],
        truth.still[part],
        measured.run.excused[part],
        scored,
        truth.faint[part],
        is_rounding,
    )
    verdict, findings, notes = judged.verdict, [], []
    if verdict is Verdict.FAIL and _is_right_symmetrised(leaf, problem.point, measured):
        verdict = Verdict.INCONCLUSIVE
    allowed = allowance.allowed(gradient, value, rms(value)) + measured.run.excused[part]
    if number in measured.backward.severed:
        if verdict is Verdict.FAIL:
            text = (
                f"no gradient for {leaf.name}: the backward pass does not reach it, and the "
                f"output depends on it"
            )
            findings.append(Finding(leaf.name, "no gradient", text))
        elif verdict is Verdict.PASS and leaf.size:
            notes.append(f"{leaf.name} gets no gradient, and the output does not depend on it")
    elif verdict is Verdict.FAIL:
        findings.append(wrong_gradient(leaf, gradient, value, judged, truth))
        if name := looks_like(gradient, value, measured.run.bits or DOUBLE, bar):
            findings.append(Finding(leaf.name, "precision", f"{leaf.name}: {said_of(name)}"))
    if verdict is not judged.verdict:
        text = (
            f"{leaf.name}: wrong element by element, right once symmetrised: if it is meant for "
            f"symmetric matrices, say constraint='symmetric'"
        )
        findings.append(Finding(leaf.name, "symmetric", text, indices(leaf, judged.failed)))
    elif verdict is Verdict.INCONCLUSIVE:
        findings.append(unsure(leaf, measured, judged, allowed, eps))
    elif (
        verdict is Verdict.PASS
        and not judged.is_zero
        and (accepted := accepted_impostors(value, bar, allowance, measured.run.excused[part]))
    ):
        text = f"{leaf.name}: these tolerances would also accept {' and '.join(accepted)}: "
        if accepted_impostors(value, bar, allowance, measured.run.slack[part]):
            verdict = Verdict.INCONCLUSIVE
            findings.append(Finding(leaf.name, "loose tolerance", text + "lower rtol or atol"))
        elif is_rounding:
            dtype = precision(measured.bits)
            notes.append(
                f"{leaf.name}: in {dtype} little but rounding is left of its gradient at this "
                f"point: float64 alone tells that it is right"
            )
        else:
            verdict = Verdict.INCONCLUSIVE
            text += "its rounding may be as large"
            findings.append(Finding(leaf.name, "rounding", text))
    mistake = (measured.near_by.mistakes or {}).get(number)
    if verdict is Verdict.PASS and mistake is not None:
        is_kept = number in measured.near_by.kept
        verdict = Verdict.INCONCLUSIVE if is_kept else Verdict.FAIL
        findings.append(only_here(leaf, number, mistake, measured.near_by))
    if judged.is_zero and leaf.size:
        seen = float(np.max(bar + measured.run.excused[part]))
        limit = f"anything above {seen:.1e} would have been seen"
        notes.append(
            f"{leaf.name}: zero gradient; {limit if seen > 0 else 'the output does not move'}"
        )
    if truth.analytic[part].any():
        notes.append(
            f"{leaf.name}: a complex step at {int(truth.analytic[part].sum())} of {leaf.size} "
            f"elements, which takes the function to be analytic"
        )
    notes += notes_on_points(leaf, truth.kinds[part][~judged.failed & ~judged.undecided])
    worst = element_at(leaf, found, value, bar, allowed, judged, truth.still[part])
    floor = float("nan") if judged.is_zero else judged.floor
    counts = int(judged.failed.sum()), int(judged.undecided.sum())
    entry = leaf_entry(leaf, verdict, judged.distance, floor, worst, *counts)
    entry = replace(
        entry,
        precision=precision(measured.bits),
        as_run=measured.run.bits is not None,
        mode=measured.run.mode,
        sensitivity=None if judged.is_zero else of_elements(leaf, value, allowed + bar),
    )
    return entry, findings, notes


def _is_rounding(measured: Measured, part: slice) -> bool:
    """Whether what is excused in a run below float64 is as good as zero there: float64 has judged
    the formula, and no more is asked of the rounding.
    """
    bits, excused = measured.run.bits, measured.run.excused[part]
    if bits is None:
        return False
    units = ROUNDED * 2.0**-bits / ZERO[DOUBLE] / np.sqrt(max(excused.size, 1))
    limit = units * measured.truth.faint[part] + SMALLEST[bits]
    value, gradient = measured.truth.value[part], measured.backward.gradient[part]
    is_near = norm(gradient - value) <= FAR_OFF * norm(value)
    return bool((excused <= limit).all() and (is_near or (np.abs(value) <= limit).all()))


def element_at(
    leaf: Leaf,
    gradient: Vector,
    value: Vector,
    bar: Vector,
    allowed: Vector,
    judged: Judged,
    still: Mask,
) -> Element | None:
    """Of the wrong elements the one that is off by most; else the one nearest to what is not
    allowed, those that stand still last.
    """
    if leaf.size == 0:
        return None
    error = np.abs(gradient - value)
    if judged.failed.any():
        merit = np.where(judged.failed, np.nan_to_num(error, nan=np.inf), -1.0)
    else:
        among = judged.undecided if judged.undecided.any() else ~still | still.all()
        with np.errstate(all="ignore"):
            merit = np.where(among, np.nan_to_num((error + bar) / allowed, nan=0.0), -1.0)
    place = int(np.argmax(merit))
    position = leaf.start + place
    return Element(
        index=leaf.index(position),
        analytic=float(gradient[place]),
        truth=float(value[place]),
        error_bar=float(bar[place]),
        allowed=float(allowed[place]),
        component=leaf.component(position),
    )


def _is_right_symmetrised(leaf: Leaf, point: Vector, measured: Measured) -> bool:
    """Whether a symmetric matrix has a gradient that is wrong element by element and right along
    symmetric directions, as that of a function which reads one triangle alone.

    A transposed gradient is that too, but it follows no convention: neither it nor the truth is
    symmetric or triangular.
    """
    if leaf.is_complex or leaf.grid != leaf.shape:
        return False
    values = point[leaf.part].reshape(leaf.shape)
    if not is_symmetric(values, bits_of(leaf.dtype)):
        return False
    turned = [
        part[leaf.part].reshape(leaf.shape)
        for part in (measured.backward.gradient, measured.truth.value, measured.truth.bar)
    ]
    if not np.isfinite(turned).all():
        return False
    gradient, value, bar = (np.ravel(part + part.swapaxes(-1, -2)) / 2 for part in turned)
    allowed = (
        measured.allowance.allowed(gradient, value, rms(value)) + measured.run.excused[leaf.part]
    )
    # Once a leaf is called wrong, its other elements are known no better than that took.
    size, lost = norm(value), norm(measured.run.excused[leaf.part])
    apart = distance(gradient, value) * size
    if apart > ABOUT * measured.allowance.distance * size + lost or norm(bar) > SMALL * size:
        return False
    given, truth, slack = turned[0], turned[1], allowed.reshape(leaf.shape) + turned[2]
    conventions = [given - given.swapaxes(-1, -2)]
    conventions += [half(part, k) for part in (given, truth) for half, k in HALVES]
    return any((np.abs(part) <= slack).all() for part in conventions)
