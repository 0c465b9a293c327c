"""Coverage by random directions: what is certified, what is found, and what is said of the rest."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from audited import Changed
from torch import Tensor, nn

from xgradcheck import Report, Verdict, _directions, check
from xgradcheck._certificate import DEVIATION, certify, factor
from xgradcheck._directions import bands, drawn
from xgradcheck._layout import Entry, Layout, Leaf, lay_out
from xgradcheck._localise import Search

Gradient = Callable[[np.ndarray], np.ndarray]


def smooth(size: int, seed: int = 0) -> tuple[dict[str, Any], Any, Any]:
    """A function of a matrix and a vector, coupled, and its gradient in closed form."""
    rng = np.random.default_rng(seed)
    rows = int(math.sqrt(size / 2))
    params = {"W": rng.normal(size=(rows, rows)), "b": rng.normal(size=size - rows * rows)}
    weights = {name: rng.normal(size=value.shape) for name, value in params.items()}

    def cost(p: dict[str, Any]) -> float:
        inner = sum(float((weights[name] * p[name]).sum()) for name in p) / math.sqrt(size)
        return sum(float(np.sin(p[name]).sum()) for name in p) + math.sqrt(size) * math.tanh(inner)

    def gradient(p: dict[str, Any]) -> dict[str, Any]:
        inner = sum(float((weights[name] * p[name]).sum()) for name in p) / math.sqrt(size)
        slope = 1 - math.tanh(inner) ** 2
        return {name: np.cos(p[name]) + slope * weights[name] for name in p}

    return params, cost, gradient


def spoilt(size: int, change: Callable[[dict[str, Any]], Any], **options: Any) -> Report:
    """The report on that function with a gradient that was tampered with."""
    params, cost, gradient = smooth(size)

    def wrong(p: dict[str, Any]) -> dict[str, Any]:
        found = gradient(p)
        change(found)
        return found

    return check(cost, params, grads=wrong, raise_exception=False, **options)


@pytest.mark.parametrize("size", [1000, 30_000, 1_000_000])
def test_a_smooth_function_passes_in_four_evaluations(size: int) -> None:
    report = spoilt(size, lambda g: None)
    assert report.verdict is Verdict.PASS
    assert report.coverage == "projection"
    assert report.evaluations == 4
    for leaf in report.leaves.values():
        assert 0 < leaf.floor <= 1.001e-5
        assert leaf.worst is None


IMPOSTORS: dict[str, Gradient] = {
    "zero": lambda g: 0 * g,
    "negated": lambda g: -g,
    "twice": lambda g: 2 * g,
    "half": lambda g: g / 2,
    "a tenth more": lambda g: 1.1 * g,
    "a thousandth more": lambda g: 1.001 * g,
}


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_an_impostor_is_rejected(impostor: str, size: int) -> None:
    def change(g: dict[str, Any]) -> None:
        g["W"][...] = IMPOSTORS[impostor](g["W"])

    report = spoilt(size, change)
    assert report.leaves["W"].verdict is Verdict.FAIL
    assert report.leaves["b"].verdict is Verdict.PASS


PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a row": lambda w: np.s_[3, :],
    "a block of 16": lambda w: np.s_[2, 1:17],
    "an element": lambda w: np.s_[5, 7],
    "a column": lambda w: np.s_[:, 4],
    "the last columns": lambda w: np.s_[:, -3:],
    "the last rows": lambda w: np.s_[-2:, :],
}


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize("part", PARTS)
def test_a_zeroed_part_is_found_and_nothing_else(part: str, size: int) -> None:
    where: list[Any] = []

    def change(g: dict[str, Any]) -> None:
        place = PARTS[part](g["W"])
        mask = np.zeros(g["W"].shape, bool)
        mask[place] = True
        where.append(mask)
        g["W"][place] = 0.0

    report = spoilt(size, change)
    leaf = report.leaves["W"]
    assert leaf.verdict is Verdict.FAIL
    assert report.leaves["b"].verdict is Verdict.PASS
    mask = where[0]
    assert leaf.wrong == mask.sum()
    assert leaf.worst is not None and mask[leaf.worst.index]
    finding, *causes = report.findings
    assert all(mask[index] for index in finding.indices)
    # A single zero is told by its index.
    assert [" is zero in " in cause.text for cause in causes] == [True] * bool(mask.sum() > 1)


def test_a_row_and_a_column_are_called_by_their_names() -> None:
    def row(g: dict[str, Any]) -> None:
        g["W"][3] *= 1.1

    def column(g: dict[str, Any]) -> None:
        g["W"][:, 4] *= 1.1

    for change, name in ((row, "row 3"), (column, "column 4")):
        finding, cause = spoilt(5000, change).findings
        assert f"{name} (50 elements" in finding.text
        assert cause.text == f"in {name} dW = 1.1 * truth"


def test_several_mistakes_in_several_leaves_are_all_found() -> None:
    def change(g: dict[str, Any]) -> None:
        g["W"][[1, 30, 77], [2, 60, 90]] += 0.1
        g["b"][[5, 9000]] -= 0.2

    report = spoilt(20_000, change)
    assert report.leaves["W"].wrong == 3
    assert report.leaves["b"].wrong == 2
    by_leaf = {finding.leaf: set(finding.indices) for finding in report.findings}
    assert by_leaf == {"p['W']": {(1, 2), (30, 60), (77, 90)}, "p['b']": {(5,), (9000,)}}


def test_the_distance_of_a_search_is_that_of_the_gradients() -> None:
    params, _, gradient = smooth(5000)
    right, given = gradient(params)["W"], gradient(params)["W"].copy()
    given[3] *= 1.1
    norm = np.linalg.norm
    distance = norm(given - right) / (norm(given) + norm(right))

    def change(g: dict[str, Any]) -> None:
        g["W"][3] *= 1.1

    # Of the row five elements were looked at.
    assert spoilt(5000, change).leaves["W"].distance == pytest.approx(distance, rel=0.7)


@pytest.mark.parametrize(("errors", "most"), [(1, 60), (5, 160), ("row", 70), ("everything", 160)])
def test_a_mistake_is_found_within_few_evaluations(errors: Any, most: int) -> None:
    def change(g: dict[str, Any]) -> None:
        rng = np.random.default_rng(1)
        if errors == "row":
            g["W"][17] += 0.1 * rng.normal(size=g["W"].shape[1])
        elif errors == "everything":
            for value in g.values():
                value += 0.1 * rng.normal(size=value.shape)
        else:
            flat = g["W"].reshape(-1)
            flat[rng.choice(flat.size, errors, replace=False)] += 0.1

    certified = spoilt(1_000_000, lambda g: None).evaluations
    report = spoilt(1_000_000, change)
    assert report.verdict is Verdict.FAIL
    assert report.evaluations - certified <= most


@pytest.mark.parametrize("size", [1200, 20_000, 200_000])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_mistakes_all_over_a_leaf_are_counted_by_some_of_them(size: int, share: float) -> None:
    def change(found: dict[str, Any]) -> None:
        wrong = np.random.default_rng(5).random(found["W"].shape) < share
        found["W"] *= np.where(wrong, 0.5, 1.0)

    report = spoilt(size, change)
    assert [name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"] == ["p['W']"]
    # The first 128 that are wrong, two evaluations for each that is looked at, and 350 beside them.
    assert report.evaluations < 2 * 128 / share + 350
    leaf = report.leaves["p['W']"]
    # Three standard deviations of a share of the hundred and more that were drawn.
    assert leaf.wrong / leaf.size == pytest.approx(
        share, abs=3 * math.sqrt(share * (1 - share) / 128)
    )
    assert f"about {leaf.wrong} of {leaf.size} elements" in str(report.findings[0].text)
    # Of elements that are about as large a share of which is halved.
    given = math.sqrt(1 - share + share / 4)
    assert leaf.distance == pytest.approx(math.sqrt(share / 4) / (1 + given), rel=0.25)


def tanh_wrong_by(factor: np.ndarray, x: np.ndarray, **options: Any) -> Report:
    """The report on a sum of tanh whose gradient is wrong by a factor in each element."""

    def gradient(x: np.ndarray) -> np.ndarray:
        return factor / np.cosh(x) ** 2

    return check(lambda x: np.tanh(x).sum(), x, grads=gradient, raise_exception=False, **options)


@pytest.mark.parametrize("size", [20_000, 200_000])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.08, 0.12])
def test_mistakes_too_many_to_find_them_all_are_counted_by_some_of_them(
    size: int, share: float
) -> None:
    rng = np.random.default_rng(size)
    x = rng.normal(size=size)
    wrong = rng.random(size) < share
    report = tanh_wrong_by(np.where(wrong, 0.7, 1.0), x)
    (leaf,) = report.leaves.values()
    # A hundred and more are found, in parts that are not quite all alike: three tenths hold three
    # standard deviations of such a count.
    assert leaf.wrong == pytest.approx(wrong.sum(), rel=0.3)
    assert report.evaluations < 3000


@pytest.mark.parametrize("first", [0, 1, 3])
def test_ends_of_parts_that_are_all_right_hide_nothing(first: int) -> None:
    x = np.random.default_rng(first).normal(size=(128, 128))
    factor = np.where(np.arange(128) % 4 == first, 0.5, 1.0)
    report = tanh_wrong_by(factor, x)
    (leaf,) = report.leaves.values()
    assert leaf.wrong == pytest.approx(x.size / 4, rel=0.35)
    assert report.evaluations < 2000


def patterns() -> dict[str, tuple[np.ndarray, str]]:
    """Masks of what is wrong, and what they have to be called."""
    rows, columns = np.indices((160, 200))
    batch, head, _, column = np.indices((2, 4, 40, 100))
    some = np.random.default_rng(0).permutation(160)
    lengths = np.random.default_rng(1).integers(10, 200, 160)
    return {
        "a triangle": (columns > rows, "in the part above the diagonal"),
        "a diagonal": (columns == rows, "in the diagonal"),
        "a rim": ((rows % 159 == 0) | (columns % 199 == 0), "in the rim"),
        "columns": (columns % 7 == 3, "in every 7th column from 3"),
        "edges": (columns % 199 == 0, "in columns 0 and 199"),
        "a head": ((head == 2) & (batch < 2), "in [:, 2, :, :]"),
        "half a head's columns": (column >= 50, "in the last 50 of 100 slices along axis 3"),
        "few rows": (np.isin(rows, some[:9]), "in 9 of 160 rows"),
        "many rows": (np.isin(rows, some[:40]), "in whole rows"),
        "padding": (columns >= lengths[:, None], "where it is wrong"),
    }


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0])
@pytest.mark.parametrize("name", patterns())
def test_where_mistakes_lie_is_told_by_some_of_them(name: str, factor: float) -> None:
    wrong, words = patterns()[name]
    x = np.random.default_rng(7).normal(size=wrong.shape)
    report = tanh_wrong_by(np.where(wrong, factor, 1.0), x)
    causes = [finding.text for finding in report.findings if finding.kind != "wrong gradient"]
    if factor == 0:
        # All zeros of a gradient are known, whatever was looked at.
        words = {"in whole rows": "in 40 of 160 rows"}.get(words, words)
        words = words.replace("where it is wrong", f"at {wrong.sum()} of {wrong.size} elements")
        assert causes and causes[0].startswith(f"dx is zero {words}"), causes
    else:
        told = {0.5: "truth / 2: half is missing", -1.0: "-truth: the sign is wrong"}[factor]
        signs = "dx has the truth's sizes and, at some elements, the wrong sign"
        assert causes == [f"{words} dx = {told}"] or (causes == [signs] and name == "padding")
    assert report.evaluations < 4500


def test_zeros_that_are_right_make_a_place_no_larger() -> None:
    x = np.random.default_rng(8).normal(size=(60, 80))
    used = np.random.default_rng(9).random(x.shape) < 0.5
    factor = used * np.where(np.arange(80) < 48, 1.0, 0.0)
    report = check(
        lambda x: (used * np.tanh(x)).sum(),
        x,
        grads=lambda x: factor / np.cosh(x) ** 2,
        raise_exception=False,
    )
    assert "dx is zero in the last 32 of 80 columns" in [f.text for f in report.findings]


def test_a_block_is_counted_for_what_it_is() -> None:
    def change(found: dict[str, Any]) -> None:
        found["W"][15:31, 12:26] *= 1.3

    report = spoilt(6000, change)
    assert report.leaves["p['W']"].wrong == 16 * 14
    assert report.evaluations < 2000


@pytest.mark.parametrize(("rows", "columns", "first"), [(60, 6, 3), (1000, 3, 2), (5000, 6, 3)])
def test_wrong_columns_of_a_tall_leaf_are_named(rows: int, columns: int, first: int) -> None:
    values = np.random.default_rng(2).normal(size=(rows, columns))

    def gradient(x: np.ndarray) -> np.ndarray:
        found = np.cos(x)
        found[:, first:] *= 1.2
        return found

    report = check(lambda x: np.sin(x).sum(), values, grads=gradient, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert report.evaluations < 500
    last = "column 2" if columns == 3 else "the last 3 of 6 columns"
    assert any(f"x, {last} (" in finding.text for finding in report.findings)
    assert report.leaves["x"].wrong == rows * (columns - first)


@pytest.mark.parametrize("weight", [1.0, 1e-4])
def test_where_a_certificate_says_little_its_direction_is_measured_anew_and_then_others(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, run = 4321, Search.run

    def weighed(leaf: Leaf, unit: Any, seed: int, number: int) -> Any:
        direction = drawn(leaf, unit, seed, number)
        if number == 0 and leaf.name == "p['W']":
            direction[place] *= weight
        return direction

    def blurred(search: Search, residual: float, bar: float) -> Any:
        search.number = 0
        return run(search, 0.0, bar)

    def change(g: dict[str, Any]) -> None:
        g["W"].reshape(-1)[place] += 0.1

    monkeypatch.setattr(_directions, "drawn", weighed)
    monkeypatch.setattr(Search, "run", blurred)
    report = spoilt(20_000, change)
    assert {finding.leaf: finding.indices for finding in report.findings} == {
        "p['W']": (np.unravel_index(place, report.leaves["W"].shape),)
    }


def test_a_gradient_that_is_not_finite_is_found_without_a_search() -> None:
    def change(g: dict[str, Any]) -> None:
        g["W"][2, 3] = np.nan
        g["b"][7] = np.inf

    report = spoilt(3000, change)
    assert {finding.leaf: finding.indices for finding in report.findings} == {
        "p['W']": ((2, 3),),
        "p['b']": ((7,),),
    }
    assert {finding.kind for finding in report.findings} == {"not finite"}


def test_a_nan_costs_no_sweep_and_is_told_in_every_leaf() -> None:
    def change(g: dict[str, Any]) -> None:
        g["W"][2, 3] = np.nan

    report = spoilt(3000, change)
    assert report.evaluations < 100
    (finding,) = report.findings
    assert finding.kind == "not finite" and "at 1 of " in finding.text


def test_what_is_not_finite_is_told_beside_what_is_wrong() -> None:
    x = np.random.default_rng(0).normal(size=300)

    def gradient(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return 1 / (x > 0)

    report = check(
        lambda x: float(np.sum(np.maximum(x, 0) / 2)), x, grads=gradient, raise_exception=False
    )
    assert report.verdict == "FAIL"
    assert f"not finite at {np.sum(x <= 0)} of 300 elements" in report.findings[0].text


@pytest.mark.parametrize("seed", range(4))
def test_a_number_that_directions_do_not_certify_beside_a_huge_leaf_is_differenced(
    seed: int,
) -> None:
    torch.manual_seed(seed)
    large, small = torch.randn(300, 300).double(), 1e-4 * torch.randn(1).double()

    def report(factor: float) -> Report:
        def fn(x: Tensor, t: Tensor) -> Tensor:
            return 1e3 * x.sin() + Wrong.apply(t, lambda u: factor * u) * x

        return check(fn, large, small, raise_exception=False)

    assert report(1.0).verdict is Verdict.PASS
    assert report(1.01).leaves["t"].verdict is Verdict.FAIL


def test_a_small_leaf_beside_a_huge_one_is_seen() -> None:
    rng = np.random.default_rng(0)
    params = {"huge": rng.normal(size=100_000), "small": rng.normal(size=3)}

    def cost(p: dict[str, Any]) -> float:
        return 1e2 * float(np.sin(p["huge"]).sum()) + 1e-2 * float(np.sin(p["small"]).sum())

    def gradient(factor: float) -> Any:
        return lambda p: {"huge": 1e2 * np.cos(p["huge"]), "small": factor * np.cos(p["small"])}

    right = check(cost, params, grads=gradient(1e-2))
    assert right.coverage == "projection" and right.leaves["small"].floor < 1e-3
    report = check(cost, params, grads=gradient(1.01e-2), raise_exception=False)
    assert report.leaves["small"].verdict is Verdict.FAIL
    assert report.leaves["huge"].verdict is Verdict.PASS


def test_a_leaf_that_does_nothing_has_gradient_zero() -> None:
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=2000), "unused": rng.normal(size=2000)}

    def gradient(slip: float) -> Any:
        return lambda p: {"w": np.cos(p["w"]), "unused": np.full(2000, slip)}

    def cost(p: dict[str, Any]) -> float:
        return float(np.sin(p["w"]).sum())

    report = check(cost, params, grads=gradient(0.0))
    assert any("unused']: zero gradient" in note for note in report.notes)
    report = check(cost, params, grads=gradient(1e-4), raise_exception=False)
    assert report.leaves["unused"].verdict is Verdict.FAIL
    assert report.leaves["w"].verdict is Verdict.PASS


def test_a_gradient_of_zero_for_a_function_of_few_bits_is_no_pass() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.tanh(x.to(torch.bfloat16)).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> Tensor:
            return 0 * u

    x = torch.randn(2000, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert check(Rounded.apply, x, raise_exception=False).verdict is not Verdict.PASS


class Wrong(torch.autograd.Function):
    """The identity, with a gradient that is off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Any) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return ctx.change(u.clone()), None


