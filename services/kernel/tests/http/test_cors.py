"""Cross-origin requests and changed headers, as a browser meets them at a module with the guard in its process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from moorage import Conflict, Model, Module, Request, ServerSent, WebSocket
from moorage.http.answers import Content
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
APP = "https://app.example.com"
CORS = {"origins": [APP], "headers": ["X-Trial"], "maxAge": "10m"}
RULES: list[dict[str, Any]] = [
    {"name": "list", "methods": ["GET"], "path": "/posts", "auth": "none", "cors": CORS},
    {"name": "create", "methods": ["POST"], "path": "/posts", "permission": "shop.post.create", "cors": CORS},
    {"name": "plain", "methods": ["GET"], "path": "/plain", "auth": "none"},
    {"name": "events", "methods": ["GET"], "path": "/events", "auth": "none", "cors": CORS},
    {"name": "small", "methods": ["POST"], "path": "/small", "auth": "none", "maxBody": 4, "cors": CORS},
    {"name": "broken", "methods": ["GET"], "path": "/broken", "auth": "none", "cors": CORS},
    {"name": "unbound", "methods": ["GET"], "path": "/unbound", "auth": "none", "cors": CORS},
    {
        "name": "page",
        "methods": ["GET"],
        "path": "/page/{kind}",
        "auth": "none",
        "request": {"set": {"X-Source": "edge"}, "remove": ["X-Debug", "Cookie"]},
        "response": {
            "set": {"Content-Security-Policy": "default-src 'self'", "X-Note": "hi"},
            "remove": ["X-Made-By"],
        },
    },
    {"name": "chat", "methods": ["GET"], "path": "/chat", "auth": "none", "cors": CORS},
]


class Said(Model):
    text: str


def shop(calls: list[str]) -> Module:
    module = Module("shop")

    @module.handle("list")
    async def list_() -> Said:
        calls.append("list")
        return Said(text="x" * 2000)

    @module.handle("create")
    async def create() -> Said:
        calls.append("create")
        raise Conflict

    @module.handle("plain")
    async def plain() -> Said:
        return Said(text="plain")

    @module.handle("events")
    async def events() -> AsyncIterator[ServerSent]:
        yield ServerSent("one")

    @module.handle("small")
    async def small(body: Said) -> Said:
        return body

    @module.handle("broken")
    async def broken() -> Said:
        raise RuntimeError("broken")

    @module.handle("page")
    async def page(kind: str, request: Request) -> Content:
        if kind == "missing":
            raise Conflict(code="missing")
        seen = "\n".join(f"{name.lower()}: {value}" for name, value in sorted(request.headers.items()))
        made = {"X-Made-By": "hand", "Access-Control-Allow-Origin": "*"}
        return Content(seen.encode(), "text/plain", made)

    @module.websocket("chat")
    async def chat(socket: WebSocket[Said, Said]) -> None:
        async for message in socket:
            await socket.send(message)

    return module


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
async def served(serve: Serve, calls: list[str]) -> ModuleHarness:
    return await serve(shop(calls), RULES, permissions={"shop.post.create": None})


def asking(method: str, origin: str = APP) -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": method}


async def test_a_preflight_is_answered_without_a_token_and_never_reaches_the_handler(
    served: ModuleHarness, calls: list[str]
) -> None:
    answer = await served.anonymous().request("OPTIONS", "/posts", headers=asking("POST"))
    assert (answer.status, answer.content) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert answer.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type, X-Trial"
    assert answer.headers["Access-Control-Max-Age"] == "600"
    assert answer.headers["Vary"] == "Origin, Access-Control-Request-Method"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Request-ID"]
    assert calls == []
    exposed = (await served.admin.get("/metrics")).content.decode()
    assert 'route="/posts",status="204"' in exposed


@pytest.mark.parametrize("origin", ["null", "https://app.example.com.evil.test", "https://evil.test"])
async def test_a_preflight_of_another_origin_is_refused(served: ModuleHarness, origin: str) -> None:
    answer = await served.anonymous().request("OPTIONS", "/posts", headers=asking("POST", origin))
    assert (answer.status, answer.body["error"]["code"]) == (403, "cors_refused")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin, Access-Control-Request-Method"


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/plain", "GET", 405)])
async def test_other_preflights_are_requests_like_any_other(
    served: ModuleHarness, path: str, method: str, status: int
) -> None:
    answer = await served.anonymous().request("OPTIONS", path, headers=asking(method))
    assert answer.status == status
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_an_answer_names_the_origin_and_varies_by_it(served: ModuleHarness) -> None:
    plain = {"Accept-Encoding": "gzip"}
    answer = await served.anonymous().get("/posts", headers={"Origin": APP, **plain})
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, APP)
    assert answer.headers.getall("Vary") == ["Accept-Encoding, Origin"]
    assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    for sent in ({}, {"Origin": "null"}, {"Origin": "https://evil.test"}):
        answer = await served.anonymous().get("/posts", headers=sent | plain)
        assert answer.status == 200, "the browser keeps it from the page, not the guard"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers.getall("Vary") == ["Accept-Encoding, Origin"]


async def test_two_origin_fields_are_none(served: ModuleHarness) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{served.url}/posts", headers=[("Origin", APP), ("Origin", APP)]) as answer,
    ):
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_pages_may_read_errors_of_guard_and_handler(served: ModuleHarness) -> None:
    sent = {"Origin": APP}
    author = served.client(roles=["author"])
    answers = [
        (401, await served.anonymous().post("/posts", headers=sent)),
        (403, await served.client(roles=["nobody"]).post("/posts", headers=sent)),
        (409, await author.post("/posts", headers=sent)),
        (413, await served.anonymous().post("/small", headers=sent, json={"text": "too long"})),
        (500, await served.anonymous().get("/broken", headers=sent)),
        (503, await served.anonymous().get("/unbound", headers=sent)),
        (426, await served.anonymous().get("/chat", headers=sent)),
    ]
    for status, answer in answers:
        assert (answer.status, answer.headers.get("Access-Control-Allow-Origin")) == (status, APP)
        assert answer.headers["Vary"] == "Origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_streams_carry_it_too(served: ModuleHarness) -> None:
    answer = await served.anonymous().get("/events", headers={"Origin": APP})
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, APP)
    assert b"data: one" in answer.content


async def test_pages_of_a_declared_origin_may_open_a_websocket(served: ModuleHarness) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{served.url}/chat", headers={"Origin": APP}) as socket:
            await socket.send_json({"text": "hi"})
            async with asyncio.timeout(15):
                assert await socket.receive_json() == {"text": "hi"}
        for origin in (
            "null",
            "https://app.example.com.evil.test",
            "HTTPS://APP.EXAMPLE.COM",
            "https://a@app.example.com",
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{served.url}/chat", headers={"Origin": origin})
            assert refused.value.status == 403


async def test_every_page_is_not_meant_for_websockets(serve: Serve) -> None:
    module = Module("shop")

    @module.websocket("chat")
    async def chat(socket: WebSocket[Said, Said]) -> None: ...

    rule = {"name": "chat", "methods": ["GET"], "path": "/chat", "auth": "none", "cors": {"origins": ["*"]}}
    served = await serve(module, [rule])
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"{served.url}/chat", headers={"Origin": APP})


async def test_the_handler_sees_the_changed_request(served: ModuleHarness) -> None:
    sent = {"X-Source": "client", "X-Debug": "1", "Cookie": "a=b", "X-Other": "2", "X-Moorage-User": "root"}
    answer = await served.anonymous().get("/page/a", headers=sent)
    seen = dict(line.split(": ", 1) for line in answer.content.decode().splitlines())
    assert (seen["x-source"], seen["x-other"]) == ("edge", "2")
    assert not {"x-debug", "cookie", "x-moorage-user"} & seen.keys()


async def test_the_answer_is_changed_and_its_defaults_can_be_set(served: ModuleHarness) -> None:
    answer = await served.anonymous().get("/page/a")
    assert answer.headers["Content-Security-Policy"] == "default-src 'self'"
    assert answer.headers["X-Note"] == "hi"
    assert "X-Made-By" not in answer.headers
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Access-Control-Allow-Origin"] == "*", (
        "without `cors`, the module's own word counts"
    )


async def test_an_error_gets_nothing_that_is_set_for_pages(served: ModuleHarness) -> None:
    answer = await served.anonymous().get("/page/missing")
    assert answer.status == 409
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "X-Note" not in answer.headers
