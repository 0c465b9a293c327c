"""A kernel beside a plain reference, whose gradient differences prove in float64; the kernel may
lose to rounding about what the reference loses in the same dtype.

All three see the same numbers: the arguments are rounded to the dtype first. The test is the ratio
of the kernel's error to the reference's, in norm, in the worst element and along the gradient
itself, where a wrong factor shows first.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xgradcheck._account import Account, element_at, leaf_entry, together
from xgradcheck._adapters import Backward, Case, Problem, claim, name_of
from xgradcheck._diagnose import Cause
from xgradcheck._diagnose import beside as because
from xgradcheck._differences import norm, rms
from xgradcheck._errors import InvalidCase
from xgradcheck._evidence import evidence_of
from xgradcheck._findings import precision
from xgradcheck._judge import Judged, Verdict, distance, grade, largest_distance, percent
from xgradcheck._layout import BITS, DOUBLE, Layout, Leaf, Mask, Vector, bits_of
from xgradcheck._precision import looks_like, said_of
from xgradcheck._report import Finding, Leaves, Report, Sensitivity
from xgradcheck._sensitivity import of_elements
from xgradcheck._stages import cotangent_of, environment, report_on, run
from xgradcheck._variants import cast_to, kinds_of

FACTORS = {"norm": 2.0, "worst": 4.0, "bias": 4.0}
"""How many times the error of the reference a kernel may err: right kernels of 450 were measured to
reach 1.8, 2.9 and 3.3.
"""
ILL = 0.5
"""A reference that loses more than this share of its digits tells nothing of a kernel."""
COHERENT, WORST = 4.0, 2.0
"""Units of rounding that an error along the gradient, and one of an element, may always have."""
SHARED, SHARED_IN_SINGLE = 0.25, 1.0
"""Units of rounding, a quarter of those allowed, that a factor may be off by which all elements
share: the scale of a norm, say. In float32 a GPU divides and exponentiates to two ulps, which are
four such units.
"""
MIDWAY = 0.75
"""The same of the middle element, where errors are shared by rows and few decide: three roundings.
"""
DRAWN = 2.0
"""What is beside the error of a reference, over the root of how many elements it is of: it is a
sample, too, and three deviations below its mean it is that much too small.
"""
DRIFTS = 2.5
"""How many times what errors of random signs add up to."""
MIDDLE, LARGE, LOOKED_AT = 24, 0.1, 1 << 18
"""How many elements the middle of their relative errors takes, how large they are beside the rms,
and how many are looked at.
"""
LUCK = 4.0
"""Of n numbers the reference may be right by chance: units of rounding over the root of n."""


ANOTHER = "another function"


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many times the error of the reference a kernel has."""

    norm: float
    worst: float
    bias: float

    def excess(self, factors: Mapping[str, float]) -> str:
        """What is beyond the factors; nothing where all is well."""
        said = {
            "norm": f"its error is {self.norm:.3g} x that of the reference",
            "worst": f"its worst element is off by {self.worst:.3g} x that of the reference",
            "bias": f"its size is off by {self.bias:.3g} x that of the reference",
        }
        for name, text in said.items():
            value = getattr(self, name)
            if not value <= factors[name]:
                return f"{text}, {factors[name]:g} x allowed"
        return ""


@dataclass(frozen=True, slots=True)
class Units:
    """What the error of a kernel is measured in: that of the reference in the same dtype, and no
    less than rounding may always do.
    """

    norm: float
    worst: float
    bias: float
    shift: float
    """That of the middle of the relative errors: few elements that lose much do not move it."""

    @classmethod
    def of(cls, usual: Vector, truth: Vector, bits: int) -> "Units":
        """The error of ``usual``, which was computed in so many ``bits``."""
        unit, size, known = 2.0**-bits, norm(truth), usual - truth
        tiny = float(np.finfo(float).tiny)
        lucky, lost = 1 + LUCK / np.sqrt(truth.size), norm(known)
        along = abs(float(known @ truth)) / max(size, tiny)
        count = _count(known)
        # What errors of that size add up to along the gradient where their signs are random.
        drift = norm(known * (truth / max(size, tiny)))
        chance = COHERENT * unit * size / np.sqrt(truth.size) + DRIFTS * drift
        middle, spread = _middle(known, truth)
        shared = SHARED_IN_SINGLE if bits == BITS["float32"] else SHARED
        sample = 1 + DRAWN / float(np.sqrt(count))
        return cls(
            norm=max(lost * sample, lucky * unit * size, tiny),
            worst=max(_worst(known, truth) * sample, lucky * WORST * unit),
            bias=max(along / 2, chance, shared * unit * size, tiny),
            shift=max(abs(middle) / 2, spread, max(MIDWAY, shared) * unit),
        )


