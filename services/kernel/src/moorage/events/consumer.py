"""The consumer: a member of the module's group on the bus; a lane for each of its partitions."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from moorage.events.bus import BusUnavailable, Delivery, Partition, PartitionLost, Subscriber
from moorage.events.lane import Lane, Work
from moorage.events.meters import Meters

log = structlog.get_logger("moorage.events")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_LAG_EVERY: Final = 10.0
_FULL: Final = 2
"""Batches that a lane keeps at most before its partition is paused."""
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
class _Running:
    """A lane at work: what waits for it, and the task that handles it."""

    lane: Lane
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
        self._work = work
        self._meters = meters
        self._options = options
        self._lanes: dict[Partition, _Running] = {}
        self._owned: frozenset[Partition] = frozenset()
        self._slots = asyncio.Semaphore(options.concurrency)
        self._done: dict[Partition, int] = {}
        self._some_done = asyncio.Event()
        self._committing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.problem = ""
        """Why nothing comes from the bus; empty: nothing is wrong."""

    async def open(self) -> None:
        """Begin; a bus that is away is waited for in the background."""
        self._start(self._fetching(), "events consumer")
        self._start(self._committing_forever(), "events positions")
        self._start(self._watching_lag(), "events lag")

    async def close(self) -> None:
        """Fetch no more, let the batches that are under way finish, commit their positions, leave the group."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._finish(list(self._lanes))
        with contextlib.suppress(BusUnavailable):
            await self._commit()
        await self._subscriber.close()

    # -- from the bus to the lanes

    async def _fetching(self) -> None:
        await self._patiently(lambda: self._subscriber.open(self._topics, self._changed))
        while True:
            await self._patiently(self._fetch)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work*, again and again while the bus is away."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await work()
            except Exception as exc:
                why = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
                if why != self.problem:
                    if isinstance(exc, BusUnavailable):
                        log.warning("no events come from the bus", reason=why)
                    else:
                        log.exception("events cannot be fetched")
                self.problem = why
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                if self.problem:
                    log.info("events come from the bus again")
                self.problem = ""
                return

    async def _fetch(self) -> None:
        got = await self._subscriber.fetch(self._options.batch, self._options.wait)
        for partition, deliveries in got.items():
            if partition in self._owned and deliveries:
                await self._put(partition, deliveries)

    async def _put(self, partition: Partition, deliveries: Sequence[Delivery]) -> None:
        running = self._lanes.get(partition)
        if running is None:
            running = self._lanes[partition] = _Running(Lane(partition, self._work))
        running.queue.extend(deliveries)
        if running.task is None:
            running.task = asyncio.create_task(self._work_off(partition, running), name=f"events {partition}")
        if not running.paused and len(running.queue) > _FULL * self._options.batch:
            running.paused = True
            await self._subscriber.pause([partition])

    async def _changed(self, owned: frozenset[Partition]) -> None:
        """The bus has shared the partitions out anew: finish what is under way on those that go."""
        going = [partition for partition in self._lanes if partition not in owned]
        self._owned = owned
        if going:
            await self._finish(going)
            with contextlib.suppress(BusUnavailable):
                await self._commit()
        log.info("partitions are shared out", partitions=sorted(f"{topic}/{n}" for topic, n in owned))

    # -- lanes

    async def _work_off(self, partition: Partition, running: _Running) -> None:
        """Handle what waits, a batch at a time; ends when nothing does."""
        pause = _FIRST_PAUSE
        while running.queue and not running.closed:
            size = min(self._options.batch, len(running.queue))
            batch = [running.queue[index] for index in range(size)]
            try:
                async with self._slots:
                    await running.lane.handle(batch)
            except Exception as exc:  # noqa: BLE001 - the batch stays, whatever happened to the database
                log.warning("events wait", partition=f"{partition[0]}/{partition[1]}", reason=_words(exc))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            for _ in range(size):
                running.queue.popleft()
            self._done[partition] = batch[-1].position + 1
            self._some_done.set()
            if running.paused and len(running.queue) < self._options.batch and not running.closed:
                running.paused = False
                await self._subscriber.resume([partition])
        running.task = None

    async def _finish(self, partitions: Collection[Partition]) -> None:
        """Let the batch that is under way on each of *partitions* finish, or undo it when the time is up."""
        tasks = []
        for partition in partitions:
            running = self._lanes.pop(partition)
            running.closed = True
            if running.task is not None:
                tasks.append(running.task)
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
            except BusUnavailable:  # fetching says so, too
                await asyncio.sleep(_LONGEST_PAUSE)
                self._some_done.set()

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
            running = self._lanes.pop(partition, None)
            if running is not None:
                running.closed = True
                if running.task is not None:
                    running.task.cancel()

    # -- lag

    async def _watching_lag(self) -> None:
        while True:
            await asyncio.sleep(_LAG_EVERY)
            with contextlib.suppress(BusUnavailable):
                topics = dict.fromkeys(self._topics, 0)
                for (topic, _), number in (await self._subscriber.lag()).items():
                    topics[topic] = topics.get(topic, 0) + number
                for topic, number in topics.items():
                    self._meters.lag(topic, number)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))


def _words(exc: Exception) -> str:
    said = getattr(exc, "reason", "") or str(exc)
    return f"{type(exc).__name__}: {(said.splitlines() or [''])[0]}"[:500]
