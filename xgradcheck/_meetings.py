"""Several kinks in one place, so that no slope along one coordinate tells which gradient is right.

A backward pass picks a slope of every kink. Where some of them turn the slope up and others turn it
down, what it picks may lie outside of the slopes that all of them show together.
"""

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS
from xgradcheck._layout import Mask, Positions, Vector
from xgradcheck._phi import Phi
from xgradcheck._sides import SLACK, STEPS, apart, between_its_slopes, rounding_of, turns

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
            noise = NOISE_SIGMAS * 2 * rounding_of(value).sigma / step
            low, high = min(ahead, behind) - noise, max(ahead, behind) + noise
            borne_out &= low - SLACK * size <= total <= high + SLACK * size
            # Over short steps curvature is little beside what sets a few of many apart.
            linked |= not low - step * CURVED * size <= alone <= high + step * CURVED * size
        if linked and borne_out:
            found.append(np.intersect1d(tied, accused))
    return np.concatenate(found)


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