def _count(error: Vector) -> float:
    """Of how many elements an error is, as its norm goes."""
    largest = float(np.max(np.abs(error), initial=0.0))
    if not 0 < largest < np.inf:
        return float(error.size)
    squares = (error / largest) ** 2
    return float(squares.sum() ** 2 / (squares @ squares))


def _middle(error: Vector, truth: Vector) -> tuple[float, float]:
    """The median of the relative errors, and its standard deviation; infinite where there are few.

    That of a median of n normal numbers is 1.25 / sqrt(n) of theirs, which is 1.48 times the median
    of their distances from the middle.
    """
    every = max(1, truth.size // LOOKED_AT)
    error, truth = error[::every], truth[::every]
    large = (np.abs(truth) > LARGE * rms(truth)) & np.isfinite(error)
    if np.count_nonzero(large) < MIDDLE:
        return 0.0, np.inf
    relative = error[large] / truth[large]
    middle = float(np.median(relative))
    spread = 1.48 * float(np.median(np.abs(relative - middle)))
    return middle, 1.25 * spread / np.sqrt(relative.size)


def _worst(error: Vector, truth: Vector) -> float:
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.abs(error) / (np.abs(truth) + rms(truth)), initial=0.0))


def ratios(found: Vector, truth: Vector, units: Units) -> Ratios:
    """The error of ``found`` beside that of the reference in the same dtype."""
    if not np.isfinite(found).all():
        return Ratios(np.inf, np.inf, np.inf)
    error = found - truth
    along = abs(float(error @ truth)) / max(norm(truth), float(np.finfo(float).tiny))
    bias = max(along / units.bias, abs(_middle(error, truth)[0]) / units.shift)
    return Ratios(norm(error) / units.norm, _worst(error, truth) / units.worst, bias)


