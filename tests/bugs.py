"""Planted bugs: each row is a backward pass with one mistake, and the same code with it mended.

A row is called with ``broken`` and a seed, and checks its backward pass as a user would. B1 to B94
number real backward bugs that rows are modelled on; the line above such a row names the report.
What stands inside a row is a user's code, and written like one: without annotations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from xgradcheck import Report, check

Row = Callable[[bool, int], Report]

report_on = partial(check, raise_exception=False)


@dataclass(frozen=True, slots=True)
class Bug:
    """One mistake: what it is, its class, where it is written, the leaves it breaks, its code, and
    what it is called where it has a pattern.
    """

    title: str
    kind: str
    backend: str
    leaf: tuple[str, ...]
    run: Row
    cause: str


_rows: list[Bug] = []


def bug(
    title: str, *, kind: str, backend: str, leaf: str | tuple[str, ...], cause: str = ""
) -> Callable[[Row], Row]:
    def enter(run: Row) -> Row:
        leaves = (leaf,) if isinstance(leaf, str) else leaf
        _rows.append(Bug(title, kind, backend, leaves, run, cause))
        return run

    return enter


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays(seed, *shapes)]


def away_from_zero(x: np.ndarray, gap: float) -> np.ndarray:
    return np.copysign(gap + np.abs(x), x)


def filled(module: nn.Module, seed: int) -> nn.Module:
    """The module in float64, its parameters drawn from the seed."""
    module = module.double()
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    with torch.no_grad():
        for parameter, values in zip(module.parameters(), tensors(seed, *shapes), strict=True):
            parameter.copy_(values)
    return module


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


# B12: NVIDIA/TransformerEngine#2139
@bug(
    "the incoming cotangent is ignored",
    kind="cotangent",
    backend="torch",
    leaf="args[0]",
    cause="cotangent",
)
def exp_ignoring_its_cotangent(broken: bool, seed: int) -> Report:
    """B12: the backward kernel does not multiply by the gradient that comes in."""

    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, grad):
            (y,) = ctx.saved_tensors
            return y if broken else grad * y

    (x,) = tensors(seed, (3, 4))
    return report_on(Exp.apply, x, seed=seed)


@bug(
    "a loss takes the size of the cotangent",
    kind="cotangent",
    backend="torch",
    leaf="args[0]",
)
def energy_of_the_cotangents_size(broken: bool, seed: int) -> Report:
    """A loss is trained with a positive weight until it is subtracted, as in a minimax game."""

    class Energy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x * (grad.abs() if broken else grad)

    (x,) = tensors(seed, (3, 4))
    return report_on(Energy.apply, x, seed=seed)


# B13: linkedin/Liger-Kernel#1298
@bug(
    "every token is weighted by the cotangent of the first",
    kind="cotangent",
    backend="torch",
    leaf=("weight", "bias"),
)
def linear_cross_entropy_with_the_first_cotangent(broken: bool, seed: int) -> Report:
    """B13: weight and bias gradients of an unreduced loss are multiplied by grad_output[0]."""

    class LinearCrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, labels):
            logp = (x @ weight.T + bias).log_softmax(-1)
            picked = logp.gather(1, labels[:, None])
            dlogits = logp.exp().scatter_add(1, labels[:, None], -torch.ones_like(picked))
            ctx.save_for_backward(x, weight, dlogits)
            return -picked.squeeze(1)

        @staticmethod
        def backward(ctx, grad):
            x, weight, dlogits = ctx.saved_tensors
            per_token = grad[:, None] * dlogits
            reduced = grad[0] * dlogits if broken else per_token
            return per_token @ weight, reduced.T @ x, reduced.sum(0), None

    def loss(x, weight, bias, labels):
        return LinearCrossEntropy.apply(x, weight, bias, labels)

    x, weight, bias = tensors(seed, (4, 3), (3, 3), (3,))
    labels = torch.tensor([0, 2, 1, 2])
    return report_on(loss, x, weight, bias, labels, seed=seed)


# B15: HawkAaron/warp-transducer#23
@bug("the cotangent runs along the wrong axis", kind="cotangent", backend="numpy", leaf="x")
def distances_with_the_cotangent_along_features(broken: bool, seed: int) -> Report:
    """B15: one number per row is broadcast over the columns, which a square batch allows."""
    x, centre = arrays(seed, (4, 4), (4,))

    def squared_distances(x):
        return ((x - centre) ** 2).sum(axis=1)

    def backward(cotangent, x):
        per_row = cotangent if broken else cotangent[:, None]
        return per_row * 2 * (x - centre)

    return report_on(squared_distances, x, grads=backward, seed=seed)


# B14: ROCm/TransformerEngine#336
@bug(
    "unreduced losses are scaled as if averaged",
    kind="cotangent",
    backend="jax",
    leaf="x",
    cause="factor",
)
def row_losses_scaled_as_a_mean(broken: bool, seed: int) -> Report:
    """B14: with no reduction the backward still divides by the number of rows."""
    x, target = arrays(seed, (3, 2), (3, 2))

    @jax.custom_vjp
    def row_losses(x):
        return ((x - target) ** 2).sum(axis=1)

    def backward(x, g):
        return (g[:, None] * 2 * (x - target) / (len(target) if broken else 1),)

    row_losses.defvjp(lambda x: (row_losses(x), x), backward)
    return report_on(row_losses, x, backend="jax", seed=seed)


@bug("the second output's cotangent is dropped", kind="cotangent", backend="torch", leaf="scores")
def softmax_dropping_the_gradient_of_its_normaliser(broken: bool, seed: int) -> Report:
    """Attention returns probabilities and log-sum-exp; only the first is differentiated."""

    class SoftmaxWithNormaliser(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores):
            normaliser = scores.logsumexp(-1, keepdim=True)
            p = (scores - normaliser).exp()
            ctx.save_for_backward(p)
            return p, normaliser

        @staticmethod
        def backward(ctx, dp, dnormaliser):
            (p,) = ctx.saved_tensors
            dscores = p * (dp - (dp * p).sum(-1, keepdim=True))
            return dscores if broken else dscores + dnormaliser * p

    def attention_weights(scores):
        return SoftmaxWithNormaliser.apply(scores)

    (scores,) = tensors(seed, (3, 4))
    return report_on(attention_weights, scores, seed=seed)


# B55: unslothai/unsloth#3314
@bug(
    "two gradients are returned in each other's place",
    kind="formula",
    backend="torch",
    leaf=("gate", "up"),
    cause="another",
)
def swiglu_with_swapped_gradients(broken: bool, seed: int) -> Report:
    """B55: de and df are stored the wrong way round."""

    class SwiGLU(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):
            ctx.save_for_backward(gate, up)
            return F.silu(gate) * up

        @staticmethod
        def backward(ctx, grad):
            gate, up = ctx.saved_tensors
            s = torch.sigmoid(gate)
            dgate = grad * up * s * (1 + gate * (1 - s))
            dup = grad * gate * s
            return (dup, dgate) if broken else (dgate, dup)

    def swiglu(gate, up):
        return SwiGLU.apply(gate, up)

    gate, up = tensors(seed, (3, 4), (3, 4))
    return report_on(swiglu, gate, up, seed=seed)


# B61: jax-ml/jax#3213
@bug(
    "the minus sign of a derivative is forgotten",
    kind="formula",
    backend="jax",
    leaf="x",
    cause="sign",
)
def cosine_without_its_minus_sign(broken: bool, seed: int) -> Report:
    """B61: the example of a custom rule in the manual had a sign wrong."""

    @jax.custom_jvp
    def cosine(x):
        return jnp.cos(x)

    @cosine.defjvp
    def tangent(primals, tangents):
        (x,), (dx,) = primals, tangents
        return cosine(x), (jnp.sin(x) if broken else -jnp.sin(x)) * dx

    (x,) = arrays(seed, (5,))
    return report_on(cosine, x, backend="jax", seed=seed)


# B62: dennybritz/nn-from-scratch#13
@bug(
    "gradients are summed where the loss is a mean",
    kind="formula",
    backend="numpy",
    leaf=("params['W']", "params['b']"),
    cause="factor",
)
def softmax_regression_summed_over_the_batch(broken: bool, seed: int) -> Report:
    """B62: the loss averages over the batch, the gradients do not."""
    x, w, b = arrays(seed, (5, 4), (4, 3), (3,))
    labels = np.array([0, 2, 1, 1, 0])

    def cost(params):
        p = softmax(x @ params["W"] + params["b"])
        return -np.log(p[np.arange(5), labels]).mean()

    def grads(params):
        d = softmax(x @ params["W"] + params["b"]) - np.eye(3)[labels]
        if not broken:
            d /= len(x)
        return {"dW": x.T @ d, "db": d.sum(axis=0)}

    return report_on(cost, {"W": w, "b": b}, grads=grads, seed=seed)


@bug(
    "the L2 term is missing from the gradient",
    kind="formula",
    backend="numpy",
    leaf=("W1", "W2"),
    cause="L2 term",
)
def network_forgetting_its_regularisation(broken: bool, seed: int) -> Report:
    """The loss contains weight decay, backprop does not: weights are wrong, biases right."""

    class Network:
        decay = 0.1

        def __init__(self, w1, b1, w2, b2):
            self.params = {"W1": w1, "b1": b1, "W2": w2, "b2": b2}

        def forward(self, x):
            self.hidden = np.tanh(x @ self.params["W1"] + self.params["b1"])
            return self.hidden @ self.params["W2"] + self.params["b2"]

        def loss(self, x, y):
            squares = sum((self.params[name] ** 2).sum() for name in ("W1", "W2"))
            return 0.5 * ((self.forward(x) - y) ** 2).mean() + 0.5 * self.decay * squares

        def grads(self, x, y):
            dout = (self.forward(x) - y) / y.size
            dhidden = dout @ self.params["W2"].T * (1 - self.hidden**2)
            grads = {
                "W1": x.T @ dhidden,
                "b1": dhidden.sum(axis=0),
                "W2": self.hidden.T @ dout,
                "b2": dout.sum(axis=0),
            }
            if not broken:
                for name in ("W1", "W2"):
                    grads[name] += self.decay * self.params[name]
            return grads

    x, y, *params = arrays(seed, (5, 3), (5, 2), (3, 4), (4,), (4, 2), (2,))
    net = Network(*params)
    return report_on(
        lambda: net.loss(x, y), wrt=net.params, grads=lambda: net.grads(x, y), seed=seed
    )


# B63: SebLague/Neural-Network-Experiments#5
@bug(
    "softmax is treated as elementwise", kind="formula", backend="numpy", leaf="z", cause="diagonal"
)
def softmax_with_only_its_diagonal(broken: bool, seed: int) -> Report:
    """B63: the Jacobian of softmax is taken to be its diagonal."""

    def backward(cotangent, z):
        p = softmax(z)
        if broken:
            return cotangent * p * (1 - p)
        return p * (cotangent - (cotangent * p).sum(axis=-1, keepdims=True))

    def probabilities(z):
        return softmax(z)

    (z,) = arrays(seed, (3, 4))
    return report_on(probabilities, z, grads=backward, seed=seed)


# B60: NVIDIA-NeMo/Automodel#2428
@bug("targets are taken to sum to one", kind="formula", backend="torch", leaf="logits")
def soft_target_loss_without_the_sum_of_targets(broken: bool, seed: int) -> Report:
    """B60: p - t is right only for targets that sum to one; in general it is sum(t) p - t."""

    class SoftTargetLoss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, targets):
            logp = logits.log_softmax(-1)
            ctx.save_for_backward(logp, targets)
            return -(targets * logp).sum(-1)

        @staticmethod
        def backward(ctx, grad):
            logp, targets = ctx.saved_tensors
            total = 1.0 if broken else targets.sum(-1, keepdim=True)
            return grad[:, None] * (total * logp.exp() - targets), -grad[:, None] * logp

    def loss(logits, targets):
        return SoftTargetLoss.apply(logits, targets)

    logits, targets = tensors(seed, (3, 4), (3, 4))
    return report_on(loss, logits, targets.abs(), seed=seed)


# B57: ROCm/MIOpen#104
@bug(
    "batch statistics are treated as constants", kind="formula", backend="numpy", leaf="params['x']"
)
def batch_norm_with_constant_statistics(broken: bool, seed: int) -> Report:
    """B57: the terms that come from the mean and the variance are left out."""

    def normalised(x):
        return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)

    def batch_norm(params):
        return params["gamma"] * normalised(params["x"]) + params["beta"]

    def backward(cotangent, params):
        x_hat = normalised(params["x"])
        d = cotangent * params["gamma"]
        if not broken:
            d = d - d.mean(axis=0) - x_hat * (d * x_hat).mean(axis=0)
        return {
            "x": d / np.sqrt(params["x"].var(axis=0) + 1e-5),
            "gamma": (cotangent * x_hat).sum(axis=0),
            "beta": cotangent.sum(axis=0),
        }

    x, gamma, beta = arrays(seed, (6, 3), (3,), (3,))
    params = {"x": x, "gamma": gamma, "beta": beta}
    return report_on(batch_norm, params, grads=backward, seed=seed)


@bug(
    "the backward divides by n - 1, the forward by n",
    kind="formula",
    backend="torch",
    leaf=("x", "weight"),
    cause="factor",
)
def layer_norm_with_the_unbiased_deviation(broken: bool, seed: int) -> Report:
    """The default of Tensor.var is the unbiased variance; the forward used the biased one."""

    class LayerNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight)
            return F.layer_norm(x, weight.shape, weight, bias, eps=1e-5)

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            variance = x.var(-1, correction=1 if broken else 0, keepdim=True)
            rstd = (variance + 1e-5).rsqrt()
            x_hat = (x - x.mean(-1, keepdim=True)) * rstd
            d = grad * weight
            dx = d - d.mean(-1, keepdim=True) - x_hat * (d * x_hat).mean(-1, keepdim=True)
            return rstd * dx, (grad * x_hat).sum(0), grad.sum(0)

    def layer_norm(x, weight, bias):
        return LayerNorm.apply(x, weight, bias)

    x, weight, bias = tensors(seed, (4, 5), (5,), (5,))
    return report_on(layer_norm, x, weight, bias, seed=seed)


@bug(
    "the weight gradient is transposed",
    kind="formula",
    backend="torch",
    leaf="weight",
    cause="transposed",
)
def linear_with_a_transposed_weight_gradient(broken: bool, seed: int) -> Report:
    """A square weight hides that x' g and g' x have been confused."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight)
            return torch.addmm(bias, x, weight.T)

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad @ weight, x.T @ grad if broken else grad.T @ x, grad.sum(0)

    def linear(x, weight, bias):
        return Linear.apply(x, weight, bias)

    x, weight, bias = tensors(seed, (5, 4), (4, 4), (4,))
    return report_on(linear, x, weight, bias, seed=seed)


