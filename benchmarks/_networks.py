"""Networks of three layers as plain functions of their weights, in torch or in jax.numpy."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

NETWORKS = {
    "1.7k": (16, 32, 4),
    "6.9k": (32, 64, 8),
    "26k": (64, 128, 10),
    "1M": (512, 768, 10),
}
ROWS = 32
"""Inputs, hidden units (twice) and outputs of a network, and how many inputs it is given."""


def weights(inputs: int, hidden: int, outputs: int) -> list[Any]:
    """Weights and biases of three layers, as NumPy arrays."""
    rng = np.random.default_rng(0)
    sizes = (inputs, hidden, hidden, outputs)
    found: list[Any] = []
    for fan_in, fan_out in pairwise(sizes):
        found += [rng.normal(size=(fan_out, fan_in)) / math.sqrt(fan_in), rng.normal(size=fan_out)]
    return found


def batch(inputs: int) -> Any:
    """What a network is given, as a NumPy array."""
    return np.random.default_rng(1).normal(size=(ROWS, inputs))


def mlp(activation: Callable[[Any], Any], data: Any) -> Callable[..., Any]:
    """The mean square of a network's outputs."""

    def loss(w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any) -> Any:
        hidden = activation(data @ w1.T + b1)
        hidden = activation(hidden @ w2.T + b2)
        return ((hidden @ w3.T + b3) ** 2).mean()

    return loss
