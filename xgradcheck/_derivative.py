"""The derivative along one direction, with a bound on its error, from six to twelve evaluations."""

from dataclasses import dataclass

import numpy as np

from xgradcheck._differences import FACTORS, NOISE_SIGMAS, Noise, snapped
from xgradcheck._extrapolation import Estimate, estimate
from xgradcheck._layout import BITS, DOUBLE, Vector
from xgradcheck._noise import Along


@dataclass(frozen=True, slots=True)
class Steps:
    """Exponents of two, by the significant bits of the arithmetic that is differenced."""

    first: tuple[int, ...]
    """Taken in any case. In long significands the last one, the sentinel, is far narrower than the
    others: it has to agree with them, whatever periods of the function they have skipped.
    """
    widest: int
    narrowest: int
    stride: int
    spare: int
    """How many bits of a direction may lie below the narrowest step."""


STEPS = {
    53: Steps((-7, -9, -11, -20), -1, -30, 2, 10),
    24: Steps((-3, -4, -5, -10), 0, -12, 1, 3),
    11: Steps((-1, -2, -3, -4), 0, -6, 1, 0),
    8: Steps((-2, -3, -4), -1, -5, 1, 0),
}
MOST = 12
CAUTION = 1.35
"""Slopes of 16-bit functions agree by chance more often: their bars are that much wider."""
CALM = 0.01
"""Two steps whose slopes differ by a larger share are both too wide."""


@dataclass(frozen=True, slots=True)
class Derivative:
    """The slope along ``direction``, which is the one asked for, rounded so that the steps are
    exact.
    """

    value: float
    bar: float
    direction: Vector
    evaluations: int
    settled: bool


def derivative(
    along: Along,
    point: Vector,
    direction: Vector,
    value: float,
    noise: Noise,
    target: float = 0.0,
    most: int = MOST,
) -> Derivative:
    """The derivative of phi along ``direction``, of which 1 is a full change of the point.

    ``along(direction, steps)`` gives phi, ``value`` is phi at the point. Stops once the bar is
    below ``target``. Multiply gradients with the direction returned, not with the one given.
    """
    steps = STEPS[noise.bits]
    exact = snapped(point, direction, steps.widest + 1, steps.narrowest - steps.spare, noise.bits)
    taken: list[int] = []
    rungs = np.empty((3, 0))
    wanted: tuple[int, ...] | None = steps.first
    while wanted is not None:
        h = np.array([_factor(exponent, noise.bits) * 2.0**exponent for exponent in wanted])
        plus, minus = np.split(along(exact, np.concatenate([h, -h])), 2)
        taken, rungs = [*taken, *wanted], np.hstack([rungs, np.stack([h, plus, minus])])
        with np.errstate(all="ignore"):
            best = estimate(rungs[:, :, None], value, noise)
            bar = float(best.truncation[0] + NOISE_SIGMAS * best.noise[0])
            bar += float(best.high[0] / 2 - best.low[0] / 2)
            bar *= CAUTION if noise.bits <= BITS["float16"] else 1.0
            bar += 2 * _contradiction(rungs, float(best.middle[0]), bar, noise)
        if best.settled[0] and bar <= target:
            break
        wanted = None
        # Beyond the edge of a domain there is nothing to learn: such steps count for little.
        if 2 * len(taken) + 2 <= most + np.sum(~np.isfinite(rungs[1:])):
            with np.errstate(all="ignore"):
                wanted = _further(taken, rungs, best, noise, steps)
    return Derivative(float(best.middle[0]), bar, exact, 2 * len(taken), bool(best.settled[0]))


def _contradiction(rungs: Vector, slope: float, bar: float, noise: Noise) -> float:
    """By how much the narrowest step has another slope, where neither bar explains it; else 0."""
    h, plus, minus = rungs[:, np.argsort(rungs[0])[:2]]
    narrow, wide = (plus - minus) / (2 * h)
    # A central difference errs by c h^2, so two of them tell c; four times that is safe.
    truncation = 4 * abs(wide - narrow) / ((h[1] / h[0]) ** 2 - 1)
    jitter = NOISE_SIGMAS * noise.sigma / (np.sqrt(2) * h[0])
    apart = abs(narrow - slope)
    return float(apart) if apart > bar + truncation + jitter else 0.0


def _factor(exponent: int, bits: int) -> float:
    if bits == DOUBLE:
        return FACTORS[exponent % len(FACTORS)]
    return 9 / 8 if bits == BITS["float32"] and exponent % 2 else 1.0


def _further(
    taken: list[int], rungs: Vector, best: Estimate, noise: Noise, steps: Steps
) -> tuple[int] | None:
    """The exponent to try next; None where none is left.

    Noise asks for wider steps. Truncation asks for steps between those that still differ and those
    that agree, or for narrower ones.
    """
    order = np.argsort(taken)[::-1]
    exponents = [taken[place] for place in order]
    h, plus, minus = rungs[:, order]
    if best.settled[0] and best.truncation[0] <= NOISE_SIGMAS * best.noise[0]:
        widest = min(exponents[0] + steps.stride, steps.widest)
        if widest > exponents[0] and np.isfinite(plus[0] + minus[0]):
            return (widest,)
    slopes, jitter = (plus - minus) / (2 * h), NOISE_SIGMAS * noise.sigma / h
    change = np.abs(np.diff(slopes))
    narrower = exponents[-1] - steps.stride
    calm = change[-1] <= max(CALM * abs(slopes[-1]), jitter[-1])
    if calm or narrower - 1 < steps.narrowest:
        restless = np.flatnonzero(~(change <= jitter[1:]))
        for row in range(restless[-1] if restless.size else 0, len(exponents) - 1):
            if exponents[row] - exponents[row + 1] > 3:
                # Between them, nearer to those that are right so far.
                wide, narrow = exponents[row], exponents[row + 1]
                return ((2 * wide + narrow if best.settled[0] else wide + 2 * narrow) // 3,)
    else:
        narrower -= 1
    return (narrower,) if narrower >= steps.narrowest else None
