"""The fixture ``gradcheck`` and the option ``--xgradcheck-seed``, in runs of pytest."""

import importlib.metadata
import os
import re
from pathlib import Path

import pytest

# Runs in this process find it loaded: NumPy cannot be loaded twice.
import xgradcheck.backends.numpy

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
    assert not re.search(r"xgradcheck/_\w+\.py|_check\.py|_report\.py|_pytest_plugin\.py", text)
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
            "E   *xgradcheck: raised by the function while checking test_breaks.",
        ]
    )


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


@pytest.mark.parametrize("seed", ["five", "1.5"])
def test_a_seed_that_is_none_is_refused(seed, run):
    result = run(SEEDS, f"--xgradcheck-seed={seed}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--xgradcheck-seed" in result.stderr.str()


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


def test_the_fixture_and_the_option_are_listed(run):
    result = run("", "--fixtures")
    result.stdout.fnmatch_lines(["gradcheck*", "*xgradcheck.check*"])
    assert "--xgradcheck-seed=SEED" in printed(run("", "--help"))


def test_the_fixture_audits_too(run):
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