@bug("a constant has too few digits", kind="formula", backend="torch", leaf="args[0]")
def gelu_with_a_rounded_constant(broken: bool, seed: int) -> Report:
    """sqrt(2/pi) is rounded to three digits in the backward alone: an error of about 1e-4."""

    class Gelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return F.gelu(x, approximate="tanh")

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            scale = 0.798 if broken else math.sqrt(2 / math.pi)
            t = torch.tanh(scale * (x + 0.044715 * x**3))
            slope = scale * (1 + 3 * 0.044715 * x**2)
            return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope)

    (x,) = tensors(seed, (4, 5))
    return report_on(Gelu.apply, x, seed=seed)


@bug(
    "one element is left out by a loop that stops early",
    kind="formula",
    backend="numpy",
    leaf="factor",
)
def log_determinant_without_its_last_diagonal_entry(broken: bool, seed: int) -> Report:
    """A Gaussian log density by its triangular factor: one of 36 entries is wrong."""
    noise, x = arrays(seed, (6, 6), (6,))
    factor = np.tril(0.3 * noise, -1) + np.diag(1 + 0.5 * np.tanh(np.diag(noise)))

    def log_density(factor):
        z = np.tril(factor) @ x
        return np.log(np.diag(factor)).sum() - 0.5 * z @ z

    def grads(factor):
        d = np.tril(-np.outer(np.tril(factor) @ x, x))
        for i in range(len(x) - 1 if broken else len(x)):
            d[i, i] += 1 / factor[i, i]
        return d

    return report_on(log_density, factor, grads=grads, seed=seed)


