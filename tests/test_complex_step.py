"""The complex step is believed where differences bear it out, and nowhere else."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xgradcheck import InvalidCase, check

POINT = np.array([0.7, -1.3, 2.1, 0.4])


def analytic(report):
    return [note for note in report.notes if "complex step" in note]


SAFE = {
    "sin": (lambda x: np.sin(x).sum(), np.cos),
    "quotient": (lambda x: (x / (1 + x**2)).sum(), lambda x: (1 - x**2) / (1 + x**2) ** 2),
    "exp": (lambda x: np.exp(x).sum(), np.exp),
}
# Each drops its imaginary part, or turns it around, without a word.
UNSAFE = {
    "abs": (lambda x: np.abs(x).sum(), np.sign),
    "norm": (lambda x: np.sqrt((np.abs(x) ** 2).sum()), lambda x: x / np.sqrt((x**2).sum())),
    "conj": (lambda x: (x * np.conj(x)).sum(), lambda x: 2 * x),
    "real": (lambda x: (x * np.real(x)).sum(), lambda x: 2 * x),
    "cast": (lambda x: (x * x.astype(float)).sum(), lambda x: 2 * x),
    "max of parts": (lambda x: np.where(np.real(x) > 0, np.real(x), x).sum(), np.ones_like),
    "small conj": (lambda x: (np.sin(x) + 1e-3 * np.conj(x)).sum(), lambda x: np.cos(x) + 1e-3),
}


@pytest.mark.parametrize("name", SAFE)
def test_an_analytic_function_is_differentiated_without_noise(name):
    value, gradient = SAFE[name]
    report = check(value, POINT, grads=gradient, method="complex-step")
    assert report.verdict == "PASS"
    assert analytic(report) == [
        "x: a complex step at 4 of 4 elements, which takes the function to be analytic"
    ]
    assert report.leaves["x"].worst.error_bar < 1e-11
    wrong = check(
        value,
        POINT,
        grads=lambda x: gradient(x) * (1 + 1e-5),
        method="complex-step",
        raise_exception=False,
    )
    assert wrong.verdict == "FAIL"


@pytest.mark.parametrize("name", UNSAFE)
def test_a_function_that_is_not_analytic_is_differenced_instead(name):
    value, gradient = UNSAFE[name]
    report = check(value, POINT, grads=gradient, method="complex-step")
    assert report.verdict == "PASS"
    assert not any("at 4 of 4" in note for note in analytic(report))
    wrong = check(
        value,
        POINT,
        grads=lambda x: gradient(x) * 1.001,
        method="complex-step",
        raise_exception=False,
    )
    assert wrong.verdict == "FAIL"


def test_what_the_complex_step_alone_would_say_is_not_believed():
    """The gradient as if |x| were constant: the complex step of it, to the last digit."""

    def value(x):
        return (np.abs(x) * np.sin(x)).sum()

    def as_if_constant(x):
        return np.abs(x) * np.cos(x)

    report = check(value, POINT, grads=as_if_constant, method="complex-step", raise_exception=False)
    assert report.verdict == "FAIL"


OFFSET = 1e10


@pytest.mark.parametrize("seed", range(5))
def test_beside_a_large_offset_a_complex_step_decides_where_differences_cannot(seed):
    """Differences are good to 1e-5 there at best, and 1e-6 is asked for."""
    x = np.random.default_rng(seed).normal(size=4)

    def value(x):
        return (np.sin(x) * np.exp(0.3 * x)).sum() + OFFSET

    def gradient(x):
        return (np.cos(x) + 0.3 * np.sin(x)) * np.exp(0.3 * x)

    right = check(value, x, grads=gradient, raise_exception=False)
    assert right.verdict == "PASS"
    central = check(value, x, grads=gradient, method="central", raise_exception=False)
    assert central.verdict == "INCONCLUSIVE"
    # Nothing is found wrong on the assumption that the function is analytic, unless it is made.
    slightly = {"grads": lambda x: gradient(x) * (1 + 3e-6), "raise_exception": False}
    assert check(value, x, **slightly).verdict == "INCONCLUSIVE"
    assert check(value, x, method="complex-step", **slightly).verdict == "FAIL"


def test_it_works_in_torch_and_jax():
    x = torch.from_numpy(POINT)
    weight = torch.eye(4, dtype=torch.float64) + 0.1

    def fn(x, weight):
        return (weight @ x).sin()

    report = check(fn, x, weight, method="complex-step")
    assert report.verdict == "PASS" and len(analytic(report)) == 2
    report = check(lambda x: jnp.tanh(x * 0.3), POINT, backend="jax", method="complex-step")
    assert report.verdict == "PASS" and len(analytic(report)) == 1


def test_where_no_complex_number_can_be_passed_the_method_is_refused():
    weights = {"w": POINT.copy()}
    with pytest.raises(InvalidCase, match="complex-step"):
        check(
            lambda: (weights["w"] ** 2).sum(),
            wrt=weights,
            grads=lambda: {"w": 2 * weights["w"]},
            method="complex-step",
        )
    with pytest.raises(InvalidCase, match="eps"):
        check(np.sum, POINT, grads=np.ones_like, method="complex-step", eps=1e-6)
