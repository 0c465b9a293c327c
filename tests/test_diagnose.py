"""What kind of mistake a wrong gradient is: planted ones are called by their names, and random
errors by none.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from audited import function, square
from bugs import BUGS, Bug

from xgradcheck import Report, Verdict, check
from xgradcheck._diagnose import Cause, Seen, cause_of
from xgradcheck._layout import Leaf
from xgradcheck._places import place_of

report_on = functools.partial(check, raise_exception=False)
SEEDS = 40

Planted = tuple[np.ndarray, dict[str, np.ndarray]]
Plant = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def noise(like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=like.shape) * np.sqrt(np.mean(like**2))


def with_tail(truth: np.ndarray, tail: Any) -> np.ndarray:
    found = truth.copy().ravel()
    found[-(found.size // 5) :] = np.broadcast_to(tail, found.size // 5)
    return found.reshape(truth.shape)


PLANTED: dict[str, tuple[set[str], Plant]] = {
    "sign": ({"sign"}, lambda t, w, rng: -t),
    "twice": ({"factor"}, lambda t, w, rng: 2 * t),
    "half": ({"factor"}, lambda t, w, rng: t / 2),
    "sum for mean": ({"factor"}, lambda t, w, rng: 32 * t),
    "mean for sum": ({"factor"}, lambda t, w, rng: t / 32),
    "some factor": ({"factor"}, lambda t, w, rng: 0.83 * t),
    "zero": ({"zero"}, lambda t, w, rng: 0 * t),
    "L2": ({"L2 term"}, lambda t, w, rng: t - 10 ** rng.uniform(-2, 0) * w),
    "too much L2": ({"L2 term"}, lambda t, w, rng: t + 10 ** rng.uniform(-2, 0) * w),
    "L1": ({"L1 term"}, lambda t, w, rng: t - 10 ** rng.uniform(-2, 0) * np.sign(w)),
    "offset": ({"offset"}, lambda t, w, rng: t + 0.3),
    "transposed": ({"transposed"}, lambda t, w, rng: t.T.reshape(t.shape)),
    "reversed": ({"flipped"}, lambda t, w, rng: t[:, ::-1]),
    "rolled": ({"rolled"}, lambda t, w, rng: np.roll(t, 1, 0)),
    "shifted": (
        {"shifted"},
        lambda t, w, rng: np.concatenate([np.zeros_like(t[:1]), t[:-1]]),
    ),
    "rows permuted": ({"permuted", "rolled"}, lambda t, w, rng: t[rng.permutation(len(t))]),
    "summed": ({"reduced"}, lambda t, w, rng: np.broadcast_to(t.sum(0), t.shape)),
    "averaged": ({"reduced"}, lambda t, w, rng: np.full(t.shape, t.mean())),
    "tail": ({"tail", "rows"}, lambda t, w, rng: with_tail(t, 7.0)),
    "tail of zeros": ({"tail", "rows"}, lambda t, w, rng: with_tail(t, 0.0)),
    "a row": (
        {"rows"},
        lambda t, w, rng: np.where(np.arange(len(t))[:, None] == 2, noise(t, rng), t),
    ),
    "a stride": (
        {"stride", "columns"},
        lambda t, w, rng: np.where(np.arange(t.size).reshape(t.shape) % 4 == 3, noise(t, rng), t),
    ),
    "a mask": ({"masked"}, lambda t, w, rng: np.where(rng.random(t.shape) < 0.4, 0, t)),
    "clipped": ({"clipped"}, lambda t, w, rng: np.clip(t, -0.8, 0.8)),
    "signs": ({"signs"}, lambda t, w, rng: np.abs(t)),
    "factor of rows": (
        {"factors"},
        lambda t, w, rng: t * rng.uniform(0.3, 3, (len(t), 1)),
    ),
}


def seen(found: np.ndarray, truth: np.ndarray, theta: np.ndarray, **more: Any) -> Seen:
    leaf = Leaf("W", (0,), truth.shape, "float64", 0, ("W",))
    flat, true = np.ravel(found).astype(float), truth.ravel()
    bad = np.abs(flat - true) > 1e-5 * np.abs(true) + 1e-6
    return Seen(leaf, flat, theta.ravel(), np.arange(flat.size), true, bad, noise=1e-6, **more)


def drawn(rng: np.random.Generator, longest: int = 40) -> tuple[np.ndarray, np.ndarray]:
    shape = tuple(rng.integers(5, longest, 2))
    truth = rng.normal(size=shape) * np.exp(rng.normal(size=shape) * rng.uniform())
    return truth, rng.normal(size=shape) * 0.3


def known(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A truth as differences know it."""
    return truth * (1 + 1e-6 * rng.normal(size=truth.shape))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_mistake_is_called_by_its_name(kind: str) -> None:
    names, plant = PLANTED[kind]
    found: Counter[str] = Counter()
    for seed in range(SEEDS):
        rng = np.random.default_rng([len(kind), seed])
        truth, theta = drawn(rng)
        gradient = plant(truth, theta, rng)
        cause = cause_of(seen(gradient, known(truth, rng), theta))
        found[cause.kind if cause else "none"] += 1
    assert sum(found[name] for name in names) == SEEDS, found


