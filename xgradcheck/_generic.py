"""A second look, at a generic point near by, where the point itself hides mistakes.

At zero, at one, where all values are equal, in a symmetric matrix or in equal rows, a transposed
product, a wrong power or a forgotten term may give the right number.
"""

from dataclasses import dataclass

import numpy as np

from xgradcheck._adapters import Backward
from xgradcheck._as_run import rounded
from xgradcheck._derivative import derivative
from xgradcheck._differences import Noise, norm
from xgradcheck._judge import Tolerance, exceeds, zero_below
from xgradcheck._layout import DOUBLE, Layout, Leaf, Vector
from xgradcheck._phi import Phi, noise_of

NEAR = (0.4, 0.01)
"""How far away, as a share of the leaf's scale; the second where the first leaves the domain."""
TRIES = 2
"""How many directions have to call a leaf wrong."""


SYMMETRIC, DIAGONAL = "it is symmetric", "it is diagonal"
WHOLE = 1e6
"""Larger numbers may be whole because they have no bits left for less."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A leaf that is wrong away from the point, along one direction."""

    analytic: float
    truth: float
    bar: float


@dataclass(frozen=True, slots=True)
class NearBy:
    """What a generic point near by shows: ``why`` the point hides mistakes, by leaf number, and the
    ``mistakes`` found; None where no such point could be looked at.
    """

    why: dict[int, str]
    mistakes: dict[int, Mistake] | None
    can_move: bool
    is_stale: bool = False
    """Whether the very same arrays were handed in there: a tree in the form of a function."""
    zero_below: Vector | None = None
    """What counts as zero in each element, by the gradient near by."""


def look_near_by(
    phi: Phi, backward: Backward, zeros: list[int], allowance: Tolerance, seed: int
) -> NearBy:
    """Check the gradient once more, roughly, where the leaves that hide mistakes have generic
    values. ``backward`` is the one at the point, ``zeros`` are the leaves in which it is zero.
    """
    problem = phi.problem
    why = _degenerate(problem.layout, problem.point)
    for number in zeros:
        why.setdefault(number, "its gradient is zero")
    for number, tangent in phi.tangents.items():
        # A symmetric matrix stays one; and on a curved set other points have other tangents.
        if why.get(number) == SYMMETRIC or not tangent.is_flat:
            why.pop(number, None)
    can_move = problem.can_move
    if not why or not can_move:
        return NearBy(why, None, can_move)
    found = _moved(phi, why, allowance, seed)
    if found is None:
        return NearBy(why, None, can_move)
    there, mistakes = found
    if there.is_stale(backward):
        return NearBy(why, {}, can_move, is_stale=True)
    below = zero_below(problem.layout, phi.scales()[0], (there.gradient,))
    return NearBy(why, mistakes, can_move, zero_below=below)


def _degenerate(layout: Layout, point: Vector) -> dict[int, str]:
    """Leaf numbers to why their values hide mistakes: "all its values are 1"."""
    found: dict[int, str] = {}
    seen: dict[tuple[tuple[int, ...], bytes], str] = {}
    for number, leaf in enumerate(layout):
        if not leaf.size:
            continue
        values = point[leaf.part].reshape(leaf.grid)
        twin = seen.setdefault((leaf.shape, values.tobytes()), leaf.name)
        why = _why(values) or ("" if twin == leaf.name else f"it equals {twin}")
        if why:
            found[number] = why
    return found


def _why(values: Vector) -> str:
    first, sizes = values.flat[0], np.abs(values)
    if values.size > 1 and (values == first).all():
        return f"all its values are {first:g}"
    if (values == np.round(values)).all() and sizes.max() < WHOLE:
        return f"it is {first:g}" if values.size == 1 else "its values are whole numbers"
    if _is_square(values):
        if _is_diagonal(values):
            return DIAGONAL
        if (values == values.swapaxes(-1, -2)).all():
            return SYMMETRIC
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    if values.ndim >= 2 and any(len(np.unique(x, axis=0)) < len(x) for x in (rows, rows.T)):
        return "some of its rows or columns are equal"
    if values.size > 3 and len(np.unique(sizes)) <= max(2, values.size / 3):
        return "many of its values are equal"
    if values.size > 1 and values.ndim:
        for what, size in (("sum", rows.sum(1)), ("norm", np.sqrt((rows**2).sum(1)))):
            if rows.shape[1] > 1 and (np.abs(size - 1) < 1e-9).all():
                return f"its rows have {what} 1"
    return ""


