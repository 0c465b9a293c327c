"""What does not repeat itself: held still where it can be, named, or said to be random."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from xgradcheck import check


def held(report):
    (note,) = [note for note in report.notes if note.startswith("held still")]
    return note


def test_dropout_in_training_mode_is_held_still_and_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).double()
    report = check(model, torch.randn(6, 3, dtype=torch.float64))
    assert report.verdict == "PASS"
    assert "torch's random (dropout in 1)" in held(report)
    assert "the buffer 2.num_batches_tracked" in held(report)
    assert model[2].num_batches_tracked == 0
    quiet = check(model.eval(), torch.randn(6, 3, dtype=torch.float64))
    assert not any(note.startswith("held still") for note in quiet.notes)


class Annealed(nn.Module):
    """Counts its calls in a number and in a buffer, and returns something else each time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -1.2], dtype=torch.float64))
        self.step = 0
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.step += 1
        self.calls += 1
        return (self.weight * x).sin().sum() * 0.9**self.step + self.calls


def test_counters_are_held_still_and_named():
    model = Annealed()
    report = check(model, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert report.verdict == "PASS"
    assert held(report) == "held still from call to call: the buffer calls, Annealed.step"
    assert model.calls == 0


def test_a_counter_in_a_variable_is_held_still():
    calls = 0

    def fn(x):
        nonlocal calls
        calls += 1
        return float((x**2).sum()) / calls

    before = calls
    report = check(fn, np.array([1.0, 3.0]), grads=lambda x: 2 * x, raise_exception=False)
    assert "the variable calls" in held(report)
    assert before == 0


generator = random.Random(0)
turn = 0


def test_a_generator_of_pythons_is_held_still():
    def fn(x):
        share = generator.random()
        return float((x**2).sum()) * share

    state = generator.getstate()
    share = random.Random(0).random()
    report = check(fn, np.array([1.0, 3.0]), grads=lambda x: 2 * x * share)
    assert report.verdict == "PASS"
    assert "a Random of Python's" in held(report)
    assert generator.getstate() == state


def test_a_global_counter_is_held_still():
    def fn(x):
        global turn
        turn += 1
        return float((x**2).sum()) + turn

    report = check(fn, np.array([1.0, 3.0]), grads=lambda x: 2 * x)
    assert report.verdict == "PASS"
    assert "the global turn" in held(report)


turns = itertools.count()


def noise(size):
    """Another number on each call, which nobody can hold still: neighbours in this sequence lie a
    third of ``size`` apart, so that no two runs agree by chance.
    """
    return size * (next(turns) * 0.6180339887498949 % 1 - 0.5)


def test_what_cannot_be_held_still_is_stochastic():
    def fn(x):
        return float((x**2).sum()) * (1 + noise(1e-3))

    report = check(fn, np.array([1.0, 3.0]), grads=lambda x: 2 * x, raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"
    assert [finding.kind for finding in report.findings] == ["stochastic"]


def test_a_value_that_repeats_to_the_last_digits_is_noisy():
    """As sums on many threads are: a few units in the last place."""

    def fn(x):
        return float((x**2).sum()) * (1 + noise(8e-15))

    report = check(fn, np.array([1.0, 3.0]), grads=lambda x: 2 * x)
    assert any("repeats itself to" in note for note in report.notes)
    wrong = check(fn, np.array([1.0, 3.0]), grads=lambda x: 2.001 * x, raise_exception=False)
    assert wrong.verdict == "FAIL"


class Sine(torch.autograd.Function):
    spread = 0.0
    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() * Sine.factor * (1 + noise(Sine.spread))


@pytest.mark.parametrize(
    ("spread", "factor", "verdict"),
    [
        (0.0, 1.0, "PASS"),
        (4e-15, 1.0, "PASS"),
        (4e-15, 1.001, "FAIL"),
        (1e-2, 1.0, "INCONCLUSIVE"),
    ],
)
def test_a_backward_pass_that_does_not_repeat_itself(spread, factor, verdict, monkeypatch):
    monkeypatch.setattr(Sine, "spread", spread)
    monkeypatch.setattr(Sine, "factor", factor)
    x = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    report = check(Sine.apply, x, raise_exception=False)
    assert report.verdict == verdict
    said = " ".join(str(report).split())
    assert ("ulps only, which are allowed" in said) == (spread == 4e-15)
    assert ("stochastic backward" in said) == (spread == 1e-2)


class Product(torch.autograd.Function):
    """A matrix product, whose backward is written below."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w


class Unwritten(Product):
    """One element of the weight's gradient is a number in the first run alone."""

    runs = 0

    @staticmethod
    def backward(ctx, cotangent):
        x, w = ctx.saved_tensors
        Unwritten.runs += 1
        dw = x.T @ cotangent
        if Unwritten.runs > 1:
            dw[0, 0] = torch.nan
        return cotangent @ w.T, dw


def test_a_gradient_that_is_no_number_in_later_runs_is_wrong():
    x, w = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    Unwritten.runs = 0
    report = check(lambda x, w: Unwritten.apply(x, w), x, w, raise_exception=False)
    assert {name: leaf.verdict for name, leaf in report.leaves.items()} == {
        "x": "PASS",
        "w": "FAIL",
    }
    assert report.leaves["w"].wrong == 1


def test_losses_that_a_module_gathers_in_a_list_are_put_back():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.expert = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
            self.losses = []

        def forward(self, x):
            share = self.gate(x).softmax(-1)
            self.losses.append((share.mean(0) ** 2).sum())
            return (share * self.expert(x)).sum() + sum(self.losses)

    model = Gate()
    report = check(model, torch.randn(4, 3, dtype=torch.float64))
    assert report.verdict == "PASS"
    assert held(report).endswith("Gate.losses")
    assert model.losses == []


class Accumulating(Product):
    """Adds into a buffer that is never set to zero: right once, and wrong ever after."""

    buffer = None

    @staticmethod
    def backward(ctx, cotangent):
        x, w = ctx.saved_tensors
        if Accumulating.buffer is None:
            Accumulating.buffer = torch.zeros_like(w)
        Accumulating.buffer = Accumulating.buffer.to(w) + x.T @ cotangent
        return cotangent @ w.T, Accumulating.buffer.clone()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_gradient_that_grows_with_every_run_is_wrong(dtype):
    x, w = torch.randn(4, 3, dtype=dtype), torch.randn(3, 2, dtype=dtype)
    Accumulating.buffer = None
    report = check(lambda x, w: Accumulating.apply(x, w), x, w, raise_exception=False)
    assert report.leaves["x"].verdict == "PASS"
    assert report.leaves["w"].verdict == "FAIL"
    assert any(finding.kind == "accumulates" for finding in report.findings)


def test_a_list_that_grows_beyond_all_bounds_is_put_back():
    class Log(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(3, 2).double(), [0] * 9_999

        def forward(self, x):
            self.calls += [len(self.calls)] * 3
            return self.linear(x).tanh()

    model = Log()
    assert check(model, torch.randn(4, 3, dtype=torch.float64)).verdict == "PASS"
    assert model.calls == [0] * 9_999
