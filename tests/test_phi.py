"""A function that refuses arguments beside the point is at the edge of its domain; one that breaks
is not.
"""

import math

import numpy as np
import pytest
import torch

from xgradcheck import check


def logarithm(x):
    return sum(math.log(value) for value in x)


def test_a_function_that_raises_beyond_its_domain_is_differenced_inside():
    """x^2 - x with a domain that ends at 1, on which half of the points lie outside."""

    def value(x):
        if (x < 1).any():
            raise ValueError("below 1")
        return float((x**2 - x).sum())

    point = np.array([1.0, 1.0])
    report = check(value, point, grads=lambda x: 2 * x - 1)
    assert report.verdict == "PASS"
    assert any("ValueError" in note and "below 1" in note for note in report.notes)
    wrong = check(value, point, grads=lambda x: 2 * x, raise_exception=False)
    assert wrong.verdict == "FAIL"


def test_a_function_that_refuses_far_points_alone():
    point = np.array([1e-3, 2.0, 3.0])
    assert check(logarithm, point, grads=lambda x: 1 / x).verdict == "PASS"
    wrong = check(logarithm, point, grads=lambda x: 1.001 / x, raise_exception=False)
    assert wrong.verdict == "FAIL"


def test_a_loss_that_checks_its_range_is_no_obstacle():
    target = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    probability = torch.tensor([1e-5, 0.5, 1 - 1e-5], dtype=torch.float64, requires_grad=True)
    report = check(lambda p: torch.nn.functional.binary_cross_entropy(p, target), probability)
    assert report.verdict == "PASS"


def test_a_function_that_answers_nowhere_but_at_the_point_is_told_so():
    point = np.ones(3)

    def value(x):
        if not (x == point).all():
            raise RuntimeError("only at one")
        return float(x.sum())

    with pytest.raises(RuntimeError, match="only at one"):
        check(value, point, grads=lambda x: np.ones(3))


def test_an_exception_that_does_not_come_back_is_no_edge():
    """A slip of the moment, such as a lost connection, must not be taken for mathematics: the
    value is asked for again.
    """
    calls = []

    def value(x):
        calls.append(1)
        if len(calls) == 30:
            raise RuntimeError("once")
        return float((x**2).sum())

    report = check(value, np.array([1.1, 2.3]), grads=lambda x: 2 * x)
    assert report.verdict == "PASS"
    assert not report.notes


def test_an_exception_that_is_no_refusal_passes_through():
    def value(x):
        if x[0] != 1:
            raise KeyError("weights")
        return float(x.sum())

    with pytest.raises(KeyError, match="weights"):
        check(value, np.ones(2), grads=lambda x: np.ones(2))


class OutOfRange(Exception):
    """As packages make for their own checks."""


class Missing(OutOfRange, KeyError):
    """One that is another kind as well."""


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_the_exception_of_a_package_is_an_edge_as_well(factor):
    def value(x):
        if (x <= 0).any() or (x > 1).any():
            raise OutOfRange(f"{x} is outside of (0, 1]")
        return float(np.log(x).sum())

    point = np.array([1.0, 0.3])
    report = check(value, point, grads=lambda x: factor / x, raise_exception=False)
    assert report.verdict == ("PASS" if factor == 1 else "FAIL")

    def broken(x):
        if x[0] != 1:
            raise Missing("weights")
        return float(x.sum())

    with pytest.raises(Missing):
        check(broken, np.ones(2), grads=lambda x: np.ones(2))
