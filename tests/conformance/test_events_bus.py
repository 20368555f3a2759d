"""Every event bus keeps the promises of `moorage.events.bus`; what these tests do not ask for, nobody may rely on."""

import asyncio
import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import pytest

from moorage.events.bus import (
    BusUnavailable,
    Delivery,
    Message,
    Partition,
    PartitionLost,
    Publisher,
    Subscriber,
)
from rigs.buses import Bus, PostgresBus
from rigs.kafka_bus import KafkaBus

pytestmark = pytest.mark.postgres
BACKENDS = ("postgres", "postgres15", "postgres15+pgbouncer", "kafka")
TYPE, TOPIC = "shop.order.placed", "shop.order"
PATIENCE = 30.0


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """What the suite runs on."""
    return str(request.param)


Opening = Callable[[], AbstractAsyncContextManager[Bus]]


@pytest.fixture
def opening(backend: str, request: pytest.FixtureRequest) -> Opening:
    """How an empty bus is made; the server is there already."""
    if backend == "kafka":
        broker = request.getfixturevalue("kafka_broker")
        return lambda: nullcontext(KafkaBus(broker))
    server = request.getfixturevalue("moorage_postgres" if backend == "postgres" else "postgres15")
    pooler = request.getfixturevalue("pgbouncer") if backend.endswith("pgbouncer") else None
    return lambda: PostgresBus.create(server, pooler.through if pooler else None)


@pytest.fixture
async def bus(opening: Opening) -> AsyncIterator[Bus]:
    """An empty bus."""
    async with opening() as made:
        yield made


@pytest.fixture
async def shop(bus: Bus) -> AsyncIterator[Publisher]:
    """The publisher of module ``shop``, open; ``mail`` and ``search`` are subscribed to what it publishes."""
    await bus.declare("default", "shop", publishes=[TYPE])
    for module in ("mail", "search"):
        await bus.declare("default", module, subscribes=[TYPE])
    publisher = bus.publisher("default", "shop")
    await publisher.open()
    yield publisher
    await publisher.close()


class Member:
    """Fetches and notes; a partition's *last words* are awaited when it is taken away."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.partitions: frozenset[Partition] = frozenset()
        self.seen: list[Delivery] = []
        self.last_words: Callable[[frozenset[Partition]], Awaitable[None]] | None = None

    async def open(self, *topics: str) -> None:
        await self.subscriber.open(topics or (TOPIC,), self.change)

    async def change(self, partitions: frozenset[Partition]) -> None:
        gone, self.partitions = self.partitions - partitions, partitions
        if gone and self.last_words is not None:
            await self.last_words(gone)

    async def take(self, many: int = 1, *, limit: int = 100, within: float = PATIENCE) -> list[Delivery]:
        """The next *many*; fails if they do not come."""
        until, taken = time.monotonic() + within, []
        while len(taken) < many and time.monotonic() < until:
            got = await self.subscriber.fetch(limit, 0.5)
            assert sum(len(deliveries) for deliveries in got.values()) <= limit
            for partition, deliveries in got.items():
                assert all((one.topic, one.partition) == partition for one in deliveries)
                taken += deliveries
        self.seen += taken
        assert len(taken) >= many, f"{len(taken)} of {many} came"
        return taken

    async def silence(self, seconds: float = 1.5) -> None:
        """Fails if something comes."""
        assert await self.subscriber.fetch(100, seconds) == {}

    async def commit(self, *deliveries: Delivery) -> None:
        """That these, and all before them, are done."""
        positions: dict[Partition, int] = {}
        for one in deliveries:
            place = (one.topic, one.partition)
            positions[place] = max(positions.get(place, 0), one.position + 1)
        await self.subscriber.commit(positions)

    async def has(self, many: int | None = None, *, within: float = PATIENCE) -> None:
        """Wait until it has this many partitions, fetching as a consumer would; ``None``: any."""
        until = time.monotonic() + within
        while not (self.partitions if many is None else len(self.partitions) == many):
            assert time.monotonic() < until, f"it has {sorted(self.partitions)}"
            for deliveries in (await self.subscriber.fetch(100, 0.05)).values():
                self.seen += deliveries


Join = Callable[..., Awaitable[Member]]


@pytest.fixture
async def join(bus: Bus) -> AsyncIterator[Join]:
    """Makes a new, open member of a module's group; all of them leave at the end."""
    members: list[Member] = []

    async def join(module: str = "mail", namespace: str = "default", lease: float = 15.0) -> Member:
        members.append(Member(bus.subscriber(namespace, module, lease=lease)))
        await members[-1].open()
        return members[-1]

    yield join
    for member in members:
        member.last_words = None
        await member.subscriber.close()


