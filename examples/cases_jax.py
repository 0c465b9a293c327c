"""Functions with jax.custom_vjp and custom_jvp rules, for cases.toml; some rules are wrong."""

import jax
import jax.numpy as jnp


def with_rule(forward, backward):
    """A function whose backward pass is ``backward(arguments, cotangent)``."""
    fn = jax.custom_vjp(forward)
    fn.defvjp(lambda *args: (forward(*args), args), backward)
    return fn


def _swish(x):
    return x * jax.nn.sigmoid(x)


def _swish_slope(x):
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


swish = with_rule(_swish, lambda args, u: (u * _swish_slope(*args),))
swish_twice = with_rule(_swish, lambda args, u: (2 * u * _swish_slope(*args),))
softplus = with_rule(lambda x: jnp.logaddexp(x, 0.0), lambda args, u: (u * jax.nn.sigmoid(*args),))
softplus_without_cotangent = with_rule(
    lambda x: jnp.logaddexp(x, 0.0), lambda args, u: (jax.nn.sigmoid(*args),)
)


def _softmax(x):
    return jax.nn.softmax(x, -1)


def _softmax_back(args, u):
    p = _softmax(*args)
    return (p * (u - (u * p).sum(-1, keepdims=True)),)


softmax = with_rule(_softmax, _softmax_back)
softmax_diagonal = with_rule(
    _softmax, lambda args, u: (u * _softmax(*args) * (1 - _softmax(*args)),)
)


def _matmul(x, w):
    return x @ w


log_sum_exp = with_rule(
    lambda x: jax.nn.logsumexp(x, -1), lambda args, u: (u[..., None] * jax.nn.softmax(*args),)
)
matmul = with_rule(_matmul, lambda args, u: (u @ args[1].T, args[0].T @ u))
matmul_scaled = with_rule(_matmul, lambda args, u: (u @ args[1].T, 1.01 * args[0].T @ u))


def _rms_norm(x, weight):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def _rms_norm_back(args, u):
    x, weight = args
    rstd = jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    normed, scaled = x * rstd, u * weight
    dx = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdims=True))
    return dx, (u * normed).sum(0)


rms_norm = with_rule(_rms_norm, _rms_norm_back)
norm = with_rule(
    lambda x: jnp.sqrt((x**2).sum(-1)),
    lambda args, u: (u[..., None] * args[0] / jnp.sqrt((args[0] ** 2).sum(-1))[..., None],),
)


@jax.custom_jvp
def tanh(x):
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_tangent(primals, tangents):
    out = tanh(*primals)
    return out, (1 - out**2) * tangents[0]


@jax.custom_jvp
def sine(x):
    return jnp.sin(x)


@sine.defjvp
def _sine_tangent(primals, tangents):
    return jnp.sin(*primals), jnp.sin(*primals) * tangents[0]


def network(params, x):
    hidden = swish(x @ params["W1"] + params["b1"])
    return ((hidden @ params["W2"]) ** 2).mean()
