"""What is known of each wrong leaf, put before the rules; and the mistakes that only another
cotangent or another point shows.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from xgradcheck._diagnose import MANY, Cause, Seen, cause_of
from xgradcheck._differences import norm
from xgradcheck._evidence import Evidence, Steps, evidence_of
from xgradcheck._findings import held_to, right_only
from xgradcheck._generic import LARGE, what_it_keeps
from xgradcheck._judge import Verdict
from xgradcheck._known import Known, known_of, slopes_at
from xgradcheck._layout import BITS, DOUBLE, Positions, Vector
from xgradcheck._measured import REVERSE, Measured, Run
from xgradcheck._noise import TREADS_OF_A_GRID
from xgradcheck._phi import Phi
from xgradcheck._projected import Projected
from xgradcheck._report import Finding, Leaves, Report

TERMS, TURNED, TURNED_LOW = ("L2 term", "L1 term"), 1e-3, 0.1
"""Causes that no cotangent has a part in; and how much of what is missing one may change, the
second below float64.
"""
SAME = 1e-12
"""Two gradients that are nearer than that, relative, are the same."""
OTHER = 10.0
"""How many times more than differences err by the slope has to be another elsewhere."""
FEW = 6
"""Elements that are measured anew, of the Jacobian's diagonal or at another point."""
LARGEST = 4
"""Elements that are differenced, the largest of a leaf, where few others tell a cause."""
AWAY = 0.3
"""How far away another point is, as a share of the leaf's scale."""

NOTHING = ("no gradient", "not finite")
PLAIN = (*NOTHING, "kink")
"""Findings that say by themselves what is wrong."""
STALE = "it is that of an earlier call (stale), or a constant"
CLOSE = 0.01
"""By which share of itself an element may be off where a backward pass is only an approximation."""


def with_causes(
    report: Report,
    phi: Phi,
    found: Projected | list[Measured],
    another: Callable[[], Vector],
) -> Report:
    """The report with the causes of what is wrong, each behind what else is said of its leaf;
    ``another`` makes a cotangent of other numbers.
    """
    wrong = [
        number
        for number, leaf in enumerate(phi.problem.layout)
        if report.leaves[leaf.name].verdict is Verdict.FAIL and number not in phi.tangents
    ]
    if not wrong or any(finding.kind == "accumulates" for finding in report.findings):
        return report  # what is known already needs no other cause
    looked = _Looked(phi, found, another)
    findings, leaves = [*report.findings], Leaves(report.leaves)
    off: list[float] = []
    if any(finding.kind == "precision" for finding in findings):
        exact = _wrong_in_double(phi, report)
        findings = [x for x in findings if x.kind != "precision" or x.leaf not in exact]
    for number in wrong:
        leaf = phi.problem.layout.leaves[number]
        entry = report.leaves[leaf.name]
        verdicts = [own.verdict for own in entry.rows or (entry,)]
        row = verdicts.index(Verdict.FAIL) if Verdict.FAIL in verdicts else 0
        said = [n for n, finding in enumerate(findings) if finding.leaf == leaf.name]
        place = said[-1] + 1 if said else len(findings)
        kinds = {findings[n].kind for n in said}
        is_plain = not kinds.isdisjoint(PLAIN)
        if kinds.isdisjoint(NOTHING) and (own := looked.kept(number, row, entry.distance)):
            findings.insert(place, right_only(leaf, own))
        known = known_of(phi, found, number, row, may_run=not is_plain)
        if known is None:
            off.append(np.inf)
            continue
        off.append(looked.off(number, row, known))
        leaves[leaf.name] = replace(entry, evidence=looked.evidence(number, row, known))
        if not is_plain and (cause := looked.cause(number, row, known)) is not None:
            findings.insert(place, Finding(leaf.name, cause.kind, cause.text))
            # A mistake of that size is no rounding.
            findings = [x for x in findings if (x.leaf, x.kind) != (leaf.name, "precision")]
    notes = report.notes
    if 0 < max(off) <= CLOSE and all(finding.kind == "wrong gradient" for finding in findings):
        notes += (held_to(max(off)),)
    return replace(
        report,
        leaves=leaves,
        findings=tuple(findings),
        notes=notes,
        evaluations=phi.evaluations,
    )


