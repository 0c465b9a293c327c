"""Kinks that belong together: what is right in each coordinate may be wrong in both at once.

Where two inputs of a maximum tie, each may get any share of the cotangent, but the shares must add
up: a backward that gives all of it to both is wrong, and no single coordinate shows it.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS, Noise
from xgradcheck._layout import Layout, Positions, Vector
from xgradcheck._phi import Phi

STEPS = (2.0**-12, 2.0**-15)
SLACK = 1e-2
"""Slopes over short steps err by the curvature; sums of slopes that differ by less agree."""
ALL_PAIRS, PAIRS = 16, 256
"""Up to how many kinks every pair is looked at, and how many pairs of neighbours beyond that."""


@dataclass(frozen=True, slots=True)
class Tie:
    """Coordinates whose gradients exceed, by ``excess`` per coordinate, what all of them together
    can have.
    """

    members: Positions
    excess: float


@dataclass(frozen=True, slots=True)
class Kinks:
    """Where phi has kinks that the gradient suits one by one: their positions, scales, gradients,
    and the slopes ahead of and behind each, shape (2, kinks).
    """

    phi: Phi
    layout: Layout
    where: Positions
    scale: Vector
    gradient: Vector
    sides: Vector
    value: float
    noise: Noise


def wrong_ties(kinks: Kinks) -> list[Tie]:
    """Kinks that belong together and whose gradients do not add up.

    Two evaluations where the kinks have nothing to do with each other.
    """
    everyone = np.arange(len(kinks.where))
    if _slopes(kinks, everyone, STEPS[0]) is None:
        return []
    ties, linked = [], []
    for pair in _pairs(kinks):
        chosen = np.array(pair)
        if _slopes(kinks, chosen, STEPS[0]) is None:
            continue
        linked.append(pair)
        if (excess := _excess(kinks, chosen)) is not None:
            ties.append(Tie(kinks.where[chosen], excess / 2))
    # Three that tie may be wrong all together though any two of them could be right.
    for group in _groups(linked):
        if len(group) > 2 and (excess := _excess(kinks, group)) is not None:
            ties.append(Tie(kinks.where[group], excess / len(group)))
    return ties


def _pairs(kinks: Kinks) -> list[tuple[int, int]]:
    """Which pairs of kinks may belong together: all if there are few, else neighbours along any
    axis of their leaf, and those at the same place of different leaves.
    """
    count = len(kinks.where)
    if count <= ALL_PAIRS:
        return list(combinations(range(count), 2))
    number = {int(position): n for n, position in enumerate(kinks.where)}
    leaves = [kinks.layout.leaves[n] for n in kinks.layout.owners(kinks.where)]
    found = set()
    for n, (position, leaf) in enumerate(zip(kinks.where.tolist(), leaves, strict=True)):
        strides = [math.prod(leaf.shape[axis + 1 :]) for axis in range(len(leaf.shape))]
        places = [position + stride for stride in strides if position + stride < leaf.part.stop]
        places += [
            other.start + position - leaf.start for other in kinks.layout if other.start > position
        ]
        found |= {(n, number[place]) for place in places if place in number}
    return sorted(found)[:PAIRS]


def _groups(pairs: list[tuple[int, int]]) -> list[Positions]:
    """The connected components of the graph that has these edges."""
    group_of: dict[int, set[int]] = {}
    for first, second in pairs:
        joined = group_of.get(first, {first}) | group_of.get(second, {second})
        group_of |= dict.fromkeys(joined, joined)
    return [np.array(sorted(group)) for group in {id(g): g for g in group_of.values()}.values()]


def _excess(kinks: Kinks, chosen: Positions) -> float | None:
    """By how much the gradients along several kinks lie outside the slopes of both sides; None
    where they do not, or where the steps do not agree on it.
    """
    total, excess = float(np.sum(kinks.gradient[chosen] * kinks.scale[chosen])), None
    for step in STEPS:
        if (found := _slopes(kinks, chosen, step)) is None:
            return None
        ahead, behind, unsure = found
        excess = total - float(np.clip(total, min(ahead, behind), max(ahead, behind)))
        if abs(excess) <= unsure:
            return None
    return excess


def _slopes(kinks: Kinks, chosen: Positions, step: float) -> tuple[float, float, float] | None:
    """The slopes ahead and behind along several kinks at once, and how unsure they are; None where
    they are the sums of those along each.
    """
    direction = np.zeros_like(kinks.phi.problem.point)
    direction[kinks.where[chosen]] = kinks.scale[chosen]
    plus, minus = kinks.phi.along(direction, np.array([step, -step]))
    slopes = np.array([plus - kinks.value, kinks.value - minus]) / step
    terms = kinks.sides[:, chosen] * kinks.scale[chosen]
    unsure = SLACK * float(np.abs(terms).sum()) + NOISE_SIGMAS * 2 * kinks.noise.sigma / step
    if not np.isfinite(slopes).all() or (np.abs(slopes - terms.sum(axis=1)) <= unsure).all():
        return None
    return float(slopes[0]), float(slopes[1]), unsure
