"""The report: its text for people, its data for programs, its exceptions for tests."""

import copy
import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import rich.progress
from rich.cells import cell_len, set_cell_size
from rich.console import Console

import xgradcheck._progress as bars
import xgradcheck._stages as stages
from xgradcheck import (
    GradientInconclusive,
    GradientMismatch,
    InvalidCase,
    Report,
    Verdict,
    XGradCheckError,
    check,
)

KEYS = {
    "schema", "verdict", "distance", "grade", "leaves", "findings", "probes", "skipped", "notes",
    "coverage", "evaluations", "elapsed_s", "seed", "environment",
}  # fmt: skip
LEAF_KEYS = {"path", "verdict", "distance", "grade", "floor", "worst"}
WORST_KEYS = {"index", "analytic", "truth", "error_bar"}

# Names that no table is made for.
LONG = "encoder.layers.11.self_attention.output_projection.parametrizations.weight.original0"
NAMES = {
    "a long name": [LONG, "b"],
    "three long names": [f"{LONG}.{n}" for n in range(3)],
    "thirty leaves": [f"layer{n}.weight" for n in range(30)],
    "Greek": ["μ", "Σ", "β₁"],
    "wide letters": ["重み", "偏り"],
    "markup": ["[red]W[/red]", "[/]", ":smile:"],
    "spaces": ["W 1", "the second layer's weights, transposed"],
}


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def squares(params):
    return float(sum((w**2).sum() for w in params.values()))


def report_on(params, wrong=(), **options) -> Report:
    """The report on a sum of squares whose gradient is doubled in the leaves of ``wrong``."""
    grads = {name: 2 * w * (2 if name in wrong else 1) for name, w in params.items()}
    options = {"raise_exception": False, "name": "squares"} | options
    return check(lambda: squares(params), wrt=params, grads=grads, **options)


def network(wrong=(), **options) -> Report:
    rng = np.random.default_rng(7)
    params = {"W1": rng.normal(size=(3, 4)), "b1": rng.normal(size=4), "W2": rng.normal(size=4)}
    return report_on(params, wrong, **options)


def one_wrong_element() -> Report:
    w = np.array([[1.0, -2.0], [0.5, 3.0], [1.5, -1.0]])
    gradient = 2 * w
    gradient[2, 0] = 4.0
    return check(lambda W1: (W1**2).sum(), w, grads=gradient, raise_exception=False)


def noisy() -> Report:
    rng = np.random.default_rng()
    fresh = lambda: np.random.default_rng(rng.integers(1 << 60))  # noqa: E731
    return check(
        lambda w: (w**2).sum() + fresh().normal() + np.random.default_rng().normal(),
        np.ones(3),
        grads=lambda w: 2 * w,
        raise_exception=False,
    )


def zero_d(wrong=False) -> Report:
    grads = np.array(9.0 if wrong else 6.0)
    return check(lambda w: w**2, np.array(3.0), grads=grads, raise_exception=False)


def bad_eps() -> Report:
    return check(
        lambda w: (w**3).sum(), np.ones(3), grads=np.full(3, 3.0), eps=0.1, raise_exception=False
    )


def not_finite(value=float("nan")) -> Report:
    gradient = np.array([2.0, value, 6.0])
    point = np.array([1.0, 2.0, 3.0])
    return check(lambda w: (w**2).sum(), point, grads=gradient, raise_exception=False)


def with_notes() -> Report:
    params = {"used": np.ones(2), "unused": np.ones(3), "n": np.arange(3)}
    grads = {"used": np.full(2, 2.0), "unused": np.zeros(3)}
    return check(lambda p: (p["used"] ** 2).sum(), params, grads=grads, raise_exception=False)


def tied() -> Report:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return check(model.double(), torch.ones(2, 3, dtype=torch.float64), raise_exception=False)


EVERY = {
    "PASS": network,
    "FAIL": lambda: network(wrong=["W1", "b1"]),
    "one wrong element": one_wrong_element,
    "stochastic": noisy,
    "bad eps": bad_eps,
    "0-d": zero_d,
    "0-d FAIL": lambda: zero_d(wrong=True),
    "NaN": not_finite,
    "infinite": lambda: not_finite(float("-inf")),
    "notes": with_notes,
    "loose": lambda: network(rtol=5.0),
}
SHOWN = EVERY | {
    f"{kind}{' FAIL' if wrong else ''}": lambda names=names, wrong=wrong: report_on(
        {name: np.arange(1.0, 4.0) for name in names}, names[:1] if wrong else ()
    )
    for kind, names in NAMES.items()
    for wrong in (False, True)
}


