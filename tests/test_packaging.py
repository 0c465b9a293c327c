import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# Run where no checkout is in sight. Each line of output is one file that was imported.
IMPORT_EVERYTHING = """
import sys
import numpy as np
import xgradcheck
import xgradcheck.backends.numpy, xgradcheck.backends.torch, xgradcheck.backends.jax

report = xgradcheck.check(lambda x: (x**2).sum(), np.array([1.0, 2.0]), grads=np.array([2.0, 4.0]))
assert report.verdict == "PASS", report
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "xgradcheck":
        print(module.__file__)
"""

# The environment of the tests knows the version of xgradcheck; this hides it.
NEVER_INSTALLED = """
import importlib.metadata as metadata

def from_name(name, find=metadata.Distribution.from_name):
    if name == "xgradcheck":
        raise metadata.PackageNotFoundError(name)
    return find(name)

metadata.Distribution.from_name = from_name
"""


def project_table() -> dict[str, object]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def copy_of_the_checkout(folder: Path) -> Path:
    """A copy, since a build writes into the tree it builds."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder)
    for name in ("xgradcheck", "backends", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, folder / name, ignore=ignore)
    return folder


def run_python(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """What Python prints when run in ``cwd`` with ``path`` in front of its search path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    finished = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    source = copy_of_the_checkout(folder / "source")
    run_python("-m", "build", "--no-isolation", "--outdir", folder / "dist", source, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    offline = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    run_python("-m", "pip", "install", *offline, "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_the_core_and_the_adapters_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    core = {f"xgradcheck/{p.name}" for p in (CHECKOUT / "xgradcheck").glob("*.py")}
    adapters = {
        f"xgradcheck/backends/{p.relative_to(CHECKOUT / 'backends').as_posix()}"
        for p in (CHECKOUT / "backends").rglob("*.py")
    }
    assert packed == core | adapters | {"xgradcheck/py.typed"}
    assert {f"xgradcheck/backends/{n}.py" for n in ("__init__", "numpy", "torch", "jax")} <= packed


def test_the_sdist_builds_and_holds_its_licence_and_the_adapters(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "xgradcheck/backends.py", "backends/jax.py"}
    assert needed <= packed


def test_the_wheel_works_from_another_folder_with_no_checkout_in_sight(installed, tmp_path):
    files = run_python("-c", IMPORT_EVERYTHING, cwd=tmp_path, path=installed).split()
    assert {Path(file).is_relative_to(installed) for file in files} == {True}
    assert str(installed / "xgradcheck" / "backends" / "__init__.py") in files


def test_a_checkout_that_was_never_installed_works_from_another_folder(tmp_path):
    source = copy_of_the_checkout(tmp_path / "source")
    script = NEVER_INSTALLED + IMPORT_EVERYTHING
    files = run_python("-c", script, cwd=tmp_path, path=source).split()
    assert {Path(file).is_relative_to(source) for file in files} == {True}
    assert str(source / "backends" / "jax.py") in files


def test_the_installed_command_runs(installed, tmp_path):
    command = installed / "bin" / "xgradcheck"
    assert project_table()["version"] in run_python(command, "env", cwd=tmp_path, path=installed)


def test_the_installed_pytest_fixture_is_found(installed, tmp_path):
    options = ["-p", "no:cacheprovider", "--fixtures", "--quiet"]
    output = run_python("-m", "pytest", *options, tmp_path, cwd=tmp_path, path=installed)
    assert "\ngradcheck" in output


def test_every_exact_pin_of_the_dev_tools_is_in_the_constraints():
    pins = {
        line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if line[:1] != "#"
    }
    assert set(project_table()["optional-dependencies"]["dev"]) <= pins
