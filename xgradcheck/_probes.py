"""The probes of an audit, and how each is judged; the doing is the adapter's.

A probe is a handful of experiments. In each the backward pass runs once more, with something else
than usual, and what it gives has to be what it gave before, or what linearity makes of that.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from xgradcheck._adapters import Problem, Trial
from xgradcheck._differences import natural_scale, rms
from xgradcheck._errors import short
from xgradcheck._judge import Verdict, tolerance, zero_below
from xgradcheck._layout import Vector
from xgradcheck._report import Finding, LeafReport, ProbeReport, Report

PROBES = {
    "layout": "the same whatever the memory layout of cotangents and inputs",
    "cotangents": "linear in the cotangent, whatever it is",
    "form": "gradients of the shape, dtype and device of their inputs",
    "purity": "writes to nobody else's memory, and hands none out",
    "repetition": "calls leave each other alone",
    "subsets": "a gradient does not depend on which others are wanted",
    "aliasing": "one tensor passed twice gets both gradients",
    "memory": "reads nothing that was not written before",
    "seeds": "a seed gives the same again, and what was dropped has no gradient",
    "transforms": "the same under every transformation, or refused",
    "opcheck": "registered as an operator has to be",
    "dtypes": "right in lower precision too, as far as that goes",
    "optional": "right without arguments that may be left out",
    "values": "right where arguments have other values",
    "shapes": "right at other sizes",
    "slices": "a batch gives what its parts give",
    "second order": "the gradient of the gradient is right, or refused",
    "forward mode": "tangents are right, where there is a rule for them",
}
"""Their names, and what has to hold."""
CORE = ("dtypes", "optional", "values", "shapes", "slices", "second order", "forward mode")
"""Those that are checks of their own."""
EXTREME = ("dtypes", "values")
"""Those that go where right gradients may have no finite value."""
NOTHING = {
    "cotangents": "the gradient was handed in for a cotangent of 1",
    "form": "there is no custom rule in it",
    "seeds": "it has no seed, and drops nothing at random",
    "optional": "no argument that was given may be left out",
    "slices": "name the arguments that hold samples with batch=",
    "opcheck": "it calls no operator of torch.library",
    "subsets": "there is one leaf alone",
    "aliasing": "no two arguments could lie in one memory",
    "dtypes": "there are no arguments of higher precision, or their gradient was handed in",
    "values": "there are no arguments to change, or their gradient was handed in",
    "shapes": "give shapes=, a function that makes the arguments of a size",
}
"""Why there may be nothing to try."""
FAR, NEAR, HALF = 20, 3, 11
"""How many powers of two a huge cotangent is larger; fewer in float16, by its bits."""
MOVED = 2.0**-6
"""How far away another call is, as a share of each coordinate."""
LOST = 1e-5
"""What distance a right backward pass may have at extreme values."""
ROUNDED = 8
"""By so many bits less than all of them outputs may differ."""
REPEATS = 4
SAID = 3
"""Of so many failed trials each is told in a sentence."""


@dataclass(frozen=True, slots=True)
class Usual:
    """The backward pass as it usually runs."""

    problem: Problem
    gradient: Vector
    slack: Vector
    """By how much each element varies from run to run."""
    scale: Vector
    """How large a full change of each coordinate is."""

    @classmethod
    def of(cls, problem: Problem, cotangent: Vector) -> "Usual":
        """What two runs give."""
        first, second = (problem.gradient(cotangent).gradient for _ in range(2))
        slack = np.nan_to_num(np.abs(second - first))
        return cls(problem, first, slack, natural_scale(problem.point, problem.layout)[0])

    @classmethod
    def beside(cls, problem: Problem, gradient: Vector) -> "Usual":
        """A gradient that is known from elsewhere."""
        scale = natural_scale(problem.point, problem.layout)[0]
        return cls(problem, gradient, np.zeros_like(gradient), scale)

    def fault(self, trial: Trial) -> str:
        """What is wrong with what a trial gave, as one sentence; nothing where all is well."""
        if trial.error is not None:
            return f"{trial.what}: raises {short(trial.error)}"
        if trial.fault:
            return f"{trial.what} {trial.fault}"
        if trial.phi is not None and (text := self._other_output(*trial.phi)):
            return f"{trial.what} {text}"
        if trial.got is None:
            return ""
        expected = self.gradient if trial.expected is None else trial.expected
        beside = expected if trial.beside is None else trial.beside
        wrong, first = self._wrong(trial.got, expected, beside, trial.leaves)
        if not wrong:
            return ""
        layout = self.problem.layout
        leaf = layout.leaves[int(layout.owners(np.array([first]))[0])]
        name = leaf.element(leaf.index(first))
        more = f", and {wrong - 1} more elements are others" if wrong > 1 else ""
        return f"{trial.what}: {name} is {trial.got[first]:.6g}, not {expected[first]:.6g}{more}"

    def _other_output(self, found: float, usual: float, size: float) -> str:
        if abs(found - usual) > 2.0 ** (ROUNDED - self.problem.bits) * size:
            return f"gives another output: phi is {found:.6g}, not {usual:.6g}"
        return ""

    def _wrong(
        self, got: Vector, expected: Vector, beside: Vector, leaves: tuple[int, ...] | None
    ) -> tuple[int, int]:
        """How many elements are not what they have to be, and the position of the worst."""
        layout, bits = self.problem.layout, self.problem.bits
        zero = zero_below(layout, self.scale, (self.gradient, expected), bits)
        wrong, worst, most = 0, 0, 0.0
        for number, leaf in enumerate(layout):
            if not leaf.size or (leaves is not None and number not in leaves):
                continue
            part = leaf.part
            least = min(rms(beside[part]), rms(expected[part]))
            if rms(beside[part] - expected[part]) > 2.0 ** (-bits / 2) * least:
                continue  # rounding alone decides
            allowed = tolerance(None, 0.0, bits).allowed(
                got[part], expected[part], rms(expected[part])
            )
            allowed = allowed + np.fmax(zero[part], self.slack[part])
            known = np.isfinite(expected[part])
            error = np.abs(got[part] - expected[part])
            bad = known & ~(error <= allowed)
            if not bad.any():
                continue
            wrong += int(bad.sum())
            merit = np.where(bad, np.nan_to_num(error / allowed, nan=np.inf), -1.0)
            place = int(np.argmax(merit))
            if merit[place] > most:
                worst, most = leaf.start + place, float(merit[place])
        return wrong, worst


def trials(name: str, usual: Usual, cotangent: Vector) -> Iterator[Trial]:
    """The experiments of a probe that need nothing but the backward pass itself."""
    if name == "cotangents" and not usual.problem.unit_cotangent:
        yield from _of_cotangents(usual.problem, usual.gradient, cotangent)
    elif name == "repetition" and usual.problem.can_move:
        yield _of_repeats(usual, cotangent)
        yield from _of_repetition(usual.problem, cotangent)


def tried(
    what: str, run: Callable[[], Vector], expected: Callable[[], Vector] | None = None
) -> Trial:
    """What a run gives, or raises."""
    try:
        return Trial(what, run(), None if expected is None else expected())
    except Exception as error:  # whatever a backward pass has against it
        return Trial(what, error=error)


def _of_cotangents(problem: Problem, usual: Vector, u: Vector) -> Iterator[Trial]:
    """A backward pass is linear in the cotangent, whatever it is."""

    def at(cotangent: Vector) -> Vector:
        return problem.gradient(cotangent).gradient

    v = np.flip(u) * np.where(np.arange(u.size) % 2, 0.75, -1.25)
    yield tried("the sum of two cotangents", lambda: at(u + v), lambda: usual + at(v))
    yield tried("the cotangent times three", lambda: at(3 * u), lambda: 3 * usual)
    yield tried("the cotangent negated", lambda: at(-u), lambda: -usual)
    yield tried("a cotangent of zeros", lambda: at(0 * u), lambda: 0 * usual)
    ones = np.ones_like(u)
    yield tried("a cotangent of ones", lambda: at(ones), lambda: at(u + ones) - usual)
    lone = np.where(np.arange(u.size) == np.argmax(np.abs(u)), u, 0.0)
    yield tried("a cotangent of one element", lambda: at(lone), lambda: usual - at(u - lone))
    reach = 2.0 ** (NEAR if problem.bits == HALF else FAR)
    yield tried("a huge cotangent", lambda: at(reach * u), lambda: reach * usual)
    yield tried("a tiny cotangent", lambda: at(u / reach), lambda: usual / reach)


def _of_repeats(usual: Usual, cotangent: Vector) -> Trial:
    """Runs differ by the order of their sums, where they differ; more than that is a race."""
    what = f"{REPEATS} runs alike"
    try:
        runs = [usual.problem.gradient(cotangent).gradient for _ in range(REPEATS)]
    except Exception as error:
        return Trial(what, error=error)
    runs.append(usual.gradient)
    exact = Usual.beside(usual.problem, usual.gradient)
    lowest, highest = np.min(runs, axis=0), np.max(runs, axis=0)
    fault = exact.fault(Trial("in another one", highest, lowest))
    return Trial(what, fault=f"differ by more than rounding, {fault}" if fault else "")


def _of_repetition(problem: Problem, cotangent: Vector) -> Iterator[Trial]:
    """What was asked before makes no difference."""
    yield tried("a second run", lambda: problem.gradient(cotangent).gradient)
    other = cotangent if problem.unit_cotangent else 3 * np.flip(cotangent)
    moved = problem.point + MOVED * np.where(problem.point == 0, 1.0, problem.point)
    try:
        with problem.at(moved):
            problem.gradient(other)
    except Exception:  # not in the domain
        problem.gradient(other)
    yield tried("a run after another one", lambda: problem.gradient(cotangent).gradient)


def judged(name: str, trials: Iterable[Trial], usual: Usual) -> ProbeReport:
    """What a probe came to."""
    done, faults, refusals = list[str](), list[tuple[str, str]](), list[str]()
    for trial in _whole(trials, name):
        fault = usual.fault(trial)
        if trial.error is not None and trial.refuses:
            refusals.append(fault)
            continue
        done.append(trial.what)
        if fault:
            faults.append((trial.what, fault))
    if not done:
        reason = refusals[0] if refusals else NOTHING.get(name, "there is nothing to try")
        return ProbeReport(name, Verdict.SKIPPED, PROBES[name], reason=reason)
    said = [Finding("", name, fault) for _, fault in faults[:SAID]]
    if len(faults) > SAID:
        said.append(Finding("", name, f"{len(faults) - SAID} more trials of {len(done)} fail"))
    verdict = Verdict.FAIL if faults else Verdict.PASS
    told = tuple(said), tuple(refusals), tuple(what for what, _ in faults)
    return ProbeReport(name, verdict, PROBES[name], tuple(done), "", *told)


def _whole(trials: Iterable[Trial], name: str) -> Iterator[Trial]:
    """The experiments; where one could not even be prepared, that is what the last one tells."""
    try:
        yield from trials
    except Exception as error:
        yield Trial(f"the next trial of {name}", error=error)


Run = Callable[[], Report | str]


def varied(
    name: str, variants: Iterable[tuple[str, Run]], fault: Callable[[Report], str]
) -> ProbeReport:
    """What checks of something else come to. Where the truth is uncertain nothing is told; where
    there was nothing to compare a run gives what is wrong, if anything is.
    """
    done, wrong, refusals = list[str](), dict[str, str](), list[str]()
    for what, checked in variants:
        try:
            report = checked()
        except Exception as error:  # not in the domain
            refusals.append(f"{what}: {short(error)}")
            continue
        if isinstance(report, str):
            done.append(what)
            wrong |= {what: f"{what}: {report}"} if report else {}
            continue
        if name in EXTREME and _has_no_slope(report):
            refusals.append(f"{what}: the gradient is not finite")  # a square root of zero
            continue
        done.append(what)
        if report.verdict is Verdict.FAIL and (text := fault(report)):
            wrong[what] = f"{what}: {text}"
    if not done:
        reason = refusals[0] if refusals else NOTHING[name]
        return ProbeReport(name, Verdict.SKIPPED, PROBES[name], reason=reason)
    said = [Finding("", name, text) for text in [*wrong.values()][:SAID]]
    if len(wrong) > SAID:
        right = [what for what in done if what not in wrong]
        text = f"wrong at {_listed([*wrong])}; right at {_listed(right) or 'none of these'}"
        said.append(Finding("", name, text))
    verdict = Verdict.FAIL if wrong else Verdict.PASS
    told = tuple(said), tuple(refusals), tuple(wrong)
    return ProbeReport(name, verdict, PROBES[name], tuple(done), "", *told)


def _has_no_slope(report: Report) -> bool:
    """Whether a gradient is not finite where differences find none either; or zero, as between the
    two slopes of a root of squares; or where nothing of it is finite, as at a matrix of zeros.
    """
    names = [finding.leaf for finding in report.findings if finding.kind == "not finite"]
    return bool(names) and not any(_has_slope(report.leaves[name]) for name in names)


def _has_slope(leaf: LeafReport) -> bool:
    worst = leaf.worst
    is_known = worst is not None and abs(worst.truth) - worst.error_bar > worst.allowed
    return is_known and leaf.wrong < leaf.size


def any_fault(report: Report) -> str:
    """What a check found first."""
    return report.findings[0].text if report.findings else ""


def gross_fault(report: Report) -> str:
    """What is wrong by far: at extreme values a right backward pass loses digits."""
    leaves = [leaf for leaf in report.leaves.values() if leaf.verdict is Verdict.FAIL]
    far = [leaf.name for leaf in leaves if not leaf.distance <= LOST]  # NaN, too
    texts = [finding.text for finding in report.findings if finding.leaf in (*far, "")]
    return texts[0] if far and texts else ""


def _listed(names: list[str]) -> str:
    """Names that begin alike said once: "size 1, 7, 9"."""
    first = names[0].rpartition(" ")[0] if names else ""
    if first and all(name.rpartition(" ")[0] == first for name in names):
        return f"{first} {', '.join(name.rpartition(' ')[2] for name in names)}"
    return ", ".join(names)
