"""Where the truth of a wrong leaf is known, and which of its elements are wrong: all that a sweep
or a search has found, and a little more where that tells what its mistakes have in common.
"""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np

from xgradcheck._differences import norm, rms
from xgradcheck._generic import LARGE
from xgradcheck._guess import guesses
from xgradcheck._kinds import Kind
from xgradcheck._layout import Leaf, Mask, Positions, Vector
from xgradcheck._measured import Measured
from xgradcheck._phi import Phi
from xgradcheck._projected import Projected
from xgradcheck._projection import Suspect

SAMPLED, RIGHT = 32, 256
"""Elements of a leaf that are differenced where a search has found none, and those that are looked
at, where the others are right.
"""
GUESSES, LOOKED_AT, SEEN = 6, 12, 1e-6
"""How many places are tried that hold all of what was found; how many elements are looked at in
each; and by which share at least one is off that is wrong, of itself and of its leaf's rms.
"""

Truths = dict[int, tuple[float, float]]
"""Truths and their bars, by their places in the leaf."""


class Known(NamedTuple):
    """Where the truth of a leaf is known, what it is, its bars, and which elements are wrong."""

    places: Positions
    truth: Vector
    bar: Vector
    bad: Mask | None
    is_sample: bool = False
    """Whether others may be wrong as well."""


def known_of(
    phi: Phi, found: Projected | list[Measured], number: int, row: int, may_run: bool
) -> Known | None:
    """What is known of one leaf in one row; where nothing is, and it ``may_run``, some is
    differenced.
    """
    leaf = phi.problem.layout.leaves[number]
    if isinstance(found, Projected):
        known = _projected(phi, found, number, row, may_run)
    else:
        known = _swept(found[row], leaf)
    usable = np.isfinite(known.truth) & np.isfinite(known.bar)
    if not usable.any():
        return None
    truths = known.truth[usable], known.bar[usable]
    return Known(known.places[usable], *truths, known.bad, known.is_sample)


def slopes_at(phi: Phi, index: Positions, wide: float = 1.0) -> Vector | None:
    """Central differences, good enough to know a cause by; None where there are none."""
    try:
        scale, _ = phi.scales()
        steps = wide * 2.0 ** (-phi.problem.bits / 3) * scale[index]
        above, below = phi.pairs(index, steps)
    except Exception:  # nothing that was only tried may hide what was found
        return None
    slope = (above - below) / (2 * steps)
    return slope if np.isfinite(slope).all() else None


def _slopes_and_bars(phi: Phi, leaf: Leaf, places: Positions) -> tuple[Vector, Vector] | None:
    """Central differences in a leaf, and by how much they change over steps twice as wide."""
    narrow, wide = (slopes_at(phi, leaf.start + places, step) for step in (1.0, 2.0))
    return None if narrow is None or wide is None else (narrow, np.abs(wide - narrow))


def _swept(row: Measured, leaf: Leaf) -> Known:
    """What the differences of one leaf say, where they are slopes."""
    part, truth = leaf.part, row.truth
    gradient, value, bar = row.backward.gradient[part], truth.value[part], truth.bar[part]
    allowed = row.allowance.allowed(gradient, value, rms(value)) + row.run.excused[part]
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(gradient - value) - bar <= allowed)
    # What was right at once was not looked at again.
    is_slope = (truth.settled[part] | ~bad) & (truth.kinds[part] <= Kind.EDGE)
    places = np.flatnonzero(is_slope)
    return Known(places, value[places], bar[places], bad)


def _projected(phi: Phi, found: Projected, number: int, row: int, may_run: bool) -> Known:
    leaf = phi.problem.layout.leaves[number]
    gradient = found.runs[row].backward.gradient[leaf.part]
    suspect = found.projection.suspects.get(number)
    known = _searched(leaf, gradient, suspect)
    restricted = found.restricted
    if restricted is not None and number in restricted.numbers:
        part = restricted.layout.leaves[restricted.numbers.index(number)]
        swept = _swept(found.looked[row], part)
        if part.size == leaf.size:
            return swept
        places = restricted.places[part.part][swept.places] - leaf.start
        known |= _by_place(places, swept.truth, swept.bar)
    if not known and not may_run:
        return Known(np.empty(0, np.intp), np.empty(0), np.empty(0), None)
    is_part = suspect is not None and (suspect.is_cut or suspect.is_drawn)
    if not known or (is_part and may_run):
        # Of what a search has left nothing is known, neither that it is right.
        return _sampled(phi, leaf, gradient, suspect, known)
    bad = None if suspect is None else suspect.mask(leaf)
    if bad is not None:
        # What directions certify without these is right.
        some = _some(leaf.size, 4 * RIGHT)
        for place in some[~bad[some]][:RIGHT]:
            known.setdefault(int(place), (float(gradient[place]), 0.0))
    return Known(*_in_order(known), bad)


def _searched(leaf: Leaf, gradient: Vector, suspect: Suspect | None) -> Truths:
    """What a search has found."""
    found = {} if suspect is None else suspect.off
    places = {position - leaf.start: off for position, off in found.items()}
    return {place: (float(gradient[place]) + off.by, off.bar) for place, off in places.items()}