@bug(
    "a gate is given its neighbour's derivative",
    kind="formula",
    backend="numpy",
    leaf=("params['Wg']", "params['bg']"),
)
def lstm_step_with_a_sigmoid_for_its_candidate(broken: bool, seed: int) -> Report:
    """The candidate of the cell is a tanh; its backward is copied from the sigmoid gates."""
    x, h, c, *weights = arrays(seed, (3, 2), (3, 2), (3, 2), *[(4, 2), (2,)] * 4)
    params = dict(zip(["Wi", "bi", "Wf", "bf", "Wo", "bo", "Wg", "bg"], weights, strict=True))
    xh = np.concatenate([x, h], axis=1)

    def gates(params):
        i, f, o = (sigmoid(xh @ params["W" + gate] + params["b" + gate]) for gate in "ifo")
        g = np.tanh(xh @ params["Wg"] + params["bg"])
        return i, f, o, g, f * c + i * g

    def step(params):
        _, _, o, _, new_c = gates(params)
        return np.stack([o * np.tanh(new_c), new_c])

    def backward(cotangent, params):
        i, f, o, g, new_c = gates(params)
        dh, dc = cotangent
        dc = dc + dh * o * (1 - np.tanh(new_c) ** 2)
        dz = {
            "i": dc * g * i * (1 - i),
            "f": dc * c * f * (1 - f),
            "o": dh * np.tanh(new_c) * o * (1 - o),
            "g": dc * i * (g * (1 - g) if broken else 1 - g**2),
        }
        return {f"dW{gate}": xh.T @ d for gate, d in dz.items()} | {
            f"db{gate}": d.sum(axis=0) for gate, d in dz.items()
        }

    return report_on(step, params, grads=backward, seed=seed)


@bug("the adjoint solve is not transposed", kind="formula", backend="torch", leaf=("a", "b"))
def linear_solve_without_the_transpose(broken: bool, seed: int) -> Report:
    """Implicit differentiation solves with the matrix itself instead of its transpose."""

    class Solve(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            x = torch.linalg.solve(a, b)
            ctx.save_for_backward(a, x)
            return x

        @staticmethod
        def backward(ctx, grad):
            a, x = ctx.saved_tensors
            db = torch.linalg.solve(a if broken else a.T, grad)
            return -torch.outer(db, x), db

    def solve(a, b):
        return Solve.apply(a, b)

    noise, b = tensors(seed, (3, 3), (3,))
    a = 3 * torch.eye(3, dtype=torch.float64) + 0.5 * noise.tanh()
    return report_on(solve, a, b, seed=seed)


@bug(
    "a scale is left out for one operand",
    kind="formula",
    backend="numpy",
    leaf="params['q']",
    cause="factor",
)
def attention_without_its_scale_for_the_queries(broken: bool, seed: int) -> Report:
    """1 / sqrt(d) reaches the keys' gradient but not the queries'."""
    scale = 1 / math.sqrt(3)

    def attention(params):
        return softmax(scale * params["q"] @ params["k"].T) @ params["v"]

    def backward(cotangent, params):
        q, k, v = params["q"], params["k"], params["v"]
        p = softmax(scale * q @ k.T)
        dp = cotangent @ v.T
        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True))
        return {
            "dq": (1 if broken else scale) * ds @ k,
            "dk": scale * ds.T @ q,
            "dv": p.T @ cotangent,
        }

    q, k, v = arrays(seed, (3, 3), (4, 3), (4, 2))
    return report_on(attention, {"q": q, "k": k, "v": v}, grads=backward, seed=seed)


