"""Which wrong gradients checkers accept, and what it takes to find the place of what is wrong.

The first table: for each checker with its defaults, how many runs accepted a gradient that is zero,
negated, off by a factor, or zero in some of its elements, of all runs at random points; the row of
the right gradient counts those that were rejected. xgradcheck accepts with PASS alone. The function
is a sine whose backward pass is spoilt, as a torch.autograd.Function and as a jax.custom_vjp; slow
gradcheck judges up to 1,000 elements.

The second: mistakes of real backward passes, class by class (layout, use of the cotangent, edges of
blocks and so on; a row such as B12 is one of the collection that they were taken from), each in a
small operator on the CPU and beside its right twin, before every checker with its defaults: those
of torch and JAX in float64, and audit with the other shapes that a user would name. "accepted" is
a wrong one that got through; "false", that the right one was rejected; "-", that the checker has
nothing to do with such. An exception of the backward pass counts as caught. The last line counts
what was caught of what a checker was asked, where the right one was not rejected.

The others: evaluations from the failed certificate to the report, beside two for every coordinate
that a sweep takes; the share of the wrong coordinates that was found, and how many right ones were
called wrong. First for a NumPy function of one matrix and ten vectors, then for a torch network,
one of whose weights gets a wrong gradient.

Prints the tables and writes power.json beside this file. Run: python benchmarks/power.py [--long]
(--classes: the second table alone, without the file)
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _classes import by_class
from _networks import batch, mlp, weights
from _tables import Row, show, write
from jax.test_util import check_grads
from numpy.typing import NDArray
from verdicts import accepted

from xgradcheck import Report, Verdict, check
from xgradcheck._projection import Projecting
from xgradcheck._stages import environment

Vector = NDArray[np.float64]
Judge = Callable[[Vector, Any, int], bool]

SHAPES = {
    1_000: (25, 40),
    10_000: (100, 100),
    100_000: (250, 400),
    1_000_000: (1000, 1000),
    10_000_000: (2500, 4000),
}
GRADCHECK = sys.modules["torch.autograd.gradcheck"]
"""The module, whose name in torch.autograd is that of the function."""
SLOW = 1_000
"""Up to so many elements slow gradcheck is asked."""
BLOCK, TAIL = 16, 37
OFF_BY = 0.1
"""Errors that are to be localised, beside the rms of the gradient."""
BY_CLASS = "mistakes of real backward passes, by class"
WIDE = 160
"""How many characters that table takes."""


def without(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> Vector:
    """The factors that make ``size`` elements in a row zero, from a multiple of that on."""
    factors = np.ones(math.prod(shape))
    start = size * int(rng.integers(factors.size // size))
    factors[start : start + size] = 0
    return factors.reshape(shape)


FACTORS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "right": lambda rng, shape: 1.0,
    "zero": lambda rng, shape: 0.0,
    "negated": lambda rng, shape: -1.0,
    "x 2": lambda rng, shape: 2.0,
    "x 0.5": lambda rng, shape: 0.5,
    "x 1.1": lambda rng, shape: 1.1,
    "x 1.001": lambda rng, shape: 1.001,
    "one row zero": lambda rng, shape: without(rng, shape, shape[1]),
    "block of 16 zero": lambda rng, shape: without(rng, shape, BLOCK),
    "one element zero": lambda rng, shape: without(rng, shape, 1),
}


def in_torch(factors: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A sine whose gradient is multiplied by ``factors``."""
    wrong = torch.as_tensor(factors, dtype=torch.float64)

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            return u * x.cos() * wrong

    return Sine.apply


def in_jax(factors: Any) -> Callable[[Any], Any]:
    """The same in JAX."""

    @jax.custom_vjp
    def sine(x: Any) -> Any:
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, u: (u * jnp.cos(x) * factors,))
    return sine


def our_torch(x: Vector, factors: Any, seed: int) -> bool:
    point = torch.from_numpy(x).requires_grad_()
    return bool(check(in_torch(factors), point, seed=seed, raise_exception=False))


def our_jax(x: Vector, factors: Any, seed: int) -> bool:
    return bool(check(in_jax(factors), x, seed=seed, backend="jax", raise_exception=False))


def gradcheck(x: Vector, factors: Any, fast: bool) -> bool:
    point = torch.from_numpy(x).requires_grad_()
    # What fast mode rejects it differences slowly for the message, with n * n numbers in memory.
    with patch.object(GRADCHECK, "_run_slow_mode_and_get_error", lambda *given: ""):
        run = torch.autograd.gradcheck
        return accepted(lambda: run(in_torch(factors), (point,), fast_mode=fast))


def jax_check_grads(x: Vector, factors: Any, seed: int) -> bool:
    with jax.enable_x64(True):
        return accepted(lambda: check_grads(in_jax(factors), (jnp.asarray(x),), 1, modes=("rev",)))


