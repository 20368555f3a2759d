"""What answers every request: ask the guard, dispatch by the rule's name, answer, log, count."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from aiohttp import hdrs, web
from multidict import istr

from moorage import access
from moorage.config.live import Live, Snapshot
from moorage.errorbus import ErrorBus
from moorage.errors import AppError, Unavailable
from moorage.guard.auditing import CLIENT_GONE, Auditing
from moorage.guard.cors import Preflight
from moorage.guard.decision import Decision, RequestFacts, receive
from moorage.guard.engine import Guard
from moorage.guard.headers import REQUEST_ID_HEADER, TrustedProxies
from moorage.guard.policy import Rule
from moorage.http.apidocs import ApiDocument
from moorage.http.binding import Bound
from moorage.http.compression import compress
from moorage.http.deadline import Deadline, Deadlines
from moorage.http.faults import check_message, from_http_exception
from moorage.http.request import ClientGone, Context, Limits
from moorage.http.server import HSTS, SECURITY_HEADERS, error_response
from moorage.http.websocket import Sockets
from moorage.kept import AnswerStore
from moorage.metrics import UNMATCHED, Metrics
from moorage.scope import Stack, current
from moorage.tracing import NullTracer, Tracer
from moorage.tracing.http import served, serving
from moorage.who import Asker, asker

_LINGER_S: Final = 10.0
_ABOUT_S: Final = 1.0
"""From here on a timeout may come 10 ms late."""
TIMEOUT_HEADER: Final = istr("X-Moorage-Timeout-Ms")
"""Milliseconds that the caller will wait; `moorage.client` sends what is left of its own deadline."""


@dataclass
class Dispatcher:
    """Answers every request of one module."""

    guard: Guard
    handlers: Mapping[str, Bound]
    live: Live
    metrics: Metrics
    errors: ErrorBus
    api: ApiDocument
    sockets: Sockets
    auditing: Auditing
    store: AnswerStore | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    trusted: TrustedProxies = field(default_factory=TrustedProxies)
    tracer: Tracer = field(default_factory=NullTracer)

    def __post_init__(self) -> None:
        self._active = 0
        self._deadlines = Deadlines()
        self._limiting = _Limiting()
        self.metrics.in_flight.set_function(lambda: self._active)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Never raises but for cancellation: whatever happens becomes an answer in the standard shape."""
        began = time.perf_counter()
        facts = receive(
            request.method,
            request.raw_path,
            request.headers,
            peer=request.remote,
            scheme=request.scheme,
            trusted=self.trusted,
        )
        asker.set(
            Asker(facts.request_id)
        )  # aiohttp runs each request in a task of its own, which nobody else reads this in
        with serving(self.tracer, facts) as span:
            facts.trace = span.trace
            decision: Decision | None = None
            preflight: Preflight | None = None
            error: AppError | None = None
            response: web.StreamResponse
            self._active += 1
            try:
                check_message(request)
                preflight = self.guard.preflight(facts)
                if preflight is not None:
                    response = web.Response(status=204, headers=preflight.headers)
                else:
                    decision = await self.guard.admit(facts)
                    user = decision.user
                    if user is not None:
                        asker.set(Asker(facts.request_id, user.id, user.tenant_id))
                    if facts.attempt is not None:
                        await self.auditing.begin(facts)
                    response = await self._handle(request, decision)
            except ClientGone:
                response = _broken_off(request) or web.Response(status=CLIENT_GONE)
            except asyncio.CancelledError:
                if facts.attempt is not None:
                    await self.auditing.gone(facts)
                raise
            except BaseException as exc:  # noqa: BLE001 - nothing else may reach the client
                error = self._explain(exc, decision)
                response = _broken_off(request) or error_response(error, facts.request_id)
                if error.status in (501, 505):
                    # Who reads the message differently may see another one behind it.
                    response.force_close()
            finally:
                self._active -= 1
                # The task's context would hold what holds the task: some forty objects of each request would wait for
                # the collector of cycles, and all requests for its pauses.
                current.set(None)
            if facts.attempt is not None:
                response, error = await self._recorded(facts, response, error)
            _finish(response, facts, decision)
            rule, route = _met(decision, preflight, error)
            took = time.perf_counter() - began
            code = error.code if error else None
            served(span, facts, route, response.status, code)
            self.metrics.answered(request.method, route, response.status, took, code, span.trace)
            access.write(
                facts,
                rule=rule,
                template=route,
                status=response.status,
                seconds=took,
                error=error,
                decision=decision,
            )
            error = None  # whose traceback holds this frame, which holds it
        return response

    async def _recorded(
        self, facts: RequestFacts, response: web.StreamResponse, error: AppError | None
    ) -> tuple[web.StreamResponse, AppError | None]:
        """The answer, once it is in the audit record; or why it must not be given."""
        try:
            await self.auditing.answered(facts, response.status, error.code if error is not None else None)
        except Unavailable as unrecorded:
            if not response.prepared:
                return error_response(unrecorded, facts.request_id), unrecorded
        return response, error

    async def end(self, _: web.Application) -> None:
        """End what could go on for ever: streams of events, and WebSockets."""
        self.stopping.set()
        await self.sockets.end_all()

    async def _handle(self, request: web.BaseRequest, decision: Decision) -> web.StreamResponse:
        bound = self.handlers.get(decision.name)
        if bound is None:  # the guard knows what is bound; this is for a policy that changed in between
            raise Unavailable("This part of the service is not there yet.", code="unbound_rule")
        now = self.live.now  # one for the whole request: never half old, half new
        limits = self._limiting.of(now, request, decision.rule)
        at = self._deadlines.loop.time() + limits.timeout
        with Deadline(at, self._deadlines, precise=limits.timeout < _ABOUT_S) as deadline:
            async with Stack() as stack:
                context = self._context(request, decision, limits, stack, deadline, now)
                if bound.handler.socket is not None:
                    return await bound.connect(context, self.sockets)
                response = await bound.run(context, self.store)
                if context.begun is None:
                    deadline.check()  # while it can be rolled back
        compress(request, response, bound.handler, enabled=now.settings.server.compression)
        return response

    def _context(
        self,
        request: web.BaseRequest,
        decision: Decision,
        limits: Limits,
        stack: Stack,
        deadline: Deadline,
        now: Snapshot,
    ) -> Context:
        user = decision.user
        context = Context(
            web=request,
            guard=self.guard,
            decision=decision,
            limits=limits,
            stack=stack,
            groups=now.groups,
            trace=decision.trace,
            request_id=decision.request_id,
            tenant=user.tenant_id if user is not None else None,
            caller=decision.caller,
            deadline=deadline.at,
            finish=lambda response: _finish(response, decision.facts, decision),
            recorded=partial(self.auditing.answered, decision.facts) if decision.facts.attempt else None,
            limit=deadline,
            stopping=self.stopping,
            found={ApiDocument: self.api},
        )
        current.set(context)
        return context

    def _explain(self, exc: BaseException, decision: Decision | None) -> AppError:
        """What the client is told; what was not meant to happen is reported, which writes it to the log in full."""
        if isinstance(exc, AppError):
            return exc
        if isinstance(exc, web.HTTPException):
            return from_http_exception(exc)
        if not isinstance(exc, Exception):
            raise exc
        mark = self.errors.publish(exc, where=decision.name if decision is not None else None)
        return AppError(reason=f"{type(exc).__name__} ({mark})")


