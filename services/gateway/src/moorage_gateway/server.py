"""The listening side: aiohttp's low-level server, with the one shape of errors for malformed requests, too.

Low-level, because an `Application` would match the path a second time and parse what is only passed on.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from moorage import errors

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
PRODUCT: Final = "moorage"
KEEPALIVE_S: Final = 75.0
"""Seconds that a connection may idle, or take to send the fields of a request."""
LINGER_S: Final = 5.0
"""Seconds for which the rest of a refused body is read away, so that the client gets to see the answer."""
MAX_LINE: Final = 8190
MAX_FIELD: Final = 8190
MAX_FIELDS: Final = 100


def error_response(exc: errors.AppError, request_id: str, *, closes: bool = False) -> web.Response:
    """The answer for *exc*; *closes* ends the connection, for a body that nobody is going to read."""
    response = web.json_response(
        errors.error_body(exc, request_id),
        status=exc.status,
        headers={**exc.headers, "X-Request-ID": request_id, "Server": PRODUCT},
    )
    if closes:
        response.force_close()
    return response


class _Connection(RequestHandler):
    """One client's connection. Only the answer to what could not be parsed differs from aiohttp's."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer has begun, it can only be broken off")
        error: errors.AppError
        if isinstance(exc, http_exceptions.LineTooLong):
            error = errors.BadRequest(
                "The address or a header field is too long.", status=431, code="headers_too_large"
            )
        elif status >= 500:
            self.logger.error("unexpected error in the proxy", exc_info=exc)
            error = errors.AppError()
        else:
            error = errors.BadRequest("This is not a well-formed HTTP/1.1 request.")
        return error_response(error, secrets.token_hex(16), closes=True)


class Server(web.Server):
    """A server whose handlers are cancelled when their client goes away, so that the upstream is, too."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
        )
        self._options: dict[str, Any] = self._kwargs

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._options)
