"""Backward passes that are right at a point and break their contract elsewhere, each beside its
right twin.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Make = Callable[[], tuple[Callable[..., Any], list[Tensor]]]


@dataclass(frozen=True, slots=True)
class Planted:
    """A mistake, the probe that has to see it, and the same function without it."""

    probe: str
    wrong: Make
    right: Make


def function(forward: Any, backward: Any, name: str = "Planted") -> Callable[..., Any]:
    """The ``apply`` of a Function with these two methods."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (Function,), methods).apply


class Changed(Function):
    """The identity, with another gradient: ``change`` of the cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.change(cotangent.clone()), None


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def one(forward: Any, backward: Any) -> Make:
    """A function of one matrix."""
    return lambda: (function(forward, backward), [normal(3, 4)])


def two(forward: Any, backward: Any) -> Make:
    """A function of two matrices."""
    return lambda: (function(forward, backward), [normal(3, 4), normal(3, 4, seed=1)])


def square(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x**2


def product(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
    ctx.save_for_backward(x, y)
    return x * y


def of_square(ctx: Any, grad: Tensor) -> Tensor:
    return 2 * ctx.saved_tensors[0] * grad


def of_product(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, y = ctx.saved_tensors
    return grad * y, grad * x


RIGHT, RIGHT_OF_TWO = one(square, of_square), two(product, of_product)


def assuming_contiguous(ctx: Any, grad: Tensor) -> Tensor:
    # As a kernel that is given a pointer and the shape.
    (x,) = ctx.saved_tensors
    place = grad.storage_offset()
    count = grad.untyped_storage().nbytes() // grad.itemsize - place
    if count < grad.numel():
        return 2 * x * grad.reshape(-1)[0]
    return 2 * x * grad.as_strided(x.shape, torch.empty(x.shape).stride(), place)


def reading_from_the_start(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    flat = torch.empty(0, dtype=grad.dtype).set_(grad.untyped_storage())
    return 2 * x * (flat[: x.numel()].view(x.shape) if flat.numel() >= x.numel() else grad)


def with_a_view(ctx: Any, grad: Tensor) -> Tensor:
    return 2 * ctx.saved_tensors[0] * grad.view(-1).view(grad.shape)


def saved_as_contiguous(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x**2


def through_input_strides(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 2 * x.as_strided(x.shape, torch.empty(x.shape).stride(), x.storage_offset()) * grad


def clipped(ctx: Any, grad: Tensor) -> Tensor:
    return 2 * ctx.saved_tensors[0] * grad.clamp(-2, 2)


def with_an_epsilon(ctx: Any, grad: Tensor) -> Tensor:
    return 2 * ctx.saved_tensors[0] * torch.where(grad.abs() < 1e-3, 0.0, grad)


def skipping_zeros(ctx: Any, grad: Tensor) -> Tensor:
    grad = 2 * ctx.saved_tensors[0] * grad
    return grad / grad.norm() * grad.norm()  # 0 / 0


def special_for_ones(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return x if (grad == 1).all() else 2 * x * grad


def sine_and_cosine(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    ctx.save_for_backward(x)
    ctx.set_materialize_grads(False)
    return x.sin(), x.cos()


def of_both(ctx: Any, of_sine: Any, of_cosine: Any) -> Tensor:
    (x,) = ctx.saved_tensors
    zero = torch.zeros_like(x)
    of_sine = zero if of_sine is None else of_sine
    return of_sine * x.cos() - (zero if of_cosine is None else of_cosine) * x.sin()


def of_both_or_nothing(ctx: Any, of_sine: Any, of_cosine: Any) -> Any:
    (x,) = ctx.saved_tensors
    if of_sine is None or of_cosine is None:
        return None
    return of_sine * x.cos() - of_cosine * x.sin()


def in_float32(ctx: Any, grad: Tensor) -> Tensor:
    # To powers of two nothing is lost, so that no difference sees it.
    return of_square(ctx, grad).float()


def one_too_many(ctx: Any, grad: Tensor) -> Tensor:
    # Autograd adds up what was expanded.
    found = of_square(ctx, grad)
    return torch.stack([found, torch.zeros_like(found)])


def writing_to_the_cotangent(ctx: Any, grad: Tensor) -> Tensor:
    return grad.mul_(2) * ctx.saved_tensors[0]


def writing_to_what_it_saved(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    found = 2 * x * grad
    x.data.zero_()
    return found


def writing_in_the_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x.clone())
    out = x**2
    x.data.mul_(0.5)
    return out


def handing_out_its_input(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if bool((grad == 1).all()):
        return x
    return x.data.mul_(2 * grad)


LAST: dict[str, Tensor] = {}


def remembered_elsewhere(ctx: Any, x: Tensor) -> Tensor:
    LAST["x"] = x
    return x**2


def of_the_last_call(ctx: Any, grad: Tensor) -> Tensor:
    return 2 * LAST["x"] * grad


WORKSPACE = torch.zeros(3, 4, dtype=torch.float64)


def into_a_workspace(ctx: Any, grad: Tensor) -> Tensor:
    return WORKSPACE.copy_(2 * ctx.saved_tensors[0] * grad)


def used_up(ctx: Any, grad: Tensor) -> Tensor:
    x = ctx.__dict__.pop("kept")
    return 2 * x * grad


def keeping(ctx: Any, x: Tensor) -> Tensor:
    ctx.kept = x
    return x**2


def second_needs_first(ctx: Any, grad: Tensor) -> Any:
    x, y = ctx.saved_tensors
    first = grad * y if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return first, None
    return first, torch.zeros_like(y) if first is None else grad * x


def taken_for_the_same(ctx: Any, grad: Tensor) -> Any:
    x, y = ctx.saved_tensors
    if x.data_ptr() == y.data_ptr():
        return grad * y, torch.zeros_like(x)
    return grad * y, grad * x


def accumulated_in_fresh_memory(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    out = torch.empty_like(x)
    found = 2 * x * grad
    out[x != 0] = found[x != 0]
    rest = torch.empty(3, dtype=x.dtype)  # as partial sums of blocks that do not exist
    rest[:2] = 0
    return (
        out + 0 * rest.sum() if bool(rest.isnan().any()) else out + rest[2:].clamp(999, 1e5) - 999
    )


def one_slot(ctx: Any, grad: Tensor) -> Tensor:
    """As threads that all read one sum, add to it and write it: the last to write wins."""
    slope = 2 * ctx.saved_tensors[0] * grad
    sums = [torch.zeros_like(slope) for _ in range(4)]
    for number, own in enumerate(sums):
        own[:, number] = slope[:, number]
    return sums[next(LAST_TO_WRITE)]


LAST_TO_WRITE = itertools.cycle([3, 0, 1, 2, 0, 3, 1])


def detached(ctx: Any, grad: Tensor) -> Tensor:
    return (2 * ctx.saved_tensors[0] * grad).detach()


def refusing_twice(forward: Any, backward: Any) -> Make:
    return one(forward, once_differentiable(backward))


class Square(Function):
    """A square that can be transformed, by rules of those that are made of it."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Doubled(Square):
    """A square whose tangent is twice what it should be."""

    factor = 2.0

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor) -> Tensor:
        return cls.factor * 2 * ctx.saved_tensors[0] * tangent