class Network(nn.Module):
    """Two layers, with something between a weight and what it is used for."""

    def __init__(self, change: Any, activation: Any = torch.tanh) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 60), nn.Linear(60, 7)
        self.change, self.activation = change, activation

    def forward(self, x: Tensor) -> Tensor:
        weight = Wrong.apply(self.first.weight, self.change)
        inner = nn.functional.linear(x, weight, self.first.bias)
        return self.second(self.activation(inner))


def network(change: Any, dtype: torch.dtype, activation: Any = torch.tanh) -> Report:
    torch.manual_seed(0)
    model, x = Network(change, activation).to(dtype), torch.randn(9, 40, dtype=dtype)
    return check(model, x, raise_exception=False)


def one_off(u: Tensor) -> Tensor:
    u[3, 5] *= 1.1
    return u


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_module_is_certified_and_searched(dtype: torch.dtype, activation: Any) -> None:
    right = network(lambda u: u, dtype, activation)
    assert right.verdict is Verdict.PASS and right.coverage == "projection"
    wrong = network(one_off, dtype, activation)
    failed = [name for name, leaf in wrong.leaves.items() if leaf.verdict is Verdict.FAIL]
    assert failed == ["first.weight"]
    assert wrong.leaves["first.weight"].worst.index == (3, 5)
    rows = wrong.leaves["first.weight"].rows or (wrong.leaves["first.weight"],)
    assert all(row.verdict is Verdict.FAIL and row.wrong == 1 for row in rows)


