"""JAX functions for xgradcheck and check_grads. As a script: seconds of one call in a new process.

Run: python benchmarks/_jax_cases.py "MLP 26k" check_grads
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _networks import NETWORKS, batch, mlp, weights
from _timing import seconds_of
from jax.test_util import check_grads

from xgradcheck import Report, check

jax.config.update("jax_enable_x64", True)

Case = tuple[Callable[..., Any], list[Any]]


@jax.custom_vjp
def swish(x: Any) -> Any:
    return x * jax.nn.sigmoid(x)


def _swish_backward(x: Any, u: Any) -> tuple[Any]:
    s = jax.nn.sigmoid(x)
    return (u * (s + x * s * (1 - s)),)


swish.defvjp(lambda x: (swish(x), x), _swish_backward)


@jax.custom_vjp
def logsumexp(x: Any) -> Any:
    return jax.scipy.special.logsumexp(x, axis=-1)


logsumexp.defvjp(
    lambda x: (logsumexp(x), x), lambda x, u: (u[..., None] * jax.nn.softmax(x, axis=-1),)
)


def _drawn(fn: Callable[..., Any], *shape: int) -> Case:
    return fn, [jnp.asarray(np.random.default_rng(2).normal(size=shape))]


def _network(name: str) -> Case:
    sizes = NETWORKS[name]
    data = jnp.asarray(batch(sizes[0]))
    return mlp(jnp.tanh, data), [jnp.asarray(part) for part in weights(*sizes)]


CASES: dict[str, Callable[[], Case]] = {
    "swish 64": lambda: _drawn(swish, 64),
    "swish 1e5": lambda: _drawn(swish, 100_000),
    "logsumexp 8x32": lambda: _drawn(logsumexp, 8, 32),
    "MLP 1.7k": lambda: _network("1.7k"),
    "MLP 26k": lambda: _network("26k"),
    "MLP 1M": lambda: _network("1M"),
}


def ours(fn: Callable[..., Any], leaves: list[Any]) -> Report:
    return check(fn, *leaves)


def peer(fn: Callable[..., Any], leaves: list[Any]) -> None:
    check_grads(fn, leaves, order=1, modes=("rev",))


TOOLS: dict[str, Callable[..., Any]] = {"xgradcheck": ours, "check_grads": peer}


def main(name: str, tool: str) -> None:
    fn, leaves = CASES[name]()
    jax.block_until_ready(leaves)
    print(seconds_of(lambda: TOOLS[tool](fn, leaves)))


if __name__ == "__main__":
    main(*sys.argv[1:])
