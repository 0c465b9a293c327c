"""A second look, at a generic point near by, where the point itself hides mistakes.

At zero, at one, where all values are equal, in a symmetric matrix or in equal rows, a transposed
product, a wrong power or a forgotten term may give the right number.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from xgradcheck._adapters import Backward
from xgradcheck._as_run import rounded
from xgradcheck._derivative import derivative
from xgradcheck._differences import norm
from xgradcheck._judge import Tolerance, zero_below
from xgradcheck._ladder import bear_out
from xgradcheck._layout import BITS, DOUBLE, Layout, Leaf, Vector, bits_of
from xgradcheck._phi import Phi, noise_of
from xgradcheck._projection import is_certified
from xgradcheck._saturated import nothing_beside
from xgradcheck._slopes import Mistake, slope_along

NEAR = (0.4, 0.01)
"""How far away, as a share of the leaf's scale; the second where the first leaves the domain."""
TRIES = 2
"""How many directions have to call a leaf wrong."""
WIDE = np.array([2.0**-8, 2.0**-10, 2.0**-12])
"""Which steps speak for a gradient, of such a direction."""


SIDEWAYS, RIGHT = 3, 0.01
"""Along how many directions that keep what a leaf is its gradient has to be right, and by how much
more than it is right off them.
"""

SYMMETRIC, HERMITIAN, DIAGONAL = "it is symmetric", "it is Hermitian", "it is diagonal"
MIRRORS = (SYMMETRIC, HERMITIAN)
"""What is kept where a matrix equals its transpose, or a complex one its conjugate transpose."""
SUM, NORM = "its rows have sum 1", "its rows have norm 1"
SWITCHES, OFF = "its values are 0 and 1", "off what they are"
STILL = "it stays symmetric"
ZEROS = 1 / 8
"""The share of zeros in a leaf that tells something: it is padded, or comes of a relu."""
LARGE = 1_000_000
"""Beyond so many coordinates nothing is told element by element."""
LOOKED_AT, SAMPLED = 64, 1024
"""How many of a leaf's values are looked at before all are, and how many where some tell enough."""
MIRRORED = 16.0
"""By how many units of rounding of the largest element a matrix may differ from its transpose."""
NEARLY = 1e-8
"""How far from 1 the squares of a row that has norm 1 may add up to."""
WHOLE = 1e6
"""Larger numbers may be whole because they have no bits left for less."""

Seen = TypeVar("Seen")
"""What is told of a leaf that is wrong near by."""


Gradient = Callable[[Vector], Backward]
"""How a problem is asked for its gradient under a cotangent: in reverse, or in forward mode."""


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
    kept: frozenset[int] = frozenset()
    """Of the leaves with mistakes those that are right as long as they keep what they are."""


def look_near_by(
    phi: Phi,
    ask: Gradient,
    backward: Backward,
    zeros: list[int],
    allowance: Tolerance,
    seed: int,
) -> NearBy:
    """Check the gradient once more, roughly, where the leaves that hide mistakes have generic
    values. ``backward`` is the one at the point, and what ``ask`` gave there; ``zeros`` are the
    leaves in which it is zero.
    """
    problem = phi.problem
    why, can_move = what_hides(phi, zeros), problem.can_move
    runs = list[Backward]()

    def moved(chosen: dict[int, str]) -> dict[int, Mistake] | None:
        found = _moved(phi, ask, chosen, allowance, seed)
        if found is None:
            return None
        runs.append(found[0])
        return found[1]

    known = wrong_near_by(why, moved) if can_move else None
    if known is None:
        return NearBy(why, None, can_move)
    there, (mistakes, kept) = runs[0], known
    if there.is_stale(backward):
        return NearBy(why, {}, can_move, is_stale=True)
    below = None
    if problem.layout.size <= LARGE:
        below = zero_below(problem.layout, phi.scales()[0], (there.gradient,))
    return NearBy(why, mistakes, can_move, zero_below=below, kept=kept)


def what_hides(phi: Phi, zeros: list[int]) -> dict[int, str]:
    """Leaf numbers to why the point hides mistakes there, "all its values are 1" or, of ``zeros``,
    "its gradient is zero".
    """
    why = _degenerate(phi.problem.layout, phi.problem.point)
    for number in zeros:
        why.setdefault(number, "its gradient is zero")
    for number, tangent in phi.tangents.items():
        # A symmetric matrix stays one; and on a curved set other points have other tangents.
        if why.get(number) in MIRRORS or not tangent.is_flat:
            why.pop(number, None)
    return why


