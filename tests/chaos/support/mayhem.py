"""Load on two modules, and what happens to their processes and servers meanwhile."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from rigs.world import Part, Server, World

CODE: Final = Path(__file__).resolve().parent.parent / "modules"
TYPE: Final = "shop.order.placed"
SHOP: Final = Part(
    "shop",
    "chaos_modules:shop",
    publishes=(TYPE,),
    routes={"place": "POST /orders/{customer}"},
    tables="CREATE TABLE counter (customer text PRIMARY KEY, number bigint NOT NULL)",
)
LEDGER: Final = Part(
    "ledger",
    "chaos_modules:ledger",
    subscribes=(TYPE,),
    tables="""
    CREATE TABLE effect (
        seq bigserial PRIMARY KEY, customer text NOT NULL, number bigint NOT NULL, event text NOT NULL,
        attempt integer NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()
    )""",
)
LEASE: Final = 3.0
"""Seconds until another process takes over from one that says nothing; short, so that it happens within a test."""
PROCESSES: Final = ("shop-0", "shop-1", "ledger-0", "ledger-1")
_ENVIRON: Final = {
    "EVENTS_LEASE": f"{LEASE:g}s",
    "EVENTS_POLL": "500ms",
    "EVENTS_FIRST_RETRY": "200ms",
    "EVENTS_BATCH": "50",
    "KAFKA_TIMEOUT": "4s",
    "DATABASE_CONNECT_TIMEOUT": "2s",
    "DATABASE_ACQUIRE_TIMEOUT": "2s",
    "LEDGER_FLAKY": "true",
}


@asynccontextmanager
async def modules(folder: Path, backend: str, environ: dict[str, str] | None = None) -> AsyncIterator[World]:
    """Two processes of ``shop`` and two of ``ledger`` on *backend*; all of them ready."""
    settings = {**_ENVIRON, **(environ or {})}
    async with World(folder, backend, code=CODE, parts=(SHOP, LEDGER), environ=settings).running() as world:
        for name in PROCESSES:
            world.spawn(name.partition("-")[0], name)
        await asyncio.gather(*(server.ready() for server in world.servers.values()))
        yield world


@dataclass
class Load:
    """Customers that order, each one order after the other, from the processes of ``shop`` in turn.

    Args:
        rate: orders a second, all together; less while requests fail.
        random: of the test, so that a seed tells it all.
    """

    world: World
    random: random.Random
    customers: int = 12
    rate: float = 150.0
    acknowledged: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    failed: Counter[str] = field(default_factory=Counter)
    _closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def number(self) -> int:
        """Orders that were acknowledged."""
        return sum(len(numbers) for numbers in self.acknowledged.values())

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Orders come for the length of the block."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            names = [f"customer-{number}" for number in range(self.customers)]
            tasks = [asyncio.create_task(self._order(session, name)) for name in names]
            try:
                yield self
            finally:
                # Each customer waits for the answer to his last order, so that none is committed and not counted.
                self._closed.set()
                await asyncio.gather(*tasks)

    async def _order(self, session: aiohttp.ClientSession, customer: str) -> None:
        pause = self.customers / self.rate
        while not self._closed.is_set():
            server = self.world.servers[self.random.choice(("shop-0", "shop-1"))]
            try:
                async with session.post(f"{server.url}/orders/{customer}") as answer:
                    if answer.status == 200:
                        self.acknowledged[customer].append(int(await answer.text()))
                    else:
                        self.failed[str(answer.status)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failed[type(error).__name__] += 1
            await asyncio.sleep(pause * self.random.uniform(0.5, 1.5))


@dataclass
class Mayhem:
    """Kills, stops and freezes what the modules stand on, one thing after the other, each time at another moment."""

    world: World
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)

    async def go_on(self, seconds: float, enough: Callable[[], bool]) -> None:
        """Do so for *seconds* and until *enough*, every kind of thing at least once; then everything runs again."""
        actions: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("kill relay's process", lambda: self._kill("shop")),
            ("kill consumer's process", lambda: self._kill("ledger")),
            ("freeze relay's process", lambda: self._freeze("shop")),
            ("freeze consumer's process", lambda: self._freeze("ledger")),
            ("stop consumer's process", lambda: self._stop("ledger")),
            ("kill PostgreSQL", self._kill_postgres),
        ]
        if self.world.broker is not None:
            actions += [("kill broker", self._kill_broker), ("freeze broker", self._freeze_broker)]
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        waiting: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        while loop.time() < until or waiting or not enough():
            if not waiting:
                waiting = self.random.sample(actions, len(actions))
            name, act = waiting.pop()
            await asyncio.sleep(self.random.uniform(0.0, 1.5))
            await act()
            self.done[name] += 1
            if loop.time() > until and len(self.done) == len(actions) and enough():
                break

    async def settle(self) -> None:
        """Have every process ready again."""
        await asyncio.gather(*(server.ready() for server in self.world.servers.values()))

    def _one(self, part: str) -> tuple[str, Server]:
        name = f"{part}-{self.random.randrange(2)}"
        return name, self.world.servers[name]

    async def _kill(self, part: str) -> None:
        name, server = self._one(part)
        server.kill()
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        self.world.spawn(part, name)

    async def _stop(self, part: str) -> None:
        name, server = self._one(part)
        await asyncio.to_thread(server.stop)
        self.world.spawn(part, name)

    async def _freeze(self, part: str) -> None:
        """Long enough, half of the times, for another to take over before it wakes."""
        _, server = self._one(part)
        server.freeze()
        await asyncio.sleep(self.random.uniform(0.2, 2 * LEASE))
        server.thaw()

    async def _kill_postgres(self) -> None:
        pid = self.world.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        await self.world.postgres.start()

    async def _kill_broker(self) -> None:
        assert self.world.broker is not None
        await asyncio.to_thread(self.world.broker.kill)
        await asyncio.sleep(self.random.uniform(0.0, 1.0))
        await asyncio.to_thread(self.world.broker.start)

    async def _freeze_broker(self) -> None:
        assert self.world.broker is not None
        self.world.broker.freeze()
        await asyncio.sleep(self.random.uniform(0.2, 2.0))
        self.world.broker.thaw()


@dataclass(frozen=True)
class Books:
    """What the databases say in the end."""

    committed: dict[str, int]
    """Customer → number of the last order; the numbers before it are committed as well."""
    effects: dict[str, list[int]]
    """Customer → numbers written down, in that order."""
    outbox: int
    unhandled: dict[str, int]
    """State in the inbox other than done → how many."""
    retried: int
    """Effects that needed more than one try."""

    @classmethod
    async def read(cls, world: World) -> "Books":
        """Read them as a superuser."""
        connection = await world.connect()
        try:
            effects: defaultdict[str, list[int]] = defaultdict(list)
            for row in await connection.fetch("SELECT customer, number FROM ledger.effect ORDER BY seq"):
                effects[row["customer"]].append(row["number"])
            states = await connection.fetch(
                "SELECT state::text, count(*) FROM ledger.moorage_inbox WHERE state <> 'done' GROUP BY 1"
            )
            counters = await connection.fetch("SELECT customer, number FROM shop.counter")
            return cls(
                {row["customer"]: row["number"] for row in counters},
                dict(effects),
                await connection.fetchval("SELECT count(*) FROM shop.moorage_outbox"),
                {row[0]: row[1] for row in states},
                await connection.fetchval("SELECT count(*) FROM ledger.effect WHERE attempt > 1"),
            )
        finally:
            await connection.close()

    @classmethod
    async def settled(cls, world: World, patience: float) -> "Books":
        """The books once everything that was committed is written down, or when *patience* seconds are over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            with contextlib.suppress(OSError):
                books = await cls.read(world)
                if loop.time() > until or books.balanced:
                    return books
            await asyncio.sleep(0.25)

    @property
    def balanced(self) -> bool:
        """Whether as many effects are there as orders, and nothing is under way."""
        written = sum(len(numbers) for numbers in self.effects.values())
        return written >= sum(self.committed.values()) and not self.outbox and not self.unhandled

    def check(self, acknowledged: dict[str, list[int]]) -> None:
        """Everything acknowledged was committed; everything committed took effect once, in each customer's order."""
        for customer, numbers in acknowledged.items():
            assert len(set(numbers)) == len(numbers)
            assert max(numbers) <= self.committed[customer], (
                f"{customer}: an acknowledged order is not committed"
            )
        for customer, last in self.committed.items():
            found = self.effects.get(customer, [])
            assert found == list(range(1, last + 1)), _difference(customer, last, found)
        assert self.outbox == 0
        assert self.unhandled == {}


def _difference(customer: str, last: int, found: list[int]) -> str:
    counts: Counter[int] = Counter(found)
    missing = sorted(set(range(1, last + 1)) - counts.keys())
    twice = sorted(number for number, count in counts.items() if count > 1)
    disorder: list[Any] = [(a, b) for a, b in itertools.pairwise(found) if b != a + 1]
    return f"{customer}: of {last} orders missing {missing[:20]}, twice {twice[:20]}, out of order at {disorder[:20]}"
