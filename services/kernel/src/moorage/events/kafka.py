"""The Kafka bus, on aiokafka. Imported only where ``kafka.brokers`` is set.

Topics are ``<installation>.<namespace>.<topic>``, groups ``<installation>.<namespace>.<module>``. A key's partition is
murmur2 of its bytes, as Kafka's own clients choose it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Final

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]

from moorage.assembly import Assembly
from moorage.config.settings import Kafka
from moorage.events.bus import BusUnavailable, Message, Partition
from moorage.events.event import topic_of
from moorage.events.kafka_group import KafkaSubscriber
from moorage.events.kafka_link import (
    STOP,
    Names,
    Pause,
    connection,
    ensure_topics,
    milliseconds,
    noticed,
    quietly,
    unavailable,
)

_BATCH: Final = 128 * 1024
"""Bytes of one produce batch; a broker's default limit for one is 1 MiB."""


def bus(assembly: Assembly) -> tuple["KafkaPublisher", KafkaSubscriber]:
    """Both halves for the module of *assembly*, unopened; ``kafka.brokers`` must be set."""
    settings = assembly.settings
    place = settings.moorage
    names = Names(place.installation, assembly.namespace, place.core_namespace)
    topics = {topic_of(published) for published in settings.events.publishes}
    return (
        KafkaPublisher(
            settings.kafka, names, topics=topics, client_id=f"{assembly.namespace}.{assembly.name}"
        ),
        KafkaSubscriber(settings.kafka, names, module=assembly.name, session=settings.events.lease),
    )


class _Producer(AIOKafkaProducer):  # type: ignore[misc]  # untyped
    """A producer that can be given up."""

    async def abandon(self) -> None:
        """Drop what was not sent, and all connections.

        An idempotent producer tries for ever and `stop` waits for it: with the broker gone neither would end.
        """
        self._closed = True
        gone = KafkaError("the producer was given up")
        task = self._sender.sender_task
        if task is not None:
            task.remove_done_callback(self._sender._fail_all)
            task.add_done_callback(noticed)
            task.cancel()
        self._message_accumulator.fail_all(gone)
        await self.client.close()
        if task is not None:
            await asyncio.wait([task], timeout=STOP)


class KafkaPublisher:
    """`Publisher` on Kafka: idempotent, acknowledged by all in-sync replicas.

    Any failure ends the producer and the next call makes a new one: of what was under way each partition then has some
    first messages and nothing after them, so publishing all of it again keeps the order of every key.

    Args:
        settings: the group ``kafka``; brokers must be set.
        names: of this module's namespace.
        topics: made on opening; others are when something is first published to them.
        client_id: what brokers call us in logs and quotas.
    """

    def __init__(
        self, settings: Kafka, names: Names, *, topics: Collection[str] = (), client_id: str = "moorage"
    ) -> None:
        self._settings = settings
        self._names = names
        self._topics = {names.topic(topic) for topic in topics}
        self._client_id = client_id
        self._producer: _Producer | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._pause = Pause()

    async def open(self) -> None:
        """Connect and have the topics; raises `BusUnavailable`."""
        self._closed = False
        await self._opened()

    async def close(self) -> None:
        """Give back the connections."""
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await quietly(producer.abandon())

    async def publish(self, messages: Sequence[Message]) -> None:
        """Append *messages*; returns when all are on every in-sync replica. Raises `BusUnavailable`."""
        if not messages:
            return
        topics = {message.topic: self._names.topic(message.topic) for message in messages}
        if unknown := set(topics.values()) - self._topics:
            await ensure_topics(self._settings, unknown, client_id=self._client_id)
            self._topics |= unknown
        producer = await self._opened()
        try:
            async with asyncio.timeout(self._settings.timeout):
                await _send(producer, messages, topics)
        except BaseException as exc:
            self._producer = None
            await quietly(producer.abandon())
            if isinstance(exc, KafkaError | OSError | TimeoutError):
                self._pause.longer()
                raise unavailable(self._settings, exc) from exc
            raise
        self._pause.over()

    async def ping(self) -> None:
        """Ask a broker for its metadata; raises `BusUnavailable`."""
        producer = await self._opened()
        try:
            async with asyncio.timeout(self._settings.timeout):
                known = await producer.client.force_metadata_update()
        except TimeoutError as exc:
            raise unavailable(self._settings, exc) from exc
        if not known:
            raise BusUnavailable(f"Kafka: no broker of {self._settings.brokers} answers")

    async def _opened(self) -> _Producer:
        async with self._opening:
            if self._closed:
                raise BusUnavailable("Kafka: this publisher is closed")
            if self._producer is not None:
                return self._producer
            await self._pause()
            try:
                await ensure_topics(self._settings, self._topics, client_id=self._client_id)
                self._producer = await self._start()
            except BusUnavailable:
                self._pause.longer()
                raise
            return self._producer

    async def _start(self) -> _Producer:
        compression = self._settings.compression
        producer = _Producer(
            **connection(self._settings, self._client_id),
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=milliseconds(self._settings.timeout),
            max_batch_size=_BATCH,
            compression_type=None if compression == "none" else compression,
        )
        try:
            async with asyncio.timeout(self._settings.timeout):
                await producer.start()
        except BaseException as exc:
            await quietly(producer.abandon())
            if isinstance(exc, KafkaError | OSError | TimeoutError):
                raise unavailable(self._settings, exc) from exc
            raise
        return producer


async def _send(producer: _Producer, messages: Sequence[Message], topics: Mapping[str, str]) -> None:
    """Send whole batches, one of each partition at a time.

    The next of a partition leaves when the last one is acknowledged, so a failure never leaves a gap. Batches made here
    cost one future each; `AIOKafkaProducer.send` makes one for every message.
    """
    counts = {name: len(await producer.partitions_for(name)) for name in set(topics.values())}
    places: defaultdict[Partition, list[Message]] = defaultdict(list)
    for message in messages:
        name = topics[message.topic]
        places[name, partition_of(message.key, counts[name])].append(message)
    batches = [[(place, batch) for batch in _batches(producer, some)] for place, some in places.items()]
    for turn in zip_longest(*batches):
        sent = [
            await producer.send_batch(batch, topic, partition=number)
            for (topic, number), batch in filter(None, turn)
        ]
        for future in sent:
            future.add_done_callback(noticed)
        await asyncio.wait(sent)
        for future in sent:
            future.result()


def _batches(producer: _Producer, messages: Sequence[Message]) -> Iterator[Any]:
    batch = producer.create_batch()
    for message in messages:
        record: dict[str, Any] = {
            "key": message.key.encode(),
            "value": message.body,
            "timestamp": None,
            "headers": [(name, value.encode()) for name, value in message.headers.items()],
        }
        if batch.append(**record) is None:
            yield batch
            batch = producer.create_batch()
            batch.append(**record)
    yield batch


@lru_cache(maxsize=8192)
def _hash(key: str) -> int:
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def partition_of(key: str, partitions: int) -> int:
    """The partition of *key* in a topic with so many *partitions*."""
    return _hash(key) % partitions
