"""What a sweep works on and what it finds: the numerical gradient, element by element."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xgradcheck._differences import Noise, further, norm, rms
from xgradcheck._judge import Tolerance
from xgradcheck._kinds import Kind, Kinds
from xgradcheck._layout import Layout, Mask, Vector
from xgradcheck._phi import Phi
from xgradcheck._progress import Tick

AUTO, COMPLEX = "auto", "complex-step"


@dataclass(slots=True)
class Truth:
    """The numerical gradient, element by element.

    ``settled``: the differences converged. ``still``: neither gradient nor phi takes notice.
    ``kinds``: what kind of point it is, where that was looked at. ``noise`` is that of phi,
    ``zero_below`` what counts as zero. ``scored`` is what the textbook's eps gave, with its bar,
    where the user asked for it. ``analytic``: a complex step was taken. ``remainder``: the order of
    the central Taylor remainder where the gradient is wrong.
    """

    value: Vector
    bar: Vector
    noise: Noise
    zero_below: Vector
    scored: tuple[Vector, Vector] | None = None
    settled: Mask = field(init=False)
    still: Mask = field(init=False)
    analytic: Mask = field(init=False)
    stationary: Mask = field(init=False)
    """Where phi bends so much more than it slopes that the slope may be rounding."""
    kinds: Kinds = field(init=False)
    remainder: dict[int, float] = field(default_factory=dict)
    faint: Vector = field(init=False)
    """Smaller elements are nothing beside phi."""
    rungs: dict[int, Vector] = field(default_factory=dict)
    """At some wrong elements, the worst among them: steps, and phi above and below."""
    sides: dict[int, tuple[float, float]] = field(default_factory=dict)
    """At kinks: the slopes ahead and behind."""

    def __post_init__(self) -> None:
        self.settled, self.still, self.analytic, self.stationary = np.zeros(
            (4, self.value.size), bool
        )
        self.kinds = np.full(self.value.size, Kind.SMOOTH, np.uint8)
        self.faint = np.broadcast_to(0.0, self.value.shape)

    def copy(self) -> "Truth":
        """Another truth that knows the same."""
        own = copy.copy(self)
        for name in (
            "value",
            "bar",
            "settled",
            "still",
            "analytic",
            "kinds",
            "remainder",
            "sides",
            "rungs",
        ):
            setattr(own, name, getattr(self, name).copy())
        return own


WEAK = 2.0**-20
"""Beside the largest influence that a leaf has, that of one whose steps have room to see it."""


@dataclass(slots=True)
class Sweep:
    """What all steps of one sweep share."""

    phi: Phi
    gradient: Vector
    value: float
    noise: Noise
    allowance: Tolerance
    slack: Vector
    """By how much the gradient differs from one run of the backward pass to the next."""
    method: str
    tick: Tick
    influence: float = 0.0
    """The largest that a leaf is known to have, beside these."""
    scale: Vector = field(init=False)
    common: Vector = field(init=False)
    pairs: Vector | None = None
    """Steps of the pair that every coordinate got, and phi above and below."""
    raised: Vector | None = None
    """The gradient that the backward pass gives where phi is computed, where it is not the one that
    is judged: what is asked of it at other points, or of single outputs, tells of this one.
    """

    def __post_init__(self) -> None:
        self.scale, self.common = self.phi.scales()
        with np.errstate(all="ignore"):
            self._widen()

    def _widen(self) -> None:
        """Leaves that do next to nothing for being small, as biases of 1e-10, are moved further, as
        far as others or zeros are: else rounding were all that is seen.
        """
        if self.phi.tangents:
            return  # which say how far
        parts = [leaf.part for leaf in self.layout if leaf.size]
        sizes = [norm(self.gradient[part] * self.scale[part]) for part in parts]
        steps = [rms(self.scale[part]) for part in parts]
        # A part of a problem has the whole beside it.
        whole = getattr(self.phi.problem, "whole", self.phi.problem)
        furthest = max(rms(whole.point[leaf.part]) or 1.0 for leaf in whole.layout if leaf.size)
        largest = max([size for size in sizes if math.isfinite(size)], default=0.0)
        enough = WEAK * max(largest, self.influence)
        for part, size, step in zip(parts, sizes, steps, strict=True):
            if 0 < size < enough:
                times = further(size, enough, step, furthest)
                self.scale[part] *= times
                self.common[part] *= times

    @property
    def layout(self) -> Layout:
        """The leaves."""
        return self.phi.problem.layout

    @property
    def point(self) -> Vector:
        """Where the sweep is."""
        return self.phi.problem.point

    def allowed(self, gradient: Vector, truth: Vector, leaf_rms: float, where: Any) -> Vector:
        """The allowed error of the elements at ``where``."""
        return np.asarray(self.allowance.allowed(gradient, truth, leaf_rms) + self.slack[where])

    def slope_noise(self, plus: Vector, minus: Vector, steps: Vector) -> Vector:
        """The standard deviation of a central difference: phi's noise, or its rounding where
        larger.
        """
        peak = np.fmax(np.abs(plus), np.abs(minus))
        return np.asarray(self.noise.of(peak) / (np.sqrt(2) * steps))
