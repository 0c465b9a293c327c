"""Models as large as they are trained: what they pass on, what is found in them, what it takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax_language_models
import pytest
from language_models import language_model

from xgradcheck import Report, Verdict, check

SMALL, LARGE = (2, 32, 4, 300), (12, 768, 12, 50257)


def failed(report: Report) -> list[str]:
    """The leaves that are wrong."""
    return [name for name, leaf in report.leaves.items() if leaf.verdict is Verdict.FAIL]


def test_a_transformer_passes() -> None:
    model, indices, loss = language_model(*SMALL)
    report = check(model, indices, loss=loss)
    assert report.coverage == "projection" and len(report.leaves) == 28
    tied = report.leaves["head.weight"]
    assert tied.name == "words.weight = head.weight"
    # The certificate, what raising takes, and a point near by: norms start at one.
    assert report.evaluations < 60


def test_a_wrong_layer_of_a_transformer_is_found() -> None:
    model, indices, loss = language_model(*SMALL, wrong=1)
    report = check(model, indices, loss=loss, raise_exception=False)
    assert failed(report) == ["blocks.1.up.weight"]
    assert report.leaves["blocks.1.up.weight"].wrong == 2 * 128
    assert "columns 30 and 31 (" in report.findings[0].text


def in_jax(*sizes: int, is_wrong: bool) -> Report:
    """The report on a transformer in JAX, whose second layer may be wrong."""
    return check(*jax_language_models.language_model(*sizes, is_wrong), raise_exception=False)


def test_a_transformer_in_jax_passes() -> None:
    report = in_jax(2, 32, 300, is_wrong=False)
    assert report.verdict is Verdict.PASS and report.coverage == "projection"


def test_a_wrong_layer_of_a_transformer_in_jax_is_found() -> None:
    report = in_jax(2, 32, 300, is_wrong=True)
    assert failed(report) == ["params['layers'][1]['up']"]
    assert report.leaves["params['layers'][1]['up']"].wrong == 2 * 128


PEAK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from language_models import language_model
from xgradcheck import check
sizes = [int(word) for word in sys.argv[2:6]]
model, indices, loss = language_model(*sizes, wrong=int(sys.argv[6]) if len(sys.argv) > 6 else None)
loss(model(indices)).backward()
model.zero_grad(set_to_none=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = check(model, indices, loss=loss, raise_exception=False)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024
wrong = [name for name, leaf in report.leaves.items() if leaf.verdict == "FAIL"]
print(report.verdict, (after - before) / weights, after / 2**20, *wrong)
"""


def peak(*words: Any) -> list[str]:
    """Verdict, memory beside that of a backward pass, in weights, and all of it in GiB."""
    given = [sys.executable, "-c", PEAK, str(Path(__file__).parent), *map(str, words)]
    return subprocess.run(given, check=True, capture_output=True, text=True).stdout.split()


def test_a_check_takes_a_few_times_the_memory_of_the_weights() -> None:
    verdict, times, *_ = peak(2, 512, 8, 20_000)
    assert verdict == "PASS"
    # In float64: the point, the raised weights, two gradients and a third near by, a direction.
    assert float(times) < 15


@pytest.mark.slow
def test_a_model_of_124_million_parameters_passes_within_8_gib() -> None:
    verdict, _, gib = peak(*LARGE)
    assert verdict == "PASS" and float(gib) < 8


@pytest.mark.slow
def test_a_wrong_layer_of_124_million_parameters_is_found_within_8_gib() -> None:
    verdict, _, gib, *wrong = peak(*LARGE, 5)
    assert verdict == "FAIL" and wrong == ["blocks.5.up.weight"] and float(gib) < 8


@pytest.mark.slow
@pytest.mark.parametrize("is_wrong", [False, True])
def test_ten_million_parameters_in_jax(is_wrong: bool) -> None:
    report = in_jax(4, 384, 8000, is_wrong=is_wrong)
    assert failed(report) == (["params['layers'][1]['up']"] if is_wrong else [])
    assert is_wrong or report.verdict is Verdict.PASS
