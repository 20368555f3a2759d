"""The app's health, asked on the pod's loopback: kubelet cannot reach an app that listens there alone."""

import asyncio

import aiohttp
from yarl import URL

from moorage.health import NotReady
from moorage_gateway.sidecar.settings import UpstreamSettings


class AppProbes:
    """Asks the app as kubelet would: GET on a path, 200 to 399 is well; without a path, a connection is."""

    def __init__(self, client: aiohttp.ClientSession, upstream: UpstreamSettings) -> None:
        self._client = client
        self._upstream = upstream

    async def alive(self) -> None:
        """Raise `NotReady`, with what is wrong, unless the app lives."""
        await self._ask(self._upstream.health_path)

    async def started(self) -> None:
        """Raise `NotReady`, with what is wrong, unless the app has started."""
        await self._ask(self._upstream.startup_path or self._upstream.health_path)

    async def ready(self) -> None:
        """Raise `NotReady`, with what is wrong, unless the app takes requests."""
        await self._ask(self._upstream.ready_path)

    async def _ask(self, path: str | None) -> None:
        where = f"{self._upstream.host}:{self._upstream.port}"
        try:
            async with asyncio.timeout(self._upstream.probe_timeout):
                if path is None:
                    _, writer = await asyncio.open_connection(self._upstream.host, self._upstream.port)
                    writer.close()
                    return
                url = URL(f"http://{where}{path}", encoded=True)
                headers = {"User-Agent": "moorage-probe", "Connection": "close"}
                async with self._client.get(url, headers=headers, allow_redirects=False) as response:
                    status = response.status
        except TimeoutError:
            raise NotReady(
                f"the app did not answer {path or where} within {self._upstream.probe_timeout:g} s"
            ) from None
        except (OSError, aiohttp.ClientError) as exc:
            raise NotReady(f"the app does not answer on {where} ({type(exc).__name__})") from None
        if not 200 <= status < 400:
            raise NotReady(f"the app answered {status} to {path}")
