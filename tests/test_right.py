"""A right gradient raises no alarm: row by row of the table in ``right.py``, over many seeds."""

import pytest
from right import RIGHT, Right

SEEDS, SAMPLED = 1000, {"numpy": 20, "torch": 20, "jax": 6}
"""A NumPy row takes 15 ms per seed, a torch row 40 ms, a JAX row, which compiles, 0.3 s: the
default run takes a sample, and ``pytest -m slow`` all the seeds of every row, hours.
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def _name(row: Right) -> str:
    return f"{row.backend}-{row.run.__name__}"


def _sample(row: Right) -> range:
    """The seeds of the default run; different rows start at different ones."""
    stride = SEEDS // SAMPLED[row.backend]
    return range(RIGHT.index(row) % stride, SEEDS, stride)


def _alarms(row: Right, seeds: range) -> str:
    reports = ((seed, row.run(seed)) for seed in seeds)
    return "\n".join(
        f"seed {seed}:\n{report}" for seed, report in reports if report.verdict != "PASS"
    )


@pytest.mark.parametrize("row", RIGHT, ids=_name)
def test_a_right_gradient_raises_no_alarm(row: Right) -> None:
    alarms = _alarms(row, _sample(row))
    assert not alarms, alarms


@pytest.mark.slow
@pytest.mark.parametrize("row", RIGHT, ids=_name)
def test_a_right_gradient_raises_no_alarm_at_any_seed(row: Right) -> None:
    alarms = _alarms(row, range(SEEDS))
    assert not alarms, alarms


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_the_table_has_many_rows_of_each_framework(backend: str) -> None:
    assert sum(row.backend == backend for row in RIGHT) >= 30
