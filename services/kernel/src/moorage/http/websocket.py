"""WebSockets: typed messages both ways, bounded queues, and an end that the other side is told.

| code | the connection ends because |
| --- | --- |
| 1000 | the handler is done |
| 1001 | the process stops |
| 1003 | the client sent bytes; messages are JSON text |
| 1007 | a message was no JSON of the declared type |
| 1009 | a message was too large |
| 1011 | of a mistake of ours |
| 1013 | the client takes its messages too slowly |
| 3000 | the token has expired, or was revoked |
| 3003 | the caller no longer holds the rule's permission |
| 4000 + status | the handler raised an `AppError`, such as 4404 |
"""

import asyncio
import time
import typing
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from aiohttp import WSMsgType, web
from pydantic import TypeAdapter, ValidationError
from yarl import URL

from moorage.errors import AppError, Forbidden
from moorage.http.faults import invalid
from moorage.http.request import ClientGone, Context
from moorage.metrics import Metrics
from moorage.module import DeclarationError, SocketOptions

In = TypeVar("In")
Out = TypeVar("Out")

HEARTBEAT_S: Final = 30.0
SLOW_S: Final = 5.0
"""How long a message waits for room in a full queue."""
_CLOSE_S: Final = 2.0
_LAST_WORDS_S: Final = 1.0
"""For a handler to end by itself once the connection is gone."""
_MAX_REASON: Final = 120
"""Bytes; a close frame holds 123 (RFC 6455, 5.5)."""
GOING_AWAY: Final = 1001
TOO_SLOW: Final = 1013
EXPIRED: Final = 3000
FORBIDDEN: Final = 3003
"""Both as the registry of RFC 6455 has them: unauthorized, forbidden."""


class SocketClosed(ClientGone):
    """The connection is gone; a handler need not catch it."""


class WebSocket(Generic[In, Out]):
    """One connection: ``async for message in socket: await socket.send(…)``.

    ``WebSocket[ChatIn, ChatOut]`` as a handler's parameter; messages are JSON of those types.
    """

    def __init__(
        self, response: web.WebSocketResponse, kind: object, options: SocketOptions, timeout: float
    ) -> None:
        receives, sends = adapters(kind)
        self._response = response
        self._receives = receives
        self._sends = sends
        self._timeout = timeout
        self._incoming: asyncio.Queue[In | None] = asyncio.Queue(1)
        self._outgoing: asyncio.Queue[str] = asyncio.Queue(options.queue)
        self._closing: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    async def send(self, message: Out) -> None:
        """Queue a message. With a full queue it waits, and drops a client that takes nothing for a while.

        Raises:
            SocketClosed: the connection is gone.
        """
        text = self._encode(message)
        try:
            async with asyncio.timeout(SLOW_S):
                await self._outgoing.put(text)
        except TimeoutError:
            self.end(TOO_SLOW, "too slow")
            raise SocketClosed from None

    def send_nowait(self, message: Out) -> None:
        """Queue a message, or drop a client whose queue is full; for who serves many and may wait for none.

        Raises:
            SocketClosed: the connection is gone, or is dropped now.
        """
        text = self._encode(message)
        try:
            self._outgoing.put_nowait(text)
        except asyncio.QueueFull:
            self.end(TOO_SLOW, "too slow")
            raise SocketClosed from None

    async def receive(self) -> In:
        """The next message; raises `SocketClosed` when there will be none."""
        message = await self._incoming.get()
        if message is None:
            self._incoming.put_nowait(None)  # for whoever asks again
            raise SocketClosed
        return message

    async def __aiter__(self) -> AsyncIterator[In]:
        with suppress(SocketClosed):
            while True:
                yield await self.receive()

    def end(self, code: int, reason: str = "") -> None:
        """Close the connection without waiting for it."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(code, reason))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; what is queued is sent first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._outgoing.join()
        self.end(code, reason)
        await self.closed.wait()

    @property
    def code(self) -> int:
        """With which code the connection has ended; 1006: without any."""
        return self._response.close_code or 1006

    def _encode(self, message: Out) -> str:
        if self.closed.is_set() or self._closing is not None:
            raise SocketClosed
        return self._sends.dump_json(self._sends.validate_python(message, from_attributes=True)).decode()

    async def _close(self, code: int, reason: str) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    # Not drained: a client that reads nothing must not keep us.
                    text = reason.encode()[:_MAX_REASON]
                    await self._response.close(code=code, message=text, drain=False)
        finally:
            self.closed.set()

    async def read(self, received: Callable[[], object]) -> None:
        """Take the client's messages until it goes; in step with the handler, so that TCP slows the client."""
        async for message in self._response:
            if message.type is not WSMsgType.TEXT:
                self.end(1003, "messages are JSON text") if message.type is WSMsgType.BINARY else None
                break
            try:
                value = self._receives.validate_json(message.data)
            except ValidationError as exc:
                self.end(1007, _reason(exc))
                break
            received()
            await self._incoming.put(value)
        if self._closing is not None:
            await self._closing
        self.closed.set()
        await self._incoming.put(None)  # behind what came before the end

    async def write(self, sent: Callable[[], object]) -> None:
        """Send what is queued; a client that takes nothing is dropped."""
        while True:
            text = await self._outgoing.get()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._response.send_str(text)
                sent()
            except TimeoutError:
                self.end(TOO_SLOW, "too slow")
                return
            except ConnectionError:
                return
            finally:
                self._outgoing.task_done()


def adapters(kind: object) -> tuple[TypeAdapter[Any], TypeAdapter[Any]]:
    """Those of the messages of ``WebSocket[In, Out]``; without types, anything."""
    receives, sends = typing.get_args(kind) or (Any, Any)
    return TypeAdapter(receives), TypeAdapter(sends)