@bug("the kernel is not flipped", kind="formula", backend="torch", leaf="x")
def convolution_with_an_unflipped_kernel(broken: bool, seed: int) -> Report:
    """The adjoint of a correlation is a convolution, whose kernel runs backwards."""

    class Conv1d(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return F.conv1d(x[None, None], weight[None, None])[0, 0]

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            reach = len(weight) - 1
            kernel = weight if broken else weight.flip(0)
            dx = F.conv1d(F.pad(grad, (reach, reach))[None, None], kernel[None, None])[0, 0]
            return dx, F.conv1d(x[None, None], grad[None, None])[0, 0]

    def conv1d(x, weight):
        return Conv1d.apply(x, weight)

    x, weight = tensors(seed, (9,), (4,))
    return report_on(conv1d, x, weight, seed=seed)


@bug(
    "a gradient of size 1e-9 has the wrong sign",
    kind="formula",
    backend="torch",
    leaf="args[0]",
    cause="sign",
)
def saturated_sigmoid_with_the_wrong_sign(broken: bool, seed: int) -> Report:
    """Far out on the tail an absolute tolerance would take the flipped gradient for zero."""

    class Sigmoid(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = torch.sigmoid(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, grad):
            (y,) = ctx.saved_tensors
            return grad * y * (y - 1 if broken else 1 - y)

    (x,) = tensors(seed, (3, 4))
    return report_on(Sigmoid.apply, x.tanh() - 20, seed=seed)


@bug(
    "gradient clipping is left inside the gradient",
    kind="formula",
    backend="numpy",
    leaf=("params[0]", "params[1]"),
    cause="factor",
)
def logistic_regression_returning_clipped_gradients(broken: bool, seed: int) -> Report:
    """The training loop's clipping by global norm was moved into the gradient function."""
    x, w, b = arrays(seed, (6, 4), (4,), ())
    labels = np.array([1, 0, 1, 1, 0, 1])

    def cost(params):
        w, b = params
        z = x @ w + b
        return (np.logaddexp(0, z) - labels * z).sum()

    def grads(params):
        w, b = params
        d = sigmoid(x @ w + b) - labels
        dw, db = x.T @ d, d.sum()
        norm = np.sqrt(dw @ dw + db**2)
        shrink = min(1.0, 0.1 / norm) if broken else 1.0
        return [shrink * dw, shrink * db]

    return report_on(cost, [w, b], grads=grads, seed=seed)


@bug("a reverse recurrence runs forwards", kind="formula", backend="jax", leaf="x")
def moving_average_scanned_in_the_wrong_direction(broken: bool, seed: int) -> Report:
    """reverse=True is forgotten in the scan of the backward pass."""

    def run(x, reverse):
        def step(h, x_t):
            h = 0.7 * h + x_t
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(x[0]), x, reverse=reverse)[1]

    @jax.custom_vjp
    def moving_average(x):
        return run(x, False)

    moving_average.defvjp(
        lambda x: (moving_average(x), None), lambda _, g: (run(g, reverse=not broken),)
    )
    (x,) = arrays(seed, (6,))
    return report_on(moving_average, x, backend="jax", seed=seed)


@bug("a gradient is off by one position", kind="formula", backend="jax", leaf="x", cause="another")
def token_shift_leaving_its_gradient_in_place(broken: bool, seed: int) -> Report:
    """What came from the token before must go back to that token, not to its receiver."""

    def later(x):
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    def earlier(x):
        return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    @jax.custom_vjp
    def token_shift(x):
        return 0.6 * x + 0.4 * later(x)

    token_shift.defvjp(
        lambda x: (token_shift(x), None),
        lambda _, g: (0.6 * g + 0.4 * (g if broken else earlier(g)),),
    )
    (x,) = arrays(seed, (4, 2))
    return report_on(token_shift, x, backend="jax", seed=seed)


# B25: BobMcDear/attorch#18
@bug("the last, partial block of rows is dropped", kind="edge", backend="torch", leaf="weight")
def weight_gradient_without_the_last_block(broken: bool, seed: int) -> Report:
    """B25: the grid is rounded up, the buffer of partial sums down."""
    block = 4

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x * weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            blocks = len(x) // block if broken else -(-len(x) // block)
            partial = x.new_zeros(blocks, len(weight))
            for i in range(blocks):
                rows = slice(i * block, (i + 1) * block)
                partial[i] = (grad[rows] * x[rows]).sum(0)
            return grad * weight, partial.sum(0)

    def scale(x, weight):
        return Scale.apply(x, weight)

    x, weight = tensors(seed, (10, 3), (3,))
    return report_on(scale, x, weight, seed=seed)


# B28: Dao-AILab/flash-attention#1947
@bug(
    "masked positions come back in the backward",
    kind="edge",
    backend="torch",
    leaf=("q", "k", "v"),
    cause="unmasked",
)
def attention_recomputed_without_its_mask(broken: bool, seed: int) -> Report:
    """B28: exp of a score beyond the end of the keys is not set to zero."""
    keys = 3

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            scores = q @ k.T
            scores[:, keys:] = -math.inf
            normaliser = scores.logsumexp(-1, keepdim=True)
            out = (scores - normaliser).exp() @ v
            ctx.save_for_backward(q, k, v, out, normaliser)
            return out

        @staticmethod
        def backward(ctx, grad):
            q, k, v, out, normaliser = ctx.saved_tensors
            p = (q @ k.T - normaliser).exp()
            if not broken:
                p[:, keys:] = 0
            ds = p * (grad @ v.T - (grad * out).sum(-1, keepdim=True))
            return ds @ k, ds.T @ q, p.T @ grad

    def attention(q, k, v):
        return Attention.apply(q, k, v)

    q, k, v = tensors(seed, (3, 2), (5, 2), (5, 2))
    return report_on(attention, q, k, v, seed=seed)


# B26: fla-org/flash-linear-attention#1140
@bug(
    "a sequence shorter than the filter loses its state", kind="edge", backend="torch", leaf="state"
)
def causal_filter_on_a_short_sequence(broken: bool, seed: int) -> Report:
    """B26: the part of the old state that survives into the new one is not differentiated."""

    class CausalFilter(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, state, taps):
            padded = torch.cat([state, x])
            ctx.save_for_backward(padded, taps)
            return padded.unfold(0, len(taps), 1) @ taps, padded[len(x) :].clone()

        @staticmethod
        def backward(ctx, dy, dfinal):
            padded, taps = ctx.saved_tensors
            steps, history = len(dy), len(taps) - 1
            dpadded = torch.zeros_like(padded)
            for t in range(steps):
                dpadded[t : t + len(taps)] += dy[t] * taps
            first = max(steps, history) if broken else steps
            dpadded[first:] += dfinal[first - steps :]
            return dpadded[history:], dpadded[:history], padded.unfold(0, len(taps), 1).T @ dy

    def causal_filter(x, state, taps):
        return CausalFilter.apply(x, state, taps)

    x, state, taps = tensors(seed, (2,), (4,), (5,))
    return report_on(causal_filter, x, state, taps, seed=seed)


# B32: open-mmlab/mmcv#2174
@bug("the gradient wraps around the border", kind="edge", backend="numpy", leaf="params['x']")
def padded_convolution_wrapping_around(broken: bool, seed: int) -> Report:
    """B32: what falls off one end of a zero-padded signal is added at the other."""

    def shifted(v, by):
        padded = np.pad(v, 1)
        return padded[1 - by : 1 - by + len(v)]

    def convolution(params):
        return sum(tap * shifted(params["x"], j - 1) for j, tap in enumerate(params["taps"]))

    def backward(cotangent, params):
        move = np.roll if broken else shifted
        return {
            "x": sum(tap * move(cotangent, 1 - j) for j, tap in enumerate(params["taps"])),
            "taps": np.array([cotangent @ shifted(params["x"], j - 1) for j in range(3)]),
        }

    x, taps = arrays(seed, (8,), (3,))
    return report_on(convolution, {"x": x, "taps": taps}, grads=backward, seed=seed)


@bug("gradient flows through the clipped region", kind="edge", backend="jax", leaf="x")
def clip_with_a_gradient_outside(broken: bool, seed: int) -> Report:
    """The backward is the identity, also where the forward is flat."""

    @jax.custom_vjp
    def clip(x):
        return jnp.clip(x, -1, 1)

    def backward(x, g):
        return (g if broken else jnp.where(jnp.abs(x) < 1, g, 0),)

    clip.defvjp(lambda x: (clip(x), x), backward)
    inside, outside = arrays(seed, (3,), (3,))
    x = np.concatenate([0.9 * np.tanh(inside), away_from_zero(outside, 1.1)])
    return report_on(clip, x, backend="jax", seed=seed)


# B44: unslothai/unsloth#4533
@bug(
    "a parameter gets no gradient",
    kind="missing",
    backend="torch",
    leaf="weight",
    cause="no gradient",
)
def rms_norm_returning_none_for_its_weight(broken: bool, seed: int) -> Report:
    """B44: the weight was frozen when the kernel was written."""

    class RMSNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            rstd = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            ctx.save_for_backward(x, weight, rstd)
            return x * rstd * weight

        @staticmethod
        def backward(ctx, grad):
            x, weight, rstd = ctx.saved_tensors
            x_hat = x * rstd
            d = grad * weight
            dx = rstd * (d - x_hat * (d * x_hat).mean(-1, keepdim=True))
            return dx, None if broken else (grad * x_hat).sum(0)

    def rms_norm(x, weight):
        return RMSNorm.apply(x, weight)

    x, weight = tensors(seed, (4, 5), (5,))
    return report_on(rms_norm, x, weight, seed=seed)


# B45: fla-org/flash-linear-attention#875
@bug("one of two paths is cut", kind="missing", backend="torch", leaf="k")
def linear_attention_with_a_detached_denominator(broken: bool, seed: int) -> Report:
    """B45: the running sum of the keys is computed outside autograd."""

    def linear_attention(q, k, v):
        q, k = q.exp(), k.exp()
        total = (k.detach() if broken else k).cumsum(0)
        out = (q @ k.T).tril() @ v
        return out / (q * total).sum(-1, keepdim=True)

    q, k, v = tensors(seed, (4, 2), (4, 2), (4, 2))
    return report_on(linear_attention, q, k, v, seed=seed)


# B47: fbcotter/pytorch_wavelets#65
@bug(
    "all is skipped if the first input needs none",
    kind="missing",
    backend="torch",
    leaf="weight",
    cause="no gradient",
)
def matmul_asking_only_about_its_first_input(broken: bool, seed: int) -> Report:
    """B47: everything hangs on needs_input_grad[0]."""

    class Matmul(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            dx = dweight = None
            if ctx.needs_input_grad[0]:
                dx = grad @ weight.T
            if ctx.needs_input_grad[0 if broken else 1]:
                dweight = x.T @ grad
            return dx, dweight

    def matmul(x, weight):
        return Matmul.apply(x, weight)

    x, weight = tensors(seed, (4, 3), (3, 2))
    return report_on(matmul, x, weight.requires_grad_(), seed=seed)


@bug(
    "a parameter is read through .data",
    kind="missing",
    backend="torch",
    leaf="log_scale",
    cause="no gradient",
)
def cosine_head_with_an_untracked_scale(broken: bool, seed: int) -> Report:
    """The learned temperature never learns, and nothing says so."""

    class CosineHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 4))
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            log_scale = self.log_scale.data if broken else self.log_scale
            return log_scale.exp() * F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=-1).T

    (x,) = tensors(seed, (5, 4))
    return report_on(filled(CosineHead(), seed + 1), x, seed=seed)