def _is_square(values: Vector) -> bool:
    return values.ndim >= 2 and values.shape[-1] == values.shape[-2] > 1


def _is_diagonal(values: Vector) -> bool:
    return bool((values[..., ~np.eye(values.shape[-1], dtype=bool)] == 0).all())


def _moved(
    phi: Phi, chosen: dict[int, str], allowance: Tolerance, seed: int
) -> tuple[Backward, dict[int, Mistake]] | None:
    """The gradient and what is wrong with it at the first generic point that lies in the domain."""
    problem = phi.problem
    rng = np.random.default_rng([seed, 0x6E4E])
    unit = rng.choice([-1.0, 1.0], problem.point.size) * rng.uniform(0.4, 1.0, problem.point.size)
    _, scale = phi.scales()
    for far in NEAR:
        for signed in (unit, np.abs(unit)):
            step = np.zeros_like(problem.point)
            for number in chosen:
                part = problem.layout.leaves[number].part
                step[part] = far * scale[part] * signed[part]
            with problem.at(problem.point + phi.tangential(step)), phi.anew() as there:
                found = _wrong_here(there, allowance, seed)
            if found is not None:
                return found
    return None


def _wrong_here(
    phi: Phi, allowance: Tolerance, seed: int
) -> tuple[Backward, dict[int, Mistake]] | None:
    """The gradient where the problem now is, and the leaves in which it is wrong; None where there
    is no value, no gradient or no repeatable one.
    """
    try:
        values = phi.here(2)
        backward = phi.problem.gradient(phi.cotangent)
        gradient = phi.adjoint(backward.gradient)
    except Exception:  # the point was only guessed to be one: whatever is refused there is no news
        return None
    value = float(values[0])
    if not np.isfinite(values).all() or values[1] != value or not np.isfinite(gradient).all():
        return None
    noise = noise_of(phi, value, seed)
    rng = np.random.default_rng([seed, 0xD1])
    scale, _ = phi.scales()
    is_low = phi.problem.layout.bits < DOUBLE
    lost = rounded(gradient, phi.problem.layout) if is_low else np.zeros_like(gradient)
    found = {}
    for number, leaf in enumerate(phi.problem.layout):
        mistakes = []
        for _ in range(TRIES if leaf.size else 0):
            direction = scale[leaf.part] * rng.normal(size=leaf.size)
            mistake = _mistake(
                phi, leaf, gradient[leaf.part], lost[leaf.part], direction, value, noise, allowance
            )
            if mistake is None:
                break
            mistakes.append(mistake)
        if len(mistakes) == TRIES:
            found[number] = mistakes[0]
    return backward._replace(gradient=gradient), found


def _mistake(
    phi: Phi,
    leaf: Leaf,
    gradient: Vector,
    lost: Vector,
    direction: Vector,
    value: float,
    noise: Noise,
    allowance: Tolerance,
) -> Mistake | None:
    """What is wrong along one direction of a leaf."""
    found = derivative(
        lambda direction, steps: phi.along(direction, steps, leaf.start),
        phi.problem.point[leaf.part],
        direction,
        value,
        noise,
        target=0.1 * allowance.rtol * norm(gradient * direction),
    )
    if found.value == found.bar == 0:
        return None  # phi does not move at all there: nothing tells what is much and what is little
    terms = gradient * found.direction
    # Terms that cancel in the sum carry their own rounding: what is allowed goes by their size.
    size = max(norm(terms), abs(found.value))
    allowed = allowance.rtol * size + allowance.atol * norm(found.direction)
    allowed += norm(lost * found.direction)
    error, bar = np.array([terms.sum() - found.value]), np.array([found.bar])
    if not found.settled or not exceeds(np.abs(error), bar, np.array([allowed])).all():
        return None
    return Mistake(float(terms.sum()), found.value, found.bar)
