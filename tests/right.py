"""Right gradients as people have them, in one table: the library must never raise an alarm here.

Each row draws a new problem from its seed and calls ``check`` as a user would. Nothing is kept away
from the kinks of a ReLU or a maximum on purpose: some seeds put one within reach of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from xgradcheck import Report, check

Array = NDArray[np.float64]
Row = Callable[[int], Report]

report_on = partial(check, raise_exception=False)
report_on_jax = partial(report_on, backend="jax")


@dataclass(frozen=True, slots=True)
class Right:
    """A right gradient: the framework it is written in, and its check for one seed."""

    backend: str
    run: Row


_rows: list[Right] = []


def right(backend: str) -> Callable[[Row], Row]:
    """Enter the decorated function into the table."""

    def enter(run: Row) -> Row:
        _rows.append(Right(backend, run))
        return run

    return enter


def _one_hot(labels: NDArray[np.int64], classes: int) -> Array:
    return np.eye(classes)[labels]


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@right("numpy")
def linear_regression(seed: int) -> Report:
    """Mean squared error; data as further arguments, gradients in a dict with keys dw and db."""
    draw = np.random.default_rng(seed)
    X, y = draw.normal(size=(12, 20)), draw.normal(size=12)
    params = {"w": draw.normal(size=20), "b": draw.normal(size=1)}

    def cost(params: dict[str, Array], X: Array, y: Array) -> float:
        return float(np.mean((X @ params["w"] + params["b"] - y) ** 2))

    slope = 2 * (X @ params["w"] + params["b"] - y) / len(y)
    grads = {"dw": X.T @ slope, "db": slope.sum(keepdims=True)}
    return report_on(cost, params, X, y, grads=grads, seed=seed)


@right("numpy")
def logistic_regression(seed: int) -> Report:
    """One array of weights; the gradient function returns the cost with the gradient."""
    draw = np.random.default_rng(seed)
    X, signs = draw.normal(size=(30, 25)), draw.choice([-1.0, 1.0], size=30)

    def cost_and_gradient(theta: Array) -> tuple[float, Array]:
        margins = signs * (X @ theta)
        cost = np.logaddexp(0, -margins).mean() + 0.01 * theta @ theta
        slope = -signs / (1 + np.exp(margins)) / len(signs)
        return float(cost), X.T @ slope + 0.02 * theta

    return report_on(
        lambda theta: cost_and_gradient(theta)[0],
        draw.normal(size=25),
        grads=cost_and_gradient,
        seed=seed,
    )


@right("numpy")
def tanh_mlp(seed: int) -> Report:
    """Backprop through a list of (W, b) tuples, three layers deep."""
    draw = np.random.default_rng(seed)
    X, y = draw.normal(size=(6, 4)), draw.normal(size=(6, 2))
    sizes = ((4, 6), (6, 5), (5, 2))
    layers = [(draw.normal(size=size) / 2, draw.normal(size=size[1])) for size in sizes]

    def forward(layers: list[tuple[Array, Array]]) -> list[Array]:
        values = [X]
        for W, b in layers:
            values.append(np.tanh(values[-1] @ W + b))
        return values

    def cost(layers: list[tuple[Array, Array]]) -> float:
        return float(0.5 * np.sum((forward(layers)[-1] - y) ** 2))

    def gradient(layers: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
        values = forward(layers)
        back, grads = values[-1] - y, []
        for (W, _), before, after in reversed(list(zip(layers, values, values[1:], strict=False))):
            slope = back * (1 - after**2)
            grads.append((before.T @ slope, slope.sum(axis=0)))
            back = slope @ W.T
        return grads[::-1]

    return report_on(cost, layers, grads=gradient, seed=seed)


class TwoLayerNet:
    """ReLU, softmax and L2: every call of ``loss`` writes its gradients into the same arrays."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.params = {
            "W1": draw.normal(size=(4, 10)),
            "b1": np.zeros(10),
            "W2": draw.normal(size=(10, 3)),
            "b2": np.zeros(3),
        }
        self.grads = {name: np.empty_like(value) for name, value in self.params.items()}

    def loss(self, X: Array, labels: NDArray[np.int64], decay: float = 0.05) -> float:
        """The cost of one batch; its gradients are left in ``grads``."""
        W1, b1, W2, b2 = self.params.values()
        hidden = np.maximum(X @ W1 + b1, 0)
        chances = _softmax(hidden @ W2 + b2)
        cost = -np.mean(np.log(chances[np.arange(len(X)), labels]))

        back = (chances - _one_hot(labels, 3)) / len(X)
        back_hidden = (back @ W2.T) * (hidden > 0)
        self.grads["W2"][:] = hidden.T @ back + 2 * decay * W2
        self.grads["b2"][:] = back.sum(axis=0)
        self.grads["W1"][:] = X.T @ back_hidden + 2 * decay * W1
        self.grads["b1"][:] = back_hidden.sum(axis=0)
        return float(cost + decay * (np.sum(W1**2) + np.sum(W2**2)))


@right("numpy")
def relu_network_object(seed: int) -> Report:
    """A class with dicts of parameters and gradients, in closure form."""
    draw = np.random.default_rng(seed)
    net = TwoLayerNet(draw)
    X, labels = draw.normal(size=(8, 4)), draw.integers(3, size=8)
    net.loss(X, labels)
    return report_on(lambda: net.loss(X, labels), wrt=net.params, grads=net.grads, seed=seed)


