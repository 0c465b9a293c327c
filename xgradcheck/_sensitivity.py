"""The smallest planted errors that a run would have caught."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xgradcheck._differences import rms
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Leaf, Vector
from xgradcheck._report import KINDS, Sensitivity

if TYPE_CHECKING:
    from xgradcheck._report import Report


def of_elements(leaf: Leaf, truth: Vector, seen: Vector) -> Sensitivity | None:
    """Where each element was judged by itself: ``seen`` is the error from which on it is wrong.
    None where all that is right is zero.
    """
    if not truth.size or not truth.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(truth != 0, seen / np.abs(truth), np.inf)
    rows = shares.reshape(-1, _width(leaf)).min(axis=1)
    told = rows[np.isfinite(rows)]
    return Sensitivity(
        scale=float(np.min(shares)),
        element=float(np.max(seen)) / rms(truth),
        row=float(np.max(told, initial=0.0)) if told.size else math.inf,
    )


def of_norm(leaf: Leaf, floor: float, width: int | None = None) -> Sensitivity | None:
    """Where an error of the share ``floor`` of the norm of a leaf was seen, or of that of each of
    its rows of this width.
    """
    if not floor < math.inf:
        return None
    per_row = 1.0 if width else math.sqrt(max(leaf.size / _width(leaf), 1.0))
    return Sensitivity(floor, floor * math.sqrt(width or leaf.size), floor * per_row)


def _width(leaf: Leaf) -> int:
    return leaf.grid[-1] if leaf.grid and leaf.grid[-1] else 1


def limits(written: Iterable[str]) -> dict[str, float]:
    """What ``kind=number`` asks for, and a number alone, which is one for a common factor.

    >>> limits(["1e-3", "element=0.1"])
    {'scale': 0.001, 'element': 0.1}
    """
    found = {}
    for word in written:
        kind, _, text = word.rpartition("=")
        kind = kind or KINDS[0]
        try:
            found[kind] = float(text)
        except ValueError:
            found[kind] = 0.0
        if kind not in KINDS or not found[kind] > 0:
            raise InvalidCase(
                f"{word!r} is no sensitivity: write a number above 0, or one of "
                f"{', '.join(f'{kind}=NUMBER' for kind in KINDS)}."
            )
    return found


def missed(report: "Report", asked: Mapping[str, float]) -> list[str]:
    """What this run would not have caught and was asked to."""
    said = []
    for name, found in report.sensitivity.items():
        for kind, limit in asked.items():
            if not getattr(found, kind) <= limit:
                said.append(
                    f"{name}: {PLANTED[kind]} is caught from {getattr(found, kind):.1e} on, "
                    f"and {limit:.1e} was asked for"
                )
    return said


PLANTED = {
    "scale": "a wrong factor",
    "element": "one wrong element, in rms of its leaf,",
    "row": "a wrong factor of one row",
}


def lines(report: "Report") -> Sequence[str]:
    """What each leaf would have been caught at."""
    return [
        f"{name}: catches a wrong factor from {found.scale:.1e} on, one element from "
        f"{found.element:.1e} rms, a factor of one row from {found.row:.1e}"
        for name, found in report.sensitivity.items()
    ]
