"""Spans recorded by OpenTelemetry's SDK and sent by OTLP over HTTP. Imported only where tracing is enabled.

No global provider: several modules may live in one process, each with its own resource and endpoint. Spans are
sent by a thread of the SDK's, from a bounded queue; nothing that happens there reaches a request.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import structlog
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace.propagation import set_span_in_context

from moorage import trace as traces
from moorage.errors import AppError
from moorage.trace import Trace, current_trace
from moorage.tracing import Kind, Unrecorded, Value
from moorage.tracing.sampling import Sampler

log = structlog.get_logger("moorage.tracing")

Count = Callable[[int], None]
FLUSH_S: Final = 2.0
"""Seconds at the end of a process in which spans that wait are sent."""
_LOG_EVERY_S: Final = 60.0
_LONGEST_VALUE: Final = 2048
_QUEUE: Final = 2048
_KINDS: Final[Mapping[Kind, otel.SpanKind]] = {
    "internal": otel.SpanKind.INTERNAL,
    "server": otel.SpanKind.SERVER,
    "client": otel.SpanKind.CLIENT,
    "producer": otel.SpanKind.PRODUCER,
    "consumer": otel.SpanKind.CONSUMER,
}
_LENGTH_LIMITS: Final = ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")


class OtelTracer:
    """A `moorage.tracing.Tracer` on an SDK of its own.

    Args:
        sampler: decides about the first span of this process in each trace; those below follow it.
        counted: told what became of spans, ``exported``, ``failed`` or ``dropped``, and how many.
        endpoint: the whole URL. Headers, certificates, compression and timeout: ``OTEL_EXPORTER_OTLP_*``.
        attributes: of the resource: who it is that makes these spans.

    A thread runs from here on, until `close`.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        counted: "Counted",
        endpoint: str,
        attributes: Mapping[str, str],
    ) -> None:
        _quieten()
        self._exporter = Watched(OTLPSpanExporter(endpoint=endpoint), counted, endpoint)
        self._provider = TracerProvider(
            sampler=sampler,
            resource=Resource({**attributes, **_SDK}),
            id_generator=(ids := GivenIds()),
            span_limits=_limits(),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(Queue(self._exporter, counted))
        self._tracer = self._provider.get_tracer("moorage")
        self._ids = ids

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        trace: Trace | None = None,
        links: Sequence[Trace] = (),
    ) -> "Unrecorded | Recorded":
        """As `moorage.tracing.Tracer.span`."""
        if trace is None:
            here = current_trace()
            if here is not None and not here.sampled:
                return Unrecorded(here)  # decided where the trace came in
            trace = traces.new() if here is None else here.child()
            if here is None and kind == "client":
                return Unrecorded(trace)
        elif trace.remote:
            trace = trace.child()
        if not (trace.entry or trace.sampled):
            return Unrecorded(trace)
        span = self._start(name, _KINDS[kind], attributes, trace, links)
        trace = trace.with_sampled(span.is_recording())
        return Recorded(trace, span) if trace.sampled else Unrecorded(trace)

    def _start(
        self,
        name: str,
        kind: otel.SpanKind,
        attributes: Mapping[str, Value] | None,
        trace: Trace,
        links: Sequence[Trace],
    ) -> otel.Span:
        """The SDK's span with the ids of *trace*."""
        context = Context()
        if trace.parent_id is not None:
            parent = _context(trace, trace.parent_id, is_remote=trace.entry)
            context = set_span_in_context(otel.NonRecordingSpan(parent), context)
        self._ids.give(int(trace.trace_id, 16), int(trace.span_id, 16))
        return self._tracer.start_span(
            name,
            context,
            kind,
            attributes,
            [otel.Link(_context(link, link.span_id, is_remote=link.remote)) for link in links],
        )

    async def close(self, within: float = FLUSH_S) -> None:
        """Send what waits, for *within* seconds at most, and stop the thread."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def stop() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A daemon, unlike an executor's thread: a collector that does not answer must not hold the process.
        threading.Thread(target=stop, name="moorage-tracing-stop", daemon=True).start()
        try:
            async with asyncio.timeout(within):
                await done.wait()
        except TimeoutError:
            log.warning("spans were not sent in time and are lost", waited_s=within)
        finally:
            self._exporter.shutdown()


class Recorded:
    """A span that is going to be exported, open for the length of a ``with`` block."""

    __slots__ = ("_failed", "_span", "_token", "trace")
    recording = True

    def __init__(self, trace: Trace, span: otel.Span) -> None:
        self.trace = trace
        self._span = span
        self._failed = False
        self._token: Token[Trace | None] | None = None

    def __enter__(self) -> Self:
        self._token = traces.enter(self.trace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._token is not None
        traces.leave(self._token)
        if exc is not None and not self._failed:
            self.failed(exc)
        self._span.end()

    def set(self, name: str, value: Value | None) -> None:
        """As `moorage.tracing.Span.set`."""
        if value is not None:
            self._span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        """As `moorage.tracing.Span.rename`."""
        self._span.update_name(name)

    def failed(self, exc: BaseException | str) -> None:
        """As `moorage.tracing.Span.failed`. No message: it may hold what users sent; the log has it."""
        self._failed = True
        if isinstance(exc, AppError):
            self._span.set_attribute("error.type", exc.code)
            if exc.status < 500:
                return  # an answer like another: what was asked for is not there, or not allowed
        elif isinstance(exc, asyncio.CancelledError):
            self._span.set_attribute("error.type", "cancelled")
            return  # who has cancelled it knows whether that is a failure
        else:
            self._span.set_attribute("error.type", exc if isinstance(exc, str) else type(exc).__qualname__)
        self._span.set_status(otel.StatusCode.ERROR)


class GivenIds(RandomIdGenerator):
    """Gives the SDK the ids that the guard has already made: logs and headers show the same ones."""

    def __init__(self) -> None:
        self._next = threading.local()

    def give(self, trace_id: int, span_id: int) -> None:
        """Let the next span of this thread have these ids."""
        self._next.ids = trace_id, span_id

    def generate_trace_id(self) -> int:
        """The id of a trace that begins."""
        trace_id: int = self._next.ids[0]
        return trace_id

    def generate_span_id(self) -> int:
        """The id of a span."""
        span_id: int = self._next.ids[1]
        return span_id


class Counted:
    """What became of spans; the counters behind it may be called from any thread."""

    def __init__(self, exported: Count, failed: Count, dropped: Count) -> None:
        self.exported, self.failed, self.dropped = exported, failed, dropped
        self.queued = 0
        self.taken = 0

    @property
    def waiting(self) -> int:
        """Spans that have ended and are not sent yet."""
        return self.queued - self.taken


class Queue(BatchSpanProcessor):
    """The SDK's queue, which says nothing and counts when it is full; the SDK's would log each span."""

    def __init__(self, exporter: SpanExporter, counted: Counted) -> None:
        self._size = _queue_size()
        super().__init__(exporter, max_queue_size=self._size)
        self._counted = counted

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span that has ended."""
        if self._counted.waiting >= self._size:
            self._counted.dropped(1)
            return
        self._counted.queued += 1
        super().on_end(span)


