"""Slopes from differences at several steps, each with a bound on its own error.

A central difference errs by ``h^2 f'''/6 + sigma / h``: truncation and rounding noise. Neither is
guessed here. The noise ``sigma`` is read off the function's own values, the truncation off several
step sizes, and Neville's table of extrapolations (Ridders 1982, Adv. Eng. Software 4) yields the
value whose bar is smallest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._differences import BAR_SIGMAS, EVEN, NOISE_SIGMAS, Noise, even_part
from xgradcheck._layout import Mask, Vector

# Differences of a smooth function shrink from level to level as the steps' powers do; within this
# factor they "contract".
CONTRACTION = 1.6
DEEPEST = 4
BIASED = 4.0
LOUDEST = 0.3
# Rungs nearer to each other than this agree whatever the function does, and tell nothing.
LEAST_RATIO = 1.4
LEAST_KINK = 1e-7
"""One-sided slopes nearer to each other than this, relative, are one slope."""


@dataclass(slots=True)
class Estimate:
    """Slopes at m coordinates: ``low == high`` where the function is smooth, the one-sided slopes
    at a kink.

    ``truncation`` and ``noise`` (one standard deviation) bound the error. ``settled`` says that
    the differences converge as the steps shrink: without it no gradient is called wrong.
    """

    low: Vector
    high: Vector
    truncation: Vector
    noise: Vector
    settled: Mask

    @property
    def bar(self) -> Vector:
        return self.truncation + BAR_SIGMAS * self.noise

    @property
    def middle(self) -> Vector:
        """The slope, or the middle between the one-sided ones."""
        return self.low / 2 + self.high / 2

    def part(self, where: slice) -> "Estimate":
        """The slopes at some of the coordinates."""
        return Estimate(*(getattr(self, name)[where] for name in self.__dataclass_fields__))

    def near(self, gradient: Vector) -> Vector:
        """The slope that agrees best with ``gradient``: at a kink any between the one-sided ones
        is right.
        """
        return np.where(
            np.isfinite(gradient),
            np.clip(gradient, self.low, self.high),
            self.middle,
        )


def estimate(rungs: Vector, value: float, noise: Noise) -> Estimate:
    """The best slope at m coordinates from rungs of shape (3, levels, m): steps h, phi at ``x + h``
    and phi at ``x - h``; NaN where a level is missing.

    Central and one-sided tables are made from the same values. A kink near by spoils the central
    one and that of its own side; the other side still converges. A kink at the point itself shows
    as two sides that both converge, to different slopes.
    """
    steps, plus, minus = _uncrowded(widest_first(rungs))
    sigmas = noise.of(np.fmax(np.abs(plus), np.abs(minus)), steps)
    with np.errstate(all="ignore"):
        slopes = (plus - minus) / (2 * steps), (plus - value) / steps, (value - minus) / steps
        central, ahead, behind = _tables(steps, slopes, sigmas, (2, 1, 1))
        gap = np.abs(ahead.low - behind.low)
        kink = ahead.settled & behind.settled & (gap > 2 * (ahead.bar + behind.bar))
        kink &= gap > LEAST_KINK * np.fmax(np.abs(ahead.low), np.abs(behind.low))
        central.settled &= ~_cusp(steps, plus, minus, value, sigmas)
    best = central
    for side in (ahead, behind):
        # One side has to be much better: its table has the more terms to get wrong.
        better = (BIASED * side.bar < best.bar) & (side.settled | ~best.settled) | (
            side.settled & ~best.settled
        )
        best = chosen_from(better, side, best)
    best = _at_an_edge(best, steps, plus, minus, value, sigmas)
    with np.errstate(all="ignore"):
        last = _narrowest(steps, plus, minus, value, sigmas)
        of_one = np.any([_suits(best, side) for side in last], axis=0)
        of_both = _suits(ahead, last[1]) & _suits(behind, last[2])
        best.settled &= np.where(kink, of_both, of_one)
    return Estimate(
        low=np.where(kink, np.fmin(ahead.low, behind.low), best.low),
        high=np.where(kink, np.fmax(ahead.low, behind.low), best.high),
        truncation=np.where(kink, np.fmax(ahead.truncation, behind.truncation), best.truncation),
        noise=np.where(kink, np.fmax(ahead.noise, behind.noise), best.noise),
        settled=best.settled,
    )


def _at_an_edge(
    best: Estimate, steps: Vector, plus: Vector, minus: Vector, value: float, sigmas: Vector
) -> Estimate:
    """At the edge of a domain phi may go like a power of h that is half an odd number, x^1.5: a
    series in the root of h holds those too.
    """
    for side, beyond, sign in ((plus, minus, 1.0), (minus, plus, -1.0)):
        alone = np.isfinite(side).any(axis=0) & ~np.isfinite(beyond).any(axis=0)
        if alone.any():
            with np.errstate(all="ignore"):
                slopes = sign * (side - value) / steps
                (rooted,) = _tables(steps, (slopes,), sigmas, (0.5,))
                better = alone & rooted.settled & ((rooted.bar < best.bar) | ~best.settled)
            best = chosen_from(better, rooted, best)
    return best


def _narrowest(
    steps: Vector, plus: Vector, minus: Vector, value: float, sigmas: Vector
) -> list[tuple[Vector, Vector]]:
    """The slopes of the narrowest steps, between both sides, ahead and behind, and how unsure each
    is: it errs by less than half its distance to the last but one, and by its noise.
    """
    finite = np.isfinite(steps + plus + minus)
    last = len(steps) - 1 - np.argmax(finite[::-1], axis=0)
    rows = np.array([last, np.maximum(last - 1, 0)])
    h, up, down, sigma = (
        np.take_along_axis(part, rows, axis=0) for part in (steps, plus, minus, sigmas)
    )
    found = []
    for slope in ((up - down) / (2 * h), (up - value) / h, (value - down) / h):
        unsure = np.abs(slope[0] - slope[1]) / 2 + NOISE_SIGMAS * 2 * sigma[0] / h[0]
        found.append((slope[0], np.where(finite.any(axis=0), unsure, np.inf)))
    return found


def _suits(best: Estimate, narrowest: tuple[Vector, Vector]) -> Mask:
    """Whether a slope is that of the narrowest steps too, as far as one can see: wide steps may
    skip whole periods of a function and agree with each other all the same.
    """
    slope, unsure = narrowest
    return np.asarray(~(np.abs(slope - best.low) > 2 * best.bar + unsure))


def _uncrowded(rungs: Vector) -> Vector:
    steps = rungs[0]
    crowded = np.zeros(steps.shape, bool)
    last = steps[0]
    for row in range(1, len(steps)):
        crowded[row] = steps[row] * LEAST_RATIO > last
        last = np.where(crowded[row], last, steps[row])
    return widest_first(np.stack([np.where(crowded, np.nan, steps), *rungs[1:]]))


def widest_first(rungs: Vector) -> Vector:
    """The rungs from the widest step to the narrowest, missing ones last."""
    order = np.argsort(-np.where(np.isfinite(rungs[0]), rungs[0], -np.inf), axis=0)
    return np.take_along_axis(rungs, order[None], axis=1)


def _cusp(steps: Vector, plus: Vector, minus: Vector, value: float, sigmas: Vector) -> Mask:
    """Where ``(f(x + h) + f(x - h) - 2 f(x)) / h`` does not fall with h.

    A smooth function's falls like h. Where it does not, as at a kink or at a cusp, the central
    differences may agree on a slope that the function does not have.
    """
    known = np.isfinite(steps + plus + minus)
    even = np.where(known, even_part(plus, minus, value) / steps, np.nan)
    jitter = NOISE_SIGMAS * EVEN * sigmas / steps
    found = np.zeros(steps.shape[1], bool)
    before = np.full(steps.shape[1], np.nan)
    for row, quiet in zip(even, jitter, strict=True):
        there = np.isfinite(row)
        found = np.where(there & np.isfinite(before), (row > quiet) & (row > 0.9 * before), found)
        before = np.where(there, row, before)
    return found


def chosen_from(where: Any, first: Estimate, second: Estimate) -> Estimate:
    pairs = [
        (getattr(first, name), getattr(second, name)) for name in Estimate.__dataclass_fields__
    ]
    return Estimate(*(np.where(where, one, other) for one, other in pairs))


def _tables(
    steps: Vector, slopes: Sequence[Vector], sigmas: Vector, orders: Sequence[float]
) -> list[Estimate]:
    """Neville's tables of these slopes, each in ``h**order``."""
    times, count = len(slopes), steps.shape[1]
    found = _table(
        np.tile(steps, times), np.hstack(slopes), np.tile(sigmas, times), np.repeat(orders, count)
    )
    parts = [slice(start, start + count) for start in range(0, times * count, count)]
    return [found.part(part) for part in parts]


