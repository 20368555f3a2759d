"""WebSockets passed on, message by message: pings, pongs, close codes and subprotocols included.

Not a tunnel of bytes: a proxy that sees messages can bound them, and close both sides with a proper code when
it drains and, later, when a session is revoked. Compression stays off (`permessage-deflate` is not offered).
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, hdrs, web
from yarl import URL

from moorage import errors
from moorage.http.websocket import code_for
from moorage_gateway.forward import headers as fields
from moorage_gateway.forward.http import Hop, late, relay, unreachable
from moorage_gateway.forward.upstream import Clients, UpgradeRefusedError, UpstreamSocket

MAX_MESSAGE: Final = 4 * 1024 * 1024  # bytes, of one message in either direction
_CLOSE_S: Final = 5.0
_NO_STATUS: Final = 0  # what aiohttp reports for a close frame without a code
_Socket = web.WebSocketResponse[bool] | UpstreamSocket


@dataclass(frozen=True, slots=True)
class Closing:
    """How a side ended: the code and reason to pass on to the other side."""

    code: int
    reason: bytes = b""


GOING_AWAY: Final = Closing(WSCloseCode.GOING_AWAY)
_UPSTREAM_BROKE: Final = Closing(WSCloseCode.INTERNAL_ERROR, b"the service behind broke off")


class Sockets:
    """The open WebSockets of a proxy, so that a drain can end them."""

    def __init__(self) -> None:
        self._open: set[asyncio.Future[Closing]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def close_all(self, closing: Closing = GOING_AWAY) -> None:
        """Ask every open WebSocket to close both its sides with *closing*."""
        for ending in self._open:
            if not ending.done():
                ending.set_result(closing)

    @asynccontextmanager
    async def entry(self) -> AsyncIterator["asyncio.Future[Closing]"]:
        """A place in the set, whose result, once set, ends the WebSocket."""
        ending = asyncio.get_running_loop().create_future()
        self._open.add(ending)
        try:
            yield ending
        finally:
            self._open.discard(ending)


def wants_websocket(request: web.BaseRequest) -> bool:
    """Whether *request* asks to become a WebSocket; another `Upgrade` is ignored (RFC 9110 section 7.8)."""
    return (
        request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        and "upgrade" in fields.connection_options(request.headers)
        and request.method == "GET"
    )


def check_handshake(request: web.BaseRequest) -> None:
    """Refuse a handshake that RFC 6455 section 4.2.1 does not allow: 400, or 426 for other versions."""
    headers = request.headers
    if request.version < aiohttp.HttpVersion11:
        raise errors.BadRequest("A WebSocket needs HTTP/1.1.")
    if request.can_read_body:
        raise errors.BadRequest("A WebSocket handshake has no body.")
    if headers.get(hdrs.SEC_WEBSOCKET_VERSION) != "13":
        raise errors.BadRequest(
            "Only version 13 of the WebSocket protocol is spoken here.",
            status=426,
            headers={"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    key = headers.get(hdrs.SEC_WEBSOCKET_KEY, "")
    with suppress(binascii.Error, ValueError):
        if len(base64.b64decode(key, validate=True)) == 16:
            return
    raise errors.BadRequest("Sec-WebSocket-Key is not 16 bytes in base64.")


async def forward(
    clients: Clients,
    request: web.BaseRequest,
    hop: Hop,
    sockets: Sockets,
    *,
    max_message: int = MAX_MESSAGE,
) -> web.StreamResponse:
    """Join the client's WebSocket with one to the upstream until either ends, or what ``hop.held`` tells of.

    The upstream is asked first: its refusal, or its choice of a subprotocol, is the client's answer. Raises
    `BadGateway` and `Timeout` like the forwarder of plain requests.
    """
    check_handshake(request)
    try:
        upstream = await _dial(clients, request, hop, max_message)
    except UpgradeRefusedError as refused:
        async with refused.response as answer:
            return await relay(request, answer, hop)
    headers = fields.copy_outward(upstream.handshake_headers)
    headers.update(hop.response_headers)
    client = web.WebSocketResponse[bool](
        timeout=_CLOSE_S,
        autoping=False,
        autoclose=False,
        protocols=(upstream.protocol,) if upstream.protocol else (),
        compress=False,
        max_msg_size=max_message,
        decode_text=False,
    )
    client.headers.extend(headers)
    closing = GOING_AWAY
    try:
        if hop.recorded is not None:
            await hop.recorded(client.status)
        await client.prepare(request)
        async with sockets.entry() as ending:
            with hop.held(partial(_end, ending)) if hop.held is not None else nullcontext():
                closing = await _join(client, upstream, ending)
    finally:
        # Also when the client vanished and this task is being cancelled: the upstream must learn of it.
        await asyncio.gather(_close(upstream, closing), _close(client, closing))
    return client


def _end(ending: "asyncio.Future[Closing]", error: errors.AppError) -> None:
    if not ending.done():
        ending.set_result(Closing(code_for(error), error.message.encode()))


async def _dial(clients: Clients, request: web.BaseRequest, hop: Hop, max_message: int) -> UpstreamSocket:
    offered = fields.split_list(request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()))
    try:
        async with asyncio.timeout(hop.timeout_s):
            socket = await clients.websocket.ws_connect(
                URL(hop.upstream.origin + hop.path, encoded=True),
                headers=hop.headers,
                protocols=offered,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                autoping=False,
                autoclose=False,
                max_msg_size=max_message,
                decode_text=False,
            )
    except aiohttp.ClientError as exc:
        raise unreachable(hop.upstream, exc) from exc
    except TimeoutError as exc:
        raise late(hop) from exc
    assert isinstance(socket, UpstreamSocket)
    return socket


async def _join(client: _Socket, upstream: UpstreamSocket, ending: "asyncio.Future[Closing]") -> Closing:
    """Pass messages both ways until a side closes, breaks, or *ending* is set; how it ended."""
    outward = asyncio.create_task(_pump(upstream, client, broke=_UPSTREAM_BROKE))
    inward = asyncio.create_task(_pump(client, upstream, broke=GOING_AWAY))
    try:
        done, _ = await asyncio.wait({outward, inward, ending}, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for task in (outward, inward):
            task.cancel()
        await asyncio.gather(outward, inward, return_exceptions=True)


async def _pump(source: _Socket, sink: _Socket, *, broke: Closing) -> Closing:
    """Pass what *source* sends on to *sink*; how *source* ended, *broke* if without a close frame."""
    while True:
        message = await source.receive()
        kind = message.type
        if kind in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG):
            try:
                await sink.send_frame(message.data, kind)
            except ConnectionError:
                return broke  # the other pump knows better how the sink ended, if it was not just cut off
        elif kind is WSMsgType.CLOSE:
            code = message.data if message.data != _NO_STATUS else WSCloseCode.OK
            return Closing(code, (message.extra or "").encode())
        else:
            return broke


async def _close(socket: _Socket, closing: Closing) -> None:
    if isinstance(socket, UpstreamSocket) or socket.prepared:
        with suppress(ConnectionError, TimeoutError):
            await socket.close(code=closing.code, message=closing.reason)
