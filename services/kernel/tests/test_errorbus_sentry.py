"""The Sentry sink against a server that takes what Sentry's ingest takes."""

import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from moorage.config import ConfigError
from moorage.errorbus import ErrorBus
from moorage.errorbus.bus import sinks_from
from moorage.metrics import Metrics

SECRET = "hunter2hunter2"


class Ingest:
    """Keeps the events of the envelopes that it is sent."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 200
        self.raw = b""
        self.dsn = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw += body
        lines = body.split(b"\n")
        for header, payload in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(header)["type"] == "event":
                self.events.append(json.loads(payload))
        return web.json_response({}, status=self.status)


@pytest.fixture
async def ingest(unused_tcp_port: int) -> AsyncIterator[Ingest]:
    server = Ingest()
    app = web.Application()
    app.router.add_post("/api/7/envelope/", server.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    server.dsn = f"http://{SECRET}@127.0.0.1:{unused_tcp_port}/7"
    yield server
    await runner.cleanup()


async def _published(dsn: str, *errors: Exception, users: bool = False, **context: object) -> ErrorBus:
    metrics = Metrics(module="shop", version="1.2.3", revision="")
    bus = ErrorBus(module="shop", version="1.2.3", environment="test", metrics=metrics)
    for sink in sinks_from(dsn, users=users, release="shop@1.2.3", environment="test"):
        bus.add(sink)
    await bus.open()
    for error in errors:
        bus.publish(error, **context)
    await bus.close(5)
    return bus


def _raised(password: str) -> Exception:
    try:
        raise ConnectionError(f"cannot reach postgresql://app:{password}@db/shop")
    except ConnectionError as exc:
        return exc


async def test_a_report_arrives_with_its_place_and_without_persons_or_secrets(ingest: Ingest) -> None:
    context = {"user_id": "user-1", "trace_id": "a" * 32, "span_id": "b" * 16, "request_id": "r-1"}
    await _published(ingest.dsn, _raised(SECRET), where="posts", **context)
    [event] = ingest.events
    [error] = event["exception"]["values"]
    assert (error["type"], error["value"]) == (
        "ConnectionError",
        "cannot reach postgresql://app:***@db/shop",
    )
    assert error["stacktrace"]["frames"][-1]["function"] == "_raised"
    assert "vars" not in error["stacktrace"]["frames"][-1], "local variables hold bodies and passwords"
    assert (event["release"], event["environment"]) == ("shop@1.2.3", "test")
    assert event["tags"]["module"] == "shop"
    assert (event["tags"]["request_id"], event["tags"]["where"]) == ("r-1", "posts")
    assert event["contexts"]["trace"]["trace_id"] == "a" * 32
    assert event["fingerprint"] == [event["tags"]["fingerprint"]]
    assert "user" not in event
    assert not event.get("server_name")
    assert not event.get("breadcrumbs", {}).get("values")
    assert b"user-1" not in ingest.raw
    assert f":{SECRET}@db".encode() not in ingest.raw


async def test_the_users_id_goes_along_where_the_settings_allow_it(ingest: Ingest) -> None:
    await _published(ingest.dsn, _raised("x"), users=True, user_id="user-1", email="a@example.org")
    [event] = ingest.events
    assert event["user"] == {"id": "user-1"}
    assert b"a@example.org" not in ingest.raw


async def test_repetitions_arrive_as_a_number(ingest: Ingest) -> None:
    await _published(ingest.dsn, *[_raised("x") for _ in range(40)])
    assert sorted(event["extra"]["count"] for event in ingest.events) == [1, 39]


async def test_a_server_that_is_away_or_refuses_costs_only_the_time_allowed(
    ingest: Ingest, unused_tcp_port_factory: Any
) -> None:
    ingest.status = 500
    for dsn in (ingest.dsn, f"http://key@127.0.0.1:{unused_tcp_port_factory()}/7"):
        began = time.monotonic()
        await _published(dsn, _raised("x"))
        assert time.monotonic() - began < 7


@pytest.mark.parametrize("dsn", [f"https://{SECRET}@", "nonsense", f"ftp://{SECRET}@host/7"])
def test_what_is_no_dsn_is_refused_without_being_quoted(dsn: str) -> None:
    with pytest.raises(ConfigError, match=r"errors\.sentry_dsn is no DSN") as caught:
        sinks_from(dsn, users=False, release="", environment="test")
    assert SECRET not in str(caught.value)
    assert dsn not in str(caught.value)


def test_without_a_dsn_there_is_no_sink() -> None:
    assert sinks_from(None, users=False, release="", environment="test") == ()
