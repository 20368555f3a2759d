"""Real sockets for every test: upstreams made with aiohttp or by hand, and a proxy in front of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web

from moorage.guard.headers import TrustedProxies
from moorage.metrics import Metrics
from moorage_gateway.forward.upstream import Upstream, open_clients
from moorage_gateway.proxy import Proxy, Target
from moorage_gateway.server import Server

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Edge:
    """A running proxy: its port and its one module."""

    port: int
    proxy: Proxy
    target: Target
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def raw(self, data: bytes, *, within: float = 5.0) -> bytes:
        """Send *data* on a fresh connection; everything that comes back until the proxy closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(within):
                return await reader.read()
        finally:
            writer.close()


class Net:
    """Starts servers and stops them again at the end of the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, handler: Handler) -> int:
        """An HTTP upstream; its port."""
        server = web.Server(handler, auto_decompress=False, handler_cancellation=True, access_log=None)
        return await self._stack.enter_async_context(_listening(server))

    async def serve_raw(self, handler: RawHandler) -> int:
        """An upstream that writes its own bytes; its port. The connection is closed when *handler* returns."""

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0)
        self._stack.push_async_callback(_stop, server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def proxy(self, port: int | None, *, timeout_s: float = 5.0, trusted: tuple[str, ...] = ()) -> Edge:
        """A proxy in front of *port*, whose module has its own guard."""
        upstream = Upstream("default/blog", f"http://127.0.0.1:{port}") if port is not None else None
        target = Target("default", "blog", upstream, timeout_s=timeout_s)
        clients = await self._stack.enter_async_context(open_clients())
        metrics = Metrics(module="blog", version="1", revision="r")
        proxy = Proxy(clients, lambda host, path: target, TrustedProxies(trusted), metrics)
        server = Server(proxy.handle)
        listening = await self._stack.enter_async_context(_listening(server))
        return Edge(listening, proxy, target, server)

    async def client(self) -> aiohttp.ClientSession:
        """A client without any cleverness of its own."""
        return await self._stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        )


@asynccontextmanager
async def _listening(server: web.Server) -> AsyncIterator[int]:
    runner = web.ServerRunner(server, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.port
    finally:
        await runner.cleanup()


async def _stop(server: asyncio.Server) -> None:
    server.close()


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)