def lines(report: Report) -> list[str]:
    return str(report).splitlines()


def joined(text: str) -> str:
    """The text without its line breaks, so that a wrapped sentence can be found in it."""
    return " ".join(text.split())


def first_line_with(report: Report, start: str) -> int:
    return next(n for n, line in enumerate(lines(report)) if line.startswith(start))


@pytest.mark.parametrize("field", ["verdict", "seed", "leaves", "findings"])
def test_a_report_cannot_be_changed(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(network(), field, None)


def test_a_leaf_report_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        network().leaves["W1"].verdict = Verdict.FAIL


def test_a_report_is_true_for_pass_alone():
    verdicts = {report.verdict: bool(report) for report in (network(), network(["W1"]), noisy())}
    assert verdicts == {"PASS": True, "FAIL": False, "INCONCLUSIVE": False}


def test_a_report_survives_pickle_and_copy():
    report = network(["W1"])
    assert pickle.loads(pickle.dumps(report)) == copy.deepcopy(report) == report


def test_an_exception_survives_pickle_so_that_test_runners_can_send_it():
    with pytest.raises(GradientMismatch) as caught:
        network(["W1"], raise_exception=True)
    sent = pickle.loads(pickle.dumps(caught.value))
    assert sent.report == caught.value.report and str(sent) == str(caught.value)


@pytest.mark.parametrize("kind", SHOWN)
def test_the_text_starts_with_the_verdict(kind):
    report = SHOWN[kind]()
    assert str(report).startswith(f"{report.verdict} ")


def test_the_worst_element_stands_before_what_is_said_of_its_leaf_and_that_before_the_leaves():
    report = one_wrong_element()
    worst = "W1[2, 0]: backward gives 4, differences give 3 ± "
    assert lines(report)[1].strip().startswith(worst)
    assert first_line_with(report, "    · wrong gradient: 1 of 6 elements, at W1[2, 0]") > 2
    assert first_line_with(report, "    ·") < first_line_with(report, "leaf ")
    assert first_line_with(report, "leaf ") < first_line_with(report, "W1 ")


def test_what_is_said_of_the_function_stands_below_the_leaves():
    report = with_notes()
    assert first_line_with(report, "p['unused'] ") < first_line_with(report, "· note")


@pytest.mark.parametrize("wrong", [["W1"], ["W1", "b1"]])
def test_the_first_ten_lines_tell_place_cause_and_truth_of_each_wrong_leaf(wrong):
    first = joined("\n".join(lines(network(wrong=wrong))[:10]))
    for name in wrong:
        assert f"d{name} = 2 * truth" in first and f"{name}[" in first
        assert "differences give" in first and "ratio 2, off by 50%" in first
    assert first.count("every element") == len(wrong)


def test_the_seed_the_floor_and_the_command_that_does_it_again_are_told():
    report = dataclasses.replace(network(wrong=["W1"]), replay="xgradcheck check a.py:f --seed 0")
    text = lines(report)
    assert "· again: xgradcheck check a.py:f --seed 0" in text
    assert len(text) <= 13 and text[-1].endswith("seed 0")
    assert "again:" not in str(network(wrong=["W1"]))


def test_the_worst_element_is_one_of_the_leaf_that_is_wrong():
    report = network(["b1"])
    assert lines(report)[1].strip().startswith("b1[")


def test_the_worst_sentence_says_by_how_much_and_against_what():
    assert "(ratio 1.33, off by 25%, allowed 0.0001" in joined(str(one_wrong_element()))


def test_a_small_error_can_be_seen_in_the_digits():
    w = np.array([1.2345678])
    report = check(lambda w: (w**2).sum(), w, grads=2 * w * (1 + 1e-5), raise_exception=False)
    said = lines(report)[1].split("gives ")[1].split(" ±")[0].split(", differences give ")
    assert said[0] != said[1]


def test_the_element_of_a_zero_d_leaf_is_called_by_the_leafs_name():
    text = str(zero_d(wrong=True))
    assert "w: backward gives 9, differences give 6" in joined(text)
    assert "w[]" not in text and "w[0]" not in text


@pytest.mark.parametrize("kind", SHOWN)
def test_a_line_has_80_columns_at_most(kind):
    assert max(map(cell_len, lines(SHOWN[kind]()))) <= 80


@pytest.mark.parametrize("columns", [60, 70, 80, 100, 120])
@pytest.mark.parametrize("kind", ["FAIL", "bad eps", "three long names FAIL", "wide letters"])
def test_a_line_has_as_many_columns_as_the_terminal_at_most(kind, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(cell_len, lines(SHOWN[kind]()))) <= columns


def test_a_wider_terminal_gets_longer_lines(monkeypatch):
    narrow = len(lines(SHOWN["three long names FAIL"]()))
    monkeypatch.setenv("COLUMNS", "160")
    assert len(lines(SHOWN["three long names FAIL"]())) < narrow


@pytest.mark.parametrize("columns", ["", "wide", "0", "-5", "80.5"])
def test_a_columns_variable_that_is_no_width_is_ignored(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert str(network()).startswith("PASS")


def first_column(report: Report) -> str:
    """What stands under "leaf", the pieces of names that were folded put together again."""
    table = lines(report)[first_line_with(report, "leaf ") :]
    width = table[0].index("shape")
    rows = table[1 : table.index("")] if "" in table else table[1:]
    return "".join(set_cell_size(row, width).strip() for row in rows)


@pytest.mark.parametrize("kind", sorted({*NAMES} - {"thirty leaves"}))
def test_every_leaf_is_named_in_full_and_in_order(kind):
    names = "".join(NAMES[kind]).replace(" ", "")
    assert first_column(SHOWN[kind]()).replace(" ", "") == names


def test_of_many_leaves_the_wrong_ones_are_shown_and_the_others_are_counted():
    names = NAMES["thirty leaves"]
    report = report_on({name: np.arange(1.0, 4.0) for name in names}, names[20:22])
    table = str(report).partition("\nleaf ")[2].partition("\n\n")[0]
    assert "layer20.weight" in table and "layer21.weight" in table
    assert table.count("layer") == 12
    assert "and 18 more leaves: 18 PASS, floor 1e-06 or less" in table
    whole = report.text(verbose=True)
    assert all(name in whole for name in names) and "more leaves" not in whole


def test_long_lists_of_notes_are_cut_unless_all_are_wanted():
    report = dataclasses.replace(network(), notes=tuple(f"number {n}" for n in range(40)))
    assert "number 11" in str(report) and "number 12" not in str(report)
    assert "and 28 more notes" in str(report)
    assert "number 39" in report.text(verbose=True)


@pytest.mark.parametrize("columns", [70, 80])
def test_a_short_name_is_not_broken(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    w = {"W1": np.ones((3, 4)), "b1": np.ones(4)}
    report = check(squares, w, grads={k: 3 * v for k, v in w.items()}, raise_exception=False)
    assert first_line_with(report, "params['W1']  ") and first_line_with(report, "params['b1']  ")


def test_a_row_of_the_table_stays_on_one_line_where_names_are_short():
    found = SHOWN["thirty leaves"]().text(verbose=True).splitlines()
    assert sum(line.startswith("layer") for line in found) == 30 and len(found) <= 30 + 11


def test_the_sentence_under_the_verdict_keeps_its_indent_where_it_wraps():
    shown = lines(SHOWN["three long names FAIL"]())
    sentence = shown[1 : shown.index("")]
    assert len(sentence) > 1
    assert all(line.startswith("    ") for line in sentence)


@pytest.mark.parametrize("kind", SHOWN)
def test_the_text_has_neither_escape_codes_nor_trailing_blanks(kind):
    text = str(SHOWN[kind]())
    assert "\x1b" not in text
    assert text == "\n".join(line.rstrip() for line in text.splitlines())


def test_a_name_cannot_bring_escape_codes_or_lines_of_its_own():
    text = str(report_on({"W\x1b[31m\nPASS": np.ones(2)}))
    assert "\x1b" not in text
    assert "\nPASS" not in text


def test_the_text_is_plain_on_a_terminal_that_forces_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in str(network(["W1"]))


def printed(report: Report, **terminal) -> str:
    console = Console(file=io.StringIO(), width=80, **terminal)
    console.print(report)
    return console.file.getvalue()


def test_a_terminal_gets_the_same_words_in_colour():
    report = network(["W1"])
    coloured = printed(report, force_terminal=True, color_system="standard", _environ={})
    assert "\x1b[1;31mFAIL\x1b[0m" in coloured
    assert printed(report).split() == str(report).split()
    assert "\x1b" not in printed(report)


@pytest.mark.parametrize("kind", SHOWN)
def test_the_text_tells_seed_and_evaluations(kind):
    report = SHOWN[kind]()
    assert f"{report.evaluations} evaluations" in joined(str(report))
    assert joined(str(report)).endswith(f"seed {report.seed}")


@pytest.mark.parametrize("kind", EVERY)
def test_the_text_counts_in_correct_english(kind):
    text = joined(str(EVERY[kind]()))
    assert "1 coordinates" not in text.replace("11 coordinates", "")
    assert "1 of 1 elements" not in text


def test_a_gradient_that_is_not_finite_is_shown_beside_the_true_number():
    text = joined(str(not_finite()))
    assert "w[1]: backward gives nan, differences give 4 ±" in text


def test_a_gradient_that_is_not_finite_has_no_floor_of_zero():
    (leaf,) = not_finite().leaves.values()
    assert leaf.floor != 0


def test_the_text_lists_notes_and_what_was_not_checked():
    text = joined(str(with_notes()))
    assert "note: p['unused']: zero gradient" in text
    assert "not checked: p['n']: int64" in text


def test_a_tied_leaf_is_one_row_under_both_names():
    report = tied()
    assert "0.weight = 2.weight" in joined(str(report))
    assert report.leaves["0.weight"] is report.leaves["2.weight"]
    assert len(report.leaves) == 3


@pytest.mark.parametrize("kind", EVERY)
def test_the_keys_are_the_names_of_the_attributes(kind):
    report = EVERY[kind]()
    written = report.to_dict()
    assert written.keys() >= KEYS
    assert all(hasattr(report, key) for key in written)
    for name, leaf in written["leaves"].items():
        assert leaf.keys() >= LEAF_KEYS
        assert all(hasattr(report.leaves[name], key) for key in leaf)
        if leaf["worst"] is not None:
            assert leaf["worst"].keys() >= WORST_KEYS
            assert all(hasattr(report.leaves[name].worst, key) for key in leaf["worst"])
    assert all({"leaf", "kind", "indices"} <= finding.keys() for finding in written["findings"])


def types_in(value) -> set[type]:
    if isinstance(value, dict):
        return {dict}.union(*map(types_in, value), *map(types_in, value.values()))
    if isinstance(value, list):
        return {list}.union(*map(types_in, value))
    return {type(value)}


@pytest.mark.parametrize("kind", EVERY)
def test_the_values_are_plain(kind):
    written = EVERY[kind]().to_dict()
    assert types_in(written) <= {dict, list, str, int, float, bool, type(None)}


def test_the_values_are_plain_whatever_the_keys_of_the_users_dict():
    params = {np.int64(3): np.ones(2), Verdict.PASS: np.ones(2)}
    grads = {key: 2 * w for key, w in params.items()}
    report = check(squares, params, grads=grads)
    assert types_in(report.to_dict()) <= {dict, list, str, int, float, bool, type(None)}


@pytest.mark.parametrize("kind", EVERY)
def test_json_says_what_the_dict_says(kind):
    report = EVERY[kind]()
    assert json.loads(report.to_json()) == report.to_dict()


@pytest.mark.parametrize("kind", ["FAIL", "Greek"])
def test_json_is_written_to_a_file(kind, tmp_path):
    report = SHOWN[kind]()
    text = report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(text)
    report.to_json(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "report.json").read_bytes()


def test_schema_is_1():
    assert network().schema == network().to_dict()["schema"] == 1


def test_what_is_not_finite_becomes_null():
    (leaf,) = not_finite().to_dict()["leaves"].values()
    assert leaf["worst"]["analytic"] is None
    (leaf,) = not_finite(float("inf")).to_dict()["leaves"].values()
    assert leaf["worst"]["analytic"] is None
    unmeasured = noisy().to_dict()
    assert unmeasured["distance"] is unmeasured["leaves"]["w"]["distance"] is None


def test_the_truth_is_known_where_the_gradient_is_not_finite():
    worst = not_finite().leaves["w"].worst
    assert worst.index == (1,)
    assert abs(worst.truth - 4) <= worst.error_bar


def test_an_index_points_at_the_element():
    report = one_wrong_element()
    assert report.leaves["W1"].worst.index == (2, 0)
    assert [finding.indices for finding in report.findings] == [((2, 0),)]


def test_a_leaf_is_found_by_its_name_and_by_the_end_of_its_path():
    params = {"first": {"W": np.ones(2), "b": np.ones(1)}, "second": {"W": np.ones(2)}}
    report = check(
        lambda params: sum((w**2).sum() for part in params.values() for w in part.values()),
        params,
        grads=lambda params: {
            key: {name: 2 * w for name, w in part.items()} for key, part in params.items()
        },
    )
    assert report.leaves["params['first']['b']"].path == (0, "first", "b")
    assert report.leaves["b"] is report.leaves["params['first']['b']"]
    with pytest.raises(KeyError, match="'W' is ambiguous"):
        report.leaves["W"]
    with pytest.raises(KeyError) as caught:
        report.leaves["W3"]
    assert all(name in str(caught.value) for name in report.leaves)


def test_a_wrong_gradient_raises_a_mismatch_that_carries_the_report():
    with pytest.raises(GradientMismatch) as caught:
        network(["W1"], raise_exception=True)
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, XGradCheckError)
    assert caught.value.report.verdict == "FAIL"
    assert str(caught.value) == str(caught.value.report)


def test_a_truth_that_is_too_uncertain_raises_inconclusive():
    with pytest.raises(GradientInconclusive) as caught:
        network(eps=1e-16, raise_exception=True)
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, XGradCheckError)
    assert not isinstance(caught.value, GradientMismatch)
    assert caught.value.report.verdict == "INCONCLUSIVE"


def test_a_pass_raises_nothing():
    network(raise_exception=True).raise_if_failed()


@pytest.mark.parametrize(
    ("report", "error"), [(network(["W1"]), GradientMismatch), (noisy(), GradientInconclusive)]
)
def test_a_report_raises_when_asked_to(report, error):
    with pytest.raises(error) as caught:
        report.raise_if_failed()
    assert caught.value.report is report
    assert len(own_frames(caught.value)) <= 1


def own_frames(error: BaseException) -> list[str]:
    root = os.path.dirname(os.path.dirname(stages.__file__))
    rooms = tuple(os.path.join(root, room) + os.sep for room in ("xgradcheck", "backends"))
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{f.filename}:{f.lineno}" for f in frames if f.filename.startswith(rooms)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: network(["W1"], raise_exception=True),
        lambda: network(eps=1e-16, raise_exception=True),
        lambda: check(lambda w: w.sum(), np.ones(3)),
        lambda: check(lambda w: w.sum(), np.ones(3), grads=np.ones(2)),
        lambda: check(lambda w: w.sum(), np.ones(3), grads=np.ones(3), seed=-1),
    ],
    ids=["mismatch", "inconclusive", "refused", "refused late", "refused early"],
)
def test_a_traceback_shows_one_frame_of_the_library_at_most(call):
    with pytest.raises((GradientMismatch, GradientInconclusive, InvalidCase)) as caught:
        call()
    assert len(own_frames(caught.value)) <= 1
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def without_time(report: Report) -> dict:
    data = report.to_dict()
    del data["elapsed_s"], data["plan"]["seconds"]
    return data


