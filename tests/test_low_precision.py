"""A float64 function that computes in fewer bits on its way is recognised, and judged as such."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from audited import Changed

from xgradcheck import check

X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

PLACES = {
    "at the entrance": lambda x, w: (x.float() @ w.float()).double().tanh(),
    "in the middle": lambda x, w: (x @ w).float().double().tanh(),
    "at the exit": lambda x, w: (x @ w).tanh().sum().float().double(),
}


def kinds(report):
    return [finding.kind for finding in report.findings]


@pytest.mark.parametrize("place", PLACES)
def test_float32_is_seen_wherever_it_is(place):
    report = check(PLACES[place], X, W)
    assert report.verdict == "PASS"
    assert report.precision == "float32"
    assert kinds(report) == ["low precision inside"]
    assert "(float32)" in str(report)


class Square(torch.autograd.Function):
    factor = 2.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x.float() ** 2).double()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * Square.factor * x


def test_float32_is_seen_inside_a_function_with_a_backward_of_its_own(monkeypatch):
    assert check(Square.apply, X).precision == "float32"
    monkeypatch.setattr(Square, "factor", 2.002)
    assert check(Square.apply, X, raise_exception=False).verdict == "FAIL"


def test_float32_is_seen_in_jax():
    def fn(x):
        return jnp.tanh(x.astype(jnp.float32) * 2).astype(jnp.float64)

    report = check(fn, X.numpy(), backend="jax")
    assert report.precision == "float32" and kinds(report) == ["low precision inside"]


def test_float32_is_seen_in_numpy_where_no_graph_tells():
    def fn(x):
        return float(np.tanh(x.astype(np.float32)).sum() * np.pi)

    report = check(fn, X.numpy(), grads=lambda x: np.pi / np.cosh(x) ** 2)
    assert report.precision == "float32"


def test_a_side_branch_without_noise_changes_nothing():
    """Comparisons and masks in float32 are exact."""

    def fn(x):
        mask = (x.float() > 0).float()
        return (x * mask.double()).sum()

    report = check(fn, X)
    assert report.precision == "float64" and report.findings == ()


def test_float64_is_not_taken_for_less():
    for fn in (torch.sin, torch.cumsum):
        report = check(fn, X, *([0] if fn is torch.cumsum else []))
        assert report.precision == "float64"


def test_the_tolerance_asked_for_holds_in_any_precision():
    report = check(PLACES["at the exit"], X, W, rtol=1e-9, raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"


def test_random_numbers_of_float32_in_jax_are_not_computed_from_the_arguments():
    """Dropout draws in float32 beside a float64 program."""
    key = jax.random.key(0)

    @jax.jit
    def fn(x):
        mask = jax.random.bernoulli(key, np.float32(0.5), x.shape)
        return jnp.where(mask, x, 0.0) * jax.random.uniform(key, x.shape, jnp.float32).astype(
            jnp.float64
        )

    report = check(fn, X.numpy(), backend="jax")
    assert report.verdict == "PASS" and report.precision == "float64"


def test_values_that_differ_by_their_last_bits_are_no_low_precision():
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    report = check(lambda x: x.softmax(-1).sum(), x, raise_exception=False)
    assert report.verdict != "FAIL" and report.precision == "float64"


def smoothed(logits, labels):
    logsumexp = logits.logsumexp(-1)
    likely = logits - logsumexp[:, None]
    picked = likely.gather(1, labels[:, None])[:, 0]
    return (1e-2 * logsumexp**2 - 0.9 * picked - 0.1 * likely.mean(-1)).mean()


def loss_that_is_wrong_in_short_formats(spoil):
    """A cross entropy with smoothed labels, right in float64."""

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, labels):
            ctx.save_for_backward(logits, labels)
            return smoothed(logits, labels)

        @staticmethod
        def backward(ctx, u):
            logits, labels = ctx.saved_tensors
            chances, count = logits.softmax(-1), logits.shape[1]
            given = torch.nn.functional.one_hot(labels, count).to(logits.dtype)
            extra = 2e-2 * logits.logsumexp(-1)[:, None] * chances
            slope = u * (chances - 0.9 * given - 0.1 / count + extra) / len(labels)
            return slope if logits.dtype == torch.float64 else spoil(slope, labels), None

    return Loss.apply


def without_last_row(slope, labels):
    return torch.cat([slope[:-1], torch.zeros_like(slope[-1:])])


def without_one_target(slope, labels):
    found = slope.clone()
    found[1, labels[1]] = 0
    return found


SPOILT = {
    "negated": lambda slope, labels: -slope,
    "halved": lambda slope, labels: slope / 2,
    "last row": without_last_row,
    "one target": without_one_target,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 0.001])
def test_small_arguments_are_no_excuse_for_a_gradient_that_is_not_written(dtype, scale):
    """Beside a loss of 2 all that logits of 0.01 do to it is its rounding to 16 bits."""
    torch.manual_seed(7)
    logits, labels = (scale * torch.randn(6, 7)).to(dtype), torch.randint(0, 7, (6,))
    right = loss_that_is_wrong_in_short_formats(lambda slope, labels: slope)
    assert check(right, logits, labels).verdict == "PASS"
    for spoil in SPOILT.values():
        wrong = loss_that_is_wrong_in_short_formats(spoil)
        assert check(wrong, logits, labels, raise_exception=False).verdict == "FAIL"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 0.02, 0.002])
def test_a_block_of_a_head_that_is_not_written_is_seen_at_the_start_of_training(dtype, scale):
    def head(is_right):
        class Head(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                ctx.save_for_backward(x, w)
                return torch.nn.functional.cross_entropy(x @ w.T, labels)

            @staticmethod
            def backward(ctx, u):
                x, w = ctx.saved_tensors
                given = torch.nn.functional.one_hot(labels, len(w)).to(x.dtype)
                slope = u * ((x @ w.T).softmax(-1) - given) / len(labels)
                found = slope.T @ x
                if not is_right and w.dtype != torch.float64:
                    found[:, -4:] = 0
                return slope @ w, found

        return Head.apply

    torch.manual_seed(0)
    w, x = (scale * torch.randn(40, 32)).to(dtype), torch.randn(16, 32).to(dtype)
    labels = torch.randint(0, 40, (16,))
    assert check(head(True), x, w).verdict == "PASS"
    report = check(head(False), x, w, raise_exception=False)
    assert [*report.leaves.values()][1].verdict == "FAIL"


class RowInShortFormats(torch.autograd.Function):
    """sin(3 x), of whose gradient a row is not written below float64."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(3 * x)

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        slope = 3 * u * torch.cos(3 * x)
        return slope if x.dtype == torch.float64 else without_last_row(slope, None)


