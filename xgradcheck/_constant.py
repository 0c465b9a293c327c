"""Functions that are constant by construction, as the sum of a softmax: rounding moves them, and
nothing else. A gradient that is no more than rounding either is right, and there is no slope of
another leaf to call it small beside.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xgradcheck._differences import Noise
from xgradcheck._generic import NearBy
from xgradcheck._judge import tolerance
from xgradcheck._layout import DOUBLE, Vector
from xgradcheck._measured import Measured, Run
from xgradcheck._phi import Phi, noise_of
from xgradcheck._rows import Asked
from xgradcheck._truth import Sweep, Truth

FAINT = 2.0**-20
"""Beside phi, or 1: a gradient that does more over a full change is not asked about."""
DUST, DUST_AS_RUN = 32.0, 4.0
"""How many times the noise of phi is still no more than rounding; the second where that is measured
in float64 and the gradient has fewer bits.
"""
LINES, STEPS = 3, np.array([2.0**-2, -(2.0**-2), 2.0**-5, -(2.0**-5)])
"""How many directions phi is followed along, and how far, as a share of a full change."""


def constant(
    phi: Phi, at: tuple[float, float], runs: Sequence[Run], asked: Asked
) -> list[Measured] | None:
    """The rows of these runs where phi stands still on the scale of its arguments, and all that
    their gradients would do to it is rounding; None where that cannot be said.
    """
    value, spread = at
    if asked.order != 1 or asked.steps is not None or not phi.problem.can_move:
        return None
    scale = phi.scales()[0]
    moves = [np.abs(run.backward.gradient) * scale for run in runs]
    if not (moves[0] <= FAINT * max(abs(value), 1.0)).all():
        return None
    noise = noise_of(phi, value, asked.seed)
    if noise.bits < DOUBLE or noise.fine < np.inf:
        return None  # much could hide in such noise, or it is none
    noise = replace(noise, sigma=max(noise.sigma, spread))
    dust = [(DUST if run.bits is None else DUST_AS_RUN) * _sigma(noise, run) for run in runs]
    is_dust = all((own <= limit).all() for own, limit in zip(moves, dust, strict=True))
    if not is_dust or _reach(phi, value, scale, asked.seed) > dust[0]:
        return None
    return [
        _row(phi, value, spread, run, asked, noise, limit / scale)
        for run, limit in zip(runs, dust, strict=True)
    ]


def _sigma(noise: Noise, run: Run) -> float:
    """The noise that phi has, or would have in the arithmetic of a run below float64."""
    return float(np.ldexp(noise.sigma, DOUBLE - (run.bits or DOUBLE)))


def _reach(phi: Phi, value: float, scale: Vector, seed: int) -> float:
    """How far phi comes from its value along random directions through all coordinates; infinite
    where it cannot be evaluated.
    """
    rng = np.random.default_rng([seed, 0xC0757])
    far = 0.0
    for _ in range(LINES):
        direction = scale * rng.choice([-1.0, 1.0], scale.size) * rng.uniform(0.5, 1, scale.size)
        moved = np.abs(phi.along(direction, STEPS) - value)
        far = max(far, float(np.max(np.nan_to_num(moved, nan=np.inf))))
    return far


def _row(
    phi: Phi,
    value: float,
    spread: float,
    run: Run,
    asked: Asked,
    noise: Noise,
    bar: Vector,
) -> Measured:
    allowance = tolerance(asked.rtol, asked.atol, run.bits or DOUBLE)
    gradient = run.backward.gradient
    work = Sweep(phi, gradient, value, noise, allowance, run.excused, asked.method, asked.tick)
    everything = np.full_like(bar, np.inf)
    return Measured(
        spread=spread,
        run=run,
        work=work,
        truth=Truth(np.zeros_like(bar), bar, noise, zero_below=everything),
        near_by=NearBy({}, None, True),
        refusals=phi.refusals,
        refusal=phi.refusal,
        spaces=asked.spaces,
        held=phi.problem.moving,
        is_constant=True,
    )
