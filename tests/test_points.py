"""Right gradients raise no alarm and wrong ones do not pass, at points of every kind."""

from collections import Counter

import pytest
from points import KINDS, Kind, confusion, drawn, judged

from xgradcheck import Verdict

FEW, MANY = 5, 100
FORBIDDEN = {
    True: (Verdict.FAIL,),
    False: (Verdict.PASS,),
    None: (Verdict.PASS, Verdict.FAIL),
}
"""The verdicts that mislead. At a point without a derivative both do."""


def _misled(kind: Kind) -> str:
    reports = ((seed, judged(drawn(kind, seed), seed)) for seed in range(FEW))
    return "\n".join(
        f"seed {seed}:\n{report}"
        for seed, report in reports
        if report.verdict in FORBIDDEN[kind.is_right]
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_point_misleads(kind: Kind) -> None:
    misled = _misled(kind)
    assert not misled, misled


def _total(counts: dict[str, Counter[str]], is_right: bool | None) -> Counter[str]:
    chosen = (counts[kind.name] for kind in KINDS if kind.is_right is is_right)
    return sum(chosen, Counter())


@pytest.mark.slow
def test_right_and_wrong_gradients_are_told_apart_over_thousands_of_points() -> None:
    assert len(KINDS) * MANY >= 3000
    counts = confusion(MANY)
    table = "\n".join(f"{name}: {dict(count)}" for name, count in counts.items())
    right, wrong = _total(counts, True), _total(counts, False)
    points = MANY * sum(kind.is_right is False for kind in KINDS)
    assert right[str(Verdict.FAIL)] == 0, table
    assert wrong[str(Verdict.PASS)] == 0, table
    assert points - wrong[str(Verdict.FAIL)] <= 0.01 * points, table
