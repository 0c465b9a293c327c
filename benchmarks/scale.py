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
from xgradcheck._check import environment

TORCH = {False: (4, 256, 8, 8000), True: (12, 768, 12, 50257)}
JAX = {False: (3, 128, 2000), True: (4, 384, 8000)}
"""Layers, width, (heads,) words: of a short run and of a long one."""
WORDS = 64
SIZES = {False: (3, 4, 5, 6), True: (3, 4, 5, 6, 7)}


def peak() -> float:
    """The most memory that this process has had, in bytes."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def torch_model(sizes: tuple[int, ...], is_wrong: bool) -> tuple[Any, Any, Any, int]:
    """A transformer with a tied embedding, its words, a loss, and the bytes of its weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Product(torch.autograd.Function):
        """A linear layer whose kernel forgets the last columns."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            ctx.save_for_backward(x, weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx: Any, u: Any) -> tuple[Any, Any]:
            x, weight = ctx.saved_tensors
            slope = u.flatten(0, -2).T @ x.flatten(0, -2)
            slope[:, -2:] = 0
            return u @ weight, slope

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, is_wrong: bool) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.heads, self.is_wrong = heads, is_wrong

        def forward(self, x: Any) -> Any:
            length, width = x.shape[1:]
            split = self.qkv(self.norm1(x)).view(1, length, 3, self.heads, width // self.heads)
            found = F.scaled_dot_product_attention(*split.permute(2, 0, 3, 1, 4), is_causal=True)
            x = x + self.out(found.transpose(1, 2).reshape(x.shape))
            inner, up = self.norm2(x), self.up
            raised = Product.apply(inner, up.weight) + up.bias if self.is_wrong else up(inner)
            return x + self.down(F.gelu(raised))

    class Transformer(nn.Module):
        def __init__(self, layers: int, width: int, heads: int, words: int) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Embedding(1024, width)
            self.blocks = nn.ModuleList(
                Block(width, heads, is_wrong and n == layers // 2) for n in range(layers)
            )
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
            self.head.weight = self.words.weight
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, indices: Any) -> Any:
            x = self.words(indices) + self.places(torch.arange(indices.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    model = Transformer(*sizes)
    indices = torch.randint(0, sizes[-1], (1, WORDS + 1))
    following = indices[0, 1:]
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    loss = lambda y: F.cross_entropy(y[0], following)  # noqa: E731
    return model, indices[:, :-1], loss, weight_bytes


def of_torch(long: bool, is_wrong: bool) -> Row:
    model, indices, loss, weight_bytes = torch_model(TORCH[long], is_wrong)
    forward = best_of(lambda: loss(model(indices)), 3)
    return told(
        lambda: check(model, indices, loss=loss, raise_exception=False), forward, weight_bytes
    )


def of_jax(long: bool, is_wrong: bool) -> Row:
    import jax
    import jax.numpy as jnp

    layers, width, words = JAX[long]
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return jnp.asarray(0.05 * rng.normal(size=shape), jnp.float32)

    @jax.custom_vjp
    def dense(x: Any, w: Any) -> Any:
        return x @ w

    def backward(saved: Any, u: Any) -> Any:
        x, w = saved
        slope = x.T @ u
        return u @ w.T, slope.at[-2:].set(0) if is_wrong else slope

    dense.defvjp(lambda x, w: (x @ w, (x, w)), backward)
    shapes = {"qkv": (width, 3 * width), "out": (width, width)}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    params = {
        "words": drawn(words, width),
        "layers": [{name: drawn(*s) for name, s in shapes.items()} for _ in range(layers)],
    }
    indices = rng.integers(0, words, WORDS + 1)
    mask = jnp.tril(jnp.ones((WORDS, WORDS), bool))

    def loss(params: Any) -> Any:
        x = params["words"][indices[:-1]]
        for number, p in enumerate(params["layers"]):
            parts = jnp.split(x @ p["qkv"], 3, -1)
            q, k, v = (part.reshape(WORDS, 4, -1).transpose(1, 0, 2) for part in parts)
            scores = jnp.where(mask, q @ k.transpose(0, 2, 1) / np.sqrt(width / 4), -1e9)
            found = jax.nn.softmax(scores, -1) @ v
            x = x + found.transpose(1, 0, 2).reshape(WORDS, width) @ p["out"]
            inner = dense(x, p["up"]) if number == 1 else x @ p["up"]
            x = x + jax.nn.gelu(inner) @ p["down"]
        chances = jax.nn.log_softmax(x @ params["words"].T)
        return -jnp.take_along_axis(chances, indices[1:, None], 1).mean()

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
