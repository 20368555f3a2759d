"""Lanes: each partition's events are handled one after the other.

A batch has events of one partition or several, and is one transaction: a lock on the partitions, one look into the
inbox, the handlers, one insert into the inbox.
If a handler fails, all of it is undone; then those before it are handled again, the failed one alone, and those behind
it, so that each failure costs little. One that fails alone is parked with its key.

An event that kills the process raises nothing. So a process leaves a mark where it begins on a partition (`marks`). One
that finds such a mark at or behind what is still to do handles its first batch one by one, a mark before each; an event
that was begun alone several times is parked without being run, for `Retries`, which counts each try before it begins.

Whoever was paused in the middle and goes on after the partition was given to another waits for the lock (or has lost
his connection), then finds everything in the inbox.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog
from structlog.contextvars import bound_contextvars

from moorage.database.db import Db
from moorage.errors import Timeout, Unavailable
from moorage.events import inbox, marks
from moorage.events.bus import Delivery, Partition
from moorage.events.event import Reject
from moorage.events.handling import Handling, Item
from moorage.events.inbox import Row
from moorage.events.meters import Outcome

log = structlog.get_logger("moorage.events")

_NO_REASON: Final = "it failed, and the reason cannot be stored"
_IDLE_MARGIN: Final = 5.0
"""Seconds between the end of a handler's time and that of the patience with its connection."""
_DEATHS: Final = 2
"""So many times an event may be begun alone by processes that die of it, or are ended by others meanwhile."""


class HandlerFailed(Exception):  # noqa: N818 - says what happened
    """A handler of a batch raised; ``index`` says which, ``cause`` what."""

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(f"event {index} of the batch")
        self.index = index
        self.cause = cause


class ProcessDied(Exception):  # noqa: N818 - says what happened
    """Nothing raised it: a handler was begun again and again, and neither ended nor failed."""

    def __init__(self) -> None:
        super().__init__("the process died while handling it, again and again")


@dataclass(frozen=True)
class Rules:
    """What happens to events of one type that fail; pauses in seconds."""

    retries: int = 5
    dead_letter: bool = True
    first: float = 1.0
    longest: float = 300.0

    def pause(self, attempts: int) -> float:
        """Until the next try: doubled each time, and spread so that those who failed together do not come together."""
        spread = random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        return float(min(self.first * 2 ** (attempts - 1), self.longest) * spread)

    def verdict(self, attempts: int, cause: BaseException) -> tuple[inbox.State, Outcome]:
        """What becomes of an event that has failed *attempts* times, the last time with *cause*."""
        if attempts <= self.retries and not isinstance(cause, Reject):
            return "retry", "parked"
        return ("dead", "dead") if self.dead_letter else ("done", "dropped")


def reason(cause: BaseException) -> str:
    """What is kept of an error: its type and first line, which may quote what came from anywhere."""
    try:
        said = (str(cause).splitlines() or [""])[0]
    except Exception:  # noqa: BLE001 - somebody's __str__; the partition must not stand still for it
        said = "(it cannot be shown)"
    if isinstance(cause, TimeoutError) and not said:
        said = "the handler took too long"
    kind = "rejected" if isinstance(cause, Reject) else type(cause).__name__
    return inbox.storable(f"{kind}: {said}", inbox.LONGEST_REASON)


@dataclass
class Work:
    """What the lanes of one process share.

    Args:
        group: namespace and module; names locks.
        rules: by type.
        failed: told of each error that a handler raised.
        parked: called when something was parked here.
    """

    handling: Handling
    group: str
    rules: dict[str, Rules]
    failed: Callable[[BaseException, Item], None] = lambda *_: None
    parked: Callable[[], None] = lambda: None

    @property
    def idle(self) -> float:
        """Seconds after which a transaction without statements is cut."""
        return self.handling.timeout + _IDLE_MARGIN

    def report(self, item: Item, cause: BaseException, outcome: Outcome, attempts: int) -> None:
        """Log and count a failure; the log and who is told know whose request led to it."""
        self.handling.meters.handled(item.type, outcome)
        fields = {"event_type": item.type, "event_id": item.id, "attempts": attempts, "reason": reason(cause)}
        with bound_contextvars(**({} if item.envelope is None else item.envelope.context)):
            if outcome == "parked":
                log.warning("an event is parked", **fields)
            else:
                log.error("an event is given up", kept=outcome == "dead", **fields)
            if not isinstance(cause, Reject):
                self.failed(cause, item)


