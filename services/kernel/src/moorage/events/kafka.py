"""The Kafka bus, on aiokafka: names, topics, the sending half. Imported only where ``kafka.brokers`` is set.

Topics are ``<installation>.<namespace>.<topic>``, groups ``<installation>.<namespace>.<module>``. A key's partition is
murmur2 of its bytes, as Kafka's own clients choose it.
"""

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Final

import structlog
from aiokafka import (  # type: ignore[import-untyped]  # has neither stubs nor py.typed
    AIOKafkaProducer,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]

from moorage.config.settings import Kafka
from moorage.events.bus import BusUnavailable, Message, Partition

log = structlog.get_logger("moorage.events.kafka")

_BATCH: Final = 128 * 1024
"""Bytes of one produce batch; a broker's default limit for one is 1 MiB."""
STOP: Final = 5.0
"""Seconds in which a connection has to end by itself."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 3.0
_DENIED: Final = frozenset({29, 31})
"""TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED."""
_UNKNOWN_TOPIC: Final = 3


@dataclass(frozen=True, slots=True)
class Names:
    """What things of one namespace are called in a cluster that other namespaces and installations share."""

    installation: str
    namespace: str
    core_namespace: str = "moorage-system"

    def topic(self, topic: str) -> str:
        """Kafka's name of *topic*; what begins with ``platform.`` is the core namespace's, seen by all."""
        owner = self.core_namespace if topic.partition(".")[0] == "platform" else self.namespace
        return f"{self.installation}.{owner}.{topic}"

    def group(self, module: str) -> str:
        """The consumer group of *module*."""
        return f"{self.installation}.{self.namespace}.{module}"


@dataclass
class Pause:
    """Pauses between attempts that fail: each longer than the last, up to a few seconds."""

    seconds: float = 0.0

    async def __call__(self) -> None:
        if self.seconds:
            await asyncio.sleep(self.seconds)

    def longer(self) -> None:
        self.seconds = min(max(self.seconds * 2, _FIRST_PAUSE), _LONGEST_PAUSE)

    def over(self) -> None:
        self.seconds = 0.0


async def ensure_topics(settings: Kafka, topics: Collection[str], *, client_id: str) -> None:
    """Have Kafka's *topics* (full names): make those that are missing, with ``kafka.partitions`` and ``.replication``.

    Raises:
        BusUnavailable: the cluster does not answer, or forbids it; the text names the topic and what to do.
    """
    if not topics:
        return
    admin = AIOKafkaAdminClient(
        **connection(settings, client_id), request_timeout_ms=milliseconds(settings.timeout)
    )
    try:
        async with asyncio.timeout(settings.timeout):
            await admin.start()
            missing = _missing(await admin.describe_topics(sorted(topics)))
            if missing:
                answer = await admin.create_topics([_new(settings, name) for name in missing])
                _check_created(settings, answer.topic_errors)
    except (KafkaError, OSError, TimeoutError, ValueError) as exc:
        raise unavailable(settings, exc) from exc
    finally:
        with contextlib.suppress(KafkaError, OSError):
            await admin.close()


def _missing(described: Sequence[Mapping[str, Any]]) -> list[str]:
    # Without the right to describe it, a topic may be there or not: the broker tells neither, and creating it decides.
    return [
        topic["topic"]
        for topic in described
        if topic["error_code"] == _UNKNOWN_TOPIC or topic["error_code"] in _DENIED
    ]


def _new(settings: Kafka, name: str) -> NewTopic:
    # Acknowledged by all but one copy, so that one broker may fail and what was acknowledged is still there.
    safe = {"min.insync.replicas": str(max(1, settings.replication - 1))}
    return NewTopic(name, settings.partitions, settings.replication, topic_configs=safe)


def _check_created(settings: Kafka, errors: Sequence[tuple[Any, ...]]) -> None:
    for name, code, *text in errors:
        error = for_code(code)
        if error in (NoError, TopicAlreadyExistsError):
            continue
        if code in _DENIED:
            raise BusUnavailable(
                f"Kafka: the topic {name} is missing or closed to "
                f"{settings.username or 'this principal'}: create it with {settings.partitions} partitions, and allow "
                "Describe and Read or Write on it (docs/ports/kafka.md)"
            )
        raise BusUnavailable(
            f"Kafka: the topic {name} cannot be made with kafka.partitions={settings.partitions} and "
            f"kafka.replication={settings.replication}: {text[0] if text and text[0] else error.__name__}"
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
        self._pause = Pause()

    async def open(self) -> None:
        """Connect and have the topics; raises `BusUnavailable`."""
        await self._opened()

    async def close(self) -> None:
        """Give back the connections."""
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


def noticed(future: "asyncio.Future[Any]") -> None:
    """Look at the exception, so that asyncio does not report one of a batch that was given up."""
    if not future.cancelled():
        future.exception()


@lru_cache(maxsize=8192)
def _hash(key: str) -> int:
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def partition_of(key: str, partitions: int) -> int:
    """The partition of *key* in a topic with so many *partitions*."""
    return _hash(key) % partitions


async def quietly(closing: Awaitable[None]) -> None:
    """Await what closes something, for `STOP` seconds; its failure is nobody's concern any more."""
    try:
        async with asyncio.timeout(STOP):
            await closing
    except Exception as exc:  # noqa: BLE001 - of a connection that is of no use any more
        log.debug("a connection ended with an error", error=repr(exc))


def connection(settings: Kafka, client_id: str) -> dict[str, Any]:
    """Arguments that every client of aiokafka takes."""
    assert settings.brokers is not None
    arguments: dict[str, Any] = {
        "bootstrap_servers": [broker.strip() for broker in settings.brokers.split(",")],
        "client_id": client_id,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        arguments["ssl_context"] = _tls(settings)
    if settings.security_protocol.startswith("SASL_"):
        assert settings.password is not None
        arguments |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return arguments


def _tls(settings: Kafka) -> ssl.SSLContext:
    """Read anew for every connection: mounted certificates change while we run."""
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def unavailable(settings: Kafka, exc: BaseException) -> BusUnavailable:
    """What a failure of aiokafka is for those who use the bus."""
    if isinstance(exc, TimeoutError):
        return BusUnavailable(f"Kafka: no answer of {settings.brokers} within {settings.timeout:g} s")
    return BusUnavailable(f"Kafka at {settings.brokers}: {type(exc).__name__}: {exc}")


def milliseconds(seconds: float) -> int:
    """As aiokafka takes durations."""
    return round(seconds * 1000)
