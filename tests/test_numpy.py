"""NumPy: every form in which parameters and gradients of backprop by hand come."""

import collections
import contextlib
import itertools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from xgradcheck import ALL, InvalidCase, Verdict, check

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(2, 3)), RNG.normal(size=3)
X = RNG.normal(size=(4, 2))


def loss(W: Any, B: Any) -> float:
    return float(np.sum(np.tanh(X @ W + B) ** 2))


def gradients(W: Any, B: Any) -> tuple[Any, Any]:
    t = np.tanh(X @ W + B)
    inner = 2 * t * (1 - t**2)
    return X.T @ inner, inner.sum(axis=0)


class Pair(NamedTuple):
    w: Any
    b: Any


@dataclass
class Box:
    w: Any
    b: Any


DW, DB = gradients(W, B)
TREES = {
    "dict": ({"w": W, "b": B}, {"dw": DW, "db": DB}, ("p['w']", "p['b']")),
    "list": ([W, B], [DW, DB], ("p[0]", "p[1]")),
    "tuple": ((W, B), (DW, DB), ("p[0]", "p[1]")),
    "namedtuple": (Pair(W, B), Pair(DW, DB), ("p.w", "p.b")),
    "dataclass": (Box(W, B), Box(DW, DB), ("p.w", "p.b")),
    "nested": ({"l": [{"w": W}, B]}, {"l": [{"w": DW}, DB]}, ("p['l'][0]['w']", "p['l'][1]")),
}


def parts(p: Any) -> list[Any]:
    if isinstance(p, dict):
        values: Any = list(p.values())
    elif isinstance(p, Box):
        values = [p.w, p.b]
    elif isinstance(p, list | tuple):
        values = list(p)
    else:
        return [p]
    return [leaf for value in values for leaf in parts(value)]


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("handed", ["tree", "callable", "pair"])
def test_trees_of_every_kind_are_checked_leaf_by_leaf(kind: str, handed: str) -> None:
    tree, right, names = TREES[kind]

    def cost(p: Any) -> float:
        return loss(*parts(p))

    ways = {"tree": right, "callable": lambda p: right, "pair": lambda p: (cost(p), right)}
    report = check(cost, tree, grads=ways[handed])
    assert tuple(report.leaves) == names
    shifted = check(cost, tree, grads=lambda p: parts_added(right), raise_exception=False)
    assert [leaf.verdict for leaf in shifted.leaves.values()] == ["FAIL", "PASS"]


def parts_added(tree: Any) -> Any:
    """The same gradients with 1 added to the first leaf."""
    from xgradcheck._tree import flatten, replaced

    first = next(iter(flatten(tree)))
    return replaced(tree, {first.path: first.value + 1.0})


def test_the_worst_element_is_the_one_that_was_changed() -> None:
    wrong = DW.copy()
    wrong[1, 2] += 0.25
    report = check(
        lambda p: loss(p["w"], p["b"]),
        {"w": W, "b": B},
        grads={"w": wrong, "b": DB},
        raise_exception=False,
    )
    worst = report.leaves["w"].worst
    assert worst is not None and worst.index == (1, 2)
    assert worst.analytic == wrong[1, 2]
    assert abs(worst.truth - DW[1, 2]) <= worst.error_bar
    assert report.leaves["w"].path == (0, "w")
    assert report.leaves["w"].wrong == 1


def test_an_array_output_gets_its_cotangent() -> None:
    def pulled_back(cotangent: Any, w: Any) -> Any:
        return X.T @ cotangent

    assert check(lambda w: X @ w, W, grads=pulled_back)
    report = check(
        lambda w: X @ w, W, grads=lambda cotangent, w: X.T @ abs(cotangent), raise_exception=False
    )
    assert report.verdict is Verdict.FAIL


def test_keywords_of_the_function_reach_the_gradient_too() -> None:
    report = check(
        lambda w, lam=0.1: float(lam * np.sum(w**2)),
        B,
        kwargs={"lam": 0.3},
        grads=lambda w, lam: 2 * w * lam,
    )
    assert tuple(report.leaves) == ("w",)


def test_several_arguments_take_a_tuple_of_gradients() -> None:
    report = check(loss, W, B, wrt=(0, 1), grads=gradients)
    assert tuple(report.leaves) == ("W", "B")
    assert check(loss, W, B, wrt="B", grads=lambda W, B: gradients(W, B)[1])
    assert check(loss, W, B, wrt=-1, grads=lambda W, B: gradients(W, B)[1])


def square(w: Any) -> float:
    return float(np.sum(np.asarray(w) ** 2))


