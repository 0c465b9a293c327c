"""Checkers before the mistakes of real backward passes, class by class.

The mistakes, each with its right twin, are those of the tests.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _tables import Row
from jax.test_util import check_grads

from xgradcheck import audit, check

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import classes
import jax_classes

PLANTED = sorted(
    classes.PLANTED + jax_classes.PLANTED, key=lambda own: [*classes.MEANINGS].index(own.letter)
)
MODES: tuple[tuple[int, tuple[str, ...]], ...] = ((2, ("fwd", "rev")), (2, ("rev",)), (1, ("rev",)))
"""Orders and modes of check_grads, of which it gets the first that a right function allows."""

Judge = Callable[[Any, str], bool | None]
"""Whether a case is accepted; None where the judge has nothing to do with such."""


def our_check(case: Any, backend: str) -> bool:
    options = {name: value for name, value in case.options.items() if name != "shapes"}
    return bool(check(case.fn, *case.args, **options, backend=backend, raise_exception=False))


def our_audit(case: Any, backend: str) -> bool:
    return bool(audit(case.fn, *case.args, **case.options, backend=backend, raise_exception=False))


def in_float64(case: Any) -> tuple[Any, ...]:
    """Its arguments as torch's checkers want them."""
    floating = [
        arg for arg in case.args if isinstance(arg, torch.Tensor) and arg.is_floating_point()
    ]
    chosen = [arg for arg in floating if arg.requires_grad] or floating

    def cast(arg: Any) -> Any:
        if not any(arg is own for own in floating):
            return arg
        return arg.detach().double().clone().requires_grad_(any(arg is own for own in chosen))

    return tuple(map(cast, case.args))


def of_torch(checker: Callable[..., Any], **options: Any) -> Judge:
    def judge(case: Any, backend: str) -> bool | None:
        if backend != "torch":
            return None
        try:
            checker(case.fn, in_float64(case), **options)
        except Exception:
            return False
        return True

    return judge


def is_for_once(case: Any) -> bool:
    """Whether its backward pass refuses to be differentiated: to gradgradcheck that is a zero."""
    args = in_float64(case)
    outs = case.fn(*args)
    outs = outs if isinstance(outs, tuple) else (outs,)
    parts = [torch.ones_like(out).requires_grad_() for out in outs]
    leaves = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
    grads = torch.autograd.grad(outs, leaves, parts, create_graph=True, allow_unused=True)
    return any(type(grad.grad_fn).__name__ == "Error" for grad in grads if grad is not None)


def gradgradcheck(case: Any, backend: str) -> bool | None:
    if backend == "torch" and is_for_once(case):
        return None
    return of_torch(torch.autograd.gradgradcheck)(case, backend)


def opcheck(case: Any, backend: str) -> bool | None:
    if not isinstance(case.fn, torch.library.CustomOpDef):
        return None
    return of_torch(torch.library.opcheck)(case, backend)


def in_jax(case: Any) -> tuple[Callable[..., Any], list[Any]]:
    """A function of the floating arguments alone, and these, in float64."""
    args = [jnp.asarray(arg) for arg in case.args]
    own = [n for n, arg in enumerate(args) if jnp.issubdtype(arg.dtype, jnp.floating)]

    def fn(*leaves: Any) -> Any:
        given = dict(zip(own, leaves, strict=True))
        return case.fn(*(given.get(n, arg) for n, arg in enumerate(args)))

    return fn, [args[n].astype(jnp.float64) for n in own]


def grads_checked(case: Any, order: int, modes: tuple[str, ...]) -> bool | None:
    """Whether check_grads accepts it; None where it cannot be differentiated in this way."""
    with jax.enable_x64(True):
        try:
            check_grads(*in_jax(case), order, modes=modes)
        except AssertionError:
            return False
        except Exception:
            return None
    return True


def by_check_grads(planted: Any) -> str:
    if planted.backend != "jax":
        return "-"
    for order, modes in MODES:
        right = grads_checked(planted.right(), order, modes)
        if right is not None:
            return said(bool(grads_checked(planted.wrong(), order, modes)), right)
    return "-"


JUDGES: dict[str, Judge] = {
    "check": our_check,
    "audit": our_audit,
    "gradcheck": of_torch(torch.autograd.gradcheck),
    "fast": of_torch(torch.autograd.gradcheck, fast_mode=True),
    "gradgrad": gradgradcheck,
    "opcheck": opcheck,
}


def said(wrong: bool, right: bool) -> str:
    """What a judge comes to who accepts the wrong one, and the right one."""
    if right:
        return "accepted" if wrong else "caught"
    return "reversed" if wrong else "false"


def judged(planted: Any, judge: Judge) -> str:
    right = judge(planted.right(), planted.backend)
    return "-" if right is None else said(bool(judge(planted.wrong(), planted.backend)), right)


def row_of(planted: Any) -> Row:
    row: Row = {"class": planted.letter, "row": planted.row}
    row["in"] = "JAX" if planted.backend == "jax" else "torch"
    row["mistake"] = planted.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row |= {title: judged(planted, judge) for title, judge in JUDGES.items()}
        row["check_grads"] = by_check_grads(planted)
    return row


def caught(rows: list[Row]) -> Row:
    """Of how many mistakes each judge caught how many, and how many right twins it rejected."""
    total: Row = {"class": "", "row": "", "in": "", "mistake": f"caught of {len(rows)}"}
    for title in [*JUDGES, "check_grads"]:
        words = [row[title] for row in rows if row[title] != "-"]
        false = sum(word in ("false", "reversed") for word in words)
        more = f", {false} false" if false else ""
        total[title] = f"{words.count('caught')} / {len(words)}{more}"
    return total


def by_class() -> list[Row]:
    """Each mistake before each judge, and what they come to."""
    rows = [row_of(planted) for planted in PLANTED]
    return [*rows, caught(rows)]
