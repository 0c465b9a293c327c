"""A full sweep of networks beside torch's slow gradcheck and JAX's check_grads.

All sides run in one process, best of several runs each; ratios above 1 say how many times faster
xgradcheck is. check_grads compares along one random direction and not in every coordinate. Prints
a table and writes speed.json beside this file. Run: python benchmarks/speed.py
"""

import json
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.test_util
import numpy as np
import torch
from _timing import best_of
from rich.console import Console
from rich.table import Table

from xgradcheck import check
from xgradcheck._check import environment

NETWORKS = {"1.7k": (16, 32, 4), "6.9k": (32, 64, 8), "26k": (64, 128, 10)}
ROWS = 32
"""Inputs, hidden units (twice) and outputs of a network, and how many inputs it is given."""
REPEATS = 3

Networks = dict[str, tuple[Callable[..., Any], list[Any]]]


def weights(inputs: int, hidden: int, outputs: int) -> list[Any]:
    """Weights and biases of three layers, as NumPy arrays."""
    rng = np.random.default_rng(0)
    sizes = (inputs, hidden, hidden, outputs)
    found: list[Any] = []
    for fan_in, fan_out in pairwise(sizes):
        found += [rng.normal(size=(fan_out, fan_in)) / math.sqrt(fan_in), rng.normal(size=fan_out)]
    return found


def mlp(module: Any, data: Any) -> Callable[..., Any]:
    """The mean square of a network with tanh, in torch or in jax.numpy."""

    def loss(w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any) -> Any:
        hidden = module.tanh(data @ w1.T + b1)
        hidden = module.tanh(hidden @ w2.T + b2)
        return ((hidden @ w3.T + b3) ** 2).mean()

    return loss


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


def torch_rows() -> list[dict[str, Any]]:
    """Networks and a custom Function beside slow gradcheck."""
    cases: dict[str, tuple[Callable[..., Any], list[torch.Tensor]]] = {}
    for name, sizes in NETWORKS.items():
        data = torch.from_numpy(np.random.default_rng(1).normal(size=(ROWS, sizes[0])))
        leaves = [torch.from_numpy(part).requires_grad_() for part in weights(*sizes)]
        cases[f"MLP {name}"] = mlp(torch, data), leaves
    for size in (64, 256, 1024):
        x = torch.from_numpy(np.random.default_rng(2).normal(size=size)).requires_grad_()
        cases[f"custom Function {size}"] = Swish.apply, [x]
    rows = []
    for name, (fn, leaves) in cases.items():
        report = check(fn, *leaves)
        repeats = 2 if report.evaluations > 50_000 else REPEATS
        ours = best_of(lambda fn=fn, leaves=leaves: check(fn, *leaves), repeats)
        peer = best_of(lambda fn=fn, leaves=leaves: torch.autograd.gradcheck(fn, leaves), repeats)
        rows.append(
            {
                "case": f"torch, {name}",
                "peer": "gradcheck, slow mode",
                "coordinates": sum(leaf.numel() for leaf in leaves),
                "evaluations": report.evaluations,
                "times faster": peer / ours,
            }
        )
    return rows


def jax_rows() -> list[dict[str, Any]]:
    """Networks beside check_grads, before and after all is compiled."""
    jax.config.update("jax_enable_x64", True)
    rows = []
    for name, sizes in NETWORKS.items():
        data = jax.numpy.asarray(np.random.default_rng(1).normal(size=(ROWS, sizes[0])))
        leaves = [jax.numpy.asarray(part) for part in weights(*sizes)]

        def ours(data: Any = data, leaves: Any = leaves) -> Any:
            return check(mlp(jax.numpy, data), *leaves)

        def peer(data: Any = data, leaves: Any = leaves) -> None:
            fn = mlp(jax.numpy, data)
            jax.test_util.check_grads(fn, leaves, order=1, modes=("rev",))

        for state in ("cold", "warm"):
            if state == "cold":
                jax.clear_caches()
            theirs = best_of(peer, 1)
            if state == "cold":
                jax.clear_caches()
            started = time.perf_counter()
            report = ours()
            own = time.perf_counter() - started
            rows.append(
                {
                    "case": f"jax, MLP {name}, {state}",
                    "peer": "check_grads",
                    "coordinates": sum(leaf.size for leaf in leaves),
                    "evaluations": report.evaluations,
                    "times faster": theirs / own,
                }
            )
    return rows


def main() -> None:
    rows = [*torch_rows(), *jax_rows()]
    table = Table(title="a full sweep beside its peers (float64)")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("case", "peer") else "right")
    for row in rows:
        table.add_row(*(f"{v:.2g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    networks = [row["times faster"] for row in rows if row["case"].startswith("torch, MLP")]
    print(f"torch networks, geometric mean: {math.prod(networks) ** (1 / len(networks)):.1f}")
    record = {"rows": rows, "environment": environment(), "threads": torch.get_num_threads()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