def test_random_errors_are_called_by_no_name() -> None:
    for seed in range(3000):
        rng = np.random.default_rng([99, seed])
        truth, theta = drawn(rng, 15)
        some = rng.random(truth.shape) < 0.5
        gradient = [
            truth + noise(truth, rng),
            truth * rng.uniform(0.2, 3, truth.shape),
            noise(truth, rng),
            truth + 0.1 * noise(truth, rng) * some,
        ][seed % 4]
        assert cause_of(seen(gradient, known(truth, rng), theta)) is None, seed


@pytest.mark.parametrize("size", [1, 2, 3])
def test_of_few_elements_a_name_alone_tells(size: int) -> None:
    truth = np.array([0.7, -1.3, 2.1])[:size]
    theta = np.zeros(size)
    named = cause_of(seen(-truth, truth, theta))
    assert named is not None and named.kind == "sign"
    for factor in (0.83, 3.0, 1.7):
        assert cause_of(seen(factor * truth, truth, theta)) is None
    many = cause_of(seen(3 * truth, truth, theta, extents=frozenset({3})))
    assert many is not None and many.text == "dW = 3 * truth: a sum over 3 where a mean is meant?"


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (2.0, "2 * truth: twice too much"),
        (0.5, "truth / 2: half is missing"),
        (64.0, "64 * truth: a sum over 64 where a mean is meant?"),
        (-1 / 64, "-truth / 64: a mean over 64 where a sum is meant?"),
        (np.sqrt(8), "sqrt(8) * truth: a scale missing, or applied twice?"),
        (7 / 8, "(7/8) * truth: counts of 7 and 8 exchanged?"),
        (np.sqrt(8 / 7), "sqrt(8/7) * truth: counts of 7 and 8 exchanged?"),
        (0.8312, "0.8312 * truth"),
    ],
)
def test_a_factor_is_told_as_what_it_may_be(factor: float, text: str) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(4, 8))
    told = seen(factor * truth, truth, truth, extents=frozenset({4, 8}))
    assert cause_of(told) == Cause("factor", f"dW = {text}")


def test_a_small_missing_term_is_no_factor_of_one() -> None:
    rng = np.random.default_rng(5)
    truth, theta = 100 * rng.normal(size=(6, 7)), rng.normal(size=(6, 7))
    cause = cause_of(seen(truth - 1e-3 * theta, truth, theta))
    assert cause is not None
    assert cause.text == (
        "dW = truth - 0.001 * W: the L2 term (lambda = 0.001) is missing from the gradient"
    )


def test_a_gradient_that_is_right_within_noise_has_no_cause() -> None:
    truth = np.random.default_rng(0).normal(size=(5, 5))
    assert cause_of(seen(truth * (1 + 1e-7), truth, truth)) is None
    assert cause_of(seen(truth, truth, truth)) is None


@pytest.mark.parametrize(
    ("where", "shape", "words"),
    [
        (np.s_[2], (4, 5), "row 2"),
        (np.s_[:, [1, 4]], (4, 5), "columns 1 and 4"),
        (np.s_[-3:], (6, 5), "the last 3 of 6 rows"),
        (np.s_[:, ::4], (3, 16), "every 4th column from 0"),
        (np.s_[:, 4:10], (3, 16), "columns 4 to 9"),
        (np.s_[2:13:2], (32, 4), "every second row from 2 to 12"),
        (np.s_[:, 2], (3, 4, 5), "[:, 2, :]"),
        (np.s_[1:3], (4, 4, 5), "slices 1 and 2 along axis 0"),
        (np.s_[-7:], (40,), "the last 7 of 40 elements"),
        (np.s_[:5], (40,), "the first 5 of 40 elements"),
        (np.s_[3::8], (64,), "every 8th element from 3"),
        (np.s_[1:3, 2:5], (6, 8), "[1:3, 2:5]"),
        (np.s_[4:9], (40,), "[4:9]"),
        (np.s_[:, :, 3], (1, 2, 6, 8), "[:, :, 3, :]"),
        (np.s_[:, :, 2:], (1, 5, 4, 3), "slices 2 and 3 along axis 2"),
        (np.s_[:, 0, 2], (1, 1, 6, 8), "row 2"),
        (np.s_[:, :, 1:3, 2:5], (1, 1, 6, 8), "[:, :, 1:3, 2:5]"),
        (np.s_[:, -7:], (1, 40), "the last 7 of 40 elements"),
        (np.s_[[0, 1, 2, 3], [0, 1, 2, 3]], (4, 4), "the diagonal"),
        (np.s_[[0, 1], [2, 3]], (4, 5), None),
        (np.s_[:, [0, 1, 2], [1, 2, 3]], (2, 3, 4), "diagonal +1"),
        (np.triu_indices(6, 1), (6, 6), "the part above the diagonal"),
        (np.triu_indices(6, 3), (6, 6), "diagonals +3 to +5"),
        (np.tril_indices(6), (6, 6), "the diagonal and the part below it"),
        (np.tril_indices(6, -1, 5), (6, 5), "the part below the diagonal"),
        (np.abs(np.subtract.outer(np.arange(9), np.arange(9))) < 2, (9, 9), "diagonals -1 to +1"),
        (np.pad(np.zeros((2, 4), bool), 2, constant_values=True), (6, 8), "the rim, 2 wide"),
        (np.s_[3, 4], (6, 8), None),
        (np.s_[:], (6, 8), None),
        (np.s_[[0, 2, 3, 5], [1, 1, 7, 0]], (6, 8), None),
        (np.s_[1:], (3,), None),
    ],
)
def test_a_place_is_told_as_a_reader_would_write_it(
    where: Any, shape: tuple[int, ...], words: str | None
) -> None:
    mask = np.zeros(shape, bool)
    mask[where] = True
    place = place_of(mask.ravel(), shape)
    assert (place and place.words) == words
    if place is not None:
        assert (place.inside == mask.ravel()).all()


