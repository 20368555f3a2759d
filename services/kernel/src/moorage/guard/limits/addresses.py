"""Whose count an address belongs to."""

import ipaddress
from functools import lru_cache

from moorage.guard.headers import parse_address

_SUBSCRIBER = 64


@lru_cache(maxsize=4096)
def address_key(text: str) -> str:
    """The address itself, of IPv6 its /64: one subscriber has all of that to choose from (RFC 6177).

    IPv4 in IPv6 (``::ffff:192.0.2.1``) is the IPv4 address. What is no address stands for itself.
    """
    address = parse_address(text)
    if address is None:
        return text[:64]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _SUBSCRIBER), strict=False))
    return str(address)
