"""The bus in the module's own database: the functions of the schema `moorage_bus`, and NOTIFY to be woken.

Nothing of it is bound to a session, so that it works through PgBouncer in transaction mode; only who listens needs a
connection straight to the server. Where there is none, the bus is asked every `poll` seconds instead.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

import structlog

from moorage.assembly import Assembly
from moorage.config.settings import Database as DatabaseSettings
from moorage.events.bus import BusUnavailable, Delivery, Message, OnChange, Partition, PartitionLost
from moorage.events.postgres_link import Ear, Link, cancel

log = structlog.get_logger("moorage.events")

PUBLISH: Final = "SELECT moorage_bus.publish($1, $2, $3, $4)"
"""With `arguments`; on any connection of the module's app role, also inside a transaction of its own."""
_FETCH_BYTES: Final = 8 * 1024 * 1024
"""Bodies at most in the answer to one `fetch`, over all partitions: what a consumer has in memory stays bounded."""
_TRIM_EVERY: Final = 60.0
_TRIM_AT_ONCE: Final = 5_000
_BEATS_PER_LEASE: Final = 6
_LISTENING_POLLS: Final = 5
"""A process that is woken looks this many times less often on its own."""


def arguments(messages: Sequence[Message]) -> tuple[list[str], list[str], list[bytes], list[str]]:
    """What `PUBLISH` takes."""
    return (
        [message.topic for message in messages],
        [message.key for message in messages],
        [message.body for message in messages],
        [json.dumps(dict(message.headers)) for message in messages],
    )


def bus(assembly: Assembly) -> tuple["PostgresPublisher", "PostgresSubscriber"]:
    """Both halves for the module of *assembly*, unopened; ``database.dsn`` must be set."""
    settings = assembly.settings
    name = f"moorage/{assembly.namespace}/{assembly.name}"
    return (
        PostgresPublisher(settings.database, name=name, retention=settings.events.retention),
        PostgresSubscriber(
            settings.database, name=name, lease=settings.events.lease, poll=settings.events.poll
        ),
    )


class PostgresPublisher:
    """The sending half.

    Args:
        database: the module's group ``database``, with ``dsn`` set.
        name: what the server shows as ``application_name``.
        retention: seconds for which events of this module's topics are kept although everybody has read them.
    """

    def __init__(self, database: DatabaseSettings, *, name: str, retention: float = 604_800.0) -> None:
        self._link = Link(database, name, size=1)
        self._retention = retention
        self._trimming: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect; raises `BusUnavailable` if that cannot be done now."""
        await self._link.open()
        await self.ping()
        if self._trimming is None:
            self._trimming = asyncio.create_task(self._trim(), name="moorage-bus-trim")

    async def close(self) -> None:
        """Let go of everything; never raises, and may be called twice."""
        await cancel([self._trimming])
        self._trimming = None
        await self._link.close()

    async def publish(self, messages: Sequence[Message]) -> None:
        """Append *messages*; of one call all are there, or none.

        Raises:
            BusUnavailable: not now, or one of the topics is not this module's.
        """
        if messages:
            await self._link.fetch(PUBLISH, *arguments(messages))

    async def ping(self) -> None:
        """Raises `BusUnavailable` if the database is away, has no bus, or does not know this module's role."""
        await self._link.fetch("SELECT FROM moorage_bus.channels() LIMIT 1")

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_EVERY)
            await _trim(self._link, self._retention)


@dataclass(slots=True)
class _Held:
    """A partition that is this member's."""

    token: int
    next: int
    leaving: bool = False


