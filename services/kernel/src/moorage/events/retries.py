"""Parked events: handled again when they are due, by whichever process comes first; and the inbox kept small.

A due event is claimed by one statement, which counts the try and moves the event's time beyond the handler's: if the
process dies, it is due again, and the try has counted. The number of tries is also the claim's token: who finds another
number has lost his claim.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Final

import structlog

from moorage.events import inbox
from moorage.events.bus import Delivery
from moorage.events.handling import Item
from moorage.events.lane import HandlerFailed, ProcessDied, Rules, Work, reason
from moorage.events.lease import Lease, by_engine
from moorage.events.meters import Meters

log = structlog.get_logger("moorage.events")

_CLAIM: Final = """
UPDATE moorage_inbox i
SET attempts = i.attempts + 1, next_at = clock_timestamp() + make_interval(secs => $1)
FROM (SELECT source, id, topic FROM moorage_inbox WHERE state = 'retry' AND next_at <= clock_timestamp()
      ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED) AS due
WHERE i.source = due.source AND i.id = due.id AND i.topic = due.topic
RETURNING i.source, i.id, i.type, i.topic, i.partition, i.position, i.key, i.attempts, i.event
"""
_HOLD: Final = """
SELECT set_config('idle_in_transaction_session_timeout', $5, true) FROM moorage_inbox
WHERE source = $1 AND id = $2 AND topic = $3 AND attempts = $4 AND state = 'retry' FOR UPDATE
"""
_SETTLE: Final = """
UPDATE moorage_inbox
SET state = $5, next_at = clock_timestamp() + make_interval(secs => $6::float8), reason = $7,
    event = CASE WHEN $5 = 'done' THEN NULL ELSE event END
WHERE source = $1 AND id = $2 AND topic = $3 AND attempts = $4 AND state = 'retry'
"""
_NEXT: Final = """
SELECT EXTRACT(epoch FROM min(next_at) - clock_timestamp()) FROM moorage_inbox
WHERE state = 'retry' AND next_at IS NOT NULL
"""
_COUNTS: Final = """
SELECT (SELECT count(*) FROM moorage_inbox WHERE state = 'retry'),
       (SELECT count(*) FROM moorage_inbox WHERE state = 'dead')
"""
_CLEAN: Final = """
DELETE FROM moorage_inbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM moorage_inbox
    WHERE state = $1 AND received_at < clock_timestamp() - make_interval(secs => $2) LIMIT $3))