class SoftmaxClassifier:
    """A linear classifier whose arrays are its attributes, beside settings that are none."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.W = draw.normal(size=(6, 4))
        self.b = draw.normal(size=4)
        self.decay = 1e-4
        self.classes = 4
        self.name = "softmax"

    def loss(self, X: Array, labels: NDArray[np.int64]) -> float:
        chances = _softmax(X @ self.W + self.b)
        cost = -np.log(chances[np.arange(len(X)), labels]).mean()
        return float(cost + self.decay * np.sum(self.W**2))

    def backward(self, X: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
        slope = (_softmax(X @ self.W + self.b) - _one_hot(labels, self.classes)) / len(X)
        return {"W": X.T @ slope + 2 * self.decay * self.W, "b": slope.sum(axis=0)}


@right("numpy")
def object_with_array_attributes(seed: int) -> Report:
    """``wrt`` is the model itself; its float and integer settings are not parameters."""
    draw = np.random.default_rng(seed)
    model = SoftmaxClassifier(draw)
    X, labels = draw.normal(size=(10, 6)), draw.integers(4, size=10)
    return report_on(
        lambda: model.loss(X, labels), wrt=model, grads=model.backward(X, labels), seed=seed
    )


@right("numpy")
def log_softmax(seed: int) -> Report:
    """An array output: the backward takes the cotangent first."""
    draw = np.random.default_rng(seed)

    def forward(scores: Array) -> Array:
        shifted = scores - scores.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def backward(cotangent: Array, scores: Array) -> Array:
        return cotangent - _softmax(scores) * cotangent.sum(axis=1, keepdims=True)

    scores = 3 * draw.normal(size=(5, 8))
    return report_on(forward, scores, grads=backward, seed=seed)


@right("numpy")
def recurrent_network(seed: int) -> Report:
    """Backpropagation through time; the gradient function takes the arguments of the cost."""
    draw = np.random.default_rng(seed)
    inputs, targets = draw.normal(size=(7, 3)), draw.normal(size=(7, 2))
    params = {
        "Wx": draw.normal(size=(3, 5)) / 2,
        "Wh": draw.normal(size=(5, 5)) / 2,
        "b": draw.normal(size=5) / 2,
        "Wy": draw.normal(size=(5, 2)),
    }

    def states(params: dict[str, Array], inputs: Array) -> list[Array]:
        hidden = [np.zeros(5)]
        for x in inputs:
            hidden.append(np.tanh(x @ params["Wx"] + hidden[-1] @ params["Wh"] + params["b"]))
        return hidden

    def cost(params: dict[str, Array], inputs: Array, targets: Array) -> float:
        hidden = np.array(states(params, inputs)[1:])
        return float(np.mean((hidden @ params["Wy"] - targets) ** 2))

    def gradient(params: dict[str, Array], inputs: Array, targets: Array) -> dict[str, Array]:
        hidden = states(params, inputs)
        grads = {name: np.zeros_like(value) for name, value in params.items()}
        back = np.zeros(5)
        for t in reversed(range(len(inputs))):
            error = 2 * (hidden[t + 1] @ params["Wy"] - targets[t]) / targets.size
            slope = (params["Wy"] @ error + back) * (1 - hidden[t + 1] ** 2)
            grads["Wy"] += np.outer(hidden[t + 1], error)
            grads["Wx"] += np.outer(inputs[t], slope)
            grads["Wh"] += np.outer(hidden[t], slope)
            grads["b"] += slope
            back = params["Wh"] @ slope
        return grads

    return report_on(cost, params, inputs, targets, grads=gradient, seed=seed)


@right("numpy")
def convolution(seed: int) -> Report:
    """A two-dimensional convolution by windows; both arguments are checked, by ``wrt=(0, 1)``."""
    draw = np.random.default_rng(seed)

    def forward(image: Array, kernel: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))
        return np.einsum("chwij,ocij->ohw", windows, kernel)

    def backward(cotangent: Array, image: Array, kernel: Array) -> tuple[Array, Array]:
        d_image, d_kernel = np.zeros_like(image), np.zeros_like(kernel)
        _, rows, columns = cotangent.shape
        for i in range(3):
            for j in range(3):
                patch = image[:, i : i + rows, j : j + columns]
                d_kernel[:, :, i, j] = np.einsum("ohw,chw->oc", cotangent, patch)
                spread = np.einsum("ohw,oc->chw", cotangent, kernel[:, :, i, j])
                d_image[:, i : i + rows, j : j + columns] += spread
        return d_image, d_kernel

    image, kernel = draw.normal(size=(2, 5, 6)), draw.normal(size=(3, 2, 3, 3))
    return report_on(forward, image, kernel, wrt=(0, 1), grads=backward, seed=seed)


@right("numpy")
def max_pooling(seed: int) -> Report:
    """The largest of each 2 x 2 window; near ties as they come."""
    draw = np.random.default_rng(seed)

    def windows(image: Array) -> Array:
        rows, columns = image.shape
        split = image.reshape(rows // 2, 2, columns // 2, 2).transpose(0, 2, 1, 3)
        return split.reshape(rows // 2, columns // 2, 4)

    def forward(image: Array) -> Array:
        return windows(image).max(axis=2)

    def backward(cotangent: Array, image: Array) -> Array:
        chosen = windows(image) == forward(image)[:, :, None]
        spread = (chosen * cotangent[:, :, None]).reshape(*cotangent.shape, 2, 2)
        return spread.transpose(0, 2, 1, 3).reshape(image.shape)

    image = draw.normal(size=(8, 8))
    return report_on(forward, image, grads=backward, seed=seed)


@right("numpy")
def batch_norm(seed: int) -> Report:
    """Batch normalisation over a tuple (x, gamma, beta)."""
    draw = np.random.default_rng(seed)
    leaves = (draw.normal(2, 3, size=(8, 5)), draw.normal(1, 0.2, size=5), draw.normal(size=5))

    def forward(leaves: tuple[Array, Array, Array]) -> Array:
        x, gamma, beta = leaves
        return gamma * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) + beta

    def backward(
        cotangent: Array, leaves: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        x, gamma, _ = leaves
        spread = np.sqrt(x.var(axis=0) + 1e-5)
        unit = (x - x.mean(axis=0)) / spread
        scaled = cotangent * gamma
        dx = (scaled - scaled.mean(axis=0) - unit * (scaled * unit).mean(axis=0)) / spread
        return dx, (cotangent * unit).sum(axis=0), cotangent.sum(axis=0)

    return report_on(forward, leaves, grads=backward, seed=seed)


@right("numpy")
def bias_before_batch_norm(seed: int) -> Report:
    """The bias before a batch norm has no influence: its gradient is rounding and nothing else."""
    draw = np.random.default_rng(seed)
    X, y = draw.normal(size=(9, 4)), draw.normal(size=(9, 6))
    params = {"W": draw.normal(size=(4, 6)), "b": draw.normal(size=6), "gain": np.ones(6)}

    def cost_and_gradient(params: dict[str, Array]) -> tuple[float, dict[str, Array]]:
        lifted = X @ params["W"] + params["b"]
        spread = np.sqrt(lifted.var(axis=0) + 1e-5)
        unit = (lifted - lifted.mean(axis=0)) / spread
        error = np.tanh(params["gain"] * unit) - y
        slope = error * (1 - (error + y) ** 2)
        back = slope * params["gain"]
        back = (back - back.mean(axis=0) - unit * (back * unit).mean(axis=0)) / spread
        grads = {"W": X.T @ back, "b": back.sum(axis=0), "gain": (slope * unit).sum(axis=0)}
        return float(0.5 * np.sum(error**2)), grads

    return report_on(
        lambda params: cost_and_gradient(params)[0], params, grads=cost_and_gradient, seed=seed
    )


@right("numpy")
def layer_norm(seed: int) -> Report:
    """Layer normalisation with gain and bias as positional arguments."""
    draw = np.random.default_rng(seed)

    def standardised(x: Array) -> tuple[Array, Array]:
        spread = np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
        return (x - x.mean(axis=1, keepdims=True)) / spread, spread

    def forward(x: Array, gain: Array, bias: Array) -> Array:
        return standardised(x)[0] * gain + bias

    def backward(
        cotangent: Array, x: Array, gain: Array, bias: Array
    ) -> tuple[Array, Array, Array]:
        unit, spread = standardised(x)
        scaled = cotangent * gain
        along = (scaled * unit).mean(axis=1, keepdims=True)
        dx = (scaled - scaled.mean(axis=1, keepdims=True) - unit * along) / spread
        return dx, (cotangent * unit).sum(axis=0), cotangent.sum(axis=0)

    x, gain, bias = draw.normal(5, 2, size=(6, 9)), draw.normal(size=9), draw.normal(size=9)
    return report_on(forward, x, gain, bias, wrt=(0, 1, 2), grads=backward, seed=seed)


@right("numpy")
def attention(seed: int) -> Report:
    """Softmax attention with a nested dict of parameters; the key's bias has no influence."""
    draw = np.random.default_rng(seed)
    x, target = draw.normal(size=(5, 4)), draw.normal(size=(5, 4))
    names = ("query", "key", "value")
    params = {n: {"W": draw.normal(size=(4, 4)), "b": draw.normal(size=4)} for n in names}

    def forward(params: dict[str, dict[str, Array]]) -> tuple[Array, Array, Array, Array]:
        q, k, v = (x @ params[name]["W"] + params[name]["b"] for name in names)
        return q, k, v, _softmax(q @ k.T / 2)

    def cost(params: dict[str, dict[str, Array]]) -> float:
        _, _, v, weights = forward(params)
        return float(0.5 * np.sum((weights @ v - target) ** 2))

    def gradient(params: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
        q, k, v, weights = forward(params)
        error = weights @ v - target
        back = error @ v.T
        scores = weights * (back - (back * weights).sum(axis=1, keepdims=True)) / 2
        slopes = {"query": scores @ k, "key": scores.T @ q, "value": weights.T @ error}
        return {name: {"W": x.T @ d, "b": d.sum(axis=0)} for name, d in slopes.items()}

    return report_on(cost, params, grads=gradient, seed=seed)


@right("numpy")
def embedding(seed: int) -> Report:
    """Some rows of the table are looked up repeatedly, the last three never."""
    draw = np.random.default_rng(seed)
    tokens, target = draw.integers(9, size=(5, 6)), draw.normal(size=5)
    params = {"table": draw.normal(size=(12, 4)), "w": draw.normal(size=4)}

    def cost(params: dict[str, Array], tokens: NDArray[np.int64]) -> float:
        pooled = np.tanh(params["table"][tokens].mean(axis=1))
        return float(np.sum((pooled @ params["w"] - target) ** 2))

    def gradient(params: dict[str, Array], tokens: NDArray[np.int64]) -> dict[str, Array]:
        pooled = np.tanh(params["table"][tokens].mean(axis=1))
        slope = 2 * (pooled @ params["w"] - target)
        back = slope[:, None] * params["w"] * (1 - pooled**2) / tokens.shape[1]
        table = np.zeros_like(params["table"])
        np.add.at(table, tokens, back[:, None, :])
        return {"dtable": table, "dw": pooled.T @ slope}

    return report_on(cost, params, tokens, grads=gradient, seed=seed)


@right("numpy")
def hinge_loss(seed: int) -> Report:
    """The multiclass hinge: piecewise linear, with its corners wherever the draw puts them."""
    draw = np.random.default_rng(seed)
    X, labels = draw.normal(size=(15, 12)), draw.integers(5, size=15)
    rows = np.arange(len(X))

    def margins(W: Array) -> Array:
        scores = X @ W
        lead = np.maximum(scores - scores[rows, labels][:, None] + 1, 0)
        lead[rows, labels] = 0
        return lead

    def cost(W: Array) -> float:
        return float(margins(W).sum() / len(X) + 0.1 * np.sum(W**2))

    def gradient(W: Array) -> Array:
        active = (margins(W) > 0).astype(float)
        active[rows, labels] = -active.sum(axis=1)
        return X.T @ active / len(X) + 0.2 * W

    W = draw.normal(size=(12, 5))
    return report_on(cost, W, grads=gradient(W), seed=seed)


@right("numpy")
def huge_offset(seed: int) -> Report:
    """A million is added to least squares, and drowns six digits: only wide steps can tell."""
    draw = np.random.default_rng(seed)
    X, y = draw.normal(size=(6, 20)), draw.normal(size=6)

    def cost(w: Array) -> float:
        return float(1e6 + np.sum((X @ w - y) ** 2))

    w = draw.normal(size=20)
    return report_on(cost, w, grads=2 * X.T @ (X @ w - y), seed=seed)


@right("numpy")
def large_offset(seed: int) -> Report:
    """Ten thousand beside a curved cost of order one: too wide a step is no help either."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(6, 20))

    def cost(w: Array) -> float:
        return float(1e4 + np.sum(np.tanh(X @ w / 4) ** 2))

    def gradient(w: Array) -> Array:
        value = np.tanh(X @ w / 4)
        return X.T @ (value * (1 - value**2)) / 2

    w = draw.normal(size=20)
    return report_on(cost, w, grads=gradient(w), seed=seed)


@right("numpy")
def mean_over_a_billion(seed: int) -> Report:
    """A patch in a very large picture: the mean makes every gradient about 1e-9."""
    draw = np.random.default_rng(seed)
    pixels, target = 10**9, draw.normal(size=(6, 8))

    def cost(patch: Array) -> float:
        return float(np.sum(np.log(np.cosh(patch - target))) / pixels)

    patch = draw.normal(size=(6, 8))
    grads = np.tanh(patch - target) / pixels
    return report_on(cost, patch, grads=grads, seed=seed)


@right("numpy")
def distant_scales(seed: int) -> Report:
    """Inputs of size 1e-9 and of size 1e11 in one call."""
    draw = np.random.default_rng(seed)
    delays, masses = 1e-9 * draw.normal(size=10), 1e11 * draw.uniform(0.5, 2, size=10)

    def cost(delays: Array, masses: Array) -> float:
        return float(np.sum(np.sin(1e9 * delays) * np.log(masses)))

    def gradient(delays: Array, masses: Array) -> tuple[Array, Array]:
        phase = 1e9 * delays
        return 1e9 * np.cos(phase) * np.log(masses), np.sin(phase) / masses

    return report_on(cost, delays, masses, wrt=(0, 1), grads=gradient(delays, masses), seed=seed)


@right("numpy")
def odd_sizes(seed: int) -> Report:
    """A 0-d leaf, a leaf of one element, an empty one and a 1 x 1 matrix, in a nested tree."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(5, 3))
    params = {
        "scale": np.array(draw.normal()),
        "affine": (draw.normal(size=3), draw.normal(size=1)),
        "extra": np.empty((0, 3)),
        "outer": [draw.normal(size=(1, 1))],
    }

    def cost(params: dict[str, Any]) -> float:
        w, shift = params["affine"]
        value = np.tanh(params["scale"] * (X @ w) + shift)
        return float(params["outer"][0][0, 0] * value.sum() + (params["extra"] ** 2).sum())

    def gradient(params: dict[str, Any]) -> dict[str, Any]:
        w, shift = params["affine"]
        value = np.tanh(params["scale"] * (X @ w) + shift)
        slope = params["outer"][0][0, 0] * (1 - value**2)
        return {
            "scale": np.array(slope @ (X @ w)),
            "affine": (params["scale"] * (X.T @ slope), slope.sum(keepdims=True)),
            "extra": 2 * params["extra"],
            "outer": [value.sum().reshape(1, 1)],
        }

    return report_on(cost, params, grads=gradient, seed=seed)


@right("numpy")
def mostly_unused_parameter(seed: int) -> Report:
    """Five of sixty weights are read; the gradient of the others is exactly zero."""
    draw = np.random.default_rng(seed)
    used = draw.choice(60, size=5, replace=False)
    X, y = draw.normal(size=(8, 5)), draw.normal(size=8)

    def cost(w: Array) -> float:
        return float(np.sum((np.exp(X @ w[used] / 3) - y) ** 2))

    def gradient(w: Array) -> Array:
        value = np.exp(X @ w[used] / 3)
        grads = np.zeros(60)
        grads[used] = 2 * X.T @ ((value - y) * value) / 3
        return grads

    return report_on(cost, draw.normal(size=60), grads=gradient, seed=seed)


@right("numpy")
def gaussian_likelihood(seed: int) -> Report:
    """Log-determinant and quadratic form of a precision matrix given by its square root."""
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(20, 5))
    params = {"mean": draw.normal(size=5), "root": np.eye(5) + 0.2 * draw.normal(size=(5, 5))}

    def cost(params: dict[str, Array]) -> float:
        whitened = (points - params["mean"]) @ params["root"]
        return float(0.5 * np.sum(whitened**2) - len(points) * np.linalg.slogdet(params["root"])[1])

    def gradient(params: dict[str, Array]) -> dict[str, Array]:
        centred = points - params["mean"]
        whitened = centred @ params["root"]
        return {
            "mean": -(whitened @ params["root"].T).sum(axis=0),
            "root": centred.T @ whitened - len(points) * np.linalg.inv(params["root"]).T,
        }

    return report_on(cost, params, grads=gradient, seed=seed)


