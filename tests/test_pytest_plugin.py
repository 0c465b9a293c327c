"""The fixture ``gradcheck`` and the options ``--xgradcheck-*``, in runs of pytest."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
import xgradcheck.backends.numpy

# Runs in this process find all of it loaded: pytester unloads what it finds loaded since, and a
# second copy has other classes.
import xgradcheck._causes

for _name in xgradcheck.__all__:
    getattr(xgradcheck, _name)

FOUND = str(Path(xgradcheck.__file__).resolve().parents[1])
INSTALLED = importlib.metadata.entry_points(group="pytest11", name="xgradcheck")
# pytest refuses a plugin that it is given twice.
PLUGIN = [] if INSTALLED else ["-p", "xgradcheck._pytest_plugin"]

HEAD = """
import numpy as np
import pytest
import xgradcheck

def squares(w):
    return (w**2).sum()

def right(w):
    return 2 * w

def wrong(w):
    return 3 * w

def unsure(w):
    return (w**2).sum() + np.random.default_rng().normal()

def breaks(w):
    raise ZeroDivisionError("the user's own words")

W = np.arange(1.0, 4.0)
"""
OUTCOMES = """
def test_right(gradcheck):
    assert gradcheck(squares, W, grads=right)

def test_wrong(gradcheck):
    gradcheck(squares, W, grads=wrong)

def test_unsure(gradcheck):
    gradcheck(unsure, W, grads=right)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on a file of tests: its result, with the lines it printed."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONPATH", FOUND, prepend=os.pathsep)

    def run(tests, *options, method="runpytest_inprocess"):
        pytester.makepyfile(HEAD + tests)
        return getattr(pytester, method)(*PLUGIN, "-p", "no:cacheprovider", *options)

    return run


@pytest.fixture(scope="module")
def torch() -> None:
    """Loaded before pytester is, which unloads what it finds loaded since: it cannot be twice."""
    importlib.import_module("torch")


def printed(result) -> str:
    return "\n".join(result.outlines)


def test_a_right_gradient_passes_and_the_others_fail(run):
    result = run(OUTCOMES)
    result.assert_outcomes(passed=1, failed=2)


def test_a_verdict_is_a_failure_of_the_test_and_no_error(run):
    result = run(OUTCOMES)
    result.stdout.fnmatch_lines(["*FAILED*::test_wrong*", "*FAILED*::test_unsure*"])
    assert "ERROR" not in printed(result)


def test_a_failure_shows_the_report_and_the_users_line(run):
    result = run(OUTCOMES, "-k", "test_wrong")
    result.stdout.fnmatch_lines(
        [
            ">       gradcheck(squares, W, grads=wrong)",
            "E   *GradientMismatch: FAIL  test_wrong: *",
            "E  *w[[]2[]]: backward gives 9, differences give 6 ±*",
            "E  *leaf *shape *verdict *",
            "E  *evaluations*seed 0",
            "test_a_failure_shows_the_report_and_the_users_line.py:*: GradientMismatch",
        ]
    )


def test_an_uncertain_truth_shows_the_report_too(run):
    result = run(OUTCOMES, "-k", "test_unsure")
    result.stdout.fnmatch_lines(
        ["E   *GradientInconclusive: INCONCLUSIVE  test_unsure: *", "E  *stochastic: *"]
    )


OWN_FRAME = re.compile(r"xgradcheck/_\w+\.py|backends/\w+\.py|_(check|report|pytest_\w+)\.py")
PLAIN = """
def test_plain_verb():
    xgradcheck.check(squares, W, grads=wrong)

def test_later(gradcheck):
    report = gradcheck(squares, W, grads=wrong, raise_exception=False)
    report.raise_if_failed()

def test_refused(gradcheck):
    gradcheck(squares, W)
"""