def wrong_near_by(
    why: Mapping[int, str], moved: Callable[[dict[int, str]], dict[int, Seen] | None]
) -> tuple[dict[int, Seen], frozenset[int]] | None:
    """The leaves that are wrong at generic points near by, and which of them are right as long as
    they keep what they are; None where there is no such point. ``moved`` says what is wrong where
    some leaves have other values, None where that is not known.
    """
    # What is right for every mask, or every label, need not be so for what is none: beside such
    # values all leaves are looked at, and off them only the leaf itself.
    within = {number: text for number, text in why.items() if text != SWITCHES}
    off = {number: OFF for number, text in why.items() if text in (SWITCHES, SUM, NORM)}
    near = moved(within) if within else None
    beyond = moved(off) if off else None
    if near is None and beyond is None:
        return None
    mistakes = near or {}
    own = {n: mistake for n, mistake in (beyond or {}).items() if n in off}
    kept = {n for n in own if n not in mistakes and why[n] != SWITCHES}
    kept |= _right_beside_symmetric(within, mistakes, moved)
    return own | mistakes, frozenset(kept)


def what_it_keeps(phi: Phi, leaf: Leaf, gradient: Vector, off: float, seed: int) -> str:
    """What the values of a leaf are, if a gradient that is ``off`` by that share of its norm is
    right as long as they stay so: probabilities, unit vectors, a symmetric matrix. Else nothing.
    """
    values = phi.problem.point[leaf.part].reshape(leaf.grid)
    why = _why(leaf, values)
    if why not in (SUM, NORM, *MIRRORS):
        return ""
    rng, value = np.random.default_rng([seed, 0x5E7]), float(phi.here(1)[0])
    noise = noise_of(phi, value, seed)
    for _ in range(SIDEWAYS):
        direction = _keeping(leaf, values, why, rng.normal(size=values.shape))
        least = off * norm(gradient * direction)
        found = derivative(
            lambda direction, steps: phi.along(direction, steps, leaf.start),
            values.ravel(),
            direction,
            value,
            noise,
            target=RIGHT * least,
        )
        apart = abs(float((gradient * found.direction).sum()) - found.value) + found.bar
        if not (found.settled and apart <= RIGHT * least):
            return ""
    return why


def _keeping(leaf: Leaf, values: Vector, why: str, drawn: Vector) -> Vector:
    """A direction, along which rows keep their sum or their norm, or matrices are symmetric."""
    if why in MIRRORS:
        return np.ravel(drawn + leaf.turned(drawn))
    across, bits = values * drawn, bits_of(leaf.dtype)
    moves, axis = (across, _axis_of_sums(values, bits)) if why == SUM else (drawn, -1)
    return np.ravel(moves - values * across.sum(axis, keepdims=True))


def _right_beside_symmetric(
    chosen: dict[int, str],
    mistakes: dict[int, Seen],
    moved: Callable[[dict[int, str]], dict[int, Seen] | None],
) -> set[int]:
    """The leaves that are right as long as matrices stay symmetric whose own gradient is meant for
    such alone, as that of what a solver for symmetric matrices is multiplied with.
    """
    symmetric = {number for number, text in chosen.items() if text in MIRRORS}
    others = mistakes.keys() - symmetric
    if not others or symmetric.isdisjoint(mistakes):
        return set()
    still = chosen | dict.fromkeys(symmetric, STILL)
    found = moved(still)
    return set() if found is None else {number for number in others if number not in found}


def _degenerate(layout: Layout, point: Vector) -> dict[int, str]:
    """Leaf numbers to why their values hide mistakes: "all its values are 1"."""
    found: dict[int, str] = {}
    seen: dict[tuple[tuple[int, ...], bytes], list[Leaf]] = {}
    for number, leaf in enumerate(layout):
        if not leaf.size:
            continue
        values = point[leaf.part].reshape(leaf.grid)
        alike = seen.setdefault((leaf.shape, values.ravel()[:LOOKED_AT].tobytes()), [])
        twins = (other for other in alike if np.array_equal(point[other.part], point[leaf.part]))
        twin = next(twins, None)
        alike.append(leaf)
        why = _why(leaf, values) or ("" if twin is None else f"it equals {twin.name}")
        if why:
            found[number] = why
    return found