@right("numpy")
def gaussian_process(seed: int) -> Report:
    """Marginal likelihood in three log hyperparameters, by solves: y' K^-1 y + log det K."""
    draw = np.random.default_rng(seed)
    x, y = np.sort(draw.uniform(-3, 3, size=12)), draw.normal(size=12)
    squares = (x[:, None] - x) ** 2

    def kernels(logs: Array) -> tuple[Array, Array]:
        length, height, noise = np.exp(logs)
        smooth = height * np.exp(-0.5 * squares / length**2)
        return smooth, smooth + noise * np.eye(12)

    def cost(logs: Array) -> float:
        K = kernels(logs)[1]
        return float(0.5 * y @ np.linalg.solve(K, y) + 0.5 * np.linalg.slogdet(K)[1])

    def gradient(logs: Array) -> Array:
        smooth, K = kernels(logs)
        solved = np.linalg.solve(K, y)
        inner = 0.5 * (np.linalg.inv(K) - np.outer(solved, solved))
        length, _, noise = np.exp(logs)
        return np.array(
            [
                np.sum(inner * smooth * squares / length**2),
                np.sum(inner * smooth),
                noise * np.trace(inner),
            ]
        )

    logs = draw.normal([0.0, 0.0, -1.5], 0.3)
    return report_on(cost, logs, grads=gradient, seed=seed)


@right("numpy")
def gaussian_mixture(seed: int) -> Report:
    """Log-likelihood of a mixture by log-sum-exp over its components."""
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(15, 2))
    params = {
        "logits": draw.normal(size=3),
        "means": draw.normal(size=(3, 2)),
        "log_scales": 0.3 * draw.normal(size=(3, 2)),
    }

    def parts(params: dict[str, Array]) -> tuple[Array, Array]:
        units = (points[:, None, :] - params["means"]) / np.exp(params["log_scales"])
        logits = params["logits"] - np.log(np.exp(params["logits"]).sum())
        return units, logits - np.sum(0.5 * units**2 + params["log_scales"], axis=2)

    def cost(params: dict[str, Array]) -> float:
        return float(-np.log(np.exp(parts(params)[1]).sum(axis=1)).sum())

    def gradient(params: dict[str, Array]) -> dict[str, Array]:
        units, logs = parts(params)
        shares = _softmax(logs)
        return {
            "dlogits": len(points) * _softmax(params["logits"]) - shares.sum(axis=0),
            "dmeans": -np.einsum("nk,nkd->kd", shares, units) / np.exp(params["log_scales"]),
            "dlog_scales": np.einsum("nk,nkd->kd", shares, 1 - units**2),
        }

    return report_on(cost, params, grads=gradient, seed=seed)


@right("numpy")
def sum_of_exponentials(seed: int) -> Report:
    """The elements of one gradient span many orders of magnitude."""
    draw = np.random.default_rng(seed)
    x = 4 * draw.normal(size=30)
    return report_on(lambda x: float(np.exp(x).sum()), x, grads=np.exp(x), seed=seed)


@right("numpy")
def polynomial_fit(seed: int) -> Report:
    """Degree six, fitted at forty points; coefficients in Fortran order and read-only."""
    draw = np.random.default_rng(seed)
    powers = np.vander(draw.uniform(-1.5, 1.5, size=40), 7)
    target = draw.normal(size=(40, 3))
    coefficients = np.asfortranarray(draw.normal(size=(7, 3)))
    coefficients.flags.writeable = False

    def cost(coefficients: Array) -> float:
        return float(np.sum((powers @ coefficients - target) ** 2))

    grads = 2 * powers.T @ (powers @ coefficients - target)
    return report_on(cost, coefficients, grads=grads, seed=seed)


