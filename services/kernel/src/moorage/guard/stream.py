"""The policy stream's client: one connection of this process to the service that makes the overlay.

It connects, reads, and connects again for as long as the process serves. What it reads is judged by `feed`; whatever
goes wrong here, what was in force stays in force until it is stale.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, get_args
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from moorage.guard.feed import Feed, Gap, Reason, Refused
from moorage.guard.overlay import HEARTBEAT_S, MAX_DOCUMENT
from moorage.guard.sealing import MAX_CERTIFICATE
from moorage.guard.sse import Event, EventParser, SseError
from moorage.metrics import Metrics

logger = logging.getLogger("moorage.guard")

PATH: Final = "/internal/v1/stream"
MEDIA_TYPE: Final = "text/event-stream"
MAX_EVENT: Final = MAX_DOCUMENT + MAX_CERTIFICATE + 1024
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
SETTLED_S: Final = 30.0
"""Seconds after which a connection was a good one: the next pause is a short one again."""
_CONNECT_S: Final = 5.0
_SILENT: Final = 3
"""Heartbeats without a byte."""
_USELESS: Final = 6
"""Heartbeats without a message that counts: a replica that is behind, or a proxy that keeps the connection alive."""
_LARGE: Final = 256 * 1024
"""Characters of an event from which on it is read beside the event loop."""
_MAX_TOKEN: Final = 64 * 1024


class StreamError(Exception):
    """The connection cannot be used, or no longer; the text says why."""


_EXPECTED: Final = (StreamError, SseError, Refused, aiohttp.ClientError, OSError, TimeoutError)


class StreamClient:
    """Follows the stream until cancelled.

    Args:
        urls: of the service's replicas, without a path; each connection goes to the next one.
        token_file: holds the module's service-account token, and is read for each connection.
        heartbeat: seconds between two heartbeats of the server.
        chance: gives numbers from 0 to 1, for pauses and for which replica is first.
    """

    def __init__(
        self,
        feed: Feed,
        urls: Sequence[str],
        *,
        token_file: Path,
        metrics: Metrics,
        heartbeat: float = HEARTBEAT_S,
        first_pause: float = FIRST_PAUSE_S,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.feed = feed
        self._urls = [url.rstrip("/") for url in urls]
        self._token_file = token_file
        self._heartbeat = heartbeat
        self._first_pause = first_pause
        self._chance = chance
        self._next = int(chance() * len(urls)) % len(urls)
        self._whole = False
        self._connections = metrics.counter(
            "guard_stream_connections", "Connections that were made, or tried, to the policy stream."
        ).labels()
        refused = metrics.counter(
            "guard_overlay_refused", "Messages of the policy stream that did not count, by why.", ("reason",)
        )
        self._refused = {reason: refused.labels(reason) for reason in get_args(Reason)}
        metrics.gauge_function(
            "guard_stream_connected", "Whether the policy stream is connected.", lambda: float(feed.connected)
        )
        metrics.gauge_function(
            "guard_overlay_age_seconds", "Since the last sign of life of the policy stream.", _age_of(feed)
        )

    async def run(self) -> None:
        """Connect, read, connect again; never returns."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_S, sock_read=self._heartbeat * _SILENT
        )
        async with aiohttp.ClientSession(
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=1, force_close=True),
        ) as session:
            attempt = 0
            while True:
                began = time.monotonic()
                try:
                    await self._follow(session)
                except _EXPECTED as exc:
                    self._whole = self._whole or isinstance(exc, Gap)
                    if isinstance(exc, Refused):
                        self._refused[exc.reason].inc()
                    self.feed.failed(_text(exc))
                except Exception as exc:
                    logger.exception("policy stream")
                    self.feed.failed(f"{type(exc).__name__}: {exc}")
                except asyncio.CancelledError:
                    self.feed.connected = False
                    raise
                if time.monotonic() - began >= SETTLED_S:
                    attempt = 0
                # Full jitter: many guards that lost the same server spread over the whole pause.
                pause = self._chance() * min(LONGEST_PAUSE_S, self._first_pause * 2**attempt)
                attempt = min(attempt + 1, 16)
                await asyncio.sleep(pause)

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        """One connection, from its beginning to its end; raises why it ended."""
        url = self._urls[self._next]
        self._next = (self._next + 1) % len(self._urls)
        self._connections.inc()
        async with session.get(
            URL(f"{url}{PATH}?{urlencode(self._query())}", encoded=True),
            headers=self._headers(),
            allow_redirects=False,
        ) as response:
            if response.status != 200:
                raise StreamError(f"the stream answered {response.status}")
            if response.content_type != MEDIA_TYPE or response.headers.get("Content-Encoding"):
                raise StreamError(f"the stream answered with {response.content_type}")
            self._whole = False
            await self._read(response.content)
        raise StreamError("the stream ended")

    async def _read(self, content: aiohttp.StreamReader) -> None:
        parser = EventParser(MAX_EVENT)
        loop, useless = asyncio.get_running_loop(), self._heartbeat * _USELESS
        try:
            async with asyncio.timeout(useless) as limit:
                while chunk := await content.readany():
                    for event in parser.feed(chunk):
                        if await self._take(event):
                            self.feed.connected = True
                            limit.reschedule(loop.time() + useless)
        except TimeoutError:
            # aiohttp's own, for a connection without a byte, says more.
            if limit.expired():
                raise StreamError(f"no message of the stream counted for {useless:g} s") from None
            raise

    async def _take(self, event: Event) -> bool:
        if len(event.data) < _LARGE:
            return self.feed.take(event)
        # Half a second for the largest: requests are answered meanwhile. What it says is put in force here, by the
        # one thread that decides.
        document = await asyncio.to_thread(self.feed.read, event)
        return document is not None and self.feed.put(document)

    def _query(self) -> dict[str, str]:
        namespace, module = self.feed.place
        query = {"namespace": namespace, "module": module}
        if self.feed.sequence is not None and not self._whole:
            query["after"] = str(self.feed.sequence)
        return query

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        try:
            with self._token_file.open("rb") as file:
                token = file.read(_MAX_TOKEN).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise StreamError(f"no token to ask with: {self._token_file}: {type(exc).__name__}") from None
        if not token or not token.isprintable():
            raise StreamError(f"no token to ask with: {self._token_file} holds none")
        return {**headers, "Authorization": f"Bearer {token}"}


def _age_of(feed: Feed) -> Callable[[], float]:
    """For the metric; not a number before the first sign of life."""

    def age() -> float:
        return float("nan") if feed.age is None else feed.age

    return age


def _text(exc: BaseException) -> str:
    """What `status` says; aiohttp's texts name addresses that are the installation's own, no secrets."""
    return str(exc) or type(exc).__name__
