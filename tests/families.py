"""Scalar functions of many kinds with true gradients, to measure whether an error bar covers.

Each body is written once, for any arithmetic: float64, float32, emulated bfloat16, or mpmath in the
tests. Each gradient is worked out by hand, in 80 bits. In the low precisions data and point are
representable, so that the arithmetic alone rounds and the truth is that of the exact function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.floating]
Array = NDArray[Any]
"""Of floats, or of mpmath's numbers."""

Long = np.longdouble


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a body computes with. It calls ``q`` on what each operation gave, to round it."""

    cast: Callable[[ArrayLike], Array]
    q: Callable[[Any], Any] = lambda number: number
    exp: Callable[[Any], Any] = np.exp
    log: Callable[[Any], Any] = np.log
    log1p: Callable[[Any], Any] = np.log1p
    sin: Callable[[Any], Any] = np.sin
    cos: Callable[[Any], Any] = np.cos
    tanh: Callable[[Any], Any] = np.tanh
    sqrt: Callable[[Any], Any] = np.sqrt


Body = Callable[[Array, Arithmetic], Any]
Gradient = Callable[[Vector], Vector]


def _to_bfloat16(number: Any) -> Array:
    """Rounded to bfloat16 and held in float32, as hardware accumulates."""
    return np.asarray(number, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


ARITHMETICS = {
    "float64": Arithmetic(partial(np.asarray, dtype=np.float64)),
    "float32": Arithmetic(partial(np.asarray, dtype=np.float32)),
    "bfloat16": Arithmetic(partial(np.asarray, dtype=np.float32), _to_bfloat16),
}


def scales(point: Vector) -> Vector:
    """A full relative change of each coordinate; that of a typical one where it is zero."""
    size = np.abs(point)
    return np.where(size > 0, size, np.median(size[size > 0]) if size.any() else 1.0)


BITS = {"float64": 53, "float32": 24, "bfloat16": 8}


@dataclass(frozen=True, slots=True)
class Function:
    """A body with its data drawn, its gradient, and where to look at it."""

    body: Body
    gradient: Gradient
    point: Vector


@dataclass(frozen=True, slots=True)
class Problem:
    value: Callable[[Vector], float]
    """Takes any float64 vector, and rounds it to its own precision at entry."""
    point: Vector
    slope: Callable[[Vector], Long]
    """The true derivative at the point along a direction."""
    body: Body
    """For the tests, which run it in mpmath."""


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    precision: str
    easy: bool
    """Well conditioned, in float64: a derivative good to 1e-9 is easily had."""
    draw: Callable[[np.random.Generator], Problem]


@dataclass(frozen=True, slots=True)
class Source:
    """Random numbers of no more than ``bits`` significant bits."""

    rng: np.random.Generator
    bits: int

    def normal(self, *shape: int) -> Vector:
        return self._snapped(self.rng.normal(size=shape))

    def uniform(self, low: float, high: float, *shape: int) -> Vector:
        return self._snapped(self.rng.uniform(low, high, size=shape))

    def powers_of_ten(self, low: float, high: float, *shape: int) -> Vector:
        return self._snapped(10.0 ** self.rng.uniform(low, high, size=shape))

    def power_of_ten(self, low: float, high: float) -> float:
        return float(self.powers_of_ten(low, high))

    def signs(self, *shape: int) -> Vector:
        return self.rng.choice([-1.0, 1.0], size=shape)

    def size(self, least: int = 2) -> int:
        return int(self.rng.integers(least, 30))

    def _snapped(self, numbers: ArrayLike) -> Vector:
        mantissa, exponent = np.frexp(numbers)
        return np.ldexp(np.round(np.ldexp(mantissa, self.bits)), exponent - self.bits)


def polynomial(source: Source) -> Function:
    n = source.size()
    coefficients = source.normal(6, n)

    def body(x: Array, m: Arithmetic) -> Any:
        rows = m.cast(coefficients[::-1])
        total = rows[0]
        for row in rows[1:]:
            total = m.q(m.q(total * x) + row)
        return m.q(total.sum())

    def gradient(x: Vector) -> Vector:
        return sum(coefficients[k] * (k * x ** (k - 1)) for k in range(1, 6))

    return Function(body, gradient, source.normal(n))


def softmax(source: Source) -> Function:
    """Cross-entropy of a linear classifier, in its weights."""
    inputs, labels = source.normal(6, 5), source.rng.integers(0, 4, 6)
    rows = np.arange(6)

    def body(x: Array, m: Arithmetic) -> Any:
        logits = m.q(m.cast(inputs) @ x.reshape(5, 4))
        top = logits.max(axis=1)
        sums = m.q(m.q(m.exp(m.q(logits - top[:, None]))).sum(axis=1))
        losses = m.q(m.q(m.q(m.log(sums)) + top) - logits[rows, labels])
        return m.q(m.q(losses.sum()) / 6)

    def gradient(x: Vector) -> Vector:
        weights = np.exp(inputs @ x.reshape(5, 4))
        off = weights / weights.sum(axis=1, keepdims=True)
        off[rows, labels] -= 1
        return (inputs.T @ off / 6).ravel()

    return Function(body, gradient, source.normal(20))


def perceptron(source: Source) -> Function:
    """Squared error of one hidden layer, in its weights."""
    inputs, targets, hidden = source.normal(5, 4), source.normal(5), int(source.rng.integers(2, 5))

    def split(x: Array) -> tuple[Array, Array, Array]:
        return x[: 4 * hidden].reshape(4, hidden), x[4 * hidden : 5 * hidden], x[5 * hidden :]

    def body(x: Array, m: Arithmetic) -> Any:
        first, bias, second = split(x)
        units = m.q(m.tanh(m.q(m.q(m.cast(inputs) @ first) + bias)))
        off = m.q(m.q(units @ second) - m.cast(targets))
        return m.q(m.q(m.q(off * off).sum()) / 5)

    def gradient(x: Vector) -> Vector:
        first, bias, second = split(x)
        units = np.tanh(inputs @ first + bias)
        off = 2 * (units @ second - targets) / 5
        back = np.outer(off, second) * (1 - units**2)
        return np.concatenate([(inputs.T @ back).ravel(), back.sum(axis=0), units.T @ off])

    return Function(body, gradient, source.normal(6 * hidden))


def logistic(source: Source) -> Function:
    """Loss of a logistic regression, in its weights."""
    n = source.size()
    inputs, signs = source.normal(8, n), source.signs(8)

    def body(x: Array, m: Arithmetic) -> Any:
        margins = m.q(m.cast(signs) * m.q(m.cast(inputs) @ x))
        return m.q(m.q(m.q(m.log1p(m.q(m.exp(-margins)))).sum()) / 8)

    def gradient(x: Vector) -> Vector:
        return -(signs / (1 + np.exp(signs * (inputs @ x)))) @ inputs / 8

    return Function(body, gradient, source.normal(n))


def student(source: Source) -> Function:
    """Negative log likelihood of a linear model with Student's t errors."""
    n, freedom = source.size(), int(source.rng.integers(1, 6))
    inputs, targets = source.normal(7, n), source.normal(7)

    def body(x: Array, m: Arithmetic) -> Any:
        off = m.q(m.cast(targets) - m.q(m.cast(inputs) @ x))
        terms = m.q(m.log1p(m.q(m.q(off * off) / freedom)))
        return m.q(m.q(terms.sum()) * (freedom + 1) / 2)

    def gradient(x: Vector) -> Vector:
        off = targets - inputs @ x
        return -((freedom + 1) * off / (freedom + off**2)) @ inputs

    return Function(body, gradient, source.normal(n))