@right("numpy")
def gated_recurrent_unit(seed: int) -> Report:
    """A GRU through time; its three gates share one matrix each, and the cost comes along."""
    draw = np.random.default_rng(seed)
    inputs, targets = draw.normal(size=(6, 3)), draw.normal(size=(6, 4))
    params = {
        "W": draw.normal(size=(3, 12)),
        "U": draw.normal(size=(4, 12)) / 2,
        "b": draw.normal(size=12) / 2,
    }

    def advance(params: dict[str, Array], x: Array, h: Array) -> tuple[Array, Array, Array]:
        W, U, b = params["W"], params["U"], params["b"]
        gates = 1 / (1 + np.exp(-(x @ W[:, :8] + h @ U[:, :8] + b[:8])))
        update, reset = gates[:4], gates[4:]
        return update, reset, np.tanh(x @ W[:, 8:] + (reset * h) @ U[:, 8:] + b[8:])

    def cost_and_gradient(params: dict[str, Array]) -> tuple[float, dict[str, Array]]:
        hidden, steps = [np.zeros(4)], []
        for x in inputs:
            steps.append(advance(params, x, hidden[-1]))
            update, _, candidate = steps[-1]
            hidden.append((1 - update) * hidden[-1] + update * candidate)
        errors = np.array(hidden[1:]) - targets

        U, grads = params["U"], {name: np.zeros_like(value) for name, value in params.items()}
        back = np.zeros(4)
        for t in reversed(range(len(inputs))):
            h, (update, reset, candidate) = hidden[t], steps[t]
            back = back + errors[t]
            d_candidate = back * update * (1 - candidate**2)
            d_gated = U[:, 8:] @ d_candidate
            d_update = back * (candidate - h) * update * (1 - update)
            d_gates = np.concatenate([d_update, d_gated * h * reset * (1 - reset)])
            slope = np.concatenate([d_gates, d_candidate])
            grads["W"] += np.outer(inputs[t], slope)
            grads["b"] += slope
            grads["U"] += np.hstack([np.outer(h, d_gates), np.outer(reset * h, d_candidate)])
            back = back * (1 - update) + U[:, :8] @ d_gates + d_gated * reset
        return float(0.5 * np.sum(errors**2)), grads

    return report_on(
        lambda params: cost_and_gradient(params)[0], params, grads=cost_and_gradient, seed=seed
    )


@right("numpy")
def depthwise_convolution(seed: int) -> Report:
    """Causal and dilated, one kernel to each channel; padding zeros on the left."""
    draw = np.random.default_rng(seed)
    width, dilation = 3, 2
    reach = (width - 1) * dilation

    def shifts(x: Array) -> Array:
        padded = np.pad(x, ((0, 0), (reach, 0)))
        taps = [padded[:, i * dilation : i * dilation + x.shape[1]] for i in range(width)]
        return np.stack(taps, axis=2)

    def forward(x: Array, kernel: Array, bias: Array) -> Array:
        return np.einsum("ctk,ck->ct", shifts(x), kernel) + bias[:, None]

    def backward(
        cotangent: Array, x: Array, kernel: Array, bias: Array
    ) -> tuple[Array, Array, Array]:
        length = x.shape[1]
        padded = np.zeros((len(x), length + reach))
        for i in range(width):
            padded[:, i * dilation : i * dilation + length] += cotangent * kernel[:, i : i + 1]
        d_kernel = np.einsum("ct,ctk->ck", cotangent, shifts(x))
        return padded[:, reach:], d_kernel, cotangent.sum(axis=1)

    x, kernel, bias = draw.normal(size=(4, 9)), draw.normal(size=(4, width)), draw.normal(size=4)
    return report_on(forward, x, kernel, bias, wrt=(0, 1, 2), grads=backward, seed=seed)


@right("numpy")
def triplet_loss(seed: int) -> Report:
    """Anchors, positives and negatives by one matrix onto the sphere; some hinges are shut."""
    draw = np.random.default_rng(seed)
    anchors = draw.normal(size=(10, 6))
    positives, negatives = anchors + draw.normal(size=(10, 6)), draw.normal(size=(10, 6))
    inputs = np.stack([anchors, positives, negatives])

    def embed(W: Array) -> tuple[Array, Array, Array]:
        raw = inputs @ W
        lengths = np.linalg.norm(raw, axis=2, keepdims=True)
        units = raw / lengths
        a, p, n = units
        return units, lengths, np.sum((a - p) ** 2 - (a - n) ** 2, axis=1) + 0.3

    def cost(W: Array) -> float:
        return float(np.maximum(embed(W)[2], 0).mean())

    def gradient(W: Array) -> Array:
        units, lengths, margins = embed(W)
        a, p, n = units
        open_hinges = (margins > 0)[:, None] / len(margins)
        slopes = 2 * np.stack([n - p, p - a, a - n]) * open_hinges
        slopes -= units * np.sum(units * slopes, axis=2, keepdims=True)
        return np.einsum("tni,tno->io", inputs, slopes / lengths)

    return report_on(cost, draw.normal(size=(6, 3)), grads=gradient, seed=seed)


@right("numpy")
def kalman_filter_step(seed: int) -> Report:
    """The likelihood of one observation after one prediction; the gradient is handed as a tree."""
    draw = np.random.default_rng(seed)
    mean, root = draw.normal(size=3), draw.normal(size=(3, 3))
    covariance = root @ root.T / 3 + 0.1 * np.eye(3)
    H, y = draw.normal(size=(2, 3)), draw.normal(size=2)
    params = {
        "A": np.eye(3) + 0.2 * draw.normal(size=(3, 3)),
        "log_q": np.array(draw.normal(-1, 0.3)),
        "log_r": draw.normal(-1, 0.3, size=2),
    }

    def innovation(params: dict[str, Array]) -> tuple[Array, Array]:
        A = params["A"]
        predicted = A @ covariance @ A.T + np.exp(params["log_q"]) * np.eye(3)
        return y - H @ A @ mean, H @ predicted @ H.T + np.diag(np.exp(params["log_r"]))

    def cost(params: dict[str, Array]) -> float:
        error, S = innovation(params)
        return float(0.5 * error @ np.linalg.solve(S, error) + 0.5 * np.linalg.slogdet(S)[1])

    error, S = innovation(params)
    solved = np.linalg.solve(S, error)
    inner = 0.5 * (np.linalg.inv(S) - np.outer(solved, solved))
    spread = H.T @ inner @ H
    grads = {
        "A": 2 * spread @ params["A"] @ covariance - np.outer(H.T @ solved, mean),
        "log_q": np.exp(params["log_q"]) * np.trace(spread),
        "log_r": np.exp(params["log_r"]) * np.diag(inner),
    }
    return report_on(cost, params, grads=grads, seed=seed)


@right("numpy")
def gated_feed_forward(seed: int) -> Report:
    """RMSNorm, SwiGLU and a residual, as in a language model; inputs and weights are checked."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(3, 5))
    weights = {
        "norm": draw.normal(1, 0.1, size=5),
        "gate": draw.normal(size=(5, 7)) / 2,
        "up": draw.normal(size=(5, 7)) / 2,
        "down": draw.normal(size=(7, 5)) / 2,
    }

    def normalised(x: Array) -> tuple[Array, Array]:
        inverse = 1 / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-6)
        return x * inverse, inverse

    def forward(x: Array, weights: dict[str, Array]) -> Array:
        h = normalised(x)[0] * weights["norm"]
        gate = h @ weights["gate"]
        return x + (gate / (1 + np.exp(-gate)) * (h @ weights["up"])) @ weights["down"]

    def backward(
        cotangent: Array, x: Array, weights: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        unit, inverse = normalised(x)
        h = unit * weights["norm"]
        gate, up = h @ weights["gate"], h @ weights["up"]
        chance = 1 / (1 + np.exp(-gate))
        d_mixed = cotangent @ weights["down"].T
        d_up = d_mixed * gate * chance
        d_gate = d_mixed * up * chance * (1 + gate * (1 - chance))
        d_h = d_gate @ weights["gate"].T + d_up @ weights["up"].T
        d_unit = d_h * weights["norm"]
        d_x = inverse * (d_unit - unit * np.mean(d_unit * unit, axis=1, keepdims=True))
        return cotangent + d_x, {
            "norm": np.sum(d_h * unit, axis=0),
            "gate": h.T @ d_gate,
            "up": h.T @ d_up,
            "down": (gate * chance * up).T @ cotangent,
        }

    return report_on(forward, x, weights, wrt=(0, 1), grads=backward, seed=seed)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@right("torch")
def relu_classifier(seed: int) -> Report:
    """Two hidden layers and a cross entropy handed over as ``loss``."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    x, labels = _normal(8, 4), torch.randint(3, (8,))
    return report_on(model, x, loss=lambda y: F.cross_entropy(y, labels), seed=seed)


@right("torch")
def dropout_in_training(seed: int) -> Report:
    """The mask is held while the function is differenced; no loss, so a random cotangent."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.4), nn.Linear(12, 2), nn.Dropout(0.1)
    ).double()
    return report_on(model, _normal(5, 4), seed=seed)


@right("torch")
def batch_norm_after_a_bias(seed: int) -> Report:
    """In training mode the bias before the norm has no influence, and the statistics may drift."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2), nn.BatchNorm1d(2)
    ).double()
    return report_on(model, _normal(10, 4), seed=seed)


