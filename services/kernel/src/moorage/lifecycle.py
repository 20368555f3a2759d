"""Being asked to stop: what every long-running process of the platform does with its signals."""

import asyncio
import contextlib
import signal

import structlog

log = structlog.get_logger("moorage.lifecycle")


class Stop:
    """SIGTERM and SIGINT. The first one sets `asked`; any further one ends the grace period.

    To be made in the running event loop; it takes both signals over at once.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

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