def test_elements_that_are_right_by_chance_do_not_hide_a_place() -> None:
    mask = np.zeros((10, 30), bool)
    mask[4] = True
    mask[4, 7] = False
    place = place_of(mask.ravel(), mask.shape)
    assert place is not None and place.words == "row 4"
    mask[5, 5] = True
    assert place_of(mask.ravel(), mask.shape) is None


def test_a_place_with_gaps_gives_way_to_one_that_is_full() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:, :3] = True
    place = place_of(mask.ravel(), mask.shape)
    assert place is not None and place.words == "[1:4, 0:3]"


def test_a_mistake_in_a_part_alone_is_told_with_the_part() -> None:
    truth = np.random.default_rng(1).normal(size=(6, 7))
    gradient = truth.copy()
    gradient[3] *= -1
    cause = cause_of(seen(gradient, truth, truth))
    assert cause == Cause("sign", "in row 3 dW = -truth: the sign is wrong")


def test_the_rest_of_a_block_is_told_with_the_size_of_the_block() -> None:
    truth = np.random.default_rng(1).normal(size=70)
    gradient = np.where(np.arange(70) < 64, truth, 0)
    cause = cause_of(seen(gradient, truth, truth))
    assert cause == Cause(
        "tail", "dW is zero in the last 6 of 70 elements: what is left beyond whole blocks of 64"
    )


def test_blocks_are_counted_in_rows_where_rows_are_lost() -> None:
    truth = np.random.default_rng(1).normal(size=(20, 3))
    for first, said in ((16, ": what is left beyond whole blocks of 16"), (18, "")):
        gradient = truth.copy()
        gradient[first:] = 0
        cause = cause_of(seen(gradient, truth, truth))
        assert cause is not None and cause.text.endswith(said)
        assert ("blocks" in cause.text) == bool(said)
    gradient = truth[:3].copy()
    gradient[2] = 0
    cause = cause_of(seen(gradient, truth[:3], truth[:3]))
    assert cause == Cause("rows", "dW is zero in row 2")


# End to end: from the call to the sentence.


def causes(report: Report) -> dict[str, str]:
    """What is said of each leaf beside where it is wrong."""
    plain = {"wrong gradient", "precision", "only on its constraint"}
    return {found.leaf: found.text for found in report.findings if found.kind not in plain}


def regularised(lost: float) -> Report:
    rng = np.random.default_rng(0)
    params = {"W1": rng.normal(size=(4, 3)), "b1": rng.normal(size=3)}
    x = rng.normal(size=(5, 4))

    def cost(params: dict[str, np.ndarray]) -> float:
        z = x @ params["W1"] + params["b1"]
        return float((np.tanh(z) ** 2).sum() / 2 + 0.005 * (params["W1"] ** 2).sum())

    def gradient(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        a = np.tanh(x @ params["W1"] + params["b1"])
        dz = a * (1 - a**2)
        return {"dW1": x.T @ dz + (0.01 - lost) * params["W1"], "db1": dz.sum(0)}

    return report_on(cost, params, grads=gradient)


def test_a_missing_l2_term_is_told_with_its_lambda_in_the_names_of_the_user() -> None:
    assert causes(regularised(lost=0.01)) == {
        "params['W1']": "dW1 = truth - 0.01 * W1: the L2 term (lambda = 0.01) is missing from the "
        "gradient"
    }
    right = regularised(lost=0.0)
    assert right.verdict is Verdict.PASS and not right.findings


class Tanh(torch.autograd.Function):
    """tanh of a product, whose backward goes through ``spoil``."""

    spoil: Callable[..., Any]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return torch.tanh(x @ w)

    @classmethod
    def backward(cls, ctx: Any, grad: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        slope = 1 - torch.tanh(x @ w) ** 2
        delta = grad * slope
        return delta @ w.T, cls.spoil(x.T @ delta, x, w, slope)


def product(
    shape: tuple[int, int], spoil: Callable[..., Any], dtype: torch.dtype = torch.float64
) -> Report:
    fn = type("Spoilt", (Tanh,), {"spoil": staticmethod(spoil)})
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, shape[0], dtype=dtype, generator=generator)
    w = torch.randn(*shape, dtype=dtype, generator=generator) * 0.2

    def tanh_of_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = fn.apply(x, w)
        return out

    return report_on(tanh_of_product, x, w)


def changed(place: Any, by: float) -> Callable[..., torch.Tensor]:
    def change(g: torch.Tensor, *others: Any) -> torch.Tensor:
        g = g.clone()
        g[place] *= by
        return g

    return change


SPOILT: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "sign": (lambda g, *_: -g, "dw = -truth: the sign is wrong"),
    "mean": (lambda g, *_: g / 8, "dw = truth / 8: a mean over 8 where a sum is meant?"),
    "zero": (lambda g, *_: 0 * g, "dw is zero: cut off from the output, or never written"),
    "L2": (
        lambda g, x, w, s: g + 0.01 * w,
        "dw = truth + 0.01 * w: the gradient has an L2 term (lambda = 0.01) that the function "
        "lacks",
    ),
    "rolled": (lambda g, *_: g.roll(1, 0), "dw = truth rolled by 1 along axis 0"),
    "last rows": (changed(np.s_[-3:], 0.0), "dw is zero in the last 3 of {} rows"),
    "a row": (changed(np.s_[5], -1.0), "in row 5 dw = -truth: the sign is wrong"),
    "a column": (changed(np.s_[:, 5], 2.0), "in column 5 dw = 2 * truth: twice too much"),
    "cotangent": (
        lambda g, x, w, s: x.T @ s,
        "dw does not change with the cotangent: what comes in is not used",
    ),
    "strided zeros": (changed(np.s_[:, 3::4], 0.0), "dw is zero in {}"),
}


