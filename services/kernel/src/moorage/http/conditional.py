"""Entity tags and conditional requests (RFC 9110, 8.8 and 13).

A tag is strong: the same tag means the same bytes. Compression makes other bytes, so it adds its name to the tag
(``"abc-gzip"``), and what a client sends back is compared without it.
"""

import base64
import hashlib
import re
from typing import Any, Final

from aiohttp import web

from moorage.errors import AppError
from moorage.http.answers import Answer
from moorage.http.request import Context
from moorage.module import DeclarationError, Handler

SAFE: Final = frozenset({"GET", "HEAD"})
_CODINGS: Final = ("-gzip", "-deflate")
# Begins with what is no space: else each space of a long run would be tried as a beginning, and scanned to the end.
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_MISSING: Final = object()


class PreconditionFailed(AppError):  # noqa: N818 - says what happened, as the other errors do
    """412: the resource is not, or no longer, in the state that the request names (RFC 9110, 15.5.13)."""

    code, status = "precondition_failed", 412
    default_message = "It has changed since you read it; read it again."


def check_declaration(handler: Handler, answer: Answer) -> None:
    """Raise `DeclarationError` if the handler's ``etag`` cannot work."""
    if handler.etag and answer.streams:
        raise DeclarationError(f"{handler.where}: a stream has no entity tag; leave `etag` out")


def asked(context: Context) -> bool:
    """Whether the request names a state of the resource."""
    return "If-Match" in context.web.headers or "If-None-Match" in context.web.headers


def require(context: Context, current: str | None) -> None:
    """Judge the preconditions of a request that changes something; *current* is the resource's tag.

    A resource without a tag matches none, so that nobody overwrites what he believes to be protected.

    Raises:
        PreconditionFailed: the change must not be made.
    """
    headers = context.web.headers
    wanted = headers.getall("If-Match", None)
    if wanted is not None and _matches(wanted, current, weakly=False) is None:
        raise PreconditionFailed
    unwanted = headers.getall("If-None-Match", [])
    if context.resource is not None and _matches(unwanted, current, weakly=True) is not None:
        raise PreconditionFailed("There is one already.")


async def tag_of_resource(context: Context, answer: Answer, handler: Handler) -> str | None:
    """The tag of what the loader returned; None: it has none."""
    if not handler.etag or context.resource is None:
        return None
    if isinstance(handler.etag, str):
        return _of_attribute(handler, context.resource)
    return None if answer.adapter is None else tag(await answer.encode(context, context.resource))


async def tag_answer(
    context: Context, handler: Handler, result: Any, response: web.StreamResponse
) -> web.StreamResponse:
    """Give the answer its tag and Cache-Control; 304 without a body if the client has it already."""
    if response.prepared or not 200 <= response.status < 300:
        return response
    authenticated = context.decision.rule.auth != "none"
    if (cache := handler.cache) is None and handler.etag:
        cache = "private, no-cache" if authenticated else "no-cache"
    if cache is not None:
        response.headers["Cache-Control"] = cache
        if authenticated:
            response.headers.add("Vary", "Authorization")
    if not handler.etag or response.status == 204 or not isinstance(response, web.Response):
        return response
    made = _answered_tag(context, handler, result, response)
    if made is None:
        return response
    response.headers["ETag"] = f'"{made}"'
    unwanted = context.web.headers.getall("If-None-Match", [])
    if context.web.method in SAFE and (known := _matches(unwanted, made, weakly=True)) is not None:
        # Of the bytes that the client has: it may have them compressed.
        response.headers["ETag"] = f'"{known}"'
        kept = {
            name: response.headers[name]
            for name in ("ETag", "Cache-Control", "Vary")
            if name in response.headers
        }
        return web.Response(status=304, headers=kept)
    return response


def _answered_tag(context: Context, handler: Handler, result: Any, response: web.Response) -> str | None:
    if isinstance(handler.etag, str):
        subject = context.resource if context.resource is not None else result
        return None if subject is None else _of_attribute(handler, subject)
    return tag(response.body) if isinstance(response.body, bytes) else None


def _of_attribute(handler: Handler, subject: object) -> str:
    name = str(handler.etag)
    value = getattr(subject, name, _MISSING)
    if value is _MISSING:
        raise DeclarationError(
            f"{handler.where}: etag={name!r}, but a {type(subject).__name__} has no {name}"
        )
    return tag(repr(value).encode())


def tag(content: bytes) -> str:
    """A strong tag, without quotes."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()[:18]).decode()


def _matches(given: list[str], current: str | None, *, weakly: bool) -> str | None:
    """The tag of a list that names *current*, as it was given; ``*`` names anything there is."""
    text = ", ".join(given).strip()
    if text == "*":
        return current or "*"
    for weak, found in _TAG.findall(text):
        if (weakly or not weak) and _plain(found) == current:
            return str(found)
    return None


def _plain(found: str) -> str:
    for coding in _CODINGS:
        found = found.removesuffix(coding)
    return found
