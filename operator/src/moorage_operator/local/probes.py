"""Whether a process is ready: its admin port says so, or, for a program of any kind, its port answers."""

import asyncio
from typing import Any, Final

import aiohttp

_TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)


async def http_ready(session: aiohttp.ClientSession, url: str) -> str | None:
    """``None`` if GET *url* is answered with a success, else what it said in a few words."""
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            if response.status < 400:
                return None
            return f"GET {url} answers {response.status} {(await response.text())[:300]}".rstrip()
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"GET {url} fails: {type(error).__name__}"


async def tcp_ready(host: str, port: int) -> str | None:
    """``None`` if something listens on the port."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2.0)
    except (OSError, TimeoutError):
        return f"nothing listens on {host}:{port}"
    writer.close()
    return None


async def get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    """The JSON object at *url*, or ``None`` if there is none."""
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            value = await response.json() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    return value if isinstance(value, dict) else None
