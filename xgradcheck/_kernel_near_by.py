"""A kernel beside its reference at generic points near by, where the point itself hides mistakes:
for the same reasons, and with the same other values, as a function is looked at there by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xgradcheck._generic import (
    MIRRORS,
    OFF,
    STILL,
    NearBy,
    points_near_by,
    what_hides,
    wrong_near_by,
)
from xgradcheck._phi import Phi

if TYPE_CHECKING:
    from xgradcheck._three import Bound, Three

TRIES = 2
"""At how many points a leaf has to be wrong: at one of them numbers may tie that tie no more in
another order of operations, or little may be left of the gradient.
"""


@dataclass(frozen=True, slots=True)
class NearKernel:
    """What such points show."""

    near_by: NearBy
    wrong: Mapping[int, str] = field(default_factory=dict)
    """What is wrong there, by leaf number."""
    another: str = ""
    """What the kernel gives there that the reference does not."""


Found = tuple[str, dict[int, str]]
"""In which outputs a kernel is another function at some point, and in which leaves it is wrong."""


def compare_near_by(
    bound: "Bound", here: "Three", factors: Mapping[str, float], seed: int
) -> NearKernel:
    """Compare once more where the leaves that hide mistakes have generic values. ``here`` is what
    the point itself gives.
    """
    phi = Phi(bound.kernel, bound.cotangent, bound.spaces)
    why = what_hides(phi, here.zeros)
    if not (why and bound.can_move):
        return NearKernel(NearBy(why, None, bound.can_move))
    others = list[str]()

    def moved(chosen: dict[int, str]) -> dict[int, str] | None:
        found = _wrong(bound, phi, chosen, factors, seed)
        if found is None:
            return None
        another, wrong = found
        if another and not {*MIRRORS}.isdisjoint(chosen.values()):
            # It may read one triangle alone, and is what it has to be for such matrices.
            return moved({n: STILL if w in MIRRORS else w for n, w in chosen.items()})
        # Off what its arguments are a kernel has promised nothing.
        if another and OFF not in chosen.values():
            others.append(another)
        return wrong

    known = wrong_near_by(why, moved)
    if known is None:
        return NearKernel(NearBy(why, None, True))
    wrong, kept = known
    return NearKernel(NearBy(why, {}, True, kept=kept), wrong, "".join(others[:1]))


def _wrong(
    bound: "Bound", phi: Phi, chosen: dict[int, str], factors: Mapping[str, float], seed: int
) -> Found | None:
    """What is wrong at several points; None where there is none in the domain."""
    another, wrong = "", dict[int, str]()
    for turn in range(TRIES):
        found = _wrong_at_one(bound, phi, chosen, factors, seed + turn)
        if found is None:
            return ("", {}) if turn else None
        another = found[0] if another or not turn else ""
        wrong = {n: text for n, text in found[1].items() if n in wrong or not turn}
        if not (another or wrong):
            break
    return another, wrong


def _wrong_at_one(
    bound: "Bound", phi: Phi, chosen: dict[int, str], factors: Mapping[str, float], seed: int
) -> Found | None:
    """What is wrong at the first point that lies in the domain."""
    for point in points_near_by(phi, chosen, seed):
        if (there := bound.at(point)) is not None:
            another = there.apart(factors)
            return another, {} if another else there.wrong(factors)
    return None