# B53: rasbt/stat453-deep-learning-ss21#5
@bug(
    "one number is the gradient of every bias",
    kind="reduction",
    backend="numpy",
    leaf="params['b']",
    cause="reduced",
)
def bias_gradient_summed_over_all_classes(broken: bool, seed: int) -> Report:
    """B53: a sum without an axis."""
    x, y, w, b = arrays(seed, (5, 4), (5, 3), (4, 3), (3,))
    params = {"W": w, "b": b}

    def cost(params):
        return 0.5 * ((np.tanh(x @ params["W"] + params["b"]) - y) ** 2).sum()

    out = np.tanh(x @ w + b)
    d = (out - y) * (1 - out**2)
    db = np.full_like(b, d.sum()) if broken else d.sum(axis=0)
    grads = {"dW": x.T @ d, "db": db}
    return report_on(cost, params, grads=grads, seed=seed)


# B52: HomericIntelligence/Odyssey#2080
@bug(
    "axes are counted before earlier ones are gone",
    kind="reduction",
    backend="numpy",
    leaf="params['w']",
)
def unbroadcast_with_stale_axis_numbers(broken: bool, seed: int) -> Report:
    """B52: after the first sum axis 1 is another axis."""

    def unbroadcast(g, shape):
        for axis in range(g.ndim - len(shape)):
            g = g.sum(axis=axis if broken else 0)
        return g

    def product(params):
        return params["x"] * params["w"]

    def backward(cotangent, params):
        x, w = params["x"], params["w"]
        return {"x": cotangent * w, "w": unbroadcast(cotangent * x, w.shape)}

    x, w = arrays(seed, (2, 3, 3), (3,))
    return report_on(product, {"x": x, "w": w}, grads=backward, seed=seed)


@bug("the sum over broadcast copies is missing", kind="reduction", backend="torch", leaf=("k", "v"))
def repeated_heads_keeping_one_copy(broken: bool, seed: int) -> Report:
    """Each key head serves two query heads; only the first one's gradient comes back."""

    class RepeatHeads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, heads, times):
            ctx.times = times
            return heads.repeat_interleave(times, dim=0)

        @staticmethod
        def backward(ctx, grad):
            copies = grad.unflatten(0, (-1, ctx.times))
            return copies[:, 0] if broken else copies.sum(1), None

    def attention(q, k, v):
        k, v = RepeatHeads.apply(k, 2), RepeatHeads.apply(v, 2)
        return (q @ k.mT).softmax(-1) @ v

    q, k, v = tensors(seed, (4, 2, 2), (2, 3, 2), (2, 3, 2))
    return report_on(attention, q, k, v, seed=seed)


@bug("a cache is overwritten by a second call", kind="stale", backend="numpy", leaf="W")
def siamese_layer_with_one_cache(broken: bool, seed: int) -> Report:
    """A layer is used for two inputs and remembers only the last."""

    class Linear:
        def __init__(self, w, b):
            self.params = {"W": w, "b": b}
            self.cache = []

        def forward(self, x):
            if broken:
                self.cache = [x, x]
            else:
                self.cache.append(x)
            return x @ self.params["W"] + self.params["b"]

        def backward(self, dout):
            return {"W": self.cache.pop().T @ dout, "b": dout.sum(axis=0)}

    left, right, y, *params = arrays(seed, (4, 3), (4, 3), (4, 2), (3, 2), (2,))
    layer = Linear(*params)

    def forward():
        layer.cache.clear()
        return layer.forward(left), layer.forward(right)

    def loss():
        a, b = forward()
        return 0.5 * ((a * b - y) ** 2).mean()

    def grads():
        a, b = forward()
        d = (a * b - y) / y.size
        of_right, of_left = layer.backward(d * a), layer.backward(d * b)
        return {name: of_right[name] + of_left[name] for name in layer.params}

    return report_on(loss, wrt=layer.params, grads=grads, seed=seed)


@bug(
    "the mask is taken from the wrong tensor",
    kind="stale",
    backend="numpy",
    leaf=("params['w']", "params['b']"),
)
def relu_masked_before_its_bias(broken: bool, seed: int) -> Report:
    """The sign of x w decides, where the forward clips x w + b."""
    z, w, b = arrays(seed, (6, 3), (3,), (3,))
    z, w, b = away_from_zero(z, 0.1), away_from_zero(w, 0.5), away_from_zero(b, 1.0)
    x = (z - b) / w

    def layer(params):
        return np.maximum(x * params["w"] + params["b"], 0)

    def backward(cotangent, params):
        before = x * params["w"] + (0 if broken else params["b"])
        dz = cotangent * (before > 0)
        return {"w": (dz * x).sum(axis=0), "b": dz.sum(axis=0)}

    return report_on(layer, {"w": w, "b": b}, grads=backward, seed=seed)


# B68: facebookresearch/xformers#173
@bug("the backward draws another mask", kind="stale", backend="torch", leaf="x")
def dropout_replayed_with_another_seed(broken: bool, seed: int) -> Report:
    """B68: the mask is drawn again from a seed that is not the forward's."""

    def mask(x, seed):
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(x.shape, generator=generator) < 0.5) / 0.5

    class Dropout(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, seed):
            ctx.seed = seed + 1 if broken else seed
            return x * mask(x, seed)

        @staticmethod
        def backward(ctx, grad):
            return grad * mask(grad, ctx.seed), None

    def dropout(x, seed):
        return Dropout.apply(x, seed)

    (x,) = tensors(seed, (4, 6))
    return report_on(dropout, x, seed, seed=seed)


@bug(
    "the state after the step is read for that before",
    kind="stale",
    backend="numpy",
    leaf="params['Wh']",
)
def recurrent_net_reading_the_next_state(broken: bool, seed: int) -> Report:
    """The recurrent weights met the old state; backpropagation through time multiplies the new."""
    x, y, *weights = arrays(seed, (4, 2), (4, 3), (2, 3), (3, 3), (3,))
    params = dict(zip(["Wx", "Wh", "b"], weights, strict=True))

    def run(params):
        states = [np.zeros(3)]
        for x_t in x:
            z = x_t @ params["Wx"] + states[-1] @ params["Wh"] + params["b"]
            states.append(np.tanh(z))
        return states

    def cost(params):
        return 0.5 * ((np.array(run(params)[1:]) - y) ** 2).sum()

    def cost_and_grads(params):
        states = run(params)
        grads = {name: np.zeros_like(value) for name, value in params.items()}
        dh = np.zeros(3)
        for t in reversed(range(4)):
            dz = (dh + states[t + 1] - y[t]) * (1 - states[t + 1] ** 2)
            grads["Wx"] += np.outer(x[t], dz)
            grads["Wh"] += np.outer(states[t + 1] if broken else states[t], dz)
            grads["b"] += dz
            dh = params["Wh"] @ dz
        return cost(params), grads

    return report_on(cost, params, grads=cost_and_grads, seed=seed)


# B65: state-spaces/mamba#919
@bug("a saved value is normalised a second time", kind="stale", backend="torch", leaf="x")
def checkpoint_normalising_twice(broken: bool, seed: int) -> Report:
    """B65: recomputation starts from the normalised tensor as if it were the raw one."""

    def rms_norm(b, weight):
        return b * b.square().mean(-1, keepdim=True).rsqrt() * weight

    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, b, weight):
            gate = rms_norm(b, weight)
            ctx.save_for_backward(x, gate if broken else b, b, weight)
            return x * gate

        @staticmethod
        def backward(ctx, grad):
            x, start, b, weight = ctx.saved_tensors
            rstd = b.square().mean(-1, keepdim=True).rsqrt()
            d = grad * x * weight
            db = rstd * (d - b * rstd**2 * (d * b).mean(-1, keepdim=True))
            return grad * rms_norm(start, weight), db, (grad * x * b * rstd).sum(0)

    def gated(x, b, weight):
        return Gate.apply(x, b, weight)

    x, b, weight = tensors(seed, (4, 3), (4, 3), (3,))
    return report_on(gated, x, b, weight, seed=seed)


