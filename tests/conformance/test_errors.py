"""What is reported reaches the log and Sentry alike: once, counted, masked, in time."""

import asyncio
import gzip
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from moorage import logs
from moorage.config import load
from moorage.errorbus import ErrorBus
from moorage.errorbus.bus import sinks_from
from moorage.metrics import Metrics

Heard = Callable[[], list[dict[str, Any]]]


@pytest.fixture(params=["log", "sentry"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Backend:
    """A bus whose reports end in the log or in a server that takes what Sentry's takes."""

    def __init__(self, bus: ErrorBus, heard: Heard) -> None:
        self.bus, self.heard = bus, heard


@pytest.fixture
async def errors(backend: str, tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[Backend]:
    metrics = Metrics(module="shop", version="1.2.3", revision="")
    bus = ErrorBus(module="shop", version="1.2.3", environment="test", metrics=metrics)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    environ = {"LOGGING_FORMAT": "json", "MOORAGE_VERSION": "1.2.3"}
    logs.configure(load(environ=environ, folder=tmp_path), service="shop", for_good=False)
    stream = io.StringIO()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    events: list[dict[str, Any]] = []

    async def ingest(request: web.Request) -> web.Response:
        body = await request.read()
        lines = (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).split(b"\n")
        events.extend(
            json.loads(payload)
            for header, payload in zip(lines[1::2], lines[2::2], strict=False)
            if json.loads(header)["type"] == "event"
        )
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/api/7/envelope/", ingest)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    if backend == "sentry":
        dsn = f"http://key@127.0.0.1:{unused_tcp_port}/7"
        for sink in sinks_from(dsn, users=False, release="shop@1.2.3", environment="test"):
            bus.add(sink)
    await bus.open()

    def logged() -> list[dict[str, Any]]:
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield Backend(bus, logged if backend == "log" else lambda: events)
    await bus.close(2)
    await runner.cleanup()
    structlog.reset_defaults()
    root.handlers[:], level = before
    root.setLevel(level)


def raised(text: str = "wrong") -> Exception:
    try:
        raise ConnectionError(text)
    except ConnectionError as exc:
        return exc


async def test_it_arrives_with_type_text_and_place(errors: Backend) -> None:
    mark = errors.bus.publish(raised("no route"), where="pay", trace_id="a" * 32)
    await errors.bus.close(5)
    [told] = errors.heard()
    text = json.dumps(told)
    for word in ("ConnectionError", "no route", "raised", "pay", mark, "a" * 32, "1.2.3"):
        assert word in text


async def test_secrets_and_local_variables_do_not(errors: Backend) -> None:
    password = "hunter2"
    errors.bus.publish(raised(f"postgresql://u:{password}@h/d"))
    await errors.bus.close(5)
    told = json.dumps(errors.heard())
    assert "postgresql://u:***@h/d" in told
    assert '"vars"' not in told
    assert '"locals"' not in told
    assert ":hunter2@" not in told


async def test_equal_errors_do_not_flood(errors: Backend) -> None:
    for number in range(500):
        errors.bus.publish(raised(f"order {number}"))
    await errors.bus.close(5)
    assert 2 <= len(errors.heard()) < 525
    tracebacks = [told for told in errors.heard() if told.get("exception")]
    assert len(tracebacks) <= 2


async def test_publishing_does_not_block(errors: Backend) -> None:
    began = time.perf_counter()
    for number in range(200):
        errors.bus.publish(type(f"Error{number}", (Exception,), {})(str(number)))
    assert time.perf_counter() - began < 2
    await asyncio.sleep(0)


async def test_closing_ends_in_its_time_and_twice_is_once(errors: Backend) -> None:
    errors.bus.publish(raised())
    began = time.monotonic()
    await errors.bus.close(3)
    await errors.bus.close(3)
    assert time.monotonic() - began < 4
    assert len(errors.heard()) == 1
