"""Mistakes of real backward passes, class by class: an audit fails each, and passes its right twin.

One function in both, so that an alarm over the wrong one is about its backward pass.
"""

from typing import Any

import classes
import jax_classes
import pytest

from xgradcheck import Verdict, audit

PLANTED = {
    f"{planted.letter} {planted.row} {planted.backend}: {planted.name}": planted
    for planted in classes.PLANTED + jax_classes.PLANTED
}


def audited(case: Any, backend: str) -> Any:
    return audit(case.fn, *case.args, **case.options, backend=backend, raise_exception=False)


def some(every: int) -> Any:
    """All of them, of which one in so many is not slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if number % every else [])
        for number, name in enumerate(PLANTED)
    ]


@pytest.mark.parametrize("name", some(3))
def test_the_mistake_is_seen(name: str) -> None:
    planted = PLANTED[name]
    report = audited(planted.wrong(), planted.backend)
    assert report.verdict is Verdict.FAIL, str(report)


@pytest.mark.parametrize("name", some(6))
def test_the_right_twin_passes(name: str) -> None:
    planted = PLANTED[name]
    report = audited(planted.right(), planted.backend)
    assert report.verdict is Verdict.PASS, str(report)


def test_every_class_has_two_mistakes() -> None:
    letters = [planted.letter for planted in PLANTED.values()]
    assert {*letters} == {*classes.MEANINGS}
    assert min(map(letters.count, classes.MEANINGS)) >= 2
