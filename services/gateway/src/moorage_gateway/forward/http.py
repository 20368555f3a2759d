"""One HTTP request passed on: bodies stream both ways with back-pressure, nothing is held in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from moorage import errors
from moorage.http.faults import check_fields
from moorage_gateway.forward import headers as fields
from moorage_gateway.forward.held import Held
from moorage_gateway.forward.response import Relayed, abort
from moorage_gateway.forward.upload import Upload
from moorage_gateway.forward.upstream import Clients, Upstream

DEFAULT_TIMEOUT_S: Final = 30.0
_BODILESS_STATUSES: Final = frozenset({204, 304})


class RequestTimeoutError(errors.AppError):
    """408: the client stopped sending in mid-body (RFC 9110, 15.5.9)."""

    code, status = "request_timeout", 408
    default_message = "The rest of the request did not arrive in time."


class RefusedError(errors.BadGateway):
    """502: nothing listens at the upstream's address."""


@dataclass(slots=True)
class Hop:
    """What was decided for one request: where it goes, with which fields, within which bounds.

    ``path`` is the request's target (path and query) exactly as it was matched, or as the rule rewrites it.
    ``headers`` are the fields that the upstream gets; ``finish`` changes those of its answer, whose status it is
    given, and ``response_headers`` are set there in place of the upstream's. ``recorded`` is asked with that status
    before the client hears of it, and raises if he must not.
    ``held`` ends what goes on when the decision no longer holds.
    ``timeout_s`` bounds the silence until the answer begins; ``max_body`` is in bytes, ``None``: no bound.
    """

    upstream: Upstream
    path: str
    headers: "CIMultiDict[str]"
    response_headers: dict[str, str]
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_body: int | None = None
    finish: Callable[["CIMultiDict[str]", int], None] | None = None
    recorded: Callable[[int], Awaitable[None]] | None = None
    held: Held | None = None


async def forward(clients: Clients, request: web.BaseRequest, hop: Hop) -> web.StreamResponse:
    """Pass *request* on and stream the answer back; the returned response is already sent.

    Raises `BadGateway`, `Timeout`, `TooLarge`, `BadRequest` and `RequestTimeoutError` as long as nothing was
    sent to the client; later the client's connection is broken off instead. When the client goes away the
    server cancels this coroutine, which closes the connection to the upstream.
    """
    upload = _upload(request, hop)
    try:
        answer = await _begin(clients, request, hop, upload)
    except aiohttp.ClientError as exc:
        raise upload.failure if upload and upload.failure else unreachable(hop.upstream, exc) from exc
    async with answer:
        return await relay(request, answer, hop)


def _upload(request: web.BaseRequest, hop: Hop) -> Upload | None:
    """The request's body, if it has one; refused here already where its length says that it is too large."""
    length = request.content_length
    if hop.max_body is not None and length is not None and length > hop.max_body:
        raise errors.TooLarge(hop.max_body)
    if not request.can_read_body:
        return None
    return Upload(request, limit=hop.max_body, timeout_s=hop.timeout_s)


async def _begin(
    clients: Clients, request: web.BaseRequest, hop: Hop, upload: Upload | None
) -> aiohttp.ClientResponse:
    """Send the request and wait until the answer's fields are there."""
    try:
        async with asyncio.timeout(hop.timeout_s) as deadline:
            if upload is not None:
                upload.deadline = deadline
            return await clients.http.request(
                request.method,
                URL(hop.upstream.origin + hop.path, encoded=True),
                headers=hop.headers,
                data=upload.pieces() if upload is not None else None,
                allow_redirects=False,
            )
    except aiohttp.ClientError:
        raise  # some of these are TimeoutErrors too: the connection's, not ours
    except TimeoutError as exc:
        if upload is not None and upload.waits_for_client:
            raise RequestTimeoutError from exc
        raise late(hop) from exc
    finally:
        if upload is not None:
            upload.deadline = None


async def relay(request: web.BaseRequest, answer: aiohttp.ClientResponse, hop: Hop) -> web.StreamResponse:
    """Stream *answer* to the client."""
    response = await _start(request, answer, hop)
    content = answer.content
    # One that is there as a whole is over before anybody could end it.
    held = None if content.is_eof() else hop.held
    try:
        with held(lambda error: abort(request)) if held is not None else nullcontext():
            while piece := await content.readany():
                await response.write(piece)
            await response.write_eof()
    except aiohttp.ClientError:
        abort(request)
    return response


async def _start(request: web.BaseRequest, answer: aiohttp.ClientResponse, hop: Hop) -> Relayed:
    """Send the answer's status and fields to the client, or refuse them as nothing that can be passed on."""
    coding = answer.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and coding.lower() != "chunked":
        raise errors.BadGateway(reason=f"{hop.upstream.origin} answered with transfer coding {coding!r}")
    if answer.status == 101:
        raise errors.BadGateway(reason=f"{hop.upstream.origin} switched protocols unasked")
    headers = fields.copy_outward(answer.headers)
    if hop.finish is not None:
        hop.finish(headers, answer.status)
    headers.update(hop.response_headers)
    if coding is not None or answer.status in _BODILESS_STATUSES:
        headers.pop(hdrs.CONTENT_LENGTH, None)
    try:
        if hop.recorded is not None:
            check_fields(headers)  # first: what is recorded is what the client gets
            await hop.recorded(answer.status)
        response = Relayed(answer.status, answer.reason or "", headers)
        await response.prepare(request)
    except (
        ValueError
    ) as exc:  # control characters in a field, which aiohttp reads leniently and refuses to write
        raise errors.BadGateway(
            reason=f"{hop.upstream.origin} answered with a malformed field: {exc}"
        ) from exc
    return response


def late(hop: Hop) -> errors.Timeout:
    """The error for an upstream that did not begin to answer in time."""
    return errors.Timeout(
        f"{hop.upstream.name} did not answer within {hop.timeout_s:g} s.",
        reason=f"no answer from {hop.upstream.origin} within {hop.timeout_s:g} s",
    )


def unreachable(upstream: Upstream, exc: aiohttp.ClientError) -> errors.AppError:
    """The error that the client sees for *exc*; what exactly went wrong is for the log."""
    reason = f"{upstream.origin}: {type(exc).__name__}: {exc}"
    if isinstance(exc, aiohttp.ServerTimeoutError):
        return errors.Timeout(f"{upstream.name} could not be reached in time.", reason=reason)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return RefusedError(f"{upstream.name} could not be reached.", reason=reason)
    return errors.BadGateway(f"{upstream.name} gave no usable answer.", reason=reason)