@right("torch")
def layer_norm_block(seed: int) -> Report:
    """LayerNorm, GELU and a mean squared loss."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.LayerNorm(3)
    ).double()
    x, target = _normal(6, 5), _normal(6, 3)
    return report_on(model, x, loss=lambda y: (y - target).square().mean(), seed=seed)


@right("torch")
def convolution_with_batch_norm(seed: int) -> Report:
    """Conv1d with a bias that its batch norm removes, ReLU, pooling and a head."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv1d(2, 5, 3, padding=1),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(10, 3),
    ).double()
    return report_on(model, _normal(4, 2, 9), seed=seed)


@right("torch")
def convolution_with_max_pooling(seed: int) -> Report:
    """Conv2d, ReLU, MaxPool2d: two kinds of kink, wherever they fall."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    ).double()
    x, labels = _normal(3, 1, 6, 6), torch.randint(2, (3,))
    return report_on(model, x, loss=lambda y: F.cross_entropy(y, labels), seed=seed)


@right("torch")
def embedding_model(seed: int) -> Report:
    """Integer inputs, repeated tokens and rows that are never looked up."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(12, 4), nn.Flatten(), nn.Tanh(), nn.Linear(20, 2)).double()
    return report_on(model, torch.randint(9, (3, 5)), seed=seed)


@right("torch")
def lstm(seed: int) -> Report:
    """nn.LSTM as it is, with its output (sequence, (hidden, cell))."""
    torch.manual_seed(seed)
    return report_on(nn.LSTM(3, 4).double(), _normal(4, 2, 3), seed=seed)


@right("torch")
def multihead_attention(seed: int) -> Report:
    """One third of in_proj_bias, the keys', has no influence; the second output is None."""
    torch.manual_seed(seed)
    model = nn.MultiheadAttention(4, 2, batch_first=True).double()
    nn.init.normal_(model.in_proj_bias)
    x = _normal(2, 5, 4)
    return report_on(model, x, x, x, kwargs={"need_weights": False}, seed=seed)


@right("torch")
def transformer_layer_in_training(seed: int) -> Report:
    """A TransformerEncoderLayer with dropout switched on."""
    torch.manual_seed(seed)
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True).double()
    return report_on(model, _normal(2, 4, 4), seed=seed)


@right("torch")
def transformer_layer_in_evaluation(seed: int) -> Report:
    """In evaluation mode torch takes another path without gradients than with them."""
    torch.manual_seed(seed)
    model = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).double().eval()
    x, target = _normal(2, 3, 4), _normal(2, 3, 4)
    return report_on(model, x, loss=lambda y: F.mse_loss(y, target), seed=seed)


class TiedModel(nn.Module):
    """A next-token model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 5)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


@right("torch")
def tied_weights(seed: int) -> Report:
    """One parameter under two names collects the gradient of both uses."""
    torch.manual_seed(seed)
    model, tokens, following = TiedModel().double(), torch.randint(9, (6,)), torch.randint(9, (6,))
    return report_on(model, tokens, loss=lambda y: F.cross_entropy(y, following), seed=seed)


@right("torch")
def frozen_parameters(seed: int) -> Report:
    """Fine-tuning: the first layer does not require a gradient and is left out."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 5), nn.ELU()).double()
    model[0].requires_grad_(False)
    return report_on(model, _normal(4, 6), seed=seed)


class Swish(torch.autograd.Function):
    """x sigmoid(x), recomputing the sigmoid in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return cotangent * gate * (1 + x * (1 - gate))


@right("torch")
def custom_swish(seed: int) -> Report:
    """``Function.apply`` itself, on tensors that do not require a gradient yet."""
    torch.manual_seed(seed)
    return report_on(Swish.apply, 3 * _normal(6, 7), seed=seed)


class Affine(torch.autograd.Function):
    """x W' + b, computing only the gradients that are asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        product = x @ weight.t()
        return product if bias is None else product + bias

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            cotangent @ weight if wants_x else None,
            cotangent.t() @ x if wants_weight else None,
            cotangent.sum(0) if wants_bias else None,
        )


@right("torch")
def custom_affine(seed: int) -> Report:
    """Only the tensors that require a gradient are leaves; the input here does not."""
    torch.manual_seed(seed)
    weight, bias = _normal(4, 6).requires_grad_(), _normal(4).requires_grad_()
    return report_on(Affine.apply, _normal(5, 6), weight, bias, seed=seed)


class CrossEntropy(torch.autograd.Function):
    """Mean cross entropy that stores its own gradient in the forward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor) -> Tensor:
        logs = scores.log_softmax(1)
        rows = torch.arange(len(labels))
        slope = logs.exp()
        slope[rows, labels] -= 1
        ctx.save_for_backward(slope / len(labels))
        return -logs[rows, labels].mean()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent * ctx.saved_tensors[0], None


@right("torch")
def custom_cross_entropy(seed: int) -> Report:
    """A Function with an integer argument, for which its backward returns None."""
    torch.manual_seed(seed)
    return report_on(CrossEntropy.apply, 2 * _normal(7, 6), torch.randint(6, (7,)), seed=seed)


@right("torch")
def pairwise_distances(seed: int) -> Report:
    """cdist of two clouds of points."""
    torch.manual_seed(seed)
    return report_on(torch.cdist, _normal(6, 3), _normal(5, 3), seed=seed)


@right("torch")
def log_cumulative_sums(seed: int) -> Report:
    """logsumexp, cumsum and logcumsumexp in one tuple of outputs."""
    torch.manual_seed(seed)

    def scores(x: Tensor) -> tuple[Tensor, ...]:
        return x.logsumexp(1), x.cumsum(0), x.logcumsumexp(1)

    return report_on(scores, 2 * _normal(5, 8), seed=seed)


@right("torch")
def sorting(seed: int) -> Report:
    """A weighted sum of order statistics; neighbours may be close."""
    torch.manual_seed(seed)

    def l_statistic(x: Tensor, weights: Tensor) -> Tensor:
        return (torch.sort(x, dim=1).values * weights).sum(1) + x.median(1).values

    return report_on(l_statistic, _normal(3, 15), _normal(15), seed=seed)


@right("torch")
def gather_and_scatter(seed: int) -> Report:
    """Message passing on a random graph, with integer index arguments."""
    torch.manual_seed(seed)

    def pass_messages(nodes: Tensor, weights: Tensor, source: Tensor, target: Tensor) -> Tensor:
        messages = torch.tanh(nodes.gather(0, source[:, None].expand(-1, 3)) * weights[:, None])
        return torch.zeros_like(nodes).scatter_add(0, target[:, None].expand(-1, 3), messages)

    source, target = torch.randint(8, (14,)), torch.randint(8, (14,))
    return report_on(pass_messages, _normal(8, 3), _normal(14), source, target, seed=seed)


@right("torch")
def bilinear_einsum(seed: int) -> Report:
    """A trilinear form over three operands."""
    torch.manual_seed(seed)
    return report_on(
        lambda x, core, y: torch.einsum("bi,ijk,bk->bj", x, core, y),
        _normal(4, 3),
        _normal(3, 4, 5),
        _normal(4, 5),
        seed=seed,
    )


@right("torch")
def linear_solve(seed: int) -> Report:
    """linalg.solve and a determinant of a matrix far from singular."""
    torch.manual_seed(seed)

    def solve(matrix: Tensor, right_side: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.solve(matrix, right_side), torch.linalg.det(matrix)

    matrix = 3 * torch.eye(5, dtype=torch.float64) + 0.5 * _normal(5, 5)
    return report_on(solve, matrix, _normal(5, 3), seed=seed)


@right("torch")
def singular_values(seed: int) -> Report:
    """svdvals of a rectangular matrix."""
    torch.manual_seed(seed)
    return report_on(torch.linalg.svdvals, _normal(6, 4), seed=seed)


@right("torch")
def interpolation(seed: int) -> Report:
    """Bicubic resizing, with the settings as keyword arguments."""
    torch.manual_seed(seed)
    return report_on(
        F.interpolate,
        _normal(1, 2, 4, 5),
        kwargs={"scale_factor": 1.5, "mode": "bicubic", "align_corners": False},
        seed=seed,
    )


@right("torch")
def normalisation(seed: int) -> Report:
    """Cosine similarities of normalised rows, and the norms themselves."""
    torch.manual_seed(seed)

    def similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(x) @ F.normalize(y).t(), torch.linalg.vector_norm(x, ord=3, dim=1)

    return report_on(similarities, _normal(5, 6), _normal(4, 6), seed=seed)


@right("torch")
def mixed_outputs(seed: int) -> Report:
    """A dict with an integer, None, a mask and an index tensor among the outputs."""
    torch.manual_seed(seed)

    def summary(x: Tensor) -> dict[str, Any]:
        return {
            "mean": x.mean(0),
            "count": x.numel(),
            "largest": x.argmax(1),
            "positive": x > 0,
            "spread": (x.std(1), None),
        }

    return report_on(summary, _normal(6, 7), seed=seed)


@right("torch")
def strided_inputs(seed: int) -> Report:
    """A transposed, a strided and an offset view as inputs."""
    torch.manual_seed(seed)

    def blend(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.sigmoid(x @ y) * z

    x, y, z = _normal(6, 4).t(), _normal(12, 15)[::2, ::3], _normal(30)[10:].view(4, 5)
    return report_on(blend, x, y, z, seed=seed)


@right("torch")
def expanded_input(seed: int) -> Report:
    """Inputs whose elements share memory, as ``expand`` leaves them."""
    torch.manual_seed(seed)
    x, y = _normal(5, 1).expand(5, 4), _normal(4).expand(5, 4)
    return report_on(torch.atan2, x, y, seed=seed)


@right("torch")
def one_tensor_in_two_arguments(seed: int) -> Report:
    """A kernel matrix of a cloud with itself: the same tensor is passed twice."""
    torch.manual_seed(seed)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-0.1 * (x[:, None] - y).square().sum(2))

    x = _normal(6, 4).requires_grad_()
    return report_on(kernel, x, x, seed=seed)


@right("torch")
def keyword_arguments(seed: int) -> Report:
    """Causal attention with its tensors and settings given by keyword."""
    torch.manual_seed(seed)

    def attend(q: Tensor, *, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

    kwargs = {"k": _normal(5, 4), "v": _normal(5, 3), "causal": True, "scale": None}
    return report_on(attend, _normal(5, 4), kwargs=kwargs, seed=seed)


@right("torch")
def closure_over_a_module(seed: int) -> Report:
    """A cost with weight decay, as a function of nothing."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 2)).double()
    x, target = _normal(9, 5), _normal(9, 2)

    def cost() -> Tensor:
        decay = sum(p.square().sum() for p in model.parameters() if p.ndim == 2)
        return F.smooth_l1_loss(model(x), target) + 1e-3 * decay

    return report_on(cost, wrt=model, seed=seed)


