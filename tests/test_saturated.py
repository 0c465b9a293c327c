"""Points at which little is left of a gradient: saturated units, large logits, small numbers, zero.

Right ones pass in float64, and below it where more than rounding is left of them; none is called
wrong. What is wrong by a factor fails.
"""

import pytest
import torch
from audited import Changed
from torch.nn import functional as F

from xgradcheck import check

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FUNCTIONS = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "cross entropy": lambda x: F.cross_entropy(x[None], torch.tensor([0])),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "expm1": lambda x: torch.expm1(-x.abs()),
}
POINTS = {
    "large": [-30.0, -25.0, -15.0],
    "both ends": [15.4, -15.2, 17.7, -13.1, 14.0, -16.6],
    "logits": [-20.0, 20.0, -19.5, 18.25],
    "ten": [-10.0, 10.0, -12.5, 11.0],
    "small": [1e-3, -2e-3, 3e-3],
}
UNSEEN = {("tanh", "logits")}
"""Where the gradient is so small that phi does not show it, 1e-17 of 1."""


LOST = {
    (name, point)
    for name, *points in (
        ("expm1", "both ends", "logits", "ten"),
        ("softmax", "large"),
    )
    for point in points
}
"""Where all that float32 or 16 bits have left is zero or a unit of rounding, and phi shows more."""


def times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The same, with a gradient that is wrong by a factor."""
    return Changed.apply(x, lambda cotangent: cotangent * factor)


def at(name: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(POINTS[name], dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_left_of_a_right_gradient_is_right(name, point, dtype):
    report = check(FUNCTIONS[name], at(point, dtype), raise_exception=False)
    is_lost = dtype != torch.float64 and (name, point) in LOST
    assert report.verdict == "PASS" or (is_lost and report.verdict == "INCONCLUSIVE")


@pytest.mark.parametrize("factor", [2.0, -1.0, 1.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_left_of_a_wrong_one_is_wrong(name, point, dtype, factor):
    def wrong(x):
        return FUNCTIONS[name](times(x, factor))

    report = check(wrong, at(point, dtype), raise_exception=False)
    assert (report.verdict == "FAIL") == ((name, point) not in UNSEEN)


STATIONARY = {
    "square": lambda x: x**2,
    "cosine": torch.cos,
    "product": lambda x: torch.prod(x, -1),
    "gram": lambda x: x @ x.T,
    "huber": lambda x: F.huber_loss(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STATIONARY)
def test_a_gradient_that_is_zero_at_zero_is_right_in_every_precision(name, dtype):
    x = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    assert check(STATIONARY[name], x).verdict == "PASS"
    with pytest.raises(AssertionError, match="only right at this point"):
        check(lambda x: STATIONARY[name](times(x, 2.0)), x)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_what_a_coarse_sum_inside_rounds_is_no_mistake(dtype):
    # One plus little: of the little few bits are left, at all points near by the same ones.
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = 0.05 * torch.randn(3, 5, generator=generator)
        report = check(lambda x: F.layer_norm(x + 1, (5,)), x.to(dtype), raise_exception=False)
        assert report.verdict != "FAIL"


def test_what_rounding_hides_in_a_saturated_unit_is_not_called_wrong():
    """Next to p = 1, p log(p) is lost, and it is a part of the slope: by mpmath autograd is right
    to its last digits, and differences are off by 1 in 138.
    """

    def entropy(x):
        return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)

    report = check(entropy, torch.tensor([0.0, -138.0]).double(), raise_exception=False)
    assert report.verdict == "INCONCLUSIVE"
    assert [finding.kind for finding in report.findings] == ["saturated"]


@pytest.mark.parametrize("seed", range(6))
def test_kinks_far_off_are_no_noise(seed):
    """Where all is clipped phi stands still, and it is a kink that wide steps meet."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=generator) * 20
    x = torch.where(x.abs() < 2, 2 + x.abs(), x)
    for wrong in (False, True):
        report = check(
            lambda x, off=wrong / 10: torch.nn.functional.hardtanh(
                Changed.apply(x, lambda g: g + off)
            ),
            x,
            raise_exception=False,
        )
        assert report.verdict == ("FAIL" if wrong else "PASS")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: 1 / (x + 1e-12),
        lambda x: 1 / (x * x + 1e-6) ** 6,
        lambda x: torch.exp(60 * x),
        lambda x: x**-20,
    ],
)
@pytest.mark.parametrize("factor", [1.0, 1.003, -1.0])
def test_what_is_far_larger_elsewhere_hides_nothing_here(fn, factor):
    x = torch.tensor([0.9, 1.3, 1.7, 2.1], dtype=torch.float64)
    report = check(lambda x: fn(Changed.apply(x, lambda g: factor * g)), x, raise_exception=False)
    assert report.verdict == ("PASS" if factor == 1 else "FAIL")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.0, -1.0, 2.0])
def test_tails_beside_ordinary_elements_are_judged(dtype, factor):
    x = torch.tensor([-17.0, -15.0, 0.3, 1.2], dtype=dtype)
    change = torch.tensor([factor, factor, 1.0, 1.0], dtype=torch.float64)
    report = check(
        lambda x: torch.sigmoid(Changed.apply(x, lambda g: (change * g).to(g))),
        x,
        raise_exception=False,
    )
    assert report.verdict == ("PASS" if factor == 1 else "FAIL")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", [4, 5, 9])
def test_what_is_next_to_nothing_near_by_too_is_no_mistake_there(seed, dtype):
    def entropies(x):
        logs = F.log_softmax(x, -1)
        return -(logs.exp() * logs).sum(-1)

    pixels = torch.randint(0, 256, (4, 8), generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert check(entropies, pixels, seed=seed).verdict == "PASS"
    wrong = check(lambda x: entropies(times(x, 1.01)), pixels, seed=seed, raise_exception=False)
    assert wrong.verdict == "FAIL"
