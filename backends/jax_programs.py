"""What a traced program tells of a function: its operations, its dtypes, what it does not read."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util

from xgradcheck._layout import DOUBLE, Operands

OPERANDS = {"BF16": 8, "F16": 11, "TF32": Operands.TF32, "F32": 24}
"""Significant bits of what an algorithm of ``jax.lax.DotAlgorithmPreset`` multiplies."""
PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")
SHORT = {
    ("gpu", "DEFAULT"): OPERANDS["TF32"],
    ("gpu", "HIGH"): OPERANDS["TF32"],
    ("tpu", "DEFAULT"): OPERANDS["BF16"],
    ("tpu", "HIGH"): OPERANDS["TF32"],
}
"""Significant bits of float32 in products, by platform and ``jax.lax.Precision``, where not all."""
TENSOR_CORES = 8
"""CUDA's compute capability from which on there is TF32."""


def _steps(program: Any) -> Iterator[Any]:
    """The operations of a program, and those of the programs inside of them."""
    for step in program.eqns:
        yield step
        for inner in tree_util.tree_leaves(list(step.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _steps(getattr(inner, "jaxpr", inner))


def calls_back(program: Any) -> bool:
    """Whether Python is called while the program runs."""
    return any("callback" in step.primitive.name for step in _steps(program))


def convolves(program: Any) -> bool:
    """Whether there are convolutions: a batch of kernels is slower than one after another."""
    return any(step.primitive.name == "conv_general_dilated" for step in _steps(program))


def rounds(program: Any) -> bool:
    """Whether floating numbers are rounded to a grid, or to whole ones."""
    for step in _steps(program):
        if step.primitive.name in ("ceil", "floor", "round"):
            return True
        if step.primitive.name == "convert_element_type":
            (given,), (made,) = step.invars, step.outvars
            is_floating = jnp.issubdtype(given.aval.dtype, jnp.floating)
            if is_floating and jnp.issubdtype(made.aval.dtype, jnp.integer):
                return True
    return False


def switches(program: Any) -> bool:
    """Whether truth values, or the signs of numbers, become numbers again."""
    for step in _steps(program):
        if step.primitive.name in ("sign", "select_n"):
            return True
        if step.primitive.name == "convert_element_type" and step.invars[0].aval.dtype == bool:
            return True
    return False


def unread(program: Any) -> frozenset[int]:
    """The arguments that no operation reads: JAX calls their gradient zero, others call it cut."""
    read = [*program.outvars, *(var for step in program.eqns for var in step.invars)]
    known = {id(var) for var in read}
    return frozenset(n for n, var in enumerate(program.invars) if id(var) not in known)


def bytes_computed(program: Any) -> int:
    """How much memory all that a program computes takes, each step of a loop in the place of the
    last.
    """
    outs = [var.aval for step in _steps(program) for var in step.outvars]
    shaped = [aval for aval in outs if hasattr(aval, "dtype")]
    return int(sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in shaped))


def lowest_bits(program: Any, arguments: Sequence[bool] | None = None) -> int:
    """The shortest significand that anything computed from the arguments has on its way;
    ``arguments`` tells which of the program's inputs count as such, by default all.
    """
    flags = [True] * len(program.invars) if arguments is None else arguments
    lowest = DOUBLE
    reached = {id(var) for var, flag in zip(program.invars, flags, strict=True) if flag}
    for step in program.eqns:
        given = [id(var) in reached for var in step.invars]
        if not any(given):
            continue
        lowest = min(lowest, _bits_of_operands(step))
        for var in step.outvars:
            dtype = getattr(var.aval, "dtype", None)
            # A comparison takes no derivative along.
            if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
                reached.add(id(var))
                lowest = min(lowest, int(jnp.finfo(dtype).nmant) + 1)  # type: ignore[no-untyped-call]
        for inner in tree_util.tree_leaves(list(step.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                inside: Any = getattr(inner, "jaxpr", inner)
                count = len(inside.invars)
                # Branches and loop bodies take the last of their step's inputs.
                own = given[-count:] if count <= len(given) else [True] * count
                lowest = min(lowest, lowest_bits(inside, own if count else []))
    return lowest


def _bits_of_operands(step: Any) -> int:
    """To how many bits a product rounds its operands by itself: no dtype in a program tells."""
    precision = step.params.get("precision")
    given = getattr(precision, "lhs_precision_type", None)
    if given is not None:
        return int(jnp.finfo(given).nmant) + 1  # type: ignore[no-untyped-call]
    if hasattr(precision, "accumulation_type"):
        # The presets are told apart by their names alone: BF16_BF16_F32, or BF16_BF16_F32_X3.
        operand, *_, last = precision.name.split("_")
        return OPERANDS.get("F32" if last.startswith("X") else operand, DOUBLE)
    if step.primitive.name not in PRODUCTS or step.invars[0].aval.dtype != jnp.float32:
        return DOUBLE
    both = precision if isinstance(precision, tuple) else (precision,)
    platform = _platform()
    return min(SHORT.get((platform, getattr(one, "name", "DEFAULT")), DOUBLE) for one in both)


def _platform() -> str:
    """What products are computed on; no GPU that knows no shorter float32."""
    config: Any = jax.config
    default = config.jax_default_device
    device = default if hasattr(default, "platform") else jax.devices(default)[0]
    # "9.0" of NVIDIA's; those of others are names.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    has_tf32 = major.isdecimal() and int(major) >= TENSOR_CORES
    return "cpu" if device.platform == "gpu" and not has_tf32 else str(device.platform)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
