"""From what a handler returns to what is sent."""

import json
import typing
from collections.abc import Callable
from types import NoneType
from typing import Any, cast

from aiohttp import web
from pydantic import PydanticSchemaGenerationError, TypeAdapter

from moorage.http.request import Context
from moorage.module import DeclarationError, Handler

Answer = Callable[[Context, Any], typing.Awaitable[web.StreamResponse]]


def answering(handler: Handler, returns: object) -> Answer:
    """How the results of *handler*, declared as *returns*, are sent.

    Raises:
        DeclarationError: the type cannot be made into JSON.
    """
    declared = _declared(returns)
    if declared is NoneType:
        return _empty(handler.status or 204)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", declared))
    except PydanticSchemaGenerationError:
        raise DeclarationError(
            f"{handler.where} cannot answer with {declared}: return a Model, a Page of one, or Out[…]"
        ) from None
    return _json(adapter, handler.status or 200)


def _declared(returns: object) -> object:
    """The model in ``Out[Model]``, which is ``Model | Any``; anything else is itself."""
    if typing.get_origin(returns) is typing.Union and Any in typing.get_args(returns):
        kinds = tuple(kind for kind in typing.get_args(returns) if kind is not Any)
        return typing.Union[kinds]  # noqa: UP007 - made at run time
    return returns


def _empty(status: int) -> Answer:
    async def answer(context: Context, result: Any) -> web.StreamResponse:
        for prepare in context.before_answer:
            await prepare()
        return web.Response(status=status)

    return answer


def _json(adapter: TypeAdapter[Any], status: int) -> Answer:
    async def answer(context: Context, result: Any) -> web.StreamResponse:
        for prepare in context.before_answer:
            await prepare()
        if isinstance(result, web.StreamResponse):
            return result

        def encode() -> bytes:
            return adapter.dump_json(adapter.validate_python(result, from_attributes=True), by_alias=True)

        body = encode() if context.run is None else await context.run(encode)
        return web.Response(status=status, body=body, content_type="application/json")

    return answer


def json_response(value: object, status: int = 200) -> web.Response:
    """*value* as JSON (RFC 8259: UTF-8, and no charset in the type)."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode()
    return web.Response(status=status, body=body, content_type="application/json")
