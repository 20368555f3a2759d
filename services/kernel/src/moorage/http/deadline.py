"""The deadline of a request: it holds, whatever the handler does with cancellation."""

import asyncio
import contextvars
import logging
from functools import cached_property
from types import TracebackType
from typing import Final, Self

from moorage.errors import Timeout

logger = logging.getLogger("moorage.http")

_AGAIN_S: Final = 0.5
_TICK_S: Final = 0.01


class Deadlines:
    """What the deadlines of one event loop share: its clock, and one timer for all that may end up to 10 ms late.

    Nearly all of them are lifted long before. A timer for each took longer than to decide about the request; so this
    one is set for the first that may end, and when it comes looks who is left. It is for one loop, the first in which
    it is used.
    """

    def __init__(self) -> None:
        self._due: dict[int, set[Deadline]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tick = 0

    def __len__(self) -> int:
        return sum(map(len, self._due.values()))

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """That of all these; asked for once, since the answer costs a call of the system."""
        return asyncio.get_running_loop()

    def add(self, deadline: "Deadline") -> int:
        """Let *deadline* expire at its time, up to a tick late; gives what `take` is told if it ends before."""
        tick = int(deadline.at / _TICK_S) + 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            if self._timer is None or tick < self._tick:
                self._set(tick)
        due.add(deadline)
        return tick

    def take(self, deadline: "Deadline", tick: int) -> None:
        """Let *deadline* not expire."""
        due = self._due.get(tick)
        if due is None:
            return
        due.discard(deadline)
        if not due:
            del self._due[tick]  # the timer stays: it would be another one's soon

    def _set(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._tick = tick
        # In no request's context: it is not the timer of the one that happened to be first.
        self._timer = self.loop.call_at(tick * _TICK_S, self._expire, context=contextvars.Context())

    def _expire(self) -> None:
        self._timer = None
        # Not by the time alone: uvloop's clock has whole milliseconds, and may say that it is not quite there yet.
        now = max(self._tick, int(self.loop.time() / _TICK_S))
        due = [deadline for tick in list(self._due) if tick <= now for deadline in self._due.pop(tick)]
        if self._due:
            self._set(min(self._due))
        for deadline in due:
            try:
                deadline.expire()
            except Exception:  # what the code awaits may not let itself be cancelled
                logger.exception("a deadline cannot be kept")


class Deadline:
    """A context around awaiting code that ends with `Timeout` when its time is over.

    Other than `asyncio.timeout` it cancels again and again, and a block that swallowed the cancellation and came
    to a result does not count: the result came too late. `check` says so where there is still something to roll
    back.

    Args:
        at: the event loop's time.
        others: what it shares with those of the same loop.
        precise: whether it needs a timer of its own, which is not late.
    """

    __slots__ = ("_cancelled", "_handle", "_others", "_outer", "_precise", "_task", "_tick", "at")

    def __init__(self, at: float, others: Deadlines, *, precise: bool = False) -> None:
        self.at = at
        self._others = others
        self._precise = precise
        self._tick: int | None = None
        self._cancelled = 0
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object]

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._others.loop)
        assert task is not None
        self._task = task
        self._outer = task.cancelling()
        if self._precise:
            self._handle = self._others.loop.call_at(self.at, self.expire)
        else:
            self._tick = self._others.add(self)
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
        if self._tick is not None:
            self._others.take(self, self._tick)
            self._tick = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def expire(self) -> None:
        """The time is over: cancel the task, again and again until it has left."""
        self._tick = None
        self._cancelled += 1
        self._task.cancel()
        self._handle = self._others.loop.call_later(_AGAIN_S, self.expire)