class PostgresSubscriber:
    """A member of the module's group.

    Args:
        database: the module's group ``database``, with ``dsn`` set; `LISTEN` goes to ``direct_dsn`` if there is one.
        name: what the server shows as ``application_name``.
        lease: seconds after which the others take the partitions of a member that says nothing. One whose connection
            is gone is noticed earlier, in a sixth of that.
        poll: seconds between looks for events if nobody wakes this process.
    """

    def __init__(
        self, database: DatabaseSettings, *, name: str, lease: float = 15.0, poll: float = 1.0
    ) -> None:
        self._link = Link(database, name, size=2)
        self._lease = lease
        self._poll = poll
        self._member = uuid4()
        self._topics: tuple[str, ...] = ()
        self._on_change: OnChange = _ignore
        self._held: dict[Partition, _Held] = {}
        self._told: dict[Partition, int] = {}
        """What `OnChange` was last told of, and the tokens of then."""
        self._given: dict[Partition, int] = {}
        """The token under which the consumer got each partition; it may not know yet that it was lost and came back."""
        self._paused: set[Partition] = set()
        self._turn = asyncio.Lock()
        self._wake, self._beat_now, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._ear = Ear(self._link, self._heard)
        self._looked = self._beaten = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    # -- the protocol

    async def open(self, topics: Collection[str], on_change: OnChange) -> None:
        """Join the group; raises `BusUnavailable` if that cannot be done now."""
        self._topics, self._on_change = tuple(sorted(topics)), on_change
        try:
            await self._link.open()
            await self._ear.start()
            await self._beat()
            if self._ear.listening and (missing := set(topics) - self._ear.topics):
                log.warning(
                    "nothing will come of topics that spec.events does not name", topics=sorted(missing)
                )
        except BaseException:
            await self.close()
            raise
        loops = {"beat": self._keep_beating, "settle": self._keep_settling}
        self._tasks = [asyncio.create_task(run(), name=f"moorage-bus-{name}") for name, run in loops.items()]

    async def close(self) -> None:
        """Leave the group; never raises, and may be called twice."""
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        self._held.clear()
        self._told.clear()
        self._given.clear()
        if tasks:
            with contextlib.suppress(BusUnavailable):
                await self._link.fetch("SELECT moorage_bus.leave($1)", self._member)
        await self._ear.stop()
        await self._link.close()

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        """What comes next on this member's partitions, at most *limit* in all; empty after *wait* seconds.

        Raises:
            BusUnavailable: not now.
        """
        until = time.monotonic() + wait
        while True:
            now = time.monotonic()
            look = self._looked + self._poll * (_LISTENING_POLLS if self._ear.listening else 1)
            if self._wake.is_set() or now >= look:
                if found := await self._read(limit):
                    return found
                look = now + self._poll
            if (pause := min(until, look) - now) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
            if time.monotonic() >= until:
                return {}

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Note the next position to read, per partition.

        Raises:
            PartitionLost: for some; the others' positions are committed.
            BusUnavailable: nothing may be committed.
        """
        given = {one: self._given.get(one) for one in positions}
        mine = {
            one: position
            for one, position in positions.items()
            if one in self._held and self._held[one].token == given[one]
        }
        lost = set(positions) - set(mine)
        if mine:
            refused = await self._link.fetch(
                "SELECT topic, partition FROM moorage_bus.commit($1, $2, $3, $4, $5)",
                self._member,
                *_columns(mine),
                [given[one] for one in mine],
                list(mine.values()),
            )
            lost |= {(row["topic"], row["partition"]) for row in refused}
        if lost:
            for one in lost:
                if one in self._held and self._held[one].token == given[one]:
                    del self._held[one]
            self._changed.set()
            self._beat_now.set()
            raise PartitionLost(lost)

    async def pause(self, partitions: Collection[Partition]) -> None:
        """Fetch nothing of *partitions* until `resume`."""
        self._paused |= set(partitions)

    async def resume(self, partitions: Collection[Partition]) -> None:
        """Fetch from *partitions* again."""
        self._paused -= set(partitions)
        self._wake.set()

    async def lag(self) -> Mapping[Partition, int]:
        """How many messages are not committed yet, for each of this member's partitions."""
        rows = await self._link.fetch("SELECT topic, partition, lag FROM moorage_bus.lag()")
        return {
            (row["topic"], row["partition"]): row["lag"]
            for row in rows
            if (row["topic"], row["partition"]) in self._held
        }

    # -- reading

    async def _read(self, limit: int) -> dict[Partition, list[Delivery]]:
        self._wake.clear()  # before the look: what comes during it wakes again
        self._looked = time.monotonic()
        parts = {
            one: held
            for one, held in self._held.items()
            if self._told.get(one) == held.token and not held.leaving and one not in self._paused
        }
        if not parts:
            return {}
        rows = await self._link.fetch(
            "SELECT topic, partition, position, key, body, headers "
            "FROM moorage_bus.fetch($1, $2, $3, $4, $5, $6, $7)",
            self._member,
            *_columns(parts),
            [held.token for held in parts.values()],
            [held.next for held in parts.values()],
            limit,
            max(_FETCH_BYTES // len(parts), 1),
        )
        found: dict[Partition, list[Delivery]] = {}
        for row in rows:
            one = (row["topic"], row["partition"])
            if self._held.get(one) is parts[one]:  # else it was lost meanwhile
                found.setdefault(one, []).append(_delivery(row))
        for one, deliveries in found.items():
            held = self._held.pop(one)
            held.next = deliveries[-1].position + 1
            self._held[one] = held  # to the end of the line: the next look begins with the others
        if found:
            self._wake.set()
        return found

    def _heard(self, topic: str | None) -> None:
        """Told of a NOTIFY: for *topic*, or of the group."""
        (self._beat_now if topic is None else self._wake).set()

    # -- membership

    async def _keep_beating(self) -> None:
        trimmed = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease / _BEATS_PER_LEASE):
                    await self._beat_now.wait()
            try:
                await self._beat()
                if time.monotonic() - trimmed > _TRIM_EVERY:
                    trimmed = time.monotonic()
                    await _trim(self._link, None)
            except BusUnavailable as exc:
                log.warning("the event bus does not answer", reason=str(exc))
                if time.monotonic() - self._beaten > self._lease:
                    self._take({})  # the others may have taken them by now
                await asyncio.sleep(min(self._poll, self._lease / _BEATS_PER_LEASE))

    async def _beat(self) -> None:
        self._beat_now.clear()
        began = time.monotonic()
        async with self._turn:  # a partition that is being given back must not come in again
            rows = await self._link.fetch(
                "SELECT topic, partition, token, position, keep FROM moorage_bus.heartbeat($1, $2, $3, $4)",
                self._member,
                self._topics,
                timedelta(seconds=self._lease),
                self._ear.backend,
            )
            self._beaten = began
            self._take(
                {
                    (row["topic"], row["partition"]): _Held(row["token"], row["position"], not row["keep"])
                    for row in rows
                }
            )

    def _take(self, found: Mapping[Partition, _Held]) -> None:
        """Make *found* what this member has; what it had and still has goes on where it was."""
        kept: dict[Partition, _Held] = {}
        for one, held in found.items():
            before = self._held.get(one)
            if before is not None and before.token == held.token:
                before.leaving = held.leaving
                kept[one] = before
            else:
                kept[one] = held
        self._held = kept
        if self._staying() != self._told or any(held.leaving for held in kept.values()):
            self._changed.set()

    def _staying(self) -> dict[Partition, int]:
        return {one: held.token for one, held in self._held.items() if not held.leaving}

    async def _keep_settling(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._settle()
            except BusUnavailable as exc:
                log.warning("partitions cannot be given back now", reason=str(exc))
                await asyncio.sleep(self._poll)
                self._changed.set()

    async def _settle(self) -> None:
        """Tell of changes, and give back what others wait for once nothing is under way on it."""
        while (staying := self._staying()) != self._told:
            same = {one: token for one, token in self._told.items() if staying.get(one) == token}
            # One that was lost and came back has a gap in between: first it goes.
            again = same != self._told and not staying.keys().isdisjoint(self._told.keys() - same.keys())
            self._told = same
            if not again:
                self._given |= staying
            await self._tell(frozenset(same if again else staying))
            if not again:
                self._told = staying
                self._wake.set()
        async with self._turn:
            leaving = [one for one, held in self._held.items() if held.leaving and one not in self._told]
            if leaving:
                await self._link.fetch(
                    "SELECT moorage_bus.release($1, $2, $3)", self._member, *_columns(leaving)
                )
                for one in leaving:
                    del self._held[one]

    async def _tell(self, partitions: frozenset[Partition]) -> None:
        try:
            await self._on_change(partitions)
        except Exception:
            log.exception("a change of partitions was not taken well")


def _columns(partitions: Iterable[Partition]) -> tuple[list[str], list[int]]:
    listed = list(partitions)
    return [topic for topic, _ in listed], [number for _, number in listed]


def _delivery(row: Any) -> Delivery:
    return Delivery(
        topic=row["topic"],
        partition=row["partition"],
        position=row["position"],
        key=row["key"],
        body=row["body"],
        headers={name: str(value) for name, value in json.loads(row["headers"]).items()},
    )


async def _trim(link: Link, retention: float | None) -> None:
    """Delete what everybody has read; *retention* in seconds, None: as the topics' owners set it."""
    keep = None if retention is None else timedelta(seconds=retention)
    gone = _TRIM_AT_ONCE
    try:
        while gone == _TRIM_AT_ONCE:
            gone = (await link.fetch("SELECT moorage_bus.trim($1, $2)", keep, _TRIM_AT_ONCE))[0][0]
    except BusUnavailable as exc:
        log.debug("the event bus was not trimmed", reason=str(exc))


async def _ignore(_: frozenset[Partition]) -> None:
    return None
