"""Where JAX computes in float64 and where it draws random numbers as if it did not."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax import tree_util

# They make keys or carry values along, and draw no floating numbers.
AS_THEY_ARE = ("PRNGKey", "key", "split", "fold_in", "clone", "permutation", "shuffle", "choice")


def x64(enabled: bool = True) -> AbstractContextManager[Any]:
    """float64 on or off for as long as the context lasts; the global flag is not touched."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)  # type: ignore[no-any-return]
    experimental: Any = jax.experimental
    scope = experimental.enable_x64 if enabled else experimental.disable_x64
    return scope()  # type: ignore[no-any-return]


@contextmanager
def drawn_low() -> Iterator[None]:
    """Random numbers drawn in float32 and raised: nearly all of ``jax.random`` gives others in
    float64.
    """
    found = {
        name: draw
        for name, draw in vars(jax.random).items()
        if callable(draw)
        and not name.startswith(("_", "key_", "wrap_"))
        and name not in AS_THEY_ARE
    }
    try:
        for name, draw in found.items():
            setattr(jax.random, name, _low(draw))
        yield
    finally:
        for name, draw in found.items():
            setattr(jax.random, name, draw)


def _low(draw: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(draw)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_util.tree_map(_narrow, (args, kwargs))
        with x64(False):
            drawn = draw(*args, **kwargs)
        return tree_util.tree_map(_widen, drawn)

    return drawing


def _narrow(value: Any) -> Any:
    if isinstance(value, np.dtype | str) and str(value) == "float64":
        return jnp.float32
    if value is jnp.float64 or value is np.float64:
        return jnp.float32
    if isinstance(value, jax.Array | np.ndarray) and value.dtype == jnp.float64:
        return value.astype(jnp.float32)
    return value


def _widen(value: Any) -> Any:
    return value.astype(jnp.float64) if jnp.issubdtype(value.dtype, jnp.floating) else value
