"""Functions of torch.autograd.Function, for cases.toml; some have a backward that is wrong."""

import torch
from torch import Tensor
from torch.autograd import Function


class Swish(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * s * (1 + x * (1 - s))


class SwishOfAnotherSign(Swish):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * s * (1 - x * (1 - s))


class Gelu(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * (1 + torch.erf(x * 0.5**0.5))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        density = torch.exp(-0.5 * x**2) / (2 * torch.pi) ** 0.5
        return grad * (0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * density)


class Softmax(Function):
    @staticmethod
    def forward(ctx, x):
        p = x.softmax(-1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        return p * (grad - (grad * p).sum(-1, keepdim=True))


class LogSumExp(Function):
    @staticmethod
    def forward(ctx, x):
        out = x.logsumexp(-1)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, out = ctx.saved_tensors
        return grad[..., None] * torch.exp(x - out[..., None])


class RmsNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, rstd)
        return x * rstd * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight, rstd = ctx.saved_tensors
        scaled, normed = grad * weight, x * rstd
        dx = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
        return dx, (grad * normed).reshape(-1, x.shape[-1]).sum(0), None


class RmsNormOfTheLastRow(RmsNorm):
    """Its weight's gradient forgets to add the rows up."""

    @staticmethod
    def backward(ctx, grad):
        dx, _, _ = RmsNorm.backward(ctx, grad)
        x, _, rstd = ctx.saved_tensors
        return dx, (grad * x * rstd).reshape(-1, x.shape[-1])[-1], None


class Linear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x, grad.sum(0)


class LinearWithAMean(Linear):
    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x, grad.mean(0)


class Viewed(Function):
    """Right, but for cotangents that no view can flatten."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad.view(-1).view(grad.shape)


class Round(Function):
    """Straight through: its gradient is not meant to be that of rounding."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def swish(x: Tensor) -> Tensor:
    return Swish.apply(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return RmsNorm.apply(x, weight, eps)


def plain_softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return Softmax.apply(q @ k.mT / q.shape[-1] ** 0.5) @ v


def picked(x: Tensor, index: Tensor) -> Tensor:
    return Swish.apply(x[index])
