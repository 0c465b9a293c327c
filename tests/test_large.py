"""Models as large as they are trained: what they pass on, what is found in them, what it takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    assert "[:, 30:32]" in report.findings[0].text


def attention(p: dict[str, Any], x: Any, heads: int) -> Any:
    length, width = x.shape
    parts = jnp.split(x @ p["qkv"], 3, -1)
    q, k, v = (part.reshape(length, heads, -1).transpose(1, 0, 2) for part in parts)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    found = jax.nn.softmax(scores, -1) @ v
    return found.transpose(1, 0, 2).reshape(length, width) @ p["out"]


def product(is_wrong: bool) -> Any:
    """A product of matrices that may forget the last rows of a gradient."""

    @jax.custom_vjp
    def dense(x: Any, w: Any) -> Any:
        return x @ w

    def backward(saved: Any, u: Any) -> Any:
        x, w = saved
        slope = x.T @ u
        return u @ w.T, slope.at[-2:].set(0) if is_wrong else slope

    dense.defvjp(lambda x, w: (x @ w, (x, w)), backward)
    return dense


def in_jax(layers: int, width: int, words: int, is_wrong: bool) -> Report:
    """The report on a transformer in JAX, whose second layer may be wrong."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return jnp.asarray(0.05 * rng.normal(size=shape), jnp.float32)

    def layer() -> dict[str, Any]:
        shapes = {"qkv": (width, 3 * width), "out": (width, width)}
        shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
        return {name: drawn(*shape) for name, shape in shapes.items()}

    params = {"words": drawn(words, width), "layers": [layer() for _ in range(layers)]}
    indices, dense = rng.integers(0, words, 33), product(is_wrong)

    def loss(params: Any) -> Any:
        x = params["words"][indices[:-1]]
        for number, p in enumerate(params["layers"]):
            x = x + attention(p, x, 4)
            inner = dense(x, p["up"]) if number == 1 else x @ p["up"]
            x = x + jax.nn.gelu(inner) @ p["down"]
        chances = jax.nn.log_softmax(x @ params["words"].T)
        return -jnp.take_along_axis(chances, indices[1:, None], 1).mean()

    return check(loss, params, raise_exception=False)


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
    assert float(times) < 16


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
    report = in_jax(4, 384, 8000, is_wrong)
    assert failed(report) == (["params['layers'][1]['up']"] if is_wrong else [])
    assert is_wrong or report.verdict is Verdict.PASS