def test_an_error_in_proportion_to_a_gradient_that_turns_is_no_rounding():
    """Between numbers that bfloat16 can hold near 10 the gradient takes all values it has."""
    for seed in range(5):
        torch.manual_seed(seed)
        x = (10 * torch.randn(4, 3)).bfloat16()
        assert check(lambda x: torch.sin(3 * x), x)
        assert check(RowInShortFormats.apply, x, raise_exception=False).verdict == "FAIL"


def logistic(count, seed, dtype, exact):
    """A loss whose parts are stored in float32, and a penalty that is not: close by, nothing but
    the penalty moves.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("f4")
    y = rng.integers(0, 2, count).astype("f4")
    w = rng.normal(size=4).astype("f4").astype(dtype)

    def value(w):
        scores = x @ w
        parts = (np.logaddexp(0, scores) - y * scores).astype("f4") / np.float32(count)
        return np.float64(np.sum(parts, dtype=exact)) + 0.15 * np.float64(w @ w)

    def gradient(w):
        slope = x.T @ (1 / (1 + np.exp(-(x @ w))) - y) / count + 0.3 * w
        return slope.astype(w.dtype)

    return value, gradient, w


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("exact", ["f4", "f8"])
def test_what_is_stored_in_float32_beside_what_is_not(dtype, exact):
    passed, seen, count = 0, 0, 0
    for rows in (12, 100, 1000):
        for seed in range(8):
            value, gradient, w = logistic(rows, seed, dtype, exact)
            report = check(value, w, grads=gradient, raise_exception=False)
            assert report.verdict != "FAIL", str(report)
            passed += report.verdict == "PASS"
            wrong = check(
                value,
                w,
                grads=lambda w, g=gradient: g(w) * w.dtype.type(1.01),
                raise_exception=False,
            )
            assert wrong.verdict != "PASS", str(wrong)
            seen += wrong.verdict == "FAIL"
            count += 1
    # One sum in float32 has treads so wide that a line may lie on one.
    assert min(passed, seen) >= (0.7 if exact == "f4" else 0.95) * count


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_norm_in_float32_inside_of_what_is_not(factor):
    """As of a weight on some cards: the rest of it moves by as little as one likes."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows, lengths, u = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(3, 4))

        def norms(rows):
            return np.sqrt((rows.astype("f4") ** 2).sum(-1, dtype="f4")).astype("f8")

        def value(rows, lengths=lengths, u=u):
            return np.sum(u * (lengths / norms(rows))[:, None] * rows)

        def gradient(rows, lengths=lengths, u=u):
            size = norms(rows)
            along = (u * rows).sum(-1) * lengths / size**3
            return factor * ((lengths / size)[:, None] * u - along[:, None] * rows)

        report = check(value, rows, grads=gradient, seed=seed, raise_exception=False)
        assert report.verdict == ("PASS" if factor == 1 else "FAIL"), str(report)
        assert report.precision == "float32"