def test_what_is_wrong_below_float64_alone_is_seen() -> None:
    def tenth(u: Tensor) -> Tensor:
        return 1.1 * u if u.dtype == torch.float32 else u

    report = network(tenth, torch.float32)
    leaf = report.leaves["first.weight"]
    assert [row.verdict for row in leaf.rows] == [Verdict.PASS, Verdict.FAIL]
    assert leaf.rows[1].as_run


def test_coverage_by_rows_certifies_every_row() -> None:
    report = spoilt(2000, lambda g: None, coverage="rows")
    assert report.verdict is Verdict.PASS and report.coverage == "rows"
    rows = report.leaves["W"].shape[0] + 1
    assert report.evaluations == 4 * rows

    # Too little for the leaf as a whole, a hundredth of a row.
    def change(g: dict[str, Any]) -> None:
        g["W"][4] *= 1.001

    report = spoilt(2000, change, coverage="rows")
    assert report.leaves["W"].verdict is Verdict.FAIL
    assert "row 4" in report.findings[0].text


@pytest.mark.parametrize("coverage", ["rows", "projection"])
def test_few_coordinates_can_be_projected_as_well(coverage: str) -> None:
    x = np.array([0.3, -1.2, 2.0])
    report = check(lambda x: float(np.sin(x).sum()), x, grads=np.cos, coverage=coverage)
    assert report.coverage == coverage
    wrong = check(
        lambda x: float(np.sin(x).sum()),
        x,
        grads=lambda x: 1.001 * np.cos(x),
        coverage=coverage,
        raise_exception=False,
    )
    assert wrong.verdict is Verdict.FAIL