@right("torch")
def closure_over_a_list(seed: int) -> Report:
    """Factors of a matrix with missing entries, in a list."""
    torch.manual_seed(seed)
    left, other = _normal(7, 3).requires_grad_(), _normal(6, 3).requires_grad_()
    ratings, seen = _normal(7, 6), torch.rand(7, 6) < 0.5

    def cost() -> Tensor:
        return ((left @ other.t() - ratings).square() * seen).sum() / seen.sum()

    return report_on(cost, wrt=[left, other], seed=seed)


@right("torch")
def variational_loss(seed: int) -> Report:
    """Reparameterised noise drawn inside a closure over a dict: the draw has to be held."""
    torch.manual_seed(seed)
    x = _normal(6, 4)
    params = {
        "mean": _normal(4, 5).requires_grad_(),
        "log_scale": (0.1 * _normal(4, 5)).requires_grad_(),
        "temperature": _normal().requires_grad_(),
    }

    def bound() -> Tensor:
        mean, log_scale = params["mean"], params["log_scale"]
        weights = mean + log_scale.exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
        return F.softplus(x @ weights * params["temperature"]).mean() + 0.01 * divergence

    return report_on(bound, wrt=params, seed=seed)


@jax.custom_vjp
def _log_sum_exp(x: jax.Array) -> jax.Array:
    top = jnp.max(x)
    return top + jnp.log(jnp.sum(jnp.exp(x - top)))


def _log_sum_exp_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value = _log_sum_exp(x)
    return value, (x, value)


_log_sum_exp.defvjp(
    _log_sum_exp_forward, lambda saved, cotangent: (cotangent * jnp.exp(saved[0] - saved[1]),)
)


@right("jax")
def custom_log_sum_exp(seed: int) -> Report:
    """A custom_vjp with a scalar output."""
    draw = np.random.default_rng(seed)
    return report_on_jax(_log_sum_exp, 3 * draw.normal(size=25), seed=seed)


@jax.custom_jvp
def _softplus(x: jax.Array, sharpness: jax.Array) -> jax.Array:
    return jnp.logaddexp(x * sharpness, 0.0) / sharpness


@_softplus.defjvp
def _softplus_rule(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, sharpness), (dx, d_sharpness) = primals, tangents
    value, gate = _softplus(x, sharpness), jax.nn.sigmoid(x * sharpness)
    return value, gate * dx + (gate * x - value) / sharpness * d_sharpness


@right("jax")
def custom_softplus(seed: int) -> Report:
    """A custom_jvp of two arrays."""
    draw = np.random.default_rng(seed)
    x, sharpness = draw.normal(size=(4, 5)), draw.uniform(0.5, 3, size=(4, 5))
    return report_on_jax(_softplus, x, sharpness, seed=seed)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fixed_point(step: Callable[..., jax.Array], rounds: int, weights: Any) -> jax.Array:
    start = jnp.zeros_like(weights["b"])
    return jax.lax.fori_loop(0, rounds, lambda _, z: step(weights, z), start)


def _fixed_point_forward(
    step: Callable[..., jax.Array], rounds: int, weights: Any
) -> tuple[jax.Array, Any]:
    z = _fixed_point(step, rounds, weights)
    return z, (weights, z)


def _fixed_point_backward(
    step: Callable[..., jax.Array], rounds: int, saved: Any, cotangent: jax.Array
) -> tuple[Any]:
    weights, z = saved
    jacobian = jax.jacobian(step, argnums=1)(weights, z)
    adjoint = jnp.linalg.solve(jnp.eye(len(z)) - jacobian.T, cotangent)
    return jax.vjp(lambda weights: step(weights, z), weights)[1](adjoint)


_fixed_point.defvjp(_fixed_point_forward, _fixed_point_backward)


@right("jax")
def implicit_layer(seed: int) -> Report:
    """An equilibrium by the implicit function theorem; a callable and an int are not arrays."""
    draw = np.random.default_rng(seed)
    W = draw.normal(size=(5, 5))
    weights = {"W": W / (2 * np.linalg.norm(W, 2)), "b": draw.normal(size=5)}

    def step(weights: dict[str, jax.Array], z: jax.Array) -> jax.Array:
        return jnp.tanh(weights["W"] @ z + weights["b"])

    return report_on_jax(_fixed_point, step, 60, weights, seed=seed)


@jax.custom_vjp
def _rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return gain * x * jax.lax.rsqrt(jnp.mean(x * x) + 1e-6)


def _rms_norm_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, gain = saved
    inverse = jax.lax.rsqrt(jnp.mean(x * x) + 1e-6)
    scaled = cotangent * gain
    dx = inverse * scaled - inverse**3 * jnp.mean(scaled * x) * x
    return dx, cotangent * x * inverse


_rms_norm.defvjp(lambda x, gain: (_rms_norm(x, gain), (x, gain)), _rms_norm_backward)


@right("jax")
def custom_rms_norm(seed: int) -> Report:
    """A custom_vjp for one row, under vmap over the rows."""
    draw = np.random.default_rng(seed)
    return report_on_jax(
        jax.vmap(_rms_norm, (0, None)), draw.normal(size=(5, 8)), draw.normal(size=8), seed=seed
    )


@jax.custom_vjp
def _take_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table[rows]


_take_rows.defvjp(
    lambda table, rows: (table[rows], (table, rows)),
    lambda saved, cotangent: (jnp.zeros_like(saved[0]).at[saved[1]].add(cotangent), None),
)


