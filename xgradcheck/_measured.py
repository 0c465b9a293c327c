"""What was measured: the runs of the backward pass under test, and the numerical gradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xgradcheck._adapters import Backward
from xgradcheck._as_run import Near
from xgradcheck._constraints import Tangent
from xgradcheck._generic import NearBy
from xgradcheck._judge import Tolerance
from xgradcheck._layout import DOUBLE, Vector
from xgradcheck._truth import Sweep, Truth

REVERSE, FORWARD = "reverse", "forward"
SMALLEST = {24: 2.0**-126, 11: 2.0**-24, 8: 2.0**-126}
"""What may be flushed to zero, by the bits of a format; of float16 only what it cannot hold."""


@dataclass(frozen=True, slots=True)
class Run:
    """The backward pass under test, and what its elements may err by on top of any allowance."""

    backward: Backward
    slack: Vector
    """By how much each element of the gradient varies from run to run."""
    rounding: Vector | float = 0.0
    """By how much rounding may have changed each element."""
    near: Near | None = None
    """The gradients at points near by; None where they were not asked for."""
    bits: int | None = None
    """The significant bits that it ran in, where it is judged as it runs, below float64."""
    given: int = DOUBLE
    """The significant bits that it was raised from."""
    mode: str = REVERSE
    grows: bool = False
    """Whether every run added as much to some element as the one before: this is not the first."""

    @property
    def excused(self) -> Vector:
        """What each element may err by; numbers that are not normal may be flushed to zero."""
        flushed = 0.0 if self.bits is None else SMALLEST[self.bits]
        return np.asarray(self.slack + self.rounding + flushed)


@dataclass(frozen=True, slots=True)
class Told:
    """What the calls of the function and of its backward pass told, whatever was differenced."""

    value: float
    spread: float
    """By how much phi varies from call to call at one point."""
    sigma: float
    """The rounding noise of phi there."""
    bits: int
    """The significant bits of the arithmetic that was differenced."""
    runs: Sequence[Run]
    rtol: float
    """What the first of these runs may err by, relative."""
    allowance: Tolerance
    """Of the last of these runs."""
    influence: Callable[[], float]
    """How much the elements of all leaves can do to phi, by the first of them."""
    near_by: NearBy
    held: list[str]
    refusals: int
    refusal: Exception | None
    unraised: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of the backward pass under test, and the numerical gradient."""

    spread: float
    """By how much phi varies from call to call at one point."""
    run: Run
    work: Sweep
    truth: Truth
    near_by: NearBy
    refusals: int
    refusal: Exception | None
    """How often the function raised beside the point, and what first."""
    spaces: Mapping[int, Tangent]
    """The tangent spaces of constrained leaves, by number."""
    held: list[str]
    """What the function changes whenever it runs, held still."""
    unraised: str = ""
    """Why the truth was not computed in float64, where the function runs below that."""
    order: int = 1
    """Of the derivative: at the second one the function that is differenced is the gradient."""
    is_constant: bool = False
    """Whether nothing but rounding moves phi."""

    @property
    def value(self) -> float:
        """phi at the point."""
        return self.work.value

    @property
    def backward(self) -> Backward:
        """What the backward pass gave."""
        return self.run.backward

    @property
    def allowance(self) -> Tolerance:
        """What error it is allowed."""
        return self.work.allowance

    @property
    def bits(self) -> int:
        """The significant bits of what was judged."""
        return min(self.truth.noise.bits, self.run.bits or DOUBLE)