@pytest.mark.parametrize("shape", [(12, 9), (60, 100)], ids=["sweep", "projection"])
@pytest.mark.parametrize("kind", SPOILT)
def test_the_cause_is_told_from_all_coordinates_and_from_some(
    kind: str, shape: tuple[int, int]
) -> None:
    spoil, text = SPOILT[kind]
    report = product(shape, spoil)
    assert report.verdict is Verdict.FAIL
    rest = shape[0] if "rows" in text else "columns 3 and 7"
    rest = "every 4th column from 3" if shape[1] == 100 and "rows" not in text else rest
    assert causes(report) == {"w": text.format(rest)}


@pytest.mark.parametrize("kind", ["sign", "last rows", "cotangent"])
def test_the_cause_is_told_below_float64(kind: str) -> None:
    spoil, text = SPOILT[kind]
    assert causes(product((12, 9), spoil, torch.float32)) == {"w": text.format(12)}


def test_random_errors_have_no_cause_however_many_coordinates_are_known() -> None:
    def spoil(g: torch.Tensor, *others: Any) -> torch.Tensor:
        return g + 0.1 * torch.randn(g.shape, generator=torch.Generator().manual_seed(0)).to(g)

    for shape in ((12, 9), (60, 100)):
        report = product(shape, spoil)
        assert report.verdict is Verdict.FAIL and not causes(report)


def test_a_gradient_of_an_earlier_call_is_called_stale() -> None:
    kept: dict[Any, torch.Tensor] = {}

    def spoil(g: torch.Tensor, *others: Any) -> torch.Tensor:
        return kept.setdefault((g.shape, g.dtype), g + 0.1 * g.flip(0))

    (text,) = causes(product((12, 9), spoil)).values()
    assert text.startswith("dw is the same under another cotangent and at another point: ")
    assert "(stale)" in text


def test_a_point_of_an_earlier_call_is_called_stale() -> None:
    old = np.array([0.3, -0.7, 1.1, 0.4, 2.0])

    def gradient(cotangent: np.ndarray, x: np.ndarray) -> np.ndarray:
        return cotangent * np.cos(old)

    x = np.array([1.3, 0.2, -1.0, 0.9, 0.1])
    report = report_on(lambda x: np.sin(x), x, grads=gradient)
    (text,) = causes(report).values()
    assert text.startswith("dx is the same at another point, where the truth is not")


def test_a_wrong_gradient_of_a_linear_function_is_not_called_stale() -> None:
    a = np.random.default_rng(0).normal(size=(5, 5))
    b = np.random.default_rng(1).normal(size=(5, 5))
    report = report_on(lambda x: a @ x, np.arange(5.0) + 0.5, grads=lambda u, x: b.T @ u)
    assert report.verdict is Verdict.FAIL and not causes(report)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def test_the_diagonal_of_a_jacobian_alone_is_told() -> None:
    z = np.array([0.3, -1.2, 0.8, 1.9, -0.4])
    report = report_on(softmax, z, grads=lambda u, z: u * softmax(z) * (1 - softmax(z)))
    (text,) = causes(report).values()
    assert text.startswith("dz = the diagonal of the Jacobian times the cotangent")


def test_a_function_whose_jacobian_is_diagonal_is_not_told_so() -> None:
    x = np.array([0.3, -1.2, 0.8, 1.9, -0.4])
    report = report_on(lambda x: np.sin(x), x, grads=lambda u, x: u * (np.cos(x) + 1e-3 * x**2))
    assert report.verdict is Verdict.FAIL and not causes(report)