def _table(steps: Vector, slopes: Vector, sigmas: Vector, order: Vector) -> Estimate:
    """Neville's table in ``h**order``; of its entries the one of least bar that no entry with
    smaller steps contradicts.
    """
    levels, count = steps.shape
    powers = steps**order
    change = np.full_like(slopes, np.nan)
    change[1:] = slopes[1:] - slopes[:-1]
    after = np.vstack([slopes[1:], np.full((1, count), np.nan)])
    is_central = order == 2

    def noise_of(weights: Vector) -> Vector:
        shares = np.where(weights != 0, weights * sigmas / steps, 0.0)
        spread = _root_sum_of_squares(shares)
        # phi(x) stands in every one-sided quotient: its rounding does not average out.
        one_sided = np.hypot(spread, np.sum(shares, axis=-2))
        return np.asarray(np.where(is_central, spread / np.sqrt(2), one_sided))

    steady = (np.eye(levels) - np.eye(levels, k=-1))[:, :, None]
    jitter = NOISE_SIGMAS * noise_of(steady)
    smooth, shrinking = _contraction(powers, slopes, change, jitter)
    entries: list[tuple[Vector, Vector, Vector, Any, int]] = []
    values, weights = slopes.copy(), np.eye(levels)[:, :, None] * np.ones(count)
    previous = values
    for depth in range(min(levels - 1, DEEPEST) + 1):
        older, previous = previous, values
        if depth:
            ratio = 1.0 / (powers[:-depth] / powers[depth:] - 1.0)
            values = values[1:] + (values[1:] - values[:-1]) * ratio
            weights = weights[1:] + (weights[1:] - weights[:-1]) * ratio[:, None]
        noises = noise_of(weights)
        for entry in range(0 if depth else 1, levels - depth):
            row = entry + depth
            value = values[entry]
            if depth == 0:
                truncation = np.fmax(np.abs(change[row]), np.abs(change[row - 1]) / 4)
            else:
                truncation = np.fmax(
                    np.abs(value - previous[entry + 1]), np.abs(value - previous[entry]) / 2
                )
            if depth >= 2:
                truncation = np.fmax(
                    truncation, np.abs(previous[entry + 1] - older[entry + 1]) / 16
                )
            first = max(2, entry + 1)
            contracting = (
                smooth[first : row + 1].all(axis=0) if depth and row >= 2 else np.zeros(count, bool)
            )
            # Two steps may agree by chance: what does not contract has to suit the next one too.
            # A change that is missing must not count as none.
            reach = np.fmax(np.abs(value - slopes[row]), np.abs(value - after[row]))
            wary = np.maximum(np.fmax(truncation, reach), np.abs(change[row]))
            truncation = np.where(contracting, truncation, 3 * wary) + 2.0**-52 * np.abs(value)
            entries.append((value, truncation, noises[entry], contracting | shrinking[row], row))
    return _best(entries)


