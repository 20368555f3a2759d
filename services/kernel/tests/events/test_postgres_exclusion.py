"""Whoever comes, goes, freezes or is killed: every event is in exactly one commit that succeeded."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest

from moorage.events.bus import BusUnavailable, Message, Partition, PartitionLost
from moorage.events.postgres import PostgresSubscriber
from rigs.buses import PostgresBus
from rigs.events import until

pytestmark = pytest.mark.postgres
TOPIC = "shop.order"
Range = tuple[int, int]


@pytest.fixture
async def bus(moorage_postgres: str) -> AsyncIterator[PostgresBus]:
    async with PostgresBus.create(moorage_postgres) as made:
        await made.declare("default", "shop", publishes=["shop.order.placed"])
        await made.declare("default", "mail", subscribes=["shop.order.placed"])
        yield made


class Consumer:
    """Reads, dawdles, commits; notes from where to where each commit went that succeeded."""

    def __init__(self, bus: PostgresBus, done: dict[Partition, list[Range]], chance: random.Random) -> None:
        self.subscriber = PostgresSubscriber(
            bus.settings("default", "mail"), name="mail", lease=1.0, poll=0.1
        )
        self.done, self.chance = done, chance
        self.owned: frozenset[Partition] = frozenset()
        self.task: asyncio.Task[None] | None = None
        self.busy = asyncio.Lock()

    async def change(self, partitions: frozenset[Partition]) -> None:
        self.owned = partitions
        async with self.busy:  # what is under way is committed first
            pass

    async def start(self) -> None:
        await self.subscriber.open([TOPIC], self.change)
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while True:
            found = await self.subscriber.fetch(self.chance.randint(1, 40), 0.2)
            async with self.busy:
                await asyncio.sleep(self.chance.random() * 0.05)
                await self.commit(
                    {one: (got[0].position, got[-1].position + 1) for one, got in found.items()}
                )

    async def commit(self, ranges: dict[Partition, Range]) -> None:
        lost: frozenset[Partition] = frozenset()
        try:
            await self.subscriber.commit({one: end for one, (_, end) in ranges.items()})
        except PartitionLost as exc:
            lost = exc.partitions
        for one in ranges.keys() - lost:
            self.done[one].append(ranges[one])

    async def stop_working(self) -> None:
        """In a moment in which no commit is under way: one that the test cuts off could have succeeded unseen."""
        async with self.busy:
            if self.task is not None:
                self.task.cancel()
        await asyncio.gather(*filter(None, [self.task]), return_exceptions=True)

    async def leave(self) -> None:
        await self.stop_working()
        await self.subscriber.close()

    async def freeze(self, seconds: float) -> None:
        """As with SIGSTOP: neither heartbeats nor commits, then on as if nothing had been."""
        async with self.busy:
            for task in self.subscriber._tasks:
                task.cancel()
            await asyncio.sleep(seconds)
            loops = (self.subscriber._keep_beating, self.subscriber._keep_settling)
            self.subscriber._tasks = [asyncio.create_task(run()) for run in loops]

    async def crash(self) -> None:
        """As with SIGKILL: nothing is said to the bus, connections end."""
        await self.stop_working()
        for task in self.subscriber._tasks:
            task.cancel()
        self.subscriber._tasks = []
        await self.subscriber._ear.stop()
        await self.subscriber._link.close()


@pytest.mark.parametrize("seed", range(3))
async def test_every_event_is_in_exactly_one_commit(bus: PostgresBus, seed: int) -> None:
    chance = random.Random(seed)
    done: dict[Partition, list[Range]] = defaultdict(list)
    members: list[Consumer] = []
    frozen: list[asyncio.Task[None]] = []
    published = 0
    shop = bus.publisher("default", "shop")
    await shop.open()

    async def join() -> None:
        members.append(Consumer(bus, done, chance))
        await members[-1].start()

    await join()
    for _ in range(40):
        many = chance.randint(1, 60)
        await shop.publish([Message(TOPIC, str(chance.randint(0, 99)), b"{}") for _ in range(many)])
        published += many
        action = chance.choice(["join", "leave", "crash", "freeze", "wait", "wait"])
        if action == "join" and len(members) < 4:
            await join()
        elif action in {"leave", "crash"} and len(members) > 1:
            gone = members.pop(chance.randrange(len(members)))
            await (gone.leave() if action == "leave" else gone.crash())
        elif action == "freeze":
            frozen.append(asyncio.create_task(chance.choice(members).freeze(1.5)))
        await asyncio.sleep(chance.random() * 0.1)
    await asyncio.gather(*frozen)
    try:
        await until(lambda: sum(end - start for one in done.values() for start, end in one) >= published, 30)
    finally:
        for member in members:
            await member.leave()
        await shop.close()
    for partition, ranges in done.items():
        following = 0
        for start, end in sorted(ranges):
            assert start == following, f"{partition}: {sorted(ranges)}"
            following = end
    assert sum(max(end for _, end in ranges) for ranges in done.values()) == published


async def test_a_commit_that_was_cut_off_may_have_happened_and_does_no_harm(bus: PostgresBus) -> None:
    """Committing again what is committed already, or less, changes nothing."""
    shop = bus.publisher("default", "shop")
    await shop.open()
    await shop.publish([Message(TOPIC, "k", b"{}") for _ in range(5)])
    mail = PostgresSubscriber(bus.settings("default", "mail"), name="mail")

    async def change(_: frozenset[Partition]) -> None:
        pass

    await mail.open([TOPIC], change)
    found: dict[Partition, object] = {}
    while not found:
        found = dict(await mail.fetch(10, 1.0))
    (place,) = found
    for position in (4, 4, 2):
        await mail.commit({place: position})
    assert (await mail.lag())[place] == 1
    await mail.commit({place: 1_000_000})  # nobody skips what is not there yet
    await shop.publish([Message(TOPIC, "k", b"{}")])
    assert (await mail.lag())[place] == 1
    with pytest.raises(BusUnavailable):
        await mail.open(["nobody.knows"], change)
    await mail.close()
    await shop.close()
