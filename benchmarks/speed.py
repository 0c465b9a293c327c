"""What a check takes beside torch's gradcheck and JAX's check_grads, in float64.

Five tables: the default check beside gradcheck's fast mode; beside its slow mode at 26,000
parameters, where both see any single element that is wrong by 1 % of its leaf's rms; beside
check_grads (order 1, reverse mode), in new processes and once all is compiled; and full sweeps
(coverage="sweep") beside slow gradcheck and check_grads, which compares along one random direction.
All sides run in one process and take turns, unless it says cold; of each the fastest run counts.
Below 1 in a column "ours / ..." xgradcheck is the faster one. Prints the tables and writes
speed.json beside this file. Run: python benchmarks/speed.py [--long]
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from _jax_cases import CASES, ours, peer
from _networks import NETWORKS, batch, mlp, weights
from _tables import Row, show, write
from _timing import best_of, side_by_side

from xgradcheck import Report, check
from xgradcheck._stages import environment

Case = tuple[Callable[..., Any], list[torch.Tensor]]
PROMISE = 0.01
"""A single element that is wrong by so much of its leaf's rms is seen."""
GRADCHECK_ATOL, GRADCHECK_RTOL = 1e-5, 1e-3


class Swish(torch.autograd.Function):
    """x * sigmoid(x), in the form that torch's vmap refuses."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return u * (s + x * s * (1 - s))


def leaf(*shape: int, seed: int = 2) -> torch.Tensor:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(drawn).requires_grad_()


def network(activation: Callable[[Any], Any], name: str) -> Case:
    sizes = NETWORKS[name]
    leaves = [torch.from_numpy(part).requires_grad_() for part in weights(*sizes)]
    return mlp(activation, torch.from_numpy(batch(sizes[0]))), leaves


def torch_cases() -> dict[str, Case]:
    """Networks, a custom Function and a product of matrices, of 1e3 to 1e6 coordinates."""
    cases: dict[str, Case] = {}
    for activation in (torch.tanh, torch.relu):
        for name in NETWORKS:
            cases[f"MLP {activation.__name__} {name}"] = network(activation, name)
    for size in (1_000, 10_000, 100_000, 1_000_000):
        cases[f"custom Function {size:.0e}"] = Swish.apply, [leaf(size)]
    for size in (32, 128, 512):
        cases[f"product of matrices {size}"] = (
            torch.matmul,
            [leaf(size, size), leaf(size, size, seed=3)],
        )
    return cases


def size_of(leaves: list[Any]) -> int:
    return sum(math.prod(part.shape) for part in leaves)


def verdict_of(fn: Callable[..., Any], leaves: list[Any]) -> Report:
    return check(fn, *leaves, raise_exception=False)


def gradcheck(fn: Callable[..., Any], leaves: list[torch.Tensor], fast: bool) -> bool:
    return torch.autograd.gradcheck(fn, leaves, fast_mode=fast, raise_exception=False)


def beside_fast_gradcheck(seconds: float) -> list[Row]:
    """The default check beside gradcheck's fast mode."""
    rows = []
    for name, (fn, leaves) in torch_cases().items():
        report = verdict_of(fn, leaves)
        own, theirs = side_by_side(
            lambda fn=fn, leaves=leaves: verdict_of(fn, leaves),
            lambda fn=fn, leaves=leaves: gradcheck(fn, leaves, True),
            seconds=seconds,
        )
        rows.append(
            {
                "case": name,
                "coordinates": size_of(leaves),
                "verdict": str(report.verdict),
                "evaluations": report.evaluations,
                "ours / gradcheck, fast": own / theirs,
            }
        )
    return rows


def beside_slow_gradcheck(repeats: int) -> list[Row]:
    """Both at a promise that both keep, for a network of 26,000 parameters."""
    fn, leaves = network(torch.tanh, "26k")
    report = check(fn, *leaves)
    seen = max(own.floor * math.sqrt(own.size) for own in report.leaves.values())
    slopes = torch.autograd.grad(fn(*leaves), leaves)
    theirs = max(
        float((GRADCHECK_ATOL + GRADCHECK_RTOL * slope.abs().max()) / slope.square().mean().sqrt())
        for slope in slopes
    )
    own, peers = side_by_side(
        lambda: check(fn, *leaves), lambda: gradcheck(fn, leaves, False), least=repeats
    )
    return [
        {
            "case": "MLP tanh 26k",
            "evaluations": report.evaluations,
            "ours sees / rms": seen,
            "gradcheck sees / rms": theirs,
            "both keep 1 %": "yes" if max(seen, theirs) <= PROMISE else "no",
            "gradcheck, slow / ours": peers / own,
        }
    ]


