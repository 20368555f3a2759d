"""The proxy host of the guard: what happens to one request, in both of its forms.

check the message → find the module → ask the guard (unless the module has its own) → build the upstream's
fields → forward. What is refused or fails on the way becomes the standard error body here.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import structlog
from aiohttp import web
from multidict import CIMultiDict

from moorage import access, errors
from moorage import trace as traces
from moorage.guard import headers as names
from moorage.guard.auditing import CLIENT_GONE, Auditing
from moorage.guard.cors import Preflight
from moorage.guard.decision import Decision, RequestFacts, receive
from moorage.guard.engine import Guard
from moorage.http.server import HSTS, SECURITY_HEADERS, error_response
from moorage.metrics import UNMATCHED, Metrics
from moorage.tracing import NullTracer, Span, Tracer
from moorage.tracing.http import calling, passed, served, serving
from moorage.who import Asker, asker
from moorage_gateway import message
from moorage_gateway.forward import headers as fields
from moorage_gateway.forward import http, websocket
from moorage_gateway.forward.forwarded import Origin, origin, set_forwarded
from moorage_gateway.forward.held import End, held_by
from moorage_gateway.forward.http import DEFAULT_TIMEOUT_S, Hop
from moorage_gateway.forward.response import abort
from moorage_gateway.forward.upstream import Clients, Upstream

log = structlog.get_logger("moorage.gateway")

NOT_UP_RETRY_S = 1


@dataclass(slots=True, eq=False)
class Target:
    """One module behind the proxy.

    ``upstream`` is ``None`` as long as the module is not up. ``guard`` is ``None`` where the module's own
    guard decides. ``answered``: whether the upstream ever did; a refused connection before means *not up yet*.
    """

    namespace: str
    module: str
    upstream: Upstream | None
    guard: Guard | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    answered: bool = False

    @property
    def key(self) -> str:
        """``namespace/module``."""
        return f"{self.namespace}/{self.module}"


Find = Callable[[str, str], Target]
"""Host and decoded path to the module they belong to; raises `NotFound`."""


@dataclass(slots=True)
class Exchange:
    """What is known of one request while it passes; what the access log and the metrics are made of."""

    request: web.BaseRequest
    facts: RequestFacts
    address: message.Address | None = None
    target: Target | None = None
    origin: Origin | None = None
    decision: Decision | None = None
    preflight: Preflight | None = None
    error: errors.AppError | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def rule(self) -> str | None:
        """Name of the rule that matched, also where it refused; ``None``: none, or the module decides itself."""
        if self.decision is not None:
            return self.decision.name
        told = self.preflight or self.error
        return told.rule if told is not None else None

    @property
    def template(self) -> str | None:
        """The rule's path; ``None``: none matched, or the module decides itself."""
        if self.decision is not None:
            return self.decision.route_template
        told = self.preflight or self.error
        return told.route if told is not None else None

    @property
    def route(self) -> str:
        """The label of bounded cardinality: the rule's path, or the module where that decides itself."""
        if self.template is not None:
            return self.template
        if self.target is not None and self.target.guard is None:
            return self.target.key
        return UNMATCHED


