"""The receiving half of the Kafka bus (`moorage.events.kafka`): a member of a consumer group."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiokafka import (  # type: ignore[import-untyped]  # has neither stubs nor py.typed
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError  # type: ignore[import-untyped]

from moorage.config.settings import Kafka
from moorage.events.bus import BusUnavailable, Delivery, OnChange, Partition, PartitionLost
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

log = structlog.get_logger("moorage.events")

_LONG_POLL: Final = 0.5
"""Seconds a broker holds a fetch that has nothing yet."""
_FETCH: Final = 512 * 1024
"""Bytes of one partition in one fetch; a larger message still comes, alone."""
_AHEAD: Final = 1024 * 1024
_AHEAD_MESSAGES: Final = 2000
"""What is read ahead of one partition before its fetching pauses: bytes, messages."""
_LOOK_EVERY: Final = 3.0
"""Seconds without a message after which is looked whether a broker is there at all."""
_REBALANCE: Final = 30.0
"""Seconds in which every member has to let go of its partitions when the group changes."""


@dataclass
class _Ahead:
    """What was read of a partition and not fetched yet."""

    records: "deque[ConsumerRecord]" = field(default_factory=deque)
    size: int = 0
    held: bool = False
    """Kafka is not asked for more until this is half empty."""

    def add(self, records: Sequence[ConsumerRecord]) -> None:
        self.records.extend(records)
        self.size += sum(len(record.value or b"") for record in records)

    def take(self, limit: int) -> list[ConsumerRecord]:
        taken = [self.records.popleft() for _ in range(min(limit, len(self.records)))]
        self.size -= sum(len(record.value or b"") for record in taken)
        return taken

    def fills(self, share: float = 1.0) -> bool:
        """Whether it holds at least *share* of what it may."""
        return self.size >= _AHEAD * share or len(self.records) >= _AHEAD_MESSAGES * share


class KafkaSubscriber(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped
    """`Subscriber` on Kafka: a member of the module's consumer group.

    A group that never committed begins with the oldest message there is. A reader runs ahead of `fetch`, so that a
    partition that is paused for a moment stays in Kafka's long poll: aiokafka has one fetch under way for each broker,
    and what is paused when that leaves waits for its end.

    aiokafka knows the *eager* protocol alone: when a member comes or goes, every member lets go of all its partitions
    and gets its new ones, some milliseconds later. `OnChange` is therefore called with nothing first. It is awaited in
    the group's own task, in which heartbeats go on, for `_REBALANCE` seconds at most; then
    the broker goes on without us.

    Args:
        settings: the group ``kafka``; brokers must be set.
        names: of this module's namespace.
        module: names the group.
        session: seconds after which a silent member's partitions are given to others; brokers allow 6 s and more.
    """

    def __init__(self, settings: Kafka, names: Names, *, module: str, session: float = 15.0) -> None:
        self._settings = settings
        self._names = names
        self._group = names.group(module)
        self._client_id = f"{names.namespace}.{module}"
        self._session = session
        self._topics: dict[str, str] = {}
        self._on_change: OnChange | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._news = asyncio.Event()
        self._pause = Pause()
        self._away = False
        self._owned: frozenset[Partition] = frozenset()
        self._told: frozenset[Partition] = frozenset()
        self._leaving = False
        self._ahead: dict[Partition, _Ahead] = {}
        self._paused: set[Partition] = set()
        self._committed: dict[Partition, int] = {}

    async def open(self, topics: Collection[str], on_change: OnChange) -> None:
        """Join the group; partitions come later, with *on_change*. Raises `BusUnavailable`."""
        self._topics = {self._names.topic(topic): topic for topic in topics}
        self._on_change = on_change
        await self._join()

    async def close(self) -> None:
        """Leave the group, so that others get our partitions at once."""
        self._closing.set()
        await self._leave()

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        """What comes next; see `Subscriber.fetch`. Raises `BusUnavailable`."""
        if self._consumer is None:
            await self._join()
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            self._news.clear()
            if found := self._take(limit):
                return found
            if self._reader is not None and self._reader.done():
                await self._start_over(self._reader)
            left = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                if self._away:
                    raise BusUnavailable(f"Kafka: no broker of {self._settings.brokers} answers") from None
                return self._take(limit)

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Note the next positions; see `Subscriber.commit`. Raises `PartitionLost`, `BusUnavailable`."""
        ours = {place: position for place, position in positions.items() if place in self._owned}
        lost = positions.keys() - ours.keys()
        consumer = self._consumer
        if ours and consumer is not None:
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await consumer.commit({self._place(place): position for place, position in ours.items()})
            except (CommitFailedError, IllegalStateError):
                # The generation is over: the broker took nothing of it. What was read ahead is later than what
                # is undone now, and must not be handled before it: give nothing until all is shared out anew.
                lost |= ours.keys()
                self._owned -= ours.keys()
            except (KafkaError, OSError, TimeoutError) as exc:
                raise unavailable(self._settings, exc) from exc
            else:
                self._committed.update(ours)
        if lost:
            raise PartitionLost(lost)

    async def pause(self, partitions: Collection[Partition]) -> None:
        """Let `fetch` leave out *partitions*."""
        self._paused.update(partitions)

    async def resume(self, partitions: Collection[Partition]) -> None:
        """Let `fetch` give *partitions* again; one that waits now does so at once."""
        self._paused.difference_update(partitions)
        self._news.set()

    async def lag(self) -> Mapping[Partition, int]:
        """How many messages are not committed; asks the brokers. Raises `BusUnavailable`."""
        consumer, owned = self._consumer, self._owned
        if consumer is None or not owned:
            return {}
        places = {place: self._place(place) for place in owned}
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._learn_committed(consumer, places)
                ends = await consumer.end_offsets(list(places.values()))
        except (KafkaError, OSError, TimeoutError) as exc:
            raise unavailable(self._settings, exc) from exc
        return {place: max(ends[at] - self._committed.get(place, 0), 0) for place, at in places.items()}

    # -- aiokafka's side

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """aiokafka: the group changes, and nothing is ours until it gives us something."""
        self._leaving = True
        await self._tell(frozenset())
        self._forget()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """aiokafka: these are ours."""
        ours = frozenset((self._topics[at.topic], at.partition) for at in assigned)
        await self._tell(ours)
        self._owned = ours
        self._leaving = False
        self._news.set()

    async def _tell(self, ours: frozenset[Partition]) -> None:
        """Call `OnChange` unless nothing changes, and stop waiting for it when we are closed."""
        if ours == self._told or self._on_change is None or self._closing.is_set():
            return
        self._told = ours
        telling = asyncio.ensure_future(self._on_change(ours))
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({telling, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
            if not telling.done():
                telling.cancel()
        if telling.done() and not telling.cancelled() and (error := telling.exception()) is not None:
            log.error("lanes did not follow a change of the group", exc_info=error, group=self._group)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Read ahead of `fetch`, for ever; ends with the error of a consumer that is of no use any more."""
        while True:
            found = await consumer.getmany(timeout_ms=milliseconds(_LOOK_EVERY))
            # aiokafka waits for a broker that is away without a word. An error that it cannot bear ends the reader.
            self._away = not found and not await consumer._client.force_metadata_update()
            for at, records in found.items():
                place = self._topics[at.topic], at.partition
                ahead = self._ahead.setdefault(place, _Ahead())
                ahead.add(records)
                if ahead.fills() and not ahead.held:
                    ahead.held = True
                    consumer.pause(at)
            if found:
                self._news.set()
            # aiokafka does not say so itself when the task behind `getmany` is dead.
            if consumer._fetcher.error_future.done():
                consumer._fetcher.error_future.result()

    def _take(self, limit: int) -> dict[Partition, Sequence[Delivery]]:
        taken: dict[Partition, Sequence[Delivery]] = {}
        if self._leaving:
            return taken
        for place in list(self._ahead):
            if limit <= 0:
                break
            ahead = self._ahead[place]
            if not ahead.records or place in self._paused or place not in self._owned:
                continue
            taken[place] = [_delivery(place, record) for record in ahead.take(limit)]
            limit -= len(taken[place])
            # To the end of the line: the first ones must not have all of every limit.
            self._ahead[place] = self._ahead.pop(place)
            if ahead.held and not ahead.fills(0.5):
                ahead.held = False
                self._go_on(place)
        return taken

    def _go_on(self, place: Partition) -> None:
        if self._consumer is not None:
            with contextlib.suppress(IllegalStateError):  # not ours any more
                self._consumer.resume(self._place(place))

    async def _learn_committed(
        self, consumer: AIOKafkaConsumer, places: Mapping[Partition, TopicPartition]
    ) -> None:
        """Positions committed before our time; where there is none, the oldest message's."""
        unknown = {place: at for place, at in places.items() if place not in self._committed}
        if not unknown:
            return
        begins = await consumer.beginning_offsets(list(unknown.values()))
        for place, at in unknown.items():
            position = await consumer.committed(at)
            self._committed.setdefault(place, begins[at] if position is None else max(position, begins[at]))

    def _place(self, place: Partition) -> TopicPartition:
        return TopicPartition(self._names.topic(place[0]), place[1])

    # -- coming and going

    async def _join(self) -> None:
        await self._pause()
        try:
            await ensure_topics(self._settings, self._topics, client_id=self._client_id)
            consumer = self._new_consumer()
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await consumer.start()
            except BaseException as exc:
                await _stop(consumer)
                if isinstance(exc, KafkaError | OSError | TimeoutError):
                    raise unavailable(self._settings, exc) from exc
                raise
        except BusUnavailable:
            self._pause.longer()
            raise
        consumer.subscribe(list(self._topics), listener=self)
        self._consumer = consumer
        self._reader = asyncio.create_task(self._read(consumer), name="kafka reader")
        self._reader.add_done_callback(self._ended)

    def _ended(self, reader: "asyncio.Task[None]") -> None:
        noticed(reader)
        self._news.set()

    def _new_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **connection(self._settings, self._client_id),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=milliseconds(self._session),
            # Members hear of a change by a heartbeat's answer.
            heartbeat_interval_ms=milliseconds(min(1.0, self._session / 5)),
            rebalance_timeout_ms=milliseconds(max(_REBALANCE, self._session)),
            # Joining takes as long as the slowest member; a request that gives up earlier begins it anew.
            request_timeout_ms=milliseconds(max(_REBALANCE, self._session) + 5),
            fetch_max_wait_ms=milliseconds(_LONG_POLL),
            max_partition_fetch_bytes=_FETCH,
        )

    async def _start_over(self, reader: "asyncio.Task[None]") -> None:
        """Let go of a consumer that failed for good; the next `fetch` makes a new one."""
        error = None if reader.cancelled() else reader.exception()
        await self._tell(frozenset())
        await self._leave()
        self._pause.longer()
        raise unavailable(self._settings, error or KafkaError("the reader ended")) from error

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        if consumer is not None:
            await _stop(consumer)
        self._forget()

    def _forget(self) -> None:
        self._owned = frozenset()
        self._ahead.clear()
        self._paused.clear()
        self._committed.clear()


def _delivery(place: Partition, record: ConsumerRecord) -> Delivery:
    return Delivery(
        topic=place[0],
        partition=place[1],
        position=record.offset,
        key=(record.key or b"").decode(errors="replace"),
        body=record.value or b"",
        headers={name: value.decode(errors="replace") for name, value in record.headers if value is not None},
    )


async def _stop(consumer: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(STOP):
            await consumer.stop()
    except TimeoutError:
        # A broker that is silent but there: without connections what `stop` waits for ends.
        await quietly(consumer._client.close())
    except Exception as exc:  # noqa: BLE001 - of a consumer that failed; it is let go in any case
        log.debug("a consumer ended with an error", error=repr(exc))
