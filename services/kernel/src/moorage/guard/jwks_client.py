"""Fetches an issuer's key set over HTTP: the one place of the key ring that does I/O."""

import asyncio
from typing import Final

import aiohttp
from yarl import URL

from moorage.guard.jwks import MAX_BYTES

FETCH_S: Final = 3.0
"""Seconds for the whole of it, from the name's look-up to the last byte."""
_CONNECT_S: Final = 2.0


class FetchError(Exception):
    """What came is no key set; the text says why."""


async def fetch(address: str) -> bytes:
    """The bytes that *address* answers with: at most `MAX_BYTES`, from nowhere else, by TLS that is verified.

    A connection of its own each time: it is wanted every few minutes, and a new one finds the server that is there now.

    Raises:
        FetchError: another answer than 200 with so few bytes; a redirect is one.
        aiohttp.ClientError, OSError, TimeoutError: no answer.
    """
    timeout = aiohttp.ClientTimeout(total=FETCH_S, sock_connect=_CONNECT_S)
    async with (
        asyncio.timeout(FETCH_S),
        aiohttp.ClientSession(
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=1, force_close=True),
        ) as session,
        session.get(
            URL(address, encoded=True),
            headers={
                "Accept": "application/jwk-set+json, application/json",
                "Accept-Encoding": "identity",
                "Cache-Control": "no-cache",
            },
            allow_redirects=False,
        ) as response,
    ):
        if response.status != 200:
            raise FetchError(f"it answered {response.status}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError("it answered with an encoding that was not asked for")
        return await _bounded(response)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    # What a length says is looked at to save the reading; what comes is counted in any case.
    if (response.content_length or 0) > MAX_BYTES:
        raise FetchError(f"it has more than {MAX_BYTES} bytes")
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_BYTES:
            raise FetchError(f"it has more than {MAX_BYTES} bytes")
    return bytes(content)
