"""Points of every kind that a gradient check meets, drawn at random, with what is true of them.

Each is a smooth function of four numbers with a feature in one of them: a kink, a jump, an edge of
the domain, noise. Right gradients stand in closed form; wrong ones are right but for that number.
"""

import math
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from xgradcheck import Report, check

Vector = NDArray[np.floating]
Value = Callable[[Vector], float]
Feature = Callable[[float], float]
SIZE = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A function, where it is looked at, and the gradient handed in; the feature is at ``index``.

    At an ``index`` that lies in two coordinates at once, a tie, it is the one that may be wrong.
    """

    value: Value
    point: Vector
    gradient: Vector
    index: int


@dataclass(frozen=True, slots=True)
class Kind:
    """``is_right`` is None where there is no derivative: only INCONCLUSIVE means anything there."""

    name: str
    is_right: bool | None
    draw: Callable[[np.random.Generator], Point]


@dataclass(frozen=True, slots=True)
class Background:
    """What the feature is added to, computed in the precision of its own coefficients."""

    mixing: Vector
    slope: Vector

    def value(self, x: Vector) -> float:
        return float(np.tanh(self.mixing @ x).sum() + self.slope @ x + np.sin(x).sum())

    def gradient(self, x: Vector) -> Vector:
        gate = 1 - np.tanh(self.mixing @ x) ** 2
        return self.mixing.T @ gate + self.slope + np.cos(x)

    def rounded(self, dtype: type[np.floating]) -> "Background":
        return Background(self.mixing.astype(dtype), self.slope.astype(dtype))


@dataclass(frozen=True, slots=True)
class Site:
    """A background and a point of it, before a feature is put there."""

    background: Background
    point: Vector
    index: int

    @property
    def start(self) -> float:
        return float(self.point[self.index])

    def with_feature(self, feature: Feature, slope: float) -> Point:
        """``feature`` is a function of the way from the point, and ``slope`` its derivative."""
        start, gradient = self.start, self.background.gradient(self.point)
        gradient[self.index] += slope

        def value(x: Vector) -> float:
            return self.background.value(x) + feature(float(x[self.index]) - start)

        return Point(value, self.point, gradient, self.index)


def _site(draw: np.random.Generator, at_zero: bool = False) -> Site:
    background = Background(draw.normal(size=(3, SIZE)), draw.normal(size=SIZE))
    point, index = draw.normal(size=SIZE), int(draw.integers(SIZE))
    point[index] = 0.0 if at_zero else _sign(draw) * draw.uniform(0.3, 2)
    return Site(background, point, index)


def _sign(draw: np.random.Generator) -> float:
    return float(draw.choice([-1.0, 1.0]))


def _strength(draw: np.random.Generator) -> float:
    return _sign(draw) * draw.uniform(0.5, 3)


def _power_of_ten(draw: np.random.Generator, least: float, most: float) -> float:
    return float(10.0 ** draw.uniform(least, most))


def _nearby(draw: np.random.Generator, site: Site, least: int, most: int) -> float:
    """A distance from the point, from ``2**least`` to ``2**most`` of the coordinate."""
    return float(2.0 ** draw.uniform(least, most) * abs(site.start))


def _smooth(draw: np.random.Generator) -> Point:
    return _site(draw).with_feature(lambda u: 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Bend:
    """Two half-lines that meet at 0, and their slopes."""

    shape: Feature
    below: float
    above: float

    def inside(self, draw: np.random.Generator) -> float:
        """A slope that belongs to the bend; people choose either side's, or one between them."""
        return float(draw.choice([self.below, self.above, draw.uniform(*self._ends)]))

    def outside(self, draw: np.random.Generator) -> float:
        low, high = self._ends
        beyond = draw.uniform(0.05, 2)
        return float(draw.choice([low - beyond, high + beyond]))

    @property
    def _ends(self) -> tuple[float, float]:
        return min(self.below, self.above), max(self.below, self.above)


BENDS = (
    Bend(lambda u: max(u, 0.0), 0, 1),
    Bend(abs, -1, 1),
    Bend(lambda u: max(u, 0.3 * u), 0.3, 1),
    Bend(lambda u: min(2 * u, -u), 2, -1),
)
RELU = BENDS[0]
Slope = Callable[[Bend, np.random.Generator], float]


