"""What cannot be checked is refused early, by name, in one sentence that says what to do."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from xgradcheck import InvalidCase, XGradCheckError, audit, check

W = np.array([1.0, 2.0, 3.0])
T = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def squares(w: Any) -> Any:
    return (w**2).sum()


def two(a: Any, b: Any) -> Any:
    return (a * b).sum()


def cost(p: dict[str, Any]) -> Any:
    return (p["a"] ** 2).sum() + p["b"] ** 2


P = {"a": W, "b": np.array(2.0)}
G = {"da": 2 * W, "db": np.array(4.0)}


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return a * b


REFUSALS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no floating leaf": (lambda: check(squares, torch.arange(3)), ["no floating"]),
    "NaN in an argument": (
        lambda: check(squares, np.array([1.0, np.nan]), grads=2 * W[:2]),
        ["w[1] is nan", "finite"],
    ),
    "inf in a tensor": (lambda: check(squares, T / 0), ["w[0] is inf"]),
    "NaN in the value": (
        lambda: check(lambda w: np.log(-w).sum(), W, grads=1 / W),
        ["returns nan", "finite"],
    ),
    "-inf among several values": (
        lambda: check(lambda t: torch.log(t - 2.0), torch.tensor([3.0, 2.0, 4.0])),
        ["returns -inf in output[1]", "finite"],
    ),
    "a missing key": (
        lambda: check(cost, P, grads={"da": 2 * W}),
        ["lacks", "p['b']", "p['a']"],
    ),
    "an extra key": (
        lambda: check(cost, P, grads={**G, "dc": W}),
        ["'dc'", "no parameter", "p['a']"],
    ),
    "a wrong shape": (
        lambda: check(cost, P, grads={**G, "da": W[:2]}),
        ["(2,)", "(3,)", "p['a']"],
    ),
    "a tree for an array output": (
        lambda: check(lambda w: w**2, W, grads=2 * W),
        ["3 elements", "scalar", "grads(cotangent"],
    ),
    "wrt that matches nothing": (
        lambda: check(two, T, T.clone(), wrt="c"),
        ["wrt='c'", "the leaves are a, b"],
    ),
    "wrt that is senseless": (lambda: check(squares, T, wrt=1.5), ["wrt=1.5"]),
    "a backend there is none of": (
        lambda: check(squares, T, backend="mxnet"),
        ["'mxnet'", "'torch'"],
    ),
    "float8": (
        lambda: check(squares, T.to(torch.float8_e5m2)),
        [
            "w is float8_e5m2",
            "convert",
            "float64, bfloat16, float16, float32, complex64, complex128",
        ],
    ),
    "longdouble in NumPy": (
        lambda: check(squares, W.astype(np.longdouble), grads=2 * W),
        ["longdouble" if np.dtype(np.longdouble).name == "longdouble" else "float", "astype"],
    ),
    "a complex gradient": (lambda: check(squares, W, grads=2 * W + 1j), ["complex"]),
    "an empty output": (lambda: check(lambda x: x[:0], T), ["output is empty"]),
    "a tuple of inputs": (lambda: check(two, (T, T)), ["write check(fn, *inputs)"]),
    "a tuple of inputs of a Function": (
        lambda: check(Product.apply, (T, T)),
        ["write check(fn, *inputs)"],
    ),
    "a tuple of inputs of a module": (
        lambda: check(torch.nn.Bilinear(3, 3, 1).double(), (T, T)),
        ["write check(fn, *inputs)"],
    ),
    "coverage": (lambda: check(squares, T, coverage="full"), ["coverage='full'", "'sweep'"]),
    "steps for directions": (
        lambda: check(squares, T, coverage="rows", eps=1e-6),
        ["coverage='rows'", "eps", "'sweep'"],
    ),
    "a budget of words": (lambda: check(squares, T, budget="lots"), ["budget='lots'", "'2s'"]),
    "a budget of nothing": (lambda: check(squares, T, budget=0), ["budget=0", "500"]),
    "method": (lambda: check(squares, T, method="forward"), ["method='forward'", "'central'"]),
    "eps of zero": (lambda: check(squares, T, eps=0.0), ["eps=0.0", "positive"]),
    "eps of text": (lambda: check(squares, T, eps="auto"), ["eps='auto'"]),
    "eps without a leaf": (lambda: check(two, T, T.clone(), eps={"a": 1e-6}), ["lacks 'b'"]),
    "eps for no leaf": (lambda: check(squares, T, eps={"z": 1e-6}), ["'z'", "w"]),
    "rtol": (lambda: check(squares, T, rtol=-1.0), ["rtol=-1.0"]),
    "atol": (lambda: check(squares, T, atol=float("nan")), ["atol=nan"]),
    "seed": (lambda: check(squares, T, seed=-1), ["seed=-1"]),
    "loss that is no function": (lambda: check(squares, T, loss=3), ["loss=3"]),
    "NumPy without grads": (lambda: check(squares, W), ["grads=", "backend='jax'"]),
    "lists": (lambda: check(squares, [1, 2]), ["got list"]),
    "a function that returns nothing": (lambda: check(lambda x: None, T), ["returned"]),
    "a function that returns text": (lambda: check(lambda x: "x", T), ["str", "no floating"]),
    "a closure without wrt": (lambda: check(lambda: squares(T)), ["wrt="]),
    "empty leaves": (lambda: check(squares, T[:0]), ["empty", "w"]),
    "no dependence": (
        lambda: check(lambda x: torch.ones((), dtype=torch.float64) * 3, T),
        ["does not depend on x"],
    ),
    "no arguments": (
        lambda: check(lambda: float((W**2).sum()), grads=2 * W, backend="numpy"),
        ["no arguments", "wrt="],
    ),
    "whole numbers": (
        lambda: check(squares, np.arange(3), grads=2 * W),
        ["argument 0 is no floating array (int64)", ".astype(np.float64)"],
    ),
    "a first argument of whole numbers": (
        lambda: check(two, np.arange(3), W, grads=2 * W),
        ["argument 0 is no floating array (int64)", "wrt=", "floating ones are b"],
    ),
    "keywords alone": (
        lambda: check(squares, kwargs={"w": W}, grads=2 * W),
        ["argument 0", "there is none", "wrt=", "w"],
    ),
    "gradients of two arguments where one is checked": (
        lambda: check(two, W, W + 1, grads=lambda a, b: (b, a)),
        ["the gradient of a is a tuple of 2", "wrt=(0, 1, ...)"],
    ),
    "wrt of nothing": (lambda: check(squares, T, wrt=[]), ["wrt=[] chooses nothing"]),
    "a number in a list that is made for the call": (
        lambda: check(lambda: float((W * 0.3).sum()), wrt=[W, 0.3], grads=[0.3 * W / W, W.sum()]),
        ["wrt[1] moves nothing", "the list that holds it"],
    ),
    "a copy of what the function reads": (
        lambda: check(lambda: squares(W), wrt={"W": W.copy()}, grads={"W": 2 * W}),
        ["W", "moves nothing", "the dict that holds it"],
    ),
    "modes": (lambda: check(squares, T, modes=None), ["modes=None", "'forward'"]),
    "a reference that is none": (lambda: check(squares, T, reference=3), ["reference=3"]),
    "factors that are no dict": (
        lambda: check(squares, T, reference=squares, factors=3),
        ["factors=3", "dict"],
    ),
    "a factor below zero": (
        lambda: check(squares, T, reference=squares, factors={"norm": -1}),
        ["norm=-1", "larger than 0"],
    ),
    "shapes": (lambda: audit(squares, T, shapes=3), ["shapes=3", "dict", "function"]),
    "no function": (lambda: check(3, T), ["int", "function"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused_in_one_sentence_that_names_it(case: str) -> None:
    call, words = REFUSALS[case]
    with pytest.raises(InvalidCase) as refusal:
        call()
    text = str(refusal.value)
    assert all(word in text for word in words), text
    assert "\n" not in text and text.endswith(".") and not text.endswith("..")
    assert isinstance(refusal.value, XGradCheckError) and isinstance(refusal.value, ValueError)


def test_a_refusal_is_raised_whatever_raise_exception_says() -> None:
    with pytest.raises(InvalidCase):
        check(squares, T.to(torch.float8_e5m2), raise_exception=False)


def test_the_functions_name_comes_first() -> None:
    with pytest.raises(InvalidCase, match=r"^squares: w is float8_e5m2"):
        check(squares, T.to(torch.float8_e5m2))
    with pytest.raises(InvalidCase, match=r"^my case: "):
        check(squares, T.to(torch.float8_e5m2), name="my case")


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "xgradcheck.backends.jax", raising=False)
    with pytest.raises(InvalidCase, match="pip install jax"):
        check(squares, W, backend="jax")


def test_two_frameworks_at_once_are_refused() -> None:
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(InvalidCase, match="torch and jax"):
        check(two, T, jnp.ones(3))
    assert check(squares, T, backend="torch")


def test_a_jax_closure_is_refused() -> None:
    pytest.importorskip("jax")
    with pytest.raises(InvalidCase, match="pass the parameters as arguments"):
        check(lambda: 1.0, wrt=[W], backend="jax")


@pytest.mark.parametrize(
    "options",
    [{"grads": {"da": 2 * W}}, {"grads": G, "eps": -1.0}, {"grads": {**G, "da": W[:1]}}],
    ids=["missing key", "eps", "shape"],
)
def test_nothing_is_perturbed_before_a_refusal(options: dict[str, Any]) -> None:
    seen = []

    def watched(p: dict[str, Any]) -> Any:
        seen.append({key: value.tobytes() for key, value in p.items()})
        return cost(p)

    with pytest.raises(InvalidCase):
        check(watched, P, **options)
    assert all(point == {key: value.tobytes() for key, value in P.items()} for point in seen)


def test_the_users_own_exception_passes_unchanged_with_the_case_as_a_note() -> None:
    raised = KeyError("mine")

    def breaks(w: Any) -> Any:
        raise raised

    with pytest.raises(KeyError) as caught:
        check(breaks, T)
    assert caught.value is raised
    assert "breaks" in caught.value.__notes__[0]


def test_a_masked_array_is_refused_by_name():
    hidden = np.ma.masked_array([0.3, -1.2, 0.7], mask=[0, 1, 0])
    for given in ({}, {"wrt": {"h": hidden}}):
        args = () if given else (hidden,)
        with pytest.raises(InvalidCase, match="is a masked array: pass its data"):
            check(lambda *_: np.sin(hidden).sum(), *args, grads=np.cos(hidden.data), **given)


def test_inputs_in_a_tuple_as_gradcheck_takes_them_are_told_how_to_be_passed() -> None:
    with pytest.raises(TypeError, match="must be Tensor, not tuple") as failed:
        check(torch.relu, (T.clone().requires_grad_(),))
    assert failed.value.__notes__ == [
        "xgradcheck: raised while checking relu with one tuple of 1: to pass its parts one by one, "
        "write check(fn, *inputs)."
    ]


class Frees(torch.autograd.Function):
    """exp, which gives back the memory of its input, as reversible layers do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        x.untyped_storage().resize_(0)
        return y

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        return u * ctx.saved_tensors[0]


def test_a_call_that_frees_its_argument_is_told_to_take_a_copy() -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)
    before = x.clone()
    with pytest.raises(InvalidCase, match=r"frees the memory of .*: pass it a copy"):
        check(Frees.apply, x)
    assert torch.equal(x, before)
    assert check(lambda x: Frees.apply(x.clone()), x)