def test_a_straight_through_gradient_is_the_cotangent() -> None:
    x = np.array([0.3, -1.2, 0.8, 1.9, -0.4])
    report = report_on(lambda x: np.sin(x), x, grads=lambda u, x: u.copy())
    (text,) = causes(report).values()
    assert text == "dx = the cotangent: the derivative of the function itself is missing"


def test_gradients_that_are_exchanged_are_told() -> None:
    a, b = np.arange(1.0, 7.0), np.linspace(-1.0, 2.3, 6)
    report = report_on(
        lambda a, b: np.sin(a) * b**2,
        a,
        b,
        grads=lambda u, a, b: (2 * u * b * np.sin(a), u * np.cos(a) * b**2),
        wrt=(0, 1),
    )
    assert causes(report) == {"a": "da = the gradient of b", "b": "db = the gradient of a"}


def complex_square(spoil: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    apply = function(square, lambda ctx, grad: spoil(grad * (2 * ctx.saved_tensors[0]).conj()))

    def squared(z: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = apply(z)
        return out

    return squared


def test_a_complex_gradient_that_is_conjugated_is_told() -> None:
    z = torch.randn(6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    report = report_on(complex_square(lambda grad: grad.conj()), z)
    assert causes(report) == {"z": "dz = the complex conjugate of the truth"}


def test_a_kernel_is_told_what_its_gradient_is_beside_that_of_its_reference() -> None:
    fn = type("Spoilt", (Tanh,), {"spoil": staticmethod(changed(np.s_[-3:], 0.0))})
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(*shape, generator=generator) for shape in ((8, 24), (24, 36)))

    def plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ w)

    report = report_on(fn.apply, x, w, reference=plain, dtypes=("float32", "bfloat16"))
    said = [finding.text for finding in report.findings if finding.leaf == "w"]
    assert said and all("dw is zero in the last 3 of 24 rows" in text for text in said)


def spread_over(count: int, *places: int) -> np.ndarray:
    """Ones, and zeros at these places."""
    return np.where(np.isin(np.arange(count), places), 0.0, 1.0)


X = np.random.default_rng(0).normal(size=20)
NEAR_FIVE = 5 + 0.05 * np.random.default_rng(1).normal(size=(4, 5))
SHARES = np.random.default_rng(2).dirichlet(np.ones(6))

# What one rule says of the mistake of another, where nothing keeps it from that.
MISTAKABLE: dict[str, tuple[Callable[..., Any], np.ndarray, Callable[..., Any], str]] = {
    "two elements of an elementwise function": (
        lambda x: np.sin(x),
        X,
        lambda u, x: u * np.cos(x) + np.where(np.isin(np.arange(20), [6, 13]), 3.0, 0.0),
        "",
    ),
    "the end of a constant gradient": (
        lambda x: x.mean(),
        X,
        lambda x: spread_over(20, 18, 19) / 20,
        "dx is zero in the last 2 of 20 elements",
    ),
    "a column of a constant gradient": (
        lambda x: x.sum(1),
        X.reshape(4, 5),
        lambda u, x: u[:, None] * spread_over(5, 4),
        "dx is zero in column 4",
    ),
    "a constant beside values of one sign": (
        lambda p: (p * np.log(p)).sum(),
        SHARES,
        lambda p: np.log(p),
        "dp = truth - 1: off by a constant",
    ),
    "one element that is larger than all others": (
        lambda x: np.exp(x),
        np.where(np.arange(20) == 3, 8.0, X),
        lambda u, x: u * np.exp(x) * np.where(np.arange(20) == 3, -1, 1),
        "",
    ),
    "a slope that is constant by pieces": (
        lambda x: x / (1 + np.exp(-1.7 * x)),
        X,
        lambda u, x: u * (x > 0),
        "",
    ),
    "another formula where the point is nearly constant": (
        lambda x: (x**3).sum(),
        NEAR_FIVE,
        lambda x: np.cos(100 * x),
        "",
    ),
    "zeros that are right beside those that are not": (
        lambda x: np.sin(x[:10]),
        X,
        lambda u, x: np.r_[u * np.cos(x[:10]) * spread_over(10, 8, 9), np.zeros(10)],
        "",
    ),
    "a factor that no axis has": (
        lambda x: x**3,
        X.reshape(4, 5),
        lambda u, x: u * x**2,
        "dx = truth / 3",
    ),
    "a kernel that is reversed along both axes": (
        lambda x: np.sin(x) * X.reshape(4, 5),
        X.reshape(4, 5) + 0.3,
        lambda u, x: (u * X.reshape(4, 5) * np.cos(x))[::-1, ::-1],
        "dx = truth reversed along axes 0 and 1",
    ),
    "a factor of rows of which one is right": (
        lambda x: np.sin(x) * X.reshape(4, 5),
        X.reshape(4, 5) + 0.3,
        lambda u, x: u * X.reshape(4, 5) * np.cos(x) * np.arange(1.0, 5.0)[:, None],
        "each row of dx has its own factor: 1, 2, 3, ...",
    ),
}


@pytest.mark.parametrize("what", MISTAKABLE)
def test_no_rule_speaks_of_the_mistake_of_another(what: str) -> None:
    fn, point, grads, text = MISTAKABLE[what]
    report = report_on(fn, point, grads=grads)
    assert report.verdict is Verdict.FAIL
    assert "".join(causes(report).values()) == text


def test_a_cotangent_that_is_not_used_is_not_called_stale_where_the_truth_stays() -> None:
    row = np.arange(1.0, 5.0)
    w = np.random.default_rng(0).normal(size=(3, 4))
    report = report_on(lambda w: w @ row, w, grads=lambda u, w: np.tile(row, (3, 1)))
    (text,) = causes(report).values()
    assert text == "dw does not change with the cotangent: what comes in is not used"


def test_few_random_wrong_elements_have_no_cause() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=rng.integers(9, 50))
        bad = rng.choice(x.size, rng.integers(1, 4), replace=False)
        noise = np.zeros(x.size)
        noise[bad] = rng.normal(size=bad.size) + 1

        def grads(u: np.ndarray, x: np.ndarray, noise: np.ndarray = noise) -> np.ndarray:
            return u * np.cos(x) + noise

        report = report_on(lambda x: np.sin(x), x, grads=grads)
        said = [text for text in causes(report).values() if "alone" not in text]
        assert report.verdict is Verdict.FAIL and not said, (seed, said)


