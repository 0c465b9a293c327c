"""Verify a backward pass: raise unless it agrees with float64 finite differences, and say where it
does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgradcheck._adapters import ALL as ALL
    from xgradcheck._adapters import register as register
    from xgradcheck._audit import audit as audit
    from xgradcheck._bench import bench as bench
    from xgradcheck._bench_report import BenchReport as BenchReport
    from xgradcheck._check import check as check
    from xgradcheck._errors import GradientInconclusive as GradientInconclusive
    from xgradcheck._errors import GradientMismatch as GradientMismatch
    from xgradcheck._errors import InvalidCase as InvalidCase
    from xgradcheck._errors import XGradCheckError as XGradCheckError
    from xgradcheck._judge import Grade as Grade
    from xgradcheck._judge import Verdict as Verdict
    from xgradcheck._report import Report as Report

# Loaded on first use: every run of pytest loads this package, for its fixture, and not every run
# checks a gradient.
_HOMES = {
    "ALL": "_adapters",
    "BenchReport": "_bench_report",
    "Grade": "_judge",
    "GradientInconclusive": "_errors",
    "GradientMismatch": "_errors",
    "InvalidCase": "_errors",
    "Report": "_report",
    "Verdict": "_judge",
    "XGradCheckError": "_errors",
    "audit": "_audit",
    "bench": "_bench",
    "check": "_check",
    "register": "_adapters",
}
__all__ = [
    "ALL",
    "BenchReport",
    "Grade",
    "GradientInconclusive",
    "GradientMismatch",
    "InvalidCase",
    "Report",
    "Verdict",
    "XGradCheckError",
    "audit",
    "bench",
    "check",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *(name for name in _HOMES if name not in globals())]
