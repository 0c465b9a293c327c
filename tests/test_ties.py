"""At ties the shares of several inputs have to add up."""

import numpy as np
import pytest
import torch
from audited import Changed

from xgradcheck import check


def maximum(x):
    return float(x.max())


def shares(*which):
    def gradient(x):
        out = np.zeros_like(x)
        out[[*which]] = 1.0
        return out

    return gradient


TIED = np.array([1.0, 3.0, 2.0, 3.0, 0.5])


@pytest.mark.parametrize("which", [(1,), (3,)])
def test_one_of_two_that_tie_may_get_all(which):
    assert check(maximum, TIED, grads=shares(*which)(TIED)).verdict == "PASS"


def test_both_may_get_half():
    assert check(maximum, TIED, grads=shares(1, 3)(TIED) / 2).verdict == "PASS"


@pytest.mark.parametrize("which", [(1, 3), ()])
def test_both_must_not_get_all_nor_nothing(which):
    """``dx[x == x.max()] = 1``, and a comparison that no input passes."""
    report = check(maximum, TIED, grads=shares(*which)(TIED), raise_exception=False)
    assert report.verdict == "FAIL"
    assert [finding.kind for finding in report.findings] == ["kink"]


def test_torch_at_a_pool_of_equal_pixels():
    image = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert check(torch.nn.MaxPool2d(2), image, wrt=0).verdict == "PASS"


class GreedyPool(torch.autograd.Function):
    """Gives the cotangent to every pixel that equals the largest of its window."""

    @staticmethod
    def forward(ctx, x):
        windows = x.reshape(-1, 4)
        ctx.save_for_backward(windows)
        return windows.amax(-1)

    @staticmethod
    def backward(ctx, g):
        (windows,) = ctx.saved_tensors
        return (g[:, None] * (windows == windows.amax(-1, keepdim=True))).reshape(-1)


def test_a_pool_that_pays_every_pixel_is_wrong():
    generator = torch.Generator().manual_seed(0)  # of whose numbers some tie once they are rounded
    generic = torch.randn(32, dtype=torch.float64, generator=generator)
    assert check(GreedyPool.apply, generic).verdict == "PASS"
    tied = generic.round()
    assert check(GreedyPool.apply, tied, raise_exception=False).verdict == "FAIL"
    assert check(lambda x: x.reshape(-1, 4).max(-1).values, tied).verdict == "PASS"


@pytest.mark.parametrize(
    "fn",
    [
        torch.relu,
        torch.abs,
        lambda x: x[:3].clamp(min=0) - torch.relu(x[3:]),
        lambda x: torch.nn.functional.leaky_relu(x) * x.new_tensor([1.0, -1, 2, -2, 3, -3]),
        lambda x: torch.relu(x.sum()) + torch.relu(-x[0]),
        lambda x: (x[:3] - x[3:]).abs(),
    ],
)
def test_kinks_that_have_nothing_to_do_with_each_other_may_have_any_convention(fn):
    x = torch.zeros(6, dtype=torch.float64)
    assert check(fn, x).verdict == "PASS"


