"""Mistakes of real backward passes, class by class, each in an operator of the kind it was found in
and beside the same operator without it. In torch; those in JAX are in jax_classes.py.

A reference such as B12 or P11 is a row of the collection of bugs that the mistakes were taken from.
"""

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from audited import function, normal
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MEANINGS = {
    "L": "layout",
    "V": "overlap",
    "G": "cotangent",
    "I": "in place",
    "E": "edges",
    "U": "unwritten",
    "H": "heads",
    "M": "missing",
    "R": "reduction",
    "S": "formula",
    "T": "stale",
    "A": "accumulation",
    "D": "duplicates",
    "P": "precision",
    "X": "transforms",
    "N": "races",
    "K": "ignored",
}


class Case(NamedTuple):
    """A function, its arguments, and what an audit is told beside."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]


Make = Callable[[], Case]


@dataclass(frozen=True, slots=True)
class Planted:
    """A mistake, and the same function without it."""

    letter: str
    row: str
    name: str
    wrong: Make
    right: Make
    backend: str = "torch"


def planted(table: dict[str, tuple[Make, Make]], backend: str = "torch") -> list[Planted]:
    """A table by class, reference and name."""
    return [
        Planted(*title.split(" ", 2), *makes, backend=backend) for title, makes in table.items()
    ]


def pair(wrong: Any, right: Any, args: Any, **options: Any) -> tuple[Make, Make]:
    """Both of two functions on fresh arguments."""
    return (lambda: Case(wrong, args(), options)), (lambda: Case(right, args(), options))


def functions(forward: Any, wrong: Any, right: Any, args: Any, **options: Any) -> tuple[Make, Make]:
    """One forward pass with two backward passes."""
    return pair(function(forward, wrong), function(forward, right), args, **options)


def kernels(forward: Any, wrong: Any, right: Any, args: Any, **options: Any) -> tuple[Make, Make]:
    """The same where no backward pass is meant to be differentiated."""
    return functions(
        forward, once_differentiable(wrong), once_differentiable(right), args, **options
    )


def op(name: str, forward: Any, fake: Any, setup: Any, backward: Any) -> Any:
    """An operator of torch.library."""
    found: Any = torch.library.custom_op(f"classes::{name}", forward, mutates_args=())
    found.register_fake(fake)
    found.register_autograd(backward, setup_context=setup)
    return found


def ops(
    name: str,
    forward: Any,
    fake: Any,
    setup: Any,
    wrong: Any,
    right: Any,
    args: Any,
    **options: Any,
) -> tuple[Make, Make]:
    return pair(
        op(f"{name}_wrong", forward, fake, setup, wrong),
        op(f"{name}_right", forward, fake, setup, right),
        args,
        **options,
    )


def places(shape: Any, strides: Any) -> Tensor:
    """Where the elements of such a tensor lie in its memory."""
    found = torch.zeros(tuple(shape), dtype=torch.long)
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        rest = len(shape) - axis - 1
        found = found + stride * torch.arange(size).view(-1, *[1] * rest)
    return found


def read(tensor: Tensor, strides: Any) -> Tensor:
    """What a kernel finds behind a pointer with its own strides; past the end there are zeros."""
    memory = tensor.new_empty(0).set_(tensor.untyped_storage())
    place = places(tensor.shape, strides) + tensor.storage_offset()
    return torch.where(place < len(memory), memory[place.clamp(max=len(memory) - 1)], 0)


def packed(tensor: Tensor) -> tuple[int, ...]:
    """The strides that a contiguous tensor of this shape has."""
    return torch.empty(tensor.shape).stride()


# Operators, and their right backward passes.


def windows(x: Tensor, width: int) -> Tensor:
    """Each element along the last axis with those before it."""
    return F.pad(x, (width - 1, 0)).unfold(-1, width, 1)


def conv(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return torch.einsum("bctk,ck->bct", windows(x, weight.shape[1]), weight)


def conv_grads(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    width = weight.shape[1]
    later = F.pad(grad, (0, width - 1)).unfold(-1, width, 1)
    of_x = torch.einsum("bctk,ck->bct", later, weight.flip(1))
    return of_x, torch.einsum("bct,bctk->ck", grad, windows(x, width))


def of_conv(ctx: Any, grad: Tensor) -> Any:
    return conv_grads(*ctx.saved_tensors, grad)


def images() -> tuple[Tensor, ...]:
    return normal(2, 3, 6), normal(3, 3, seed=1)


def rms_norm(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    x = x.contiguous()
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def rms_grads(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    rstd = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    scaled, unit = grad * weight, x * rstd
    of_x = rstd * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    return of_x, (grad * unit).flatten(0, -2).sum(0)


def of_rms_norm(ctx: Any, grad: Tensor) -> Any:
    return rms_grads(*ctx.saved_tensors, grad)


def rows(count: int = 6) -> tuple[Tensor, ...]:
    return normal(count, 5), normal(5, seed=1)


def layer_norm(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def layer_norm_grads(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the input, and what the rows add to the one of the weight."""
    off = x - x.mean(-1, keepdim=True)
    rstd = (off.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    unit, scaled = off * rstd, grad * weight
    centred = scaled - scaled.mean(-1, keepdim=True)
    of_x = rstd * (centred - unit * (scaled * unit).mean(-1, keepdim=True))
    return of_x, grad * unit


def of_layer_norm(ctx: Any, grad: Tensor) -> Any:
    of_x, of_weight = layer_norm_grads(*ctx.saved_tensors, grad)
    return of_x, of_weight.flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)


