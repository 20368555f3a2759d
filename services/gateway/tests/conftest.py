"""Real sockets for every test: upstreams made with aiohttp or by hand, and a proxy in front of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from moorage.audit.port import auditing_of
from moorage.config import load
from moorage.guard import signing, tokens
from moorage.guard.headers import TrustedProxies
from moorage.guard.policy import BaseDocument, Issuer, PermissionPolicy, Rule
from moorage.metrics import Metrics
from moorage_gateway.forward.upstream import Upstream, open_clients
from moorage_gateway.proxy import Proxy, Target
from moorage_gateway.server import Running, Server

USER = UUID("3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11")
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
        auditing = auditing_of(load({}, environ={}), "blog", metrics)
        proxy = Proxy(clients, lambda host, path: target, TrustedProxies(trusted), metrics, auditing)
        server = Server(proxy.handle, linger_s=0.3)
        listening = await self._stack.enter_async_context(_listening(server))
        return Edge(listening, proxy, target, server)

    async def start(self, running: AbstractAsyncContextManager[Running]) -> Running:
        """Enter *running*, the context of a whole sidecar or gateway."""
        return await self._stack.enter_async_context(running)

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


class Policies:
    """Signs policies for one module, and tokens that they accept."""

    def __init__(self, folder: Path, *, namespace: str = "default", module: str = "blog") -> None:
        self.folder = folder
        self.namespace, self.module = namespace, module
        self._signing = signing.new_key()
        self._token_key = tokens.new_es256_key()
        self.jwks_uri: str | None = None
        """Where the users' issuer publishes that key; the document holds none then."""
        self._sequence = 0

    def write(self, *rules: Rule, grants: dict[str, list[str]] | None = None, **conditions: str) -> None:
        """Put a document with *rules* in force; *conditions* are by permission code, with `_` for dots."""
        self._sequence += 1
        codes = {rule.permission for rule in rules if rule.permission} | set((grants or {}).get("author", []))
        document = BaseDocument(
            namespace=self.namespace,
            module=self.module,
            sequence=self._sequence,
            issued_at="2027-01-15T08:00:00Z",
            issuers=[
                Issuer(
                    issuer="https://moorage.test",
                    audiences=["test"],
                    algorithms=["ES256"],
                    keys=[] if self.jwks_uri else [dict(tokens.public_jwk(self._token_key))],
                    subject="user",
                    jwks_uri=self.jwks_uri,
                )
            ],
            rules=list(rules),
            permissions={
                code: PermissionPolicy(condition=conditions.get(code.replace(".", "_"))) for code in codes
            },
            grants=grants or {},
        )
        signing.write_folder(self.folder, document, self._signing)

    def token(self, *roles: str, user: UUID = USER, tenant: str | None = None, lifetime_s: int = 900) -> str:
        """A user's access token."""
        return tokens.issue_user_token(
            self._token_key,
            issuer="https://moorage.test",
            audience="test",
            user_id=user,
            roles=roles,
            tenant_id=tenant,
            lifetime_s=lifetime_s,
        )

    def bearer(self, *roles: str, **more: Any) -> dict[str, str]:
        """The field that carries `token`."""
        return {"Authorization": f"Bearer {self.token(*roles, **more)}"}


@pytest.fixture
def policies(tmp_path: Path) -> Policies:
    return Policies(tmp_path / "policy")


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)
