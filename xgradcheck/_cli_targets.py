"""From the words of the command to functions: what a target means, and which framework it is of."""

import ast
import importlib
import importlib.util
import sys
import zlib
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from xgradcheck._adapters import BACKENDS, Case, adapter
from xgradcheck._errors import InvalidCase
from xgradcheck._tree import required_arguments

FRAMEWORK_OF = {
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "equinox": "jax",
    "optax": "jax",
    "haiku": "jax",
}


def named(written: Any, folder: Path) -> Any:
    """The function that an option names; what is no text is the function itself."""
    return load(written, folder)[0] if written and isinstance(written, str) else written


def load(written: str, folder: Path) -> tuple[Any, ModuleType]:
    """The function that ``file.py:name`` or ``package.module:name`` means, and its module."""
    where, _, name = written.rpartition(":")
    if not where or not name:
        raise InvalidCase(
            f"{written!r} is no target: write file.py:function or package.module:function."
        )
    try:
        module = (
            module_from_file(folder / where)
            if where.endswith(".py")
            else importlib.import_module(where)
        )
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise InvalidCase(
            f"there is no module {where!r}: give a file, path/to/{where}.py:{name}."
        ) from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = (
                ", ".join(
                    n for n, v in vars(module).items() if callable(v) and not n.startswith("_")
                )
                or "nothing"
            )
            raise InvalidCase(f"{where} has no {name!r}; what can be called there: {names}.")
        found = getattr(found, part)
    return found, module


def refuse_part(fn: Any, written: str, given: int) -> None:
    """Raise for what cannot be called by itself, and gets so many arguments: a method of no object,
    or one half of a custom rule.
    """
    where, _, name = written.rpartition(":")
    owner, _, own = name.rpartition(".")
    if not (owner and isinstance(fn, FunctionType) and given < required_arguments(fn)):
        return
    first = next(iter(signature(fn).parameters), "")
    if first == "ctx":
        raise InvalidCase(f"{own} is one half of {owner}: name {where}:{owner}.apply.")
    if first == "self":
        raise InvalidCase(
            f"{own} belongs to objects of {owner}: make one in {where}, as layer = {owner}(...), "
            f"and name {where}:layer."
        )


def module_from_file(path: Path) -> ModuleType:
    """The module that a file holds; a file is run once."""
    if not path.is_file():
        raise InvalidCase(
            f"there is no file {path}: give the path of the Python file, then :function."
        )
    find_neighbours(path.resolve().parent)
    name = f"_xgradcheck_{zlib.crc32(str(path.resolve()).encode()):08x}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@dataclass(slots=True)
class _Neighbours:
    """The folder whose modules files find beside them, as where ``python file.py`` is run there:
    ``helper`` of another folder is another module.
    """

    folder: Path | None = None
    known: frozenset[str] = frozenset()
    """The modules that were loaded before it."""
    kept: dict[Path, dict[str, ModuleType]] = field(default_factory=dict)
    """Those of other folders."""

    def enter(self, folder: Path) -> None:
        """Have the modules of this folder found, and those of the last one no more."""
        if folder == self.folder:
            return
        if self.folder is not None:
            self.kept[self.folder] = own = self._own(self.folder)
            for name in own:
                del sys.modules[name]
            if str(self.folder) in sys.path:
                sys.path.remove(str(self.folder))
        self.known, self.folder = frozenset(sys.modules), folder
        sys.modules.update(self.kept.pop(folder, {}))
        sys.path.insert(0, str(folder))

    def _own(self, folder: Path) -> dict[str, ModuleType]:
        return {
            name: module
            for name, module in sys.modules.items()
            if name not in self.known
            and not name.startswith(("xgradcheck", "_xgradcheck_"))
            and _lies_in(module, folder)
        }


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(folder) and "site-packages" not in path.parts


_neighbours = _Neighbours()


def find_neighbours(folder: Path) -> None:
    """As ``python file.py`` does, so that the file finds those beside it and no others."""
    _neighbours.enter(folder)


def owner_of(case: Case) -> str | None:
    """The framework whose arrays are in a call already; None where there are none, or several."""
    found = [n for n in BACKENDS if n in sys.modules and adapter(n).owns(case.contents)]
    return found[0] if len(found) == 1 else None


def backend_of(fn: Any, module: ModuleType | None, written: str, is_handed: bool) -> str:
    """The one framework that the target is of, or that its file imports; NumPy where it imports
    neither, or the gradient of an object is handed in.
    """
    if (made_of := FRAMEWORK_OF.get(type(fn).__module__.partition(".")[0])) is not None:
        return made_of  # a custom_vjp, or a compiled function, from wherever it was imported
    owner = getattr(fn, "__self__", None)  # Function.apply belongs to the class that was written
    written_by = owner if isinstance(owner, type) else fn
    if isinstance(written_by, type | FunctionType):
        found = _frameworks(sys.modules.get(written_by.__module__, module))
    else:  # an object may have been made of a class that is written elsewhere
        found = _frameworks(module)
        if not (found or is_handed):
            found = _frameworks(sys.modules.get(type(fn).__module__))
    if len(found) > 1:
        raise InvalidCase(
            f"{written} imports {' and '.join(found)}: say which one is meant with --backend."
        )
    return found[0] if found else "numpy"


def _frameworks(module: ModuleType | None) -> list[str]:
    """The frameworks that a module imports."""
    return sorted({FRAMEWORK_OF[root] for root in _imports(module) if root in FRAMEWORK_OF})


def _imports(module: ModuleType | None) -> set[str]:
    """The packages that a module's source imports; none where there is no source."""
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py":
        return set()
    roots = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.partition(".")[0])
    return roots
