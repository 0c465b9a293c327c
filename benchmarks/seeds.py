"""Real models at many seeds: right ones, in every form, and their twins with one wrong leaf.

Each row of tests/models.py (PyTorch) and tests/jax_models.py (JAX), in float64 and float32, is made
anew for every seed and checked as it stands and in its other forms; so is its twin, in which one
leaf's gradient is 1 % too large. Prints what became of them, each that was not as it should be,
and writes seeds.json beside this file. 200 seeds take an hour or two for each framework.
Run: python benchmarks/seeds.py [--seeds 200] [--backend torch|jax] [-k WORD]
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _tables import Row, show, write
from rich.progress import track

from xgradcheck._stages import environment

# The models are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tally import Tally

Made = tuple[list[tuple[str, Any]], tuple[Any, str]]
"""A model's forms, and its twin with the name of the leaf that is wrong in it."""
DTYPES = ("float64", "float32")


def torch_models() -> dict[str, Callable[[int, str], Made]]:
    """Every model of PyTorch, by name."""
    import models
    import torch

    torch.set_num_threads(1)

    def made(row: models.Row) -> Callable[[int, str], Made]:
        def at(seed: int, dtype: str) -> Made:
            kind = getattr(torch, dtype)
            return list(models.forms(row.make(seed, kind))), models.spoilt(row.make(seed, kind))

        return at

    return {row.name: made(row) for row in models.ROWS}


def jax_models() -> dict[str, Callable[[int, str], Made]]:
    """Every model of JAX, by name."""
    import jax_models as models

    def made(row: models.Row) -> Callable[[int, str], Made]:
        def at(seed: int, dtype: str) -> Made:
            model = row.make(seed, dtype)
            return model.forms(compiled=True), model.spoilt()

        return at

    return {row.name: made(row) for row in models.ROWS}


BACKENDS = {"torch": torch_models, "jax": jax_models}


def tallies(backend: str, seeds: int, word: str) -> Iterator[tuple[str, str, Tally]]:
    """The tally of every row in each dtype."""
    rows = {name: at for name, at in BACKENDS[backend]().items() if word in name}
    for name, dtype in track([(n, d) for n in rows for d in DTYPES], backend):
        tally = Tally()
        for seed in range(seeds):
            tally.count(*rows[name](seed, dtype), seed)
        yield name, dtype, tally


def main() -> None:
    parser = argparse.ArgumentParser(description="Real models at many seeds.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("-k", dest="word", default="", help="only rows whose name has this in it")
    wanted = parser.parse_args()
    rows: list[Row] = []
    sums: list[Row] = []
    for backend in wanted.backend or BACKENDS:
        found = list(tallies(backend, wanted.seeds, wanted.word))
        for name, dtype, tally in found:
            for text in tally.amiss:
                print(f"{backend} {name} {dtype}, {text}")
            rows.append(counted(f"{backend} {name}", dtype, [tally]))
        for dtype in DTYPES:
            own = [tally for _, of, tally in found if of == dtype]
            sums.append(counted(f"{backend}, {len(own)} models", dtype, own))
    show("each model", rows)
    show("all of them", sums)
    write(__file__, rows=rows, sums=sums, seeds=wanted.seeds, environment=environment())


def counted(name: str, dtype: str, found: list[Tally]) -> Row:
    """Some tallies as one row of a table."""
    right = sum((tally.right for tally in found), Counter())
    twins = sum((tally.twins for tally in found), Counter())
    return {
        "model": name,
        "dtype": dtype,
        "right": right.total(),
        "FAIL": right["FAIL"],
        "INCONCLUSIVE, %": 100 * Tally(right).open,
        "twins": twins.total(),
        "not failed": twins["not failed"],
        "another leaf failed": twins["another leaf failed"],
    }


if __name__ == "__main__":
    main()
