"""Right and wrong backward passes before xgradcheck, torch's gradcheck and JAX's check_grads.

Each row is one backward pass at one float64 point, judged with every checker's defaults. Prints a
table and writes verdicts.json beside this file. Run: python benchmarks/verdicts.py
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.test_util import check_grads
from rich.console import Console
from rich.table import Table

from xgradcheck import check
from xgradcheck._stages import environment

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 20))
STEEP = np.linspace(-1.0, 1.0, 400).reshape(20, 20) * 1e11


def one_element(x: Any, g: Any) -> Any:
    grad = g * np.cos(x)
    grad[3, 5] = 0.0
    return grad


# title: (right?, point, forward, backward), written in NumPy and carried into both frameworks
ROWS: dict[str, tuple[bool, Any, Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "sin": (True, X, np.sin, lambda x, g: g * np.cos(x)),
    "sin, scaled to 1e-6": (True, X, lambda x: 1e-6 * np.sin(x), lambda x, g: 1e-6 * g * np.cos(x)),
    "2 x at 1e11": (True, STEEP, lambda x: 2 * x, lambda x, g: 2 * g),
    "relu at 0": (True, np.zeros((20, 20)), lambda x: np.maximum(x, 0), lambda x, g: g * (x > 0)),
    "gradient 0.05% too large": (False, X, np.sin, lambda x, g: 1.0005 * g * np.cos(x)),
    "one element of 400 zero": (False, X, np.sin, one_element),
    "gradient of size 1e-6 zero": (False, X, lambda x: 1e-6 * np.sin(x), lambda x, g: 0 * g),
    "gradient of size 5e-6, sign flipped": (
        False,
        X,
        lambda x: 5e-6 * np.sin(x),
        lambda x, g: -5e-6 * g * np.cos(x),
    ),
    "cotangent ignored": (False, X, np.sin, lambda x, g: np.cos(x)),
}


def in_torch(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return torch.from_numpy(np.asarray(forward(x.detach().numpy())))

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            found = backward(x.detach().numpy(), grad.numpy())
            return torch.from_numpy(np.array(found, dtype=np.float64))

    def planted(x: torch.Tensor) -> torch.Tensor:
        return Planted.apply(x)

    return planted


def in_jax(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    def host(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arrays: Any) -> Any:
            shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)

            def plain(*values: Any) -> Any:
                return np.asarray(function(*map(np.array, values)), arrays[0].dtype)

            return jax.pure_callback(plain, shape, *arrays, vmap_method="sequential")

        return called

    @jax.custom_vjp
    def planted(x: Any) -> Any:
        return host(forward)(x)

    planted.defvjp(lambda x: (planted(x), x), lambda x, g: (host(backward)(x, g),))
    return planted


def accepted(run: Callable[[], Any]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except (AssertionError, RuntimeError):
        return False
    return True


def main() -> None:
    rows = []
    for title, (right, point, forward, backward) in ROWS.items():
        fn = in_torch(forward, backward)
        x = torch.from_numpy(point).requires_grad_()
        ours = check(fn, x, raise_exception=False).verdict
        slow = accepted(lambda fn=fn, x=x: torch.autograd.gradcheck(fn, (x,)))
        fast = accepted(lambda fn=fn, x=x: torch.autograd.gradcheck(fn, (x,), fast_mode=True))
        traced = in_jax(forward, backward)
        with jax.enable_x64(True):
            point_in_jax = jnp.asarray(point)
            peer = accepted(lambda f=traced, p=point_in_jax: check_grads(f, (p,), 1, modes=["rev"]))
        rows.append(
            {
                "backward pass": title,
                "is": "right" if right else "wrong",
                "xgradcheck": str(ours),
                "gradcheck": "accepts" if slow else "rejects",
                "gradcheck, fast": "accepts" if fast else "rejects",
                "jax check_grads": "accepts" if peer else "rejects",
            }
        )
    table = Table(title="verdicts with every checker's defaults, float64")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        truth = row["is"] == "right"
        judged = [(v in ("PASS", "accepts")) == truth for v in list(row.values())[2:]]
        words = [
            v if ok else f"[red]{v}[/red]"
            for v, ok in zip(list(row.values())[2:], judged, strict=True)
        ]
        table.add_row(row["backward pass"], row["is"], *words)
    Console().print(table)
    record = {"rows": rows, "environment": environment()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
