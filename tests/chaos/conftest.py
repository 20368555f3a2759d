"""`--long` for the tests that take minutes."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the long form be chosen."""
    parser.addoption(
        "--long", action="store_true", help="minutes of chaos and a soak instead of a short round"
    )
    parser.addoption("--seed", type=int, default=None, help="of the chaos; as an earlier run has printed it")