def beside_reference(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    title: str,
    *,
    reference: Callable[..., Any],
    dtypes: str | Sequence[str] | None,
    factors: Mapping[str, float] | None,
    backend: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """The report on a kernel that has a reference."""
    started = time.perf_counter()
    allowed = known_factors(factors)
    names = ("kwargs", "wrt", "loss", "grads")
    kwargs, wrt, loss, grads = (options.get(name) for name in names)
    case = Case(fn, args, dict(kwargs or {}), wrt, loss, grads)
    plain = Case(reference, args, dict(kwargs or {}), wrt, loss, None)
    adapter = claim(case, backend)
    backend = name_of(adapter)
    kinds = kinds_of(case)
    if not kinds:
        raise InvalidCase("reference= compares functions of arrays: pass them as arguments.")
    asked = asked_dtypes(dtypes, kinds)
    if grads is not None:
        raise InvalidCase("grads= belongs to one function, and reference= compares two.")
    exact = cast_to(replace(case, args=cast_to(case, adapter, asked[0])), adapter, "float64")
    proven = report_on(reference, exact, title, backend=backend, seed=seed, **options)
    findings = [replace(finding, text=f"reference: {finding.text}") for finding in proven.findings]
    accounts: dict[str, list[Account]] = {
        name: [(replace(leaf, mode="reference", rows=()), [], [])]
        for name, leaf in proven.leaves.items()
    }
    verdicts = [proven.verdict]
    for dtype in asked if proven.verdict is not Verdict.FAIL else ():
        three = Three.of(case, plain, adapter, dtype, seed)
        if text := three.forward(allowed):
            findings.append(Finding("", ANOTHER, f"{dtype}: {text}"))
            verdicts.append(Verdict.FAIL)
            break  # its gradient is another one, too
        for name, account in three.accounts(allowed).items():
            accounts.setdefault(name, []).append(account)
    leaves = Leaves()
    for name, own in accounts.items():
        leaves[name] = together(own)[0]
        findings += [finding for _, told, _ in own for finding in told]
    verdicts += [leaf.verdict for leaf in leaves.values()]
    score = largest_distance(leaf.distance for leaf in leaves.values())
    return replace(
        proven,
        verdict=Verdict.of(verdicts),
        distance=score,
        grade=grade(score),
        leaves=leaves,
        findings=tuple(findings),
        precision=precision(min(bits_of(dtype) for dtype in asked)),
        elapsed_s=time.perf_counter() - started,
        environment=environment(adapter),
    )


def known_factors(given: Mapping[str, float] | None) -> dict[str, float]:
    """How many times the error of the reference is allowed."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidCase(f"factors={given!r} is no dict, such as {{'norm': 3}}.")
    unknown = [name for name in given or {} if name not in FACTORS]
    if unknown:
        raise InvalidCase(f"factors has {unknown[0]!r}; they are {', '.join(FACTORS)}.")
    for name, factor in (given or {}).items():
        is_number = isinstance(factor, int | float | np.number) and not isinstance(factor, bool)
        if not is_number or not 0 < factor < math.inf:
            raise InvalidCase(f"factors has {name}={factor!r}: give a number larger than 0.")
    return FACTORS | dict(given or {})


def asked_dtypes(dtypes: Any, kinds: Mapping[Any, str]) -> list[str]:
    """The dtypes to compare in: those of the arguments, if none are given."""
    if dtypes is None:
        return [min(kinds.values(), key=bits_of)]
    asked = [dtypes] if isinstance(dtypes, str) else [*dtypes]
    known = ("float64", *sorted(BITS))
    for name in asked:
        if name not in known:
            raise InvalidCase(f"dtypes has {name!r}; the dtypes are {', '.join(known)}.")
    if not asked:
        raise InvalidCase(f"dtypes is empty: name some of {', '.join(known)}.")
    return asked


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

    @classmethod
    def of(cls, case: Case, plain: Case, adapter: Any, dtype: str, seed: int) -> "Three":
        """Run all three on the same numbers."""
        low = cast_to(case, adapter, dtype)
        kernel: Problem = adapter.bind(replace(case, args=low))
        cotangent = cotangent_of(kernel, seed)
        usual = replace(plain, args=low)
        return cls.around(kernel, run(kernel, cotangent), cotangent, usual, adapter, dtype)

    @classmethod
    def around(
        cls,
        kernel: Problem,
        found: tuple[Vector, Backward],
        cotangent: Vector,
        plain: Case,
        adapter: Any,
        dtype: str,
    ) -> "Three":
        """Run the reference on the numbers that a kernel was run on."""
        high = cast_to(plain, adapter, "float64")
        usual, exact = adapter.bind(plain), adapter.bind(replace(plain, args=high))
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
        runs = [found, run(usual, cotangent), run(exact, cotangent)]
        values = tuple(value for value, _ in runs)
        gradients = tuple(backward.gradient for _, backward in runs)
        severed = found[1].severed - runs[2][1].severed
        return cls(dtype, exact.layout, exact.point, kernel.outputs, values, gradients, severed)

    def forward(self, factors: Mapping[str, float]) -> str:
        """Whether the outputs are those of the reference."""
        for leaf in self.outputs:
            parts = [vector[leaf.part] for vector in self.values]
            found, usual, truth = parts
            bits = min(bits_of(leaf.dtype), bits_of(self.dtype))
            text = ratios(found, truth, Units.of(usual, truth, bits)).excess(factors)
            if text:
                return f"the reference is a different function: of {leaf.name}, {text}"
        return ""

    def judged(self, factors: Mapping[str, float]) -> list[tuple[Verdict, str, Ratios]]:
        """What each leaf comes to, and what is said of it where that is not PASS."""
        return [
            self._judged(number, leaf, self._units(leaf), factors) for number, leaf in self._leaves
        ]

    @property
    def _leaves(self) -> list[tuple[int, Leaf]]:
        """Those that hold something, and their numbers."""
        return [(number, leaf) for number, leaf in enumerate(self.layout) if leaf.size]

    def _units(self, leaf: Leaf) -> Units:
        _, usual, truth = (vector[leaf.part] for vector in self.gradients)
        return Units.of(usual, truth, bits_of(self.dtype))

    def _judged(
        self, number: int, leaf: Leaf, units: Units, factors: Mapping[str, float]
    ) -> tuple[Verdict, str, Ratios]:
        found, usual, truth = (vector[leaf.part] for vector in self.gradients)
        bits = bits_of(self.dtype)
        beside = ratios(found, truth, units)
        if text := beside.excess(factors):
            if number in self.severed:
                text = "it has no gradient, and the reference has one"
            elif cause := self._cause(leaf, units):
                text += f"; {cause.text}"
            elif name := looks_like(found, truth, bits):
                text += f"; {said_of(name)}"
            return Verdict.FAIL, f"{leaf.name} in {self.dtype}: {text}", beside
        lost = distance(usual, truth)
        if bits < DOUBLE and lost > 2.0 ** (-ILL * bits):
            text = f"{leaf.name} in {self.dtype}: the reference itself is off by {percent(lost)}"
            return Verdict.INCONCLUSIVE, text, beside
        return Verdict.PASS, "", beside

    def _cause(self, leaf: Leaf, units: Units) -> Cause | None:
        """What mistake the gradient of a leaf looks like."""
        found, usual, truth = (vector[leaf.part] for vector in self.gradients)
        if not np.isfinite(found).all() or not truth.any():
            return None
        scale = np.abs(truth) + rms(truth)
        wrong = np.abs(found - truth) > 4 * np.fmax(np.abs(usual - truth), units.worst * scale)
        return because(leaf, found, truth, self.point[leaf.part], wrong, units.norm / norm(truth))

    def accounts(self, factors: Mapping[str, float]) -> dict[str, Account]:
        """What each leaf comes to."""
        return {leaf.name: self._account(number, leaf, factors) for number, leaf in self._leaves}

    def _account(self, number: int, leaf: Leaf, factors: Mapping[str, float]) -> Account:
        found, usual, truth = (vector[leaf.part] for vector in self.gradients)
        bits, zeros = bits_of(self.dtype), np.zeros(leaf.size)
        units = self._units(leaf)
        verdict, text, beside = self._judged(number, leaf, units, factors)
        kind = "wrong gradient" if verdict is Verdict.FAIL else "ill-conditioned"
        said = [Finding(leaf.name, kind, text)] if text else []
        scale = np.abs(truth) + rms(truth)
        known = np.abs(usual - truth)
        allowed = factors["worst"] * np.fmax(known, WORST * 2.0**-bits * scale)
        failed: Mask = ~(np.abs(found - truth) <= allowed) & (verdict is Verdict.FAIL)
        none = np.zeros(leaf.size, bool)
        score = distance(found, truth)
        judged = Judged(verdict, failed, none, score, 0.0, 0.0, not truth.any())
        worst = element_at(leaf, found, truth, zeros, allowed, judged, none)
        seen = float(np.max(_seen(truth, units, factors)))
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
            bars = np.fmax(known, WORST * 2.0**-bits * scale)
            places = np.arange(leaf.size)
            entry = replace(entry, evidence=evidence_of(places, found, truth, bars, failed))
        return entry, said, []


def _seen(truth: Vector, units: Units, factors: Mapping[str, float]) -> Vector:
    """From which error on of a single element a kernel is wrong."""
    worst = factors["worst"] * units.worst * (np.abs(truth) + rms(truth))
    return np.fmin(worst, factors["norm"] * units.norm)


def _sensitivity(
    leaf: Leaf, truth: Vector, units: Units, factors: Mapping[str, float]
) -> Sensitivity | None:
    """From which errors on a kernel is wrong."""
    if (found := of_elements(leaf, truth, _seen(truth, units, factors))) is None:
        return None
    whole = factors["norm"] * units.norm
    scale = min(whole / norm(truth), factors["bias"] * min(units.bias / norm(truth), units.shift))
    return replace(found, scale=min(found.scale, scale))


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str([*shape]) for shape in shapes)
