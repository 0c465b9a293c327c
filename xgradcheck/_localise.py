"""Which coordinates are wrong, from a direction along which a gradient is, by halving.

With one direction v the residuals of parts of it add up: that of one half tells that of the other.
The position of a lone error follows from two measurements, since weights ``1 + i / m`` change its
residual by its place. Nothing is called wrong from here alone: what is found is looked at again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np

from xgradcheck._certificate import Rung
from xgradcheck._differences import NOISE_SIGMAS, Noise, dot, rms
from xgradcheck._directions import Band, Places
from xgradcheck._guess import span
from xgradcheck._judge import Tolerance
from xgradcheck._layout import Direction, Leaf, Mask, Vector
from xgradcheck._parts import Found, Node, Off, boxed, clear, counted_from, lines
from xgradcheck._phi import Phi

CLEAR = 5.0
"""How many bars a residual has to be before a part is taken apart."""
ALLOWED = 1e-7
"""What share of a part's own slope may be missing without anybody looking."""
ENOUGH, ENOUGH_PARTS = 128, 48
"""Of so many single coordinates that are wrong, or so many whole parts, more would tell nothing
new.
"""
PROBES, PROBES_OF_ALL, PROBES_OF_HALVES, PROBES_AGAIN = 6, 10, 16, 3
"""So many coordinates that are wrong one after the other: the whole part is. More of a whole leaf
and of what halving has left of one, if that is ``LONG``, as a third of it may be right; and fewer
where another leaf was found to be wrong as a whole.
"""
LONG = 64
SMALLER = 4
"""A box that holds all errors is worth while where it is so many times smaller than its leaf."""
FURTHER = 4
"""So many directions show nothing before nothing is wrong: the first one again, and others."""
FEW = 3
"""Parts of so few coordinates are looked at one by one."""
MANY = 64
"""So many parts that are wrong are not all taken apart any more."""
SCATTERED, LOOKS, DRAWN = 0.125, 8, 1024
"""Where such a share of a leaf's coordinates is wrong, of so many that were looked at at least, it
takes less to look at one after the other than to halve: at so many of them.
"""
CHANCE = 1.0
"""By how many standard deviations fewer are wrong where they lie in some places alone."""
TELLING = 32
"""Fewer that were drawn tell no share."""
SLICED = 16
"""So many that are wrong tell whether they are some slices of a leaf."""
USUAL, STEPS = -17, (-26, -8)
SAFE = 2.0
FAR, STRAIGHT = 10.0, 0.1
"""What is wrong by far, in bars; and how much the slopes of both sides may differ there, as a share
of what is wrong.
"""
NEAREST = 0.4
"""A position that is known so well is that of one coordinate."""
TRUSTED = 6.0
"""A difference of residuals that is uncertain by so many bars is measured instead."""