JUDGES: dict[str, Judge] = {
    "xgradcheck, torch": our_torch,
    "xgradcheck, JAX": our_jax,
    "gradcheck, fast": lambda x, factors, seed: gradcheck(x, factors, True),
    "gradcheck, slow": lambda x, factors, seed: gradcheck(x, factors, False),
    "check_grads": jax_check_grads,
}


def accepting(runs: dict[int, int]) -> list[Row]:
    """For each size, with so many runs, how many accepted each impostor, judge by judge."""
    rows = []
    for (size, count), (name, drawn) in product(runs.items(), FACTORS.items()):
        row: Row = {"elements": f"{size:.0e}", "gradient": name}
        for title, judge in JUDGES.items():
            if title == "gradcheck, slow" and size > SLOW:
                row[title] = "-"
                continue
            wanted = name != "right"
            missed = sum(judged(judge, size, drawn, seed) is wanted for seed in range(count))
            row[title] = f"{missed} / {count}"
        rows.append(row)
    return rows


def judged(judge: Judge, size: int, drawn: Callable[..., Any], seed: int) -> bool:
    """Whether a gradient is accepted, at a point that is the same for every judge."""
    rng = np.random.default_rng([seed, size])
    x = rng.normal(size=SHAPES[size])
    return judge(x, drawn(rng, x.shape), seed)


