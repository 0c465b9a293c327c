"""What kind of mistake turns the truth into the gradient that was found.

Each rule knows one kind of mistake and says what the gradient would be if that were all. It counts
only where it leaves next to nothing unexplained, and ten times less than there was: otherwise a
small missing term reads as a factor of 1.00. Where no rule does, nothing is said.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from xgradcheck._differences import norm, rms
from xgradcheck._layout import Leaf, Mask, Positions, Vector
from xgradcheck._places import Place, place_of, slice_name

CLOSE, CLOSER = 1e-2, 1e-4
"""What a rule may leave unexplained, relative, and where only few elements are known."""
MANY, FEWEST = 16, 4
"""Elements from which on many are known, and those that a pattern takes."""
BETTER, TERM = 10.0, 0.05
"""By how much a rule has to be better than none, and what share of the difference a missing term
may leave.
"""
NAMED = 0.01
"""How near a factor comes to a number that it is called by, at most."""
LARGEST = 1e9
"""A factor beyond that has no name."""
SMALL = 4
"""Up to here a whole factor may be anything."""
NOTHING = 1e-6
"""What is zero beside a truth."""
PERMUTED = 4096
"""Slices that are looked for in another order, at most."""


class Cause(NamedTuple):
    """A mistake: its ``kind``, and the sentence that says it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Seen:
    """A wrong gradient of one leaf, and what is known of its truth."""

    leaf: Leaf
    gradient: Vector
    """All of the leaf."""
    point: Vector
    places: Positions
    """Where the truth is known, inside the leaf."""
    truth: Vector
    """At these places."""
    bad: Mask | None = None
    """Which elements are wrong, of the whole leaf; None where that is not known."""
    is_sample: bool = False
    """Whether others may be wrong as well."""
    noise: float = 0.0
    """How well the truth is known, relative to its norm."""
    unit: float = 1.0
    """What a scalar output was multiplied by."""
    extents: frozenset[int] = frozenset()
    """Along the axes of arguments and outputs: of what a sum or a mean may be taken."""
    has_own_key: bool = True
    """Whether no other leaf has the last key of its path."""
    others: Mapping[str, Vector] = field(default_factory=dict)
    """What it may be instead, by what that is called: gradients of other leaves, the cotangent."""

    @functools.cached_property
    def found(self) -> Vector:
        """The gradient where the truth is known."""
        return self.gradient[self.places]

    @property
    def is_whole(self) -> bool:
        """Whether the truth is known of every element, in order."""
        return self.places.size == self.gradient.size

    @functools.cached_property
    def apart(self) -> float:
        """How far gradient and truth are from each other, relative."""
        size = max(norm(self.truth), norm(self.found))
        return norm(self.found - self.truth) / size if size else 0.0

    @property
    def close(self) -> float:
        """How much a rule may leave unexplained."""
        few = CLOSE if self.places.size >= MANY else CLOSER
        return min(max(few, 4 * self.noise), self.apart / BETTER)

    @property
    def name(self) -> str:
        """The gradient, by the name that a user gives it: dW1."""
        path = self.leaf.path
        # params['W1'] is W1 to whoever writes its backward pass.
        is_key = self.has_own_key and len(path) == 2 and isinstance(path[0], int)
        for name in (self.leaf.names[0], path[1] if is_key else ""):
            if isinstance(name, str) and name.isidentifier():
                return f"d{name}"
        return f"grad({self.leaf.names[0]})"

    @property
    def theta(self) -> str:
        """The leaf itself, by the same name."""
        return self.leaf.names[0] if self.name.startswith("grad(") else self.name[1:]

    @functools.cached_property
    def is_all_over(self) -> bool:
        """Whether most of what is not zero is wrong: one large element hides all others in a
        norm.
        """
        if self.bad is None:
            return True
        size = rms(self.truth)
        some = np.maximum(np.abs(self.truth), np.abs(self.found)) > NOTHING * size
        return bool(np.count_nonzero(self.bad[self.places][some]) >= 0.5 * np.count_nonzero(some))


def beside(
    leaf: Leaf, gradient: Vector, truth: Vector, point: Vector, wrong: Mask, noise: float
) -> Cause | None:
    """The mistake that explains a gradient beside one that is known."""
    return cause_of(Seen(leaf, gradient, point, np.arange(leaf.size), truth, wrong, noise=noise))


