"""From numbers to words: what error is allowed, and what follows from an error, its bar and the
allowance.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from xgradcheck._differences import BAR_SIGMAS, NOISE_SIGMAS, norm, rms
from xgradcheck._layout import DOUBLE, Layout, Mask, Vector


class Verdict(StrEnum):
    """PASS: right to the allowance. FAIL: wrong beyond the error bar. INCONCLUSIVE: the truth is
    too uncertain to say. SKIPPED: a probe that does not apply; no report is that.
    """

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    SKIPPED = "SKIPPED"

    @staticmethod
    def of(verdicts: "list[Verdict]") -> "Verdict":
        """FAIL if any is, else INCONCLUSIVE if any is, else PASS."""
        for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
            if verdict in verdicts:
                return verdict
        return Verdict.PASS


class Grade(StrEnum):
    """The name of a distance, as textbooks on gradient checking have it. It decides nothing."""

    GREAT = "great"
    OKAY = "okay"
    SUSPICIOUS = "suspicious"
    WRONG = "wrong"


PIECE = 1 << 20
"""Large vectors are gone through in pieces of so many elements."""


def distance(gradient: Vector, truth: Vector) -> float:
    """``||truth - gradient|| / (||truth|| + ||gradient||)``, between 0 and 1; 0/0 is 0.

    >>> distance(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    0.0
    """
    if not np.isfinite(gradient).all():
        return 1.0
    # Scaled first: the difference of two vectors near the largest float overflows.
    unit = max(
        float(np.max(np.abs(gradient), initial=0.0)), float(np.max(np.abs(truth), initial=0.0))
    )
    if unit == 0:
        return 0.0
    squares = np.zeros(3)
    for start in range(0, gradient.size, PIECE):
        piece = slice(start, start + PIECE)
        given, right = gradient[piece] / unit, truth[piece] / unit
        apart = right - given
        squares += [apart @ apart, right @ right, given @ given]
    error, *sizes = np.sqrt(squares)
    return float(error / sum(sizes))


def grade(value: float) -> Grade:
    """great to 1e-7, okay to 1e-5, suspicious to 1e-3, wrong beyond.

    >>> str(grade(3e-6))
    'okay'
    """
    if value <= 1e-7:
        return Grade.GREAT
    if value <= 1e-5:
        return Grade.OKAY
    # Not a number: nothing was measured, look twice.
    return Grade.WRONG if value > 1e-3 else Grade.SUSPICIOUS


def largest_distance(distances: Iterable[float]) -> float:
    """That of all together; NaN where one of them is not known."""
    return float(np.max([*distances], initial=0.0))


def largest_floor(floors: Iterable[float]) -> float:
    """The smallest error that would have been seen whatever these belong to; NaN where none has a
    floor.
    """
    return max((floor for floor in floors if not math.isnan(floor)), default=math.nan)


def percent(share: float) -> str:
    """A share as a percentage of two digits: 39%, 9.1%, 0.00012%, 3.2e-08%."""
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


WORTH, LITTLE = 10.0, 1e-5
"""How many times the distance that is allowed a leaf may err unseen by directions, and an element
where noise shows no more; and up to which share of its leaf's rms that one.
"""


CANCELS = 1e-2
"""Up to which share of itself an element may err that is what is left of larger terms."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What error a gradient is allowed, by default one of float64.

    An element may err by ``rtol`` of itself, plus ``of_rms`` of its leaf's rms (an element that
    cancels to nearly nothing carries the rounding of its neighbours), plus ``atol``. A leaf's
    distance may reach ``distance``. Right float64 backward passes stay two orders of magnitude
    below; the smallest mistakes people make (an epsilon forgotten, a float32 constant) lie above.
    """

    rtol: float = 1e-6
    of_rms: float = 1e-9
    atol: float = 0.0
    distance: float = 1e-6
    of_constants: float = 0.0
    """Of a leaf's rms, where that is little beside the element: what rounded constants leave."""

    def allowed(self, gradient: Vector, truth: Vector, leaf_rms: float | Vector) -> Vector:
        """The allowed error of each element."""
        # A gradient that is not finite excuses nothing.
        largest = np.fmax(np.where(np.isfinite(gradient), np.abs(gradient), 0.0), np.abs(truth))
        allowed = self.rtol * largest + self.of_rms * leaf_rms + self.atol
        if self.of_constants:
            allowed = allowed + np.fmin(self.of_constants * leaf_rms, CANCELS * np.abs(truth))
        return np.asarray(allowed)

    @property
    def little(self) -> float:
        """What share of its leaf's rms an element may err by unseen."""
        return min(WORTH * self.distance, LITTLE)

    def is_near(
        self, gradient: Vector, truth: Vector, bar: Vector, allowed: Vector, leaf_rms: float
    ) -> Mask:
        """Elements that are right as far as differences tell, and could not err by much: those of
        queries and keys beside values in a fresh network, or where kinks keep steps short.
        """
        within = np.abs(gradient - truth) <= allowed + bar
        return np.asarray(within & (bar <= self.little * np.fmax(np.abs(truth), leaf_rms)))


