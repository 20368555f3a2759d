"""From what a handler returns to what is sent."""

import json
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Any, Final, cast

from aiohttp import hdrs, web
from multidict import CIMultiDict
from pydantic import PydanticSchemaGenerationError, TypeAdapter

from moorage.http import streams
from moorage.http.faults import check_fields
from moorage.http.request import Context
from moorage.http.streams import ServerSent, Stream
from moorage.module import DeclarationError, Handler

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
ANY: Final = "*/*"
BYTES: Final = "application/octet-stream"
_JSON_HEADERS: Final = CIMultiDict({hdrs.CONTENT_TYPE: JSON})


@dataclass(frozen=True)
class Content:
    """An answer that is no JSON: ``return Content(png, "image/png")``."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """How the results of one handler are sent.

    ``media`` is the type of the body, ``None`` where there is none; ``adapter`` knows what the JSON of it looks
    like (each line's, each event's, if it ``streams``).
    """

    status: int
    media: str | None
    make: Callable[[Context, Any], Awaitable[web.StreamResponse]]
    adapter: TypeAdapter[Any] | None = None
    streams: bool = False

    async def __call__(self, context: Context, result: Any) -> web.StreamResponse:
        """The answer for *result*; what the handler changed is flushed first. Raises `ValueError` for fields that
        cannot be sent, as long as there can be another answer.
        """
        for prepare in context.before_answer:
            await prepare()
        if isinstance(result, web.StreamResponse):
            check_fields(result.headers)
            return result
        return await self.make(context, result)

    async def encode(self, context: Context, value: Any) -> bytes:
        """*value* as JSON, its attributes read where rows may load them."""
        if context.run is None:
            return self._encoded(value)
        return cast("bytes", await context.run(partial(self._encoded, value)))

    def _encoded(self, value: Any) -> bytes:
        assert self.adapter is not None
        # Not by the adapter's own methods, which take as long as what they call.
        valid = self.adapter.validator.validate_python(value, from_attributes=True)
        return self.adapter.serializer.to_json(valid, by_alias=True)


def answering(handler: Handler, returns: object) -> Answer:
    """How the results of *handler*, declared as *returns*, are sent.

    Raises:
        DeclarationError: the type cannot be made into JSON.
    """
    declared = _declared(returns)
    if declared is NoneType:
        return _empty(handler.status or 204)
    status = handler.status or 200
    piece = _declared(streams.pieces_of(declared))
    if declared is Stream or piece is bytes:
        return _bytes(status, BYTES if piece is bytes else ANY)
    if piece is ServerSent:
        return _events(status)
    if declared is Content or (isinstance(declared, type) and issubclass(declared, web.StreamResponse)):
        return _content(status)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", declared if piece is None else piece))
    except PydanticSchemaGenerationError:
        raise DeclarationError(
            f"{handler.where} cannot answer with {declared}: return a Model, a Page of one, Out[…], an "
            "AsyncIterator of one, a Stream, or Content"
        ) from None
    return _json(adapter, status) if piece is None else _lines(adapter, status)


def _declared(returns: object) -> object:
    """The model in ``Out[Model]``, which is ``Model | Any``; anything else is itself."""
    if typing.get_origin(returns) is typing.Union and Any in typing.get_args(returns):
        kinds = tuple(kind for kind in typing.get_args(returns) if kind is not Any)
        return typing.Union[kinds]  # noqa: UP007 - made at run time
    return returns


def _empty(status: int) -> Answer:
    async def make(context: Context, result: Any) -> web.StreamResponse:
        return web.Response(status=status)

    return Answer(status, None, make)


def _json(adapter: TypeAdapter[Any], status: int) -> Answer:
    async def make(context: Context, result: Any) -> web.StreamResponse:
        return web.Response(status=status, body=await answer.encode(context, result), headers=_JSON_HEADERS)

    answer = Answer(status, JSON, make, adapter)
    return answer


def _content(status: int) -> Answer:
    async def make(context: Context, result: Content) -> web.StreamResponse:
        headers = {"Content-Type": result.media_type, **result.headers}
        check_fields(headers)
        return web.Response(status=status, body=result.body, headers=headers)

    return Answer(status, ANY, make)


def _bytes(status: int, media: str) -> Answer:
    async def make(context: Context, result: Any) -> web.StreamResponse:
        stream = result if isinstance(result, Stream) else Stream(result)
        headers = {"Content-Type": stream.media_type, **stream.headers}
        check_fields(headers)
        return await streams.send(context, web.StreamResponse(status=status, headers=headers), stream.pieces)

    return Answer(status, media, make, streams=True)


def _lines(adapter: TypeAdapter[Any], status: int) -> Answer:
    async def make(context: Context, result: Any) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": NDJSON})
        pieces = streams.lines(result, lambda value: answer.encode(context, value))
        return await streams.send(context, response, pieces)

    answer = Answer(status, NDJSON, make, adapter, streams=True)
    return answer


def _events(status: int) -> Answer:
    async def make(context: Context, result: Any) -> web.StreamResponse:
        # X-Accel-Buffering: nginx would collect them first.
        headers = {"Content-Type": EVENTS, "X-Accel-Buffering": "no"}
        response = web.StreamResponse(status=status, headers=headers)
        pieces = streams.events(result, context.stopping, context.decision, context.guard.lasting)
        return await streams.send(context, response, pieces, at_once=True)

    return Answer(status, EVENTS, make, streams=True)


def json_response(value: object, status: int = 200) -> web.Response:
    """*value* as JSON (RFC 8259: UTF-8, and no charset in the type)."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode()
    return web.Response(status=status, body=body, headers=_JSON_HEADERS)
