"""The spans of an HTTP request, at the server and at a proxy; names and attributes as OpenTelemetry's stable
conventions have them (https://opentelemetry.io/docs/specs/semconv/http/http-spans/).

What a client sends is not in them but for what the conventions require: no query, no headers, no body, and
no path of a rule that captures a secret.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from moorage.guard.decision import RequestFacts
from moorage.metrics import UNMATCHED
from moorage.redaction import request_path
from moorage.tracing import Span, Tracer, Value

_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"}
)
_LONGEST_PATH: Final = 512


def serving(tracer: Tracer, facts: RequestFacts) -> AbstractContextManager[Span]:
    """The span of the request *facts*, with the ids that the guard gave it.

    Whoever enters it sets ``facts.trace`` to the span's: its flags say whether it is recorded.
    """
    method = facts.method if facts.method in _METHODS else "HTTP"
    return tracer.span(method, kind="server", trace=facts.trace)


def served(span: Span, facts: RequestFacts, route: str, status: int, error: str | None) -> None:
    """Say how the request went.

    Args:
        route: the rule's path, or `UNMATCHED`.
        error: the error's code, if it was one. Only from 500 on is the span a failed one: for the server a 404 is an
            answer like another.
    """
    if not span.recording:
        return
    known = facts.method in _METHODS
    span.set("http.request.method", facts.method if known else "_OTHER")
    span.set("url.path", request_path(facts.target, route)[:_LONGEST_PATH])
    span.set("url.scheme", facts.client.scheme)
    span.set("http.response.status_code", status)
    span.set("client.address", facts.client.address)
    span.set("moorage.request_id", facts.request_id)
    if route != UNMATCHED:
        span.rename(f"{facts.method if known else 'HTTP'} {route}")
        span.set("http.route", route)
    if status >= 500:
        span.failed(error or str(status))
    else:
        span.set("error.type", error)


@contextmanager
def calling(tracer: Tracer, method: str, origin: str, peer: str) -> Iterator[Span]:
    """The span of a request passed on to *origin* (``http://host:port``), which is called *peer*."""
    scheme, _, authority = origin.partition("://")
    host, _, port = authority.rpartition(":")
    attributes: dict[str, Value] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "url.scheme": scheme,
        "server.address": (host or authority).strip("[]"),
        "peer.service": peer,
    }
    if host and port.isdecimal():
        attributes["server.port"] = int(port)
    name = method if method in _METHODS else "HTTP"
    with tracer.span(name, kind="client", attributes=attributes) as span:
        yield span


def passed(span: Span, status: int) -> None:
    """Say what the other side of `calling` has answered."""
    span.set("http.response.status_code", status)
    if status >= 500:
        span.failed(str(status))
