"""Leaves that cannot move freely: which directions are left to them, and what of a gradient can be
seen along those.

The derivative of phi along ``T e_i``, the i-th coordinate direction projected onto the tangent
space, is ``(T^T grad)_i``. So a constrained leaf is checked like any other, with projected
directions and a projected gradient; the part of a gradient that leaves the constraint is free.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Layout, Leaf, Vector, bits_of

Linear = Callable[[Vector], Vector]

NAMES = ("symmetric", "simplex", "positive")
TRIES = 4
"""Sums that a projection must respect to be called linear."""
CLOSE = 1e-8
"""How well a point has to satisfy its constraint, relative."""
ROUNDINGS = 32.0
"""Units of rounding of its dtype that it may miss it by, where those are more."""


@dataclass(frozen=True, slots=True)
class Tangent:
    """The tangent space of one leaf, as maps of flat vectors: the projection and its adjoint."""

    project: Linear
    adjoint: Linear
    words: str
    reach: Vector | None = None
    """How far each coordinate may move, where the space ends."""
    is_flat: bool = True
    """Whether the tangent space is the same at every point."""


Constraint = str | Callable[[Any], Any] | Tangent
"""As it is given, or the tangent space that it has come to."""


def tangents(
    constraint: Constraint | Mapping[str, Constraint] | None,
    layout: Layout,
    point: Vector,
    from_numpy: Callable[[Any], Any],
) -> dict[int, Tangent]:
    """The tangent spaces of the constrained leaves, by their numbers.

    A constraint for all leaves constrains those that satisfy it; one for a named leaf is refused
    where that leaf does not.
    """
    if constraint is None:
        return {}
    if not isinstance(constraint, Mapping):
        tried = {
            n: _tangent(constraint, leaf, point, from_numpy)
            for n, leaf in enumerate(layout)
            if leaf.size
        }
        found = {n: tangent for n, tangent in tried.items() if isinstance(tangent, Tangent)}
        if not found:
            raise InvalidCase(
                f"constraint={_said(constraint)} fits no leaf: "
                + "; ".join(str(why) for why in tried.values())
                + "."
            )
        return found
    found = {}
    for key, wanted in constraint.items():
        numbers = [n for n, leaf in enumerate(layout) if key in (leaf.name, *leaf.names)]
        if not numbers:
            raise InvalidCase(
                f"constraint has {key!r}, which is no leaf; the leaves are "
                f"{', '.join(layout.names)}."
            )
        tangent = _tangent(wanted, layout.leaves[numbers[0]], point, from_numpy)
        if isinstance(tangent, str):
            raise InvalidCase(f"constraint={_said(wanted)}: {tangent}.")
        found[numbers[0]] = tangent
    return found


def _said(constraint: Any) -> str:
    return repr(constraint) if isinstance(constraint, str) else "a projection"


def _tangent(
    constraint: Any, leaf: Leaf, point: Vector, from_numpy: Callable[[Any], Any]
) -> Tangent | str:
    """The tangent space, or why the leaf does not lie in the constraint."""
    if isinstance(constraint, Tangent):
        return constraint
    values = point[leaf.part].reshape(leaf.grid)
    if not values.size:
        return f"{leaf.name} is empty"
    if callable(constraint):
        return _of_projection(constraint, leaf, values, from_numpy)
    if constraint not in NAMES:
        listed = ", ".join(map(repr, NAMES))
        raise InvalidCase(f"constraint={constraint!r} is not {listed} or a projection.")
    if leaf.is_complex and constraint != "symmetric":
        return f"{leaf.name} is complex"
    return {"symmetric": _symmetric, "simplex": _simplex, "positive": _positive}[constraint](
        leaf, values
    )


def _close(leaf: Leaf) -> float:
    return max(CLOSE, ROUNDINGS * 2.0 ** -bits_of(leaf.dtype))


def _symmetric(leaf: Leaf, values: Vector) -> Tangent | str:
    if len(leaf.shape) < 2 or leaf.shape[-1] != leaf.shape[-2]:
        return f"{leaf.name} is not square, its shape is {list(leaf.shape)}"
    word = "Hermitian" if leaf.is_complex else "symmetric"
    if np.abs(values - leaf.turned(values)).max() > _close(leaf) * np.abs(values).max():
        return f"{leaf.name} is not {word}"

    def project(flat: Vector) -> Vector:
        return np.asarray((flat.reshape(leaf.grid) + leaf.turned(flat)) / 2).ravel()

    return Tangent(project, project, f"{word} matrices")


def _simplex(leaf: Leaf, values: Vector) -> Tangent | str:
    if values.ndim == 0 or values.shape[-1] == 1:
        return f"{leaf.name} has rows of one element, which cannot move"
    if not (values > 0).all():
        return f"{leaf.name} is not positive throughout"
    if np.abs(values.sum(-1) - 1).max() > _close(leaf):
        return f"{leaf.name} does not sum to 1 along its last axis"

    def project(flat: Vector) -> Vector:
        rows = flat.reshape(leaf.shape)
        return np.asarray(rows - rows.mean(-1, keepdims=True)).ravel()

    # One element grows by h (1 - 1/n), the others shrink by h / n.
    least = values.min(-1, keepdims=True) * values.shape[-1]
    return Tangent(project, project, "the simplex", np.minimum(values, least).ravel())


def _positive(leaf: Leaf, values: Vector) -> Tangent | str:
    if not (values > 0).all():
        return f"{leaf.name} is not positive throughout"
    return Tangent(_same, _same, "positive numbers", values.ravel())


def _same(flat: Vector) -> Vector:
    return flat


def _of_projection(
    projection: Callable[[Any], Any], leaf: Leaf, values: Vector, from_numpy: Callable[[Any], Any]
) -> Tangent | str:
    """The tangent space of the image: of a linear projection the image itself, of another its
    derivative at the point.
    """

    kind = np.dtype(np.complex128 if leaf.is_complex else np.float64)

    def apply(flat: Vector) -> Vector:
        parts = flat.reshape(leaf.grid)
        moved = parts[0] + 1j * parts[1] if leaf.is_complex else parts.copy()
        found = np.asarray(projection(from_numpy(moved)))
        if found.dtype != kind:
            raise InvalidCase(
                f"the projection of {leaf.name} returns {found.dtype}: it must return {kind}."
            )
        if found.shape != leaf.shape:
            raise InvalidCase(
                f"the projection of {leaf.name} returns shape {list(found.shape)} for "
                f"{list(leaf.shape)}: it must keep the shape."
            )
        return np.ravel([found.real, found.imag] if leaf.is_complex else found)

    point = values.ravel()
    rng = np.random.default_rng(0)
    size = float(np.abs(point).max()) or 1.0
    whole, is_linear = point, True
    for _ in range(TRIES):
        first, second = size * rng.normal(size=(2, leaf.size))
        whole, parts = apply(first + second), apply(first) + apply(second)
        is_linear &= bool(np.abs(whole - parts).max() <= CLOSE * np.abs(parts).max(initial=size))
    if is_linear:
        if np.abs(apply(whole) - whole).max() > CLOSE * np.abs(whole).max(initial=size):
            return f"the function given for {leaf.name} is no projection: twice is not once"
        matrix, is_flat = np.stack([apply(row) for row in np.eye(leaf.size)], axis=1), True
        if not matrix.any():
            return f"the projection of {leaf.name} leaves it no direction"
    elif np.abs(apply(point) - point).max() <= _close(leaf) * size:
        matrix = np.stack([_derivative(apply, point, size * row) for row in np.eye(leaf.size)], 1)
        matrix, is_flat = matrix / size, False
    else:
        return f"{leaf.name} is not where the projection puts it: pass the projected value"
    return Tangent(
        lambda flat: np.asarray(matrix @ flat),
        lambda flat: np.asarray(matrix.T @ flat),
        "the image of the projection",
        is_flat=is_flat,
    )


def _derivative(apply: Linear, point: Vector, direction: Vector) -> Vector:
    # Central differences at three steps, extrapolated twice: error h^6, 1e-13 here.
    slopes = [
        (apply(point + h * direction) - apply(point - h * direction)) / (2 * h)
        for h in (2.0**-6, 2.0**-7, 2.0**-8)
    ]
    finer = [(4 * fine - coarse) / 3 for coarse, fine in pairwise(slopes)]
    return np.asarray((16 * finer[1] - finer[0]) / 15)
