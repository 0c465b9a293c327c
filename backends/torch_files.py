"""Files of tensors: data alone, nothing in them is run."""

from pathlib import Path
from typing import Any

import torch

from xgradcheck._errors import InvalidCase, lacks, short


def read(path: Path, as_tensors: bool) -> Any:
    """What the file holds, its containers as they are; as NumPy arrays, unless tensors are asked
    for.
    """
    found = _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)
    return found if as_tensors else _arrays(found, path)


def _place() -> str | None:
    """Tensors of a GPU stay there where there is one."""
    return None if torch.cuda.is_available() else "cpu"


def _of_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location=_place(), weights_only=True)
    except Exception as error:  # of many kinds: each of its formats has its own
        lines = [line for line in str(error).splitlines() if "WeightsUnpickler error" in line]
        reason = lines[0].strip().partition(" was not an allowed")[0] if lines else short(error)
        reason = reason.partition(". ")[0].removeprefix("WeightsUnpickler error: ")
        raise InvalidCase(
            f"{path} is no file of tensors ({reason}): write tensors, or a dict or list of them, "
            f"with torch.save."
        ) from None


def _of_safetensors(path: Path) -> Any:
    try:
        import safetensors
        from safetensors.torch import load
    except ModuleNotFoundError:
        raise lacks(str(path), "safetensors", "safetensors") from None
    try:
        # Sorted, since the package gives them in no order.
        return dict(sorted(load(path.read_bytes()).items()))
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidCase(
            f"{path} is no file of safetensors ({short(error)}): write it with "
            f"safetensors.torch.save_file."
        ) from None


def _arrays(found: Any, path: Path) -> Any:
    if isinstance(found, torch.Tensor):
        tensor = found.detach().cpu()
        # NumPy lacks bfloat16, and float32 holds all of its numbers.
        tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
        try:
            return tensor.resolve_conj().resolve_neg().numpy()
        except TypeError:
            raise InvalidCase(
                f"{path} holds a tensor of {tensor.dtype}, which NumPy lacks: convert it with "
                f".float()."
            ) from None
    if isinstance(found, dict):
        return {key: _arrays(part, path) for key, part in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_arrays(part, path) for part in found)
    return found
