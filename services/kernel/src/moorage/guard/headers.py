"""Headers that carry identity, trace or addresses: what may come in, and what is made of it."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy, istr

from moorage import trace as traces
from moorage.trace import Trace as Trace  # part of what a request's headers say

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

USER_HEADER: Final = "X-Moorage-User"
TENANT_HEADER: Final = "X-Moorage-Tenant"
ROLES_HEADER: Final = "X-Moorage-Roles"
REQUEST_ID_HEADER: Final = istr("X-Request-ID")
TRACEPARENT_HEADER: Final = traces.TRACEPARENT
AUTHORIZATION: Final = istr("Authorization")
HOST: Final = istr("Host")
CONTENT_LENGTH: Final = istr("Content-Length")

_IDENTITY_PREFIXES: Final = (
    "x-moorage-",
    "x-user-",
    "x-forwarded-",
    "x-auth-request-",
    "x-authenticated-",
    "x-remote-",
    "x-ssl-client",
    "ssl-client",
    "x-client-cert",
    "x-original-",
    "x-rewrite-",
)
_IDENTITY: Final = frozenset(
    {
        "x-user", "x-userid", "x-username", "x-role", "x-roles", "x-groups", "x-permissions", "x-email",
        "x-tenant", "x-tenant-id", "x-webauth-user", "x-verified-user",
        "x-consumer-id", "x-consumer-username", "x-goog-authenticated-user-email", "auth-user",
        "remote-user", "remote-groups", "remote-email", "remote-name",
        # Addresses: only the guard says where a request came from.
        "forwarded", "x-forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip",
        "x-cluster-client-ip", "x-envoy-external-address", "fastly-client-ip",
        # Other methods and paths than the guard has judged; HTTP_PROXY in CGI's environment (CVE-2016-5385).
        "x-http-method", "x-http-method-override", "x-method-override", "proxy",
    }
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A field's name (RFC 9110, 5.6.2)."""
_ODD = re.compile(r"[^a-z0-9-]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_HOPS: Final = 32
_HOST = re.compile(
    r"(?:[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
_MAX_HOST: Final = 262
"""Characters: of a name and a port. What is longer is not looked at, nor remembered."""


def is_host(text: str) -> bool:
    """Whether *text* is what a ``Host`` field has to be (RFC 9112, 3.2): a name or an address, perhaps with a port."""
    return len(text) <= _MAX_HOST and _is_host(text)


@lru_cache(maxsize=256)
def _is_host(text: str) -> bool:
    return _HOST.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def is_identity_header(name: str) -> bool:
    """Whether a header of this name, sent from outside, would claim who or where the caller is, or another
    target.

    Dots, underscores, other signs and case make no difference: CGI, WSGI and many frameworks read ``X_User.Id``
    as ``X-User-Id``. What is no name at all (``X-User-Id`` with a space behind it, or a letter that only looks
    like one of these) nobody honest sends, and somebody might take it for any.
    """
    if _NAME.fullmatch(name) is None:
        return True
    plain = _ODD.sub("-", name.lower())
    return plain in _IDENTITY or plain.startswith(_IDENTITY_PREFIXES)


def without_identity(headers: Headers) -> CIMultiDict[str]:
    """A copy of *headers* without those of `is_identity_header`; a host does this before any code sees a
    request.
    """
    return CIMultiDict((name, value) for name, value in headers.items() if not is_identity_header(name))


def has_identity(headers: Headers) -> bool:
    """Whether `without_identity` would take anything off: hosts need no copy for most requests."""
    return any(is_identity_header(name) for name in headers)


def request_id(headers: Headers) -> str:
    """The caller's ``X-Request-ID``, if there is one of a form that logs and shells cannot be hurt by; else a
    new one.
    """
    given = headers.get(REQUEST_ID_HEADER)
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        return given
    return traces.random_id()


def trace(headers: Headers) -> Trace:
    """Continue the caller's trace with a span of this hop, or begin one; a malformed ``traceparent`` counts as
    none, as W3C has it, and so does one that was sent twice.
    """
    given = headers.getall(traces.TRACEPARENT, None)
    if given is not None and len(given) == 1:
        caller = traces.parse(given[0], headers.getall(traces.TRACESTATE, ()))
        if caller is not None:
            return caller.child()
    return traces.new()


IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The addresses whose ``X-Forwarded-*`` headers count. Raises `ValueError` for what is no address or
    network.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: Sequence[IPNetwork] = [ipaddress.ip_network(network) for network in networks]

    def __contains__(self, address: IPAddress) -> bool:
        return bool(self._networks) and any(address in network for network in self._networks)

    def __bool__(self) -> bool:
        return bool(self._networks)


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request came from: *address* without port (``None`` for a Unix socket), *scheme* as the client
    used it.
    """

    address: str | None
    scheme: str


@lru_cache(maxsize=4096)
def _direct(peer: str | None, scheme: str) -> Client:
    """The client at the connection's other end; most requests of a connection pool come from few of them."""
    address = parse_address(peer)
    return Client(str(address) if address is not None else None, scheme)


def client(peer: str | None, scheme: str, headers: Headers, trusted: TrustedProxies) -> Client:
    """Find the client behind *peer* (the connection's other end) and *scheme* (the connection's own).

    ``X-Forwarded-For`` is read from the right, as each proxy appends whom it saw: trusted hops are passed
    over, and the first other address is the client. ``X-Forwarded-Proto`` counts from a trusted peer, its
    last value. RFC 7239's ``Forwarded`` never counts: of two ways to say the same, a proxy that maintains one
    lets the other through forged.
    """
    address = parse_address(peer)
    if address is None or address not in trusted:
        return _direct(peer, scheme)
    proto = ",".join(headers.getall("X-Forwarded-Proto", ())).rpartition(",")[2].strip().lower()
    scheme = proto if proto in ("http", "https") else scheme
    hops = ",".join(headers.getall("X-Forwarded-For", ())).split(",")
    for hop in reversed(hops[-_MAX_HOPS:]):
        before = parse_address(hop.strip())
        if before is None:
            break
        address = before
        if before not in trusted:
            break
    return Client(str(address), scheme)


_ADDRESS = re.compile(
    r"(?P<v4>[0-9.]+)(?::[0-9]{1,5})?|\[(?P<bracketed>[^][]+)\](?::[0-9]{1,5})?|(?P<v6>[^][]+)"
)


@lru_cache(maxsize=4096)
def parse_address(text: str | None) -> IPAddress | None:
    """Read an address, with or without port, whole or not at all; IPv4 in IPv6 (``::ffff:192.0.2.1``) is the IPv4
    address it stands for.
    """
    match = _ADDRESS.fullmatch(text) if text else None
    if match is None:
        return None
    try:
        if match["v4"]:
            return ipaddress.IPv4Address(match["v4"])
        address = ipaddress.IPv6Address((match["bracketed"] or match["v6"]).partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address