def cause_of(seen: Seen) -> Cause | None:
    """The one mistake that explains a gradient; None where none does."""
    if not 0 < seen.apart < math.inf or seen.apart <= 4 * seen.noise:
        return None
    rules = (*OF_ALL, *OF_SOME) if seen.is_all_over else OF_SOME
    return next((cause for rule in rules if (cause := rule(seen)) is not None), None)


def _written(factor: float) -> str:
    """A factor with as many digits as tell it from 1."""
    apart = abs(factor - 1)
    digits = max(4, 2 - math.floor(math.log10(apart))) if 0 < apart < 1 else 4
    return f"{factor:.{digits}g}"


def _off(found: Vector, expected: Vector) -> float:
    """What is left of a gradient that is expected to be this, relative; infinite for zeros."""
    size = norm(expected.ravel())
    return norm((found - expected).ravel()) / size if size else math.inf


def _zero(seen: Seen) -> Cause | None:
    if norm(seen.found) > NOTHING * norm(seen.truth):
        return None
    return Cause("zero", f"{seen.name} is zero: cut off from the output, or never written")


def _instead(seen: Seen) -> Cause | None:
    """Another gradient, the cotangent, the leaf itself."""
    if seen.places.size < FEWEST:
        return None
    for called, other in seen.others.items():
        for sign in (1, -1):
            if _off(seen.found, sign * other[seen.places]) <= seen.close:
                return Cause("another", f"{seen.name} = {'-' * (sign < 0)}{called}")
    return None


def _factor(seen: Seen) -> Cause | None:
    truth, found = seen.truth, seen.found
    squared = float(truth @ truth)
    if not squared:
        return None
    with np.errstate(all="ignore"):
        factor = float(found @ truth) / squared
    if not factor or not math.isfinite(factor):
        return None
    off = _off(found, factor * truth)
    gained = max(norm(truth - found) / BETTER, 4 * seen.noise * norm(truth))
    if off > max(CLOSE if truth.size >= MANY else CLOSER, 4 * seen.noise) or (
        off * norm(found) > gained
    ):
        return None
    # Beside a truth that is nearly constant every gradient that is has a factor.
    varied = norm(truth - truth.mean())
    if truth.size >= FEWEST and varied > NOTHING * norm(truth):
        left = norm(found - factor * truth)
        if left > max(abs(factor) * varied / BETTER, 4 * seen.noise * norm(truth)):
            return None
    return _called(seen, factor, 4 * (seen.noise + off))


def _called(seen: Seen, factor: float, unsure: float) -> Cause | None:
    """A factor by its name. One or two elements have some factor always: only a name tells."""
    near = min(max(unsure, 1e-6), NAMED)
    is_sure = seen.truth.size >= FEWEST
    if not 1 / LARGEST < abs(factor) < LARGEST:
        return Cause("factor", f"{seen.name} = {_written(factor)} * truth") if is_sure else None

    def is_about(number: float) -> bool:
        return abs(factor / number - 1) <= near

    def is_near(number: float, to: float) -> bool:
        # Among many whole numbers some number is near by chance.
        return abs(number / to - 1) <= min(near, 0.01 / to)

    if is_about(-1):
        return Cause("sign", f"{seen.name} = -truth: the sign is wrong")
    for number, text in ((2.0, "2 * truth: twice too much"), (0.5, "truth / 2: half is missing")):
        if is_about(number):
            return Cause("factor", f"{seen.name} = {text}")
    sign = "-" * (factor < 0)
    for number, by in ((abs(factor), "{} * truth"), (1 / abs(factor), "truth / {}")):
        whole, square = round(number), round(number**2)
        if whole >= 2 and is_near(number, whole) and (is_sure or whole in seen.extents):
            if whole <= SMALL and whole not in seen.extents:
                return Cause("factor", f"{seen.name} = {sign}{by.format(whole)}")
            way, meant = ("sum", "a mean") if number == abs(factor) else ("mean", "a sum")
            text = f"{sign}{by.format(whole)}: a {way} over {whole} where {meant} is meant?"
            return Cause("factor", f"{seen.name} = {text}")
        if square >= 2 and is_sure and is_near(number**2, square):
            text = f"{sign}{by.format(f'sqrt({square})')}: a scale missing, or applied twice?"
            return Cause("factor", f"{seen.name} = {text}")
    if not is_sure:
        return None
    for n in sorted(seen.extents - {1, 2}) if unsure <= NAMED else ():
        for ratio, by in ((n / (n - 1), f"{n}/{n - 1}"), ((n - 1) / n, f"{n - 1}/{n}")):
            for number, named in ((ratio, f"({by})"), (math.sqrt(ratio), f"sqrt({by})")):
                if is_about(number):
                    text = f"{named} * truth: counts of {n - 1} and {n} exchanged?"
                    return Cause("factor", f"{seen.name} = {text}")
    about = "about " if unsure > NAMED else ""
    return Cause("factor", f"{seen.name} = {about}{_written(factor)} * truth")


