"""The user's world is left as found, however a check ends; and held still while it runs."""

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fingerprint import fingerprint
from torch import nn

from xgradcheck import GradientMismatch, Report, check
from xgradcheck.backends import jax_draws


class Boom(Exception):
    """Raised by a function in the middle of a check."""


@dataclass
class Trap:
    """Counts the calls of a function, and from one of them on raises."""

    error: BaseException | None = None
    springs_at: float = 0
    calls: int = 0

    def step(self) -> None:
        self.calls += 1
        if self.error is not None and self.calls >= self.springs_at:
            raise self.error


@dataclass(frozen=True)
class World:
    """What one user has: a check to make (right or broken), the function it calls, and all that a
    check could disturb.
    """

    check: Callable[[bool, bool], Report]
    call: Callable[[], Any]
    state: Callable[[], Any]
    seen: set[str]


Build = Callable[[Trap], World]


# What stands inside a world is a user's code, and written like one.


def numpy_arguments(trap: Trap) -> World:
    rng = np.random.default_rng(0)
    params = {"W": np.asfortranarray(rng.standard_normal((2, 3))), "b": [rng.standard_normal(3)]}
    data, own, seen = rng.standard_normal((4, 2)), np.random.default_rng(1), set()
    broken = False

    def cost(params, data):
        seen.add(fingerprint(params))
        mask = own.random(3) + np.random.random() + random.random()
        cost.z = (data @ params["W"] + params["b"][0]) * mask
        value = np.sum(np.tanh(cost.z))
        cost.slope = (1 - np.tanh(cost.z) ** 2) * mask
        cost.data = data.copy()
        trap.step()
        params["W"] *= 2.0
        data[0] = 0.0
        return value

    def grads(params, data):
        slope = cost.slope
        return {"dW": cost.data.T @ slope * (1.5 if broken else 1.0), "db": [slope.sum(axis=0)]}

    def run(wrong, raises):
        nonlocal broken
        broken = wrong
        return check(cost, params, data, grads=grads, raise_exception=raises)

    return World(
        run,
        lambda: cost(params, data),
        lambda: (params, data, own, np.random.get_state(), random.getstate(), list(params)),
        seen,
    )


def numpy_dict(trap: Trap) -> World:
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((2, 3))[:, ::-1], "b": np.array(0.5), "scale": 1.5}
    params["fixed"] = rng.standard_normal(2)
    params["fixed"].flags.writeable = False
    data, seen = rng.standard_normal((4, 2)), set()
    grads = {}

    def cost():
        seen.add(fingerprint(params))
        W, b, scale, fixed = params["W"], params["b"], params["scale"], params["fixed"]
        z = data @ W + b
        grads["W"][...] = scale * (data.T @ np.cos(z))
        grads["b"][...] = scale * np.cos(z).sum()
        grads["scale"][...] = np.sin(z).sum()
        grads["fixed"][...] = 2 * fixed
        trap.step()
        return scale * np.sin(z).sum() + np.sum(fixed**2)

    grads.update({key: np.zeros(np.shape(value)) for key, value in params.items()})
    with suppress(BaseException):
        cost()
    trap.calls = 0

    def run(wrong, raises):
        right = grads["W"].copy()
        grads["W"] *= 1.5 if wrong else 1.0
        before = fingerprint(grads)
        try:
            return check(cost, wrt=params, grads=grads, raise_exception=raises)
        finally:
            assert fingerprint(grads) == before
            grads["W"][...] = right

    def call():
        params["W"] += 1.0
        cost()

    def state():
        return params, grads, [id(value) for value in (*params.values(), *grads.values())]

    return World(run, call, state, seen)