def _wrong_in_double(phi: Phi, report: Report) -> set[str]:
    """The leaves that are wrong where all that the backward pass computes is known to be float64: a
    mistake may be as large as the rounding of a shorter format, and as random.
    """
    problem = phi.problem
    told = getattr(problem, "bits_of_backward", None)
    if told is None:
        return set()
    if told(phi.cotangent) == DOUBLE:
        return {*report.leaves}
    wrong = {
        name
        for name, leaf in report.leaves.items()
        if leaf.rows and leaf.rows[0].verdict is Verdict.FAIL and not leaf.rows[0].as_run
    }
    for raised in problem.raisings() if wrong else ():
        try:
            with raised():
                if told(phi.cotangent) == DOUBLE:
                    return wrong
        except Exception:  # what cannot be raised that way
            continue
    return set()


class _Looked:
    """One problem, and what was measured of it."""

    def __init__(
        self, phi: Phi, found: Projected | list[Measured], another: Callable[[], Vector]
    ) -> None:
        self.phi, self.found, self.layout = phi, found, phi.problem.layout
        self.runs: Sequence[Run] = (
            found.runs if isinstance(found, Projected) else [row.run for row in found]
        )
        sizes = (*self.layout, *phi.problem.outputs)
        self.extents = frozenset(n for leaf in sizes for n in leaf.shape if n > 1)
        self.another = another
        # More backward passes, and vectors as long as all leaves, are for what is not large.
        self.may_run = (
            self.layout.size <= LARGE
            and not phi.budget.is_cut
            and any(run.mode == REVERSE for run in self.runs)
        )

    @functools.cached_property
    def is_staircase(self) -> bool:
        """Whether the function is known to round to a grid, or to compare numbers."""
        problem = self.phi.problem
        return any(getattr(problem, name, False) for name in ("rounds", "switches"))

    @functools.cached_property
    def under_another(self) -> Vector | None:
        """The gradient under another cotangent; None where there is none."""
        problem = self.phi.problem
        if not self.may_run or problem.unit_cotangent:
            return None
        return _tried(lambda: problem.gradient(self.another()).gradient)

    @functools.cached_property
    def moved(self) -> Vector:
        """Another point, where every sign is another: what is constant by pieces moves, too."""
        scale, _ = self.phi.scales()
        far = AWAY * np.cos(np.arange(scale.size))
        return -self.phi.problem.point * (1 + far) - far * scale

    @functools.cached_property
    def elsewhere(self) -> Vector | None:
        """The gradient at that point; None where there is none."""
        problem = self.phi.problem
        if not self.may_run or not problem.can_move or self.phi.is_bound:
            return None

        def there() -> Vector:
            with problem.at(self.moved):
                return problem.gradient(self.phi.cotangent).gradient

        return _tried(there)

    def cause(self, number: int, row: int, known: Known) -> Cause | None:
        """What is wrong with one leaf."""
        if not known.truth.any() and self.is_staircase and self._stands_still(number):
            text = (
                f"{self.layout.leaves[number].name}: the function is a staircase, whose slope is 0 "
                f"here: if another gradient stands in for it on purpose, state that one in "
                f"audit(expect=...)"
            )
            return Cause("staircase", text)
        seen = self._seen(number, row, known)
        if seen is None:
            return None
        found = cause_of(seen)
        if found is not None and seen.places.size < min(MANY, seen.gradient.size):
            found = self._of_the_largest_too(seen)
        if found is not None and found.kind == "zero":
            return found
        if self.runs[row].mode != REVERSE:
            return found
        if self._is_same(self.under_another, number):
            if self._is_stale(number, seen):
                text = f"{seen.name} is the same under another cotangent and at another point: "
                return Cause("stale", f"{text}{STALE}")
            text = f"{seen.name} does not change with the cotangent: what comes in is not used"
            return Cause("cotangent", text)
        if found is not None and found.kind in TERMS and self._turns(number, seen):
            found = None
        return found or self._stale(number, seen) or self._diagonal(seen)

    def _stands_still(self, number: int) -> bool:
        """Whether all of a leaf together moves phi by nothing over a narrow step."""
        leaf = self.layout.leaves[number]
        scale = self.phi.scales()[0][leaf.part]
        moves = scale * np.random.default_rng(0x57A1).uniform(-1, 1, leaf.size)
        found = self.phi.along(
            moves, 2.0**TREADS_OF_A_GRID * np.array([-1.0, 0.0, 1.0]), leaf.start
        )
        return bool((found == found[1]).all())

    def kept(self, number: int, row: int, off: float) -> str:
        """What a leaf is as long as which its gradient, ``off`` by that distance, is right."""
        if not self.may_run or self.runs[row].mode != REVERSE:
            return ""
        gradient = self._gradient(number, row)
        try:
            return what_it_keeps(self.phi, self.layout.leaves[number], gradient, off, 0)
        except Exception:  # nothing that was only tried may hide what was found
            return ""

    def off(self, number: int, row: int, known: Known) -> float:
        """How much an element of a leaf is off by, as a share of itself, at most; infinite where
        not all are known, or rounding may have a part in it.
        """
        if self.runs[row].bits is not None or known.places.size < self.layout.leaves[number].size:
            return np.inf
        given = self._gradient(number, row)[known.places]
        wrong = np.abs(given - known.truth) > known.bar
        with np.errstate(all="ignore"):
            shares = np.abs(given - known.truth) / np.fmax(np.abs(given), np.abs(known.truth))
        return float(np.max(shares[wrong], initial=0.0))

    def _turns(self, number: int, seen: Seen) -> bool:
        """Whether what is missing is other under another cotangent: a term of the leaf alone is
        not, and the projection of a norm is.
        """
        if self.phi.problem.outputs.size == 1 or self.under_another is None:
            return False
        part, some = self.layout.leaves[number].part, _spread(seen.places.size)
        with self.phi.anew(self.another()) as other:
            slopes = slopes_at(other, part.start + seen.places[some])
        if slopes is None:
            return False
        before = seen.truth[some] - seen.found[some]
        after = slopes - self.under_another[part][seen.places[some]]
        most = TURNED if self.phi.problem.bits == DOUBLE else TURNED_LOW
        return norm(after - before) > most * norm(before)

    def _of_the_largest_too(self, seen: Seen) -> Cause | None:
        """The cause that holds for the largest elements as well, which few others say little of."""
        size = np.abs(seen.gradient)
        size[seen.places] = -1.0
        some = min(LARGEST, size.size - seen.places.size)
        chosen = np.sort(np.argpartition(-size, some - 1)[:some])
        slopes = None
        if not self.phi.budget.is_cut:
            slopes = slopes_at(self.phi, seen.leaf.start + chosen)
        if slopes is None:
            return None
        places, truth = np.append(seen.places, chosen), np.append(seen.truth, slopes)
        order = np.argsort(places)
        return cause_of(replace(seen, places=places[order], truth=truth[order]))

    def _is_same(self, other: Vector | None, number: int) -> bool:
        if other is None:
            return False
        part = self.layout.leaves[number].part
        last = [run for run in self.runs if run.mode == REVERSE][-1]
        own = last.backward.gradient[part]
        return norm(other[part] - own) <= SAME * norm(own) > 0

    def evidence(self, number: int, row: int, known: Known) -> Evidence:
        """What a leaf was judged by, with the steps that were taken at its worst element."""
        gradient = self._gradient(number, row)
        steps = self._steps(number, row, gradient)
        return evidence_of(known.places, gradient, known.truth, known.bar, known.bad, steps)

    def _gradient(self, number: int, row: int) -> Vector:
        return self.runs[row].backward.gradient[self.layout.leaves[number].part]

    def _steps(self, number: int, row: int, gradient: Vector) -> Steps | None:
        found, leaf = self.found, self.layout.leaves[number]
        where: Positions | None = None
        if not isinstance(found, Projected):
            truth = found[row].truth
        elif found.restricted is not None and number in found.restricted.numbers:
            truth, where = found.looked[row].truth, found.restricted.places
        else:
            return None
        taken = {place: place if where is None else int(where[place]) for place in truth.rungs}
        off = {
            place: abs(truth.value[place] - gradient[position - leaf.start])
            for place, position in taken.items()
            if leaf.part.start <= position < leaf.part.stop
        }
        if not off or not np.isfinite([*off.values()]).all():
            return None
        worst = max(off, key=lambda place: off[place])
        steps, above, below = truth.rungs[worst][:, np.argsort(truth.rungs[worst][0])]
        known = np.isfinite(steps)
        return Steps(
            leaf.index(taken[worst]),
            steps[known],
            above[known],
            below[known],
            float(gradient[taken[worst] - leaf.start]),
            float(truth.value[worst]),
            float(truth.bar[worst]),
        )

    def _seen(self, number: int, row: int, known: Known) -> Seen | None:
        """A leaf as the rules see it; None for what none of them can speak of."""
        leaf, gradient = self.layout.leaves[number], self._gradient(number, row)
        size = norm(known.truth)
        if not np.isfinite(gradient).all() or not size:
            return None
        bits = self.runs[row].bits or DOUBLE
        return Seen(
            leaf,
            gradient,
            self.phi.problem.point[leaf.part],
            known.places,
            known.truth,
            known.bad,
            known.is_sample,
            max(norm(known.bar) / size, 2.0**-bits),
            self.phi.unit or 1.0,
            self.extents,
            [other.path[-1:] for other in self.layout].count(leaf.path[-1:]) == 1,
            dict(self._others(number, row)),
        )

    def _others(self, number: int, row: int) -> Iterator[tuple[str, Vector]]:
        """What a gradient may be instead of the truth."""
        leaf, problem = self.layout.leaves[number], self.phi.problem
        if problem.outputs.size == leaf.size and leaf.size > 1 and not leaf.is_complex:
            yield (
                "the cotangent: the derivative of the function itself is missing",
                self.phi.cotangent,
            )
        if leaf.is_complex:
            return
        if problem.point[leaf.part].any():
            yield f"{leaf.name} itself", problem.point[leaf.part]
        for place, other in enumerate(self.layout):
            if place == number or other.size != leaf.size:
                continue
            truth = self.runs[row].backward.gradient[other.part]
            if not isinstance(self.found, Projected):
                truth = self.found[row].truth.value[other.part]
            yield f"the gradient of {other.name}", truth

    def _stale(self, number: int, seen: Seen) -> Cause | None:
        """The same gradient at another point, where the truth is another."""
        for called, other in seen.others.items():
            if norm(seen.gradient - other) <= SAME * norm(other) > 0:
                return Cause("another", f"{seen.name} = {called}")
        if not self._is_stale(number, seen):
            return None
        text = f"{seen.name} is the same at another point, where the truth is not: {STALE}"
        return Cause("stale", text)

    def _is_stale(self, number: int, seen: Seen) -> bool:
        if not self._is_same(self.elsewhere, number) or self.elsewhere is None:
            return False
        if seen.gradient.size > 1 and not np.ptp(np.abs(seen.gradient)):
            return False  # cut off at one size everywhere
        if self.phi.problem.bits < BITS["float32"]:
            return False  # slopes taken there tell nothing
        some = _spread(seen.places.size)
        places, truth = seen.leaf.start + seen.places[some], seen.truth[some]
        with self.phi.problem.at(self.moved), self.phi.anew() as there:
            slopes = slopes_at(there, places)
        here = None if slopes is None else slopes_at(self.phi, places)
        if slopes is None or here is None:
            return False
        # By no more than such differences err by it may be the same there.
        share = 0.01 if self.phi.problem.bits == DOUBLE else TURNED_LOW
        least = max(share * norm(truth), OTHER * norm(here - truth))
        return norm(slopes - here) > least

    def _diagonal(self, seen: Seen) -> Cause | None:
        """What each element does to its own output alone."""
        leaf, outputs = seen.leaf, self.phi.problem.outputs
        if outputs.size != leaf.size or seen.places.size < 2 or outputs.size < 2:
            return None
        # Those that are off by most, and others.
        worst = np.argsort(-np.abs(seen.found - seen.truth))[: FEW // 2]
        some = np.unique([*worst, *_spread(seen.places.size)])
        own = np.zeros(len(some))
        for n, place in enumerate(seen.places[some]):
            alone = np.zeros_like(self.phi.cotangent)
            alone[place] = self.phi.cotangent[place]
            with self.phi.anew(alone) as other:
                slope = slopes_at(other, np.array([leaf.start + int(place)]))
            if slope is None:
                return None
            own[n] = slope[0]
        close = 1e-4 if self.phi.problem.bits == DOUBLE else 2e-2
        left, apart = seen.found[some] - own, seen.truth[some] - own
        if not (norm(left) <= close * norm(own) and 10 * norm(left) <= norm(apart)):
            return None
        text = (
            f"{seen.name} = the diagonal of the Jacobian times the cotangent: what an element does "
            f"to the other outputs is missing"
        )
        return Cause("diagonal", text)


def _spread(count: int) -> Positions:
    """A few of so many, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, FEW).astype(np.intp))


def _tried(run: Callable[[], Vector]) -> Vector | None:
    """A gradient, where there is one: what a backward pass refuses here is no news."""
    try:
        gradient = run()
    except Exception:
        return None
    return gradient if np.isfinite(gradient).all() else None
