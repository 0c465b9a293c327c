"""Bad calls, beyond the table of ``test_refusals.py``: each is refused in one sentence that names
the function first, whatever ``raise_exception`` says, and before anything is perturbed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fingerprint import fingerprint
from torch import nn

from xgradcheck import ALL, InvalidCase, check


@dataclass(frozen=True)
class Bad:
    """A call that cannot be checked, and the words that the refusal must contain."""

    title: str
    fn: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    words: tuple[str, ...]
    name: str = field(default="the function")


ROWS: list[Bad] = []


def bad(title: str, fn: Any, *args: Any, words: tuple[str, ...], **options: Any) -> None:
    name = fn.__name__ if isinstance(fn, FunctionType) else type(fn).__name__
    name = getattr(getattr(fn, "__self__", None), "__name__", name)
    name = "the function" if name == "<lambda>" else name
    ROWS.append(Bad(title, fn, args, options, words, name))


def squares(w):
    return (w**2).sum()


def dot(a, b):
    return (a * b).sum()


def cost(params):
    return (params["W"] ** 2).sum() + params["b"] ** 3


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b, g * a


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, a, b):
        return a * b * self.scale


def w():
    return np.array([1.0, -2.0, 3.0])


def t(*shape):
    return torch.arange(1.0, 1.0 + np.prod(shape), dtype=torch.float64).reshape(shape)


W, T = w(), t(3)
PARAMS = {"W": w(), "b": np.array(0.5)}
GRADS = {"dW": 2 * w(), "db": np.array(0.75)}
BACKWARD = {"grads": lambda w: 2 * w}
JAX = {"backend": "jax"}

# No leaf to check.
NO_LEAF = ("floating",)
bad("integers in NumPy", squares, np.arange(3), words=NO_LEAF, **BACKWARD)
bad("integers in JAX", squares, jnp.arange(3), words=NO_LEAF)
bad("no number at all", squares, None, words=("NoneType", "torch or jax"))
bad("argument 0 without a float", dot, np.arange(3), W, grads=W, words=("argument 0", "wrt="))
bad("an object without arrays", lambda: 1.0, wrt=object(), grads={}, words=("wrt",))
bad("a module without parameters", nn.Tanh(), torch.arange(3), words=NO_LEAF)
bad("text for wrt of a closure", lambda: squares(T), wrt="w", words=("wrt",))
bad("empty leaves in NumPy", squares, np.zeros((0, 3)), words=("empty", "w"), **BACKWARD)
bad("empty leaves in JAX", squares, np.zeros(0), words=("empty", "w"), **JAX)

# Values that cannot be differenced.
bad("NaN in a module", nn.Linear(1, 1).double().requires_grad_(True), t(1), words=("is nan",))
with torch.no_grad():
    ROWS[-1].fn.weight.fill_(float("nan"))
bad("inf in JAX", squares, np.array([1.0, np.inf]), words=("w[1] is inf", "finite"), **JAX)
bad("-inf in NumPy, 0-d", squares, np.array(-np.inf), words=("w is -inf",), **BACKWARD)
bad("NaN value in torch", lambda x: (-x).log().sum(), T, words=("nan", "finite"))
bad("inf value in JAX", lambda x: jnp.sum(x) / 0.0, W, words=("inf", "finite"), **JAX)
bad("NaN in one of two outputs", lambda x: (x, (-x).log()), T, words=("nan", "finite"))

# grads.
PAIR = {"grads": {"W": 2 * w()}}
bad("missing key", cost, PARAMS, grads=PAIR["grads"], words=("lacks", "params['b']", "params['W']"))
bad("extra key", cost, PARAMS, grads={**GRADS, "dV": w()}, words=("'dV'", "params['W']"))
bad("wrong shape", cost, PARAMS, grads={**GRADS, "db": w()}, words=("(3,)", "()", "params['b']"))
bad("missing key, callable", cost, PARAMS, grads=lambda p: {"W": 2 * p["W"]}, words=("lacks",))
bad("wrong shape, callable", squares, W, grads=lambda w: (2 * w)[:, None], words=("(3, 1)",))
bad("text", squares, W, grads="2w", words=("gradient of w", "str"))
bad("nothing, where a tree is meant", cost, PARAMS, grads=[], words=("lacks",))
bad("a tree with an array output in torch", lambda x: x**2, T, grads=2 * T, words=("3 elements",))
bad("a tree with an array output in JAX", lambda x: x**2, W, grads=2 * W, words=("3 el",), **JAX)
bad("a missing argument", dot, W, W, wrt=(0, 1), grads=(W,), words=("lacks", "'b'", "'a'"))

# wrt.
bad("a number too large", dot, T, T.clone(), wrt=2, words=("wrt=2", "a, b"))
bad("a number too small", dot, T, T.clone(), wrt=-3, words=("wrt=-3", "a, b"))
bad("a glob", Pair(), T, T, wrt="conv*", words=("'conv*'", "scale"))
bad("one of a list", dot, T, T.clone(), wrt=["a", "z"], words=("'z'", "a, b"))
bad("an argument of integers", dot, T, torch.arange(3), wrt=1, words=("wrt=1", "a"))
bad("in JAX", dot, W, W, wrt="c", words=("'c'", "a, b"), **JAX)
bad("a number in JAX", dot, W, W, wrt=5, words=("wrt=5", "a, b"), **JAX)
bad("a number, keywords only, in JAX", lambda *, w: squares(w), kwargs={"w": W}, wrt=0, **JAX)(
    None
) if False else bad(
    "a number, keywords only, in JAX",
    lambda *, w: squares(w),
    kwargs={"w": W},
    wrt=0,
    words=("wrt=0", "w"),
    **JAX,
)
bad("an empty tuple", squares, T, wrt=(), words=("wrt=()", "w"))
bad("an empty list in NumPy", squares, W, wrt=[], words=("wrt=[]", "w"), **BACKWARD)
bad("an empty tuple in JAX", squares, W, wrt=(), words=("wrt=()", "w"), **JAX)
bad("True", squares, T, wrt=True, words=("wrt=True",))
bad("a tensor beside arguments", squares, t(2, 2), wrt=[t(2, 2)], words=("wrt", "without argum"))
bad("ALL in a closure", lambda: squares(T), wrt=ALL, words=("wrt",))

# dtypes.
CONVERT = ("float64", "below float64")
bad("float32 in NumPy", squares, W.astype(np.float32), words=("w is float32", *CONVERT), **BACKWARD)
bad("float32 in JAX", squares, jnp.ones(3, jnp.float32), words=("w is float32", *CONVERT))
bad("bfloat16 in JAX", squares, jnp.ones(3, jnp.bfloat16), words=("w is bfloat16", *CONVERT))
bad("float16 in JAX", squares, np.ones(3, np.float16), words=("w is float16", *CONVERT), **JAX)
bad("float16 in torch", squares, T.half(), words=("w is float16", ".double()"))
bad("float32 in a module", nn.Linear(3, 1), T, words=("weight is float32", "model.double()"))
bad("float32 in a closure", lambda: squares(T), wrt={"v": T.float()}, words=("v is float32",))
bad("float32 in kwargs", dot, T, kwargs={"b": T.float()}, words=("b is float32",))
bad("complex64 in JAX", squares, np.ones(3, np.complex64), words=("complex64", "complex"), **JAX)
bad("complex in NumPy", squares, W + 1j, words=("w is complex128",), **BACKWARD)
bad("float32 output in JAX", lambda x: jnp.float32(x).sum(), W, words=("output is float32",), **JAX)
bad("float32 output in NumPy", lambda w: np.float32(w.sum()), W, grads=W, words=("output is fl",))
bad("float32 output inside", lambda x: {"y": x, "z": x.float()}, T, words=("output['z'] is fl",))
bad("complex output", lambda x: x * 1j, T, words=("output is complex128",))

# A tuple where arguments are meant.
INPUTS = ("write check(fn, *inputs)",)
bad("a tuple for two in JAX", dot, (jnp.ones(3), jnp.ones(3)), words=INPUTS)
bad("a tuple for two in NumPy", dot, (W, W), grads=(W, W), words=INPUTS)
bad("a tuple for Function.apply", Times.apply, (T, T.clone()), words=INPUTS)
bad("a tuple for a module", Pair(), (T, T.clone()), words=INPUTS)

# Options.
bad("rtol infinite", squares, T, rtol=float("inf"), words=("rtol=inf",))
bad("rtol text", squares, T, rtol="tight", words=("rtol='tight'",))
bad("atol negative", squares, T, atol=-1e-9, words=("atol=-1e-09",))
bad("atol None", squares, T, atol=None, words=("atol=None",))
bad("seed fractional", squares, T, seed=1.5, words=("seed=1.5", "integer"))
bad("seed text", squares, T, seed="lucky", words=("seed='lucky'",))
bad("seed None", squares, T, seed=None, words=("seed=None",))
bad("coverage projection", squares, T, coverage="projection", words=("'projection'", "'auto'"))
bad("method complex-step", squares, T, method="complex-step", words=("'complex-step'", "'auto'"))
for eps in (-1e-6, float("nan"), float("inf"), "small", {"w": "small"}, {"w": None}, True):
    bad(f"eps={eps}", squares, T, eps=eps, words=("eps",))
bad("eps dict empty", squares, T, eps={}, words=("eps lacks 'w'",))

# What the function returns.
RETURNED = ("the function returned", "let it return its value")
for label, point, options in (("NumPy", W, BACKWARD), ("torch", T, {}), ("JAX", W, JAX)):
    bad(f"None in {label}", lambda w: None, point, words=RETURNED, **options)
    bad(f"int in {label}", lambda w: 3, point, words=(*RETURNED, "int"), **options)
    bad(f"str in {label}", lambda w: "3", point, words=(*RETURNED, "str"), **options)
    bad(f"an empty list in {label}", lambda w: [], point, words=RETURNED, **options)
bad("a float in torch", lambda x: x.sum().item(), T, words=(*RETURNED, "float"))
bad("integers in torch", lambda x: x.argmax(), T, words=RETURNED)

# Shapes of memory, and of graphs.
bad("expanded in a closure", lambda: squares(T), wrt={"v": t(1).expand(3)}, words=("v is expanded",))
bad("unfolded in a closure", lambda: squares(T), wrt=[t(4).unfold(0, 3, 1)], words=("expanded",))
bad("sparse", squares, t(2, 2).to_sparse(), words=("sparse", "to_dense()"))
bad("a lazy module", nn.LazyLinear(2).double(), t(2, 2), words=("not initialised", "'weight'"))
bad("one array under two names", lambda: squares(W), wrt={"a": W, "b": W}, grads={}, words=())
bad("a read-only array in a tuple", lambda: 0.0, wrt=(np.broadcast_to(1.0, 3),), grads=(W,), words=("wrt[0]",))
bad("a closure without wrt", lambda: squares(T), words=("got nothing",))
bad("a JAX closure", lambda: jnp.ones(3).sum(), wrt=[jnp.ones(3)], words=("pass the parameters",))
bad("a Python list of floats", squares, [1.0, 2.0], words=("got list", "arrays"))
bad("torch with NumPy's name", squares, T, backend="pytorch", words=("'pytorch'", "'torch'"))
