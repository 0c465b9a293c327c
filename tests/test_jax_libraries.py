"""What people build with JAX: equinox, flax, optax and haiku, as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import Model

from xgradcheck import Verdict, check

eqx: Any = pytest.importorskip("equinox")
optax: Any = pytest.importorskip("optax")
hk: Any = pytest.importorskip("haiku")
flax: Any = pytest.importorskip("flax")
from flax import linen, nnx  # noqa: E402

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 4))
LABELS = np.array([0, 2, 1, 1, 0])


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and the names of some of its leaves."""

    model: Model
    leaves: set[str]
    others: set[str]
    """What is listed as not checked."""


def equinox_network() -> Case:
    network = eqx.nn.MLP(4, 3, 6, 1, activation=jax.nn.gelu, key=KEY)
    model = Model(lambda m, x: jax.vmap(m)(x), (network, X))
    return Case(model, {"m.layers[0].weight", "m.layers[1].bias"}, {"x: not in wrt"})


class Layer(eqx.Module):
    """A function among the fields, a static one, and a rate that is a plain number."""

    linear: Any
    drop: Any
    norm: Any
    act: Callable[[Any], Any]
    name: str = eqx.field(static=True)

    def __call__(self, x: Any, key: Any) -> Any:
        return self.drop(self.act(self.norm(self.linear(x))), key=key)


def equinox_layer() -> Case:
    parts = eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Dropout(0.3), eqx.nn.LayerNorm(3)
    layer = Layer(*parts, jax.nn.silu, "layer")
    model = Model(lambda m, x, key: jax.vmap(lambda v: m(v, key))(x), (layer, X, KEY))
    return Case(
        model,
        {"m.linear.weight", "m.norm.bias"},
        {"x: not in wrt", "key: key<fry>, not differentiable"},
    )


def equinox_filter_jit() -> Case:
    network = eqx.nn.GRUCell(4, 3, key=KEY)

    @eqx.filter_jit
    def run(cell: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, v: (cell(v, h), h), jnp.zeros(3, x.dtype), x)[1]

    return Case(Model(run, (network, X)), {"cell.weight_hh"}, set())


def equinox_attention() -> Case:
    network = eqx.nn.MultiheadAttention(2, 4, key=KEY)
    model = Model(lambda m, x: m(x, x, x), (network, X))
    return Case(model, {"m.query_proj.weight"}, {"x: not in wrt"})


def equinox_state() -> Case:
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, axis_name="batch", mode="batch")

    def run(norm: Any, x: Any, state: Any) -> Any:
        out, _ = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return out * jnp.arange(4.0)[None]

    return Case(Model(run, (norm, X, state)), {"norm.weight", "norm.bias"}, {"x: not in wrt"})


class Net(linen.Module):
    """With a normalisation whose statistics move, and dropout."""

    @linen.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(6)(x))
        x = linen.Dropout(0.3, deterministic=not train)(linen.tanh(x))
        return linen.Dense(2)(x)


def variables() -> Any:
    found = Net().init({"params": KEY, "dropout": KEY}, X)
    # Fresh biases are zeros, and fresh statistics ones: no point to look at.
    return jax.tree.map(lambda v: v + 0.1 * jax.random.uniform(KEY, v.shape), found)


def linen_in_training() -> Case:
    found = variables()

    def run(params: Any, x: Any, key: Any) -> Any:
        tree = {"params": params, "batch_stats": found["batch_stats"]}
        return Net().apply(tree, x, mutable=["batch_stats"], rngs={"dropout": key})

    model = Model(run, (found["params"], X, KEY))
    return Case(model, {"params['Dense_0']['kernel']", "params['BatchNorm_0']['scale']"}, set())


def linen_variables() -> Case:
    model = Model(lambda v, x: Net().apply(v, x, train=False), (flax.core.freeze(variables()), X))
    return Case(model, {"v['batch_stats']['BatchNorm_0']['mean']"}, {"x: not in wrt"})


class TrainState(flax.struct.PyTreeNode):
    """As flax keeps it: a counter among the leaves, a function beside them."""

    params: Any
    step: int
    apply: Any = flax.struct.field(pytree_node=False)


def train_state() -> Case:
    found = variables()
    state = TrainState(found["params"], 3, Net().apply)

    def run(state: Any, x: Any) -> Any:
        tree = {"params": state.params, "batch_stats": found["batch_stats"]}
        return state.apply(tree, x, train=False)

    return Case(Model(run, (state, X)), {"state.params['Dense_1']['bias']"}, {"x: not in wrt"})


class Mutable(nnx.Module):
    """With statistics, and keys in its state."""

    def __init__(self, rngs: Any) -> None:
        self.inner, self.norm = (
            nnx.Linear(4, 6, use_bias=False, rngs=rngs),
            nnx.BatchNorm(6, rngs=rngs),
        )
        self.drop, self.outer = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.outer(self.drop(jnp.tanh(self.norm(self.inner(x)))))