class Lanes:
    """Handles batches of events; never two at once of one partition."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._settled: set[Partition] = set()
        """Partitions of which this process has handled something that was new."""

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Handle, park or give up each of *deliveries*; when this returns their positions may be committed.

        Raises:
            AppError: the database is not there; nothing is lost, and all of it can be handed in again.
        """
        items = self._work.handling.sort(deliveries)
        partitions = {(item.topic, item.partition) for item in items}
        if partitions <= self._settled:
            await self._handle(items)
        else:
            await self._begin_on(partitions, items)

    async def _begin_on(self, partitions: set[Partition], items: list[Item]) -> None:
        """Handle *items*, the first ones of some of *partitions* here, so that dying of one leaves a trace."""
        async with self._work.handling.pool.unit() as db:
            connection = await db.session.connection()
            known = (await inbox.known(connection, [item.name for item in items], ())).events
            marked = await marks.read(connection, partitions)
        first: dict[Partition, int] = {}
        for item in items:
            if item.name not in known:
                first.setdefault((item.topic, item.partition), item.position)
        if any(marked.get(partition, -1) >= position for partition, position in first.items()):
            await self._one_by_one(items, known)
        else:
            for partition, position in first.items():
                await self._note(partition, position)
            await self._handle(items)
        self._settled |= first.keys()

    async def _one_by_one(self, items: list[Item], known: frozenset[inbox.Name]) -> None:
        for item in items:
            if item.name in known or await self._note((item.topic, item.partition), item.position) <= _DEATHS:
                await self._handle([item])
            else:
                # Not given up here, whatever its retries: those processes may have been ended by somebody else.
                await self._park(item, ProcessDied(), give_up=False)

    async def _note(self, partition: Partition, position: int) -> int:
        async with self._work.handling.pool.unit() as db:
            return await marks.note(await db.session.connection(), partition, position)

    async def _handle(self, items: list[Item]) -> None:
        while items:
            failure = await self._try(items)
            if failure is None:
                return
            index, cause = failure
            if len(items) == 1:
                await self._park(items[0], cause)
                return
            if index is None:
                index = len(items) // 2
                await self._handle(items[:index])
                items = items[index:]
            else:
                await self._handle(items[:index])
                await self._handle(items[index : index + 1])
                items = items[index + 1 :]

    async def _try(self, items: list[Item]) -> tuple[int | None, BaseException] | None:
        """Handle *items* together; returns which failed with what, if one did (``None``: only the commit says so)."""
        try:
            await self._together(items)
        except HandlerFailed as failed:
            return failed.index, failed.cause
        except (Unavailable, Timeout):
            raise
        except Exception as exc:  # noqa: BLE001 - what the commit found, such as a deferred constraint
            return None, exc
        return None

    async def _together(self, items: list[Item]) -> None:
        """All of *items* in one transaction.

        Raises:
            HandlerFailed: nothing was done.
        """
        outcomes: list[tuple[str, Outcome]] = []
        behind: set[inbox.Key] = set()
        async with self._work.handling.pool.unit() as db:
            known = await self._begin(db, items)
            rows: dict[inbox.Name, Row] = {}
            for index, item in enumerate(items):
                name = item.name
                if name in known.events or name in rows:
                    outcomes.append((item.type, "duplicate"))
                elif item.problem:
                    rows[name] = self._dead(item)
                    outcomes.append((item.type, "dead"))
                elif (item.topic, item.key) in known.parked:
                    rows[name] = _row(item, "retry", attempts=0)
                    behind.add((item.topic, item.key))
                    outcomes.append((item.type, "parked"))
                else:
                    await self._run(db, item, index)
                    rows[name] = _row(item, "done", attempts=1)
                    outcomes.append((item.type, "handled"))
            await inbox.add(await db.session.connection(), list(rows.values()))
        for type, outcome in outcomes:
            self._work.handling.meters.handled(type, outcome)
        if behind:
            await self._promote(behind)

    async def _run(self, db: Db, item: Item, index: int) -> None:
        try:
            await self._work.handling.run(db, item, attempt=1)
        except Exception as exc:
            raise HandlerFailed(index, exc) from exc

    async def _park(self, item: Item, cause: BaseException, *, give_up: bool = True) -> None:
        """Note that *item* failed once: to be tried again, or given up if it may be."""
        rules = self._work.rules.get(item.type, Rules())
        state, outcome = rules.verdict(1, cause) if give_up else ("retry", "parked")
        pause = rules.pause(1) if state == "retry" else None
        row = _row(item, state, attempts=1, pause=pause, reason=reason(cause))
        try:
            new = await self._add(item, row)
        except (Unavailable, Timeout):
            raise
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with it: the partition must not stand still for it
            fields = {"event_type": item.type, "event_id": item.id, "reason": f"{type(exc).__name__}: {exc}"}
            log.error("the reason of a failure cannot be stored", **fields)
            new = await self._add(item, replace(row, reason=_NO_REASON))
        if new:
            self._work.report(item, cause, outcome, 1)
            self._work.parked()

    async def _add(self, item: Item, row: Row) -> bool:
        """Note *row* of *item*; returns False if it is known by now."""
        async with self._work.handling.pool.unit() as db:
            if (await self._begin(db, [item])).events:
                return False
            await inbox.add(await db.session.connection(), [row])
        return True

    async def _promote(self, keys: set[inbox.Key]) -> None:
        async with self._work.handling.pool.unit() as db:
            await inbox.promote(await db.session.connection(), keys)
        self._work.parked()

    async def _begin(self, db: Db, items: Sequence[Item]) -> inbox.Known:
        """Lock the partitions of *items*, then see what is known of them."""
        connection = await db.session.connection()
        partitions = {(item.topic, item.partition) for item in items}
        await inbox.lock(connection, self._work.group, partitions, idle=self._work.idle)
        keys = {(item.topic, item.key) for item in items}
        return await inbox.known(connection, [item.name for item in items], keys)

    def _dead(self, item: Item) -> Row:
        why = inbox.storable(item.problem, inbox.LONGEST_REASON)
        log.error(
            "an event cannot be read",
            event_type=item.type,
            event_id=item.id,
            source=item.source,
            reason=why,
        )
        return _row(item, "dead", attempts=1, reason=why)


def _row(
    item: Item, state: inbox.State, *, attempts: int, pause: float | None = None, reason: str | None = None
) -> Row:
    kept = None if state == "done" else item.text
    place = (item.topic, item.partition, item.position)
    return Row(item.source, item.id, item.type, *place, item.key, state, attempts, pause, reason, kept)
