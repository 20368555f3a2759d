"""Messages that aiohttp's parser lets pass and that another server would read differently."""

import asyncio

import pytest

from moorage import Module


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (b"GET /\r\n\r\n", b"400 505"),
        (b"GET / HTTP/0.9\r\n\r\n", b"400 505"),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", b"505"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
    ],
)
async def test_the_connection_ends_with_an_error(serve, head: bytes, statuses: bytes) -> None:
    module = Module("shop")
    called = []

    @module.handle("any")
    async def handler() -> str:
        called.append(1)
        return "x"

    shop = await serve(module, [{"name": "any", "methods": ["GET", "POST"], "path": "/", "auth": "none"}])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(shop.url.rpartition(":")[2]))
    writer.write(head)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ", 2)[1] in statuses.split()
    assert b'"error"' in answer
    assert not called


@pytest.mark.parametrize("host", ["a b", "a/b", "user@a", "a:port", "[::1", "a\x80"])
async def test_a_host_that_is_none_is_refused(serve, host: str) -> None:
    module = Module("shop")

    @module.handle("any")
    async def handler() -> str:
        return "x"

    shop = await serve(module, [{"name": "any", "methods": ["GET"], "path": "/", "auth": "none"}])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(shop.url.rpartition(":")[2]))
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ", 2)[1] == b"400", answer
    assert b'"error"' in answer
