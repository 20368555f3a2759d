"""Modules that emit and handle events, on a real PostgreSQL and a bus in memory or a real one."""

import asyncio
import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
import pytest
from pydantic import SecretStr
from sqlalchemy.pool import NullPool

from moorage import Module
from moorage.assembly import Assembly, group_name
from moorage.config import load
from moorage.database import platform
from moorage.database.engine import new_engine
from moorage.database.pool import Pool
from moorage.events.bus import BusUnavailable, Delivery, Message, OnChange, Partition, PartitionLost
from moorage.events.port import EventsPort
from moorage.testing import SchemaDatabase
from rigs.waiting import until as until

BusName = Literal["memory", "postgres", "kafka"]
PARTITIONS = 4
"""Of the bus in memory."""


def partition_of(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=4).digest()) % PARTITIONS


@dataclass
class MemoryBus:
    """A bus in this process: real partitions, positions, groups and rebalancing; can be away."""

    logs: dict[Partition, list[Message]] = field(default_factory=lambda: defaultdict(list))
    positions: dict[Partition, int] = field(default_factory=lambda: defaultdict(int))
    members: list["MemorySubscriber"] = field(default_factory=list)
    away: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    before_publish: Callable[[Sequence[Message]], Any] | None = None

    def check(self) -> None:
        if self.away:
            raise BusUnavailable("the memory is full")

    def publisher(self) -> "MemoryPublisher":
        return MemoryPublisher(self)

    def subscriber(self) -> "MemorySubscriber":
        return MemorySubscriber(self)

    def append(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.logs[message.topic, partition_of(message.key)].append(message)
        for member in self.members:
            member.woken.set()

    @property
    def published(self) -> list[dict[str, Any]]:
        return [json.loads(message.body) for log in self.logs.values() for message in log]

    async def share(self) -> None:
        """Share the partitions out to the members, each in turn; those that lose some finish them first."""
        topics = sorted({topic for member in self.members for topic in member.topics})
        every = [(topic, number) for topic in topics for number in range(PARTITIONS)]
        wanted = {member: frozenset(every[i :: len(self.members)]) for i, member in enumerate(self.members)}
        for member, partitions in wanted.items():
            if lost := member.owned - partitions:
                await member.on_change(member.owned - lost)
                member.owned -= lost
        for member, partitions in wanted.items():
            if member.owned != partitions:
                member.owned = partitions
                member.read = {p: n for p, n in member.read.items() if p in partitions}
                await member.on_change(partitions)


@dataclass
class MemoryPublisher:
    bus: MemoryBus

    async def open(self) -> None:
        self.bus.check()

    async def close(self) -> None:
        pass

    async def publish(self, messages: Sequence[Message]) -> None:
        self.bus.check()
        if self.bus.before_publish is not None:
            await self.bus.before_publish(messages)
        await asyncio.sleep(0)
        self.bus.append(messages)

    async def ping(self) -> None:
        self.bus.check()


@dataclass(eq=False)
class MemorySubscriber:
    bus: MemoryBus
    topics: Collection[str] = ()
    owned: frozenset[Partition] = frozenset()
    read: dict[Partition, int] = field(default_factory=dict)
    paused: set[Partition] = field(default_factory=set)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    commits: int = 0

    async def open(self, topics: Collection[str], on_change: OnChange) -> None:
        self.bus.check()
        self.topics, self.on_change = topics, on_change
        self.bus.members.append(self)
        await self.bus.share()

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        self.bus.check()
        self.woken.clear()
        if not (found := self._take(limit)):
            try:
                async with asyncio.timeout(wait):  # not wait_for, which may swallow a cancellation (3.11)
                    await self.woken.wait()
            except TimeoutError:
                return {}
            found = self._take(limit)
        return found

    def _take(self, limit: int) -> dict[Partition, list[Delivery]]:
        found = {}
        for partition in sorted(self.owned - self.paused):
            start = self.read.get(partition, self.bus.positions[partition])
            messages = self.bus.logs[partition][start : start + limit]
            if messages:
                found[partition] = [
                    Delivery(*partition, start + i, m.key, m.body, m.headers) for i, m in enumerate(messages)
                ]
                self.read[partition] = start + len(messages)
                limit -= len(messages)
        return found

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        self.bus.check()
        self.commits += 1
        for partition, position in positions.items():
            if partition in self.owned:
                self.bus.positions[partition] = position
        if lost := positions.keys() - self.owned:
            raise PartitionLost(lost)

    async def pause(self, partitions: Collection[Partition]) -> None:
        self.paused |= set(partitions)

    async def resume(self, partitions: Collection[Partition]) -> None:
        self.paused -= set(partitions)
        self.woken.set()

    async def lag(self) -> Mapping[Partition, int]:
        return {p: len(self.bus.logs[p]) - self.bus.positions[p] for p in self.owned}

    async def close(self) -> None:
        if self in self.bus.members:
            self.bus.members.remove(self)
            self.owned = frozenset()
            await self.bus.share()


@dataclass
class Process:
    """One process of a module, without its HTTP server."""

    assembly: Assembly
    stack: AsyncExitStack

    @property
    def pool(self) -> Pool:
        pool = self.assembly.get(Pool)
        assert pool is not None
        return pool

    @property
    def events(self) -> EventsPort:
        port = self.assembly.get(EventsPort)
        assert port is not None
        return port

    async def stop(self) -> None:
        await self.stack.aclose()


class Site:
    """A database with a module's schema, a bus, and processes of the module.

    Args:
        bus: ``memory``, ``postgres`` (of the same database), or ``kafka``.
        broker: ``host:port``, for ``kafka``.
    """

    def __init__(
        self,
        database: SchemaDatabase,
        stack: AsyncExitStack,
        monkeypatch: pytest.MonkeyPatch,
        *,
        bus: BusName = "memory",
        broker: str = "",
    ) -> None:
        self.database = database
        self.bus = MemoryBus()
        """Where events go with ``memory``, and nowhere else: what only it can do is of no use to others' tests."""
        self._name = bus
        self._dsn = _with_schema(database)
        self._stack = stack
        self._environ: dict[str, str] = {}
        if bus == "memory":
            self._replace_bus(monkeypatch)
            return
        self._environ = {"EVENTS_BACKEND": bus, "EVENTS_LEASE": "6s"}  # Kafka's least session
        if bus == "kafka":
            # An installation of its own: nobody else uses its names.
            self._environ |= {"KAFKA_BROKERS": broker, "MOORAGE_INSTALLATION": f"t{secrets.token_hex(5)}"}

    def _replace_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        buses = self

        def bus(port: EventsPort) -> tuple[MemoryPublisher, MemorySubscriber]:
            return buses.bus.publisher(), buses.bus.subscriber()

        monkeypatch.setattr(EventsPort, "_bus", bus)

    def assembly(self, module: Module, publishes: Iterable[str] = (), **environ: str) -> Assembly:
        subscribes = [{"type": type} for type in module.reactions]
        variables = {
            "MOORAGE_NAMESPACE": "test",
            "DATABASE_DSN": self.database.app_dsn,
            "EVENTS_PUBLISHES": json.dumps(list(publishes)),
            "EVENTS_SUBSCRIBES": json.dumps(subscribes),
            "EVENTS_POLL": "200ms",
            "EVENTS_LEASE": "1s",
            "EVENTS_FIRST_RETRY": "50ms",
            "EVENTS_LONGEST_RETRY": "100ms",
        }
        groups = {} if module.config is None else {group_name(module): module.config}
        return Assembly.of(module, load(groups, environ=variables | self._environ | environ))

    async def start(self, module: Module, publishes: Iterable[str] = (), **environ: str) -> Process:
        stack = AsyncExitStack()
        process = Process(self.assembly(module, publishes, **environ), stack)
        await self._open_bus(process.assembly)
        await stack.enter_async_context(process.assembly.opened())
        self._stack.push_async_callback(stack.aclose)
        return process

    async def publish(self, process: Process, messages: Sequence[Message]) -> None:
        """Put *messages* onto the bus as they are, by the rights of *process*; past its outbox."""
        publisher, _ = process.events._bus()
        await publisher.open()
        try:
            await publisher.publish(messages)
        finally:
            await publisher.close()

    async def _open_bus(self, assembly: Assembly) -> None:
        if self._name == "postgres":
            events = assembly.settings.events
            await self.database.open_bus(
                assembly.namespace,
                assembly.name,
                publishes=events.publishes,
                subscribes=[one.type for one in events.subscribes],
            )

    async def query(self, sql: str, *values: object) -> list[Any]:
        connection = await asyncpg.connect(self._dsn)
        try:
            return [tuple(row) if len(row) > 1 else row[0] for row in await connection.fetch(sql, *values)]
        finally:
            await connection.close()

    async def execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def states(self) -> dict[str, int]:
        return dict(await self.query("SELECT state, count(*) FROM moorage_inbox GROUP BY 1"))


async def make_tables(database: SchemaDatabase) -> None:
    engine = new_engine(SecretStr(database.owner_dsn), connect_args={}, poolclass=NullPool)
    async with engine.connect() as connection:
        await platform.converge(connection)
    await engine.dispose()


def _with_schema(database: SchemaDatabase) -> str:
    """A superuser's DSN that looks into the module's schema; he sees what sessions of others wait for."""
    return f"{database.admin_dsn}?options=-csearch_path%3D{database.schema}"
