"""A backward pass below float64, judged as it runs, against a truth computed in float64.

Raising a function to float64 must not change it: its outputs have to be those of the function as
it was written, as closely as rounding the arguments lets them be. What a backward pass loses to
rounding is told by moving the arguments to the next floats beside them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xgradcheck._adapters import Problem
from xgradcheck._differences import rms
from xgradcheck._layout import Layout, Vector
from xgradcheck._phi import Phi

FAR = 2.0**-6
"""How far away a raised function has to be the same as well, as a share of the point."""
MOVES = 3
"""How often the arguments are moved to neighbouring floats."""
SAFETY = 4.0
"""How many times as much as such moves change, rounding on the way may change."""
ROUNDINGS = 64.0
"""Units of rounding that two orders of summation may differ by, whatever the arguments do."""


def ulps(problem: Problem) -> Vector:
    """The distance of each coordinate to the next float of its dtype; a zero stays where it is."""
    _, exponents = np.frexp(problem.point)
    distance = np.ldexp(1.0, exponents - problem.layout.significands())
    return np.asarray(distance * (problem.point != 0))


def beside(phi: Phi, reach: Vector, seed: int) -> tuple[list[Vector], list[Vector]]:
    """The floating outputs and the gradient at points whose coordinates lie ``reach`` above or
    below those of the point.
    """
    rng = np.random.default_rng([seed, 0x0175])
    problem = phi.problem
    outputs, gradients = [], []
    for _ in range(MOVES):
        step = phi.tangential(reach * rng.choice([-1.0, 1.0], reach.size))
        with problem.at(problem.point + step):
            outputs.append(problem.values()[0])
            gradients.append(phi.adjoint(problem.gradient(phi.cotangent).gradient))
    return outputs, gradients


def far_point(phi: Phi, seed: int) -> Vector:
    """A point that the dtypes of the leaves can hold too, some way off: a function that reads other
    arrays than those that were raised does not follow there.
    """
    problem = phi.problem
    signs = np.random.default_rng([seed, 0xFA2]).choice([-1.0, 1.0], problem.point.size)
    point = problem.point + phi.tangential(FAR * signs * problem.point)
    significands, exponents = np.frexp(point)
    bits = problem.layout.significands()
    return np.asarray(np.ldexp(np.round(np.ldexp(significands, bits)), exponents - bits))


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


def rounding(gradient: Vector, near: list[Vector], layout: Layout) -> Vector:
    """By how much rounding may change each element of a gradient, going by those near by; no less
    than its neighbours in the leaf, since a few numbers may agree by chance.
    """
    with np.errstate(invalid="ignore"):
        spread = np.asarray(np.nan_to_num(np.ptp([gradient, *near], axis=0), nan=0.0, posinf=0.0))
    for leaf in layout:
        spread[leaf.part] = np.fmax(spread[leaf.part], rms(spread[leaf.part]))
    return SAFETY * spread