class GreedyMaximum(torch.autograd.Function):
    """Gives the cotangent to both where its inputs are equal."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * (a >= b), g * (b >= a)


def test_ties_between_two_arguments():
    a = torch.tensor([1.0, 2.3, 3.0], dtype=torch.float64)
    b = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    assert check(torch.maximum, a, b).verdict == "PASS"
    assert check(GreedyMaximum.apply, a, b, raise_exception=False).verdict == "FAIL"


THREE = np.array([1.1, 1.1, 1.1, 0.3])


@pytest.mark.parametrize(
    ("gradient", "verdict"),
    [
        ([1.0, 0, 0, 0], "PASS"),
        ([1 / 3, 1 / 3, 1 / 3, 0], "PASS"),
        ([0, 0, 0, 0], "FAIL"),
        ([0.5, 0.5, 0.5, 0], "FAIL"),
    ],
)
def test_three_that_tie_have_to_add_up_as_well(gradient, verdict):
    report = check(maximum, THREE, grads=np.array(gradient, float), raise_exception=False)
    assert report.verdict == verdict


class GreedyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.amax(0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x == x.amax(0))


def test_ties_between_rows_are_neighbours_along_an_axis():
    torch.manual_seed(0)
    x = torch.randn(4, 30, dtype=torch.float64)
    x[2] = x[1]
    assert check(lambda x: x.amax(0), x).verdict == "PASS"
    assert check(GreedyRows.apply, x, raise_exception=False).verdict == "FAIL"


@pytest.mark.parametrize("seed", range(3))
def test_a_kink_that_fans_out_is_judged_output_by_output(seed):
    """relu'(0) = 0 on every path; their sum with weights of both signs is between no two slopes."""
    x = torch.tensor([[1.1, -2.3], [0.0, 0.0]], dtype=torch.float64)
    w = torch.tensor([[1.2, -1.3, 0.5], [2.1, 0.3, -1.7]], dtype=torch.float64)
    assert check(lambda x, w: torch.relu(x @ w), x, w, seed=seed).verdict == "PASS"
    image = torch.randint(0, 3, (1, 1, 7, 7)).double()
    pool = torch.nn.MaxPool2d(3, 2)
    assert check(lambda x: pool(x), image, seed=seed).verdict == "PASS"


def relu_with(slope_at_zero):
    """``relu`` with that slope at 0, where 0 to 1 is right."""

    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * torch.where(x == 0, slope_at_zero, (x > 0).double())

    return Relu.apply


def test_a_kink_that_is_wrong_in_its_output_stays_wrong():
    x = torch.tensor([0.0, 1.3, -1.1, 0.0], dtype=torch.float64)
    assert check(torch.relu, x).verdict == "PASS"
    assert check(relu_with(1.5), x, raise_exception=False).verdict == "FAIL"


class Larger(torch.autograd.Function):
    """The larger of both halves; where they tie, ``share`` of the cotangent for each."""

    @staticmethod
    def forward(ctx, x, share):
        ctx.share, half = share, len(x) // 2
        ctx.save_for_backward(x)
        return torch.maximum(x[:half], x[half:])

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        a, b = x.chunk(2)
        tied = torch.where(a == b, ctx.share, 1.0)
        return torch.cat([g * (a >= b) * tied, g * (b >= a) * tied]), None


@pytest.mark.parametrize("count", [3, 9, 100])
def test_many_ties_far_apart_are_found(count):
    half = torch.from_numpy(np.random.default_rng(count).normal(size=count))
    assert check(Larger.apply, torch.cat([half, half]), 0.5)
    report = check(Larger.apply, torch.cat([half, half]), 1.0, raise_exception=False)
    assert report.verdict == "FAIL"


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


