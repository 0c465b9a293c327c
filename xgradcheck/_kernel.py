"""What a kernel with a reference has beside the options of a check."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xgradcheck._errors import InvalidCase, refuse_class
from xgradcheck._report import Report

KERNEL = ("reference", "dtypes", "factors")
"""The options that a kernel with a reference has beside those of a check."""


def beside_any(
    checked: Callable[..., Report],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    title: str,
    *,
    reference: Callable[..., Any] | None = None,
    dtypes: str | Sequence[str] | None = None,
    factors: Mapping[str, float] | None = None,
    **options: Any,
) -> Report:
    """The report on a kernel beside its reference; what ``checked`` gives where there is none."""
    refuse_class(fn, "the first argument")
    if reference is not None:
        if not callable(reference):
            raise InvalidCase(
                f"reference={reference!r} cannot be called: give a plain function of the same "
                f"arguments."
            )
        from xgradcheck._reference import beside_reference  # only kernels ask

        own: dict[str, Any] = {"reference": reference, "dtypes": dtypes, "factors": factors}
        return beside_reference(fn, args, title, **own, **options)
    if dtypes is not None or factors is not None:
        raise InvalidCase("dtypes and factors go with reference=, and there is none.")
    return checked(args, **options)