def nnx_state() -> Case:
    graph, state = nnx.split(Mutable(nnx.Rngs(0)))
    model = Model(lambda state, x: nnx.merge(graph, state)(x), (state, X))
    return Case(
        model,
        {"state['inner']['kernel'].value"},
        {"state['drop']['rngs']['key'].value: key<fry>, not differentiable"},
    )


def nnx_parameters() -> Case:
    graph, params, rest = nnx.split(Mutable(nnx.Rngs(0)), nnx.Param, ...)
    model = Model(lambda p, rest, x: nnx.merge(graph, p, rest)(x), (params, rest, X))
    return Case(model, {"p['norm']['scale'].value"}, {"x: not in wrt"})


def haiku_parameters() -> Case:
    transformed = hk.transform(lambda x: hk.Linear(3)(jnp.tanh(hk.Linear(5)(x))))
    model = Model(lambda p, x: transformed.apply(p, None, x), (transformed.init(KEY, X), X))
    return Case(model, {"p['linear_1']['w']"}, {"x: not in wrt"})


def a_key_in_the_state() -> Case:
    state = {"w": jax.random.normal(KEY, (4, 2)), "rng": jax.random.PRNGKey(1), "step": 3}

    def run(state: Any, x: Any) -> Any:
        return jnp.tanh(x @ state["w"]) * jax.random.normal(state["rng"], (5, 2))

    return Case(Model(run, (state, X)), {"state['w']"}, {"x: not in wrt"})


def of_scores(loss: Callable[[Any], Any]) -> Case:
    scores = jax.random.normal(KEY, (5, 3))
    return Case(Model(lambda scores: loss(scores), (scores,)), {"scores"}, set())


LOSSES: dict[str, Callable[[Any], Any]] = {
    "cross_entropy": lambda s: optax.softmax_cross_entropy_with_integer_labels(s, LABELS),
    "focal": lambda s: optax.sigmoid_focal_loss(s, jnp.ones_like(s)),
    "huber": lambda s: optax.huber_loss(s).mean(),
    "log_cosh": lambda s: optax.log_cosh(s),
    "cosine": lambda s: optax.cosine_distance(s, jnp.ones_like(s)),
    "kl": lambda s: optax.kl_divergence(jax.nn.log_softmax(s), jnp.full((5, 3), 1 / 3)),
    "poly": lambda s: optax.losses.poly_loss_cross_entropy(s, jnp.eye(3)[LABELS]),
    "ctc": lambda s: optax.ctc_loss(
        s[None], jnp.zeros((1, 5)), jnp.array([[1, 2]]), jnp.zeros((1, 2))
    ),
}
CASES: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (
        equinox_network,
        equinox_layer,
        equinox_filter_jit,
        equinox_attention,
        equinox_state,
        linen_in_training,
        linen_variables,
        train_state,
        nnx_state,
        nnx_parameters,
        haiku_parameters,
        a_key_in_the_state,
    )
} | {f"optax_{name}": lambda loss=loss: of_scores(loss) for name, loss in LOSSES.items()}


# What they are made of is in another case, too, and JAX compiles them for long.
LONG = {"nnx_parameters", "linen_in_training"}


def named(name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])


@pytest.mark.parametrize("name", [*map(named, CASES)])
def test_a_model_passes_and_its_spoilt_twin_does_not(name: str) -> None:
    case = CASES[name]()
    report = case.model.report(0)
    assert report.verdict is Verdict.PASS, str(report)
    assert case.leaves <= {*report.leaves} and case.others <= {*report.skipped}
    for leaf in report.leaves.values():
        assert [row.judged for row in leaf.rows] == ["float64", "float32 as run"]
    model, spoilt = case.model.spoilt()
    report = model.report(0)
    wrong = {name for name, leaf in report.leaves.items() if leaf.verdict is Verdict.FAIL}
    assert wrong == {spoilt}


def test_a_module_that_is_called_itself() -> None:
    network = eqx.nn.MLP(4, 3, 6, 1, key=KEY)
    assert tuple(check(jax.vmap(network), X).leaves) == ("x",)
    leaves = tuple(check(network, X[0]).leaves)
    assert leaves[0] == "x" and "layers[0].weight" in leaves


def test_a_plain_number_is_a_leaf_only_where_nothing_else_is() -> None:
    report = check(lambda p: jnp.sin(p["a"] * p["b"]), {"a": 0.3, "b": 2.0}, wrt=0, backend="jax")
    assert tuple(report.leaves) == ("p['a']", "p['b']")
    tree = {"rate": 0.3, "w": X}
    report = check(lambda p: p["rate"] * jnp.sin(p["w"]), tree, wrt=0)
    assert tuple(report.leaves) == ("p['w']",)


