"""How much memory a check may hold: told before it starts, and refused where it is too much."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from xgradcheck import InvalidCase, Verdict, _memory, check
from xgradcheck._adapters import Case, adapter

GIB = 2**30


def squared(x: Any) -> Any:
    return (x**2).sum() / 2


def checked(size: int, **options: Any) -> Verdict:
    x = np.random.default_rng(0).normal(size=size)
    return check(squared, x, grads=lambda x: x, **options).verdict


@pytest.mark.parametrize("memory", [2_000_000, "2MB", "1.9MiB", "2000000"])
def test_what_fits_runs_and_what_does_not_is_refused(memory: Any) -> None:
    # Five vectors of 8 bytes a coordinate.
    assert checked(45_000, memory=memory) is Verdict.PASS
    with pytest.raises(InvalidCase, match=r"hold 2MiB .* may hold 2MiB.* memory='3MiB'"):
        checked(60_000, memory=memory)


def test_what_is_asked_for_in_a_refusal_is_enough() -> None:
    assert checked(60_000, memory="3MiB") is Verdict.PASS
    for count in (2**20, 2**28 + 1, 2**30 + 1, 5 * 2**30 - 1):
        asked = _memory.memory_of(_memory._enough(count))
        assert asked is not None
        assert count <= asked <= 1.25 * count + 2 * 2**20


def test_by_default_a_quarter_of_what_is_free_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "LITTLE", 0)
    monkeypatch.setattr(_memory, "free", lambda: 4 * 5 * 8 * 1000)
    assert checked(1000) is Verdict.PASS
    with pytest.raises(InvalidCase, match="a quarter of what is free"):
        checked(1001)


@pytest.mark.parametrize("memory", [0, -1, "0GiB", "much", "2 apples", True])
def test_what_is_no_amount_of_memory_is_refused(memory: Any) -> None:
    with pytest.raises(InvalidCase, match="no amount of memory"):
        checked(3, memory=memory)


def test_what_is_free_is_what_the_machine_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Machine:
        available = 8 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    monkeypatch.setattr(_memory, "CONTAINER", tmp_path)
    assert _memory.free() == 8 * GIB  # no container
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 17\ninactive_file {GIB}\nactive_file 5\n")
    for limit, left in (("max", 8), (str(20 * GIB), 8), (str(4 * GIB), 2), (str(GIB), 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert _memory.free() == left * GIB


@pytest.mark.parametrize(("width", "points"), [(10, 64), (1_000_000, 32), (100_000_000, 1)])
def test_batches_in_jax_go_by_all_that_is_computed(width: int, points: int) -> None:
    def wide(x: Any) -> Any:
        return (x.sum() * jnp.ones(width, x.dtype)).sum()

    problem = adapter("jax").bind(Case(wide, (jnp.ones(64),), {}, None, None, None))
    assert problem.call.programs.chunk == points


def test_a_function_that_is_known_is_given_batches_of_the_same_size() -> None:
    def wide(x: Any) -> Any:
        return (jnp.sin(x).sum() * jnp.ones(1_000_000, x.dtype)).sum()

    x = np.linspace(0.0, 1.0, 4096)
    problems = [adapter("jax").bind(Case(wide, (x,), {}, None, None, None)) for _ in range(2)]
    batches = []
    for problem in problems:
        with problem.held():
            batches.append(problem.batch)
    assert batches == [16, 16]
