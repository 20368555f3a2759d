"""Answers that are sent piece by piece, read from a real connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import aiohttp
import pytest

from moorage import BadRequest, Model, Module, NotFound, ServerSent, Stream
from moorage.guard import tokens
from moorage.http import streams
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
GET = {"methods": ["GET"], "path": "/", "auth": "none"}
TOKEN = {"methods": ["GET"], "path": "/"}


class Line(Model):
    n: int


async def test_models_are_sent_as_lines(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("all")
    async def every(count: int = 3) -> AsyncIterator[Line]:
        for n in range(count):
            yield Line(n=n)

    shop = await serve(module, [{"name": "all", **GET}])
    answer = await shop.anonymous().get("/?count=1000")
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Cache-Control"] == "no-store"
    assert [json.loads(line)["n"] for line in answer.content.splitlines()] == list(range(1000))
    assert (await shop.anonymous().get("/?count=0")).content == b""
    head = await shop.anonymous().request("HEAD", "/")
    assert (head.status, head.headers["Content-Type"]) == (200, "application/x-ndjson")


async def test_a_handler_can_choose_the_type(serve: Serve) -> None:
    module = Module("shop")

    async def rows() -> AsyncIterator[bytes]:
        yield b"a,b\n"
        yield b"1,2\n"

    @module.handle("csv")
    async def csv() -> Stream:
        return Stream(rows(), "text/csv", {"Content-Disposition": "attachment"})

    shop = await serve(module, [{"name": "csv", **GET}])
    answer = await shop.anonymous().get("/")
    assert (answer.content, answer.headers["Content-Type"]) == (b"a,b\n1,2\n", "text/csv")
    assert answer.headers["Content-Disposition"] == "attachment"


async def test_an_error_before_the_first_piece_is_an_ordinary_answer(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("all")
    async def every() -> AsyncIterator[bytes]:
        NotFound.throw("thing", 5)
        yield b"x"

    shop = await serve(module, [{"name": "all", **GET}])
    assert (await shop.anonymous().get("/")).code == "thing_not_found"


@pytest.mark.parametrize("error", [RuntimeError("broken"), BadRequest("late")])
async def test_an_error_in_the_middle_breaks_the_connection_off(serve: Serve, error: Exception) -> None:
    """Nobody must take a part for the whole."""
    module = Module("shop")

    @module.handle("all")
    async def every() -> AsyncIterator[bytes]:
        yield b"first"
        raise error

    shop = await serve(module, [{"name": "all", **GET}])
    with pytest.raises(aiohttp.ClientPayloadError):
        await shop.anonymous().get("/")


async def test_events_are_sent_as_they_happen_with_comments_between(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.events, "__defaults__", (0.1,))
    module = Module("shop")
    go = asyncio.Event()

    @module.handle("watch")
    async def watch() -> AsyncIterator[ServerSent]:
        yield ServerSent({"n": 1}, event="tick", id="7", retry=1.5)
        await go.wait()
        yield ServerSent("two\nlines")

    shop = await serve(module, [{"name": "watch", **GET}])
    async with aiohttp.ClientSession() as session, session.get(f"{shop.url}/") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        first = await answer.content.readuntil(b"\n\n")
        assert first == b'event: tick\nid: 7\nretry: 1500\ndata: {"n":1}\n\n'
        assert await answer.content.readuntil(b"\n\n") == b": still here\n\n"
        go.set()
        rest = await answer.content.read()
    assert rest.endswith(b"data: two\ndata: lines\n\n")


async def test_stopping_ends_a_stream_of_events(serve: Serve) -> None:
    """The client connects again, to another process."""
    module = Module("shop")

    @module.handle("watch")
    async def watch() -> AsyncIterator[ServerSent]:
        yield ServerSent("hello")
        await asyncio.sleep(60)

    shop = await serve(module, [{"name": "watch", **GET}])
    async with aiohttp.ClientSession() as session, session.get(f"{shop.url}/") as answer:
        assert await answer.content.readline() == b"data: hello\n"
        await shop.app.shutdown()
        async with asyncio.timeout(5):
            assert await answer.content.read() == b"\n"


def test_an_events_name_cannot_smuggle_lines() -> None:
    with pytest.raises(ValueError, match="one line each"):
        ServerSent("x", event="a\ndata: b").encode()


async def test_a_client_that_leaves_cancels_the_handler(serve: Serve) -> None:
    module = Module("shop")
    ended = asyncio.Event()

    @module.handle("watch")
    async def watch() -> AsyncIterator[ServerSent]:
        try:
            yield ServerSent("hello")
            await asyncio.sleep(60)
        finally:
            ended.set()

    shop = await serve(module, [{"name": "watch", **GET}])
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"{shop.url}/")
        await answer.content.readline()
        answer.close()
    async with asyncio.timeout(5):
        await ended.wait()


async def test_pieces_are_made_as_the_client_takes_them(serve: Serve) -> None:
    module = Module("shop")
    made = 0

    @module.handle("all")
    async def every() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield b"x" * 100_000

    shop = await serve(module, [{"name": "all", "timeout": "2s", **GET}])
    async with aiohttp.ClientSession(read_bufsize=1024) as session:
        answer = await session.get(f"{shop.url}/")
        await asyncio.sleep(0.5)
        assert made < 500, "sent into nowhere"
        # Who takes nothing for longer than the write timeout is left.
        await asyncio.sleep(2.5)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_a_stream_may_take_longer_than_an_answer(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("all")
    async def every() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x"
            await asyncio.sleep(0.1)

    shop = await serve(module, [{"name": "all", "timeout": "200ms", **GET}])
    assert (await shop.anonymous().get("/")).content == b"xxxxx"


async def test_a_stream_of_events_ends_when_the_token_expires(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("watch")
    async def watch() -> AsyncIterator[ServerSent]:
        yield ServerSent("hello")
        await asyncio.sleep(60)

    shop = await serve(module, [{"name": "watch", **TOKEN}])
    client = shop.client(lifetime_s=2 - tokens.LEEWAY)
    async with (
        asyncio.timeout(15),
        aiohttp.ClientSession() as session,
        session.get(f"{shop.url}/", headers=client.headers) as answer,
    ):
        assert await answer.content.read() == b"data: hello\n\n"


@pytest.mark.parametrize("kind", ["bytes", "lines"])
async def test_other_streams_are_broken_off_when_the_token_expires(serve: Serve, kind: str) -> None:
    """Whoever had an ordinary end would take what came for the whole."""
    module = Module("shop")
    cancelled = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.05)
        finally:
            cancelled.set()

    if kind == "bytes":

        @module.handle("all")
        async def every() -> AsyncIterator[bytes]:
            async with aclosing(endless()) as numbers:
                async for _ in numbers:
                    yield b"x"
    else:

        @module.handle("all")
        async def each() -> AsyncIterator[Line]:
            async with aclosing(endless()) as numbers:
                async for n in numbers:
                    yield Line(n=n)

    shop = await serve(module, [{"name": "all", **TOKEN}])
    with pytest.raises(aiohttp.ClientPayloadError):
        async with asyncio.timeout(15):
            await shop.client(lifetime_s=2 - tokens.LEEWAY).get("/")
    assert cancelled.is_set()
