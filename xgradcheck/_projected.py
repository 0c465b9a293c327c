"""The rows of a check by projection: what directions certify stands as it is, what they do not is
differenced, coordinate by coordinate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xgradcheck._adapters import Backward
from xgradcheck._as_run import Near, errors_near_by
from xgradcheck._budget import plan
from xgradcheck._differences import Noise, norm, rms
from xgradcheck._directions import influence, unit_of
from xgradcheck._generic import LARGE, NearBy, is_symmetric
from xgradcheck._judge import NEGLIGIBLE, PIECE, ZERO, Judged, Verdict, distance, judge, tolerance
from xgradcheck._layout import DOUBLE, Leaf, Positions, Vector
from xgradcheck._measured import Measured, Run
from xgradcheck._meetings import is_a_choice
from xgradcheck._one_side import on_one_side
from xgradcheck._phi import Phi, noise_of
from xgradcheck._projection import Bound, Projecting, Projection
from xgradcheck._restricted import Part, Restricted
from xgradcheck._rows import Asked, judged_beside, near_by_of, swept
from xgradcheck._slopes import account_of, slope_along
from xgradcheck._truth import COMPLEX

FEW = 256
"""Up to so many coordinates a sweep is cheap."""
SWEPT = 5000
"""Up to so many are swept where directions leave something open."""
LOOKED_AT = 12
"""Of so few coordinates that a search has found wrong each gets all steps at once."""
CONFIRMED = 2
"""So many leaves are differenced with all care, by their worst coordinate, before they are called
wrong; if they are, the search is believed where it has found others that are wrong by far.
"""
SYMMETRIC = 20_000
"""Up to so many elements of a symmetric matrix are differenced, which is right only as a whole."""
MANY = 500
"""Coordinates of a leaf that are differenced where none of them is wrong beyond doubt."""
WORST, LARGEST = 64, 8
"""Of a large leaf that is not right as it runs: how many coordinates are differenced, those that
are off by most, and how many of the largest.
"""


SOME = 2048
"""Along so many coordinates of each leaf the noise of a large point is measured."""


FAINT = {53: 3e-4, 24: 5e-3, 11: 0.3, 8: 0.45}
"""Up to which floor a leaf passes that directions do not certify, by the significant bits: beyond,
it would hide a mistake that matters.
"""


@dataclass(frozen=True, slots=True)
class Fine:
    """A leaf of another run that is right beside a gradient that was certified."""

    distance: float
    floor: float
    is_zero: bool = False


@dataclass(frozen=True, slots=True)
class Projected:
    """What was found out: by directions, and of some coordinates by differences, for each run of
    the backward pass.
    """

    phi: Phi
    value: float
    spread: float
    """By how much phi varies from call to call at one point."""
    runs: Sequence[Run]
    projection: Projection
    fine: Sequence[dict[int, Fine]]
    """For each run after the first, the leaves that need no second look."""
    restricted: Restricted | None
    """What was differenced."""
    looked: Sequence[Measured]
    """And what came out, run by run."""
    near_by: Mapping[str, NearBy]
    """What a generic point near by shows, by the modes of the runs."""
    held: list[str]
    """What the function changes whenever it runs, held still."""
    bits: int = DOUBLE
    """The significant bits of the arithmetic that was differenced."""
    rtol: float | None = None
    """The tolerance that was asked for in the place of the usual one."""
    unraised: str = ""
    """Why the truth was not computed in float64, where the function runs below that."""


Lost = Callable[[Leaf], Vector]
"""What each element of a leaf may have lost by rounding."""


class NeedsNear(Exception):
    """It has to be known what rounding does to a run below float64, at points near by: to all
    coordinates, which are to be swept, or to these, which are what the work so far has left to look
    at.
    """

    def __init__(self, places: Positions | None = None, work: Projecting | None = None) -> None:
        super().__init__("asked for too early")
        self.places, self.work = places, work


def wants_projection(phi: Phi, asked: Asked) -> bool:
    """Whether this is to be checked by directions first."""
    if asked.coverage in ("projection", "rows"):
        return True
    if asked.coverage != "auto" or asked.steps is not None or asked.spaces:
        return False
    size = phi.problem.layout.size
    is_cheap = size <= FEW and phi.budget.evaluations >= plan("sweep", size, 0, 0.0).evaluations
    return not is_cheap and asked.method != COMPLEX


def at_once(phi: Phi, asked: Asked) -> tuple[Projected | None, Projecting]:
    """A float64 function checked by one run of its backward pass and a certificate; where that
    does not suffice None, and what was learnt.
    """
    backward = phi.gradient()
    gradient = backward.gradient
    value = backward.value if backward.value is not None else float(phi.here(1)[0])
    run = Run(backward, np.broadcast_to(0.0, gradient.shape))
    work = Projecting(phi, gradient, value, tolerance(asked.rtol, asked.atol), asked.seed)
    _certify(work, asked)
    if not work.is_certain:
        phi.phase = ""
        return None, work
    return _finished(phi, (value, 0.0), [run], asked, work, None, [], []), work


def projected(
    phi: Phi,
    value: float,
    spread: float,
    runs: Sequence[Run],
    asked: Asked,
    work: Projecting | None,
    lost: Lost | None = None,
    is_swept: bool = False,
) -> Projected | None:
    """The rows of these runs, the first of them in float64; None where a sweep is better, or leaves
    no more open. ``work`` is what was done already, ``lost`` what the first run may have lost by
    rounding, ``is_swept`` says that a sweep has found nothing.
    """
    gradient, layout = runs[0].backward.gradient, phi.problem.layout
    is_low = phi.problem.bits < DOUBLE or runs[0].bits is not None
    if work is None or not work.is_about(value, gradient):
        bits = runs[0].bits or DOUBLE
        allowance = tolerance(asked.rtol, asked.atol, bits, runs[0].given)
        work = Projecting(phi, gradient, value, allowance, asked.seed, bits)
        if not is_low:
            _certify(work, asked)
    if not is_low and not work.is_certain and not work.done.suspects:
        _take_one_side(work, runs[0].backward, asked)
    if asked.spaces and not work.is_certain:
        phi.phase = ""
        return None  # a search knows no tangents
    if (is_low or not work.is_certain) and not work.is_searched:
        phi.phase = "noise"
        found = _noise_of(phi, value, asked.seed)
        work.done.noise = found = replace(found, sigma=max(found.sigma, spread))
        phi.phase = "search"
        if not is_low and found.bits == DOUBLE:
            work.search(found)
        else:
            work.give_up()
        work.is_searched = True
        if work.done.open and (layout.size > SWEPT or found.bits < DOUBLE):
            _measure_slopes(phi, runs[0], value, found, asked, work.done, lost)
            if found.bits == DOUBLE and not lost:
                phi.phase = "search"
                work.locate([*work.done.mistakes], found)
    noise = work.done.noise
    done, small = work.done, list[int]()
    # What was found is confirmed before a budget ends in a sweep.
    is_dear = phi.budget.evaluations - phi.budget.spent < 2 * layout.size
    if (done.open or done.mistakes) and not (is_dear and done.suspects):
        assert noise is not None
        if done.open if is_swept else layout.size <= SWEPT:
            phi.phase = ""
            return None
        small = _small(phi, [*done.open, *done.mistakes]) if noise.bits == DOUBLE else []
    fine = [_fine_leaves(phi, run, gradient, asked, done) for run in runs[1:]]
    given = phi, runs[0], value, work
    symmetric = {n for n in done.suspects if _may_be_right_symmetrised(*given, n)}
    chosen = _chosen(phi, runs, done, fine, symmetric) | dict.fromkeys(small)
    restricted, looked = None, list[Measured]()
    if chosen:
        restricted = Restricted(phi.problem, chosen)
        # What is wrong in float64 needs no excuse below it, at a point that is large.
        if layout.size > LARGE and chosen.keys() <= done.suspects.keys():
            runs = [replace(run, near=Near(asked.seed, restricted.places, {})) for run in runs]
        if any(run.bits is not None and run.near is None for run in runs[1:]):
            raise NeedsNear(restricted.places, work)
        is_suspect = chosen.keys() <= done.suspects.keys()
        # What moves a few coordinates alone may leave most of the rounding as it is.
        own = None if chosen.keys() <= {*small} else noise
        looked = _looked(phi, value, spread, runs, asked, restricted, own, lost, is_suspect)
        acquitted = _acquitted(restricted, looked[0], done)
        for number in _choices(phi, gradient, restricted, looked[0], done):
            acquitted.append(number)
            del done.suspects[number]
            done.mistakes.pop(number, None)
        if acquitted and layout.size <= SWEPT and not is_dear:
            phi.phase = ""
            return None
        done.open += acquitted
    return _finished(phi, (value, spread), runs, asked, work, restricted, looked, fine)


def _take_one_side(work: Projecting, backward: Backward, asked: Asked) -> None:
    """Certify at points beside kinks what they keep from being certified at the point."""
    if asked.coverage == "rows":
        return
    work.phi.phase = "one side"
    side = on_one_side(work.phi, backward, work.value, work.allowance, asked.seed)
    if side is not None:
        work.failed, work.done.bounds, work.done.kinks = [], side.bounds, side.kinks


def _acquitted(restricted: Restricted, row: Measured, done: Projection) -> list[int]:
    """The leaves that were searched in vain: what was found there is not wrong, and was not all."""
    found = []
    for number, part in zip(restricted.numbers, restricted.layout, strict=True):
        suspect = done.suspects.get(number)
        if suspect is None or not isinstance(part, Part):
            continue
        is_all = not suspect.dense and {*suspect.lone} <= {*part.places.tolist()}
        is_known = number in done.mistakes or (is_all and number in done.bounds)
        if not _is_wrong(row, part) and not is_known:
            found.append(number)
    return found


def is_open(row: Measured, asked: Asked) -> bool:
    """Whether a sweep of a function that computes below float64 has found nothing wrong and leaves
    something open: its noise may drown single coordinates, and not the directions of a leaf.
    """
    if row.work.noise.bits == DOUBLE or asked.coverage != "auto" or asked.spaces:
        return False
    if asked.steps is not None or asked.rtol is not None or asked.method == COMPLEX:
        return False
    leaves = (leaf for leaf in row.work.layout if leaf.size)
    return Verdict.of([_judged(row, leaf).verdict for leaf in leaves]) is Verdict.INCONCLUSIVE


def _choices(
    phi: Phi, gradient: Vector, restricted: Restricted, row: Measured, done: Projection
) -> list[int]:
    """The leaves that are wrong by a choice among equal numbers, which no coordinate alone shows to
    be right; the whole point has to move for that.
    """
    found, scale = [], phi.scales()[0]
    for number, part in zip(restricted.numbers, restricted.layout, strict=True):
        suspect = done.suspects.get(number)
        if suspect is None or not isinstance(part, Part) or not _is_wrong(row, part):
            continue
        if suspect.is_plain:
            continue  # a choice is one at a kink, and there is none
        leaf, accused = phi.problem.layout.leaves[number], np.array([*suspect.off], np.intp)
        if is_a_choice(phi, gradient, scale, leaf, accused, suspect.size):
            found.append(number)
    return found


def _is_wrong(row: Measured, leaf: Leaf) -> bool:
    """Whether an element of a leaf is wrong in a row."""
    return bool(_judged(row, leaf).failed.any())


def _judged(row: Measured, leaf: Leaf) -> Judged:
    """What the elements of a leaf come to in a row."""
    part, truth = leaf.part, row.truth
    return judge(
        row.backward.gradient[part],
        truth.value[part],
        truth.bar[part],
        truth.settled[part],
        row.allowance,
        truth.zero_below[part],
        truth.still[part],
        row.run.excused[part],
        faint=truth.faint[part],
    )


def _small(phi: Phi, numbers: Sequence[int]) -> list[int]:
    """As many of these leaves, the smallest first, as can be swept."""
    leaves, found, left = phi.problem.layout.leaves, list[int](), SWEPT
    for number in sorted(numbers, key=lambda number: leaves[number].size):
        left -= leaves[number].size
        if left < 0:
            break
        found.append(number)
    return found


def _measure_slopes(
    phi: Phi,
    run: Run,
    value: float,
    noise: Noise,
    asked: Asked,
    done: Projection,
    lost: Lost | None,
) -> None:
    """The leaves that are open judged by slopes along directions, each with its own bar: wrong
    where all of them are, right to a floor of their own where that is low enough.
    """
    phi.phase = "slopes"
    layout, gradient = phi.problem.layout, run.backward.gradient
    bits = min(noise.bits, run.bits or DOUBLE)
    allowance = tolerance(asked.rtol, asked.atol, bits, run.given)
    whole = np.broadcast_to(run.excused, gradient.shape)
    for number in tuple(done.open):
        leaf = layout.leaves[number]
        own, excused = gradient[leaf.part], whole[leaf.part]
        if lost is not None:
            excused = excused + lost(leaf)
        seed, faint = asked.seed, FAINT[bits]
        told = account_of(phi, leaf, own, excused, value, noise, allowance, seed, faint)
        if told.mistake is not None:
            done.mistakes[number] = told.mistake, told.distance
        elif told.is_right:
            done.bounds[number] = Bound(told.floor, told.distance)
    done.open = [n for n in done.open if n not in done.bounds and n not in done.mistakes]


def _noise_of(phi: Phi, value: float, seed: int) -> Noise:
    """The noise of phi; at a large point, as some coordinates of each leaf have it."""
    layout = phi.problem.layout
    if layout.size <= LARGE:
        return noise_of(phi, value, seed)
    rng = np.random.default_rng([seed, 0x2015E])
    chosen: dict[int, Positions | None] = {}
    for number, leaf in enumerate(layout):
        if leaf.size:
            some = np.unique(rng.integers(leaf.start, leaf.start + leaf.size, SOME))
            chosen[number] = some.astype(np.intp)
    few = Phi(Restricted(phi.problem, chosen), phi.cotangent, budget=phi.budget, coarse=phi.coarse)
    try:
        return noise_of(few, value, seed)
    finally:
        phi.evaluations += few.evaluations


def _certify(work: Projecting, asked: Asked) -> None:
    work.phi.phase = "certificate"
    if asked.coverage == "rows":
        work.certify_rows()
    else:
        work.certify()


def _finished(
    phi: Phi,
    at: tuple[float, float],
    runs: Sequence[Run],
    asked: Asked,
    work: Projecting,
    restricted: Restricted | None,
    looked: Sequence[Measured],
    fine: Sequence[dict[int, Fine]],
) -> Projected:
    phi.phase = "point near by"
    near_by = {run.mode: NearBy({}, None, True) for run in runs}
    # What is wrong here needs no other point to show it.
    if not (_is_any_wrong(work.done, restricted, looked) or phi.budget.is_cut):
        for mode in near_by:
            run = next(run for run in runs if run.mode == mode)
            bits = run.bits or DOUBLE
            allowance = tolerance(asked.rtol, asked.atol, bits, run.given)
            near_by[mode] = near_by_of(phi, run, [], allowance, asked.seed)
    bits = DOUBLE if work.done.noise is None else work.done.noise.bits
    held = phi.problem.moving
    return Projected(
        phi, *at, runs, work.done, fine, restricted, looked, near_by, held, bits, asked.rtol
    )


def _is_any_wrong(
    done: Projection, restricted: Restricted | None, looked: Sequence[Measured]
) -> bool:
    """Whether a leaf is wrong: those are right whose suspects were differenced in vain."""
    parts = dict(zip(restricted.numbers, restricted.layout, strict=True)) if restricted else {}
    suspects = done.suspects.keys()
    return bool(done.mistakes) or any(
        number not in parts or _is_wrong(looked[0], parts[number]) for number in suspects
    )


def _fine_leaves(
    phi: Phi, run: Run, truth: Vector, asked: Asked, done: Projection
) -> dict[int, Fine]:
    """The certified leaves that another run of the backward pass gets right beyond doubt."""
    layout, point, own = phi.problem.layout, phi.problem.point, run.backward.gradient
    bits = run.bits or DOUBLE
    allowance = tolerance(asked.rtol, asked.atol, bits)
    largest = influence(layout, point, own)
    found = {}
    for number in done.bounds.keys() - done.suspects.keys():
        leaf = layout.leaves[number]
        given, right = own[leaf.part], truth[leaf.part]
        nothing = NEGLIGIBLE * ZERO[bits] * largest / float(np.min(unit_of(point[leaf.part])))
        if norm(given) + norm(right) <= nothing:
            found[number] = Fine(0.0, float("nan"), True)
            continue
        score, size = distance(given, right), rms(right)
        if not score <= allowance.distance:
            continue
        most = 0.0
        for start in range(0, leaf.size, PIECE):
            piece = slice(start, start + PIECE)
            slack = run.slack[leaf.part][piece]
            allowed = allowance.allowed(given[piece], right[piece], size) + slack
            if not (np.abs(given[piece] - right[piece]) <= allowed).all():
                break
            most = max(most, float(np.max(allowed)))
        else:
            found[number] = Fine(score, most / size if size else float("nan"))
    return found


def _chosen(
    phi: Phi,
    runs: Sequence[Run],
    done: Projection,
    fine: Sequence[dict[int, Fine]],
    symmetric: set[int],
) -> dict[int, Positions | None]:
    """The coordinates to difference, by leaf; None for all of them, as for ``symmetric`` ones, of
    which the gradient may be wrong element by element and right as a whole.
    """
    layout, gradient = phi.problem.layout, runs[0].backward.gradient
    chosen: dict[int, Positions | None] = {}
    confirmed = 0
    for number, suspect in done.suspects.items():
        leaf = layout.leaves[number]
        if number in symmetric:
            chosen[number] = None
        elif confirmed < CONFIRMED or not suspect.is_plain:
            confirmed += 1
            off = suspect.off
            # Where none is wrong beyond doubt, as at kinks, all that were found are asked.
            any_plain = next(iter(off.values())).is_plain
            if not any_plain and leaf.size <= SWEPT:
                chosen[number] = None
                continue
            worst = np.array(sorted([*off][: 1 if any_plain else MANY]), np.intp)
            # Below float64 what is allowed goes by the largest of a leaf.
            is_wide = _is_wide_alone(runs)
            chosen[number] = worst if is_wide else _with_largest(leaf, gradient, worst, 1)
    for number in done.bounds:
        leaf = layout.leaves[number]
        for run, own in zip(runs[1:], fine, strict=True):
            if number in own or number in done.suspects:
                continue
            if leaf.size <= FEW:
                chosen[number] = None
            else:
                error = np.abs(run.backward.gradient[leaf.part] - gradient[leaf.part])
                error[~np.isfinite(error)] = np.inf  # what is no number comes first, not last
                worst = leaf.start + np.argpartition(-error, WORST)[:WORST]
                chosen[number] = _with_largest(leaf, gradient, worst, LARGEST)
    return chosen


def _may_be_right_symmetrised(
    phi: Phi, run: Run, value: float, work: Projecting, number: int
) -> bool:
    """Whether a leaf is symmetric, and its gradient right along a direction that keeps it so."""
    leaf, noise = phi.problem.layout.leaves[number], work.done.noise
    values = phi.problem.point[leaf.part]
    if leaf.size > SYMMETRIC or not is_symmetric(leaf, values) or noise is None:
        return False
    drawn = np.random.default_rng([work.seed, 0x5717]).normal(size=leaf.grid)
    direction = np.ravel(drawn + leaf.turned(drawn)) * float(np.max(phi.scales()[0][leaf.part]))
    own, lost = run.backward.gradient[leaf.part], np.zeros(leaf.size)
    found = slope_along(phi, leaf, own, lost, direction, value, noise, work.allowance)
    return found.mistake is None


def _is_wide_alone(runs: Sequence[Run]) -> bool:
    """Whether one run in float64 is all that is judged."""
    return len(runs) == 1 and runs[0].bits is None


def _with_largest(leaf: Leaf, gradient: Vector, places: Positions, count: int) -> Positions:
    """These coordinates of a leaf, and those of its largest elements, which tell what is little
    beside them.
    """
    if leaf.size <= len(places) + count:
        return np.arange(leaf.start, leaf.start + leaf.size)
    size = np.abs(np.nan_to_num(gradient[leaf.part], posinf=0, neginf=0))
    largest = leaf.start + np.argpartition(-size, count)[:count]
    return np.union1d(places, largest).astype(np.intp)


def _looked(
    phi: Phi,
    value: float,
    spread: float,
    runs: Sequence[Run],
    asked: Asked,
    restricted: Restricted,
    noise: Noise | None,
    lost: Lost | None,
    is_suspect: bool,
) -> list[Measured]:
    """These coordinates differenced, and judged for each run."""
    places = restricted.places
    part = Phi(restricted, phi.cotangent, budget=phi.budget, tick=phi.tick, phase="differences")
    given = phi.problem.layout, phi.problem.point, runs[0].backward.gradient
    asked = replace(asked, influence=influence(*given))
    first, *others = (_restricted(run, restricted) for run in runs)
    if lost is not None:
        first = replace(first, rounding=first.rounding + _lost_in(restricted, phi, lost))
    # Below float64 what is allowed goes by the others that are looked at.
    is_suspect &= _is_wide_alone(runs) and places.size <= LOOKED_AT
    wide = swept(part, value, spread, first, asked, noise, is_part=True, is_suspect=is_suspect)
    rows = [wide]
    for run, own in zip(runs[1:], others, strict=True):
        errors = None
        if run.bits is not None:
            assert run.near is not None
            gradients = run.backward.gradient, runs[0].backward.gradient
            errors = errors_near_by(phi, *gradients, run.near, run.bits)
            errors = errors if run.near.places is not None else errors.of(places)
        rows.append(judged_beside(part, wide, own, asked, errors, is_part=True))
    phi.evaluations += part.evaluations
    return rows


def _lost_in(restricted: Restricted, phi: Phi, lost: Lost) -> Vector:
    """What the coordinates that are looked at may have lost."""
    found = np.empty(restricted.places.size)
    for number, part in zip(restricted.numbers, restricted.layout, strict=True):
        leaf = phi.problem.layout.leaves[number]
        found[part.part] = lost(leaf)[restricted.places[part.part] - leaf.start]
    return found


def _restricted(run: Run, restricted: Restricted) -> Run:
    """A run, of which these coordinates are kept."""
    places, backward = restricted.places, restricted.kept(run.backward)
    rounding = run.rounding if np.ndim(run.rounding) == 0 else np.asarray(run.rounding)[places]
    return replace(run, backward=backward, slack=run.slack[places], rounding=rounding)
