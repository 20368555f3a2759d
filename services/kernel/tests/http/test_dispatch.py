"""One request through guard, handler and answer, over a real connection."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import Field

from moorage import Caller, Config, Conflict, Model, Module, NotFound, Out, Page, Paging, Query, Request, User
from moorage.http.request import Context
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
GET = {"methods": ["GET"], "auth": "none"}
POST = {"methods": ["POST"], "auth": "none"}


class Thing(Model):
    name: str
    size: int = 1


async def test_the_body_is_a_model_and_so_is_the_answer(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("make", status=201)
    async def make(new: Thing) -> Thing:
        return new

    shop = await serve(module, [{"name": "make", "path": "/things", **POST}])
    answer = await shop.anonymous().post("/things", json={"name": "a"})
    assert (answer.status, answer.body) == (201, {"name": "a", "size": 1})
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("content", "media", "status", "code"),
    [
        (b'{"name": "a", "sise": 2}', "application/json", 422, "invalid"),
        (b'{"size": 2}', "application/json", 422, "invalid"),
        (b'{"name": 1}', "application/json", 422, "invalid"),
        (b"[]", "application/json", 422, "invalid"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"", "application/json", 400, "invalid_json"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b'{"name": "a"}', "text/plain", 415, "unsupported_media_type"),
        (b"name=a", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b'{"name": "' + b"a" * 2000 + b'"}', "application/json", 413, "too_large"),
        (b'{"name": "a"}', "application/merge-patch+json", 200, None),
    ],
)
async def test_a_bad_body_is_refused(
    serve: Serve, content: bytes, media: str, status: int, code: str | None
) -> None:
    module = Module("shop")

    @module.handle("make")
    async def make(new: Thing) -> Thing:
        return new

    shop = await serve(module, [{"name": "make", "path": "/", "maxBody": "1Ki", **POST}])
    answer = await shop.anonymous().post("/", data=content, headers={"Content-Type": media})
    assert (answer.status, answer.code) == (status, code)


async def test_a_body_without_length_is_bounded_too(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("make")
    async def make(new: Thing) -> None:
        raise AssertionError("not reached")

    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 1024

    shop = await serve(module, [{"name": "make", "path": "/", "maxBody": "1Ki", **POST}])
    answer = await shop.anonymous().post("/", data=endless(), headers={"Content-Type": "application/json"})
    assert (answer.status, answer.code) == (413, "too_large")


async def test_what_is_wrong_is_named_and_never_shown(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("make")
    async def make(new: Thing) -> None: ...

    shop = await serve(module, [{"name": "make", "path": "/", **POST}])
    answer = await shop.anonymous().post("/", json={"name": "a", "size": "hunter2"})
    assert answer.body["error"]["details"]["fields"][0]["field"] == "size"
    assert b"hunter2" not in answer.content


async def test_captures_and_query_parameters_go_by_name(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(id: UUID, n: int, deep: bool = False, tag: list[str] = []) -> dict[str, Any]:  # noqa: B006
        return {"id": str(id), "n": n, "deep": deep, "tag": tag}

    shop = await serve(module, [{"name": "read", "path": "/things/{id}/{n}", **GET}])
    given = uuid4()
    answer = await shop.anonymous().get(f"/things/{given}/5?deep=true&tag=a&tag=b")
    assert answer.body == {"id": str(given), "n": 5, "deep": True, "tag": ["a", "b"]}
    assert (await shop.anonymous().get("/things/5/5")).status == 404
    assert (await shop.anonymous().get(f"/things/{given}/five")).status == 404
    refused = await shop.anonymous().get(f"/things/{given}/5?deep=maybe")
    assert (refused.status, refused.body["error"]["details"]["fields"][0]["field"]) == (422, "deep")


class Colour(StrEnum):
    RED = "red"


class Filter(Query):
    colour: Colour | None = None
    tags: list[str] = Field(default_factory=list)


async def test_query_models_take_what_they_know(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("list")
    async def index(wanted: Filter, paging: Paging, request: Request) -> Page[str]:
        assert request.query["other"] == "x"
        return Page(items=[*wanted.tags, str(wanted.colour)], total=9, **paging.model_dump())

    shop = await serve(module, [{"name": "list", "path": "/", **GET}])
    answer = await shop.anonymous().get("/?colour=red&tags=a&tags=b&limit=5&other=x")
    assert answer.body == {"items": ["a", "b", "red"], "limit": 5, "offset": 0, "total": 9}
    for query, field in {
        "limit=0": "limit",
        "limit=101": "limit",
        "offset=-1": "offset",
        "colour=b": "colour",
    }.items():
        refused = await shop.anonymous().get(f"/?{query}")
        assert refused.status == 422
        assert refused.body["error"]["details"]["fields"][0]["field"] == field


@pytest.mark.parametrize("query", ["a=" + "&a=" * 200, "a=%ff"])
async def test_a_query_that_cannot_be_read_is_400(serve: Serve, query: str) -> None:
    module = Module("shop")

    @module.handle("list")
    async def index(q: str = "") -> None: ...

    shop = await serve(module, [{"name": "list", "path": "/", **GET}])
    assert (await shop.anonymous().get(f"/?{query}")).status == 400


async def test_the_caller_is_given_by_type(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("needs")
    async def needs(user: User) -> str:
        return str(user.id)

    @module.handle("takes")
    async def takes(user: User | None) -> str:
        return str(user and user.id)

    @module.handle("any")
    async def anyone(caller: Caller) -> str:
        return type(caller).__name__

    shop = await serve(
        module,
        [
            {"name": "needs", "path": "/needs", "auth": "optional"},
            {"name": "takes", "path": "/takes", "auth": "optional"},
            {"name": "any", "path": "/any"},
        ],
    )
    ada = shop.client(roles=["author"])
    assert (await ada.get("/needs")).body == str(ada.user_id)
    assert (await ada.get("/takes")).body == str(ada.user_id)
    assert (await ada.get("/any")).body == "User"
    assert (await shop.anonymous().get("/takes")).body == "None"
    assert (await shop.anonymous().get("/needs")).code == "unauthenticated"
    assert (await shop.anonymous().get("/any")).status == 401


class Row:
    """Stands for a row: attributes, no model."""

    def __init__(self, name: str, owner: UUID) -> None:
        self.name, self.owner, self.size = name, owner, 3


async def test_the_condition_sees_what_the_loader_returns_and_the_handler_gets_it(serve: Serve) -> None:
    module = Module("shop")
    rows: dict[str, Row] = {}

    async def load(name: str) -> Row | None:
        return rows.get(name)

    @module.handle("read", resource=load)
    async def read(row: Row) -> Out[Thing]:
        return row

    shop = await serve(
        module,
        [{"name": "read", "path": "/things/{name}", "permission": "shop.thing.read"}],
        permissions={"shop.thing.read": "resource.owner == user.id"},
    )
    ada, bob = shop.client(roles=["author"]), shop.client(roles=["author"])
    assert ada.user_id is not None
    rows["a"] = Row("a", ada.user_id)
    assert (await ada.get("/things/a")).body == {"name": "a", "size": 3}
    assert (await bob.get("/things/a")).code == "forbidden"
    assert (await ada.get("/things/b")).status == 404
    assert (await shop.client(roles=["reader"]).get("/things/b")).status == 403


async def test_who_may_not_is_told_so_before_the_body_is_looked_at(serve: Serve) -> None:
    module = Module("shop")

    async def load(name: str) -> Row:
        return Row(name, uuid4())

    @module.handle("change", resource=load)
    async def change(new: Thing, row: Row) -> None: ...

    shop = await serve(
        module,
        [{"name": "change", "path": "/things/{name}", "permission": "shop.thing.read"}],
        permissions={"shop.thing.read": "resource.owner == user.id"},
    )
    assert (await shop.client(roles=["author"]).post("/things/a", json={"no": 1})).status == 403


async def test_errors_are_answered_in_one_shape_with_the_requests_id(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("known")
    async def known() -> None:
        raise Conflict("Taken.", code="taken", details={"by": "you"})

    @module.handle("gone")
    async def gone() -> None:
        NotFound.throw("thing", 5)

    @module.handle("broken")
    async def broken() -> None:
        raise RuntimeError("hunter2")

    rules = [{"name": name, "path": f"/{name}", **GET} for name in ("known", "gone", "broken")]
    shop = await serve(module, rules)
    client = shop.anonymous()
    answer = await client.get("/known", headers={"X-Request-ID": "abc-1"})
    assert answer.status == 409
    assert answer.body == {
        "error": {"code": "taken", "message": "Taken.", "details": {"by": "you"}, "request_id": "abc-1"}
    }
    assert answer.headers["X-Request-ID"] == "abc-1"
    assert (await client.get("/gone")).code == "thing_not_found"
    broken_answer = await client.get("/broken")
    assert (broken_answer.status, broken_answer.code) == (500, "internal")
    assert b"hunter2" not in broken_answer.content
    assert (await client.get("/nothing")).code == "not_found"
    wrong = await client.post("/known")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD")


async def test_an_answer_that_does_not_fit_its_model_is_our_mistake(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read() -> Out[Thing]:
        return object()

    shop = await serve(module, [{"name": "read", "path": "/", **GET}])
    assert (await shop.anonymous().get("/")).code == "internal"


async def test_a_handler_that_takes_too_long_is_504(serve: Serve) -> None:
    module = Module("shop")
    ended = asyncio.Event()

    @module.handle("slow")
    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    shop = await serve(module, [{"name": "slow", "path": "/", "timeout": "100ms", **GET}])
    answer = await shop.anonymous().get("/")
    assert (answer.status, answer.code) == (504, "timeout")
    assert ended.is_set()


async def test_a_timeout_inside_the_handler_is_not_taken_for_the_rules(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("slow")
    async def slow() -> None:
        raise TimeoutError

    shop = await serve(module, [{"name": "slow", "path": "/", **GET}])
    assert (await shop.anonymous().get("/")).status == 500


async def test_identity_headers_from_outside_do_not_reach_the_handler(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(request: Request) -> list[str]:
        return sorted(name.lower() for name in request.headers)

    shop = await serve(module, [{"name": "read", "path": "/", **GET}])
    answer = await shop.anonymous().get(
        "/",
        headers={"X-Moorage-User": "root", "x_user_id": "1", "X-Forwarded-For": "1.2.3.4", "X-Plain": "1"},
    )
    assert "x-plain" in answer.body
    assert not {"x-moorage-user", "x_user_id", "x-forwarded-for"} & set(answer.body)


async def test_every_answer_has_the_security_headers(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read() -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "path": "/", **GET}])
    for answer in (
        await shop.anonymous().get("/"),
        await shop.anonymous().get("/no"),
        await shop.admin.get("/ready"),
    ):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Server"] == "moorage"
        assert "Strict-Transport-Security" not in answer.headers  # only where the client came by https


async def test_https_at_a_trusted_proxy_brings_hsts_and_the_clients_address(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(request: Request) -> list[str | None]:
        return [request.scheme, request.client]

    shop = await serve(
        module, [{"name": "read", "path": "/", **GET}], environ={"SERVER_TRUSTED_PROXIES": "127.0.0.1"}
    )
    answer = await shop.anonymous().get(
        "/", headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    )
    assert answer.body == ["https", "192.0.2.7"]
    assert "max-age" in answer.headers["Strict-Transport-Security"]


async def test_none_is_204_and_head_has_no_body(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("empty")
    async def empty() -> None: ...

    @module.handle("read")
    async def read() -> Thing:
        return Thing(name="a")

    shop = await serve(
        module, [{"name": "empty", "path": "/empty", **POST}, {"name": "read", "path": "/read", **GET}]
    )
    answer = await shop.anonymous().post("/empty")
    assert (answer.status, answer.content) == (204, b"")
    head = await shop.anonymous().request("HEAD", "/read")
    assert (head.status, head.content) == (200, b"")


class ShopConfig(Config):
    greeting: str = "hello"


async def test_the_modules_settings_are_given_by_type(serve: Serve) -> None:
    module = Module("shop", config=ShopConfig)

    @module.handle("greet")
    async def greet(config: ShopConfig) -> str:
        return config.greeting

    shop = await serve(module, [{"name": "greet", "path": "/", **GET}], environ={"SHOP_GREETING": "moin"})
    assert (await shop.anonymous().get("/")).body == "moin"


async def test_a_rule_without_a_fitting_handler_is_503_and_named_on_the_admin_port(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(id: int) -> None: ...

    shop = await serve(
        module,
        [{"name": "read", "path": "/things/{name}", **GET}, {"name": "other", "path": "/other", **GET}],
    )
    for path in ("/things/1", "/other"):
        answer = await shop.anonymous().get(path)
        assert (answer.status, answer.code) == (503, "unbound_rule")
    assert (await shop.admin.get("/policy")).body["unbound_rules"] == ["other", "read"]


async def test_requests_are_counted_by_rule_and_errors_by_code(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(id: int) -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "path": "/things/{id}", **GET}])
    for path in ("/things/1", "/things/2", "/nothing/1", "/nothing/2"):
        await shop.anonymous().get(path)
    await shop.anonymous().put("/things/1")
    metrics = (await shop.admin.get("/metrics")).content.decode()
    assert 'http_requests_total{method="GET",route="/things/{id}",status="200"} 2.0' in metrics
    assert 'http_requests_total{method="GET",route="(no rule)",status="404"} 2.0' in metrics
    assert 'http_requests_total{method="PUT",route="(no rule)",status="405"} 1.0' in metrics
    assert 'errors_total{code="not_found"} 2.0' in metrics
    assert (
        'http_request_duration_seconds_bucket{le="0.3",method="GET",route="/things/{id}",status="200"} 2.0'
        in metrics
    )
    assert "http_requests_in_flight 0.0" in metrics
    assert 'moorage_build_info{module="shop"' in metrics
    assert "/things/1" not in metrics


async def test_a_request_is_logged_with_its_ids_and_without_its_query(
    serve: Serve, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(user: User) -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "path": "/"}])
    ada = shop.client(roles=["author"])
    await ada.get("/?token=hunter2", headers={"X-Request-ID": "abc-1"})
    lines = log_lines()
    line = next(line for line in lines if line["message"] == "request")
    assert line["request_id"] == "abc-1"
    assert line["user_id"] == str(ada.user_id)
    assert len(line["trace_id"]) == 32
    assert (line["service"], line["status"], line["path"], line["route"]) == ("shop", 200, "/", "read")
    assert "hunter2" not in json.dumps(lines)
    assert ada.headers["Authorization"] not in json.dumps(lines)


async def test_an_answered_request_leaves_nothing_to_the_collector_of_cycles(serve: Serve) -> None:
    """Its pauses are what the slowest requests wait for."""
    module = Module("shop")

    @module.handle("read")
    async def read() -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "methods": ["GET"], "path": "/", "auth": "none"}])
    client = shop.anonymous()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            assert (await client.get("/")).status == 200
        left = sum(type(one) is Context for one in gc.get_objects())
    finally:
        gc.enable()
    assert left <= 1