def mixed_sum(source: Source) -> Function:
    n = source.size()
    gains, rates = source.normal(n), 0.3 * source.normal(n)

    def body(x: Array, m: Arithmetic) -> Any:
        waves = m.cast(gains) * m.sin(x)
        return (waves + m.exp(m.cast(rates) * x) + m.log(1 + x * x)).sum()

    def gradient(x: Vector) -> Vector:
        return gains * np.cos(x) + rates * np.exp(rates * x) + 2 * x / (1 + x * x)

    return Function(body, gradient, source.normal(n))


def rosenbrock(source: Source) -> Function:
    def body(x: Array, m: Arithmetic) -> Any:
        bends, rest = x[1:] - x[:-1] ** 2, 1 - x[:-1]
        return (100 * bends**2 + rest**2).sum()

    def gradient(x: Vector) -> Vector:
        bends, found = 200 * (x[1:] - x[:-1] ** 2), np.zeros_like(x)
        found[1:] += bends
        found[:-1] -= 2 * x[:-1] * bends + 2 * (1 - x[:-1])
        return found

    return Function(body, gradient, source.normal(source.size()))


def layernorm(source: Source) -> Function:
    n = source.size(least=5)
    gains = source.normal(n)

    def body(x: Array, m: Arithmetic) -> Any:
        centred = x - x.sum() / n
        spread = m.sqrt((centred * centred).sum() / n + 1e-5)
        return (m.cast(gains) * m.tanh(centred / spread)).sum()

    def gradient(x: Vector) -> Vector:
        centred = x - x.mean()
        spread = np.sqrt((centred**2).mean() + Long(1e-5))
        normed = centred / spread
        back = gains * (1 - np.tanh(normed) ** 2)
        return (back - back.mean() - normed * (back * normed).mean()) / spread

    return Function(body, gradient, source.normal(n))


