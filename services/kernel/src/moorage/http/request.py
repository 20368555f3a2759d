"""What a handler may know of its request, and what the kernel keeps about it while it runs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from aiohttp import web

from moorage.errors import BadRequest
from moorage.guard.decision import Decision
from moorage.guard.engine import Guard
from moorage.guard.headers import has_identity, without_identity
from moorage.http.deadline import Deadline
from moorage.scope import Scope

_MAX_PARAMETERS = 100
Answered = web.StreamResponse


class ClientGone(Exception):  # noqa: N818 - says what happened
    """The client has left, or takes nothing any more, while it was sent something."""


@dataclass(frozen=True, slots=True)
class Request:
    """Facts about the request, for handlers that need more than their parameters.

    ``path`` is the normalised path that the guard judged, ``headers`` are without those by which a client
    could claim an identity and with what the rule's `request` changes, ``client`` is the address that the guard
    trusts; ``None`` behind a Unix socket.
    """

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    client: str | None
    scheme: str
    request_id: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take: body in bytes, seconds for the body to come and for the whole answer."""

    max_body: int
    read_timeout: float
    timeout: float


@dataclass(slots=True, kw_only=True)
class Context(Scope):
    """One request on its way through a handler.

    ``body`` is there once it was read. ``finish`` puts the headers on an answer that every answer has; the dispatcher
    does so for whole answers.
    """

    web: web.BaseRequest
    guard: Guard
    decision: Decision
    limits: Limits
    finish: Callable[[Answered], None]
    limit: Deadline
    stopping: asyncio.Event
    """Set when the process stops: what could go on for ever ends."""
    resource: object = None
    recorded: Callable[[int], Awaitable[None]] | None = None
    """Puts the answer with this status into the audit record, and raises if it must not be given; for answers that
    begin while the handler works. ``None``: the rule has no `audit`.
    """
    body: bytes | None = None
    begun: Answered | None = None
    """The answer whose head was sent while the handler still works."""
    _query: dict[str, list[str]] | None = None

    def lift_deadline(self) -> None:
        """End the limit of an answer that has begun, for what it asks of others and of the database as well."""
        self.limit.lift()
        self.deadline = None

    @property
    def query(self) -> dict[str, list[str]]:
        """The query string's parameters, each with its values in order."""
        if self._query is None:
            self._query = parse_query(self.decision.target.query)
        return self._query


def parse_query(text: str) -> dict[str, list[str]]:
    """Read a query string strictly: UTF-8 and no more parameters than anybody needs, else `BadRequest`."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS, errors="strict")
    except ValueError as exc:
        raise BadRequest("The query string cannot be read.", reason=str(exc)) from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def facts(context: Context) -> Request:
    """The handler's view of the request."""
    decision = context.decision
    return Request(
        method=decision.facts.method,
        path=decision.target.path,
        params=decision.params,
        query={name: values[-1] for name, values in context.query.items()},
        headers=_headers(context),
        client=decision.client.address,
        scheme=decision.client.scheme,
        request_id=decision.request_id,
        trace_id=decision.trace.trace_id,
    )


def _headers(context: Context) -> Mapping[str, str]:
    headers, edge = context.web.headers, context.decision.compiled.edge
    if edge is None or edge.request is None:
        return without_identity(headers) if has_identity(headers) else headers
    changed = without_identity(headers)
    edge.inward(changed)
    return changed
