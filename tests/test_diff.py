"""``xgradcheck diff``: what changed between two reports, or two runs of many cases."""

import copy
import json

import numpy as np
import pytest

from xgradcheck import check
from xgradcheck._cli import main

W = np.array([1.0, -2.0, 3.0])
PARAMS = {"W1": W, "b1": np.array([0.5])}


def report(factor=1.0, seed=0, **other):
    """The dict of a report whose gradient is off by a factor in one of its leaves."""

    def cost(params):
        return sum((w**2).sum() for w in params.values())

    def gradient(params):
        return {"W1": 2 * factor * params["W1"], "b1": 2 * params["b1"]}

    found = check(cost, PARAMS, grads=gradient, seed=seed, raise_exception=False)
    return found.to_dict() | other


def case(name="cost", expect="PASS", **other):
    own = report(**other)
    return {"name": name, "verdict": own["verdict"], "expect": expect, "report": own}


def run_of(*cases):
    return {"schema": 1, "interrupted": False, "cases": list(cases), "not_run": []}


@pytest.fixture
def differ(tmp_path, capsys, monkeypatch):
    """(exit status, lines of the table, headline) of two files with this in them."""
    monkeypatch.setenv("COLUMNS", "100")

    def differ(before, after, *words):
        paths = []
        for name, whole in (("a.json", before), ("b.json", after)):
            text = whole if isinstance(whole, str) else json.dumps(whole)
            (tmp_path / name).write_text(text, encoding="utf-8")
            paths.append(str(tmp_path / name))
        status = main(["diff", *paths, *map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        if status == 2:
            return status, err, ""
        head, *_ = out.splitlines()
        return status, [line.split() for line in out.splitlines()[3:]], head

    return differ


def test_nothing_has_changed_but_times(differ):
    later = report(elapsed_s=9.0) | {"plan": None, "replay": "another"}
    assert differ(report(), later) == (0, [], "1 case: nothing changed but times")


def test_a_verdict_that_got_worse_comes_first_and_is_exit_status_1(differ):
    after = report(1.1)
    after["environment"] = after["environment"] | {"numpy": "9.9"}
    status, rows, head = differ(report(), after)
    assert status == 1
    assert rows[0] == ["verdict", "cost", "PASS", "FAIL"]
    assert rows[1] == ["leaf", "params['W1']", "cost", "PASS", "FAIL"]
    assert head.startswith("1 case: 2 verdicts got worse, ")


def test_a_verdict_that_got_better_is_exit_status_0(differ):
    status, rows, head = differ(report(1.1), report())
    assert (status, rows[0]) == (0, ["verdict", "cost", "FAIL", "PASS"])
    assert "no verdicts got worse, 2 got better" in head


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ("PASS", "INCONCLUSIVE", 1),
        ("INCONCLUSIVE", "FAIL", 1),
        ("FAIL", "INCONCLUSIVE", 0),
        ("INCONCLUSIVE", "PASS", 0),
        ("FAIL", "ERROR", 1),
        ("ERROR", "FAIL", 0),
    ],
)
def test_a_verdict_is_worse_the_further_it_is_from_pass(before, after, status, differ):
    told = [run_of(case() | {"verdict": verdict}) for verdict in (before, after)]
    assert differ(*told)[0] == status


def test_a_planted_mistake_that_passes_is_worse(differ):
    caught, missed = case(expect="FAIL", factor=1.1), case(expect="FAIL")
    assert differ(run_of(caught), run_of(missed))[0] == 1
    assert differ(run_of(missed), run_of(caught))[0] == 0


def test_one_leaf_that_got_worse_is_exit_status_1(differ):
    before, after = report(1.1), report(1.1)
    after["leaves"]["params['b1']"]["verdict"] = "INCONCLUSIVE"
    status, rows, _ = differ(before, after)
    assert (status, rows) == (1, [["leaf", "params['b1']", "cost", "PASS", "INCONCLUSIVE"]])


def test_a_probe_that_fails_now_is_worse_and_one_that_is_skipped_is_only_told(differ):
    probe = {"name": "layout", "verdict": "PASS"}
    before = report(probes=[probe])
    status, rows, _ = differ(before, report(probes=[probe | {"verdict": "FAIL"}]))
    assert (status, rows) == (1, [["probe", "layout", "cost", "PASS", "FAIL"]])
    status, rows, _ = differ(before, report(probes=[probe | {"verdict": "SKIPPED"}]))
    assert (status, rows) == (0, [["probe", "layout", "cost", "PASS", "SKIPPED"]])


def test_versions_and_devices_are_told_once_for_all_cases(differ):
    before = run_of(case("one"), case("two"))
    for each in before["cases"]:
        each["report"]["environment"] = {"numpy": "2.4"}
    after = copy.deepcopy(before)
    for each in after["cases"]:
        each["report"]["environment"] |= {"torch": "2.9", "jax device": "TPU"}
        del each["report"]["environment"]["numpy"]
    status, rows, head = differ(before, after)
    assert status == 0
    assert rows == [
        ["numpy", "all", "2.4", "-"],
        ["torch", "all", "-", "2.9"],
        ["jax", "device", "all", "-", "TPU"],
    ]
    assert head == "2 cases: no verdicts got worse, 3 other changes"


