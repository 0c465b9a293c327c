"""Passes in two halves, as textbooks of NumPy write them: a forward that returns a cache beside its
output, for a backward that takes a cotangent and that; two methods of an object that keeps it in
between; or one function of the value and its gradients.
"""

import dis
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from inspect import Parameter, Signature, getclosurevars, isfunction, ismethod
from typing import Any

from xgradcheck._adapters import Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Layout
from xgradcheck._tree import (
    argument_names,
    parameters_of,
    positional_parameters,
    takes_any_number,
)

CACHES = {"caches", "ctx", "residuals", "saved"}
"""What the last parameter of such a backward is called, or anything that ends in "cache"."""
BACKWARDS = ("back", "bprop", "bwd")
"""How the name begins of the method of an object that is its backward pass."""
COTANGENTS = ("acc", "back", "cot", "d", "e", "g", "next", "out", "top", "u", "v")
"""How the name begins of what a method ``backward`` takes, where that could be the argument."""
PLAIN = {"ct", "cotangent", "d", "delta", "dout", "dy", "dz", "g", "u", "upstream"}
"""What a cotangent is called that nothing else is called."""
RATES = {"learning_rate", "lr"}
"""What a backward takes that makes a step as well."""


def whole(case: Case) -> Case:
    """The call with a function of the output alone, and one of the gradient that needs nothing of
    it; as it is, where it is like that.
    """
    if not callable(case.grads):
        return case
    if case.loss is not None:
        return _by_its_names(case)
    if case.grads == case.fn:
        return _of_a_pair(case)
    if _takes_a_cache(case):
        return _of_two_halves(case)
    if _is_of_an_object(case):
        return _of_an_object(case)
    _refuse_rates(case)
    return _of_several_outputs(case) or _by_its_names(case)


def _by_its_names(case: Case) -> Case:
    """The same with a gradient that gets its arguments in its own order, where it calls them what
    the function calls them; and the cotangent, where it takes one thing more.
    """
    known, backward = argument_names(case.fn, len(case.args)), case.grads
    names = _wanted(case)
    if case.is_closure or names == known:
        return case
    if takes_any_number(backward):
        is_more = len(names) == 1 and names[0] not in known and _is_plain(names[0])
        return replace(case, grads=_passing(backward, 1 + len(known))) if is_more else case
    extra = [name for name in names if name not in known]
    settings = _settings(backward, known)
    missing = len(known) - len(names) + len(extra)
    # By position it takes as many; by name it may do without some, and be told others.
    is_sure = not missing or (extra and _is_plain(extra[0])) or len(names) - len(extra) > 1
    if len(extra) > 1 or len(extra) == len(names) or not is_sure:
        return case
    if names == [*extra, *known] and not settings:
        return case

    def gradient(*given: Any, **kwargs: Any) -> Any:
        values = dict(zip([*extra, *known], given, strict=True))
        told = {name: values[name] for name in settings}
        return backward(*(values[name] for name in names), **told, **kwargs)

    return replace(case, grads=_taking(gradient, len(extra) + len(known)))


def _of_several_outputs(case: Case) -> Case | None:
    """The same with a gradient that gets the cotangents in a tuple, where it takes two things more
    than the function or others: one for each output. None where it does not.
    """
    known, backward, names = argument_names(case.fn, len(case.args)), case.grads, _wanted(case)
    outputs = len(names) - len(known)
    if outputs < 2 or takes_any_number(backward):
        return None
    extra = [name for name in names if name not in known]
    order = [*extra, *known] if len(extra) == outputs else names

    def gradient(cotangent: Any, *args: Any, **kwargs: Any) -> Any:
        parts = [*cotangent] if isinstance(cotangent, tuple | list) else [cotangent]
        if len(parts) > outputs:
            parts = [part for part in parts if isinstance(part, float) or _is_floating(part)]
        if len(parts) != outputs:
            kind, count = type(cotangent).__name__, f" of {len(parts)}" if len(parts) > 1 else ""
            raise InvalidCase(
                f"grads takes ({', '.join(names)}), {outputs} more than the function, which "
                f"returns one {kind}{count}: let it take (cotangent, *args), and have what else it "
                f"needs from elsewhere."
            )
        values = dict(zip(order, [*parts, *args], strict=True))
        return backward(*(values[name] for name in names), **kwargs)

    return replace(case, grads=_taking(gradient, 1 + len(known)))


