"""The strategy for property tests: its sizes and values find what one case does not."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from audited import function
from hypothesis import HealthCheck, Phase, given, settings

from xgradcheck import GradientMismatch, InvalidCase, check
from xgradcheck.strategies import arguments

# Found or not found: nothing is made smaller, and nothing is kept.
FEW = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def squared(block: int) -> Any:
    """A square whose backward pass handles whole blocks of rows."""

    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        return x**2 * w[:, None]

    def backward(ctx: Any, grad: Any) -> Any:
        x, w = ctx.saved_tensors
        of_x = 2 * x * w[:, None] * grad
        of_x[len(x) // block * block :] = 0
        return of_x, (x**2 * grad).sum(1)

    return function(forward, backward)


@pytest.mark.parametrize("block", [1, 8])
def test_a_tail_is_found(block: int) -> None:
    @FEW
    @given(arguments(("n", 3), ("n",), families=["normal"], backend="torch"))
    def run(args: tuple[Any, ...]) -> None:
        check(squared(block), *args)

    if block == 1:
        run()
    else:
        with pytest.raises(GradientMismatch):
            run()


@FEW
@given(arguments(("n", "d"), ("d",), (2,), blocks=(4,), dtype="float32", empty=True))
def test_names_stand_for_one_size(args: tuple[Any, ...]) -> None:
    x, w, two = args
    assert x.shape[1:] == w.shape and two.shape == (2,)
    assert {array.dtype for array in args} == {np.dtype("float32")}
    assert x.shape[0] in {0, 1, 2, 3, 4, 5, 7, 37}


HAVE: dict[str, Any] = {
    "ties": lambda x: len(np.unique(x)) <= 5,
    "offset": lambda x: abs(x - 1000).max() < 10,
    "zeros": lambda x: not x.any(),
    "dominated by one": lambda x: x.argmax() == 0,
}


@pytest.mark.parametrize("family", HAVE)
def test_families_have_the_values_that_they_say(family: str) -> None:
    @FEW
    @given(arguments((50,), families=[family]))
    def run(args: tuple[Any, ...]) -> None:
        assert HAVE[family](args[0])

    run()


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidCase, match="there is no family 'uniform'; they are normal, small"):
        arguments((3,), families=["uniform"])
    with pytest.raises(InvalidCase, match="there is no backend 'tf'"):
        arguments((3,), backend="tf")


@FEW
@given(arguments((3,), backend="torch"))
def test_a_backend_gives_its_own_arrays(args: tuple[Any, ...]) -> None:
    assert isinstance(args[0], torch.Tensor)


def test_the_library_itself_does_without_hypothesis() -> None:
    code = "import sys, xgradcheck; sys.exit('hypothesis' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