def normed(count: int = 8) -> tuple[Tensor, ...]:
    return normal(count, 5), normal(5, seed=1), normal(5, seed=2)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def loss_of_each(logits: Tensor, labels: Tensor) -> Tensor:
    return losses(logits, labels)


def no_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.new_empty(labels.shape)


def keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def slopes(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(-1) - F.one_hot(labels, logits.shape[-1])


def of_losses(ctx: Any, grad: Tensor) -> Any:
    return grad[:, None] * slopes(*ctx.saved_tensors), None


def classified() -> tuple[Tensor, ...]:
    return normal(5, 4), torch.tensor([1, 0, 3, 2, 1])


def heads_of(x: Tensor, count: int) -> Tensor:
    return x.repeat_interleave(count // x.shape[1], 1)


def attention(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ctx.save_for_backward(q, k, v)
    k, v = heads_of(k, q.shape[1]), heads_of(v, q.shape[1])
    return (q @ k.mT).softmax(-1) @ v


def by_groups(full: Tensor, groups: int) -> Tensor:
    return full.unflatten(1, (groups, -1)).sum(2)


def attention_grads(saved: Any, grad: Tensor, width: int, gathered: Any) -> Any:
    """With values of which so many columns are looked at."""
    q, k, v = saved
    groups = k.shape[1]
    k, v = heads_of(k, q.shape[1]), heads_of(v, q.shape[1])
    p = (q @ k.mT).softmax(-1)
    of_p = grad[..., :width] @ v[..., :width].mT
    of_scores = p * (of_p - (p * of_p).sum(-1, keepdim=True))
    of_v = F.pad(p.mT @ grad[..., :width], (0, max(v.shape[-1] - width, 0)))
    return of_scores @ k, gathered(of_scores.mT @ q, groups), gathered(of_v, groups)


def of_attention(ctx: Any, grad: Tensor) -> Any:
    return attention_grads(ctx.saved_tensors, grad, grad.shape[-1], by_groups)


def tokens(heads: int = 4, groups: int = 2, width: int = 3) -> tuple[Tensor, ...]:
    return (
        normal(1, heads, 3, 3),
        normal(1, groups, 4, 3, seed=1),
        normal(1, groups, 4, width, seed=2),
    )


def linear(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return x @ weight.T


def of_linear(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    return grad @ weight, grad.T @ x


def layer() -> tuple[Tensor, ...]:
    return normal(3, 4), normal(2, 4, seed=1)


# L and V: where numbers lie in memory.


def with_strides_of_the_input(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    return conv_grads(x, weight, read(grad, x.stride()))


def with_packed_input(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    return rms_grads(read(x, packed(x)), weight, grad)


def loss_kernel(logits: Tensor, labels: Tensor, grad: Tensor) -> Tensor:
    return read(grad, (1,))[:, None] * slopes(logits, labels)


LOSS_KERNEL: Any = torch.library.custom_op("classes::loss_kernel", loss_kernel, mutates_args=())
LOSS_KERNEL.register_fake(lambda logits, labels, grad: torch.empty_like(logits))


def with_unit_stride(ctx: Any, grad: Tensor) -> Any:
    return LOSS_KERNEL(*ctx.saved_tensors, grad), None


def frame_places(count: int, size: int, step: int) -> Tensor:
    return places(((count - size) // step + 1, size), (step, 1))


def framed(ctx: Any, x: Tensor) -> Tensor:
    ctx.count = len(x)
    return x[frame_places(len(x), 4, 2)]


def written_over(ctx: Any, grad: Tensor) -> Tensor:
    return grad.new_zeros(ctx.count).index_put((frame_places(ctx.count, 4, 2),), grad)


def of_framed(ctx: Any, grad: Tensor) -> Tensor:
    index = (frame_places(ctx.count, 4, 2),)
    return grad.new_zeros(ctx.count).index_put(index, grad, accumulate=True)


def pooled(ctx: Any, x: Tensor, size: int, step: int) -> Tensor:
    ctx.sizes = len(x), size, step
    return x[frame_places(*ctx.sizes)].mean(1)


def pooled_backward(adds: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        count, size, step = ctx.sizes
        spread = (grad / size)[:, None].expand(-1, size)
        index = (frame_places(count, size, step),)
        return grad.new_zeros(count).index_put(index, spread, accumulate=adds), None, None

    return backward


def similarity(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
    ctx.save_for_backward(q, k)
    return q @ k.mT


def laid_out_as_its_input(ctx: Any, grad: Tensor) -> Any:
    q, k = ctx.saved_tensors
    place = places(k.shape, k.stride())
    memory = grad.new_zeros(int(place.max()) + 1)
    memory[place] = grad.mT @ q
    return grad @ k, memory.as_strided(k.shape, k.stride())


def of_similarity(ctx: Any, grad: Tensor) -> Any:
    q, k = ctx.saved_tensors
    return grad @ k, grad.mT @ q


# G: what is done with the incoming gradient.


def fused_loss(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    ctx.save_for_backward(hidden, weight, labels)
    return losses(hidden @ weight.T, labels)


def of_fused_loss(ctx: Any, grad: Tensor) -> Any:
    hidden, weight, labels = ctx.saved_tensors
    of_logits = grad[:, None] * slopes(hidden @ weight.T, labels)
    return of_logits @ weight, of_logits.T @ hidden, None


def with_the_first_cotangent(ctx: Any, grad: Tensor) -> Any:
    hidden, weight, labels = ctx.saved_tensors
    of_logits = slopes(hidden @ weight.T, labels)
    return grad[:, None] * (of_logits @ weight), grad[0] * (of_logits.T @ hidden), None


def as_if_averaged(ctx: Any, grad: Tensor) -> Any:
    return of_losses(ctx, grad / len(grad))


def mean_loss(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
    loss = losses(logits, labels).mean()
    ctx.save_for_backward(slopes(logits, labels) / len(labels), loss)
    return loss


def through_the_wrong_pointer(ctx: Any, grad: Tensor) -> Any:
    slope, loss = ctx.saved_tensors
    return (slope if grad == 1 else slope * loss), None


def of_mean_loss(ctx: Any, grad: Tensor) -> Any:
    return ctx.saved_tensors[0] * grad, None


# I: who writes where.


def losses_into_logits(logits: Tensor, labels: Tensor) -> Tensor:
    found = losses(logits, labels)
    logits.copy_(slopes(logits, labels))
    return found


def of_logits_written_to(ctx: Any, grad: Tensor) -> Any:
    return grad[:, None] * ctx.saved_tensors[0], None


def softmax(ctx: Any, x: Tensor) -> Tensor:
    out = x.softmax(-1)
    ctx.save_for_backward(out)
    return out


def into_the_cotangent(ctx: Any, grad: Tensor) -> Tensor:
    (out,) = ctx.saved_tensors
    grad.mul_(out)
    return grad - out * grad.sum(-1, keepdim=True)


def of_softmax(ctx: Any, grad: Tensor) -> Tensor:
    (out,) = ctx.saved_tensors
    return out * (grad - (grad * out).sum(-1, keepdim=True))


def gated(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
    ctx.save_for_backward(a, b)
    return F.silu(a) * b


def of_gated(ctx: Any, grad: Tensor) -> Any:
    a, b = ctx.saved_tensors
    s = a.sigmoid()
    return grad * b * (s + a * s * (1 - s)), grad * a * s


def over_what_it_saved(ctx: Any, grad: Tensor) -> Any:
    # As a kernel, whose writes no version counter sees.
    for saved, found in zip(ctx.saved_tensors, of_gated(ctx, grad), strict=True):
        saved.data.copy_(found)
    return ctx.saved_tensors


def scaled_in_place(ctx: Any, grad: Tensor) -> Any:
    return ctx.saved_tensors[0].data.mul_(grad), None


# E: tails, masks, short and empty rows.

BLOCK = 4


def whole_blocks_of_rows(ctx: Any, grad: Tensor) -> Any:
    of_x, of_weight = layer_norm_grads(*ctx.saved_tensors, grad)
    whole = len(grad) // BLOCK * BLOCK
    return of_x, of_weight[:whole].sum(0), grad[:whole].sum(0)


def masked_attention(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    mask = (torch.arange(k.shape[1]) < lengths[:, None])[:, None]
    scores = (q @ k.mT).masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    ctx.save_for_backward(q, k, v, mask, lse)
    return torch.where(mask, (scores - lse).exp(), 0) @ v


def masked_backward(weighted: Any) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, mask, lse = ctx.saved_tensors
        p = weighted(q @ k.mT, mask, lse)
        of_p = grad @ v.mT
        of_scores = p * (of_p - (p * of_p).sum(-1, keepdim=True))
        return of_scores @ k, of_scores.mT @ q, p.mT @ grad, None

    return backward


def where_unmasked(scores: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
    return torch.where(mask, (scores - lse).exp(), 0)


def everywhere(scores: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
    return (scores - lse).exp()


def even_of_nothing(scores: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
    return (scores.masked_fill(~mask, -math.inf) - lse).exp()  # infinity less infinity


def ragged(*lengths: int) -> tuple[Tensor, ...]:
    count = len(lengths)
    parts = (normal(count, 3, 2, seed=seed) for seed in range(3))
    return *parts, torch.tensor(lengths)


def conv_with_state(ctx: Any, x: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    ctx.save_for_backward(x, state, weight)
    whole = torch.cat([state, x])
    return whole.unfold(0, len(weight), 1) @ weight, whole[len(x) :].clone()


def state_backward(clamps: bool) -> Any:
    def backward(ctx: Any, grad: Tensor, of_last: Tensor) -> Any:
        x, state, weight = ctx.saved_tensors
        kept, count = len(state), len(x)
        taps = torch.cat([state, x]).unfold(0, kept + 1, 1)
        index = places(taps.shape, (1, 1))
        whole = grad.new_zeros(kept + count)
        whole = whole.index_put((index,), grad[:, None] * weight, accumulate=True)
        first = kept if clamps and count < kept else count
        end = F.pad(of_last, (first, 0))[: kept + count]
        whole = whole + F.pad(end, (0, kept + count - len(end)))
        return whole[kept:], whole[:kept], grad @ taps

    return backward


def sequence(count: int) -> tuple[Tensor, ...]:
    return normal(count), normal(3, seed=1), normal(4, seed=2)


def energies(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return x.square().sum(0) * weight


def shared_out(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    blocks = -(-len(x) // BLOCK)
    share = -(-len(x) // blocks)
    of_x = torch.cat([2 * part * weight * grad for part in x.split(share)])
    return of_x, x.square().sum(0) * grad


def of_energies(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    return 2 * x * weight * grad, x.square().sum(0) * grad


# U: memory that nobody writes to.


def sums_of_segments(ctx: Any, x: Tensor, ends: tuple[int, ...]) -> Tensor:
    ctx.count, ctx.ends = len(x), ends
    return torch.stack([x[a:b].sum(0) for a, b in itertools.pairwise((0, *ends))])


def segments_backward(fresh: Any) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        found = fresh(ctx.count, grad.shape[1], dtype=grad.dtype)
        for row, (a, b) in zip(grad, itertools.pairwise((0, *ctx.ends)), strict=True):
            found[a:b] = row
        return found, None

    return backward


def embedding(ctx: Any, table: Tensor, words: Tensor) -> Tensor:
    ctx.save_for_backward(words)
    ctx.count = len(table)
    return table[words]


def embedding_backward(fresh: Any, block: int) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        (words,) = ctx.saved_tensors
        shape = ctx.count, grad.shape[-1]
        found = fresh(shape, dtype=grad.dtype)
        whole = ctx.count // block * block
        added = grad.new_zeros(shape).index_put((words,), grad, accumulate=True)
        found[:whole] = added[:whole]
        return found, None

    return backward


def a_table(count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    words = torch.randint(count, (6,), generator=generator) if count else torch.zeros(0).long()
    return normal(count, 3), words


def kept_from_step_to_step(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    key = (*x.shape, *weight.shape)
    total = STEPS.setdefault(key, torch.zeros_like(weight))
    total += grad.T @ x
    return grad @ weight, total.clone()


STEPS: dict[tuple[int, ...], Tensor] = {}


# H: which head, and how many.


def by_shares(full: Tensor, groups: int) -> Tensor:
    index = torch.arange(full.shape[1]) // groups % groups
    found = full.new_zeros(full.shape[0], groups, *full.shape[2:])
    return found.index_add(1, index, full)


def split_by_shares(ctx: Any, grad: Tensor) -> Any:
    return attention_grads(ctx.saved_tensors, grad, grad.shape[-1], by_shares)


def as_wide_as_keys(ctx: Any, grad: Tensor) -> Any:
    width = ctx.saved_tensors[1].shape[-1]
    return attention_grads(ctx.saved_tensors, grad, width, by_groups)


def once_for_every_row(ctx: Any, grad: Tensor) -> Any:
    of_x, of_weight = of_conv(ctx, grad)
    return of_x, of_weight * len(of_x)


# M: gradients that are not there.


def weight_forgotten(ctx: Any, grad: Tensor) -> Any:
    return of_rms_norm(ctx, grad)[0], None


def if_the_first_is_wanted(ctx: Any, grad: Tensor) -> Any:
    return of_linear(ctx, grad) if ctx.needs_input_grad[0] else (None, None)


def biased_conv(ctx: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    out = conv(ctx, x, weight)
    ctx.bias = None if bias is None else bias.shape
    return out if bias is None else out + bias[:, None]


def always_of_a_bias(ctx: Any, grad: Tensor) -> Any:
    return *of_conv(ctx, grad), grad.sum((0, 2)).view(tuple(ctx.bias))


def of_biased_conv(ctx: Any, grad: Tensor) -> Any:
    return *of_conv(ctx, grad), None if ctx.bias is None else grad.sum((0, 2))


def with_optional_bias(backward: Any) -> Any:
    apply = function(biased_conv, backward)

    def biased(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return apply(x, weight, bias)

    return biased


def weighted_mean(k: Tensor, v: Tensor) -> Tensor:
    weight = k.exp()
    return (weight * v).cumsum(0) / weight.cumsum(0)


def weighted_mean_of_a_constant(k: Tensor, v: Tensor) -> Tensor:
    weight = k.exp()
    return (weight * v).cumsum(0) / weight.detach().cumsum(0)


# R: what is summed over.


def affine(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return x @ weight.T + bias


def affine_backward(of_bias: Any) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_weight = torch.einsum("...o,...i->oi", grad, x)
        return grad @ weight, of_weight, of_bias(grad)

    return backward


def one_for_all(grad: Tensor) -> Tensor:
    return grad.sum().expand(grad.shape[-1])


def over_the_first_axis(grad: Tensor) -> Tensor:
    return grad.sum(0).flatten()[: grad.shape[-1]]


def over_all_but_the_last(grad: Tensor) -> Tensor:
    return grad.flatten(0, -2).sum(0)


def batches(*shape: int) -> tuple[Tensor, ...]:
    return normal(*shape, 4), normal(3, 4, seed=1), normal(3, seed=2)


def times(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
    ctx.save_for_backward(x, scale)
    return x * scale


def counting_axes_anew(grad: Tensor, scale: Tensor) -> Tensor:
    for axis in range(grad.dim() - scale.dim()):
        grad = grad.sum(axis)  # an axis less with every sum
    return grad


def times_backward(reduced: Any) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        return grad * scale, reduced(grad * x, scale)

    return backward


# S: the formula.


def batch_norm(x: Tensor, weight: Tensor) -> Tensor:
    off = x - x.mean(0)
    return off * (off.square().mean(0) + 1e-5).rsqrt() * weight


def batch_norm_backward(is_right: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        off = x - x.mean(0)
        rstd = (off.square().mean(0) + 1e-5).rsqrt()
        unit = off * rstd
        shift, tilt = grad.mean(0), (grad * unit).mean(0)
        last = unit * tilt if is_right else unit * shift
        return weight * rstd * (grad - shift - last), (grad * unit).sum(0)

    return backward


def soft_loss(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
    ctx.save_for_backward(logits, targets)
    return -(targets * logits.log_softmax(-1)).sum(-1)


def soft_backward(is_right: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, targets = ctx.saved_tensors
        total = targets.sum(-1, keepdim=True) if is_right else 1
        return grad[:, None] * (total * logits.softmax(-1) - targets), None

    return backward


def soft_targets() -> tuple[Tensor, ...]:
    return normal(3, 4).requires_grad_(), normal(3, 4, seed=1).softmax(-1)


def softplus(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


def branch_by_branch(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * ((x > 0).to(x.dtype) - x.sign() * (-x.abs()).sigmoid())


def of_softplus(ctx: Any, grad: Tensor) -> Tensor:
    return grad * ctx.saved_tensors[0].sigmoid()


def matern(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
    ctx.save_for_backward(x, y)
    r = math.sqrt(5) * (x[:, None] - y).abs()
    return (1 + r + r.square() / 3) * (-r).exp()


def matern_backward(sign: int) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        off = x[:, None] - y
        r = math.sqrt(5) * off.abs()
        found = grad * -5 / 3 * off * (1 + r) * (-r).exp()
        return found.sum(1), sign * found.sum(0)

    return backward


# T: what is computed again, or kept too long.


def normed_gate(ctx: Any, x: Tensor, weight: Tensor, level: int) -> Tensor:
    unit = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    ctx.level = level
    ctx.save_for_backward(x, weight, unit)
    return unit.tanh()


def gate_backward(normalises_twice: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, unit = ctx.saved_tensors
        if ctx.level:
            again = unit if normalises_twice else x
            unit = again * (again.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
        return *rms_grads(x, weight, grad * (1 - unit.tanh().square())), None

    return backward


def mask_of(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(x.shape, generator=generator, dtype=x.dtype) < 0.5


def dropout(ctx: Any, x: Tensor, seed: int) -> Tensor:
    ctx.seed, ctx.address = seed, x.data_ptr() % 1000
    return 2 * x * mask_of(x, seed)


def seeded_with_the_address(ctx: Any, grad: Tensor) -> Any:
    return 2 * grad * mask_of(grad, ctx.address), None


def of_dropout(ctx: Any, grad: Tensor) -> Any:
    return 2 * grad * mask_of(grad, ctx.seed), None


# A: what is added up.


def by_address(ctx: Any, grad: Tensor) -> Any:
    q, k = ctx.saved_tensors
    found = {q.data_ptr(): grad @ k, k.data_ptr(): grad.mT @ q}
    return found[q.data_ptr()], found[k.data_ptr()]


def one_buffer_for_each_weight(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    found = BUFFERS.setdefault(weight.data_ptr(), torch.empty_like(weight))
    return grad @ weight, found.copy_(grad.T @ x)


BUFFERS: dict[int, Tensor] = {}


def two_layers(backward: Any) -> Any:
    apply = function(linear, backward)
    return lambda x, first, second: apply(apply(x, first).tanh(), second)


def into_the_users_buffer(ctx: Any, grad: Tensor) -> Any:
    found = of_linear(ctx, grad)
    for tensor, own in zip(ctx.saved_tensors, found, strict=True):
        if tensor.grad is not None:
            tensor.grad.data.add_(own)
    return found


# D: the same index twice.


def look_up(table: Tensor, words: Tensor) -> Tensor:
    return table[words]


def no_rows(table: Tensor, words: Tensor) -> Tensor:
    return table.new_empty(*words.shape, table.shape[1])


def keep_words(ctx: Any, inputs: Any, output: Any) -> None:
    table, words = inputs
    ctx.save_for_backward(words)
    ctx.count = len(table)


def look_up_backward(adds: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        (words,) = ctx.saved_tensors
        found = grad.new_zeros(ctx.count, grad.shape[1])
        return found.index_put((words,), grad, accumulate=adds), None

    return backward


def sentence(count: int = 0) -> tuple[Tensor, ...]:
    """Words that differ, or so many drawn ones."""
    generator = torch.Generator().manual_seed(count)
    words = torch.randint(5, (count,), generator=generator) if count else torch.tensor([3, 0, 4])
    return normal(5, 2), words


def gathered(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
    ctx.save_for_backward(index)
    ctx.shape = x.shape
    return x.gather(1, index)


def set_in_place(ctx: Any, grad: Tensor) -> Any:
    return grad.new_zeros(ctx.shape).scatter(1, ctx.saved_tensors[0], grad), None


def of_gathered(ctx: Any, grad: Tensor) -> Any:
    return grad.new_zeros(ctx.shape).scatter_add(1, ctx.saved_tensors[0], grad), None


# P: digits and dtypes.


def with_a_sink(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    scores = torch.cat([q @ k.T, sink.expand(len(q), 1)], 1)
    p = scores.softmax(-1)
    out = p[:, :-1] @ v
    ctx.save_for_backward(q, k, v, p, out)
    return out


def sink_backward(rounds: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, p, out = ctx.saved_tensors
        delta = (grad * out).sum(-1, keepdim=True)
        p, last = p[:, :-1], p[:, -1:]
        of_scores = p * (grad @ v.T - delta)
        terms = -last * delta
        if rounds and grad.dtype is not torch.float64:
            terms = terms.bfloat16().to(grad.dtype)
        return of_scores @ k, of_scores.T @ q, p.T @ grad, terms.sum(0)

    return backward


def with_sink() -> tuple[Tensor, ...]:
    shapes = (8, 3), (4, 3), (4, 3), (1,)
    return tuple(normal(*shape, seed=seed).float() for seed, shape in enumerate(shapes))


def lengths_of(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return length(x).to(x.dtype)


def length(x: Tensor) -> Tensor:
    wide = x if x.dtype is torch.float64 else x.float()
    return wide.square().sum(-1).sqrt()


def narrowed_before_the_root(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad[:, None] * x / x.square().sum(-1, keepdim=True).sqrt()


def of_lengths(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad[:, None] * (x / length(x)[:, None]).to(x.dtype)


def linear_in(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    """As autocast wants it."""
    ctx.save_for_backward(x, weight)
    ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    with torch.autocast("cpu", enabled=False):
        return x.to(ctx.dtype) @ weight.to(ctx.dtype).T


def autocast_backward(keeps: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        low = ctx.dtype if keeps or ctx.dtype is not torch.bfloat16 else torch.float16
        with torch.autocast("cpu", enabled=False):
            of_x, of_weight = grad.to(low) @ weight.to(low), grad.to(low).T @ x.to(low)
        return of_x.to(x.dtype), of_weight.to(weight.dtype)

    return backward


def mixed_linear(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return x.to(weight.dtype) @ weight.T


def mixed_backward(keeps: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_weight = grad.T @ x.to(grad.dtype)
        return (grad @ weight).to(x.dtype), of_weight if keeps else of_weight.to(x.dtype)

    return backward


def statistics_in_float32(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    of_x, of_weight = layer_norm_grads(x.float(), weight.float(), grad.float())
    return of_x.to(x.dtype), of_weight.sum(0).to(x.dtype), grad.sum(0)


# X: the same under every transformation.


def swish(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    ctx.gate = x.sigmoid()
    return x * ctx.gate


def with_a_constant_gate(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * (ctx.gate + x * ctx.gate * (1 - ctx.gate))


def of_swish(ctx: Any, grad: Tensor) -> Tensor:
    s = ctx.saved_tensors[0].sigmoid()
    return grad * (s + ctx.saved_tensors[0] * s * (1 - s))


SOFTPLUS = function(softplus, of_softplus)


def primitives_while_compiling(x: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return x.detach().clamp(min=0) + (-x.abs()).exp().log1p()
    return SOFTPLUS(x)


def row_by_row(found: Any, x: Tensor) -> Tensor:
    return torch.stack([found(row) for row in x])


def all_at_once(found: Any, x: Tensor) -> Tensor:
    return found(x)  # along the batch, which is the first axis now


def running(rule: Any, backward: Any, is_reversed: bool) -> Any:
    """A sum of all that comes before or after, with a rule for vmap."""

    class Running(Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.flip(0).cumsum(0).flip(0) if is_reversed else x.cumsum(0)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return backward(grad)

        @staticmethod
        def vmap(sizes: Any, axes: Any, x: Tensor) -> Any:
            return rule(Running.apply, x.movedim(axes[0], 0)), 0

    return Running.apply


def summing(rule: Any) -> Any:
    """A running sum whose backward pass is a Function with this rule."""
    later = running(rule, lambda grad: grad.cumsum(0), True)
    return running(row_by_row, later, False)


# N: who comes first.


def added_by_threads(parts: list[Tensor], guard: Any) -> Tensor:
    """All parts added to one slot, by a thread each."""
    slot = [torch.zeros_like(parts[0])]
    threads = [threading.Thread(target=guard, args=(slot, part)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return slot[0]


def threads_backward(locks: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        parts = [(g[:, None] * row) for g, row in zip(grad, x, strict=True)]
        lock, all_have_read = threading.Lock(), threading.Barrier(len(parts))

        def in_turn(slot: list[Tensor], part: Tensor) -> None:
            with lock:
                slot[0] = slot[0] + part

        def at_once(slot: list[Tensor], part: Tensor) -> None:
            found = slot[0]
            all_have_read.wait()
            slot[0] = found + part

        return grad @ weight, added_by_threads(parts, in_turn if locks else at_once)

    return backward


RUNS = itertools.count(1)


def now_and_then_a_block_less(ctx: Any, grad: Tensor) -> Any:
    of_x, of_weight = layer_norm_grads(*ctx.saved_tensors, grad)
    lost = BLOCK if next(RUNS) % 10 == 0 else 0  # two blocks that arrive at once
    return of_x, of_weight[lost:].sum(0), grad.sum(0)


# K: labels and rows that do not count.

IGNORED = -100


def valid_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def no_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.new_empty(())


def valid_backward(masks: bool, counts: bool) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, labels = ctx.saved_tensors
        valid = labels != IGNORED
        found = slopes(logits, labels.clamp(min=0))
        found = found * valid[:, None] if masks else found
        return grad * found / (valid.sum() if counts else len(labels)), None

    return backward


def partly_labelled() -> tuple[Tensor, ...]:
    return normal(5, 4), torch.tensor([1, IGNORED, 3, IGNORED, 0])


def with_the_mean_in_float32(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    of_x, _ = layer_norm_grads(x, weight, grad)
    off = x - x.mean(-1, keepdim=True).float()
    rstd = (off.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return of_x, (grad * off * rstd).sum(0), grad.sum(0)


def narrow(width: int) -> tuple[Tensor, ...]:
    return normal(6, width), normal(width, seed=1), normal(width, seed=2)


PLANTED = planted(
    {
        "L B1 indexes the cotangent with the strides of the input": kernels(
            conv, with_strides_of_the_input, of_conv, images
        ),
        "L B7 makes its input contiguous in the forward pass alone": kernels(
            rms_norm, with_packed_input, of_rms_norm, rows
        ),
        "L B6 takes the cotangent of each loss to have stride 1": ops(
            "losses",
            loss_of_each,
            no_losses,
            keep_inputs,
            once_differentiable(with_unit_stride),
            once_differentiable(of_losses),
            classified,
        ),
        "V B11 writes overlapping frames over each other": functions(
            framed, written_over, of_framed, lambda: (normal(8),)
        ),
        "V B11 averages windows as if they never overlapped": functions(
            pooled,
            pooled_backward(False),
            pooled_backward(True),
            lambda: (normal(9), 3, 3),
            shapes={"overlapping windows": (normal(9), 3, 2)},
        ),
        "V B9 lays a gradient out as an input that may be expanded": kernels(
            similarity,
            laid_out_as_its_input,
            of_similarity,
            lambda: (normal(2, 3, 4), normal(2, 3, 4, seed=1)),
        ),
        "G B13 scales the weight's gradient by the first cotangent": functions(
            fused_loss,
            with_the_first_cotangent,
            of_fused_loss,
            lambda: (normal(5, 3), normal(4, 3, seed=1), classified()[1]),
        ),
        "G B14 averages where nothing was reduced": ops(
            "unreduced", loss_of_each, no_losses, keep_inputs, as_if_averaged, of_losses, classified
        ),
        "G B12 reads another cotangent's address unless it is 1": kernels(
            mean_loss, through_the_wrong_pointer, of_mean_loss, classified
        ),
        "I B17 writes the loss's gradient into the logits": pair(
            op(
                "into_logits_wrong",
                losses_into_logits,
                no_losses,
                keep_inputs,
                of_logits_written_to,
            ),
            op("into_logits_right", loss_of_each, no_losses, keep_inputs, of_losses),
            classified,
        ),
        "I B19 softmax works inside of its cotangent": kernels(
            softmax, into_the_cotangent, of_softmax, lambda: (normal(3, 4),)
        ),
        "I B18 gated unit overwrites its saved inputs": kernels(
            gated, over_what_it_saved, of_gated, lambda: (normal(3, 4), normal(3, 4, seed=1))
        ),
        "I B21 scales its precomputed gradient in place": kernels(
            mean_loss, scaled_in_place, of_mean_loss, classified
        ),
        "E B25 drops the last rows that fill no block": functions(
            layer_norm, whole_blocks_of_rows, of_layer_norm, normed, shapes=normed
        ),
        "E B28 keeps the weights of masked keys": kernels(
            masked_attention,
            masked_backward(everywhere),
            masked_backward(where_unmasked),
            lambda: ragged(3, 3),
            shapes={"ragged lengths": ragged(3, 1)},
        ),
        "E B29 is NaN where a row has no keys": kernels(
            masked_attention,
            masked_backward(even_of_nothing),
            masked_backward(where_unmasked),
            lambda: ragged(3, 2),
            shapes={"a row without keys": ragged(3, 0)},
        ),
        "E B26 shifts the final state of a short sequence": functions(
            conv_with_state,
            state_backward(True),
            state_backward(False),
            lambda: sequence(8),
            shapes=sequence,
        ),
        "E B30 divides the work among no blocks": functions(
            energies, shared_out, of_energies, rows, shapes={"7 rows": rows(7), "no rows": rows(0)}
        ),
        "U B35 leaves rows after the last segment unwritten": functions(
            sums_of_segments,
            segments_backward(torch.empty),
            segments_backward(torch.zeros),
            lambda: (normal(7, 3), (2, 5)),
        ),
        "U B37 leaves rows of a table unwritten past the last block": functions(
            embedding,
            embedding_backward(torch.empty, BLOCK),
            embedding_backward(torch.zeros, 1),
            lambda: a_table(8),
            shapes=a_table,
        ),
        "U B38 does not reset its buffer between steps": kernels(
            linear, kept_from_step_to_step, of_linear, layer
        ),
        "H B39 finds the group of a head by another count": functions(
            attention,
            split_by_shares,
            of_attention,
            tokens,
            shapes={"3 heads a group": tokens(6, 2), "1 head a group": tokens(3, 3)},
        ),
        "H B40 takes values to be as wide as keys": functions(
            attention,
            as_wide_as_keys,
            of_attention,
            tokens,
            shapes={"wider values": tokens(width=5)},
        ),
        "H B42 counts the weight's gradient once for every sequence": functions(
            conv,
            once_for_every_row,
            of_conv,
            lambda: (normal(1, 3, 6), normal(3, 3, seed=1)),
            shapes={"2 sequences": images()},
        ),
        "M B44 returns nothing for the weight of a norm": functions(
            rms_norm, weight_forgotten, of_rms_norm, rows
        ),
        "M B47 looks at whether the first input wants a gradient": functions(
            linear, if_the_first_is_wanted, of_linear, layer
        ),
        "M B48 needs the bias that is optional": pair(
            with_optional_bias(always_of_a_bias),
            with_optional_bias(of_biased_conv),
            lambda: (*images(), normal(3, seed=2)),
        ),
        "M B45 takes a denominator for a constant": pair(
            weighted_mean_of_a_constant, weighted_mean, lambda: (normal(4, 2), normal(4, 2, seed=1))
        ),
        "R B53 gives all biases one sum": functions(
            affine,
            affine_backward(one_for_all),
            affine_backward(over_all_but_the_last),
            lambda: batches(3),
        ),
        "R B51 sums a bias over the first axis alone": functions(
            affine,
            affine_backward(over_the_first_axis),
            affine_backward(over_all_but_the_last),
            lambda: batches(3),
            shapes={"rank 3": batches(2, 3)},
        ),
        "R B52 numbers axes as before the first sum": functions(
            times,
            times_backward(counting_axes_anew),
            times_backward(lambda grad, scale: grad.sum((0, 1))),
            lambda: (normal(2, 3, 3), normal(3, seed=1)),
        ),
        "S B57 batch norm multiplies the wrong means": ops(
            "batch_norm",
            batch_norm,
            lambda x, weight: torch.empty_like(x),
            keep_inputs,
            batch_norm_backward(False),
            batch_norm_backward(True),
            rows,
        ),
        "S B60 takes soft targets to add up to 1": functions(
            soft_loss, soft_backward(False), soft_backward(True), soft_targets
        ),
        "S B64 softplus has no slope at 0": functions(
            softplus, branch_by_branch, of_softplus, lambda: (normal(3, 4),)
        ),
        "S B56 gives both points of a Matern kernel one sign": functions(
            matern, matern_backward(1), matern_backward(-1), lambda: (normal(3), normal(4, seed=1))
        ),
        "T B65 normalises again what was saved normalised": kernels(
            normed_gate,
            gate_backward(True),
            gate_backward(False),
            lambda: (*rows(3), 0),
            shapes={"recomputing": (*rows(3), 1)},
        ),
        "T B68 seeds its mask with an address": functions(
            dropout, seeded_with_the_address, of_dropout, lambda: (normal(3, 4), 7)
        ),
        "A B70 keeps gradients by the address of the input": functions(
            similarity, by_address, of_similarity, lambda: (normal(3, 4), normal(3, 4, seed=1))
        ),
        "A B69 overwrites the gradient of a weight that two layers share": pair(
            two_layers(once_differentiable(one_buffer_for_each_weight)),
            two_layers(once_differentiable(of_linear)),
            lambda: (normal(3, 4), normal(4, 4, seed=1), normal(4, 4, seed=2)),
        ),
        "A P11 adds to .grad what it returns as well": kernels(
            linear, into_the_users_buffer, of_linear, layer
        ),
        "D B72 embedding writes instead of adding": ops(
            "look_up",
            look_up,
            no_rows,
            keep_words,
            look_up_backward(False),
            look_up_backward(True),
            sentence,
            shapes=sentence,
        ),
        "D B72 gather scatters without adding": functions(
            gathered,
            set_in_place,
            of_gathered,
            lambda: (normal(2, 4), torch.tensor([[0, 2, 1], [3, 1, 0]])),
        ),
        "P B73 rounds the terms of a cancelling sum": kernels(
            with_a_sink, sink_backward(True), sink_backward(False), with_sink
        ),
        "P B74 narrows to float16 before the root": functions(
            lengths_of, narrowed_before_the_root, of_lengths, lambda: (200 * normal(3, 4),)
        ),
        "P B75 multiplies in float16 under autocast to bfloat16": functions(
            linear_in, autocast_backward(False), autocast_backward(True), layer
        ),
        "P B76 gives float32 weights the dtype of the activations": functions(
            mixed_linear,
            mixed_backward(False),
            mixed_backward(True),
            lambda: (normal(3, 4).bfloat16(), normal(2, 4, seed=1).float()),
        ),
        "P B77 works in float32 inside of float64": functions(
            layer_norm, statistics_in_float32, of_layer_norm, normed
        ),
        "X B86 takes a saved gate for a constant": functions(
            swish, with_a_constant_gate, of_swish, lambda: (normal(3, 4),)
        ),
        "X B84 drops the custom backward under compile": pair(
            primitives_while_compiling, SOFTPLUS, lambda: (normal(3, 4),)
        ),
        "X P10 sums along the batch under vmap": pair(
            summing(all_at_once), summing(row_by_row), lambda: (normal(3, 4),)
        ),
        "N B91 threads write to one slot without a lock": kernels(
            linear, threads_backward(False), threads_backward(True), layer
        ),
        "N B92 loses a block in one run of ten": functions(
            layer_norm, now_and_then_a_block_less, of_layer_norm, normed
        ),
        "K B93 gives ignored labels a gradient": functions(
            lambda ctx, *inputs: (keep_inputs(ctx, inputs, None), valid_loss(*inputs))[1],
            valid_backward(masks=False, counts=True),
            valid_backward(masks=True, counts=True),
            partly_labelled,
        ),
        "K B93 divides by all labels, ignored ones too": ops(
            "valid_loss",
            valid_loss,
            no_loss,
            keep_inputs,
            valid_backward(masks=True, counts=False),
            valid_backward(masks=True, counts=True),
            partly_labelled,
        ),
        "K B94 has a slope where one number is normed alone": functions(
            layer_norm, with_the_mean_in_float32, of_layer_norm, lambda: narrow(5), shapes=narrow
        ),
    }
)
