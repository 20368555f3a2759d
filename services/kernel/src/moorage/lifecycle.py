"""The life of a process: waiting for what it needs, being asked to stop, and an end that comes in time."""

import asyncio
import contextlib
import faulthandler
import gc
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final

import structlog

log = structlog.get_logger("moorage.lifecycle")

_CANCEL_S: Final = 0.25
"""Seconds for something that was cancelled to notice."""
_LEAST_S: Final = 0.05
_AFTER_DEADLINE_S: Final = 1.0


def settle() -> None:
    """Take what a process holds once it has started out of the sight of the collector of cycles.

    It stays until the end, and to look at all of it again and again held up one request in a hundred for some 30 ms.
    What is freed by its last reference still is.
    """
    gc.collect()
    gc.freeze()


class Stop:
    """SIGTERM and SIGINT. The first one sets `asked`; any further one ends the grace period.

    To be made in the running event loop; it takes both signals over at once.

    Args:
        deadline: seconds after the first signal in which the process has to have ended (`exit_at_the_latest`);
            ``None``: somebody else sees to it.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.asked = asyncio.Event()
        self._hurry = asyncio.Event()
        self._deadline = deadline
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
            # The loop is woken by the signal itself; this runs even while code blocks the loop.
            signal.signal(number, self._at_once)

    def _at_once(self, number: int, frame: object) -> None:
        if self._deadline is not None:
            exit_at_the_latest(self._deadline)
            self._deadline = None

    def _on_signal(self, number: signal.Signals) -> None:
        (self._hurry if self.asked.is_set() else self.asked).set()
        log.info("stopping", signal=number.name)

    async def grace(self, seconds: float) -> None:
        """Go on for *seconds*, in which everybody learns that this process is no longer ready."""
        if not seconds:
            return
        log.info("draining", grace_s=seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()


@dataclass
class Countdown:
    """The time for a whole shutdown, shared by its steps; it runs from `begin` on."""

    total: float
    _end: float | None = None

    def begin(self) -> None:
        """Let it run; a second call changes nothing."""
        if self._end is None:
            self._end = time.monotonic() + self.total

    @property
    def left(self) -> float:
        """Seconds that are left; never negative."""
        return self.total if self._end is None else max(0.0, self._end - time.monotonic())


@dataclass
class Backoff:
    """Pauses between attempts: growing by half, never more than *longest* seconds, each with some chance in it, so
    that many processes that wait for the same thing do not ask at the same moment.
    """

    first: float = 0.2
    longest: float = 5.0
    _pause: float = field(default=0.0)

    def next(self) -> float:
        """Seconds to wait now."""
        self._pause = min(self.longest, self._pause * 1.5 if self._pause else self.first)
        return self._pause * random.uniform(0.7, 1.0)  # noqa: S311 - no secret


async def wait_for(
    name: str,
    attempt: Callable[[], Awaitable[None]],
    waiting: Callable[[str, str], None],
    *,
    worth: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError),
    backoff: Backoff | None = None,
) -> None:
    """Call *attempt* until it succeeds, and say meanwhile for what is waited.

    Args:
        waiting: is told *name* and why, or an empty text at the end; `Health.waiting`.
        worth: errors that pass with time; any other one is raised.
    """
    pauses = backoff or Backoff()
    told = ""
    while True:
        try:
            await attempt()
        except worth as exc:
            why = str(exc) or type(exc).__name__
            waiting(name, why)
            if why != told:
                log.warning("waiting for a dependency", name=name, why=why)
                told = why
            await asyncio.sleep(pauses.next())
        else:
            waiting(name, "")
            if told:
                log.info("dependency is there", name=name)
            return


class Held:
    """Something that is open while the process serves, in a task of its own.

    Of its own, because what opens must close in the same task (cancel scopes, task groups), and because one that hangs
    while it closes can then be left behind without keeping the others from closing.
    """

    def __init__(self, name: str, opening: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self.name = name
        self._opening = opening
        self._open = asyncio.Event()
        self._leave = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open it; raises what opening raises. If the caller is cancelled meanwhile, so is the opening."""
        self._task = asyncio.create_task(self._run(), name=f"holding {self.name}")
        opened = asyncio.create_task(self._open.wait())
        try:
            await asyncio.wait({self._task, opened}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._cancel(self._task)
            raise
        finally:
            opened.cancel()
        if self._task.done():
            self._task.result()

    async def close(self, seconds: float) -> bool:
        """Close it within about *seconds*; False: it did not close in time, and was left behind."""
        assert self._task is not None
        self._leave.set()
        await asyncio.wait({self._task}, timeout=max(seconds, _LEAST_S))
        if self._task.done() or await self._cancel(self._task):
            self._report(self._task)
            return not self._task.cancelled()
        log.error("a part did not close, and is left behind", part=self.name)
        return False

    async def _run(self) -> None:
        async with self._opening():
            self._open.set()
            await self._leave.wait()

    async def _cancel(self, task: asyncio.Task[None]) -> bool:
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)
        return task.done()

    def _report(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            log.error("a part did not close in time, and was cancelled", part=self.name)
        elif (error := task.exception()) is not None:
            log.error("a part failed to close", part=self.name, exc_info=error)


async def within(seconds: float, work: Awaitable[object], what: str) -> bool:
    """Wait for *work*, at most *seconds*; then cancel it and go on, even if it does not listen. False: it was late."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=max(seconds, _LEAST_S))
    late = not task.done()
    if late:
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)
        log.error("a step of the shutdown did not end in time", step=what)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        log.error("a step of the shutdown failed", step=what, exc_info=error)
    return not late


def exit_at_the_latest(seconds: float) -> None:
    """End this process with status 1 shortly after *seconds*, whatever it does then, and print where it was stuck.

    From a thread of the interpreter's, so that code which blocks the event loop cannot prevent it.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error to write to
        faulthandler.dump_traceback_later(seconds + _AFTER_DEADLINE_S, exit=True, file=sys.__stderr__)  # type: ignore[arg-type]