"""
_CHUNK: Final = 10_000
_WORKERS: Final = 4
_KEEP_EVERY: Final = 30.0
_CLEAN_EVERY: Final = 600.0
_PAUSE: Final = 1.0
_LOST_PAUSE: Final = 0.05
_DEATHS: Final = 2
"""So many tries beyond its own an event has that came to no end: a process may die of something else, too."""


@dataclass(frozen=True)
class RetryOptions:
    """Times in seconds; ``dead_retention`` ``None``: for ever."""

    poll: float = 1.0
    lease: float = 15.0
    drain: float = 10.0
    retention: float = 604_800.0
    dead_retention: float | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    source: str
    id: str
    type: str
    topic: str
    partition: int
    position: int
    key: str
    attempts: int
    event: str

    @property
    def token(self) -> tuple[str, str, str, int]:
        return self.source, self.id, self.topic, self.attempts


class Retries:
    """Handles parked events again, from `open` to `close`."""

    def __init__(self, work: Work, meters: Meters, options: RetryOptions) -> None:
        self._work = work
        self._pool = work.handling.pool
        self._meters = meters
        self._options = options
        self._lease = Lease(by_engine(self._pool.engine), "inbox", seconds=options.lease)
        self._tasks: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._cleaned = -_CLEAN_EVERY

    async def open(self) -> None:
        """Begin."""
        self._tasks = [
            asyncio.create_task(self._claiming(), name="events retries"),
            asyncio.create_task(self._keeping(), name="events inbox"),
        ]

    async def close(self) -> None:
        """Claim no more, and let handlers that run finish; those that take too long are undone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self._options.drain)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._lease.release()

    def wake(self) -> None:
        """Something was parked: see when it is due."""
        self._woken.set()

    # -- one claims, a few work

    async def _claiming(self) -> None:
        while True:
            try:
                await self._claim_next()
            except Exception as exc:  # noqa: BLE001 - whatever it is: the events stay where they are
                log.warning("parked events wait", reason=f"{type(exc).__name__}: {exc}"[:500])
                await asyncio.sleep(_PAUSE)

    async def _claim_next(self) -> None:
        if len(self._running) >= _WORKERS:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            return
        left = await self._due_in()
        if left is None or left > 0:
            await self._wait(self._options.poll if left is None else min(left, self._options.poll))
            return
        claim = await self._claim()
        if claim is None:  # another process was faster
            await asyncio.sleep(_LOST_PAUSE)
            return
        task = asyncio.create_task(self._work_on(claim), name=f"event {claim.type}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _due_in(self) -> float | None:
        """Seconds until the next parked event is due; None: there is none."""
        self._woken.clear()
        async with self._pool.engine.connect() as connection:
            left = (await connection.exec_driver_sql(_NEXT)).scalar()
        return None if left is None else float(left)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._woken.wait()

    async def _claim(self) -> _Claim | None:
        async with self._pool.engine.begin() as connection:
            answer = await connection.exec_driver_sql(_CLAIM, (self._work.idle + _PAUSE,))
            row: Any = answer.first()
        return None if row is None else _Claim(*row)

    async def _work_on(self, claim: _Claim) -> None:
        try:
            await self._retry(claim)
        except Exception as exc:  # noqa: BLE001 - such as a database that is away: it is due again by itself
            log.warning(
                "a parked event waits", event_id=claim.id, reason=f"{type(exc).__name__}: {exc}"[:500]
            )

    async def _retry(self, claim: _Claim) -> None:
        place = (claim.topic, claim.partition, claim.position)
        item = self._work.handling.item(Delivery(*place, claim.key, claim.event.encode()))
        if item is None:
            await self._give_up(claim, f"nothing handles {claim.type} any more")
        elif item.problem:
            await self._give_up(claim, item.problem)
        elif claim.attempts > self._rules(claim).retries + 1 + _DEATHS:
            await self._failed(
                claim, item, ProcessDied()
            )  # who fails is judged then; only who dies comes here
        else:
            try:
                if not await self._handle(claim, item):
                    return  # another process has it
            except HandlerFailed as failed:
                await self._failed(claim, item, failed.cause)
            except Exception as exc:  # noqa: BLE001 - what the database said, such as a deferred constraint
                await self._failed(claim, item, exc)
            else:
                self._meters.handled(claim.type, "handled")
        await self._promote(claim)

    async def _handle(self, claim: _Claim, item: Item) -> bool:
        """Call the handler, and note that it was; returns False if another process has the event.

        Raises:
            HandlerFailed: nothing was done.
        """
        async with self._pool.unit() as db:
            connection = await db.session.connection()
            hold = (*claim.token, str(round(self._work.idle * 1000)))
            if (await connection.exec_driver_sql(_HOLD, hold)).first() is None:
                return False
            try:
                await self._work.handling.run(db, item, attempt=claim.attempts)
            except Exception as exc:
                # Wrapped, or the unit of work would take a missing file or the end of the time for the database's.
                raise HandlerFailed(0, exc) from exc
            connection = await db.session.connection()
            answer = await connection.exec_driver_sql(_SETTLE, (*claim.token, "done", None, None))
            if answer.rowcount == 0:
                # The handler committed in the middle, and so gave up its hold on the event.
                raise RuntimeError("another process has handled the event since this handler committed")
        return True

    async def _failed(self, claim: _Claim, item: Item, cause: Exception) -> None:
        rules = self._rules(claim)
        state, outcome = rules.verdict(claim.attempts, cause)
        pause = rules.pause(claim.attempts) if state == "retry" else None
        await self._settle(claim, state, pause, reason(cause))
        self._work.report(item, cause, outcome, claim.attempts)

    def _rules(self, claim: _Claim) -> Rules:
        return self._work.rules.get(claim.type, Rules())

    async def _give_up(self, claim: _Claim, why: str) -> None:
        why = inbox.storable(why, inbox.LONGEST_REASON)
        await self._settle(claim, "dead", None, why)
        self._meters.handled(claim.type, "dead")
        log.error("an event is given up", event_type=claim.type, event_id=claim.id, kept=True, reason=why)

    async def _settle(self, claim: _Claim, state: inbox.State, pause: float | None, why: str) -> None:
        async with self._pool.engine.begin() as connection:
            await connection.exec_driver_sql(_SETTLE, (*claim.token, state, pause, why))

    async def _promote(self, claim: _Claim) -> None:
        async with self._pool.engine.begin() as connection:
            await inbox.promote(connection, [(claim.topic, claim.key)])
        self._woken.set()

    # -- the inbox kept small, by one process

    async def _keeping(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                await self._count()
                if await self._lease.take():
                    async with self._pool.engine.begin() as connection:
                        await inbox.promote(connection, None)  # for keys whose process died before it could
                    await self._clean()
            await asyncio.sleep(_KEEP_EVERY)

    async def _count(self) -> None:
        async with self._pool.engine.connect() as connection:
            row: Any = (await connection.exec_driver_sql(_COUNTS)).one()
        self._meters.waiting(int(row[0]), int(row[1]))

    async def _clean(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._cleaned < _CLEAN_EVERY:
            return
        self._cleaned = now
        await self.clean()

    async def clean(self) -> int:
        """Delete what is older than its retention, in chunks; returns the number of rows."""
        gone = 0
        kinds = [("done", self._options.retention), ("dead", self._options.dead_retention)]
        for state, seconds in kinds:
            while seconds is not None:
                async with self._pool.engine.begin() as connection:
                    answer = await connection.exec_driver_sql(_CLEAN, (state, float(seconds), _CHUNK))
                gone += answer.rowcount
                if answer.rowcount < _CHUNK:
                    break
        if gone:
            log.info("old events are forgotten", number=gone)
        return gone
