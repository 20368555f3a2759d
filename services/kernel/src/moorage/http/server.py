"""Listening: aiohttp's runner with the one shape of errors, and bounded connections."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from moorage.errors import AppError, BadRequest, error_body
from moorage.http.answers import json_response
from moorage.http.faults import from_http_exception

PRODUCT: Final = "moorage"
SECURITY_HEADERS: Final = CIMultiDict(
    {
        "Server": PRODUCT,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
    }
)
"""For answers that do not say otherwise (OWASP's REST page); HSTS is added where the client came by https."""
HSTS: Final = "max-age=31536000"
_MAX_LINE: Final = 8190
_MAX_HEADERS: Final = 100
_LINGER_S: Final = 5.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

logger = logging.getLogger("moorage.http")


def error_response(error: AppError, request_id: str) -> web.Response:
    """The answer for *error*."""
    response = json_response(error_body(error, request_id), error.status)
    response.headers.update({**error.headers, "X-Request-ID": request_id})
    return response


class Connection(RequestHandler):
    """One client's connection: what aiohttp cannot parse is answered in our shape, too.

    ``on_lost`` is called when the client goes while a stream is sent.
    """

    on_lost: Callable[[], object] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell whoever sends a stream that nobody takes it any more."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is no HTTP, or whose handler failed outside the application."""
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer has begun, it can only be broken off")
        error: AppError
        if isinstance(exc, http_exceptions.LineTooLong):
            error = BadRequest("The address or a header is too long.", status=431, code="headers_too_large")
        elif status >= 500:
            logger.error("unexpected error", exc_info=exc)
            error = AppError()
        else:
            error = BadRequest("This is not a well-formed HTTP/1.1 request.")
        response = error_response(error, secrets.token_hex(16))
        response.headers.update(SECURITY_HEADERS)
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's server with our connections."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner with our server.

    Args:
        answer: what answers every request; ``None``: the application's routes do.
        idle_timeout: seconds that a connection may be open without a request.
        shutdown_timeout: seconds that running requests have when it stops.
    """

    def __init__(
        self,
        app: web.Application,
        answer: Handler | None = None,
        *,
        idle_timeout: float,
        shutdown_timeout: float,
    ) -> None:
        self._answer = answer
        self._options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": idle_timeout,
            "lingering_time": _LINGER_S,
            "max_line_size": _MAX_LINE,
            "max_field_size": _MAX_LINE,
            "max_headers": _MAX_HEADERS,
        }
        super().__init__(app, shutdown_timeout=shutdown_timeout)

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()  # starts the application
        if self._answer is not None:
            return Server(self._answer, **self._options)
        return Server(
            _in_shape(plain.request_handler), request_factory=plain.request_factory, **self._options
        )


def _in_shape(handler: Handler) -> Handler:
    """Give aiohttp's own refusals, made before the application's code is reached, the standard shape."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as exc:
            response = error_response(from_http_exception(exc), secrets.token_hex(16))
            response.headers.update(SECURITY_HEADERS)
            return response

    return answer


async def listen(runner: web.BaseRunner, host: str, port: int) -> int:
    """Start to listen; returns the port. Raises `OSError` with address and port in its text."""
    site = web.TCPSite(runner, host, port, reuse_address=True)
    try:
        await site.start()
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on {host}:{port}: {exc.strerror or exc}") from None
    return site.port