def _conjugate(seen: Seen) -> Cause | None:
    leaf = seen.leaf
    if not leaf.is_complex or seen.places.size < FEWEST:
        return None
    sign = np.where(2 * seen.places < leaf.size, 1.0, -1.0)
    if _off(seen.found, sign * seen.truth) > seen.close:
        return None
    return Cause("conjugate", f"{seen.name} = the complex conjugate of the truth")


def _terms(seen: Seen) -> Cause | None:
    """A term that is missing, or that the function lacks: L2, L1, a constant; the first two also in
    some elements alone, as where an intercept is not penalised.
    """
    if seen.places.size < FEWEST or seen.leaf.is_complex:
        return None
    everywhere = np.ones(seen.places.size, bool)
    wrong = everywhere if seen.bad is None else seen.bad[seen.places]
    cause = _term_in(seen, everywhere)
    if cause is None and FEWEST <= wrong.sum() < wrong.size:
        cause = _term_in(seen, wrong)
    return cause


def _term_in(seen: Seen, some: Mask) -> Cause | None:
    missing = (seen.truth - seen.found)[some]
    theta = seen.point[seen.places][some]
    close = max(
        TERM if missing.size >= MANY else CLOSER, 4 * seen.noise * norm(seen.truth) / norm(missing)
    )
    bases = [("constant", "", np.ones(theta.size))] if some.all() else []
    if np.ptp(np.abs(theta)) > 0:
        bases.append(("L2 term", "", theta))
        if np.ptp(np.sign(theta)) > 0:
            bases.append(("L1 term", "sign", np.sign(theta)))
    found = []
    for kind, of, base in bases:
        if not (squared := float(base @ base)):
            continue
        size = float(missing @ base) / squared
        off = _off(missing, size * base)
        # What is left has to be little beside the gradient, too.
        if off <= close and off * norm(missing) <= norm(seen.found) / BETTER:
            found.append((off, kind, of, size / seen.unit))
    found.sort()
    # Values that are nearly constant do not tell one from the other.
    if not found or (len(found) > 1 and found[0][0] * BETTER > found[1][0]):
        return None
    _, kind, of, size = found[0]
    sign = "+-"[size > 0]
    if kind == "constant":
        return Cause("offset", f"{seen.name} = truth {sign} {abs(size):.4g}: off by a constant")
    term = f"{of}({seen.theta})" if of else seen.theta
    text = f"{seen.name} = truth {sign} {abs(size):.4g} * {term}: "
    if size > 0:
        text += f"the {kind} (lambda = {size:.4g}) is missing from the gradient"
    else:
        text += f"the gradient has an {kind} (lambda = {-size:.4g}) that the function lacks"
    return Cause(kind, text if some.all() else f"{text}, in {some.sum()} of {some.size} elements")


class _Moved(NamedTuple):
    """Where the truth would be found in the gradient: for each place that is known its position,
    and whether it has one.
    """

    kind: str
    words: str
    where: Positions
    has: Mask | None = None