def test_another_leaf_changes_nothing_in_the_directions_of_this_one() -> None:
    def leaf(layout: Layout, name: str) -> Any:
        return next(leaf for leaf in layout if leaf.name == name)

    alone = lay_out([Entry(("w",), ("w",), (50,), "float64")])
    both = lay_out(
        [Entry((name,), (name,), (size,), "float64") for name, size in (("a", 7), ("w", 50))]
    )
    assert (drawn(leaf(alone, "w"), 1.0, 0, 3) == drawn(leaf(both, "w"), 1.0, 0, 3)).all()
    assert (drawn(leaf(both, "w"), 1.0, 0, 3) != drawn(leaf(both, "w"), 1.0, 1, 3)).any()
    assert zlib.crc32(b"w") != zlib.crc32(b"a")


def test_directions_are_uniform_and_never_zero() -> None:
    (leaf,) = lay_out([Entry(("w",), ("w",), (200_000,), "float64")])
    direction = drawn(leaf, 1.0, 0, 0).astype(float)
    assert np.abs(direction).min() >= 2.0**-16 and np.abs(direction).max() < 1
    # 4.5 deviations of the moments of a uniform number.
    assert abs(direction.mean()) < 4.5 * DEVIATION / math.sqrt(200_000)
    assert abs((direction**2).mean() - 1 / 3) < 4.5 * math.sqrt(4 / 45 / 200_000)


