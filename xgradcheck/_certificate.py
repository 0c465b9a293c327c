"""That a gradient is right, from as few evaluations as that takes.

Along uniform random directions v, drawn on [-1, 1] in the units of each leaf, the residual
``(grad phi - g) . v`` of a gradient with error e is a combination of independent uniforms. Whatever
e is, its density is at most ``sqrt(2) / sd`` times that of one of them (Ball 1986, Cube slicing in
R^n, Proc. AMS 97), so residuals of k directions are all small by chance with a probability that is
known. Signs alone, +-1, certify nothing: two equal errors cancel half the time.

Noise in phi that knows nothing of v cannot raise a density: it makes right gradients fail, and no
wrong one pass. So it is not part of the bound, and nothing but a PASS is ever told from here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from xgradcheck._differences import UNIT, Noise
from xgradcheck._layout import Vector

DEVIATION = 1 / math.sqrt(3)
"""The standard deviation of a uniform number on [-1, 1]."""
DENSITY = math.sqrt(2 / 12)
CONFIDENCE, LOOKS = 0.999, 4
"""What bounds hold with, shared among so many looks."""
MOST, MOST_OF_FIRST, MOST_OF_NEXT = 20, 10, 6
"""Evaluations in all, along the first direction and along each further one."""
USUAL, APART = (-16, -9), 4
"""Between which exponents of two the first step lies, and how much wider the second one is."""
NARROWEST, WIDEST, INWARDS = -27, -6, 6
MULTIPLES = (1.0, 1409 / 1024, 1153 / 1024, 1291 / 1024, 1097 / 1024, 1361 / 1024)
"""Steps that are powers of two alone may all be multiples of one period of the function."""
UNEVEN = 0.5
"""How much a function may bend over the narrowest step, as a share of its usual slope: at a kink or
a root both sides differ by as much as they slope.
"""
ROUNDINGS = 64.0
"""Units of rounding that the forward pass of the backward may differ by from the plain one."""


def factor(directions: int, looks: int = LOOKS) -> float:
    """How many times the rms of residuals, per deviation of a direction, an error can be.

    >>> [round(factor(k)) for k in (1, 2, 3, 4)]
    [3266, 65, 18, 10]
    """
    volume: float = math.pi ** (directions / 2) / math.gamma(directions / 2 + 1)
    share = (1 - CONFIDENCE) / looks
    spread: float = (volume / share) ** (1 / directions)
    return math.sqrt(directions) * DENSITY * spread


@dataclass(frozen=True, slots=True)
class Rung:
    """One pair of steps along a direction."""

    step: float
    residual: float
    """The slope less that of the gradient under test."""
    even: float
    """``phi(x + h v) + phi(x - h v) - 2 phi(x)``."""

    @property
    def exponent(self) -> int:
        """Of the power of two that the step is a multiple of, by 1 to 1.4."""
        return round(math.log2(self.step) - 0.2)


@dataclass(frozen=True, slots=True)
class Residual:
    """What several pairs along one direction come to, in the units of phi per step."""

    value: float
    truncation: float
    noise: float

    @property
    def largest(self) -> float:
        """What it can be, noise apart."""
        return abs(self.value) + self.truncation


@dataclass(slots=True)
class Certificate:
    """What directions told so far. ``error`` bounds the norm of the error, in units of the leaves,
    with 99.9 % confidence; it is infinite where nothing was measured.
    """

    allowed: float
    error: float = math.inf
    residuals: list[Residual] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    """All pairs along the first direction, the narrowest first."""

    @property
    def holds(self) -> bool:
        """Whether no error that is not allowed would have left residuals as small."""
        return self.error <= self.allowed

    def stood_still(self, product: float) -> bool:
        """Whether phi did not move by a bit over some step, as where it is rounded inside."""
        return any(rung.residual == -product and rung.even == 0 for rung in self.rungs)

    def is_nothing(self, products: list[float]) -> bool:
        """Whether the slopes along all directions are no more than rounding leaves of zero."""
        pairs = zip(self.residuals, products, strict=False)
        return all(
            abs(residual.value + product) <= residual.truncation + ROUNDINGS * residual.noise
            for residual, product in pairs
        )

    @property
    def estimate(self) -> float:
        """The norm that the error probably has, in units of the leaves."""
        if not self.residuals:
            return math.inf
        return _rms([residual.value for residual in self.residuals]) / DEVIATION


Walk = Callable[[int, Vector], Vector]
"""phi at steps along a direction, by its number."""


def certify(
    walk: Walk, product: Callable[[int], float], value: float, allowed: float, size: float
) -> Certificate:
    """Whether the error of a gradient has at most the norm ``allowed``, in units of the leaves,
    where the gradient has ``size``.

    ``product(j)`` is the gradient times direction j. Four evaluations for a smooth function: two
    pairs of steps, of which the wider one tells how much both are cut short. Where that does not
    suffice more pairs, and then more directions, which shrink the factor from 3266 to 18.
    """
    found = Certificate(allowed)
    sigma = float(Noise(0.0).of(np.array(value)))
    if not (allowed > 0 and math.isfinite(value) and math.isfinite(size)):
        return found
    need = allowed * DEVIATION / factor(1)
    ratio = 5 * sigma / need
    first = min(max(math.ceil(math.log2(ratio)) if ratio > 0 else USUAL[0], USUAL[0]), USUAL[1])
    starts, spent = (first, first + APART), 0
    for number in range(LOOKS):
        most = min(MOST_OF_FIRST if number == 0 else MOST_OF_NEXT, MOST - spent)
        line = _Line(walk, product(number), value, sigma, number, starts, found, size)
        spent += line.climb(most)
        if number == 0:
            found.rungs = line.rungs
        if line.best is None:
            return found
        found.residuals.append(line.best)
        if found.holds:
            return found
        if factor(3) * line.best.largest > 3 * allowed * DEVIATION:
            return found  # another direction would not help
        starts = line.starts
    return found


@dataclass(slots=True)
class _Line:
    """The pairs along one direction."""

    walk: Walk
    product: float
    value: float
    sigma: float
    number: int
    starts: tuple[int, int]
    found: Certificate
    size: float
    rungs: list[Rung] = field(default_factory=list)
    best: Residual | None = None

    def climb(self, most: int) -> int:
        """Take pairs until the bound suffices or no other step would help; how many values."""
        taken, sharp = 4, False
        known = self._pairs(list(self.starts))
        exponent: int | None = None if len(known) == 2 else min(self.starts) - INWARDS
        while True:
            if exponent is not None:
                if taken + 2 > most or exponent < NARROWEST:
                    break
                taken += 2
                if not self._pairs([exponent]):
                    exponent -= INWARDS
                    continue
            if len(self.rungs) == 1:
                exponent = self.rungs[0].exponent - APART
                continue
            found = _extrapolated(self.rungs, self.sigma)
            self.best = min((residual for residual, _ in found), key=lambda one: one.largest)
            # Not by what this direction happened to leave: the others begin there.
            self.starts = min(found, key=lambda pair: pair[0].truncation + pair[0].noise)[1]
            self._bound()
            if self.found.holds or self._more_directions_will_do():
                break
            following = self._following(sharp)
            if following is None:
                break
            exponent, sharp = following
        return taken

    def _pairs(self, exponents: list[int]) -> list[Rung]:
        """The pairs of these steps that are finite on both sides."""
        first = len(self.rungs)
        steps = [MULTIPLES[first + n] * 2.0**exponent for n, exponent in enumerate(exponents)]
        signed = np.array([sign * step for step in steps for sign in (1, -1)])
        values = self.walk(self.number, signed).tolist()
        found = []
        for step, plus, minus in zip(steps, values[0::2], values[1::2], strict=True):
            if math.isfinite(plus) and math.isfinite(minus):
                slope = (plus - minus) / (2 * step)
                even = (plus - self.value) + (minus - self.value)
                found.append(Rung(step, slope - self.product, even))
        self.rungs = sorted([*self.rungs, *found], key=lambda rung: rung.step)
        return found

    def _bound(self) -> None:
        assert self.best is not None
        largest = [residual.largest for residual in (*self.found.residuals, self.best)]
        error = factor(len(largest)) * _rms(largest) / DEVIATION
        self.found.error = error if self._is_even() else math.inf

    def _is_even(self) -> bool:
        """Whether phi is straight over the narrowest step, and the value there that which belongs
        to the gradient.
        """
        narrow, wide = self.rungs[0], self.rungs[-1]
        square = (wide.step / narrow.step) ** 2
        offset = narrow.even - (wide.even - narrow.even) / (square - 1)
        noise = ROUNDINGS * (self.sigma + UNIT * abs(self.value))
        bend = UNEVEN * self.size * DEVIATION * narrow.step
        return abs(offset) <= noise + bend and abs(narrow.even) <= noise + bend

    def _more_directions_will_do(self) -> bool:
        assert self.best is not None
        limit, largest = self.found.allowed * DEVIATION, self.best.largest
        if self.number == 0:
            # Of noise, the next directions may have twice as much.
            share = 0.7 if self.best.truncation > self.best.noise else 0.35
            return len(self.rungs) >= 3 and factor(3) * largest <= share * limit
        return factor(self.number + 2) * largest <= limit

    def _following(self, sharp: bool) -> tuple[int, bool] | None:
        """The exponent of the next step, and whether the function was found not to be smooth over
        the first ones.
        """
        assert self.best is not None
        best, limit = self.best, self.found.allowed * DEVIATION
        narrow, wide = self.rungs[0].exponent, self.rungs[-1].exponent
        if (
            best.noise > best.truncation
            and wide + 3 <= WIDEST
            and best.truncation >= abs(best.value)
        ):
            return wide + 3, sharp
        if best.truncation > 10 * best.noise and not sharp:
            # Kinks within reach: at once to the narrowest step that noise allows.
            noisy = 3 * self.sigma * factor(3) / limit
            ideal = math.ceil(math.log2(noisy)) if noisy > 0 else NARROWEST
            return max(NARROWEST, min(narrow - 3, ideal)), True
        if sharp and len(self.rungs) == 3:
            middle, noisy = self.rungs[1].exponent, best.noise > best.truncation
            if noisy and wide - middle > 1:
                return (middle + wide) // 2, sharp  # as wide as kinks may allow
            return narrow + 2, sharp
        return (narrow - 3, sharp) if narrow - 3 >= NARROWEST else None


def _extrapolated(rungs: list[Rung], sigma: float) -> list[tuple[Residual, tuple[int, int]]]:
    """The residuals from two neighbouring pairs each, extrapolated, and the exponents of their
    steps.
    """
    found = []
    for place in range(len(rungs) - 1):
        narrow, wide = rungs[place], rungs[place + 1]
        square, apart = (wide.step / narrow.step) ** 2, wide.residual - narrow.residual
        truncation, value = abs(apart) / (square - 1), narrow.residual - apart / (square - 1)
        noise = 0.7 * sigma / narrow.step
        if len(rungs) > 2 and abs(apart) > 3 * sigma / narrow.step:
            other = place + 2 if place + 2 < len(rungs) else place - 1
            if not _contracts([rungs[n] for n in sorted((place, place + 1, other))]):
                truncation, value = abs(apart), narrow.residual
        exponents = narrow.exponent, wide.exponent
        found.append((Residual(value, truncation, noise), exponents))
    return found


def _contracts(rungs: list[Rung]) -> bool:
    """Whether three pairs err like the squares of their steps."""
    (a, p), (b, q), (c, r) = ((rung.step, rung.residual) for rung in rungs)
    want = (c**2 - b**2) / (b**2 - a**2)
    got = abs(r - q) / max(abs(q - p), 1e-300)
    return want / 2 <= got <= want * 2


def _rms(values: list[float]) -> float:
    return math.hypot(*values) / math.sqrt(len(values))