TOLERANCES = {
    53: Tolerance(),
    24: Tolerance(rtol=1e-4, of_rms=1e-4, distance=5e-5),
    11: Tolerance(rtol=2e-2, of_rms=2e-2, distance=2e-2),
    8: Tolerance(rtol=1e-1, of_rms=1e-1, distance=1e-1),
}
"""By the significant bits of the arithmetic: float64, float32, float16, bfloat16. Right float32
gradients of networks were measured to be off by up to 4e-6 of their leaf's rms.
"""


OF_CONSTANTS, OF_RMS = 2.0**-22, 2e-9
"""Of a leaf's rms, what an element may err by in float64 that was given below, where that is little
beside itself, and in any case: its constants, as ``np.float32(0.1)``, and tables were rounded to
float32, and may cancel.
"""


@functools.cache
def tolerance(
    rtol: float | None, atol: float, bits: int = DOUBLE, given: int = DOUBLE
) -> Tolerance:
    """What an arithmetic of ``bits`` bits is allowed, with the user's ``rtol`` in the place of both
    relative bounds; ``given`` are those of what it was raised from.
    """
    own = replace(TOLERANCES[bits], atol=atol)
    if given < bits == DOUBLE:
        own = replace(own, of_rms=OF_RMS, of_constants=OF_CONSTANTS)
    return own if rtol is None else replace(own, rtol=rtol, distance=rtol)


# A gradient is called zero where anything larger would have moved phi by less than this share of
# what the most influential leaf moves it. That of float32 is 64 units of its rounding, that of 16
# bits all that their rounding leaves.
ZERO = {53: 1e-8, 24: 2.0**-18, 11: 2.0**-7, 8: 2.0**-4}
NEGLIGIBLE = 1e-4
BLURRED = 2.0**-37 / ZERO[DOUBLE]
"""By what share of that differences may err, and be no better however steps are chosen: what moves
phi by 2^-37 of itself over a full change.
"""


def zero_below(
    layout: Layout,
    scale: Vector,
    gradients: tuple[Vector, ...],
    bits: int = DOUBLE,
    largest: float = 0.0,
) -> Vector:
    """What counts as zero in each element, going by the largest influence that any leaf has by any
    of these gradients, or is known to have.
    """
    for leaf in layout:
        for gradient in gradients:
            own = gradient[leaf.part]
            with np.errstate(over="ignore", invalid="ignore"):
                influence = norm(np.where(np.isfinite(own), own, 0.0) * scale[leaf.part])
            # Beyond the largest float there is no scale to call anything zero by.
            largest = max(largest, influence if influence < np.inf else 0.0)
    below = np.empty_like(scale)
    for leaf in layout:
        share = ZERO[bits] / np.sqrt(max(leaf.size, 1))
        below[leaf.part] = share * largest / scale[leaf.part]
    return below


# A bar covers 99.9% of cases. Of a million right elements none may be called wrong by its noise:
# one and a half bars hold five standard deviations of it.
CERTAIN = NOISE_SIGMAS / BAR_SIGMAS


def exceeds(error: Vector, bar: Vector, allowed: Vector) -> Mask:
    """Where an error is more than what is allowed, beyond doubt about the truth; NaN always is."""
    with np.errstate(invalid="ignore"):
        return np.asarray(~(error - CERTAIN * bar <= allowed))


def stand_still(still: Mask, bar: Vector, allowance: Tolerance, leaf_rms: float) -> Mask:
    """Elements that are right because their gradient is zero and phi does not move by a bit, as
    those of a dead unit: what could hide in that is small beside the leaf.
    """
    return np.asarray(still & (bar <= allowance.rtol * leaf_rms))


@dataclass(frozen=True, slots=True)
class Judged:
    """The outcome for one leaf: per element and as a whole."""

    verdict: Verdict
    failed: Mask
    undecided: Mask
    distance: float
    distance_bar: float
    floor: float
    is_zero: bool


