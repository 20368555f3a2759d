"""The relay: takes events from the outbox to the bus, in one process of the module at a time.

It reads the oldest rows, publishes them and deletes them; there is no cursor, which would lose rows that are committed
late. If it dies in between, the next one publishes them again, in the same order: the inbox finds the duplicates. That
also makes a relay harmless that was paused and wakes up after another took over: whatever it publishes was published
before, and the row that the other has not sent yet it cannot delete, its lease's token being an old one.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import Any, Final

import structlog

from moorage.database.engine import TROUBLE
from moorage.events.bus import BusUnavailable, Message, Publisher
from moorage.events.cloudevents import CONTENT_TYPE
from moorage.events.lease import Lease
from moorage.events.meters import Meters
from moorage.events.postgres_link import Link
from moorage.tracing import Tracer
from moorage.tracing.messages import publishing

log = structlog.get_logger("moorage.events")

_READ: Final = "SELECT seq, topic, key, event FROM moorage_outbox ORDER BY seq LIMIT $1"
_DELETE: Final = f"""
WITH gone AS (DELETE FROM moorage_outbox WHERE seq = ANY ($3::bigint[]) AND {Lease.FENCE} RETURNING seq)
SELECT count(*) FROM gone
"""  # noqa: S608 - constants
_COUNT: Final = "SELECT count(*) FROM (SELECT FROM moorage_outbox LIMIT $1) AS counted"
_COUNTED: Final = 100_000
"""Rows that are counted at most, for the gauge: a long outbox should not cost more the longer it gets."""
_COUNT_EVERY: Final = 10.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_LAST_WORDS: Final = 2.0
_KEEPALIVE: Final = 30.0


@dataclass(frozen=True)
class RelayOptions:
    """Times in seconds."""

    batch: int = 500
    poll: float = 1.0
    lease: float = 15.0


class Relay:
    """Takes events from the outbox to the bus.

    Args:
        stored: set when this process has committed events; cleared here.
        link: connections of its own, for its lease as well, so that it never waits behind requests; `LISTEN` goes past
            any pooler, and what other processes commit is found by polling while it fails.
    """

    def __init__(
        self,
        publisher: Publisher,
        stored: asyncio.Event,
        meters: Meters,
        *,
        link: Link,
        options: RelayOptions,
        tracer: Tracer,
    ) -> None:
        self._fetch = link.fetch
        self._publisher = publisher
        self._stored = stored
        self._meters = meters
        self._link = link
        self._options = options
        self._tracer = tracer
        self._lease = Lease(link.fetch, "relay", seconds=options.lease)
        self._listener: Any = None
        self._counted = 0.0
        self._open = False
        self.problem = ""
        """Why events wait in the outbox; empty: they do not."""

    async def run(self) -> None:
        """Work until cancelled; then the lease is free at once. Never raises for what goes wrong outside."""
        await self._link.open()
        listening = asyncio.create_task(self._listen(), name="events outbox listener")
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    await self._turn()
                except Exception as exc:  # noqa: BLE001 - whatever it is: try again, and say why
                    self._note(exc)
                    await self._gauge_what_waits()
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                    pause = min(pause * 2, _LONGEST_PAUSE)
                else:
                    self._clear()
                    pause = _FIRST_PAUSE
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            if self._lease.token is not None:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_LAST_WORDS):
                        await self._lease.release()
                        await self._notify()
            await self._link.close()

    # -- one turn

    async def _turn(self) -> None:
        """Lead and empty the outbox, or wake who leads; then wait for more."""
        if await self._lead():
            await self._opened()
            self._stored.clear()
            while await self._batch() >= self._options.batch:
                await self._gauge()
                await self._lead()
            await self._gauge()
            await self._wait()
        else:
            self._meters.pending(0)  # whoever leads says how many there are
            await self._wait()
            if self._stored.is_set():
                self._stored.clear()
                await self._notify()

    async def _opened(self) -> None:
        if not self._open:
            await self._publisher.open()
            self._open = True

    async def ping(self) -> None:
        """Raises what keeps events in the outbox."""
        if self.problem:
            raise BusUnavailable(f"events wait in the outbox: {self.problem}")
        if self._open:
            await self._publisher.ping()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.poll):
                await self._stored.wait()

    async def _lead(self) -> bool:
        if self._lease.fresh:
            return True
        held = self._lease.token
        leads = await self._lease.take()
        if leads and self._lease.token != held:
            log.info("relaying events", token=self._lease.token)
        elif held is not None and not leads:
            log.warning("another process relays events now")
        return leads

    async def _batch(self) -> int:
        """Publish the oldest rows; returns how many there were.

        Raises:
            BusUnavailable: they stay where they are.
        """
        rows = await self._fetch(_READ, self._options.batch)
        if not rows:
            return 0
        messages = [_message(row) for row in rows]
        parents = (message.headers.get("traceparent") for message in messages)
        with publishing(self._tracer, parents, count=len(messages)):
            await self._publisher.publish(messages)
        seqs = [row[0] for row in rows]
        gone = int((await self._fetch(_DELETE, self._lease.name, self._lease.token or 0, seqs))[0][0])
        if gone == 0:
            self._lease.token = None  # somebody else has the lease: ask anew
            return 0
        self._meters.published(gone)
        return len(rows)

    # -- what others see

    def _note(self, exc: Exception) -> None:
        why = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
        if self.problem != why:
            log.warning("events wait in the outbox", reason=why)
        self.problem = why

    def _clear(self) -> None:
        if self.problem:
            log.info("events leave the outbox again")
        self.problem = ""

    async def _gauge(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._counted < _COUNT_EVERY:
            return
        self._counted = now
        self._meters.pending(await self.pending())

    async def _gauge_what_waits(self) -> None:
        """As `_gauge`, after something went wrong: that may be the database."""
        if self._lease.token is not None:
            with contextlib.suppress(BusUnavailable):
                await self._gauge()

    async def pending(self) -> int:
        """Rows in the outbox, at most 100,000 counted."""
        return int((await self._fetch(_COUNT, _COUNTED))[0][0])

    # -- other processes

    async def _notify(self) -> None:
        """Wake the process that leads; not as part of commits, since a notification takes a lock that all of them
        share.
        """
        await self._fetch(f"SELECT pg_notify({_CHANNEL}, '')")

    async def _listen(self) -> None:
        """Keep a connection that hears other processes' commits; while there is none, polling finds them."""
        pause = _FIRST_PAUSE
        while True:
            connection = None
            try:
                connection = await self._link.connect()
                if await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid():
                    return  # a pooler, which makes one up: it would not pass notifications on
                ended = asyncio.Event()
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                channel = await connection.fetchval(f"SELECT {_CHANNEL}")
                await connection.add_listener(channel, lambda *_: self._stored.set())
                self._stored.set()  # for what was committed before it listened
                pause = _FIRST_PAUSE
                while not ended.is_set():
                    await connection.execute("SELECT 1")  # finds connections that died without a word
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_KEEPALIVE):
                            await ended.wait()
            except TROUBLE as exc:
                log.debug("other processes' events are polled for", reason=f"{type(exc).__name__}: {exc}")
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


_CHANNEL: Final = "'moorage_' || md5('outbox/' || current_schema())"


def _message(row: Any) -> Message:
    _, topic, key, event = row
    headers = {"content-type": CONTENT_TYPE}
    # The envelope's attributes stand before the data (`cloudevents.encode`); reading all of it would cost more.
    _, found, rest = event[: event.find('"data":')].partition('"traceparent":"')
    if found:
        headers["traceparent"] = rest.partition('"')[0]
    return Message(topic=topic, key=key, body=event.encode(), headers=headers)
