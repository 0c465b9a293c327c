"""Real models as they are: no alarm, and every planted twin found and named."""

from typing import Any

import jax_models
import models
import pytest
import torch

SEEDS = 200
TORCH = {found.name: found for found in models.ROWS}
JAX = {found.name: found for found in jax_models.ROWS}
IN_TORCH = [torch.float64, torch.float32]
IN_JAX = ["float64", "float32"]


pytestmark = pytest.mark.usefixtures("one_thread")


def judged(forms: Any, spoilt: Any, seed: int) -> None:
    """Every form passes, and of the spoilt one the right leaf fails, and no other."""
    for form, model in forms:
        report = model.report(seed)
        assert report.verdict == "PASS", f"{form}\n{report}"
    model, name = spoilt
    report = model.report(seed)
    wrong = {n for n, leaf in report.leaves.items() if leaf.verdict == "FAIL"}
    own = {n for n in report.leaves if name in n.split(" = ")}
    assert wrong == own and own, f"spoilt: {name}\n{report}"


def in_torch(name: str, dtype: Any, seed: int) -> None:
    make = TORCH[name].make
    judged(models.forms(make(seed, dtype)), models.spoilt(make(seed, dtype)), seed)


def in_jax(name: str, dtype: str, seed: int, compiled: bool) -> None:
    model = JAX[name].make(seed, dtype)
    judged(model.forms(compiled), model.spoilt(), seed)


def seed_of(name: str) -> int:
    """Another seed for every row."""
    return sum(map(ord, name)) % SEEDS


@pytest.mark.parametrize("dtype", IN_TORCH, ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_a_model_in_torch(name: str, dtype: Any) -> None:
    in_torch(name, dtype, seed_of(name))


# Compiling takes its time: here one dtype of each row, and both of them in the slow run.
@pytest.mark.parametrize("name", JAX)
def test_a_model_in_jax(name: str) -> None:
    seed = seed_of(name)
    in_jax(name, IN_JAX[seed % 2], seed, compiled=seed % 2 == 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", IN_TORCH, ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_a_model_in_torch_at_any_seed(name: str, dtype: Any) -> None:
    for seed in range(SEEDS):
        in_torch(name, dtype, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", IN_JAX)
@pytest.mark.parametrize("name", JAX)
def test_a_model_in_jax_at_any_seed(name: str, dtype: str) -> None:
    for seed in range(SEEDS):
        in_jax(name, dtype, seed, compiled=True)


def test_there_are_many_models_of_each_framework() -> None:
    assert min(len(TORCH), len(JAX)) >= 40