@right("jax")
def custom_gather(seed: int) -> Report:
    """A custom_vjp with an integer argument, repeated rows and rows that are never taken."""
    draw = np.random.default_rng(seed)
    table, rows = draw.normal(size=(10, 4)), draw.integers(7, size=9)

    def features(table: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.sin(_take_rows(table, rows))

    return report_on_jax(features, table, rows, seed=seed)


@right("jax")
def relu_mlp(seed: int) -> Report:
    """A list of layer dicts; data is passed too but only the parameters are checked."""
    draw = np.random.default_rng(seed)
    layers = [
        {"w": draw.normal(size=(m, n)) / np.sqrt(n), "b": draw.normal(size=m)}
        for n, m in ((4, 7), (7, 6), (6, 1))
    ]

    def predict(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
        *hidden, last = layers
        for layer in hidden:
            x = jax.nn.relu(layer["w"] @ x + layer["b"])
        return last["w"] @ x + last["b"]

    def loss(layers: list[dict[str, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((jax.vmap(predict, (None, 0))(layers, x) - y) ** 2)

    x, y = draw.normal(size=(8, 4)), draw.normal(size=(8, 1))
    return report_on_jax(loss, layers, x, y, wrt=0, seed=seed)


class Cell(NamedTuple):
    """Weights of a recurrent cell."""

    inner: Array
    outer: Array
    bias: Array


@right("jax")
def scanned_rnn(seed: int) -> Report:
    """A recurrent cell in a namedtuple, run by lax.scan; the inputs are leaves as well."""
    draw = np.random.default_rng(seed)
    cell = Cell(draw.normal(size=(4, 4)) / 2, draw.normal(size=(4, 3)) / 2, draw.normal(size=4))

    def run(cell: Cell, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        def advance(hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            hidden = jnp.tanh(cell.inner @ hidden + cell.outer @ x + cell.bias)
            return hidden, hidden.sum()

        return jax.lax.scan(advance, jnp.zeros(4), inputs)

    return report_on_jax(run, cell, draw.normal(size=(6, 3)), seed=seed)


@right("jax")
def settings_among_the_leaves(seed: int) -> Report:
    """A pytree with a name, a depth, a flag and a None beside its arrays."""
    draw = np.random.default_rng(seed)
    params = {
        "w": draw.normal(size=(5, 5)) / 2,
        "gain": draw.normal(size=5),
        "activation": "tanh",
        "depth": 3,
        "residual": True,
        "bias": None,
    }

    def forward(params: dict[str, Any], x: jax.Array) -> jax.Array:
        activate = {"tanh": jnp.tanh, "relu": jax.nn.relu}[params["activation"]]
        for _ in range(params["depth"]):
            lifted = activate(params["w"] @ x) * params["gain"]
            x = x + lifted if params["residual"] else lifted
        return x if params["bias"] is None else x + params["bias"]

    return report_on_jax(forward, params, draw.normal(size=5), seed=seed)


@right("jax")
def softmax_cross_entropy(seed: int) -> Report:
    """vmapped over examples with integer labels; the number of hits is an integer output."""
    draw = np.random.default_rng(seed)

    def example(w: jax.Array, x: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        logs = jax.nn.log_softmax(w @ x)
        return -logs[label], jnp.argmax(logs) == label

    def loss(w: jax.Array, x: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        costs, hits = jax.vmap(example, (None, 0, 0))(w, x, labels)
        return {"loss": jnp.mean(costs), "hits": jnp.sum(hits)}

    return report_on_jax(
        loss,
        draw.normal(size=(5, 8)),
        draw.normal(size=(9, 8)),
        draw.integers(5, size=9),
        wrt=0,
        seed=seed,
    )


@right("jax")
def causal_attention(seed: int) -> Report:
    """A causal mask, and a bias of the keys that has no influence."""
    draw = np.random.default_rng(seed)
    names = ("query", "key", "value")
    params = {n: {"w": draw.normal(size=(4, 4)), "b": draw.normal(size=(1, 4))} for n in names}

    def attend(params: dict[str, dict[str, jax.Array]], x: jax.Array) -> jax.Array:
        q, k, v = (x @ params[name]["w"] + params[name]["b"] for name in names)
        seen = jnp.tril(jnp.ones((len(x), len(x)), bool))
        return jax.nn.softmax(jnp.where(seen, q @ k.T / 2, -jnp.inf)) @ v

    return report_on_jax(attend, params, draw.normal(size=(5, 4)), seed=seed)


@right("jax")
def convolution_layer(seed: int) -> Report:
    """A padded, strided convolution of a small picture, with a smooth activation."""
    draw = np.random.default_rng(seed)

    def layer(kernel: jax.Array, picture: jax.Array) -> jax.Array:
        return jax.nn.gelu(jax.lax.conv_general_dilated(picture, kernel, (2, 1), "SAME"))

    kernel, picture = draw.normal(size=(3, 2, 3, 3)), draw.normal(size=(2, 2, 5, 4))
    return report_on_jax(layer, kernel, picture, wrt=(0,), seed=seed)


@dataclass(frozen=True)
class Norm:
    """The parameters of a layer norm, and its setting, which is no leaf."""

    gain: Array
    bias: Array
    epsilon: float = field(default=1e-6, metadata={"static": True})


jax.tree_util.register_dataclass(Norm, ("gain", "bias"), ("epsilon",))


@right("jax")
def layer_norm_dataclass(seed: int) -> Report:
    """A registered dataclass of parameters."""
    draw = np.random.default_rng(seed)

    def normalise(norm: Norm, x: jax.Array) -> jax.Array:
        centred = x - x.mean()
        return norm.gain * centred * jax.lax.rsqrt(x.var() + norm.epsilon) + norm.bias

    return report_on_jax(
        jax.vmap(normalise, (None, 0)),
        Norm(draw.normal(size=7), draw.normal(size=7)),
        draw.normal(3, 2, size=(5, 7)),
        seed=seed,
    )


@right("jax")
def solve_and_determinant(seed: int) -> Report:
    """jnp.linalg.solve and slogdet of a well conditioned matrix."""
    draw = np.random.default_rng(seed)

    def likelihood(matrix: jax.Array, y: jax.Array) -> jax.Array:
        return y @ jnp.linalg.solve(matrix, y) + jnp.linalg.slogdet(matrix)[1]

    matrix = 3 * np.eye(5) + 0.5 * draw.normal(size=(5, 5))
    return report_on_jax(likelihood, matrix, draw.normal(size=5), seed=seed)


@right("jax")
def eigenvalues(seed: int) -> Report:
    """Eigenvalues of a symmetrised matrix."""
    draw = np.random.default_rng(seed)
    return report_on_jax(
        lambda m: jnp.linalg.eigvalsh(m + m.T), draw.normal(size=(5, 5)), seed=seed
    )


@right("jax")
def order_statistics(seed: int) -> Report:
    """A trimmed mean by sorting."""
    draw = np.random.default_rng(seed)
    return report_on_jax(
        lambda x: jnp.sort(x, axis=1)[:, 3:-3].mean(axis=1), draw.normal(size=(3, 14)), seed=seed
    )


@right("jax")
def python_control_flow(seed: int) -> Report:
    """Loops and branches on a Python integer, which must stay one; a keyword array is a leaf."""
    draw = np.random.default_rng(seed)

    def recursion(x: jax.Array, order: int, *, weights: jax.Array) -> jax.Array:
        before, now = jnp.ones_like(x), x
        total = weights[0] * before
        for k in range(1, order):
            total = total + (weights[k] * now if k % 2 else -weights[k] * now)
            before, now = now, ((2 * k + 1) * x * now - k * before) / (k + 1)
        return total

    return report_on_jax(
        recursion,
        draw.uniform(-1, 1, size=8),
        6,
        kwargs={"weights": draw.normal(size=6)},
        seed=seed,
    )


@right("jax")
def dropout_from_a_key(seed: int) -> Report:
    """A new-style key as an argument; a mask of the parameters' own shape."""
    draw = np.random.default_rng(seed)

    def layer(key: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(w @ x)
        kept = jax.random.bernoulli(key, 0.7, hidden.shape)
        return jnp.where(kept, hidden / 0.7, 0.0)

    return report_on_jax(
        layer, jax.random.key(seed), draw.normal(size=(8, 4)), draw.normal(size=4), seed=seed
    )


@right("jax")
def noise_from_a_raw_key(seed: int) -> Report:
    """An old-style key inside the state, and noise that is scaled by a parameter."""
    draw = np.random.default_rng(seed)
    state = {"key": jax.random.PRNGKey(seed), "mean": draw.normal(size=9), "step": 3}

    def sample(state: dict[str, Any], log_scale: jax.Array) -> jax.Array:
        key = jax.random.fold_in(state["key"], state["step"])
        noise = jax.random.normal(key, state["mean"].shape)
        return jnp.sin(state["mean"] + jnp.exp(log_scale) * noise)

    return report_on_jax(sample, state, np.array(draw.normal()), seed=seed)


@right("jax")
def activation_as_an_argument(seed: int) -> Report:
    """A callable is passed through to a function that is already jitted over its arrays."""
    draw = np.random.default_rng(seed)

    def apply(activate: Callable[[jax.Array], jax.Array], w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jax.jit(lambda w, x: activate(w @ x))(w, x))

    return report_on_jax(
        apply, jax.nn.silu, draw.normal(size=(6, 5)), draw.normal(size=5), seed=seed
    )


@right("jax")
def segment_sums(seed: int) -> Report:
    """Edges gather from their nodes and are summed by segment; some segments stay empty."""
    draw = np.random.default_rng(seed)
    source, target = draw.integers(7, size=12), draw.integers(6, size=12)

    def aggregate(nodes: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(jnp.exp(nodes[source]), target, num_segments=7)

    return report_on_jax(aggregate, draw.normal(size=(7, 3)), source, target, seed=seed)


@right("jax")
def cumulative_products(seed: int) -> Report:
    """cumprod, with factors of either sign."""
    draw = np.random.default_rng(seed)
    return report_on_jax(lambda x: jnp.cumprod(x, axis=1), draw.normal(size=(4, 6)), seed=seed)


@right("jax")
def safe_norm(seed: int) -> Report:
    """The double ``where`` around a square root; rows that are masked out have length zero."""
    draw = np.random.default_rng(seed)

    def lengths(x: jax.Array, mask: jax.Array) -> jax.Array:
        squares = jnp.sum(x**2, axis=1) * mask
        inside = squares > 0
        return jnp.where(inside, jnp.sqrt(jnp.where(inside, squares, 1.0)), 0.0)

    x, mask = draw.normal(size=(7, 4)), np.arange(7) != seed % 7
    return report_on_jax(lengths, x, mask, seed=seed)


@right("jax")
def huber_regression(seed: int) -> Report:
    """Quadratic near zero and linear beyond; small and large parameters in one tree."""
    draw = np.random.default_rng(seed)
    X, y = draw.normal(size=(20, 6)), draw.normal(size=20)
    params = (1e-6 * draw.normal(size=6), np.array(1e4 * draw.normal()))

    def loss(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        slopes, offset = params
        error = 1e6 * (X @ slopes) + 1e-4 * offset - y
        size = jnp.abs(error)
        return jnp.mean(jnp.where(size < 1, 0.5 * error**2, size - 0.5))

    return report_on_jax(loss, params, seed=seed)


@right("jax")
def leapfrog_integrator(seed: int) -> Report:
    """Two coupled pendulums by fori_loop; initial conditions and physical constants are leaves."""
    draw = np.random.default_rng(seed)
    start = {"angle": draw.normal(size=2), "speed": draw.normal(size=2)}
    constants = {"length": draw.uniform(0.5, 2, size=2), "spring": np.array(draw.uniform(0.1, 1))}

    def force(angle: jax.Array, constants: dict[str, jax.Array]) -> jax.Array:
        return -jnp.sin(angle) / constants["length"] - constants["spring"] * (angle - angle[::-1])

    def simulate(
        start: dict[str, jax.Array], constants: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        def advance(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            angle, speed = state
            halfway = speed + 0.05 * force(angle, constants)
            angle = angle + 0.1 * halfway
            return angle, halfway + 0.05 * force(angle, constants)

        return jax.lax.fori_loop(0, 30, advance, (start["angle"], start["speed"]))

    return report_on_jax(simulate, start, constants, seed=seed)


@right("jax")
def conditional_branches(seed: int) -> Report:
    """lax.cond and lax.switch on values: a smooth extrapolation outside of the unit interval."""
    draw = np.random.default_rng(seed)
    kinds = draw.integers(3, size=7)

    def transform(x: jax.Array, kind: jax.Array, slope: jax.Array) -> jax.Array:
        inside = jax.lax.cond(x > 1, lambda x: 2 * x - 1, lambda x: x**2, x)
        branches = (jnp.sin, jnp.exp, lambda x: slope * x)
        return jax.lax.switch(kind, branches, inside)

    def total(x: jax.Array, kinds: jax.Array, slope: jax.Array) -> jax.Array:
        parts = [transform(value, kind, slope) for value, kind in zip(x, kinds, strict=True)]
        return jnp.stack(parts)

    x, slope = draw.uniform(0, 2, size=7), np.array(draw.normal())
    return report_on_jax(total, x, kinds, slope, seed=seed)


@right("jax")
def padded_attention(seed: int) -> Report:
    """Two heads by einsum, and a mask of the lengths: the padding has no influence."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 5, size=2)
    params = {name: draw.normal(size=(4, 2, 3)) / 2 for name in ("query", "key", "value")}
    params["out"] = draw.normal(size=(2, 3, 4)) / 2

    def attend(params: dict[str, jax.Array], x: jax.Array, lengths: jax.Array) -> jax.Array:
        q, k, v = (
            jnp.einsum("btd,dhe->bhte", x, params[name]) for name in ("query", "key", "value")
        )
        seen = jnp.arange(x.shape[1])[None, :] < lengths[:, None]
        scores = jnp.einsum("bhte,bhse->bhts", q, k) / jnp.sqrt(3.0)
        weights = jax.nn.softmax(jnp.where(seen[:, None, None, :], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bhts,bhse,hed->btd", weights, v, params["out"])
        return jnp.sum(mixed * seen[:, :, None], axis=1)

    return report_on_jax(attend, params, draw.normal(size=(2, 4, 4)), lengths, seed=seed)


@right("jax")
def cholesky_likelihood(seed: int) -> Report:
    """A covariance of factors and log variances, by its Cholesky factor and triangular solves."""
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(8, 5))
    params = {
        "mean": draw.normal(size=5),
        "factors": draw.normal(size=(5, 2)),
        "log_variances": draw.normal(-1, 0.5, size=5),
    }

    def likelihood(params: dict[str, jax.Array], points: jax.Array) -> jax.Array:
        factors = params["factors"]
        covariance = factors @ factors.T + jnp.diag(jnp.exp(params["log_variances"]))
        root = jnp.linalg.cholesky(covariance)
        centred = (points - params["mean"][None, :]).T
        whitened = jax.scipy.linalg.solve_triangular(root, centred, lower=True)
        return -0.5 * jnp.sum(whitened**2) - len(points) * jnp.sum(jnp.log(jnp.diag(root)))

    return report_on_jax(likelihood, params, points, wrt=0, seed=seed)


@right("jax")
def gradient_penalty(seed: int) -> Report:
    """A critic whose slope in each example is penalised: jax.grad and vmap inside of the loss."""
    draw = np.random.default_rng(seed)
    params = {"W": draw.normal(size=(4, 6)) / 2, "b": draw.normal(size=6), "v": draw.normal(size=6)}

    def critic(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["W"] + params["b"]) @ params["v"]

    def example(params: dict[str, jax.Array], real: jax.Array, fake: jax.Array) -> jax.Array:
        slope = jax.grad(critic, argnums=1)(params, (real + fake) / 2)
        penalty = (jnp.linalg.norm(slope) - 1) ** 2
        return critic(params, fake) - critic(params, real) + 10 * penalty

    def loss(params: dict[str, jax.Array], real: jax.Array, fake: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(example, (None, 0, 0))(params, real, fake))

    real, fake = draw.normal(size=(7, 4)), draw.normal(1, 2, size=(7, 4))
    return report_on_jax(loss, params, real, fake, wrt=0, seed=seed)


@right("jax")
def checkpointed_blocks(seed: int) -> Report:
    """Residual blocks in dicts in a list in a dict, recomputed on the way back."""
    draw = np.random.default_rng(seed)
    params = {
        "embed": {"w": draw.normal(size=(3, 4))},
        "blocks": [
            {"up": draw.normal(size=(4, 5)) / 2, "down": (draw.normal(size=(5, 4)), np.zeros(4))}
            for _ in range(3)
        ],
        "head": [draw.normal(size=4), np.array(draw.normal())],
    }

    @jax.checkpoint
    def block(layer: dict[str, Any], h: jax.Array) -> jax.Array:
        w, b = layer["down"]
        return h + jax.nn.gelu(h @ layer["up"]) @ w + b[None, :]

    def loss(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
        h = x @ params["embed"]["w"]
        for layer in params["blocks"]:
            h = block(layer, h)
        w, b = params["head"]
        return jnp.mean((jnp.tanh(h) @ w + b - y) ** 2)

    x, y = draw.normal(size=(6, 3)), draw.normal(size=6)
    return report_on_jax(loss, params, x, y, wrt=0, seed=seed)


@right("jax")
def weighted_log_sum_exp(seed: int) -> Report:
    """logsumexp with its weights ``b``, which are leaves; large scores, and entries left out."""
    draw = np.random.default_rng(seed)

    def totals(scores: jax.Array, weights: jax.Array, kept: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(scores, axis=1, b=weights, where=kept)

    scores, weights = draw.normal(800, 3, size=(4, 6)), draw.uniform(0.1, 2, size=(4, 6))
    kept = draw.random(size=(4, 6)) < 0.8
    kept[:, 0] = True
    return report_on_jax(totals, scores, weights, kept, seed=seed)


@right("jax")
def hidden_markov_model(seed: int) -> Report:
    """The forward algorithm in logarithms, by lax.scan over the observed symbols."""
    draw = np.random.default_rng(seed)
    params = {
        "start": draw.normal(size=3),
        "moves": draw.normal(size=(3, 3)),
        "emits": draw.normal(size=(3, 4)),
    }

    def likelihood(params: dict[str, jax.Array], symbols: jax.Array) -> jax.Array:
        start, moves, emits = (
            jax.nn.log_softmax(params[name], axis=-1) for name in ("start", "moves", "emits")
        )

        def advance(alpha: jax.Array, symbol: jax.Array) -> tuple[jax.Array, None]:
            reached = jax.nn.logsumexp(alpha[:, None] + moves, axis=0)
            return reached + emits[:, symbol], None

        alpha, _ = jax.lax.scan(advance, start + emits[:, symbols[0]], symbols[1:])
        return jax.nn.logsumexp(alpha)

    return report_on_jax(likelihood, params, draw.integers(4, size=10), seed=seed)


RIGHT: tuple[Right, ...] = tuple(_rows)