def message(number: int, key: str | None = None, topic: str = TOPIC) -> Message:
    """One that can be told from the others."""
    body = json.dumps({"number": number, "text": "grün"}, ensure_ascii=False).encode()
    return Message(topic, str(number) if key is None else key, body, {"traceparent": f"00-{number}"})


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    """Which ones these are, in their order."""
    return [json.loads(one.body)["number"] for one in deliveries]


async def test_what_is_published_comes_as_it_was(shop: Publisher, join: Join) -> None:
    sent = [message(1, key="Schlüssel"), message(2, key="with spaces / and *"), message(3, key="")]
    await shop.publish(sent)
    member = await join()
    came = {one.key: one for one in await member.take(3)}
    for one in sent:
        assert (came[one.key].topic, came[one.key].body) == (TOPIC, one.body)
        assert came[one.key].headers.items() >= one.headers.items()


async def test_one_keys_messages_are_in_one_partition_and_in_order(shop: Publisher, join: Join) -> None:
    for start in range(0, 300, 60):
        await shop.publish([message(n, key=f"k{n % 7}") for n in range(start, start + 60)])
    came = await (await join()).take(300)
    by_key: dict[str, list[Delivery]] = defaultdict(list)
    for one in came:
        by_key[one.key].append(one)
    for number in range(7):
        of_key = by_key[f"k{number}"]
        assert numbers(of_key) == list(range(number, 300, 7))
        assert len({one.partition for one in of_key}) == 1
        assert [one.position for one in of_key] == sorted({one.position for one in of_key})


async def test_keys_spread_over_the_partitions(shop: Publisher, join: Join) -> None:
    await shop.publish([message(n) for n in range(200)])
    member = await join()
    assert len({one.partition for one in await member.take(200)}) == len(member.partitions) > 1


async def test_a_group_that_never_read_begins_with_the_oldest(shop: Publisher, join: Join) -> None:
    await shop.publish([message(n, key="k") for n in range(5)])
    member = await join()
    assert numbers(await member.take(5)) == list(range(5))


async def test_every_group_gets_everything(shop: Publisher, join: Join) -> None:
    mail, search = await join("mail"), await join("search")
    await shop.publish([message(n) for n in range(20)])
    for member in (mail, search):
        assert sorted(numbers(await member.take(20))) == list(range(20))


async def test_fetch_goes_on_without_a_commit_and_never_gives_more_than_it_was_asked_for(
    shop: Publisher, join: Join
) -> None:
    await shop.publish([message(n) for n in range(40)])
    member = await join()
    assert sorted(numbers(await member.take(40, limit=7))) == list(range(40))
    await member.silence()


async def test_what_was_committed_does_not_come_again_and_the_rest_does(shop: Publisher, join: Join) -> None:
    await shop.publish([message(n, key="k") for n in range(10)])
    first = await join()
    came = await first.take(10)
    await first.commit(*came[:4])
    await first.subscriber.close()
    second = await join()
    assert numbers(await second.take(6)) == list(range(4, 10))
    await second.commit(*second.seen)
    await second.subscriber.close()
    await (await join()).silence()


async def test_a_waiting_member_is_woken_at_once(shop: Publisher, join: Join) -> None:
    member = await join()
    await member.has()
    await shop.publish([message(0)])
    await member.take(1)
    took: list[float] = []
    while not took or (min(took) >= 0.4 and len(took) < 5):  # a busy machine may be late now and then
        number = len(took) + 1
        waiting = asyncio.create_task(member.subscriber.fetch(10, 30.0))
        await asyncio.sleep(0.7)
        began = time.monotonic()
        await shop.publish([message(number)])
        (deliveries,) = (await waiting).values()
        took.append(time.monotonic() - began)
        assert numbers(deliveries) == [number]
    assert min(took) < 0.4, took