# B69: NVIDIA/TransformerEngine#3437
@bug(
    "a tied weight keeps only its last gradient",
    kind="accumulation",
    backend="numpy",
    leaf="params['E']",
    cause="rows",
)
def tied_embedding_overwritten_by_the_head(broken: bool, seed: int) -> Report:
    """B69: the output layer's gradient replaces that of the embedding it shares."""
    tokens, labels = np.array([0, 3, 1]), np.array([3, 1, 2])
    e, b = arrays(seed, (4, 3), (4,))

    def cost(params):
        hidden = np.tanh(params["E"][tokens])
        p = softmax(hidden @ params["E"].T + params["b"])
        return -np.log(p[np.arange(3), labels]).mean()

    def grads(params):
        hidden = np.tanh(params["E"][tokens])
        d = (softmax(hidden @ params["E"].T + params["b"]) - np.eye(4)[labels]) / len(labels)
        grads = {"E": np.zeros_like(params["E"])}
        np.add.at(grads["E"], tokens, d @ params["E"] * (1 - hidden**2))
        of_head = d.T @ hidden
        grads["E"] = of_head if broken else grads["E"] + of_head
        return grads | {"b": d.sum(axis=0)}

    return report_on(cost, {"E": e, "b": b}, grads=grads, seed=seed)


# B70: pytorch/pytorch#183604
@bug(
    "one tensor in two places gets one half",
    kind="accumulation",
    backend="torch",
    leaf="x",
    cause="factor",
)
def product_of_a_tensor_with_itself(broken: bool, seed: int) -> Report:
    """B70: equal inputs are recognised and the second one's gradient is dropped."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            if broken and a.data_ptr() == b.data_ptr():
                return grad * b, None
            return grad * b, grad * a

    def square(x):
        return Product.apply(x, x)

    (x,) = tensors(seed, (3, 4))
    return report_on(square, x, seed=seed)


# B71: TrenTorch/TrenTorch#182
@bug(
    "a node runs before all its users have",
    kind="accumulation",
    backend="numpy",
    leaf=("params['a']", "params['b']"),
)
def tape_without_a_topological_order(broken: bool, seed: int) -> Report:
    """B71: in a diamond the shared node passes on what had arrived by its first visit."""

    class Node:
        def __init__(self, value, *parents):
            self.value, self.parents, self.grad = value, parents, 0

        def __add__(self, other):
            return Node(self.value + other.value, (self, 1), (other, 1))

        def __mul__(self, other):
            return Node(self.value * other.value, (self, other.value), (other, self.value))

        def tanh(self):
            y = np.tanh(self.value)
            return Node(y, (self, 1 - y**2))

        def order(self, seen):
            """This node and all it was made from, once each."""
            if self in seen:
                return []
            seen.add(self)
            before = [node for parent, _ in self.parents for node in parent.order(seen)]
            return [self, *before] if broken else [*before, self]

        def backward(self, cotangent):
            self.grad = cotangent
            for node in self.order(set()) if broken else reversed(self.order(set())):
                for parent, local in node.parents:
                    parent.grad = parent.grad + node.grad * local

    def graph(params):
        nodes = {name: Node(value) for name, value in params.items()}
        shared = (nodes["a"] * nodes["b"]).tanh()
        return nodes, shared + shared * nodes["a"] + nodes["c"]

    def forward(params):
        return graph(params)[1].value

    def backward(cotangent, params):
        nodes, out = graph(params)
        out.backward(cotangent)
        return {name: node.grad for name, node in nodes.items()}

    a, b, c = arrays(seed, (4,), (4,), (4,))
    return report_on(forward, {"a": a, "b": b, "c": c}, grads=backward, seed=seed)


@bug("the skip connection has no gradient", kind="accumulation", backend="jax", leaf="x")
def residual_block_without_its_skip(broken: bool, seed: int) -> Report:
    """Only the branch is differentiated; the identity beside it is not added."""

    @jax.custom_vjp
    def block(x, w):
        return x + jnp.tanh(x @ w)

    def forward(x, w):
        return block(x, w), (x, w)

    def backward(saved, g):
        x, w = saved
        dz = g * (1 - jnp.tanh(x @ w) ** 2)
        return dz @ w.T + (0 if broken else g), x.T @ dz

    block.defvjp(forward, backward)
    x, w = arrays(seed, (3, 2), (2, 2))
    return report_on(block, x, w, backend="jax", seed=seed)


# B72: tenstorrent/tt-metal#6232
@bug(
    "a repeated index counts once",
    kind="duplicates",
    backend="numpy",
    leaf="params['table']",
    cause="rows",
)
def embedding_with_repeated_tokens(broken: bool, seed: int) -> Report:
    """B72: indexed += keeps one of the contributions to a row."""
    tokens = np.array([1, 4, 1, 0, 1, 4])

    def embed(params):
        return params["table"][tokens] @ params["W"]

    def backward(cotangent, params):
        dtable = np.zeros_like(params["table"])
        if broken:
            dtable[tokens] += cotangent @ params["W"].T
        else:
            np.add.at(dtable, tokens, cotangent @ params["W"].T)
        return {"table": dtable, "W": params["table"][tokens].T @ cotangent}

    table, w = arrays(seed, (5, 3), (3, 2))
    return report_on(embed, {"table": table, "W": w}, grads=backward, seed=seed)


# B39: XunhaoLai/native-sparse-attention-triton#27
@bug(
    "query heads are dealt to the wrong key heads",
    kind="index map",
    backend="torch",
    leaf=("q", "k", "v"),
)
def grouped_attention_with_interleaved_heads(broken: bool, seed: int) -> Report:
    """B39: the backward takes head h modulo the key heads, the forward h divided by the group."""

    class GroupedAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            ctx.save_for_backward(q, k, v)
            group = len(q) // len(k)
            heads = [(q[h] @ k[h // group].T).softmax(-1) @ v[h // group] for h in range(len(q))]
            return torch.stack(heads)

        @staticmethod
        def backward(ctx, grad):
            q, k, v = ctx.saved_tensors
            dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for h in range(len(q)):
                kv = h % len(k) if broken else h // (len(q) // len(k))
                p = (q[h] @ k[kv].T).softmax(-1)
                dp = grad[h] @ v[kv].T
                ds = p * (dp - (dp * p).sum(-1, keepdim=True))
                dq[h] = ds @ k[kv]
                dk[kv] += ds.T @ q[h]
                dv[kv] += p.T @ grad[h]
            return dq, dk, dv

    def attention(q, k, v):
        return GroupedAttention.apply(q, k, v)

    q, k, v = tensors(seed, (4, 2, 2), (2, 3, 2), (2, 3, 2))
    return report_on(attention, q, k, v, seed=seed)


# B40: XunhaoLai/native-sparse-attention-triton#27
@bug(
    "one width is used for two",
    kind="index map",
    backend="torch",
    leaf=("q", "k", "v"),
    cause="columns",
)
def attention_with_values_wider_than_keys(broken: bool, seed: int) -> Report:
    """B40: tiles of v and of the cotangent are cut off at the head dimension of q and k."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            ctx.save_for_backward(q, k, v)
            return (q @ k.T).softmax(-1) @ v

        @staticmethod
        def backward(ctx, grad):
            q, k, v = ctx.saved_tensors
            width = q.shape[1] if broken else v.shape[1]
            p = (q @ k.T).softmax(-1)
            dp = grad[:, :width] @ v[:, :width].T
            dv = torch.zeros_like(v)
            dv[:, :width] = p.T @ grad[:, :width]
            ds = p * (dp - (dp * p).sum(-1, keepdim=True))
            return ds @ k, ds.T @ q, dv

    def attention(q, k, v):
        return Attention.apply(q, k, v)

    q, k, v = tensors(seed, (3, 2), (4, 2), (4, 5))
    return report_on(attention, q, k, v, seed=seed)


