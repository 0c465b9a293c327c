"""How good the numerical derivatives are, whether their bars cover, and what verdicts follow.

Four tables: error bars beside those of other methods, over random directions of many families of
functions whose gradients are known in closed form; verdicts on gradients with an error of known
size, beside the rule of torch's gradcheck and the textbook's; points of every kind, kinks and jumps
and edges of a domain among them. Prints the tables and writes accuracy.json beside this file.
Run: python benchmarks/accuracy.py
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _rivals import RIVALS
from rich.console import Console
from rich.progress import track
from rich.table import Table

from xgradcheck import check
from xgradcheck._derivative import derivative
from xgradcheck._judge import distance
from xgradcheck._noise import measure_noise
from xgradcheck._stages import environment

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from families import FAMILIES, Family, Problem, scales
from points import KINDS, confusion

DRAWS, DIRECTIONS = 82, 3
"""Of each family: over 10,000 directions in all."""
JUDGED = 12
"""Gradients of each family that are judged."""
POINTS = 100
ERRORS = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
OURS = "xgradcheck"

Row = dict[str, Any]


class Phi:
    """A problem's function along lines, its evaluations counted."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.evaluations = problem, 0

    def along(self, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
        self.evaluations += len(steps)
        return np.array(
            [self.problem.value(self.problem.point + step * direction) for step in steps]
        )


def directions(family: Family, target: float, rivals: bool) -> dict[str, list[Row]]:
    """For each method the errors, bars and evaluations over random directions."""
    found: dict[str, list[Row]] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, FAMILIES.index(family)])
        problem = family.draw(rng)
        phi, scale = Phi(problem), scales(problem.point)
        value = problem.value(problem.point)
        noise = measure_noise(phi.along, value, problem.point, scale, rng, 1.0)
        for _ in range(DIRECTIONS):
            direction = scale * rng.normal(size=scale.size)
            wanted = target * abs(float(problem.slope(direction)))
            phi.evaluations = 0
            ours = derivative(phi.along, problem.point, direction, value, noise, wanted)
            exact = problem.slope(ours.direction)
            answers = {OURS: (ours.value, ours.bar, phi.evaluations)}
            if rivals:

                def line(t: float, direction: np.ndarray = ours.direction) -> float:
                    return problem.value(problem.point + t * direction)  # noqa: B023

                answers |= {name: tuple(rival(line)) for name, rival in RIVALS.items()}
            for name, (slope, bar, evaluations) in answers.items():
                error = abs(float(np.longdouble(slope) - exact))
                row = {"error": error, "bar": bar, "size": abs(float(exact)), "ev": evaluations}
                found.setdefault(name, []).append(row)
    return found


def summed_up(rows: list[Row]) -> Row:
    error, bar, size, ev = (
        np.array([row[key] for row in rows], float) for key in ("error", "bar", "size", "ev")
    )
    with np.errstate(all="ignore"):
        relative = np.nan_to_num(error / size, nan=np.inf)
        ratio = (bar / error)[(error > 0) & np.isfinite(bar)]
    return {
        "directions": len(rows),
        "covered": None if np.isnan(bar).all() else float(np.mean(error <= bar)),
        "bar / error": float(np.median(ratio)) if ratio.size else None,
        "median error": float(np.median(relative)),
        "99%": float(np.quantile(relative, 0.99, method="lower")),
        "evaluations": float(np.mean(ev)),
    }


def gradcheck_rule(problem: Problem, gradient: np.ndarray) -> str:
    """torch.autograd.gradcheck's: eps 1e-6, atol 1e-5, rtol 1e-3, element by element."""
    slopes = textbook_slopes(problem, 1e-6)
    return "PASS" if (np.abs(slopes - gradient) <= 1e-5 + 1e-3 * np.abs(slopes)).all() else "FAIL"


def textbook_rule(problem: Problem, gradient: np.ndarray) -> str:
    """eps 1e-7; a distance up to 1e-5 is right, from 1e-3 on it is wrong, between: look twice."""
    score = distance(textbook_slopes(problem, 1e-7), gradient)
    return "PASS" if score <= 1e-5 else "FAIL" if not score < 1e-3 else "INCONCLUSIVE"


def textbook_slopes(problem: Problem, eps: float) -> np.ndarray:
    slopes = np.empty_like(problem.point)
    for place in range(slopes.size):
        step = np.zeros_like(problem.point)
        step[place] = eps
        with np.errstate(all="ignore"):
            slopes[place] = (
                problem.value(problem.point + step) - problem.value(problem.point - step)
            ) / (2 * eps)
    return slopes


