"""Something that one can do without, and how one finds out that it is away, and that it is back.

Each call has a short time. Some failures in a row, and it counts as away: nobody asks it any more, so nobody waits. A
task in the background tries it again and again, and when that succeeds everybody asks it again.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

FAILURES: Final = 3
"""So many in a row, and it counts as away."""
FIRST_PAUSE: Final = 0.25
"""Seconds until it is tried for the first time; each pause is twice as long as the one before."""
LONGEST_PAUSE: Final = 5.0


class Outage:
    """Whether one thing is away. Whoever asks it looks at `away` before, and says afterwards how it went.

    Args:
        name: of the task in the background.
        probe: tries it, within a time of its own, and does what has to be done before it is relied on again; raises if
            it is still away.
        lost: called with the reason when it begins to count as away.
        back: called with the seconds that it was away, when it does no longer.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[object]],
        *,
        lost: Callable[[str], object],
        back: Callable[[float], object],
    ) -> None:
        self._name = name
        self._probe = probe
        self._lost = lost
        self._back = back
        self._failures = 0
        self._recovery: asyncio.Task[None] | None = None
        self.why = ""
        """What the last failure was, for people; empty: all is well."""

    @property
    def away(self) -> bool:
        """Whether nobody should ask it at the moment."""
        return self._recovery is not None

    def worked(self) -> None:
        """It has answered."""
        self._failures = 0

    def failed(self, exc: Exception, *, answered: bool = False) -> None:
        """It has failed with *exc*; *answered*: it refused, and so is there."""
        self._note(exc)
        self._failures += not answered
        if self._failures >= FAILURES:
            self.leave_alone()

    def leave_alone(self) -> None:
        """Let it count as away until a probe succeeds."""
        if self._recovery is None:
            self._lost(self.why)
            self._recovery = asyncio.create_task(self._recover(), name=self._name)

    async def close(self) -> None:
        """End the task in the background; it counts as away from then on, if it did before."""
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery

    def _note(self, exc: Exception) -> None:
        self.why = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}".rstrip(": ")

    async def _recover(self) -> None:
        pause, began = FIRST_PAUSE, time.monotonic()
        while True:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, hides nothing
            try:
                await self._probe()
            except Exception as exc:  # noqa: BLE001 - whatever it is: giving up would mean to be without for ever
                self._note(exc)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                break
        self._failures = 0
        self.why = ""
        self._recovery = None
        self._back(time.monotonic() - began)
