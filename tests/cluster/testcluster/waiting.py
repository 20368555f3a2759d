"""Waiting for something to become true, with a reason when it does not."""

import time
from collections.abc import Callable
from typing import TypeVar


class TimedOutError(RuntimeError):
    """What was waited for did not come true; the message says what it was and what was seen last."""


T = TypeVar("T")


def until(
    what: str,
    probe: Callable[[], T | None],
    timeout: float,
    interval: float = 0.1,
    explain: Callable[[], str] | None = None,
) -> T:
    """Call `probe` until it returns something true, and return that.

    Exceptions of type OSError and RuntimeError count as "not yet". Raises TimedOutError after
    `timeout` seconds, with the last exception and with what `explain` adds.
    """
    deadline = time.monotonic() + timeout
    while True:
        problem: Exception | None = None
        try:
            if result := probe():
                return result
        except (OSError, RuntimeError) as error:
            problem = error
        if time.monotonic() >= deadline:
            seen = f"; last error: {problem}" if problem else ""
            more = f"\n{explain()}" if explain else ""
            raise TimedOutError(f"{what}: not within {timeout:.0f} s{seen}{more}") from problem
        time.sleep(interval)
