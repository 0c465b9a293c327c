"""``xgradcheck env`` and ``xgradcheck selftest``: what is installed, and whether it works."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from xgradcheck._adapters import adapter
from xgradcheck._cli_options import BACKENDS
from xgradcheck._outcomes import FAILED, PASSED
from xgradcheck._selftest import Outcome, outcomes
from xgradcheck._stages import environment
from xgradcheck._text import bare_table

OPTIONAL = {
    "jinja2": "pages; pip install xgradcheck[report]",
    "matplotlib": "figures; pip install xgradcheck[report]",
    "safetensors": "files of safetensors; pip install xgradcheck[safetensors]",
    "hypothesis": "strategies; pip install hypothesis",
    "pytest": "the fixture gradcheck; pip install pytest",
}
"""What each package is for that may be there."""
NOT_INSTALLED = "not installed"


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def run_env(options: argparse.Namespace) -> int:
    """Print all that a report depends on."""
    told = _told()
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        width = max(map(len, told))
        for name, value in told.items():
            print(f"{name:<{width}}  {value}")
    return PASSED


def _told() -> dict[str, str]:
    """Versions, devices, flags, and what is not there."""
    there = [name for name in BACKENDS if is_installed(name)]
    adapters = [adapter(name) for name in there]
    told = environment()
    told |= {
        name: f"{NOT_INSTALLED} (pip install xgradcheck[{name}])"
        for name in BACKENDS
        if name not in there
    }
    for module in adapters:
        told |= module.flags() if hasattr(module, "flags") else {}
        told |= module.devices() if hasattr(module, "devices") else {}
    told["cpus"] = str(os.cpu_count())
    for name, purpose in OPTIONAL.items():
        is_there = is_installed(name)
        told[name] = (
            importlib.metadata.version(name) if is_there else f"{NOT_INSTALLED} ({purpose})"
        )
    return told


def run_selftest(options: argparse.Namespace) -> int:
    """Plant rules in these frameworks; whether all became of them that should."""
    backends: Sequence[str] = options.backend or [name for name in BACKENDS if is_installed(name)]
    table = bare_table()
    for column in ("backend", "right rules", "wrong rules", "seconds"):
        table.add_column(column, no_wrap=True)
    missed: list[tuple[str, Outcome]] = []
    told = {}
    for backend in backends:
        started = time.perf_counter()
        found = [*outcomes(backend)]
        elapsed_s = time.perf_counter() - started
        own = [outcome for outcome in found if not outcome.is_as_expected]
        missed += [(backend, outcome) for outcome in own]
        right = [outcome for outcome in found if not outcome.mistake]
        wrong = [outcome for outcome in found if outcome.mistake]
        passed, caught = sum(o.is_as_expected for o in right), sum(o.is_as_expected for o in wrong)
        table.add_row(
            backend,
            f"{passed} of {len(right)} passed",
            f"{caught} of {len(wrong)} caught",
            f"{elapsed_s:.1f}",
        )
        told[backend] = {
            "right": len(right),
            "passed": passed,
            "wrong": len(wrong),
            "caught": caught,
            "missed": [asdict(outcome) for outcome in own],
            "elapsed_s": elapsed_s,
        }
    if options.json:
        print(json.dumps(told, indent=2))
        return FAILED if missed else PASSED
    console = Console()
    console.print(table)
    for backend, outcome in missed:
        what = f"{outcome.rule} {outcome.mistake}".rstrip()
        console.print(f"· {backend}: {what}: {outcome.verdict}", highlight=False)
    return FAILED if missed else PASSED
