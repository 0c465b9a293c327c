"""Kinks that belong together: what is right in each coordinate may be wrong in both at once.

Where two inputs of a maximum tie, each may get any share of the cotangent, but the shares must add
up: a backward that gives all of it to both is wrong, and no single coordinate shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS, Noise
from xgradcheck._layout import Positions, Vector
from xgradcheck._phi import Phi

STEPS = (2.0**-12, 2.0**-15)
SLACK = 1e-2
"""Slopes over short steps err by the curvature; sums of slopes that differ by less agree."""
ALL_PAIRS, PAIRS = 12, 64
"""Up to how many kinks every pair is looked at, and how many pairs of neighbours beyond that."""


@dataclass(frozen=True, slots=True)
class Tie:
    """Two coordinates whose gradients exceed, by ``excess``, what both together can have."""

    first: int
    second: int
    excess: float


def wrong_ties(
    phi: Phi,
    kinks: Positions,
    scale: Vector,
    sides: Vector,
    gradient: Vector,
    value: float,
    noise: Noise,
) -> Iterator[Tie]:
    """Pairs of kinks at which the gradient is none, given the slopes ``sides`` ahead of and behind
    each, shape (2, kinks). Two evaluations where the kinks have nothing to do with each other.
    """
    everyone = np.arange(len(kinks))
    if _slopes(phi, kinks, scale, everyone, STEPS[0], sides, value, noise) is None:
        return
    if len(kinks) <= ALL_PAIRS:
        pairs = list(combinations(everyone, 2))
    else:
        pairs = list(pairwise(everyone[: PAIRS + 1]))
    for pair in pairs:
        chosen = np.array(pair)
        total = float(np.sum(gradient[chosen] * scale[chosen]))
        excesses = []
        for step in STEPS:
            found = _slopes(phi, kinks, scale, chosen, step, sides, value, noise)
            if found is None:
                break
            ahead, behind, unsure = found
            nearest = float(np.clip(total, min(ahead, behind), max(ahead, behind)))
            if abs(total - nearest) <= unsure:
                break
            excesses.append(total - nearest)
        if len(excesses) == len(STEPS):
            yield Tie(int(kinks[pair[0]]), int(kinks[pair[1]]), excesses[-1])


def _slopes(
    phi: Phi,
    kinks: Positions,
    scale: Vector,
    chosen: Positions,
    step: float,
    sides: Vector,
    value: float,
    noise: Noise,
) -> tuple[float, float, float] | None:
    """The slopes ahead and behind along several kinks at once, and how unsure they are; None where
    they are the sums of those along each.
    """
    direction = np.zeros_like(phi.problem.point)
    direction[kinks[chosen]] = scale[chosen]
    plus, minus = phi.along(direction, np.array([step, -step]))
    slopes = np.array([plus - value, value - minus]) / step
    terms = sides[:, chosen] * scale[chosen]
    unsure = SLACK * float(np.abs(terms).sum()) + NOISE_SIGMAS * 2 * noise.sigma / step
    if not np.isfinite(slopes).all() or (np.abs(slopes - terms.sum(axis=1)) <= unsure).all():
        return None
    return float(slopes[0]), float(slopes[1]), unsure