async def test_fetch_returns_empty_after_its_wait(shop: Publisher, join: Join) -> None:
    member = await join()
    await member.has()
    began = time.monotonic()
    assert await member.subscriber.fetch(10, 0.5) == {}
    assert 0.4 < time.monotonic() - began < 10


async def test_members_share_the_partitions_and_what_comes_is_read_once(shop: Publisher, join: Join) -> None:
    first = await join()
    await first.has()
    every = first.partitions
    second = await join()
    half = len(every) // 2
    await asyncio.gather(first.has(half), second.has(len(every) - half))
    assert first.partitions.isdisjoint(second.partitions)
    assert first.partitions | second.partitions == every
    await shop.publish([message(n) for n in range(100)])
    came: list[Delivery] = [*first.seen, *second.seen]
    until = time.monotonic() + PATIENCE
    while len(came) < 100 and time.monotonic() < until:
        for member in (first, second):
            for deliveries in (await member.subscriber.fetch(100, 0.2)).values():
                came += deliveries
    assert sorted(numbers(came)) == list(range(100))


async def test_a_partition_is_given_away_only_after_its_last_words(shop: Publisher, join: Join) -> None:
    """What is under way when a member joins is finished and committed: nothing is handled twice."""
    await shop.publish([message(n) for n in range(50)])
    first = await join()
    await first.take(50)
    asked, allowed = asyncio.Event(), asyncio.Event()

    async def last_words(gone: frozenset[Partition]) -> None:
        asked.set()
        await allowed.wait()
        await first.commit(*[one for one in first.seen if (one.topic, one.partition) in gone])

    first.last_words = last_words
    second = await join()
    async with asyncio.timeout(PATIENCE):
        while not asked.is_set():
            await asyncio.gather(first.subscriber.fetch(100, 0.1), second.subscriber.fetch(100, 0.1))
    await asyncio.sleep(1.0)
    assert not second.partitions  # it waits for them
    allowed.set()
    await asyncio.gather(first.has(4), second.has(4))
    assert second.seen == []
    await second.silence()


