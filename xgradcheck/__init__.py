"""Verify a backward pass: raise unless it agrees with float64 finite differences, and say where it
does not.
"""

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