def test_axes_of_a_complex_leaf_are_those_of_the_user() -> None:
    z = torch.randn(4, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    report = report_on(complex_square(lambda grad: grad.roll(1, 0)), z)
    assert causes(report) == {"z": "dz = truth rolled by 1 along axis 0"}


def test_a_complex_number_is_an_output() -> None:
    z = torch.tensor([0.3 + 0.4j, 1.2 - 0.7j], dtype=torch.complex128)
    assert report_on(lambda z: (z * z).sum(), z).verdict is Verdict.PASS


def test_looking_for_the_cause_leaves_the_world_as_it_was() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    before, state = x.detach().clone(), torch.get_rng_state()

    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(3, dtype=x.dtype)

    random = function(forward, lambda ctx, grad: -grad)
    assert report_on(random, x).verdict is Verdict.FAIL
    assert torch.equal(x, before) and x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backward_that_refuses_another_cotangent_is_judged_all_the_same() -> None:
    first: list[np.ndarray] = []

    def gradient(u: np.ndarray, x: np.ndarray) -> np.ndarray:
        first.append(u) if not first else None
        if not np.array_equal(u, first[0]):
            raise RuntimeError("another cotangent")
        return -u * np.cos(x)

    report = report_on(lambda x: np.sin(x), np.array([0.3, 1.0, 2.2]), grads=gradient)
    assert report.verdict is Verdict.FAIL
    assert causes(report) == {"x": "dx = -truth: the sign is wrong"}


WITH_A_PATTERN = [bug for bug in BUGS if bug.cause]


@pytest.mark.parametrize("bug", WITH_A_PATTERN, ids=lambda bug: bug.title)
def test_a_planted_bug_is_named_in_the_first_ten_lines(bug: Bug) -> None:
    report = bug.run(True, 0)
    found = [finding for finding in report.findings if finding.kind == bug.cause]
    assert found, [(finding.kind, finding.text) for finding in report.findings]
    assert found[0].leaf in bug.leaf
    first = " ".join(" ".join(str(report).splitlines()[:10]).split())
    assert f"{bug.cause}:" in first


def test_many_planted_bugs_have_a_pattern() -> None:
    assert len(WITH_A_PATTERN) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_the_mended_twin_of_a_planted_bug_has_no_cause(bug: Bug) -> None:
    assert not bug.run(False, 0).findings


def test_what_is_not_rounding_is_not_called_rounding() -> None:
    constant = math.sqrt(2 / math.pi)

    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x, approximate="tanh")

    def without_its_three(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        t = torch.tanh(constant * (x + 0.044715 * x**3))
        return u * ((1 + t) / 2 + x / 2 * (1 - t * t) * constant * (1 + 0.044715 * x * x))

    gelu = function(forward, without_its_three)
    for seed in range(5):
        torch.manual_seed(seed)
        report = report_on(gelu, 2 * torch.randn(4, 7, dtype=torch.float64))
        assert report.verdict is Verdict.FAIL
        assert "precision" not in {finding.kind for finding in report.findings}


def test_one_wrong_element_gives_no_factor_to_each_column() -> None:
    hidden = torch.ones(4, 6, dtype=torch.bool).triu(2)

    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = x.masked_fill(hidden, -torch.inf).softmax(-1)
        ctx.save_for_backward(out)
        return out

    def halved_once(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        (out,) = ctx.saved_tensors
        found = out * (u - (u * out).sum(-1, keepdim=True))
        found[3, 4] *= 0.5
        return found

    torch.manual_seed(0)
    report = report_on(function(forward, halved_once), torch.randn(4, 6, dtype=torch.float64))
    assert [finding.kind for finding in report.findings] == ["wrong gradient"]


def test_a_slope_in_16_bits_does_not_make_a_gradient_stale() -> None:
    def forward(ctx: Any, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.tanh() + b

    def first_alone(ctx: Any, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return u * (1 - ctx.saved_tensors[0].tanh() ** 2), u[0]

    for seed in range(3):
        torch.manual_seed(seed)
        x, b = (torch.randn(*shape).bfloat16() for shape in ((5, 4), (4,)))
        report = report_on(function(forward, first_alone), x, b)
        assert "stale" not in {finding.kind for finding in report.findings}


def test_a_formula_that_is_wrong_by_little_is_not_called_rounding():
    labels, smoothing = np.eye(6)[[0, 5, 2]], 0.1

    def target(classes):
        return (1 - smoothing) * labels + smoothing / classes

    def value(x):
        log = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return -(target(6) * log).sum()

    def wrong(x):
        soft = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        return soft - target(6) + 3e-3

    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(3, 6))
        report = check(value, x, grads=wrong, raise_exception=False)
        assert report.verdict == "FAIL"
        assert "precision" not in {finding.kind for finding in report.findings}


@pytest.mark.parametrize("intercept", [0, 8])
def test_a_missing_l2_term_is_told_beside_an_intercept_that_has_none(intercept):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 9)), (rng.random(30) < 0.5) * 1.0
    X[:, intercept] = 1.0
    penalised = np.arange(9) != intercept

    def cost(t):
        z = X @ t
        return np.mean(np.logaddexp(0, z) - y * z) + 0.35 * np.sum(t[penalised] ** 2)

    def gradient(t):
        return X.T @ (1 / (1 + np.exp(-X @ t)) - y) / 30

    t = rng.normal(size=9)
    right = check(cost, t, grads=lambda t: gradient(t) + 0.7 * penalised * t)
    assert right.verdict == "PASS"
    report = check(cost, t, grads=gradient, raise_exception=False)
    (found,) = [finding for finding in report.findings if finding.kind == "L2 term"]
    assert "lambda = 0.7) is missing from the gradient, in 8 of 9 elements" in found.text


def test_a_factor_next_to_1_is_told_with_the_digits_that_tell_it_from_1():
    w = np.linspace(0.5, 2, 8)
    report = check(lambda w: (w**3).sum(), w, grads=lambda w: 2.99994 * w**2, raise_exception=False)
    assert "dw = 0.99998 * truth" in [finding.text for finding in report.findings]


def test_a_factor_of_the_small_elements_is_not_told_of_all():
    """A term is missing that is 8 % of all elements but of the large ones, one in a row."""
    rng = np.random.default_rng(0)
    x, labels = 0.01 * rng.normal(size=(12, 50)), rng.integers(50, size=12)
    given = np.eye(50)[labels]

    def loss(x):
        logsumexp = np.log(np.exp(x).sum(1, keepdims=True))
        return np.mean(((logsumexp - x) * given).sum(1) + 1e-2 * logsumexp[:, 0] ** 2)

    def gradient(x, weight):
        logsumexp = np.log(np.exp(x).sum(1, keepdims=True))
        chances = np.exp(x - logsumexp)
        return (chances - given + weight * logsumexp * chances) / len(x)

    assert check(loss, x, grads=lambda x: gradient(x, 2e-2))
    report = check(loss, x, grads=lambda x: gradient(x, 0.0), raise_exception=False)
    assert report.verdict == "FAIL"
    assert not [finding.text for finding in report.findings if finding.kind == "factor"]


@pytest.mark.parametrize("size", [4, 40])
def test_what_turns_with_the_cotangent_is_no_term_of_the_leaf(size):
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x / x.norm()

    def without_projection(ctx, u):
        (x,) = ctx.saved_tensors
        return u / x.norm()

    def decayed(ctx, u):
        (x,) = ctx.saved_tensors
        n = x.norm()
        return u / n - x * (x @ u) / n**3 + 0.05 * x

    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for backward, is_named in ((without_projection, False), (decayed, True)):
        report = report_on(function(forward, backward), x)
        assert report.verdict == "FAIL"
        assert ("L2 term" in {finding.kind for finding in report.findings}) is is_named


def test_a_gradient_of_zero_is_not_said_to_ignore_the_cotangent():
    """As of a divergence from a standard normal where it is one, with a mean forgotten."""

    def forward(ctx, mu, logvar):
        ctx.save_for_backward(mu, logvar)
        return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()

    def backward(ctx, u):
        mu, logvar = ctx.saved_tensors
        return u * mu, u * 0.5 * (logvar.exp() - 1)

    zeros = torch.zeros(4, 3, dtype=torch.float64)
    report = report_on(function(forward, backward), zeros, zeros.clone())
    assert report.verdict == "FAIL"
    assert {finding.kind for finding in report.findings} == {"only right at this point"}


@pytest.mark.parametrize("seed", range(5))
def test_one_formula_for_another_is_not_called_rounding(seed):
    """gelu by tanh, and by erf: their difference is of that size, and goes with x."""

    def by_tanh(u, x):
        c = np.sqrt(2 / np.pi)
        t = np.tanh(c * (x + 0.044715 * x**3))
        return u * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x))

    def gelu(x):
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))

    x = np.random.default_rng(seed).normal(size=(4, 5))
    report = report_on(gelu, x, grads=by_tanh)
    assert report.verdict == "FAIL"
    assert "precision" not in {finding.kind for finding in report.findings}


