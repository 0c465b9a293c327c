"""Real models as they are: no alarm, and every planted twin found and named."""

from typing import Any

import jax_models
import models
import pytest
import torch
from tally import Tally

SEEDS, OPEN = 200, 0.02
"""How many seeds, and which share of right models may be left open."""
TORCH = {found.name: found for found in models.ROWS}
JAX = {found.name: found for found in jax_models.ROWS}
IN_TORCH = [torch.float64, torch.float32]
IN_JAX = ["float64", "float32"]


pytestmark = pytest.mark.usefixtures("one_thread")


def in_torch(tally: Tally, name: str, dtype: Any, seed: int) -> None:
    make = TORCH[name].make
    tally.count(models.forms(make(seed, dtype)), models.spoilt(make(seed, dtype)), seed)


def in_jax(tally: Tally, name: str, dtype: str, seed: int, compiled: bool) -> None:
    model = JAX[name].make(seed, dtype)
    tally.count(model.forms(compiled), model.spoilt(), seed)


def is_as_promised(tally: Tally) -> bool:
    """Whether no right model was called wrong, hardly any left open, and every twin named."""
    return not tally.right["FAIL"] and tally.open <= OPEN and {*tally.twins} == {"named"}


def seed_of(name: str) -> int:
    """Another seed for every row."""
    return sum(map(ord, name)) % SEEDS


@pytest.mark.parametrize("dtype", IN_TORCH, ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_a_model_in_torch(name: str, dtype: Any) -> None:
    tally = Tally()
    in_torch(tally, name, dtype, seed_of(name))
    assert not tally.amiss


# Compiling takes its time: here one dtype of each row, and both of them in the slow run.
@pytest.mark.parametrize("name", JAX)
def test_a_model_in_jax(name: str) -> None:
    seed, tally = seed_of(name), Tally()
    in_jax(tally, name, IN_JAX[seed % 2], seed, compiled=seed % 2 == 1)
    assert not tally.amiss


@pytest.mark.slow
@pytest.mark.parametrize("dtype", IN_TORCH, ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_a_model_in_torch_at_any_seed(name: str, dtype: Any) -> None:
    tally = Tally()
    for seed in range(SEEDS):
        in_torch(tally, name, dtype, seed)
    assert is_as_promised(tally), tally.amiss


@pytest.mark.slow
@pytest.mark.parametrize("dtype", IN_JAX)
@pytest.mark.parametrize("name", JAX)
def test_a_model_in_jax_at_any_seed(name: str, dtype: str) -> None:
    tally = Tally()
    for seed in range(SEEDS):
        in_jax(tally, name, dtype, seed, compiled=True)
    assert is_as_promised(tally), tally.amiss


def test_there_are_many_models_of_each_framework() -> None:
    assert min(len(TORCH), len(JAX)) >= 40
