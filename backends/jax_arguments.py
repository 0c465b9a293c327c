"""The arguments of one call of a JAX function: a tree, of which some arrays are leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from xgradcheck import _handed
from xgradcheck._adapters import Case
from xgradcheck._errors import InvalidCase
from xgradcheck._layout import Layout, Vector
from xgradcheck._selection import Candidate, select
from xgradcheck._tree import Node

from .jax_leaves import argument_nodes, is_floating

Pulled = tuple[Layout, Vector]
"""What the outputs of a function are, and for which cotangent their gradients are meant."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Everything that lies in the arguments; of second order the cotangents come after it."""

    nodes: list[Node]
    numbers: list[int]
    """Which of the nodes are leaves."""
    own: int
    """How many of the leaves lie in the arguments themselves."""
    structure: Any

    @property
    def leaves(self) -> list[Node]:
        return [self.nodes[number] for number in self.numbers]

    @property
    def own_nodes(self) -> list[Node]:
        """What lies in the arguments themselves."""
        return self.nodes[: len(self.nodes) - len(self.numbers) + self.own]

    @property
    def others(self) -> dict[int, Node]:
        """What is no leaf, by its number."""
        chosen = set(self.numbers)
        return {n: node for n, node in enumerate(self.nodes) if n not in chosen}

    @property
    def left_out(self) -> list[str]:
        """What takes no part, and why."""
        left = self.others.values()
        arrays = [node for node in left if isinstance(node.value, jax.Array | np.ndarray)]
        numbers = [node for node in left if type(node.value) is float]
        constants = [f"{node.suffix}: a Python number, unless wrt names it" for node in numbers]
        return constants + [
            f"{node.suffix}: not in wrt"
            if is_floating(node.value)
            else f"{node.suffix}: {node.value.dtype}, not differentiable"
            for node in arrays
        ]

    def tree(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these values in them."""
        args, kwargs = tree_util.tree_unflatten(self.structure, values)
        return args, kwargs


def arguments_of(case: Case, pulled: Pulled | None) -> Arguments:
    """The arguments of a call; refuses those without a leaf."""
    nodes = argument_nodes(case)
    structure = tree_util.tree_structure((case.args, dict(case.kwargs)))
    numbers = _chosen(case, nodes)
    own, before = len(numbers), len(nodes)
    nodes += [] if pulled is None else _cotangent_nodes(*pulled)
    return Arguments(nodes, [*numbers, *range(before, len(nodes))], own, structure)


def _chosen(case: Case, nodes: list[Node]) -> list[int]:
    """Which nodes are leaves; a Python number that is asked for becomes an array."""
    floating = [number for number, node in enumerate(nodes) if is_floating(node.value)]
    wrt = 0 if case.wrt is None and case.grads is not None else case.wrt
    if wrt is not None:
        if isinstance(wrt, int | str | tuple | list) and case.args:
            # A Python number is a constant, a rate of dropout, say; unless the argument that is
            # asked for holds nothing else, as in jax.grad(f)(3.0).
            arrays = {nodes[number].path[0] for number in floating}
            named = (wrt,) if isinstance(wrt, int | str) else wrt
            places = {n % len(case.args) for n in named if isinstance(n, int)} - arrays
            for number, node in enumerate(nodes):
                is_asked = node.path[0] in places or node.suffix in named
                if is_asked and isinstance(node.value, float):
                    nodes[number] = Node(node.path, node.suffix, np.float64(node.value))
            floating = [number for number, node in enumerate(nodes) if is_floating(node.value)]
        candidates = [Candidate((nodes[n].suffix,), nodes[n].path) for n in floating]
        floating = [floating[number] for number in select(wrt, candidates, len(case.args))]
    if not floating:
        raise InvalidCase(
            "there is no floating array in the arguments: pass one, or name it with wrt=."
        )
    return floating


def _cotangent_nodes(outputs: Layout, cotangent: Vector) -> list[Node]:
    """Of second order the cotangents are leaves too: a gradient depends on them."""
    parts = zip(_handed.cut(cotangent, outputs), outputs, strict=True)
    values = [np.asarray(part, jnp.dtype(leaf.dtype)) for part, leaf in parts]
    names = zip(_handed.cotangent_names(outputs), values, strict=True)
    return [Node((name,), name, value) for name, value in names]