def attention(source: Source) -> Function:
    """Squared length of what one query reads, in the query."""
    n = source.size()
    keys, values = source.normal(4, n) * n**-0.5, source.normal(4, 3)

    def body(x: Array, m: Arithmetic) -> Any:
        scores = m.cast(keys) @ x
        weights = m.exp(scores - scores.max())
        read = weights / weights.sum() @ m.cast(values)
        return (read * read).sum()

    def gradient(x: Vector) -> Vector:
        weights = np.exp(keys @ x)
        weights /= weights.sum()
        back = values @ (2 * (weights @ values))
        return (weights * (back - weights @ back)) @ keys

    return Function(body, gradient, source.normal(n))


def linear(source: Source) -> Function:
    n = source.size()
    gains = source.normal(n)
    return Function(
        lambda x, m: (m.cast(gains) * x).sum(), lambda x: gains.astype(Long), source.normal(n)
    )


def cosine(source: Source) -> Function:
    """Cosine of the angle to a fixed vector."""
    n = source.size(least=3)
    other = source.normal(n)

    def body(x: Array, m: Arithmetic) -> Any:
        fixed = m.cast(other)
        return (x * fixed).sum() / m.sqrt((x * x).sum() * (fixed * fixed).sum())

    def gradient(x: Vector) -> Vector:
        square = x @ x
        unit = other / np.sqrt(square * (other.astype(Long) @ other))
        return unit - (unit @ x) / square * x

    return Function(body, gradient, source.normal(n))


def product(source: Source) -> Function:
    def gradient(x: Vector) -> Vector:
        return np.array([np.delete(x, i).prod() for i in range(len(x))])

    n = int(source.rng.integers(2, 9))
    return Function(lambda x, m: x.prod(), gradient, source.signs(n) * source.uniform(0.3, 2, n))


def _solved(matrix: Array, right: Array) -> tuple[Array, Array]:
    """The pivots, and ``matrix^-1 right``, for a positive definite matrix.

    numpy.linalg knows neither 80 bits nor mpmath.
    """
    work, pivots = np.concatenate([matrix, right], axis=1), []
    for k in range(len(matrix)):
        pivots.append(work[k, k])
        row = work[k] / work[k, k]
        work = work - np.outer(work[:, k], row)
        work[k] = row
    return np.array(pivots), work[:, len(matrix) :]


def log_determinant(source: Source) -> Function:
    """log det(A A^T + 1), in A."""

    def gram(x: Array) -> tuple[Array, Array]:
        a = x.reshape(3, 5)
        return a @ a.T + np.eye(3, dtype=int), a

    def body(x: Array, m: Arithmetic) -> Any:
        return m.log(_solved(*gram(x))[0]).sum()

    return Function(body, lambda x: 2 * _solved(*gram(x))[1].ravel(), source.normal(15))