def cold(name: str, tool: str, repeats: int) -> float:
    """Seconds of one call in a new process, after imports and arrays; the fastest of several."""
    script = Path(__file__).with_name("_jax_cases.py")
    command = [sys.executable, str(script), name, tool]
    runs = [subprocess.run(command, check=True, capture_output=True) for _ in range(repeats)]
    return min(float(run.stdout) for run in runs)


def beside_check_grads(repeats: int) -> list[Row]:
    """The default check beside check_grads, before and after all is compiled."""
    rows = []
    for name, made in CASES.items():
        fn, leaves = made()
        report = ours(fn, leaves)
        own, theirs = side_by_side(
            lambda fn=fn, leaves=leaves: ours(fn, leaves),
            lambda fn=fn, leaves=leaves: peer(fn, leaves),
        )
        first = cold(name, "check_grads", repeats) / cold(name, "xgradcheck", repeats)
        rows.append(
            {
                "case": name,
                "coordinates": size_of(leaves),
                "coverage": report.coverage,
                "evaluations": report.evaluations,
                "check_grads / ours, cold": first,
                "check_grads / ours, warm": theirs / own,
            }
        )
    return rows


def swept(fn: Callable[..., Any], leaves: list[Any]) -> Report:
    return check(fn, *leaves, coverage="sweep")


def torch_sweeps(names: list[str]) -> list[Row]:
    """Full sweeps of networks and a custom Function beside slow gradcheck."""
    cases = {f"MLP tanh {name}": network(torch.tanh, name) for name in names}
    cases |= {f"custom Function {size}": (Swish.apply, [leaf(size)]) for size in (64, 256, 1024)}
    rows = []
    for name, (fn, leaves) in cases.items():
        report = swept(fn, leaves)
        own, theirs = side_by_side(
            lambda fn=fn, leaves=leaves: swept(fn, leaves),
            lambda fn=fn, leaves=leaves: gradcheck(fn, leaves, False),
            least=2,
        )
        rows.append(
            {
                "case": f"torch, {name}",
                "peer": "gradcheck, slow",
                "coordinates": size_of(leaves),
                "evaluations": report.evaluations,
                "peer / ours": theirs / own,
            }
        )
    return rows


def jax_sweeps(names: list[str]) -> list[Row]:
    """Full sweeps of networks beside check_grads, before and after all is compiled."""
    rows = []
    for name in names:
        fn, leaves = CASES[f"MLP {name}"]()
        for state in ("cold", "warm"):
            times = []
            for run in (peer, swept):
                if state == "cold":
                    jax.clear_caches()
                times.append(best_of(lambda run=run, f=fn, x=leaves: run(f, x), 1))
            rows.append(
                {
                    "case": f"jax, MLP tanh {name}, {state}",
                    "peer": "check_grads",
                    "coordinates": size_of(leaves),
                    "evaluations": swept(fn, leaves).evaluations,
                    "peer / ours": times[0] / times[1],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What a check takes beside its peers.")
    parser.add_argument("--long", action="store_true", help="more repeats, and sweeps of 26k")
    long = parser.parse_args().long
    sections = {
        "the default check beside gradcheck(fast_mode=True)": beside_fast_gradcheck(
            6 if long else 1
        ),
        "beside gradcheck in slow mode, at equal promise": beside_slow_gradcheck(3 if long else 1),
        "the default check beside JAX's check_grads": beside_check_grads(5 if long else 2),
        "full sweeps": [
            *torch_sweeps(["1.7k", "6.9k", "26k"] if long else ["1.7k", "6.9k"]),
            *jax_sweeps(["1.7k", "26k"] if long else ["1.7k"]),
        ],
    }
    for title, rows in sections.items():
        show(title, rows)
    write(__file__, sections=sections, environment=environment(), threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
