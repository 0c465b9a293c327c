"""Strict settings for the whole suite."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

# The arrays here are small: threads cost more than they bring, many times more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many tests compile the same programs: each is compiled once in a session. As below, JAX reads the
# variables when it is imported.
_compiled = tempfile.TemporaryDirectory(prefix="xgradcheck-jax-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# An array of shape (3,) that meets one of shape (2, 3) is a mistake until somebody says otherwise.
# JAX reads the variable when it is imported, so that this file need not import it.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_numpy_rank_promotion", "raise")

# Kernels of Triton are interpreted where there is no GPU, its own functions too: it reads this when
# it is imported, which torch may do.
if not os.path.exists("/proc/driver/nvidia"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads; on a busy machine they wait for each other."""
    import torch  # only where it is asked for

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a command runs; the search path and the modules that it loads from there put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run ``xgradcheck check``, or another verb: (exit status, standard output, standard error)."""
    from xgradcheck._cli import main  # only where it is asked for

    def run(*words: Any, verb: str = "check") -> tuple[Any, str, str]:
        status: Any
        try:
            status = main([verb, *map(str, words)])
        except SystemExit as end:  # argparse ends on its own
            status = end.code
        out, err = capsys.readouterr()
        return status, out, err

    return run
