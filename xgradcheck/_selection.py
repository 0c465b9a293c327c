"""Which leaves ``wrt`` means: argument numbers, names, globs, or everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from xgradcheck._adapters import ALL, Case
from xgradcheck._errors import InvalidCase
from xgradcheck._tree import Node, Path, argument_names, flatten


@dataclass(frozen=True, slots=True)
class Candidate:
    """A leaf that could be checked: all its names, and its path."""

    names: tuple[str, ...]
    path: Path


def select(wrt: Any, candidates: Sequence[Candidate], arguments: int) -> list[int]:
    """The numbers of the candidates that ``wrt`` names, in the order of ``wrt``; refuses what
    matches nothing.
    """
    if wrt is ALL:
        return list(range(len(candidates)))
    wanted = list(wrt) if isinstance(wrt, list | tuple | set | frozenset) else [wrt]
    if not wanted:
        raise InvalidCase(f"wrt={wrt!r} chooses nothing: name an argument, or leave wrt out.")
    chosen: dict[int, None] = {}
    for want in wanted:
        if isinstance(want, bool) or not isinstance(want, int | str):
            raise InvalidCase(
                f"wrt={wrt!r} is no choice of leaves: give an argument number, a name or glob, a "
                f"list of them, "
                "xgradcheck.ALL, or, for a function without arguments, the parameters themselves."
            )
        found = [
            number
            for number, candidate in enumerate(candidates)
            if _means(want, candidate, arguments)
        ]
        if not found:
            have = ", ".join(name for candidate in candidates for name in candidate.names) or "none"
            raise InvalidCase(f"wrt={want!r} matches no floating leaf; the leaves are {have}.")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _means(want: int | str, candidate: Candidate, arguments: int) -> bool:
    if isinstance(want, int):
        return bool(candidate.path[0] == (want + arguments if want < 0 else want))
    return any(
        name == want or name.startswith((f"{want}.", f"{want}[")) or fnmatchcase(name, want)
        for name in candidate.names
    )


def argument_nodes(case: Case, signature_of: Any = None) -> list[Node]:
    """Every leaf of the arguments, named as Python would write it: ``x``, ``params['W1']``."""
    names = argument_names(signature_of or case.fn, len(case.args))
    roots: list[tuple[Any, str, Any]] = [(n, names[n], tree) for n, tree in enumerate(case.args)]
    roots += [(key, key, tree) for key, tree in case.kwargs.items()]
    return [node for key, name, tree in roots for node in flatten(tree, (key,), name)]


def closure_nodes(owner: Any) -> list[Node]:
    """Every leaf of what a closure's ``wrt`` holds: W1 in a dict, wrt[0] in a list, wrt for a lone
    array.
    """
    return [Node(node.path, _without_root(node), node.value) for node in flatten(owner)]


def _without_root(node: Node) -> str:
    if not node.path or not isinstance(node.path[0], str):
        return f"wrt{node.suffix}"
    first = node.path[0]
    written = len(f"[{first!r}]") if node.suffix.startswith("[") else len(f".{first}")
    return first + node.suffix[written:]