def our_verdict(problem: Problem, gradient: np.ndarray) -> str:
    report = check(
        problem.value, problem.point, grads=lambda x: gradient, raise_exception=False, name="f"
    )
    return str(report.verdict)


JUDGES: dict[str, Callable[[Problem, np.ndarray], str]] = {
    OURS: our_verdict,
    "gradcheck's rule": gradcheck_rule,
    "textbook's rule": textbook_rule,
}


def verdicts(family: Family, judge: Callable[[Problem, np.ndarray], str]) -> dict[float, Counter]:
    """For each error what is said of gradients that are off by it in one element, relative."""
    counts: dict[float, Counter] = {error: Counter() for error in ERRORS}
    for draw in range(JUDGED):
        rng = np.random.default_rng([draw, FAMILIES.index(family), 1])
        problem = family.draw(rng)
        unit = np.eye(problem.point.size)
        right = np.array([float(problem.slope(row)) for row in unit])
        place = int(rng.integers(right.size))
        for error in ERRORS:
            gradient = right.copy()
            gradient[place] *= 1 + error
            counts[error][judge(problem, gradient)] += 1
    return counts


def show(console: Console, title: str, rows: list[Row]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_said(name, value) for name, value in row.items()))
    console.print(table)


def _said(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2%}" if name == "covered" else f"{value:.2g}"
    return str(value)


def covering(console: Console) -> Row:
    """Bars beside true errors."""
    by_method: dict[str, dict[str, list[Row]]] = {}
    rows = []
    for family in track(FAMILIES, "directions", console=console):
        found = directions(family, 0.0, rivals=True)
        rows.append({"family": family.name} | summed_up(found[OURS]))
        group = (
            family.precision
            if family.precision != "float64"
            else "float64, easy"
            if family.easy
            else "float64, hard"
        )
        for method, own in found.items():
            by_method.setdefault(group, {}).setdefault(method, []).extend(own)
    early = [row for f in FAMILIES for row in directions(f, 1e-8, rivals=False)[OURS]]
    beside = [
        {"functions": group, "method": method} | summed_up(own)
        for group, methods in by_method.items()
        for method, own in methods.items()
    ]
    everything = [row for methods in by_method.values() for row in methods[OURS]]
    totals = [
        {"stop": "never early"} | summed_up(everything),
        {"stop": "at a bar of 1e-8"} | summed_up(early),
    ]
    show(console, "error bars, family by family, without early stopping", rows)
    show(console, "beside other methods, same directions", beside)
    show(console, "all families", totals)
    return {"families": rows, "methods": beside, "totals": totals}


def judging(console: Console) -> list[Row]:
    """Injected errors and what is said of them: PASS / INCONCLUSIVE / FAIL in percent."""
    rows: list[Row] = []
    for easy in (True, False):
        chosen = [f for f in FAMILIES if f.precision == "float64" and f.easy is easy]
        totals = {name: {error: Counter() for error in ERRORS} for name in JUDGES}
        for name, judge in JUDGES.items():
            for family in track(chosen, f"verdicts of {name}", console=console):
                for error, counts in verdicts(family, judge).items():
                    totals[name][error] += counts
        for error in ERRORS:
            row: Row = {"functions": "well conditioned" if easy else "hard", "error": f"{error:g}"}
            for name in JUDGES:
                counts = totals[name][error]
                share = [
                    100 * counts[said] / counts.total() for said in ("PASS", "INCONCLUSIVE", "FAIL")
                ]
                row[name] = " / ".join(f"{part:.3g}" for part in share)
            rows.append(row)
    show(console, "PASS / INCONCLUSIVE / FAIL in %, by the relative error of one element", rows)
    return rows


def pointing(console: Console) -> list[Row]:
    """What is said at points of every kind."""
    found = confusion(POINTS)
    rows = []
    for kind in KINDS:
        counts = found[kind.name]
        words = {True: "right", False: "wrong", None: "no derivative"}
        row: Row = {"point": kind.name, "gradient": words[kind.is_right]}
        row |= {said: counts[said] for said in ("PASS", "INCONCLUSIVE", "FAIL")}
        rows.append(row)
    show(console, f"points of every kind, {POINTS} each", rows)
    return rows


def main() -> None:
    console = Console(width=110)
    with np.errstate(all="ignore"):
        record = {
            "covering": covering(console),
            "judging": judging(console),
            "pointing": pointing(console),
            "environment": environment(),
        }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