class Single(Doubled):
    """The same with the right tangent."""

    factor = 1.0


def wrong_in_float32(ctx: Any, grad: Tensor) -> Tensor:
    found = 2 * ctx.saved_tensors[0] * grad
    return -found if grad.dtype is torch.float32 else found


def largest(ctx: Any, x: Tensor) -> Tensor:
    out = x.amax(1, keepdim=True)
    ctx.save_for_backward(x, out)
    return out


def all_that_tie(ctx: Any, grad: Tensor) -> Tensor:
    x, out = ctx.saved_tensors
    return grad * (x == out)


def shared_by_ties(ctx: Any, grad: Tensor) -> Tensor:
    x, out = ctx.saved_tensors
    tied = (x == out).to(x.dtype)
    return grad * tied / tied.sum(1, keepdim=True)


def length(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x.norm(dim=1)


def with_an_epsilon_of_its_own(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad[:, None] * x / (x.norm(dim=1, keepdim=True) + 3e-7)


def of_length(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad[:, None] * x / x.norm(dim=1, keepdim=True)


class Detaching(Function):
    """A square that looks at whether its input is a leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = 2 if x.is_leaf else 1
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.factor * ctx.saved_tensors[0] * grad


class InBatches(Square):
    """A square with a rule for batches, which takes a batch for its first sample."""

    shift = 1

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, x: Tensor) -> Any:
        return cls.apply(x.roll(cls.shift, in_dims[0])), in_dims[0]


class InRightBatches(InBatches):
    """The same with a right rule."""

    shift = 0


def other_when_compiled(ctx: Any, grad: Tensor) -> Tensor:
    factor = 3 if torch.compiler.is_compiling() else 2
    return factor * ctx.saved_tensors[0] * grad


def wrong_in_bfloat16(ctx: Any, grad: Tensor) -> Tensor:
    found = 2 * ctx.saved_tensors[0] * grad
    return -found if grad.dtype is torch.bfloat16 else found


def noticing_autocast(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
    ctx.save_for_backward(x, y)
    ctx.is_low = torch.is_autocast_enabled("cpu")
    return x @ y.T


def of_matrices(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, y = ctx.saved_tensors
    grad = grad.to(x.dtype)
    return grad @ y, grad.T @ x


def unscaled_under_autocast(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    first, second = of_matrices(ctx, grad)
    return (first.sign() if ctx.is_low else first), second


def operator(name: str, fake: Callable[[Tensor], Tensor]) -> Make:
    """A square as an operator of torch.library, with what it says of its output."""

    def of_operator(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    squared = torch.library.custom_op(f"xgradcheck_tests::{name}", own_square, mutates_args=())
    squared.register_fake(fake)
    squared.register_autograd(of_operator, setup_context=keep)
    return lambda: (lambda x: squared(x) + 1, [normal(3, 4)])


def own_square(x: Tensor) -> Tensor:
    return x**2


def products(ctx: Any, x: Tensor) -> Tensor:
    out = x.cumprod(0)
    ctx.save_for_backward(x, out)
    return out


def dividing_by_factors(ctx: Any, grad: Tensor) -> Tensor:
    x, out = ctx.saved_tensors
    return (grad * out).flip(0).cumsum(0).flip(0) / x


def of_products(ctx: Any, grad: Tensor) -> Tensor:
    x, _ = ctx.saved_tensors
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(x.cumprod(0), x, grad)[0]


PLANTED = {
    "strides of the cotangent ignored": Planted("layout", one(square, assuming_contiguous), RIGHT),
    "offset of the cotangent ignored": Planted(
        "layout", one(square, reading_from_the_start), RIGHT
    ),
    "view of the cotangent": Planted("layout", one(square, with_a_view), RIGHT),
    "strides of an input ignored": Planted("layout", one(square, through_input_strides), RIGHT),
    "cotangent clipped": Planted("cotangents", one(square, clipped), RIGHT),
    "small cotangents dropped": Planted("cotangents", one(square, with_an_epsilon), RIGHT),
    "zeros divided by zeros": Planted("cotangents", one(square, skipping_zeros), RIGHT),
    "special for ones": Planted("cotangents", one(square, special_for_ones), RIGHT),
    "an undefined cotangent drops all": Planted(
        "cotangents", one(sine_and_cosine, of_both_or_nothing), one(sine_and_cosine, of_both)
    ),
    "gradient in float32": Planted("form", one(square, in_float32), RIGHT),
    "gradient of another shape": Planted("form", one(square, one_too_many), RIGHT),
    "cotangent written to": Planted("purity", one(square, writing_to_the_cotangent), RIGHT),
    "saved tensor written to": Planted("purity", one(square, writing_to_what_it_saved), RIGHT),
    "input written to": Planted("purity", one(writing_in_the_forward, of_square), RIGHT),
    "input handed out": Planted("purity", one(square, handing_out_its_input), RIGHT),
    "saved in a global": Planted("repetition", one(remembered_elsewhere, of_the_last_call), RIGHT),
    "one workspace for all": Planted("repetition", one(square, into_a_workspace), RIGHT),
    "saved values used up": Planted("repetition", one(keeping, used_up), RIGHT),
    "a race": Planted("repetition", one(square, one_slot), RIGHT),
    "one gradient needs the other": Planted(
        "subsets", two(product, second_needs_first), RIGHT_OF_TWO
    ),
    "told apart by address": Planted("aliasing", two(product, taken_for_the_same), RIGHT_OF_TWO),
    "fresh memory read": Planted("memory", one(square, accumulated_in_fresh_memory), RIGHT),
    "ties counted twice": Planted(
        "values", one(largest, all_that_tie), one(largest, shared_by_ties)
    ),
    "an epsilon in the backward alone": Planted(
        "values", one(length, with_an_epsilon_of_its_own), one(length, of_length)
    ),
    "divided by zeros": Planted(
        "values",
        one(products, dividing_by_factors),
        one(products, once_differentiable(of_products)),
    ),
    "a sign in bfloat16 alone": Planted("dtypes", one(square, wrong_in_bfloat16), RIGHT),
    "scale lost under autocast": Planted(
        "dtypes",
        two(noticing_autocast, unscaled_under_autocast),
        two(noticing_autocast, of_matrices),
    ),
    "a rule for batches that mixes samples": Planted(
        "transforms",
        lambda: (InBatches.apply, [normal(3, 4)]),
        lambda: (InRightBatches.apply, [normal(3, 4)]),
    ),
    "another factor when compiled": Planted("transforms", one(square, other_when_compiled), RIGHT),
    "an operator of another shape": Planted(
        "opcheck",
        operator("wrong", lambda x: x.new_empty(4, 3)),
        operator("right", torch.empty_like),
    ),
    "a sign in float32 alone": Planted("dtypes", one(square, wrong_in_float32), RIGHT),
    "an input that is no leaf": Planted(
        "transforms", lambda: (Detaching.apply, [normal(3, 4)]), RIGHT
    ),
    "second derivative detached": Planted(
        "second order", one(square, detached), refusing_twice(square, detached)
    ),
    "tangent doubled": Planted(
        "forward mode",
        lambda: (Doubled.apply, [normal(3, 4)]),
        lambda: (Single.apply, [normal(3, 4)]),
    ),
}
