"""The stages of one check: the function evaluated, its backward pass run, the numerical gradient
taken. Below float64 that is done twice: in float64, and as it runs.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from xgradcheck._as_run import as_found, gradient_at, is_kept, rounded, rounding
from xgradcheck._constraints import Tangent
from xgradcheck._diagnose import Kind
from xgradcheck._differences import rms
from xgradcheck._errors import InvalidCase
from xgradcheck._generic import NearBy, look_near_by
from xgradcheck._judge import distance, tolerance, zero_below
from xgradcheck._layout import DOUBLE, Layout, Vector
from xgradcheck._measured import FORWARD, REVERSE, Measured, Run
from xgradcheck._phi import Phi, noise_of
from xgradcheck._second_look import settle_suspicious
from xgradcheck._sweep import sweep
from xgradcheck._truth import Sweep, Tick, Truth

REPEATABLE_ULPS = 64
DUST, DUST_AS_RUN = 2.0**9, 4.0
"""What rounding may leave of a gradient that is zero, in units of the rounding of phi, for a full
change; the first where differences alone tell that it is zero.
"""
RUNS = 4
"""Of a backward pass that does not repeat itself."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked of a check, beside the call itself."""

    method: str
    rtol: float | None
    atol: float
    steps: Vector | None
    """The textbook's eps for every coordinate."""
    seed: int
    spaces: Mapping[int, Tangent]
    tick: Tick
    modes: Sequence[str] = (REVERSE,)
    order: int = 1
    """Of the derivative: the second one of a linear function is zero, and no mistake."""


def measure(phi: Phi, value: float, spread: float, asked: Asked) -> list[Measured]:
    """What was measured: in float64, and, where the call itself runs below that, as it runs."""
    problem, run = phi.problem, _run(phi, asked.modes[0])
    if len(run.backward.severed) == len(problem.layout) and asked.order == 1:
        _refuse_constant(phi, value, asked.seed)
    if min(problem.layout.bits, problem.outputs.bits) == DOUBLE:
        return _with_other_modes(phi, _measured(phi, value, spread, run, asked), asked)
    found = as_found(phi, asked.seed)
    own = replace(run, near=found.near, bits=found.bits)
    why, ways = "", list(problem.raisings())
    # Best is a way in which all is computed in float64, next one in which nothing else changes.
    for least in (DOUBLE, 0):
        for raised in tuple(ways):
            with ExitStack() as raising:
                try:
                    raising.enter_context(raised())
                    if problem.bits < least:
                        continue
                    wide_value, wide_spread = settled_value(phi)
                    wide = _run(phi, asked.modes[0])
                    apart = distance(wide.backward.gradient, run.backward.gradient)
                    if not is_kept(found, problem, apart):
                        raise InvalidCase("its outputs are others then")
                except Exception as error:  # whatever a function has against float64
                    why = why or (str(error) if isinstance(error, InvalidCase) else repr(error))
                    ways.remove(raised)
                else:
                    return _in_float64(phi, (wide_value, wide_spread, wide), own, asked)
    # Nothing in float64 to tell rounding from: what the next floats change has to do.
    lost = rounding([run.backward.gradient, *found.gradients], problem.layout)
    own = replace(own, rounding=lost)
    return [replace(_measured(phi, value, spread, own, asked), unraised=why)]


def _in_float64(
    phi: Phi, found: tuple[float, float, Run], own: Run, asked: Asked
) -> list[Measured]:
    """What was measured of a function that is raised: there, and of its own run beside that."""
    value, spread, wide = found
    if not phi.problem.can_move:
        # A tree that was handed in is what it is, and judged once.
        return [_measured(phi, value, spread, own, asked)]
    # Where both forward passes differ, numbers are drawn or rounded as they were before.
    at_hand = wide.backward.value
    differs = at_hand is not None and varies(phi, value, abs(at_hand - value))
    lost = rounded(wide.backward.gradient, phi.problem.layout, differs)
    measured = _measured(phi, value, spread, replace(wide, rounding=lost), asked)
    as_run = _judged_beside(phi, measured, own, asked)
    return [*_with_other_modes(phi, measured, asked), as_run]


def _with_other_modes(phi: Phi, first: Measured, asked: Asked) -> list[Measured]:
    """A measurement, and the gradients of the other modes beside the same truth."""
    others = [_run(phi, mode) for mode in asked.modes[1:]]
    return [first, *(_judged_beside(phi, first, run, asked) for run in others)]


def _judged_beside(phi: Phi, wide: Measured, own: Run, asked: Asked) -> Measured:
    """Another run beside a truth that is known: the backward pass as it runs, or forward mode.
    Looked at again where the truth was good enough for the first gradient alone.
    """
    layout, gradient, bits = phi.problem.layout, own.backward.gradient, own.bits or DOUBLE
    allowance = tolerance(asked.rtol, asked.atol, bits)
    truth, work = wide.truth.copy(), wide.work
    truth.zero_below = zero_below(layout, work.scale, (gradient, truth.value), bits)
    if own.bits is not None:
        errors = [gradient - wide.backward.gradient]
        for point, found in own.near:
            if (exact := gradient_at(phi, point)) is not None:
                errors.append(found - exact)
        lost = rounding(errors, layout)
        lost[truth.kinds == Kind.KINK] = 0.0
        size = float(np.max(np.abs(phi.problem.values()[0] * phi.cotangent)))
        own = replace(own, rounding=np.fmax(lost, _dust(work, truth, gradient, bits, size)))
    work = replace(work, gradient=gradient, allowance=allowance, slack=own.excused)
    settle_suspicious(work, truth)
    return replace(wide, run=own, work=work, truth=truth, near_by=NearBy({}, None, True))


