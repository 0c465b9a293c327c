"""What a call returns: outputs, which have places in the flat vector, and their cotangents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xgradcheck import _handed
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Entry, Layout, Vector, lay_out, refuse_unless_known
from xgradcheck._tree import Node, Path, flatten, replaced

from .torch_leaves import CONVERT, dtype_of, is_floating


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of one call, wherever they stand in what it returns."""

    layout: Layout
    devices: list[torch.device]
    _paths: list[Path]

    @property
    def are_one_number(self) -> bool:
        """Whether the call returns a number, and that in no container."""
        return self._paths == [()] and self.layout.size == 1

    def tensors(self, out: Any) -> list[torch.Tensor]:
        """The outputs in what a call returned."""
        if self._paths == [()]:
            return [out]
        parts = {node.path: node.value for node in flatten(out)}
        return [parts[path] for path in self._paths]

    def replaced(self, out: Any, others: Sequence[torch.Tensor]) -> Any:
        """What a call returned, with others in the place of its outputs."""
        return replaced(out, dict(zip(self._paths, others, strict=True)))

    def cotangents(self, cotangent: Vector) -> list[torch.Tensor]:
        """The cotangents of the outputs, for the function under test to do with as it likes."""
        return self.cut(cotangent.copy())

    def cut(self, cotangent: Vector) -> list[torch.Tensor]:
        """The same, over the memory of the vector where that can be."""
        parts = _handed.cut(cotangent, self.layout)
        # The parts of a complex number put together are a number, and no array.
        pairs = zip(parts, self.devices, strict=True)
        return [torch.from_numpy(np.asarray(part)).to(device) for part, device in pairs]

    def in_dtypes(self, parts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Cotangents in the dtypes that the outputs had."""
        pairs = zip(parts, self.layout, strict=True)
        return [part.to(getattr(torch, leaf.dtype)) for part, leaf in pairs]


def outputs_of(nodes: list[Node]) -> tuple[Outputs, list[torch.Tensor], list[str]]:
    """The outputs among what a call returned: what is floating and carries a gradient, or what is
    floating if nothing carries one. Beside them the tensors that they are, and why all the rest is
    left out.
    """
    floating = [node for node in nodes if is_floating(node.value)]
    if not floating:
        kinds = ", ".join(type(node.value).__name__ for node in nodes) or "nothing"
        raise InvalidCase(
            f"the function returned {kinds}, no floating tensor: let it return its value."
        )
    kept = [node for node in floating if node.value.requires_grad] or floating
    for node in kept:
        refuse_unless_known(node.suffix, dtype_of(node.value), CONVERT)
    left = [node for node in nodes if node not in kept]
    said = [f"{node.suffix}: {_kind(node.value)}, not differentiable" for node in left]
    layout = lay_out(
        Entry((n.suffix,), n.path, tuple(n.value.shape), dtype_of(n.value)) for n in kept
    )
    outs = [node.value for node in kept]
    return Outputs(layout, [out.device for out in outs], [node.path for node in kept]), outs, said


def _kind(value: Any) -> str:
    return dtype_of(value) if isinstance(value, torch.Tensor) else type(value).__name__