@bug(
    "an index within a window is taken for a global one",
    kind="index map",
    backend="numpy",
    leaf="x",
)
def max_pool_with_local_indices(broken: bool, seed: int) -> Report:
    """argmax counts from the start of its window; the backward counts from the start of x."""

    def max_pool(x):
        return x.reshape(-1, 3).max(axis=1)

    def backward(cotangent, x):
        dx = np.zeros_like(x)
        for window, local in enumerate(x.reshape(-1, 3).argmax(axis=1)):
            dx[local if broken else 3 * window + local] += cotangent[window]
        return dx

    x = np.random.default_rng(seed).permutation(12) / 4 - 1.3
    return report_on(max_pool, x, grads=backward, seed=seed)


@bug(
    "a permutation is applied instead of inverted",
    kind="index map",
    backend="numpy",
    leaf="x",
    cause="permuted",
)
def sort_sending_gradients_by_the_wrong_permutation(broken: bool, seed: int) -> Report:
    """Gathered by the order in the forward, gathered by it again in the backward."""

    def ranked(x):
        return np.sort(x) ** 2

    def backward(cotangent, x):
        order = np.argsort(x)
        d = cotangent * 2 * x[order]
        if broken:
            return d[order]
        dx = np.empty_like(x)
        dx[order] = d
        return dx

    x = np.random.default_rng(seed).permutation(12) / 4 - 1.3
    return report_on(ranked, x, grads=backward, seed=seed)


# B93: PaddlePaddle/Paddle#28622
@bug(
    "ignored labels still get a gradient",
    kind="ignored",
    backend="torch",
    leaf="logits",
    cause="unmasked",
)
def cross_entropy_pushing_on_ignored_rows(broken: bool, seed: int) -> Report:
    """B93: rows with ignore_index are left out of the loss but not of the gradient."""

    class CrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, labels):
            ctx.save_for_backward(logits, labels)
            return F.cross_entropy(logits, labels, ignore_index=-100)

        @staticmethod
        def backward(ctx, grad):
            logits, labels = ctx.saved_tensors
            valid = labels != -100
            onehot = F.one_hot(labels.clamp(min=0), logits.shape[1])
            d = (logits.softmax(-1) - onehot) / valid.sum()
            if not broken:
                d = d * valid[:, None]
            return grad * d, None

    def loss(logits, labels):
        return CrossEntropy.apply(logits, labels)

    (logits,) = tensors(seed, (5, 4))
    labels = torch.tensor([2, -100, 0, -100, 3])
    return report_on(loss, logits, labels, seed=seed)


# B93: ROCm/TransformerEngine#336
@bug(
    "the mean counts rows that were ignored",
    kind="ignored",
    backend="jax",
    leaf="x",
    cause="factor",
)
def masked_error_divided_by_all_rows(broken: bool, seed: int) -> Report:
    """B93: the forward divides by the valid rows, the backward by all of them."""
    x, target = arrays(seed, (4, 2), (4, 2))
    valid = np.array([[1.0], [0.0], [1.0], [1.0]])

    @jax.custom_vjp
    def error(x):
        return (valid * (x - target) ** 2).sum() / valid.sum()

    def backward(x, g):
        return (g * valid * 2 * (x - target) / (valid.size if broken else valid.sum()),)

    error.defvjp(lambda x: (error(x), x), backward)
    return report_on(error, x, backend="jax", seed=seed)


def as_if_packed(matrix: torch.Tensor) -> torch.Tensor:
    """What a kernel reads that takes rows to lie one after another."""
    return matrix.as_strided(matrix.shape, (matrix.shape[1], 1), matrix.storage_offset())


# B2: fla-org/flash-linear-attention#871
@bug(
    "the strides of a saved input are ignored",
    kind="layout",
    backend="torch",
    leaf="packed",
    cause="block",
)
def gate_reading_a_slice_as_if_it_were_packed(broken: bool, seed: int) -> Report:
    """B2: the gate is a slice of a wider row; the backward kernel steps by its width."""

    class Silu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return F.silu(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            x = as_if_packed(x) if broken else x
            s = torch.sigmoid(x)
            return grad * s * (1 + x * (1 - s))

    def gated(packed):
        gate, up = packed.chunk(2, dim=1)
        return Silu.apply(gate) * up

    (packed,) = tensors(seed, (4, 6))
    return report_on(gated, packed, seed=seed)


# B1: pytorch/pytorch#194719
@bug(
    "the strides of the cotangent are ignored",
    kind="layout",
    backend="torch",
    leaf="x",
    cause="rows",
)
def sine_reading_its_cotangent_as_if_it_were_packed(broken: bool, seed: int) -> Report:
    """B1: after a concatenation the rows of the incoming gradient lie twice as far apart."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return (as_if_packed(grad) if broken else grad) * x.cos()

    def features(x):
        return torch.cat([Sine.apply(x), x], dim=1)

    (x,) = tensors(seed, (4, 3))
    return report_on(features, x, seed=seed)


# B11: PaddlePaddle/Paddle#79718
@bug(
    "overlapping windows overwrite each other",
    kind="overlap",
    backend="jax",
    leaf="x",
    cause="block",
)
def frames_written_over_one_another(broken: bool, seed: int) -> Report:
    """B11: a sample that is in two frames keeps the gradient of the last."""
    starts = [0, 2, 4]

    @jax.custom_vjp
    def frames(x):
        return jnp.stack([x[start : start + 4] for start in starts])

    def backward(_, g):
        dx = jnp.zeros(8, g.dtype)
        for start, frame in zip(starts, g, strict=True):
            window = dx.at[start : start + 4]
            dx = window.set(frame) if broken else window.add(frame)
        return (dx,)

    frames.defvjp(lambda x: (frames(x), None), backward)
    (x,) = arrays(seed, (8,))
    return report_on(frames, x, backend="jax", seed=seed)


@bug(
    "values are changed where autograd does not look",
    kind="in-place",
    backend="torch",
    leaf=("project.weight", "project.bias"),
)
def module_masking_under_no_grad(broken: bool, seed: int) -> Report:
    """Padding is zeroed in place under no_grad, so the gradient still flows through it."""
    keep = torch.tensor([[1.0], [1.0], [0.0], [1.0], [0.0]], dtype=torch.float64)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(3, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            h = self.project(x)
            if broken:
                with torch.no_grad():
                    h.mul_(keep)
            else:
                h = h * keep
            return self.head(h)

    (x,) = tensors(seed, (5, 3))
    module = filled(Encoder(), seed + 1)
    return report_on(module, x, loss=lambda y: y.square().mean(), seed=seed)


# B17: linkedin/Liger-Kernel#1251
@bug(
    "a saved tensor of another operation is overwritten", kind="in-place", backend="torch", leaf="x"
)
def loss_writing_its_gradient_into_its_input(broken: bool, seed: int) -> Report:
    """B17: the loss saves memory by keeping its gradient where tanh keeps its output."""

    class SquaredError(torch.autograd.Function):
        @staticmethod
        def forward(ctx, prediction, target):
            residual = prediction - target
            gradient = prediction.data if broken else torch.empty_like(prediction)
            gradient.copy_(residual)
            ctx.save_for_backward(gradient)
            return 0.5 * residual.square().sum()

        @staticmethod
        def backward(ctx, grad):
            (gradient,) = ctx.saved_tensors
            return grad * gradient, None

    (x, target) = tensors(seed, (4, 3), (4, 3))

    def loss(x):
        return SquaredError.apply(torch.tanh(x), target)

    return report_on(loss, x, seed=seed)


# B20: unslothai/unsloth#4550
@bug(
    "one gradient's buffer is needed for the next", kind="in-place", backend="torch", leaf="weight"
)
def weight_gradient_after_its_cotangent_is_gone(broken: bool, seed: int) -> Report:
    """B20: dX is computed in the memory of dY, and dW from dY afterwards."""

    class ScaledTanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            t = torch.tanh(x)
            ctx.save_for_backward(t, weight)
            return t * weight

        @staticmethod
        def backward(ctx, grad):
            t, weight = ctx.saved_tensors
            dy = grad.clone()
            dx = dy if broken else torch.empty_like(dy)
            torch.mul(dy, weight * (1 - t**2), out=dx)
            return dx, (dy * t).sum(0)

    def scaled_tanh(x, weight):
        return ScaledTanh.apply(x, weight)

    x, weight = tensors(seed, (5, 3), (3,))
    return report_on(scaled_tanh, x, weight, seed=seed)


# B19: NVIDIA/apex#1430
@bug(
    "a gradient with two readers is masked for both",
    kind="in-place",
    backend="numpy",
    leaf="params['x']",
    cause="masked",
)
def residual_branch_masking_the_shared_gradient(broken: bool, seed: int) -> Report:
    """B19: the branch applies its mask in place to the gradient that the skip also needs."""

    def block(params):
        return 0.5 * (np.maximum(params["x"] * params["w"], 0) + params["x"])

    def backward(cotangent, params):
        x, w = params["x"], params["w"]
        dout = 0.5 * cotangent
        dz = dout if broken else dout.copy()
        dz[x * w < 0] = 0
        return {"x": dz * w + dout, "w": (dz * x).sum(axis=0)}

    x, w = (away_from_zero(array, 0.3) for array in arrays(seed, (6, 3), (3,)))
    return report_on(block, {"x": x, "w": w}, grads=backward, seed=seed)


@bug(
    "the gradient buffer has the dtype of the counts",
    kind="dtype",
    backend="numpy",
    leaf="params['w']",
)
def poisson_regression_with_integer_residuals(broken: bool, seed: int) -> Report:
    """zeros_like of an integer array cuts off what is behind the point."""
    x, w = arrays(seed, (6, 4), (4,))
    counts = np.array([0, 3, 1, 2, 0, 4])

    def cost(params):
        eta = x @ params["w"] + params["b"]
        return (np.exp(eta) - counts * eta).mean()

    def grads(params):
        rate = np.exp(x @ params["w"] + params["b"])
        db = (rate - counts).mean()
        residual = np.zeros_like(counts if broken else rate)
        for i, count in enumerate(counts):
            residual[i] = rate[i] - count
        return {"w": x.T @ residual / len(counts), "b": db}

    params = {"w": 0.5 * w, "b": np.array(0.3)}
    return report_on(cost, params, grads=grads, seed=seed)


# B73: jax-ml/jax#40140
@bug(
    "statistics are recomputed in float32",
    kind="dtype",
    backend="torch",
    leaf=("x", "weight"),
    cause="precision",
)
def norm_recomputing_its_variance_in_float32(broken: bool, seed: int) -> Report:
    """B73: rounding comes before a subtraction that cancels, E[x^2] - E[x]^2."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
            return (x - mean) * variance.rsqrt() * weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            read = x.float() if broken else x
            mean = read.mean(-1, keepdim=True)
            variance = read.square().mean(-1, keepdim=True) - mean.square()
            rstd = variance.to(x.dtype).rsqrt()
            x_hat = (x - x.mean(-1, keepdim=True)) * rstd
            d = grad * weight
            dx = d - d.mean(-1, keepdim=True) - x_hat * (d * x_hat).mean(-1, keepdim=True)
            return rstd * dx, (grad * x_hat).sum(0)

    def norm(x, weight):
        return Norm.apply(x, weight)

    x, weight = tensors(seed, (4, 6), (6,))
    return report_on(norm, x + 30, weight, seed=seed)


# B76: roboflow/rf-detr#1076
@bug("activations are kept in bfloat16", kind="dtype", backend="jax", leaf="w", cause="precision")
def matmul_saving_rounded_activations(broken: bool, seed: int) -> Report:
    """B76: the weight gradient has the precision of what was saved, not of the weight."""

    @jax.custom_vjp
    def matmul(x, w):
        return x @ w

    def forward(x, w):
        return matmul(x, w), (x.astype(jnp.bfloat16) if broken else x, w)

    def backward(saved, g):
        x, w = saved
        return g @ w.T, x.T.astype(g.dtype) @ g

    matmul.defvjp(forward, backward)
    x, w = arrays(seed, (3, 2), (2, 2))
    return report_on(matmul, x, w, backend="jax", seed=seed)


# B34: pytorch/FBGEMM#5754
@bug(
    "rows past the end are never written",
    kind="unwritten",
    backend="torch",
    leaf="x",
    cause="unmasked",
)
def truncated_rows_holding_an_earlier_gradient(broken: bool, seed: int) -> Report:
    """B34: the buffer is not cleared and rows beyond max_length keep what was there before."""
    x, left_over = tensors(seed, (6, 3), (6, 3))

    class Truncate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, max_length):
            ctx.save_for_backward(x)
            return x[:max_length].square()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            dx = left_over.clone() if broken else torch.zeros_like(x)
            dx[: len(grad)] = 2 * x[: len(grad)] * grad
            return dx, None

    def truncate(x, max_length):
        return Truncate.apply(x, max_length)

    return report_on(truncate, x, 4, seed=seed)