def _reason(exc: ValidationError) -> str:
    error = invalid(exc, "message")
    fields = getattr(error, "fields", {})
    return "; ".join(f"{name}: {text}" for name, text in fields.items()) or error.message


class Sockets:
    """The WebSockets of a process: counted, and ended when it stops."""

    def __init__(self, metrics: Metrics) -> None:
        self._open: set[WebSocket[Any, Any]] = set()
        self._ending = False
        self._messages = metrics.counter("websocket_messages", "Messages of WebSockets.", ("direction",))
        self._ended = metrics.counter("websockets_closed", "WebSockets that have ended, by code.", ("code",))
        metrics.gauge_function("websockets_open", "WebSockets that are open.", lambda: float(len(self._open)))

    async def end_all(self) -> None:
        """Tell every client that the process goes away, those who connect from now on, too."""
        self._ending = True
        for socket in self._open:
            socket.end(GOING_AWAY, "going away")
        await asyncio.gather(*(socket.closed.wait() for socket in set(self._open)))

    async def serve(
        self, context: Context, options: SocketOptions, kind: object, call: Callable[[Context], Any]
    ) -> web.WebSocketResponse:
        """Accept the connection, run the handler, end the connection.

        Raises:
            AppError: it is no request for a WebSocket, or comes from a page of another origin.
            Exception: what the handler raised; the client was told.
        """
        check_upgrade(context, options)
        response = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=options.max_message, compress=False, timeout=_CLOSE_S
        )
        context.finish(response)
        if context.recorded is not None:
            await context.recorded(response.status)
        try:
            await response.prepare(context.web)
        except ConnectionError as exc:
            raise SocketClosed from exc
        context.begun = response
        context.lift_deadline()
        socket: WebSocket[Any, Any] = WebSocket(response, kind, options, context.limits.timeout)
        context.found[WebSocket] = socket
        self._open.add(socket)
        if self._ending:
            socket.end(GOING_AWAY, "going away")
        reader = asyncio.create_task(socket.read(self._messages.labels("in").inc))
        writer = asyncio.create_task(socket.write(self._messages.labels("out").inc))
        expiry = _end_when_expired(context, socket)

        def end(error: AppError) -> None:
            socket.end(code_for(error), error.message)

        try:
            with context.guard.lasting.watching(context.decision, end):
                await _run(socket, asyncio.create_task(call(context)))
                await socket.close()
        finally:
            if expiry is not None:
                expiry.cancel()
            socket.end(1000)
            await socket.closed.wait()
            for task in (reader, writer):
                task.cancel()
            await asyncio.wait({reader, writer})
            self._open.discard(socket)
            self._ended.labels(str(socket.code)).inc()
        return response


async def _run(socket: WebSocket[Any, Any], handler: "asyncio.Task[object]") -> None:
    """Wait for the handler; once the connection is gone it is cancelled, if it does not end by itself."""
    closed = asyncio.create_task(socket.closed.wait())
    try:
        await asyncio.wait({handler, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not handler.done():
            await asyncio.wait({handler}, timeout=_LAST_WORDS_S)
    finally:
        closed.cancel()
        was_running = handler.cancel()
        await asyncio.wait({handler})
    if handler.cancelled():
        if was_running:
            raise SocketClosed
        return
    if (error := handler.exception()) is not None:
        if isinstance(error, AppError):
            socket.end(4000 + error.status, error.code)
        elif not isinstance(error, SocketClosed):
            socket.end(1011, "internal error")
        raise error


def code_for(error: AppError) -> int:
    """The code with which a WebSocket ends whose caller the guard would now refuse with *error*."""
    return FORBIDDEN if error.status == 403 else EXPIRED


def _end_when_expired(context: Context, socket: WebSocket[Any, Any]) -> asyncio.TimerHandle | None:
    expires = context.decision.expires
    if expires is None:
        return None
    left = max(expires - time.time(), 0)
    return asyncio.get_running_loop().call_later(left, socket.end, EXPIRED, "the token has expired")


def check_upgrade(context: Context, options: SocketOptions) -> None:
    """Refuse what is no request for a WebSocket, and pages of other origins (RFC 6455, 10.2).

    A browser opens a WebSocket to anywhere and asks nobody; programs that are no browsers send no ``Origin``.
    """
    headers = context.web.headers
    if headers.get("Upgrade", "").lower() != "websocket":
        raise AppError(
            "This is for WebSockets.",
            status=426,
            code="upgrade_required",
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )
    given = headers.getall("Origin", [])
    if not given:
        return
    own = f"{context.decision.client.scheme}://{headers.get('Host', '')}"
    edge = context.decision.compiled.edge
    # Not `*` of the rule: a browser sends its cookies along, and `*` is never meant for requests with them.
    declared = edge.cors.origins if edge is not None and edge.cors is not None else ()
    allowed = {_origin(own), *map(_origin, options.origins)} - {None}
    if len(given) > 1 or (given[0] not in declared and _origin(given[0]) not in allowed):
        raise Forbidden("Pages of this origin may not connect.", code="bad_origin")


def _origin(text: str) -> str | None:
    """Scheme, host and port; None for ``null`` and for what cannot be read."""
    try:
        url = URL(text)
        return str(url.origin()) if url.scheme in ("http", "https") else None
    except ValueError:
        return None


def check_origins(where: str, options: SocketOptions) -> None:
    """Raise `DeclarationError` for an allowed origin that is none."""
    for origin in options.origins:
        if _origin(origin) != origin.lower():
            raise DeclarationError(f"{where}: {origin!r} is no origin; write https://app.example.com")
