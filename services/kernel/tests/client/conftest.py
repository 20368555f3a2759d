"""A server that fails in every way that servers fail, and clients of it."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from moorage.client.calls import Caller, Target
from moorage.client.client import Client, Clients, states
from moorage.client.identity import Identity, OwnToken
from moorage.client.observed import Counts
from moorage.client.targets import Registry
from moorage.config.settings import Client as ClientSettings
from moorage.metrics import Metrics
from moorage.tracing import NullTracer

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Faulty:
    """Answers as `answer` says, and remembers what came."""

    url: str = ""
    answer: Answering | None = None
    seen: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    now: int = 0
    most: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            self.bodies.append(await request.read())
            assert self.answer is not None
            return await self.answer(request)
        finally:
            self.now -= 1

    @property
    def methods(self) -> Counter[str]:
        return Counter(request.method for request in self.seen)

    # -- ways to answer

    def json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(value, status=status, headers=headers)

        self.answer = answer

    def error(self, status: int, code: str = "broken", headers: dict[str, str] | None = None) -> None:
        body = {"error": {"code": code, "message": "No.", "details": {"why": "so"}, "request_id": "r"}}
        self.json(body, status, headers)

    def silent(self) -> None:
        """The connection stays open and nothing ever comes."""

        async def answer(request: web.Request) -> web.Response:
            await self.stopping.wait()
            return web.Response()

        self.answer = answer

    def resets(self) -> None:
        """The connection is reset instead of an answer."""

        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.answer = answer

    def truncated(self) -> None:
        """Fewer bytes come than were announced."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"half": ')
            assert request.transport is not None
            request.transport.close()
            return response

        self.answer = answer

    def dripping(self, seconds: float) -> None:
        """The head comes at once, the body byte by byte."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            try:
                for _ in range(1000):
                    await response.write(b" ")
                    await asyncio.sleep(seconds)
            except ConnectionResetError:
                pass
            return response

        self.answer = answer

    def slow(self, seconds: float, value: object = "late") -> None:
        async def answer(request: web.Request) -> web.Response:
            await asyncio.sleep(seconds)
            return web.json_response(value)

        self.answer = answer

    def in_turn(self, *answers: Callable[[], None]) -> None:
        """Each request is answered as the next one says; the last one stays."""
        made: list[Answering] = []
        for one in answers:
            one()
            assert self.answer is not None
            made.append(self.answer)

        async def answer(request: web.Request) -> web.StreamResponse:
            return await (made.pop(0) if len(made) > 1 else made[0])(request)

        self.answer = answer


@pytest.fixture
async def server() -> AsyncIterator[Faulty]:
    faulty = Faulty()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", faulty.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1000)
    await site.start()
    faulty.url = f"http://127.0.0.1:{site.port}"
    yield faulty
    faulty.stopping.set()
    await runner.cleanup()


@dataclass
class Kit:
    """A process's clients with what is behind them."""

    clients: Clients
    caller: Caller
    targets: dict[str, Target]
    metrics: Metrics

    @property
    def shop(self) -> Client:
        return self.clients("shop")

    @property
    def target(self) -> Target:
        return self.targets["default/shop"]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


Open = Callable[..., Kit]


@pytest.fixture
async def connect(server: Faulty, tmp_path: Path) -> AsyncIterator[Open]:
    """``connect(retries=0)``: clients with these settings; the module ``shop`` is the faulty server."""
    async with AsyncExitStack() as stack:

        def make(
            url: str | None = None, identity: Identity | None = None, tracer: Any = None, **settings: Any
        ) -> Kit:
            registry = f'{{"default/shop": "{url or server.url}"}}'
            given = ClientSettings(registry=registry, token_file=str(tmp_path / "token"), **settings)
            metrics = Metrics(module="m", version="1", revision="")
            targets: dict[str, Target] = {}
            caller = Caller(
                given,
                places=Registry(registry),
                identity=identity or OwnToken(Path(given.token_file)),
                counts=Counts(metrics, lambda: states(targets)),
                tracer=tracer or NullTracer(),
            )
            stack.push_async_callback(caller.close)
            clients = Clients(caller, targets, namespace="default", core_namespace="moorage-system")
            return Kit(clients, caller, targets, metrics)

        yield make


@pytest.fixture
def nobody() -> str:
    """An address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
