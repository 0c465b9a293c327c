"""A traced JAX program computed in float64, whatever it was traced in.

Where a function cannot be traced again in float64 (it casts to float32, its scan carries float32,
its whole numbers would grow too), the program of its trace still can be run in it: every operation
is the same, whole numbers and keys stay as they were, and floating numbers are wider. Operations
that look at the bits of a number get it in its own width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CALLS = {"call_jaxpr", "fun_jaxpr", "jaxpr"}
"""Where operations that only call a program keep it."""
CALLING = {
    "pjit",
    "jit",
    "closed_call",
    "core_call",
    "remat",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}
IN_THEIR_WIDTH = {
    "bitcast_convert_type",
    "nextafter",
    "pallas_call",
    "pure_callback",
    "io_callback",
    "ffi_call",
    "reduce_precision",
    "rng_uniform",
    "random_gamma",
}
SCATTERS = {
    f"scatter{sign}{kind}": getattr(lax, f"scatter_{kind}")
    for kind in ("add", "sub", "mul", "min", "max")
    for sign in "-_"
    if hasattr(lax, f"scatter_{kind}")  # one came later than the others
} | {"scatter": lax.scatter}


def wide(dtype: Any) -> Any:
    """The dtype that stands in for one below float64; others stand for themselves."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:  # that of a key
        return dtype
    if jnp.issubdtype(found, jnp.complexfloating):
        return jnp.dtype("complex128")
    return jnp.dtype("float64") if jnp.issubdtype(found, jnp.floating) else found


def widened(value: Any) -> Any:
    """A value in the dtype that stands in for its own."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or wide(dtype) == dtype:
        return value
    return lax.convert_element_type(value, wide(dtype))


def evaluate(program: Any, *args: Any) -> list[Any]:
    """What a closed program gives for arguments that are wide."""
    return _evaluated(program.jaxpr, program.consts, args)


def _evaluated(program: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = {}

    def read(var: Any) -> Any:
        return _as_traced(var.val, var) if hasattr(var, "val") else known[var]

    known.update({v: _as_traced(c, v) for v, c in zip(program.constvars, consts, strict=True)})
    known.update(zip(program.invars, args, strict=True))
    for step in program.eqns:
        outs = _step(step, [read(var) for var in step.invars])
        known.update(zip(step.outvars, outs, strict=True))
    return [read(var) for var in program.outvars]


def _as_traced(value: Any, var: Any) -> Any:
    """A number or array of the program, of the dtype that it was traced with, then widened."""
    is_plain = not isinstance(value, jax.Array)
    return widened(np.asarray(value, var.aval.dtype) if is_plain else value)


def _step(step: Any, given: list[Any]) -> Sequence[Any]:
    name, params = step.primitive.name, step.params
    if name in STEPS:
        return STEPS[name](params, given)
    if name in CALLING:
        inner = next(params[key] for key in CALLS if key in params)
        return _called(inner, given)
    if name in SCATTERS and not (name == "scatter" and _computes(params["update_jaxpr"])):
        kept = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [SCATTERS[name](*given, **{key: params[key] for key in kept})]
    if name in IN_THEIR_WIDTH or name == "scatter":
        narrow = [
            value if value.dtype == var.aval.dtype else value.astype(var.aval.dtype)
            for value, var in zip(given, step.invars, strict=True)
        ]
        outs = _bound(step, narrow, params)
        return [widened(out) for out in outs]
    return _bound(step, given, {key: _wide_parameter(value) for key, value in params.items()})


def _computes(update: Any) -> bool:
    """Whether a scatter does more than to put its updates in place."""
    inner = getattr(update, "jaxpr", update)
    return inner is not None and bool(inner.eqns)


def _bound(step: Any, given: list[Any], params: dict[str, Any]) -> Sequence[Any]:
    outs = step.primitive.bind(*given, **params)
    return outs if step.primitive.multiple_results else [outs]


def _wide_parameter(value: Any) -> Any:
    if hasattr(value, "accumulation_type"):
        return None  # an algorithm that rounds its operands first, whatever they are
    is_dtype = isinstance(value, np.dtype) or (
        isinstance(value, type) and issubclass(value, np.generic)
    )
    return wide(value) if is_dtype else value


def _called(inner: Any, given: Sequence[Any]) -> list[Any]:
    if hasattr(inner, "consts"):
        return evaluate(inner, *given)
    return _evaluated(inner, (), given)


def _scanned(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    if "ft_in" in params:  # since JAX 0.11
        fixed, start, along = map(list, params["ft_in"].update(given).unpack())
    else:
        consts, carried = params["num_consts"], params["num_carry"]
        fixed, start = given[:consts], given[consts : consts + carried]
        along = given[consts + carried :]

    def body(state: Any, rows: Any) -> Any:
        outs = _called(params["jaxpr"], [*fixed, *state, *rows])
        return outs[: len(start)], outs[len(start) :]

    state, rows = lax.scan(
        body,
        list(start),
        list(along),
        length=params["length"],
        reverse=params["reverse"],
    )
    return [*state, *rows]


def _while(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    tested, moved = params["cond_nconsts"], params["body_nconsts"]
    test, move = given[:tested], given[tested : tested + moved]

    def goes_on(state: Sequence[Any]) -> Any:
        return _called(params["cond_jaxpr"], [*test, *state])[0]

    def body(state: Sequence[Any]) -> list[Any]:
        after, goes = _called(params["body_jaxpr"], [*move, *state]), goes_on(state)
        if not goes.ndim:
            return after
        # In a batch each example stops by itself.
        shaped = [goes.reshape(goes.shape + (1,) * (new.ndim - goes.ndim)) for new in after]
        return [jnp.where(*part) for part in zip(shaped, after, state, strict=True)]

    found: Sequence[Any] = lax.while_loop(
        lambda state: jnp.any(goes_on(state)), body, list(given[tested + moved :])
    )
    return found


def _solved(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    """The solution of a linear system, by the program that is given for it."""
    lengths = params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    whole = before + lengths.solve + lengths.transpose_solve
    return _called(
        params["jaxprs"].solve, [*given[before : before + lengths.solve], *given[whole:]]
    )


def _reducer(params: dict[str, Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: tuple(_called(params["jaxpr"], [*a, *b]))


def _reduced(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    count = len(given) // 2
    found: Sequence[Any] = lax.reduce(
        tuple(given[:count]), tuple(given[count:]), _reducer(params), params["dimensions"]
    )
    return found


def _reduced_in_windows(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    count = len(given) // 2
    names = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    found: Sequence[Any] = lax.reduce_window(
        tuple(given[:count]),
        tuple(given[count:]),
        _reducer(params),
        *(params[name] for name in names),
    )
    return found


def _branched(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    branches = [
        lambda *args, branch=branch: tuple(_called(branch, args)) for branch in params["branches"]
    ]
    found: Sequence[Any] = lax.switch(given[0], branches, *given[1:])
    return found


def _converted(params: dict[str, Any], given: list[Any]) -> Sequence[Any]:
    (value,), dtype = given, wide(params["new_dtype"])
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        value = lax.real(value)  # which converting would do too, with a warning
    return [lax.convert_element_type(value, dtype)]


STEPS: dict[str, Callable[[dict[str, Any], list[Any]], Sequence[Any]]] = {
    "scan": _scanned,
    "while": _while,
    "cond": _branched,
    "convert_element_type": _converted,
    "custom_linear_solve": _solved,
    "reduce": _reduced,
    "reduce_window": _reduced_in_windows,
}
