"""Layer norm in Triton, its backward written by hand; and one that forgets the last block.

On a machine without CUDA the kernels run in Triton's interpreter, which cuts numbers off where it
makes them bfloat16; a GPU rounds them. There the arguments have to lie on it: --device cuda.

    xgradcheck check examples/kernels/triton_layer_norm.py:layer_norm \\
        'f32[6,70]' 'f32[70]' 'f32[70]' --reference examples/kernels/triton_layer_norm.py:plain
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl

EPSILON = 1e-5
BLOCK = 32 if "TRITON_INTERPRET" in os.environ else 128
ROWS = 16
"""How many rows one program sums for the gradients of weight and bias."""


@triton.jit
def forward_kernel(x, weight, bias, y, means, scales, columns, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x, y = x + row * columns, y + row * columns
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)
    mean = tl.sum(total) / columns
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)
        centred = tl.where(at < columns, found - mean, 0.0)
        squares += centred * centred
    scale = 1 / tl.sqrt(tl.sum(squares) / columns + epsilon)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(x + at, mask=at < columns).to(tl.float32)
        own_weight = tl.load(weight + at, mask=at < columns).to(tl.float32)
        own_bias = tl.load(bias + at, mask=at < columns).to(tl.float32)
        tl.store(y + at, (found - mean) * scale * own_weight + own_bias, mask=at < columns)


@triton.jit
def backward_kernel_of_x(grad, x, weight, means, scales, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    grad, x, out = grad + row * columns, x + row * columns, out + row * columns
    mean, scale = tl.load(means + row), tl.load(scales + row)
    inner, along = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)
        weighted = tl.load(grad + at, mask=at < columns, other=0.0).to(tl.float32)
        weighted *= tl.load(weight + at, mask=at < columns, other=0.0).to(tl.float32)
        inner += weighted
        along += weighted * (found - mean) * scale
    mean_inner, mean_along = tl.sum(inner) / columns, tl.sum(along) / columns
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        normed = (tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32) - mean) * scale
        weighted = tl.load(grad + at, mask=at < columns, other=0.0).to(tl.float32)
        weighted *= tl.load(weight + at, mask=at < columns, other=0.0).to(tl.float32)
        of_x = scale * (weighted - mean_inner - normed * mean_along)
        tl.store(out + at, of_x, mask=at < columns)


@triton.jit
def backward_kernel_of_weights(
    grad, x, means, scales, of_weight, of_bias, rows, columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for_weight, for_bias = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, tl.minimum(first + ROWS, rows)):
        own = tl.load(grad + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        found = tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        normed = (found - tl.load(means + row)) * tl.load(scales + row)
        for_weight += own * normed
        for_bias += own
    out = tl.program_id(0) * columns + at
    tl.store(of_weight + out, for_weight, mask=at < columns)
    tl.store(of_bias + out, for_bias, mask=at < columns)


def backward(ctx: Any, grad: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, means, scales = ctx.saved_tensors
    grad = grad.contiguous()
    rows, columns = x.shape
    of_x = torch.empty_like(x)
    backward_kernel_of_x[(rows,)](grad, x, weight, means, scales, of_x, columns, BLOCK)
    parts = triton.cdiv(rows, ROWS)
    sums = torch.zeros(2, parts, columns, dtype=torch.float32, device=x.device)
    backward_kernel_of_weights[(parts, blocks)](
        grad, x, means, scales, sums[0], sums[1], rows, columns, ROWS, BLOCK
    )
    of_weight, of_bias = sums.sum(1).to(weight.dtype)
    return of_x, of_weight, of_bias


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        rows, columns = x.shape
        y = torch.empty_like(x)
        means, scales = torch.empty(2, rows, dtype=torch.float32, device=x.device)
        forward_kernel[(rows,)](x, weight, bias, y, means, scales, columns, EPSILON, BLOCK)
        ctx.save_for_backward(x, weight, means, scales)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return backward(ctx, grad, triton.cdiv(grad.shape[1], BLOCK))


class WithoutTheLastBlock(LayerNorm):
    """Rounds the number of blocks down: right for every width that BLOCK divides."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return backward(ctx, grad, grad.shape[1] // BLOCK)


layer_norm = LayerNorm.apply
without_the_last_block = WithoutTheLastBlock.apply


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:], weight, bias, EPSILON)
