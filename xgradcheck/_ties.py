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
from xgradcheck._layout import Layout, Mask, Positions, Vector
from xgradcheck._phi import Phi
from xgradcheck._sides import (
    SLACK,
    STEPS,
    between_its_slopes,
    lacking,
    picked,
    rounding_of,
    sides,
    sides_along,
    turns,
)

ALL_PAIRS, PAIRS = 16, 256
"""Up to how many kinks every pair is looked at, and how many pairs of neighbours beyond that."""
LEVELS, FINELY = 16, 1e-4
"""How many values that many kinks share are looked at, and how closely."""
CLOSELY = 8
"""How many ties are looked at kink by kink."""
OUTPUTS, ALL_OUTPUTS, TESTS = 64, 512, 2048
"""How many outputs are asked one by one for one tie, and for all of them; and how many times a
coordinate for an output.
"""


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

    def direction(self, chosen: Positions) -> Vector:
        """The one that moves some of them by their scales, and nothing else."""
        found = np.zeros_like(self.phi.problem.point)
        found[self.where[chosen]] = self.scale[chosen]
        return found

    def total(self, chosen: Positions) -> float:
        """The slope along it by the gradient."""
        return float(np.sum(self.gradient[chosen] * self.scale[chosen]))

    def scale_of(self, tie: Tie) -> Vector:
        """The scales of the members of a tie."""
        return self.scale[np.isin(self.where, tie.members)]


def wrong_ties(kinks: Kinks) -> list[Tie]:
    """Kinks that belong together and whose gradients do not add up, for some output taken alone.

    Two evaluations where few kinks have nothing to do with each other, and as many for each value
    that more of them share.
    """
    ties, linked = [], []
    are_apart = _slopes(kinks, np.arange(len(kinks.where)), STEPS[0]) is None
    for pair in [] if are_apart else _pairs(kinks):
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
    for group in _levels(kinks):
        if len(group) > 2 and (excess := _excess_of_level(kinks, group)):
            ties.append(Tie(kinks.where[group], excess / len(group)))
    return _beyond_every_choice(kinks, _wrong_in_one_output(kinks, ties)) if ties else []


def _beyond_every_choice(kinks: Kinks, ties: list[Tie]) -> list[Tie]:
    """The ties whose gradients are no choice among the slopes of every kink along them: where some
    turn the slope up and others down, both sides together do not show how far that reaches. A few
    speak for all.
    """
    rng = np.random.default_rng(0x71E5)
    wrong = [tie for tie in ties[:CLOSELY] if not _is_choice(kinks, tie, rng)]
    return wrong + ties[CLOSELY:] if wrong else []


def _is_choice(kinks: Kinks, tie: Tie, rng: np.random.Generator) -> bool:
    chosen = np.flatnonzero(np.isin(kinks.where, tie.members))
    direction = kinks.direction(chosen)
    slopes = sides_along(kinks.phi, direction, STEPS[-1], kinks.value)
    low, high = picked(slopes, turns(kinks.phi, direction, rng))
    unsure = SLACK * float(np.max(np.abs(slopes)))
    return bool(low - unsure <= kinks.total(chosen) <= high + unsure)


def _wrong_in_one_output(kinks: Kinks, ties: list[Tie]) -> list[Tie]:
    """The ties whose gradients do not add up for some output taken alone; all of them where there
    is one output only.
    """
    if not _has_outputs(kinks.phi):
        return ties
    wrong: set[int] = set()
    for cotangent, numbers in _asked(kinks, ties):
        left = [number for number in numbers if number not in wrong]
        if not left:
            continue
        with kinks.phi.anew(cotangent) as alone:
            value, gradient = float(alone.here(1)[0]), alone.gradient().gradient
            for number in left:
                own = _under(kinks, ties[number], alone, value, gradient)
                if _excess(own, np.arange(len(own.where))):
                    wrong.add(number)
    return [ties[number] for number in sorted(wrong)]


def _asked(kinks: Kinks, ties: list[Tie]) -> Iterator[tuple[Vector, list[int]]]:
    """Cotangents, and the numbers of the ties that they tell something of: each output that a tie
    moves alone, then all that it does not move together.
    """
    moving = [_moved(kinks.phi, tie.members, kinks.scale_of(tie)) for tie in ties]
    concerned: dict[int, list[int]] = {}
    for number, moved in enumerate(moving):
        for output in np.flatnonzero(moved)[:OUTPUTS].tolist():
            concerned.setdefault(output, []).append(number)
    for output in [*concerned][:ALL_OUTPUTS]:
        yield _unit(kinks.phi, output), concerned[output]
    for number, moved in enumerate(moving):
        if not moved.all():
            yield _others(moved), [number]


