"""Softmax cross-entropy in Triton, the mean over the rows; and one that forgets that it is a mean.

On a machine without CUDA the kernels run in Triton's interpreter, which cuts numbers off where it
makes them bfloat16; a GPU rounds them. There the arguments have to lie on it: --device cuda.

    xgradcheck check examples/kernels/triton_cross_entropy.py:cross_entropy \\
        'f32[6,70]' 'i64[6]<70' --reference examples/kernels/triton_cross_entropy.py:plain
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

BLOCK = 32 if "TRITON_INTERPRET" in os.environ else 1024


@triton.jit
def forward_kernel(logits, labels, losses, sizes, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(logits + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        largest = tl.maximum(largest, found)
    top = tl.max(largest)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(logits + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        total += tl.exp(found - top)
    size = tl.log(tl.sum(total)) + top
    chosen = tl.load(logits + tl.load(labels + row)).to(tl.float32)
    tl.store(sizes + row, size)
    tl.store(losses + row, size - chosen)


@triton.jit
def backward_kernel(grad, logits, labels, sizes, out, columns, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits, out = logits + row * columns, out + row * columns
    size, label, own = tl.load(sizes + row), tl.load(labels + row), tl.load(grad).to(tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(logits + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        share = tl.exp(found - size) - tl.where(at == label, 1.0, 0.0)
        tl.store(out + at, own * scale * share, mask=at < columns)


def backward(ctx: Any, grad: Tensor, scale: float) -> tuple[Tensor, None]:
    logits, labels, sizes = ctx.saved_tensors
    rows, columns = logits.shape
    out = torch.empty_like(logits)
    backward_kernel[(rows,)](grad, logits, labels, sizes, out, columns, scale, BLOCK)
    return out, None


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = logits.contiguous(), labels.contiguous()
        rows, columns = logits.shape
        losses, sizes = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
        forward_kernel[(rows,)](logits, labels, losses, sizes, columns, BLOCK)
        ctx.save_for_backward(logits, labels, sizes)
        return losses.mean().to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return backward(ctx, grad, 1 / len(ctx.saved_tensors[0]))


class AsOfASum(CrossEntropy):
    """The gradient of the sum over the rows: larger by their number."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return backward(ctx, grad, 1.0)


cross_entropy = CrossEntropy.apply
as_of_a_sum = AsOfASum.apply


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)
