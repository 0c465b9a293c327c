"""A point that hides mistakes is not the only one that is looked at."""

import jax
import numpy as np
import pytest
import torch
from audited import function
from xgradcheck.backends.jax_draws import x64

from xgradcheck import check
from xgradcheck._generic import _degenerate
from xgradcheck._layout import Entry, lay_out

HIDING = {
    "zeros": np.zeros((2, 3)),
    "ones": np.ones((2, 3)),
    "constant": np.full(4, 0.7),
    "symmetric": np.array([[1.0, 2.0], [2.0, 5.0]]),
    "equal rows": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]),
    "one": np.array(1.0),
    "symmetric to float32": np.float32([[1.1, 0.3], [0.3 * (1 + 2.0**-23), 5.4]]).astype(float),
    "identity": np.eye(3),
    "whole": np.array([1.0, 2.0, 3.0]),
    "mask": np.array([0.0, 1.0, 1.0, 0.0]) * 0.3,
    "equal columns": np.array([[1.1, 2.2, 1.1], [4.4, 5.5, 4.4]]),
    "triangle": np.tril(np.full((4, 4), 1.1) + np.diag(np.arange(4.0))),
    "probabilities": np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]),
    "unit vectors": np.array([[0.6, 0.8], [-0.8, 0.6]]),
    "padded": np.array([[1.1, 2.2, 3.3, 0.4], [5.5, 6.6, 0.0, 0.0], [0.7, 8.8, 9.9, 0.3]]),
}
GENERIC = {
    "matrix": np.array([[1.1, 2.2], [3.3, 5.4]]),
    "vector": np.array([1.1, 2.2, 1.1]),
    "number": np.array(0.3),
    "row": np.array([[1.1, 2.2]]),
    "grid": np.linspace(-2, 2, 12),
    "large": np.array([1e11, 3e11]),
    "a zero": np.array([1.1, 0.0, 3.3]),
    "few zeros": np.append(np.linspace(0.1, 2, 20), [0.0, 0.0]),
}


def why(values: np.ndarray) -> dict[int, str]:
    layout = lay_out([Entry(("x",), (0,), values.shape, "float64")])
    return _degenerate(layout, values.ravel())


@pytest.mark.parametrize("values", HIDING.values(), ids=HIDING)
def test_values_that_hide_mistakes_are_known(values):
    assert why(values)


@pytest.mark.parametrize("values", GENERIC.values(), ids=GENERIC)
def test_values_that_hide_nothing_are_left_alone(values):
    assert not why(values)


def cube(x):
    return (x**3).sum()


