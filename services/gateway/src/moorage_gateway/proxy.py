"""The proxy host of the guard: what happens to one request, in both of its forms.

check the message → find the module → ask the guard (unless the module has its own) → build the upstream's
fields → forward. What is refused or fails on the way becomes the standard error body here.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from moorage import errors
from moorage.guard import headers as trust
from moorage_gateway import message
from moorage_gateway.forward import headers as fields
from moorage_gateway.forward import http, websocket
from moorage_gateway.forward.forwarded import Origin, origin, set_forwarded
from moorage_gateway.forward.http import DEFAULT_TIMEOUT_S, Hop
from moorage_gateway.forward.upstream import Clients, Upstream
from moorage_gateway.server import error_response

NOT_UP_RETRY_S = 1


@dataclass(slots=True)
class Target:
    """One module behind the proxy.

    ``upstream`` is ``None`` as long as the module is not up. ``guard`` is ``None`` where the module's own
    guard decides. ``answered``: whether the upstream ever did; a refused connection before means *not up yet*.
    """

    namespace: str
    module: str
    upstream: Upstream | None
    guard: None = None
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
    request_id: str
    trace: trust.Trace
    target: Target | None = None
    origin: Origin | None = None
    template: str = ""
    error: BaseException | None = None
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())


class Proxy:
    """The engine; `handle` is what the server calls for every request."""

    def __init__(self, clients: Clients, find: Find, trusted: trust.TrustedProxies) -> None:
        self._clients = clients
        self._find = find
        self._trusted = trusted
        self.sockets = websocket.Sockets()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer *request*: the upstream's answer, or an error body."""
        exchange = Exchange(request, trust.request_id(request.headers), trust.trace(request.headers))
        try:
            return await self._serve(exchange)
        except errors.AppError as exc:
            exchange.error = exc
            return error_response(exc, exchange.request_id, closes=request.can_read_body)

    async def _serve(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        address = message.read(request)
        target = exchange.target = self._find(address.host, address.path)
        exchange.origin = origin(request, address.host, self._trusted)
        upstream = target.upstream
        if upstream is None:
            raise _not_up(target)
        hop = self._hop(exchange, target, upstream, address)
        try:
            if websocket.wants_websocket(request):
                response = await websocket.forward(self._clients, request, hop, self.sockets)
            else:
                response = await http.forward(self._clients, request, hop)
        except http.RefusedError as exc:
            if target.answered:
                raise
            raise _not_up(target) from exc
        target.answered = True
        return response

    def _hop(self, exchange: Exchange, target: Target, upstream: Upstream, address: message.Address) -> Hop:
        headers = fields.copy_inward(exchange.request.headers, keep_authorization=True)
        if address.host:
            headers["Host"] = address.host
        assert exchange.origin is not None
        set_forwarded(headers, exchange.origin)
        headers[trust.REQUEST_ID_HEADER] = exchange.request_id
        headers[trust.TRACEPARENT_HEADER] = exchange.trace.traceparent
        headers.popall("tracestate", None)
        if exchange.trace.state:
            headers["tracestate"] = exchange.trace.state
        return Hop(
            upstream=upstream,
            path=address.target,
            headers=headers,
            response_headers={trust.REQUEST_ID_HEADER: exchange.request_id},
            timeout_s=target.timeout_s,
        )


def _not_up(target: Target) -> errors.Unavailable:
    return errors.Unavailable(
        f"Module {target.key} is not up yet.",
        retry_after=NOT_UP_RETRY_S,
        code="module_not_up",
        details={"module": target.key},
    )