def _sampled(
    phi: Phi, leaf: Leaf, gradient: Vector, suspect: Suspect | None, known: Truths
) -> Known:
    """Some more elements differenced, and the place of what is wrong, as far as they tell it."""
    places = _some(leaf.size, SAMPLED)
    if (slopes := _slopes_and_bars(phi, leaf, places)) is not None:
        known = _by_place(places, *slopes) | known
    zeros = _where_zero(gradient, known)
    are_wrong = zeros is not None and not _are_right(zeros, known)
    if are_wrong or suspect is None or not suspect.lone:
        return Known(*_in_order(known), zeros if are_wrong else None)
    place, is_all = _guessed(phi, leaf, gradient, suspect)
    if place is None and zeros is None:
        place = np.isin(np.arange(leaf.size), np.array([*suspect.lone]) - leaf.start)
    return Known(*_in_order(known), zeros if place is None else place, not is_all)


def _guessed(phi: Phi, leaf: Leaf, gradient: Vector, suspect: Suspect) -> tuple[Mask | None, bool]:
    """The place of what is wrong in a leaf, by what was found of it, and whether that is all; None
    where there is none.
    """
    if leaf.is_complex or leaf.size > LARGE:
        return None, False
    wrong = np.array([*suspect.lone]) - leaf.start
    right = np.array(suspect.right, np.intp) - leaf.start
    # A zero may be right in the midst of what is wrong.
    right = right[gradient[right] != 0]
    least = SEEN * rms(gradient)

    def are_wrong(places: Positions) -> Mask:
        found = _slopes_and_bars(phi, leaf, places)
        if phi.budget.is_cut or found is None:
            return np.zeros(places.size, bool)
        slopes, bars = found
        return np.asarray(
            np.abs(gradient[places] - slopes) > 4 * bars + SEEN * np.abs(slopes) + least
        )

    def is_wrong(place: int) -> bool:
        return bool(are_wrong(np.array([place])).all())

    some = None
    for guess in islice(guesses(wrong, right, leaf.shape, is_wrong), GUESSES):
        if _is_full(guess.inside, gradient, are_wrong):
            if _is_right(phi, leaf, gradient, ~guess.inside):
                return guess.inside, True
            some = guess.inside if guess.may_be_more and some is None else some
    return some, False


def _is_full(inside: Mask, gradient: Vector, are_wrong: Callable[[Positions], Mask]) -> bool:
    """Whether nearly all is wrong in a place, but for zeros."""
    places = np.flatnonzero(inside)
    count = min(LOOKED_AT, places.size)
    some = np.sort(np.random.default_rng(0x401D5).choice(places, count, replace=False))
    wrong = are_wrong(some)
    return int(wrong.sum()) > 1 and int((~wrong & (gradient[some] != 0)).sum()) <= 1


def _is_right(phi: Phi, leaf: Leaf, gradient: Vector, part: Mask) -> bool:
    """Whether a gradient is right along a direction in a part of its leaf."""
    drawn = np.random.default_rng(0xD1EC7).normal(size=leaf.size)
    direction = part * drawn * phi.scales()[0][leaf.part]
    steps = 2.0 ** (-phi.problem.bits / 3) * np.array([1.0, -1.0, 2.0, -2.0])
    try:
        found = phi.along(direction, steps, leaf.start)
    except Exception:  # nothing that was only tried may hide what was found
        return False
    narrow, wide = (found[::2] - found[1::2]) / (2 * steps[::2])
    terms = gradient * direction
    bar = 4 * abs(wide - narrow) + SEEN * norm(terms)
    return bool(abs(float(terms.sum()) - narrow) <= bar)


def _where_zero(gradient: Vector, known: Truths) -> Mask | None:
    """All zeros of a gradient, where those that were looked at are what is wrong with it."""
    places, truth, bar = _in_order(known)
    found = gradient[places]
    wrong = np.abs(found - truth) > 0.01 * np.abs(truth) + bar
    if wrong.sum() < 3 or found[wrong].any() or (np.abs(truth) > bar)[~wrong & (found == 0)].any():
        return None
    return np.asarray(gradient == 0)


def _are_right(zeros: Mask, known: Truths) -> bool:
    """Whether the truth is zero at some zeros of a gradient as well."""
    places, truth, bar = _in_order(known)
    return bool((zeros[places] & (np.abs(truth) <= bar)).any())


def _by_place(places: Positions, truth: Vector, bar: Vector) -> Truths:
    truths = zip(truth.tolist(), bar.tolist(), strict=True)
    return dict(zip(places.tolist(), truths, strict=True))


def _in_order(known: Truths) -> tuple[Positions, Vector, Vector]:
    """Places, and what is known there: truths and bars."""
    places = sorted(known)
    truth, bar = np.array([known[place] for place in places]).reshape(-1, 2).T
    return np.array(places, np.intp), truth, bar


def _some(size: int, count: int) -> Positions:
    """Some elements of a leaf of that size, always the same."""
    if size <= count:
        return np.arange(size)
    return np.unique(np.random.default_rng(0xCA05E).integers(size, size=count))
