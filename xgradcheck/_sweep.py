"""Every coordinate differenced: one central pair for all, more where one pair cannot decide.

A pair costs two evaluations, so the sweep costs 2n. What the pairs cannot tell, their own error,
is measured on a few coordinates of each leaf; and every coordinate whose error is not clearly
inside what is allowed is looked at again, with a ladder of steps of its own.
"""

from itertools import pairwise

import numpy as np

from xgradcheck._differences import (
    BAR_SIGMAS,
    EVEN,
    FACTORS,
    NOISE_SIGMAS,
    UNIT,
    Noise,
    even_part,
    multiples,
    representable,
    rms,
)
from xgradcheck._judge import zero_below
from xgradcheck._ladder import EXPONENTS
from xgradcheck._layout import BATCHED, Positions, Vector
from xgradcheck._second_look import settle_suspicious, suspicious, take_complex_steps
from xgradcheck._truth import COMPLEX, Sweep, Truth

QUIET = (-2, -5, -9, -12, -15)
"""Exponents of two, of a coordinate's natural scale."""
RESOLUTION = 16.0
"""Changes of phi below this many units of rounding may be absorbed inside, by sums larger than
their outcome.
"""
SAMPLED, SAMPLED_FULLY, SAMPLED_LEAVES = 12, 24, 36
"""Coordinates of the sample, how many get all its steps, and the most leaves it looks at."""
FLAT = 1e8
"""How much more than it slopes a function bends over one step at its minimum."""
NARROWER, CONTRACTS = 16.0, 4.0
"""How much narrower another step is, and how much less than that phi bends over it at least, at a
minimum or a kink.
"""
SAFE = 4.0
"""How many times more than usual a coordinate is taken to bend."""
TRIED = (2.0**-10, -(2.0**-10), 2.0**-4)
"""Where batches have to give what single points do, of a full change."""
BLOCK, BATCHES = 32, 4
"""Coordinates between two looks at the progress: so many, or in so many batches."""


def sweep(work: Sweep, eps: Vector | None, seed: int) -> Truth:
    """The numerical gradient at every coordinate, good enough to judge the gradient by its
    allowance.
    """
    rng = np.random.default_rng([seed, 0x5EED])
    _trust_batches(work, np.random.default_rng([seed, 0xBA7C4]))
    truth = _one_pair_each(work, *_steps(work, rng)) if eps is None else _textbook(work, eps)
    if work.method == COMPLEX:
        take_complex_steps(work, truth, np.arange(work.point.size, dtype=np.intp))
    _settle_quiet(work, truth, rng)
    _doubt_peaks(work, truth)
    settle_suspicious(work, truth)
    return truth


def look_at(work: Sweep) -> Truth:
    """The same at a few coordinates that are wrong as far as is known: each gets a ladder of steps,
    since one pair would only say so once more.
    """
    unknown = np.zeros_like(work.point)
    truth = _truth(work, unknown, unknown + np.inf)
    settle_suspicious(work, truth)
    return truth


