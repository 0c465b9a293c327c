"""What is said about a place: findings and notes, with the numbers that support them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Problem
from xgradcheck._generic import DIAGONAL, HERMITIAN, LARGE, MIRRORS, NORM, SUM, NearBy
from xgradcheck._judge import Judged, percent
from xgradcheck._kinds import Kind, Kinds
from xgradcheck._layout import BITS, DOUBLE, Leaf, Mask, Operands, Vector
from xgradcheck._measured import FORWARD, REVERSE, Measured, Told
from xgradcheck._parts import Node
from xgradcheck._places import Place, place_of
from xgradcheck._projection import Suspect
from xgradcheck._report import Finding
from xgradcheck._slopes import Mistake
from xgradcheck._truth import Truth

SHOWN = 20
"""How many indices of wrong elements a finding lists."""
NAMED = 3
"""How many leaves a note names."""
RAISED = 1024.0
"""Units of rounding, below float64, that two forward passes may differ by."""
SAME = 1e-7
"""What they may differ by in float64, beside the value and all that the leaves do to it: less than
what a gradient may err by, and more than the root of the smallest number beside 1 makes of it.
"""
ENOUGH = 1.5
"""How many times what a gradient is off by is allowed at least, where that is meant."""
ROUNDING = 1e-10
"""What the order of a sum can change, relative; more is no rounding."""

ONLY_HERE = "only right at this point"
MEETING = "kinks meet"
NO_DERIVATIVE = {
    Kind.JUMP: ("jump", "the {} jumps here, it has no derivative"),
    Kind.STEEP: ("infinite slope", "the slope is infinite here, no difference can converge"),
    Kind.MEETING: (
        MEETING,
        "several kinks meet here, and no slope along one coordinate tells which gradient is right:",
    ),
    Kind.DROWNED: (
        "saturated",
        "all of it is less than the rounding of what the function is made of; move the point:",
    ),
}


FINE = {
    Kind.KINK: "a kink at {}, where the gradient is a valid subgradient",
    Kind.EDGE: "the edge of the domain at {}, differenced on one side",
}


def note_on_points(leaf: Leaf, kind: Kind, count: int) -> list[str]:
    """That so many elements that were found right are at points of a kind, if any are."""
    where = f"{count} of {leaf.size} elements"
    return [f"{leaf.name}: {FINE[kind].format(where)}"] if count else []


def notes_on_points(leaf: Leaf, kinds: Kinds) -> list[str]:
    """What kind of points the elements are at that were found right."""
    counts = {kind: int((kinds == kind).sum()) for kind in FINE}
    return [note for kind in FINE for note in note_on_points(leaf, kind, counts[kind])]


def indices(leaf: Leaf, mask: Any) -> tuple[tuple[int, ...], ...]:
    # A complex element has two places.
    found = (leaf.index(leaf.start + int(place)) for place in np.flatnonzero(mask)[: 2 * SHOWN])
    return tuple(dict.fromkeys(found))[:SHOWN]


def wrong_gradient(
    leaf: Leaf, gradient: Vector, value: Vector, judged: Judged, truth: Truth
) -> Finding:
    where = indices(leaf, judged.failed)
    if not np.isfinite(gradient).all():
        bad = int((~np.isfinite(gradient)).sum())
        text = (
            f"{leaf.name}: the gradient is not finite at {bad} of {leaf.size} elements, first at "
            f"{leaf.element(where[0])}"
        )
        return Finding(leaf.name, "not finite", text, where)
    kinks = (truth.kinds[leaf.part] == Kind.KINK) & judged.failed
    if kinks.any():
        text = (
            f"{leaf.name}: at a kink the gradient lies outside the slopes of both sides, at "
            f"{leaf.element(indices(leaf, kinks)[0])}"
        )
        return Finding(leaf.name, "kink", text, where)
    text = _extent(leaf, judged.failed) + _remainder(leaf, truth)
    return Finding(leaf.name, "wrong gradient", text, where)


def beside_stated(leaf: Leaf, judged: Judged, severed: bool) -> Finding:
    """What is wrong beside a gradient that was stated."""
    if severed:
        text = f"no gradient for {leaf.name}, and one is expected"
        return Finding(leaf.name, "no gradient", text)
    text = f"{_extent(leaf, judged.failed)}, beside the gradient that is expected"
    return Finding(leaf.name, "wrong gradient", text, indices(leaf, judged.failed))


def writes(written: Sequence[str]) -> Finding:
    """What a backward pass writes to that is not its own."""
    text = f"the backward pass writes to {', '.join(written)}, which others read as well"
    return Finding("", "purity", text)


def in_part(leaf: Leaf, looked_at: int, finding: Finding, wrong: Mask | None) -> Finding:
    """A finding about the elements of a leaf that were ``looked_at``, told of the whole: of all
    that are ``wrong``, where those are known.
    """
    if finding.kind != "wrong gradient":
        return finding
    extent, semicolon, remainder = finding.text.partition(";")
    if wrong is not None:
        extent = _extent(leaf, wrong)
    else:
        extent = extent.replace(f" of {looked_at} elements", f" of {leaf.size} elements")
        extent += f", as far as {looked_at} of {leaf.size} tell"
    return replace(finding, text=f"{extent}{semicolon}{remainder}")


def _extent(leaf: Leaf, failed: Mask) -> str:
    """How much of a leaf is wrong, and where."""
    count = int(failed.sum())
    if count == leaf.size or not count:
        return leaf.name if leaf.size == 1 else f"{leaf.name}, every element"
    place = None if leaf.is_complex else place_of(failed, leaf.grid)
    where = _places(leaf, failed) if place is None else f"in {place.words}"
    return f"{leaf.name}, {count} of {leaf.size} elements, {where}"


def _remainder(leaf: Leaf, truth: Truth) -> str:
    """A second sign that the gradient is wrong and not the differences."""
    part = leaf.part
    orders = [order for n, order in truth.remainder.items() if part.start <= n < part.stop]
    known = [order for order in orders if np.isfinite(order)]
    if not known or not abs(float(np.median(known)) - 1) < 0.2:
        return ""
    order = float(np.median(known))
    return f"; Taylor remainder ~ h^{order:.1f}, not h^3"


def _places(leaf: Leaf, mask: Any) -> str:
    few = [leaf.element(index) for index in indices(leaf, mask)]
    count = int(np.sum(mask))
    return "at " + ", ".join(few[:4]) + (" ..." if count > 4 else "")


def unsure(
    leaf: Leaf, measured: Measured, judged: Judged, allowed: Vector, eps: Vector | None
) -> Finding:
    truth = measured.truth
    bar, undecided = truth.bar[leaf.part], judged.undecided
    where = indices(leaf, undecided)
    at = _places(leaf, undecided) if where else ""
    limit = measured.allowance.distance
    if eps is not None and not judged.distance + judged.distance_bar <= limit:
        text = (
            f"{leaf.name}: with eps={eps[leaf.start]:g} the distance is {judged.distance:.1e} ± "
            f"{judged.distance_bar:.1e}; "
            "leave eps out to have the steps chosen"
        )
        return Finding(leaf.name, "eps", text, where)
    for kind, (word, text) in NO_DERIVATIVE.items():
        there = undecided & (truth.kinds[leaf.part] == kind)
        if there.any():
            what = text.format("function" if measured.order == 1 else "gradient")
            return Finding(leaf.name, word, f"{leaf.name}: {what} {_places(leaf, there)}", where)
    if (undecided & ~truth.settled[leaf.part]).any():
        text = (
            f"{leaf.name}: the differences do not converge {at}: there may be a kink, a jump, the "
            f"edge of a domain or more noise than slope; move the point"
        )
        return Finding(leaf.name, "no convergence", text, where)
    noisy = f"phi = {measured.value:.3g} carries rounding noise of {truth.noise.sigma:.1g}"
    if not where:
        text = (
            f"{leaf.name}: the distance is {judged.distance:.1e} ± {judged.distance_bar:.1e}, "
            f"where {limit:.0e} is allowed: {noisy}"
        )
        return Finding(leaf.name, "noise", text)
    place = int(np.argmax(np.where(undecided, bar, -1)))
    text = (
        f"{leaf.name}: differences are good to ±{bar[place]:.1g} {at}, where "
        f"{allowed[place]:.1g} is allowed: {noisy}"
    )
    return Finding(leaf.name, "noise", text, where)


def gives(mode: str) -> str:
    """What gives the gradient in a mode."""
    return "the jvp gives" if mode == FORWARD else "backward gives"


def mirrored(leaf: Leaf) -> str:
    """What matrices are called that equal their transposes, or their conjugate ones."""
    return "Hermitian" if leaf.is_complex else "symmetric"


def only_here(
    leaf: Leaf,
    number: int,
    mistake: Mistake | str,
    near_by: NearBy,
    mode: str = REVERSE,
    is_open: bool = False,
) -> Finding:
    """What is wrong near by, by the ``mistake`` seen there or in these words."""
    seen = mistake
    if not isinstance(seen, str):
        seen = (
            f"along a random direction {gives(mode)} {seen.analytic:.6g}, differences give "
            f"{seen.truth:.6g} ± {seen.bar:.1g}"
        )
    word = "Hermitian" if HERMITIAN in near_by.why.values() else mirrored(leaf)
    if number in near_by.kept and near_by.why.get(number) not in (SUM, NORM):
        text = (
            f"{leaf.name}: right where matrices are {word}, as here, and wrong off that: "
            f"{seen}; if it is meant for {word} matrices alone, say constraint='symmetric'"
        )
        return Finding(leaf.name, "only on its constraint", text)
    if number in near_by.kept:
        return right_only(leaf, near_by.why[number], f": {seen}")
    here = "open" if is_open else "right"
    text = f"{leaf.name}: {here} at this point, which hides mistakes, and wrong near by: {seen}"
    kind = "wrong near by" if is_open else ONLY_HERE
    return Finding(leaf.name, kind, text + _if_mirrored(near_by, word))


def another_near_by(dtype: str, seen: str, near_by: NearBy) -> Finding:
    """A kernel that is its reference at the point alone."""
    text = (
        f"{dtype}: right at this point, which hides mistakes, and another function near by: {seen}"
    )
    word = "Hermitian" if HERMITIAN in near_by.why.values() else "symmetric"
    return Finding("", ONLY_HERE, text + _if_mirrored(near_by, word))


def _if_mirrored(near_by: NearBy, word: str) -> str:
    if {*MIRRORS, DIAGONAL}.isdisjoint(near_by.why.values()):
        return ""
    return f"; if it is meant for {word} matrices alone, say constraint='symmetric'"


def right_only(leaf: Leaf, why: str, seen: str = "") -> Finding:
    """What is meant for arguments on a constraint, and off it is wrong."""
    names = {SUM: "constraint='simplex'", **dict.fromkeys(MIRRORS, "constraint='symmetric'")}
    say = names.get(why, "a projection as constraint=")
    text = (
        f"{leaf.name}: right where {why}, as here, and wrong off that{seen}; if it is meant for "
        f"such arguments alone, give {say}"
    )
    return Finding(leaf.name, "only on its constraint", text)


def held_to(off: float) -> str:
    """How to have an approximation judged by what it promises, where no element is ``off`` by more
    than that share of itself.
    """
    least = ENOUGH * off
    unit = 10.0 ** math.floor(math.log10(least))
    rtol = unit * next(n for n in (1, 2, 5, 10) if least <= n * unit)
    return (
        f"no element is off by more than {percent(off)} of itself: a backward pass that only "
        f"approximates, as that of a solver which stops early or chooses its steps, is judged by "
        f"rtol={rtol:.0e}"
    )


def along_directions(leaf: Leaf, mistake: Mistake, mode: str) -> Finding:
    text = (
        f"{leaf.name}: along a random direction {gives(mode)} {mistake.analytic:.6g}, differences "
        f"give {mistake.truth:.6g} ± {mistake.bar:.1g}; along others they differ as well"
    )
    return Finding(leaf.name, "wrong gradient", text)


def grows() -> Finding:
    text = (
        "every run of the backward pass adds as much to the gradient as the one before, and a "
        "later one was judged: set to zero what it adds into"
    )
    return Finding("", "accumulates", text)


def draws_its_own() -> Finding:
    text = (
        "the backward pass draws random numbers of its own. Here it began where the forward pass "
        "had begun; run after it, it draws others: keep what the forward pass drew, such as a mask"
    )
    return Finding("", "stochastic backward", text)


def on_repeats(problem: Problem, told: Told) -> tuple[list[str], list[Finding]]:
    """Notes on leaves whose gradient varies by rounding, findings on those where it is random."""
    notes: list[str] = []
    findings: list[Finding] = []
    run = told.runs[-1]
    for leaf in problem.layout:
        slack, gradient = run.slack[leaf.part], run.backward.gradient[leaf.part]
        if not slack.any():
            continue
        largest, size = float(np.max(slack)), float(np.max(np.abs(gradient), initial=0.0))
        limit = ROUNDING if run.bits is None else told.allowance.of_rms
        if largest <= limit * size:
            bits = min(told.bits, run.bits or DOUBLE)
            unit = 2.0 ** (DOUBLE - bits) * float(np.spacing(size))
            ulps = largest / unit
            text = f"the backward pass repeats itself to {ulps:.0f} ulps only, which are allowed"
            notes.append(f"{leaf.name}: {text}")
        else:
            text = (
                f"{leaf.name}: the gradient is another whenever the backward pass runs, by up to "
                f"{largest:.2g} where it is {size:.2g}: draw what is random in the forward pass"
            )
            findings.append(Finding(leaf.name, "stochastic backward", text))
    return notes, findings


def notes_on_near_by(problem: Problem, near_by: NearBy) -> list[str]:
    if not near_by.why:
        return []
    names: dict[str, list[str]] = {why: [] for why in near_by.why.values()}
    for number, why in near_by.why.items():
        names[why].append(problem.layout.leaves[number].name)
    hidden = "; ".join(f"{_few(leaves)}: {why}" for why, leaves in names.items())
    if not near_by.can_move or near_by.is_stale:
        advice = "give grads as a function to have another point looked at"
        if near_by.can_move:
            advice = "at another one grads returns the very same arrays: return new ones"
        return [f"this point hides mistakes ({hidden}): {advice}"]
    if {SUM, NORM} & set(near_by.why.values()):
        hidden += ", which is kept for the other leaves"
    if near_by.mistakes is None:
        return [f"this point hides mistakes ({hidden}), and no other was found in the domain"]
    return [f"this point hides mistakes ({hidden}), so another one near by was looked at too"]


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def precision(bits: int) -> str:
    if isinstance(bits, Operands):
        return bits.name
    return next((name for name, length in BITS.items() if length == bits), "float64")


def not_raised(bits: int, why: str, is_wider: bool) -> Finding:
    """``is_wider``: it could be raised to these bits."""
    dtype = precision(bits)
    instead = f"raised to {dtype} and differenced there" if is_wider else "differenced as it runs"
    text = f"{dtype}: raising to float64 changes this function ({why}), so it was {instead}"
    return Finding("", f"truth in {dtype}", text)


def low_precision(bits: int, rtol: float, is_raised: bool = False) -> Finding:
    """``is_raised``: it was computed in float64 as well."""
    dtype = precision(bits)
    if is_raised:
        rest = ". It was judged in float64 all the way, and as it runs, where"
    else:
        rest = ", or as coarsely, so its differences are noisier and"
    text = f"{dtype}: the function computes in {dtype} on its way{rest} rtol {rtol:.0e} is allowed"
    return Finding("", "low precision inside", text)


def forward_mismatch(problem: Problem, told: Told) -> Finding | None:
    """A forward pass that gives another value when the backward is wanted belongs to another
    function.
    """
    value, own = told.value, told.runs[0].backward.value
    if own is None or abs(own - value) <= max(1000 * told.sigma, SAME * abs(value)):
        return None
    # What was raised may still draw, or round, as it did before.
    bits = problem.layout.bits
    unit = RAISED * 2.0**-bits if bits < DOUBLE else SAME
    if abs(own - value) <= unit * (abs(value) + told.influence()):
        return None
    text = (
        f"the forward pass that the backward belongs to gives {own:.9g}, the plain one {value:.9g}"
    )
    return Finding("", "forward", text)


def suspects(leaf: Leaf, suspect: Suspect, finding: Finding, gradient: Vector) -> Finding:
    """A finding about some coordinates, with all that a search has found in the leaf."""
    infinite = [n for n in suspect.off if not math.isfinite(gradient[n])]
    # An infinite slope may be right, and what is no number is not.
    endless = [n for n in infinite if math.isnan(gradient[n])] or infinite
    at = f"{len(endless)} of {leaf.size} elements"
    first = leaf.element(leaf.index(min(endless))) if endless else ""
    if finding.kind == "not finite" and endless:
        text = f"{leaf.name}: the gradient is not finite at {at}, first at {first}"
        if (others := suspect.size - len(infinite)) > 0:
            text += f"; others are wrong as well, about {others}"
        return replace(finding, text=text)
    if finding.kind != "wrong gradient":
        return finding
    parts = [_named(leaf, node, suspect.probes(node)) for node in suspect.dense]
    if (place := _whole_place(leaf, suspect)) is not None:
        tell = f", as far as {len(suspect.off)} tell" if suspect.is_estimate else ""
        count = "" if place.kind in ("head", "tail") else f"{suspect.size} elements"
        told = f"{count}{tell}".removeprefix(", ")
        parts = [f"{place.words} ({told})" if told else place.words]
    elif len(parts) > NAMED or suspect.is_drawn:
        mask = np.zeros(leaf.size, bool)
        mask[np.array([*suspect.off], np.intp) - leaf.start] = True
        parts = [f"about {suspect.size} of {leaf.size} elements, {_places(leaf, mask)}"]
    elif suspect.lone:
        mask = np.zeros(leaf.size, bool)
        mask[np.array([*suspect.lone], np.intp) - leaf.start] = True
        least = "at least " if suspect.is_cut else ""
        count = f"{least}{len(suspect.lone)} of {leaf.size} elements"
        parts.append(f"{count}, {_places(leaf, mask)}")
    worst = [*suspect.off][:SHOWN]
    where = tuple(dict.fromkeys(leaf.index(position) for position in sorted(worst)))
    _, semicolon, remainder = finding.text.partition(";")
    text = f"{leaf.name}, {' and '.join(parts)}{semicolon}{remainder}"
    if endless:
        text += f"; not finite at {at}, first at {first}"
    return Finding(leaf.name, finding.kind, text, where)


def _whole_place(leaf: Leaf, suspect: Suspect) -> Place | None:
    """The one place that all of what was found makes up together."""
    if suspect.is_cut or suspect.is_drawn or leaf.is_complex or leaf.size > LARGE:
        return None
    mask = suspect.mask(leaf)
    place = place_of(mask, leaf.shape)
    return place if place is not None and (place.inside == mask).all() else None


def _named(leaf: Leaf, node: Node, probes: int) -> str:
    """A part of a leaf, as a reader would write it."""
    if node.size == leaf.size:
        return f"every element, as far as {probes} of {leaf.size} tell"
    told, seen = f"{node.size} elements", f", as far as {probes} tell" if probes < node.size else ""
    if node.box is not None:
        sides = zip(node.box, leaf.grid, strict=True)
        ranges = [":" if side == (0, size) else f"{side[0]}:{side[1]}" for side, size in sides]
        return f"[{', '.join(ranges)}] ({told}{seen})"
    first, last = leaf.index(node.position(0)), leaf.index(node.position(node.size - 1))
    if node.size > 1 and node.position(1) - node.position(0) > 1:
        return f"column {first[-1]} ({told}{seen})"
    if len(first) > 1 and first[:-1] == last[:-1] and node.size == leaf.shape[-1]:
        return f"row {', '.join(map(str, first[:-1]))} ({told}{seen})"
    return f"{told} from {leaf.element(first)} to {leaf.element(last)}{seen}"
