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