@pytest.mark.parametrize("directions", [1, 2, 3, 4])
def test_the_factor_is_that_of_the_ball(directions: int) -> None:
    k, share = mpmath.mpf(directions), mpmath.mpf("0.001") / 4
    volume = mpmath.pi ** (k / 2) / mpmath.gamma(k / 2 + 1)
    density = mpmath.sqrt(2) / mpmath.sqrt(12)
    expected = mpmath.sqrt(k) * density * (volume / share) ** (1 / k)
    assert factor(directions) == pytest.approx(float(expected), rel=1e-12)


ERRORS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "dense": lambda rng: rng.normal(size=40),
    "one element": lambda rng: np.eye(40)[int(rng.integers(40))],
    "two equal ones": lambda rng: np.eye(40)[0] + np.eye(40)[1],
    "two opposite ones": lambda rng: np.eye(40)[0] - np.eye(40)[1],
}


def linear(slopes: np.ndarray, seed: int) -> Any:
    """A linear function along directions that are drawn for it."""

    def walk(number: int, steps: np.ndarray) -> np.ndarray:
        direction = np.random.default_rng([seed, number]).uniform(-1, 1, slopes.size)
        return 1.0 + steps * float(direction @ slopes)

    return walk


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_at_the_limit_is_seldom_certified(kind: str) -> None:
    """One in a thousand is what the confidence allows; of 4,000 more than 13 would be seen once in
    3,000 times.
    """
    rng, accepted = np.random.default_rng(0), 0
    for number in range(4000):
        error = ERRORS[kind](rng)
        error *= 1.0 / np.linalg.norm(error)
        own = certify(linear(error, number), lambda turn: 0.0, 1.0, 1.0, 1e5)
        accepted += own.holds
    assert accepted <= 13