class Smoothed(torch.autograd.Function):
    """A cross entropy with smoothed labels, which its gradient shares out among the others."""

    @staticmethod
    def forward(ctx, x, labels, dtype):
        shares = x.log_softmax(-1)
        ctx.save_for_backward(shares.to(dtype), labels)
        picked = shares.gather(1, labels[:, None])[:, 0]
        return (-0.9 * picked - 0.1 * shares.mean(-1)).mean()

    @staticmethod
    def backward(ctx, u):
        shares, labels = ctx.saved_tensors
        is_short = shares.dtype != torch.float64
        shares = shares.double()
        count = shares.shape[1]
        own = torch.full_like(shares, 0.1 / (count if is_short else count - 1))
        own.scatter_add_(1, labels[:, None], torch.full_like(shares[:, :1], 0.9))
        return u * (shares.exp() - own) / len(labels), None, None


@pytest.mark.parametrize("seed", range(4))
def test_a_short_format_is_named_only_where_the_backward_pass_computes_in_one(seed):
    """A wrong share may be off by as much, and what it is multiplied with be as random."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 12), torch.nn.LeakyReLU(0.1), torch.nn.Linear(12, 5)
    ).double()
    x, labels = torch.randn(6, 9, dtype=torch.float64), torch.randint(0, 5, (6,))
    named = {}
    for dtype in (torch.float64, torch.bfloat16):
        loss = lambda out, dtype=dtype: Smoothed.apply(out, labels, dtype)  # noqa: E731
        report = check(model, x, loss=loss, raise_exception=False)
        assert report.verdict == "FAIL"
        named[dtype] = [f for f in report.findings if f.kind == "precision"]
    assert not named[torch.float64] and named[torch.bfloat16]


def implicit(steps: int) -> Any:
    """z = tanh(A z + b), found by iteration, and the backward pass that solves its transpose by
    so many.
    """
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(5, 5)) / 8

    def value(params: dict[str, np.ndarray]) -> float:
        return float(np.cos(solved(params["b"])).sum())

    def solved(b: np.ndarray) -> np.ndarray:
        z = np.zeros(5)
        for _ in range(200):
            z = np.tanh(matrix @ z + b)
        return z

    def backward(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        z = solved(params["b"])
        slope, incoming = 1 - z**2, -np.sin(z)
        found = incoming
        for _ in range(steps):
            found = incoming + matrix.T @ (slope * found)
        return {"b": slope * found}

    return value, {"b": rng.normal(size=5)}, backward


def test_an_approximate_backward_pass_is_told_how_it_can_be_judged() -> None:
    fn, point, grads = implicit(100)
    assert report_on(fn, point, grads=grads).verdict is Verdict.PASS
    fn, point, grads = implicit(5)
    report = report_on(fn, point, grads=grads)
    assert report.verdict is Verdict.FAIL
    (note,) = (note for note in report.notes if "only approximates" in note)
    said = float(note.rpartition("rtol=")[2])
    assert report_on(fn, point, grads=grads, rtol=said).verdict is Verdict.PASS
    assert report_on(fn, point, grads=grads, rtol=said / 5).verdict is Verdict.FAIL


def test_what_has_a_cause_is_no_approximation() -> None:
    fn, point, grads = implicit(100)
    report = report_on(fn, point, grads=lambda p: {"b": 1.002 * grads(p)["b"]})
    assert list(causes(report)) == ["params['b']"]
    assert not any("only approximates" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mistake_in_a_formula_is_not_called_rounding_in_float32_either(dtype: Any) -> None:
    """N for N - 1 in the variance of a batch norm."""

    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x - x.mean(0)) / (x.std(0) + 1e-3)

    def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        off, size = x - x.mean(0), x.std(0) + 1e-3
        turned = -(off * u).sum(0) / size**2 / (2 * x.std(0))
        found: torch.Tensor = u / size - (u / size).mean(0) + 2 / len(x) * off * turned
        return found

    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(18, 2).to(dtype)
        report = report_on(function(forward, backward), x, seed=seed)
        assert report.verdict is Verdict.FAIL
        assert "precision" not in {finding.kind for finding in report.findings}, str(report)


def test_what_is_far_too_large_makes_no_zero_of_the_truth():
    x = np.random.default_rng(0).normal(size=(4, 3))

    def gradient(x):
        found = np.cos(x)
        found[1:] *= 1e7
        return found

    report = check(lambda x: float(np.sum(np.sin(x))), x, grads=gradient, raise_exception=False)
    assert "unmasked" not in {finding.kind for finding in report.findings}
    assert "in the last 3 of 4 rows" in report.findings[0].text
