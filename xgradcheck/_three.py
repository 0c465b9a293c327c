"""A kernel, its reference in the same dtype and its reference in float64 on the same numbers: the
arguments are rounded to the dtype first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xgradcheck._account import Account, element_at, leaf_entry
from xgradcheck._adapters import Backward, Case, Problem
from xgradcheck._constraints import Tangent, tangents
from xgradcheck._diagnose import Cause
from xgradcheck._diagnose import beside as because
from xgradcheck._differences import norm, rms
from xgradcheck._errors import InvalidCase
from xgradcheck._evidence import evidence_of
from xgradcheck._findings import only_here
from xgradcheck._judge import Judged, Verdict, distance, percent
from xgradcheck._kernel_near_by import NearKernel
from xgradcheck._layout import BITS, DOUBLE, Layout, Leaf, Mask, Vector, bits_of, to_bits
from xgradcheck._precision import looks_like, said_of
from xgradcheck._ratios import WORST, Ratios, Units, ratios
from xgradcheck._report import Finding, Sensitivity
from xgradcheck._sensitivity import of_elements
from xgradcheck._stages import cotangent_of, run
from xgradcheck._variants import in_dtype

ILL = 0.5
"""A reference that loses more than this share of its digits tells nothing of a kernel."""
NOTHING = 2.0**-46
"""What share of a gradient in float64 a constraint leaves of one that it hides."""
FREE = 16.0
"""How many times as large as that of the reference a gradient that leaves its constraint may be to
be held to its own rounding.
"""
LEAVES, OUTPUTS, LARGEST = 6, 3, 10
"""Arrays of the size of all leaves, of all outputs and of the largest of them that are held at
once, about.
"""
CURVED = 40
"""To how many bits a projection is known that has to be differenced."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A kernel, its reference in the same dtype and its reference in float64, bound to the same
    numbers.
    """

    kernel: Problem
    usual: Problem
    exact: Problem
    dtype: str
    cotangent: Vector
    adapter: Any
    spaces: Mapping[int, Tangent] = field(default_factory=dict)
    """Of the leaves that cannot move freely."""
    single: "tuple[Problem, Problem] | None" = None
    """For float64: the reference in float32, and in float64 on the same numbers."""

    @classmethod
    def of(
        cls, case: Case, reference: Callable[..., Any], adapter: Any, dtype: str, seed: int
    ) -> "Bound":
        """All three in this dtype."""
        low = in_dtype(case, adapter, dtype)
        kernel: Problem = adapter.bind(low)
        plain = replace(low, fn=reference)
        return cls.around(kernel, cotangent_of(kernel, seed), plain, adapter, dtype)

    @classmethod
    def around(
        cls, kernel: Problem, cotangent: Vector, plain: Case, adapter: Any, dtype: str
    ) -> "Bound":
        """The reference bound to the numbers that a kernel was bound to."""
        usual, exact = adapter.bind(plain), adapter.bind(in_dtype(plain, adapter, "float64"))
        for other in (usual, exact):
            shapes = [[leaf.shape for leaf in one.outputs] for one in (kernel, other)]
            if shapes[0] != shapes[1]:
                raise InvalidCase(
                    f"the reference returns {_listed(shapes[1])}, and the function "
                    f"{_listed(shapes[0])}: give one that returns the same."
                )
            paths = [[leaf.path for leaf in one.layout] for one in (kernel, other)]
            if paths[0] != paths[1]:
                raise InvalidCase(
                    f"the reference has the leaves {', '.join(other.layout.names)}, and the "
                    f"function {', '.join(kernel.layout.names)}: give functions of the same "
                    f"arguments, or choose leaves with wrt=."
                )
        own = cls(kernel, usual, exact, dtype, cotangent, adapter)
        if dtype != "float64":
            return own
        low = in_dtype(plain, adapter, "float32")
        high = in_dtype(low, adapter, "float64")
        return replace(own, single=(adapter.bind(low), adapter.bind(high)))

    def held_to(self, constraint: Any, kinds: Mapping[Any, str]) -> "Bound":
        """The same where leaves cannot move freely. ``kinds`` are the dtypes that the arguments
        had: they satisfy a constraint as closely as those, and this dtype, let them.
        """
        if constraint is None:
            return self
        leaves = []
        for leaf in self.exact.layout:
            if leaf.path in kinds and not leaf.is_complex:
                leaf = replace(leaf, dtype=min(kinds[leaf.path], self.dtype, key=bits_of))
            leaves.append(leaf)
        given = Layout(tuple(leaves)), self.exact.point, self.adapter.from_numpy
        with self.exact.held():
            return replace(self, spaces=tangents(constraint, *given))

    @property
    def tangents(self) -> dict[str, Tangent] | None:
        """The spaces by the names of their leaves; None where there are none."""
        names = self.exact.layout.names
        return {names[number]: tangent for number, tangent in self.spaces.items()} or None

    @property
    def bytes(self) -> int:
        """What a comparison holds at once, about."""
        leaves, outputs = ([x.size for x in layout] for layout in (self.exact.layout, self.outputs))
        held = LEAVES * sum(leaves) + OUTPUTS * sum(outputs) + LARGEST * max(leaves + outputs)
        return 8 * held

    @property
    def outputs(self) -> Layout:
        """What the kernel returns."""
        return self.kernel.outputs

    @property
    def can_move(self) -> bool:
        """Whether all of them can be run at another point."""
        return all(one.can_move for one in (self.kernel, self.usual, self.exact))

    def three(
        self, found: tuple[Vector, Backward] | None = None, point: Vector | None = None
    ) -> "Three":
        """What all three give, unless the kernel is known to have given what is ``found``."""
        runs = [
            found or run(self.kernel, self.cotangent, point),
            run(self.usual, self.cotangent, point),
            run(self.exact, self.cotangent, point),
        ]
        if self.single is not None:
            runs[1] = self._in_double(runs[2], point)
        gradients = tuple(self._seen(backward.gradient) for _, backward in runs)
        whole, own = runs[2][1].gradient, runs[0][1].gradient
        if self.spaces:
            whole = self._rounded(own, whole, gradients[2])
        return Three(
            self.dtype,
            self.exact.layout,
            self.exact.point if point is None else point,
            self.outputs,
            tuple(values for values, _ in runs),
            gradients,
            runs[0][1].severed - runs[2][1].severed,
            whole if self.spaces else None,
            frozenset(n for n, tangent in self.spaces.items() if not tangent.is_flat),
        )

    def _rounded(self, found: Vector, whole: Vector, truth: Vector) -> Vector:
        """What was rounded: the gradient with what constraints hide of it, as large as the kernel
        has it. Of a truth that they hide nothing is left.
        """
        whole = whole.copy()
        for number in self.spaces:
            part = self.exact.layout.leaves[number].part
            size = norm(whole[part])
            if norm(truth[part]) <= NOTHING * size:
                truth[part] = 0.0
            if size > 0:
                whole[part] *= np.clip(np.nan_to_num(norm(found[part]) / size), 1, FREE)
        return whole

    def _in_double(
        self, exact: tuple[Vector, Backward], point: Vector | None
    ) -> tuple[Vector, Backward]:
        """The reference in float64 with an error: what it loses in float32, as many times less as
        float64 is finer. Beside itself it has none.
        """
        assert self.single is not None
        if point is not None:
            point = _as_held(point, "float32")
        try:
            low, high = (run(one, self.cotangent, point) for one in self.single)
        except Exception:  # what fits float64 alone
            return exact
        finer = 2.0 ** (BITS["float32"] - DOUBLE)
        with np.errstate(all="ignore"):
            lost = finer * (low[0] - high[0]), finer * (low[1].gradient - high[1].gradient)
        if not all(np.isfinite(vector).all() for vector in lost):
            return exact
        return exact[0] + lost[0], exact[1]._replace(gradient=exact[1].gradient + lost[1])

    def at(self, point: Vector) -> "Three | None":
        """What all three give at another point, rounded to what the kernel can be given; None where
        one of them gives nothing, or nothing finite.
        """
        point = np.concatenate([_as_held(point[x.part], x.dtype) for x in self.kernel.layout])
        try:
            found = self.three(point=point)
        except Exception:  # the point was only guessed to be one: whatever is refused is no news
            return None
        given = (*found.values, *found.gradients)
        return found if all(np.isfinite(vector).all() for vector in given) else None

    def _seen(self, gradient: Vector) -> Vector:
        """The part of a gradient that moves within the constraints can see."""
        if not self.spaces:
            return gradient
        gradient = gradient.copy()
        with np.errstate(all="ignore"):
            for number, tangent in self.spaces.items():
                part = self.exact.layout.leaves[number].part
                gradient[part] = tangent.adjoint(gradient[part])
        return gradient


def _as_held(values: Vector, dtype: str) -> Vector:
    """Values as an array of this dtype holds them."""
    bits = bits_of(dtype)
    if bits == BITS["bfloat16"]:
        return to_bits(values, bits)
    with np.errstate(all="ignore"):
        # Below the smallest normal number they have fewer bits.
        return values.astype(NUMPY.get(bits, np.float64)).astype(np.float64)


NUMPY: dict[int, Any] = {BITS["float16"]: np.float16, BITS["float32"]: np.float32}


@dataclass(frozen=True, slots=True)
class Three:
    """What a kernel, its reference in the same dtype and its reference in float64 give."""

    dtype: str
    layout: Layout
    point: Vector
    outputs: Layout
    values: tuple[Vector, ...]
    gradients: tuple[Vector, ...]
    severed: frozenset[int] = frozenset()
    """The leaves that have no gradient in the kernel, and one in the reference."""
    whole: Vector | None = None
    """The gradient in float64 with what constraints hide of it, which was rounded too; None where
    they hide nothing.
    """
    curved: frozenset[int] = frozenset()
    """The leaves whose constraint has other tangents at every point."""

    @property
    def zeros(self) -> list[int]:
        """The leaves whose gradient is zero."""
        return [number for number, leaf in self._leaves if not self.gradients[2][leaf.part].any()]

    def forward(self, factors: Mapping[str, float]) -> str:
        """Whether the outputs are those of the reference."""
        text = self.apart(factors)
        return f"the reference is a different function: {text}" if text else ""

    def apart(self, factors: Mapping[str, float]) -> str:
        """By how much the first output is off that is not what the reference gives."""
        for leaf in self.outputs:
            parts = [vector[leaf.part] for vector in self.values]
            found, usual, truth = parts
            bits = min(bits_of(leaf.dtype), bits_of(self.dtype))
            text = ratios(found, truth, Units.of(usual, truth, bits)).excess(factors)
            if text:
                return f"of {leaf.name}, {text}"
        return ""

    def judged(self, factors: Mapping[str, float]) -> list[tuple[Verdict, str, Ratios]]:
        """What each leaf comes to, and what is said of it where that is not PASS."""
        return [self._judged(number, leaf, factors) for number, leaf in self._leaves]

    def wrong(self, factors: Mapping[str, float]) -> dict[int, str]:
        """The numbers of the leaves that are wrong, and what is said of them."""
        found = {}
        for number, leaf in self._leaves:
            if text := self._excess(number, leaf, factors)[0]:
                found[number] = f"in {self.dtype} {text}"
        return found

    @property
    def _leaves(self) -> list[tuple[int, Leaf]]:
        """Those that hold something, and their numbers."""
        return [(number, leaf) for number, leaf in enumerate(self.layout) if leaf.size]

    def _bits(self, number: int) -> int:
        """To how many bits the gradient of a leaf is known."""
        bits = bits_of(self.dtype)
        return min(bits, CURVED) if number in self.curved else bits

    def _units(self, number: int, leaf: Leaf) -> Units:
        _, usual, truth = (vector[leaf.part] for vector in self.gradients)
        whole = None if self.whole is None else self.whole[leaf.part]
        return Units.of(usual, truth, self._bits(number), whole)

    def _judged(
        self, number: int, leaf: Leaf, factors: Mapping[str, float]
    ) -> tuple[Verdict, str, Ratios]:
        _, usual, truth = (vector[leaf.part] for vector in self.gradients)
        bits = bits_of(self.dtype)
        text, beside = self._excess(number, leaf, factors)
        if text:
            return Verdict.FAIL, f"{leaf.name} in {self.dtype}: {text}", beside
        lost = distance(usual, truth)
        is_hidden = self.whole is not None and not truth.any()
        if bits < DOUBLE and lost > 2.0 ** (-ILL * bits) and not is_hidden:
            text = f"{leaf.name} in {self.dtype}: the reference itself is off by {percent(lost)}"
            return Verdict.INCONCLUSIVE, text, beside
        return Verdict.PASS, "", beside

    def _excess(self, number: int, leaf: Leaf, factors: Mapping[str, float]) -> tuple[str, Ratios]:
        """What is said of a leaf that is wrong, nothing of another; and how it compares."""
        found, _, truth = (vector[leaf.part] for vector in self.gradients)
        units = self._units(number, leaf)
        beside = ratios(found, truth, units)
        text = beside.excess(factors)
        if not text:
            return "", beside
        if number in self.severed:
            return "it has no gradient, and the reference has one", beside
        if cause := self._cause(leaf, units):
            text += f"; {cause.text}"
        elif name := looks_like(found, truth, bits_of(self.dtype)):
            text += f"; {said_of(name)}"
        return text, beside

    def _cause(self, leaf: Leaf, units: Units) -> Cause | None:
        """What mistake the gradient of a leaf looks like."""
        found, usual, truth = (vector[leaf.part] for vector in self.gradients)
        if not np.isfinite(found).all() or not truth.any():
            return None
        least = units.worst * units.scale
        wrong = np.abs(found - truth) > 4 * np.fmax(np.abs(usual - truth), least)
        return because(leaf, found, truth, self.point[leaf.part], wrong, units.norm / norm(truth))

    def accounts(
        self, factors: Mapping[str, float], near: NearKernel | None = None
    ) -> dict[str, Account]:
        """What each leaf comes to, with what points near by show."""
        found = {}
        for number, leaf in self._leaves:
            own = self._account(number, leaf, factors)
            if near is not None and number in near.wrong:
                own = _beside_near_by(own, leaf, number, near)
            found[leaf.name] = own
        return found

    def _account(self, number: int, leaf: Leaf, factors: Mapping[str, float]) -> Account:
        found, usual, truth = (vector[leaf.part] for vector in self.gradients)
        bits, zeros = self._bits(number), np.zeros(leaf.size)
        units = self._units(number, leaf)
        verdict, text, beside = self._judged(number, leaf, factors)
        kind = "wrong gradient" if verdict is Verdict.FAIL else "ill-conditioned"
        said = [Finding(leaf.name, kind, text)] if text else []
        known = np.abs(usual - truth)
        bars = np.fmax(known, WORST * 2.0**-bits * units.scale)
        allowed = factors["worst"] * bars
        failed: Mask = ~(np.abs(found - truth) <= allowed) & (verdict is Verdict.FAIL)
        none = np.zeros(leaf.size, bool)
        score = distance(found, truth)
        judged = Judged(verdict, failed, none, score, 0.0, 0.0, not truth.any())
        worst = element_at(leaf, found, truth, zeros, allowed, judged, none)
        seen = float(np.max(_seen(units, factors)))
        floor = seen / rms(truth) if rms(truth) > 0 else np.nan
        entry = leaf_entry(
            leaf,
            verdict,
            score,
            floor,
            worst,
            wrong=int(failed.sum()),
            mode=self.dtype,
            precision=self.dtype,
            baseline=beside.norm,
            sensitivity=_sensitivity(leaf, truth, units, factors),
        )
        if verdict is Verdict.FAIL and np.isfinite(found).all():
            places = np.arange(leaf.size)
            entry = replace(entry, evidence=evidence_of(places, found, truth, bars, failed))
        return entry, said, []


def _beside_near_by(own: Account, leaf: Leaf, number: int, near: NearKernel) -> Account:
    """What a leaf comes to that is not wrong at the point, and is near by."""
    entry, said, notes = own
    is_open, is_kept = entry.verdict is Verdict.INCONCLUSIVE, number in near.near_by.kept
    if entry.verdict is Verdict.FAIL or (is_open and is_kept):
        return own
    finding = only_here(leaf, number, near.wrong[number], near.near_by, is_open=is_open)
    verdict = Verdict.INCONCLUSIVE if is_kept else Verdict.FAIL
    return replace(entry, verdict=verdict), [*said, finding], notes


def _seen(units: Units, factors: Mapping[str, float]) -> Vector:
    """From which error on of a single element a kernel is wrong."""
    return np.fmin(factors["worst"] * units.worst * units.scale, factors["norm"] * units.norm)


def _sensitivity(
    leaf: Leaf, truth: Vector, units: Units, factors: Mapping[str, float]
) -> Sensitivity | None:
    """From which errors on a kernel is wrong."""
    if (found := of_elements(leaf, truth, _seen(units, factors))) is None:
        return None
    whole = factors["norm"] * units.norm
    scale = min(whole / norm(truth), factors["bias"] * min(units.bias / norm(truth), units.shift))
    return replace(found, scale=min(found.scale, scale))


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str([*shape]) for shape in shapes)
