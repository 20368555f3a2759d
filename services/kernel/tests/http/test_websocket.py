"""WebSockets, spoken with by a real client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

from moorage import Conflict, Model, Module, NotFound, SocketClosed, User, WebSocket
from moorage.guard import tokens
from moorage.http import websocket
from moorage.http.binding import bind
from moorage.module import DeclarationError
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
RULE = {"name": "chat", "methods": ["GET"], "path": "/chat/{room}"}
OPEN = {**RULE, "auth": "none"}


class Say(Model):
    text: str


class Said(Model):
    room: str
    text: str


def echo() -> Module:
    module = Module("shop")

    @module.websocket("chat", max_message=1000, queue=4)
    async def chat(room: str, socket: WebSocket[Say, Said]) -> None:
        async for message in socket:
            if message.text == "boom":
                raise RuntimeError("boom")
            if message.text == "clash":
                raise Conflict
            if message.text == "done":
                return
            await socket.send(Said(room=room, text=message.text))

    return module


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ended(socket: Any) -> tuple[int | None, str]:
    """The code and the reason with which the server ends the connection."""
    async with asyncio.timeout(15):
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.CLOSE:
                return message.data, message.extra
            if message.type in (WSMsgType.CLOSED, WSMsgType.ERROR):
                return socket.close_code, ""


async def test_messages_are_typed_both_ways(serve: Serve, session: aiohttp.ClientSession) -> None:
    shop = await serve(echo(), [OPEN])
    async with session.ws_connect(f"{shop.url}/chat/red") as socket:
        for text in ("a", "b"):
            await socket.send_json({"text": text})
            assert await socket.receive_json() == {"room": "red", "text": text}
    exposed = (await shop.admin.get("/metrics")).content.decode()
    assert 'websocket_messages_total{direction="in"} 2.0' in exposed


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        ('{"text": "done"}', 1000, ""),
        ('{"text": "boom"}', 1011, "internal error"),
        ('{"text": "clash"}', 4409, "conflict"),
        ('{"text": 5}', 1007, "text: Input should be a valid string"),
        ("{", 1007, "The body is not JSON."),
        ('{"text": "' + "x" * 2000 + '"}', 1009, None),
        (b"\x00", 1003, "messages are JSON text"),
    ],
)
async def test_the_end_says_why(
    serve: Serve, session: aiohttp.ClientSession, sent: str | bytes, code: int, reason: str | None
) -> None:
    shop = await serve(echo(), [OPEN])
    async with session.ws_connect(f"{shop.url}/chat/red") as socket:
        await (socket.send_bytes(sent) if isinstance(sent, bytes) else socket.send_str(sent))
        came = await ended(socket)
    assert came[0] == code
    assert reason is None or came[1] == reason


async def test_the_guard_decides_before_the_connection_is_accepted(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    module = Module("shop")

    async def load(room: str) -> Say:
        return Say(text=room) if room != "gone" else NotFound.throw("room", room)

    @module.websocket("chat", resource=load)
    async def chat(room: Say, user: User, socket: WebSocket[Say, str]) -> None:
        await socket.send(str(user.id))

    rule = {**RULE, "permission": "shop.room.enter"}
    shop = await serve(module, [rule], permissions={"shop.room.enter": "resource.text == 'red'"})
    client = shop.client(roles=["author"])
    for path, headers, status in (
        ("/chat/red", {}, 401),
        ("/chat/blue", client.headers, 403),
        ("/chat/gone", client.headers, 404),
        ("/no", client.headers, 404),
    ):
        with pytest.raises(WSServerHandshakeError) as refused:
            await session.ws_connect(shop.url + path, headers=headers)
        assert refused.value.status == status
    async with session.ws_connect(f"{shop.url}/chat/red", headers=client.headers) as socket:
        assert await socket.receive_json() == str(client.user_id)


async def test_pages_of_other_origins_may_not_connect(serve: Serve, session: aiohttp.ClientSession) -> None:
    module = Module("shop")

    @module.websocket("chat", origins=["https://app.example.com"])
    async def chat(socket: WebSocket) -> None:
        await socket.send({"any": ["thing"]})

    shop = await serve(module, [OPEN])
    for origin in (
        "https://evil.example",
        "null",
        "http://app.example.com",
        "https://app.example.com.evil.example",
    ):
        with pytest.raises(WSServerHandshakeError) as refused:
            await session.ws_connect(f"{shop.url}/chat/red", origin=origin)
        assert refused.value.status == 403
    for origin in ("https://app.example.com", shop.url, None):
        async with session.ws_connect(f"{shop.url}/chat/red", origin=origin) as socket:
            assert await socket.receive_json() == {"any": ["thing"]}


async def test_an_ordinary_request_is_told_to_upgrade(serve: Serve) -> None:
    shop = await serve(echo(), [OPEN])
    answer = await shop.anonymous().get("/chat/red")
    assert (answer.status, answer.code, answer.headers["Upgrade"]) == (426, "upgrade_required", "websocket")


async def test_a_handshake_that_is_none_is_refused(serve: Serve, session: aiohttp.ClientSession) -> None:
    shop = await serve(echo(), [OPEN])
    for headers in (
        {"Sec-WebSocket-Version": "13"},
        {"Sec-WebSocket-Version": "7", "Sec-WebSocket-Key": "x"},
    ):
        given = {"Upgrade": "websocket", "Connection": "Upgrade", **headers}
        async with session.get(f"{shop.url}/chat/red", headers=given) as answer:
            assert answer.status == 400
            assert set((await answer.json())["error"]) == {"code", "message", "details", "request_id"}


async def test_who_connects_while_the_process_stops_is_told_so(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    shop = await serve(echo(), [OPEN])
    await shop.app.shutdown()
    async with session.ws_connect(f"{shop.url}/chat/red") as socket:
        assert await ended(socket) == (1001, "going away")


async def test_a_client_that_leaves_ends_the_handler(serve: Serve, session: aiohttp.ClientSession) -> None:
    """A waiting one is cancelled, one that asks for messages gets no more, one that sends is told."""
    module = Module("shop")
    how: dict[str, str] = {}
    over = asyncio.Event()

    @module.websocket("chat")
    async def chat(room: str, socket: WebSocket[Any, Any]) -> None:
        try:
            if room == "waits":
                await asyncio.sleep(60)
            if room == "asks":
                async for _ in socket:
                    pass
            while room == "sends":
                await socket.send("x")
                await asyncio.sleep(0.01)
            how[room] = "returned"
        except asyncio.CancelledError:
            how[room] = "cancelled"
            raise
        except SocketClosed:
            how[room] = "told"
            raise
        finally:
            over.set()

    shop = await serve(module, [OPEN])
    for room, expected in (("waits", "cancelled"), ("asks", "returned"), ("sends", "told")):
        over.clear()
        async with session.ws_connect(f"{shop.url}/chat/{room}"):
            await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await over.wait()
        assert how[room] == expected
    exposed = (await shop.admin.get("/metrics")).content.decode()
    assert "websockets_open 0.0" in exposed


async def test_a_slow_client_is_dropped(
    serve: Serve, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "SLOW_S", 0.3)
    module = Module("shop")
    sent = 0
    dropped = asyncio.Event()

    @module.websocket("chat", queue=8)
    async def chat(socket: WebSocket[Any, str]) -> None:
        nonlocal sent
        try:
            for _ in range(5000):
                await socket.send("x" * 100_000)
                sent += 1
        except SocketClosed:
            dropped.set()
            raise

    shop = await serve(module, [OPEN])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(shop.url.rpartition(":")[2]), limit=1024)
    writer.write(
        b"GET /chat/red HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    async with asyncio.timeout(10):
        await dropped.wait()
    assert sent < 1000, "it filled memory instead"
    writer.close()
    async with asyncio.timeout(10):
        while 'websockets_closed_total{code="' not in (  # noqa: ASYNC110 - asked over HTTP
            text := (await shop.admin.get("/metrics")).content.decode()
        ):
            await asyncio.sleep(0.05)
    assert "websockets_open 0.0" in text


async def test_whoever_waits_for_none_drops_a_full_queue_at_once(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    module = Module("shop")

    @module.websocket("chat", queue=2)
    async def chat(socket: WebSocket[Any, int]) -> None:
        for n in range(10):  # nothing is sent in between
            socket.send_nowait(n)

    shop = await serve(module, [OPEN])
    async with session.ws_connect(f"{shop.url}/chat/red") as socket:
        assert await ended(socket) == (1013, "too slow")


async def test_it_ends_when_the_token_expires(serve: Serve, session: aiohttp.ClientSession) -> None:
    module = Module("shop")

    @module.websocket("chat")
    async def chat(socket: WebSocket[Any, Any]) -> None:
        async for _ in socket:
            pass

    shop = await serve(module, [RULE])
    client = shop.client(lifetime_s=3 - tokens.LEEWAY)
    async with session.ws_connect(f"{shop.url}/chat/red", headers=client.headers) as socket:
        assert await ended(socket) == (3000, "the token has expired")


async def test_stopping_tells_everybody_and_is_quick(serve: Serve, session: aiohttp.ClientSession) -> None:
    shop = await serve(echo(), [OPEN])
    sockets = [await session.ws_connect(f"{shop.url}/chat/red") for _ in range(20)]
    began = asyncio.get_running_loop().time()
    codes = asyncio.gather(*(ended(socket) for socket in sockets))
    await shop.__aexit__(None, None, None)  # the server, as after SIGTERM
    assert {code for code, _ in await codes} == {1001}
    assert asyncio.get_running_loop().time() - began < 5


async def test_a_silent_peer_is_found_by_the_heartbeat(
    serve: Serve, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "HEARTBEAT_S", 0.2)
    module = Module("shop")
    over = asyncio.Event()

    @module.websocket("chat")
    async def chat(socket: WebSocket[Any, Any]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            over.set()

    shop = await serve(module, [OPEN])
    async with session.ws_connect(f"{shop.url}/chat/red", autoping=False):
        async with asyncio.timeout(5):
            await over.wait()


def test_what_cannot_work_is_refused_at_the_start() -> None:
    async def without() -> None: ...

    async def within(socket: WebSocket[Say, Said]) -> None: ...

    for declare, function, text in (
        (lambda module: module.websocket("x"), without, "needs a parameter of type WebSocket"),
        (lambda module: module.handle("x"), within, "declare it with @module.websocket"),
        (lambda module: module.websocket("x", origins=["app.example.com"]), within, "is no origin"),
        (lambda module: module.websocket("x", origins=["https://a.b/c"]), within, "is no origin"),
    ):
        module = Module("shop")
        declare(module)(function)
        with pytest.raises(DeclarationError, match=text):
            bind(module, {})
