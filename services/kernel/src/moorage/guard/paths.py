"""Request targets, read so that every party behind the guard sees the same path that the guard judged.

A path that two programs could read differently is refused with 400 rather than repaired: `//`, dot segments,
encoded slashes, backslashes, dots and NULs, `;` parameters, control characters, doubly encoded octets and
what is not UTF-8.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from moorage.errors import BadRequest

MAX_TARGET: Final = 8192
"""Characters of path and query together, as nginx and Envoy bound them by default."""
_PLAIN: Final = re.compile(r"/|(?:/(?!\.+(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@|^\[\]-]+)+/?")
"""Nothing encoded, no empty or dot segment: the shape of nearly every request, decided by one expression."""
_ENCODED: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,=:@|^\[\]%-]*)+")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_HIDDEN: Final = re.compile(r"%(?:2[fFeE]|5[cC]|00)")
"""An encoded slash, dot, backslash or NUL has no honest use: `.` never needs encoding, the others divide
segments.
"""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Target(NamedTuple):
    """A request target: *path* decoded, *raw_path* as it came, *query* as it came without its `?`."""

    path: str
    raw_path: str
    query: str


def parse_target(target: str) -> Target:
    """Split and judge a request target in origin form (RFC 9112, 3.2.1); raises `BadRequest`."""
    if len(target) > MAX_TARGET:
        raise BadRequest(
            f"The address has more than {MAX_TARGET} characters.", status=414, code="uri_too_long"
        )
    raw_path, _, query = target.partition("?")
    if _PLAIN.fullmatch(raw_path) is not None:
        return Target(raw_path, raw_path, query)
    return Target(_decode(raw_path), raw_path, query)


def _decode(raw: str) -> str:
    if "//" in raw:
        raise _refuse("it has an empty segment")
    if _ENCODED.fullmatch(raw) is None:
        raise _refuse("it holds a character that has to be percent-encoded, or is not of the form /path")
    if _BAD_ESCAPE.search(raw) is not None:
        raise _refuse("a `%` is not followed by two hexadecimal digits")
    if _HIDDEN.search(raw) is not None:
        raise _refuse("it hides a slash, a dot, a backslash or a NUL")
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise _refuse("it is not UTF-8") from None
    if _CONTROL.search(path) is not None:
        raise _refuse("it holds a control character")
    if _ESCAPE.search(path) is not None:
        raise _refuse("it is encoded twice")
    # `..%3b` as well: who decodes first reads `..;`, and who then cuts the parameter off, `..`.
    if any(segment and not segment.partition(";")[0].strip(".") for segment in path.split("/")):
        raise _refuse("it has a dot segment")
    return path


def _refuse(why: str) -> BadRequest:
    return BadRequest(f"The path is refused: {why}.", code="bad_path")