def gaussian_process(source: Source) -> Function:
    """The misfit y^T K^-1 y / 2 of a Gaussian process, in the places where it was observed."""
    n = int(source.rng.integers(3, 9))
    observed, noise = source.normal(n, 1), np.diag(np.full(n, 0.1))

    def body(x: Array, m: Arithmetic) -> Any:
        gaps = x[:, None] - x
        seen = m.cast(observed)
        solution = _solved(m.exp(-gaps * gaps / 2) + m.cast(noise), seen)[1]
        return (seen * solution).sum() / 2

    def gradient(x: Vector) -> Vector:
        gaps = x[:, None] - x
        kernel = np.exp(-(gaps**2) / 2)
        solution = _solved(kernel + noise, observed)[1][:, 0]
        return solution * ((gaps * kernel) @ solution)

    return Function(body, gradient, 2 * source.normal(n))


@dataclass(frozen=True, slots=True)
class Lstm:
    """Three steps of an LSTM cell with two hidden units and one input; the loss is read from the
    last hidden state.
    """

    inputs: Vector
    readout: Vector

    def step(self, seen: Array, memory: Array, weights: Array, m: Arithmetic) -> tuple[Array, ...]:
        sums = (weights @ seen).reshape(4, 2)
        opened = 1 / (1 + m.exp(-sums[:3]))
        fresh = m.tanh(sums[3])
        kept = opened[1] * memory + opened[0] * fresh
        return opened, fresh, kept, opened[2] * m.tanh(kept)

    def body(self, x: Array, m: Arithmetic) -> Any:
        weights = x.reshape(8, 4)
        hidden = memory = m.cast(np.zeros(2))
        for number in m.cast(self.inputs):
            seen = np.concatenate([hidden, [number, 1]])
            _, _, memory, hidden = self.step(seen, memory, weights, m)
        return (m.cast(self.readout) * hidden).sum()

    def gradient(self, x: Vector) -> Vector:
        weights, long = x.reshape(8, 4), Arithmetic(partial(np.asarray, dtype=Long))
        hidden = memory = np.zeros(2, Long)
        tape = []
        for number in self.inputs:
            seen, before = np.concatenate([hidden, [number, 1]]), memory
            opened, fresh, memory, hidden = self.step(seen, before, weights, long)
            tape.append((seen, before, opened, fresh, memory))
        found, to_hidden, to_memory = np.zeros_like(weights), self.readout, np.zeros(2, Long)
        for seen, before, opened, fresh, kept in reversed(tape):
            squashed = np.tanh(kept)
            to_memory = to_memory + to_hidden * opened[2] * (1 - squashed**2)
            to_gates = np.stack([to_memory * fresh, to_memory * before, to_hidden * squashed])
            to_fresh = to_memory * opened[0] * (1 - fresh**2)
            to_sums = np.concatenate([(to_gates * opened * (1 - opened)).ravel(), to_fresh])
            found += np.outer(to_sums, seen)
            to_hidden, to_memory = (to_sums @ weights)[:2], to_memory * opened[1]
        return found.ravel()


def lstm(source: Source) -> Function:
    cell = Lstm(source.normal(3), source.normal(2))
    return Function(cell.body, cell.gradient, source.normal(32))


def kepler(source: Source) -> Function:
    """Solves E - e sin E = x by Newton's method: the derivative is that of an implicit function."""
    n = source.size()
    ellipticity, gains = source.uniform(0.1, 0.6, n), source.normal(n)

    def anomaly(x: Array, m: Arithmetic) -> Array:
        e = m.cast(ellipticity)
        found = x + e * m.sin(x)
        for _ in range(10):
            found = found - (found - e * m.sin(found) - x) / (1 - e * m.cos(found))
        return found

    def body(x: Array, m: Arithmetic) -> Any:
        return (m.cast(gains) * m.cos(anomaly(x, m))).sum()

    def gradient(x: Vector) -> Vector:
        found = anomaly(x, Arithmetic(partial(np.asarray, dtype=Long)))
        return -gains * np.sin(found) / (1 - ellipticity * np.cos(found))

    return Function(body, gradient, source.normal(n))