def _moved(seen: Seen) -> Cause | None:
    """The same numbers in other places."""
    if seen.places.size < FEWEST or seen.leaf.size < FEWEST:
        return None
    best: tuple[float, _Moved] | None = None
    for way in _ways(seen.leaf.grid, seen.places, seen.leaf.is_complex):
        has = np.ones(seen.places.size, bool) if way.has is None else way.has
        if has.sum() < max(FEWEST, seen.places.size / 2):
            continue
        truth = seen.truth[has]
        # Two numbers that stand for all find a place for each other in many ways.
        if np.count_nonzero(np.abs(truth) > 0.01 * np.abs(truth).max(initial=0.0)) < FEWEST:
            continue
        off = _off(seen.gradient[way.where[has]], truth)
        if off * BETTER > _off(seen.found[has], truth):
            continue
        if off <= seen.close and (best is None or off < 0.1 * best[0]):
            best = off, way
    if best is None:
        return None
    return Cause(best[1].kind, f"{seen.name} = truth {best[1].words}")


def _ways(shape: tuple[int, ...], places: Positions, is_complex: bool) -> "itertools.chain[_Moved]":
    index = [np.asarray(axis) for axis in np.unravel_index(places, shape)]
    first = 1 if is_complex else 0  # the axis of real and imaginary parts
    return itertools.chain(
        _transposed(shape, places, index, first),
        _flipped(shape, index, first),
        *(_along(shape, index, axis, first) for axis in range(first, len(shape))),
    )


def _flipped(shape: tuple[int, ...], index: list[Positions], first: int) -> list[_Moved]:
    """Reversed along an axis, or along two, as the kernel of a convolution."""
    found = []
    long = [axis for axis in range(first, len(shape)) if shape[axis] > 1]
    for axes in (*itertools.combinations(long, 1), *itertools.combinations(long, 2)):
        turned = [*index]
        for axis in axes:
            turned[axis] = shape[axis] - 1 - index[axis]
        own = tuple(axis - first for axis in axes)
        of = f" along {_axes(own)}" if len(shape) - first > 1 else ""
        found.append(_Moved("flipped", f"reversed{of}", np.ravel_multi_index(turned, shape)))
    return found


def _transposed(
    shape: tuple[int, ...], places: Positions, index: list[Positions], first: int
) -> list[_Moved]:
    found = []
    for a, b in itertools.combinations(range(first, len(shape)), 2):
        if shape[a] == shape[b] > 1:
            turned = [*index]
            turned[a], turned[b] = index[b], index[a]
            axes = "" if len(shape) - first == 2 else f" (axes {a - first} and {b - first})"
            where = np.ravel_multi_index(turned, shape)
            found.append(_Moved("transposed", f"transposed{axes}", where))
    if len(shape) - first > 1 and shape[-1] != shape[-2] and min(shape[-2:]) > 1:
        rows, columns = shape[-2:]
        block, inside = np.divmod(places, rows * columns)
        for one in (rows, columns):
            other = rows * columns // one
            where = block * rows * columns + inside % one * other + inside // one
            words = "transposed, in the memory of its own shape"
            found.append(_Moved("transposed", words, where))
    return found


def _along(shape: tuple[int, ...], index: list[Positions], axis: int, first: int) -> list[_Moved]:
    length, found = shape[axis], list[_Moved]()
    if length < 3:
        return found

    def at(moved: Positions) -> Positions:
        return np.asarray(np.ravel_multi_index([*index[:axis], moved, *index[axis + 1 :]], shape))

    own, of = index[axis], f" along axis {axis - first}" if len(shape) - first > 1 else ""
    for by in (1, -1, 2, -2):
        found.append(_Moved("rolled", f"rolled by {by}{of}", at((own + by) % length)))
    for by in (1, -1, 2, -2):
        if length >= 4:
            has = (own + by >= 0) & (own + by < length)
            where = at((own + by) % length)
            found.append(_Moved("shifted", f"shifted by {by}{of}", where, has))
    return found


def _permuted(seen: Seen) -> Cause | None:
    """Slices in another order."""
    if not seen.is_whole or seen.leaf.is_complex:
        return None
    shape, gradient, truth = seen.leaf.grid, seen.gradient, seen.truth
    if len(shape) == 1:
        # Sorted numbers are near each other by chance.
        close = 0.01 * min(seen.close, CLOSER)
        is_other = seen.leaf.size >= 8 and _off(np.sort(gradient), np.sort(truth)) <= close
        text = f"{seen.name} holds the truth's elements in another order"
        return Cause("permuted", text) if is_other else None
    for axis, length in enumerate(shape):
        rows, others = _slices(seen, axis)
        if not 3 <= length <= PERMUTED or others.shape[1] < 3 or length * rows.size > 1e8:
            continue
        order = _matched(rows, others)
        if order is None or _off(rows, others[order]) > seen.close:
            continue
        name, along = slice_name(axis, shape)
        first = int(np.flatnonzero(order != np.arange(length))[0])
        text = (
            f"{seen.name} holds the truth's {name}s{along} in another order: at {first} is "
            f"that of {order[first]}"
        )
        return Cause("permuted", text)
    return None


