"""The verb ``check``."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from xgradcheck._constraints import Constraint
from xgradcheck._errors import InvalidCase
from xgradcheck._kernel import beside_any
from xgradcheck._measured import REVERSE
from xgradcheck._report import Report
from xgradcheck._stages import report_on, title_of


def check(
    fn: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    loss: Callable[[Any], Any] | None = None,
    grads: Any = None,
    reference: Callable[..., Any] | None = None,
    dtypes: str | Sequence[str] | None = None,
    factors: Mapping[str, float] | None = None,
    order: int = 1,
    modes: str | Sequence[str] = (REVERSE,),
    constraint: Constraint | Mapping[str, Constraint] | None = None,
    coverage: str = "auto",
    method: str = "auto",
    eps: float | Mapping[str, float] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    budget: int | str | None = None,
    memory: int | str | None = None,
    seed: int = 0,
    name: str | None = None,
    backend: str | None = None,
    raise_exception: bool = True,
) -> Report:
    """Raise unless the backward pass of ``fn`` agrees with float64 finite differences.

    >>> import numpy as np
    >>> w = np.array([1.0, -2.0, 3.0])
    >>> report = check(lambda w: (w**2).sum(), w, grads=lambda w: 2 * w)
    >>> report.verdict, str(report.grade)
    (<Verdict.PASS: 'PASS'>, 'great')

    Differences carry a bound on their own error, so that a wrong gradient and a noisy difference
    are told apart. Up to 256 coordinates each is differenced; beyond that random directions certify
    all of them in a few evaluations, and only what they do not is searched for the mistake.
    Afterwards parameters, buffers, ``.grad``, random states and modes are as they were found.

    Parameters
    ----------
    fn
        A function of arrays (torch, jax or NumPy), an ``nn.Module``, or a function without
        arguments whose parameters ``wrt`` holds; those are perturbed in place and put back. An
        array output is reduced to a scalar by a random cotangent, so that a backward pass that
        ignores its cotangent is seen.
    *args, kwargs
        Its arguments. Two inputs are written ``check(fn, a, b)``, not ``check(fn, (a, b))``.
    wrt
        What is checked: argument numbers, names, globs, or ``xgradcheck.ALL``. By default the
        tensors that require grad, or all floating ones if none does; a module's parameters; all
        floating leaves in JAX; argument 0 with ``grads``.
    loss
        Applied to the output of ``fn`` before anything else.
    grads
        The gradient under test, where the framework cannot be asked for it: a tree like the
        parameters (keys ``W1`` or ``dW1``), a function of the same arguments that returns one, or
        ``grads(cotangent, *args)`` for an array output. A ``(cost, grads)`` pair is accepted, from
        ``fn`` itself too. ``backward(cotangent, cache)`` gets what ``fn`` returns behind its
        output, and is taken to be of all floating arrays among the arguments. The ``backward`` of
        an object whose ``forward`` is ``fn`` gets the cotangent, as far as it takes one.
    reference
        A plain function of the same arguments, for a kernel of low precision. Differences prove the
        gradient of the reference in float64; outputs and gradients of ``fn`` are compared with its
        own, and may err about as much as those of the reference run in the same dtype. Where the
        point hides mistakes they are compared near by as well. ``coverage``, ``method``, ``eps``
        and ``budget`` are those of the differences; what is asked of one function alone is refused
        (``order=2``, forward mode, ``grads``, ``rtol`` and ``atol``).
    dtypes, factors
        With ``reference``: the dtypes to compare in, by default that of the arguments, which are
        rounded to each first; and how many times the error of the reference is allowed, in norm, in
        the worst element and along the gradient: ``{"norm": 2, "worst": 4, "bias": 4}``.
    order
        2 checks the gradient of the gradient as well: the backward pass is differenced, and
        differentiated by the framework.
    modes
        ``"forward"`` asks the framework for tangents (jvp) as well, or instead of the backward
        pass, and judges both beside the same differences.
    constraint
        Where leaves cannot move freely: ``"symmetric"`` (Hermitian where they are complex),
        ``"simplex"`` (each row of the last axis sums to 1), ``"positive"``, or a projection, a
        function of an array of the leaf's shape. One for all leaves that satisfy it, or a dict by
        leaf. Steps and the compared gradient then live in the tangent space.
    coverage
        ``"sweep"`` differences every coordinate (two evaluations each), ``"projection"`` certifies
        the leaves along random directions (four evaluations where the function is smooth; each leaf
        to its ``floor``, with 99.9 % confidence), ``"rows"`` every row of every leaf. ``"auto"``
        sweeps up to 256 coordinates, and takes directions beyond.
    method
        ``"central"`` differences alone, ``"complex-step"``
        where the function takes complex numbers and agrees with differences; ``"auto"`` takes a
        complex step only where differences are too noisy, and only to acquit.
    eps
        The step of the textbook's formula, one number or a dict by leaf: distance and grade are
        then exactly the textbook's. Leave it out to have every step chosen; a bad eps is
        INCONCLUSIVE, never FAIL.
    rtol, atol
        The relative error allowed (1e-6 by default), and an absolute one on top (none by default:
        a sign flip in a gradient of size 1e-9 fails).
    budget
        When to stop: a number of evaluations, or a time as ``"2s"``. What was not looked at by then
        is INCONCLUSIVE, the rest stands.
    memory
        How much the check may hold in vectors of its own (five of them in float64 by directions):
        bytes, or ``"4GiB"``; by default a quarter of what is free. What would take more is refused
        before it starts.
    seed
        Of the cotangent and the directions. Same seed, same report, to the bit.
    name, backend, raise_exception
        A title for the report; ``"numpy"``, ``"torch"`` or ``"jax"`` where the arguments do not
        tell; whether FAIL and INCONCLUSIVE raise.

    Raises
    ------
    GradientMismatch
        The verdict is FAIL. The exception carries ``.report``.
    GradientInconclusive
        The verdict is INCONCLUSIVE: the truth is too uncertain to say.
    InvalidCase
        The call cannot be checked as it stands, whatever ``raise_exception`` says.

    Below float64 every leaf is judged twice: the mathematics in float64, if the function gives the
    same outputs there, and the backward pass as it runs, with the tolerances of its dtype;
    ``report.leaves[name].rows`` holds both.

    Traps: A kink exactly at the point (relu at 0) passes with any slope between its two sides. The
    gradient is right *here*: a mistake that only shows at other values, shapes or memory layouts
    needs a check there.
    """
    __tracebackhide__ = True
    title = name or title_of(fn)
    try:
        report = beside_any(
            partial(report_on, fn, title=title),
            fn,
            args,
            title,
            kwargs=kwargs,
            wrt=wrt,
            loss=loss,
            grads=grads,
            reference=reference,
            dtypes=dtypes,
            factors=factors,
            order=order,
            modes=modes,
            constraint=constraint,
            coverage=coverage,
            method=method,
            eps=eps,
            rtol=rtol,
            atol=atol,
            budget=budget,
            memory=memory,
            seed=seed,
            backend=backend,
        )
    except InvalidCase as refusal:
        raise InvalidCase(f"{title}: {refusal}") from None
    if raise_exception and (verdict := report.error()) is not None:
        raise verdict
    return report