def lennard_jones(source: Source) -> Function:
    """Energy of five atoms near the corners of a cube."""
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
    first, second = np.triu_indices(5, 1)

    def gaps(x: Array) -> tuple[Array, Array]:
        atoms = x.reshape(5, 3)
        apart = atoms[first] - atoms[second]
        return apart, 1 / (apart * apart).sum(axis=1)

    def body(x: Array, m: Arithmetic) -> Any:
        sixth = gaps(x)[1] ** 3
        return (sixth * sixth - sixth).sum()

    def gradient(x: Vector) -> Vector:
        apart, inverse = gaps(x)
        push = ((6 * inverse**3 - 12 * inverse**6) * inverse)[:, None] * apart
        found = np.zeros((5, 3), Long)
        np.add.at(found, first, push)
        np.subtract.at(found, second, push)
        return found.ravel()

    return Function(body, gradient, (1.2 * corners + 0.05 * source.normal(5, 3)).ravel())


def _base(source: Source) -> Function:
    kinds = (polynomial, softmax, perceptron, logistic, mixed_sum, layernorm, attention)
    return kinds[source.rng.integers(len(kinds))](source)


def _affine(base: Function, gain: float, offset: float) -> Function:
    return Function(
        lambda x, m: gain * base.body(x, m) + offset,
        lambda x: gain * base.gradient(x),
        base.point,
    )


def _rescaled(base: Function, scales: Vector) -> Function:
    return Function(
        lambda x, m: base.body(x / m.cast(scales), m),
        lambda x: base.gradient(x / scales) / scales,
        base.point * scales,
    )


def constant_offset(source: Source) -> Function:
    return _affine(_base(source), 1.0, source.power_of_ten(2, 12))


def huge_values(source: Source) -> Function:
    return _affine(_base(source), source.power_of_ten(100, 300), 0.0)


def tiny_values(source: Source) -> Function:
    return _affine(_base(source), source.power_of_ten(-290, -100), 0.0)


def nearly_flat(source: Source) -> Function:
    return _affine(_base(source), source.power_of_ten(-14, -6), 1.0)


def mixed_scales(source: Source) -> Function:
    base = _base(source)
    return _rescaled(base, source.powers_of_ten(-8, 8, len(base.point)))


def far_scales(source: Source) -> Function:
    """Inputs of 1e-9 and of 1e11 in one vector, which meet in one logarithm."""
    n = source.size()
    gains = source.normal(n)
    base = Function(
        lambda x, m: m.log(1 + (x * x).sum()) + (m.cast(gains) * x).sum(),
        lambda x: 2 * x / (1 + x @ x) + gains,
        source.normal(n),
    )
    return _rescaled(base, np.resize([1e-9, 1e11], n))


def ill_conditioned(source: Source) -> Function:
    """A quadratic with curvatures from 1 to 1e8."""
    n = source.size()
    curvatures, centre = np.logspace(0, 8, n), source.normal(n)
    return Function(
        lambda x, m: (m.cast(curvatures) * (x - m.cast(centre)) ** 2).sum() / 2,
        lambda x: curvatures * (x - centre),
        source.normal(n),
    )


def overflow_edge(source: Source) -> Function:
    """An exponential that leaves float64 not far from the point."""
    point = source.normal(source.size())
    highest = np.log(np.finfo(np.float64).max) - source.power_of_ten(-3, 0)
    start = float(highest - np.tanh(point).mean())

    def gradient(x: Vector) -> Vector:
        bent = np.tanh(x)
        return np.exp(start + bent.mean()) * (1 - bent**2) / len(x)

    return Function(lambda x, m: m.exp(start + m.tanh(x).sum() / len(x)), gradient, point)


def oscillating(source: Source) -> Function:
    n = source.size()
    frequency, phases = source.power_of_ten(0.5, 4), source.uniform(0, 6, n)
    return Function(
        lambda x, m: m.sin(frequency * x + m.cast(phases)).sum(),
        lambda x: frequency * np.cos(frequency * x + phases),
        source.normal(n),
    )


def low_temperature(source: Source) -> Function:
    """A smooth maximum, as sharp as its temperature is low."""
    n, temperature = source.size(), source.power_of_ten(-3, 0)

    def body(x: Array, m: Arithmetic) -> Any:
        top = x.max()
        return top + temperature * m.log(m.exp((x - top) / temperature).sum())

    def gradient(x: Vector) -> Vector:
        weights = np.exp((x - x.max()) / temperature)
        return weights / weights.sum()

    return Function(body, gradient, source.normal(n))


