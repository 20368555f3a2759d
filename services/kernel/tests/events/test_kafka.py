"""The Kafka bus against a real broker: what the conformance suite does not ask of every bus."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from pydantic import SecretStr

from moorage.config.settings import Kafka
from moorage.events.bus import BusUnavailable, Delivery, Message, Partition, PartitionLost
from moorage.events.kafka import KafkaPublisher, partition_of
from moorage.events.kafka_group import KafkaSubscriber
from moorage.events.kafka_link import Names, ensure_topics
from rigs import kafka as rig
from rigs.waiting import until
from testcluster.pki import Authority

Changes = list[frozenset[Partition]]


@pytest.fixture
def names() -> Names:
    """Names that no other test uses."""
    return Names(f"t{uuid.uuid4().hex[:8]}", "shop")


@pytest.fixture
def settings(kafka_broker: str) -> Kafka:
    return Kafka(brokers=kafka_broker, partitions=3, timeout=5.0)


def message(key: str, number: int, topic: str = "blog.post") -> Message:
    return Message(topic, key, f"{key}-{number}".encode(), {"traceparent": "00-1-2-01"})


@asynccontextmanager
async def publisher(settings: Kafka, names: Names, *topics: str) -> AsyncIterator[KafkaPublisher]:
    one = KafkaPublisher(settings, names, topics=topics or ("blog.post",))
    await one.open()
    try:
        yield one
    finally:
        await one.close()


@asynccontextmanager
async def member(
    settings: Kafka,
    names: Names,
    *,
    on_change: Callable[[frozenset[Partition]], Awaitable[None]] | None = None,
    topics: Collection[str] = ("blog.post",),
) -> AsyncIterator[KafkaSubscriber]:
    async def ignore(_: frozenset[Partition]) -> None: ...

    one = KafkaSubscriber(settings, names, module="reader", session=6.0)
    await one.open(topics, on_change or ignore)
    try:
        yield one
    finally:
        await one.close()


async def receive(
    subscriber: KafkaSubscriber, count: int, *, within: float = 20.0, commit: bool = True
) -> list[Delivery]:
    """Fetch until *count* messages came, committing each batch."""
    got: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(got) < count:
            found = await subscriber.fetch(100, 1.0)
            got += [one for some in found.values() for one in some]
            if commit and found:
                await subscriber.commit({place: some[-1].position + 1 for place, some in found.items()})
    return got


def by_key(deliveries: Sequence[Delivery]) -> Mapping[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for one in deliveries:
        found.setdefault(one.key, []).append(one.body)
    return found


async def test_a_key_goes_where_kafkas_own_clients_would_send_it(settings: Kafka, names: Names) -> None:
    """murmur2 of the key: producers that are not ours may write to the same topics."""
    topic = names.topic("blog.post")
    await ensure_topics(settings, [topic], client_id="test")
    producer = AIOKafkaProducer(bootstrap_servers=settings.brokers)
    await producer.start()
    try:
        for key in ("a", "key-2", "01890a5d-ac96-774b-bcce-b302099a8057", "ünïcode"):
            placed = await producer.send_and_wait(topic, b"x", key=key.encode())
            assert partition_of(key, 3) == placed.partition
    finally:
        await producer.stop()


async def test_others_read_key_headers_and_body(settings: Kafka, names: Names) -> None:
    async with publisher(settings, names) as one:
        await one.publish([message("k", 1)])
    consumer = AIOKafkaConsumer(
        names.topic("blog.post"), bootstrap_servers=settings.brokers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        record = await asyncio.wait_for(consumer.getone(), 10)
    finally:
        await consumer.stop()
    assert (record.key, record.value) == (b"k", b"k-1")
    assert dict(record.headers) == {"traceparent": b"00-1-2-01"}


async def test_batches_larger_than_a_produce_batch_keep_their_order(settings: Kafka, names: Names) -> None:
    many = [Message("blog.post", f"k{n % 5}", b"%d " % n + b"x" * 5000) for n in range(300)]
    async with publisher(settings, names) as one, member(settings, names) as reader:
        await one.publish(many)
        got = await receive(reader, 300)
    for key, bodies in by_key(got).items():
        assert bodies == [m.body for m in many if m.key == key]


async def test_compressed_batches_are_read_by_all(settings: Kafka, names: Names) -> None:
    zipped = settings.model_copy(update={"compression": "gzip"})
    async with publisher(zipped, names) as one, member(settings, names) as reader:
        await one.publish([message("k", n) for n in range(50)])
        assert len(await receive(reader, 50)) == 50


async def test_a_paused_partition_gives_what_waited_as_soon_as_it_is_resumed(
    settings: Kafka, names: Names
) -> None:
    """Not after Kafka's long poll: the reader has it already."""
    async with publisher(settings, names) as one, member(settings, names) as reader:
        await one.publish([message("k", 1)])
        place = next(iter(await reader.fetch(10, 10.0)))
        await reader.pause([place])
        await one.publish([message("k", 2)])
        await until(lambda: reader._ahead[place].records)
        assert await reader.fetch(10, 1.0) == {}
        waiting = asyncio.create_task(reader.fetch(10, 60.0))
        await asyncio.sleep(0.1)
        await reader.resume([place])
        for _ in range(20):  # turns of the event loop, in none of which anybody waits
            await asyncio.sleep(0)
        assert waiting.done()
        assert [one.body for one in (await waiting)[place]] == [b"k-2"]