def _root_sum_of_squares(shares: Vector) -> Vector:
    largest = np.max(np.abs(shares), axis=-2)
    unit = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return np.asarray(unit * np.sqrt(np.sum((shares / unit[..., None, :]) ** 2, axis=-2)))


def _contraction(powers: Vector, slopes: Vector, change: Vector, jitter: Vector) -> tuple[Any, Any]:
    """Per row: whether the last two changes contract as a smooth function's do, and whether they
    shrink at all.
    """
    quiet = np.abs(change) <= jitter
    smooth, shrinking = np.zeros(change.shape, bool), quiet.copy()
    for row in range(2, len(change)):
        want = (powers[row - 2] - powers[row - 1]) / (powers[row - 1] - powers[row])
        last, before = np.abs(change[row]), np.abs(change[row - 1])
        ratio = change[row - 1] / change[row]
        steady = (want / CONTRACTION <= ratio) & (ratio <= want * CONTRACTION)
        faded = quiet[row - 1] | (before <= 2 * want * jitter[row])
        # Noise as large as the slope itself would hide any change.
        faded &= jitter[row] <= LOUDEST * np.abs(slopes[row])
        smooth[row] = np.where(quiet[row], faded, steady)
        shrinking[row] |= last <= 0.6 * before
    return smooth, shrinking


def _best(entries: list[tuple[Vector, Vector, Vector, Any, int]]) -> Estimate:
    assert entries
    value, truncation, noise, settled = (
        np.array([entry[part] for entry in entries]) for part in range(4)
    )
    rows = np.array([entry[4] for entry in entries])
    bar = truncation + BAR_SIGMAS * noise
    bar = np.where(np.isfinite(bar) & np.isfinite(value), bar, np.inf)
    clash = np.zeros(bar.shape, bool)
    for number, row in enumerate(rows):
        finer = rows > row
        if finer.any():
            apart = np.abs(value[number] - value[finer]) > bar[number] + bar[finer]
            clash[number] = apart.any(axis=0)
    admissible = np.where(clash, np.inf, bar)
    admissible = np.where(np.isinf(admissible).all(axis=0), bar, admissible)
    pick = np.argmin(admissible, axis=0)[None]
    value, truncation, noise, settled, bar = (
        np.take_along_axis(part, pick, axis=0)[0]
        for part in (value, truncation, noise, settled, bar)
    )
    unknown = np.isinf(bar)
    value, truncation = np.where(unknown, 0.0, value), np.where(unknown, np.inf, truncation)
    return Estimate(value, value, truncation, np.where(unknown, 0.0, noise), settled & ~unknown)
