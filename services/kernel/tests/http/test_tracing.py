"""A request's span, its log lines and its place in the metrics name each other."""

import logging
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from moorage import Module, NotFound, Tracer
from rigs import otlp

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
RULES = [
    {"name": "read", "methods": ["GET"], "path": "/things/{id}", "auth": "optional"},
    {"name": "mine", "methods": ["GET"], "path": "/mine"},
]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[otlp.Collector]:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    async with otlp.collecting() as collector:
        yield collector


@pytest.fixture
async def shop(serve: Any, collector: otlp.Collector) -> Any:
    module = Module("shop")

    @module.handle("read")
    async def read(id: int, tracer: Tracer) -> str:
        if id == 0:
            raise RuntimeError("hunter2")
        if id == 1:
            raise NotFound
        with tracer.span("look it up"):
            logging.getLogger("shop").info("found")
        return "x"

    @module.handle("mine")
    async def mine() -> str:
        return "x"

    return await serve(module, RULES, environ={"TRACING_OTLP_ENDPOINT": collector.url})


async def test_every_outcome_has_a_span_named_by_its_rule(shop: Any, collector: otlp.Collector) -> None:
    client = shop.anonymous()
    for path in ("/things/7?token=hunter2", "/things/1", "/things/0", "/mine", "/nowhere/hunter"):
        await client.get(path, headers={"traceparent": PARENT})
    await collector.wait(6)
    found = [
        (
            span.name,
            span.attributes["http.response.status_code"],
            span.attributes.get("error.type"),
            span.failed,
        )
        for span in collector.spans
        if span.kind == "server"
    ]
    assert found == [
        ("GET /things/{id}", 200, None, False),
        ("GET /things/{id}", 404, "not_found", False),
        ("GET /things/{id}", 500, "internal", True),
        ("GET /mine", 401, "unauthenticated", False),
        ("GET", 404, "not_found", False),
    ]
    assert {(span.trace_id, span.parent_id) for span in collector.spans if span.kind == "server"} == {
        (PARENT.split("-")[1], PARENT.split("-")[2])
    }
    assert "hunter2" not in repr(collector.spans)


async def test_lines_and_examples_lead_to_the_span(
    shop: Any, collector: otlp.Collector, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    await shop.anonymous().get("/things/7")
    inner, outer = await collector.wait(2)
    lines = {line["message"]: line for line in log_lines() if line["logger"] in {"shop", "moorage.access"}}
    assert (lines["found"]["trace_id"], lines["found"]["span_id"]) == (inner.trace_id, inner.span_id)
    assert (lines["request"]["trace_id"], lines["request"]["span_id"]) == (outer.trace_id, outer.span_id)
    assert lines["request"]["request_id"] == outer.attributes["moorage.request_id"]
    text = (await shop.admin.get("/metrics", headers={"Accept": "application/openmetrics-text"})).content
    examples = [
        sample.exemplar.labels
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert examples == [{"trace_id": outer.trace_id, "span_id": outer.span_id}]


async def test_nothing_of_a_request_is_in_the_lines_of_the_next_on_its_connection(
    shop: Any, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    user = shop.client(tenant="acme")
    await user.get("/mine")
    await shop.anonymous().get("/things/7")
    known, unknown = [line for line in log_lines() if line["logger"] == "moorage.access"]
    assert (known["user_id"], known["tenant_id"]) == (str(user.user_id), "acme")
    assert {"user_id", "tenant_id"}.isdisjoint(unknown)
    assert known["trace_id"] != unknown["trace_id"]
