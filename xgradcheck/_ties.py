"""Kinks that belong together: what is right in each coordinate may be wrong in both at once.

Where two inputs of a maximum tie, each may get any share of the cotangent, but the shares must add
up: a backward that gives all of it to both is wrong, and no single coordinate shows it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS, Noise
from xgradcheck._layout import DOUBLE, Layout, Mask, Positions, Vector
from xgradcheck._phi import Phi

STEPS = (2.0**-12, 2.0**-15)
SLACK = 1e-2
"""Slopes over short steps err by the curvature; sums of slopes that differ by less agree."""
SAFE, CLOSE = 2.0, 1e-6
"""How many times more than two steps tell the slope of one side may be off, and by which share of
itself in any case.
"""
CURVED = 32.0
"""How much the slope may change over a full step, in sizes of the gradient."""
ALL_PAIRS, PAIRS = 16, 256
"""Up to how many kinks every pair is looked at, and how many pairs of neighbours beyond that."""
APART = 0.4
"""How far the others are moved to take kinks apart, as a share of their scale."""
GROUPS = 16
"""How many values that tie are looked at."""
BATCHES = 16
"""Of how many that tie each is taken apart from the others."""
OUTPUTS, TESTS = 64, 2048
"""How many outputs are asked one by one, and how many times a coordinate for an output."""


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
    """Kinks that belong together and whose gradients do not add up, for some output taken alone.

    Two evaluations where the kinks have nothing to do with each other.
    """
    if _slopes(kinks, np.arange(len(kinks.where)), STEPS[0]) is None:
        return []
    ties, linked = [], []
    for pair in _pairs(kinks):
        chosen = np.array(pair)
        if (excess := _excess(kinks, chosen)) is None:
            continue
        linked.append(pair)
        if excess:
            ties.append(Tie(kinks.where[chosen], excess / 2))
    # Three that tie may be wrong all together though any two of them could be right.
    for group in _groups(linked):
        if len(group) > 2 and (excess := _excess(kinks, group)):
            ties.append(Tie(kinks.where[group], excess / len(group)))
    return _wrong_in_one_output(kinks, ties) if ties else []


def _wrong_in_one_output(kinks: Kinks, ties: list[Tie]) -> list[Tie]:
    """The ties whose gradients do not add up for some output taken alone; all of them where there
    is one output only.
    """
    if not _has_outputs(kinks.phi):
        return ties
    wrong: dict[int, Tie] = {}
    for alone, gradient in _outputs(kinks.phi):
        value = float(alone.here(1)[0])
        for number, tie in enumerate(ties):
            if number in wrong:
                continue
            scale = kinks.scale[np.isin(kinks.where, tie.members)]
            ahead, behind = _sides(alone, tie.members, scale * STEPS[-1], value)
            own = replace(
                kinks,
                phi=alone,
                where=tie.members,
                scale=scale,
                gradient=gradient[tie.members],
                sides=np.array([ahead, behind]),
                value=value,
                noise=_rounding(value),
            )
            if _excess(own, np.arange(len(scale))):
                wrong[number] = tie
        if len(wrong) == len(ties):
            break
    return [wrong[number] for number in sorted(wrong)]


def _pairs(kinks: Kinks) -> list[tuple[int, int]]:
    """Which pairs of kinks may belong together: all if there are few, else those of equal values,
    neighbours along any axis of their leaf, and those at the same place of different leaves.
    """
    count = len(kinks.where)
    if count <= ALL_PAIRS:
        return list(combinations(range(count), 2))
    number = {int(position): n for n, position in enumerate(kinks.where)}
    leaves = [kinks.layout.leaves[n] for n in kinks.layout.owners(kinks.where)]
    found = {pair for pair in _equal(kinks)[:PAIRS]}
    for n, (position, leaf) in enumerate(zip(kinks.where.tolist(), leaves, strict=True)):
        strides = [math.prod(leaf.shape[axis + 1 :]) for axis in range(len(leaf.shape))]
        places = [position + stride for stride in strides if position + stride < leaf.part.stop]
        places += [
            other.start + position - leaf.start for other in kinks.layout if other.start > position
        ]
        found |= {(n, number[place]) for place in places if place in number}
    return sorted(found)[: 2 * PAIRS]


def _equal(kinks: Kinks) -> list[tuple[int, int]]:
    """Pairs of kinks where the point has the same value: they may be what a maximum compares."""
    values = kinks.phi.problem.point[kinks.where]
    order = np.argsort(values, kind="stable")
    twins = np.flatnonzero(np.diff(values[order]) == 0)
    return [(int(order[n]), int(order[n + 1])) for n in twins]


def _groups(pairs: list[tuple[int, int]]) -> list[Positions]:
    """The connected components of the graph that has these edges."""
    group_of: dict[int, set[int]] = {}
    for first, second in pairs:
        joined = group_of.get(first, {first}) | group_of.get(second, {second})
        group_of |= dict.fromkeys(joined, joined)
    return [np.array(sorted(group)) for group in {id(g): g for g in group_of.values()}.values()]


def _excess(kinks: Kinks, chosen: Positions) -> float | None:
    """By how much the gradients along several kinks lie outside the slopes of both sides, 0 where
    they do not or where the steps do not agree on it; None where the kinks have nothing to do with
    each other.
    """
    total, excess = float(np.sum(kinks.gradient[chosen] * kinks.scale[chosen])), 0.0
    for step in STEPS:
        if (found := _slopes(kinks, chosen, step)) is None:
            return None if step == STEPS[0] else 0.0
        ahead, behind, unsure = found
        excess = total - float(np.clip(total, min(ahead, behind), max(ahead, behind)))
        if abs(excess) <= unsure:
            return 0.0
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


def suits_each_output(
    phi: Phi, places: Positions, scale: Vector
) -> tuple[Positions, Mask, bool] | None:
    """The kinks that were looked at, which of them have a gradient that is right for every output
    taken alone, and whether all outputs were asked; None where there is one output only.

    A backward pass that gives each output a valid subgradient may give their weighted sum none that
    lies between its slopes: relu at 0 that fans out to several outputs with weights of both signs.
    """
    if not _has_outputs(phi):
        return None
    count = phi.cotangent.size
    places = places[: max(1, TESTS // min(count, OUTPUTS))]
    fine = np.ones(len(places), bool)
    for alone, gradient in _outputs(phi):
        fine &= _between_its_slopes(alone, places, scale[places], gradient[places])
    return places, fine, count <= OUTPUTS


def untied(point: Vector, places: Positions) -> list[Positions]:
    """These places in batches in which no two have the same value, so that moving all others takes
    ties apart.
    """
    values = point[places]
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))[: len(places)]
    rank = np.empty(len(places), np.intp)
    rank[order] = np.arange(len(places)) - np.repeat(starts, np.diff([*starts, len(places)]))
    return [places[rank == n] for n in range(min(BATCHES, int(np.max(rank, initial=-1)) + 1))]


def is_right_apart(phi: Phi, places: Positions, scale: Vector, rng: np.random.Generator) -> bool:
    """Whether the gradient at these kinks is right as soon as all other coordinates are generic:
    then it was because several kinks met that it lay outside the slopes of both sides, as in a
    network whose first layer is zero.
    """
    problem = phi.problem
    if not problem.can_move:
        return False
    places = places[:TESTS]
    step = APART * scale * rng.choice([-1.0, 1.0], scale.size) * rng.uniform(0.5, 1, scale.size)
    step[places] = 0.0
    try:
        here = problem.gradient(phi.cotangent)
        with problem.at(problem.point + phi.tangential(step)), phi.anew() as there:
            backward = problem.gradient(phi.cotangent)
            gradient = there.adjoint(backward.gradient)[places]
            if not step.any() or backward.is_stale(here) or not np.isfinite(there.here(1)).all():
                return False
            return bool(_between_its_slopes(there, places, scale[places], gradient).all())
    except Exception:  # the point was only guessed to lie in the domain
        return False


def meeting(
    phi: Phi,
    gradient: Vector,
    slopes: Vector,
    accused: Positions,
    known: Positions,
    scale: Vector,
    value: float,
) -> Positions:
    """Those of the accused coordinates that tie with others, where moving all of a tie at once
    bears out the gradient though moving one does not, by these ``slopes``: the median of equal
    numbers. Some are ``known`` to tie: moving two of them did not bear it out.
    """
    point, found = phi.problem.point, [np.zeros(0, np.intp)]
    for level in np.unique(point[accused])[:GROUPS]:
        tied = np.flatnonzero(point == level)
        if len(tied) < 2:
            continue
        direction = np.where(point == level, scale, 0.0)
        total, alone = float(gradient @ direction), float(slopes @ direction)
        linked, borne_out = bool(np.isin(known, tied).any()), True
        for step in STEPS:
            plus, minus = phi.along(direction, np.array([step, -step]))
            ahead, behind = (plus - value) / step, (value - minus) / step
            # A gradient of zero is no measure of what curvature may do.
            size = float((np.fmax(np.abs(gradient), np.abs(slopes)) * direction).sum())
            noise = NOISE_SIGMAS * 2 * _rounding(value).sigma / step
            low, high = min(ahead, behind) - noise, max(ahead, behind) + noise
            borne_out &= low - SLACK * size <= total <= high + SLACK * size
            # Over short steps curvature is little beside what sets a few of many apart.
            linked |= not low - step * CURVED * size <= alone <= high + step * CURVED * size
        if linked and borne_out:
            found.append(np.intersect1d(tied, accused))
    return np.concatenate(found)


def _has_outputs(phi: Phi) -> bool:
    """Whether there are several outputs, and the backward pass can be asked for one alone."""
    return phi.cotangent.size > 1 and phi.problem.can_move


def _outputs(phi: Phi) -> Iterator[tuple[Phi, Vector]]:
    """Each output alone, and its gradient."""
    for output in range(min(phi.cotangent.size, OUTPUTS)):
        unit = np.zeros(phi.cotangent.size)
        unit[output] = 1.0
        with phi.anew(unit) as alone:
            yield alone, alone.adjoint(phi.problem.gradient(unit).gradient)


def _sides(phi: Phi, where: Positions, steps: Vector, value: float) -> tuple[Vector, Vector]:
    """The slopes ahead of and behind each coordinate."""
    plus, minus = phi.pairs(where, steps)
    return (plus - value) / steps, (value - minus) / steps


def _rounding(value: float) -> Noise:
    return Noise(float(Noise(0.0).of(np.array(value))))


def _between_its_slopes(phi: Phi, places: Positions, scale: Vector, gradient: Vector) -> Mask:
    value = float(phi.here(1)[0])
    wide, narrow = (np.array(_sides(phi, places, scale * step, value)) for step in STEPS)
    # The slope of each side at the point, from those over two steps that err by the curvature.
    change = (narrow - wide) / (STEPS[0] / STEPS[1] - 1)
    sides = narrow + change
    share = CLOSE if phi.problem.bits == DOUBLE else SLACK
    unsure = SAFE * np.abs(change) + share * np.max(np.abs(sides), axis=0)
    unsure += NOISE_SIGMAS * 2 * _rounding(value).sigma / (scale * STEPS[1])
    low, high = np.min(sides - unsure, axis=0), np.max(sides + unsure, axis=0)
    return np.asarray((low <= gradient) & (gradient <= high))