def _why(leaf: Leaf, values: Vector) -> str:
    flat, bits = values.ravel(), bits_of(leaf.dtype)
    first, few = flat[0] + 0.0, flat[:LOOKED_AT]
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    sizes = np.sort(np.abs(flat[:: max(1, flat.size // SAMPLED)]))
    # What most leaves are not is seen by few of their values.
    if few.min() >= 0 and _axis_of_sums(values, bits) is not None:
        return SUM
    if values.size > 1 and sizes[0] == sizes[-1] and (flat == first).all():
        return f"all its values are {first:g}"
    whole = (few == np.rint(few)).all() and (flat == np.rint(flat)).all()
    if whole and ((flat == 0) | (flat == 1)).all() and values.size > 1:
        return SWITCHES
    if whole and np.abs(flat).max() < WHOLE:
        return f"it is {first:g}" if values.size == 1 else "its values are whole numbers"
    if _is_square(leaf):
        if _is_diagonal(values):
            return DIAGONAL
        if is_symmetric(leaf, values):
            return HERMITIAN if leaf.is_complex else SYMMETRIC
    if values.ndim >= 2 and any(_some_equal(x) for x in (rows, rows.T)):
        return "some of its rows or columns are equal"
    distinct = 1 + np.count_nonzero(sizes[1:] != sizes[:-1])
    if values.size > 3 and distinct <= max(2, sizes.size / 3):
        return "many of its values are equal"
    if rows.shape[1] > 1 and abs(rows[0] @ rows[0] - 1) < NEARLY and _have_norm_one(rows):
        return NORM
    zeros = max(2, math.ceil(ZEROS * sizes.size))
    # Short formats hold norms less closely.
    are_zero = sizes.size >= zeros and sizes[zeros - 1] == 0
    if are_zero and not _have_norm_one(rows, rows.shape[1] * 2.0**-bits):
        return "some of its values are 0"
    return ""


def _is_square(leaf: Leaf) -> bool:
    """Whether this is a square matrix, or a stack of them."""
    sides = leaf.grid[leaf.is_complex :]
    return len(sides) >= 2 and sides[-1] == sides[-2] > 1


def is_symmetric(leaf: Leaf, values: Vector) -> bool:
    """Whether square matrices equal their transposes, complex ones the conjugate ones, but for what
    a product with its own transpose may be rounded to.
    """
    if not _is_square(leaf):
        return False
    bits, values = bits_of(leaf.dtype), values.reshape(leaf.grid)
    low = min(bits, BITS["float32"])
    turned, unit = leaf.turned(values), MIRRORED * np.abs(values).max()
    # What is none is seen by its first row, as a rule.
    if (np.abs(values[..., 0, :] - turned[..., 0, :]) > unit * 2.0**-low).any():
        return False
    if np.array_equal(values, values.astype(np.float32)):
        bits = low  # it may be a product of that
    return bool((np.abs(values - turned) <= unit * 2.0**-bits).all())


def _is_diagonal(values: Vector) -> bool:
    if values[..., 0, 1:].any():
        return False
    return not values[..., ~np.eye(values.shape[-1], dtype=bool)].any()


def _axis_of_sums(values: Vector, bits: int = DOUBLE) -> int | None:
    """The axis along which values are as those of probabilities, the last where several are."""
    for axis in reversed(range(values.ndim)):
        if values.shape[axis] > 1:
            rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
            if _sum_to_one(rows[:1], bits) and _sum_to_one(rows, bits):
                return axis
    return None


def _sum_to_one(rows: Vector, bits: int) -> bool:
    """Whether rows are as those of probabilities, as closely as so many bits hold them."""
    off = max(1e-9, rows.shape[1] * 2.0**-bits)
    return bool((rows >= 0).all() and (np.abs(rows.sum(1) - 1) < off).all())


def _have_norm_one(rows: Vector, off: float = 0.0) -> bool:
    return bool((np.abs(np.sqrt((rows**2).sum(1)) - 1) < max(1e-9, off)).all())


def _some_equal(rows: Vector) -> bool:
    """Whether two rows are equal: only such can have the same sum by random weights."""
    first = np.sort(rows[:, 0])
    if (first[1:] != first[:-1]).all():
        return False
    weights = np.random.default_rng(0xE9).uniform(0.5, 1.0, rows.shape[1])
    sums = rows @ weights
    order = np.argsort(sums, kind="stable")
    apart = np.diff(sums[order])
    near = np.flatnonzero(apart <= 1e-12 * np.abs(sums).max(initial=0.0))
    return any((rows[order[n]] == rows[order[n + 1]]).all() for n in near)


def _moved(
    phi: Phi, ask: Gradient, chosen: dict[int, str], allowance: Tolerance, seed: int
) -> tuple[Backward, dict[int, Mistake]] | None:
    """The gradient and what is wrong with it at the first generic point that lies in the domain."""
    for point in points_near_by(phi, chosen, seed):
        with phi.problem.at(point), phi.anew() as there:
            found = _wrong_here(there, ask, allowance, seed)
        if found is not None:
            return found
    return None


def points_near_by(phi: Phi, chosen: dict[int, str], seed: int) -> Iterator[Vector]:
    """Generic points: the ``chosen`` leaves have other values, that still are what was said of
    them. The first is as far away as any; others where that leaves the domain.
    """
    problem = phi.problem
    rng = np.random.default_rng([seed, 0x6E4E])
    leaves = [problem.layout.leaves[number] for number in chosen]
    units = [rng.choice([-1.0, 1.0], x.size) * rng.uniform(0.4, 1.0, x.size) for x in leaves]
    scales = phi.scales_of(chosen)
    for far in NEAR:
        for signed in (units, [np.abs(unit) for unit in units]):
            point = problem.point.copy()
            for number, leaf, scale, unit in zip(chosen, leaves, scales, signed, strict=True):
                values, moves = point[leaf.part], far * scale * unit
                point[leaf.part] = _beside(leaf, values, moves, chosen[number])
            if phi.is_bound:
                point = problem.point + phi.tangential(point - problem.point)
            yield point


def _beside(leaf: Leaf, values: Vector, moves: Vector, why: str) -> Vector:
    """Values that were moved, and still are what their function may take them for: probabilities,
    unit vectors, edges in their order, symmetric matrices.
    """
    moved, grid = values + moves, leaf.grid
    if why == SUM:
        # Short formats hold sums less closely than these numbers are held here.
        axis = _axis_of_sums(values.reshape(grid), min(BITS.values()))
        drawn = np.abs(moves).reshape(grid)
        mixed = values.reshape(grid) + NEAR[0] * drawn / np.max(drawn, initial=np.finfo(float).tiny)
        return np.asarray((mixed / mixed.sum(axis, keepdims=True)).ravel())
    if why == STILL:
        return np.asarray(values + np.ravel(moves.reshape(grid) + leaf.turned(moves)) / 2)
    if why == OFF or not grid or grid[-1] < 2:
        return moved
    rows, own = values.reshape(-1, grid[-1]), moved.reshape(-1, grid[-1])
    if why == NORM:
        return np.asarray((own / np.sqrt((own**2).sum(1, keepdims=True))).ravel())
    if (np.diff(rows, axis=1) > 0).all():
        return np.sort(own, axis=1).ravel()
    if (np.diff(rows, axis=1) < 0).all():
        return -np.sort(-own, axis=1).ravel()
    return moved


def _wrong_here(
    phi: Phi, ask: Gradient, allowance: Tolerance, seed: int
) -> tuple[Backward, dict[int, Mistake]] | None:
    """The gradient where the problem now is, and the leaves in which it is wrong; None where there
    is no value, no gradient or no repeatable one.
    """
    try:
        values = phi.here(2)
        backward = ask(phi.cotangent)
        gradient = phi.adjoint(backward.gradient)
    except Exception:  # the point was only guessed to be one: whatever is refused there is no news
        return None
    value = float(values[0])
    if not np.isfinite(values).all() or values[1] != value or not np.isfinite(gradient).all():
        return None
    if phi.problem.bits == DOUBLE and is_certified(phi, gradient, value, allowance, seed):
        return backward._replace(gradient=gradient), {}
    noise = noise_of(phi, value, seed)
    rng = np.random.default_rng([seed, 0xD1])
    scale, _ = phi.scales()
    is_low = phi.problem.layout.bits < DOUBLE
    found = {}
    for number, leaf in enumerate(phi.problem.layout):
        mistakes = []
        for _ in range(TRIES if leaf.size else 0):
            direction = scale[leaf.part] * rng.normal(size=leaf.size)
            lost = rounded(gradient, leaf) if is_low else np.zeros(leaf.size)
            own = gradient[leaf.part], lost
            mistake = slope_along(phi, leaf, *own, direction, value, noise, allowance).mistake
            if (
                mistake is None
                or _is_borne_out(phi, leaf, direction, value, mistake)
                or _is_saturated(phi, leaf, value, mistake)
            ):
                break
            mistakes.append(mistake)
        if len(mistakes) == TRIES:
            found[number] = mistakes[0]
    return backward._replace(gradient=gradient), found


def _is_borne_out(phi: Phi, leaf: Leaf, direction: Vector, value: float, mistake: Mistake) -> bool:
    """Whether several wide steps have nearly the slope that the gradient says: narrow ones may see
    the slope of one stair only, where something larger absorbs what a coordinate adds.
    """
    moved = phi.along(direction, np.concatenate([WIDE, -WIDE]), leaf.start)
    slopes = (moved[: len(WIDE)] - moved[len(WIDE) :]) / (2 * WIDE)
    return bool(bear_out(slopes, mistake.analytic, mistake.truth).all())


def _is_saturated(phi: Phi, leaf: Leaf, value: float, mistake: Mistake) -> bool:
    """Whether all that is left of a slope is next to nothing: rounding may hide a part of that."""
    size = max(abs(mistake.analytic), abs(mistake.truth))
    return size <= nothing_beside(phi, leaf, value, size)
