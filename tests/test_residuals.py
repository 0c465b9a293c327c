"""Passes in two halves with a cache between them, and functions of the value and its gradients."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xgradcheck import InvalidCase, audit, check

RNG = np.random.default_rng(11)
X, W, B = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 4)), RNG.normal(size=4)
ROWS = RNG.normal(size=(5, 2))


def affine_forward(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b[None], (x, w, b)


def affine_backward(dout: Any, cache: Any) -> Any:
    x, w, _ = cache
    return dout @ w.T, x.T @ dout, dout.sum(0)


def affine_backward_of_a_transpose(dout: Any, cache: Any) -> Any:
    x, w, _ = cache
    return dout @ w.T, 1.01 * x.T @ dout, dout.sum(0)


def unnamed_backward(upstream: Any, kept: Any) -> Any:
    return affine_backward(upstream, kept)


@pytest.mark.parametrize("backward", [affine_backward, unnamed_backward])
@pytest.mark.parametrize("made", [np.array, torch.tensor, jnp.array])
def test_a_backward_may_take_what_its_forward_kept(made: Any, backward: Any) -> None:
    report = check(affine_forward, made(X), made(W), made(B), grads=backward)
    assert report.verdict == "PASS"
    assert list(report.leaves) == ["x", "w", "b"]


@pytest.mark.parametrize("made", [np.array, torch.tensor, jnp.array])
def test_a_wrong_backward_that_takes_a_cache_is_seen(made: Any) -> None:
    arrays = made(X), made(W), made(B)
    report = check(
        affine_forward, *arrays, grads=affine_backward_of_a_transpose, raise_exception=False
    )
    verdicts = {name: str(leaf.verdict) for name, leaf in report.leaves.items()}
    assert verdicts == {"x": "PASS", "w": "FAIL", "b": "PASS"}


def test_an_audit_takes_both_halves_too() -> None:
    report = audit(affine_forward, X, W, B, grads=affine_backward)
    assert report.verdict == "PASS"
    assert {probe.name: str(probe.verdict) for probe in report.probes}["cotangents"] == "PASS"


def test_what_a_forward_hands_out_may_be_called_anything() -> None:
    def dropped(x: Any) -> Any:
        kept = np.random.default_rng(3).random(x.shape) > 0.5
        out = x * kept
        return out, kept

    assert check(dropped, X, grads=lambda dout, kept: dout * kept)
    wrong = check(dropped, X, grads=lambda dout, kept: dout, raise_exception=False)
    assert wrong.verdict == "FAIL"


def test_a_cache_is_known_by_the_end_of_its_name() -> None:
    def forward(z: Any) -> Any:
        return np.tanh(z), z

    assert check(forward, X, grads=lambda dA, linear_cache: dA / np.cosh(linear_cache) ** 2)
    assert check(forward, X, grads=lambda dA, z: dA / np.cosh(z) ** 2)


def test_a_backward_may_take_a_cache_and_settings_of_its_forward() -> None:
    def dense(x: Any, w: Any, b: Any, activation: str) -> Any:
        z = x @ w + b
        return (np.tanh(z) if activation == "tanh" else z), (x, w, z)

    def backward(dout: Any, cache: Any, activation: str) -> Any:
        x, w, z = cache
        d = dout / np.cosh(z) ** 2 if activation == "tanh" else dout
        return d @ w.T, x.T @ d, d.sum(0)

    for activation in ("tanh", "none"):
        assert check(dense, X, W, B, activation, grads=backward)


def test_arguments_are_handed_over_by_their_names() -> None:
    def loss(guess: Any, truth: Any) -> Any:
        return ((guess - truth) ** 2).sum()

    assert check(loss, X, X + 1, grads=lambda truth, guess: 2 * (guess - truth))
    assert check(lambda x, w: x @ w, X, W, wrt=(0, 1), grads=lambda x, w, dy: (dy @ w.T, x.T @ dy))
    wrong = check(
        loss, X, X + 1, grads=lambda truth, guess: 2 * (truth - guess), raise_exception=False
    )
    assert wrong.verdict == "FAIL"
    assert "say wrt='truth'" in " ".join(wrong.notes)


def test_a_gradient_of_any_number_of_arguments_may_name_its_cotangent() -> None:
    assert check(lambda x: (x**2).sum(), X, grads=lambda u, *args: u * 2 * args[0])
    assert check(lambda x: x**2, X, grads=lambda u, *args: u * 2 * args[0])


def test_a_dict_of_gradients_may_come_before_the_cost() -> None:
    def propagate(w: Any, b: Any) -> Any:
        z = X @ w + b
        return {"dw": 2 * X.T @ z, "db": 2 * z.sum(0)}, (z**2).sum()

    assert check(propagate, W, B, wrt=(0, 1), grads=propagate)


def test_a_backward_that_makes_a_step_is_told_to_say_how_long() -> None:
    class Dense:
        w = W.copy()

        def forward(self, x: Any) -> Any:
            self.x = x
            return x @ self.w

        def backward(self, output_gradient: Any, learning_rate: float) -> Any:
            back = output_gradient @ self.w.T
            self.w = self.w - learning_rate * self.x.T @ output_gradient
            return back

    layer = Dense()
    with pytest.raises(InvalidCase, match=r"takes learning_rate.*layer\.backward\(u, 0\.1\)"):
        check(layer.forward, X, grads=layer.backward)
    assert check(layer.forward, X, grads=lambda u, x: layer.backward(u, 0.1))


def test_what_a_forward_only_calls_the_same_is_none_of_it() -> None:
    def one(given: Any) -> Any:
        x = 2 * given
        return np.sin(x)

    def two(given: Any) -> Any:
        x = 2 * given
        return np.sin(x), np.cos(x)

    assert check(one, X, grads=lambda u, x: 2 * u * np.cos(2 * x))
    assert check(two, X, grads=lambda u, x: 2 * u[0] * np.cos(2 * x) - 2 * u[1] * np.sin(2 * x))


def cell_forward(x: Any, h: Any, w: Any) -> Any:
    gate = 1 / (1 + np.exp(-x @ w))
    return gate * h, gate, (x, h, w, gate)


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "PASS"), (0.0, "FAIL")])
def test_several_outputs_have_a_cotangent_each(share: float, verdict: str) -> None:
    def cell_backward(dnext: Any, dgate: Any, cache: Any) -> Any:
        x, h, w, gate = cache
        d = (dnext * h + share * dgate) * gate * (1 - gate)
        return d @ w.T, dnext * gate, x.T @ d

    h = RNG.normal(size=(5, 4))
    report = check(cell_forward, X, h, W, grads=cell_backward, raise_exception=False)
    assert report.verdict == verdict
    assert str(report.leaves["h"].verdict) == "PASS"


def test_settings_and_indices_are_no_parameters() -> None:
    def norm_forward(x: Any, gain: Any, settings: dict[str, Any]) -> Any:
        centre, spread = x.mean(0), np.sqrt(x.var(0) + settings["eps"])
        settings["mean"] = 0.9 * settings.get("mean", np.zeros(3)) + 0.1 * centre
        normal = (x - centre) / spread
        return gain * normal, (normal, gain, spread)

    def norm_backward(dout: Any, cache: Any) -> Any:
        normal, gain, spread = cache
        d = dout * gain
        return (d - d.mean(0) - normal * (d * normal).mean(0)) / spread, (dout * normal).sum(0)

    settings = {"eps": 1e-5, "mode": "train"}
    report = check(norm_forward, X, np.ones(3), settings, grads=norm_backward)
    assert list(report.leaves) == ["x", "gain"]
    assert settings == {"eps": 1e-5, "mode": "train"}

    def embedding_forward(words: Any, table: Any) -> Any:
        return table[words], (words, table.shape)

    def embedding_backward(dout: Any, cache: Any) -> Any:
        words, shape = cache
        found = np.zeros(shape)
        np.add.at(found, words, dout)
        return found

    words = np.array([[0, 2, 2], [1, 0, 2]])
    assert list(check(embedding_forward, words, W, grads=embedding_backward).leaves) == ["table"]


def masked_forward(x: Any, mask: Any) -> Any:
    return x * mask, mask


def masked_backward(dout: Any, cache: Any) -> Any:
    return dout * cache


def test_a_backward_of_fewer_arguments_is_told_to_choose() -> None:
    with pytest.raises(InvalidCase, match=r"lacks 'x', .*: choose those it is of with wrt=\."):
        check(masked_forward, X, np.ones_like(X), grads=masked_backward)
    assert list(check(masked_forward, X, np.ones_like(X), grads=masked_backward, wrt=0).leaves)


def test_a_forward_without_a_cache_is_told_what_is_missing() -> None:
    with pytest.raises(
        InvalidCase, match=r"takes \(dout, cache\) and the function returns one ndarray"
    ):
        check(lambda x: 2 * x, X, grads=masked_backward)


def squares(x: Any, w: Any) -> Any:
    error = x @ w
    return (error**2).sum(), 2 * error @ w.T


def squares_of_both(x: Any, w: Any) -> Any:
    error = x @ w
    return (error**2).sum(), 2 * error @ w.T, 2 * x.T @ error


def squares_by_name(x: Any, w: Any) -> Any:
    value, dx, dw = squares_of_both(x, w)
    return value, {"dx": dx, "dw": dw}


def wrong_squares(x: Any, w: Any) -> Any:
    value, dx = squares(x, w)
    return value, dx / 2


@pytest.mark.parametrize("made", [np.array, torch.tensor, jnp.array])
def test_one_function_may_give_the_value_and_its_gradients(made: Any) -> None:
    x, w = made(X), made(W)
    assert list(check(squares, x, w, grads=squares).leaves) == ["x"]
    for both in (squares_of_both, squares_by_name):
        assert list(check(both, x, w, grads=both, wrt=(0, 1)).leaves) == ["x", "w"]
    assert check(wrong_squares, x, w, grads=wrong_squares, raise_exception=False).verdict == "FAIL"


def test_a_method_may_give_both() -> None:
    class Model:
        def __init__(self) -> None:
            self.params = {"w": W.copy()}

        def loss(self) -> Any:
            value, _, dw = squares_of_both(X, self.params["w"])
            return value, {"w": dw}

    model = Model()
    assert check(model.loss, wrt=model.params, grads=model.loss)


class Layer:
    """Forward and backward of a layer that keeps its own gradients, off by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.w, self.b, self.factor = W.copy(), B.copy(), factor

    def forward(self, x: Any) -> Any:
        self.x, self.out = x, np.tanh(x @ self.w + self.b)
        return self.out

    def backward(self, dout: Any) -> Any:
        d = dout * (1 - self.out**2)
        self.dw, self.db = self.x.T @ d, self.factor * d.sum(0)
        return self.factor * d @ self.w.T

    __call__ = forward


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_the_methods_of_a_layer_go_together(factor: float, verdict: str) -> None:
    layer = Layer(factor)
    found = vars(layer).copy()
    for forward in (layer.forward, layer):
        report = check(forward, X, grads=layer.backward, raise_exception=False)
        assert (list(report.leaves), report.verdict) == (["x"], verdict)
    own = check(lambda: layer.forward(X), wrt=layer, grads=layer.backward, raise_exception=False)
    verdicts = {name: str(leaf.verdict) for name, leaf in own.leaves.items()}
    assert verdicts == {"w": "PASS", "b": verdict}
    assert all(vars(layer)[name] is value for name, value in found.items())


