"""The form of what custom Functions return in their backward pass, before autograd makes it fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.autograd.function import BackwardCFunction


@contextmanager
def forms() -> Iterator[dict[str, str]]:
    """By its name, what is wrong with what a Function returned as long as the context lasts;
    nothing where all is well.
    """
    backward: Any = BackwardCFunction
    found, told = backward.apply, dict[str, str]()

    def pull_back(self: Any, *cotangents: Any) -> Any:
        returned = found(self, *cotangents)
        name = self._forward_cls.__name__
        if not told.get(name):
            grads = returned if isinstance(returned, tuple) else (returned,)
            told[name] = _misfit(grads, self.needs_input_grad, self.next_functions)
        return returned

    backward.apply = pull_back
    try:
        yield told
    finally:
        backward.apply = found


def _misfit(grads: Sequence[Any], needed: Sequence[bool], inputs: Sequence[tuple[Any, int]]) -> str:
    """How gradients differ in form from the inputs that they belong to."""
    # Inputs that are no tensors have a gradient, None, and no step of the graph.
    numbers = [number for number, is_needed in enumerate(needed) if is_needed]
    reached = [(node, place) for node, place in inputs if node is not None]
    if len(numbers) != len(reached) or len(grads) != len(needed):
        return ""
    for number, (node, place) in zip(numbers, reached, strict=True):
        grad, want = grads[number], _wanted(node, place)
        if want is None or grad is None:
            continue
        got = tuple(grad.shape), grad.dtype, grad.device
        for word, own, wanted in zip(("shape", "dtype", "device"), got, want, strict=True):
            if own != wanted:
                return f"is of {word} {own} for input {number}, which is of {wanted}"
    return ""


def _wanted(node: Any, place: int) -> tuple[Any, Any, Any] | None:
    if (variable := getattr(node, "variable", None)) is not None:
        return tuple(variable.shape), variable.dtype, variable.device
    known = getattr(node, "_input_metadata", ())
    if place >= len(known):
        return None
    return tuple(known[place].shape), known[place].dtype, known[place].device
