"""Every planted bug is caught and named, and its mended twin accepted, over many seeds."""

import pytest
from bugs import BUGS, Bug

SEEDS = range(20)


pytestmark = pytest.mark.usefixtures("one_thread")


def _name(bug: Bug) -> str:
    return bug.run.__name__


@pytest.mark.parametrize("bug", BUGS, ids=_name)
def test_a_planted_bug_fails_in_the_leaves_it_breaks_and_in_no_other(bug: Bug) -> None:
    for seed in SEEDS:
        report = bug.run(True, seed)
        failed = {name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"}
        assert report.verdict == "FAIL", f"seed {seed}:\n{report}"
        assert failed == set(bug.leaf), f"seed {seed}:\n{report}"


@pytest.mark.parametrize("bug", BUGS, ids=_name)
def test_the_mended_twin_passes(bug: Bug) -> None:
    for seed in SEEDS:
        report = bug.run(False, seed)
        assert report.verdict == "PASS", f"seed {seed}:\n{report}"


def test_the_table_is_long_and_no_row_stands_twice() -> None:
    assert len(BUGS) >= 40
    assert len({bug.run for bug in BUGS}) == len({bug.title for bug in BUGS}) == len(BUGS)
    assert len({_name(bug) for bug in BUGS}) == len(BUGS)


def test_the_table_covers_many_kinds_of_mistake() -> None:
    assert len({bug.kind for bug in BUGS}) >= 8


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_the_table_has_rows_of_each_framework(backend: str) -> None:
    assert sum(bug.backend == backend for bug in BUGS) >= 10


@pytest.mark.parametrize("bug", BUGS, ids=_name)
def test_a_row_says_what_it_is(bug: Bug) -> None:
    assert bug.leaf
    assert bug.run.__doc__ and "\n" not in bug.run.__doc__
