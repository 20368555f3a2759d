"""Which header fields pass the proxy, which are made by it, and which never do.

Both directions build a new ``CIMultiDict``: what is not copied cannot pass. Field values that are not UTF-8
are read as ISO-8859-1 and passed on as UTF-8, because aiohttp's writer would drop such bytes without a word.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from multidict import CIMultiDict

from moorage.guard.headers import Headers, is_identity_header
from moorage.guard.reserved import FORGEABLE, FORGEABLE_PREFIXES, HANDSHAKE, HOP_BY_HOP

# End-to-end fields that a client cannot have dropped by listing them in `Connection` (RFC 9110, 7.6.1).
_NEVER_OPTIONS: Final = frozenset(
    {"authorization", "content-length", "content-type", "cookie", "host", "origin"}
)
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


@lru_cache(maxsize=4096)
def passes_inward(name: str) -> bool:
    """Whether a request's field *name* may go on to an upstream as the client sent it.

    Names with characters other than letters, digits and hyphens are dropped, as nginx does: CGI and WSGI
    fold ``X_User_Id`` and ``X-User-Id`` into one variable, so any odd spelling may be a field of above.
    """
    lower = name.lower()
    return (
        _NAME_CHARACTERS.issuperset(lower)
        and lower not in HOP_BY_HOP
        and lower not in HANDSHAKE
        and lower not in FORGEABLE
        and not lower.startswith(FORGEABLE_PREFIXES)
        and not is_identity_header(lower)
    )


@lru_cache(maxsize=4096)
def passes_outward(name: str) -> bool:
    """Whether a response's field *name* may go on to the client."""
    lower = name.lower()
    return lower not in HOP_BY_HOP and lower not in HANDSHAKE


def connection_options(headers: Headers) -> frozenset[str]:
    """The lower-case names that ``Connection`` lists; those fields end at this hop as well."""
    values = headers.getall("Connection", ())
    if not values:
        return frozenset()
    return frozenset(option.strip().lower() for value in values for option in value.split(","))


def printable(value: str) -> str:
    """*value* in a form that survives aiohttp's UTF-8 writer: see the module's docstring."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("iso-8859-1")
    return value


def copy_inward(headers: Headers, *, keep_authorization: bool) -> "CIMultiDict[str]":
    """The fields of a request that an upstream may see."""
    listed = connection_options(headers)
    return CIMultiDict(
        (name, printable(value))
        for name, value in headers.items()
        if passes_inward(name)
        and (not listed or name.lower() not in listed or name.lower() in _NEVER_OPTIONS)
        and (keep_authorization or name.lower() != "authorization")
    )


def copy_outward(headers: Headers) -> "CIMultiDict[str]":
    """The fields of a response that the client may see."""
    listed = connection_options(headers)
    return CIMultiDict(
        (name, printable(value))
        for name, value in headers.items()
        if passes_outward(name) and (not listed or name.lower() not in listed)
    )


def split_list(values: Iterable[str]) -> list[str]:
    """The members of a comma-separated field that may come several times, without empty ones."""
    return [member for value in values for part in value.split(",") if (member := part.strip())]