def test_the_same_seed_gives_the_same_report_to_the_bit():
    assert without_time(network(["b1"], seed=3)) == without_time(network(["b1"], seed=3))
    assert without_time(network(eps=1e-7)) == without_time(network(eps=1e-7))


def cotangent_of(seed: int, outputs: int = 4) -> np.ndarray:
    seen = []

    def grads(cotangent, w):
        seen.append(np.array(cotangent))
        return cotangent * 2 * w

    check(lambda w: w**2, np.arange(1.0, 1.0 + outputs), grads=grads, seed=seed)
    return seen[0]


def test_another_seed_draws_another_cotangent():
    assert (cotangent_of(0) == cotangent_of(0)).all()
    assert (cotangent_of(0) != cotangent_of(1)).any()


def test_a_cotangent_is_signed_and_uneven_and_never_near_one():
    drawn = np.concatenate([cotangent_of(seed, outputs=40) for seed in range(3)])
    size = np.abs(drawn)
    assert (drawn < 0).any() and (drawn > 0).any() and len(set(size)) == len(size)
    assert ((size >= 0.5) & (size <= 2.0) & (np.abs(size - 1) >= 0.1)).all()
    few = [cotangent_of(seed, outputs) for seed in range(8) for outputs in (1, 2, 3)]
    assert all((u < 0).any() and (np.abs(u) > 1).any() for u in few)
    assert all(
        ((np.abs(u) >= 0.5) & (np.abs(u) <= 2.0) & (np.abs(np.abs(u) - 1) >= 0.1)).all()
        for u in few
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that the progress bar sees; it goes forward only when told to."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def slow_check(clock, seconds: float, coordinates: int = 50) -> None:
    """A check whose evaluations take ``seconds`` together, about."""
    each = seconds / (2 * coordinates)

    def squares(w):
        clock.now += each
        return (w**2).sum()

    w = np.arange(1.0, 1.0 + coordinates)
    check(squares, w, grads=2 * w, name="swish", coverage="sweep")


def on_terminal(monkeypatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_bar_appears_on_a_terminal_after_two_seconds(clock, monkeypatch):
    terminal = on_terminal(monkeypatch)
    slow_check(clock, seconds=60)
    assert "checking swish" in terminal.getvalue()


def test_no_bar_appears_where_a_check_is_quick(clock, monkeypatch):
    terminal = on_terminal(monkeypatch)
    slow_check(clock, seconds=0.5)
    assert terminal.getvalue() == ""


def test_no_bar_appears_where_nobody_looks(clock, monkeypatch):
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    slow_check(clock, seconds=60)
    assert piped.getvalue() == ""


def test_a_bar_leaves_the_cursor_and_the_streams_as_it_found_them(clock, monkeypatch):
    terminal = on_terminal(monkeypatch)
    out = sys.stdout
    slow_check(clock, seconds=60)
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0
    assert sys.stderr is terminal and sys.stdout is out


def test_a_bar_goes_when_the_function_raises(clock, monkeypatch):
    terminal = on_terminal(monkeypatch)

    def breaks(w):
        clock.now += 0.01
        if clock.now > 30:
            raise ZeroDivisionError
        return (w**2).sum()

    w = np.arange(1.0, 2001.0)
    with pytest.raises(ZeroDivisionError):
        check(breaks, w, grads=2 * w, coverage="sweep")
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0


@pytest.mark.parametrize("coordinates", [50, 2000])
def test_a_sweep_tells_how_far_it_is_before_it_ends(coordinates, clock, monkeypatch):
    on_terminal(monkeypatch)
    told = []
    monkeypatch.setattr(rich.progress.Progress, "start", lambda bar: told.append(clock.now))
    monkeypatch.setattr(rich.progress.Progress, "stop", lambda bar: None)
    slow_check(clock, seconds=60, coordinates=coordinates)
    assert told and told[0] < 40


RENDERINGS = ["str(report)", "report.text(True)", "report.to_html()", "report._repr_html_()"]


@pytest.mark.parametrize("rendered", RENDERINGS)
def test_rendering_draws_no_random_numbers_in_a_fresh_process(rendered: str) -> None:
    program = (
        "import random, numpy as np; from xgradcheck import check; "
        "report = check(lambda w: (w**2).sum(), np.array([1.1]), grads=lambda w: 2 * w); "
        f"state = random.getstate(); {rendered}; assert state == random.getstate()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_leaf_that_was_judged_twice_has_two_rows() -> None:
    x = np.array([0.3, -1.2], dtype=np.float32)
    report = check(lambda x: float(np.sum(np.sin(x))), x, grads=lambda x: np.cos(x))
    lines = str(report).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("leaf"))
    assert "judged" in lines[first]
    assert lines[first + 1].split()[:3] == ["x", "float64", "PASS"]
    assert lines[first + 2].split()[:5] == ["[2]", "float32", "as", "run", "PASS"]
    rows = report.to_dict()["leaves"]["x"]["rows"]
    assert [(row["precision"], row["as_run"]) for row in rows] == [
        ("float64", False),
        ("float32", True),
    ]
    assert "(float32)" in lines[0] + lines[1]


def test_an_exception_of_many_lines_is_told_in_one() -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        if (x < 1).any():
            raise ValueError("too small\n" + 40 * "and more of that\n")
        return x**2

    report = check(fn, np.ones(3), grads=lambda u, x: 2 * u * x)
    (note,) = [note for note in report.notes if "raised" in note]
    assert "ValueError: too small at" in note and "more" not in note
