"""A circuit breaker: a target that fails often is left alone, and tried carefully after a while.

Libraries were looked at (pybreaker, aiobreaker, purgatory): they count failures in a row, or since the last success,
and a busy target that fails every second call never opens them.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

State = Literal["closed", "open", "half_open"]

_SLOTS: Final = 10
_PROBES: Final = 3
"""Calls that are let through at once to try it, and that have to succeed in a row."""
_LONGEST_PAUSE: Final = 30.0


class Open(Exception):  # noqa: N818 - it says how the breaker is
    """The target is left alone; *retry_after* seconds from now it will be tried."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"left alone for {retry_after:.1f} s after too many failures")
        self.retry_after = retry_after


class Breaker:
    """Counts what happens to calls over a rolling window.

    Args:
        ratio: part of failed calls, from 0 to 1, at which it opens.
        calls: so many in the window before the ratio means anything.
        window: seconds looked back at.
        pause: seconds for which it is open at first; each time that the trial fails it is twice as long, up to 30 s.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        *,
        ratio: float,
        calls: int,
        window: float,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ratio = ratio
        self._calls = calls
        self._slot = window / _SLOTS
        self._pause = pause
        self._clock = clock
        self._slots: deque[list[int]] = deque()
        self._open_until = 0.0
        self._openings = 0
        self._era = 0
        self._trying = 0
        self._succeeded = 0
        self.state: State = "closed"

    def admit(self) -> "Permit":
        """Let a call through; the permit has to be told how it went.

        Raises:
            Open: it is left alone, or being tried by others.
        """
        if self.state == "open":
            left = self._open_until - self._clock()
            if left > 0:
                raise Open(left)
            self._turn("half_open")
        if self.state == "half_open":
            if self._trying + self._succeeded >= _PROBES:
                raise Open(self._pause / 10)
            self._trying += 1
        return Permit(self, self._era)

    def ended(self, era: int, good: bool | None) -> None:
        """Count a call of *era*; those that began before the state changed say nothing about now."""
        if era != self._era:
            return
        if self.state == "half_open":
            self._tried(good)
        elif good is not None:
            self._count(good)

    def _tried(self, good: bool | None) -> None:
        self._trying -= 1
        if good:
            self._succeeded += 1
            if self._succeeded >= _PROBES:
                self._openings = 0
                self._turn("closed")
        elif good is False:
            self._open()

    def _count(self, good: bool) -> None:
        slot = int(self._clock() / self._slot)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0, 0])
        while self._slots[0][0] <= slot - _SLOTS:
            self._slots.popleft()
        self._slots[-1][1 if good else 2] += 1
        if good:
            return
        failed = sum(one[2] for one in self._slots)
        total = failed + sum(one[1] for one in self._slots)
        if total >= self._calls and failed >= self._ratio * total:
            self._open()

    def _open(self) -> None:
        pause = min(self._pause * 2**self._openings, max(_LONGEST_PAUSE, self._pause))
        self._openings += 1
        # Spread, or all processes would try at the same moment.
        self._open_until = self._clock() + pause * random.uniform(0.8, 1.2)  # noqa: S311
        self._turn("open")

    def _turn(self, state: State) -> None:
        self.state = state
        self._era += 1
        self._trying = self._succeeded = 0
        self._slots.clear()


class Permit:
    """One call that was let through; only the first thing that it is told counts."""

    __slots__ = ("_breaker", "_era")

    def __init__(self, breaker: Breaker, era: int) -> None:
        self._breaker: Breaker | None = breaker
        self._era = era

    def succeeded(self) -> None:
        """The target works."""
        self._end(True)

    def failed(self) -> None:
        """The target does not work."""
        self._end(False)

    def dropped(self) -> None:
        """The call says nothing about the target: whoever made it gave up."""
        self._end(None)

    def _end(self, good: bool | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.ended(self._era, good)
