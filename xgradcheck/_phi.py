"""The scalar function under one cotangent: how it is evaluated, how often, what it refused."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from xgradcheck._adapters import Backward, Problem
from xgradcheck._budget import Budget
from xgradcheck._constraints import Linear, Tangent
from xgradcheck._differences import Noise, natural_scale
from xgradcheck._layout import DOUBLE, ComplexVector, Direction, Layout, Positions, Vector
from xgradcheck._noise import TREADS_OF_A_GRID, WIDE_TREADS, measure_noise
from xgradcheck._progress import Tick

PATIENCE = 64
"""How many refusals in a row, without a single value, are the function's fault and not the edge of
its domain.
"""
REFUSALS = (ValueError, ArithmeticError, IndexError, RuntimeError, AssertionError)
"""How functions refuse an argument: domain errors of Python and NumPy, a place outside of a table,
checks of torch's losses and distributions, a matrix that is not positive definite, an assertion;
and errors that packages have made for that alone, which are no kind of another one.
"""


def _is_refusal(error: Exception, problem: Problem) -> bool:
    """Whether this is said of an argument, and not of a program that is broken. One that is traced
    sees no numbers to refuse: what it raises of its own is raised whatever they are.
    """
    plain = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    is_own = plain is Exception and not getattr(problem, "traces", False)
    return is_own or issubclass(plain, REFUSALS)


@dataclass(slots=True)
class Phi:
    """phi of a problem, its evaluations counted.

    A function that refuses an argument beside the point, and refuses it again, is at the edge of
    its domain, as ``math.log`` at 0: NaN takes the place of the value. Any other exception passes
    through.
    """

    problem: Problem
    cotangent: Vector
    tangents: Mapping[int, Tangent] = field(default_factory=dict)
    evaluations: int = 0
    refusals: int = 0
    refusal: Exception | None = None
    """The first exception beside the point."""
    answers: int = 0
    budget: Budget = field(default_factory=Budget)
    """What all evaluations of one check may cost together."""
    tick: Tick | None = None
    phase: str = ""
    """What is being done, where each evaluation is to be told."""
    coarse: float = np.inf
    """How noisy phi is in float64 at least, where it computes in float32 there."""
    backward_s: float = 0.0
    """How long the first run of the backward pass took."""

    @property
    def unit(self) -> float | None:
        """What a scalar output was multiplied by."""
        return float(self.cotangent[0]) if self.cotangent.size == 1 else None

    @contextmanager
    def anew(self, cotangent: Vector | None = None) -> Iterator["Phi"]:
        """phi at a point that the problem has been moved to, or under another cotangent: what it
        refuses there is no news of this one, and its evaluations count.
        """
        own = self.cotangent if cotangent is None else cotangent
        other = Phi(self.problem, own, self.tangents, budget=self.budget, tick=self.tick)
        if cotangent is None:
            other.coarse = self.coarse
        try:
            yield other
        finally:
            self.evaluations += other.evaluations

    def gradient(self) -> Backward:
        """One run of the backward pass under test, its gradient as moves of the point can see
        it.
        """
        started = time.perf_counter()
        backward = self.problem.gradient(self.cotangent)
        self.backward_s = self.backward_s or time.perf_counter() - started
        return backward._replace(gradient=self.adjoint(backward.gradient))

    @property
    def is_bound(self) -> bool:
        """Whether the point cannot move along every direction."""
        return bool(self.tangents) or self.problem.frozen.size > 0

    def tangential(self, direction: Vector) -> Vector:
        """The part of a direction along which the point may move."""
        return self._mapped(direction, lambda tangent: tangent.project)

    def adjoint(self, gradient: Vector) -> Vector:
        """The part of a gradient that moves along such directions can see."""
        return self._mapped(gradient, lambda tangent: tangent.adjoint)

    def _mapped(self, vector: Vector, of: Callable[[Tangent], Linear]) -> Vector:
        frozen = self.problem.frozen
        if not self.tangents and not frozen.size:
            return vector
        vector = vector.copy()
        vector[frozen] = 0.0
        for number, tangent in self.tangents.items():
            part = self.problem.layout.leaves[number].part
            vector[part] = of(tangent)(vector[part])
        return vector

    def scales(self) -> tuple[Vector, Vector]:
        """How large a full change of each coordinate is, and how large one of its neighbours; no
        larger than a constraint allows.
        """
        own, common = natural_scale(self.problem.point, self.problem.layout)
        for number, tangent in self.tangents.items():
            if tangent.reach is not None:
                part = self.problem.layout.leaves[number].part
                own[part] = np.minimum(own[part], tangent.reach)
                common[part] = np.minimum(common[part], tangent.reach)
        return own, common

    def scales_of(self, numbers: Iterable[int]) -> list[Vector]:
        """How large a full change of the neighbours of each coordinate is, in these leaves."""
        found = []
        for number in numbers:
            leaf = self.problem.layout.leaves[number]
            own = replace(leaf, start=0)
            _, common = natural_scale(self.problem.point[leaf.part], Layout((own,)))
            reach = self.tangents[number].reach if number in self.tangents else None
            found.append(common if reach is None else np.minimum(common, reach))
        return found

    def here(self, times: int) -> Vector:
        """phi at the point itself, several times over; what the function raises there passes
        through.
        """
        self._count(times)
        nowhere = np.zeros_like(self.problem.point)
        return self.problem.along(nowhere, np.zeros(times), 0, self.cotangent)

    def pairs(self, index: Positions, steps: Vector) -> tuple[Vector, Vector]:
        """phi one step above and one below the point, at each coordinate of ``index``."""
        if self.tangents:
            return self._tangential_pairs(index, steps)
        if self.problem.frozen.size:
            steps = np.where(np.isin(index, self.problem.frozen), 0.0, steps)
        places, signed = np.repeat(index, 2), np.stack([steps, -steps], axis=1).ravel()
        values = self._evaluated(
            2 * len(index),
            lambda chosen: self.problem.each(places[chosen], signed[chosen], self.cotangent),
        )
        return values[0::2], values[1::2]

    def _tangential_pairs(self, index: Positions, steps: Vector) -> tuple[Vector, Vector]:
        values = np.empty((2, len(index)))
        layout = self.problem.layout
        for number, (position, owner) in enumerate(zip(index, layout.owners(index), strict=True)):
            leaf = layout.leaves[owner]
            unit = np.zeros(leaf.size)
            unit[position - leaf.start] = 1.0
            values[:, number] = self.along(
                unit, np.array([steps[number], -steps[number]]), leaf.start
            )
        return values[0], values[1]

    def along(self, direction: Direction, steps: Vector, start: int = 0) -> Vector:
        """phi on a line through the point, projected where a leaf is constrained."""
        if self.is_bound:
            whole = np.zeros_like(self.problem.point)
            whole[start : start + direction.size] = direction
            direction, start = self.tangential(whole), 0
        return self._evaluated(
            len(steps),
            lambda chosen: self.problem.along(direction, steps[chosen], start, self.cotangent),
        )

    def batched(self, direction: Vector, steps: Vector, start: int) -> Vector | None:
        """phi on a line in one leaf, computed together; None where that is not done."""
        if self.is_bound or self.budget.allows(len(steps)) < len(steps):
            return None
        found = self.problem.batched(direction, steps, start, self.cotangent)
        if found is not None:
            self._count(len(steps))
        return found

    @property
    def can_be_complex(self) -> bool:
        """Whether a complex step can be tried."""
        return self.problem.can_be_complex and not self.tangents

    def imaginary(self, index: Positions, steps: Vector) -> ComplexVector:
        """phi at ``x + i h``, at each coordinate of ``index``; NaN where the function takes no
        complex numbers or gives none back.
        """
        self._count(len(index))
        try:
            return self.problem.imaginary(index, steps, self.cotangent)
        except Exception:  # many functions refuse complex numbers, each in its own way
            return np.full(len(index), complex(np.nan, np.nan))

    def _count(self, times: int) -> None:
        self.evaluations += times
        self.budget.spent += times
        if self.phase and self.tick is not None:
            self.tick(self.budget.spent, None, self.phase)

    def _evaluated(self, count: int, evaluate: Callable[[slice], Vector]) -> Vector:
        allowed = self.budget.allows(count)
        if allowed < count:
            # What is not known is NaN, as beyond the edge of a domain: it decides nothing.
            known = self._within_budget(allowed, evaluate)
            return np.append(known, np.full(count - allowed, np.nan))
        return self._within_budget(count, evaluate)

    def _within_budget(self, count: int, evaluate: Callable[[slice], Vector]) -> Vector:
        if not count:
            return np.empty(0)
        self._count(count)
        try:
            values = evaluate(slice(0, count))
        except Exception as error:
            if not _is_refusal(error, self.problem):
                raise
            # A function that no longer answers where it did is broken, and says so itself.
            self.here(1)
            return np.concatenate([self._alone(evaluate, slice(n, n + 1)) for n in range(count)])
        self.answers += count
        return values

    def _alone(self, evaluate: Callable[[slice], Vector], place: slice) -> Vector:
        try:
            value = evaluate(place)
        except Exception as error:
            if not _is_refusal(error, self.problem):
                raise
            return self._refused(error)
        self.answers += 1
        return value

    def _refused(self, error: Exception) -> Vector:
        self.refusals += 1
        self.refusal = self.refusal or error
        if not self.answers and self.refusals > PATIENCE:
            raise self.refusal
        return np.full(1, np.nan)


def _treads(problem: Problem) -> int | None:
    """Over how narrow steps a problem stands still, should it be a staircase."""
    # Adapters that were written before this was asked do not say.
    if getattr(problem, "rounds", False):
        return TREADS_OF_A_GRID
    return WIDE_TREADS if getattr(problem, "switches", False) else None


def noise_of(phi: Phi, value: float, seed: int) -> Noise:
    """The rounding noise of phi around the point."""
    rng = np.random.default_rng([seed, 0x2015E])
    problem = phi.problem
    return measure_noise(
        phi.along,
        value,
        problem.point,
        phi.scales()[0],
        rng,
        phi.unit,
        problem.bits,
        lambda: getattr(problem, "bits_inside", DOUBLE),
        lambda: _treads(problem),
        phi.coarse,
    )