def _slices(seen: Seen, axis: int) -> tuple[Vector, Vector]:
    """Gradient and truth with a row for each slice along an axis."""
    shape = seen.leaf.grid
    rows, others = (
        np.moveaxis(x.reshape(shape), axis, 0).reshape(shape[axis], -1)
        for x in (seen.gradient, seen.truth)
    )
    return rows, others


def _matched(rows: Vector, others: Vector) -> Positions | None:
    """For each row the one that is nearest to it; None unless each is one row's."""
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2 * rows @ others.T
    order = squares.argmin(1)
    return order if len(np.unique(order)) == len(order) else None


def _reduced(seen: Seen) -> Cause | None:
    """Summed, or averaged, over axes that the leaf has, and spread out again."""
    shape = seen.leaf.grid
    if not seen.is_whole or len(shape) > 4 or seen.leaf.is_complex:
        return None
    gradient, truth = seen.gradient.reshape(shape), seen.truth.reshape(shape)
    long = [axis for axis, length in enumerate(shape) if length > 1]
    for count in range(1, len(long) + 1):
        for axes in itertools.combinations(long, count):
            if np.ptp(gradient, axis=axes).max() > CLOSER * np.abs(gradient).max():
                continue
            for way, reduce in (("summed", np.sum), ("averaged", np.mean)):
                whole = np.broadcast_to(reduce(truth, axis=axes, keepdims=True), shape)
                if _off(gradient, whole) <= seen.close:
                    over = "all its elements" if len(axes) == len(shape) else _axes(axes)
                    text = f"{seen.name} = truth {way} over {over}"
                    return Cause("reduced", f"{text}: an axis too many")
    return None


def _axes(axes: tuple[int, ...]) -> str:
    *others, last = map(str, axes)
    return f"axes {', '.join(others)} and {last}" if others else f"axis {last}"


def _partly(seen: Seen) -> Cause | None:
    """Wrong in one way in one place, or in some elements."""
    bad = seen.bad
    if bad is None or not 0 < bad.sum() < bad.size or seen.leaf.is_complex:
        return None
    # What is far too large makes no zero of anything.
    size = rms(seen.truth) or rms(seen.found)
    if not seen.gradient[bad].any():
        # A zero in place of little is hard to see; where the truth is zero, too, it is right.
        hard = seen.places[(seen.found == 0) & (np.abs(seen.truth) > NOTHING * size)]
        wider = bad.copy()
        wider[hard] = True
        bad = wider if place_of(wider, seen.leaf.shape) is not None else bad
    place = _place(seen, bad)
    inside = bad if place is None else place.inside
    where = _at(seen, bad) if place is None else f"in {place.words}"
    known = inside[seen.places]
    truth = seen.truth[known]
    is_seen = np.abs(seen.found[known]).max(initial=0.0) > NOTHING * size
    if known.sum() >= 2 and is_seen and np.abs(truth).max() <= NOTHING * size:
        text = f"{seen.name} is not zero {where}, where the truth is zero: a mask is missing?"
        return Cause("unmasked", text)
    is_zero = np.abs(seen.gradient[inside]).max() <= NOTHING * size
    if place is None:
        if is_zero and bad.sum() >= 3 and bad.size >= MANY:
            return Cause("masked", f"{seen.name} is zero {where}: a mask?")
        return None
    if is_zero:
        return Cause(place.kind, f"{seen.name} is zero {where}{_block(seen, place)}")
    own = replace(seen, places=seen.places[known], truth=truth, bad=None, others={})
    if known.sum() >= FEWEST and (found := _factor(own)) is not None:
        return Cause(found.kind, f"{where} {found.text}")
    return None


def _place(seen: Seen, bad: Mask) -> Place | None:
    """The place that elements fill; of some rows of many others nothing is known."""
    place = place_of(bad, seen.leaf.shape)
    if place is None or not seen.is_sample:
        return place
    return replace(place, words=f"whole {place.kind}") if place.kind in SLICES else None