# Right at 0 and at 1, where x^2 = x; right for a symmetric matrix; right where the rows are equal.
MISTAKES = {
    "power": (np.ones(3), cube, lambda x: 3 * x**2, lambda x: 3 * x),
    "power at zero": (np.zeros(3), cube, lambda x: 3 * x**2, lambda x: 3 * x),
    "transpose": (
        np.array([[1.0, 2.0], [2.0, 5.0]]),
        lambda x: (x @ x).sum(),
        lambda x: x.sum(0)[:, None] + x.sum(1)[None] + 0 * x,
        lambda x: x.sum(1)[:, None] + x.sum(0)[None] + 0 * x,
    ),
    "wrong row": (
        np.array([[1.0, 2.0], [1.0, 2.0]]),
        lambda x: (x[0] ** 2 * x[1]).sum(),
        lambda x: np.stack([2 * x[0] * x[1], x[0] ** 2]),
        lambda x: np.stack([2 * x[1] * x[1], x[0] ** 2]),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_gradient_that_is_right_only_at_this_point_is_wrong(name):
    point, value, right, wrong = MISTAKES[name]
    assert np.allclose(right(point), wrong(point)), "planted: the point must hide the mistake"
    assert check(value, point, grads=right).verdict == "PASS"
    report = check(value, point, grads=wrong, raise_exception=False)
    assert report.verdict == "FAIL"
    assert [finding.kind for finding in report.findings] == ["only right at this point"]
    text = str(report)
    assert "near by" in text and "backward gives" in text


def test_a_gradient_handed_in_as_a_tree_is_noted_to_be_known_here_alone():
    report = check(cube, np.ones(3), grads=3 * np.ones(3))
    assert report.verdict == "PASS"
    assert any("give grads as a function" in note for note in report.notes)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x


def test_torch_tensors_are_moved_and_put_back():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert check(Cube.apply, x, raise_exception=False).verdict == "FAIL"
    assert (x == 1).all() and x.grad is None


def test_parameters_are_moved_in_place_and_put_back():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return Cube.apply(self.scale) * x

    layer = Layer()
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    report = check(layer, x, raise_exception=False)
    assert report.leaves["scale"].verdict == "FAIL"
    assert (layer.scale == 1).all()


def test_the_arrays_of_a_closure_are_moved_and_put_back():
    weights = {"w": np.ones(3)}
    report = check(
        lambda: float((weights["w"] ** 3).sum()),
        wrt=weights,
        grads=lambda: {"w": 3 * weights["w"]},
        raise_exception=False,
    )
    assert report.verdict == "FAIL"
    assert (weights["w"] == 1).all()


def test_jax_arrays_are_moved():
    @jax.custom_vjp
    def f(x):
        return x**3

    f.defvjp(lambda x: (x**3, x), lambda x, g: (g * 3 * x,))
    assert check(f, np.ones(3), backend="jax", raise_exception=False).verdict == "FAIL"
    assert check(lambda x: x**3, np.ones(3), backend="jax").verdict == "PASS"


def test_a_jax_gradient_handed_in_is_asked_for_at_the_moved_point():
    with x64():
        x = jax.numpy.ones(3)
    assert check(cube, x, grads=lambda x: 3 * x**2).verdict == "PASS"
    assert check(cube, x, grads=lambda x: 3 * x, raise_exception=False).verdict == "FAIL"


def test_a_point_at_the_edge_of_its_domain_moves_inwards():
    """x log x at 1 and the root at 1 are fine on one side; a domain that is one point is left."""
    report = check(lambda x: float(np.sqrt(x - 1 + 1e-3).sum()), np.ones(2), grads=root)
    assert report.verdict == "PASS"

    def only_here(x):
        return float((x**2).sum()) if np.abs(x - 1).max() < 1e-4 else float("nan")

    report = check(only_here, np.ones(2), grads=lambda x: 2 * x, raise_exception=False)
    assert any("no other was found" in note for note in report.notes)


def root(x):
    return 0.5 / np.sqrt(x - 1 + 1e-3)


X = np.random.default_rng(0).normal(size=(50, 3))
Y = (X[:, 0] > 0).astype(float)
FIXED = 3 * np.ones(4)


@pytest.mark.parametrize(
    ("fn", "point", "wrong"),
    [
        (lambda w: np.exp(w).sum(), np.zeros(3), lambda w: np.ones(3)),
        (lambda w: np.tanh(X @ w), np.zeros(3), lambda u, w: X.T @ u),
        (lambda w: np.mean((X @ w - Y) ** 2) / 2, np.zeros(3), lambda w: -X.T @ Y / 50),
        (
            lambda w: np.mean(np.logaddexp(0, X @ w) - Y * (X @ w)),
            np.zeros(3),
            lambda w: X.T @ (0.5 - Y) / 50,
        ),
        (lambda w: (w**3).sum(), np.ones(4), lambda w: 3 * np.ones(4)),
    ],
    ids=["exp", "tanh", "least squares", "logistic", "cube"],
)
def test_a_gradient_that_is_the_same_everywhere_is_wrong_near_by(fn, point, wrong):
    """Forgotten derivatives of what is one, or nothing, at the start of a training."""
    report = check(fn, point, grads=wrong, raise_exception=False)
    assert report.verdict == "FAIL"
    kinds = [finding.kind for finding in report.findings]
    assert kinds in (["only right at this point"], ["only right at this point", "stale"])


def test_a_function_that_hands_in_the_very_same_array_is_a_tree():
    report = check(lambda w: (w**3).sum(), np.ones(4), grads=lambda w: FIXED)
    assert any("grads returns the very same arrays" in note for note in report.notes)


def one_hot(classes: int) -> np.ndarray:
    return np.eye(classes)[[0, 2, 1, 2]]


def cross_entropy(p):
    shifted = p["x"] - p["x"].max(-1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -(p["y"] * log).sum()


def of_probabilities(p):
    """Right where labels sum to 1, which is what labels do."""
    e = np.exp(p["x"] - p["x"].max(-1, keepdims=True))
    soft = e / e.sum(-1, keepdims=True)
    return {"x": soft - p["y"], "y": -np.log(soft)}


def masked(p):
    return (((p["x"] - 1) * p["m"]) ** 2).sum()


def of_masks(p):
    """Right where m is 0 or 1."""
    return {"x": 2 * (p["x"] - 1) * p["m"], "m": 2 * (p["x"] - 1) ** 2 * p["m"]}


def histogram(p):
    edges, at = p["e"], np.clip(np.searchsorted(p["e"], p["x"]) - 1, 0, len(p["e"]) - 2)
    return (p["h"][at] * (p["x"] - edges[at]) / (edges[at + 1] - edges[at])).sum()


def of_edges(p):
    at = np.clip(np.searchsorted(p["e"], p["x"]) - 1, 0, len(p["e"]) - 2)
    low, width, found = p["e"][at], np.diff(p["e"])[at], {k: 0 * v for k, v in p.items()}
    share = (p["x"] - low) / width
    found["x"] = p["h"][at] / width
    np.add.at(found["h"], at, share)
    np.add.at(found["e"], at, p["h"][at] * (share - 1) / width)
    np.add.at(found["e"], at + 1, -p["h"][at] * share / width)
    return found


RNG = np.random.default_rng(8)
KEPT = {
    "labels": (cross_entropy, of_probabilities, {"x": RNG.normal(size=(4, 3)), "y": one_hot(3)}),
    "smoothed": (
        cross_entropy,
        of_probabilities,
        {"x": RNG.normal(size=(4, 3)), "y": 0.9 * one_hot(3) + 0.1 / 3},
    ),
    "a column of probabilities": (
        lambda p: -(p["y"] * (p["x"] - np.log(np.exp(p["x"]).sum(0)))).sum(),
        lambda p: {
            "x": np.exp(p["x"]) / np.exp(p["x"]).sum(0) - p["y"],
            "y": np.log(np.exp(p["x"]).sum(0)) - p["x"],
        },
        {"x": RNG.normal(size=(3, 1)), "y": np.array([[0.2], [0.5], [0.3]])},
    ),
    "a mask": (
        masked,
        of_masks,
        {"x": RNG.normal(size=5), "m": np.array([0.0, 1.0, 1.0, 0.0, 1.0])},
    ),
    "edges": (
        histogram,
        of_edges,
        {"x": np.array([0.3, 1.7, 3.4]), "e": np.arange(5.0), "h": RNG.normal(size=4)},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_a_function_takes_its_arguments_for_they_stay_near_by(name):
    value, gradient, point = KEPT[name]
    assert check(value, point, grads=gradient).verdict == "PASS"
    for leaf in point:

        def wrong(p, leaf=leaf):
            return {key: g * (1.01 if key == leaf else 1) for key, g in gradient(p).items()}

        report = check(value, point, grads=wrong, raise_exception=False)
        assert [key for key, found in report.leaves.items() if found.verdict == "FAIL"] == [
            f"p['{leaf}']"
        ]


def test_a_mask_hides_a_mistake_in_its_own_gradient():
    point = {"m": np.array([0.0, 1.0, 1.0, 0.0])}
    with pytest.raises(AssertionError, match="only right at this point"):
        check(lambda p: cube(p["m"]), point, grads=lambda p: {"m": 3 * p["m"]})


def test_a_unit_matrix_hides_a_transpose():
    point = {"x": RNG.normal(size=(2, 3)), "w": np.eye(3)}
    weights = RNG.normal(size=(2, 3))

    def of(p, w):
        return {"x": weights @ w, "w": p["x"].T @ weights}

    def value(p):
        return (weights * (p["x"] @ p["w"])).sum()

    assert check(value, point, grads=lambda p: of(p, p["w"].T)).verdict == "PASS"
    with pytest.raises(AssertionError, match="only right at this point"):
        check(value, point, grads=lambda p: of(p, p["w"]))


def test_a_normaliser_that_is_missing_where_it_is_1_is_left_open():
    point = {"w": np.full(4, 0.25)}
    values = RNG.normal(size=4)

    def mean(p):
        return (p["w"] * values).sum() / p["w"].sum()

    def right(p):
        return {"w": (values - mean(p)) / p["w"].sum()}

    assert check(mean, point, grads=right).verdict == "PASS"
    report = check(mean, point, grads=lambda p: {"w": values - mean(p)}, raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"
    (found,) = report.findings
    assert "right where its rows have sum 1, as here, and wrong off that" in found.text
    assert found.text.endswith("give constraint='simplex'")


@pytest.mark.parametrize("shape", [(5,), (40, 30)])
def test_a_gradient_that_is_right_along_its_constraint_alone_is_told(shape):
    rng = np.random.default_rng(2)
    values, drawn = rng.normal(size=shape), rng.uniform(0.5, 1.0, size=shape)

    def across(x, along):
        return (x * along).sum(-1, keepdims=True)

    shares = drawn / drawn.sum(-1, keepdims=True)
    units = drawn / np.sqrt(across(drawn, drawn))
    sums = (
        ({"p": shares}, lambda q: (values * np.log(q["p"])).sum(), lambda p: values / p),
        ({"p": units}, lambda q: (values * np.exp(q["p"])).sum(), lambda p: values * np.exp(p)),
    )
    say = ("constraint='simplex'", "a projection as constraint=")
    for (point, of, slope), said in zip(sums, say, strict=True):
        (p,) = point.values()
        normal = np.ones_like(p) if "simplex" in said else p
        missing = slope(p) - normal * across(slope(p), normal) / across(normal, normal)
        for given, told in ((missing, True), (1.01 * slope(p), False)):
            report = check(of, point, grads={"p": given}, raise_exception=False)
            assert report.verdict == "FAIL"
            hints = [found for found in report.findings if found.kind == "only on its constraint"]
            assert len(hints) == told, str(report)
            assert not told or hints[0].text.endswith(said)


def test_what_is_absorbed_near_by_is_no_mistake():
    # x - log_sigmoid(x) at -20 loses exp(-20) but for a few units of rounding of 20.
    logits = torch.tensor([-100.0, -50, -20, 20, 50, 100], dtype=torch.float64)
    labels = (logits > 0).double()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    assert check(lambda x: bce(x, labels), logits, raise_exception=False).verdict != "FAIL"


@pytest.mark.parametrize(("forgotten", "verdict"), [(False, "PASS"), (True, "FAIL")])
def test_padding_hides_a_mask_that_is_forgotten(forgotten, verdict):
    mask = np.arange(5) < np.array([[5], [3], [4]])
    x = np.random.default_rng(0).normal(size=(3, 5)) * mask

    def gradient(x):
        return 2 * x * (1 if forgotten else mask)

    report = check(lambda x: (x**2 * mask).sum(), x, grads=gradient, raise_exception=False)
    assert report.verdict == verdict
    assert any("some of its values are 0" in note for note in report.notes)


class Ranked(torch.autograd.Function):
    """The largest of each row; a gradient that takes others of them, where all are equal."""

    is_wrong = False

    @staticmethod
    def forward(ctx, x, count):
        values, ctx.index = x.topk(count, 1)
        ctx.shape = x.shape
        return values

    @staticmethod
    def backward(ctx, u):
        index = torch.arange(u.shape[1]).expand(len(u), -1) if Ranked.is_wrong else ctx.index
        return torch.zeros(ctx.shape, dtype=u.dtype).scatter(1, index, u), None


@pytest.mark.parametrize("count", [1, 3])
def test_where_kinks_meet_another_point_tells(count, monkeypatch):
    x = torch.zeros(4, 9, dtype=torch.float64)
    assert check(Ranked.apply, x, count, raise_exception=False).verdict != "FAIL"
    monkeypatch.setattr(Ranked, "is_wrong", True)
    report = check(Ranked.apply, x, count, raise_exception=False)
    assert report.verdict == "FAIL"
    assert {finding.kind for finding in report.findings} <= {
        "wrong near by",
        "only right at this point",
    }


def symmetric_solve(factor):
    """A solver for symmetric matrices: its backward pass transposes nothing."""

    def forward(ctx, a, b):
        ctx.save_for_backward(a, x := torch.linalg.solve(a, b))
        return x

    def backward(ctx, u):
        a, x = ctx.saved_tensors
        y = torch.linalg.solve(a, u)
        of_a = -y @ x.T
        return (of_a + of_a.T) / 2, factor * y

    return function(forward, backward, "Solve")


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_what_is_meant_for_symmetric_matrices_is_left_open_in_all_leaves(factor):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, n, dtype=torch.float64, generator=generator) for n in (4, 2))
    a = a @ a.T + 4 * torch.eye(4)
    report = check(symmetric_solve(factor), a, b, raise_exception=False)
    verdicts = [str(leaf.verdict) for leaf in report.leaves.values()]
    assert verdicts == ["INCONCLUSIVE", "INCONCLUSIVE" if factor == 1 else "FAIL"]
    assert str(report).count("constraint='symmetric'") >= 1
    kept = check(symmetric_solve(factor), a, b, constraint="symmetric", raise_exception=False)
    assert [str(leaf.verdict) for leaf in kept.leaves.values()] == [
        "PASS",
        "PASS" if factor == 1 else "FAIL",
    ]


def test_a_symmetric_weight_hides_a_transpose_in_another_leaf():
    w = np.array([[1.1, 0.4, 0.2], [0.4, 2.3, 0.7], [0.2, 0.7, 3.1]])
    x = np.random.default_rng(0).normal(size=(4, 3))
    report = check(
        lambda x, w: x @ w,
        x,
        w,
        wrt=[0, 1],
        grads=lambda u, x, w: (u @ w, x.T @ u),
        raise_exception=False,
    )
    assert [str(leaf.verdict) for leaf in report.leaves.values()] == ["FAIL", "PASS"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_unit_vectors_with_zeros_are_told_from_what_is_padded(dtype):
    """Whoever is given such may rely on it: their own gradient is no mistake."""

    class Unit(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            ctx.save_for_backward(q)
            return q / q.norm(dim=1, keepdim=True)

        @staticmethod
        def backward(ctx, u):
            (q,) = ctx.saved_tensors  # whose norm is taken to be 1
            return u - q * (q * u).sum(1, keepdim=True)

    q = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q[:3, 1] = q[3:, 2] = 0
    q = torch.nn.functional.normalize(q.to(dtype), dim=1)
    report = check(Unit.apply, q, raise_exception=False)
    assert "only right at this point" not in {finding.kind for finding in report.findings}


def test_hermitian_matrices_hide_mistakes_and_complex_vectors_are_none():
    layout = lay_out([Entry(("z",), (0,), (2, 2), "complex128")])
    hermitian = np.array([[1.1, 2.2], [2.2, 5.3], [0.0, 0.7], [-0.7, 0.0]])
    assert _degenerate(layout, hermitian.ravel()) == {0: "it is Hermitian"}
    symmetric = np.array([[1.1, 2.2], [2.2, 5.3], [0.4, 0.7], [0.7, 0.9]])
    assert not _degenerate(layout, symmetric.ravel())
    pair = lay_out([Entry(("z",), (0,), (2,), "complex128")])
    assert not _degenerate(pair, np.array([1.1, 2.2, 2.3, 5.3]))


@pytest.mark.parametrize("turn", [torch.adjoint, torch.t, torch.clone])
def test_a_product_turned_at_a_hermitian_matrix_is_caught(turn):
    root = torch.tensor([[1.1 + 0.3j, 0.4 - 0.8j], [0.2 + 0.9j, 1.7 - 0.1j]]).to(torch.complex128)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, matrix):
            ctx.save_for_backward(x, matrix)
            return x @ matrix

        @staticmethod
        def backward(ctx, g):
            x, matrix = ctx.saved_tensors
            return g @ turn(matrix), x.mH @ g

    report = check(Product.apply, root, root @ root.mH, raise_exception=False)
    assert report.verdict == ("PASS" if turn is torch.adjoint else "FAIL")
    kinds = {finding.kind for finding in report.findings}
    assert ("only right at this point" in kinds) == (turn is torch.clone)
