"""A backward pass below float64, judged as it runs, against a truth computed in float64.

Raising a function to float64 must not change it: its outputs have to be those of the function as
it was written, as closely as rounding the arguments lets them be. What a backward pass loses to
rounding is told by how its error, beside the same pass in float64, changes between points near by.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgradcheck._adapters import Problem
from xgradcheck._differences import norm, rms
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import distance
from xgradcheck._layout import BITS, Layout, Leaf, Positions, Vector, bits_of, to_bits
from xgradcheck._phi import Phi
from xgradcheck._precision import went_through

Outputs = tuple[Vector, Sequence[Any]]

FAR = 2.0**-6
"""How far away a raised function has to be the same as well, as a share of the point: one that
reads other arrays than those that were raised does not follow there.
"""
SIMILAR, ALIKE = 0.05, 5e-5
"""How far apart the gradients of a function and of the same one in float64 may lie; the second
where its outputs may be what is left of ones.
"""
HIDDEN = 2.0**8
"""How many times its outputs the numbers inside may be of a function whose gradients are alike."""
MOVES, SAMPLES = 3, 4
"""How often the arguments are moved to the next floats, and to others near by."""
NEAR = 2.0**-9
"""How near, as a share of the point."""
AWAY, AWAYS = 1.0, 4
"""How far away, as a share of the point, it is other numbers that tie in 16 bits; and at how many
such points one looks.
"""
USUAL = 0.9
"""Of how many elements of a leaf the least rounding is what is usual in it."""
SAFETY = 4.0
"""How many times as much as such moves change, rounding on the way may change."""
ROUNDINGS = 64.0
"""Units of rounding that two orders of summation may differ by, whatever the arguments do."""
COARSE = 2.0**-18
"""Of what the next floats of float32 change: the noise of a million roundings to float32 is less
by 2^12, and that of as many to float64 by 2^29, or more.
"""
LITTLE = 2.0**8
"""How many units of rounding a phi that stands still counts for: it may be one that seldom moves.
"""
LARGEST = 4.0
"""How many times an element a mistake may be."""


Reach = Callable[[Vector, int], Vector]


def ulps(values: Vector, bits: int) -> Vector:
    """The distance of each number to the next one of so many bits; a zero stays where it is."""
    _, exponents = np.frexp(values)
    return np.asarray(np.ldexp(1.0, exponents - bits) * (values != 0))


def _near(values: Vector, bits: int) -> Vector:
    return np.fmax(NEAR * np.abs(values), 2 * ulps(values, bits))


def _away(values: Vector, bits: int) -> Vector:
    return AWAY * np.abs(values)


def _far(values: Vector, bits: int) -> Vector:
    return FAR * np.abs(values)


@dataclass(frozen=True, slots=True)
class Near:
    """Gradients at points near by, as they run below float64."""

    seed: int
    places: Positions | None
    """Of which coordinates; None for all of them."""
    gradients: dict[int, Vector]
    """By the number of the point."""


@dataclass(frozen=True, slots=True)
class Errors:
    """What a gradient is off by at several points, and what it should be there."""

    errors: Vector
    exact: Vector
    away: Callable[[], tuple[Vector, Vector]]
    """The same at points farther away, below 24 bits; else at none. Few ask."""

    def of(self, places: Positions) -> "Errors":
        """Those of some coordinates."""

        def away() -> tuple[Vector, Vector]:
            off, exact = self.away()
            return off[:, places], exact[:, places]

        return Errors(self.errors[:, places], self.exact[:, places], away)

    def beside_factors(self) -> Vector:
        """The errors without what is in proportion to each element from point to point, as where
        half of it is missing, or all. Larger shares are none of a mistake: next to nothing is left.
        Nor is one that leaves more to change: an element that leaps, and its mistake does not.
        """
        squares = np.sum(self.exact**2, axis=0)
        with np.errstate(all="ignore"):
            share = np.sum(self.errors * self.exact, axis=0) / squares
            rest = self.errors - np.where(np.abs(share) <= LARGEST, share, 0.0) * self.exact
            is_less = np.ptp(rest, axis=0) < np.ptp(self.errors, axis=0)
        return np.where(is_less, rest, self.errors)


@dataclass(frozen=True, slots=True)
class AsFound:
    """What a function gave before it was raised."""

    bits: int
    outputs: Layout
    here: Outputs
    far: int
    """The seed of a point some way off."""
    there: Outputs
    """The floating outputs at it."""
    beside: list[Vector]
    """The floating outputs where the arguments are the next floats."""


def as_found(phi: Phi, seed: int) -> AsFound:
    """Look at a function before it is raised."""
    problem = phi.problem
    beside = [outputs_at(problem, _moved(phi, ulps, seed, turn))[0] for turn in range(MOVES)]
    return AsFound(
        bits=problem.bits,
        outputs=problem.outputs,
        here=problem.values(),
        far=seed,
        there=outputs_at(problem, _moved(phi, _far, seed, MOVES)),
        beside=[found for found in beside if found.size],
    )


def coarse(found: AsFound, phi: Phi) -> float:
    """How noisy a function is at least that computes in float32 although it is raised: noise that
    comes of rounding larger numbers is finer there by as much as they are.

    The next floats of ``bits`` move phi by its slope, or by its noise as it was found; where they
    do not move it at all, it is at least as noisy as its rounding.
    """
    here = found.here[0]
    moved = [abs(float((near - here) @ phi.cotangent)) for near in found.beside]
    most = max(moved, default=0.0) or LITTLE * 2.0**-found.bits * norm(here * phi.cotangent)
    return COARSE * 2.0 ** (found.bits - BITS["float32"]) * most if most > 0 else np.inf


def beside(phi: Phi, seed: int) -> list[Vector]:
    """The gradients where the arguments are the next floats."""
    found = (gradient_at(phi, _moved(phi, ulps, seed, turn)) for turn in range(MOVES))
    return [gradient for gradient in found if gradient is not None]


def near(phi: Phi, seed: int, places: Positions | None = None) -> Near:
    """The gradients at points near by that the dtypes of the leaves can hold, of all coordinates or
    of some.
    """
    found = {}
    is_short = phi.problem.bits < BITS["float32"]
    for turn in range(SAMPLES + AWAYS * is_short):
        gradient = gradient_at(phi, _near_by(phi, seed, turn))
        if gradient is not None:
            found[turn] = gradient if places is None else gradient[places]
    return Near(seed, places, found)


def errors_near_by(phi: Phi, own: Vector, wide: Vector, found: Near, bits: int) -> Errors:
    """What a gradient of so many ``bits`` is off by, here and at points near by; nothing in a leaf
    whose gradient went through a shorter format: that is no rounding of its own arithmetic.
    """
    some = slice(None) if found.places is None else found.places

    def at(turns: Iterable[int]) -> tuple[Vector, Vector]:
        exact = {
            turn: there[some]
            for turn in turns
            if turn in found.gradients
            and (there := gradient_at(phi, _near_by(phi, found.seed, turn))) is not None
        }
        off = [found.gradients[turn] - right for turn, right in exact.items()]
        shape = len(exact), wide[some].size
        return np.reshape(off, shape), np.reshape([*exact.values()], shape)

    off, exact = at(range(SAMPLES))
    off, exact = np.vstack([(own - wide)[some], off]), np.vstack([wide[some], exact])
    for leaf in phi.problem.layout:
        if went_through(own[leaf.part], wide[leaf.part], bits):
            places = np.arange(own.size) if found.places is None else found.places
            off[:, (places >= leaf.start) & (places < leaf.start + leaf.size)] = 0.0
    return Errors(off, exact, lambda: at(range(SAMPLES, SAMPLES + AWAYS)))


def _near_by(phi: Phi, seed: int, turn: int) -> Vector:
    reach = _near if turn < SAMPLES else _away
    return _moved(phi, reach, seed, MOVES + 1 + turn, uniform=True)


def _moved(phi: Phi, reach: Reach, seed: int, turn: int, uniform: bool = False) -> Vector:
    """The point moved by as much as ``reach`` says, to numbers that the leaves can hold."""
    rng, point = np.random.default_rng([seed, 0x0175, turn]), phi.problem.point.copy()
    for leaf in phi.problem.layout:
        own, bits = point[leaf.part], bits_of(leaf.dtype)
        drawn = rng.uniform(-1, 1, leaf.size) if uniform else rng.choice([-1.0, 1.0], leaf.size)
        point[leaf.part] = to_bits(own + reach(own, bits) * drawn, bits)
    if not phi.is_bound:
        return point
    step = phi.tangential(point - phi.problem.point)
    return to_bits(phi.problem.point + step, phi.problem.layout.significands())


def signs_apart(native: Vector, raised: Vector) -> Vector:
    """-1 where an output has the other sign in float64, else 1: singular vectors and those of an
    eigenvalue are known up to their sign, and come out as they may.
    """
    if native.shape != raised.shape:
        return np.ones_like(raised)
    return np.where(np.abs(raised + native) < np.abs(raised - native), -1.0, 1.0)


@contextmanager
def turned(phi: Phi, found: AsFound, raised: Callable[[], Any]) -> Iterator[None]:
    """A function raised, and the signs of its cotangent turned with those of its outputs: phi is
    what it was, then.
    """
    with raised():
        signs, kept = signs_apart(found.here[0], phi.problem.values()[0]), phi.cotangent
        if (signs > 0).all():
            raise InvalidCase("its outputs are others then")
        phi.cotangent = kept * signs
        try:
            yield
        finally:
            phi.cotangent = kept


def is_kept(found: AsFound, phi: Phi, own: Vector, wide: Vector, is_turned: bool = False) -> bool:
    """Whether a function raised to float64 is still the one that was found, by its outputs, or by
    outputs that are what is left of larger numbers and its gradients, its ``own`` and the ``wide``
    one, that are hardly apart or rounding as well. Where it ``is_turned``, up to the signs of its
    outputs.
    """
    problem = phi.problem
    far = _moved(phi, _far, found.far, MOVES)
    pairs = [(found.here, problem.values()), (found.there, outputs_at(problem, far))]
    if is_turned:
        pairs = [
            (native, (raised * signs_apart(native[0], raised), others))
            for native, (raised, others) in pairs
        ]
    change = np.ptp([found.here[0], *found.beside], axis=0)
    if all(is_the_same(*pair, change, found.outputs, found.bits) for pair in pairs):
        return True
    size = float(np.max(np.abs(problem.point)))
    if found.bits >= BITS["float32"] and distance(wide, own) <= ALIKE:
        # Numbers meet others on their way: chances, exponentials, or the places of a long table.
        size = max(size, 1.0, HIDDEN * rms(found.here[0]))
    nothing = SAFETY * 2.0**-found.bits * float(np.max(np.abs(phi.cotangent)))
    are_alike = distance(wide, own) <= SIMILAR or bool((np.abs(wide - own) <= nothing).all())
    return are_alike and all(is_nearly_the_same(*pair, size, found.bits) for pair in pairs)


def gradient_at(phi: Phi, point: Vector) -> Vector | None:
    """The gradient at another point; None where there is none."""
    try:
        with phi.problem.at(point):
            return phi.adjoint(phi.problem.gradient(phi.cotangent).gradient)
    except Exception:  # beyond the edge of a domain, in the words of any function
        return None


def outputs_at(problem: Problem, point: Vector) -> Outputs:
    """The floating outputs at another point; none where the function has no values there."""
    try:
        with problem.at(point):
            return problem.values()[0], ()
    except Exception:  # beyond the edge of a domain, in the words of any function
        return np.zeros(0), ()


def is_the_same(
    native: Outputs,
    raised: Outputs,
    change: Vector,
    outputs: Layout,
    bits: int,
) -> bool:
    """Whether a function raised to float64 is still the one that ran before in ``bits`` bits, by
    their outputs; ``change`` is what rounding the arguments may do to them.
    """
    floating, others = native
    if not floating.size or not np.isfinite(floating).all():
        return True  # nothing is to be learnt there
    same = len(others) == len(raised[1]) and floating.shape == raised[0].shape
    if not same or not all(map(np.array_equal, others, raised[1])):
        return False
    for leaf in outputs:
        own, moved = floating[leaf.part], change[leaf.part]
        allowed = SAFETY * (moved + rms(moved)) + ROUNDINGS * 2.0**-bits * (np.abs(own) + rms(own))
        if not (np.abs(raised[0][leaf.part] - own) <= allowed).all():
            return False
    return True


def rounding(errors: Vector | Sequence[Vector], layout: Layout) -> Vector:
    """By how much rounding may change each element of a gradient, going by its errors at a few
    points near by: those of a mistake are alike, those of rounding are not. No less than for most
    of the leaf, since a few numbers may agree by chance, and others leap at a kink.
    """
    with np.errstate(invalid="ignore"):
        spread = np.asarray(np.nan_to_num(np.ptp(errors, axis=0), nan=0.0, posinf=0.0))
    for leaf in layout:
        own = spread[leaf.part]
        if leaf.size:
            usual = rms(own[own <= np.quantile(own, USUAL)])
            spread[leaf.part] = np.fmax(own, usual)
    return SAFETY * spread


def rounded(gradient: Vector, leaf: Leaf, is_all: bool = False) -> Vector:
    """What the elements of a leaf may have lost that hold no more than the bits of a format below
    float64, and no shorter one than the leaf's: their backward pass computes in that, whatever it
    is given. ``is_all``: as if all did, from the forward pass on.
    """
    own = gradient[leaf.part]
    significands, _ = np.frexp(own)
    for bits in (n for n in BITS.values() if bits_of(leaf.dtype) <= n):
        grid = np.ldexp(significands, bits)
        if own.any() and (is_all or (grid == np.round(grid)).all()):
            units = ROUNDINGS if is_all else SAFETY
            return np.asarray(units * 2.0**-bits * (np.abs(own) + rms(own)))
    return np.zeros_like(own)


def is_nearly_the_same(
    native: Outputs,
    raised: Outputs,
    size: float,
    bits: int,
) -> bool:
    """Whether outputs differ by no more than the rounding of numbers as large as ``size``: what is
    left of them may be small, as the loss of a confident prediction.
    """
    if not native[0].size or not np.isfinite(native[0]).all():
        return True
    if native[0].shape != raised[0].shape:
        return False
    allowed = ROUNDINGS * 2.0**-bits * (np.abs(native[0]) + size)
    return bool((np.abs(native[0] - raised[0]) <= allowed).all())