def _under(kinks: Kinks, tie: Tie, alone: Phi, value: float, gradient: Vector) -> Kinks:
    """A tie under another cotangent."""
    scale = kinks.scale_of(tie)
    ahead, behind = sides(alone, tie.members, scale * STEPS[-1], value)
    return replace(
        kinks,
        phi=alone,
        where=tie.members,
        scale=scale,
        gradient=gradient[tie.members],
        sides=np.array([ahead, behind]),
        value=value,
        noise=rounding_of(value),
    )


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


def _levels(kinks: Kinks) -> list[Positions]:
    """The kinks of each leaf where the point has the same value, where there are more than can be
    looked at in pairs: whichever of them a maximum compares, they do not tie with others.
    """
    if len(kinks.where) <= ALL_PAIRS:
        return []
    values, owners = kinks.phi.problem.point[kinks.where], kinks.layout.owners(kinks.where)
    _, which = np.unique(np.stack([owners, values]), axis=1, return_inverse=True)
    groups = [np.flatnonzero(which == number) for number in range(int(np.max(which)) + 1)]
    return sorted(groups, key=len, reverse=True)[:LEVELS]


def _excess_of_level(kinks: Kinks, chosen: Positions) -> float:
    """The same for so many kinks that what they exceed by may nearly cancel: with slopes that are
    extrapolated from two steps, so that little is unsure.
    """
    scale, where, direction = kinks.scale[chosen], kinks.where[chosen], kinks.direction(chosen)
    wide, narrow = (sides_along(kinks.phi, direction, step, kinks.value) for step in STEPS)
    slopes = narrow + lacking(wide, narrow, STEPS)
    unsure = FINELY * float(np.abs(kinks.sides[:, chosen] * scale).sum())
    unsure += NOISE_SIGMAS * 4 * kinks.noise.sigma / STEPS[1]
    total = kinks.total(chosen)
    excess = total - float(np.clip(total, np.min(slopes), np.max(slopes)))
    if not np.isfinite(slopes).all() or abs(excess) <= unsure:
        return 0.0
    wide, narrow = (np.array(sides(kinks.phi, where, scale * h, kinks.value)) for h in STEPS)
    alone = np.sum((narrow + lacking(wide, narrow, STEPS)) * scale, axis=1)
    return 0.0 if (np.abs(slopes - alone) <= unsure).all() else excess


def _excess(kinks: Kinks, chosen: Positions) -> float | None:
    """By how much the gradients along several kinks lie outside the slopes of both sides, 0 where
    they do not or where the steps do not agree on it; None where the kinks have nothing to do with
    each other.
    """
    total, excess = kinks.total(chosen), 0.0
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
    slopes = sides_along(kinks.phi, kinks.direction(chosen), step, kinks.value)
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
    moved = _moved(phi, places, scale[places])
    outputs = np.flatnonzero(moved)
    places = places[: max(1, TESTS // max(1, min(len(outputs), OUTPUTS)))]
    fine = np.ones(len(places), bool)
    for cotangent in [*(_unit(phi, output) for output in outputs[:OUTPUTS]), _others(moved)]:
        with phi.anew(cotangent) as alone:
            gradient = alone.gradient().gradient
            fine &= between_its_slopes(alone, places, scale[places], gradient[places])
    return places, fine, len(outputs) <= OUTPUTS


def _has_outputs(phi: Phi) -> bool:
    """Whether there are several outputs, and the backward pass can be asked for one alone."""
    return phi.cotangent.size > 1 and phi.problem.can_move


def _moved(phi: Phi, places: Positions, scale: Vector) -> Mask:
    """Which outputs move when these coordinates do, all of them together."""
    problem, point = phi.problem, phi.problem.point
    still, found = problem.values()[0], np.zeros(phi.cotangent.size, bool)
    for sign in (1.0, -1.0):
        moved = point.copy()
        moved[places] += sign * STEPS[-1] * scale
        with problem.at(moved):
            found |= problem.values()[0] != still
    return found


def _unit(phi: Phi, output: int) -> Vector:
    """The cotangent of one output alone."""
    found = np.zeros(phi.cotangent.size)
    found[output] = 1.0
    return found


def _others(moved: Mask) -> Vector:
    """A cotangent of all outputs that do not move, whose gradient has to be zero."""
    signs = np.random.default_rng(0x0DD).choice([-1.0, 1.0], moved.size)
    return np.where(moved, 0.0, signs)
