"""From exceptions of libraries to the errors that callers see."""

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from pydantic import ValidationError

from moorage.errors import AppError, BadRequest, Invalid, TooLarge

_UNSENDABLE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def invalid(exc: ValidationError, where: str, name: str = "") -> AppError:
    """The error for values that pydantic refuses. Never shows the values: they may be secrets.

    Args:
        where: ``body`` or ``query``.
        name: the parameter, if *exc* is about a single one.
    """
    problems = exc.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["type"] == "json_invalid" for problem in problems):
        return BadRequest("The body is not JSON.", code="invalid_json", reason=problems[0]["msg"])
    fields = {}
    for problem in problems:
        path = ".".join(str(part) for part in ((name,) if name else ()) + problem["loc"])
        fields[path or where] = problem["msg"].removeprefix("Value error, ")
    return Invalid(fields=fields, details={"in": where})


def from_http_exception(exc: web.HTTPException) -> AppError:
    """aiohttp's own refusals (a body too large, a bad Expect header) in our shape."""
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        return TooLarge(0)
    return AppError(exc.reason, code=(exc.reason or "error").lower().replace(" ", "_"), status=exc.status)


def check_fields(headers: Mapping[str, str]) -> None:
    """Raise `ValueError` for what aiohttp will refuse to send; for who has to know before it is sent."""
    for name, value in headers.items():
        if _UNSENDABLE.search(name) is not None or _UNSENDABLE.search(value) is not None:
            raise ValueError(f"the field {name!r} holds a control character")


def check_message(request: web.BaseRequest) -> None:
    """Refuse what aiohttp's parser lets pass although another server would read it differently.

    Raises:
        AppError: 505 for another version than HTTP/1.0 and 1.1 (``GET /`` alone is 0.9), 501 for a transfer coding
            besides chunked (RFC 9112, 6.1).
    """
    if request.version is not HttpVersion11 and request.version not in (HttpVersion10, HttpVersion11):
        raise AppError("Only HTTP/1.0 and HTTP/1.1 are spoken here.", status=505, code="http_version")
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and coding.lower() != "chunked":
        raise AppError(
            "The only transfer coding known here is chunked.", status=501, code="unknown_transfer_coding"
        )