def _kink(draw: np.random.Generator, slope: Slope) -> Point:
    bend, strength = BENDS[draw.integers(len(BENDS))], _strength(draw)
    return _site(draw).with_feature(
        lambda u: strength * bend.shape(u), strength * slope(bend, draw)
    )


def _tie(draw: np.random.Generator, slope: Slope) -> Point:
    """The larger (or the smaller) of two equal coordinates, whose slopes then add up to 1."""
    site, strength = _site(draw), _strength(draw)
    index, other = site.index, (site.index + int(draw.integers(1, SIZE))) % SIZE
    site.point[other] = site.point[index]
    share = slope(RELU, draw)
    gradient = site.background.gradient(site.point)
    gradient[index] += strength * share
    gradient[other] += strength * float(np.clip(1 - share, 0, 1))

    def value(x: Vector) -> float:
        return site.background.value(x) + strength * float(max(x[index], x[other]))

    return Point(value, site.point, gradient, index)


def _kink_near(draw: np.random.Generator) -> Point:
    site, bend, strength = _site(draw), BENDS[draw.integers(len(BENDS))], _strength(draw)
    away = _sign(draw) * _nearby(draw, site, -16, -8)
    slope = bend.below if away > 0 else bend.above
    return site.with_feature(lambda u: strength * bend.shape(u - away), strength * slope)


def _jump(draw: np.random.Generator) -> Point:
    """The point itself belongs to the lower side, or to the upper one."""
    size, closed = _sign(draw) * _power_of_ten(draw, -4, 1), bool(draw.integers(2))
    return _site(draw).with_feature(lambda u: size * (u >= 0 if closed else u > 0), 0.0)


def _jump_near(draw: np.random.Generator) -> Point:
    site, size = _site(draw), _sign(draw) * _power_of_ten(draw, -4, 1)
    away = _sign(draw) * _nearby(draw, site, -16, -8)
    return site.with_feature(lambda u: size * (u > away), 0.0)


def _nondeterministic(draw: np.random.Generator) -> Point:
    """Noise from the operating system, which has no state that a checker could put back."""
    source, size = random.SystemRandom(), _power_of_ten(draw, -12, -1)
    return _site(draw).with_feature(lambda u: size * source.normalvariate(0, 1), 0.0)


def _low_precision(draw: np.random.Generator, on_grid: bool) -> Point:
    """float32 inside; ``on_grid``: at a point that it holds exactly."""
    site = _site(draw)
    single = site.background.rounded(np.float32)
    point = site.point.astype(np.float32).astype(np.float64) if on_grid else site.point
    gradient = single.rounded(np.float64).gradient(point)
    return Point(lambda x: single.value(x.astype(np.float32)), point, gradient, site.index)


def _cusp(draw: np.random.Generator) -> Point:
    strength, slope = _strength(draw), float(draw.choice([-1e3, 0.0, 1e3]))
    return _site(draw, at_zero=True).with_feature(lambda u: strength * math.sqrt(abs(u)), slope)


def _steep_edge(draw: np.random.Generator, root: Feature) -> Point:
    strength, side, slope = _strength(draw), _sign(draw), float(draw.choice([-1e3, 0.0, 1e3]))
    return _site(draw, at_zero=True).with_feature(lambda u: strength * root(side * u), slope)


def _power_edge(draw: np.random.Generator, root: Feature) -> Point:
    """``x ** 1.5`` at 0, on whose other side ``root`` gives NaN, or raises."""
    strength, side = _strength(draw), _sign(draw)
    return _site(draw, at_zero=True).with_feature(lambda u: strength * root(side * u) ** 3, 0.0)


def _smooth_edge(draw: np.random.Generator, root: Feature) -> Point:
    strength, side = _strength(draw), _sign(draw)
    site = _site(draw, at_zero=bool(draw.integers(2)))
    return site.with_feature(lambda u: strength * math.sin(u) + 0.0 * root(side * u), strength)


def _edge_near(draw: np.random.Generator, root: Feature, log: Feature) -> Point:
    """A root, a logarithm or something smooth, some way from where it ends."""
    site, strength, side = _site(draw), _strength(draw), _sign(draw)
    room = _nearby(draw, site, -12, -4)
    shapes: tuple[tuple[Feature, float], ...] = (
        (lambda u: strength * root(room + side * u), strength * side / (2 * math.sqrt(room))),
        (lambda u: strength * log(room + side * u), strength * side / room),
        (lambda u: strength * math.sin(u) + 0.0 * root(room + side * u), strength),
    )
    return site.with_feature(*shapes[draw.integers(len(shapes))])


