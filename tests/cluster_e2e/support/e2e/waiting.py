"""Waiting for what comes about by itself."""

import time
from collections.abc import Callable
from typing import Any

import pytest


def eventually(check: Callable[[], Any], what: str, timeout: float = 60, every: float = 0.3) -> Any:
    """Return the first true result of *check*; fails with its last one after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        last = check()
        if last:
            return last
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout} s; last seen: {last!r}")
        time.sleep(every)
