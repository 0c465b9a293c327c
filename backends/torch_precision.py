"""What PyTorch rounds the operands of products in float32 to, where it was told that it may."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch

from xgradcheck._layout import DOUBLE, Operands

PRODUCTS = {
    "matmul": re.compile(r"_?(add|badd)?b?mm(_?activation)?|_?scaled_?dot_?product.*"),
    "conv": re.compile(r".*convolution.*"),
    "rnn": re.compile(r"_?cudnn_?rnn"),
}
"""The names of operators that multiply, by the switch that they heed; steps of a graph are called
after them.
"""
STEP = re.compile(r"backward\d*$")
TENSOR_CORES = 8
"""CUDA's compute capability from which on there is TF32."""


def switches() -> dict[str, str]:
    """What products in float32 on CUDA may be rounded to, whichever of its two ways of saying so
    torch was told in: asked in the other one, it refuses to answer.
    """
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    if hasattr(cudnn, "conv"):
        found = {"matmul": matmul, "conv": cudnn.conv, "rnn": cudnn.rnn}
        return {kind: str(switch.fp32_precision) for kind, switch in found.items()}
    allowed = {"matmul": matmul.allow_tf32, "conv": cudnn.allow_tf32, "rnn": cudnn.allow_tf32}
    return {kind: "tf32" if is_allowed else "ieee" for kind, is_allowed in allowed.items()}


def shortest(dtypes: Iterable[torch.dtype]) -> int:
    """The shortest significand among these, in bits."""
    kinds = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return min((1 - round(math.log2(torch.finfo(kind).eps)) for kind in kinds), default=DOUBLE)


def matmul_precision() -> str:
    """What torch was told of products of matrices, in the words that it was told in."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return switches()["matmul"]


def autocast_on(tensors: Iterable[Any]) -> torch.autocast:
    """Autocast to bfloat16 on the device of the first tensor."""
    found = (tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor))
    return torch.autocast(next(found, "cpu"), torch.bfloat16)


def bits_of_autocast(devices: Iterable[torch.device]) -> int:
    """The significand that autocast, where it is on, computes with on one of these devices."""
    kinds = {device.type for device in devices}
    on = [torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)]
    return shortest(on)


def bits_of_products(names: Iterable[str], devices: Iterable[torch.device]) -> int:
    """The shortest significand to which operators of these names, or steps of a graph, may round
    what they multiply, in float32 on these devices.
    """
    if not any(map(_has_tensor_cores, devices)):
        return DOUBLE
    told, plain = switches(), {STEP.sub("", name.lower()) for name in names}
    heeded = [told[kind] for kind, words in PRODUCTS.items() if any(map(words.fullmatch, plain))]
    return Operands.TF32 if "tf32" in heeded else DOUBLE


def _has_tensor_cores(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= TENSOR_CORES