def numpy_object(trap: Trap) -> World:
    class Net:
        def __init__(self):
            rng = np.random.default_rng(0)
            self.W, self.b = rng.standard_normal((2, 3)), rng.standard_normal(3)
            self.X = rng.standard_normal((4, 2))
            self.noise = np.random.default_rng(3)
            self.factor = 1.0

        def loss(self):
            seen.add(fingerprint(self.W, self.b))
            mask = self.noise.random(3) + np.random.normal()
            z = (self.X @ self.W + self.b) * mask
            slope = np.cos(z) * mask
            self.dW, self.db = self.X.T @ slope * self.factor, slope.sum(axis=0)
            trap.step()
            return np.sum(np.sin(z))

        def grads(self):
            return {"W": self.dW, "b": self.db}

    seen = set()
    net = Net()

    def run(wrong, raises):
        net.factor = 1.5 if wrong else 1.0
        try:
            wrt = {"W": net.W, "b": net.b}
            return check(net.loss, wrt=wrt, grads=net.grads, raise_exception=raises)
        finally:
            net.factor = 1.0

    def state():
        arrays = net.W, net.b, net.X
        return arrays, net.noise, np.random.get_state(), [id(array) for array in arrays]

    return World(run, net.loss, state, seen)


class Scaled(torch.autograd.Function):
    """x * scale, whose backward is off by a factor where it is told to be."""

    @staticmethod
    def forward(ctx, x, scale, factor):
        ctx.save_for_backward(x, scale)
        ctx.factor = factor
        return x * scale

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return g * scale * ctx.factor, (g * x).sum(dim=0), None


