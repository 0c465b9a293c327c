"""pytest: the fixture ``gradcheck``, and ``--xgradcheck-seed``."""

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


class Checks:
    """``check`` when called, and ``audit``, with the seed and the title of one test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._seed = request.config.getoption("--xgradcheck-seed")
        self._name = request.node.name

    # Imported on use: a test run that checks no gradient does not pay for NumPy.
    def __call__(self, *args: Any, **options: Any) -> "Report":
        """``xgradcheck.check``, with the same arguments."""
        __tracebackhide__ = True
        from xgradcheck._check import check

        return check(*args, **self._own(options))

    def audit(self, *args: Any, **options: Any) -> "Report":
        """``xgradcheck.audit``, with the same arguments."""
        __tracebackhide__ = True
        from xgradcheck._audit import audit

        return audit(*args, **self._own(options))

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"seed": self._seed, "name": self._name} | options


@pytest.fixture
def gradcheck(request: pytest.FixtureRequest) -> Checks:
    """``xgradcheck.check`` with the seed of ``--xgradcheck-seed`` and the test's name as its title;
    ``gradcheck.audit`` is ``xgradcheck.audit``.
    """
    return Checks(request)