def _offset(draw: np.random.Generator) -> Point:
    shift = _sign(draw) * _power_of_ten(draw, 3, 8)
    return _site(draw).with_feature(lambda u: shift, 0.0)


def _zeros(draw: np.random.Generator) -> Point:
    site = _site(draw, at_zero=True)
    site.point[draw.random(SIZE) < 0.5] = 0.0
    return site.with_feature(lambda u: 0.0, 0.0)


def _scaled(draw: np.random.Generator, unit: float) -> Point:
    right, factor = _smooth(draw), unit * _strength(draw)
    value = right.value
    return replace(right, value=lambda x: factor * value(x), gradient=factor * right.gradient)


def _spoiled(
    draw: np.random.Generator,
    right: Callable[[np.random.Generator], Point],
    least: float,
    unit: float,
) -> Point:
    """Off by ``10**least`` of the gradient at the feature or by more, up to three times it."""
    point = right(draw)
    gradient = point.gradient.copy()
    size = max(abs(float(gradient[point.index])), 0.1 * unit)
    gradient[point.index] += _sign(draw) * _power_of_ten(draw, least, 0.5) * size
    return replace(point, gradient=gradient)


def _both(
    name: str,
    right: Callable[[np.random.Generator], Point],
    least: float = -3.0,
    unit: float = 1.0,
) -> tuple[Kind, Kind]:
    wrong = partial(_spoiled, right=right, least=least, unit=unit)
    return Kind(f"{name}, right", True, right), Kind(f"{name}, wrong", False, wrong)


KINDS: tuple[Kind, ...] = (
    *_both("smooth", _smooth),
    Kind("kink, right", True, partial(_kink, slope=Bend.inside)),
    Kind("kink, wrong", False, partial(_kink, slope=Bend.outside)),
    Kind("tie, right", True, partial(_tie, slope=Bend.inside)),
    Kind("tie, wrong", False, partial(_tie, slope=Bend.outside)),
    *_both("kink near", _kink_near),
    Kind("jump", None, _jump),
    *_both("jump near", _jump_near),
    Kind("nondeterministic", None, _nondeterministic),
    *_both("low precision", partial(_low_precision, on_grid=False), least=-1.0),
    *_both("low precision on its grid", partial(_low_precision, on_grid=True), least=-1.0),
    Kind("cusp", None, _cusp),
    Kind("steep edge, NaN", None, partial(_steep_edge, root=np.sqrt)),
    Kind("steep edge, raises", None, partial(_steep_edge, root=math.sqrt)),
    *_both("power edge, NaN", partial(_power_edge, root=np.sqrt)),
    *_both("power edge, raises", partial(_power_edge, root=math.sqrt)),
    *_both("smooth edge, NaN", partial(_smooth_edge, root=np.sqrt)),
    *_both("smooth edge, raises", partial(_smooth_edge, root=math.sqrt)),
    *_both("edge near, NaN", partial(_edge_near, root=np.sqrt, log=np.log)),
    *_both("edge near, raises", partial(_edge_near, root=math.sqrt, log=math.log)),
    *_both("offset", _offset),
    *_both("zeros", _zeros),
    *_both("tiny output", partial(_scaled, unit=1e-200), unit=1e-200),
    *_both("huge output", partial(_scaled, unit=1e200), unit=1e200),
)


def drawn(kind: Kind, seed: int) -> Point:
    """The same point whichever other kinds there are; but for noise from outside, repeatable."""
    return kind.draw(np.random.default_rng([seed, zlib.crc32(kind.name.encode())]))


def judged(point: Point, seed: int) -> Report:
    """The report of a check as a user would write it, with the gradient handed in."""
    return check(
        point.value, point.point, grads=lambda x: point.gradient, raise_exception=False, seed=seed
    )


def confusion(draws: int) -> dict[str, Counter[str]]:
    """How often each kind got which verdict and which kind of finding, or raised something."""
    return {kind.name: _outcomes(kind, draws) for kind in KINDS}


def _outcomes(kind: Kind, draws: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in range(draws):
        try:
            report = judged(drawn(kind, seed), seed)
        except Exception as error:  # counted: one kind that stops the check must not hide the rest
            outcomes[f"raised {type(error).__name__}"] += 1
        else:
            outcomes.update([str(report.verdict), *(found.kind for found in report.findings)])
    return outcomes
