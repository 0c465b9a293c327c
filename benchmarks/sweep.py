"""What a sweep costs beside its peers: evaluations, and time as a ratio to torch's slow gradcheck.

Both sides run in one process, best of several runs each. Prints a table and writes sweep.json
beside this file. Run: python benchmarks/sweep.py
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import best_of
from rich.console import Console
from rich.table import Table
from torch import nn

from xgradcheck import check
from xgradcheck._stages import environment

REPEATS = 5


def textbook_loop(fn: Callable[..., torch.Tensor], x: torch.Tensor, eps: float = 1e-7) -> None:
    """The loop of a notebook: one coordinate after the other."""
    (analytic,) = torch.autograd.grad(fn(x), x)
    numerical = torch.empty_like(analytic).reshape(-1)
    flat = x.detach().clone().reshape(-1)
    with torch.no_grad():
        for i in range(flat.numel()):
            up, down = flat.clone(), flat.clone()
            up[i] += eps
            down[i] -= eps
            numerical[i] = (fn(up.reshape(x.shape)) - fn(down.reshape(x.shape))) / (2 * eps)


def sine(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x).sum()


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (nn.functional.layer_norm(x, x.shape[-1:]) * torch.arange(x.shape[-1])).sin().sum()


def network(x: torch.Tensor) -> torch.Tensor:
    hidden = torch.tanh(x @ x.T / x.shape[1])
    return torch.logsumexp(hidden, dim=1).sum()


CASES = {
    "sin, n = 100": (sine, (10, 10)),
    "sin, n = 1000": (sine, (10, 100)),
    "layer norm, n = 1024": (normalised, (16, 64)),
    "tanh gram matrix, n = 1024": (network, (16, 64)),
    "sin, n = 10000": (sine, (100, 100)),
}


def main() -> None:
    rows = []
    for name, (fn, shape) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        report = check(fn, x, coverage="sweep")
        peer = best_of(lambda fn=fn, x=x: torch.autograd.gradcheck(fn, (x,)), REPEATS)
        ours = best_of(lambda fn=fn, x=x: check(fn, x, coverage="sweep"), REPEATS)
        loop = best_of(lambda fn=fn, x=x: textbook_loop(fn, x), REPEATS)
        rows.append(
            {
                "case": name,
                "coordinates": x.numel(),
                "evaluations": report.evaluations,
                "distance": report.distance,
                "time / slow gradcheck": ours / peer,
                "loop / slow gradcheck": loop / peer,
            }
        )
    table = Table(title="a sweep beside its peers (float64, scalar output)")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(*(f"{v:.2g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    record = {"rows": rows, "environment": environment(), "threads": torch.get_num_threads()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
