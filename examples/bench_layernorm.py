"""Three layer norms and a wrong one in one table: torch's own, one by hand in operations of torch,
one in Triton, and the one in Triton that forgets the last block.

    python examples/bench_layernorm.py
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xgradcheck import bench

sys.path.insert(0, str(Path(__file__).parent / "kernels"))

import triton_layer_norm as in_triton


class ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.float()
        variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
        scale = (variance + in_triton.EPSILON).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        return ((wide - mean) * scale * weight + bias).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, mean, scale = ctx.saved_tensors
        wide, normed = grad.float(), (x.float() - mean) * scale
        weighted = wide * weight
        along = (weighted * normed).mean(-1, keepdim=True)
        of_x = scale * (weighted - weighted.mean(-1, keepdim=True) - normed * along)
        of_weight, of_bias = (wide * normed).sum(0), wide.sum(0)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype)


IMPLEMENTATIONS = {
    "torch": in_triton.plain,
    "by hand": ByHand.apply,
    "triton": in_triton.layer_norm,
    "triton, last block lost": in_triton.without_the_last_block,
}


def main() -> None:
    is_cuda = torch.cuda.is_available()
    device = "cuda" if is_cuda else "cpu"
    rows, columns = (4096, 4000) if is_cuda else (16, 70)
    shapes = ((rows, columns), (columns,), (columns,))
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(*shape, generator=generator).to(device) for shape in shapes]
    report = bench(
        IMPLEMENTATIONS,
        *given,
        reference=in_triton.plain,
        # Triton's interpreter does not round to bfloat16.
        dtypes=("float32", "bfloat16" if is_cuda else "float16"),
        name=f"layer norm of {rows} x {columns}",
    )
    print(report)
    if len(sys.argv) > 1:
        report.to_html(sys.argv[1])


if __name__ == "__main__":
    main()
