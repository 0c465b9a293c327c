"""``xgradcheck selftest``: wrong and right rules planted in every framework that is installed, and
what became of them; a proof that this installation works.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._adapters import adapter
from xgradcheck._judge import Verdict
from xgradcheck._stages import report_on

Array = Any
Forward = Callable[..., Array]
Backward = Callable[..., tuple[Array, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A function and its backward pass, in the operations that all frameworks share."""

    forward: Forward
    """Of the namespace of a framework and the arguments."""
    backward: Backward
    """Of the namespace, the cotangent and the arguments."""
    shapes: tuple[tuple[int, ...], ...] = ((3, 4),)


def _sigmoid(xp: Any, x: Array) -> Array:
    return 1 / (1 + xp.exp(-x))


def _softmax(xp: Any, x: Array) -> Array:
    weights = xp.exp(x)
    return weights / weights.sum(1)[:, None]


def _normed(x: Array) -> tuple[Array, Array]:
    centred = x - x.mean(1)[:, None]
    size = ((centred**2).mean(1)[:, None] + 1e-5) ** 0.5
    return centred / size, size


def _of_norm(xp: Any, u: Array, x: Array) -> tuple[Array]:
    y, size = _normed(x)
    return ((u - u.mean(1)[:, None] - y * (u * y).mean(1)[:, None]) / size,)


def _of_softmax(xp: Any, u: Array, x: Array) -> tuple[Array]:
    p = _softmax(xp, x)
    return (p * (u - (u * p).sum(1)[:, None]),)


def _elementwise(of: Callable[[Any, Array], Array], slope: Callable[[Any, Array], Array]) -> Rule:
    return Rule(of, lambda xp, u, x: (u * slope(xp, x),))


SQUARE, PAIR, PRODUCT = (4, 4), ((3, 4), (3, 4)), ((3, 4), (4, 2))
RULES = {
    "square": _elementwise(lambda xp, x: x**2, lambda xp, x: 2 * x),
    "cube": _elementwise(lambda xp, x: x**3, lambda xp, x: 3 * x**2),
    "exponential": _elementwise(lambda xp, x: xp.exp(x), lambda xp, x: xp.exp(x)),
    "sine": _elementwise(lambda xp, x: xp.sin(x), lambda xp, x: xp.cos(x)),
    "tanh": _elementwise(lambda xp, x: xp.tanh(x), lambda xp, x: 1 - xp.tanh(x) ** 2),
    "sigmoid": _elementwise(_sigmoid, lambda xp, x: _sigmoid(xp, x) * (1 - _sigmoid(xp, x))),
    "softplus": _elementwise(lambda xp, x: xp.log(1 + xp.exp(x)), _sigmoid),
    "swish": _elementwise(
        lambda xp, x: x * _sigmoid(xp, x),
        lambda xp, x: _sigmoid(xp, x) * (1 + x * (1 - _sigmoid(xp, x))),
    ),
    "logarithm": _elementwise(lambda xp, x: xp.log(1 + x**2), lambda xp, x: 2 * x / (1 + x**2)),
    "reciprocal": _elementwise(
        lambda xp, x: 1 / (2 + x**2), lambda xp, x: -2 * x / (2 + x**2) ** 2
    ),
    "rectifier": _elementwise(
        lambda xp, x: xp.where(x > 0, x, 0 * x), lambda xp, x: xp.where(x > 0, 1 + 0 * x, 0 * x)
    ),
    "product": Rule(lambda xp, x, y: x * y, lambda xp, u, x, y: (u * y, u * x), PAIR),
    "quotient": Rule(
        lambda xp, x, y: x / (2 + y**2),
        lambda xp, u, x, y: (u / (2 + y**2), -2 * u * x * y / (2 + y**2) ** 2),
        PAIR,
    ),
    "matrix product": Rule(lambda xp, x, w: x @ w, lambda xp, u, x, w: (u @ w.T, x.T @ u), PRODUCT),
    "linear layer": Rule(
        lambda xp, x, w, b: x @ w + b,
        lambda xp, u, x, w, b: (u @ w.T, x.T @ u, u.sum(0)),
        (*PRODUCT, (2,)),
    ),
    "quadratic form": Rule(
        lambda xp, x, w: ((x @ w) * x).sum(),
        lambda xp, u, x, w: (u * (x @ w + x @ w.T), u * (x.T @ x)),
        ((3, 4), SQUARE),
    ),
    "mean squared error": Rule(
        lambda xp, x, y: ((x - y) ** 2).mean(),
        lambda xp, u, x, y: (u * 2 * (x - y) / 12, -u * 2 * (x - y) / 12),
        PAIR,
    ),
    "softmax": Rule(_softmax, _of_softmax),
    "layer norm": Rule(lambda xp, x: _normed(x)[0], _of_norm),
    "length of rows": Rule(
        lambda xp, x: (x**2).sum(1) ** 0.5,
        lambda xp, u, x: (u[:, None] * x / ((x**2).sum(1) ** 0.5)[:, None],),
    ),
}
"""Twenty right ones."""