@pytest.mark.parametrize("weak", [2.5e-6, 4e-6])
def test_rounding_and_kinks_leave_a_window_of_steps(weak: float) -> None:
    """A weak slope beside a value of 1, between the steps that rounding drowns and those that reach
    a kink.
    """
    held = []
    for seed in range(40):
        rng = np.random.default_rng([seed, 1])
        slope, kink = weak * rng.uniform(0.5, 1), 2.0**-6

        def walk(
            number: int, steps: Any, slope: Any = slope, kink: Any = kink, rng: Any = rng
        ) -> Any:
            turn = 1 if number % 2 else -1
            rounding = 2 * np.spacing(1.0) * rng.uniform(-1, 1, len(steps))
            return 1 + turn * slope * steps + 30 * slope * np.fmax(steps - kink, 0) + rounding

        def product(number: int, slope: float = slope) -> float:
            return slope if number % 2 else -slope

        own = certify(walk, product, 1.0, 1e-5 * weak, weak)
        held.append(own.holds)
    assert sum(held) >= 36


@pytest.mark.parametrize("seed", range(3))
def test_a_residual_network_of_relus_needs_no_sweep(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = (40, 64), (64, 64), (64, 64), (64, 5)
    x, *weights = (
        torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((64, 40), *sizes)
    )
    labels = torch.arange(64) % 5

    def loss(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        y = (x @ a).relu()
        y = (y + (y @ b).relu()) @ c
        return nn.functional.cross_entropy(y.relu() @ d, labels)

    assert check(loss, x, *(0.06 * weight for weight in weights), seed=seed).evaluations < 60


def test_leaves_of_other_influence_are_certified_apart() -> None:
    layout = lay_out([Entry((n,), (n,), (10,), "float64") for n in ("a", "b", "c", "d")])
    point, gradient = np.ones(40), np.repeat([1.0, 2.0, 1e-4, 1e-20], 10)
    found = bands(layout, point, gradient, 1.0, 0, range(4))
    assert [list(band.units) for band in found] == [[2], [0, 1], [3]]
    assert [band.is_zero for band in found] == [False, False, True]


@pytest.mark.parametrize("budget", [5, 15, 40, "1ms"])
def test_a_check_that_is_stopped_early_says_what_holds(budget: Any) -> None:
    def change(g: dict[str, Any]) -> None:
        g["W"][[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]] += 0.1

    report = spoilt(20_000, change, budget=budget)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert any(finding.kind == "budget" for finding in report.findings)
    if not isinstance(budget, str):
        assert report.evaluations <= budget + 6  # the point itself, and whether it repeats itself


def test_a_search_leaves_enough_of_a_budget_to_confirm_what_it_found() -> None:
    x = np.random.default_rng(0).normal(size=(100, 100))
    wrong = np.random.default_rng(1).random(x.shape) < 0.2
    report = tanh_wrong_by(np.where(wrong, 0.5, 1.0), x, budget=500)
    assert report.verdict is Verdict.FAIL and report.evaluations <= 500
    assert tanh_wrong_by(np.ones(x.shape), x, budget=500).verdict is Verdict.PASS


def test_a_sweep_within_a_budget_says_what_was_not_looked_at() -> None:
    report = spoilt(1000, lambda g: None, coverage="sweep", budget=100)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert all(leaf.worst is None for leaf in report.leaves.values())


def test_a_budget_too_small_for_a_sweep_asks_for_directions() -> None:
    x = np.linspace(0.1, 2.0, 100)
    report = check(lambda x: float(np.sin(x).sum()), x, grads=np.cos, budget=60)
    assert report.verdict is Verdict.PASS and report.coverage == "projection"
    assert check(lambda x: float(np.sin(x).sum()), x, grads=np.cos).coverage == "sweep"


def test_a_plan_tells_what_is_to_come() -> None:
    report = spoilt(2000, lambda g: None)
    assert report.plan is not None and report.plan.evaluations == report.evaluations == 4
    report = spoilt(1000, lambda g: None, coverage="sweep")
    assert report.plan.evaluations == pytest.approx(report.evaluations, rel=0.2)
    assert report.to_dict()["plan"]["bytes"] > 8 * 1000


def test_the_floor_is_told_and_what_lies_below_it() -> None:
    (note,) = [note for note in spoilt(20_000, lambda g: None).notes if "cannot see" in note]
    assert "a single wrong element below 0.1" in note


def test_a_kernel_of_one_dtype_is_judged_by_slopes() -> None:
    class Kernel(torch.autograd.Function):
        slip = 1.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            ctx.save_for_backward(x)
            return torch.tanh(x)

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return Kernel.slip * u * (1 - torch.tanh(x) ** 2)

    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    right = check(Kernel.apply, x)
    floor = next(iter(right.leaves.values())).floor
    assert right.verdict is Verdict.PASS and floor < 1e-3
    for slip, verdicts in (
        (1 + floor / 2, {Verdict.PASS, Verdict.INCONCLUSIVE}),
        (1 + 2 * floor, {Verdict.FAIL}),
        (0.0, {Verdict.FAIL}),
        (-1.0, {Verdict.FAIL}),
    ):
        Kernel.slip = slip
        assert check(Kernel.apply, x, raise_exception=False).verdict in verdicts


# What hides a mistake, or looks like one: functions of an array, their gradients, and points.
RNG = np.random.default_rng(0)
FEW_ZEROS = np.where(np.arange(6000) % 100, RNG.normal(size=6000), 0.0)
MIXED = np.exp(10 * RNG.normal(size=3000))
MANY_KINDS = np.exp(4 * RNG.normal(size=8000))
HARD: dict[str, tuple[Any, Any, np.ndarray]] = {
    "a few kinks": (lambda w: np.maximum(w, 0).sum(), lambda w: 1.0 * (w > 0), FEW_ZEROS),
    "values of many sizes": (lambda w: np.log(w).sum(), lambda w: 1 / w, MANY_KINDS),
    "ten orders of magnitude": (
        lambda w: np.arcsinh(w).sum(),
        lambda w: 1 / np.sqrt(1 + w * w),
        MIXED,
    ),
    "little beside an offset": (
        lambda w: 1e6 + 1e-3 * np.sin(w).sum(),
        lambda w: 1e-3 * np.cos(w),
        RNG.normal(size=300),
    ),
    "huge values": (
        lambda w: np.sin(w / 1e150).sum(),
        lambda w: np.cos(w / 1e150) / 1e150,
        1e150 * RNG.normal(size=400),
    ),
}
FACTORS = {"1.1": 1.1, "-1": -1.0, "0": 0.0}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", HARD)
def test_nothing_hides_a_wrong_gradient(name: str, factor: str) -> None:
    fn, gradient, w = HARD[name]
    right = check(fn, w, grads=gradient, raise_exception=False)
    assert right.verdict is not Verdict.FAIL
    wrong = lambda w: FACTORS[factor] * gradient(w)  # noqa: E731
    report = check(fn, w, grads=wrong, raise_exception=False)
    assert report.verdict is not Verdict.PASS
    if right.verdict is Verdict.PASS:
        assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("size", [12, 300, 20_000])
def test_a_rectifier_that_forgets_its_mask_is_wrong(size: int) -> None:
    w = np.random.default_rng(0).normal(size=size)
    fn = lambda w: np.maximum(w, 0).sum()  # noqa: E731
    assert check(fn, w, grads=lambda w: 1.0 * (w > 0)).verdict is Verdict.PASS
    report = check(fn, w, grads=np.ones_like, raise_exception=False)
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_factor_of_zero_weights_hides_no_mistake(factor: float) -> None:
    """A low-rank update as it begins: the gradient of one factor is zero there."""
    rng = np.random.default_rng(0)
    a, b, x = (torch.from_numpy(rng.normal(size=size)) for size in ((8, 60), (50, 8), (12, 60)))

    def update(a: Tensor, b: Tensor) -> Tensor:
        return (x @ Wrong.apply(a, lambda u: factor * u).T @ b.T).tanh()

    report = check(update, a, 0 * b, raise_exception=False)
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)


def test_a_pruned_weight_says_nothing_of_the_others() -> None:
    rng = np.random.default_rng(0)
    w = np.where(rng.random(4000) < 0.9, 0.0, rng.normal(size=4000))
    data = rng.normal(size=(64, 4000)) / 100

    def cost(w: np.ndarray) -> float:
        return float(np.mean((data @ w - 1) ** 2) + np.abs(w).sum())

    def gradient(factor: float) -> Gradient:
        return lambda w: factor * (data.T @ (2 * (data @ w - 1)) / 64 + np.sign(w))

    assert check(cost, w, grads=gradient(1.0)).verdict is Verdict.PASS
    for times in (-1.0, 0.0, 2.0):
        report = check(cost, w, grads=gradient(times), raise_exception=False)
        assert report.verdict is Verdict.FAIL


def test_directions_of_a_constrained_leaf_stay_in_its_space() -> None:
    root = np.random.default_rng(0).normal(size=(30, 30))
    matrix = torch.from_numpy(root @ root.T + np.eye(30))
    for times, verdict in ((1.0, Verdict.PASS), (2.0, Verdict.FAIL)):
        report = check(
            lambda s, times=times: torch.linalg.cholesky(Wrong.apply(s, lambda u: times * u)),
            matrix,
            constraint="symmetric",
            coverage="projection",
            raise_exception=False,
        )
        assert report.verdict is verdict


def test_a_complex_element_is_named_once() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(30, 20)) + 1j * rng.normal(size=(30, 20)))

    def change(u: Tensor) -> Tensor:
        u[3, 4] *= 2
        return u

    report = check(lambda z: Wrong.apply(z, change).sin(), z, raise_exception=False)
    assert report.findings[0].indices == ((3, 4),)


