"""Other tensors in the place of those that a function reads, wherever it has them from."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction, _SingleLevelFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

IS_BUILT_IN = not hasattr(vars(torch.autograd.Function)["apply"], "__func__")
Apply = Callable[[Callable[..., Any], Any, Any, Any], Any]


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with its leaves changed; a shape is a leaf, and stays one."""
    return tree_map(change, tree, is_leaf=lambda value: isinstance(value, torch.Size))


class Exchanged(TorchFunctionMode):
    """Lets functions meet other tensors in the place of some, which are given by their ids."""

    def __init__(self, others: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self._others = others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = self.arguments(args, kwargs or {})
        return func(*args, **kwargs)

    def arguments(self, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """What a function is given in the place of its arguments."""
        return [*map(self.other, args)], {k: self.other(value) for k, value in kwargs.items()}

    def other(self, value: Any) -> Any:
        """What stands in the place of a value, or of what is in it; mostly the value itself."""
        if isinstance(value, list | tuple | dict):
            return mapped(self._other, value)
        return self._other(value)

    def _other(self, value: Any) -> Any:
        return self._others.get(id(value), value)


@contextmanager
def exchanged(others: dict[int, torch.Tensor]) -> Iterator[Exchanged]:
    """The mode entered, and custom Functions given the others too."""
    mode = Exchanged(others)

    def apply(usual: Callable[..., Any], cls: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = mode.arguments(args, kwargs)
        return usual(*args, **kwargs)

    with mode, functions_applied(apply):
        yield mode


@contextmanager
def functions_applied(apply: Apply) -> Iterator[None]:
    """Custom Functions called through ``apply(usual, cls, args, kwargs)``.

    Modes do not see ``Function.apply``: it is called on its base class, where the classes of users
    find this one, also by a method that was bound long before. Since PyTorch 2.14 it is no method
    of Python's, and only found by who looks it up: see ``looked_up``.
    """
    base: Any = torch.autograd.Function if IS_BUILT_IN else _SingleLevelFunction
    found = vars(base).get("apply")

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        usual = super(base, cls).apply if found is None else found.__get__(None, cls)
        return apply(usual, cls, args, kwargs)

    base.apply = classmethod(applied)
    try:
        yield
    finally:
        if found is None:
            del base.apply
        else:
            base.apply = found


@contextmanager
def backwards_applied(apply: Callable[[Callable[..., Any], Any, Any], Any]) -> Iterator[None]:
    """The backward passes of custom Functions run through ``apply(usual, ctx, cotangents)``."""
    base: Any = BackwardCFunction
    # Since PyTorch 2.14 there is a second way, of those that take their cotangents in a list.
    names = [name for name in ("apply", "apply_boxed") if hasattr(base, name)]
    found = {name: getattr(base, name) for name in names}

    def through(usual: Callable[..., Any]) -> Callable[..., Any]:
        return lambda ctx, *cotangents: apply(usual, ctx, cotangents)

    for name, usual in found.items():
        setattr(base, name, through(usual))
    try:
        yield
    finally:
        for name, usual in found.items():
            setattr(base, name, usual)


def looked_up(fn: Any) -> Any:
    """The function; what is ``apply`` of a custom Function is looked up when it is called."""
    cls: Any = getattr(fn, "__self__", None)
    is_bound = isinstance(cls, type) and issubclass(cls, torch.autograd.Function)
    if not (IS_BUILT_IN and is_bound and fn.__name__ == "apply"):
        return fn
    return lambda *args, **kwargs: cls.apply(*args, **kwargs)


def eager() -> AbstractContextManager[None]:
    """What ``torch.compile`` has compiled runs as it was written, so that modes see it."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    scope: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return scope