def test_a_seed_and_evaluations_that_differ_are_told(differ):
    after = report()
    after |= {"seed": 5, "evaluations": 1000}
    _, rows, _ = differ(report(), after)
    assert rows[0] == ["seed", "all", "0", "5"]
    assert rows[1][:2] == ["evaluations", "cost"] and rows[1][-1] == "1000"


@pytest.mark.parametrize("key", ["distance", "floor"])
def test_numbers_are_told_from_a_factor_on(key, differ):
    before, after = report(), report()
    before["leaves"]["params['W1']"][key] = 1e-8
    after["leaves"]["params['W1']"][key] = 5e-8
    assert differ(before, after)[1] == []
    told = [key, "of", "params['W1']", "cost", "1.0e-08", "5.0e-08"]
    assert differ(before, after, "--factor", "4")[1] == [told]
    after["leaves"]["params['W1']"][key] = 5e-7
    assert differ(before, after)[1][0][:2] == [key, "of"]
    after["leaves"]["params['W1']"][key] = None
    assert differ(before, after)[1][0][-1] == "-"


def test_leaves_that_come_and_go_are_told(differ):
    before, after = report(), report()
    after["leaves"]["params['W2']"] = after["leaves"].pop("params['b1']")
    status, rows, _ = differ(before, after)
    assert status == 0
    assert rows == [
        ["leaf", "params['b1']", "cost", "PASS", "-"],
        ["leaf", "params['W2']", "cost", "-", "PASS"],
    ]


def test_cases_are_matched_by_name_and_told_when_they_come_and_go(differ):
    before, after = run_of(case("one"), case("two")), run_of(case("two"), case("three"))
    status, rows, head = differ(before, after)
    assert status == 0
    assert rows == [["case", "one", "PASS", "-"], ["case", "three", "-", "PASS"]]
    assert head.startswith("1 case: ")


def test_two_single_reports_are_compared_whatever_they_are_called(differ):
    assert differ(report(), report(name="another"))[2] == "1 case: nothing changed but times"


def test_reports_one_after_the_other_and_those_of_pytest_are_read(differ):
    several = "\n".join(json.dumps(report(name=name)) for name in ("one", "two"))
    assert differ(several, several)[2] == "2 cases: nothing changed but times"
    tests = {"schema": 1, "reports": [report(test=f"test_x.py::{n}") for n in ("one", "two")]}
    assert differ(tests, tests)[2] == "2 cases: nothing changed but times"
    assert differ(json.dumps([report(name="one"), report(name="two")]), several)[0] == 0


def test_reports_that_have_nothing_in_common_are_refused(differ):
    several = "\n".join(json.dumps(report(name=name)) for name in ("one", "two"))
    status, err, _ = differ(several, several.replace("one", "three").replace("two", "four"))
    assert status == 2 and "no case in common" in err


def test_a_byte_order_mark_is_no_part_of_a_report(differ):
    assert differ("\ufeff" + json.dumps(report()), report())[0] == 0


@pytest.mark.parametrize(
    "whole",
    ["", "junk", "{", "3", "{}", "[3]", '{"cases": [3]}', '{"cases": []}', '{"reports": []}',
     '{"name": "x", "verdict": "PASS", "leaves": [], "environment": {}, "probes": []}',
     '{"schema": 1, "name": "bench", "records": []}'],
)  # fmt: skip
def test_a_file_that_is_no_report_is_refused(whole, differ):
    for words in ((whole, report()), (report(), whole)):
        status, err, _ = differ(*words)
        assert status == 2 and err.count("\n") == 1 and err.startswith("xgradcheck: ")
        assert ".json" in err and "--json" in err


def test_a_file_that_is_not_there_is_refused(capsys, tmp_path):
    assert main(["diff", str(tmp_path / "gone.json"), str(tmp_path / "gone.json")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "gone.json cannot be read" in err


def test_a_factor_that_is_none_is_refused(differ):
    status, err, _ = differ(report(), report(), "--factor", "1")
    assert status == 2 and "--factor 1.0 is no factor" in err


def test_it_is_written_as_json_and_markdown(differ, tmp_path):
    words = ["--json", tmp_path / "d.json", "--markdown", tmp_path / "d.md"]
    assert differ(report(), report(1.1), *words)[0] == 1
    told = json.loads((tmp_path / "d.json").read_text())
    assert told["worse"] is True and told["compared"] == 1
    first = {"kind": "worse", "what": "verdict", "case": "cost", "before": "PASS", "after": "FAIL"}
    assert told["changes"][0] == first
    head, _, names, _, row, *_ = (tmp_path / "d.md").read_text().splitlines()
    assert head.startswith("**xgradcheck diff**: 1 case: 2 verdicts got worse")
    assert names == "| what | case | before | after |"
    assert row == "| **verdict** | `cost` | PASS | FAIL |"
