"""A stand-in for a collector of traces: takes OTLP over HTTP as protobuf, and keeps the spans to look at."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.common.v1 import common_pb2 as common
from opentelemetry.proto.trace.v1 import trace_pb2 as wire

_KINDS: Final = {
    wire.Span.SPAN_KIND_INTERNAL: "internal",
    wire.Span.SPAN_KIND_SERVER: "server",
    wire.Span.SPAN_KIND_CLIENT: "client",
    wire.Span.SPAN_KIND_PRODUCER: "producer",
    wire.Span.SPAN_KIND_CONSUMER: "consumer",
}
_REMOTE: Final = wire.SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


@dataclass(frozen=True)
class SeenSpan:
    """A span as it arrived. Ids are lower-case hexadecimal, ``parent_id`` is empty for a root."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    attributes: Mapping[str, Any]
    links: Sequence[tuple[str, str]]
    """(trace_id, span_id) of each."""
    failed: bool
    status_message: str
    events: Sequence[str]
    remote_parent: bool
    resource: Mapping[str, Any]
    nanoseconds: tuple[int, int]

    @property
    def service(self) -> str:
        """Whose it is."""
        return str(self.resource.get("service.name"))


@dataclass
class Collector:
    """A collector that listens. ``answer`` is the status that it gives."""

    url: str = ""
    spans: list[SeenSpan] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    answer: int = 200
    silent: bool = False
    """Takes requests and never answers."""
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def named(self, name: str) -> list[SeenSpan]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]

    async def wait(self, count: int = 1, *, name: str | None = None, within: float = 10.0) -> list[SeenSpan]:
        """Wait until *count* spans (of that *name*) are there."""
        async with asyncio.timeout(within):
            while True:
                found = self.spans if name is None else self.named(name)
                if len(found) >= count:
                    return list(found)
                self._came.clear()
                await self._came.wait()

    async def _take(self, request: web.Request) -> web.Response:
        if self.silent:
            await asyncio.sleep(3600)
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.headers.append(dict(request.headers))
        if self.answer == 200:
            message = service.ExportTraceServiceRequest.FromString(body)
            for group in message.resource_spans:
                resource = _values(group.resource.attributes)
                self.spans += [_seen(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._came.set()
        return web.Response(
            status=self.answer,
            body=service.ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )


def _seen(span: wire.Span, resource: Mapping[str, Any]) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        kind=_KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        failed=span.status.code == wire.Status.STATUS_CODE_ERROR,
        status_message=span.status.message,
        events=[event.name for event in span.events],
        remote_parent=bool(span.flags & _REMOTE),
        resource=resource,
        nanoseconds=(span.start_time_unix_nano, span.end_time_unix_nano),
    )


def _values(pairs: Sequence[common.KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@asynccontextmanager
async def collecting(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Collector]:
    """A collector for the length of the block; ``url`` is what ``OTEL_EXPORTER_OTLP_ENDPOINT`` takes."""
    collector = Collector()
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_post("/v1/traces", collector._take)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    collector.url = f"http://{host}:{site.port}"
    try:
        yield collector
    finally:
        await runner.cleanup()
