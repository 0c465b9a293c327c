"""What xgradcheck raises; everything is an XGradCheckError."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgradcheck._report import Report


class XGradCheckError(Exception):
    """The family of everything this library raises on its own account."""


class InvalidCase(XGradCheckError, ValueError):
    """The call cannot be checked as it stands; nothing was perturbed. The message says what to
    write.
    """


class _Judged(XGradCheckError, AssertionError):
    """A verdict that is not PASS, as an exception: pytest shows a failure, not an error."""

    def __init__(self, report: "Report") -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return str(self.report)


class GradientMismatch(_Judged):
    """The gradient is wrong: see ``.report``."""


class GradientInconclusive(_Judged):
    """The numerical truth is too uncertain to say whether the gradient is right: see
    ``.report``.
    """


def lacks(what: str, package: str | None, extra: str) -> InvalidCase:
    """The refusal of what a package is missing for."""
    return InvalidCase(f"{what} needs the package {package!r}: pip install xgradcheck[{extra}].")


def refuse_class(fn: Any, what: str) -> None:
    """Raise where the class of a layer or of a custom rule was given in the place of a function."""
    if not isinstance(fn, type):
        return
    is_rule = inspect.ismethod(getattr(fn, "apply", None))
    is_called = any(name in vars(kind) for kind in fn.__mro__ for name in ("__call__", "forward"))
    if is_rule or is_called:
        instead = f"{fn.__name__}.apply" if is_rule else "an object of it"
        raise InvalidCase(f"{what} is the class {fn.__name__}: give {instead}.")


def short(error: Exception) -> str:
    """An exception in one line."""
    first = str(error).strip().splitlines()[:1]
    text = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
