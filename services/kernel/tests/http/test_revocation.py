"""A module that follows the policy stream: ready after one sync, and what is revoked ends, whatever is open."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import jwt
import pytest

from moorage import Module, ServerSent, WebSocket
from moorage.errors import Unauthenticated
from moorage.guard.lasting import SWEEP_S, Lasting
from moorage.testing import Client, ModuleHarness, PolicyStream

Serve = Callable[..., Awaitable[ModuleHarness]]
SURE_S = 30.0
RULES: list[dict[str, Any]] = [
    {"name": "me", "methods": ["GET"], "path": "/me"},
    {"name": "chat", "methods": ["GET"], "path": "/chat", "permission": "shop.chat.use"},
    {"name": "events", "methods": ["GET"], "path": "/events"},
    {"name": "bytes", "methods": ["GET"], "path": "/bytes"},
]


def shop() -> Module:
    module = Module("shop")

    @module.handle("me")
    async def me() -> dict[str, str]:
        return {}

    @module.websocket("chat")
    async def chat(socket: WebSocket[Any, Any]) -> None:
        async for _ in socket:
            pass

    @module.handle("events")
    async def events() -> AsyncIterator[ServerSent]:
        yield ServerSent("hello")
        await asyncio.Event().wait()

    @module.handle("bytes")
    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    return module


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SURE_S):
        while not await condition():  # noqa: ASYNC110 - the state is a server's
            await asyncio.sleep(0.01)


@pytest.fixture
async def stream() -> AsyncIterator[PolicyStream]:
    async with PolicyStream(modules=(("default", "shop"),), heartbeat=1.0) as stream:
        yield stream


@pytest.fixture
async def harness(serve: Serve, stream: PolicyStream) -> ModuleHarness:
    harness = await serve(shop(), RULES, permissions={"shop.chat.use": None}, stream=stream)
    await until(lambda: ready(harness))
    return harness


async def ready(harness: ModuleHarness) -> bool:
    return (await harness.admin.get("/ready")).status == 200


async def overlay(harness: ModuleHarness) -> dict[str, Any]:
    status: dict[str, Any] = (await harness.admin.get("/policy")).body["overlay"]
    return status


def session_of(client: Client) -> str:
    token = client.headers["Authorization"].split()[1]
    return str(jwt.decode(token, options={"verify_signature": False})["sid"])


async def test_it_is_ready_after_one_sync_and_says_how_it_is(serve: Serve, stream: PolicyStream) -> None:
    stream.refusing = 503
    harness = await serve(shop(), RULES, permissions={"shop.chat.use": None}, stream=stream)
    client = harness.client()
    answer = await harness.admin.get("/ready")
    assert answer.status == 503
    assert "not in sync" in answer.body["checks"]["policy"]["error"]
    assert (await client.get("/me")).code == "policy_stale"
    stream.refusing = None
    await until(lambda: ready(harness))
    assert (await client.get("/me")).status == 200
    assert (await overlay(harness))["sequence"] == 0
    stream.refusing = 503
    stream.cut()

    async def cut_off() -> bool:
        return not (await overlay(harness))["connected"]

    await until(cut_off)
    assert "503" in (await overlay(harness))["error"] or (await overlay(harness))["error"]
    await until(lambda: degraded(harness))
    assert (await client.get("/me")).status == 200, "what was known counts until it is stale"


async def degraded(harness: ModuleHarness) -> bool:
    answer = await harness.admin.get("/ready")
    return answer.status == 200 and answer.body["checks"]["policy stream"]["state"] == "degraded"


async def test_alone_it_is_ready_without_a_stream(serve: Serve, stream: PolicyStream) -> None:
    stream.refusing = 503
    environ = {"GUARD_START_ALONE": "true"}
    harness = await serve(shop(), RULES, permissions={"shop.chat.use": None}, stream=stream, environ=environ)
    await until(lambda: ready(harness))
    assert (await harness.client().get("/me")).status == 200


async def test_stale_it_refuses_what_needs_a_token(serve: Serve, stream: PolicyStream) -> None:
    environ = {"GUARD_MAX_STALENESS": "2s"}
    harness = await serve(shop(), RULES, permissions={"shop.chat.use": None}, stream=stream, environ=environ)
    await until(lambda: ready(harness))
    stream.refusing = 503
    stream.cut()
    client = harness.client()

    async def stale() -> bool:
        return (await client.get("/me")).code == "policy_stale"

    await until(stale)


async def test_a_revoked_session_is_out_and_its_websocket_closed(
    harness: ModuleHarness, stream: PolicyStream
) -> None:
    gone, other = harness.client(roles=["author"]), harness.client(roles=["author"])
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{harness.url}/chat", headers=gone.headers) as closing,
        session.ws_connect(f"{harness.url}/chat", headers=other.headers) as staying,
    ):
        stream.change(sessions=[session_of(gone)])
        message = await closing.receive(timeout=SURE_S)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 3000)
        assert message.extra == "The access token was revoked."
        assert (await gone.get("/me")).code == "token_revoked"
        assert (await other.get("/me")).status == 200
        assert not staying.closed
        await staying.ping()


async def test_who_loses_the_permission_loses_the_websocket(
    harness: ModuleHarness, stream: PolicyStream
) -> None:
    client = harness.client(roles=["author"])
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{harness.url}/chat", headers=client.headers) as socket,
    ):
        stream.change(users={str(client.user_id): {"ver": 2, "roles": ["author", "more"]}})
        stream.change(users={str(client.user_id): {"ver": 3, "roles": []}})
        message = await socket.receive(timeout=SURE_S)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 3003)
    assert (await client.get("/me")).status == 200
    assert (await client.get("/chat")).code == "forbidden"


@pytest.mark.parametrize("path", ["/events", "/bytes"])
async def test_streams_of_a_disabled_user_end(
    harness: ModuleHarness, stream: PolicyStream, path: str
) -> None:
    client = harness.client()
    async with (
        asyncio.timeout(SURE_S),
        aiohttp.ClientSession() as session,
        session.get(f"{harness.url}{path}", headers=client.headers) as answer,
    ):
        assert await answer.content.readany()
        stream.change(users={str(client.user_id): {"ver": 2, "roles": [], "disabled": True}})
        if path == "/events":
            assert await answer.content.read() == b""
        else:
            with pytest.raises(aiohttp.ClientError):
                await answer.content.read()


async def test_one_that_cannot_be_ended_does_not_keep_the_others() -> None:
    """Everything open is looked at once after a change, well within a second."""
    ended: list[str] = []

    class Over:
        verified = object()
        policy = None

    class Policy:
        verifier = None

        def caller(self, _: object) -> None:
            raise Unauthenticated(code="token_revoked")

    def fail(_: object) -> None:
        raise RuntimeError

    policy: Any = Policy()
    lasting = Lasting(lambda: policy)
    decision: Any = Over()
    decision.policy = policy
    with (
        lasting.watching(decision, fail),
        lasting.watching(decision, lambda error: ended.append(error.code)),
    ):
        assert len(lasting) == 2
        policy = Policy()
        lasting.changed()
        async with asyncio.timeout(SURE_S):
            while not ended:  # noqa: ASYNC110 - the state is a server's
                await asyncio.sleep(0.01)
        assert len(lasting) == 0
    with lasting.watching(decision, lambda error: ended.append(error.code)):
        assert len(lasting) == 0, "over before it began"
    assert ended == ["token_revoked"] * 2
    assert SWEEP_S < 0.5
