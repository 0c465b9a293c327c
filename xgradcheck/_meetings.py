"""Several kinks in one place, so that no slope along one coordinate tells which gradient is right.

A backward pass picks a slope of every kink. Where some of them turn the slope up and others turn it
down, what it picks may lie outside of the slopes that all of them show together.
"""

from collections.abc import Iterator

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS
from xgradcheck._layout import Leaf, Mask, Positions, Vector
from xgradcheck._phi import Phi
from xgradcheck._sides import (
    SLACK,
    STEPS,
    apart,
    between_its_slopes,
    rounding_of,
    sides_along,
    turns,
)

TESTS = 2048
"""How many coordinates are looked at."""
CURVED = 32.0
"""How much the slope may change over a full step, in sizes of the gradient."""
APART = 0.4
"""How far the others are moved to take kinks apart, as a share of their scale."""
GROUPS = 16
"""How many values that tie are looked at."""
BATCHES = 16
"""Of how many that tie each is taken apart from the others."""
SHARE = 0.1
"""How many of equal numbers are accused where a choice among them may be to blame."""
COTANGENTS = 3
"""Under how many others a tie has to bear the gradient out."""
ASKED = 32
"""How many coordinates are looked at kink by kink."""


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
    problem, places = phi.problem, places[:TESTS]
    if not problem.can_move:
        return False
    try:
        here = problem.gradient(phi.cotangent)
        with apart(phi, places, APART, rng) as there:
            backward = problem.gradient(phi.cotangent)
            gradient = there.adjoint(backward.gradient)[places]
            if backward.is_stale(here) or not np.isfinite(there.here(1)).all():
                return False
            return bool(between_its_slopes(there, places, scale[places], gradient).all())
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
    size = np.fmax(np.abs(gradient), np.abs(slopes))
    for level in np.unique(point[accused])[:GROUPS]:
        tied = np.flatnonzero(point == level)
        if len(tied) < 2:
            continue
        direction = np.where(point == level, scale, 0.0)
        total, alone = float(gradient @ direction), float(slopes @ direction)
        # A gradient of zero is no measure of what curvature may do.
        most = float((size * direction).sum())
        linked, borne_out = bool(np.isin(known, tied).any()), True
        for step, low, high in _ranges(phi, direction, value):
            borne_out &= low - SLACK * most <= total <= high + SLACK * most
            # Over short steps curvature is little beside what sets a few of many apart.
            linked |= not low - step * CURVED * most <= alone <= high + step * CURVED * most
        if linked and borne_out and _is_borne_out(phi, direction):
            found.append(np.intersect1d(tied, accused))
    return np.concatenate(found)


def is_a_choice(
    phi: Phi, gradient: Vector, scale: Vector, leaf: Leaf, accused: Positions, count: int
) -> bool:
    """Whether ``count`` coordinates of a large leaf, these among them, are accused as a part of
    equal numbers that bear the gradient out all together, as the zeros among the largest of a row:
    a choice among them that follows no order.
    """
    point = phi.problem.point
    levels = np.unique(point[accused])
    if len(levels) > GROUPS or not phi.problem.can_move:
        return False
    for level in levels:
        tied = leaf.start + np.flatnonzero(point[leaf.part] == level)
        if len(tied) < 2 or count < SHARE * len(tied):
            return False
        direction = np.zeros_like(point)
        direction[tied] = scale[tied]
        if not _fits(phi, gradient, direction) or not _is_borne_out(phi, direction):
            return False
    return True


def _fits(phi: Phi, gradient: Vector, direction: Vector) -> bool:
    """Whether a gradient lies between the slopes of both sides along a direction."""
    value = float(phi.here(1)[0])
    total, most = float(gradient @ direction), float(np.abs(gradient) @ direction)
    return all(
        low - SLACK * most <= total <= high + SLACK * most
        for _, low, high in _ranges(phi, direction, value)
    )


def _ranges(phi: Phi, direction: Vector, value: float) -> Iterator[tuple[float, float, float]]:
    """Steps, and between what the slope along a direction may lie by its two sides."""
    for step in STEPS:
        slopes = sides_along(phi, direction, step, value)
        noise = NOISE_SIGMAS * 2 * rounding_of(value).sigma / step
        yield step, float(np.min(slopes)) - noise, float(np.max(slopes)) + noise


def _is_borne_out(phi: Phi, direction: Vector) -> bool:
    """Whether moving all of a tie bears out the gradient under other cotangents too: of many
    outputs, mistakes may cancel under one.
    """
    rng = np.random.default_rng(0xC07)
    for _ in range(COTANGENTS if phi.cotangent.size > 1 else 0):
        signs = rng.choice([-1.0, 1.0], phi.cotangent.size)
        with phi.anew(phi.cotangent * signs) as other:
            if not _fits(other, other.gradient().gradient, direction):
                return False
    return True


def picks_of_each(
    phi: Phi, places: Positions, scale: Vector, gradient: Vector, rng: np.random.Generator
) -> Mask:
    """Where a gradient comes to a choice among the slopes of every kink that meets there, though it
    may lie outside of those of all together.
    """
    fine = between_its_slopes(
        phi, places, scale[places], gradient[places], np.zeros((2, len(places)))
    )
    asked = np.flatnonzero(~fine)[:ASKED]
    chosen, found = places[asked], np.zeros((2, len(asked)))
    for number, place in enumerate(chosen):
        direction = np.zeros_like(phi.problem.point)
        direction[place] = scale[place]
        found[:, number] = turns(phi, direction, rng) / scale[place]
    fine[asked] = between_its_slopes(phi, chosen, scale[chosen], gradient[chosen], found)
    return fine
