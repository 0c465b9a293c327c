"""The rules of ``jax.custom_vjp``: what they return beside what they have to, and how to mend what
JAX refuses.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util

LEAK = jax.errors.UnexpectedTracerError


@contextmanager
def rules() -> Iterator[dict[str, str]]:
    """By its name, what is wrong with what a rule returned as long as the context lasts; nothing
    where all is well.
    """
    cls: Any = jax.custom_vjp
    found, told = cls.__call__, dict[str, str]()

    @wraps(found)
    def call(rule: Any, *args: Any, **kwargs: Any) -> Any:
        backward = rule.bwd
        names = _arguments(rule, args, kwargs)
        if backward is None or names is None:
            return found(rule, *args, **kwargs)
        name = getattr(rule, "__name__", "the rule")

        @wraps(backward)
        def watched(*given: Any) -> Any:
            told.setdefault(name, "")
            returned = backward(*given)
            told[name] = told[name] or misfit(returned, names)
            return returned

        twin: Any = cls(rule.fun, nondiff_argnums=rule.nondiff_argnums)
        options = {"symbolic_zeros": rule.symbolic_zeros, "optimize_remat": rule.optimize_remat}
        twin.defvjp(rule.fwd, watched, **options)
        return found(twin, *args, **kwargs)

    cls.__call__ = call
    try:
        yield told
    finally:
        cls.__call__ = found


def _arguments(rule: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """What a rule has to return gradients for, by the names of the parameters; None where the call
    cannot be told.
    """
    try:
        bound = inspect.signature(rule.fun).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    if bound.kwargs:
        return None
    names = [*inspect.signature(rule.fun).parameters]
    several = [f"{names[-1]}[{n}]" for n in range(len(bound.args) - len(names) + 1)]
    names = [*names[:-1], *several] if len(bound.args) > len(names) else names
    pairs = enumerate(zip(names, bound.args, strict=False))
    return {name: value for n, (name, value) in pairs if n not in rule.nondiff_argnums}


def misfit(returned: Any, arguments: dict[str, Any]) -> str:
    """How what a rule returns differs in form from the arguments it was called with."""
    listed = ", ".join(arguments)
    each = f"a tuple with one gradient for each of {listed}, None where there is none"
    if not isinstance(returned, tuple | list):
        return f"returns one {_form(returned)}: return {each}"
    if len(returned) != len(arguments):
        gradients = f"{len(returned)} gradient{'s' * (len(returned) != 1)}"
        return f"returns {gradients} for {len(arguments)} arguments: return {each}"
    for (name, argument), grad in zip(arguments.items(), returned, strict=True):
        if grad is not None and (text := _unlike(grad, argument, name)):
            return text
    return ""


def _unlike(grad: Any, argument: Any, name: str) -> str:
    gives: Any
    wants: Any
    gives, wants = tree_util.tree_structure(grad), tree_util.tree_structure(argument)
    if gives != wants:
        return f"returns {gives} for {name}, which is {wants}: give both the same structure"
    leaves = tree_util.tree_flatten_with_path(argument)[0]
    for (path, leaf), own in zip(leaves, tree_util.tree_leaves(grad), strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) or not hasattr(own, "dtype"):
            continue  # whole numbers have no gradient, whatever stands for it
        place = name + tree_util.keystr(path)
        said = f"returns {_form(own)} for {place}, which is {_form(leaf)}"
        if jnp.shape(own) != jnp.shape(leaf):
            return f"{said}: sum over what was broadcast, and over nothing else"
        if own.dtype != jnp.result_type(leaf):
            return f"{said}: cast it with .astype({place}.dtype)"
    return ""


def _form(value: Any) -> str:
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{jnp.result_type(value)}{[*jnp.shape(value)]}"


def remedies(error: Exception, told: dict[str, str]) -> Sequence[str]:
    """What to do about an exception in a backward pass, as far as that can be told."""
    said = [f"the backward rule of {name} {text}." for name, text in told.items() if text]
    if said or not isinstance(error, LEAK):
        return said
    if "nondiff_argnums" in str(error):
        return [
            "nondiff_argnums is for what holds no arrays: let the rule take the array as any other "
            "argument, and return its gradient, or None."
        ]
    return [
        "a rule reads an array of the function around it while that is traced: pass the array as "
        "an argument, and return its gradient, or None."
    ]