class Objective:
    """A smooth function of one matrix, half of all coordinates, and ten vectors."""

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x, self.a = rng.normal(size=size), rng.normal(size=size)
        rows = math.isqrt(size // 2)
        self.matrix = rows, size // 2 // rows
        first, rest = math.prod(self.matrix), size - math.prod(self.matrix)
        self.starts = [first + n * (rest // 10) for n in range(10)]

    def tree(self, flat: Vector) -> dict[str, Vector]:
        matrix, *vectors = np.split(flat, self.starts)
        return {"W": matrix.reshape(self.matrix)} | {f"b{n}": v for n, v in enumerate(vectors)}

    def __call__(self, tree: dict[str, Vector]) -> float:
        x = np.concatenate([part.ravel() for part in tree.values()])
        root = math.sqrt(x.size)
        bend = 0.1 * root * math.tanh(float(self.a @ x) / root)
        return float(x @ x) / 2 / root + bend + 0.05 * float((x * x) @ x) / root

    def gradient(self) -> Vector:
        root = math.sqrt(self.x.size)
        bend = 0.1 * (1 - math.tanh(float(self.a @ self.x) / root) ** 2) * self.a
        return self.x / root + bend + 0.15 * self.x**2 / root


Places = Callable[[np.random.Generator, tuple[int, int], list[int], int], Any]
"""Wrong coordinates, from the shape of the first leaf, where the others start, and the size."""


def some(count: int) -> Places:
    return lambda rng, matrix, starts, size: rng.choice(size, count, replace=False)


def row(rng: np.random.Generator, matrix: tuple[int, int], starts: list[int], size: int) -> Any:
    return int(rng.integers(matrix[0])) * matrix[1] + np.arange(matrix[1])


def column(rng: np.random.Generator, matrix: tuple[int, int], starts: list[int], size: int) -> Any:
    return int(rng.integers(matrix[1])) + np.arange(matrix[0]) * matrix[1]


ANYWHERE: dict[str, Places] = {
    "1 element": some(1),
    "2 elements": some(2),
    "5 elements": some(5),
    "50 elements": some(50),
    "a row": row,
    "a column": column,
    "everything": lambda rng, matrix, starts, size: np.arange(size),
}
IN_LEAVES: dict[str, Places] = {
    "a leaf": lambda rng, matrix, starts, size: np.arange(starts[2], starts[3]),
    "a tail": lambda rng, matrix, starts, size: np.arange(starts[4] - TAIL, starts[4]),
}


def errors(places: Any, gradient: Vector, rng: np.random.Generator) -> Vector:
    """What is added to a gradient: a tenth of its rms at each place, up to a factor of 2."""
    off = np.zeros_like(gradient)
    size = rng.uniform(0.5, 2, len(places)) * rng.choice([-1.0, 1.0], len(places))
    off[places] = OFF_BY * math.sqrt(np.mean(gradient**2)) * size
    return off


@contextmanager
def watched() -> Iterator[list[tuple[Projecting, int]]]:
    """The work of each certificate, and how many evaluations had been made when it was through."""
    found: list[tuple[Projecting, int]] = []
    certify = Projecting.certify

    def kept(work: Projecting) -> None:
        certify(work)
        found.append((work, work.phi.evaluations))

    with patch.object(Projecting, "certify", kept):
        yield found


def accused(report: Report, work: Projecting) -> NDArray[np.bool_]:
    """Which coordinates the report calls wrong."""
    layout = work.phi.problem.layout
    found = np.zeros(layout.size, bool)
    for number, suspect in work.done.suspects.items():
        if report.leaves[layout.leaves[number].name].verdict is Verdict.FAIL:
            found[[*suspect.lone]] = True
            for node in suspect.dense:
                found[node.places] = True
    return found


def localised(run: Callable[[], Report], wrong: Any) -> Row:
    """One run: what it took from the failed certificate on, and how much was found."""
    with watched() as works:
        report = run()
    work, certified = works[0]
    found = accused(report, work)
    hits = int(found[wrong].sum())
    return {
        "evaluations": report.evaluations - certified,
        "found": hits / len(wrong),
        "falsely accused": int(found.sum()) - hits,
        "FAIL": report.verdict is Verdict.FAIL,
    }


def in_objective(size: int, places: Places, seed: int) -> Row:
    objective, rng = Objective(size, seed), np.random.default_rng([3, seed])
    gradient = objective.gradient()
    wrong = places(rng, objective.matrix, objective.starts, size)
    given = objective.tree(gradient + errors(wrong, gradient, rng))
    tree = objective.tree(objective.x)
    return localised(
        lambda: check(objective, tree, grads=given, seed=seed, raise_exception=False), wrong
    )


class Spoilt(torch.autograd.Function):
    """The identity, to whose gradient something is added."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
        ctx.off = off
        return w.clone()

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> tuple[torch.Tensor, None]:
        return u + ctx.off, None


def in_network(width: int, places: Places, seed: int) -> Row:
    """A wrong gradient of the second of three weights; coordinates count from its first."""
    rng = np.random.default_rng([4, seed])
    leaves = [torch.from_numpy(part).requires_grad_() for part in weights(width, width, 10)]
    plain = mlp(torch.tanh, torch.from_numpy(batch(width)))
    slope = torch.autograd.grad(plain(*leaves), leaves[2])[0].numpy().ravel()
    wrong = places(rng, (width, width), [], slope.size)
    off = torch.from_numpy(errors(wrong, slope, rng).reshape(width, width))

    def network(w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any) -> Any:
        return plain(w1, b1, Spoilt.apply(w2, off), b2, w3, b3)

    return localised(
        lambda: check(network, *leaves, seed=seed, raise_exception=False),
        width * width + width + np.asarray(wrong),
    )


def summed_up(size: int, name: str, runs: list[Row]) -> Row:
    mean = {key: float(np.mean([run[key] for run in runs])) for key in ("evaluations", "found")}
    return {
        "coordinates": f"{size:.1e}",
        "wrong": name,
        "evaluations": round(mean["evaluations"]),
        "a sweep": 2 * size,
        "times fewer": 2 * size / mean["evaluations"],
        "found": f"{mean['found']:.1%}",
        "falsely accused": sum(run["falsely accused"] for run in runs),
        "FAIL": f"{sum(run['FAIL'] for run in runs)} / {len(runs)}",
    }


def localising(runs: dict[int, int]) -> list[Row]:
    """The NumPy function, for each size so many runs."""
    kinds = ANYWHERE | IN_LEAVES
    return [
        summed_up(size, name, [in_objective(size, places, seed) for seed in range(count)])
        for size, count in runs.items()
        for name, places in kinds.items()
    ]


def localising_in_networks(widths: list[int], runs: int) -> list[Row]:
    """The torch network."""
    rows = []
    for width, (name, places) in product(widths, ANYWHERE.items()):
        found = [in_network(width, places, seed) for seed in range(runs)]
        size = sum(part.size for part in weights(width, width, 10))
        title = "all of the weight" if name == "everything" else name
        rows.append(summed_up(size, title, found))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Which wrong gradients checkers accept.")
    parser.add_argument("--long", action="store_true", help="to 1e7 elements, and more runs")
    parser.add_argument("--classes", action="store_true", help="only the mistakes by class")
    asked = parser.parse_args()
    if asked.classes:
        show(BY_CLASS, by_class(), WIDE)
        return
    long = asked.long
    short = dict.fromkeys([size for size in SHAPES if size < 10_000_000], 3)
    judged_runs = dict.fromkeys(short, 10) | {10_000_000: 1} if long else short
    localised_runs = {10_000: 10, 100_000: 5, 1_000_000: 3, 10_000_000: 1}
    short_runs = {10_000: 3, 100_000: 2, 1_000_000: 1}
    sections = {
        "accepted / runs (of the right gradient: rejected)": accepting(judged_runs),
        BY_CLASS: by_class(),
        "to the place of what is wrong: NumPy": localising(localised_runs if long else short_runs),
        "to the place of what is wrong: a torch network": localising_in_networks(
            [128, 700] if long else [128], 5 if long else 3
        ),
    }
    for title, rows in sections.items():
        show(title, rows, WIDE if title == BY_CLASS else 130)
    write(__file__, sections=sections, environment=environment(), threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
