"""Arguments from files. A file is data: nothing in it is unpickled."""

import itertools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xgradcheck._adapters import adapter
from xgradcheck._errors import InvalidCase, lacks, short
from xgradcheck._tree import positional_parameters

ENDINGS = (".npz", ".pt", ".pth", ".safetensors")
SAFE_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BF16": "uint16",
}  # fmt: skip


@dataclass(slots=True)
class Spread:
    """The arrays of one file as several arguments."""

    positional: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)


def is_file(text: str) -> bool:
    """Whether a word is a file of arrays, or one array of it."""
    return text.endswith(ENDINGS) or is_part(text)


def is_part(text: str) -> bool:
    """Whether a word is one array of a file: ``point.npz:W1``."""
    return any(f"{ending}:" in text for ending in ENDINGS)


def part_of(text: str, folder: Path, backend: str) -> Any:
    """One array of a file."""
    path, _, key = text.rpartition(":")
    arrays = read(folder / path, backend)
    if not isinstance(arrays, Mapping):
        raise InvalidCase(f"{path} has no names: write {path}, without {key!r}.")
    if key not in arrays:
        raise InvalidCase(f"{path} has no array {key!r}; it has {', '.join(map(str, arrays))}.")
    return arrays[key]


def spread(arrays: Any, fn: Any, is_first: bool) -> Any:
    """What a file holds as arguments: by the function's names, in order, or as one."""
    if isinstance(arrays, list | tuple):
        return Spread(positional=list(arrays))
    if not isinstance(arrays, Mapping):
        return arrays
    parameters = [parameter.name for parameter in positional_parameters(fn)]
    if arrays and set(arrays) <= set(parameters):
        leading = list(itertools.takewhile(arrays.__contains__, parameters)) if is_first else []
        named = {key: array for key, array in arrays.items() if key not in leading}
        return Spread([arrays[key] for key in leading], named)
    if arrays and all(f"arr_{number}" in arrays for number in range(len(arrays))):
        return Spread(positional=[arrays[f"arr_{number}"] for number in range(len(arrays))])
    return arrays


def read(path: Path, backend: str) -> Any:
    """What a file holds: a dict of arrays, or, of torch, also a list, one tensor, or a tree of
    dicts.
    """
    ending = path.suffix
    if ending not in ENDINGS:
        raise InvalidCase(f"{path} is no file of arrays: its name has to end in {_listed()}.")
    if not path.is_file():
        raise InvalidCase(f"there is no file {path}: {MADE_BY[ending]}.")
    # Torch reads for itself what other frameworks lack the dtypes for.
    if ending in (".pt", ".pth") or (ending == ".safetensors" and backend == "torch"):
        return adapter("torch").read_file(path, backend == "torch")
    return _read_npz(path) if ending == ".npz" else _read_safetensors(path)


MADE_BY = {
    ".npz": "save the point with numpy.savez",
    ".pt": "save the point with torch.save",
    ".pth": "save the point with torch.save",
    ".safetensors": "save the point with safetensors.numpy.save_file",
}


def _listed() -> str:
    return f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.lib.npyio.NpzFile):
                return {key: file[key] for key in file.files}
            reason = "it holds a single array"
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error)
    raise InvalidCase(f"{path} is no file of arrays ({reason}): write it with numpy.savez.")


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The arrays of the file; bfloat16, which NumPy lacks, as float32."""
    try:
        import safetensors
    except ModuleNotFoundError:
        raise lacks(str(path), "safetensors", "safetensors") from None
    try:
        found: Any = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidCase(
            f"{path} is no file of safetensors ({short(error)}): write it with "
            f"safetensors.numpy.save_file."
        ) from None
    # Sorted, since the package gives them in no order.
    return {name: _array(path, name, stored) for name, stored in sorted(found)}


def _array(path: Path, name: str, stored: Mapping[str, Any]) -> Any:
    dtype = SAFE_DTYPES.get(stored["dtype"])
    if dtype is None:
        raise InvalidCase(
            f"{name} in {path} is of dtype {stored['dtype']}, which NumPy lacks: convert it to F32."
        )
    array = np.frombuffer(stored["data"], np.dtype(dtype).newbyteorder("<")).astype(dtype)
    if stored["dtype"] == "BF16":
        # The upper half of a float32: nothing is rounded.
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(stored["shape"])
