"""What the PyTorch adapter saves itself: forward passes, copies, comparisons; and that nobody can
tell.
"""

import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from fingerprint import fingerprint
from torch import nn
from xgradcheck.backends.kept_states import attributes_state
from xgradcheck.backends.moves import displaced
from xgradcheck.backends.random_states import random_states
from xgradcheck.backends.states import same_bytes
from xgradcheck.backends.world import World

from xgradcheck._adapters import Case
from xgradcheck.backends import states
from xgradcheck.backends import torch as adapter

UNIT = np.ones(1)
NUMPY: Any = np.random


def bound(fn: Any, *args: Any, wrt: Any = None) -> Any:
    return adapter.bind(Case(fn, args, {}, wrt, None, None))


class Boom(Exception):
    """Raised by a function in the middle of an evaluation."""


class Seen:
    """A function that keeps a copy of each argument it is given, as a flat vector holds it."""

    def __init__(self, springs_at: float = np.inf) -> None:
        self.points: list[Any] = []
        self.springs_at = springs_at

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        found = []
        for arg in args:
            value = arg.detach()
            parts = (value.real, value.imag) if value.is_complex() else (value,)
            found += [part.double().reshape(-1) for part in parts]
        self.points.append(torch.cat(found).numpy())
        if len(self.points) >= self.springs_at:
            raise Boom
        return sum(arg.abs().sum() for arg in args)


def three_leaves(dtype: torch.dtype, lies: str) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    leaves = [torch.randn(4, 3, dtype=dtype, generator=made) for _ in range(3)]
    leaves[1][0, 1] = -0.0
    if lies == "transposed":
        leaves = [leaf.t().contiguous().t() for leaf in leaves]
    elif lies == "in a larger one":
        leaves = [torch.cat([leaf, leaf], dim=1)[:, :3] for leaf in leaves]
    return leaves


def flat(leaves: list[torch.Tensor]) -> Any:
    seen = Seen()
    seen(*leaves)
    return seen.points[0]


WINDOWS = {"all": (0, 36), "one leaf": (12, 12), "across two": (7, 11), "inside one": (14, 5)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex128])
@pytest.mark.parametrize("lies", ["contiguous", "transposed", "in a larger one"])
@pytest.mark.parametrize("width", [np.float64, np.float32])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("step", [2.0**-9, -0.37, 0.0])
def test_a_function_sees_the_point_plus_step_times_direction(dtype, lies, width, window, step):
    leaves = three_leaves(dtype, lies)
    fn, (start, size) = Seen(), WINDOWS[window]
    problem = bound(fn, *leaves)
    direction = np.random.default_rng(1).standard_normal(size).astype(width)
    direction[1] = 0.0
    with problem.held():
        problem.along(direction, np.array([step]), start, UNIT)
        problem.along(direction, np.array([0.0]), start, UNIT)
    expected = problem.point.copy()
    moved = displaced(expected[start : start + size], direction.astype(np.float64), step)
    expected[start : start + size] = moved
    rounded = torch.from_numpy(expected).to(dtype.to_real()).double().numpy()
    assert same_bytes(fn.points[-2], rounded)
    assert same_bytes(fn.points[-1], flat(leaves))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_coordinate_that_does_not_move_keeps_its_sign_of_zero(zero):
    x, fn = torch.tensor([zero, 1.0], dtype=torch.float64), Seen()
    problem = bound(fn, x)
    with problem.held():
        problem.along(np.array([0.0, 1.0]), np.array([0.5, -0.5]), 0, UNIT)
    assert [np.signbit(point[0]) for point in fn.points] == [np.signbit(zero)] * 3