class _Limiting:
    """What a request of each rule may take, made once for each rule and configuration."""

    def __init__(self) -> None:
        self._now: Snapshot | None = None
        self._made: dict[str, tuple[Rule, Limits]] = {}

    def of(self, now: Snapshot, request: web.BaseRequest, rule: Rule) -> Limits:
        """The limits of *request*; what its caller says (`TIMEOUT_HEADER`) can only shorten them, which is safe from
        anybody.
        """
        if now is not self._now:
            self._now, self._made = now, {}
        known = self._made.get(rule.name)
        if known is None or known[0] is not rule:
            known = self._made[rule.name] = rule, _limits(now, rule)
        limits = known[1]
        given = request.headers.get(TIMEOUT_HEADER)
        if given and given.isascii() and given.isdecimal() and len(given) < 10 and int(given) > 0:
            return replace(limits, timeout=min(limits.timeout, int(given) / 1000))
        return limits


def _limits(now: Snapshot, rule: Rule) -> Limits:
    server = now.settings.server
    return Limits(
        max_body=server.max_body if rule.max_body is None else rule.max_body,
        read_timeout=server.read_timeout,
        timeout=server.write_timeout if rule.timeout_ms is None else rule.timeout_ms / 1000,
    )


def _broken_off(request: web.BaseRequest) -> web.StreamResponse | None:
    """The answer that has begun, its connection closed before its end: nobody must take a part for the whole."""
    context = current.get()
    if not isinstance(context, Context) or context.web is not request or context.begun is None:
        return None
    transport = request.transport
    if isinstance(context.begun, web.WebSocketResponse):
        if transport is not None:
            transport.close()
            # Its last frame may still wait for a client that is slow, but not for ever.
            asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)
    elif transport is not None:
        # Without chunks the end of the connection is the end of the answer, unless it is a reset.
        chunked = "Transfer-Encoding" in context.begun.headers
        (transport.close if chunked else transport.abort)()
    return context.begun


def _met(
    decision: Decision | None, preflight: Preflight | None, error: AppError | None
) -> tuple[str | None, str]:
    """Name and path of the rule that the request has met, as far as it came."""
    if decision is not None:
        return decision.name, decision.route_template
    told = preflight or error
    return (None, UNMATCHED) if told is None else (told.rule, told.route or UNMATCHED)


def _finish(response: web.StreamResponse, facts: RequestFacts, decision: Decision | None) -> None:
    if response.prepared:
        return
    headers = response.headers
    if decision is not None and decision.limit_fields:
        headers.update(decision.limit_fields)  # in place of what a handler said
    says_nothing_else = len(headers) == (hdrs.CONTENT_TYPE in headers)
    if says_nothing_else:  # as most do: there is nothing to look for
        headers.extend(SECURITY_HEADERS)
    else:
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
    if facts.client.scheme == "https":
        headers.setdefault("Strict-Transport-Security", HSTS)
    if facts.edge is not None:
        facts.edge.outward(headers, response.status, facts.headers, facts.method)
    headers[REQUEST_ID_HEADER] = facts.request_id
