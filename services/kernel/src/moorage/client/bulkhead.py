"""What one target may take of this process: so many calls at once, so many waiting, so many repeated."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final


class Full(Exception):  # noqa: N818 - it says how the bulkhead is
    """Too many wait already: whoever comes now would only wait in vain."""


class Bulkhead:
    """Places for calls to one target, so that a slow one does not take all of the process.

    Args:
        most: calls at once.
        waiting: calls that wait for a place, in the order in which they came; more are refused.
    """

    def __init__(self, *, most: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(most)
        self._most_waiting = waiting
        self.waiting = 0
        self.busy = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Take a place for the block; raises `Full` at once if there is none to wait for."""
        if self._places.locked():
            if self.waiting >= self._most_waiting:
                raise Full(f"{self.busy} calls under way, {self.waiting} waiting")
            self.waiting += 1
            try:
                await self._places.acquire()
            finally:
                self.waiting -= 1
        else:
            await self._places.acquire()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            self._places.release()


class RetryBudget:
    """How many retries the calls to one target have earned: an outage must not double the load that caused it.

    Each call earns *ratio* of a retry, a quiet target has up to *reserve* of them.
    """

    _RESERVE: Final = 10.0

    def __init__(self, ratio: float, reserve: float = _RESERVE) -> None:
        self._ratio = ratio
        self._reserve = reserve if ratio else 0.0
        self.left = self._reserve

    def earn(self) -> None:
        """Count a call."""
        self.left = min(self.left + self._ratio, self._reserve)

    def spend(self) -> bool:
        """Take one retry; False if there is none left."""
        if self.left < 1:
            return False
        self.left -= 1
        return True
