"""Spans: what took how long, within which request or event. One port for everybody; OpenTelemetry behind it.

Importing this imports nothing of OpenTelemetry: that happens in `moorage.tracing.otlp`, where tracing is enabled.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from moorage import trace as traces
from moorage.trace import Trace, current_trace, inject

__all__ = ["Kind", "NullTracer", "Span", "Trace", "Tracer", "Value", "current_trace", "inject"]

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | bool | int | float | Sequence[str]


class Span(Protocol):
    """One span, as long as its block runs. All of it may be called whether or not it is recorded."""

    @property
    def trace(self) -> Trace:
        """Its identity; what is sent from within it names this as its parent."""
        ...

    @property
    def recording(self) -> bool:
        """Whether what is set is kept: attributes that cost something to make need not be made otherwise."""
        ...

    def set(self, name: str, value: Value | None) -> None:
        """Set an attribute, named by OpenTelemetry's conventions; ``None`` sets nothing."""
        ...

    def rename(self, name: str) -> None:
        """Give it a name that was not known at its start."""
        ...

    def failed(self, exc: BaseException | str) -> None:
        """Mark it as failed, with the exception's type or an error's code (``error.type``), never its text."""
        ...


@runtime_checkable
class Tracer(Protocol):
    """Makes spans. A handler or a provider may ask for it by type."""

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        trace: Trace | None = None,
        links: Sequence[Trace] = (),
    ) -> AbstractContextManager[Span]:
        """Open a span for a block; it is the current one within, for logs, `inject` and spans below it.

        An exception that leaves the block marks it as failed, and goes on. A ``client`` span outside of any other is
        not recorded: polling and pings would fill the collector with traces of one span.

        Args:
            name: of bounded cardinality: ``GET /posts/{id}``, never an id.
            attributes: what is known at the start; samplers see these alone.
            trace: whose span it is. A parsed one (``remote``): the new span is its child. One of this process, such
                as the guard's of a request: the span takes its ids. ``None``: a child of the current span, or a new
                trace where there is none.
            links: other spans that led here, of other traces too.
        """
        ...


class NullTracer:
    """Records nothing, but lets traces pass through: who is called sees the caller's trace.

    No ids are made for spans that nobody could look up: within, the trace is the one of the request or event.
    """

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        trace: Trace | None = None,
        links: Sequence[Trace] = (),
    ) -> AbstractContextManager[Span]:
        """As `Tracer.span`."""
        if trace is None:
            here = current_trace()
            return Unrecorded(traces.new() if here is None else here)
        return Unrecorded(trace.child() if trace.remote else trace)


class Unrecorded:
    """A span that keeps nothing but its identity."""

    __slots__ = ("_token", "trace")
    recording = False

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._token: Token[Trace | None] | None = None

    def __enter__(self) -> Self:
        self._token = traces.enter(self.trace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._token is not None
        traces.leave(self._token)

    def set(self, name: str, value: Value | None) -> None:
        """Nothing."""

    def rename(self, name: str) -> None:
        """Nothing."""

    def failed(self, exc: BaseException | str) -> None:
        """Nothing."""
