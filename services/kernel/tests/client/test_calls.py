"""What a call sends, and what becomes of each kind of answer."""

import asyncio
import gzip
import json
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from moorage import (
    Model,
    UpstreamConflict,
    UpstreamError,
    UpstreamNotFound,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from moorage import trace as traces
from moorage.errors import NotFound, error_body
from moorage.guard.identity import User
from moorage.scope import Scope, Stack, current
from moorage.tracing import NullTracer
from rigs.waiting import until


class UserOut(Model):
    id: int
    name: str


@contextmanager
def scope(**given: Any) -> Any:
    made = Scope(stack=Stack(), groups={}, trace=traces.new(), request_id="req-1", **given)
    token = current.set(made)
    try:
        yield made
    finally:
        current.reset(token)


# -- sending


async def test_path_query_body_and_headers_arrive_as_they_were_meant(server: Any, connect: Any) -> None:
    server.json({"id": 7, "name": "Ada"})
    found = await connect().shop.post(
        "/api/v1/users/{id}/mails/{name}",
        UserOut(id=7, name="ü"),
        id="a/b?c#d%2e",
        name="x y",
        query={"q": "a&b", "tag": ["x", "y"], "none": None, "all": True},
        headers={"X-Own": "1"},
        into=UserOut,
    )
    assert found == UserOut(id=7, name="Ada")
    [request] = server.seen
    assert request.method == "POST"
    assert request.raw_path == "/api/v1/users/a%2Fb%3Fc%23d%252e/mails/x%20y?q=a%26b&tag=x&tag=y&all=true"
    assert json.loads(server.bodies[0]) == {"id": 7, "name": "ü"}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Own"] == "1"


async def test_without_into_the_answer_comes_whole(server: Any, connect: Any) -> None:
    server.json({"a": 1}, 201, {"X-Theirs": "2"})
    answer = await connect().shop.put("/x", b"bytes")
    assert (answer.status, answer.json(), answer.headers["x-theirs"]) == (201, {"a": 1}, "2")
    assert server.bodies == [b"bytes"]


@pytest.mark.parametrize("value", ["", ".", ".."])
async def test_a_value_that_would_lead_elsewhere_is_not_found(server: Any, connect: Any, value: str) -> None:
    with pytest.raises(NotFound):
        await connect().shop.get("/users/{id}", id=value)
    assert server.seen == []


@pytest.mark.parametrize(
    "path", ["users", "//evil.example/x", "/a?b=1", "/a#b", "/a b", "/a\r\nX: y", "http://evil/"]
)
async def test_what_is_no_path_is_refused(connect: Any, path: str) -> None:
    with pytest.raises(ValueError, match="is no path"):
        await connect().shop.get(path)


async def test_captures_and_template_must_agree(connect: Any) -> None:
    for path, captures in (("/a/{id}", {}), ("/a", {"id": 1}), ("/a/{id}", {"ident": 1})):
        with pytest.raises(ValueError, match="disagree about"):
            await connect().shop.get(path, **captures)


async def test_our_own_headers_cannot_be_replaced(connect: Any) -> None:
    with pytest.raises(ValueError, match="Host"):
        await connect().shop.get("/", headers={"Host": "evil"})


@pytest.mark.parametrize("name", ["evil.example", "a@b", "shop:80", "", "Shop", "ns/shop/x", "..", "a" * 41])
async def test_no_text_becomes_a_host(connect: Any, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a module"):
        connect().clients(name)


async def test_a_call_says_as_whom_for_which_request_and_how_long(
    server: Any, connect: Any, tmp_path: Path
) -> None:
    """The module's own token goes along, the user's never does."""
    server.json(1)
    token = tmp_path / "token"
    token.write_text("own-token\n")
    clients = connect(timeout=50)
    user = User(id=uuid4())
    with scope(caller=user, tenant="acme") as here, clients.caller.tracer.span("request", trace=here.trace):
        await clients.shop.get("/x")
    headers = server.seen[0].headers
    assert headers["Authorization"] == "Bearer own-token"
    assert headers["X-Request-ID"] == "req-1"
    assert headers["traceparent"].split("-")[1] == here.trace.trace_id
    assert 40_000 < int(headers["X-Moorage-Timeout-Ms"]) <= 50_000
    assert not {"x-moorage-user", "cookie"} & {name.lower() for name in headers}


async def test_a_renewed_token_is_used_and_a_missing_one_is_left_out(
    server: Any, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.client.identity._EVERY_S", -1.0)
    server.json(1)
    shop = connect().shop
    await shop.get("/x")
    for text in ("one", "two"):
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(tmp_path / "token")
        await shop.get("/x")
    sent = [request.headers.get("Authorization") for request in server.seen]
    assert sent == [None, "Bearer one", "Bearer two"]


async def test_another_identity_can_be_given(server: Any, connect: Any) -> None:
    class Exchanged:
        async def headers(self, target: str, scope: Scope | None) -> dict[str, str]:
            assert scope is not None
            return {"Authorization": f"Bearer for {target} in {scope.request_id}"}

    server.json(1)
    with scope():
        await connect(identity=Exchanged()).shop.get("/x")
    assert server.seen[0].headers["Authorization"] == "Bearer for default/shop in req-1"


async def test_the_environments_proxies_cookies_and_redirects_are_not_for_us(
    server: Any, connect: Any, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setenv("http_proxy", nobody)
    shop = connect().shop
    server.json(1, headers={"Set-Cookie": "a=b"})
    await shop.get("/x")
    await shop.get("/x")
    assert "Cookie" not in server.seen[1].headers
    server.json(1, 302, {"Location": f"{server.url}/elsewhere"})
    with pytest.raises(UpstreamError, match="no usable answer") as caught:
        await shop.get("/x")
    assert "redirects are not followed" in caught.value.reason
    assert len(server.seen) == 3


# -- answers


async def test_unknown_fields_of_an_answer_are_ignored(server: Any, connect: Any) -> None:
    """The other module may be newer; `Model` itself refuses unknown fields."""
    server.json([{"id": 1, "name": "a", "added_in_2_0": {}}])
    assert await connect().shop.get("/x", into=list[UserOut]) == [UserOut(id=1, name="a")]


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id": "secret-x"}', b'{"id": 1, "name": null}'])
async def test_an_answer_of_another_form_is_a_502_that_quotes_nothing(
    server: Any, connect: Any, body: bytes
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    server.answer = answer
    with pytest.raises(UpstreamError) as caught:
        await connect().shop.get("/x", into=UserOut)
    assert caught.value.status == 502
    assert "its answer is no UserOut" in caught.value.reason
    assert "secret" not in caught.value.reason


@pytest.mark.parametrize(
    ("answered", "kind", "status"),
    [
        (400, UpstreamError, 502),
        (401, UpstreamError, 502),
        (403, UpstreamError, 502),
        (404, UpstreamNotFound, 502),
        (409, UpstreamConflict, 502),
        (429, UpstreamUnavailable, 503),
        (500, UpstreamError, 502),
        (502, UpstreamError, 502),
        (503, UpstreamUnavailable, 503),
        (504, UpstreamTimeout, 504),
    ],
)
async def test_a_refusal_is_an_error_that_our_client_learns_little_of(
    server: Any, connect: Any, answered: int, kind: type[UpstreamError], status: int
) -> None:
    server.error(answered, "user_gone", {"Retry-After": "7"})
    with pytest.raises(UpstreamError) as caught:
        await connect(retries=0).shop.get("/x")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.answered, error.upstream_code) == (status, answered, "user_gone")
    assert (error.upstream_message, error.upstream_details) == ("No.", {"why": "so"})
    assert error.reason == f"default/shop: answered {answered} user_gone No."
    shown = json.dumps(error_body(error, "r"))
    assert not any(word in shown for word in ("shop", "user_gone", "No.", "why"))
    assert error.headers == ({"Retry-After": "7"} if status == 503 else {})


async def test_too_large_an_answer_is_not_read_to_its_end(server: Any, connect: Any) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"x" * 100_000)
        return response

    async def packed(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b"x" * 2**24), headers={"Content-Encoding": "gzip"})

    clients = connect(max_body=1_000_000)
    server.json("x" * 2_000_000)
    with pytest.raises(UpstreamError) as announced:
        await clients.shop.get("/x")
    for one in (answer, packed):
        server.answer = one
        with pytest.raises(UpstreamError) as caught:
            await clients.shop.get("/x")
        assert "too large" in caught.value.reason
    assert "announced" in announced.value.reason
    assert len(server.seen) == 3
    assert clients.count("client_requests_total", target="default/shop", outcome="too_large") == 3


async def test_an_answer_to_head_announces_what_does_not_come(server: Any, connect: Any) -> None:
    server.json("x" * 2_000_000)
    answer = await connect(max_body=1000).shop.request("HEAD", "/x")
    assert (answer.status, answer.body) == (200, b"")


# -- retries


@pytest.mark.parametrize("how", ["error", "resets", "truncated"])
async def test_what_may_be_repeated_is_repeated(server: Any, connect: Any, how: str) -> None:
    fail = (lambda: server.error(503)) if how == "error" else getattr(server, how)
    clients = connect(retries=2)
    for method in ("GET", "PUT", "DELETE"):
        server.in_turn(fail, fail, lambda: server.json(1))
        assert (await clients.shop.request(method, "/x")).json() == 1
        assert server.methods[method] == 3
    assert clients.count("client_retries_total", target="default/shop") == 6


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_may_not_be_repeated_is_repeated_only_with_a_key(
    server: Any, connect: Any, method: str
) -> None:
    shop = connect(retries=2).shop
    server.error(503)
    with pytest.raises(UpstreamUnavailable):
        await shop.request(method, "/x", {"a": 1})
    assert len(server.seen) == 1
    server.in_turn(lambda: server.error(503), lambda: server.json(1))
    assert (await shop.request(method, "/x", {"a": 1}, idempotency_key="k")).json() == 1
    assert [request.headers.get("Idempotency-Key") for request in server.seen] == [None, "k", "k"]
    assert server.bodies[1] == server.bodies[2] == b'{"a":1}'


@pytest.mark.parametrize("status", [400, 404, 409, 429, 500, 501])
async def test_a_definite_answer_is_not_asked_for_again(server: Any, connect: Any, status: int) -> None:
    server.error(status)
    with pytest.raises(UpstreamError):
        await connect(retries=2).shop.get("/x")
    assert len(server.seen) == 1


async def test_nobody_there_is_a_503_that_names_the_target_only_in_the_log(connect: Any, nobody: str) -> None:
    clients = connect(url=nobody, retries=1)
    with pytest.raises(UpstreamUnavailable) as caught:
        await clients.shop.get("/x")
    assert caught.value.reason.startswith("default/shop: cannot be reached")
    assert clients.count("client_retries_total", target="default/shop") == 1


async def test_a_module_that_is_not_in_the_registry_is_unavailable(connect: Any) -> None:
    with pytest.raises(UpstreamUnavailable) as caught:
        await connect().clients("unknown").get("/x")
    assert "client.registry" in caught.value.reason


async def test_retry_after_is_waited_for(server: Any, connect: Any) -> None:
    server.in_turn(lambda: server.error(503, headers={"Retry-After": "1"}), lambda: server.json(1))
    began = asyncio.get_running_loop().time()
    await connect(timeout=60).shop.get("/x")
    assert 1 <= asyncio.get_running_loop().time() - began < 10


@pytest.mark.parametrize("text", ["60", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)])
async def test_a_retry_after_past_the_deadline_is_not_waited_for(
    server: Any, connect: Any, text: str
) -> None:
    server.error(503, headers={"Retry-After": text})
    began = asyncio.get_running_loop().time()
    with pytest.raises(UpstreamUnavailable):
        await connect().shop.get("/x", timeout=40)
    assert asyncio.get_running_loop().time() - began < 10
    assert len(server.seen) == 1


# -- deadlines


@pytest.mark.parametrize("how", ["silent", "dripping"])
async def test_a_call_ends_with_its_timeout_whatever_the_server_does(
    server: Any, connect: Any, how: str
) -> None:
    server.silent() if how == "silent" else server.dripping(0.06)  # for a minute
    began = asyncio.get_running_loop().time()
    with pytest.raises(UpstreamTimeout) as caught:
        await connect(timeout=60).shop.get("/x", timeout=0.3)
    assert 0.28 < asyncio.get_running_loop().time() - began < 10
    assert caught.value.status == 504


async def test_the_requests_deadline_is_earlier_than_the_calls_timeout(server: Any, connect: Any) -> None:
    loop = asyncio.get_running_loop()
    shop = connect(timeout=60, connect_timeout=20).shop
    server.json("connected")
    await shop.get("/x")
    server.silent()
    with scope(deadline=loop.time() + 1):
        began = loop.time()
        with pytest.raises(UpstreamTimeout):
            await shop.get("/x")
        assert loop.time() - began < 10
    assert int(server.seen[1].headers["X-Moorage-Timeout-Ms"]) <= 1000
    with scope(deadline=loop.time() - 1), pytest.raises(UpstreamTimeout, match="took too long"):
        await shop.get("/x")
    assert len(server.seen) == 2


async def test_a_cancelled_call_ends_at_once_and_gives_its_place_back(server: Any, connect: Any) -> None:
    server.silent()
    clients = connect(max_connections=1, max_waiting=0, timeout=60)
    task = asyncio.create_task(clients.shop.get("/x"))
    await until(lambda: server.now == 1)
    task.cancel()
    began = time.perf_counter()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.perf_counter() - began < 10
    server.json(1)
    assert (await clients.shop.get("/x")).json() == 1
    assert clients.target.bulkhead.busy == 0


# -- observed


async def test_calls_are_counted_by_target_and_outcome(server: Any, connect: Any) -> None:
    clients = connect(retries=0)
    server.in_turn(
        lambda: server.json(1),
        lambda: server.error(404),
        lambda: server.error(503),
        server.resets,
        server.silent,
    )
    await clients.shop.get("/x")
    for timeout in (30, 30, 30, 0.2):
        with pytest.raises(UpstreamError):
            await clients.shop.get("/x", timeout=timeout)
    for outcome in ("2xx", "4xx", "5xx", "broken", "timeout"):
        labels = {"target": "default/shop", "outcome": outcome}
        assert clients.count("client_requests_total", **labels) == 1, outcome
    assert clients.count("client_request_duration_seconds_count", target="default/shop") == 5
    assert clients.count("client_requests_in_flight", target="default/shop") == 0
    assert clients.count("client_breaker_state", target="default/shop") == 0


async def test_each_try_is_a_span_of_the_callers_trace(server: Any, connect: Any) -> None:
    spans: list[dict[str, Any]] = []

    class Recording(NullTracer):
        @contextmanager
        def span(self, name: str, **given: Any) -> Any:
            spans.append({"name": name, **given})
            with super().span(name, **given) as span:
                yield span

    server.in_turn(lambda: server.error(503), lambda: server.json(1))
    await connect(tracer=Recording()).shop.get("/users/{id}", id=7)
    assert [span["name"] for span in spans] == ["GET /users/{id}"] * 2
    assert {span["kind"] for span in spans} == {"client"}
    assert "http.request.resend_count" not in spans[0]["attributes"]
    assert spans[1]["attributes"]["http.request.resend_count"] == 1