ARRAYS = {
    "fortran": np.asfortranarray(W),
    "reversed": W[::-1, ::-1],
    "every second": RNG.normal(size=(4, 6))[::2, ::2],
    "0-d": np.array(1.5),
    "python float": 1.5,
    "numpy scalar": np.float64(1.5),
    "one element": np.array([[2.0]]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_layout(kind: str) -> None:
    w = ARRAYS[kind]
    assert check(square, w, grads=lambda w: 2 * w)
    wrong = check(square, w, grads=lambda w: 2.01 * w, raise_exception=False)
    assert wrong.verdict is Verdict.FAIL


def test_read_only_arrays_are_checked_and_stay_so() -> None:
    w = W.copy()
    w.flags.writeable = False
    assert check(square, w, grads=2 * w)
    params = {"w": w}
    assert check(lambda: square(params["w"]), wrt=params, grads={"w": 2 * w})
    assert params["w"] is w and not w.flags.writeable


def test_empty_leaves_are_noted_and_integers_pass_through() -> None:
    params = {"w": B, "none": np.zeros((0, 3)), "steps": np.arange(3), "name": "x", "nothing": None}

    def cost(p: Any) -> float:
        assert p["steps"].dtype == np.arange(3).dtype and p["name"] == "x"
        return float(np.sum(p["w"] ** 2 * p["steps"]) + p["none"].sum())

    grads = {"dw": 2 * B * np.arange(3), "none": np.zeros((0, 3))}
    report = check(cost, params, grads=grads)
    assert "p['none'] is empty" in report.notes
    assert any("p['steps']: int64" in line for line in report.skipped)


class Net:
    """Keeps its parameters, its gradients and its data as attributes."""

    def __init__(self) -> None:
        self.W, self.b, self.X = W.copy(), B.copy(), X

    def loss(self) -> float:
        self.dW, self.db = gradients(self.W, self.b)
        return loss(self.W, self.b)


def test_an_object_whose_attributes_are_the_arrays() -> None:
    net = Net()
    net.loss()
    found = net.W.tobytes()
    for grads in (net, {"W": net.dW, "b": net.db}, {"dW": net.dW, "db": net.db}):
        report = check(lambda: net.loss(), wrt=net, grads=grads)
        assert tuple(report.leaves) == ("W", "b")
    assert net.W.tobytes() == found
    report = check(
        lambda: net.loss(), wrt=net, grads={"W": -net.dW, "b": net.db}, raise_exception=False
    )
    assert [leaf.verdict for leaf in report.leaves.values()] == ["FAIL", "PASS"]


def test_a_method_that_returns_the_gradients_of_the_last_forward() -> None:
    net = Net()
    wrt = {"W": net.W, "b": net.b}
    assert check(net.loss, wrt=wrt, grads=lambda: {"W": net.dW, "b": net.db})


def test_dropout_drawn_by_the_gradient_is_that_of_the_cost() -> None:
    def mask() -> Any:
        return np.random.random(3) > 0.5  # noqa: NPY002

    assert check(lambda w: float(((w * mask()) ** 2).sum()), B, grads=lambda w: 2 * w * mask())


@pytest.mark.parametrize("make", [list, collections.deque])
def test_a_layer_may_push_what_its_backward_pops(make: Any) -> None:
    class Shared:
        def __init__(self) -> None:
            self.W, self.kept = np.array([[0.5, -1.0], [2.0, 0.3]]), make()

        def forward(self, x: Any) -> Any:
            self.kept.append((x, np.tanh(x @ self.W)))
            return self.kept[-1][1]

        def backward(self, grad: Any) -> Any:
            self.dW, dx = np.zeros_like(self.W), 0.0
            while self.kept:
                x, out = self.kept.pop()
                d = grad * (1 - out**2)
                self.dW += x.T @ d
                dx = dx + d @ self.W.T
            return dx

    x, layer = np.array([[0.1, -0.4], [1.2, 0.8], [0.3, 0.3]]), Shared()
    assert check(layer.forward, x, grads=layer.backward)
    assert check(lambda: layer.forward(x), wrt=layer, grads=layer.backward)
    assert not layer.kept


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_a_layer_that_adds_to_its_gradients_begins_at_zero(factor: float, verdict: str) -> None:
    class Linear:
        def __init__(self) -> None:
            self.W, self.dW = np.array([[0.5, -1.0], [2.0, 0.3]]), np.zeros((2, 2))

        def forward(self, x: Any) -> Any:
            self.x = x
            return np.sin(x @ self.W)

        def backward(self, grad: Any) -> None:
            self.dW += factor * self.x.T @ (grad * np.cos(self.x @ self.W))

    x, layer = np.array([[0.1, -0.4], [1.2, 0.8], [0.3, 0.3]]), Linear()
    layer.forward(x)
    layer.backward(np.ones((3, 2)))
    before = layer.dW.copy()
    report = check(lambda: layer.forward(x), wrt=layer, grads=layer.backward, raise_exception=False)
    assert report.verdict == verdict
    assert (layer.dW == before).all()


class Dropout:
    """A layer that keeps its mask for its backward pass, or one that draws another there."""

    def __init__(self, is_fresh: bool) -> None:
        self.is_fresh = is_fresh

    def draw(self, x: Any) -> Any:
        return np.random.random(x.shape) > 0.5  # noqa: NPY002

    def forward(self, x: Any) -> Any:
        self.mask = self.draw(x)
        return x * self.mask

    def backward(self, grad: Any) -> Any:
        return grad * (self.draw(grad) if self.is_fresh else self.mask)

    def both(self, grad: Any, x: Any) -> Any:
        self.forward(x)
        return grad * self.mask


@pytest.mark.parametrize("size", [6, 600])
def test_a_mask_that_a_backward_pass_draws_anew_is_no_right_one(size: int) -> None:
    x = np.random.default_rng(0).normal(size=size)
    for is_fresh in (False, True):
        layer = Dropout(is_fresh)
        report = check(layer.forward, x, grads=layer.backward, raise_exception=False)
        assert report.verdict is (Verdict.INCONCLUSIVE if is_fresh else Verdict.PASS)
        assert bool(report.findings) is is_fresh
    assert [finding.kind for finding in report.findings] == ["stochastic backward"]
    assert "keep what the forward pass drew" in " ".join(str(report).split())
    # Nor does it say that an element is off.
    assert "backward gives" not in str(report)


def test_a_generator_that_is_an_argument_says_what_is_drawn() -> None:
    def dropped(x: Any, rng: Any) -> Any:
        return x * (rng.random(x.shape) > 0.5)

    def again(grad: Any, x: Any, rng: Any) -> Any:
        return dropped(grad, rng)

    x = np.random.default_rng(0).normal(size=6)
    assert check(dropped, x, np.random.default_rng(1), grads=again)


def test_what_a_layer_notes_down_is_put_back() -> None:
    class Noting:
        def __init__(self) -> None:
            self.calls, self.norms = 0, list[float]()

        def forward(self, x: Any) -> Any:
            self.calls += 1
            self.norms.append(float(np.linalg.norm(x)))
            return np.sin(x)

        def backward(self, grad: Any) -> Any:
            return grad * np.cos(X_OF_NOTING)

    layer = Noting()
    assert check(layer.forward, X_OF_NOTING, grads=layer.backward)
    assert layer.calls == 0 and layer.norms == []


X_OF_NOTING = np.array([0.3, -1.2, 2.0])


def test_a_backward_pass_that_runs_the_forward_pass_draws_what_that_draws() -> None:
    layer, x = Dropout(is_fresh=False), np.random.default_rng(0).normal(size=6)
    assert check(layer.forward, x, grads=layer.both)
    # A twin of the forward pass is one that draws for itself: without a cotangent that is noted.
    mask = layer.draw
    report = check(lambda w: float((w * mask(w)).sum()), x, grads=lambda w: mask(w) * 1.0)
    assert any("draws random numbers of its own" in note for note in report.notes)


def test_a_backward_of_any_number_of_arguments_gets_the_cotangent_of_an_array():
    def gradient(*args):
        cotangent, w = args
        return 2 * w * cotangent

    assert check(lambda w: w**2, np.array([1.1, -0.3]), grads=gradient)
    assert check(lambda w: float((w**2).sum()), np.array([1.1, -0.3]), grads=lambda *a: 2 * a[0])


class Single:
    """A network in float32; ``aliased``: its cost reads arrays that are no longer in the dict."""

    def __init__(self, aliased: bool) -> None:
        draw = np.random.default_rng(3)
        self.inputs = draw.normal(size=(20, 4)).astype(np.float32)
        self.params = {
            "W": draw.normal(size=(4, 5)).astype(np.float32),
            "v": draw.normal(size=5).astype(np.float32),
        }
        self.own = tuple(self.params.values()) if aliased else None
        self.factor = 1.0

    def arrays(self) -> Any:
        return self.own or self.params.values()

    def cost(self) -> Any:
        W, v = self.arrays()
        return np.mean((np.tanh(self.inputs @ W) @ v) ** 2)

    def backprop(self) -> Any:
        W, v = self.arrays()
        hidden = np.tanh(self.inputs @ W)
        error = 2 * (hidden @ v) / 20
        dW = self.inputs.T @ (np.outer(error, v) * (1 - hidden**2))
        return {"dW": dW, "dv": self.factor * (hidden.T @ error)}


@pytest.mark.parametrize("aliased", [False, True])
def test_a_closure_over_float32_arrays_is_raised_where_it_reads_them_from_its_dict(aliased):
    net = Single(aliased)
    found = dict(net.params)
    copies = {name: array.copy() for name, array in found.items()}
    report = check(lambda: net.cost(), wrt=net.params, grads=net.backprop, raise_exception=False)
    assert report.verdict != "FAIL"
    assert bool(report.leaves["v"].rows) is not aliased
    net.factor = 1.01
    wrong = check(lambda: net.cost(), wrt=net.params, grads=net.backprop, raise_exception=False)
    assert [leaf.name for leaf in wrong.leaves.values() if leaf.verdict == "FAIL"] == ["v"]
    for name, array in net.params.items():
        assert array is found[name] and array.tobytes() == copies[name].tobytes()


class Noting:
    """Counts its evaluations, and notes its losses down."""

    def __init__(self, fails_at: int = 0) -> None:
        self.params, self.b = {"W": np.linspace(0.1, 1, 5)}, 0.3
        self.count, self.losses, self.last, self.fails_at = 0, [], 0.0, fails_at

    def loss(self):
        self.count += 1
        if self.count == self.fails_at:
            raise KeyError("mine")
        self.last = float(((self.params["W"] + self.b) ** 2).sum())
        self.losses.append(self.last)
        return self.last


@pytest.mark.parametrize("fails_at", [0, 5])
def test_what_a_network_notes_down_is_as_it_was_after_a_check(fails_at):
    net = Noting(fails_at)
    net.loss()
    noted = net.count, list(net.losses), net.last
    losses = net.losses
    grads = {"dW": 2 * (net.params["W"] + net.b)}
    with pytest.raises(KeyError) if fails_at else contextlib.nullcontext():
        assert check(lambda: net.loss(), wrt=net.params, grads=grads).evaluations > 5
    assert (net.count, net.losses, net.last) == noted
    assert net.losses is losses


class Lazy:
    """Makes a mask at need, and keeps it."""

    def __init__(self) -> None:
        self.w, self.mask, self.kept = np.array([0.3, -1.2]), None, {"mask": None}

    def loss(self):
        if self.mask is None or self.kept["mask"] is None:
            self.mask = self.kept["mask"] = np.array([1.0, 0.5])
        return float(((self.w * self.mask) ** 2).sum())


def test_what_is_made_at_need_is_not_there_again_afterwards():
    net = Lazy()
    w = net.w
    assert check(net.loss, wrt=[w], grads=[2 * w * np.array([1.0, 0.25])])
    assert net.mask is None
    assert net.kept == {"mask": None}


HIDDEN = {"w": np.array([0.3, -1.2]), "dead": np.array([-3.0, -4.0]), "logits": np.zeros(3)}


def with_defaults(p=HIDDEN):
    return float((p["w"] ** 2).sum())


def with_a_function_inside():
    return sum(float(HIDDEN["w"][i]) ** 2 for i in range(2))


@pytest.mark.parametrize("fn", [with_defaults, with_a_function_inside])
def test_what_a_closure_reads_is_found_in_defaults_and_in_functions_inside(fn):
    assert check(fn, wrt=[HIDDEN["w"]], grads=[2 * HIDDEN["w"]])


def test_what_moves_nothing_and_has_no_gradient_is_no_copy():
    """A dead unit, and logits that only their differences matter of, out of sight."""
    read = HIDDEN.__getitem__

    def loss():
        shifted = read("logits") - read("logits").mean()
        return float(np.maximum(read("dead"), 0).sum() + (shifted * [1.0, 2.0, 3.0]).sum())

    grads = [np.zeros(2), np.array([-1.0, 0.0, 1.0])]
    assert check(loss, wrt=[HIDDEN["dead"], HIDDEN["logits"]], grads=grads)


def test_a_loss_next_to_its_minimum_is_no_plateau():
    a = np.random.default_rng(0).normal(size=6).astype(np.float16)
    target = (a * 0.99).astype(np.float16)
    params = {"a": a}

    def loss():
        return ((params["a"] - target) ** 2).mean()

    slope = 2 * (a.astype(float) - target.astype(float)) / 6
    for factor in (0.5, 1.3, 0.0, -1.0):
        wrong = {"a": (factor * slope).astype(np.float16)}
        assert check(loss, wrt=params, grads=wrong, raise_exception=False).verdict == "FAIL"


def test_a_list_of_numbers_is_a_gradient():
    w = np.array([0.3, -1.2])
    assert check(lambda w: (w**2).sum(), w, grads=lambda w: [2 * w[0], 2 * w[1]])


def test_arrays_and_numbers_that_a_closure_reads_anywhere_are_no_copies():
    params = {"W": np.array([0.3, -1.2]), "b": 0.5}

    def loss():
        return float(((params["W"] * params["b"]) ** 2).sum())

    W, b = params["W"], params["b"]
    assert check(loss, wrt=params, grads={"W": 2 * W * b**2, "b": 2 * b * (W @ W)})
    assert check(loss, wrt=[W], grads=[2 * W * b**2])
    assert check(loss, wrt=[W[:1]], grads=[2 * W[:1] * b**2])


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ((5, 3), "sum it over axis 0, along which the parameter was broadcast"),
        ((5, 4, 3), "sum it over axes 0, 1, along which the parameter was broadcast"),
        ((7,), "return one number for each element, in the same shape"),
    ],
)
def test_a_gradient_of_another_shape_is_refused_with_what_makes_it_fit(given, remedy):
    with pytest.raises(InvalidCase, match=re.escape(f"has shape (3,): {remedy}.")):
        check(lambda b: float((b**2).sum()), np.ones(3), grads=np.ones(given))


