"""Functions that return more than their output, as textbooks of NumPy write them: a forward that
returns a cache too, for a backward that takes a cotangent and that; or the value and its gradients.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from inspect import Parameter, Signature
from typing import Any

from xgradcheck._adapters import Case
from xgradcheck._errors import InvalidCase
from xgradcheck._tree import positional_parameters, takes_any_number

CACHES = {"cache", "caches", "ctx", "residuals", "saved"}
"""What the last parameter of such a backward is called."""


def whole(case: Case) -> Case:
    """The call with a function of the output alone, and one of the gradient that needs nothing of
    it; as it is, where it is like that.
    """
    if case.loss is not None or not callable(case.grads):
        return case
    if case.grads == case.fn:
        return _of_a_pair(case)
    return _of_two_halves(case) if _takes_a_cache(case) else case


def _of_a_pair(case: Case) -> Case:
    """One function for both: the value first, then its gradients."""
    both = case.fn

    @wraps(both)
    def value(*args: Any, **kwargs: Any) -> Any:
        out = both(*args, **kwargs)
        return out[0] if type(out) is tuple and len(out) > 1 else out

    @wraps(both)
    def gradients(*args: Any, **kwargs: Any) -> Any:
        out = both(*args, **kwargs)
        return (out[0], out[1:]) if type(out) is tuple and len(out) > 2 else out

    return replace(case, fn=value, grads=gradients)


def _of_two_halves(case: Case) -> Case:
    """Forward and backward, with a cache between them.

    Every argument that is a floating array is checked, unless ``wrt`` says otherwise: that is what
    such a backward returns gradients of.
    """
    forward, backward = case.fn, case.grads
    names = [parameter.name for parameter in positional_parameters(backward)]
    outputs = len(names) - 1

    @wraps(forward)
    def output(*args: Any, **kwargs: Any) -> Any:
        out = _run(forward, names, args, kwargs)[:-1]
        return out if outputs > 1 else out[0]

    def gradient(cotangent: Any, *args: Any, **kwargs: Any) -> Any:
        cache = _run(forward, names, args, kwargs)[-1]
        return backward(*(cotangent if outputs > 1 else (cotangent,)), cache)

    taken = [Parameter("cotangent", Parameter.POSITIONAL_ONLY)]
    taken += [Parameter(f"of_{n}", Parameter.POSITIONAL_ONLY) for n in range(len(case.args))]
    gradient.__signature__ = Signature(taken)  # type: ignore[attr-defined]
    wrt = case.wrt
    if wrt is None:
        arrays = tuple(n for n, value in enumerate(case.args) if _is_floating(value))
        wrt = arrays[0] if len(arrays) == 1 else arrays or None
    return replace(case, fn=output, grads=gradient, wrt=wrt)


def _takes_a_cache(case: Case) -> bool:
    parameters = positional_parameters(case.grads)
    if case.is_closure or len(parameters) < 2 or takes_any_number(case.grads):
        return False
    # With fewer parameters than arguments it cannot take those.
    return parameters[-1].name in CACHES or len(parameters) == 2 < len(case.args)


def _run(
    forward: Callable[..., Any], names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    out = forward(*args, **kwargs)
    if not isinstance(out, tuple) or len(out) != len(names):
        found = f"a tuple of {len(out)}" if isinstance(out, tuple) else f"one {type(out).__name__}"
        parts = "its output" if len(names) == 2 else f"its {len(names) - 1} outputs"
        raise InvalidCase(
            f"grads takes ({', '.join(names)}) and the function returns {found}: let it return "
            f"{parts} and the {names[-1]}, or let grads take (cotangent, *args)."
        )
    return out


def _is_floating(value: Any) -> bool:
    """Whether this is a floating array, of whatever framework."""
    dtype = str(getattr(value, "dtype", ""))
    return "float" in dtype or "complex" in dtype