ORDERS = {
    "median": (torch.median, at(0, 1, 1, 1, 2)),
    "clip": (lambda x, low, high: x.maximum(low).minimum(high), at(1, 0.5), at(1, 1), at(1, 1)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_of_equal_numbers_is_left_open(name):
    """Moving one of three that are equal moves no median, and torch's own gives each a third."""
    fn, *args = ORDERS[name]
    report = check(fn, *args, raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"
    assert "kinks meet" in [finding.kind for finding in report.findings]


@pytest.mark.parametrize(
    ("fn", "values"),
    [
        (lambda x: x.topk(2).values, (0, 0, 0, 0, 0)),
        (lambda x: x.kthvalue(2).values, (1, 1, 1, 2)),
        (lambda x: x.quantile(0.5), (2, 2, 2, 2, 2)),
    ],
)
def test_a_choice_among_equal_numbers_is_right(fn, values):
    assert check(fn, at(*values))


def test_a_choice_among_the_slopes_of_every_kink_is_right():
    """Equal numbers that are sorted: each output has a gradient of one input."""
    x = at(0, 0, 0, 0, 0)
    assert check(lambda x: x.sort().values, x)
    report = check(lambda x: x.sort().values, x, grads=lambda u, x: 1.01 * u, raise_exception=False)
    assert report.verdict != "PASS"


def blank_image_network(seed, relu, pool, slope_at_zero=0.0):
    """A network that starts with biases of zero, on an image with a blank border."""

    activation = relu_with(slope_at_zero) if relu else torch.nn.functional.gelu

    class Layer(torch.nn.Module):
        def forward(self, x):
            return activation(x)

    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        Layer(),
        pool(2),
        torch.nn.Conv2d(4, 6, 3, padding=1),
        Layer(),
        pool(2),
        torch.nn.Flatten(),
        torch.nn.Linear(54, 3),
    ).double()
    for part in (net[0], net[3], net[7]):
        torch.nn.init.zeros_(part.bias)
    image = torch.zeros(2, 1, 12, 12, dtype=torch.float64)
    image[:, :, 4:9, 4:9] = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    return net, image, lambda out: torch.nn.functional.cross_entropy(out, labels)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("pool", [torch.nn.MaxPool2d, torch.nn.AvgPool2d])
def test_kinks_of_a_blank_border_are_called_wrong_by_nobody(relu, pool):
    """Every pixel of it is at the kink of every relu, and ties with the others of its window."""
    verdicts = []
    for seed in range(5):
        net, image, loss = blank_image_network(seed, relu, pool)
        verdicts.append(check(net, image, loss=loss, raise_exception=False).verdict)
    assert "FAIL" not in verdicts
    assert verdicts.count("PASS") >= 3


@pytest.mark.parametrize("pool", [torch.nn.MaxPool2d, torch.nn.AvgPool2d])
def test_a_wrong_slope_at_a_blank_border_is_wrong(pool):
    for seed in range(3):
        net, image, loss = blank_image_network(seed, True, pool, slope_at_zero=-1.5)
        assert check(net, image, loss=loss, raise_exception=False).verdict == "FAIL"


def test_a_wrong_gradient_at_an_order_of_equal_numbers_is_wrong():
    def twice(u, x):
        return 2 * u * torch.tensor([0, 0, 1, 0, 0], dtype=torch.float64)

    x = at(0, 1, 1, 1, 2)
    report = check(lambda x: x.median(), x, grads=lambda x: twice(1.0, x), raise_exception=False)
    assert report.verdict == "FAIL"


def small_network(zero):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 2),
    ).double()
    for parameter in (model[0].weight, model[0].bias, model[2].bias):
        torch.nn.init.zeros_(parameter) if zero else None
    return model


def test_a_network_that_starts_at_zero_is_not_called_wrong():
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)))
    report = check(small_network(True), inputs, raise_exception=False)
    assert report.verdict != "FAIL"
    assert check(small_network(False), inputs)


def test_a_lone_kink_is_not_excused_by_its_neighbours():
    report = check(relu_with(2.0), at(0.3, 0.0, -0.7), raise_exception=False)
    assert report.verdict == "FAIL"
    assert [finding.kind for finding in report.findings] == ["kink"]


@pytest.mark.parametrize("is_array", [True, False])
def test_a_slope_just_outside_of_those_of_a_kink_is_wrong(is_array):
    def leaky(x):
        return np.where(x > 0, x, 0.01 * x)

    def slopes(at_zero):
        return lambda x: np.where(x == 0, at_zero, np.where(x > 0, 1, 0.01))

    x = np.array([0.0, 0.5, -1.2])
    right, wrong = (0.01, 0.3, 1.0), (0.0, 0.0099, 1.001, -0.3)
    for at_zero in (*right, *wrong):
        own = slopes(at_zero)
        if is_array:
            report = check(leaky, x, grads=lambda u, x, own=own: u * own(x), raise_exception=False)
        else:
            report = check(lambda x: leaky(x).sum(), x, grads=own, raise_exception=False)
        assert report.verdict == ("PASS" if at_zero in right else "FAIL"), at_zero


