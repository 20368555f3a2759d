"""One request, followed from the edge through two modules, databases, cache and bus, to a handler of its event."""

import aiohttp
import asyncpg
import pytest

from moorage import trace as traces
from rigs.otlp import SeenSpan

pytestmark = [pytest.mark.postgres]

_EXPECTED = {
    ("gateway", "POST"),
    ("orders", "POST /api/v1/orders/{item}"),
    ("orders", "cache get"),
    ("orders", "GET /api/v1/ledger/items/{item}"),
    ("ledger", "GET /api/v1/ledger/items/{item}"),
    ("ledger", "SELECT entry"),
    ("orders", "INSERT placed"),
    ("orders", "WITH moorage_outbox"),
    ("orders", "publish"),
    ("ledger", "process orders.order.placed"),
    ("ledger", "INSERT entry"),
}


@pytest.mark.parametrize("backend", ["postgres", "kafka"])
async def test_one_trace_leads_from_the_edge_to_the_consumer_of_another_module(site, backend: str) -> None:
    browser = traces.new().with_sampled(True)
    headers = {"traceparent": browser.traceparent, "tracestate": "browser=1"}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{site.url}/api/v1/orders/tea", headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
    await site.collector.wait(1, name="INSERT entry", within=20)
    await site.collector.wait(1, name="process orders.order.placed")
    await site.collector.wait(2, name="POST")
    spans = [span for span in site.collector.spans if span.trace_id == browser.trace_id]
    by_id = {span.span_id: span for span in spans}
    names = {(span.service, span.name) for span in spans}
