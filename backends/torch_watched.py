"""What is computed inside of a function, operator by operator, and in which dtypes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .torch_exchanged import eager


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that is on only where nothing compiled runs: torch need not load its compiler, which
    takes two seconds, to keep the compiler from it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


ROUNDING = ("ceil", "fake_quantize", "floor", "frac", "remainder", "round", "trunc")


def _rounds(name: str, args: Any, found: Sequence[Any]) -> bool:
    """Whether an operator of this name rounds floating numbers."""
    given = [arg for arg in tree_leaves(args) if isinstance(arg, torch.Tensor)]
    if not any(arg.is_floating_point() for arg in given):
        return False
    made = [out.dtype for out in found if isinstance(out, torch.Tensor)]
    is_whole = bool(made) and not any(kind.is_floating_point for kind in made)
    return name.startswith(ROUNDING) or (is_whole and torch.bool not in made)


SWITCHING = ("heaviside", "sgn", "sign")


def _switches(name: str, args: Any, found: Sequence[Any]) -> bool:
    """Whether an operator of this name makes numbers of truth values, or of signs."""
    given = (arg for arg in tree_leaves(args) if isinstance(arg, torch.Tensor))
    made = (out for out in found if isinstance(out, torch.Tensor))
    are_asked = any(arg.dtype is torch.bool for arg in given)
    return name in SWITCHING or (are_asked and any(out.is_floating_point() for out in made))


class Computed(Watching):
    """Notes the dtypes of all that is computed, inside of custom Functions too, and whether any of
    it rounds or is the answer of a comparison.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()
        self.single: set[str] = set()
        """The names of what is computed in float32."""
        self.rounds = False
        """Whether floating numbers were rounded to a grid, or to whole ones."""
        self.switches = False
        """Whether truth values, or signs, became numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        found = tree_leaves(out)
        name = func.overloadpacket.__name__
        self.rounds = self.rounds or _rounds(name, args, found)
        self.switches = self.switches or _switches(name, args, found)
        # A lone number comes of nothing but itself.
        dtypes = {t.dtype for t in found if isinstance(t, torch.Tensor) and t.dim()}
        self.dtypes |= dtypes
        if torch.float32 in dtypes:
            self.single.add(name)
        return out


def computed_by(run: Callable[[], Any]) -> Computed | None:
    """All that a run computes; None for what cannot be watched."""
    computed = Computed()
    try:
        with eager(), computed:
            run()
    except Exception:
        return None
    return computed
