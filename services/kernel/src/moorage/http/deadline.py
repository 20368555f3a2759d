"""The deadline of a request: it holds, whatever the handler does with cancellation."""

import asyncio
import contextvars
from types import TracebackType
from typing import Final, Self

from moorage.errors import Timeout

_AGAIN_S: Final = 0.5
_TICK_S: Final = 0.01


class Timers:
    """One timer of the event loop for all deadlines of one loop that end within the same 10 ms.

    Nearly all of them are lifted long before. A timer for each took longer than to decide about the request.
    """

    def __init__(self) -> None:
        self._due: dict[int, tuple[set[Deadline], asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, deadline: "Deadline") -> int:
        """Let *deadline* expire at its time, up to a tick late; gives what `take` is told if it ends before."""
        tick = int(deadline.at / _TICK_S) + 1
        known = self._due.get(tick)
        if known is None:
            # In no request's context: it is not the timer of the one that happened to be first.
            timer = asyncio.get_running_loop().call_at(
                tick * _TICK_S, self._expire, tick, context=contextvars.Context()
            )
            known = self._due[tick] = set(), timer
        known[0].add(deadline)
        return tick

    def take(self, deadline: "Deadline", tick: int) -> None:
        """Let *deadline* not expire; a timer for which nobody waits ends."""
        due, timer = self._due[tick]
        due.discard(deadline)
        if not due:
            timer.cancel()
            del self._due[tick]

    def _expire(self, tick: int) -> None:
        for deadline in self._due.pop(tick)[0]:
            deadline.expire()


class Deadline:
    """A context around awaiting code that ends with `Timeout` when its time is over.

    Other than `asyncio.timeout` it cancels again and again, and a block that swallowed the cancellation and came
    to a result does not count: the result came too late. `check` says so where there is still something to roll
    back.

    Args:
        at: the event loop's time.
        timers: shared with others that need no more than their precision; ``None``: a timer of its own.
    """

    def __init__(self, at: float, timers: Timers | None = None) -> None:
        self.at = at
        self._timers = timers
        self._tick: int | None = None
        self._cancelled = 0
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object]

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._outer = task.cancelling()
        if self._timers is not None:
            self._tick = self._timers.add(self)
        else:
            self._handle = asyncio.get_running_loop().call_at(self.at, self.expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lift()
        left = self._outer
        for _ in range(self._cancelled):
            left = self._task.uncancel()
        if self._cancelled and left <= self._outer:
            raise Timeout from error

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return self._cancelled > 0

    def check(self) -> None:
        """Raise `Timeout` if the time is over."""
        if self._cancelled:
            raise Timeout

    def lift(self) -> None:
        """No longer limit anything; for answers that have begun and may take as long as they like."""
        if self._timers is not None and self._tick is not None:
            self._timers.take(self, self._tick)
            self._tick = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def expire(self) -> None:
        """The time is over: cancel the task, again and again until it has left."""
        self._tick = None
        self._cancelled += 1
        self._task.cancel()
        self._handle = asyncio.get_running_loop().call_later(_AGAIN_S, self.expire)
