"""The verb ``bench``: what implementations of one function cost, of those that are right.

A time is told of what was seen to be right while it was timed. An implementation is run on numbers
that nobody has seen, before its reference is; the numbers change in place from run to run, inputs
are compared bit by bit before and after, and outputs and gradients of some of the timed runs, and
of one more after them, are verified like the first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xgradcheck._bench_report import BenchReport
from xgradcheck._errors import InvalidCase

SECONDS = 0.5
"""How long one implementation is timed, unless told otherwise."""


def bench(
    implementations: Mapping[str, Callable[..., Any]],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    dtypes: str | Sequence[str] | None = None,
    shapes: Callable[[int], tuple[Any, ...]] | Mapping[Any, tuple[Any, ...]] | None = None,
    factors: Mapping[str, float] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    loss: Callable[[Any], Any] | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
    name: str | None = None,
    backend: str | None = None,
) -> BenchReport:
    """Time implementations of one function, those whose values and gradients are right.

    >>> import torch
    >>> x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    >>> report = bench({"torch": torch.sigmoid}, x, reference=torch.sigmoid, seconds=0.01)
    >>> [(record.name, str(record.verdict)) for record in report.records]
    [('torch', 'PASS')]

    Every implementation gets its verdict first. What is wrong, raises, writes to its arguments,
    answers from memory, or was right only until it was timed is FAIL, with the reason and without a
    time. Nothing is raised about an implementation.

    Parameters
    ----------
    implementations
        Functions of the same arguments, by name.
    *args, kwargs, wrt, loss, backend
        As in ``check``; of torch or JAX.
    reference
        A plain function of the same arguments, as in ``check``: differences prove its gradient once
        for all. Without one, every implementation is checked by differences itself.
    dtypes, factors
        The dtypes to run in, by default that of the arguments; and how many times the error of the
        reference run in the same dtype is allowed.
    shapes
        Other arguments to time: a dict of tuples by name, or a function of a size that returns a
        tuple, which is called with 64, 256 and 1024.
    seconds
        How long each implementation is timed.
    seed, name
        Of all numbers that are drawn; and what the report is called.

    Raises
    ------
    InvalidCase
        The call itself is no benchmark: no implementations, an unknown dtype, arguments that no
        framework claims.

    ``report.records`` holds one record for each implementation, dtype and shape; ``str(report)`` is
    the table, ``to_json`` and ``to_html`` write it. Traps: what runs on a CPU beside other work is
    not worth timing. JAX functions are compiled, and their backward pass is timed from what the
    forward pass keeps for it.
    """
    __tracebackhide__ = True
    from xgradcheck._benchmark import benchmark  # only benchmarks ask

    title = name or "bench"
    try:
        return benchmark(
            implementations,
            args,
            title,
            reference=reference,
            dtypes=dtypes,
            shapes=shapes,
            factors=factors,
            kwargs=kwargs,
            wrt=wrt,
            loss=loss,
            seconds=seconds,
            seed=seed,
            backend=backend,
        )
    except InvalidCase as refusal:
        raise InvalidCase(f"{title}: {refusal}") from None
