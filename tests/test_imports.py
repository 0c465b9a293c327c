"""What the core imports: no framework, little time, and one way only."""

import ast
import importlib.metadata
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import xgradcheck

CHECKOUT = Path(__file__).resolve().parents[1]
CORE = sorted((CHECKOUT / "xgradcheck").glob("*.py"))
ADAPTERS = sorted((CHECKOUT / "backends").rglob("*.py"))
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "tensorflow"}
# Attributes that only arrays and modules of a framework have.
FRAMEWORK_ATTRIBUTES = {
    "block_until_ready", "custom_vjp", "detach", "is_floating_point", "named_buffers",
    "named_parameters", "no_grad", "requires_grad", "requires_grad_", "state_dict", "tree_util",
}  # fmt: skip

LOADED = """
import sys
from xgradcheck import *
print(*sorted({'torch', 'jax', 'numpy'} & sys.modules.keys()))
"""
IMPORT_MS = """
import time
import numpy
start = time.perf_counter()
from xgradcheck import *
print(1000 * (time.perf_counter() - start))
"""
LIMIT_MS = 100


def python(code: str, path: Path, bytecode: Path) -> str:
    """What ``code`` prints where ``path`` is in front of the search path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(path), "PYTHONPYCACHEPREFIX": str(bytecode)}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(
        command, cwd=bytecode, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def copy_with(planted: str, folder: Path) -> Path:
    """A copy of the core with one more line in its report's module."""
    shutil.copytree(CHECKOUT / "xgradcheck", folder / "xgradcheck")
    with (folder / "xgradcheck" / "_report.py").open("a", encoding="utf-8") as source:
        source.write(f"\n{planted}\n")
    return folder


def least_import_ms(path: Path, bytecode: Path, attempts: int) -> float:
    """The best of several: what else the machine does can only add to a time."""
    best = float("inf")
    for _ in range(attempts):
        best = min(best, float(python(IMPORT_MS, path, bytecode)))
        if best < LIMIT_MS:
            break
    return best


def imports(source: str) -> Iterator[str]:
    """Every module that ``source`` imports wherever it does, except for type checkers only."""
    for node in outside_of_type_checking(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def outside_of_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and name_of(child.test) == "TYPE_CHECKING"):
            yield from outside_of_type_checking(child)


def name_of(node: ast.AST) -> str:
    return getattr(node, "id", None) or getattr(node, "attr", "")


def framework_uses(source: str) -> list[str]:
    """Where ``source`` imports a framework, adapters included, or touches its attributes."""
    uses = [f"import {m}" for m in imports(source) if set(m.split(".")) & FRAMEWORKS]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.slice if isinstance(node.value, ast.Subscript) else node.value
            spelled = owner.value if isinstance(owner, ast.Constant) else name_of(owner)
            if spelled in FRAMEWORKS or node.attr in FRAMEWORK_ATTRIBUTES:
                uses.append(f"line {node.lineno}: .{node.attr}")
    return uses


def own_imports(source: str) -> set[str]:
    """The modules of the core that ``source`` imports: ``_layout``, ``_judge``, ..."""
    own = [module.split(".") for module in imports(source) if module.startswith("xgradcheck.")]
    names = {parts[1] for parts in own}
    return names & {path.stem for path in CORE} - {"__init__", "backends"}


GRAPH = {path.stem: own_imports(path.read_text(encoding="utf-8")) for path in CORE}


def test_the_package_loads_no_framework(tmp_path):
    assert python(LOADED, CHECKOUT, tmp_path).split() == ["numpy"]


def test_a_package_of_which_nothing_is_used_does_not_load_numpy(tmp_path):
    code = "import sys, xgradcheck; print('numpy' in sys.modules, 'rich' in sys.modules)"
    assert python(code, CHECKOUT, tmp_path).split() == ["False", "False"]
    assert python(code.replace(";", "; xgradcheck.check;", 1), CHECKOUT, tmp_path)[:4] == "True"


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        xgradcheck.chekc  # noqa: B018


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_framework_that_the_package_loads_is_noticed(framework, tmp_path):
    planted = copy_with(f"import {framework}", tmp_path)
    (planted / f"{framework}.py").touch()
    assert python(LOADED, planted, tmp_path).split() == sorted(["numpy", framework])


def test_the_package_adds_little_to_the_time_that_numpy_takes(tmp_path):
    assert least_import_ms(CHECKOUT, tmp_path, attempts=40) < LIMIT_MS