@pytest.mark.parametrize("springs_at", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_leaves_are_put_back_after_an_exception(springs_at, dtype):
    leaves = three_leaves(dtype, "transposed")
    before, fn = fingerprint(leaves), Seen(springs_at)

    def run():
        problem = bound(lambda: fn(*leaves), wrt=leaves)
        with problem.held():
            problem.along(np.ones(36), np.array([0.5, -0.5]), 0, UNIT)

    with pytest.raises(Boom):
        run()
    assert fingerprint(leaves) == before


def test_a_direction_that_cannot_be_written_or_is_strided_is_taken():
    x = torch.rand(4, dtype=torch.float64)
    problem = bound(lambda x: x.sum(), x)
    fixed = np.ones(4)
    fixed.flags.writeable = False
    with problem.held():
        one = problem.along(fixed, np.array([0.5]), 0, UNIT)
        other = problem.along(np.ones(8)[::-2], np.array([0.5]), 0, UNIT)
    assert one == other == pytest.approx(float(x.sum()) + 2.0)


def counted(calls: list[bool]) -> Any:
    def fn(x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return x.sin()

    return fn


def test_the_first_gradient_starts_from_the_forward_pass_that_was_looked_at():
    calls: list[bool] = []
    x = torch.rand(5, dtype=torch.float64)
    problem, cotangent = bound(counted(calls), x), np.linspace(1.0, 2.0, 5)
    with problem.held():
        first = problem.gradient(cotangent)
        assert calls == [True]
        second = problem.gradient(cotangent)
        assert calls == [True, True]
    assert first.value == second.value
    assert same_bytes(first.gradient, second.gradient)
    assert same_bytes(first.gradient, x.cos().numpy() * cotangent)


def test_after_any_other_evaluation_the_gradient_runs_a_forward_pass_of_its_own():
    calls: list[bool] = []
    problem = bound(counted(calls), torch.rand(5, dtype=torch.float64))
    with problem.held():
        problem.along(np.ones(5), np.zeros(1), 0, np.ones(5))
        problem.gradient(np.ones(5))
    assert calls == [True, False, True]


def test_the_graph_that_was_looked_at_is_let_go():
    kept = []

    def fn(x):
        out = x.sin()
        kept.append(weakref.ref(out))
        return out

    problem = bound(fn, torch.rand(5, dtype=torch.float64))
    with problem.held():
        problem.gradient(np.ones(5))
        assert kept[0]() is None


def test_a_forward_pass_that_draws_is_run_again():
    """Its backward pass has to go on drawing where it left off."""
    calls = []

    def fn(x):
        calls.append(1)
        return x * torch.rand(5, dtype=torch.float64)

    problem = bound(fn, torch.rand(5, dtype=torch.float64))
    with problem.held():
        problem.gradient(np.ones(5))
    assert len(calls) == 2


def test_a_function_that_differentiates_inside_is_evaluated_with_a_graph():
    calls = []

    def fn(x):
        calls.append(torch.is_grad_enabled())
        (slope,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
        return slope.sum()

    x = torch.rand(3, dtype=torch.float64)
    problem = bound(fn, x)
    with problem.held():
        plus, minus = problem.along(np.ones(3), np.array([0.5, -0.5]), 0, UNIT)
    assert calls == [True, False, True, True]
    assert plus == pytest.approx(3 * float((x + 0.5).square().sum()))
    assert minus == pytest.approx(3 * float((x - 0.5).square().sum()))


def test_a_problem_is_freed_at_once_and_waits_for_no_collector():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    gc.collect()
    gc.disable()
    try:
        problem = bound(model, torch.rand(5, 3))
        with problem.held():
            problem.gradient(np.ones(10))
            problem.along(np.ones(26), np.array([0.5]), 0, np.ones(10))
        gone = weakref.ref(problem)
        del problem
        assert gone() is None
    finally:
        gc.enable()


def test_parameters_are_not_copied_to_be_compared():
    model = nn.Linear(3, 4)
    problem = bound(model, torch.rand(5, 3))
    with problem.held():
        pairs = zip(problem.call.world.states, problem.call.world._found, strict=True)
        readings = [found for state, found in pairs if state.holder is model.weight]
    assert [values for values, *_ in readings] == [None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("lies", ["contiguous", "transposed", "in a larger one"])
def test_parameters_that_the_function_writes_are_held_still_and_put_back(dtype, lies):
    leaves, seen = three_leaves(dtype, lies), set()
    before = fingerprint(leaves)

    def fn():
        seen.add(fingerprint([leaf.detach() for leaf in leaves]))
        out = sum(leaf.real.sum() for leaf in leaves)
        with torch.no_grad():
            leaves[0][1, 1] += 1.0
            leaves[2].neg_()
        return out

    problem = bound(fn, wrt=leaves)
    with problem.held():
        problem.gradient(UNIT)
        problem.along(np.zeros(problem.layout.size), np.zeros(2), 0, UNIT)
        assert len(seen) == 1
    assert fingerprint(leaves) == before


def test_parts_of_one_tensor_that_do_not_meet_are_leaves():
    whole = torch.rand(12, dtype=torch.float64)
    halves = [whole[:6], whole[6:]]
    combs = [whole[0::2], whole[1::2]]
    for parts in (halves, combs):
        assert bound(lambda: whole.sum(), wrt=parts).layout.size == 12


def held_while(act: Any) -> World:
    held = World(list(random_states()))
    with held.held():
        act()
        held.watch()
    return held


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (random.random, "Python's random"),
        (NUMPY.random, "numpy.random"),
        (lambda: torch.rand(1), "torch's random"),
    ],
)
def test_what_a_function_draws_is_noticed_and_put_back(draw, name):
    before = fingerprint(random.getstate(), NUMPY.get_state(), torch.get_rng_state())
    assert held_while(draw).moving == [name]
    after = fingerprint(random.getstate(), NUMPY.get_state(), torch.get_rng_state())
    assert after == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_normal_number_that_numpy_keeps_for_later_is_put_back(kept):
    """Taking it leaves the twister as it is."""
    found = NUMPY.get_state()
    try:
        NUMPY.seed(0)
        NUMPY.normal(size=1 if kept else 2)
        before = fingerprint(NUMPY.get_state())
        assert held_while(NUMPY.normal).moving == ["numpy.random"]
        assert fingerprint(NUMPY.get_state()) == before
        assert held_while(lambda: None).moving == []
    finally:
        NUMPY.set_state(found)


def test_another_generator_of_numpy_is_held_too():
    found = NUMPY.get_bit_generator()
    NUMPY.set_bit_generator(NUMPY.PCG64(0))
    try:
        before = fingerprint(NUMPY.get_state(legacy=False))
        assert held_while(NUMPY.random).moving == ["numpy.random"]
        assert fingerprint(NUMPY.get_state(legacy=False)) == before
    finally:
        NUMPY.set_bit_generator(found)


def test_attributes_are_told_apart_by_what_they_are_bound_to():
    attributes = {"a": None, "b": 1, "own": 2}
    held = World([attributes_state("net.", attributes, {"own"}, "new attributes of net")])
    with held.held():
        attributes.update(own=3)
        held.watch()
        assert held.moving == []
        del attributes["b"]
        attributes["c"] = None
        held.watch()
        assert held.moving == ["net.b", "new attributes of net"]
        attributes["a"] = 5
    assert attributes == {"a": None, "b": 1, "own": 3}


@pytest.mark.parametrize("size", [8, states.PIECE + 8])
@pytest.mark.parametrize("place", [0, -1])
def test_bytes_are_compared_to_the_last(size, place):
    one = np.zeros(size)
    other = one.copy()
    assert same_bytes(one, other)
    other[place] = -0.0
    assert not same_bytes(one, other)
    one[place] = other[place] = np.nan
    assert same_bytes(one, other)
    assert not same_bytes(one, other.reshape(2, -1))