async def test_reading_ahead_of_a_paused_partition_is_bounded(settings: Kafka, names: Names) -> None:
    big = [Message("blog.post", "k", b"%d " % n + b"x" * 100_000) for n in range(60)]
    async with publisher(settings, names) as one, member(settings, names) as reader:
        await one.publish(big[:1])
        place = next(iter(await reader.fetch(10, 10.0)))
        await reader.pause([place])
        await one.publish(big[1:])
        assert await reader.fetch(1, 2.0) == {}
        assert reader._ahead[place].size < 3_000_000  # of 6 MB that there are
        await reader.resume([place])
        assert [d.body for d in await receive(reader, 59)] == [m.body for m in big[1:]]


async def test_limits_are_shared_out_among_partitions(settings: Kafka, names: Names) -> None:
    keys = [next(k for k in map(str, range(100)) if partition_of(k, 3) == p) for p in range(3)]
    async with publisher(settings, names) as one, member(settings, names) as reader:
        await one.publish([message(key, n) for n in range(50) for key in keys])
        await until(lambda: len(reader._ahead) == 3)
        seen = {place for _ in range(3) for place in await reader.fetch(10, 10.0)}
        assert len(seen) == 3


async def test_what_is_under_way_may_be_committed_while_the_group_changes(
    settings: Kafka, names: Names
) -> None:
    """`on_change` is awaited before another member gets the partitions, and `commit` still works in it."""
    taken: dict[Partition, int] = {}
    committed = []

    async def finish(ours: frozenset[Partition]) -> None:
        if not ours and taken:
            await asyncio.sleep(0.5)
            await first.commit(taken)
            committed.append(dict(taken))
            taken.clear()

    async with publisher(settings, names) as one:
        await one.publish([message(f"k{n}", n) for n in range(20)])
        first = KafkaSubscriber(settings, names, module="reader", session=6.0)
        await first.open(["blog.post"], finish)
        try:
            while sum(taken.values()) < 20:
                taken |= {p: some[-1].position + 1 for p, some in (await first.fetch(100, 5.0)).items()}
            async with member(settings, names) as second:
                assert await second.fetch(100, 5.0) == {}  # nothing is handled twice
                assert committed
                await one.publish([message(f"k{n}", n) for n in range(40, 60)])
                both = await asyncio.gather(first.fetch(100, 5.0), second.fetch(100, 5.0))
                assert all(both)
                assert not set(both[0]) & set(both[1])
        finally:
            await first.close()


async def test_a_commit_for_a_partition_that_another_has_is_refused(settings: Kafka, names: Names) -> None:
    changes: Changes = []
    parted = asyncio.Event()

    async def note(ours: frozenset[Partition]) -> None:
        changes.append(ours)
        if len(changes) == 3:
            parted.set()

    async with publisher(settings, names) as one, member(settings, names, on_change=note) as first:
        await one.publish([message(f"k{n}", n) for n in range(20)])
        mine = {d.partition: d.position for d in await receive(first, 20, commit=False)}
        async with member(settings, names):
            await asyncio.wait_for(parted.wait(), 20)
            assert changes[1] == frozenset()
            lost = {("blog.post", p): n + 1 for p, n in mine.items() if ("blog.post", p) not in changes[2]}
            assert lost
            with pytest.raises(PartitionLost) as caught:
                await first.commit(lost)
            assert caught.value.partitions == lost.keys()


async def test_lag_counts_what_is_not_committed(settings: Kafka, names: Names) -> None:
    async with publisher(settings, names) as one, member(settings, names) as reader:
        await one.publish([message(f"k{n}", n) for n in range(20)])
        got = await receive(reader, 20, commit=False)
        assert sum((await reader.lag()).values()) == 20
        first = got[0]
        await reader.commit({(first.topic, first.partition): first.position + 1})
        assert sum((await reader.lag()).values()) == 20 - first.position - 1


