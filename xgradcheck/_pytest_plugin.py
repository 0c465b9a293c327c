"""pytest: the fixture ``gradcheck``, and ``--xgradcheck-seed``."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xgradcheck._report import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xgradcheck", "gradient checks")
    group.addoption(
        "--xgradcheck-seed",
        type=int,
        default=0,
        metavar="SEED",
        help="seed of every check made through the fixture gradcheck (default: 0)",
    )


@pytest.fixture
def gradcheck(request: pytest.FixtureRequest) -> "Callable[..., Report]":
    """``xgradcheck.check`` with the seed of ``--xgradcheck-seed`` and the test's name as its
    title.
    """
    # Imported on use: a test run that checks no gradient does not pay for NumPy.
    from xgradcheck._check import check

    @functools.wraps(check)
    def checked(*args: Any, **options: Any) -> "Report":
        __tracebackhide__ = True
        options.setdefault("seed", request.config.getoption("--xgradcheck-seed"))
        options.setdefault("name", request.node.name)
        return check(*args, **options)

    return checked