# B38: karpathy/llm.c#342
@bug("gradients are not reset between steps", kind="unwritten", backend="numpy", leaf=("W", "b"))
def model_adding_to_the_gradients_of_the_last_step(broken: bool, seed: int) -> Report:
    """B38: the first step is right, every later one adds to it."""

    class Model:
        def __init__(self, w, b):
            self.params = {"W": w, "b": b}
            self.gradients = {"W": np.zeros_like(w), "b": np.zeros_like(b)}

        def loss(self):
            return 0.5 * ((x @ self.params["W"] + self.params["b"] - y) ** 2).mean()

        def grads(self):
            if not broken:
                for gradient in self.gradients.values():
                    gradient[...] = 0
            d = (x @ self.params["W"] + self.params["b"] - y) / y.size
            self.gradients["W"] += x.T @ d
            self.gradients["b"] += d.sum(axis=0)
            return self.gradients

    x, y, *params = arrays(seed, (5, 3), (5, 2), (3, 2), (2,))
    net = Model(*params)
    for name, gradient in net.grads().items():
        net.params[name] -= 0.1 * gradient
    return report_on(net.loss, wrt=net.params, grads=net.grads, seed=seed)


@bug(
    "a rule declares one argument constant",
    kind="transform",
    backend="jax",
    leaf="decay",
    cause="zero",
)
def discount_with_no_rule_for_its_rate(broken: bool, seed: int) -> Report:
    """None in defjvps means a zero tangent, not a derivative yet to be written."""

    @jax.custom_jvp
    def discount(x, decay):
        return x * jnp.exp(-decay)

    discount.defjvps(
        lambda dx, out, x, decay: dx * jnp.exp(-decay),
        None if broken else lambda ddecay, out, x, decay: -out * ddecay,
    )
    x, decay = arrays(seed, (4,), (4,))
    return report_on(discount, x, np.abs(decay), backend="jax", seed=seed)


@bug("residuals are unpacked in another order", kind="transform", backend="jax", leaf=("a", "b"))
def quotient_with_its_residuals_exchanged(broken: bool, seed: int) -> Report:
    """The forward saves (a, b), the backward reads (b, a); equal shapes let it pass."""

    @jax.custom_vjp
    def quotient(a, b):
        return a / b

    def backward(saved, g):
        b, a = saved if broken else reversed(saved)
        return g / b, -g * a / b**2

    quotient.defvjp(lambda a, b: (quotient(a, b), (a, b)), backward)
    a, b = (away_from_zero(array, 0.5) for array in arrays(seed, (4,), (4,)))
    return report_on(quotient, a, b, backend="jax", seed=seed)


@bug(
    "a hook from training rescales a gradient",
    kind="transform",
    backend="torch",
    leaf="head.weight",
    cause="factor",
)
def head_with_a_hook_left_behind(broken: bool, seed: int) -> Report:
    """A slower learning rate for one layer was made with a hook, and stayed."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 4)
            self.head = nn.Linear(4, 2)
            if broken:
                self.head.weight.register_hook(lambda grad: 0.1 * grad)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x)))

    x, target = tensors(seed, (5, 3), (5, 2))
    module = filled(Classifier(), seed + 1)
    return report_on(lambda: F.mse_loss(module(x), target), wrt=module, seed=seed)


BUGS: tuple[Bug, ...] = tuple(_rows)
