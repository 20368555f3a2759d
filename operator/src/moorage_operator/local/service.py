"""One supervised process: started, probed until ready, restarted with backoff, stopped on demand."""

import asyncio
import contextlib
import enum
import time
from collections.abc import Awaitable, Callable
from typing import Final

from moorage_operator.local.launch import Launch
from moorage_operator.local.logs import Log
from moorage_operator.local.processes import Child, Zygote, ZygoteLostError

STOP_GRACE_S: Final = 30.0
"""What a pod has to shut down, as on a cluster."""
_PROBE_EVERY_S: Final = 0.05
_SLOW_PROBE_S: Final = 0.5
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_STABLE_AFTER_S: Final = 10.0
_OUTPUT_DRAIN_S: Final = 1.0

Probe = Callable[[], Awaitable[str | None]]
"""``None`` when the process is ready, else what is missing in a few words."""


class Phase(enum.StrEnum):
    """Where a service stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class StartError(Exception):
    """The process ended, or was not ready in time; the message holds the last lines it wrote."""


class Service:
    """Keeps one process running.

    *launch* is asked anew for every start, so that a changed port or environment counts. *say* gets one line
    per event that a person should notice; *changed* is called when a process started or ended.
    """

    def __init__(
        self,
        name: str,
        zygote: Zygote,
        launch: Callable[[], Launch],
        probe: Probe,
        log: Log,
        *,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        backoff_s: float = _BACKOFF_FIRST_S,
    ) -> None:
        self.name = name
        self.phase = Phase.STOPPED
        self.restarts = 0
        self._zygote = zygote
        self._launch = launch
        self._probe = probe
        self.log = log
        self._say = say
        self._changed = changed
        self._backoff_first_s = backoff_s
        self._child: Child | None = None
        self._output: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    async def start(self, timeout_s: float = 30.0) -> None:
        """Start it and wait until it is ready; then keep it running until `stop`.

        Raises `StartError` when the process ends or is not ready after *timeout_s*; it does not run then.
        """
        try:
            await self._start_once(timeout_s)
        except StartError:
            await self._end_child(STOP_GRACE_S)
            self.phase = Phase.FAILED
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop it (SIGTERM, after *grace_s* SIGKILL); idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end_child(grace_s)
        self.phase = Phase.STOPPED

    def kill(self) -> None:
        """SIGKILL, without waiting."""
        if self._child is not None:
            with contextlib.suppress(ZygoteLostError):
                self._child.signal(9)

    async def _start_once(self, timeout_s: float) -> None:
        self.phase = Phase.STARTING
        self.log.forget()
        try:
            child = self._child = await self._zygote.spawn(self._launch())
        except ZygoteLostError as lost:
            raise StartError(f"{self.name}: {lost}") from lost
        self._changed()
        self._output = asyncio.create_task(self.log.follow(child.output), name=f"output of {self.name}")
        ready = asyncio.create_task(self._until_ready())
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({ready, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ready, ended):
                task.cancel()
        if ended.done() and not ended.cancelled():
            await self._drain()
            raise StartError(self._report(f"{self.name} ended while starting ({_how(ended.result())})"))
        if not ready.done() or ready.cancelled():
            missing = await self._probe()
            raise StartError(self._report(f"{self.name} is not ready after {timeout_s:.0f} s: {missing}"))
        ready.result()
        self.phase = Phase.READY

    async def _until_ready(self) -> None:
        began = time.monotonic()
        while await self._probe() is not None:  # noqa: ASYNC110 - the state is another process's
            await asyncio.sleep(_PROBE_EVERY_S if time.monotonic() - began < 5 else _SLOW_PROBE_S)

    async def _keep(self) -> None:
        """Restart the process whenever it ends; waits longer after each failure in a row."""
        backoff = self._backoff_first_s
        while True:
            assert self._child is not None
            began = time.monotonic()
            code = await self._child.wait()
            await self._drain()
            self._changed()
            if time.monotonic() - began >= _STABLE_AFTER_S:
                backoff = self._backoff_first_s
            self._say(self._report(f"{self.name} ended ({_how(code)}); restart in {backoff:g} s"))
            while True:
                self.phase = Phase.RESTARTING
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _BACKOFF_MAX_S)
                self.restarts += 1
                try:
                    await self._start_once(30.0)
                except StartError as failed:
                    await self._end_child(STOP_GRACE_S)
                    self._say(f"{failed}\n  next attempt in {backoff:g} s")
                else:
                    self._say(f"{self.name} is ready again")
                    break

    async def _end_child(self, grace_s: float) -> None:
        if self._child is not None:
            with contextlib.suppress(ZygoteLostError):
                await self._child.stop(grace_s)
            await self._drain()
            self._child = None
            self._changed()

    async def _drain(self) -> None:
        """Take what the ended process wrote last; something else may hold its output open, hence bounded."""
        if self._output is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._output, _OUTPUT_DRAIN_S)
            self._output = None

    def _report(self, what: str) -> str:
        last = [] if self.log.shown else self.log.recent(8)
        return "\n    ".join([what + (", last lines:" if last else ""), *last])


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
