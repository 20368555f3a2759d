"""What the upstream is told of the way that a request came: `X-Forwarded-For`, `-Proto` and `-Host`.

Who the client is, the guard finds (`moorage.guard.headers.client`). What stands left of the client in a chain
of addresses is the client's own invention and goes no further.
"""

from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from moorage.guard import headers as trust


@dataclass(frozen=True, slots=True)
class Origin:
    """The client's side of a request: its *client* address (``""`` on a Unix socket), scheme and host.

    ``chain`` is what `X-Forwarded-For` says: the client, and our peer where that is a trusted proxy.
    """

    client: str
    chain: str
    scheme: str
    host: str


def origin(
    request: web.BaseRequest, client: trust.Client, host: str, trusted: trust.TrustedProxies
) -> Origin:
    """Where *request* came from, whose *client* the guard has found; *host* is what its own address says."""
    peer = request.remote or ""
    address = trust.parse_address(peer) if trusted else None
    if address is None or address not in trusted:
        return Origin(peer, peer, request.scheme, host)
    # Of several the last one: the proxy appended it, those before it may be the client's.
    said = ",".join(request.headers.getall("X-Forwarded-Host", [])).rpartition(",")[2].strip()
    found = client.address or peer
    return Origin(
        client=found,
        chain=found if found == str(address) else f"{found}, {address}",
        scheme=client.scheme,
        host=said if trust.is_host(said) else host,
    )


def set_forwarded(headers: "CIMultiDict[str]", origin: Origin) -> None:
    """Tell the upstream of *origin*, in place of whatever the client said."""
    headers["X-Forwarded-For"] = origin.chain
    headers["X-Forwarded-Proto"] = origin.scheme
    headers["X-Forwarded-Host"] = origin.host