def _steps(work: Sweep, rng: np.random.Generator) -> tuple[Vector, Vector, Positions, Vector]:
    """For every coordinate the step of its pair and the curvature of its leaf; the sample, and the
    curvatures there.

    Curvature is the worst third derivative of the leaf's sample, times scale^3 / 6; truncation at
    ``scale 2^e`` is that times ``4^e``. Where there are too many leaves to look at each, the others
    count as the worst that was seen.
    """
    leaves = [leaf for leaf in work.layout if leaf.size]
    looked_at = [leaves[place] for place in _some(rng, len(leaves), SAMPLED_LEAVES)]
    each = max(1, SAMPLED // len(looked_at))
    index = np.concatenate([leaf.start + _some(rng, leaf.size, each) for leaf in looked_at])
    exponents = EXPONENTS[work.noise.bits].sample
    enough = exponents if len(index) <= SAMPLED_FULLY else exponents[:2]
    bend = _curvature(work, index, enough)
    owners = work.layout.owners(index)
    steps, curvature = np.empty_like(work.point), np.zeros(work.point.size)
    for number, leaf in enumerate(work.layout):
        own = bend[owners == number]
        worst = min(float(np.max(own if own.size else bend)), 1e300)
        unit = work.scale[leaf.part] * FACTORS[2] * 2.0 ** _best_exponent(worst, work.noise)
        steps[leaf.part] = representable(work.point[leaf.part], unit, work.noise.bits)
        curvature[leaf.part] = worst
    return steps, curvature, index, bend


def _some(rng: np.random.Generator, size: int, count: int) -> Positions:
    return np.sort(rng.choice(size, min(size, count), replace=False)).astype(np.intp)


def _best_exponent(bend: float, noise: Noise) -> int:
    # 3 bend 4^e + 5 sigma 2^-e / sqrt2 is least where 2^(3e) = 5 sigma / (6 sqrt2 bend).
    limits = EXPONENTS[noise.bits]
    if bend <= 0:
        return limits.coarsest
    if noise.sigma <= 0 or not np.isfinite(bend):
        return limits.finest
    ratio = np.log2(NOISE_SIGMAS / (6 * np.sqrt(2))) + np.log2(noise.sigma) - np.log2(bend)
    best = float(ratio) / 3
    return int(np.clip(round(best), limits.finest, limits.coarsest))


def _curvature(work: Sweep, index: Positions, exponents: tuple[int, ...]) -> Vector:
    """The third derivative at each coordinate, times scale^3 / 6, from slopes at a few steps."""
    units = multiples(exponents)[:, None] * work.scale[index]
    steps = representable(work.point[index], units, work.noise.bits)
    work.tick(0, work.point.size, "sweep")
    plus, minus = work.phi.pairs(np.tile(index, len(exponents)), steps.ravel())
    with np.errstate(invalid="ignore", over="ignore"):
        slopes = (plus - minus).reshape(steps.shape) / (2 * steps)
    found = []
    for wide, narrow in pairwise(range(len(exponents))):
        spread = 4.0 ** exponents[wide] - 4.0 ** exponents[narrow]
        with np.errstate(invalid="ignore", over="ignore"):
            found.append(np.abs(slopes[wide] - slopes[narrow]) * work.scale[index] / spread)
    # The least of them: a kink that only the widest step crosses is no curvature.
    least = np.fmin.reduce(found)
    return np.where(np.isfinite(least), least, np.inf)


def _one_pair_each(
    work: Sweep, steps: Vector, curvature: Vector, sampled: Positions, bend: Vector
) -> Truth:
    plus, minus = _pairs_in_blocks(work, steps, 0, work.point.size)
    work.pairs = np.array([steps, plus, minus])
    with np.errstate(all="ignore"):
        slope = (plus - minus) / (2 * steps)
        curvature = np.fmax(curvature, _usual_curvature(work, slope, sampled, bend))
        truncation = 3 * curvature / work.scale * (steps / work.scale) ** 2
        noise = work.slope_noise(plus, minus, steps)
        gap = even_part(plus, minus, work.value) / steps
    truth = _truth(work, slope, truncation + BAR_SIGMAS * noise + 2.0**-52 * np.abs(slope))
    if work.noise.at_zeros is not None:
        truth.bar[work.point == 0] = np.inf
    truth.stationary = gap > FLAT * np.fmax(np.abs(slope), np.abs(work.gradient))
    return truth


def _usual_curvature(work: Sweep, slope: Vector, sampled: Positions, bend: Vector) -> Vector:
    """How much a coordinate bends, going by what it and its leaf do to phi: a sample of a leaf may
    miss what bends most.
    """
    influence = np.abs(slope) * work.scale
    for leaf in work.layout:
        if leaf.size:
            own = influence[leaf.part]
            influence[leaf.part] = np.fmax(own, rms(own[np.isfinite(own)]))
    share = (bend / influence[sampled])[np.isfinite(bend)]
    share = share[np.isfinite(share)]
    # Not the worst of the sample: that may lie next to a kink.
    return SAFE * float(np.quantile(share, 0.8)) * influence if share.size else 0 * influence


def _truth(work: Sweep, slope: Vector, bar: Vector) -> Truth:
    known = np.isfinite(slope) & np.isfinite(bar)
    slope, bar = np.where(known, slope, 0.0), np.where(known, bar, np.inf)
    given, bits = (work.gradient, slope), work.noise.bits
    below = zero_below(work.layout, work.scale, given, bits, work.influence)
    return Truth(slope, bar, work.noise, below)


def _pairs_in_blocks(work: Sweep, steps: Vector, done: int, total: int) -> tuple[Vector, Vector]:
    """All coordinates, leaf by leaf and in blocks, so that a long sweep can say how far it is."""
    plus, minus = np.empty_like(steps), np.empty_like(steps)
    large = any(leaf.size >= BATCHED for leaf in work.layout)
    batch = work.phi.problem.batch if large else 1
    # Each batch holds the point itself, too.
    block = max(BLOCK, BATCHES * (batch - 1))
    for first in range(0, steps.size, block):
        index = np.arange(first, min(first + block, steps.size), dtype=np.intp)
        plus[index], minus[index] = work.phi.pairs(index, steps[index])
        work.tick(done + len(index) + first, total, "sweep")
    return plus, minus


def _trust_batches(work: Sweep, rng: np.random.Generator) -> None:
    """Have points evaluated one by one where several together give other values: rules for batches
    may be wrong, random numbers may fall elsewhere, and what was made of a leaf before may not
    follow it.
    """
    problem = work.phi.problem
    for leaf in work.layout:
        if leaf.size < BATCHED or problem.batch == 1:
            continue
        # All elements at once: one that is left behind is missed.
        direction = rng.choice([-1.0, 1.0], leaf.size) * rng.uniform(0.75, 1.25, leaf.size)
        direction, steps = direction * work.scale[leaf.part], np.array([0.0, *TRIED])
        found = work.phi.batched(direction, steps, leaf.start)
        if found is None:
            continue
        alone = work.phi.along(direction, steps, leaf.start)
        noise = work.noise.of(np.fmax(np.abs(alone), np.abs(work.value)))
        same = np.abs(alone - found) <= 2 * NOISE_SIGMAS * noise
        if not (same | (~np.isfinite(alone) & ~np.isfinite(found))).all():
            problem.one_by_one()
            return


def _textbook(work: Sweep, eps: Vector) -> Truth:
    """``(f(x + eps) - f(x - eps)) / (2 eps)`` to the letter; the bar from one more step, 2 eps,
    and the noise.
    """
    total = 2 * work.point.size
    plus, minus = _pairs_in_blocks(work, eps, 0, total)
    plus2, minus2 = _pairs_in_blocks(work, 2 * eps, work.point.size, total)
    with np.errstate(all="ignore"):
        slope = (plus - minus) / (2 * eps)
        # Twice the step errs by four times the truncation: the difference holds three times that
        # of eps.
        truncation = np.abs((plus2 - minus2) / (4 * eps) - slope)
        noise = work.slope_noise(plus, minus, eps)
        # theta + eps is rounded: the step that was taken is not the step that is divided by.
        travelled = (work.point + eps) - (work.point - eps)
        misstep = np.abs(slope) * np.abs(travelled / (2 * eps) - 1)
        unmoved = travelled == 0
    bar = np.where(
        unmoved, np.inf, truncation + BAR_SIGMAS * noise + misstep + 2.0**-52 * np.abs(slope)
    )
    truth = _truth(work, slope, bar)
    truth.scored = (truth.value.copy(), truth.bar.copy())
    return truth


def _doubt_peaks(work: Sweep, truth: Truth) -> None:
    """Where phi falls off or rises by as much over narrow steps as over wide ones, as beside a line
    narrower than both, neither tells a slope.
    """
    if work.pairs is None or not truth.stationary.any():
        return
    steps, plus, minus = work.pairs
    bend = even_part(plus, minus, work.value)
    with np.errstate(invalid="ignore"):
        noise = NOISE_SIGMAS * EVEN * work.noise.of(np.fmax(np.abs(plus), np.abs(minus)))
        where = np.flatnonzero(truth.stationary & (bend > CONTRACTS * noise))
    if where.size:
        narrow = representable(work.point[where], steps[where] / NARROWER, work.noise.bits)
        ahead, behind = work.phi.pairs(where, narrow)
        contracts = even_part(ahead, behind, work.value) <= bend[where] / CONTRACTS
        apart = np.abs((ahead - behind) / (2 * narrow) - truth.value[where])
        known = contracts & (apart <= noise[where] / narrow + truth.bar[where])
        truth.bar[where[~known]] = np.inf


def _settle_quiet(work: Sweep, truth: Truth, rng: np.random.Generator) -> None:
    """Coordinates that do not move phi at all, like the weights of a dead unit, decided together.

    Where phi stands still to the bit while all of them move at once, at random signs and twice,
    what they do to it is below the resolution of its arithmetic.
    """
    for leaf in work.layout:
        still = (
            (truth.value[leaf.part] == 0)
            & (work.gradient[leaf.part] == 0)
            & suspicious(work, truth, leaf.part)
        )
        if not still.any():
            continue
        scale = work.scale[leaf.part]
        for exponent in QUIET:
            moves = np.where(still, rng.choice([-1.0, 1.0], (2, leaf.size)) * scale, 0.0)
            steps = np.array([2.0**exponent, -(2.0**exponent)])
            if all((work.phi.along(move, steps, leaf.start) == work.value).all() for move in moves):
                bound = RESOLUTION * UNIT * abs(work.value) / (steps[0] * scale)
                truth.bar[leaf.part] = np.where(still, bound, truth.bar[leaf.part])
                truth.still[leaf.part] = still
                break