SPOILT_AS_IT_RUNS = {
    "a row of no numbers": lambda g, size: g[1].fill_(torch.nan),
    "one that is no number": lambda g, size: g[1, 2].fill_(torch.nan),
    "an infinite one": lambda g, size: g[1, 2].fill_(torch.inf),
    "a huge one": lambda g, size: g[1, 2].fill_(1e4 * size),
    "one that is off": lambda g, size: g[1, 2].add_(3 * size),
    "a row of zeros": lambda g, size: g[1].zero_(),
    "a row turned": lambda g, size: g[1].neg_(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 5), (40, 20)])
@pytest.mark.parametrize("mistake", SPOILT_AS_IT_RUNS)
def test_what_is_wrong_as_it_runs_alone(mistake, shape, dtype):
    def change(cotangent):
        if cotangent.dtype != torch.float64:
            size = cotangent.float().square().mean().sqrt().item()
            SPOILT_AS_IT_RUNS[mistake](cotangent, size)
        return cotangent

    torch.manual_seed(1)  # some of so few numbers are equal in 16 bits
    x, w = torch.randn(shape).to(dtype), (torch.randn(shape[1], shape[1]) / 4).to(dtype)
    report = check(
        lambda x, w: (Changed.apply(x, change) @ w).softmax(-1), x, w, raise_exception=False
    )
    rows = report.leaves["x"].rows
    assert [row.verdict for row in rows] == ["PASS", "FAIL"], str(report)
    assert report.leaves["w"].verdict == "PASS"


@pytest.mark.parametrize("shape", [(4, 6), (30, 24)])
def test_ties_excuse_nothing_that_is_wrong_as_it_runs_alone(shape):
    def judged(fn, x, factor, places=slice(None)):
        def change(cotangent):
            if cotangent.dtype != torch.float64:
                cotangent.view(-1)[places] *= factor
            return cotangent

        report = check(lambda x: fn(Changed.apply(x, change)), x, raise_exception=False)
        return report.verdict

    torch.manual_seed(1)
    whole, ones = torch.randint(0, 5, shape).float(), torch.ones(shape)
    pool = torch.nn.functional.max_pool1d
    assert judged(lambda x: pool(x, 2), whole, 1.0) == "PASS"
    assert judged(lambda x: pool(x, 2), whole, 1e3, [3, 6, 7]) == "FAIL"
    assert judged(lambda x: x.amax(1) * x.mean(1), ones, 1.0) == "PASS"
    # Every element alone may have such a share of what ties, and not all of them.
    assert judged(lambda x: x.amax(1) * x.mean(1), ones, 1.5) != "PASS"
    assert judged(lambda x: pool(x, 2), ones, 0.0, slice(shape[1], 2 * shape[1])) != "PASS"
    # What sorts in float32 may choose among equal numbers otherwise.
    assert judged(lambda x: x.sort(1).values ** 2, ones[:4], 1.0) != "FAIL"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (20, 16)])
def test_a_divergence_from_itself_has_gradient_zero(shape, dtype):
    def divergence(p, q, added):
        given = Changed.apply(q, lambda u: u + added).log_softmax(-1)
        kl = torch.nn.functional.kl_div
        return kl(given, p.log_softmax(-1), reduction="none", log_target=True).sum(-1)

    for seed in range(3):
        torch.manual_seed(seed)
        z = torch.randn(shape).to(dtype)
        args = z, z.clone()
        report = check(lambda p, q: divergence(p, q, 0.0), *args, raise_exception=False)
        assert report.verdict == "PASS", str(report)
        report = check(lambda p, q: divergence(p, q, 0.01), *args, raise_exception=False)
        assert report.verdict == "FAIL", str(report)
        assert report.leaves["p"].verdict == "PASS"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", [slice(None), 3])
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_numbers_that_are_equal_once_they_are_rounded_hide_no_mistake(dtype, part, factor):
    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx, cotangent):
            x, weight = ctx.saved_tensors
            slope = cotangent.T @ x
            slope[part] *= factor
            return cotangent @ weight, slope

    for seed in (1, 3, 5):
        draws = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 128, generator=draws).to(dtype)
        weight = (torch.randn(96, 128, generator=draws) / 11).to(dtype)
        report = check(Linear.apply, x, weight, seed=seed, raise_exception=False)
        assert report.verdict == ("PASS" if factor == 1 else "FAIL")
