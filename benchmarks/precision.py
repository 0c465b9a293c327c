"""Right and wrong kernels of low precision beside a plain reference: what xgradcheck says of them,
and what the tolerances do that people use.

Three architectures, each with a backward by hand that computes in another order than autograd and
rounds its intermediate results, in float32, float16 and bfloat16:

    python benchmarks/precision.py [--seeds 100]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _tables import Row, show, write
from torch import Tensor
from torch.nn import functional as F

from xgradcheck import Verdict, check

DTYPES = {"float32": 24, "float16": 11, "bfloat16": 8}
Plant = Callable[[Tensor], Tensor]
Gradients = Callable[..., tuple[Tensor, ...]]


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    wide = x.float()
    scale = (wide.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
    normed = (wide - wide.mean(-1, keepdim=True)) * scale
    inner = grad.float() * weight.float()
    along = inner - inner.mean(-1, keepdim=True) - normed * (inner * normed).mean(-1, keepdim=True)
    return scale * along, (grad.float() * normed).flip(0).sum(0), grad.float().flip(0).sum(0)


def network(x: Tensor, weight: Tensor, head: Tensor) -> Tensor:
    return torch.tanh(x @ weight) @ head


def network_backward(grad: Tensor, x: Tensor, weight: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    hidden = torch.tanh(x @ weight)
    inner = (grad @ head.T) * (1 - hidden.float().square()).to(x.dtype)
    halves = zip(x.split(8), inner.split(8), strict=True)
    return inner @ weight.T, sum(a.T.float() @ b.float() for a, b in halves), hidden.T @ grad


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.softmax(query @ key.T / query.shape[-1] ** 0.5, -1) @ value


def attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Any:
    size = query.shape[-1] ** -0.5
    scores = (query.float() @ key.float().T) * size
    shares = torch.exp(scores - scores.logsumexp(-1, keepdim=True))
    wide = grad.float()
    of_shares = wide @ value.float().T
    inner = shares * (of_shares - (wide * (shares @ value.float())).sum(-1, keepdim=True))
    return inner @ key.float() * size, inner.T @ query.float() * size, shares.T @ wide


ARCHITECTURES: dict[str, tuple[Callable[..., Tensor], Gradients, list[tuple[int, ...]]]] = {
    "layer norm": (norm, norm_backward, [(24, 48), (48,), (48,)]),
    "network": (network, network_backward, [(16, 24), (24, 25), (25, 8)]),
    "attention": (attention, attention_backward, [(20, 16), (30, 16), (30, 12)]),
}


def kernel(forward: Callable[..., Tensor], backward: Gradients, plant: Plant) -> Any:
    """An autograd Function with that backward, the gradient of its first argument planted."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Tensor) -> Tensor:
            ctx.save_for_backward(*args)
            return forward(*args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            given = ctx.saved_tensors
            first, *others = backward(grad, *given)
            found = (plant(first), *others)
            return tuple(own.to(arg.dtype) for own, arg in zip(found, given, strict=True))

    return Kernel.apply


def last_three(grad: Tensor) -> Tensor:
    grad = grad.clone()
    grad.view(-1)[-3:] = 0
    return grad


def one_by_a_tenth(grad: Tensor) -> Tensor:
    grad = grad.clone()
    grad.view(-1)[grad.abs().flatten().argsort()[grad.numel() // 2]] *= 1.1
    return grad


def plants(bits: int) -> dict[str, Plant]:
    unit = 2.0 ** (1 - bits)
    return {
        "right": lambda grad: grad,
        "1 + 3u": lambda grad: grad * (1 + 3 * unit),
        "last three zero": last_three,
        "one element by 10 %": one_by_a_tenth,
    }


TOLERANCES: dict[str, Callable[[str], tuple[float, float] | None]] = {
    "KernelBench, 1e-2": lambda dtype: (1e-2, 1e-2),
    "robust-kbench, 1e-5": lambda dtype: (1e-5, 1e-5),
    "assert_close": lambda dtype: None,
}


def is_close(name: str, dtype: str, found: list[Tensor], usual: list[Tensor]) -> bool:
    """What a rule of fixed tolerances says of gradients in the same dtype."""
    given = TOLERANCES[name](dtype)
    options = {} if given is None else {"rtol": given[0], "atol": given[1]}
    try:
        for one, other in zip(found, usual, strict=True):
            torch.testing.assert_close(one, other, **options)
    except AssertionError:
        return False
    return True


def gradients(fn: Any, args: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    given = [arg.clone().requires_grad_() for arg in args]
    return list(torch.autograd.grad(fn(*given), given, cotangent))


def one(name: str, dtype: str, mistake: str, seed: int) -> Row:
    """Whether each checker calls one kernel right."""
    forward, backward, shapes = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    args = [torch.randn(*shape, generator=generator).to(kind) for shape in shapes]
    plant = plants(DTYPES[dtype])[mistake]
    fn = kernel(forward, backward, plant)
    options: dict[str, Any] = {"dtypes": dtype, "seed": seed, "raise_exception": False}
    verdict = check(fn, *args, reference=forward, **options).verdict
    cotangent = torch.randn(forward(*args).shape, generator=generator).to(kind)
    pair = gradients(fn, args, cotangent), gradients(forward, args, cotangent)
    found = {"xgradcheck": verdict is Verdict.PASS, "undecided": verdict is Verdict.INCONCLUSIVE}
    return found | {rule: is_close(rule, dtype, *pair) for rule in TOLERANCES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="for each architecture (100)")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    rows: list[Row] = []
    for dtype, bits in DTYPES.items():
        for mistake in plants(bits):
            found = [one(a, dtype, mistake, s) for a in ARCHITECTURES for s in range(seeds)]
            row: Row = {"dtype": dtype, "kernels": mistake, "number": len(found)}
            for checker in ("xgradcheck", *TOLERANCES):
                row[checker] = sum(result[checker] for result in found)
            row["undecided"] = sum(result["undecided"] for result in found)
            rows.append(row)
    show("called right, of kernels in low precision", rows)
    write(__file__, rows=rows, seeds=seeds, torch=torch.__version__)


if __name__ == "__main__":
    main()
