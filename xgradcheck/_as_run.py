"""A backward pass below float64, judged as it runs, against a truth computed in float64.

Raising a function to float64 must not change it: its outputs have to be those of the function as
it was written, as closely as rounding the arguments lets them be. What a backward pass loses to
rounding is told by how its error, beside the same pass in float64, changes between points near by.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xgradcheck._adapters import Problem
from xgradcheck._differences import rms
from xgradcheck._layout import BITS, Layout, Vector, bits_of
from xgradcheck._phi import Phi

FAR = 2.0**-6
"""How far away a raised function has to be the same as well, as a share of the point."""
MOVES, SAMPLES = 3, 4
"""How often the arguments are moved to the next floats, and to others near by."""
NEAR = 2.0**-9
"""How near, as a share of the point."""
USUAL = 0.9
"""Of how many elements of a leaf the least rounding is what is usual in it."""
SAFETY = 4.0
"""How many times as much as such moves change, rounding on the way may change."""
ROUNDINGS = 64.0
"""Units of rounding that two orders of summation may differ by, whatever the arguments do."""


def ulps(problem: Problem) -> Vector:
    """The distance of each coordinate to the next float of its dtype; a zero stays where it is."""
    _, exponents = np.frexp(problem.point)
    distance = np.ldexp(1.0, exponents - problem.layout.significands())
    return np.asarray(distance * (problem.point != 0))


def beside(phi: Phi, seed: int) -> tuple[list[Vector], list[Vector]]:
    """The floating outputs and the gradients where the arguments are the next floats."""
    rng, problem = np.random.default_rng([seed, 0x0175]), phi.problem
    reach, outputs, gradients = ulps(problem), [], []
    for _ in range(MOVES):
        point = problem.point + phi.tangential(reach * rng.choice([-1.0, 1.0], reach.size))
        outputs.append(outputs_at(problem, point)[0])
        gradients.append(gradient_at(phi, point))
    return [found for found in outputs if found.size], gradients


def gradients_near(phi: Phi, seed: int) -> tuple[tuple[Vector, Vector], ...]:
    """Points near by that the dtypes of the leaves can hold, and the gradients there."""
    rng, problem = np.random.default_rng([seed, 0x6AD]), phi.problem
    reach, found = np.fmax(NEAR * np.abs(problem.point), 2 * ulps(problem)), []
    for _ in range(SAMPLES):
        step = phi.tangential(reach * rng.uniform(-1, 1, reach.size))
        point = in_their_dtypes(problem.point + step, problem.layout)
        found.append((point, gradient_at(phi, point)))
    return tuple(found)


def gradient_at(phi: Phi, point: Vector) -> Vector:
    """The gradient at another point."""
    with phi.problem.at(point):
        return phi.adjoint(phi.problem.gradient(phi.cotangent).gradient)


def in_their_dtypes(point: Vector, layout: Layout) -> Vector:
    """A point rounded to what the dtypes of the leaves can hold."""
    significands, exponents = np.frexp(point)
    bits = layout.significands()
    return np.asarray(np.ldexp(np.round(np.ldexp(significands, bits)), exponents - bits))


def far_point(phi: Phi, seed: int) -> Vector:
    """A point that the dtypes of the leaves can hold too, some way off: a function that reads other
    arrays than those that were raised does not follow there.
    """
    problem = phi.problem
    signs = np.random.default_rng([seed, 0xFA2]).choice([-1.0, 1.0], problem.point.size)
    step = phi.tangential(FAR * signs * problem.point)
    return in_their_dtypes(problem.point + step, problem.layout)


def outputs_at(problem: Problem, point: Vector) -> tuple[Vector, Sequence[Any]]:
    """The floating outputs at another point; none where the function has no values there."""
    try:
        with problem.at(point):
            return problem.values()[0], ()
    except Exception:  # beyond the edge of a domain, in the words of any function
        return np.zeros(0), ()


def is_the_same(
    native: tuple[Vector, Sequence[Any]],
    raised: tuple[Vector, Sequence[Any]],
    near: list[Vector],
    outputs: Layout,
    bits: int,
) -> bool:
    """Whether a function raised to float64 is still the one that ran before in ``bits`` bits, by
    their outputs; ``near`` are those of the latter near by.
    """
    floating, others = native
    if not floating.size or not np.isfinite(floating).all():
        return True  # nothing is to be learnt there
    same = len(others) == len(raised[1]) and floating.shape == raised[0].shape
    if not same or not all(map(np.array_equal, others, raised[1])):
        return False
    change = np.ptp(near, axis=0)
    for leaf in outputs:
        own, moved = floating[leaf.part], change[leaf.part]
        allowed = SAFETY * (moved + rms(moved)) + ROUNDINGS * 2.0**-bits * (np.abs(own) + rms(own))
        if not (np.abs(raised[0][leaf.part] - own) <= allowed).all():
            return False
    return True


def rounding(errors: Sequence[Vector], layout: Layout) -> Vector:
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


def rounded(gradient: Vector, layout: Layout, is_all: bool = False) -> Vector:
    """What the elements of a leaf may have lost that hold no more than the bits of a format below
    float64, and no shorter one than the leaf's: their backward pass computes in that, whatever it
    is given. ``is_all``: as if all did, from the forward pass on.
    """
    lost = np.zeros_like(gradient)
    for leaf in layout:
        own = gradient[leaf.part]
        significands, _ = np.frexp(own)
        for bits in (n for n in BITS.values() if bits_of(leaf.dtype) <= n):
            grid = np.ldexp(significands, bits)
            if own.any() and (is_all or (grid == np.round(grid)).all()):
                units = ROUNDINGS if is_all else SAFETY
                lost[leaf.part] = units * 2.0**-bits * (np.abs(own) + rms(own))
                break
    return lost


def is_nearly_the_same(
    native: tuple[Vector, Sequence[Any]],
    raised: tuple[Vector, Sequence[Any]],
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
