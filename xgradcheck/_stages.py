"""The stages of a check, in their order: refuse, bind, evaluate, run the backward, sweep, judge."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from xgradcheck._adapters import Backward, Case, Problem, claim
from xgradcheck._budget import Budget, Plan, budget_of, plan
from xgradcheck._constraints import Constraint, Tangent, tangents
from xgradcheck._directions import uniform
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict
from xgradcheck._layout import DOUBLE, Layout, Vector, bits_of, to_bits
from xgradcheck._measure import Stochastic, measure
from xgradcheck._measured import FORWARD, REVERSE
from xgradcheck._memory import memory_of, refuse_beyond
from xgradcheck._outcome import joined, outcome, stochastic, within_budget
from xgradcheck._phi import Phi
from xgradcheck._progress import progress
from xgradcheck._projected import Projected, wants_projection
from xgradcheck._projected_outcome import projected_outcome
from xgradcheck._report import Report
from xgradcheck._residuals import note_on_others, refused_as_of_a_scalar, whole
from xgradcheck._rows import Asked
from xgradcheck._tree import required_arguments
from xgradcheck._truth import COMPLEX

COVERAGES = ("auto", "sweep", "rows", "projection")
FAR = np.array([2.0**-6, -(2.0**-6), 2.0**-2])
"""How far a leaf is moved to see whether the call writes over that, as a share of its scale."""
OF_COTANGENTS = 2.0**-6
"""The step of a cotangent beside an eps that was given for other leaves."""
METHODS = ("auto", "central", "complex-step")


def report_on(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    title: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    loss: Callable[[Any], Any] | None = None,
    grads: Any = None,
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
    backend: str | None = None,
    order_alone: bool = False,
) -> Report:
    """The report of ``check``, whatever its verdict; of this order of the derivative alone, if
    asked. Refusals do not say the title: the verb does, in a frame of its own.
    """
    try:
        modes = modes_of(modes)
        refuse_options(fn, args, kwargs, loss, order, coverage, method, eps, rtol, atol, seed)
        return _checked(
            whole(Case(fn, args, dict(kwargs or {}), materialised(wrt), loss, grads)),
            title,
            backend,
            constraint,
            method,
            rtol,
            atol,
            eps,
            seed,
            modes,
            (order,) if order_alone else range(1, order + 1),
            coverage,
            budget_of(budget),
            memory_of(memory),
        )
    except InvalidCase:
        raise
    except Exception as error:
        error.add_note(f"xgradcheck: raised while checking {title}{_given_at_once(args)}.")
        raise


def _given_at_once(args: tuple[Any, ...]) -> str:
    """What to do where arguments may have been handed over as ``gradcheck`` takes them."""
    if len(args) != 1 or type(args[0]) not in (tuple, list):
        return ""
    given = f"one {type(args[0]).__name__} of {len(args[0])}"
    return f" with {given}: to pass its parts one by one, write check(fn, *inputs)"


def title_of(fn: Any) -> str:
    """What a function is called in a report."""
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, type):  # Function.apply: the class says more than "apply"
        return owner.__name__
    written = getattr(fn, "__name__", None) or type(fn).__name__
    return "the function" if written == "<lambda>" else str(written)


def modes_of(modes: Any) -> tuple[str, ...]:
    """The modes asked for, reverse first."""
    known = (REVERSE, FORWARD)
    asked = (modes,) if isinstance(modes, str) else modes
    asked = tuple(asked) if isinstance(asked, list | tuple | set | frozenset) else ()
    if not asked or not all(mode in known for mode in asked):
        raise InvalidCase(f"modes={modes!r} is not one or both of {', '.join(map(repr, known))}.")
    return tuple(mode for mode in known if mode in asked)


def materialised(wrt: Any) -> Any:
    """``model.parameters()`` and ``model.named_parameters()`` can be walked only once."""
    if not isinstance(wrt, Iterator):
        return wrt
    parts = list(wrt)
    named = all(
        isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str) for part in parts
    )
    return dict(parts) if parts and named else parts


def refuse_options(
    fn: Any,
    args: tuple[Any, ...],
    kwargs: Any,
    loss: Any,
    order: int,
    coverage: str,
    method: str,
    eps: Any,
    rtol: float | None,
    atol: float,
    seed: int,
) -> None:
    """Raise for what the call itself gets wrong."""
    if not callable(fn):
        raise InvalidCase(
            f"the first argument is a {type(fn).__name__}: pass the function, then its arguments."
        )
    if len(args) == 1 and isinstance(args[0], tuple) and required_arguments(fn) == len(args[0]) > 1:
        raise InvalidCase(
            f"it takes {len(args[0])} arguments and got one tuple: write check(fn, *inputs)."
        )
    if loss is not None and not callable(loss):
        raise InvalidCase(f"loss={loss!r} cannot be called: give a function of the output.")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidCase(f"kwargs is a {type(kwargs).__name__}: give a dict, by argument names.")
    if isinstance(order, bool) or order not in (1, 2):
        raise InvalidCase(f"order={order!r} is not 1 or 2.")
    if not isinstance(coverage, str) or coverage not in COVERAGES:
        raise InvalidCase(f"coverage={coverage!r} is not one of {', '.join(map(repr, COVERAGES))}.")
    if coverage in ("rows", "projection") and (eps is not None or method == COMPLEX):
        raise InvalidCase(
            f"coverage={coverage!r} chooses its own steps: leave eps and method out, or take "
            f"coverage='sweep'."
        )
    if not isinstance(method, str) or method not in METHODS:
        raise InvalidCase(f"method={method!r} is not one of {', '.join(map(repr, METHODS))}.")
    for option, value in (("rtol", rtol), ("atol", atol)):
        known = _is_number(value) and 0 <= value < float("inf")
        if not known and not (option == "rtol" and value is None):
            raise InvalidCase(
                f"{option}={value!r} is no tolerance: give a finite number, 0 or more."
            )
    refuse_seed(seed)


def refuse_seed(seed: Any) -> None:
    """Raise for what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidCase(f"seed={seed!r} is no seed: give an integer, 0 or more.")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)