async def test_a_member_that_leaves_makes_room_at_once(shop: Publisher, join: Join) -> None:
    first = await join()
    await first.has()
    every = len(first.partitions)
    second = await join()
    await asyncio.gather(first.has(every // 2), second.has(every - every // 2))
    began = time.monotonic()
    await second.subscriber.close()
    await first.has(every)
    assert time.monotonic() - began < 8


async def test_a_frozen_member_is_replaced_and_cannot_commit_when_it_wakes(
    bus: Bus, shop: Publisher, join: Join
) -> None:
    await shop.publish([message(n) for n in range(30)])
    first = await join(lease=6.0)
    came = await first.take(30)
    await bus.freeze(first.subscriber)
    second = await join(lease=6.0)
    again = await second.take(30)
    assert sorted(numbers(again)) == list(range(30))
    await second.commit(*again)
    with pytest.raises(PartitionLost) as caught:
        await first.commit(*came[:3])
    assert caught.value.partitions == {(one.topic, one.partition) for one in came[:3]}


async def test_a_commit_of_what_one_does_not_have_leaves_the_rest_committed(
    shop: Publisher, join: Join
) -> None:
    await shop.publish([message(n, key="k") for n in range(3)])
    first = await join()
    came = await first.take(3)
    own = (came[0].topic, came[0].partition)
    with pytest.raises(PartitionLost) as caught:
        await first.subscriber.commit({own: came[-1].position + 1, (TOPIC, 999): 5})
    assert caught.value.partitions == {(TOPIC, 999)}
    await first.subscriber.close()
    await (await join()).silence()


async def test_a_paused_partition_gives_nothing_and_the_others_go_on(shop: Publisher, join: Join) -> None:
    member = await join()
    await member.has()
    await shop.publish([message(0, key="a")])
    (one,) = await member.take(1)
    place = (one.topic, one.partition)
    await member.subscriber.pause([place])
    await shop.publish([message(n) for n in range(1, 100)])
    await shop.publish([message(100, key="a")])
    others = await member.take(60)
    others += [one for deliveries in (await member.subscriber.fetch(100, 1.0)).values() for one in deliveries]
    assert place not in {(one.topic, one.partition) for one in others}
    await member.subscriber.resume([place])
    rest = await member.take(100 - len(others))
    assert {(one.topic, one.partition) for one in rest} == {place}
    assert numbers(rest)[-1] == 100


async def test_commits_pauses_and_lag_are_heard_while_a_fetch_waits(shop: Publisher, join: Join) -> None:
    await shop.publish([message(n, key="k") for n in range(3)])
    member = await join()
    came = await member.take(3)
    waiting = asyncio.create_task(member.subscriber.fetch(10, 10.0))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await member.commit(*came)
        await member.subscriber.pause([(TOPIC, came[0].partition)])
        await member.subscriber.resume([(TOPIC, came[0].partition)])
        assert sum((await member.subscriber.lag()).values()) == 0
    assert not waiting.done()
    await shop.publish([message(3, key="k")])
    (deliveries,) = (await waiting).values()
    assert numbers(deliveries) == [3]


async def test_lag_is_what_was_not_committed(shop: Publisher, join: Join) -> None:
    member = await join()
    await member.has()
    await shop.publish([message(n, key="k") for n in range(10)])
    came = await member.take(10)
    await member.commit(*came[:7])
    lag = await member.subscriber.lag()
    assert lag.keys() <= member.partitions
    assert lag[came[0].topic, came[0].partition] == 3
    assert sum(lag.values()) == 3


async def test_namespaces_do_not_see_each_others_topics(bus: Bus, shop: Publisher, join: Join) -> None:
    await bus.declare("other", "shop", publishes=[TYPE])
    await bus.declare("other", "mail", subscribes=[TYPE])
    elsewhere = bus.publisher("other", "shop")
    await elsewhere.open()
    await shop.publish([message(1)])
    await elsewhere.publish([message(2)])
    await elsewhere.close()
    for namespace, own in (("default", 1), ("other", 2)):
        member = await join("mail", namespace)
        assert numbers(await member.take(1)) == [own]
        await member.silence()


async def test_platform_topics_are_heard_in_every_namespace(bus: Bus) -> None:
    await bus.declare(bus.core_namespace, "auth", publishes=["platform.session.revoked"])
    auth = bus.publisher(bus.core_namespace, "auth")
    await auth.open()
    await auth.publish([message(1, topic="platform.session")])
    await auth.close()
    for namespace in ("default", "other", bus.core_namespace):
        await bus.declare(namespace, "audit", subscribes=["platform.session.revoked"])
        member = Member(bus.subscriber(namespace, "audit"))
        await member.open("platform.session")
        assert numbers(await member.take(1)) == [1]
        await member.subscriber.close()


async def test_a_member_reads_several_topics(bus: Bus) -> None:
    types = ("shop.order.placed", "shop.refund.asked")
    await bus.declare("default", "shop", publishes=types)
    await bus.declare("default", "mail", subscribes=types)
    shop, member = bus.publisher("default", "shop"), Member(bus.subscriber("default", "mail"))
    await shop.open()
    await shop.publish(
        [message(n, topic="shop.order" if n % 2 else "shop.refund", key="k") for n in range(20)]
    )
    await shop.close()
    await member.open("shop.order", "shop.refund")
    came = await member.take(20)
    assert numbers([one for one in came if one.topic == "shop.order"]) == list(range(1, 20, 2))
    assert numbers([one for one in came if one.topic == "shop.refund"]) == list(range(0, 20, 2))
    await member.subscriber.close()


async def test_large_messages_pass(shop: Publisher, join: Join) -> None:
    body = json.dumps({"number": 0, "text": secrets.token_hex(400_000)}).encode()
    await shop.publish([Message(TOPIC, f"k{n}", body) for n in range(5)])
    assert all(one.body == body for one in await (await join()).take(5))


async def test_nothing_to_publish_is_no_work(shop: Publisher, join: Join) -> None:
    await shop.publish([])
    await (await join()).silence()


async def test_it_answers_when_it_is_there(shop: Publisher) -> None:
    await shop.ping()


async def test_closing_twice_or_unopened_is_no_error(bus: Bus, shop: Publisher) -> None:
    publisher, subscriber = bus.publisher("default", "shop"), bus.subscriber("default", "mail")
    for one in (publisher, subscriber, publisher, subscriber):
        await one.close()
    with pytest.raises(BusUnavailable):
        await publisher.publish([message(0)])
