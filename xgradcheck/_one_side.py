"""A gradient at kinks that is the one of points on one side of all of them.

A certificate asks for a phi without kinks. Where coordinates lie on some, as the zeros that a relu
leaves, or tie, as in a window of a pool, a backward pass takes the slope of one side of each, or
one between both. That is right where points on those sides have gradients that it is made of,
however near they are, and a certificate (Clarke 1983, Optimization and Nonsmooth Analysis, 2.5: a
generalised gradient is a mean of limits of gradients).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xgradcheck._adapters import Backward
from xgradcheck._certificate import ROUNDINGS
from xgradcheck._differences import UNIT, norm, rms
from xgradcheck._generic import LARGE
from xgradcheck._judge import Tolerance, zero_below
from xgradcheck._kinds import Kind
from xgradcheck._layout import Mask, Vector
from xgradcheck._measured import Measured
from xgradcheck._phi import Phi
from xgradcheck._projection import Bound, Projecting
from xgradcheck._second_look import accused_by

NEAR, SHORT, FAR = 2.0**-36, 2.0**-20, (2.0**-6, 2.0**-3)
"""How far from the point a gradient has to be the same, how far phi has to go there as it says, and
where it is certified, in shares of the scale of each coordinate: there, steps reach no kink that
lies at the point.
"""
CURVED = 32.0
"""How much a gradient may change over a full step, in sizes of itself."""
LITTLE = 1e-6
"""A share of a side that is none."""
EXCHANGES, EXCHANGED = 3, 4096
"""How often elements change places on a way, and how many at most."""
SLACK = 1e-4
"""By what share of its size a move to a side may miss what its gradient says of it."""


@dataclass(slots=True)
class OneSide:
    """What the side tells whose gradient this is: a bound for each leaf, and how many elements of
    each lie on kinks.
    """

    bounds: dict[int, Bound]
    kinks: dict[int, int]


def on_one_side(
    phi: Phi,
    backward: Backward,
    value: float,
    allowance: Tolerance,
    seed: int,
    kinked: Mask | bool = False,
) -> OneSide | None:
    """What the side of all kinks tells whose gradient this is; None where there are no kinks, or no
    such side is found. Some elements may be known to be ``kinked``.
    """
    problem = phi.problem
    is_finite = np.isfinite(backward.gradient).all()
    if problem.layout.size > LARGE or not problem.can_move or phi.is_bound or not is_finite:
        return None
    try:
        return _Sides(phi, backward, value, allowance, seed, kinked).sought()
    except Exception:  # the points were only guessed to lie in the domain
        return None


def acquit_by_one_side(row: Measured, seed: int) -> None:
    """Where kinks meet and a sweep leaves a gradient open, acquit the one of a side, as where equal
    numbers are sorted in their order.
    """
    work, truth = row.work, row.truth
    met = truth.kinds == Kind.MEETING
    if not met.any() or accused_by(work, truth).any():
        return
    side = on_one_side(work.phi, row.run.backward, work.value, work.allowance, seed, met)
    if side is not None:
        truth.value[met], truth.bar[met], truth.settled[met] = work.gradient[met], 0.0, True
        truth.kinds[met] = Kind.KINK


def _share(given: Vector, ahead: Vector, behind: Vector) -> float:
    """How much of a gradient is that of one side, where the rest is that of the other."""
    apart = ahead - behind
    square = float(apart @ apart)
    share = float((given - behind) @ apart) / square if square else 1.0
    return min(max(round(share, 9), 0.0), 1.0)


def _floor(bound: Bound) -> float:
    return -math.inf if math.isnan(bound.floor) else bound.floor


@dataclass(slots=True)
class _Sides:
    """The search for the side."""

    phi: Phi
    backward: Backward
    value: float
    allowance: Tolerance
    seed: int
    kinked: Any
    """Which elements were seen to differ from side to side."""
    scale: Vector = field(init=False)
    below: Vector = field(init=False)
    is_met: bool = field(init=False)
    """Whether elements were known to be kinked."""
    way: Vector = field(init=False)
    """The last way that was tried."""
    ahead: Vector = field(init=False)
    """The gradient there."""

    def __post_init__(self) -> None:
        scale = self.scale = self.phi.scales()[0]
        self.below = zero_below(self.phi.problem.layout, scale, (self.backward.gradient,))
        self.is_met = self.kinked is not False
        self.kinked = np.zeros(scale.size, bool) | self.kinked

    def sought(self) -> OneSide | None:
        """Both sides of each way, until the gradient is made of theirs."""
        given = self.backward.gradient
        for way in self._ways():
            ahead, behind = self._at(NEAR * way), self._at(-NEAR * way)
            self.way, self.ahead = way, ahead
            self.kinked |= self._differ(ahead, behind)
            if not self.kinked.any():
                return None
            share = _share(given, ahead, behind)
            mixed = share * ahead + (1 - share) * behind
            if self._differ(given, mixed).any():
                continue
            if not self._goes(way, ahead, behind) or not self._goes(-way, behind, ahead):
                return None
            sides = [way] * (share > LITTLE) + [-way] * (share < 1 - LITTLE)
            bounds = [self._certified(side) for side in sides]
            if all(bounds):
                worst = {n: max((own[n] for own in bounds), key=_floor) for n in bounds[0]}
                return OneSide(worst, self._counted())
        return None

    def _ways(self) -> Iterator[Vector]:
        """How to move all coordinates, as shares of their scale: alike, by whether the gradient
        takes part in them, away from the middle of their leaf, by both; and one farther than the
        next along an axis, as equal numbers are told apart by their order, which then change
        places. Unequal moves take ties apart.
        """
        point, gradient = self.phi.problem.point, self.backward.gradient
        rng = np.random.default_rng([self.seed, 0x51DE])
        reach = rng.uniform(0.5, 1.0, point.size)
        chosen, outward = np.where(gradient != 0, 1.0, -1.0), np.ones(point.size)
        for leaf in self.phi.problem.layout:
            if leaf.size:
                own = point[leaf.part]
                outward[leaf.part] = np.where(own < (own.min() + own.max()) / 2, -1.0, 1.0)
        yield reach
        yield reach * chosen
        yield reach * outward
        yield reach * chosen * outward
        for ramp, line in self._lines():
            yield ramp
            for _ in range(EXCHANGES):
                exchanged = self._exchanged(line)
                if exchanged is None:
                    break
                yield exchanged

    def _lines(self) -> Iterator[tuple[Vector, Vector]]:
        """A way that goes farther and farther along each line of every leaf, and the number of the
        line that each coordinate lies on: along the last axis, the one before that, and so on; at
        last each leaf is one line.
        """
        layout = self.phi.problem.layout
        for axis in range(1, 2 + max(len(leaf.grid) for leaf in layout)):
            ramp, line = np.ones_like(self.scale), np.zeros_like(self.scale)
            for leaf in layout:
                own = np.arange(leaf.start, leaf.start + leaf.size)
                has_axis = axis <= len(leaf.grid)
                own = own.reshape(leaf.grid) if has_axis else own
                if leaf.size:
                    first = np.broadcast_to(own.take([0], axis=-axis if has_axis else 0), own.shape)
                    far = (own - first) / max(int(np.max(own - first)), 1)
                    ramp[leaf.part], line[leaf.part] = 0.5 + far.ravel() / 2, first.ravel()
            yield ramp, line

    def _exchanged(self, line: Vector) -> Vector | None:
        """The last way, on which equal numbers of one line change places until each has the
        gradient that it was given, going by the one that it had there: of a sort those of the
        places they come to.
        """
        point, given = self.phi.problem.point, self.backward.gradient
        off = np.flatnonzero(self._differ(given, self.ahead))
        if not 0 < off.size <= EXCHANGED:
            return None
        way, ahead = self.way.copy(), self.ahead.copy()
        for place in off[given[off] != 0]:
            tied = off[(point[off] == point[place]) & (line[off] == line[place])]
            other = tied[np.argmin(np.abs(ahead[tied] - given[place]))]
            for part in (way, ahead):
                part[[place, other]] = part[[other, place]]
        return None if self._differ(given, ahead).any() else way

    @contextmanager
    def _moved(self, way: Vector) -> Iterator[Phi]:
        """phi some way off."""
        problem = self.phi.problem
        with problem.at(problem.point + way * self.scale), self.phi.anew() as there:
            yield there

    def _gradient(self, there: Phi) -> Vector:
        backward = there.problem.gradient(there.cotangent)
        if backward.is_stale(self.backward):
            raise ValueError("the very same arrays were handed in")
        return backward.gradient

    def _at(self, way: Vector) -> Vector:
        """The gradient some way off."""
        with self._moved(way) as there:
            return self._gradient(there)

    def _differ(self, gradient: Vector, other: Vector) -> Mask:
        """The elements in which two gradients differ by more than a short way makes them."""
        allowed = np.array(self.below)
        for leaf in self.phi.problem.layout:
            own, size = leaf.part, rms(gradient[leaf.part])
            allowed[own] += self.allowance.allowed(gradient[own], other[own], size)
            allowed[own] += CURVED * NEAR * size
        return np.asarray(~(np.abs(gradient - other) <= allowed))

    def _goes(self, way: Vector, own: Vector, other: Vector) -> bool:
        """Whether phi goes to one side as the gradient there says, without a jump, as far as its
        rounding lets that be seen.
        """
        way = self._of_kinks(way) if self.is_met else way
        step = SHORT * way * self.scale
        with self._moved(SHORT * way) as there:
            value = float(there.here(1)[0])
        most = SLACK * norm(np.fmax(np.abs(own), np.abs(other)) * step)
        noise = ROUNDINGS * UNIT * max(abs(value), abs(self.value))
        return noise <= most and abs(value - self.value - float(own @ step)) <= most + noise

    def _of_kinks(self, way: Vector) -> Vector:
        """The way of the leaves that have kinks, alone: others may drown what those do."""
        way = way.copy()
        for leaf in self.phi.problem.layout:
            way[leaf.part] *= self.kinked[leaf.part].any()
        return way

    def _certified(self, way: Vector) -> dict[int, Bound]:
        """The bounds of the leaves some way off, clear of all that lies at the point; none where
        the gradient is not certified there. Leaves without kinks stay where they are.
        """
        way = self._of_kinks(way)
        for far in FAR:
            with self._moved(far * way) as there:
                gradient, value = self._gradient(there), float(there.here(1)[0])
                work = Projecting(there, gradient, value, self.allowance, self.seed)
                work.certify()
                if work.is_certain:
                    return work.done.bounds
        return {}

    def _counted(self) -> dict[int, int]:
        layout = enumerate(self.phi.problem.layout)
        counts = {number: int(self.kinked[leaf.part].sum()) for number, leaf in layout}
        return {number: count for number, count in counts.items() if count}
