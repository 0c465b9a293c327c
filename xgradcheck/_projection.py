"""Coverage by random directions: what they certify, and where they do not, what is wrong there.

A certificate costs a few evaluations at any size. Only what it does not pass is searched for the
place of a mistake, and what is found there is differenced like any other coordinate before anything
is called wrong. Then the rest is certified without it, so that one mistake hides no other.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from xgradcheck._certificate import Certificate, Residual, certify
from xgradcheck._differences import NOISE_SIGMAS, Noise, dot, norm, rms
from xgradcheck._directions import Band, Places, bands, influence, power_near
from xgradcheck._judge import WORTH, ZERO, Tolerance
from xgradcheck._layout import DOUBLE, Direction, Leaf, Mask, Vector
from xgradcheck._localise import Search, step_and_bar
from xgradcheck._parts import Found, Node, Off, clear
from xgradcheck._phi import Phi
from xgradcheck._slopes import Mistake

LARGEST = 0.03
"""A norm is certified to ``WORTH`` times the distance that is allowed, and never to more than so
much of itself: at 99.9 % confidence that rejects errors of the distance itself 99 times of 100.
"""
ROUNDS, NUMBERS = 6, 16
"""How often the rest is certified anew without what was found wrong, and along directions of which
numbers.
"""
WIDE = (2.0**-4, -(2.0**-4), 2.0**-1, -(2.0**-1))
"""Steps that move a function of few bits, if anything does."""
LITTLE = 1e-3
"""What share of the others a row is taken to have at least."""
APIECE = 8
"""More rows than that are not searched one by one."""
ROUNDINGS = 8.0
"""Units of rounding, of the norm of a gradient below float64, that a residual may err by."""
SEARCHED, RESERVED = 4000, 64
"""Evaluations that all searches may take, and that they leave of a budget."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of a leaf as a whole."""

    floor: float
    """The least error, relative to the norm of the leaf's gradient, that would have been seen; NaN
    where it has none.
    """
    distance: float
    """What its distance probably is."""
    width: int | None = None
    """Of how many elements the rows are that it holds for, where those were looked at."""
    unseen: float | None = None
    """Of a leaf without a gradient: up to which norm one would not have been seen."""


@dataclass(slots=True)
class Suspect:
    """What was found in one leaf, by its positions in the flat vector."""

    lone: dict[int, Off] = field(default_factory=dict)
    """Single coordinates, by their positions."""
    dense: list[Node] = field(default_factory=list)
    """Rows, columns, blocks of which every coordinate looked at is wrong."""
    probed: dict[int, Off] = field(default_factory=dict)
    """Those coordinates."""
    right: list[int] = field(default_factory=list)
    """Coordinates that were looked at as well, and are right."""
    is_cut: bool = False
    """Whether parts are left that are wrong."""
    drawn: int = 0
    """How many are wrong, going by those that were drawn by chance, all over the leaf."""

    @property
    def size(self) -> int:
        """How many coordinates are taken to be wrong."""
        known = int(self.mask(self.dense[0].leaf).sum()) if self.dense else len(self.lone)
        return max(known, self.drawn)

    @property
    def is_drawn(self) -> bool:
        """Whether more of the same kind lies all over the leaf."""
        return self.drawn > len(self.lone)

    def mask(self, leaf: Leaf) -> Mask:
        """Which elements of its leaf those are."""
        wrong = np.zeros(leaf.start + leaf.size, np.bool_)
        for node in self.dense:
            wrong[node.places] = True
        wrong[np.array([*self.lone], np.intp)] = True
        return wrong[leaf.start :]

    @property
    def is_estimate(self) -> bool:
        """Whether that is so for all that not all of a part was looked at."""
        is_open = self.is_cut or self.is_drawn
        return is_open or any(self.probes(node) < node.size for node in self.dense)

    @property
    def off(self) -> dict[int, Off]:
        """All coordinates that were looked at, those first that are wrong beyond doubt, and those
        that are off by most.
        """
        found = [*(self.probed | self.lone).items()]
        found.sort(key=lambda item: (not item[1].is_plain, -abs(item[1].by)))
        return dict(found)

    @property
    def is_plain(self) -> bool:
        """Whether they are wrong beyond doubt as it is."""
        return all(off.is_plain for off in self.off.values())

    def probes(self, node: Node) -> int:
        """How many coordinates of a part were looked at."""
        return len(self._inside(node))

    def _inside(self, node: Node) -> list[int]:
        return [position for position in self.probed if node.holds(position)]

    def distance(self, gradient: Vector, leaf: Leaf) -> float:
        """That of the leaf, going by what was looked at."""
        own = gradient[leaf.part]
        off = np.array([off.by for off in self.lone.values()])
        given = gradient[np.array([*self.lone], np.intp)]
        if not np.isfinite(off + given).all():
            return 1.0
        more = self.drawn / len(self.lone) if self.is_drawn else 1.0
        error = float(off @ off) * more
        gained = float((given + off) @ (given + off) - given @ given) * more
        for node in self.dense:
            inside = self._inside(node)
            off, given = np.array([self.probed[p].by for p in inside]), gradient[inside]
            error += node.size * float(np.mean(off**2))
            within = gradient[node.places]
            gained += node.size * float(np.mean((given + off) ** 2)) - float(within @ within)
        size = norm(own)
        truth = math.sqrt(max(size**2 + gained, 0.0))
        return min(math.sqrt(error) / (size + truth), 1.0) if size + truth else 0.0