def test_a_package_that_takes_long_to_import_is_noticed(tmp_path):
    planted = copy_with("import time; time.sleep(0.1)", tmp_path)
    assert least_import_ms(planted, tmp_path, attempts=2) > LIMIT_MS


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_touches_no_framework(path):
    assert framework_uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import torch",
        "import numpy, torch.nn as nn",
        "from jax import numpy",
        "def late():\n    from torch.nn import functional",
        "importlib.import_module('jax')",
        "from xgradcheck.backends import torch",
        "import xgradcheck.backends.jax",
        "is_tensor = isinstance(x, torch.Tensor)",
        "is_array = isinstance(x, sys.modules['jax'].Array)",
        "value = x.detach()",
        "if x.requires_grad: pass",
    ],
)
def test_a_line_that_touches_a_framework_is_caught(planted):
    assert framework_uses(planted)


@pytest.mark.parametrize(
    "innocent",
    [
        '"""A torch.Tensor, or what jax.vjp returns."""',
        "raise TypeError(f'torch or jax: {x.shape}')",
        "is_loaded = 'torch' in sys.modules",
        "if TYPE_CHECKING:\n    import torch",
    ],
)
def test_a_framework_may_be_named(innocent):
    assert framework_uses(innocent) == []


WORDS = {"_errors", "_judge"}
NUMBERS = {
    "_errors",
    "_layout",
    "_differences",
    "_extrapolation",
    "_derivative",
    "_kinds",
    "_ladder",
    "_noise",
    "_judge",
}
SEAM = {"_errors", "_layout", "_tree", "_adapters", "_selection", "_handed"}
# The first room that fits a module's name says what that room may import.
MAY_IMPORT = {
    "_errors": set(),
    "_layout": {"_errors"},
    "_tree": {"_errors"},
    "_differences": NUMBERS,
    "_extrapolation": NUMBERS,
    "_derivative": NUMBERS,
    "_kinds": NUMBERS,
    "_ladder": NUMBERS,
    "_noise": NUMBERS,
    "_judge": NUMBERS,
    "_adapters": SEAM,
    "_selection": SEAM,
    "_handed": SEAM,
    "_progress": set(),
    "_text": {"_judge"},
    "_written": set(),
    "_report": WORDS | {"_budget", "_evidence", "_html", "_text", "_written"},
    "_constraints": {"_errors", "_layout"},
    "_phi": NUMBERS | {"_adapters", "_budget", "_constraints", "_progress"},
    "_budget": {"_errors"},
    "_certificate": NUMBERS,
    "_directions": NUMBERS,
    "_slopes": NUMBERS | {"_certificate", "_directions", "_phi"},
    "_parts": {"_directions", "_layout"},
    "_localise": NUMBERS | {"_certificate", "_directions", "_guess", "_parts", "_phi"},
    "_projection": NUMBERS
    | {"_certificate", "_directions", "_localise", "_parts", "_phi", "_slopes"},
    "_restricted": {"_adapters", "_layout"},
    "_generic": NUMBERS | {"_adapters", "_as_run", "_phi", "_projection", "_saturated", "_slopes"},
    "_complex": NUMBERS | {"_phi"},
    "_sides": NUMBERS | {"_phi", "_restricted"},
    "_ties": NUMBERS | {"_phi", "_sides"},
    "_meetings": NUMBERS | {"_phi", "_sides"},
    "_truth": NUMBERS | {"_phi", "_progress"},
    "_second_look": NUMBERS | {"_complex", "_meetings", "_phi", "_ties", "_truth"},
    "_sweep": NUMBERS | {"_phi", "_second_look", "_truth"},
    "_as_run": NUMBERS | {"_adapters", "_phi", "_precision"},
    "_measured": NUMBERS | {"_adapters", "_as_run", "_constraints", "_generic", "_truth"},
    "_rows": NUMBERS
    | {"_as_run", "_constraints", "_errors", "_generic", "_measured"}
    | {"_phi", "_progress", "_saturated", "_second_look", "_sweep", "_truth"},
    "_saturated": NUMBERS | {"_phi"},
    "_constant": NUMBERS | {"_generic", "_measured", "_phi", "_rows", "_truth"},
    "_one_side": NUMBERS
    | {"_adapters", "_certificate", "_generic", "_measured", "_phi", "_projection"}
    | {"_second_look"},
    "_projected": NUMBERS
    | {"_adapters", "_as_run", "_budget", "_directions", "_generic", "_measured", "_meetings"}
    | {"_one_side", "_phi", "_projection", "_restricted", "_rows", "_slopes", "_truth"},
    "_measure": NUMBERS
    | {"_as_run", "_constant", "_errors", "_generic", "_measured", "_one_side", "_phi"}
    | {"_projected", "_projection", "_rows"},
    "_findings": NUMBERS
    | {"_adapters", "_generic", "_measured", "_parts", "_places", "_projection", "_report"}
    | {"_slopes", "_truth"},
    "_precision": NUMBERS,
    "_sensitivity": NUMBERS | {"_report"},
    "_account": NUMBERS
    | {"_adapters", "_findings", "_generic", "_measured", "_precision", "_report", "_sensitivity"},
    "_outcome": NUMBERS | {"_account", "_adapters", "_budget", "_findings", "_measured", "_report"},
    "_projected_outcome": NUMBERS
    | {"_account", "_adapters", "_directions", "_findings", "_generic", "_measured", "_outcome"}
    | {"_projected", "_projection", "_report", "_restricted", "_sensitivity"},
    "_places": NUMBERS,
    "_guess": NUMBERS,
    "_diagnose": NUMBERS | {"_places"},
    "_evidence": NUMBERS,
    "_causes": NUMBERS
    | {"_diagnose", "_evidence", "_findings", "_generic", "_known", "_measured", "_phi"}
    | {"_projected", "_report"},
    "_known": NUMBERS | {"_generic", "_guess", "_measured", "_phi", "_projected", "_projection"},
    "_memory": {"_errors"},
    "_ratios": NUMBERS,
    "_kernel_near_by": {"_generic", "_phi"},
    "_probes": NUMBERS | {"_adapters", "_report"},
    "_pytest_traceback": set(),
    "_pytest_options": {"_budget", "_errors"},
    "_pytest_summary": {"_text"},
    "_pytest_records": {"_errors", "_html", "_report", "_written"}
    | {"_pytest_options", "_pytest_summary", "_pytest_traceback"},
    "_outcomes": {"_judge", "_report"},
    "_junit": {"_outcomes"},
    "_markdown": {"_bench_report", "_bench_text", "_outcomes", "_report", "_text"},
    "_diff": WORDS,
    "_cli_options": NUMBERS
    | {"_bench", "_constraints", "_measured", "_probes", "_stages", "_stated"},
    "_cli_inputs": {"_adapters", "_errors", "_tree"},
    "_cli_targets": {"_adapters", "_errors", "_tree"},
    "_cli_arguments": {"_adapters", "_cli_inputs", "_errors"},
    "_cli_words": WORDS | {"_cli_inputs"},
    "_cli_case_files": WORDS | {"_cli_options", "_cli_targets", "_cli_words"},
    "_cli_cases": {"_cli_case_files", "_cli_options", "_cli_words", "_errors"},
    "backends": set(),
}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_from_verbs_over_stages_and_numbers_to_the_layout(module):
    assert GRAPH[module] <= MAY_IMPORT[module]


