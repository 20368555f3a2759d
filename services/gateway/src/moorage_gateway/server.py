"""The listening side: aiohttp's low-level server, and how it starts, drains and stops.

Low-level, because an `Application` would match the path a second time and parse what is only passed on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from moorage.config.settings import Admin, Settings
from moorage.config.settings import Server as ServerSettings
from moorage.health import Health
from moorage.http.server import Connection, Runner, listen
from moorage.lifecycle import Stop, settle
from moorage_gateway.proxy import Proxy

log = structlog.get_logger("moorage.gateway")

LINGER_S: Final = 5.0
"""Seconds for which the rest of a refused body is read away, so that the client gets to see the answer."""
MAX_LINE: Final = 8190
MAX_FIELDS: Final = 100
CLOSING_S: Final = 3.0
"""Seconds that open WebSockets have, at the end of a drain, to take leave with 1001."""
GRACE_S: Final = 5.0
"""Seconds in which endpoints and load balancers learn that a process is no longer ready."""


class Server(web.Server):
    """A server whose handlers are cancelled when their client goes away, so that the upstream is, too."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        idle_timeout: float = 75.0,
        linger_s: float = LINGER_S,
    ) -> None:
        self._options: dict[str, Any] = {
            "auto_decompress": False,
            "access_log": None,
            "keepalive_timeout": idle_timeout,
            "lingering_time": linger_s,
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
            "max_headers": MAX_FIELDS,
        }
        super().__init__(handler, handler_cancellation=True, **self._options)

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._options)


@dataclass(frozen=True, slots=True)
class Drain:
    """How long a stop takes: seconds still open though not ready, and seconds for what is being answered."""

    grace_s: float
    drain_s: float

    @classmethod
    def of(cls, settings: Settings, *, grace_s: float = GRACE_S) -> "Drain":
        """As `server.shutdown_grace` (else *grace_s*) and `server.shutdown_timeout` say; at once on a
        developer's machine.
        """
        server = settings.server
        if settings.development and server.shutdown_grace is None:
            return cls(0.0, 0.5)
        wanted = grace_s if server.shutdown_grace is None else server.shutdown_grace
        grace = min(wanted, server.shutdown_timeout)
        return cls(grace, max(server.shutdown_timeout - grace - CLOSING_S, 0.0))


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that serves."""

    port: int
    admin_port: int
    health: Health


@asynccontextmanager
async def serving(
    proxy: Proxy,
    health: Health,
    admin: web.Application,
    *,
    server: ServerSettings,
    admin_at: Admin,
    drain: Drain,
) -> AsyncIterator[Running]:
    """Listen for the length of the block, the admin port first; then drain. Raises `OSError`."""
    admin_runner = Runner(admin, idle_timeout=server.idle_timeout, shutdown_timeout=1.0)
    await admin_runner.setup()
    runner = web.ServerRunner(Server(proxy.handle, idle_timeout=server.idle_timeout), shutdown_timeout=0.5)
    try:
        admin_port = await listen(admin_runner, admin_at.host, admin_at.port)
        await runner.setup()
        port = await listen(runner, server.host, server.port)
        health.started = True
        log.info("serving", host=server.host, port=port, admin_port=admin_port)
        try:
            yield Running(port, admin_port, health)
        finally:
            health.draining = True
            await _drain(runner, proxy, drain.drain_s)
            await runner.cleanup()
    finally:
        await admin_runner.cleanup()


async def _drain(runner: web.ServerRunner, proxy: Proxy, drain_s: float) -> None:
    """Take no more connections, finish what is being answered, then take leave of open WebSockets."""
    for site in list(runner.sites):
        await site.stop()
    assert runner.server is not None
    runner.server.pre_shutdown()
    if await _idle(proxy, drain_s):
        return
    proxy.sockets.close_all()
    if not await _idle(proxy, CLOSING_S):
        log.warning("breaking off what did not end in time", requests=proxy.active)


async def _idle(proxy: Proxy, within: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            await proxy.idle.wait()
    return proxy.idle.is_set()


async def until_stopped(running: AbstractAsyncContextManager[Running], drain: Drain) -> None:
    """Run until SIGTERM or SIGINT: readiness goes off first, after the grace period the block ends.

    A second signal ends the grace period.
    """
    stop = Stop()
    async with running as server:
        settle()
        await stop.asked.wait()
        server.health.draining = True
        await stop.grace(drain.grace_s)
    log.info("stopped")
