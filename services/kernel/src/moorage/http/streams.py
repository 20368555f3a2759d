"""Answers that are sent piece by piece, with the unit of work open until the last one.

| a handler that says it returns | sends |
| --- | --- |
| ``AsyncIterator[Post]`` (any model) | one JSON document a line, ``application/x-ndjson`` |
| ``AsyncIterator[ServerSent]`` | server-sent events, ``text/event-stream``, with comments while nothing happens |
| ``AsyncIterator[bytes]`` | the bytes, ``application/octet-stream`` |
| `Stream` | the bytes, of a type and with headers that the handler chooses |

The next piece is asked for when the client has taken the last. A client that goes away cancels the handler. What
goes wrong after the head was sent can only break the connection off, so that nobody takes a part for the whole.
No stream outlives the token that it was asked for with, nor its revocation: events end there, everything else is
broken off.
"""

import asyncio
import collections.abc
import math
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

from aiohttp import web
from pydantic import TypeAdapter

from moorage.errors import AppError, Unauthenticated
from moorage.guard.decision import Decision
from moorage.guard.lasting import Lasting
from moorage.http.request import ClientGone, Context

HEARTBEAT_S: Final = 15.0
"""Proxies close what is silent for a minute, or half of one."""
_ITERATORS: Final = frozenset(
    {
        collections.abc.AsyncIterator,
        collections.abc.AsyncIterable,
        collections.abc.AsyncGenerator,
    }
)
Pieces = AsyncIterator[bytes]


@dataclass(frozen=True)
class Stream:
    """Bytes of a type that the handler chooses, such as ``text/csv``."""

    pieces: AsyncIterator[bytes]
    media_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerSent:
    """One server-sent event (WHATWG HTML, 9.2). ``data``: text, or a value that becomes JSON.

    ``id`` comes back as the header ``Last-Event-ID`` when a client connects again; ``retry`` in seconds.
    """

    data: object
    event: str | None = None
    id: str | None = None
    retry: float | None = None

    def encode(self) -> bytes:
        """The event as it is sent."""
        text = self.data if isinstance(self.data, str) else _ANYTHING.dump_json(self.data).decode()
        lines = [
            f"{name}: {_one_line(value)}" for name, value in (("event", self.event), ("id", self.id)) if value
        ]
        if self.retry is not None:
            lines.append(f"retry: {round(self.retry * 1000)}")
        # CR, LF and CRLF all end a line there, and nothing else does.
        lines += [f"data: {line}" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


_ANYTHING: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def _one_line(value: str) -> str:
    if any(char in value for char in "\r\n\0"):
        raise ValueError("the event's name and id are one line each")
    return value


class Connection(Protocol):
    """What of the server's connection is needed here."""

    on_lost: Callable[[], object] | None


def pieces_of(declared: object) -> object | None:
    """``X`` of ``AsyncIterator[X]``; None for any other type."""
    if typing.get_origin(declared) not in _ITERATORS:
        return None
    return cast("object", typing.get_args(declared)[0])


async def send(
    context: Context, response: web.StreamResponse, pieces: Pieces, *, at_once: bool = False
) -> web.StreamResponse:
    """Send *pieces*; the end of the body is left to the host, which first commits what the handler did.

    Args:
        at_once: send the head before the first piece; else an error before it is an ordinary answer.
    """
    async with aclosing(cast("Any", pieces)) if hasattr(pieces, "aclose") else _nothing():
        if context.web.method == "HEAD":
            return web.Response(status=response.status, headers=response.headers)
        first = b"" if at_once else await anext(pieces, b"")
        context.finish(response)
        with _cancelled_when_gone(context.web):
            if context.recorded is not None:
                await context.recorded(response.status)
            try:
                await response.prepare(context.web)
            except ConnectionError as exc:
                raise ClientGone from exc
            context.begun = response
            context.lift_deadline()
            # Events see to it themselves: their end is none that a client could take for the end of the whole.
            async with _nothing() if at_once else _while_valid(context):
                await _write(context, response, first)
                async for piece in pieces:
                    await _write(context, response, piece)
    return response


@asynccontextmanager
async def _while_valid(context: Context) -> AsyncIterator[None]:
    """Raise in the middle of what goes on beyond the token's expiry, or the end of its decision."""
    loop, expires = asyncio.get_running_loop(), context.decision.expires
    limit = asyncio.timeout(None if expires is None else _left(expires))
    ended: list[AppError] = []

    def end(error: AppError) -> None:
        if not limit.expired():
            ended.append(error)
            limit.reschedule(loop.time())

    try:
        async with limit:
            with context.guard.lasting.watching(context.decision, end):
                yield
    except TimeoutError as exc:
        if limit.expired():
            expired = Unauthenticated("The access token has expired.", code="token_expired")
            raise (ended[0] if ended else expired) from exc
        raise


def _left(expires: float | None) -> float:
    """Seconds until a token *expires* (seconds since the epoch; ``None``: never)."""
    return math.inf if expires is None else max(expires - time.time(), 0.0)


async def _write(context: Context, response: web.StreamResponse, piece: bytes) -> None:
    if piece:
        # A client that takes nothing must not hold the unit of work for ever.
        try:
            async with asyncio.timeout(context.limits.timeout):
                await response.write(piece)
        except (ConnectionError, TimeoutError) as exc:
            raise ClientGone from exc


@contextmanager
def _cancelled_when_gone(request: web.BaseRequest) -> Iterator[None]:
    task, connection = asyncio.current_task(), cast("Connection | None", request.protocol)
    assert task is not None
    if connection is None or request.transport is None:
        raise ClientGone
    gone = False

    def lost() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    connection.on_lost = lost
    try:
        yield
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        connection.on_lost = None


class _nothing:  # noqa: N801 - stands where `aclosing` does
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def lines(values: AsyncIterator[Any], encode: Callable[[Any], Awaitable[bytes]]) -> Pieces:
    """Each value as a line of JSON."""
    async with aclosing(cast("Any", values)):
        async for value in values:
            yield await encode(value) + b"\n"


async def events(
    values: AsyncIterator[ServerSent],
    stopping: asyncio.Event,
    decision: Decision,
    lasting: Lasting,
    heartbeat_s: float = HEARTBEAT_S,
) -> Pieces:
    """Each event, and a comment whenever nothing happened for *heartbeat_s*.

    Ends when the process is *stopping*, when the token expires, and when *decision* no longer holds: the client
    connects again, to another process or with another token, and says what it had last.
    """
    ended = asyncio.Event()

    def over() -> bool:
        return stopping.is_set() or ended.is_set() or _left(decision.expires) <= 0

    async with aclosing(cast("Any", values)):
        waiting: asyncio.Future[ServerSent] | None = None
        ends = {asyncio.ensure_future(stopping.wait()), asyncio.ensure_future(ended.wait())}
        try:
            with lasting.watching(decision, lambda _: ended.set()):
                while not over():
                    waiting = waiting or asyncio.ensure_future(cast("Any", anext(values)))
                    wait = min(heartbeat_s, _left(decision.expires))
                    await asyncio.wait({waiting, *ends}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                    if over() and not waiting.done():
                        return
                    if not waiting.done():
                        yield b": still here\n\n"
                        continue
                    finished, waiting = waiting, None
                    try:
                        event = finished.result()
                    except StopAsyncIteration:
                        return
                    yield event.encode()
        finally:
            for end in ends:
                end.cancel()
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})