def _measured(phi: Phi, value: float, spread: float, run: Run, asked: Asked) -> Measured:
    """The numerical gradient, good enough to judge this run of the backward pass."""
    problem, gradient = phi.problem, run.backward.gradient
    noise = noise_of(phi, value, asked.seed)
    noise = replace(noise, sigma=max(noise.sigma, spread))
    allowance = tolerance(asked.rtol, asked.atol, min(noise.bits, run.bits or DOUBLE))
    work = Sweep(phi, gradient, value, noise, allowance, run.excused, asked.method, asked.tick)
    truth = sweep(work, asked.steps, asked.seed)
    if run.bits is None:
        dust = _dust(work, truth, gradient, DOUBLE, abs(value))
        run = replace(run, rounding=np.fmax(run.rounding, dust))
    if phi.refusal is not None and not phi.answers:
        raise phi.refusal
    zeros = _zeros(problem.layout, gradient, truth)
    return Measured(
        spread=spread,
        run=run,
        work=work,
        truth=truth,
        near_by=look_near_by(phi, run.backward, zeros, allowance, asked.seed),
        refusals=phi.refusals,
        refusal=phi.refusal,
        spaces=asked.spaces,
        held=problem.moving,
    )


def _dust(work: Sweep, truth: Truth, gradient: Vector, bits: int, size: float) -> Vector:
    """What rounding may leave of elements that are zero, or nearly: where phi is flat a backward
    pass has nothing but the difference of numbers of the ``size`` of phi or what it is made of.
    """
    # A bias is small beside what it is added to, and that is what is rounded.
    scale = work.scale if bits == DOUBLE else np.fmax(work.scale, rms(work.scale))
    reach = (DUST if bits == DOUBLE else DUST_AS_RUN) * 2.0**-bits * size / scale
    null = np.abs(truth.value) <= (truth.bar if bits == DOUBLE else reach)
    return np.where(null & (np.abs(gradient) <= reach), reach, 0.0)


def settled_value(phi: Phi) -> tuple[float, float]:
    """phi and by how much it varies, with the plain numbers held still that the function keeps, if
    it does not repeat itself without.
    """
    value, spread = _value(phi)
    if varies(phi, value, spread) and phi.problem.hold_numbers():
        value, spread = _value(phi)
    return value, spread


def _value(phi: Phi) -> tuple[float, float]:
    """phi at the point, and by how much it varies there."""
    values = phi.here(3)
    value = float(values[0])
    if not np.isfinite(values).all():
        raise InvalidCase(
            f"the function returns {value} at this point: give arguments at which it is finite."
        )
    return value, float(np.max(values) - np.min(values))


def varies(phi: Phi, value: float, spread: float) -> bool:
    """Whether a spread is more than sums taken in another order explain."""
    unit = 2.0 ** (DOUBLE - phi.problem.outputs.bits) * float(np.spacing(abs(value)))
    return spread > REPEATABLE_ULPS * unit


def _run(phi: Phi, mode: str) -> Run:
    """The gradient under test, and by how much each element varies from run to run."""
    problem = phi.problem
    if mode == FORWARD:
        pushed = problem.pushed(phi.cotangent)
        gradient = phi.adjoint(pushed.gradient)
        return Run(pushed._replace(gradient=gradient), np.zeros_like(gradient), mode=mode)
    backward = problem.gradient(phi.cotangent)
    first = phi.adjoint(backward.gradient)
    runs = [first]
    # A tree that was handed in is what it is; everything else is asked twice, and if need be more.
    for _ in range(RUNS - 1 if problem.can_move else 0):
        runs.append(phi.adjoint(problem.gradient(phi.cotangent).gradient))
        if len(runs) == 2 and np.array_equal(runs[1], first, equal_nan=True):
            break
    with np.errstate(invalid="ignore"):
        slack = np.nan_to_num(np.ptp(runs, axis=0), nan=0.0, posinf=0.0)
    return Run(backward._replace(gradient=first), np.asarray(slack))


def _zeros(layout: Layout, gradient: Vector, truth: Truth) -> list[int]:
    """The leaves that have gradient zero, as far as one can see, and nothing to compare it with."""
    null = (np.abs(gradient) <= truth.bar) & (np.abs(truth.value) <= truth.bar) & ~truth.still
    null |= truth.stationary
    return [
        number
        for number, leaf in enumerate(layout)
        if leaf.size
        and null[leaf.part].all()
        and not (truth.bar[leaf.part] <= truth.zero_below[leaf.part]).all()
    ]


def _refuse_constant(phi: Phi, value: float, seed: int) -> None:
    """A graph that is cut everywhere, over a function that nothing moves, is a call about the
    wrong things.
    """
    rng = np.random.default_rng([seed, 0xC0757])
    point = phi.problem.point
    scale = np.where(point != 0, np.abs(point), 1.0)
    for size in (2.0**-3, 2.0**-9, 2.0**-15):
        moved = phi.along(scale * rng.choice([-1.0, 1.0], point.size), np.array([size, -size]))
        if not (moved == value).all():
            return
    names = ", ".join(phi.problem.layout.names)
    raise InvalidCase(f"the output does not depend on {names}: pass what it is computed from.")
