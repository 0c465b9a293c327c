"""Strategies for property tests with hypothesis: arguments of the sizes and values at which
backward passes go wrong.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xgradcheck._adapters import adapter
from xgradcheck._errors import InvalidCase
from xgradcheck._variants import around

try:
    import hypothesis.strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "xgradcheck.strategies needs hypothesis: pip install hypothesis.", name="hypothesis"
    ) from error

VALUES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "small": lambda rng, shape: 1e-3 * rng.normal(size=shape),
    "large": lambda rng, shape: 100 * rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(2, size=shape),
    "ties": lambda rng, shape: rng.integers(-2, 3, size=shape) / 2,
    "dominated by one": lambda rng, shape: (
        rng.normal(size=shape) + 30 * (np.arange(np.prod(shape, dtype=int)) == 0).reshape(shape)
    ),
    "offset": lambda rng, shape: 1000 + rng.normal(size=shape),
    "zeros": lambda rng, shape: np.zeros(shape),
}
"""Families of values, by name, in the order in which hypothesis simplifies."""


def arguments(
    *shapes: Sequence[int | str],
    blocks: Sequence[int] = (8, 32),
    families: Sequence[str] = tuple(VALUES),
    dtype: str = "float64",
    backend: str = "numpy",
    empty: bool = False,
) -> "st.SearchStrategy[tuple[Any, ...]]":
    """Tuples of arrays to call ``check`` or ``audit`` with.

    >>> from hypothesis import given
    >>> from xgradcheck import check
    >>> @given(arguments(("n", 3), ("n",)))
    ... def test_weighted_squares(args):
    ...     check(
    ...         lambda x, w: (x**2).T @ w,
    ...         *args,
    ...         wrt=(0, 1),
    ...         grads=lambda u, x, w: (2 * x * u * w[:, None], x**2 @ u),
    ...     )

    Each shape holds numbers, and names that stand for one size in all shapes: 1, a prime, or one
    around a block: B - 1, B, B + 1, 2 B - 1. ``families`` chooses among the families of values:
    normal, small, large, heavy-tailed, ties, dominated by one, offset, zeros. ``backend`` is whose
    arrays they are, ``empty`` lets sizes be 0. Traps: ties and zeros are where functions have
    kinks, at which any subgradient is right; a family outside of a function's domain has to be left
    out.

    Raises InvalidCase for an unknown family or backend.
    """
    for family in families:
        if family not in VALUES:
            raise InvalidCase(f"there is no family {family!r}; they are {', '.join(VALUES)}.")
    own = adapter(backend)
    sizes = [size for size in around(blocks) if size or empty]
    names = sorted({size for shape in shapes for size in shape if isinstance(size, str)})

    @st.composite
    def drawn(draw: Any) -> tuple[Any, ...]:
        known = {name: draw(st.sampled_from(sizes), label=name) for name in names}
        rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
        arrays = []
        for shape in shapes:
            own_shape = tuple(known[n] if isinstance(n, str) else n for n in shape)
            values = VALUES[draw(st.sampled_from([*families]), label="family")](rng, own_shape)
            arrays.append(own.from_numpy(np.asarray(values).astype(dtype)))
        return tuple(arrays)

    strategy: st.SearchStrategy[tuple[Any, ...]] = drawn()
    return strategy
