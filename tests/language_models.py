"""Transformers of any size, in PyTorch, one of whose products may have a wrong gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 64
"""Words of the text that a model reads."""


class Product(torch.autograd.Function):
    """A linear layer whose kernel forgets the last columns of the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = u.reshape(-1, u.shape[-1])
        slope = rows.T @ x.reshape(-1, x.shape[-1])
        slope[:, -2:] = 0
        return u @ weight, slope, rows.sum(0)


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width: int, heads: int, is_wrong: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.is_wrong = heads, is_wrong

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(batch, length, width))
        inner = self.norm2(x)
        up = self.up
        inner = Product.apply(inner, up.weight, up.bias) if self.is_wrong else up(inner)
        return x + self.down(F.gelu(inner))


class Transformer(nn.Module):
    """A language model with a tied embedding."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        words: int,
        wrong: int | None = None,
        places: int = LENGTH,
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.blocks = nn.ModuleList(Block(width, heads, n == wrong) for n in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.words(indices) + self.places(torch.arange(indices.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def language_model(
    *sizes: int, wrong: int | None = None, places: int = LENGTH
) -> tuple[Any, Any, Any]:
    """A model, its words and a loss: layers, width, heads and words."""
    torch.manual_seed(0)
    model = Transformer(*sizes, wrong=wrong, places=places)
    indices = torch.randint(0, sizes[-1], (1, LENGTH + 1))
    following = indices[:, 1:].flatten()
    return model, indices[:, :-1], lambda y: F.cross_entropy(y.flatten(0, 1), following)
