"""The one route of the application: ask the guard, dispatch by the rule's name, answer, log, count."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog
from aiohttp import web
from structlog.contextvars import bind_contextvars

from moorage.config.settings import Settings
from moorage.errors import AppError, Timeout, Unavailable
from moorage.guard.engine import Decision, Guard, RequestFacts, receive
from moorage.guard.headers import TrustedProxies
from moorage.http.binding import Bound
from moorage.http.faults import check_message, from_http_exception
from moorage.http.request import Context, Limits
from moorage.http.server import HSTS, SECURITY_HEADERS, error_response
from moorage.metrics import UNMATCHED, Metrics
from moorage.scope import current

log = structlog.get_logger("moorage.http")
access = structlog.get_logger("moorage.access")


@dataclass
class Dispatcher:
    """Answers every request of one module."""

    guard: Guard
    handlers: Mapping[str, Bound]
    settings: Settings
    metrics: Metrics
    groups: Mapping[type, object]
    trusted: TrustedProxies = field(default_factory=TrustedProxies)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Never raises but for cancellation: whatever happens becomes an answer in the standard shape."""
        began = time.perf_counter()
        facts = receive(
            request.method,
            request.raw_path,
            request.headers,
            peer=_peer(request),
            scheme="https" if request.secure else "http",
            trusted=self.trusted,
        )
        trace = facts.trace
        bind_contextvars(request_id=facts.request_id, trace_id=trace.trace_id, span_id=trace.span_id)
        decision: Decision | None = None
        error: AppError | None = None
        response: web.StreamResponse
        with self.metrics.in_flight.track_inprogress():
            try:
                check_message(request)
                decision = self.guard.decide(facts)
                if decision.user is not None:
                    bind_contextvars(user_id=str(decision.user.id))
                response = await self._handle(request, decision)
            except asyncio.CancelledError:
                raise
            except BaseException as exc:  # noqa: BLE001 - nothing else may reach the client
                error = _explain(exc)
                response = error_response(error, facts.request_id)
                if error.status in (501, 505):
                    # Who reads the message differently may see another one behind it.
                    response.force_close()
        _finish(response, facts)
        route = decision.route_template if decision is not None else (error and error.route) or UNMATCHED
        took = time.perf_counter() - began
        self.metrics.answered(request.method, route, response.status, took, error.code if error else None)
        _log_access(facts, decision, response, error, took)
        return response

    async def _handle(self, request: web.Request, decision: Decision) -> web.StreamResponse:
        bound = self.handlers.get(decision.name)
        if bound is None:  # the guard knows what is bound; this is for a policy that changed in between
            raise Unavailable("This part of the service is not there yet.", code="unbound_rule")
        limits = self._limits(decision)
        try:
            async with asyncio.timeout(limits.timeout) as deadline, AsyncExitStack() as stack:
                response = await bound.run(self._context(request, decision, limits, stack), self.guard)
        except TimeoutError:
            if deadline.expired():
                raise Timeout from None
            raise
        return response

    def _context(
        self, request: web.Request, decision: Decision, limits: Limits, stack: AsyncExitStack
    ) -> Context:
        user = decision.user
        context = Context(
            web=request,
            decision=decision,
            limits=limits,
            stack=stack,
            groups=self.groups,
            trace=decision.trace,
            request_id=decision.request_id,
            tenant=user.tenant_id if user is not None else None,
            caller=decision.caller,
            deadline=asyncio.get_running_loop().time() + limits.timeout,
        )
        # aiohttp runs every request of a connection in one task: the next one replaces it.
        current.set(context)
        return context

    def _limits(self, decision: Decision) -> Limits:
        server, rule = self.settings.server, decision.rule
        return Limits(
            max_body=server.max_body if rule.max_body is None else rule.max_body,
            read_timeout=server.read_timeout,
            timeout=server.write_timeout if rule.timeout_ms is None else rule.timeout_ms / 1000,
        )


def _peer(request: web.Request) -> str | None:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) and peer else None


def _explain(exc: BaseException) -> AppError:
    """What the client is told; what was not meant to happen is logged in full."""
    if isinstance(exc, AppError):
        return exc
    if isinstance(exc, web.HTTPException):
        return from_http_exception(exc)
    if not isinstance(exc, Exception):
        raise exc
    log.error("unexpected error", exc_info=exc)
    return AppError(reason=f"{type(exc).__name__}")


def _finish(response: web.StreamResponse, facts: RequestFacts) -> None:
    if response.prepared:
        return
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if facts.client.scheme == "https":
        response.headers.setdefault("Strict-Transport-Security", HSTS)
    response.headers["X-Request-ID"] = facts.request_id


def _log_access(
    facts: RequestFacts,
    decision: Decision | None,
    response: web.StreamResponse,
    error: AppError | None,
    took: float,
) -> None:
    fields: dict[str, object] = {
        "method": facts.method,
        "path": facts.target.partition("?")[0][:512],  # a query may hold what is nobody's business
        "route": decision.name if decision is not None else error and error.rule,
        "status": response.status,
        "duration_ms": round(took * 1000, 2),
        "client": facts.client.address,
    }
    if error is not None:
        fields["code"] = error.code
        if error.reason:
            fields["reason"] = error.reason
    (access.warning if response.status >= 500 else access.info)("request", **fields)