def refused_as_of_a_scalar(case: Case, outputs: Layout) -> InvalidCase:
    """The refusal of a gradient that takes no cotangent, for more outputs than one number."""
    text = f"the output has {outputs.size} elements and grads belongs to a scalar: reduce "
    text += "the output with loss=, or give a function grads(cotangent, *args)"
    names = _wanted(case) if callable(case.grads) else []
    if len(names) == len(case.args) == 2:
        text = (
            f"grads takes ({', '.join(names)}), as many as the function, so that it belongs to a "
            f"scalar, and the output has {outputs.size} elements: give grads(cotangent, *args), or "
            f"reduce the output with loss=. If {names[1]} is what the function keeps for it, call "
            f"it cache, and let the function return (output, cache)"
        )
    return InvalidCase(f"{text}.")


def _settings(backward: Callable[..., Any], known: Sequence[str]) -> list[str]:
    """Those of its arguments that a backward has a value for, and is told nevertheless."""
    given = [p for p in parameters_of(backward) if p.default is not p.empty]
    return [p.name for p in given if p.name in known]


def _passing(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    return _taking(lambda *given, **kwargs: fn(*given, **kwargs), count)


def _is_plain(name: str) -> bool:
    """Whether a parameter is called like a cotangent, and like nothing else."""
    return name in PLAIN or any(part in name for part in ("grad", "delta", "err"))


def _refuse_rates(case: Case) -> None:
    """Raise for a backward pass that makes a step of training as well, of a length not known."""
    known = set(argument_names(case.fn, len(case.args)))
    for name in _required(case.grads)[1:]:
        if name in RATES - known:
            raise InvalidCase(
                f"grads takes {name}, which the function does not: say how much that is, as in "
                f"grads=lambda u, *args: layer.backward(u, 0.1)."
            )


def _of_a_pair(case: Case) -> Case:
    """One function for both: the value first, then its gradients; or a dict of them first."""
    both = case.fn

    @wraps(both)
    def value(*args: Any, **kwargs: Any) -> Any:
        out = in_order(both(*args, **kwargs))
        return out[0] if type(out) is tuple and len(out) > 1 else out

    @wraps(both)
    def gradients(*args: Any, **kwargs: Any) -> Any:
        out = in_order(both(*args, **kwargs))
        return (out[0], out[1:]) if type(out) is tuple and len(out) > 2 else out

    def in_order(out: Any) -> Any:
        is_turned = type(out) is tuple and len(out) == 2 and isinstance(out[0], Mapping)
        return out[::-1] if is_turned else out

    return replace(case, fn=value, grads=gradients)


def _of_two_halves(case: Case) -> Case:
    """Forward and backward, with a cache between them.

    Every argument that is a floating array is checked, unless ``wrt`` says otherwise: that is what
    such a backward returns gradients of.
    """
    forward, backward = case.fn, case.grads
    known = argument_names(forward, len(case.args))
    taken = _wanted(case)
    names = taken if len(taken) == 2 else [name for name in taken if name not in known]
    settings = [name for name in _settings(backward, known) if name not in names]
    outputs = len(names) - 1

    @wraps(forward)
    def output(*args: Any, **kwargs: Any) -> Any:
        out = _run(forward, names, args, kwargs)[:-1]
        return out if outputs > 1 else out[0]

    def gradient(cotangent: Any, *args: Any, **kwargs: Any) -> Any:
        cache = _run(forward, names, args, kwargs)[-1]
        own = (*(cotangent if outputs > 1 else (cotangent,)), cache)
        values = dict(zip(known, args, strict=True)) | dict(zip(names, own, strict=True))
        told = {name: values[name] for name in settings}
        told |= {name: value for name, value in kwargs.items() if name in accepted}
        return backward(*(values[name] for name in taken), **told)

    accepted = {parameter.name for parameter in parameters_of(backward)}
    wrt = case.wrt
    if wrt is None:
        arrays = tuple(n for n, value in enumerate(case.args) if _is_floating(value))
        wrt = arrays[0] if len(arrays) == 1 else arrays or None
    return replace(case, fn=output, grads=_taking(gradient, 1 + len(case.args)), wrt=wrt)


def _of_an_object(case: Case) -> Case:
    """Two methods of an object. Where its own arrays are checked, a backward that returns no tree
    leaves their gradients in it.
    """
    backward, owner = case.grads, case.grads.__self__
    outputs = len(_required(backward))

    def gradient(*given: Any, **_: Any) -> Any:
        found = backward(*(given[0] if outputs > 1 else given[:outputs]))
        if case.is_closure:
            return owner if found is None or hasattr(found, "dtype") else found
        if found is None:
            raise InvalidCase(
                f"{backward.__qualname__} returns nothing: give a function that returns the "
                f"gradient, as lambda *cotangent: (layer.backward(*cotangent), layer.dx)[1]."
            )
        return found

    return replace(case, grads=_taking(gradient, min(outputs, 1) + len(case.args)))


def _taking(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function that tells that it takes so many arguments."""
    taken = [Parameter(f"argument_{n}", Parameter.POSITIONAL_ONLY) for n in range(count)]
    fn.__signature__ = Signature(taken)  # type: ignore[attr-defined]
    return fn


def _required(fn: Callable[..., Any]) -> list[str]:
    """The names of the positional parameters that ``fn`` cannot do without."""
    return [p.name for p in positional_parameters(fn) if p.default is p.empty]


def _wanted(case: Case) -> list[str]:
    """The same of what a backward gets by position."""
    return [name for name in _required(case.grads) if name not in case.kwargs]


def _takes_a_cache(case: Case) -> bool:
    names = _wanted(case)
    if case.is_closure or len(names) < 2 or takes_any_number(case.grads):
        return False
    known = argument_names(case.fn, len(case.args))
    if len(names) == 2 and _hands_out(case.fn, names[1]):
        # What it was given it may return as an output, too: but not beside one textbook's dA.
        return names[1] not in known or (names[0].startswith("d") and not names[0].endswith("s"))
    own = [name for name in names if name not in known]
    if len(own) > 1 and (own[-1] in CACHES or own[-1].endswith("cache")):
        # Beside it a backward takes settings, and arguments only instead.
        values = dict(zip(known, case.args, strict=True))
        return not any(_is_floating(values[name]) for name in names if name in known)
    # With fewer parameters than arguments it cannot take them.
    return len(own) == len(names) == 2 < len(case.args)


def _hands_out(forward: Any, name: str) -> bool:
    """Whether a forward returns two things, of which it calls the last one this: ``return out,
    mask``.
    """
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)
    steps = [] if code is None else [*dis.get_instructions(code)]
    for load, pack, end in zip(steps, steps[1:], steps[2:], strict=False):
        if (pack.opname, pack.arg, end.opname) == ("BUILD_TUPLE", 2, "RETURN_VALUE"):
            # Two names next to each other may be one step.
            loaded = load.argval[-1] if isinstance(load.argval, tuple) else load.argval
            if load.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and loaded == name:
                return True
    return False


def _is_of_an_object(case: Case) -> bool:
    """Whether ``grads`` is the method of an object that goes with another one of it, or with the
    object as a function, and takes none of its arguments.
    """
    if not ismethod(case.grads) or takes_any_number(case.grads):
        return False
    owner, names = case.grads.__self__, _required(case.grads)
    is_named = case.grads.__name__.lstrip("_").startswith(BACKWARDS)
    if case.is_closure:
        return case.wrt is owner and is_named and len(names) < 2
    if not any(known is owner for known in _known_to(case.fn)):
        return False
    every = [parameter.name for parameter in positional_parameters(case.grads)]
    if not set(every).isdisjoint(argument_names(case.fn, len(case.args))):
        return False
    if len(names) < len(case.args):
        return True
    if not is_named or len(names) != 1:
        return False
    is_called = case.grads.__name__ == "backward" and names[0].startswith(COTANGENTS)
    return is_called or _is_plain(names[0])


def _known_to(fn: Any) -> Iterator[Any]:
    """A function, its object, and what it names."""
    yield fn
    yield getattr(fn, "__self__", None)
    if isfunction(fn):
        with suppress(ValueError):  # a variable that is not bound yet
            named = getclosurevars(fn)
            yield from (*named.nonlocals.values(), *named.globals.values())


def _run(
    forward: Callable[..., Any], names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    out = forward(*args, **kwargs)
    is_several = isinstance(out, tuple | list)
    if not is_several or len(out) != len(names):
        kind = type(out).__name__
        found = f"a {kind} of {len(out)}" if is_several else f"one {kind}"
        parts = "its output" if len(names) == 2 else f"its {len(names) - 1} outputs"
        raise InvalidCase(
            f"grads takes ({', '.join(names)}) and the function returns {found}: let it return "
            f"{parts} and the {names[-1]}, or let grads take (cotangent, *args)."
        )
    return tuple(out)


def note_on_others(case: Case) -> str | None:
    """What to do where a gradient was meant to be that of another argument, of the same shape."""
    if case.wrt is not None or not callable(case.grads) or len(case.args) < 2:
        return None
    names, first = argument_names(case.fn, len(case.args)), case.args[0]
    pairs = zip(names[1:], case.args[1:], strict=True)
    shape = getattr(first, "shape", None)
    same = [name for name, value in pairs if _is_floating(value) and value.shape == shape]
    if not same:
        return None
    return (
        f"compared with the gradient of {names[0]}: if it is that of {same[0]}, say wrt={same[0]!r}"
    )


def _is_floating(value: Any) -> bool:
    """Whether this is a floating array, of whatever framework."""
    dtype = str(getattr(value, "dtype", ""))
    return "float" in dtype or "complex" in dtype
