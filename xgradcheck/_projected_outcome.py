"""From what directions told to the report."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._account import Account, account, leaf_entry, together
from xgradcheck._adapters import Problem
from xgradcheck._differences import Noise, rms
from xgradcheck._directions import influence
from xgradcheck._findings import (
    along_directions,
    in_part,
    note_on_points,
    only_here,
    precision,
    suspects,
)
from xgradcheck._generic import NearBy
from xgradcheck._judge import Verdict, grade, impostors, largest_distance, percent, tolerance
from xgradcheck._kinds import Kind
from xgradcheck._layout import DOUBLE, Leaf, Mask
from xgradcheck._measured import Run, Told
from xgradcheck._outcome import concluded
from xgradcheck._projected import Projected
from xgradcheck._projection import Bound, Suspect
from xgradcheck._report import Element, Finding, LeafReport, Leaves, Report, Sensitivity
from xgradcheck._restricted import Part
from xgradcheck._sensitivity import of_norm


def projected_outcome(problem: Problem, found: Projected, frame: dict[str, Any]) -> Report:
    """The report of a projection."""
    leaves, findings, notes = Leaves(), list[Finding](), list[str]()
    for number, leaf in enumerate(problem.layout):
        if leaf.size == 0:
            notes.append(f"{leaf.name} is empty")
            leaves[leaf.name] = leaf_entry(leaf, Verdict.PASS, 0.0)
            continue
        own, said, noted = together(_accounts(problem, number, leaf, found))
        leaves[leaf.name] = own
        findings += said
        notes += noted
    notes += _floors(problem, found, leaves)
    worst = largest_distance(leaf.distance for leaf in leaves.values())
    return concluded(problem, leaves, findings, notes, _told(problem, found), worst, frame)


def _told(problem: Problem, found: Projected) -> Told:
    noise = found.projection.noise or Noise(0.0)
    phi, last = found.phi, found.runs[-1]
    first = found.runs[0].backward.gradient
    return Told(
        value=found.value,
        spread=found.spread,
        sigma=float(noise.of(np.array(found.value))),
        bits=found.bits,
        runs=found.runs,
        rtol=tolerance(found.rtol, 0.0, found.bits).rtol,
        allowance=tolerance(found.rtol, 0.0, min(found.bits, last.bits or DOUBLE)),
        influence=lambda: influence(problem.layout, problem.point, first),
        near_by=found.near_by[found.runs[0].mode],
        held=found.held,
        refusals=phi.refusals,
        refusal=phi.refusal,
        unraised=found.unraised,
    )


def _accounts(problem: Problem, number: int, leaf: Leaf, found: Projected) -> list[Account]:
    """What each run of the backward pass comes to in one leaf."""
    return [_account(problem, number, leaf, found, row) for row in range(len(found.runs))]


def _account(problem: Problem, number: int, leaf: Leaf, found: Projected, row: int) -> Account:
    run, projection, restricted = found.runs[row], found.projection, found.restricted
    near_by = found.near_by[run.mode]
    fine = found.fine[row - 1].get(number) if row else None
    suspect, bound = projection.suspects.get(number), projection.bounds.get(number)
    if fine is not None and number not in projection.open:
        # Each was compared by itself with a gradient that is right.
        told = None if fine.is_zero else Sensitivity(fine.floor, fine.floor, fine.floor)
        own = _entry(leaf, run, Verdict.PASS, fine.distance, fine.floor, sensitivity=told)
        # What is wrong near by is told of the formula, in each mode.
        is_formula = run.mode != found.runs[0].mode
        return *(_beside_near_by(own, [], leaf, number, near_by) if is_formula else (own, [])), []
    if restricted is not None and number in restricted.numbers:
        place = restricted.numbers.index(number)
        part = restricted.layout.leaves[place]
        own, said, notes = account(part, place, restricted, found.looked[row], None, row > 0)
        if suspect is not None and own.verdict is Verdict.FAIL:
            own = _with_suspect(own, leaf, suspect, run, bound)
            gradient = run.backward.gradient
            said = [suspects(leaf, suspect, finding, gradient) for finding in said]
        elif number in projection.open and isinstance(part, Part):
            return _open(leaf, number, run, found)
        elif own.verdict is Verdict.FAIL and isinstance(part, Part):
            wrong = _wrong_beside(leaf, number, found, row, own.wrong)
            count = own.wrong if wrong is None else int(wrong.sum())
            said = [in_part(leaf, part.size, finding, wrong) for finding in said]
            own = replace(own, wrong=count, is_estimate=count > own.wrong)
        if own.verdict is Verdict.PASS:
            own, said = _beside_near_by(own, said, leaf, number, near_by)
        if own.verdict is Verdict.FAIL or number not in projection.mistakes:
            return own, said, notes
    elif suspect is not None:
        return _suspected(leaf, suspect, run, bound)
    if number in projection.mistakes:
        mistake, distance = projection.mistakes[number]
        own = _entry(leaf, run, Verdict.FAIL, distance)
        return own, [along_directions(leaf, mistake, run.mode)], []
    if bound is None or number in projection.open:
        return _open(leaf, number, run, found)
    return _certified(leaf, run, found, number, bound)


def _wrong_beside(leaf: Leaf, number: int, found: Projected, row: int, least: int) -> Mask | None:
    """Which elements of a run are wrong beside the gradient of the first one; None where that is
    not certified itself, or tells of less than the ``least`` that differences have told of.
    """
    run, projection = found.runs[row], found.projection
    if not row or number not in projection.bounds or number in projection.open:
        return None
    gradient, right = (x.backward.gradient[leaf.part] for x in (run, found.runs[0]))
    allowance = found.looked[row].allowance
    with np.errstate(invalid="ignore"):
        allowed = allowance.allowed(gradient, right, rms(right)) + run.excused[leaf.part]
        wrong = ~(np.abs(gradient - right) <= allowed)
    return wrong if wrong.sum() >= least else None


def _with_suspect(
    own: LeafReport, leaf: Leaf, suspect: Suspect, run: Run, bound: Bound | None
) -> LeafReport:
    """A leaf of which some coordinates were differenced, with what was found in the others."""
    distance = suspect.distance(run.backward.gradient, leaf)
    wrong, floor = max(own.wrong, suspect.size), own.floor if bound is None else bound.floor
    return replace(
        own,
        wrong=wrong,
        is_estimate=suspect.is_estimate and wrong > own.wrong,
        distance=distance,
        grade=grade(distance),
        floor=floor,
    )


def _suspected(leaf: Leaf, suspect: Suspect, run: Run, bound: Bound | None) -> Account:
    """A leaf that the search alone has looked at."""
    position, off = next(iter(suspect.off.items()))
    given = float(run.backward.gradient[position])
    worst = Element(
        index=leaf.index(position),
        analytic=given,
        truth=given + off.by,
        error_bar=off.bar,
        allowed=off.allowed,
        component=leaf.component(position),
    )
    own = _entry(leaf, run, Verdict.FAIL, 0.0, worst=worst)
    kind = "wrong gradient" if math.isfinite(given) else "not finite"
    finding = Finding(leaf.name, kind, "", (worst.index,))
    finding = suspects(leaf, suspect, finding, run.backward.gradient)
    return _with_suspect(own, leaf, suspect, run, bound), [finding], []


def _floors(problem: Problem, found: Projected, leaves: Leaves) -> list[str]:
    """From which size on a single wrong element would have been seen, and which plainly wrong
    gradients would not.
    """
    projection, layout = found.projection, problem.layout
    singles = {
        number: bound.floor * math.sqrt(bound.width or layout.leaves[number].size)
        for number, bound in projection.bounds.items()
        if bound.floor == bound.floor and leaves[layout.leaves[number].name].verdict is Verdict.PASS
    }
    if not singles:
        return []
    worst = max(singles, key=lambda number: singles[number])
    leaf, floor = layout.leaves[worst], projection.bounds[worst].floor
    notes = [
        f"cannot see a single wrong element below {percent(singles[worst])} of rms({leaf.name})"
    ]
    sizes = impostors(leaf.size, leaf.grid[-1] if leaf.grid else 1)
    if accepted := [name for name, size in sizes.items() if size < floor]:
        notes.append(f"would accept as well, in {leaf.name}: {', '.join(accepted)}")
    return notes


def _entry(leaf: Leaf, run: Run, verdict: Verdict, *known: Any, **more: Any) -> LeafReport:
    """The report on one leaf in one row, with what else ``leaf_entry`` is told."""
    more |= {"precision": precision(run.bits or DOUBLE), "as_run": run.bits is not None}
    return leaf_entry(leaf, verdict, *known, mode=run.mode, **more)


def _certified(leaf: Leaf, run: Run, found: Projected, number: int, bound: Bound) -> Account:
    notes = []
    if number in run.backward.severed:
        notes.append(f"{leaf.name} gets no gradient, and the output does not depend on it")
    if bound.unseen is not None:
        notes.append(
            f"{leaf.name}: zero gradient; anything above {bound.unseen:.1e} would have been seen"
        )
    notes += note_on_points(leaf, Kind.KINK, found.projection.kinks.get(number, 0))
    told = of_norm(leaf, bound.floor, bound.width)
    own = _entry(leaf, run, Verdict.PASS, bound.distance, bound.floor, sensitivity=told)
    return *_beside_near_by(own, [], leaf, number, found.near_by[run.mode]), notes


def _beside_near_by(
    own: LeafReport, said: list[Finding], leaf: Leaf, number: int, near_by: NearBy
) -> tuple[LeafReport, list[Finding]]:
    """What was found of a leaf that is right here, beside what a point near by has shown."""
    mistake = (near_by.mistakes or {}).get(number)
    if mistake is None:
        return own, said
    verdict = Verdict.INCONCLUSIVE if number in near_by.kept else Verdict.FAIL
    finding = only_here(leaf, number, mistake, near_by, own.mode)
    return replace(own, verdict=verdict), [*said, finding]


def _open(leaf: Leaf, number: int, run: Run, found: Projected) -> Account:
    """A leaf that is open at the point; wrong, if it is near by."""
    near_by = found.near_by[run.mode]
    mistake = (near_by.mistakes or {}).get(number)
    if mistake is not None and number not in near_by.kept:
        own = _entry(leaf, run, Verdict.FAIL, undecided=leaf.size)
        return own, [only_here(leaf, number, mistake, near_by, run.mode, is_open=True)], []
    own = _entry(leaf, run, Verdict.INCONCLUSIVE, undecided=leaf.size)
    advice = "move the point" if near_by.can_move else "give grads as a function, move the point"
    text = (
        f"{leaf.name}: directions do not certify it and show no mistake: there are kinks or more "
        f"noise than slope near by; {advice}, or take coverage='sweep'"
    )
    return own, [Finding(leaf.name, "not certified", text)], []