def _steps(eps: float | Mapping[str, float] | None, layout: Layout) -> Vector | None:
    """The textbook's eps for every coordinate; None where steps are to be chosen."""
    if eps is None:
        return None
    given = eps if isinstance(eps, Mapping) else dict.fromkeys(layout.names, eps)
    unknown = [key for key in given if not any(key in (leaf.name, *leaf.names) for leaf in layout)]
    if unknown:
        raise InvalidCase(
            f"eps has {unknown[0]!r}, which is no leaf; the leaves are {', '.join(layout.names)}."
        )
    steps = np.empty(layout.size)
    for leaf in layout:
        step = next((given[key] for key in (leaf.name, *leaf.names) if key in given), None)
        if step is None:
            raise InvalidCase(
                f"eps lacks {leaf.name!r}: give a step for every leaf, or leave eps out."
            )
        if not _is_number(step) or not 0 < step < float("inf"):
            raise InvalidCase(
                f"eps={step!r} for {leaf.name} is no step: give a positive number, or leave eps "
                f"out."
            )
        steps[leaf.part] = step
    return steps


def posed(case: Case, backend: str | None) -> tuple[Any, Problem]:
    """The adapter that claims a call, and the problem that this poses; refuses what has nothing to
    compare.
    """
    adapter = claim(case, backend)
    problem: Problem = adapter.bind(case)
    if problem.layout.size == 0:
        raise InvalidCase(
            f"all leaves are empty ({', '.join(problem.layout.names)}): there is nothing to "
            f"compare."
        )
    if problem.outputs.size == 0:
        raise InvalidCase("the output is empty: there is nothing to differentiate.")
    if problem.unit_cotangent and problem.outputs.size != 1:
        raise refused_as_of_a_scalar(case, problem.outputs)
    return adapter, problem


def _checked(
    case: Case,
    title: str,
    backend: str | None,
    constraint: Constraint | Mapping[str, Constraint] | None,
    method: str,
    rtol: float | None,
    atol: float,
    eps: float | Mapping[str, float] | None,
    seed: int,
    modes: Sequence[str],
    orders: Sequence[int],
    coverage: str,
    budget: Budget,
    memory: int | None,
) -> Report:
    adapter, problem = posed(case, backend)
    steps = _steps(eps, problem.layout)
    cotangent = cotangent_of(problem, int(seed))
    spaces: dict[int, Tangent] = {}
    if constraint is not None:
        with problem.held():
            spaces = dict(tangents(constraint, problem.layout, problem.point, adapter.from_numpy))
    report = None
    for number in range(1, max(orders) + 1):
        started = time.perf_counter()
        if number > 1:
            problem = problem.second(cotangent)
            cotangent = cotangent_of(problem, int(seed))
            if steps is not None:
                # A gradient is linear in its cotangent: there is no step to choose.
                cotangents = problem.layout.size - steps.size
                steps = np.append(steps, np.full(cotangents, OF_COTANGENTS))
        if number not in orders:
            continue
        phi = Phi(problem, cotangent, spaces, budget=budget)
        if method == COMPLEX and (eps is not None or not phi.can_be_complex):
            raise InvalidCase(
                "method='complex-step' has to pass complex numbers as arguments, and goes with "
                "neither eps nor constraint: leave method out."
            )
        # Overflow at the edge of what a float holds ends in an uncertain verdict, not in a warning.
        with problem.held(), progress(title) as tick, np.errstate(all="ignore"):
            asked = Asked(
                method, rtol, atol, steps, int(seed), spaces, tick, modes, number, coverage
            )
            phi.tick = tick
            refuse_beyond(memory, _plan(phi, asked).bytes)
            own = _judged(problem, phi, title, asked, started)
            if own.verdict is Verdict.FAIL and (note := note_on_others(case)) is not None:
                own = replace(own, notes=(*own.notes, note))
        report = own if report is None else joined(report, own)
    assert report is not None
    return replace(report, environment=environment(adapter))


