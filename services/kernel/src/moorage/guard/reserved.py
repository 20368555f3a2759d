"""Header fields that belong to the guard or to HTTP itself: no transform of a Route may touch them.

The one list for the policy document, the compiler and the proxy hosts. Names are compared as CGI and WSGI fold
them: ``X_User.Id`` is ``X-User-Id``.
"""

from typing import Final

from moorage.guard.headers import is_identity_header

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110 section 7.6.1, and what only makes sense between two neighbours. `Expect` is the proxy's to answer."""
HANDSHAKE: Final = frozenset(
    {
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
    }
)
"""Of WebSockets: a proxy makes a handshake of its own towards the upstream."""
FORGEABLE: Final = frozenset(
    {"client-ip", "remote-addr", "x-host", "x-http-destinationurl", "x-http-host-override"}
)
"""More of what some server or framework takes for the caller's identity, address or path, beyond the guard's own
list: a proxy cannot know what its upstream believes.
"""
FORGEABLE_PREFIXES: Final = ("x-envoy-", "x-ssl-", "x-user-", "x-webauth-")

READ_IN_PROCESS: Final = frozenset(
    {"accept-encoding", "content-type", "idempotency-key", "if-match", "if-none-match", "origin"}
)
"""What the kernel itself goes by, as the client sent it: a module with the guard in its process cannot change it."""

_FRAMING: Final = frozenset({"content-encoding", "content-length", "content-range"})
_OWN: Final = frozenset({"traceparent", "tracestate", "x-request-id"})
_REQUEST: Final = HOP_BY_HOP | HANDSHAKE | FORGEABLE | _FRAMING | _OWN | {"authorization", "host"}
_RESPONSE: Final = HOP_BY_HOP | HANDSHAKE | _FRAMING | _OWN | {"date", "vary"}
_SECURITY: Final = frozenset(
    {
        "cache-control",
        "content-security-policy",
        "content-type",
        "referrer-policy",
        "strict-transport-security",
        "x-content-type-options",
        "x-frame-options",
    }
)


def _folded(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def in_request(name: str) -> str | None:
    """Why a request's field *name* can be neither set nor removed; None: it can."""
    plain = _folded(name)
    if is_identity_header(name) or plain.startswith(FORGEABLE_PREFIXES) or plain in FORGEABLE:
        return "says who or where the caller is, which only the guard does"
    return "belongs to the guard or to HTTP itself" if plain in _REQUEST else None


def in_response(name: str, *, removed: bool) -> str | None:
    """Why a response's field *name* cannot be set, or *removed*; None: it can."""
    plain = _folded(name)
    if plain.startswith("access-control-"):
        return "is what `cors` is for"
    if removed and plain in _SECURITY:
        return "protects whoever reads the answer, and can only be set to another value"
    return "belongs to the guard or to HTTP itself" if plain in _RESPONSE else None