SLICES = ("rows", "columns", "slices")


def _at(seen: Seen, bad: Mask) -> str:
    """Where elements are wrong that fill no place."""
    return "where it is wrong" if seen.is_sample else f"at {int(bad.sum())} of {bad.size} elements"


def _scattered(seen: Seen) -> Cause | None:
    """Wrong in one way wherever it is wrong."""
    if seen.bad is None or seen.leaf.is_complex or not 0 < seen.bad.sum() < seen.bad.size:
        return None
    known = seen.bad[seen.places]
    own = replace(seen, places=seen.places[known], truth=seen.truth[known], bad=None, others={})
    if known.sum() < FEWEST or (found := _factor(own)) is None:
        return None
    return Cause(found.kind, f"{_at(seen, seen.bad)} {found.text}")


def _placed(seen: Seen) -> Cause | None:
    """Wrong in one place, whatever it is that is wrong there."""
    if seen.bad is None or seen.leaf.is_complex:
        return None
    place = _place(seen, seen.bad)
    if place is None:
        return None
    return Cause(place.kind, f"{seen.name} is wrong in {place.words} alone")


def _block(seen: Seen, place: Place) -> str:
    """What a tail, of elements or of rows, may be the rest of."""
    shape = seen.leaf.shape
    if place.kind not in ("tail", "rows") or (place.kind == "tail" and len(shape) > 1):
        return ""
    first = int(np.flatnonzero(place.inside)[0]) // math.prod(shape[1:])
    rest = shape[0] - first
    tile = next((tile for tile in (1024, 512, 256, 128, 64, 32, 16, 8) if first % tile == 0), 0)
    is_rest = place.inside[first * math.prod(shape[1:]) :].all()
    return f": what is left beyond whole blocks of {tile}" if is_rest and 0 < rest < tile else ""


def _magnitudes(seen: Seen) -> Cause | None:
    """Right but for signs, or cut off at a size."""
    truth, found = seen.truth, seen.found
    if truth.size < MANY:
        return None
    count = int((found * truth < 0).sum())
    if count >= FEWEST and norm(np.abs(found) - np.abs(truth)) <= seen.close * norm(truth):
        some = f"at {count} of {truth.size} elements" if seen.is_whole else "at some elements"
        text = f"{seen.name} has the truth's sizes and, {some}, "
        return Cause("signs", text + "the wrong sign")
    top = float(np.abs(found).max())
    at_top = np.abs(found) >= 0.999 * top
    if at_top.sum() >= 3 and _off(found, np.clip(truth, -top, top)) <= seen.close:
        return Cause("clipped", f"{seen.name} = truth clipped to ±{top:.4g}")
    return None


def _factors(seen: Seen) -> Cause | None:
    """A factor for each row, column, slice."""
    shape = seen.leaf.grid
    if not seen.is_whole or len(shape) < 2 or seen.leaf.is_complex:
        return None
    for axis, length in enumerate(shape):
        if length < 2:
            continue
        rows, others = _slices(seen, axis)
        if others.shape[1] < FEWEST:
            continue
        squares = np.maximum((others**2).sum(1), np.finfo(float).tiny)
        factors = (rows * others).sum(1) / squares
        # Where most lines are right as they are, what is wrong is better told by its place.
        own = others.any(1) & (np.abs(factors - 1) > seen.close)
        if 2 * own.sum() > length and _off(rows, factors[:, None] * others) <= seen.close:
            name, along = slice_name(axis, shape)
            some = ", ".join(f"{factor:.3g}" for factor in factors[:3])
            more = ", ..." if length > 3 else ""
            return Cause(
                "factors", f"each {name}{along} of {seen.name} has its own factor: {some}{more}"
            )
    return None


Rule = Callable[[Seen], Cause | None]
OF_ALL: tuple[Rule, ...] = (_zero, _factor, _conjugate, _terms, _moved, _instead, _reduced)
"""What holds for a whole leaf."""
OF_SOME: tuple[Rule, ...] = (
    _permuted,
    _partly,
    _magnitudes,
    _factors,
    _terms,
    _placed,
    _scattered,
)
"""What may leave most of a leaf right."""