class Watched(SpanExporter):
    """An exporter whose failures are counted, and said once a minute."""

    def __init__(self, exporter: SpanExporter, counted: Counted, endpoint: str) -> None:
        self._exporter = exporter
        self._counted = counted
        self._address = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._stopped = False
        self._said: float | None = None
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send *spans*; in the SDK's thread."""
        self._counted.taken += len(spans)
        _reasons.here.first = None
        try:
            result = self._exporter.export(spans)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the next batch is tried
            _reasons.here.first = f"{type(exc).__name__}: {exc}"
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._counted.exported(len(spans))
        else:
            self._counted.failed(len(spans))
            self._say(len(spans))
        return result

    def _say(self, lost: int) -> None:
        self._lost += lost
        now = time.monotonic()
        if self._said is None or now - self._said >= _LOG_EVERY_S:
            log.warning(
                "spans could not be exported",
                address=self._address,
                spans=self._lost,
                reason=_reasons.here.first,
            )
            self._said, self._lost = now, 0

    def shutdown(self) -> None:
        """Stop; a batch that waits to be sent again is given up. May be called more than once."""
        if not self._stopped:
            self._stopped = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True


class Reasons(logging.Filter):
    """Keeps what the exporter logs about a failure, first line first, instead of letting it through each time."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Never lets through."""
        if getattr(self.here, "first", None) is None:
            self.here.first = record.getMessage()[:500]
        return False


_reasons: Final = Reasons()
_SDK: Final = {
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": sdk_version,
}


def _quieten() -> None:
    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_reasons)
    logging.getLogger("urllib3").setLevel(
        logging.ERROR
    )  # else a line for each try, and at debug for each success


def _queue_size() -> int:
    text = os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
    return int(text) if text.isdecimal() and int(text) > 0 else _QUEUE


def _limits() -> SpanLimits:
    if any(os.environ.get(name) for name in _LENGTH_LIMITS):
        return SpanLimits()
    return SpanLimits(max_attribute_length=_LONGEST_VALUE)


def _context(trace: Trace, span_id: str, *, is_remote: bool) -> otel.SpanContext:
    return otel.SpanContext(
        int(trace.trace_id, 16),
        int(span_id, 16),
        is_remote,
        otel.TraceFlags(int(trace.flags, 16)),
        otel.TraceState.from_header([trace.state]) if trace.state else None,
    )