@dataclass(slots=True)
class Search:
    """The search along the first direction of one band."""

    phi: Phi
    gradient: Vector
    band: Band
    number: int
    step: float
    bar: float
    value: float
    allowance: Tolerance
    rng: np.random.Generator
    is_over: Callable[[], bool]
    found: Found = field(default_factory=Found)
    _looks: dict[int, dict[int, bool]] = field(default_factory=dict)
    """Whether coordinates were wrong that chance has chosen, by where their leaf starts."""
    _local: set[int] = field(default_factory=set)
    """Where leaves start in which it lies in some places alone, after all."""
    _leaf: tuple[Leaf, Vector] | None = None
    _found_before: tuple[Leaf, Mask] | None = None

    def run(self, residual: float, bar: float) -> Found:
        """Take the band apart, of which the whole direction has this residual. Where that says
        nothing, it is measured like those of parts, and along further directions: what is wrong at
        one place alone is missed by each that hardly moves it.
        """
        numbers = list(self.band.units)
        nodes = self._wrong_leaves(numbers, residual, bar)
        for further in range(FURTHER):
            if nodes or self.is_over():
                break
            self.number, self._leaf = self.number + min(further, 1), None
            nodes = self._wrong_leaves(numbers, self._residual_of(numbers), self.bar)
        return self.take(nodes)

    def take(self, nodes: list[Node]) -> Found:
        """Take parts apart that are wrong: all of one size, as long as they are few."""
        while nodes and len(nodes) < MANY and not self._is_done():
            nodes = [part for node in nodes for part in self._apart(node)]
        if nodes:
            self._take_some(nodes)
        return self.found

    def _is_done(self) -> bool:
        is_known = len(self.found.lone) >= ENOUGH or len(self.found.dense) >= ENOUGH_PARTS
        return is_known or self.is_over()

    def _take_some(self, nodes: list[Node]) -> None:
        """Take parts apart to their ends, in random order; what is found in some of them tells how
        much there is in all.
        """
        left = [nodes[place] for place in self.rng.permutation(len(nodes))]
        before = {node.leaf.start: self._count_in(node.leaf) for node in nodes}
        while left and not self._is_done():
            parts = self._apart(left.pop())
            left += [parts[place] for place in self.rng.permutation(len(parts))]
        for leaf in {node.leaf.start: node.leaf for node in left}.values():
            if self._is_told(leaf):
                continue
            whole, rest = (sum(n.size for n in own if n.leaf is leaf) for own in (nodes, left))
            found = self._count_in(leaf) - before[leaf.start]
            if found < TELLING:
                self.found.cut.add(leaf.start)
                continue
            count = before[leaf.start] + found * whole / (whole - rest)
            self.found.drawn[leaf.start] = count / leaf.size

    def _count_in(self, leaf: Leaf) -> int:
        """How many coordinates of a leaf are known to be wrong."""
        own = range(leaf.start, leaf.start + leaf.size)
        dense = sum(node.size for node in self.found.dense if node.leaf is leaf)
        return dense + sum(position in own for position in clear(self.found.lone))

    def _wrong_leaves(self, numbers: list[int], residual: float, bar: float) -> list[Node]:
        if not self._is_wrong(residual, bar, [self._slope(number) for number in numbers]):
            return []
        if len(numbers) == 1:
            leaf = self.band.layout.leaves[numbers[0]]
            whole = slice(leaf.start, leaf.start + leaf.size, 1)
            return [Node(leaf, whole, residual, bar)]
        half = len(numbers) // 2
        left = self._residual_of(numbers[:half])
        right, right_bar = residual - left, bar + self.bar
        if right_bar > TRUSTED * self.bar:
            right, right_bar = self._residual_of(numbers[half:]), self.bar
        return [
            *self._wrong_leaves(numbers[:half], left, self.bar),
            *self._wrong_leaves(numbers[half:], right, right_bar),
        ]

    def _slope(self, number: int) -> float:
        leaf = self.band.layout.leaves[number]
        return float(np.linalg.norm(self.gradient[leaf.part] * self.band.units[number]))

    def _is_wrong(self, residual: float, bar: float, slopes: list[float]) -> bool:
        # What is no number was not measured: it accuses nobody.
        return abs(residual) > CLEAR * bar + ALLOWED * float(np.linalg.norm(slopes))

    def _residual_of(self, numbers: list[int]) -> float:
        leaves = [self.band.layout.leaves[number] for number in numbers]
        start, stop = leaves[0].start, leaves[-1].start + leaves[-1].size
        base = self.band.start
        direction = self.band.direction(self.number)[start - base : stop - base]
        return self._residual(start, direction)

    def _residual(self, start: int, direction: Direction) -> float:
        """The slope along a direction less that of the gradient."""
        return self._residual_and_gap(start, direction)[0]

    def _residual_and_gap(self, start: int, direction: Direction) -> tuple[float, float]:
        """The same, and by how much the slopes of both sides differ."""
        steps = np.array([self.step, -self.step])
        plus, minus = self.phi.along(direction, steps, start)
        part = slice(start, start + direction.size)
        product = dot(self.gradient[part], direction)
        gap = abs((plus - self.value) + (minus - self.value)) / self.step
        return float((plus - minus) / (2 * self.step)) - product, float(gap)

    def _weighted(self, node: Node, weights: Vector | float = 1.0) -> float:
        """The residual of a part along its direction, each coordinate by its weight."""
        start, stop = node.position(0), node.position(node.size - 1) + 1
        direction = np.zeros(stop - start)
        direction[counted_from(node.places, start)] = self._direction(node) * weights
        return self._residual(start, direction)

    def _direction(self, node: Node) -> Vector:
        if self._leaf is None or self._leaf[0] is not node.leaf:
            first = node.leaf.start - self.band.start
            own = self.band.direction(self.number)[first : first + node.leaf.size]
            self._leaf = node.leaf, own.astype(float)
        return self._leaf[1][counted_from(node.places, node.leaf.start)]

    def _unit(self, leaf: Leaf, position: int) -> float:
        found = next(
            unit
            for number, unit in self.band.units.items()
            if self.band.layout.leaves[number] is leaf
        )
        return float(found[position - leaf.start]) if isinstance(found, np.ndarray) else found

    def _off_by(self, leaf: Leaf, position: int) -> Off | None:
        """By how much the gradient is off at one coordinate; None where it is right."""
        unit, size = self._unit(leaf, position), abs(float(self.gradient[position]))
        residual, gap = self._residual_and_gap(position, np.array([unit]))
        usual = unit * rms(self.gradient[leaf.part])
        allowed = self.allowance.rtol * unit * size + self.allowance.of_rms * usual
        allowed += self.allowance.atol * unit
        if not abs(residual) > self.bar + allowed:
            self.found.right.add(position)
            return None
        is_far = abs(residual) > FAR * (self.bar + allowed)
        is_plain = is_far and gap <= STRAIGHT * abs(residual) + self.bar
        is_kinked = gap > abs(residual) + self.bar
        return Off(residual / unit, self.bar / unit, allowed / unit, is_plain, is_kinked)

    def _apart(self, node: Node) -> list[Node]:
        """What of a wrong part has to be looked at further."""
        if self._is_told(node.leaf):
            return []
        if node.size <= FEW:
            for place in range(node.size):
                position = node.position(place)
                if (off := self._off_by(node.leaf, position)) is not None:
                    self.found.lone[position] = off
            return []
        if node.depth == 0 or node.streak >= 2:
            if self._is_dense(node):
                self.found.dense.append(node)
                return []
            is_local = node.leaf.start in self._local
            if node.streak >= 2 and not is_local and self._is_scattered(node.leaf):
                self._draw(node.leaf)
            if self._is_told(node.leaf):
                return []
        if self._lone(node):
            return []
        narrowed = None
        if node.depth == 0 and node.size == node.leaf.size > 1:
            narrowed = self._row_or_column(node) or self._box(node)
        return narrowed or self._halves(node)

    def _is_dense(self, node: Node) -> bool:
        probed: dict[int, Off] = {}
        again = any(other.leaf is not node.leaf for other in self.found.dense)
        first = PROBES_OF_HALVES if node.size > LONG else PROBES_OF_ALL
        if node.depth == 0:
            first = PROBES_OF_ALL if node.size == node.leaf.size else PROBES
        count = min(PROBES_AGAIN if again else first, node.size)
        inside = 1 + self.rng.choice(node.size - 2, max(count - 2, 0), replace=False)
        # One of any place first, as ends may all be right by how they lie; then both ends: what is
        # right at one of them is larger than what is wrong.
        for place in (*inside[:1].tolist(), 0, node.size - 1, *inside[1:].tolist())[:count]:
            position = node.position(place)
            off = self._look(node.leaf, position)
            if off is None:
                self.found.lone |= probed
                return False
            probed[position] = off
        self.found.probed |= probed
        return True

    def _look(self, leaf: Leaf, position: int) -> Off | None:
        """By how much the gradient is off at a coordinate that chance has chosen."""
        off = self._off_by(leaf, position)
        if not self._known(leaf)[position - leaf.start]:
            self._looks.setdefault(leaf.start, {})[position] = off is not None
        return off

    def _known(self, leaf: Leaf) -> Mask:
        """What was found of a leaf in earlier searches."""
        if self._found_before is None or self._found_before[0] is not leaf:
            known = np.zeros(leaf.start + leaf.size, np.bool_)
            for places in self.band.without:
                inside = places if isinstance(places, slice) else places[places < known.size]
                known[inside] = True
            self._found_before = leaf, known[leaf.start :]
        return self._found_before[1]

    def _is_scattered(self, leaf: Leaf) -> bool:
        """Whether what is wrong lies all over a leaf, beside what is right."""
        looks = self._looks.get(leaf.start, {})
        count, wrong = len(looks), sum(looks.values())
        return count >= LOOKS and wrong >= SCATTERED * count and count - wrong > 1

    def _draw(self, leaf: Leaf) -> None:
        """Look at the coordinates of a leaf in random order, until enough of them are wrong or
        hardly any turns out to be. What is wrong may be some of its slices.
        """
        size, wrong, right = leaf.size, dict[int, Off](), list[int]()
        order = self.rng.permutation(size) if size <= DRAWN else self.rng.integers(size, size=DRAWN)
        order = order[~self._known(leaf)[order]]
        for position in dict.fromkeys((leaf.start + order).tolist()):
            if self.is_over() or len(wrong) >= ENOUGH:
                break
            fewest = len(wrong) + CHANCE * math.sqrt(len(wrong) + 1)
            if fewest < SCATTERED * (len(wrong) + len(right)):
                self.found.lone |= wrong
                self._local.add(leaf.start)
                return
            if (off := self._look(leaf, position)) is None:
                right.append(position)
                continue
            wrong[position] = off
            if len(wrong) == SLICED and (node := self._slices(leaf, [*wrong], right)) is not None:
                self._forget(leaf)
                self.found.dense.append(node)
                self.found.probed |= wrong
                self.found.sliced.add(leaf.start)
                return
        wrong = clear(wrong)
        count = len(wrong) + len(right)
        if count < min(TELLING, leaf.size):
            self.found.lone |= wrong
            self.found.cut.add(leaf.start)
            return
        self._forget(leaf)
        self.found.lone |= wrong
        self.found.drawn[leaf.start] = len(wrong) / count

    def _forget(self, leaf: Leaf) -> None:
        """Drop what was found in a leaf so far: all of it is told at once."""
        own = range(leaf.start, leaf.start + leaf.size)
        self.found.lone = {p: off for p, off in self.found.lone.items() if p not in own}
        self.found.dense = [node for node in self.found.dense if node.leaf is not leaf]

    def _is_told(self, leaf: Leaf) -> bool:
        """Whether it is known of a leaf as a whole what is wrong."""
        return leaf.start in self.found.drawn or leaf.start in self.found.sliced

    def _slices(self, leaf: Leaf, wrong: list[int], right: list[int]) -> Node | None:
        """The slices along one axis that hold all that is wrong, and nothing of what is right; None
        where there are none.
        """
        if len(leaf.grid) < 2 or len(right) < LOOKS:
            return None
        bad, good = (
            np.unravel_index(np.array(places) - leaf.start, leaf.grid) for places in (wrong, right)
        )
        for axis, length in enumerate(leaf.grid):
            is_wrong = partial(self._is_slice_wrong, leaf, axis)
            if (found := span(bad[axis], good[axis], length, is_wrong)) is not None:
                box = [(0, size) for size in leaf.grid]
                box[axis] = found
                return boxed(leaf, box, 0.0, self.bar)
        return None

    def _is_slice_wrong(self, leaf: Leaf, axis: int, number: int) -> bool:
        """Whether an element of a slice is."""
        place = self.rng.integers(leaf.grid)
        place[axis] = number
        position = leaf.start + int(np.ravel_multi_index(tuple(place), leaf.grid))
        return self._look(leaf, position) is not None

    def _lone(self, node: Node) -> bool:
        """Whether one coordinate alone makes up a part's residual; it is found then."""
        first, last, residual = 0, node.size, node.residual
        blur = (self.bar + node.bar) / abs(residual)
        while True:
            size = last - first
            inside = Node(node.leaf, node.cut(first, last), residual, node.bar)
            # Weighted by its position, a lone error tells where it lies: by weights that are no
            # more than 1, as what is cut short grows with their cubes, and never 0, so that a part
            # without any error does not look as if it had one at its start.
            weights = (1 + np.arange(size) / size) / 2
            ratio = 2 * self._weighted(inside, weights) / residual - 1
            center, window = ratio * size, 2.5 * blur * size
            if not -window - 0.5 <= center <= size - 0.5 + window:
                return False
            if window < NEAREST:
                return self._is_at(inside, center, window)
            if window >= size / 8:
                return False
            start = first
            first, last = max(0, int(center - window)), min(size, int(center + window) + 2)
            first, last = start + first, start + last

    def _is_at(self, node: Node, center: float, window: float) -> bool:
        """Whether the coordinate next to a place makes up a part's residual."""
        place = round(center)
        if not 0 <= place < node.size or abs(center - place) > window + 1e-6:
            return False
        position = node.position(place)
        off = self._off_by(node.leaf, position)
        own = float(self._direction(node)[place])
        uncertain = 2 * (self.bar + node.bar) + 1e-9 * abs(node.residual)
        if off is None or abs(off.by * own - node.residual) > uncertain:
            return False
        self.found.lone[position] = off
        return True

    def _row_or_column(self, node: Node) -> list[Node] | None:
        """The one row or column of the last axis in which all errors lie; None where there is
        none.
        """
        if len(node.leaf.grid) < 2:
            return None
        columns = node.leaf.grid[-1]
        blur = 3 * self.bar / abs(node.residual) + 1e-9
        for axis, count in enumerate((node.size // columns, columns)):
            weight = lines(node.leaf, axis, 0, count)[1] / count
            first = self._weighted(node, weight) / node.residual
            second = self._weighted(node, weight**2) / node.residual
            if abs(second - first**2) > 4 * blur:
                continue
            line = self._line_near(node, axis, count, first * count, blur)
            if line is None:
                continue
            found = self._weighted(Node(node.leaf, line, 0.0, self.bar))
            if abs(found - node.residual) <= 4 * self.bar + 1e-9 * abs(node.residual):
                return [Node(node.leaf, line, found, self.bar)]
        return None

    def _line_near(
        self, node: Node, axis: int, count: int, place: float, blur: float
    ) -> Places | None:
        """The row or column at a place that is known to a share of all of them; looked at more
        closely where that is more than one.
        """
        low, reach = 0, blur * count
        if reach > NEAREST and -reach <= place <= count - 1 + reach:
            low, high = max(0, int(place - reach)), min(count, int(place + reach) + 2)
            count = high - low
            places, number = lines(node.leaf, axis, low, high)
            weights = (1 + number / count) / 2
            near = Node(node.leaf, places, node.residual, node.bar)
            place = (2 * self._weighted(near, weights) / node.residual - 1) * count
        nearest = round(place)
        if not 0 <= nearest < count or abs(place - nearest) > blur * count + 1e-6:
            return None
        return lines(node.leaf, axis, low + nearest, low + nearest + 1)[0]

    def _box(self, node: Node) -> list[Node] | None:
        """The box in which all errors lie, from halving one axis after the other; None where it is
        not much less than the leaf.
        """
        grid, bar = node.leaf.grid, node.bar
        box = [(0, size) for size in grid]
        residual = node.residual
        for axis in range(len(grid) if len(grid) > 1 else 0):
            while box[axis][1] - box[axis][0] > 1:
                first, last = box[axis]
                middle = (first + last) // 2
                left = self._slab(node.leaf, box, axis, first, middle)
                right, right_bar = residual - left, bar + self.bar
                wrong = abs(left) > CLEAR * self.bar, abs(right) > CLEAR * right_bar
                if wrong[0] == wrong[1]:
                    if all(wrong) and SMALLER * (last - first) <= grid[axis]:
                        box[axis] = self._trimmed(node.leaf, box, axis)
                        residual, bar = self._slab(node.leaf, box, axis, *box[axis]), self.bar
                    break
                residual, bar = (left, self.bar) if wrong[0] else (right, right_bar)
                box[axis] = (first, middle) if wrong[0] else (middle, last)
        found = boxed(node.leaf, box, residual, bar)
        return [found] if found.size <= node.size / SMALLER else None

    def _trimmed(self, leaf: Leaf, box: list[tuple[int, int]], axis: int) -> tuple[int, int]:
        """Where errors begin and end along an axis, both halves of which are wrong."""
        first, last = box[axis]
        middle = (first + last) // 2

        def is_wrong(start: int, stop: int) -> bool:
            return abs(self._slab(leaf, box, axis, start, stop)) > CLEAR * self.bar

        low, high = first, middle  # what lies before low is clean, what lies before high is not
        while high - low > 1:
            place = (low + high) // 2
            low, high = (low, place) if is_wrong(first, place) else (place, high)
        begin = low
        low, high = middle, last  # what lies from low on is not clean, what lies from high on is
        while high - low > 1:
            place = (low + high) // 2
            low, high = (place, high) if is_wrong(place, last) else (low, place)
        return begin, high

    def _slab(
        self, leaf: Leaf, box: list[tuple[int, int]], axis: int, first: int, last: int
    ) -> float:
        """The residual of what of a box lies between two places along an axis."""
        part = [*box[:axis], (first, last), *box[axis + 1 :]]
        return self._weighted(boxed(leaf, part, 0.0, self.bar))

    def _halves(self, node: Node) -> list[Node]:
        middle = node.size // 2
        cuts = node.cut(0, middle), node.cut(middle, node.size)
        left = self._weighted(Node(node.leaf, cuts[0], 0.0, self.bar))
        right, right_bar = node.residual - left, node.bar + self.bar
        if right_bar > TRUSTED * self.bar:
            right = self._weighted(Node(node.leaf, cuts[1], 0.0, self.bar))
            right_bar = self.bar
        found = [(cuts[0], left, self.bar), (cuts[1], right, right_bar)]
        wrong = [abs(residual) > CLEAR * bar for _, residual, bar in found]
        streak = node.streak + 1 if all(wrong) else 0
        return [
            Node(node.leaf, cut, residual, bar, node.depth + 1, streak)
            for (cut, residual, bar), is_wrong in zip(found, wrong, strict=True)
            if is_wrong
        ]


def step_and_bar(rungs: list[Rung], noise: Noise, value: float) -> tuple[float, float]:
    """The step at which a slope is best known, and its error there, from the pairs that were taken
    along the whole direction.
    """
    sigma = float(noise.of(np.array(value)))
    # What noise may hide of a bend counts as well: along parts of the direction it may show.
    bends = [
        (abs(wide.residual - narrow.residual) + NOISE_SIGMAS * sigma / (np.sqrt(2) * narrow.step))
        / (wide.step**2 - narrow.step**2)
        for narrow, wide in pairwise(rungs)
    ]
    # Of two pairs that noise alone sets apart the wider tells less than it seems to.
    bend = min(bends, default=0.0)
    if bend > 0 and sigma > 0:
        ideal = np.log2(NOISE_SIGMAS * sigma / (np.sqrt(2) * 4 * bend)) / 3
    else:
        ideal = USUAL
    step = 2.0 ** int(np.clip(round(float(ideal)), *STEPS))
    jitter = NOISE_SIGMAS * sigma / (np.sqrt(2) * step)
    return step, float(jitter + SAFE * bend * step**2)