class Cost:
    """The last layer, whose backward starts from 1."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def forward(self, scores: Any, labels: Any) -> Any:
        shares = np.exp(scores - scores.max(1, keepdims=True))
        self.shares, self.labels = shares / shares.sum(1, keepdims=True), labels
        return -np.log(self.shares[np.arange(len(labels)), labels]).mean()

    def backward(self, dout: float = 1.0) -> Any:
        found = self.shares.copy()
        found[np.arange(len(found)), self.labels] -= 1
        return self.factor * dout * found / len(found)


class CostAlone(Cost):
    """One whose backward takes nothing."""

    def backward(self) -> Any:
        return super().backward(1.0)


@pytest.mark.parametrize("kind", [Cost, CostAlone])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (5.0, "FAIL")])
def test_a_cost_needs_no_cotangent(kind: type[Cost], factor: float, verdict: str) -> None:
    cost = kind(factor)
    scores, labels = RNG.normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])
    report = check(cost.forward, scores, labels, grads=cost.backward, raise_exception=False)
    assert report.verdict == verdict


class Product:
    """A layer of two arguments."""

    def forward(self, x: Any, y: Any) -> Any:
        self.x, self.y = x, y
        return x * y

    def backward(self, dout: Any) -> Any:
        return dout * self.y, dout * self.x


def test_the_methods_of_a_layer_may_be_called_backward_pass() -> None:
    class Tanh:
        def forward_pass(self, x: Any, training: bool = True) -> Any:
            self.out = np.tanh(x)
            return self.out

        def backward_pass(self, accum_grad: Any) -> Any:
            return accum_grad * (1 - self.out**2)

    layer = Tanh()
    assert check(layer.forward_pass, X, grads=layer.backward_pass)


def test_a_layer_may_have_several_arguments() -> None:
    product = Product()
    with pytest.raises(InvalidCase, match=r"is a tuple of 2: .* say wrt=\(0, 1, \.\.\.\)"):
        check(product.forward, X, X + 1, grads=product.backward)
    report = check(product.forward, X, X + 1, grads=product.backward, wrt=(0, 1))
    assert list(report.leaves) == ["x", "y"]


class Objective:
    """A function and its gradient, both of the same arguments."""

    def value(self, w: Any, x: Any) -> Any:
        return (x @ w).sum() ** 2

    def gradient(self, w: Any, x: Any) -> Any:
        return 2 * (x @ w).sum() * x.sum(0)[:, None] * np.ones_like(w)


def test_a_gradient_that_takes_the_arguments_gets_them() -> None:
    objective = Objective()
    assert check(objective.value, W, X, grads=objective.gradient)


class Stack:
    """A network of layers, each of which keeps its own arrays and their gradients."""

    def __init__(self, factor: float) -> None:
        self.layers, self.rate = [Layer(factor), Layer(1.0)], 0.1
        self.layers[1].w = RNG.normal(size=(4, 4))

    def cost(self) -> Any:
        out = X
        for layer in self.layers:
            out = layer(out)
        d = 2 * out
        for layer in reversed(self.layers):
            d = layer.backward(d)
        return (out**2).sum()


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_the_layers_of_a_network_keep_their_arrays(factor: float, verdict: str) -> None:
    stack = Stack(factor)
    stack.cost()
    found = [vars(layer).copy() for layer in stack.layers]
    for held, name in ((stack, "layers[0].b"), (stack.layers, "wrt[0].b")):
        report = check(stack.cost, wrt=held, grads=held, raise_exception=False)
        assert len(report.leaves) == 4
        assert (str(report.leaves[name].verdict), report.verdict) == (verdict, verdict)
    for layer, before in zip(stack.layers, found, strict=True):
        assert all(vars(layer)[key] is value for key, value in before.items())


class Short(Stack):
    """One whose backward forgets the first layer."""

    def cost(self) -> Any:
        value = super().cost()
        for name in ("dw", "db"):
            vars(self.layers[0]).pop(name, None)
        return value

    def backward(self) -> None:
        self.cost()


@pytest.mark.parametrize("as_method", [False, True])
def test_a_layer_that_gets_no_gradient_beside_others_that_do_is_wrong(as_method: bool) -> None:
    short = Short(1.0)
    short.cost()
    grads = short.backward if as_method else short
    report = check(short.cost, wrt=short, grads=grads, raise_exception=False)
    verdicts = {name: str(leaf.verdict) for name, leaf in report.leaves.items()}
    assert verdicts == {
        "layers[0].w": "FAIL", "layers[0].b": "FAIL",
        "layers[1].w": "PASS", "layers[1].b": "PASS",
    }  # fmt: skip
    assert "no gradient" in str(report)


def test_what_calls_left_in_an_object_is_no_parameter() -> None:
    class Leaky(Layer):
        def forward(self, x: Any) -> Any:
            self.h = x @ self.w
            return super().forward(x)

        __call__ = forward

        def backward(self, dout: Any) -> Any:
            self.dh = dout * (1 - self.out**2)
            return super().backward(dout)

    layer = Leaky()
    layer.backward(layer(X))
    report = check(lambda: layer(X), wrt=layer, grads=layer.backward)
    assert list(report.leaves) == ["w", "b"]


class Lists:
    def __init__(self) -> None:
        self.params, self.grads = [W.copy(), B.copy()], [np.zeros_like(W), np.zeros_like(B)]

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.params[0] + self.params[1]

    def backward(self, dout: Any) -> Any:
        self.grads[0][...], self.grads[1][...] = self.x.T @ dout, dout.sum(0)
        return dout @ self.params[0].T


class Dicts:
    def __init__(self) -> None:
        self.params, self.grads = {"w": W.copy(), "b": B.copy()}, dict[str, Any]()

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.params["w"] + self.params["b"]

    def backward(self, dout: Any) -> Any:
        self.grads["w"], self.grads["b"] = self.x.T @ dout, dout.sum(0)
        return dout @ self.params["w"].T


class Parameter:
    def __init__(self, data: Any) -> None:
        self.data, self.grad = data.copy(), np.zeros_like(data)


class Parameters:
    def __init__(self) -> None:
        self.w, self.b = Parameter(W), Parameter(B)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.w.data + self.b.data

    def backward(self, dout: Any) -> Any:
        self.w.grad += self.x.T @ dout
        self.b.grad += dout.sum(0)
        return dout @ self.w.data.T


class Words:
    def __init__(self) -> None:
        self.weights, self.bias = W.copy(), B.copy()

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.weights + self.bias

    def backward(self, dout: Any) -> Any:
        self.dW, self.db = self.x.T @ dout, dout.sum(0)
        return dout @ self.weights.T


KEPT = {
    Lists: ["params[0]", "params[1]"],
    Dicts: ["params['w']", "params['b']"],
    Parameters: ["w.data", "b.data"],
    Words: ["weights", "bias"],
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_layer_may_keep_its_gradients_in_a_store_of_their_own(kind: Any) -> None:
    layer = kind()
    report = check(lambda: layer.forward(X), wrt=layer, grads=layer.backward)
    assert list(report.leaves) == KEPT[kind]

    class Wrong(kind):
        def backward(self, dout: Any) -> Any:
            return super().backward(1.01 * dout)

    wrong = Wrong()
    report = check(lambda: wrong.forward(X), wrt=wrong, grads=wrong.backward, raise_exception=False)
    assert {str(leaf.verdict) for leaf in report.leaves.values()} == {"FAIL"}


def test_names_that_mean_something_else_are_no_parameters() -> None:
    class Weighted:
        """Weights of the samples and the data beside the parameter; ``grad`` is an operator."""

        def __init__(self) -> None:
            self.w, self.weights, self.data = W[:, 0].copy(), np.full(5, 0.7), X.copy()
            self.grad = np.linspace(1, 2, 5)

        def loss(self) -> Any:
            self.error = self.grad * (self.data @ self.w)
            return np.sum(self.weights * self.error**2)

        def backward(self) -> None:
            self.dw = 2 * self.data.T @ (self.weights * self.grad * self.error)

    net = Weighted()
    report = check(net.loss, wrt=net, grads=net.backward)
    assert list(report.leaves) == ["w"]


def test_a_parameter_of_a_store_that_gets_no_gradient_is_wrong() -> None:
    class Forgets(Dicts):
        def backward(self, dout: Any) -> Any:
            self.grads["w"] = self.x.T @ dout
            return dout @ self.params["w"].T

    layer = Forgets()
    report = check(lambda: layer.forward(X), wrt=layer, grads=layer.backward, raise_exception=False)
    assert str(report.leaves["params['b']"].verdict) == "FAIL"


def test_an_audit_of_a_layer_that_keeps_its_gradients_takes_them_as_its_own() -> None:
    for kind in (Lists, Words):
        layer = kind()
        assert audit(lambda layer=layer: layer.forward(X), wrt=layer, grads=layer.backward)


def test_settings_that_a_backward_has_a_value_for_reach_it() -> None:
    def dense(x: Any, w: Any, b: Any, activation: str) -> Any:
        z = x @ w + b
        return (np.tanh(z) if activation == "tanh" else z), (x, w, z)

    def backward(dout: Any, cache: Any, activation: str = "none") -> Any:
        x, w, z = cache
        d = dout / np.cosh(z) ** 2 if activation == "tanh" else dout
        return d @ w.T, x.T @ d, d.sum(0)

    assert check(dense, X, W, B, "tanh", grads=backward)
    assert check(dense, X, W, B, kwargs={"activation": "tanh"}, grads=backward)

    def power(x: Any, n: int) -> Any:
        return x**n

    assert check(power, X, 3, grads=lambda dout, x, n=2: dout * n * x ** (n - 1))


def test_arguments_are_handed_over_by_name_under_a_loss_too() -> None:
    def apart(guess: Any, truth: Any) -> Any:
        return (guess - truth) ** 2

    assert check(
        apart, X, X + 1, loss=lambda y: y.sum(), grads=lambda truth, guess: 2 * (guess - truth)
    )


def test_what_could_be_an_argument_is_no_cotangent() -> None:
    assert check(lambda x: (x**2).sum(), X, grads=lambda v, *_: 2 * v)
    assert check(
        lambda x, mask: x * mask, X, X > 0, grads=lambda dout, x, attn_mask: dout * attn_mask
    )

    def both(x: Any) -> Any:
        return np.sin(x), x

    assert check(both, X, grads=lambda u, x: u[0] * np.cos(x) + u[1])


def test_a_class_that_was_made_by_exec_is_one_of_the_users() -> None:
    made: dict[str, Any] = {}
    exec(  # as where snippets are run
        "import numpy as np\n"
        "class Layer:\n"
        "    def __init__(self, w): self.W = w\n"
        "    def forward(self, x): self.x = x; return x @ self.W\n"
        "    def backward(self, dout): self.dW = self.x.T @ dout; return dout @ self.W.T\n",
        made,
    )
    layer = made["Layer"](W.copy())
    assert type(layer).__module__ == "builtins"
    assert check(lambda: layer.forward(X), wrt=layer, grads=layer.backward)
    assert (layer.W == W).all() and not hasattr(layer, "dW")


def test_the_arrays_of_a_layer_that_is_checked_in_its_input_are_named() -> None:
    layer = Words()
    report = check(layer.forward, X, grads=layer.backward)
    assert report.skipped == ("weights, bias: of the Words itself, for a closure with wrt=",)


def test_a_layer_with_its_gradients_elsewhere_is_told_how_to_be_given() -> None:
    class Apart(Dicts):
        def backward(self, dout: Any) -> Any:
            self.found = {"of w": self.x.T @ dout, "of b": dout.sum(0)}
            return dout @ self.params["w"].T

    layer = Apart()
    with pytest.raises(InvalidCase, match="leaves no gradient beside an array of it, as dW beside"):
        check(lambda: layer.forward(X), wrt=layer, grads=layer.backward)

    def gradients(cotangent: Any) -> Any:
        layer.backward(cotangent)
        return {"w": layer.found["of w"], "b": layer.found["of b"]}

    assert check(lambda: layer.forward(X), wrt=layer.params, grads=gradients)


class Objective2(Objective):
    """Names that the other forms know, meant as they are written."""

    def attention(self, q: Any, cache: Any) -> Any:
        return (q * cache).sum() ** 2

    def backward(self, q: Any, cache: Any) -> Any:
        return 2 * (q * cache).sum() * cache

    def step(self, weights: Any) -> Any:
        return (weights**3).sum()

    def pair(self) -> Any:
        return self.step(self.w), {"w": 3 * self.w**2}


def test_a_gradient_that_takes_what_the_function_takes_is_no_half() -> None:
    objective = Objective2()
    assert check(objective.attention, X, X + 1, grads=objective.backward)
    objective.w = X.copy()
    assert check(lambda: objective.step(objective.w), wrt={"w": objective.w}, grads=objective.pair)


def test_a_layer_in_a_function_of_its_argument_gets_the_cotangent() -> None:
    cost, labels = Cost(), np.array([0, 2, 1, 1, 0])
    scores = RNG.normal(size=(5, 3))
    assert check(lambda scores: cost.forward(scores, labels), scores, grads=cost.backward)
    layer = Layer()
    assert check(lambda x: layer.forward(x), X, grads=layer.backward)


def test_equal_numbers_of_an_object_are_parameters_each() -> None:
    class Line:
        def __init__(self) -> None:
            self.rate = self.b = 0.25
            self.w, self.grads = np.array([0.3, -1.2]), {}

        def cost(self) -> Any:
            error = ROWS @ self.w + self.b
            self.grads = {"w": 2 * ROWS.T @ error, "b": 2 * self.factor * error.sum()}
            return error @ error

    line = Line()
    for line.factor, verdict in ((1.0, "PASS"), (1.5, "FAIL")):  # type: ignore[attr-defined]
        report = check(line.cost, wrt=line, grads=lambda: line.grads, raise_exception=False)
        assert str(report.leaves["b"].verdict) == verdict


class Counting:
    """A layer that gives its bias a gradient of another kind than an array of floats."""

    def __init__(self, of_bias):
        rng = np.random.default_rng(0)
        self.W, self.b, self.of_bias = rng.normal(size=(3, 2)), rng.normal(size=2), of_bias

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, d):
        self.dW, self.db = self.x.T @ d, self.of_bias(d)
        return d @ self.W.T


@pytest.mark.parametrize(
    ("of_bias", "verdict"),
    [
        (lambda d: list(d.sum(0)), "PASS"),
        (lambda d: list(2 * d.sum(0)), "FAIL"),
        (lambda d: tuple(2 * d.sum(0)), "FAIL"),
        (lambda d: np.ones(2, int), "FAIL"),
        (lambda d: d.sum(0) > 0, "FAIL"),
        (lambda d: [[n] for n in 2 * d.sum(0)], None),
        (lambda d: None, None),
        (lambda d: 3, None),
    ],
)
def test_a_gradient_of_any_kind_is_one(of_bias, verdict) -> None:
    layer, x = Counting(of_bias), np.random.default_rng(1).normal(size=(5, 3))
    grads = layer.backward
    report = check(lambda: layer.forward(x), wrt=layer, grads=grads, raise_exception=False)
    expected = {"W": "PASS"} | ({"b": verdict} if verdict else {})
    assert {name: str(leaf.verdict) for name, leaf in report.leaves.items()} == expected
    assert verdict or any("b: no gradient was given" in text for text in report.skipped)


def test_sizes_and_what_is_not_yet_there_are_no_gradients() -> None:
    class Attention:
        """Beside k lies d_k, a size; beside x the dx that nobody asks for; beside n a tuple."""

        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.W, self.k, self.d_k = rng.normal(size=(3, 3)), 2.0, 3
            self.n, self.dn, self.dt, self.t = np.ones(3), (1, 1, 1), 1, 0.5
            self.x, self.dx = rng.normal(size=(5, 3)), None

        def forward(self) -> Any:
            return np.tanh(self.x @ self.W) / self.d_k

        def backward(self, d: Any) -> None:
            hidden = np.tanh(self.x @ self.W)
            self.dW = self.x.T @ (d * (1 - hidden**2)) / self.d_k

    layer = Attention()
    report = check(layer.forward, wrt=layer, grads=layer.backward)
    assert report.verdict == "PASS" and [*report.leaves] == ["W"]


def waves(x):
    return np.sin(x), np.cos(x)


def waves_back(u, v, x):
    return u * np.cos(x) - v * np.sin(x)


@pytest.mark.parametrize(
    "grads",
    [
        waves_back,
        lambda u, v, z: waves_back(u, v, z),
        lambda x, u, v: waves_back(u, v, x),
        lambda u, x: waves_back(*u, x),
    ],
)
def test_a_gradient_may_take_a_cotangent_for_each_output(grads):
    x = np.linspace(0.1, 1.0, 3)
    assert check(waves, x, grads=grads)
    assert check(lambda x: (np.sin(x), x.argsort(), np.cos(x)), x, grads=waves_back)
    wrong = check(waves, x, grads=lambda u, v, x: waves_back(u, -v, x), raise_exception=False)
    assert wrong.verdict == "FAIL"


def test_a_closure_may_have_a_cotangent_for_each_output():
    p = {"w": np.linspace(0.1, 1.0, 3)}
    how = {"wrt": p, "grads": lambda u, v: {"w": waves_back(u, v, p["w"])}}
    assert check(lambda: waves(p["w"]), **how)


def test_more_arguments_than_cotangents_are_refused():
    with pytest.raises(InvalidCase, match=r"2 more .* returns one ndarray: let it take"):
        check(np.sin, np.ones(3), grads=waves_back)


def test_a_backward_of_what_the_forward_keeps_is_told_what_to_call_it():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 3))

    def product(a, b):
        return a @ b, (a, b)

    assert check(product, a, b, grads=lambda dout, cache: (dout @ cache[1].T, cache[0].T @ dout))
    with pytest.raises(InvalidCase, match="If c is what the function keeps for it, call it cache"):
        check(product, a, b, grads=lambda dout, c: (dout @ c[1].T, c[0].T @ dout))