@pytest.mark.parametrize("size", [12, 20, 40])
@pytest.mark.parametrize("fn", [torch.linalg.cholesky, torch.linalg.eigvalsh])
def test_a_function_of_one_triangle_is_right_as_a_whole(fn: Any, size: int) -> None:
    root = np.random.default_rng(1).normal(size=(size, size))
    matrix = torch.from_numpy(root @ root.T + np.eye(size))
    report = check(fn, (matrix + matrix.T) / 2, raise_exception=False)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.findings[0].kind == "symmetric"
    double = lambda s: fn(Wrong.apply(s, lambda u: 2 * u))  # noqa: E731
    assert check(double, matrix, raise_exception=False).verdict is Verdict.FAIL


def shuffled_gradient(noise: float) -> Callable[..., Any]:
    """A sine whose backward pass draws from a generator that nobody can hold still."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            drawn = np.random.default_rng().normal(size=grad.shape)
            return grad * ctx.saved_tensors[0].cos() * (1 + noise * torch.from_numpy(drawn))

    return Sine.apply


def test_a_backward_that_is_another_each_time_is_told_so() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=10_000))
    report = check(shuffled_gradient(1e-2), x, raise_exception=False)
    assert report.verdict is not Verdict.PASS
    assert {finding.kind for finding in report.findings} >= {"stochastic backward"}
    assert check(shuffled_gradient(1e-13), x).verdict is Verdict.PASS


def test_a_forward_pass_of_its_own_for_the_backward_is_seen_at_any_size() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=10_000))
    with_graph = lambda x: x.sin() + (0.1 if torch.is_grad_enabled() else 0.0)  # noqa: E731
    report = check(with_graph, x, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert [finding.kind for finding in report.findings] == ["forward"]
    assert check(torch.sin, x).verdict is Verdict.PASS


def test_what_a_large_function_refuses_beside_the_point_is_said() -> None:
    x = np.random.default_rng(0).normal(size=10_000)
    largest = np.abs(x).max()

    def bounded(x: Any) -> Any:
        if np.abs(x).max() > largest:
            raise ValueError("too far")
        return np.sin(x).sum()

    report = check(bounded, x, grads=np.cos)
    assert report.verdict is Verdict.PASS
    assert any("raised ValueError('too far')" in note for note in report.notes)


def test_a_symmetric_point_makes_a_mistake_no_dearer():
    drawn = np.random.default_rng(0).normal(size=(30, 30))
    counts = []
    for point in (drawn, drawn + drawn.T):
        report = check(
            lambda a: np.sin(a).sum(), point, grads=2 * np.cos(point), raise_exception=False
        )
        assert report.verdict == "FAIL"
        counts.append(report.evaluations)
    assert counts[1] < 2 * counts[0]


def test_what_is_right_symmetrised_is_still_told():
    drawn = np.random.default_rng(0).normal(size=(30, 30))
    point = drawn + drawn.T
    weights = np.random.default_rng(1).normal(size=(30, 30))
    report = check(
        lambda a: (weights * np.tanh(a)).sum(),
        point,
        grads=(lambda g: (g + g.T) / 2)(weights / np.cosh(point) ** 2),
        raise_exception=False,
    )
    assert report.verdict == "INCONCLUSIVE"
    assert "constraint='symmetric'" in str(report)


@pytest.mark.parametrize("spread", [1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize(("places", "factor"), [((), 1.0), (slice(None), 1.01), (7, 1.1)])
def test_a_bias_of_next_to_nothing_is_certified_like_the_rest(
    spread: float, places: Any, factor: float
) -> None:
    torch.manual_seed(0)
    first, last = (nn.Linear(16, 64).double(), nn.Linear(64, 16).double())
    nn.init.normal_(first.bias, std=spread)
    points, factors = torch.randn(8, 16).double(), torch.ones(64).double()
    factors[places] = factor

    def network() -> Tensor:
        bias = Changed.apply(first.bias, lambda u: u * factors)
        return last(nn.functional.gelu(points @ first.weight.T + bias))

    leaves = [first.weight, first.bias, last.weight, last.bias]
    report = check(network, wrt=leaves, raise_exception=False)
    wrong = [n for n, leaf in enumerate(report.leaves.values()) if leaf.verdict is Verdict.FAIL]
    assert wrong == ([] if factor == 1 else [1])
    assert report.verdict is (Verdict.PASS if factor == 1 else Verdict.FAIL)
    assert report.evaluations < (50 if factor == 1 else 300)
