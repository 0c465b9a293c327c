"""From words to the arguments of a function: ``f64[4,8]``, files and literals."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xgradcheck._adapters import adapter
from xgradcheck._cli_inputs import Spread, is_file, is_part, part_of, read, spread
from xgradcheck._errors import InvalidCase

DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "c128": "complex128", "c64": "complex64",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip
ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")
KEYWORD = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.+)", re.DOTALL)


def arguments(
    written: Sequence[Any],
    named: Mapping[str, Any],
    inputs: str | None,
    fn: Any,
    backend: str,
    seed: int,
    folder: Path,
    device: str | None,
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that these mean, on a device: text is a word of the command, anything else
    itself.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if inputs is not None:
        _add(args, kwargs, None, spread(read(folder / inputs, backend), fn, True))
    parts: list[tuple[str | None, Any]] = [(None, value) for value in written]
    parts += named.items()
    for number, (name, value) in enumerate(parts):
        keyword = KEYWORD.fullmatch(value) if isinstance(value, str) and name is None else None
        if keyword:
            name, value = keyword["name"], keyword["value"]
        rng = np.random.default_rng([seed, number])
        if isinstance(value, str) and is_file(value) and not is_part(value):
            value = spread(read(folder / value, backend), fn, not args)
        else:
            value = _mapped(value, str, partial(_one, rng=rng, folder=folder, backend=backend))
        _add(args, kwargs, name, value)
    own = adapter(backend).from_numpy
    # NumPy's arrays become those of the framework.
    made = _mapped(args, np.ndarray, own), _mapped(kwargs, np.ndarray, own)
    return made if device is None else _on_device(made, device, backend)


def _on_device(contents: Any, device: str, backend: str) -> Any:
    if backend != "torch":
        why = {"jax": "JAX has a default device, which JAX_PLATFORMS chooses"}
        raise InvalidCase(
            f"--device is for PyTorch: {why.get(backend, 'arrays of NumPy lie on the CPU')}."
        )
    return adapter(backend).on_device(contents, device)


def _add(args: list[Any], kwargs: dict[str, Any], name: str | None, value: Any) -> None:
    if isinstance(value, Spread):
        args += value.positional
        kwargs |= value.named
    elif name is None:
        args.append(value)
    else:
        kwargs[name] = value


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A value with what is of this kind changed, in the dicts and lists that cases may nest too."""
    if isinstance(value, kind):
        return change(value)
    if type(value) is dict:
        return {key: _mapped(part, kind, change) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(part, kind, change) for part in value)
    return value


def _one(text: str, rng: np.random.Generator, folder: Path, backend: str) -> Any:
    if is_part(text):
        return part_of(text, folder, backend)
    if is_file(text):
        return read(folder / text, backend)
    if (array := ARRAY.fullmatch(text)) is not None:
        return _drawn(text, array, rng, backend)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise InvalidCase(
            f"{text!r} is no argument: write an array as f64[4,8] or i64[4]<10, a file as "
            f"point.npz, or a literal."
        ) from None


def _drawn(text: str, array: re.Match[str], rng: np.random.Generator, backend: str) -> Any:
    written = array["dtype"]
    dtype = DTYPES.get(written, written)
    if dtype not in DTYPES.values():
        raise InvalidCase(f"{text!r} has an unknown dtype; the dtypes are {', '.join(DTYPES)}.")
    shape = tuple(int(extent) for extent in array["shape"].replace(" ", "").split(",") if extent)
    is_bfloat16 = dtype == "bfloat16"
    if is_bfloat16 and backend == "numpy":
        raise InvalidCase(f"{text!r} is for PyTorch and JAX: NumPy has no bfloat16.")
    kind = np.dtype("float32" if is_bfloat16 else dtype)
    if kind.kind in "iub":
        below = int(array["below"] or 2)
        if below < 1:
            raise InvalidCase(f"{text!r} has no integer to draw: give a bound of 1 or more.")
        if kind.kind != "b" and below - 1 > (largest := np.iinfo(kind).max):
            raise InvalidCase(f"{text!r}: {dtype} holds no integers above {largest}.")
        return rng.integers(below, size=shape).astype(kind)
    if array["below"]:
        raise InvalidCase(f"{text!r}: only integers have a bound.")
    values = rng.standard_normal(shape)
    drawn = np.asarray(
        values + 1j * rng.standard_normal(shape) if kind.kind == "c" else values, dtype=kind
    )
    own = adapter(backend)
    return own.cast(own.from_numpy(drawn), dtype) if is_bfloat16 else drawn