def _judged(problem: Problem, phi: Phi, title: str, asked: Asked, started: float) -> Report:
    """The report on one problem."""
    found = measure(phi, asked)
    frame = {
        "name": title,
        "skipped": tuple(problem.skipped),
        "coverage": _coverage(found, asked),
        "evaluations": phi.evaluations,
        "elapsed_s": time.perf_counter() - started,
        "seed": asked.seed,
        "environment": {},
        "plan": _plan(phi, asked),
    }
    if isinstance(found, Stochastic):
        return stochastic(problem, found.value, found.spread, frame)
    if isinstance(found, Projected):
        report = projected_outcome(problem, found, frame)
    else:
        report = outcome(problem, found, asked.steps, frame)
    if report.verdict is Verdict.FAIL:
        _refuse_overwritten(phi, report)
        from xgradcheck._causes import with_causes  # only what is wrong asks

        report = with_causes(report, phi, found, lambda: cotangent_of(problem, asked.seed + 1))
        report = replace(report, elapsed_s=time.perf_counter() - started)
    return within_budget(report, phi.budget) if phi.budget.is_cut else report


def _refuse_overwritten(phi: Phi, report: Report) -> None:
    """Raise for a leaf that the call itself writes to, and that does not move the output."""
    problem = phi.problem
    for leaf in problem.layout:
        if leaf.name not in problem.moving or report.leaves[leaf.name].verdict is not Verdict.FAIL:
            continue
        signs = np.where(np.arange(leaf.size) % 2, -1.0, 1.0)
        if np.ptp(phi.along(phi.scales()[0][leaf.part] * signs, FAR, leaf.start)) == 0:
            raise InvalidCase(
                f"{leaf.name} is overwritten by the call itself, which hides every change to it: "
                f"if that is how it is initialised, call the function once first."
            )


def _plan(phi: Phi, asked: Asked) -> Plan:
    """What was to be expected once the backward pass had run once."""
    layout, coverage = phi.problem.layout, asked.coverage
    if coverage == "auto":
        coverage = "projection" if wants_projection(phi, asked) else "sweep"
    rows = sum(leaf.size // (leaf.grid[-1] if leaf.grid else 1) for leaf in layout if leaf.size)
    return plan(coverage, layout.size, rows, phi.backward_s)


def _coverage(found: Any, asked: Asked) -> str:
    if isinstance(found, Projected):
        return "rows" if asked.coverage == "rows" else "projection"
    return "projection" if isinstance(found, list) and found[0].is_constant else "sweep"


def cotangent_of(problem: Problem, seed: int) -> Vector:
    """Random, signed, in ±[0.5, 2] and never near ±1: a backward that forgets to multiply by it is
    seen. 1 where the gradient was handed in for that.

    Drawn output by output from its name, so that another output changes nothing in this one's.
    """
    if problem.unit_cotangent:
        return np.ones(1)
    cotangent = np.empty(problem.outputs.size)
    for leaf in problem.outputs:
        drawn = uniform(leaf, seed)
        # Half of them are small and half are large: 0.5 to 0.9 and 1.2 to 1.6.
        share = np.abs(drawn)
        share += np.float32(0.375) * (share >= 0.5)
        size = share.astype(np.float64)
        size *= 0.8
        size += 0.5
        np.copysign(size, drawn, out=size)
        # One is negative and one is large: a backward that takes |u|, or clips it, is seen.
        if size.min(initial=0.0) >= 0:
            np.negative(size, out=size)
        if leaf.size and max(size.max(), -size.min()) < 1:
            size[0] += np.copysign(0.7, size[0])
        # The backward has to get the very cotangent that phi is made of.
        bits = bits_of(leaf.dtype)
        cotangent[leaf.part] = size if bits == DOUBLE else to_bits(size, bits)
    return cotangent


def run(
    problem: Problem, cotangent: Vector, point: Vector | None = None
) -> tuple[Vector, Backward]:
    """The outputs and the backward pass, as they come; at another point, if one is given."""
    there = nullcontext() if point is None else problem.at(point)
    with problem.held(), there, np.errstate(all="ignore"):
        return problem.values()[0], problem.gradient(cotangent)


def environment(adapter: Any = None) -> dict[str, str]:
    """Versions of what a report depends on, and what the framework of an adapter was told of
    precision.
    """
    packages = ("numpy", "torch", "jax", "jaxlib")
    found = dict(_versions(("xgradcheck", *(name for name in packages if name in sys.modules))))
    return found | (adapter.flags() if hasattr(adapter, "flags") else {})


@functools.cache
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    import importlib.metadata  # slow to load, and wanted once a check is done
    import platform

    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
            versions[package] = "unknown"
    return versions
