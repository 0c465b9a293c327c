"""Of a million right elements none is called wrong by its noise, and of a million one wrong is."""

from contextlib import nullcontext

import numpy as np
import pytest

from xgradcheck._adapters import Backward
from xgradcheck._differences import Noise
from xgradcheck._judge import Verdict, judge, tolerance
from xgradcheck._layout import Entry, lay_out
from xgradcheck._phi import Phi, noise_of
from xgradcheck._sweep import sweep
from xgradcheck._truth import Sweep

MANY = 1_000_000


class Cubes:
    """``c + sum a (x + x^3)`` with Gaussian noise on every value, without a million additions."""

    def __init__(self, sigma: float) -> None:
        rng = np.random.default_rng(0)
        self.layout = self.outputs = lay_out([Entry(("x",), (0,), (MANY,), "float64")])
        self.point = rng.normal(size=MANY)
        self.weights = rng.normal(size=MANY)
        self.sigma, self._rng = sigma, rng
        self.skipped: list[str] = []
        self.bits, self.batch, self.frozen = 53, 1, np.empty(0, np.intp)
        self.rounds = False
        self.unit_cotangent = self.can_move = self.can_be_complex = self.is_handed = False
        self.slope = self.weights * (1 + 3 * self.point**2)
        # Not the sum of a million terms, whose rounding would be noise of its own.
        self.value = 1.0

    def held(self):
        return nullcontext()

    def _noise(self, count):
        return self.sigma * self._rng.normal(size=count)

    def along(self, direction, steps, start, cotangent):
        whole = np.zeros(MANY)
        whole[start : start + direction.size] = direction
        first = (self.slope * whole).sum()
        second = (3 * self.weights * self.point * whole**2).sum()
        third = (self.weights * whole**3).sum()
        return (
            self.value
            + steps * (first + steps * (second + steps * third))
            + self._noise(len(steps))
        )

    def each(self, index, steps, cotangent):
        x, a = self.point[index], self.weights[index]
        moved = a * steps * (1 + 3 * x**2 + steps * (3 * x + steps))
        return self.value + moved + self._noise(len(index))

    def batched(self, direction, steps, start, cotangent):
        return None

    def gradient(self, cotangent):
        return Backward(None, self.slope, frozenset())


@pytest.mark.parametrize("sigma", [1e-14, pytest.param(1e-11, marks=pytest.mark.slow)])
def test_a_million_right_elements_raise_no_alarm_and_one_wrong_does(sigma):
    problem = Cubes(sigma)
    wrong = problem.slope.copy()
    place = int(np.argmax(np.abs(wrong)))
    wrong[place] *= 1.001
    for gradient, verdicts in ((problem.slope, {"PASS", "INCONCLUSIVE"}), (wrong, {"FAIL"})):
        phi = Phi(problem, np.ones(2))
        noise = noise_of(phi, problem.value, 0)
        assert isinstance(noise, Noise)
        allowance, slack = tolerance(None, 0.0), np.zeros(MANY)
        work = Sweep(phi, gradient, problem.value, noise, allowance, slack, "auto", lambda *_: None)
        truth = sweep(work, None, 0)
        judged = judge(
            gradient,
            truth.value,
            truth.bar,
            truth.settled,
            allowance,
            truth.zero_below,
            truth.still,
            slack,
        )
        assert str(judged.verdict) in verdicts
        assert judged.failed.sum() == (judged.verdict is Verdict.FAIL)
