"""Functions with gradients by hand, for cases.toml. Each ``*_grad`` is checked; some are wrong."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swish(x, beta=1.0):
    return x * sigmoid(beta * x)


def swish_grad(u, x, beta=1.0):
    s = sigmoid(beta * x)
    return u * s * (1 + beta * x * (1 - s))


def swish_grad_without_its_second_term(u, x, beta=1.0):
    return u * sigmoid(beta * x)


def softplus(x):
    return np.logaddexp(0, x)


def softplus_grad(u, x):
    return u * sigmoid(x)


def log_cosh(x):
    return np.logaddexp(x, -x).sum()


def log_cosh_grad(x):
    return np.tanh(x)


def log_cosh_grad_with_its_sign_flipped(x):
    return -np.tanh(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_grad(u, x):
    p = softmax(x)
    return p * (u - (u * p).sum(-1, keepdims=True))


def softmax_grad_of_its_diagonal_alone(u, x):
    p = softmax(x)
    return u * p * (1 - p)


def cross_entropy(logits, labels):
    rows = np.arange(len(labels))
    return -np.log(softmax(logits)[rows, labels]).mean()


def cross_entropy_grad(logits, labels):
    p = softmax(logits)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)


def cross_entropy_grad_of_the_sum(logits, labels):
    return cross_entropy_grad(logits, labels) * len(labels)


def squared_error(w, x, y):
    return 0.5 * ((x @ w - y) ** 2).sum()


def squared_error_grad(w, x, y):
    return x.T @ (x @ w - y)


def layer_norm(x, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def layer_norm_grad(u, x, eps=1e-5):
    y = layer_norm(x, eps)
    size = np.sqrt(x.var(-1, keepdims=True) + eps)
    return (u - u.mean(-1, keepdims=True) - y * (u * y).mean(-1, keepdims=True)) / size


def layer_norm_grad_with_fixed_statistics(u, x, eps=1e-5):
    return u / np.sqrt(x.var(-1, keepdims=True) + eps)


def network(params, x, decay):
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    output = hidden @ params["W2"] + params["b2"]
    norms = sum((params[name] ** 2).sum() for name in ("W1", "W2"))
    return (output**2).mean() + 0.5 * decay * norms


def network_grad(params, x, decay):
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    output = hidden @ params["W2"] + params["b2"]
    d_output = 2 * output / output.size
    d_hidden = d_output @ params["W2"].T * (1 - hidden**2)
    return {
        "dW1": x.T @ d_hidden + decay * params["W1"],
        "db1": d_hidden.sum(0),
        "dW2": hidden.T @ d_output + decay * params["W2"],
        "db2": d_output.sum(0),
    }


def network_grad_without_decay(params, x, decay):
    return network_grad(params, x, 0.0)


def entropy(p):
    return (p * np.log(p)).sum()


def entropy_grad(p):
    return np.log(p) + 1


def phase(z):
    return (z * z.conj()).real.sum()


def phase_grad(z):
    return 2 * z
