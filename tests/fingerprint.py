"""Hashes of bytes, to prove that something is as it was: NaN equals itself, 0.0 differs from
-0.0.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn


def fingerprint(*things: Any) -> str:
    """One hash over the values, dtypes and shapes of all arrays, and over everything else that is
    plain.
    """
    hashed = hashlib.sha256()
    for part in _parts(things):
        hashed.update(part + b";")
    return hashed.hexdigest()


def _parts(thing: Any) -> Iterator[bytes]:
    if isinstance(thing, nn.Module):
        yield from _parts(thing.state_dict(keep_vars=True))
        yield from _parts([module.training for module in thing.modules()])
    elif isinstance(thing, torch.Tensor):
        yield from _parts((str(thing.dtype), tuple(thing.stride()), thing.requires_grad))
        yield from _parts(thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        yield from _parts((tuple(thing.shape), thing.grad if thing.is_leaf else None))
    elif isinstance(thing, np.ndarray | np.generic | jax.Array):
        values = np.asarray(thing)
        yield f"{values.dtype}{values.shape}".encode() + values.tobytes()
    elif isinstance(thing, np.random.Generator):
        yield from _parts(thing.bit_generator.state)
    elif isinstance(thing, Mapping):
        yield from _parts(list(thing.items()))
    elif isinstance(thing, list | tuple):
        yield f"{type(thing).__name__}{len(thing)}".encode()
        for child in thing:
            yield from _parts(child)
    elif dataclasses.is_dataclass(thing):
        yield from _parts(vars(thing))
    else:
        yield repr(thing).encode()
