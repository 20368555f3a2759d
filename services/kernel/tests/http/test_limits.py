"""Rate limits as a client of a module sees them: on every kind of answer, and the same whoever wrote it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from moorage import Content, Module, NotFound, ServerSent, WebSocket
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
LIMITS = {"perUser": "50/hour"}
RULES: list[dict[str, Any]] = [
    {"name": "ok", "path": "/ok", "rateLimit": LIMITS},
    {"name": "missing", "path": "/missing", "rateLimit": LIMITS},
    {"name": "broken", "path": "/broken", "rateLimit": LIMITS},
    {"name": "own", "path": "/own", "rateLimit": LIMITS},
    {"name": "events", "path": "/events", "rateLimit": LIMITS},
    {"name": "denied", "path": "/denied", "rateLimit": LIMITS, "permission": "shop.item.read"},
    {"name": "socket", "path": "/socket", "methods": ["GET"], "rateLimit": {"perUser": "1/hour"}},
    {"name": "two", "path": "/two", "rateLimit": {"perUser": "2/hour"}},
    {"name": "open", "path": "/open", "auth": "none", "rateLimit": {"perIp": "2/hour"}},
    {"name": "free", "path": "/free"},
]


def shop() -> Module:
    module = Module("shop")

    @module.handle("ok")
    @module.handle("denied")
    @module.handle("two")
    @module.handle("open")
    @module.handle("free")
    async def fine() -> str:
        return "fine"

    @module.handle("missing")
    async def missing() -> str:
        NotFound.throw("item", 1)

    @module.handle("broken")
    async def broken() -> str:
        raise RuntimeError("boom")

    @module.handle("own")
    async def own() -> Content:
        fields = {"RateLimit": '"mine";r=1', "RateLimit-Policy": '"mine";q=1', "X-RateLimit-Limit": "7"}
        return Content(b"x", media_type="text/plain", headers=fields)

    @module.handle("events")
    async def events() -> AsyncIterator[ServerSent]:
        yield ServerSent(data={"a": 1})

    @module.websocket("socket")
    async def socket(socket: WebSocket[Any, Any]) -> None:
        await socket.send({"hello": 1})

    return module


@pytest.fixture
async def served(serve: Serve) -> ModuleHarness:
    return await serve(shop(), RULES, permissions={"shop.item.read": None})


@pytest.mark.parametrize(
    ("path", "status"),
    [("/ok", 200), ("/missing", 404), ("/broken", 500), ("/own", 200), ("/events", 200), ("/denied", 403)],
)
async def test_every_kind_of_answer_tells_of_the_limit(served: ModuleHarness, path: str, status: int) -> None:
    answer = await served.client().get(path)
    assert answer.status == status
    assert answer.headers.getall("RateLimit-Policy") == ['"user";q=50;w=3600']
    assert answer.headers.getall("RateLimit") == ['"user";r=49;t=72']
    assert "Retry-After" not in answer.headers
    if path == "/own":
        assert answer.headers["X-RateLimit-Limit"] == "7", "only its own fields are the guard's"


async def test_the_handshake_of_a_websocket_counts_once_and_tells(served: ModuleHarness) -> None:
    headers = served.client().headers
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.ws_connect(served.url + "/socket") as socket:
            assert socket._response.headers["RateLimit"].startswith('"user";r=0;t=')
            assert await socket.receive_json() == {"hello": 1}
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(served.url + "/socket")
        assert refused.value.status == 429


async def test_more_than_the_limit_is_429_with_all_that_a_client_needs(served: ModuleHarness) -> None:
    user = uuid4()
    clients = [served.client(user=user) for _ in range(3)]
    answers = [await client.get("/two") for client in clients]
    assert [answer.status for answer in answers] == [200, 200, 429]
    last = answers[-1]
    error = last.body["error"]
    wait = int(last.headers["Retry-After"])
    assert 1700 < wait <= 1800
    assert error["code"] == "rate_limited"
    assert error["details"] == {"limit": "user", "retry_after": wait}
    assert error["request_id"] == last.headers["X-Request-ID"]
    assert last.headers["RateLimit-Policy"] == '"user";q=2;w=3600'
    assert last.headers["RateLimit"] == f'"user";r=0;t={wait}'
    counted = (await served.admin.get("/metrics")).content.decode()
    assert 'guard_limited_total{limit="user"} 1.0' in counted
    assert 'errors_total{code="rate_limited"} 1.0' in counted
    assert 'route="/two",status="429"' in counted


async def test_an_address_is_counted_where_nobody_is_known(served: ModuleHarness) -> None:
    forged = [{"X-Forwarded-For": f"198.51.100.{turn}"} for turn in range(3)]
    answers = [await served.anonymous().get("/open", headers=headers) for headers in forged]
    assert [answer.status for answer in answers] == [200, 200, 429]


async def test_in_a_harness_nothing_holds_but_what_routes_say(served: ModuleHarness) -> None:
    client = served.client()
    answers = [await client.get("/free") for _ in range(120)]
    assert {answer.status for answer in answers} == {200}
    assert "RateLimit" not in answers[0].headers


async def test_limits_may_be_counted_in_redis(serve: Serve, redis_server: str) -> None:
    served = await serve(
        shop(), RULES, permissions={"shop.item.read": None}, environ={"REDIS_URL": redis_server}
    )
    user = uuid4()
    answers = [await served.client(user=user).get("/two") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    ready = (await served.admin.get("/ready")).body
    assert ready["checks"]["limits"]["state"] == "ok"
    assert "guard_limits_alone_total 0.0" in (await served.admin.get("/metrics")).content.decode()


async def test_without_redis_it_is_degraded_and_still_counts(serve: Serve, unused_tcp_port: int) -> None:
    url = f"redis://127.0.0.1:{unused_tcp_port}/0"
    environ = {"REDIS_URL": url, "CACHE_BACKEND": "memory"}
    served = await serve(shop(), RULES, permissions={"shop.item.read": None}, environ=environ)
    user = uuid4()
    answers = [await served.client(user=user).get("/two") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    answer = await served.admin.get("/ready")
    ready = answer.body
    assert (answer.status, ready["status"], ready["checks"]["limits"]["state"]) == (
        200,
        "degraded",
        "degraded",
    )
    assert "guard_limits_alone_total 4.0" in (await served.admin.get("/metrics")).content.decode()


async def test_a_rule_that_refuses_in_an_outage_is_shut(serve: Serve, unused_tcp_port: int) -> None:
    rules = [
        {
            "name": "open",
            "path": "/open",
            "auth": "none",
            "rateLimit": {"perIp": "2/hour", "outage": "refuse"},
        }
    ]
    environ = {"REDIS_URL": f"redis://127.0.0.1:{unused_tcp_port}/0", "CACHE_BACKEND": "memory"}
    served = await serve(shop(), rules, environ=environ)
    answers = [await served.anonymous().get("/open") for _ in range(4)]
    assert [answer.status for answer in answers] == [503] * 4
    assert answers[0].body["error"]["code"] == "limits_unavailable"
    assert answers[0].headers["Retry-After"] == "5"
    assert "guard_limits_unavailable_total 4.0" in (await served.admin.get("/metrics")).content.decode()


async def test_everything_that_an_address_sends_may_be_bounded(serve: Serve) -> None:
    served = await serve(shop(), RULES, permissions={"shop.item.read": None}, environ={"LIMITS_ADDRESS": "3"})
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    client = served.anonymous()
    found = [
        (await client.get("/nothing")).status,
        (
            await client.request("OPTIONS", "/nothing", headers=asking)
        ).status,  # no rule answers it: it counts twice
        (await client.get("/ok")).status,
    ]
    assert found == [404, 404, 429]
    counted = (await served.admin.get("/metrics")).content.decode()
    assert 'guard_limited_total{limit="requests"} 1.0' in counted