def test_mutable_state_that_is_kept_in_slots_is_put_back() -> None:
    class Counter:
        __slots__ = ("total", "unbound")

        def __init__(self) -> None:
            self.total = jnp.zeros(())

    counter = Counter()

    def fn(x: Any) -> Any:
        # Read by the values, so that it runs eagerly.
        counter.total = counter.total + float(jnp.ones(()))
        return jnp.sin(x) * counter.total

    found = counter.total
    report = check(fn, X[0])
    assert report.verdict is Verdict.PASS and counter.total is found
    assert any("Counter" in note for note in report.notes)


class Scale(eqx.Module):
    """A layer of equinox, with a rule that is right or not in its own weight."""

    weight: jax.Array
    factor: float = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        @jax.custom_vjp
        def product(weight: Any, x: Any) -> Any:
            return weight[None] * x

        product.defvjp(
            lambda weight, x: (weight[None] * x, (weight, x)),
            lambda kept, u: (self.factor * (u * kept[1]).sum(0), u * kept[0][None]),
        )
        return jnp.tanh(product(self.weight, x))

    def scaled(self, x: Any) -> Any:
        return 2 * self(x)


class Dense(nnx.Module):
    """The same of flax, with a state of its own."""

    def __init__(self, factor: float) -> None:
        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        self.factor = factor

    def __call__(self, x: Any) -> Any:
        # A share of the weight alone, of which the backward hears nothing.
        kernel = self.linear.kernel[...]
        off = (self.factor - 1) * (kernel - jax.lax.stop_gradient(kernel))
        return self.norm(self.linear(x) + jax.lax.stop_gradient(x) @ off)


ROWS = np.random.default_rng(2).normal(size=(5, 3)).astype("f4")


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (3.0, "FAIL")])
def test_a_module_as_the_function_is_checked_in_its_own_arrays(factor: float, verdict: str) -> None:
    layer = Scale(jnp.array([0.3, -1.2, 0.7]), factor)
    for fn, name in ((layer, "weight"), (layer.scaled, "__self__.weight")):
        report = check(fn, jnp.array(ROWS), raise_exception=False)
        verdicts = {leaf: str(own.verdict) for leaf, own in report.leaves.items()}
        assert verdicts == {"x": "PASS", name: verdict}
    # Those that are asked for are leaves alone, by number or name.
    assert list(check(layer, jnp.array(ROWS), wrt=0).leaves) == ["x"]
    alone = check(layer, jnp.array(ROWS), wrt="weight", raise_exception=False)
    assert (list(alone.leaves), alone.verdict) == (["weight"], verdict)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.5, "FAIL")])
def test_a_module_of_flax_with_a_state_may_be_the_function(factor: float, verdict: str) -> None:
    layer = Dense(factor)
    before = [np.asarray(part) for part in jax.tree_util.tree_leaves(layer)]
    report = check(layer, jnp.array(ROWS), raise_exception=False)
    failed = [name for name, own in report.leaves.items() if own.verdict is Verdict.FAIL]
    assert report.verdict == verdict
    assert failed == (["linear.kernel.value"] if verdict == "FAIL" else [])
    after = [np.asarray(part) for part in jax.tree_util.tree_leaves(layer)]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


class Named(eqx.Module):
    """A layer whose array is called like an argument, and takes a keyword called self."""

    x: jax.Array
    factor: float = eqx.field(static=True)

    def __call__(module, x: Any, *, self: Any = 1.0) -> Any:
        @jax.custom_vjp
        def product(own: Any, x: Any) -> Any:
            return own * x

        product.defvjp(
            lambda own, x: (own * x, (own, x)),
            lambda kept, u: (module.factor * u * kept[1], u * kept[0]),
        )
        return jnp.sin(product(module.x, x)) * self


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (1.5, "FAIL")])
def test_an_array_of_a_module_may_be_called_like_an_argument(factor: float, verdict: str) -> None:
    layer = Named(jnp.array([0.3, -1.2, 0.7]), factor)
    for fn, kwargs in ((layer, {}), (layer.__call__, {}), (layer, {"self": jnp.ones(3) / 3})):
        report = check(fn, jnp.array(ROWS[0]), kwargs=kwargs, raise_exception=False)
        verdicts = {name: str(leaf.verdict) for name, leaf in report.leaves.items()}
        assert verdicts == {"x": "PASS", "self.x": verdict} | dict.fromkeys(kwargs, "PASS")


def test_a_module_that_a_function_closes_over_is_named() -> None:
    network = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
    for fn in (jax.vmap(network), jax.vmap(network.__call__)):
        report = check(fn, jnp.array(ROWS))
        assert any("the arrays of MLP: the function closes over them" in t for t in report.skipped)
