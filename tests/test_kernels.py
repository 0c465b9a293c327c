"""The kernels in examples/, interpreted or compiled: right ones, and mistakes that are often made
in them.
"""

import os
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest
import torch

from xgradcheck import Report, Verdict, audit, bench, check

FOLDER = Path(__file__).parents[1] / "examples" / "kernels"
SCRIPTS = Path(sys.executable).parent


def kernels(name: str) -> ModuleType:
    """One file of kernels."""
    if name.startswith("triton"):
        pytest.importorskip("triton")
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [torch.randn(*shape, generator=generator).to(device) for shape in shapes]


def verdicts(report: Report, name: str) -> dict[str, str]:
    return {row.judged: str(row.verdict) for row in report.leaves[name].rows}


def test_layer_norm_in_triton() -> None:
    module, given = kernels("triton_layer_norm"), drawn((6, 70), (70,), (70,))
    beside: dict[str, Any] = {"reference": module.plain, "dtypes": ("float32", "float16")}
    assert check(module.layer_norm, *given, **beside)
    report = check(module.without_the_last_block, *given, raise_exception=False, **beside)
    assert report.verdict is Verdict.FAIL
    fine = dict.fromkeys(("reference", "float32", "float16"), "PASS")
    assert verdicts(report, "x") == fine
    for name in ("weight", "bias"):
        assert verdicts(report, name) == fine | {"float32": "FAIL", "float16": "FAIL"}
        worst = report.leaves[name].worst
        assert worst is not None and worst.index[0] >= 70 // module.BLOCK * module.BLOCK
    width = 2 * module.BLOCK  # whole blocks hide the mistake
    given = drawn((3, width), (width,), (width,))
    assert check(module.without_the_last_block, *given, **beside)


@pytest.mark.slow  # hundreds of interpreted kernels
def test_cross_entropy_in_triton_without_a_reference() -> None:
    module, (logits,) = kernels("triton_cross_entropy"), drawn((2, 5))
    labels = torch.tensor([3, 0], device=logits.device)
    report = check(module.cross_entropy, logits, labels)
    assert any("low precision inside" in finding.kind for finding in report.findings)
    report = check(module.as_of_a_sum, logits, labels, raise_exception=False)
    assert report.verdict is Verdict.FAIL


def test_cross_entropy_in_triton() -> None:
    module, (logits,) = kernels("triton_cross_entropy"), drawn((6, 70))
    labels = torch.randint(70, (6,), generator=torch.Generator().manual_seed(1)).to(logits.device)
    beside: dict[str, Any] = {"reference": module.plain, "dtypes": ("float32", "float16")}
    assert check(module.cross_entropy, logits, labels, **beside)
    report = check(module.as_of_a_sum, logits, labels, raise_exception=False, **beside)
    assert verdicts(report, "logits") == {
        "reference": "PASS",
        "float32": "FAIL",
        "float16": "FAIL",
    }
    # Where the sum is over one row it is the mean.
    assert check(module.as_of_a_sum, logits[:1], labels[:1], **beside)


def test_rms_norm_in_pallas() -> None:
    module = kernels("pallas_rms_norm")
    keys = jax.random.split(jax.random.key(0))
    given = jax.random.normal(keys[0], (48, 64)), jax.random.normal(keys[1], (64,))
    beside: dict[str, Any] = {"reference": module.plain, "dtypes": ("float32", "bfloat16")}
    assert check(module.rms_norm, *given, **beside)
    report = check(module.summed_in_bfloat16, *given, raise_exception=False, **beside)
    assert report.verdict is Verdict.FAIL
    # In bfloat16 it is as good as the reference.
    expected = {"reference": "PASS", "float32": "FAIL", "bfloat16": "PASS"}
    assert verdicts(report, "weight") == expected
    assert verdicts(report, "x") == dict.fromkeys(expected, "PASS")


@pytest.mark.parametrize("seed", range(3))
def test_rms_norm_in_pallas_without_a_reference(seed: int) -> None:
    module = kernels("pallas_rms_norm")
    keys = jax.random.split(jax.random.key(seed))
    given = jax.random.normal(keys[0], (16, 64)), jax.random.normal(keys[1], (64,))
    assert check(module.rms_norm, *given, seed=seed)


@pytest.mark.slow  # it is compiled
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_softplus_in_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ninja")
    monkeypatch.setenv("PATH", f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    module = kernels("cpp_softplus")
    (x,) = drawn((3, 5))
    x = x.cpu().double()
    report = audit(module.softplus, x, probes=["layout", "purity", "opcheck"])
    assert report and report.leaves["x"].precision == "float64"
    report = check(module.without_the_rest, x, raise_exception=False)
    assert report.verdict is Verdict.FAIL
    assert "the last 7 of 15 elements" in report.findings[0].text
    assert check(module.without_the_rest, x.reshape(-1)[:8])
    timed = bench(
        {"mine": module.softplus, "wrong": module.without_the_rest, "torch": module.plain},
        x.float(),
        reference=module.plain,
        seconds=0.01,
    )
    assert [str(record.verdict) for record in timed.records] == ["PASS", "FAIL", "PASS"]
