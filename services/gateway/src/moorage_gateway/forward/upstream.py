"""Where requests go, and the one client that takes them there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from multidict import CIMultiDictProxy

# Seconds. An idle connection is dropped before the shortest keep-alive of usual servers (gunicorn: 2 s) ends,
# so that a request that must not be repeated hardly ever meets a connection that is just being closed.
POOL_IDLE_S: Final = 1.5
CONNECT_S: Final = 5.0
READ_BUFFER: Final = 1 << 16
MAX_HEADER_FIELD: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server behind the proxy: ``origin`` is scheme, host and port, ``name`` is what messages call it."""

    name: str
    origin: str


class UpgradeRefusedError(Exception):
    """The upstream answered a WebSocket handshake with another status than 101; the answer is readable."""

    def __init__(self, response: ClientResponse) -> None:
        super().__init__(f"answered {response.status} to a WebSocket handshake")
        self.response = response


class UpstreamSocket(aiohttp.ClientWebSocketResponse[bool]):
    """A WebSocket towards an upstream that still knows the fields of the handshake's answer."""

    @property
    def handshake_headers(self) -> "CIMultiDictProxy[str]":
        return self._response.headers


@dataclass(frozen=True, slots=True)
class Clients:
    """Two sessions on one pool of connections: ``http`` for requests, ``websocket`` for handshakes."""

    http: aiohttp.ClientSession
    websocket: aiohttp.ClientSession


async def _only_switching(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Client middleware: hand any answer but 101 to the caller instead of following or discarding it.

    ``ws_connect`` would follow redirects, which are the client's business, and lose the body of a refusal.
    """
    response = await handler(request)
    if response.status != 101:
        raise UpgradeRefusedError(response)
    return response


@asynccontextmanager
async def open_clients() -> AsyncIterator[Clients]:
    """The client side of the proxy: no cookies, no decompression, no proxies of the environment."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=POOL_IDLE_S, ttl_dns_cache=30)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)

    def session(**more: object) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=timeout,
            trust_env=False,
            read_bufsize=READ_BUFFER,
            max_line_size=MAX_HEADER_FIELD,
            max_field_size=MAX_HEADER_FIELD,
            **more,  # type: ignore[arg-type]  # the two sessions differ in one or two arguments
        )

    async with (
        connector,
        session() as http,
        session(middlewares=(_only_switching,), ws_response_class=UpstreamSocket) as websocket,
    ):
        yield Clients(http, websocket)
