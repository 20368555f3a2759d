"""What a request must look like before anything is decided about it.

aiohttp's parser refuses most malformed messages. Here stands what it lets pass although two servers could
read it differently (request smuggling, RFC 9112 section 11.2) or its writer could not repeat it exactly.
"""

import re
from dataclasses import dataclass
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from moorage import errors
from moorage.guard import paths
from moorage.guard.headers import is_host
from moorage.guard.matcher import STANDARD_METHODS
from moorage.http.faults import check_message

MAX_FIELDS_SIZE: Final = 64 * 1024
"""Bytes of all header fields together, names and values."""
_NEVER: Final = frozenset({"CONNECT", "TRACE", "TRACK"})
_ABSOLUTE: Final = re.compile(r"https?://(?P<host>[^/?#@]+)(?P<target>/.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request is meant to go.

    ``host`` as it was given (with its port, ``""`` if none), ``target`` as it came (path and query), ``path``
    decoded; its raw form is one that no two programs read differently, see `moorage.guard.paths`. *absolute*:
    the request gave them in one, ``http://host/path``, which overrides its Host field.
    """

    host: str
    target: str
    path: str
    absolute: bool = False


def read(request: web.BaseRequest) -> Address:
    """Check *request*'s framing, fields and target; raises an `AppError` of the 400s or 501."""
    if request.method in _NEVER:
        raise errors.MethodNotAllowed(request.method, STANDARD_METHODS)
    _check_framing(request)
    if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_FIELDS_SIZE:
        raise errors.BadRequest("The header fields are too large.", status=431, code="headers_too_large")
    host, target = request.headers.get(hdrs.HOST, ""), request.raw_path
    absolute = not target.startswith("/")
    if absolute:
        host, target = _absolute(target)
    if host and not is_host(host):
        raise errors.BadRequest("The Host field is malformed.", code="bad_host")
    if not target.isascii() or "#" in target:
        raise errors.BadRequest(
            "The address holds a character that has to be percent-encoded.", code="bad_path"
        )
    return Address(host, target, paths.parse_target(target).path, absolute)


def _check_framing(request: web.BaseRequest) -> None:
    """One way alone to tell where the body ends; an `Expect` that can be met."""
    check_message(request)
    headers = request.headers
    if hdrs.TRANSFER_ENCODING in headers:
        if hdrs.CONTENT_LENGTH in headers:
            raise errors.BadRequest("Content-Length and Transfer-Encoding exclude each other.")
        if request.version < HttpVersion11:
            raise errors.BadRequest("Transfer-Encoding needs HTTP/1.1.")
    expectation = headers.get(hdrs.EXPECT)
    if expectation is not None and expectation.lower() != "100-continue":
        raise errors.AppError(
            "The only expectation known here is 100-continue.", status=417, code="expectation_failed"
        )


def _absolute(target: str) -> tuple[str, str]:
    """Host and target of the absolute form, whose authority replaces the Host field (RFC 9112, 3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise errors.BadRequest("The address is not of the form /path.", code="bad_path")
    return match["host"], match["target"] or "/"