@dataclass(slots=True)
class Projection:
    """What directions told: a bound for each leaf that is certified, and what was found in others.
    ``open`` are those of which not all is known.
    """

    bounds: dict[int, Bound] = field(default_factory=dict)
    suspects: dict[int, Suspect] = field(default_factory=dict)
    open: list[int] = field(default_factory=list)
    mistakes: dict[int, tuple[Mistake, float]] = field(default_factory=dict)
    """Leaves that are wrong along every direction, how, and their distance."""
    kinks: dict[int, int] = field(default_factory=dict)
    """How many elements of a leaf lie on kinks, where all was certified on one side of those."""
    noise: Noise | None = None


@dataclass(slots=True)
class Projecting:
    """The work of one projection."""

    phi: Phi
    given: Vector
    value: float
    allowance: Tolerance
    seed: int
    bits: int = DOUBLE
    """The significant bits of what was given."""
    gradient: Vector = field(init=False)
    """What was given, but where it is not finite."""
    done: Projection = field(default_factory=Projection)
    failed: list[tuple[Band, Certificate]] = field(default_factory=list)
    """The bands that were not certified at first."""
    failed_rows: list[tuple[Band, Certificate, Node]] = field(default_factory=list)
    """The same row by row."""
    is_searched: bool = False
    """Whether what was not certified was searched, as far as that goes."""
    _without: list[Places] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gradient = self.given

    def is_about(self, value: float, gradient: Vector) -> bool:
        """Whether this was the function's value, and the gradient."""
        same = np.array_equal(self.given, gradient, equal_nan=True)
        return same and self.value == value

    def certify(self) -> None:
        """Certify all leaves, as far as that goes."""
        if not math.isfinite(norm(self.gradient)):
            self._set_apart()
        self.failed = self._certify(range(len(self.phi.problem.layout)), 0)

    def certify_rows(self) -> None:
        """Certify every row of every leaf on its own: so many directions, and a floor for each."""
        if not math.isfinite(norm(self.gradient)):
            self._set_apart()
        given = self.phi.problem.layout, self.phi.problem.point, self.gradient
        beside = ZERO[DOUBLE] * (influence(*given) or abs(self.value))
        for number, leaf in enumerate(self.phi.problem.layout):
            if leaf.size:
                self._certify_rows_of(number, leaf, beside)

    def _certify_rows_of(self, number: int, leaf: Leaf, beside: float) -> None:
        layout, point = self.phi.problem.layout, self.phi.problem.point
        unit = power_near(rms(point[leaf.part]))
        band = Band(layout, {number: unit}, 0.0, False, self.seed, tuple(self._without))
        width = leaf.grid[-1] if leaf.grid else 1
        least = LITTLE * math.sqrt(width) * rms(self.gradient[leaf.part])
        floor = estimate = 0.0
        failed = []
        for start in range(leaf.start, leaf.start + leaf.size, width):
            places = slice(start, start + width, 1)
            # A row without a gradient may err by what is little in the others.
            band.size = max(unit * norm(self.gradient[places]), unit * least, beside)
            own = certify(
                functools.partial(_walk_in, self.phi, band, places),
                functools.partial(_product_in, self.gradient, band, places),
                self.value,
                self._allowed(band),
                band.size,
            )
            if own.holds:
                floor = max(floor, own.allowed / band.size)
                estimate = math.hypot(estimate, own.estimate)
            else:
                failed.append((band, own, Node(leaf, places, 0.0, 0.0)))
        size = unit * norm(self.gradient[leaf.part])
        distance = min(estimate / (2 * size), 1.0) if size else 0.0
        self.done.bounds[number] = Bound(floor, distance, width)
        if len(failed) > APIECE:
            self.failed += self._certify([number], NUMBERS)
        else:
            self.failed_rows += failed

    @property
    def is_certain(self) -> bool:
        """Whether all was certified."""
        return not (self.failed or self.failed_rows or self.done.suspects)

    def _set_apart(self) -> None:
        """Elements that are not finite are wrong without any difference."""
        finite = np.isfinite(self.gradient)
        places = np.flatnonzero(~finite)
        self.gradient = np.where(finite, self.gradient, 0.0)
        owners = self.phi.problem.layout.owners(places)
        for owner in np.unique(owners):
            own = places[owners == owner].tolist()
            # Where the slope is infinite, so may be the gradient.
            unknown = [Off(math.inf, math.inf, 0.0, math.isnan(self.given[n])) for n in own]
            self.done.suspects[int(owner)] = Suspect(dict(zip(own, unknown, strict=True)))
        self._without.append(places)

    def search(self, noise: Noise) -> None:
        """Find what is wrong with what was not certified, and certify the rest."""
        failed, self.done.noise = self.failed, noise
        rng, is_over = self._searching()
        for turn in range(1, ROUNDS):
            found = [self._search(band, own, rng, is_over) for band, own in failed]
            if turn == 1:
                rows = self.failed_rows
                found += [self._search(band, own, rng, is_over, row) for band, own, row in rows]
            if not any(part.anything for part in found):
                break
            for part in found:
                self._enter(part)
            bands_left = [band for band, _ in failed] + [row[0] for row in self.failed_rows]
            open_leaves = sorted({number for band in bands_left for number in band.units})
            open_leaves = [number for number in open_leaves if not self._is_all_wrong(number)]
            failed = self._certify(open_leaves, turn * NUMBERS)
            if not failed or is_over():
                break
        left = {number for band, _ in failed for number in band.units}
        for number in left & self.done.suspects.keys():
            self.done.suspects[number].is_cut = True
        if not self.done.suspects:
            left |= {number for row in self.failed_rows for number in row[0].units}
        self.done.open = sorted(left)

    def locate(self, numbers: list[int], noise: Noise) -> None:
        """Find where these leaves are wrong, which are."""
        self.done.noise = noise
        rng, is_over = self._searching()
        for band, own in self._certify(numbers, NUMBERS):
            self._enter(self._search(band, own, rng, is_over))

    def _searching(self) -> tuple[np.random.Generator, Callable[[], bool]]:
        """What a search draws from, and whether it has taken all it may."""
        before, budget = self.phi.evaluations, self.phi.budget

        def is_over() -> bool:
            # What was found so far has to be looked at once more.
            budget.is_cut |= budget.evaluations - budget.spent < RESERVED
            return self.phi.evaluations - before > SEARCHED or budget.is_cut

        return np.random.default_rng([self.seed, 0x10CA1]), is_over

    def give_up(self) -> None:
        """Leave open what was not certified: for a search the function is too noisy."""
        known = self.done.bounds.keys()
        failed = {number for row in self.failed_rows for number in row[0].units}
        leaves = enumerate(self.phi.problem.layout)
        self.done.open = [n for n, leaf in leaves if leaf.size and (n in failed or n not in known)]

    def _certify(self, numbers: "range | list[int]", first: int) -> list[tuple[Band, Certificate]]:
        problem, gradient, failed = self.phi.problem, self.gradient, []
        given = problem.layout, problem.point, gradient, self.value, self.seed
        for band in bands(*given, numbers, self._without, first):
            own = certify(
                functools.partial(_walk, self.phi, band),
                functools.partial(band.product, gradient),
                self.value,
                self._allowed(band),
                band.size,
            )
            if own.holds and not (band.is_zero and self._is_something(band, own)):
                self._note(band, own)
            else:
                failed.append((band, own))
        return failed

    def _is_something(self, band: Band, own: Certificate) -> bool:
        """Whether what has no gradient has a slope, or phi stands still for short steps alone: it
        is rounded inside, or has plateaus.
        """
        products = [band.product(self.gradient, n) for n in range(len(own.residuals))]
        if not own.is_nothing(products):
            return True
        if not own.stood_still(band.product(self.gradient, 0)):
            return False
        values = _walk(self.phi, band, 0, np.array(WIDE))
        return bool((values[np.isfinite(values)] != self.value).any())

    def _allowed(self, band: Band) -> float:
        """The norm of the error that leaves of a band may have together, in their units."""
        share = min(WORTH * self.allowance.distance, LARGEST)
        allowed = (ZERO[DOUBLE] if band.is_zero else share) * band.size
        if self.allowance.atol:
            pairs = zip(band.leaves, band.units.values(), strict=True)
            least = min(float(np.min(unit)) * math.sqrt(leaf.size) for leaf, unit in pairs)
            allowed += self.allowance.atol * least
        return allowed

    def _note(self, band: Band, own: Certificate) -> None:
        for number, unit in band.units.items():
            if band.is_zero:
                bound = Bound(math.nan, 0.0, unseen=own.error / float(np.min(unit)))
            else:
                size = band.sizes[number]
                distance = min(own.estimate / (2 * size), 1.0)
                bound = Bound(own.allowed / size, distance)
            self.done.bounds[number] = bound

    def _search(
        self,
        band: Band,
        own: Certificate,
        rng: np.random.Generator,
        is_over: Callable[[], bool],
        node: Node | None = None,
    ) -> Found:
        """What is wrong along the direction of a band, or of one row, that shows it best."""
        assert self.done.noise is not None
        if not own.residuals or len(own.rungs) < 2:
            return Found()
        number = int(np.argmax([abs(residual.value) for residual in own.residuals]))
        step, bar = step_and_bar(own.rungs, self.done.noise, self.value)
        lost = 0.0
        if self.bits < DOUBLE:
            parts = zip(band.leaves, band.units.values(), strict=True)
            sizes = [norm(self.gradient[leaf.part] * unit) for leaf, unit in parts]
            lost = ROUNDINGS * 2.0**-self.bits * math.hypot(*sizes)
        search = Search(
            self.phi,
            self.gradient,
            band,
            number,
            step,
            bar + lost,
            self.value,
            self.allowance,
            rng,
            is_over,
        )
        residual, uncertain = own.residuals[number].value, lost + _bar(own.residuals[number])
        if node is None:
            return search.run(residual, uncertain)
        return search.take([replace(node, residual=residual, bar=uncertain)])

    def _is_all_wrong(self, number: int) -> bool:
        """Whether nothing is left of a leaf to certify."""
        suspect, leaf = self.done.suspects.get(number), self.phi.problem.layout.leaves[number]
        return suspect is not None and (suspect.is_drawn or suspect.size >= leaf.size)

    def _enter(self, found: Found) -> None:
        """Keep what was found, and keep it still from now on."""
        layout = self.phi.problem.layout
        lone = clear(found.lone)
        owners = layout.owners(np.array([*lone], np.intp))
        for owner, (position, off) in zip(owners, lone.items(), strict=True):
            self.done.suspects.setdefault(int(owner), Suspect()).lone[position] = off
        for node in found.dense:
            owner = next(n for n, leaf in enumerate(layout) if leaf is node.leaf)
            suspect = self.done.suspects.setdefault(owner, Suspect())
            suspect.dense.append(node)
            stop = node.leaf.start + node.leaf.size
            suspect.probed |= {
                p: off for p, off in found.probed.items() if node.leaf.start <= p < stop
            }
            self._without.append(node.places)
        if found.lone:
            self._without.append(np.array(sorted(found.lone), np.intp))
        for number, suspect in self.done.suspects.items():
            leaf = layout.leaves[number]
            last = leaf.start + leaf.size
            suspect.right += [p for p in found.right if leaf.start <= p < last]
            suspect.is_cut |= leaf.start in found.cut
            if leaf.start in found.drawn:
                suspect.drawn = round(found.drawn[leaf.start] * leaf.size)


def is_certified(phi: Phi, gradient: Vector, value: float, allowance: Tolerance, seed: int) -> bool:
    """Whether directions alone show that a gradient is right."""
    work = Projecting(phi, gradient, value, allowance, seed)
    work.certify()
    return work.is_certain


def _walk(phi: Phi, band: Band, number: int, steps: Vector) -> Vector:
    return phi.along(band.direction(number), steps, band.start)


def _walk_in(phi: Phi, band: Band, places: slice, number: int, steps: Vector) -> Vector:
    return phi.along(_part_of(band, places, number), steps, places.start)


def _product_in(gradient: Vector, band: Band, places: slice, number: int) -> float:
    return dot(gradient[places], _part_of(band, places, number))


def _part_of(band: Band, places: slice, number: int) -> Direction:
    return band.direction(number)[places.start - band.start : places.stop - band.start]


def _bar(residual: Residual) -> float:
    return residual.truncation + NOISE_SIGMAS * residual.noise
