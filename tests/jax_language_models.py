"""Transformers of any size, in JAX, one of whose products may have a wrong gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def attention(p: dict[str, Any], x: Any, heads: int) -> Any:
    length, width = x.shape
    parts = jnp.split(x @ p["qkv"], 3, -1)
    q, k, v = (part.reshape(length, heads, -1).transpose(1, 0, 2) for part in parts)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    found = jax.nn.softmax(scores, -1) @ v
    return found.transpose(1, 0, 2).reshape(length, width) @ p["out"]


def product(is_wrong: bool) -> Any:
    """A product of matrices that may forget the last rows of a gradient."""

    @jax.custom_vjp
    def dense(x: Any, w: Any) -> Any:
        return x @ w

    def backward(saved: Any, u: Any) -> Any:
        x, w = saved
        slope = x.T @ u
        return u @ w.T, slope.at[-2:].set(0) if is_wrong else slope

    dense.defvjp(lambda x, w: (x @ w, (x, w)), backward)
    return dense


def language_model(
    layers: int, width: int, words: int, is_wrong: bool, length: int = 32
) -> tuple[Any, Any]:
    """A loss and its weights; the second layer may be wrong."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return jnp.asarray(0.05 * rng.normal(size=shape), jnp.float32)

    def layer() -> dict[str, Any]:
        shapes = {"qkv": (width, 3 * width), "out": (width, width)}
        shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
        return {name: drawn(*shape) for name, shape in shapes.items()}

    params = {"words": drawn(words, width), "layers": [layer() for _ in range(layers)]}
    indices, dense = rng.integers(0, words, length + 1), product(is_wrong)

    def loss(params: Any) -> Any:
        x = params["words"][indices[:-1]]
        for number, p in enumerate(params["layers"]):
            x = x + attention(p, x, 4)
            inner = dense(x, p["up"]) if number == 1 else x @ p["up"]
            x = x + jax.nn.gelu(inner) @ p["down"]
        chances = jax.nn.log_softmax(x @ params["words"].T)
        return -jnp.take_along_axis(chances, indices[1:, None], 1).mean()

    return loss, params
