"""What a check of a large model takes, and how that grows.

The first table: a transformer of GPT-2's shape in torch (124 million float32 weights with --long,
else 5 million) and one in JAX (10 million, else 1 million), right and with a wrong gradient in one
layer: evaluations, seconds beside one forward pass, and peak memory beside the bytes of the
weights, each in a process of its own. The second: seconds and peak memory against the number of
coordinates for an elementwise function and a network in float64, with the exponents of a fit by
least squares; scale.png shows them on logarithmic axes. Writes scale.json beside this file.
Run: python benchmarks/scale.py [--long]
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _tables import Row, show, write
from _timing import best_of, seconds_of

from xgradcheck import Report, Verdict, check
from xgradcheck._stages import environment

TORCH = {False: (4, 256, 8, 8000), True: (12, 768, 12, 50257)}
JAX = {False: (3, 128, 2000), True: (4, 384, 8000)}
"""Layers, width, (heads,) words: of a short run and of a long one."""
WORDS, PLACES = 64, 1024
"""How many words JAX's model reads, and how many places torch's has an embedding for."""
# The models are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
SIZES = {False: (3, 4, 5, 6), True: (3, 4, 5, 6, 7)}


def peak() -> float:
    """The most memory that this process has had, in bytes."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def of_torch(long: bool, is_wrong: bool) -> Row:
    from language_models import language_model

    sizes = TORCH[long]
    wrong = sizes[0] // 2 if is_wrong else None
    model, indices, loss = language_model(*sizes, wrong=wrong, places=PLACES)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    forward = best_of(lambda: loss(model(indices)), 3)
    run = lambda: check(model, indices, loss=loss, raise_exception=False)  # noqa: E731
    return told(run, forward, weight_bytes)


def of_jax(long: bool, is_wrong: bool) -> Row:
    import jax
    from jax_language_models import language_model

    loss, params = language_model(*JAX[long], is_wrong, WORDS)
    compiled = jax.jit(loss)
    compiled(params)
    forward = best_of(lambda: jax.block_until_ready(compiled(params)), 3)
    weight_bytes = sum(part.nbytes for part in jax.tree.leaves(params))
    return told(lambda: check(loss, params, raise_exception=False), forward, weight_bytes)


def told(run: Callable[[], Report], forward: float, weight_bytes: int) -> Row:
    """What one check took."""
    before, reports = peak(), list[Report]()
    seconds = seconds_of(lambda: reports.append(run()))
    (report,) = reports
    wrong = [name for name, leaf in report.leaves.items() if leaf.verdict is Verdict.FAIL]
    return {
        "parameters": f"{weight_bytes / 4e6:.3g} M",
        "verdict": str(report.verdict),
        "wrong leaves": ", ".join(wrong) or "-",
        "evaluations": report.evaluations,
        "seconds / forward pass": seconds / forward,
        "peak memory / weights": (peak() - before) / weight_bytes,
        "peak of the process, GiB": peak() / 2**30,
    }


def elementwise(size: int) -> Callable[[], Report]:
    """A sine with its gradient."""
    x = np.random.default_rng(0).normal(size=size)
    return lambda: check(lambda x: float(np.sin(x).sum()), x, grads=np.cos)


def network(size: int) -> Callable[[], Report]:
    """A network in torch of about so many parameters."""
    import torch
    from torch import nn

    width = round(np.sqrt(size / 2))
    torch.manual_seed(0)
    layers = (nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    model = nn.Sequential(*layers, nn.Linear(width, 1)).double()
    data = torch.randn(8, width, dtype=torch.float64)
    return lambda: check(model, data)


GROWING = {"elementwise": elementwise, "network": network}


def growth(kind: str, size: int) -> Row:
    """Seconds of one check, and what it adds to the memory of the process."""
    GROWING[kind](300)()  # what is loaded once is not counted
    run = GROWING[kind](size)
    before = peak()
    first = run()
    added = peak() - before
    seconds = best_of(run, 3)
    return {
        "function": kind,
        "coordinates": size,
        "evaluations": first.evaluations,
        "seconds": seconds,
        "bytes": added,
    }


CASES: dict[str, Callable[..., Row]] = {"torch": of_torch, "jax": of_jax, "growth": growth}


def apart(name: str, *words: Any) -> Row:
    """One case in a process of its own, whose memory is counted from the start."""
    command = [sys.executable, __file__, "--case", json.dumps([name, *words])]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(found.splitlines()[-1]))


def models(long: bool) -> list[Row]:
    return [
        {"model": name, "gradient": "wrong" if is_wrong else "right"} | apart(name, long, is_wrong)
        for name in ("torch", "jax")
        for is_wrong in (False, True)
    ]


def exponents(rows: list[Row]) -> list[Row]:
    """With what powers of the size seconds and bytes grow, going by the last three sizes."""
    found = []
    for kind in GROWING:
        own = [row for row in rows if row["function"] == kind][-3:]
        sizes = np.log([row["coordinates"] for row in own])
        fit: Row = {"function": kind}
        for key in ("seconds", "bytes"):
            logs = np.log([max(row[key], 1e-9) for row in own])
            fit[f"exponent of {key}"] = float(np.polyfit(sizes, logs, 1)[0])
        found.append(fit)
    return found


def plot(rows: list[Row]) -> None:
    """Both against the number of coordinates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key in zip(axes, ("seconds", "bytes"), strict=True):
        for kind in GROWING:
            own = [row for row in rows if row["function"] == kind]
            sizes = [row["coordinates"] for row in own]
            axis.loglog(sizes, [max(row[key], 1e-9) for row in own], "o-", label=kind)
        axis.set(xlabel="coordinates", ylabel=f"{key} of a check")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a check of a large model takes.")
    parser.add_argument("--long", action="store_true", help="124 and 10 million parameters")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        name, *words = json.loads(given.case)
        print(json.dumps(CASES[name](*words)))
        return
    rows = [apart("growth", kind, 10**n) for kind in GROWING for n in SIZES[given.long]]
    sections = {
        "large models": models(given.long),
        "growth": rows,
        "exponents": exponents(rows),
    }
    for title, part in sections.items():
        show(title, part)
    plot(rows)
    write(__file__, sections=sections, environment=environment())


if __name__ == "__main__":
    main()