def test_imports_have_no_cycle():
    TopologicalSorter(GRAPH).prepare()


def test_an_import_against_the_direction_is_noticed():
    back = {"_layout": own_imports("def size():\n    from xgradcheck._check import check")}
    assert not back["_layout"] <= MAY_IMPORT["_layout"]
    with pytest.raises(CycleError):
        TopologicalSorter(GRAPH | back).prepare()


@pytest.mark.parametrize("verb", ["_check", "_audit", "_cli", "_pytest_plugin", "__main__"])
def test_a_verb_is_imported_by_the_faces_alone(verb):
    users = {module for module, imported in GRAPH.items() if verb in imported}
    assert users <= {"__init__", "__main__", "_cli_run", "_pytest_plugin"}


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_knows_the_seam_and_neither_steps_nor_verdicts_nor_text(path):
    assert own_imports(path.read_text(encoding="utf-8")) <= SEAM


def test_the_public_names_are_one_list():
    public = {
        name
        for name in dir(xgradcheck)
        if not name.startswith("_") and not inspect.ismodule(getattr(xgradcheck, name))
    } - {"TYPE_CHECKING", "Any"}
    assert public == set(xgradcheck.__all__)
    assert public == {
        "ALL", "BenchReport", "Grade", "GradientInconclusive", "GradientMismatch", "InvalidCase",
        "Report", "Verdict", "XGradCheckError", "audit", "bench", "check", "register",
    }  # fmt: skip


@pytest.mark.parametrize("name", xgradcheck.__all__)
def test_a_public_name_is_documented(name):
    value = getattr(xgradcheck, name)
    own = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    assert own.__doc__ and len(own.__doc__.strip()) > 20
    # Made by dataclass, or inherited, where nobody wrote one.
    assert not own.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize("method", ["to_dict", "to_json", "raise_if_failed"])
def test_a_public_method_of_the_report_is_documented(method):
    assert getattr(xgradcheck.Report, method).__doc__


def test_the_installed_version_is_the_one_of_the_project():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        installed = importlib.metadata.version("xgradcheck")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("a checkout that was never installed")
    assert installed == project["version"]