async def test_a_topic_without_enough_brokers_is_named(settings: Kafka, names: Names) -> None:
    three = settings.model_copy(update={"replication": 3})
    with pytest.raises(BusUnavailable, match=rf"{names.topic('blog.post')}.*kafka\.replication=3"):
        await KafkaPublisher(three, names, topics=["blog.post"]).open()


async def test_a_platform_topic_is_the_core_namespaces(names: Names) -> None:
    assert names.topic("platform.user") == f"{names.installation}.moorage-system.platform.user"
    assert names.topic("platformer.user") == f"{names.installation}.shop.platformer.user"
    assert names.group("blog") == f"{names.installation}.shop.blog"


class TestOutage:
    async def test_everything_goes_on_after_the_broker_was_killed(self, tmp_path: Path, names: Names) -> None:
        """Publish and fetch fail or wait while it is down; afterwards nothing is missing and order is kept."""
        with rig.running(tmp_path) as broker:
            settings = Kafka(brokers=broker.bootstrap, partitions=3, timeout=3.0)
            async with publisher(settings, names) as one, member(settings, names) as reader:
                await one.publish([message(f"k{n % 5}", n) for n in range(20)])
                first = await receive(reader, 20)
                broker.kill()
                with pytest.raises(BusUnavailable, match=broker.bootstrap):
                    await one.publish([message("k0", 100)])
                with pytest.raises(BusUnavailable):
                    await one.ping()
                with pytest.raises(BusUnavailable, match=broker.bootstrap):
                    await reader.fetch(10, 8.0)
                await asyncio.to_thread(broker.start)
                async with asyncio.timeout(30):
                    while True:
                        try:
                            await one.publish([message("k0", 100), message("k1", 101)])
                        except BusUnavailable:
                            continue
                        break
                rest = await receive(reader, 2, within=40, commit=False)
                await one.ping()
        assert len(first) == 20
        assert {(d.key, d.body) for d in rest} >= {("k0", b"k0-100"), ("k1", b"k1-101")}

    async def test_a_silent_broker_does_not_hold_publish_or_close(self, tmp_path: Path, names: Names) -> None:
        """It is there but does not answer: no connection breaks, only deadlines help."""
        with rig.running(tmp_path) as broker:
            settings = Kafka(brokers=broker.bootstrap, partitions=3, timeout=1.5)
            loop = asyncio.get_running_loop()
            async with publisher(settings, names) as one, member(settings, names) as reader:
                await one.publish([message("k", 1)])
                await receive(reader, 1)
                broker.freeze()
                began = loop.time()
                with pytest.raises(BusUnavailable, match=r"no answer .* within 1\.5 s"):
                    await one.publish([message("k", 2)])
                with pytest.raises(BusUnavailable):
                    await reader.commit({("blog.post", partition_of("k", 3)): 1})
                await one.close()
                await reader.close()
                assert loop.time() - began < 15
            broker.thaw()

    async def test_without_a_broker_opening_says_so(self, names: Names) -> None:
        settings = Kafka(brokers="127.0.0.1:1", timeout=1.0)
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"):
            await KafkaPublisher(settings, names, topics=["blog.post"]).open()
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"):
            await KafkaSubscriber(settings, names, module="x").open(["blog.post"], _ignore)


async def _ignore(_: frozenset[Partition]) -> None: ...


class TestSecuredCluster:
    """SASL over TLS, and no right but what an ACL gives."""

    async def test_who_may_not_make_a_topic_is_told_which_one(
        self, tmp_path: Path, names: Names, kafka_broker: str
    ) -> None:
        security = rig.Security({"blog": "blog-secret"}, Authority(tmp_path / "ca"))
        with rig.running(tmp_path / "broker", security=security) as broker:
            admin = Kafka.model_validate(broker.client_properties(rig.ADMIN) | {"timeout": 5.0})
            blog = Kafka.model_validate(broker.client_properties("blog") | {"timeout": 5.0})
            with pytest.raises(BusUnavailable) as caught:
                await KafkaPublisher(blog, names, topics=["blog.post"]).open()
            assert names.topic("blog.post") in str(caught.value)
            assert "blog-secret" not in str(caught.value)
            async with publisher(admin, names) as one:
                await one.publish([message("k", 1)])
            wrong = blog.model_copy(update={"password": SecretStr("wrong")})
            with pytest.raises(BusUnavailable, match="Kafka at"):
                await KafkaPublisher(wrong, names, topics=["blog.post"]).open()
