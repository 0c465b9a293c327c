"""The slopes ahead of and behind a kink."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from xgradcheck._differences import NOISE_SIGMAS, Noise, natural_scale
from xgradcheck._layout import DOUBLE, Mask, Positions, Vector
from xgradcheck._phi import Phi
from xgradcheck._restricted import Restricted

STEPS = (2.0**-12, 2.0**-15)
FINER = (2.0**-15, 2.0**-18), (2.0**-18, 2.0**-21)
"""Where those leap over other kinks."""
SLACK = 1e-2
"""Slopes over short steps err by the curvature; sums of slopes that differ by less agree."""
SAFE, CLOSE = 2.0, 1e-6
"""How many times more than two steps tell the slope of one side may be off, and by which share of
itself in any case.
"""
FINE, REACH, POINTS = 2.0**-17, 4.0, 65
"""How far the others are moved to see kinks that meet one by one, how many times farther they are
looked for, and at how many points.
"""
LARGE = 1_000_000
"""Beyond so many coordinates those alone are moved that are looked at."""
BENT = 16.0
"""How many times more than curvature does a kink turns the slope."""


def sides(phi: Phi, where: Positions, steps: Vector, value: float) -> tuple[Vector, Vector]:
    """The slopes ahead of and behind each coordinate."""
    plus, minus = phi.pairs(where, steps)
    return (plus - value) / steps, (value - minus) / steps


def sides_along(phi: Phi, direction: Vector, step: float, value: float) -> Vector:
    """The slopes ahead and behind along a direction through all coordinates."""
    plus, minus = phi.along(direction, np.array([step, -step]))
    return np.array([plus - value, value - minus]) / step


def lacking(wide: Vector, narrow: Vector, steps: tuple[float, float]) -> Vector:
    """What the slopes of one side over a narrow step lack to be those at the point, by those over a
    wide one: both err by the curvature.
    """
    return (narrow - wide) / (steps[0] / steps[1] - 1)


def rounding_of(value: float) -> Noise:
    """The least noise that a phi of this value has."""
    return Noise(float(Noise(0.0).of(np.array(value))))


def between_its_slopes(
    phi: Phi, places: Positions, scale: Vector, gradient: Vector, turned: Vector | None = None
) -> Mask:
    """Where a gradient lies between the slopes of both sides.

    Given how much kinks have ``turned`` the slope upwards and downwards, shape (2, places), where
    it picks a slope of each, as far as slopes are known well enough to acquit.
    """
    fine = np.zeros(len(places), bool)
    for steps in (STEPS, *FINER):
        rest = np.flatnonzero(~fine)
        own = None if turned is None else turned[:, rest]
        fine[rest] = _between(phi, places[rest], scale[rest], gradient[rest], own, steps)
    return fine


def _between(
    phi: Phi,
    places: Positions,
    scale: Vector,
    gradient: Vector,
    turned: Vector | None,
    steps: tuple[float, float],
) -> Mask:
    value = float(phi.here(1)[0])
    wide, narrow = (np.array(sides(phi, places, scale * step, value)) for step in steps)
    change = lacking(wide, narrow, steps)
    slopes = narrow + change
    share = CLOSE if phi.problem.bits == DOUBLE else SLACK
    unsure = SAFE * np.abs(change) + share * np.max(np.abs(slopes), axis=0)
    unsure += NOISE_SIGMAS * 2 * rounding_of(value).sigma / (scale * steps[1])
    # Where a step leaps over another kink, slopes are too unsure to acquit by.
    known = turned is None or np.max(unsure, axis=0) <= SLACK * np.max(np.abs(slopes), axis=0)
    turned = np.zeros_like(slopes) if turned is None else turned
    low, high = picked(slopes - unsure, turned)[0], picked(slopes + unsure, turned)[1]
    return np.asarray(known & (low <= gradient) & (gradient <= high))


@contextmanager
def apart(phi: Phi, places: Positions, share: float, rng: np.random.Generator) -> Iterator[Phi]:
    """phi where all coordinates but these are moved by about this share of their scale, those that
    are not looked at too: kinks that meet no longer do.
    """
    problem = phi.problem
    whole, own = problem, np.arange(problem.layout.size)
    move: Callable[[Vector], AbstractContextManager[Any]] = problem.at
    if isinstance(problem, Restricted) and problem.whole.layout.size <= LARGE and not phi.tangents:
        whole, own, move = problem.whole, problem.places, problem.all_at
    scale = natural_scale(whole.point, whole.layout)[1]
    step = share * scale * rng.choice([-1.0, 1.0], scale.size) * rng.uniform(0.5, 1, scale.size)
    step[own[places]] = 0.0
    step[whole.frozen] = 0.0
    step = phi.tangential(step) if whole is problem else step
    with move(whole.point + step), phi.anew() as there:
        yield there


def turns(phi: Phi, direction: Vector, rng: np.random.Generator) -> Vector:
    """How much the kinks along a direction turn its slope upwards and how much downwards, with all
    coordinates beside it moved a little, so that they no longer meet.
    """
    reach = np.linspace(-REACH * FINE, REACH * FINE, POINTS)
    with apart(phi, np.flatnonzero(direction), FINE, rng) as there:
        values = there.along(direction, reach)
    turned = np.diff(values, 2) / (reach[1] - reach[0])
    if not np.isfinite(turned).all():
        return np.zeros(2)
    noise = NOISE_SIGMAS * 4 * rounding_of(float(values[0])).sigma / (reach[1] - reach[0])
    usual = np.quantile(np.abs(turned), 0.25)
    turned = turned[np.abs(turned) > max(BENT * float(usual), noise)]
    return np.array([turned[turned > 0].sum(), turned[turned < 0].sum()])


def picked(slopes: Vector, turned: Vector) -> tuple[Vector, Vector]:
    """The least and the most that a choice among the slopes of every kink comes to, by the slopes
    (ahead, behind) of all together and what turns them upwards and downwards.
    """
    (ahead, behind), (rises, falls) = slopes, turned
    ends = np.array([ahead, behind, behind + rises, behind + falls, ahead - rises, ahead - falls])
    return np.min(ends, axis=0), np.max(ends, axis=0)
