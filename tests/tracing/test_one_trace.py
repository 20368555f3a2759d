"""One request, followed from the edge through two modules, databases, cache and bus, to a handler of its event."""

import asyncio

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
_TWICE = {"POST", "GET /api/v1/ledger/items/{item}"}
"""At both sides of a connection."""


@pytest.mark.parametrize("backend", ["postgres", "kafka"])
async def test_one_trace_leads_from_the_edge_to_the_consumer_of_another_module(site, backend: str) -> None:
    browser = traces.new().with_sampled(True)
    headers = {"traceparent": browser.traceparent, "tracestate": "browser=1"}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{site.url}/api/v1/orders/tea", headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
    for _, name in _EXPECTED:
        await site.collector.wait(2 if name in _TWICE else 1, name=name, within=30)
    spans = [span for span in site.collector.spans if span.trace_id == browser.trace_id]
    by_id = {span.span_id: span for span in spans}
    names = {(span.service, span.name) for span in spans}
    assert names >= _EXPECTED, sorted(_EXPECTED - names)
    assert not any(span.failed for span in spans)
    assert {span.state for span in spans if span.name != "publish"} == {"browser=1"}

    def one(service: str, name: str, kind: str) -> SeenSpan:
        [found] = [span for span in spans if (span.service, span.name, span.kind) == (service, name, kind)]
        return found

    def above(span: SeenSpan) -> list[tuple[str, str, str]]:
        """Service, name and kind of the spans from its parent up to the browser's."""
        found = []
        while span.parent_id != browser.span_id:
            span = by_id[span.parent_id]
            found.append((span.service, span.name, span.kind))
        return found

    edge = [("gateway", "POST", "client"), ("gateway", "POST", "server")]
    handler = ("orders", "POST /api/v1/orders/{item}", "server")
    assert above(one(*handler)) == edge
    ways = above(one("ledger", "SELECT entry", "client"))
    assert ways[:2] == [
        ("ledger", "GET /api/v1/ledger/items/{item}", "server"),
        ("orders", "GET /api/v1/ledger/items/{item}", "client"),
    ]
    assert ways[-3:] == [handler, *edge]
    assert above(one("orders", "WITH moorage_outbox", "client")) == [handler, *edge]
    assert above(one("orders", "publish", "producer")) == [handler, *edge]
    consumed = one("ledger", "process orders.order.placed", "consumer")
    assert above(consumed) == [handler, *edge]
    assert consumed.links == [(browser.trace_id, one(*handler).span_id)]
    assert above(one("ledger", "INSERT entry", "client"))[0] == ("ledger", consumed.name, "consumer")
    assert consumed.nanoseconds[0] >= one("orders", "publish", "producer").nanoseconds[0]

    assert await _written_down(site) == [browser.trace_id], "EventInfo says it, too"


async def _written_down(site) -> list[str]:
    """What the ledger has committed, which is after its spans have ended."""
    connection = await asyncpg.connect(site.ledger.database.owner_dsn)
    try:
        async with asyncio.timeout(20):
            while True:
                if rows := await connection.fetch("SELECT trace_id FROM default_ledger.entry"):
                    return [row["trace_id"] for row in rows]
                await asyncio.sleep(0.05)
    finally:
        await connection.close()