def test_a_transposed_gradient_of_another_shape_is_refused_with_that_word():
    with pytest.raises(InvalidCase, match=r"has shape \(4, 3\): transpose it\.$"):
        check(lambda w: float((w**2).sum()), np.ones((4, 3)), grads=np.ones((3, 4)))


class Classifier:
    """A network of float32 that keeps its arrays, and leaves its gradients beside them."""

    def __init__(self, *sizes: int, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.x = draw.normal(size=(8, sizes[0])).astype(np.float32)
        self.labels = draw.integers(sizes[-1], size=8)
        self.params, self.grads = {}, {}
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), 1):
            weight = draw.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
            self.params[f"W{number}"] = weight.astype(np.float32)
            self.params[f"b{number}"] = np.zeros(fan_out, np.float32)

    def loss(self):
        p = self.params
        hidden = np.tanh(self.x @ p["W1"] + p["b1"])
        scores = hidden @ p["W2"] + p["b2"]
        largest = scores.max(1, keepdims=True)
        weights = np.exp(scores - largest)
        chosen = np.arange(len(self.x)), self.labels
        loss = np.mean(np.log(weights.sum(1)) + largest[:, 0] - scores[chosen])
        back = weights / weights.sum(1, keepdims=True)
        back[chosen] -= 1
        back /= len(self.x)
        inner = (back @ p["W2"].T) * (1 - hidden**2)
        self.grads["W1"], self.grads["b1"] = self.x.T @ inner, inner.sum(0)
        self.grads["W2"], self.grads["b2"] = hidden.T @ back, back.sum(0)
        return loss

    def train(self, steps):
        for _ in range(steps):
            self.loss()
            for name, value in self.params.items():
                value -= np.float32(0.5) * self.grads[name].astype(np.float32)


