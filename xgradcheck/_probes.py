"""The probes of an audit, and how each is judged; the doing is the adapter's.

A probe is a handful of experiments. In each the backward pass runs once more, with something else
than usual, and what it gives has to be what it gave before, or what linearity makes of that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xgradcheck._adapters import Problem, Trial
from xgradcheck._differences import natural_scale, rms
from xgradcheck._judge import Verdict, tolerance, zero_below
from xgradcheck._layout import DOUBLE, Vector
from xgradcheck._report import Finding, ProbeReport

PROBES = {
    "layout": "the same whatever the memory layout of cotangents and inputs",
    "cotangents": "linear in the cotangent, whatever it is",
    "form": "gradients of the shape, dtype and device of their inputs",
    "purity": "writes to nobody else's memory, and hands none out",
    "repetition": "calls leave each other alone",
    "subsets": "a gradient does not depend on which others are wanted",
    "aliasing": "one tensor passed twice gets both gradients",
    "memory": "reads nothing that was not written before",
    "second order": "the gradient of the gradient is right, or refused",
    "forward mode": "tangents are right, where there is a rule for them",
}
"""Their names, and what has to hold."""
CORE = ("second order", "forward mode")
"""Those that are checks of their own."""
SAID = 3
"""Of so many failed trials each is told in a sentence."""


@dataclass(frozen=True, slots=True)
class Usual:
    """The backward pass as it usually runs."""

    problem: Problem
    gradient: Vector
    slack: Vector
    """By how much each element varies from run to run."""

    def fault(self, trial: Trial) -> str:
        """What is wrong with what a trial gave, as one sentence; nothing where all is well."""
        if trial.error is not None:
            return f"{trial.what}: raises {short(trial.error)}"
        if trial.fault:
            return f"{trial.what} {trial.fault}"
        if trial.got is None:
            return ""
        expected = self.gradient if trial.expected is None else trial.expected
        wrong, first = self._wrong(trial.got, expected, trial.leaves)
        if not wrong:
            return ""
        layout = self.problem.layout
        leaf = layout.leaves[int(layout.owners(np.array([first]))[0])]
        name = leaf.element(leaf.index(first))
        more = f", and {wrong - 1} more elements are others" if wrong > 1 else ""
        return f"{trial.what}: {name} is {trial.got[first]:.6g}, not {expected[first]:.6g}{more}"

    def _wrong(
        self, got: Vector, expected: Vector, leaves: tuple[int, ...] | None
    ) -> tuple[int, int]:
        """How many elements are not what they have to be, and the position of the worst."""
        layout, point = self.problem.layout, self.problem.point
        scale = natural_scale(point, layout)[0]
        bits = min(self.problem.bits, DOUBLE)
        zero = zero_below(layout, scale, (self.gradient, expected), bits)
        wrong, worst, most = 0, 0, 0.0
        for number, leaf in enumerate(layout):
            if not leaf.size or (leaves is not None and number not in leaves):
                continue
            part = leaf.part
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


def judged(name: str, trials: Iterator[Trial], usual: Usual) -> ProbeReport:
    """What a probe came to."""
    tried, faults, refusals = [], list[str](), list[str]()
    for trial in trials:
        fault = usual.fault(trial)
        if trial.error is not None and trial.refuses:
            refusals.append(fault)
            continue
        tried.append(trial.what)
        if fault:
            faults.append(fault)
    if not tried:
        reason = refusals[0] if refusals else "there is nothing to try"
        return ProbeReport(name, Verdict.SKIPPED, PROBES[name], reason=reason)
    said = [Finding("", name, fault) for fault in faults[:SAID]]
    if len(faults) > SAID:
        said.append(Finding("", name, f"{len(faults) - SAID} more trials of {len(tried)} fail"))
    verdict = Verdict.FAIL if faults else Verdict.PASS
    return ProbeReport(name, verdict, PROBES[name], tuple(tried), findings=tuple(said))


def short(error: Exception) -> str:
    """An exception in one line."""
    first = str(error).strip().splitlines()[:1]
    text = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
