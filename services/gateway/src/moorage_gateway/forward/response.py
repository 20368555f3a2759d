"""The response's side of the proxy: what the upstream said, streamed to the client."""

import socket
import struct
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

# Bytes. The fields of a short answer wait for its body, so that both leave in one packet.
_SHORT: Final = 16 * 1024


class Relayed(web.StreamResponse):
    """A response with the upstream's fields alone: aiohttp adds neither content type nor product name."""

    def __init__(self, status: int, reason: str, headers: "CIMultiDict[str]") -> None:
        super().__init__(status=status, reason=reason)
        self._headers = headers
        self._said = frozenset(name for name in (hdrs.CONTENT_TYPE, hdrs.SERVER) if name in headers)
        length = headers.get(hdrs.CONTENT_LENGTH, "")
        self._send_headers_immediately = not (length.isdecimal() and int(length) <= _SHORT)

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        for name in (hdrs.CONTENT_TYPE, hdrs.SERVER):
            if name not in self._said:
                self._headers.pop(name, None)


def abort(request: web.BaseRequest) -> None:
    """Break the client's connection, so that it cannot take a response cut short for a whole one."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # A reset, not a proper end: to an HTTP/1.0 client the end of the connection ends the body.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