def judge(
    gradient: Vector,
    truth: Vector,
    bar: Vector,
    settled: Mask,
    allowance: Tolerance,
    zero_below: Vector,
    still: Mask,
    slack: Vector,
    scored: tuple[Vector, Vector] | None = None,
    faint: Vector | float = 0.0,
    is_beside: bool = False,
) -> Judged:
    """The verdict on one leaf.

    Element: wrong where ``|g - t|`` less the bar exceeds the allowance, right where ``|g - t|`` and
    the bar do not or where it stands still, else undecided. Leaf: the same for its distance.
    ``zero_below`` is what counts as zero in each element, ``still`` marks those that have gradient
    zero and do not move phi by a bit. Below ``faint`` what is not wrong as far as differences tell
    is right: it is nothing beside phi, as the slope of a saturated unit; and so is what they tell
    to a share of that, and what could err by little of its leaf. ``slack`` is allowed on top: by
    how much the gradient does not repeat itself; ``is_beside`` says that all of it may be rounding,
    since another row has no need of it. ``scored`` gives the truth and bar that the distance is
    taken from, where they are not those of the elements (textbook mode).
    """
    leaf_rms = rms(truth)
    allowed = allowance.allowed(gradient, truth, leaf_rms) + slack
    error = np.abs(gradient - truth)
    finite = np.isfinite(gradient)
    with np.errstate(invalid="ignore", divide="ignore"):
        # An infinite slope is no mistake where no difference converges.
        infinite = np.isinf(gradient) & np.isinf(bar) & ~settled
        failed = ~finite & ~infinite | (settled & exceeds(error, bar, allowed))
        undecided = ~failed & ~(error + bar <= allowed)
        undecided &= ~stand_still(still, bar, allowance, leaf_rms)
        seen = np.abs(gradient) + np.abs(truth) + bar
        is_faint = settled & ((seen <= faint) | (bar <= BLURRED * faint))
        is_faint = ~failed & (is_faint | allowance.is_near(gradient, truth, bar, allowed, leaf_rms))
        blurred = is_faint & undecided
        undecided &= ~is_faint
        zero = np.fmax(zero_below, faint)
        # All together: single elements may hold the most of a leaf.
        null = (seen <= zero) | (rms(np.where(seen > 0, seen / zero, 0.0)) <= 1)
        # Below the rounding of what is not zero, two numbers that differ are both zero.
        lost = np.abs(gradient) + np.abs(truth) <= NEGLIGIBLE * zero_below
    is_zero = bool(
        (null & (lost | (np.abs(truth) <= bar) & (np.abs(gradient) <= bar + slack)) | still).all()
    )
    if is_zero:
        undecided = failed = np.zeros_like(failed)
    at, at_bar = scored if scored is not None else (truth, bar)
    # 0/0: two zeros apart by rounding are no distance apart.
    score = 0.0 if is_zero else distance(gradient, at)
    size = norm(at) + norm(np.where(finite, gradient, 0.0))
    score_bar = (1 + score) * norm(at_bar) / size if size > 0 else 0.0
    excused = allowance.atol * np.sqrt(gradient.size) + norm(slack)
    excused += norm(np.where(blurred, error + (1 + score) * bar, 0.0))
    limit = allowance.distance + (excused / size if size > 0 else 0.0)
    unsure = not is_zero and not score + score_bar <= limit
    # All of it may be rounding, and too much of it to be called zero.
    unsure |= not (is_zero or is_beside) and bool(
        slack.any() and ((np.abs(truth) <= bar) & (np.abs(gradient) <= bar + slack)).all()
    )
    if failed.any():
        verdict = Verdict.FAIL
    elif undecided.any() or unsure:
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PASS
    floor = float(np.max(allowed + bar, initial=0.0)) / leaf_rms if leaf_rms > 0 else np.nan
    return Judged(verdict, failed, undecided, score, score_bar, floor, is_zero)


IMPOSTORS = {"zero": 0.0, "-truth": -1.0, "2 * truth": 2.0}


def accepted_impostors(
    truth: Vector, bar: Vector, allowance: Tolerance, slack: Vector
) -> list[str]:
    """Which plainly wrong gradients these tolerances would let pass, and the ``slack`` on top.

    Only those count that differ from the truth by more than the product's own tolerances and the
    bar allow: near a truth of zero every multiple of it is right.
    """
    own, leaf_rms = Tolerance(), rms(truth)
    accepted = []
    for name, factor in IMPOSTORS.items():
        impostor = factor * truth
        error = np.abs(impostor - truth)
        differs = exceeds(error, bar, own.allowed(impostor, truth, leaf_rms))
        caught = exceeds(error, bar, allowance.allowed(impostor, truth, leaf_rms) + slack)
        if differs.any() and not caught.any():
            accepted.append(name)
    return accepted


BLOCK = 16


def impostors(size: int, width: int) -> dict[str, float]:
    """Plainly wrong gradients of a leaf of so many elements, in rows of ``width``, and how far they
    are from the truth, relative to its norm, where elements are of about one size.

    >>> round(impostors(10_000, 100)["one row zeroed"], 3)
    0.1
    """
    parts = {"one row zeroed": width, f"a block of {BLOCK} zeroed": BLOCK, "one element zeroed": 1}
    known = {"zero": 1.0, "-g": 2.0, "2 g": 1.0, "0.5 g": 0.5, "1.1 g": 0.1, "1.001 g": 1e-3}
    return known | {
        name: math.sqrt(min(part, size) / size) for name, part in parts.items() if part < size
    }