SINGULAR: tuple[tuple[Body, Gradient], ...] = (
    (lambda x, m: m.log(x).sum(), lambda x: 1 / x),
    (lambda x, m: m.sqrt(x).sum(), lambda x: 1 / (2 * np.sqrt(x))),
    (lambda x, m: (1 / x).sum(), lambda x: -1 / x**2),
    (lambda x, m: (x * m.log(x)).sum(), lambda x: np.log(x) + 1),
)


def near_singularity(source: Source) -> Function:
    body, gradient = SINGULAR[source.rng.integers(len(SINGULAR))]
    point = source.power_of_ten(-8, -1) * source.uniform(0.2, 3, source.size())
    return Function(body, gradient, point)


def zero_coordinates(source: Source) -> Function:
    """Half of the coordinates are 0, which hides the scale that the function has in them."""
    n = source.size()
    is_zero = source.rng.random(n) < 0.5
    scales = np.where(is_zero, source.power_of_ten(-5, 0), 1.0)
    base = Function(
        lambda x, m: m.log(1 + x + x * x).sum(),
        lambda x: (1 + 2 * x) / (1 + x + x * x),
        np.where(is_zero, 0.0, source.normal(n)),
    )
    return _rescaled(base, scales)


def cancellation(source: Source) -> Function:
    """x^2 by a detour over c^2, plus a sine."""
    c = source.power_of_ten(2, 6)

    def body(x: Array, m: Arithmetic) -> Any:
        # c * c of two Python floats would be rounded in mpmath too.
        far = c + 0 * x
        return ((x + far) ** 2 - far * far - 2 * far * x + m.sin(x)).sum()

    return Function(body, lambda x: 2 * x + np.cos(x), source.normal(source.size()))


def chaotic(source: Source) -> Function:
    """The logistic map, iterated: a polynomial of degree up to 1024 in each coordinate."""
    n, turns = source.size(), int(source.rng.integers(3, 11))
    rates = source.uniform(3.5, 3.9, n)

    def body(x: Array, m: Arithmetic) -> Any:
        for _ in range(turns):
            x = m.cast(rates) * x * (1 - x)
        return x.sum()

    def gradient(x: Vector) -> Vector:
        found = np.ones_like(x)
        for _ in range(turns):
            found, x = found * rates * (1 - 2 * x), rates * x * (1 - x)
        return found

    return Function(body, gradient, source.uniform(0.1, 0.9, n))


def _slope(gradient: Vector, direction: Vector) -> Long:
    return gradient @ direction


def _value(body: Body, m: Arithmetic, x: Vector) -> float:
    with np.errstate(all="ignore"):
        return float(body(m.q(m.cast(x)), m))


def _problem(
    build: Callable[[Source], Function], precision: str, rng: np.random.Generator
) -> Problem:
    function = build(Source(rng, BITS[precision]))
    gradient = function.gradient(function.point.astype(Long))
    return Problem(
        partial(_value, function.body, ARITHMETICS[precision]),
        function.point,
        partial(_slope, gradient),
        function.body,
    )


def _family(
    build: Callable[[Source], Function], precision: str = "float64", easy: bool = False
) -> Family:
    name = build.__name__ if precision == "float64" else f"{build.__name__}_{precision}"
    return Family(name, precision, easy, partial(_problem, build, precision))


LOW = (polynomial, softmax, perceptron, logistic, student)
"""Run in every precision."""
EASY = (
    *(*LOW, mixed_sum, rosenbrock, layernorm, attention, linear, cosine, product),
    *(log_determinant, gaussian_process, lstm, kepler, lennard_jones),
)
HARD = (
    *(constant_offset, huge_values, tiny_values, nearly_flat, mixed_scales, far_scales),
    *(ill_conditioned, overflow_edge, oscillating, low_temperature, near_singularity),
    *(zero_coordinates, cancellation, chaotic),
)
"""Each in one way."""
FAMILIES: tuple[Family, ...] = (
    *(_family(build, easy=True) for build in EASY),
    *(_family(build) for build in HARD),
    *(_family(build, precision) for precision in ("float32", "bfloat16") for build in LOW),
)
