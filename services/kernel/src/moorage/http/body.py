"""Reading a request's body: bounded in size and time, JSON alone."""

import asyncio
from typing import Final

from aiohttp import web

from moorage.errors import AppError, BadRequest, TooLarge
from moorage.http.request import Context

_CHUNK: Final = 64 * 1024


class UnsupportedMediaTypeError(AppError):
    """415: the body is of a type that the handler does not read."""

    code, status = "unsupported_media_type", 415
    default_message = "The body must be JSON, with Content-Type: application/json."


class RequestTimeoutError(AppError):
    """408: the client did not send in time (RFC 9110, 15.5.9)."""

    code, status = "request_timeout", 408
    default_message = "The body did not arrive in time."


async def read_body(context: Context) -> bytes:
    """The whole body of a JSON request.

    A page of another origin can send a form without asking, but not this type: requiring it keeps cross-site
    requests out, where a browser adds credentials by itself.

    Raises:
        UnsupportedMediaTypeError, TooLarge, RequestTimeoutError, BadRequest
    """
    request = context.web
    media = request.content_type
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMediaTypeError
    return await read_any(context)


async def read_any(context: Context) -> bytes:
    """The whole body, whatever its type; read once.

    Raises:
        TooLarge, RequestTimeoutError, BadRequest
    """
    if context.body is None:
        context.body = await read_bounded(context.web, context.limits.max_body, context.limits.read_timeout)
    return context.body


async def read_bounded(request: web.BaseRequest, limit: int, timeout_s: float) -> bytes:
    """The body, of *limit* bytes at most and within *timeout_s* seconds."""
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(limit)
    # Not before: a client that may not call does not send it. Other expectations are ignored (RFC 9110, 10.1.1).
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_chunked(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise TooLarge(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise RequestTimeoutError from None
    except web.RequestPayloadError as exc:
        raise BadRequest("The body is not whole.", reason=str(exc)) from None
    return b"".join(chunks)
