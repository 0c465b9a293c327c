"""The stages of one check: the function evaluated, its backward pass run, the numerical gradient
taken. Below float64 that is done twice: in float64, and as it runs.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from xgradcheck._as_run import (
    Near,
    as_found,
    beside,
    coarse,
    is_kept,
    near,
    rounded,
    rounding,
    turned,
)
from xgradcheck._constant import constant
from xgradcheck._errors import InvalidCase, short
from xgradcheck._generic import LARGE
from xgradcheck._layout import BITS, DOUBLE, Leaf, Vector
from xgradcheck._measured import REVERSE, Measured, Run
from xgradcheck._one_side import acquit_by_one_side
from xgradcheck._phi import Phi, noise_of
from xgradcheck._projected import (
    Lost,
    NeedsNear,
    Projected,
    at_once,
    is_open,
    projected,
    wants_projection,
)
from xgradcheck._projection import Projecting
from xgradcheck._rows import (
    DUST_AS_RUN,
    Asked,
    beside_saturation,
    judged_beside,
    run_of,
    settled_value,
    swept,
    varies,
)

CANCELLED = 10.0
"""How many units of rounding of phi its noise is where phi is what is left of larger numbers."""


@dataclass(frozen=True, slots=True)
class Stochastic:
    """A function that does not repeat itself."""

    value: float
    spread: float


Outcome = Projected | list[Measured] | Stochastic


def measure(phi: Phi, asked: Asked) -> Outcome:
    """What was measured: in float64, and, where the call itself runs below that, as it runs."""
    problem = phi.problem
    work: Projecting | None = None
    is_wide = min(problem.layout.bits, problem.outputs.bits, problem.bits) == DOUBLE
    if is_wide and asked.modes == (REVERSE,) and wants_projection(phi, asked):
        certified, work = at_once(phi, asked)
        if certified is not None:
            return certified
    value, spread = settled_value(phi)
    if varies(phi, value, spread):
        return Stochastic(value, spread)
    run = run_of(phi, asked.modes[0])
    if len(run.backward.severed) == len(problem.layout) and asked.order == 1:
        _refuse_constant(phi, value, asked.seed)
    hidden = DOUBLE if work is None else _hidden_bits(phi, value, asked.seed)
    if is_wide and hidden == DOUBLE:
        return _rows(phi, (value, spread), [run], asked, work)
    found = as_found(phi, asked.seed)
    found = replace(found, bits=min(found.bits, hidden))
    phi.coarse = coarse(found, phi)
    own = replace(run, bits=found.bits)
    if not problem.can_move:
        own = replace(own, rounding=_cancelled(phi, value, asked.seed))
    elif not wants_projection(phi, asked):
        own = replace(own, near=near(phi, asked.seed))
    why, ways = "", list(problem.raisings())
    turning = [partial(turned, phi, found, raised) for raised in ways]
    ways += turning
    # Best is a way in which all is computed in float64, next one in which nothing else changes. A
    # backward pass that asks for float32 by its name is no worse for 16 bits.
    enough = DOUBLE if found.bits >= BITS["float32"] else BITS["float32"]
    for least in (DOUBLE, 0):
        for raised in tuple(ways):
            needs: NeedsNear | None = None
            with ExitStack() as raising:
                try:
                    raising.enter_context(raised())
                    bits = getattr(problem, "backward_bits", DOUBLE)
                    if problem.bits < least or bits < min(least, enough):
                        continue
                    wide_value, wide_spread = settled_value(phi)
                    wide = run_of(phi, asked.modes[0], once=problem.layout.size > LARGE)
                    wide = replace(wide, bits=bits if bits < DOUBLE else None, given=found.bits)
                    gradients = run.backward.gradient, wide.backward.gradient
                    if not is_kept(found, phi, *gradients, is_turned=raised in turning):
                        raise InvalidCase("its outputs are others then")
                except Exception as error:  # whatever a function has against float64
                    why = why or (str(error) if isinstance(error, InvalidCase) else short(error))
                    ways.remove(raised)
                else:
                    wide_run = wide_value, wide_spread, wide
                    # Wider than it was found, and not as wide as was tried before.
                    told = why if problem.layout.bits < bits < DOUBLE else ""
                    try:
                        return _unraised(_in_float64(phi, wide_run, own, asked), told)
                    except NeedsNear as need:
                        needs = need
            while needs is not None:
                # What rounding may do is told by the function as it was found.
                own = replace(own, near=near(phi, asked.seed, needs.places))
                with raised():
                    try:
                        return _unraised(_in_float64(phi, wide_run, own, asked, needs), told)
                    except NeedsNear as need:
                        needs = need
    # Nothing in float64 to tell rounding from: what the next floats change has to do.
    lost = rounding([run.backward.gradient, *beside(phi, asked.seed)], problem.layout)
    own = replace(own, rounding=lost)
    if wants_projection(phi, asked):
        large = projected(phi, value, spread, [own], asked, None)
        if large is not None:
            return _unraised(large, why)
    measured = swept(phi, value, spread, own, asked)
    if is_open(measured, asked):
        few = projected(phi, value, spread, [own], asked, None, is_swept=True)
        if few is not None:
            return _unraised(few, why)
    return _unraised([measured], why)


def _hidden_bits(phi: Phi, value: float, seed: int) -> int:
    """The significand of what custom rules compute in less than shows, where it makes noise."""
    inside: int = getattr(phi.problem, "bits_inside", DOUBLE)
    return inside if inside < DOUBLE and noise_of(phi, value, seed).bits < DOUBLE else DOUBLE


def _unraised(found: Outcome, why: str) -> Outcome:
    """What was measured, with the reason why that was not in float64."""
    if isinstance(found, list):
        return [replace(row, unraised=why) for row in found]
    return found if isinstance(found, Stochastic) else replace(found, unraised=why)


def _in_float64(
    phi: Phi,
    found: tuple[float, float, Run],
    own: Run,
    asked: Asked,
    asking: NeedsNear | None = None,
) -> Outcome:
    """What was measured of a function that is raised: there, and of its own run beside that; once
    more, where it was ``asking`` for something.
    """
    value, spread, wide = found
    if not phi.problem.can_move:
        # A tree that was handed in is what it is, and judged once.
        if wants_projection(phi, asked):
            large = projected(phi, value, spread, [own], asked, None)
            if large is not None:
                return large
        return [beside_saturation(swept(phi, value, spread, own, asked))]
    # Where both forward passes differ, numbers are drawn or rounded as they were before.
    at_hand = wide.backward.value
    differs = at_hand is not None and varies(phi, value, abs(at_hand - value))

    def lost(leaf: Leaf) -> Vector:
        return rounded(wide.backward.gradient, leaf, differs)

    work = None if asking is None else asking.work
    is_swept = asking is not None and work is None
    return _rows(phi, (value, spread), [wide, own], asked, work, lost, is_swept)


def _cancelled(phi: Phi, value: float, seed: int) -> Vector | float:
    """What rounding may leave of the gradient of a phi that is itself what is left of much larger
    numbers, as the loss of a confident prediction: over the whole size of a coordinate no more than
    phi is known to.
    """
    noise = noise_of(phi, value, seed)
    if noise.sigma <= CANCELLED * 2.0**-noise.bits * abs(value):
        return 0.0
    return DUST_AS_RUN * noise.sigma / phi.scales()[0]


def _rows(
    phi: Phi,
    at: tuple[float, float],
    runs: Sequence[Run],
    asked: Asked,
    work: Projecting | None = None,
    lost: Lost | None = None,
    is_swept: bool = False,
) -> Outcome:
    """A row for each run of the backward pass, and for each further mode, by what is cheapest:
    directions first, unless they have been tried.
    """
    value, spread = at
    first, *others = runs
    others = [*(run_of(phi, mode) for mode in asked.modes[1:]), *others]
    if (still := constant(phi, at, [first, *others], asked)) is not None:
        return still
    if wants_projection(phi, asked) and not is_swept:
        found = projected(phi, value, spread, [first, *others], asked, work, lost)
        if found is not None:
            return found
    if lost is not None:
        layout = phi.problem.layout
        first = replace(first, rounding=np.concatenate([lost(leaf) for leaf in layout]))
    if any(run.bits is not None and _is_unknown(run.near) for run in others):
        raise NeedsNear()
    measured = swept(phi, value, spread, first, asked)
    if first.bits is None:
        acquit_by_one_side(measured, asked.seed)
    if is_open(measured, asked):
        found = projected(phi, value, spread, [first, *others], asked, None, lost, is_swept=True)
        if found is not None:
            return found
    return [measured, *(judged_beside(phi, measured, run, asked) for run in others)]


def _is_unknown(near: Near | None) -> bool:
    """Whether it is not known of all coordinates what rounding does to them."""
    return near is None or near.places is not None


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