@pytest.mark.parametrize("tests", [OUTCOMES, PLAIN], ids=["fixture", "verb"])
@pytest.mark.parametrize("style", ["auto", "long", "short"])
def test_a_failure_shows_no_frame_of_the_library(tests, style, run):
    result = run(tests, f"--tb={style}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = printed(result)
    assert not OWN_FRAME.search(text)
    assert "__tracebackhide__" not in text and "raise " not in text


def test_frames_of_the_library_are_there_for_who_asks(run):
    result = run(PLAIN, "--full-trace")
    assert "_check.py" in printed(result)


def test_a_false_report_in_an_assertion_tells_the_verdict(run):
    result = run(
        """
def test_asserted(gradcheck):
    assert gradcheck(squares, W, grads=wrong, raise_exception=False)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E  *Report(name='test_asserted', verdict=*FAIL*"])


def test_an_exception_of_the_function_comes_through(run):
    result = run("def test_breaks(gradcheck):\n    gradcheck(breaks, W, grads=right)\n")
    result.stdout.fnmatch_lines(
        [
            '*raise ZeroDivisionError("the user\'s own words")',
            "E   *ZeroDivisionError: the user's own words",
            "E   *xgradcheck: raised while checking test_breaks.",
        ]
    )
    assert not OWN_FRAME.search(printed(result))


def test_a_mistake_of_the_library_shows_where_it_was_made(run, monkeypatch):
    monkeypatch.setattr(xgradcheck._stages, "measure", None)
    result = run("def test_breaks(gradcheck):\n    gradcheck(squares, W, grads=right)\n")
    assert re.search(r"_stages\.py:\d+: TypeError", printed(result))


SEEDS = """
def test_seed(gradcheck):
    print("seed", gradcheck(squares, W, grads=right).seed)

def test_own_seed(gradcheck):
    print("own", gradcheck(squares, W, grads=right, seed=7).seed)
"""


def test_the_seed_of_the_command_line_reaches_the_report(run):
    result = run(SEEDS, "--xgradcheck-seed", "5", "-s")
    result.assert_outcomes(passed=2)
    text = printed(result)
    assert "seed 5" in text
    assert "own 7" in text


def test_the_seed_is_0_unless_given(run):
    assert "seed 0" in printed(run(SEEDS, "-s"))


def test_the_seed_stands_in_the_text_of_a_failure(run):
    result = run(OUTCOMES, "--xgradcheck-seed=5", "-k", "test_wrong")
    result.stdout.fnmatch_lines(["E  *evaluations*seed 5"])


def test_the_seed_of_the_ini_file_is_taken_unless_the_command_line_has_one(run, pytester):
    pytester.makeini("[pytest]\nxgradcheck_seed = 5\n")
    assert "seed 5" in printed(run(SEEDS, "-s"))
    assert "seed 6" in printed(run(SEEDS, "-s", "--xgradcheck-seed=6"))


def test_a_toml_file_may_have_a_number_for_a_seed(run, pytester):
    pytester.makefile(".toml", pytest="[pytest]\nxgradcheck_seed = 5\nxgradcheck_strict = true\n")
    assert "seed 5" in printed(run(SEEDS, "-s"))


@pytest.mark.parametrize(
    "given, said",
    [
        ("seed=five", "is no seed: give an integer, 0 or more."),
        ("seed=1.5", "is no seed: give an integer, 0 or more."),
        ("seed=-1", "is no seed: give an integer, 0 or more."),
        ("budget=soon", "is no budget: give a number of evaluations, as 500, or a time, as 2s."),
        ("budget=0", "is no budget: give a number of evaluations, as 500, or a time, as 2s."),
        ("json=.", "is a directory: give the name of a file."),
        ("html=.", "is a directory: give the name of a file."),
    ],
)
@pytest.mark.parametrize("where", ["command line", "ini"])
def test_a_value_that_makes_no_sense_is_refused(given, said, where, run, pytester):
    option = f"--xgradcheck-{given}"
    if where == "ini":
        name, _, value = option.partition("=")
        option = f"{name.strip('-').replace('-', '_')}={value}"
        pytester.makeini(f"[pytest]\n{option}\n")
    result = run(SEEDS, *[option] * (where != "ini"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {option} {said}" in result.stderr.str()


def test_a_strictness_of_the_ini_file_that_is_none_is_refused(run, pytester):
    pytester.makeini("[pytest]\nxgradcheck_strict = perhaps\n")
    result = run(SEEDS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "perhaps" in result.stderr.str()


BUDGETS = """
def test_budget(gradcheck):
    gradcheck(squares, W, grads=right)

def test_audit(gradcheck):
    gradcheck.audit(squares, W, grads=right, probes="layout")

def test_own_budget(gradcheck):
    gradcheck(squares, W, grads=right, budget=1000)

def test_no_differences(gradcheck):
    gradcheck.audit(squares, W, grads=right, expect=right, probes="layout")
"""


def test_the_budget_ends_every_check_that_has_none_of_its_own(run):
    result = run(BUDGETS, "--xgradcheck-budget=2")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["FAILED *::test_budget*", "FAILED *::test_audit*"])
    assert "budget: stopped after" in printed(result)


def test_the_budget_of_the_ini_file_may_be_a_time(run, pytester):
    pytester.makeini("[pytest]\nxgradcheck_budget = 1h\n")
    run(BUDGETS).assert_outcomes(passed=4)
    run(BUDGETS, "--xgradcheck-budget=2").assert_outcomes(passed=2, failed=2)


STRICT = """
def test_skipped(gradcheck):
    gradcheck.audit(squares, W, grads=right, probes="transforms")

def test_own_word(gradcheck):
    gradcheck.audit(squares, W, grads=right, probes="transforms", strict=False)

def test_check(gradcheck):
    gradcheck(squares, W, grads=right)

def test_silenced(gradcheck):
    gradcheck(unsure, W, grads=right, raise_exception=False)
"""


def test_a_strict_run_fails_probes_that_were_skipped_and_nothing_else(run, pytester):
    run(STRICT).assert_outcomes(passed=4)
    result = run(STRICT, "--xgradcheck-strict")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_skipped*"])
    pytester.makeini("[pytest]\nxgradcheck_strict = true\n")
    run(STRICT).assert_outcomes(passed=3, failed=1)
    run(STRICT, "-o", "xgradcheck_strict=false").assert_outcomes(passed=4)


NAMES = """
@pytest.mark.parametrize("power", [2, 3])
def test_powers(gradcheck, power):
    report = gradcheck(lambda w: (w**power).sum(), W, grads=lambda w: power * w ** (power - 1))
    print("title", report.name)

def test_own_title(gradcheck):
    print("title", gradcheck(squares, W, grads=right, name="squares").name)

class TestGroup:
    def test_method(self, gradcheck):
        print("title", gradcheck(squares, W, grads=right).name)
"""


def test_the_tests_name_is_the_title_unless_one_is_given(run):
    result = run(NAMES, "-s")
    result.assert_outcomes(passed=4)
    titles = re.findall(r"title (\S+)", printed(result))
    assert titles == ["test_powers[2]", "test_powers[3]", "squares", "test_method"]


def test_a_parameter_for_which_the_gradient_is_wrong_fails_alone(run):
    result = run(
        """
@pytest.mark.parametrize("factor", [2, 3, 2.0])
def test_factor(gradcheck, factor):
    gradcheck(squares, W, grads=lambda w: factor * w)
"""
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_factor[[]3[]]*"])


def test_a_test_may_expect_the_failure(run):
    result = run(
        """
def test_expected(gradcheck):
    with pytest.raises(xgradcheck.GradientMismatch) as caught:
        gradcheck(squares, W, grads=wrong)
    assert caught.value.report.leaves["w"].wrong == 3
"""
    )
    result.assert_outcomes(passed=1)


def test_warnings_may_be_errors(run):
    result = run(OUTCOMES, "-k", "test_right", "-W", "error", method="runpytest_subprocess")
    result.assert_outcomes(passed=1, deselected=2)


def test_the_fixture_and_the_options_are_listed(run):
    result = run("", "--fixtures")
    result.stdout.fnmatch_lines(["gradcheck*", "*xgradcheck.check*"])
    text = printed(run("", "--help"))
    for option in ("seed=SEED", "json=FILE", "html=FILE", "strict", "budget=BUDGET"):
        assert f"--xgradcheck-{option}" in text
        assert f"xgradcheck_{option.partition('=')[0]} (" in text


def test_the_fixture_audits_too(run, torch):
    tests = """
import torch

def test_right(gradcheck):
    report = gradcheck.audit(torch.tanh, torch.randn(3, dtype=torch.float64), probes="layout")
    assert report.name == "test_right"
    assert [probe.name for probe in report.probes] == ["layout"]

def test_wrong(gradcheck):
    gradcheck.audit(squares, W, grads=wrong)
"""
    run(tests).assert_outcomes(passed=1, failed=1)


def test_the_fixture_times_what_is_right_and_raises_nothing_about_what_is_not(run, torch):
    tests = """
import torch

class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()
    @staticmethod
    def backward(ctx, given):
        return 3 * given

def test_timed(gradcheck):
    mine = {"mine": torch.sin, "wrong": Wrong.apply}
    report = gradcheck.bench(mine, torch.randn(3), reference=torch.sin, seconds=0.001)
    assert (report.name, report.seed) == ("test_timed", 4)
    assert [str(record.verdict) for record in report.records] == ["PASS", "FAIL"]
"""
    result = run(
        tests, "--xgradcheck-seed=4", "--xgradcheck-budget=500", "--xgradcheck-json=r.json"
    )
    result.assert_outcomes(passed=1)
    assert re.search(r"1 benchmark: 1 FAIL; [\d,]+ evaluations", printed(result))
    (report,) = reports("r.json")
    assert (report["verb"], report["verdict"], len(report["records"])) == ("bench", "FAIL", 2)
    assert report["test"].endswith("::test_timed")


def reports(path) -> list:
    """What was written, with the kind of the file checked."""
    written = json.loads(Path(path).read_text(encoding="utf-8"))
    assert written["schema"] == 1 and set(written) == {"schema", "reports"}
    return written["reports"]


RECORDED = """
from hypothesis import given, settings, strategies as st

def test_z_first(gradcheck):
    gradcheck(squares, W, grads=right, name="one")
    gradcheck(squares, W.astype("float32"), grads=right, name="two")

@pytest.mark.parametrize("factor", [2, 3])
def test_factor(gradcheck, factor):
    gradcheck(squares, W, grads=lambda w: factor * w)

def test_expected(gradcheck):
    with pytest.raises(xgradcheck.GradientMismatch):
        gradcheck(squares, W, grads=wrong, seed=8)

def test_silenced(gradcheck):
    gradcheck(lambda w: (w**2).sum() + np.nextafter(w, 9).sum() * 0 + next(COUNT), W, grads=right,
              raise_exception=False)

COUNT = iter(range(10**6))

def test_odd_key(gradcheck):
    class Key:
        def __repr__(self):
            return "Key()"

    key = Key()
    gradcheck(lambda p: squares(p[key]), {key: W}, grads=lambda p: {key: 2 * p[key]})

def test_audit(gradcheck):
    gradcheck.audit(squares, W, grads=right, probes=["layout", "transforms"])

@given(st.integers(1, 3))
@settings(derandomize=True)
def test_examples(gradcheck, size):
    gradcheck(squares, np.ones(size), grads=right)

def test_nothing():
    pass
"""
TIMES = {"elapsed_s", "plan"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What runs of these tests write and print, without xdist and with it."""

    variables = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    variables |= {"COLUMNS": "80", "PYTHONPATH": FOUND}
    written = ["--xgradcheck-json=out/reports.json", "--junitxml=junit.xml"]

    def begun(*options: str) -> tuple[Path, subprocess.Popen]:
        folder = tmp_path_factory.mktemp("recorded")
        (folder / "test_recorded.py").write_text(HEAD + RECORDED)
        command = [sys.executable, "-m", "pytest", *PLUGIN, *written, *options]
        shown = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return folder, subprocess.Popen(command, cwd=folder, env=variables, **shown)

    def ended(folder: Path, process: subprocess.Popen) -> tuple[list, dict, list[str]]:
        text = process.communicate()[0]
        assert process.returncode == pytest.ExitCode.TESTS_FAILED, text
        found = [
            {key: value for key, value in report.items() if key not in TIMES}
            for report in reports(folder / "out" / "reports.json")
        ]
        return found, junit(folder / "junit.xml"), section(text.splitlines())

    plain, spread = begun(), begun("-n2")
    return ended(*plain), ended(*spread)


def junit(path) -> dict[str, dict[str, str]]:
    """The properties of each test."""
    return {
        str(case.get("name")): {
            str(entry.get("name")): str(entry.get("value")) for entry in case.iter("property")
        }
        for case in ElementTree.parse(path).iter("testcase")
    }


def section(lines: list[str]) -> list[str]:
    """The lines of the section on gradients."""
    (start,) = (n for n, line in enumerate(lines) if re.fullmatch("=+ gradients =+", line))
    end = next(n for n, line in enumerate(lines[start + 1 :], start + 1) if line.startswith("=="))
    return lines[start + 1 : end]


def test_every_report_of_the_run_is_written_in_the_order_of_the_tests(recorded):
    (found, _, _), _ = recorded
    told = [
        (report["test"].partition("::")[2], report["verb"], report["name"], report["verdict"])
        for report in found
    ]
    assert told == [
        ("test_audit", "audit", "test_audit", "PASS"),
        ("test_examples", "check", "test_examples", "PASS"),
        ("test_expected", "check", "test_expected", "FAIL"),
        ("test_factor[2]", "check", "test_factor[2]", "PASS"),
        ("test_factor[3]", "check", "test_factor[3]", "FAIL"),
        ("test_odd_key", "check", "test_odd_key", "PASS"),
        ("test_silenced", "check", "test_silenced", "INCONCLUSIVE"),
        ("test_z_first", "check", "one", "PASS"),
        ("test_z_first", "check", "two", "PASS"),
    ]
    assert found[5]["leaves"]["p[Key()]"]["path"] == [0, "Key()"]


def test_a_report_says_how_to_do_it_again(recorded):
    (found, _, _), _ = recorded
    replays = {report["name"]: report["replay"] for report in found}
    assert replays["test_factor[3]"] == (
        "pytest 'test_recorded.py::test_factor[3]' --xgradcheck-seed 0"
    )
    assert replays["test_expected"] == "pytest test_recorded.py::test_expected --xgradcheck-seed 8"


def test_the_reports_are_the_same_with_xdist(recorded):
    (plain, _, _), (spread, _, _) = recorded
    assert spread == plain


def test_a_group_that_xdist_appends_is_no_part_of_a_tests_name():
    from xgradcheck._pytest_records import Recorder

    recorder = Recorder(None, is_worker=True)
    file = types.SimpleNamespace(nodeid="tests/test_a.py")
    for name in ("test_one", "test_one[a@b]"):
        nodeid = f"{file.nodeid}::{name}"
        for shown in (nodeid, f"{nodeid}@group"):
            recorder.item = types.SimpleNamespace(nodeid=shown, name=name, parent=file)
            assert recorder.test == nodeid


def test_the_summary_is_the_same_with_xdist(recorded):
    plain, spread = (without_times(lines) for _, _, lines in recorded)
    assert spread == plain


def without_times(lines: list[str]) -> list[str]:
    """Without times, and without the slowest, which may be others."""
    kept = [line for line in lines if not re.match(r"(slowest:| {9})\s*\d+\.\d+ s", line)]
    return [re.sub(r", \S+ s$", "", line) for line in kept]


def test_the_summary_tells_counts_what_did_not_pass_the_weakest_and_the_slowest(recorded):
    (_, _, lines), _ = recorded
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert re.match(
        r"8 checks, 1 audit: 6 PASS, 2 FAIL, 1 INCONCLUSIVE;\s[\d,]+ evaluations, ", text
    )
    assert "FAIL  test_recorded.py::test_factor[3]: the gradient is wrong in 1 of 1 leaf\n" in text
    expected = r"FAIL  test_recorded.py::test_expected\n    .* leaf \(the test did not fail\)\n"
    assert re.search(expected, text)
    unsure = r"INCONCLUSIVE  test_recorded.py::test_silenced\n    cannot say for 1 of 1 leaf \(the"
    assert re.search(unsure, text)
    weakest = r"weakest: a relative error of w below 2e-04 would not have been seen\n"
    assert re.search(weakest + r"         \(test_recorded.py::test_z_first\)\n", text)
    assert len(re.findall(r"\d\.\d\d s  test_recorded.py::test_\w+", text)) == 3


@pytest.mark.parametrize("run_number", [0, 1], ids=["plain", "xdist"])
def test_junit_has_properties_for_each_test(run_number, recorded):
    found = recorded[run_number][1]
    one = found["test_factor[3]"]
    assert set(one) == {
        f"xgradcheck.{name}" for name in ("verdict", "distance", "evaluations", "seed")
    }
    assert (one["xgradcheck.verdict"], one["xgradcheck.distance"]) == ("FAIL", "0.2")
    assert found["test_expected"]["xgradcheck.seed"] == "8"
    assert int(one["xgradcheck.evaluations"]) > 6
    assert 0 < float(found["test_factor[2]"]["xgradcheck.floor"]) < 1e-5
    two = found["test_z_first"]
    assert (two["xgradcheck.1.name"], two["xgradcheck.2.name"]) == ("one", "two")
    assert float(two["xgradcheck.1.floor"]) < 1e-5 < float(two["xgradcheck.2.floor"])
    assert found["test_nothing"] == {}


def test_of_the_examples_of_hypothesis_the_gravest_report_is_kept_and_all_are_counted(recorded):
    (found, properties, _), _ = recorded
    assert [report["examples"] for report in found] == [1, 3, 1, 1, 1, 1, 1, 1, 1]
    # Of ones in three sizes, with 2 evaluations at least for every coordinate.
    assert int(properties["test_examples"]["xgradcheck.evaluations"]) > found[1]["evaluations"]


EXAMPLES = """
from hypothesis import given, strategies as st

@given(size=st.integers(1, 9))
def test_wrong(gradcheck, size):
    factor = 2 if size < 5 else 3
    gradcheck(squares, np.ones(size), grads=lambda w: factor * w)
"""


def test_a_failing_example_of_hypothesis_shows_the_report_of_the_simplest(run):
    result = run(EXAMPLES, "--xgradcheck-json=r.json")
    result.assert_outcomes(failed=1)
    text = printed(result)
    assert "function_scoped_fixture" not in text
    assert "GradientMismatch: FAIL  test_wrong: " in text
    assert re.search(r"E +w +\[5\] +FAIL", text)
    assert "size=5" in text
    assert not OWN_FRAME.search(text)
    (report,) = reports("r.json")
    assert report["leaves"]["w"]["shape"] == [5]
    assert report["verdict"] == "FAIL" and report["examples"] > 2
    assert f"(the gravest of {report['examples']} examples)" in text


EXPLAINED = [
    "Failing test case: test_wrong(size=7)",
    "Explanation:",
    "    These lines were always and only run by failing test cases:",
]


@pytest.mark.parametrize(
    "listed, kept",
    [
        (["/home/me/swish.py:7"], ["/home/me/swish.py:7"]),
        (["/home/me/swish.py:7", "{own}/_check.py:9", "(and 12 more)"], ["/home/me/swish.py:7"]),
        (["{own}/_check.py:9", "{own}/_report.py:10"], None),
    ],
)
def test_what_hypothesis_says_of_lines_of_the_library_is_left_out(listed, kept):
    from xgradcheck._pytest_traceback import leave_out_own

    own = Path(xgradcheck.__file__).parent
    error = ValueError("of the user")
    error.__notes__ = [*EXPLAINED, *(" " * 8 + line.format(own=own) for line in listed)]
    leave_out_own(ExceptionGroup("two", [error, KeyError()]))
    shown = EXPLAINED[:1] if kept is None else [*EXPLAINED, *(" " * 8 + line for line in kept)]
    assert error.__notes__ == shown


def test_the_replay_fails_in_the_same_way(run, pytester):
    tests = """
@pytest.mark.parametrize("dtype", ["float32", "it's"])
def test_seed(gradcheck, dtype):
    gradcheck(squares, W, grads=wrong)
"""
    run(tests, "--xgradcheck-seed=6", "--xgradcheck-budget=50", "--xgradcheck-json=r.json")
    replay = reports("r.json")[1]["replay"]
    assert replay.endswith(" --xgradcheck-seed 6 --xgradcheck-budget 50")
    command, *words = shlex.split(replay)
    assert command == "pytest"
    result = pytester.runpytest_inprocess(*PLUGIN, "--xgradcheck-json=again.json", *words)
    result.assert_outcomes(failed=1)
    first, (again,) = reports("r.json")[1], reports("again.json")
    assert (again["test"], again["seed"], again["leaves"]) == (
        first["test"],
        6,
        first["leaves"],
    )


def test_there_is_no_section_where_nothing_was_recorded(run):
    text = printed(run("def test_plain():\n    xgradcheck.check(squares, W, grads=right)\n"))
    assert "gradients" not in text and "1 passed" in text


@pytest.mark.parametrize("quiet, shown", [("-q", 1), ("-qq", 0)])
def test_a_quiet_run_has_at_most_a_line(quiet, shown, run):
    result = run(OUTCOMES, quiet, "--tb=no")
    lines = [line for line in result.outlines if "gradients" in line]
    assert len(lines) == shown
    for line in lines:
        assert line.startswith("gradients: 3 checks: 1 PASS, 1 FAIL, 1 INCONCLUSIVE; ")
    assert "weakest" not in printed(result)


def test_of_many_that_did_not_pass_ten_are_listed(run):
    tests = """
@pytest.mark.parametrize("number", range(12))
def test_wrong(gradcheck, number):
    gradcheck(squares, W[:1], grads=wrong)
"""
    lines = section(run(tests, "--tb=no").outlines)
    assert sum(line.startswith("FAIL  ") for line in lines) == 10
    assert "and 2 more that did not pass" in lines


def test_a_test_that_is_expected_to_fail_is_no_failure_in_the_summary_either(run):
    tests = """
@pytest.mark.xfail
def test_wrong(gradcheck):
    gradcheck(squares, W, grads=wrong, name="mine\\n")
"""
    text = " ".join(section(run(tests).outlines))
    assert re.search(r"::test_wrong\s+mine\\n: .* leaf\s+\(the test did not fail\)", text)


def test_a_fixture_of_a_module_may_check(run):
    tests = """
@pytest.fixture(scope="module")
def checked(gradcheck):
    return gradcheck(squares, W, grads=right)

def test_first(checked):
    assert checked.name == "test_first"

def test_second(checked, gradcheck):
    assert gradcheck(squares, W, grads=right).name == "test_second"
"""
    run(tests, "--xgradcheck-json=r.json").assert_outcomes(passed=2)
    assert [report["name"] for report in reports("r.json")] == ["test_first", "test_second"]


def test_paths_of_the_ini_file_start_at_the_root_and_others_where_pytest_was_called(run, pytester):
    pytester.makeini("[pytest]\nxgradcheck_json = out/root.json\n")
    run(SEEDS, "--rootdir=.")
    assert len(reports("out/root.json")) == 2
    folder = pytester.mkdir("sub")
    os.chdir(folder)
    run(SEEDS, "--rootdir=..", "..")
    assert not (folder / "out").exists()
    run(SEEDS, "--rootdir=..", "--xgradcheck-json=here.json", "..")
    assert len(reports(folder / "here.json")) == 2


def test_tests_that_are_only_collected_leave_the_file_of_the_last_run(run):
    run(SEEDS, "--xgradcheck-json=r.json")
    run(SEEDS, "--xgradcheck-json=r.json", "--collect-only")
    assert len(reports("r.json")) == 2


def test_a_run_without_checks_writes_that_there_were_none(run):
    run("def test_nothing():\n    pass\n", "--xgradcheck-json=r.json")
    assert reports("r.json") == []


def test_a_file_that_cannot_be_written_is_told_beside_the_results_and_in_the_exit_status(run):
    Path("file").touch()
    result = run(SEEDS, "--xgradcheck-json=file/r.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["2 checks: *", "r.json was not written: *Error: *file*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    failed = run(OUTCOMES, "--xgradcheck-json=file/r.json")
    assert failed.ret == pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def pages(monkeypatch) -> list:
    """What the module that writes pages was given: reports with their titles, and a path."""
    given: list = []
    stub = types.ModuleType("xgradcheck._html")
    stub.write_page = lambda shown, path: given.append((shown, path))
    monkeypatch.setitem(sys.modules, "xgradcheck._html", stub)
    return given


PAGES = """
def test_z(gradcheck):
    gradcheck(squares, W, grads=right)

def test_a(gradcheck):
    gradcheck.audit(squares, W, grads=wrong, probes="layout")
"""


def test_the_page_is_given_every_report_with_its_test(run, pages):
    run(PAGES, "--xgradcheck-html=r.html")
    ((shown, path),) = pages
    assert path == Path.cwd() / "r.html"
    assert [title.partition("::")[2] for title, _ in shown] == ["test_a", "test_z"]
    assert all(isinstance(report, xgradcheck.Report) for _, report in shown)
    first, second = (report for _, report in shown)
    assert (str(first.verdict), str(second.verdict)) == ("FAIL", "PASS")
    assert second.leaves["w"].worst.truth == pytest.approx(2.0)
    assert "FAIL  test_a: " in str(first)


def test_a_worker_that_crashes_leaves_the_reports_of_the_others(run, pages):
    tests = """
def test_a(gradcheck):
    gradcheck(squares, W, grads=right)

def test_b(gradcheck):
    gradcheck(squares, W, grads=right)
    __import__("os")._exit(1)

def test_c(gradcheck):
    gradcheck(squares, W, grads=right)
"""
    result = run(tests, "-n1", "--xgradcheck-json=r.json", "--xgradcheck-html=r.html")
    assert "1 failed, 2 passed" in printed(result)
    assert [report["name"] for report in reports("r.json")] == ["test_a", "test_c"]
    assert section(result.outlines)[0].startswith("2 checks: 2 PASS; ")
    ((shown, _),) = pages
    assert [(report.name, report.leaves["w"].worst.truth) for _, report in shown] == [
        ("test_a", pytest.approx(2.0)),
        ("test_c", pytest.approx(2.0)),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("xgradcheck._html") is None, reason="there are no pages yet"
)
def test_the_page_names_every_test(run):
    run(PAGES, "--xgradcheck-html=r.html")
    text = Path("r.html").read_text(encoding="utf-8")
    assert "::test_a" in text and "::test_z" in text


def test_a_page_without_what_it_needs_is_refused_before_the_tests_are_run(run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "jinja2" else found(name, *rest),
    )
    result = run(SEEDS, "--xgradcheck-html=r.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--xgradcheck-html needs jinja2: pip install jinja2." in result.stderr.str()


def test_a_run_without_the_plugin_is_a_run(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", FOUND, prepend=os.pathsep)
    pytester.makepyfile(HEAD + "def test_plain():\n    xgradcheck.check(squares, W, grads=right)\n")
    pytester.runpytest_inprocess("-p", "no:xgradcheck").assert_outcomes(passed=1)


LIGHT = """
import sys, types
package = types.ModuleType("xgradcheck")
package.__path__ = [sys.argv[1]]
sys.modules["xgradcheck"] = package
import xgradcheck._pytest_plugin
print(*sorted({"numpy", "rich", "torch", "jax"} & sys.modules.keys()))
"""


def test_the_modules_of_the_plugin_load_nothing_heavy():
    folder = str(Path(xgradcheck.__file__).parent)
    command = [sys.executable, "-c", LIGHT, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    heavy = LIGHT.replace("import xgradcheck._pytest_plugin", "import xgradcheck._pytest_summary")
    done = subprocess.run(
        [sys.executable, "-c", heavy, folder], capture_output=True, text=True, check=True
    )
    assert "rich" in done.stdout.split()


def test_the_replay_is_for_the_folder_where_pytest_was_called(pytester, monkeypatch):
    pytester.makeini("[pytest]")
    inner = pytester.mkdir("tests")
    (inner / "test_inner.py").write_text(HEAD + OUTCOMES, encoding="utf-8")
    monkeypatch.chdir(inner)
    pytester.runpytest_inprocess(*PLUGIN, "--xgradcheck-json=r.json")
    told = json.loads((inner / "r.json").read_text(encoding="utf-8"))["reports"]
    assert {report["test"].partition("::")[0] for report in told} == {"tests/test_inner.py"}
    assert {report["replay"].split()[1].partition("::")[0] for report in told} == {"test_inner.py"}
