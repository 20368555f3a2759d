"""The deadline of a request: it holds, whatever the handler does with cancellation."""

import asyncio
from types import TracebackType
from typing import Final, Self

from moorage.errors import Timeout

_AGAIN_S: Final = 0.5


class Deadline:
    """A context around awaiting code that ends with `Timeout` when its time is over.

    Other than `asyncio.timeout` it cancels again and again, and a block that swallowed the cancellation and came
    to a result does not count: the result came too late. `check` says so where there is still something to roll
    back.

    Args:
        at: the event loop's time.
    """

    def __init__(self, at: float) -> None:
        self.at = at
        self._cancelled = 0
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object]

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._outer = task.cancelling()
        self._handle = asyncio.get_running_loop().call_at(self.at, self._expire)
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
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expire(self) -> None:
        self._cancelled += 1
        self._task.cancel()
        self._handle = asyncio.get_running_loop().call_later(_AGAIN_S, self._expire)
