"""What does not even become a request, byte for byte."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from moorage import Model, Module
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]


class Thing(Model):
    name: str


@pytest.fixture
async def shop(serve: Serve) -> ModuleHarness:
    module = Module("shop")

    @module.handle("read")
    async def read() -> str:
        return "x"

    @module.handle("make")
    async def make(new: Thing) -> Thing:
        return new

    return await serve(
        module,
        [
            {"name": "read", "methods": ["GET"], "path": "/", "auth": "none"},
            {"name": "make", "methods": ["POST"], "path": "/things", "auth": "none"},
            {"name": "guarded", "methods": ["POST"], "path": "/guarded"},
        ],
        environ={"SERVER_READ_TIMEOUT": "300ms", "SERVER_IDLE_TIMEOUT": "300ms"},
    )


async def _send(shop: ModuleHarness, *parts: bytes) -> bytes:
    """Send *parts* and read until the server closes, or has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(shop.url.rpartition(":")[2]))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(65536), 5)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        (b"GET //x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        (b"GET /%2e%2e/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
    ],
)
async def test_what_is_no_good_request_gets_the_standard_error(
    shop: ModuleHarness, request_bytes: bytes, status: int
) -> None:
    head, _, body = (await _send(shop, request_bytes)).partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == str(status).encode(), head
    assert b"application/json" in head
    assert b"nosniff" in head
    assert set(json.loads(body)["error"]) == {"code", "message", "details", "request_id"}


async def test_a_body_that_does_not_come_is_408(shop: ModuleHarness) -> None:
    head = b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    answer = await _send(shop, head, b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_says_nothing_is_closed(shop: ModuleHarness) -> None:
    began = asyncio.get_running_loop().time()
    assert await _send(shop) == b""
    assert asyncio.get_running_loop().time() - began < 4


async def test_a_body_is_asked_for_only_where_it_is_wanted(shop: ModuleHarness) -> None:
    """``Expect: 100-continue``: who may not call need not send it."""
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 12\r\nConnection: close\r\n\r\n"
    refused = await _send(shop, head % b"/guarded")
    assert refused.startswith(b"HTTP/1.1 503 "), "the rule has no handler"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(shop.url.rpartition(":")[2]))
    writer.write(head % b"/things")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b'{"name":"a"}')
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


async def test_unknown_addresses_of_the_admin_port_have_the_standard_error(shop: ModuleHarness) -> None:
    answer = await shop.admin.get("/nothing")
    assert (answer.status, answer.code) == (404, "not_found")
    assert (await shop.admin.post("/healthz")).status == 405
