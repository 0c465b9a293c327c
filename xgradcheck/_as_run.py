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


def is_the_same(
    native: tuple[Vector, Sequence[Any]],
    near: list[Vector],
    raised: tuple[Vector, Sequence[Any]],
    outputs: Layout,
    bits: int,
) -> bool:
    """Whether a function raised to float64 is still the one that ran before in ``bits`` bits, by
    their outputs.
    """
    floating, others = native
    same = len(others) == len(raised[1]) and floating.shape == raised[0].shape
    if not same or not all(map(np.array_equal, others, raised[1])):
        return False
    change = np.max([np.abs(other - floating) for other in near], axis=0)
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