@pytest.mark.parametrize("steps", [0, 300, 3000])
def test_a_network_of_float32_is_right_however_confident_it_is(steps):
    for seed in range(3):
        net = Classifier(4, 8, 3, seed=seed)
        net.train(steps)
        net.loss()
        grads = {name: value.copy() for name, value in net.grads.items()}
        assert check(net.loss, wrt=net.params, grads=grads).verdict == "PASS"
        grads["W1"] = 1.03 * grads["W1"]
        report = check(net.loss, wrt=net.params, grads=grads, raise_exception=False)
        assert [name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"] == ["W1"]


def test_a_large_tree_of_float32_is_projected():
    net = Classifier(500, 40, 10)
    net.loss()
    grads = {name: value.copy() for name, value in net.grads.items()}
    report = check(net.loss, wrt=net.params, grads=grads)
    assert report.verdict == "PASS" and report.coverage == "projection"
    assert report.evaluations < 300
    for wrong in ("W1", "b2"):
        spoilt = grads | {wrong: 1.01 * grads[wrong]}
        report = check(net.loss, wrt=net.params, grads=spoilt, raise_exception=False)
        assert [name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"] == [wrong]
    row, element = grads["W1"].copy(), grads["W1"].copy()
    row[5], element[7, 3] = 0.0, 1.0
    for spoilt, place in ((row, "row 5 (40 elements, as far as 6 tell)"), (element, "at W1[7, 3]")):
        report = check(
            net.loss, wrt=net.params, grads=grads | {"W1": spoilt}, raise_exception=False
        )
        assert place in report.findings[0].text
        assert report.leaves["W1"].verdict == "FAIL" and report.evaluations < 500


class Param(np.ndarray):
    """An array whose copy() takes no order, as some libraries have them."""

    def copy(self):
        return np.array(self).view(Param)


def test_a_function_may_keep_arrays_of_a_kind_of_their_own():
    kept = np.ones(3).view(Param)

    def cost(q):
        kept[:] = q
        return float((np.asarray(kept) ** 3).sum())

    point = np.array([0.5, 1.0, 2.0])
    assert check(cost, point, grads=lambda q: 3 * q**2).verdict == "PASS"
    assert (np.asarray(kept) == 1).all()


def test_places_in_a_table_may_lie_near_its_end():
    def between(table, place):
        low = np.floor(place).astype(int)
        return (table[low] * (1 + low - place) + table[low + 1] * (place - low)).sum()

    def gradients(table, place):
        low, found = np.floor(place).astype(int), np.zeros_like(table)
        np.add.at(found, low, 1 + low - place)
        np.add.at(found, low + 1, place - low)
        return found, table[low + 1] - table[low]

    for table in (np.zeros(6), RNG.normal(size=6)):
        given = table, np.array([0.3, 1.7, 4.6])
        assert check(between, *given, wrt=(0, 1), grads=gradients).verdict == "PASS"


class DropsOut:
    """Keeps the gradient of each call, for the mask or the order of that call."""

    def __init__(self, draws):
        self.draws, self.rng = draws, np.random.default_rng(0)
        self.params, self.grads = {"w": np.array([1.0, -2.0, 0.5, 2.0])}, {}

    def loss(self, x):
        shape = x.shape if self.draws == "each time" else (1, *x.shape[1:])
        drops = self.draws in ("each time", "for all rows")
        kept = x * (2 * (self.rng.uniform(size=shape) < 0.5) if drops else 1)
        if "order" in self.draws:
            kept = kept[self.rng.permutation(len(kept))]
        error = kept @ self.params["w"] - 1
        before = self.grads.get("w", 0) if self.draws == "an order, and adds" else 0
        self.grads["w"] = before + 2 * kept.T @ error
        return error @ error


@pytest.mark.parametrize(
    "draws", ["nothing", "an order", "an order, and adds", "each time", "for all rows"]
)
def test_gradients_of_another_draw_are_refused(draws):
    x = np.random.default_rng(1).normal(size=(8, 4))
    net = DropsOut(draws)
    net.loss(x)
    if draws not in ("each time", "for all rows"):
        assert check(lambda: net.loss(x), wrt=net.params, grads=net.grads)
    else:
        with pytest.raises(InvalidCase, match=r"draws random numbers .* grads=lambda: net.grads"):
            check(lambda: net.loss(x), wrt=net.params, grads=net.grads)
    state = net.rng.bit_generator.state
    if "adds" not in draws:
        assert check(lambda: net.loss(x), wrt=net.params, grads=lambda: net.grads)
    assert net.rng.bit_generator.state == state


class Small:
    """A network of float32 whose layers keep references to arrays of their own."""

    def __init__(self, seed: int, keeps: str) -> None:
        drawn = np.random.default_rng(seed)
        self.x, self.labels = drawn.normal(size=(16, 6)).astype("f4"), drawn.integers(0, 3, 16)
        first, second = 0.01 * drawn.normal(size=(6, 8)), 0.01 * drawn.normal(size=(8, 3))
        arrays = [first, np.zeros(8), second, np.zeros(3)]
        self.parameters = [array.astype("f4") for array in arrays]
        names = ["W1", "b1", "W2", "b2"]
        if keeps == "in its class":
            self.layers = type("Layers", (), dict(zip(names, self.parameters, strict=True)))()
        elif keeps == "in attributes":
            self.layers = Box(None, None)
            vars(self.layers).update(zip(names, self.parameters, strict=True))
        else:
            self.layers = tuple(self.parameters)

    def forward(self) -> tuple[Any, ...]:
        kept = self.layers
        if not isinstance(kept, tuple):
            kept = kept.W1, kept.b1, kept.W2, kept.b2
        W1, b1, W2, b2 = kept
        z = self.x @ W1 + b1
        hidden = np.maximum(z, 0)
        scores = hidden @ W2 + b2
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return W2, z, hidden, scores / scores.sum(1, keepdims=True)

    def loss(self) -> Any:
        shares = self.forward()[-1]
        return -np.log(shares[np.arange(16), self.labels]).mean()

    def gradients(self) -> list[Any]:
        W2, z, hidden, shares = self.forward()
        d = shares - np.eye(3, dtype="f4")[self.labels]
        d /= 16
        dz = (d @ W2.T) * (z > 0)
        return [self.x.T @ dz, dz.sum(0), hidden.T @ d, d.sum(0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keeps", ["in its class", "in attributes", "in a tuple"])
def test_arrays_of_float32_are_exchanged_wherever_a_closure_reads_them(keeps, seed):
    """They come in a list, and what computes with them never looks at that."""
    net = Small(seed, keeps)
    before, layers = [array.copy() for array in net.parameters], net.layers
    given = {"wrt": net.parameters, "raise_exception": False}
    right = check(lambda: net.loss(), grads=net.gradients(), **given)
    wrong = check(lambda: net.loss(), grads=[0 * d for d in net.gradients()], **given)
    assert wrong.verdict == "FAIL"
    if keeps == "in a tuple":
        assert "pass the dict, list or object that it reads it" in " ".join(str(right).split())
    else:
        assert right.verdict == "PASS"
    assert net.layers is layers
    kept = layers if isinstance(layers, tuple) else (layers.W1, layers.b1, layers.W2, layers.b2)
    for array, own, found in zip(net.parameters, kept, before, strict=True):
        assert array is own and array.dtype == "f4" and (array == found).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("fails_at", [None, 30])
def test_a_network_that_is_bound_to_what_it_is_called_with_is_bound_to_its_own_again(
    dtype, fails_at
):
    class Net:
        def __init__(self):
            self.params, self.steps = {"W": W[0].astype(dtype)}, 0

        def loss(self):
            self.steps += 1
            if self.steps == fails_at:
                raise KeyboardInterrupt
            apart = W @ self.params["W"] - 1
            self.slope = 2 * W.T @ apart
            return (apart**2).sum()

    net = Net()
    own = net.params

    def cost(p):
        net.params = p
        return net.loss()

    def grads(p):
        cost(p)
        return {"W": net.slope}

    with contextlib.suppress(KeyboardInterrupt):
        assert check(cost, own, grads=grads)
    assert net.params is own and own["W"].dtype == dtype
    assert (own["W"] == W[0].astype(dtype)).all()
    assert vars(net).keys() == {"params", "steps"} and net.steps == 0


def scaled(x, gamma, beta):
    return gamma * x + beta


@pytest.mark.parametrize("named", ["{}", "d{}", "d_{}", "grad_{}", "{}_grad"])
@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_gradients_of_arguments_lie_under_their_names(named, factor):
    def grads(u, x, gamma, beta):
        found = {"beta": u.sum(0), "x": factor * u * gamma, "gamma": (u * x).sum(0)}
        return {named.format(name): gradient for name, gradient in found.items()}

    rng = np.random.default_rng(0)
    args = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=3)
    report = check(scaled, *args, wrt=ALL, grads=grads, raise_exception=False)
    assert [*report.leaves] == ["x", "gamma", "beta"]
    wrong = [name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"]
    assert wrong == ([] if factor == 1 else ["x"])


def test_what_lies_under_other_names_is_said():
    point = {"W": np.ones(3), "b": np.ones(3)}
    with pytest.raises(InvalidCase, match=r"lacks .*, it has 'weights', 'b'; the param"):
        check(
            lambda p: (p["W"] * p["b"]).sum(),
            point,
            grads=lambda p: {"weights": p["b"], "b": p["W"]},
        )


class Affine:
    """Keeps what its backward pass needs, as layers do."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.W, self.b, self.dW, self.db = rng.normal(size=(4, 3)), rng.normal(size=3), None, None

    def forward(self, x):
        self.x = x
        return np.tanh(x @ self.W + self.b)

    def backward(self, u):
        slope = u * (1 - np.tanh(self.x @ self.W + self.b) ** 2)
        self.dW, self.db = self.x.T @ slope, slope.sum(0)


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("keeps", ["itself", "a dict"])
def test_what_a_call_leaves_behind_in_an_object_is_no_parameter(keeps, calls):
    layer, x = Affine(0), np.random.default_rng(1).normal(size=(5, 4))
    for _ in range(calls):
        layer.forward(x)

    def grads(u, factor=1.0):
        layer.forward(x)
        layer.backward(factor * u)
        return layer if keeps == "itself" else {"W": layer.dW, "b": layer.db}

    def judged(grads):
        return check(lambda: layer.forward(x), wrt=layer, grads=grads, raise_exception=False)

    report = judged(grads)
    assert report.verdict == "PASS" and [*report.leaves] == ["W", "b"]
    assert judged(lambda u: grads(u, 1.01)).verdict == "FAIL"
    if keeps == "a dict":
        with pytest.raises(InvalidCase, match="lacks 'b'"):
            judged(lambda u: {"W": grads(u)["W"]})
    assert (layer.dW is None) and ("x" in vars(layer)) == bool(calls)


@pytest.mark.parametrize("named", ["d{}", "d_{}", "grad_{}", "{}_grad"])
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_an_object_may_keep_its_gradients_under_any_of_these_names(named, factor):
    layer, x = Affine(0), np.random.default_rng(1).normal(size=(5, 4))

    layer.forward(x)
    layer.backward(np.full((5, 3), factor))
    for name in ("W", "b"):
        setattr(layer, named.format(name), getattr(layer, f"d{name}"))
        if named != "d{}":
            delattr(layer, f"d{name}")

    def cost():
        return np.tanh(x @ layer.W + layer.b).sum()

    report = check(cost, wrt=layer, grads=layer, raise_exception=False)
    assert [*report.leaves] == ["W", "b"]
    assert report.verdict == ("PASS" if factor == 1 else "FAIL")


class Recurrent:
    """A cell that goes on from the state its last call left, and how wrong its backward is."""

    def __init__(self, wrong: float) -> None:
        rng = np.random.default_rng(5)
        self.w, self.u = rng.normal(size=(4, 4)) / 2, rng.normal(size=(3, 4))
        self.h, self.wrong = rng.normal(size=4), wrong

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.h = np.tanh(self.h @ self.w + x @ self.u)
        return self.h.copy()

    def backward(self, cotangent: np.ndarray) -> np.ndarray:
        return self.wrong * (cotangent * (1 - self.h**2)) @ self.u.T

    def both(self, cotangent: np.ndarray, x: np.ndarray) -> np.ndarray:
        self.forward(x)
        return self.backward(cotangent)

    def alone(self, cotangent: np.ndarray, x: np.ndarray) -> np.ndarray:
        return self.backward(cotangent)


@pytest.mark.parametrize("way", ["both", "alone"])
@pytest.mark.parametrize(("wrong", "verdict"), [(1.0, Verdict.PASS), (1.01, Verdict.FAIL)])
def test_a_backward_may_run_the_forward_of_a_network_that_keeps_its_state(
    way: str, wrong: float, verdict: Verdict
) -> None:
    cell = Recurrent(wrong)
    cell.forward(np.ones(3))
    found = cell.h
    report = check(
        cell.forward, np.array([0.3, -0.7, 1.1]), grads=getattr(cell, way), raise_exception=False
    )
    assert report.verdict is verdict
    assert cell.h is found


def test_a_parameter_may_be_called_like_the_gradient_of_another() -> None:
    def gradients(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"dx": 2 * p["x"] * p["dx"] ** 3, "ddx": 3 * p["x"] ** 2 * p["dx"] ** 2}

    def swapped(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        right = gradients(p)
        return {"dx": right["ddx"], "ddx": right["dx"]}

    point = {"x": np.array([0.7, -1.3]), "dx": np.array([1.1, 0.4])}
    assert check(lambda p: (p["x"] ** 2 * p["dx"] ** 3).sum(), point, grads=gradients)
    report = check(
        lambda p: (p["x"] ** 2 * p["dx"] ** 3).sum(), point, grads=swapped, raise_exception=False
    )
    assert {str(leaf.verdict) for leaf in report.leaves.values()} == {"FAIL"}


@pytest.mark.parametrize("kept_in", ["a list", "a dict", "the function"])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (2.0, "FAIL")])
def test_a_function_may_know_its_arguments_again_by_the_array(
    kept_in: str, factor: float, verdict: str
) -> None:
    last: list[Any] = [None, None]
    known: dict[int, tuple[Any, float]] = {}

    def cost(w: np.ndarray, rate: float) -> float:
        if kept_in == "a list":
            if last[0] is not w:
                last[:] = w, rate * np.sin(w).sum()
            return last[1]
        if kept_in == "a dict":
            return known.setdefault(id(w), (w, rate * np.sin(w).sum()))[1]
        if vars(cost).get("last") is not w:
            cost.last, cost.value = w, rate * np.sin(w).sum()  # type: ignore[attr-defined]
        return cost.value  # type: ignore[attr-defined, no-any-return]

    w = np.random.default_rng(3).normal(size=6)
    for grads, wrt in (
        (lambda w, rate: factor * rate * np.cos(w), 0),
        (lambda w, rate: (factor * rate * np.cos(w), np.sin(w).sum()), (0, 1)),
    ):
        report = check(cost, w, 0.7, grads=grads, wrt=wrt, raise_exception=False)
        assert str(report.leaves["w"].verdict) == verdict
