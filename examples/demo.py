"""Right and wrong gradients, judged in NumPy, PyTorch and JAX.

Run it with ``make demo``. The exit status is 0 if every verdict is the expected one.
"""

import time
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import torch
from entmax import entmax15, sparsemax
from sklearn.datasets import load_digits

from xgradcheck import check

# Each of the three parts ends in a function that yields, for each check: what is checked, the
# report, and the names of the leaves (the arrays checked) that must be called wrong.


# 1. NumPy: a network of two layers that reads handwritten digits, its backprop written by hand.

DECAY = 0.01  # the lambda of the L2 regularisation


def digits(count=40):
    images, labels = load_digits(return_X_y=True)
    return images[:count] / 16.0, np.eye(10)[labels[:count]]


def initial_parameters(rng, hidden=12):
    return {
        "W1": 0.3 * rng.normal(size=(64, hidden)),
        "b1": 0.1 * rng.normal(size=hidden),
        "W2": 0.3 * rng.normal(size=(hidden, 10)),
        "b2": 0.1 * rng.normal(size=10),
    }


def forward(params, images):
    activity = np.tanh(images @ params["W1"] + params["b1"])
    scores = activity @ params["W2"] + params["b2"]
    scores = scores - scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return activity, log_probabilities


def cost(params, images, targets):
    """Mean cross-entropy, and half of DECAY times the squared weights."""
    _, log_probabilities = forward(params, images)
    cross_entropy = -(targets * log_probabilities).sum() / len(images)
    squares = (params["W1"] ** 2).sum() + (params["W2"] ** 2).sum()
    return cross_entropy + 0.5 * DECAY * squares


def backprop(params, images, targets, decay=DECAY):
    activity, log_probabilities = forward(params, images)
    d_scores = (np.exp(log_probabilities) - targets) / len(images)
    d_activity = d_scores @ params["W2"].T
    d_hidden = d_activity * (1.0 - activity**2)
    return {
        "dW1": images.T @ d_hidden + decay * params["W1"],
        "db1": d_hidden.sum(axis=0),
        "dW2": activity.T @ d_scores + decay * params["W2"],
        "db2": d_scores.sum(axis=0),
    }


def numpy_reports(rng):
    images, targets = digits()
    params = initial_parameters(rng)

    right = backprop(params, images, targets)
    report = check(cost, params, images, targets, grads=right, raise_exception=False)
    yield "NumPy, backprop by hand: right", report, set()

    forgetful = backprop(params, images, targets, decay=0.0)
    report = check(cost, params, images, targets, grads=forgetful, raise_exception=False)
    wrong = {"params['W1']", "params['W2']"}
    yield "NumPy, the same with lambda * W forgotten in dW1 and dW2: wrong", report, wrong


# 2. PyTorch: two autograd Functions of the published package entmax, as they are.


def torch_reports(rng):
    scores = torch.from_numpy(rng.normal(size=(4, 8)))
    for function in (entmax15, sparsemax):
        report = check(function, scores, raise_exception=False)
        yield f"PyTorch, {function.__name__} of entmax: right", report, set()


# 3. JAX: log-sum-exp with a backward pass of its own, once right and once wrong.


@jax.custom_vjp
def logsumexp(x):
    return x.max() + jnp.log(jnp.exp(x - x.max()).sum())


def logsumexp_forward(x):
    value = logsumexp(x)
    return value, jnp.exp(x - value)


def logsumexp_backward(softmax, cotangent):
    return (cotangent * softmax,)


logsumexp.defvjp(logsumexp_forward, logsumexp_backward)


@jax.custom_vjp
def careless_logsumexp(x):
    return logsumexp(x)


def careless_backward(softmax, cotangent):
    return (softmax,)  # right where the cotangent is 1; inside a larger model it is not


careless_logsumexp.defvjp(logsumexp_forward, careless_backward)


def jax_reports(rng):
    # A float64 NumPy array with backend="jax" stays float64, whatever jax_enable_x64 is.
    x = rng.normal(size=10)

    report = check(logsumexp, x, backend="jax", raise_exception=False)
    yield "JAX, log-sum-exp: right", report, set()

    report = check(careless_logsumexp, x, backend="jax", raise_exception=False)
    yield "JAX, the same with its cotangent ignored: wrong, also for a scalar output", report, {"x"}


def as_expected(report, wrong):
    """Every leaf in ``wrong`` is called wrong, and every other leaf right."""
    verdicts = {name: leaf.verdict for name, leaf in report.leaves.items()}
    expected = dict.fromkeys(report.leaves, "PASS") | dict.fromkeys(wrong, "FAIL")
    return verdicts == expected and report.verdict == ("FAIL" if wrong else "PASS")


def main():
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    outcomes = []
    for heading, report, wrong in chain(numpy_reports(rng), torch_reports(rng), jax_reports(rng)):
        print(f"=== {heading}\n\n{report}\n")
        outcomes.append(as_expected(report, wrong))

    elapsed_s = time.perf_counter() - start
    print(f"{sum(outcomes)} of {len(outcomes)} verdicts as expected, in {elapsed_s:.1f} s")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