def _without(array: Array, place: Any) -> Array:
    mask = np.ones(array.shape)
    mask[place] = 0.0
    return mask


Change = Callable[[Array, Array, Callable[[Any], Array]], Array]
MISTAKES: dict[str, Change] = {
    "zero": lambda g, x, own: 0 * g,
    "negated": lambda g, x, own: -g,
    "doubled": lambda g, x, own: 2 * g,
    "halved": lambda g, x, own: g / 2,
    "1% too large": lambda g, x, own: 1.01 * g,
    "0.01% too small": lambda g, x, own: 0.9999 * g,
    "the last row left out": lambda g, x, own: g * own(_without(g, -1)),
    "one element left out": lambda g, x, own: g * own(_without(g, (0,) * len(g.shape))),
    "its rows shifted by one": lambda g, x, own: g[np.roll(np.arange(len(g)), 1)],
    "a constant on top": lambda g, x, own: g + 0.01,
    "a term of weight decay on top": lambda g, x, own: g + 0.01 * x,
    "rounded to two digits": lambda g, x, own: (g * 100).round() / 100,
}
EACH = 3
"""How many mistakes are made in each rule."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one planted rule."""

    rule: str
    mistake: str
    """Empty for a right one."""
    verdict: Verdict

    @property
    def is_as_expected(self) -> bool:
        return self.verdict is (Verdict.FAIL if self.mistake else Verdict.PASS)


def planted() -> Iterator[tuple[str, str]]:
    """The rules and the mistakes in them; none first."""
    mistakes = [*MISTAKES]
    for number, name in enumerate(RULES):
        yield name, ""
        for turn in range(EACH):
            yield name, mistakes[(number * EACH + turn) % len(mistakes)]


def outcomes(backend: str) -> Iterator[Outcome]:
    """What becomes of each of them in one framework."""
    module: Any = adapter(backend)
    for number, (name, mistake) in enumerate(planted()):
        rule, rng = RULES[name], np.random.default_rng(number)
        args = tuple(module.from_numpy(rng.normal(size=shape)) for shape in rule.shapes)
        backward = _mistaken(rule.backward, mistake, module.from_numpy)
        fn, grads = module.planted(rule.forward, backward, len(args))
        wrt = None if grads is None else tuple(range(len(args)))
        report = report_on(fn, args, name, grads=grads, wrt=wrt, backend=backend)
        yield Outcome(name, mistake, report.verdict)


def _mistaken(backward: Backward, mistake: str, own: Callable[[Any], Array]) -> Backward:
    if not mistake:
        return backward

    def wrong(xp: Any, u: Array, *args: Array) -> tuple[Array, ...]:
        first, *others = backward(xp, u, *args)
        return MISTAKES[mistake](first, args[0], own), *others

    return wrong