class Proxy:
    """The engine; `handle` is what the server calls for every request."""

    def __init__(
        self,
        clients: Clients,
        find: Find,
        trusted: names.TrustedProxies,
        metrics: Metrics,
        auditing: Auditing,
        tracer: Tracer | None = None,
    ) -> None:
        self._clients = clients
        self._find = find
        self._metrics = metrics
        self._auditing = auditing
        self._tracer = NullTracer() if tracer is None else tracer
        self.trusted = trusted
        self.sockets = websocket.Sockets()
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        metrics.in_flight.set_function(lambda: self.active)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer *request*: the upstream's answer, or an error body."""
        exchange = Exchange(
            request,
            receive(
                request.method,
                request.raw_path,
                request.headers,
                peer=request.remote,
                scheme=request.scheme,
                trusted=self.trusted,
            ),
        )
        asker.set(Asker(exchange.facts.request_id))
        status = CLIENT_GONE
        self.active += 1
        self.idle.clear()
        with serving(self._tracer, exchange.facts) as span:
            exchange.facts.trace = span.trace
            try:
                response = await self._answer(exchange)
                status = response.status
                return response
            except asyncio.CancelledError:
                if exchange.facts.attempt is not None:
                    await self._auditing.gone(exchange.facts)
                raise
            finally:
                self.active -= 1
                if not self.active:
                    self.idle.set()
                self._account(exchange, status, span)
                exchange.error = None  # whose traceback holds frames that hold it

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        try:
            return await self._serve(exchange)
        except errors.AppError as exc:
            exchange.error = exc
        except Exception as exc:
            log.error("unexpected error", exc_info=exc)
            exchange.error = errors.AppError(reason=type(exc).__name__)
        if request.writer.output_size > 0:
            abort(request)
            raise ConnectionResetError("the answer has begun, it can only be broken off")
        if exchange.facts.attempt is not None:
            exchange.error = await self._auditing.refused(exchange.facts, exchange.error)
        response = error_response(exchange.error, exchange.facts.request_id)
        self._finish(response, exchange.facts)
        if exchange.decision is not None:
            response.headers.update(exchange.decision.limit_fields)
        # Nobody is going to read the body; and where the message has two readings there may be another in it.
        if request.can_read_body or exchange.address is None:
            response.force_close()
        return response

    @staticmethod
    def _finish(response: web.StreamResponse, facts: RequestFacts) -> None:
        """Put on an answer of the proxy's own what every one has, and what the rule wants of it."""
        response.headers.update(SECURITY_HEADERS)
        if facts.client.scheme == "https":
            response.headers["Strict-Transport-Security"] = HSTS
        if facts.edge is not None:
            facts.edge.outward(response.headers, response.status, facts.headers, facts.method)
        response.headers[names.REQUEST_ID_HEADER] = facts.request_id

    def _answer_preflight(
        self, preflight: Preflight, request: web.BaseRequest, facts: RequestFacts
    ) -> web.Response:
        response = web.Response(status=204, headers=preflight.headers)
        self._finish(response, facts)
        if request.can_read_body:
            response.force_close()  # browsers send none, and nobody is going to read it
        return response

    def _account(self, exchange: Exchange, status: int, span: Span) -> None:
        """Count and log one request, and say on its span how it went."""
        facts, error, target = exchange.facts, exchange.error, exchange.target
        took = time.perf_counter() - exchange.began
        code = error.code if error else None
        served(span, facts, exchange.template or UNMATCHED, status, code)
        self._metrics.answered(facts.method, exchange.route, status, took, code, facts.trace)
        access.write(
            facts,
            rule=exchange.rule,
            template=exchange.template,
            status=status,
            seconds=took,
            error=error,
            decision=exchange.decision,
            module=target.key if target else None,
        )

    async def _serve(self, exchange: Exchange) -> web.StreamResponse:
        request, facts = exchange.request, exchange.facts
        address = exchange.address = message.read(request)
        if address.absolute:
            facts.target = address.target
            facts.headers = CIMultiDict(facts.headers)
            facts.headers["Host"] = address.host
        target = exchange.target = self._find(address.host, address.path)
        exchange.origin = origin(request, facts.client, address.host, self.trusted)
        if target.guard is not None:
            exchange.preflight = target.guard.preflight(facts)
            if exchange.preflight is not None:
                return self._answer_preflight(exchange.preflight, request, facts)
            exchange.decision = await target.guard.admit(facts)
            if facts.attempt is not None:
                await self._auditing.begin(facts)
        upstream = target.upstream
        if upstream is None:
            raise _not_up(target)
        try:
            with calling(self._tracer, facts.method, upstream.origin, target.key) as span:
                response = await self._forward(exchange, self._hop(exchange, target, upstream))
                passed(span, response.status)
        except http.RefusedError as exc:
            if target.answered:
                raise
            raise _not_up(target) from exc
        target.answered = True
        return response

    async def _forward(self, exchange: Exchange, hop: Hop) -> web.StreamResponse:
        request = exchange.request
        if websocket.wants_websocket(request):
            return await websocket.forward(self._clients, request, hop, self.sockets)
        return await http.forward(self._clients, request, hop)

    @staticmethod
    def _held(exchange: Exchange, guard: Guard, decision: Decision, end: End) -> AbstractContextManager[None]:
        """As `held_by`; the log says why it was ended."""

        def over(error: errors.AppError) -> None:
            exchange.error = error
            end(error)

        return held_by(guard.lasting, decision, over)

    def _hop(self, exchange: Exchange, target: Target, upstream: Upstream) -> Hop:
        """The request as the upstream is to see it."""
        facts, decision, address = exchange.facts, exchange.decision, exchange.address
        assert address is not None
        assert exchange.origin is not None
        # A module with its own guard needs the token; an app behind this one gets the identity instead.
        headers = fields.copy_inward(facts.headers, keep_authorization=decision is None)
        if not address.host:
            headers.popall("Host", None)  # an empty one; the upstream's own name stands in
        edge = facts.edge
        if edge is not None:
            edge.inward(headers)  # before what the guard says, which nothing may change
        set_forwarded(headers, exchange.origin)
        if decision is not None:
            headers.update(decision.upstream_headers())
        else:
            headers[names.REQUEST_ID_HEADER] = facts.request_id
        headers.popall(traces.TRACESTATE, None)
        traces.inject(headers)
        hop = Hop(
            upstream=upstream,
            path=address.target,
            headers=headers,
            response_headers={names.REQUEST_ID_HEADER: facts.request_id},
            timeout_s=target.timeout_s,
        )
        if edge is not None and decision is not None:
            hop.path = edge.target(address.target, decision.params)
            hop.finish = partial(edge.outward, headers=facts.headers, method=facts.method)
        if facts.attempt is not None:
            hop.recorded = partial(self._auditing.answered, facts)
        if decision is not None and target.guard is not None:
            hop.held = partial(self._held, exchange, target.guard, decision)
            hop.max_body = decision.rule.max_body
            hop.response_headers.update(decision.limit_fields)
            if decision.rule.timeout_ms is not None:
                hop.timeout_s = decision.rule.timeout_ms / 1000
        return hop


def _not_up(target: Target) -> errors.Unavailable:
    return errors.Unavailable(
        f"Module {target.key} is not up yet.",
        retry_after=NOT_UP_RETRY_S,
        code="module_not_up",
        details={"module": target.key},
    )
