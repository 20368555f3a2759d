"""The consumer: a member of the module's group on the bus, with a lane for each of its partitions.

While handlers are quick, there is one batch at a time, of what waits in all lanes: a transaction for many partitions
costs little more than for one. When they are slow, each lane goes on by itself, so that none waits for the handlers of
another.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import structlog

from moorage.events.bus import BusUnavailable, Delivery, Partition, PartitionLost, Subscriber
from moorage.events.lane import Lanes, Work
from moorage.events.meters import Meters

log = structlog.get_logger("moorage.events")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_LAG_EVERY: Final = 10.0
_FULL: Final = 2
"""Batches that a lane keeps at most before its partition is paused."""
_SLOW: Final = 0.25
"""Seconds for a batch, above which lanes are not put together."""
_FETCHING: Final = "no events come"
_NOTING: Final = "positions are not noted"
_MEASURING: Final = "the lag is not known"
_COMMIT_PAUSE: Final = 0.02
"""Seconds in which the positions of several batches become one commit; duplicates after a crash cost little."""


@dataclass(frozen=True)
class ConsumerOptions:
    """Times in seconds."""

    batch: int = 500
    concurrency: int = 8
    wait: float = 1.0
    drain: float = 10.0


@dataclass(eq=False)
class _Lane:
    """What waits on one partition, and the task that handles it at the moment."""

    partition: Partition
    queue: deque[Delivery] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    paused: bool = False
    closed: bool = False


class Consumer:
    """Handles the events of one process's share of the partitions, from `open` to `close`."""

    def __init__(
        self,
        subscriber: Subscriber,
        topics: Collection[str],
        work: Work,
        meters: Meters,
        options: ConsumerOptions,
    ) -> None:
        self._subscriber = subscriber
        self._topics = topics
        self._meters = meters
        self._options = options
        self._lanes: dict[Partition, _Lane] = {}
        self._owned: frozenset[Partition] = frozenset()
        self._working: set[asyncio.Task[None]] = set()
        self._slow = False
        self._began = 0.0
        self._handler = Lanes(work)
        self._done: dict[Partition, int] = {}
        self._some_done = asyncio.Event()
        self._committing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What does not work, and why; empty: nothing is wrong."""
        return "; ".join(f"{what}: {why}" for what, why in self._problems.items())

    async def open(self) -> None:
        """Begin; a bus that is away is waited for in the background."""
        self._start(self._fetching(), "events consumer")
        self._start(self._committing_forever(), "events positions")
        self._start(self._watching_lag(), "events lag")

    async def close(self) -> None:
        """Fetch no more, let the batches that are under way finish, commit their positions, leave the group."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._finish(list(self._lanes))
        await self._commit_last()
        await self._subscriber.close()

    # -- from the bus to the lanes

    async def _fetching(self) -> None:
        await self._patiently(lambda: self._subscriber.open(self._topics, self._changed))
        while not self._closed:
            await self._patiently(self._fetch)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work*, again and again while the bus is away."""
        pause = _FIRST_PAUSE
        while not self._closed:  # a library that swallows a cancellation must not keep us from stopping
            try:
                await work()
            except Exception as exc:  # noqa: BLE001 - whatever it is: try again, and say why
                self._fails(_FETCHING, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self._works(_FETCHING)
                return

    async def _fetch(self) -> None:
        got = await self._subscriber.fetch(self._options.batch, self._options.wait)
        for partition, deliveries in got.items():
            if partition in self._owned and deliveries:
                await self._put(partition, deliveries)
        self._begin()

    async def _put(self, partition: Partition, deliveries: Sequence[Delivery]) -> None:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(partition)
        lane.queue.extend(deliveries)
        if not lane.paused and len(lane.queue) > _FULL * self._options.batch:
            lane.paused = True
            await self._subscriber.pause([partition])

    async def _changed(self, owned: frozenset[Partition]) -> None:
        """The bus has shared the partitions out anew: finish what is under way on those that go."""
        going = [partition for partition in self._lanes if partition not in owned]
        self._owned = owned
        if going:
            await self._finish(going)
            await self._commit_last()
        log.info("partitions are shared out", partitions=sorted(f"{topic}/{n}" for topic, n in owned))

    # -- lanes

    def _begin(self) -> None:
        """Let tasks handle what waits in lanes that are free."""
        while not self._closed and len(self._working) < self._options.concurrency:
            free = [lane for lane in self._lanes.values() if lane.queue and lane.task is None]
            if not free:
                return
            if self._working and not self._slow and time.monotonic() - self._began < _SLOW:
                return  # what comes meanwhile makes the next batch larger
            taken = free[:1] if self._slow else free
            self._began = time.monotonic()
            task = asyncio.create_task(self._work_off(taken), name="events batch")
            for lane in taken:
                lane.task = task
            self._working.add(task)

    async def _work_off(self, lanes: list[_Lane]) -> None:
        """Handle one batch of what waits in *lanes*, again until the database takes it; then others may have them."""
        pause = _FIRST_PAUSE
        task = asyncio.current_task()
        assert task is not None
        try:
            while batches := self._taken(lanes):
                began = time.monotonic()
                try:
                    await self._handler.handle([one for batch in batches.values() for one in batch])
                except Exception as exc:  # noqa: BLE001 - the events stay, whatever happened to the database
                    log.warning("events wait", partitions=len(batches), reason=_words(exc))
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                else:
                    self._slow = time.monotonic() - began > _SLOW
                    await self._handled(lanes, batches)
                    return
        finally:
            self._working.discard(task)
            for lane in lanes:
                lane.task = None
            self._begin()

    def _taken(self, lanes: list[_Lane]) -> dict[Partition, list[Delivery]]:
        """What to handle now, from the front of each lane; it stays there until it is done."""
        share = max(self._options.batch // len(lanes), 1)
        batches: dict[Partition, list[Delivery]] = {}
        for lane in lanes:
            if not lane.closed and (batch := list(islice(lane.queue, share))):
                batches[lane.partition] = batch
        return batches

    async def _handled(self, lanes: list[_Lane], batches: dict[Partition, list[Delivery]]) -> None:
        for lane in lanes:
            batch = batches.get(lane.partition)
            if batch is not None:
                for _ in batch:
                    lane.queue.popleft()
                self._done[lane.partition] = batch[-1].position + 1
        self._some_done.set()
        for lane in lanes:
            if lane.paused and len(lane.queue) < self._options.batch and not lane.closed:
                lane.paused = False
                await self._subscriber.resume([lane.partition])

    async def _finish(self, partitions: Collection[Partition]) -> None:
        """Let the batch that is under way on each of *partitions* finish, or undo it when the time is up."""
        tasks = set()
        for partition in partitions:
            lane = self._lanes.pop(partition)
            lane.closed = True
            if lane.task is not None:
                tasks.add(lane.task)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._options.drain)
        for task in late:
            task.cancel()
        if late:
            log.warning("batches of events are undone", number=len(late), drain_s=self._options.drain)
            await asyncio.gather(*late, return_exceptions=True)

    # -- positions

    async def _committing_forever(self) -> None:
        while True:
            await self._some_done.wait()
            self._some_done.clear()
            await asyncio.sleep(_COMMIT_PAUSE)
            try:
                await self._commit()
            except Exception as exc:  # noqa: BLE001 - whatever it is: try again, and say why
                self._fails(_NOTING, exc)
                await asyncio.sleep(_LONGEST_PAUSE)
                self._some_done.set()
            else:
                self._works(_NOTING)

    async def _commit_last(self) -> None:
        """Note what is done, before partitions go; if that fails it comes again, and is found in the inbox."""
        try:
            await self._commit()
        except Exception as exc:  # noqa: BLE001 - it must keep nobody from leaving
            log.warning(_NOTING, reason=_words(exc))

    async def _commit(self) -> None:
        async with self._committing:
            positions, self._done = self._done, {}
            if not positions:
                return
            try:
                await self._subscriber.commit(positions)
            except PartitionLost as exc:
                await self._lost(exc.partitions)
            except BaseException:
                self._done = positions | self._done
                raise

    async def _lost(self, partitions: Collection[Partition]) -> None:
        """Somebody else has them by now: what is under way will find that in the inbox."""
        log.warning("partitions were lost", partitions=sorted(f"{topic}/{n}" for topic, n in partitions))
        for partition in partitions:
            self._done.pop(partition, None)
            lane = self._lanes.pop(partition, None)
            if lane is not None:
                lane.closed = True
                if lane.task is not None:
                    lane.task.cancel()

    # -- lag

    async def _watching_lag(self) -> None:
        while True:
            await asyncio.sleep(_LAG_EVERY)
            try:
                await self._measure_lag()
            except Exception as exc:  # noqa: BLE001 - whatever it is: try again, and say why
                self._fails(_MEASURING, exc)
            else:
                self._works(_MEASURING)

    async def _measure_lag(self) -> None:
        topics = dict.fromkeys(self._topics, 0)
        for (topic, _), number in (await self._subscriber.lag()).items():
            topics[topic] = topics.get(topic, 0) + number
        for topic, number in topics.items():
            self._meters.lag(topic, number)

    # -- what others see

    def _fails(self, what: str, exc: Exception) -> None:
        why = _words(exc)
        if self._problems.get(what) != why:
            log.warning(what, reason=why, exc_info=None if isinstance(exc, BusUnavailable) else exc)
        self._problems[what] = why

    def _works(self, what: str) -> None:
        if self._problems.pop(what, ""):
            log.info(f"{what}: no more")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))


def _words(exc: Exception) -> str:
    said = getattr(exc, "reason", "") or str(exc)
    return f"{type(exc).__name__}: {(said.splitlines() or [''])[0]}"[:500]