class Unwritten(torch.autograd.Function):
    """A cross entropy whose gradient was never written."""

    @staticmethod
    def forward(ctx, logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * torch.zeros(4, 3), None


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_equal_numbers_are_no_kink_where_the_gradient_is_missing(level):
    labels, logits = torch.tensor([0, 1, 2, 0]), torch.full((4, 3), level, dtype=torch.float64)
    assert check(torch.nn.functional.cross_entropy, logits, labels).verdict == "PASS"
    with pytest.raises(AssertionError, match="dlogits is zero"):
        check(lambda logits: Unwritten.apply(logits, labels), logits)


@pytest.mark.parametrize("width", [6, 20, 40])
def test_what_gives_all_that_tie_the_whole_cotangent_is_wrong_in_any_window(width):
    """One window of hundreds has a tie: the output that tells is the last."""
    pool = torch.nn.functional.max_pool2d

    class Pool(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = pool(x, 2)
            ctx.save_for_backward(x, y)
            return y

        @staticmethod
        def backward(ctx, g):
            x, y = ctx.saved_tensors
            spread = [t.repeat_interleave(2, -1).repeat_interleave(2, -2) for t in (g, y)]
            return spread[0] * (x == spread[1])

    order = np.random.default_rng(width).permutation(width * width)
    x = torch.from_numpy(order.reshape(1, 1, width, width).astype(float))
    assert check(Pool.apply, x)
    x[0, 0, -1, -1] = x[0, 0, -2, -2] = float(width * width)
    assert check(lambda x: pool(x, 2), x)
    assert check(Pool.apply, x, raise_exception=False).verdict == "FAIL"


@pytest.mark.parametrize("count", [100, 350, 1500])
@pytest.mark.parametrize("share", [0.5, 1.0, 0.0])
def test_shares_of_many_ties_at_one_value_have_to_add_up(count, share):
    """Zeros that a relu left, each of which ties with one that lies half an array away."""
    drawn = np.maximum(np.random.default_rng(3).normal(size=2 * count), 0)
    report = check(Larger.apply, torch.from_numpy(drawn), share, raise_exception=False)
    assert report.verdict == ("PASS" if share == 0.5 else "FAIL")


ORDERED = {
    "topk": lambda x: x.topk(2)[0],
    "sort": lambda x: x.sort(-1)[0],
    "median": lambda x: x.median(-1)[0],
    "kthvalue": lambda x: x.kthvalue(3)[0],
}
WRONG_ORDERS = {
    "right": lambda g: g,
    "negative": lambda g: -g,
    "1 % too much": lambda g: 1.01 * g,
    "rows exchanged": lambda g: g.flip(0),
    "one along": lambda g: g.roll(1, -1),
    "a row zeroed": lambda g: torch.cat([0 * g[:1], g[1:]]),
}


@pytest.mark.parametrize("change", WRONG_ORDERS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ORDERED)
def test_equal_numbers_that_are_ordered_take_the_gradients_of_their_places(name, seed, change):
    generator = torch.Generator().manual_seed(seed)
    zeros = torch.randn(4, 6, generator=generator).double().relu()
    one_hot = torch.eye(6, dtype=torch.float64)[torch.randint(0, 6, (4,), generator=generator)]
    for x in (zeros, one_hot, torch.full((4, 6), 0.7, dtype=torch.float64)):
        report = check(
            lambda x: ORDERED[name](Changed.apply(x, WRONG_ORDERS[change])),
            x.requires_grad_(),
            seed=seed,
            raise_exception=False,
        )
        assert report.verdict == ("PASS" if change == "right" else "FAIL")


class FlipsNearTies(torch.autograd.Function):
    """A sort that takes numbers for equal that are nearly so, and turns the signs of those."""

    @staticmethod
    def forward(ctx, x):
        values, order = torch.sort(x, stable=True)
        ctx.save_for_backward(x, order)
        return values

    @staticmethod
    def backward(ctx, g):
        x, order = ctx.saved_tensors
        found = torch.zeros_like(x)
        found[order] = g
        found[((x[:, None] - x[None]).abs() < 1e-5).sum(1) > 1] *= -1
        return found


@pytest.mark.parametrize("large", [1.0, 1e5, 1e7])
def test_a_mistake_at_ties_is_not_acquitted_beside_a_large_leaf(large):
    x, z = at(0.3, 0.3, 0.3, 0.3, 0.9, -0.5), at(0.7, 1.2, 0.9)
    report = check(
        lambda x, z: (FlipsNearTies.apply(x), large * z.square()), x, z, raise_exception=False
    )
    assert report.verdict != "PASS"
