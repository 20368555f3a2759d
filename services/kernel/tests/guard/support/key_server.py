"""An issuer that publishes its keys: a real HTTP server on loopback, which does what the test says."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from moorage.guard import tokens

PATH = "/.well-known/jwks.json"


class KeyServer:
    """Serves `keys` at `address`, unless `answer` does it; `asked` counts the requests that came."""

    def __init__(self, *keys: bytes) -> None:
        self.keys: list[dict[str, Any]] = [dict(tokens.public_jwk(key)) for key in keys]
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.asked = 0
        self.headers: list[dict[str, str]] = []
        self.gate: asyncio.Event | None = None
        """If there is one, every answer waits for it."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await self._listen(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port)
        await self._site.start()
        self.port = self._site.port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    async def stop(self) -> None:
        """Refuse connections, until `again`."""
        await self._site.stop()

    async def again(self) -> None:
        await self._listen(self.port)

    def publish(self, *keys: bytes) -> None:
        """Let exactly these private keys' public halves be the set."""
        self.keys = [dict(tokens.public_jwk(key)) for key in keys]

    def says(self, body: bytes | str, status: int = 200, **headers: str) -> None:
        """Answer with this from now on."""

        async def answer(_: web.Request) -> web.StreamResponse:
            raw = body if isinstance(body, bytes) else body.encode()
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(body=raw, status=status, headers=named)

        self.answer = answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self.headers.append(dict(request.headers))
        if self.gate is not None:
            await self.gate.wait()
        if self.answer is not None:
            return await self.answer(request)
        if request.path != PATH:
            return web.Response(status=404)
        return web.Response(text=json.dumps({"keys": self.keys}), content_type="application/jwk-set+json")
