"""The form of what custom Functions return in their backward pass, before autograd makes it fit;
and what torch refuses to differentiate.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from xgradcheck._errors import InvalidCase

from .torch_exchanged import backwards_applied

REFUSED = "returned an in"
"""What torch says of gradients that no summing or casting makes fit: an invalid gradient, or an
incorrect number of them.
"""


OWN = torch.autograd.__path__[0]
"""Where the code of autograd lies."""
MISSING = ("is not implemented", "You must implement")
"""What torch says of operators and Functions that have no derivative."""


@contextmanager
def refused_without_second() -> Iterator[None]:
    """Refuse by name what torch has no second derivative of; what a backward pass raises itself
    passes through.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        raised = traceback.extract_tb(error.__traceback__)[-1].filename
        if not raised.startswith(OWN) or not any(text in said for text in MISSING):
            raise
        raise InvalidCase(
            f"its backward pass has no derivative in torch ({said.rstrip('. ')}): check it with "
            f"order=1, or write it in operations that have one."
        ) from None


@contextmanager
def forms() -> Iterator[dict[str, str]]:
    """By its name, what is wrong with what a Function returned as long as the context lasts;
    nothing where all is well. What torch refuses is told by the names of the inputs.
    """
    told = dict[str, str]()

    def pull_back(usual: Callable[..., Any], ctx: Any, cotangents: Any) -> Any:
        returned = usual(ctx, *cotangents)
        name = ctx._forward_cls.__name__
        if not told.get(name):
            grads = returned if isinstance(returned, tuple) else (returned,)
            told[name] = _misfit(grads, ctx)
        return returned

    try:
        with backwards_applied(pull_back):
            yield told
    except RuntimeError as error:
        if REFUSED in str(error):
            for name in filter(told.get, told):
                error.add_note(f"xgradcheck: what the backward of {name} returns {told[name]}.")
        raise


def _misfit(grads: Sequence[Any], function: Any) -> str:
    """How gradients differ in form from the inputs that they belong to."""
    needed, inputs = function.needs_input_grad, function.next_functions
    if len(grads) < len(needed) or any(grad is not None for grad in grads[len(needed) :]):
        gradients = f"{len(grads)} gradient{'s' * (len(grads) != 1)}"
        return f"is {gradients} for {len(needed)} inputs: one for each, None where there is none"
    # Inputs that are no tensors have a gradient, None, and no step of the graph.
    numbers = [number for number, is_needed in enumerate(needed) if is_needed]
    reached = [(node, place) for node, place in inputs if node is not None]
    if len(numbers) != len(reached):
        return ""
    for number, (node, place) in zip(numbers, reached, strict=True):
        grad, want = grads[number], _wanted(node, place)
        if want is None or grad is None:
            continue
        got = tuple(grad.shape), grad.dtype, grad.device
        for word, own, wanted in zip(("shape", "dtype", "device"), got, want, strict=True):
            if own != wanted:
                named = _named(function._forward_cls, number)
                return f"is of {word} {own} for {named}, which is of {wanted}"
    return ""


def _named(cls: Any, number: int) -> str:
    """An input of a Function by its number, and by its name where that can be told."""
    has_context = cls.setup_context is torch.autograd.Function.setup_context
    try:
        parameters = [*inspect.signature(cls.forward).parameters.values()][has_context:]
    except (TypeError, ValueError):
        parameters = []
    names = [own.name for own in parameters if own.kind is not own.VAR_POSITIONAL]
    return f"input {number} ({names[number]})" if number < len(names) else f"input {number}"


def _wanted(node: Any, place: int) -> tuple[Any, Any, Any] | None:
    if (variable := getattr(node, "variable", None)) is not None:
        return tuple(variable.shape), variable.dtype, variable.device
    known = getattr(node, "_input_metadata", ())
    if place >= len(known):
        return None
    return tuple(known[place].shape), known[place].dtype, known[place].device