class Busy(nn.Module):
    """A module that disturbs whatever a module can reach."""

    def __init__(self, trap):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.dropout = nn.Dropout(0.3)
        self.scale = nn.Parameter(torch.rand(4, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(4, dtype=torch.float64), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("trace", torch.zeros(4, dtype=torch.float64))
        self.linear.weight.grad = torch.full((4, 3), 7.0, dtype=torch.float64)
        self.trap, self.factor, self.log = trap, 1.0, ["made"]
        self.queue, self.counts = deque([0], maxlen=3), {"calls": 0}
        seen: set[str] = set()
        self.note = seen.add  # what a module keeps in a set of its own is put back

    def forward(self, x):
        self.log.append("called")
        self.queue.append(len(self.queue))
        self.counts["calls"] += 1
        self.counts[len(self.log)] = x
        self.note(fingerprint([p.detach() for p in self.parameters()], x.detach()))
        noise = random.random() + np.random.random()
        h = self.dropout(self.norm(self.linear(x))) * self.frozen * noise
        h = Scaled.apply(h + 0.01 * self.calls, self.scale, self.factor)
        with torch.no_grad():
            self.calls += 1
            self.trace = self.trace * 0.9 + h.mean(dim=0)
            self.linear.weight.grad += 1.0
            self.norm.weight.grad = torch.ones(4, dtype=torch.float64)
        self.eval()
        self.frozen.requires_grad_(True)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.trap.step()
        return h


def torch_state(module: nn.Module, *tensors: torch.Tensor) -> Any:
    parts = list(module.state_dict(keep_vars=True).values())
    modes = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    randoms = torch.get_rng_state(), np.random.get_state(), random.getstate()
    identities = [(id(part), id(part.grad)) for part in parts]
    logs = list(module.log), list(module.queue), dict(module.counts)
    return module, tensors, modes, deterministic, warn_only, randoms, identities, logs


def torch_module(trap: Trap) -> World:
    module = Busy(trap)
    x = torch.rand(5, 3, dtype=torch.float64).t().contiguous().t()

    def run(wrong, raises):
        module.factor = 1.5 if wrong else 1.0
        return check(module, x, wrt=["*", "x"], raise_exception=raises)

    return World(run, lambda: module(x), lambda: torch_state(module, x), module.note.__self__)


def torch_closure(trap: Trap) -> World:
    module = Busy(trap)
    x, free = torch.rand(5, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    free.grad = torch.ones(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)

    def loss():
        drawn = torch.rand(3, generator=generator, dtype=torch.float64)
        return module(x * free * drawn).square().sum()

    def run(wrong, raises):
        module.factor = 1.5 if wrong else 1.0
        tensors = {"free": free, **dict(module.named_parameters())}
        return check(loss, wrt=tensors, raise_exception=raises)

    def state():
        return torch_state(module, x, free), generator.get_state()

    return World(run, loss, state, module.note.__self__)


def torch_arguments(trap: Trap) -> World:
    torch.manual_seed(0)
    x = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(3, dtype=torch.float64)
    table = torch.arange(6.0, dtype=torch.float64)[::2]
    x.grad = torch.ones(4, 3, dtype=torch.float64)
    factor, seen = 1.0, set()

    def fn(x, options, table):
        seen.add(fingerprint(x.detach(), options["scale"].detach()))
        x = F.dropout(x, 0.3, training=True) * table.clone()
        with torch.no_grad():
            table += 1.0
        torch.set_default_dtype(torch.float64)
        trap.step()
        return Scaled.apply(x, options["scale"], factor)

    def run(wrong, raises):
        nonlocal factor
        factor = 1.5 if wrong else 1.0
        options = {"scale": scale}
        return check(fn, x, options, table, wrt=["x", "options"], raise_exception=raises)

    def state():
        modes = torch.get_default_dtype(), torch.is_grad_enabled()
        return x, scale, table, modes, torch.get_rng_state(), id(x.grad)

    return World(run, lambda: fn(x, {"scale": scale}, table), state, seen)


def _jax_world(trap: Trap, traceable: bool) -> World:
    with jax_draws.x64():
        params = {"W": jnp.arange(6.0).reshape(2, 3) / 7, "b": np.linspace(0.1, 0.3, 3)}
        x = jnp.ones((2,))
    own, seen = np.random.default_rng(0), set()
    factor = 1.0

    @jax.custom_vjp
    def sine(z):
        return jnp.sin(z)

    sine.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (g * jnp.cos(z) * factor,))

    def fn(params, x):
        trap.step()
        noise = own.random() + np.random.random() + random.random()
        if not traceable and x @ params["W"] @ params["b"] < -1e9:
            return jnp.zeros(3)
        if not isinstance(params["W"], jax.core.Tracer):
            seen.add(fingerprint(params))
        return sine(x @ params["W"]) * noise * params["b"]

    def run(wrong, raises):
        nonlocal factor
        factor = 1.5 if wrong else 1.0
        return check(fn, params, x, wrt=0, backend="jax", raise_exception=raises)

    def call():
        with jax_draws.x64():
            fn(params, x)

    def state():
        flag = jax.config.jax_enable_x64, jnp.zeros(1).dtype
        return params, x, own, np.random.get_state(), random.getstate(), flag

    return World(run, call, state, seen)


def jax_traced(trap: Trap) -> World:
    return _jax_world(trap, traceable=True)


def jax_eager(trap: Trap) -> World:
    return _jax_world(trap, traceable=False)


NUMPY = [numpy_arguments, numpy_dict, numpy_object]
TORCH = [torch_module, torch_closure, torch_arguments]
JAX = [jax_traced, jax_eager]
every_world = pytest.mark.parametrize(
    ("build", "x64"),
    [(build, False) for build in (*NUMPY, *TORCH)] + [(b, flag) for b in JAX for flag in (0, 1)],
    ids=lambda part: part.__name__ if callable(part) else f"x64={int(part)}",
    indirect=["x64"],
)


@pytest.fixture
def x64(request):
    """JAX's global flag, as a user may have set it."""
    found = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", bool(request.param))
    yield
    jax.config.update("jax_enable_x64", found)


@pytest.fixture(autouse=True)
def _own_world():
    """What the worlds here disturb on purpose is put back, for the tests of other files."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


def calls_of_a_whole_check(build: Build) -> int:
    trap = Trap()
    build(trap).check(False, False)
    return trap.calls


@every_world
def test_the_world_is_as_found_after_a_pass(build, x64):
    world = build(Trap())
    before = fingerprint(world.state())
    report = world.check(False, True)
    assert report.verdict == "PASS", str(report)
    assert fingerprint(world.state()) == before


@every_world
def test_the_world_is_as_found_after_a_fail_that_is_returned(build, x64):
    world = build(Trap())
    before = fingerprint(world.state())
    assert world.check(True, False).verdict == "FAIL"
    assert fingerprint(world.state()) == before


@every_world
def test_the_world_is_as_found_after_a_fail_that_is_raised(build, x64):
    world = build(Trap())
    before = fingerprint(world.state())
    with pytest.raises(GradientMismatch):
        world.check(True, True)
    assert fingerprint(world.state()) == before


@pytest.mark.parametrize("error", [Boom("no"), KeyboardInterrupt()], ids=["exception", "Ctrl-C"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
@every_world
def test_the_world_is_as_found_after_the_function_raises_in_the_middle(build, share, error, x64):
    calls = calls_of_a_whole_check(build)
    trap = Trap(error, springs_at=max(1, round(share * calls)))
    world = build(trap)
    before = fingerprint(world.state())
    with pytest.raises(type(error)) as raised:
        world.check(False, False)
    assert raised.value is error
    assert trap.calls >= trap.springs_at
    assert fingerprint(world.state()) == before


@every_world
def test_one_call_of_the_function_disturbs_this_world(build, x64):
    """Or else the tests above would prove nothing."""
    world = build(Trap())
    before = fingerprint(world.state())
    world.call()
    assert fingerprint(world.state()) != before


@pytest.mark.parametrize("build", [*NUMPY, *TORCH, jax_eager])
def test_the_function_of_this_world_is_called_at_many_points(build):
    """Or else the tests above would prove nothing."""
    world = build(Trap())
    world.check(False, False)
    assert len(world.seen) > 10


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array([0.0]), np.array([-0.0])),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (torch.zeros(2), torch.zeros(2, requires_grad=True)),
        (torch.zeros(2, 3), torch.zeros(3, 2).t()),
        (nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()),
        ({"w": np.float64(1.0)}, {"w": np.nextafter(1.0, 2.0)}),
    ],
    ids=["sign of zero", "shape", "requires_grad", "strides", "training", "one ulp"],
)
def test_the_fingerprint_tells_apart(one, other):
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_a_fingerprint_tells_grad_none_from_grad_zero():
    w = torch.zeros(2)
    before = fingerprint(w)
    w.grad = torch.zeros(2)
    assert fingerprint(w) != before


def test_a_grads_dict_whose_entries_the_forward_replaces_is_as_found():
    w = np.array([1.0, -2.0, 3.0])
    grads = {"w": 2 * w}

    def cost():
        grads["w"] = 2 * w
        return np.sum(w**2)

    found, before = grads["w"], fingerprint(grads)
    assert check(cost, wrt={"w": w}, grads=grads).verdict == "PASS"
    assert fingerprint(grads) == before
    assert grads["w"] is found


def test_a_captured_array_that_the_function_writes_is_as_found():
    w, average = np.array([1.0, -2.0, 3.0]), np.ones(3)

    def cost(w):
        average[...] = 0.9 * average + 0.1 * w
        return np.sum(w**2)

    before = fingerprint(average)
    assert check(cost, w, grads=lambda w: 2 * w).verdict == "PASS"
    assert fingerprint(average) == before


def test_a_captured_array_is_the_same_for_every_evaluation():
    w, average = np.array([1.0, -2.0, 3.0]), np.ones(3)

    def cost(w):
        average[...] = 0.9 * average + 0.1
        average[1] += 1.0
        return np.sum(average * w**2)

    report = check(cost, w, grads=lambda w: 2 * average * w, raise_exception=False)
    assert report.verdict == "PASS", str(report)


def test_dropout_in_training_mode_passes_with_its_mask_held():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double().train()
    report = check(model, torch.rand(3, 4, dtype=torch.float64))
    assert report.verdict == "PASS"
    assert model.training


class Masked(torch.autograd.Function):
    """Dropout; wrong where the backward draws a mask of its own."""

    @staticmethod
    def forward(ctx, x, anew):
        mask = (torch.rand_like(x) < 0.5).double()
        ctx.save_for_backward(mask)
        ctx.anew = anew
        return x * mask

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved_tensors
        return g * ((torch.rand_like(g) < 0.5).double() if ctx.anew else mask), None


@pytest.mark.parametrize(("anew", "verdict"), [(False, "PASS"), (True, "FAIL")])
def test_a_dropout_whose_backward_draws_a_new_mask_fails(anew, verdict):
    torch.manual_seed(0)
    x = torch.rand(20, dtype=torch.float64)
    assert check(Masked.apply, x, anew, raise_exception=False).verdict == verdict


def test_batchnorm_in_training_mode_does_not_drift():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, dtype=torch.float64).train()
    x = torch.rand(4, 3, dtype=torch.float64)
    seen = set()

    def fn(x):
        seen.add(fingerprint(norm.state_dict()))
        return norm(x)

    before = fingerprint(norm)
    assert check(fn, x).verdict == "PASS"
    assert fingerprint(norm) == before
    assert len(seen) == 1


def test_two_networks_whose_parts_have_the_same_names_are_both_held_still():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).double()
    decoder = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    before = fingerprint([encoder.state_dict(), decoder.state_dict()])
    report = check(lambda: decoder(encoder(x)).square(), wrt=[encoder, decoder])
    assert report.verdict == "PASS"
    assert fingerprint([encoder.state_dict(), decoder.state_dict()]) == before


def test_what_can_be_put_back_is_where_something_else_cannot():
    locked, counts = np.zeros(2), np.zeros(2)

    def fn(x):
        locked[0] += 1.0
        locked.flags.writeable = False
        counts[0] += 1.0
        return (x**2).sum() + 0 * locked[0] + 0 * counts[0]

    with suppress(ValueError):
        check(fn, np.ones(3), grads=lambda x: 2 * x)
    assert counts[0] == 0.0


def test_a_batchnorm_that_uses_what_it_just_updated_sees_the_same_buffers_every_time():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(dim=0).sign())
            return (x - self.mean).square()

    module = Running()
    assert check(module, torch.rand(4, 3, dtype=torch.float64) + 0.1, wrt="x").verdict == "PASS"
    assert fingerprint(module.mean) == fingerprint(torch.zeros(3, dtype=torch.float64))


def test_a_mask_that_numpy_draws_is_held_for_numpy():
    x = np.linspace(1.0, 2.0, 20)

    def fn(x):
        fn.mask = np.random.random(20) < 0.5
        return np.sum(fn.mask * x**2)

    assert check(fn, x, grads=lambda x: 2 * fn.mask * x).verdict == "PASS"
    wrong = check(fn, x, grads=lambda x: 4 * fn.mask * x, raise_exception=False)
    assert wrong.verdict == "FAIL"


@pytest.mark.parametrize("batches", [True, False], ids=["vmap", "no batching rule"])
def test_a_mask_that_numpy_draws_is_held_for_jax(batches):
    @jax.custom_vjp
    def sine(x):
        if batches:
            return jnp.sin(x)
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    sine.defvjp(lambda x: (sine(x), x), lambda x, g: (g * jnp.cos(x),))

    def fn(x):
        return sine(x) * (np.random.random(20) < 0.5)

    report = check(fn, np.linspace(1.0, 2.0, 20), backend="jax", raise_exception=False)
    assert report.verdict == "PASS", str(report)


def stochastic_numpy():
    calls = []

    def fn(x):
        calls.append(1)
        return np.sum(x**2) * (1 + 1e-3 * len(calls))

    return check(fn, np.ones(3), grads=lambda x: 2 * x, raise_exception=False)


def stochastic_torch():
    calls = []

    def fn(x):
        calls.append(1)
        return x.square().sum() * (1 + 1e-3 * len(calls))

    return check(fn, torch.ones(3, dtype=torch.float64), raise_exception=False)


def stochastic_jax():
    calls = []

    def fn(x):
        calls.append(1)
        return (x**2).sum() * (1.0 + 1e-3 * len(calls) if float(x[0]) > 0 else 0.0)

    return check(fn, np.ones(3), backend="jax", raise_exception=False)


STOCHASTIC = [stochastic_numpy, stochastic_torch, stochastic_jax]


@pytest.mark.parametrize("run", STOCHASTIC)
def test_a_function_that_counts_its_calls_is_inconclusive_and_called_stochastic(run):
    report = run()
    assert report.verdict == "INCONCLUSIVE"
    assert [finding.kind for finding in report.findings] == ["stochastic"]
    assert "not repeatable" in str(report)


def test_a_function_that_only_counts_its_calls_passes():
    calls = []

    def fn(x):
        calls.append(1)
        return x.square().sum()

    report = check(fn, torch.ones(3, dtype=torch.float64))
    assert report.verdict == "PASS"
    assert report.findings == ()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_check_works_in_either_grad_mode_and_leaves_it_on(mode):
    x = torch.rand(3, dtype=torch.float64)
    with mode():
        enabled = torch.is_grad_enabled()
        assert check(lambda x: x.sin(), x).verdict == "PASS"
        wrong = check(lambda x: Scaled.apply(x, x.new_ones(3), 2.0), x, raise_exception=False)
        assert wrong.verdict == "FAIL"
        assert torch.is_grad_enabled() == enabled


def test_tensors_that_do_not_require_grad_are_checked_and_still_do_not():
    w = torch.rand(3, dtype=torch.float64)
    before = fingerprint(w)
    assert check(lambda: w.sin().sum(), wrt=[w]).verdict == "PASS"
    assert fingerprint(w) == before


def test_the_report_is_the_same_twice_whatever_was_drawn_between():
    x = torch.rand(20, dtype=torch.float64)

    def run():
        report = check(lambda x: x.sin() * 3, x).to_dict()
        del report["elapsed_s"], report["plan"]["seconds"]
        return report

    first = run()
    np.random.random()
    torch.rand(1)
    assert run() == first


class NoLength(tuple[int, ...]):
    def __len__(self) -> int:
        raise NotImplementedError


class Graph(nn.Module):
    """A layer over a sparse matrix, that marks a buffer on its way."""

    kinds = NoLength((1, 2))

    def __init__(self, sparse, dtype=torch.float64):
        super().__init__()
        matrix = (torch.arange(25).reshape(5, 5) % 3 == 0).to(dtype)
        self.register_buffer("matrix", sparse(matrix))
        self.register_buffer("offset", torch.zeros(2, dtype=dtype))
        self.linear = nn.Linear(3, 2, dtype=dtype)
        self.held = NoLength((3, 4))

    def forward(self, x):
        self.offset.requires_grad_()
        return self.matrix @ self.linear(x) + self.offset


SPARSE = [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sparse", SPARSE)
def test_a_sparse_buffer_is_as_found(sparse, dtype):
    module, x = Graph(sparse, dtype), torch.randn(5, 3, dtype=dtype)
    held = module.matrix.to_dense()
    for fn in (module, lambda x: module(x)):
        assert check(fn, x)
        assert not module.offset.requires_grad
    assert torch.equal(module.matrix.to_dense(), held) and module.matrix.dtype is dtype

    def scales(x):  # after it was used no more
        with torch.no_grad():
            values = module.matrix.coalesce().values() if sparse is SPARSE[0] else None
            (module.matrix.values() if values is None else values).mul_(2)
        return (x * module.matrix.to_dense().sum()).sum()

    assert check(scales, x)
    assert torch.equal(module.matrix.to_dense(), held)


def test_a_forward_pass_that_differs_by_rounding_is_the_same():
    """Distances of a point to itself, say: the root of what is left of zero."""

    def fn(x, by=1e-8):
        return x.exp() + by if torch.is_grad_enabled() else x.exp()

    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    assert check(fn, x)
    report = check(lambda x: fn(x, 1e-4), x, raise_exception=False)
    assert report.verdict == "FAIL" and report.findings[-1].kind == "forward"
