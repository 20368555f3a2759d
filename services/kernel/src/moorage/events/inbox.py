"""The inbox: what was handled, what waits to be handled again, and what was given up. Statements, one for each batch.

* ``done``: handled, in the transaction that holds the handler's own changes. Found again, an event is a duplicate.
* ``retry``: parked. The first parked event of a key has ``next_at``; those behind it have none until it is out of the
  way (`promote`), so that the key's order holds while other keys go on.
* ``dead``: given up; kept with its reason until somebody sends it again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

State = Literal["done", "retry", "dead"]

# Two statements: what the second one sees is decided when it begins, which must be after the lock.
_LOCK: Final = "SELECT set_config('idle_in_transaction_session_timeout', $2, true), pg_advisory_xact_lock($1)"
_KNOWN: Final = """
SELECT i.source, i.id, NULL AS key
FROM unnest($1::text[], $2::text[]) AS e (source, id) JOIN moorage_inbox i USING (source, id)
UNION ALL
SELECT DISTINCT NULL, NULL, key FROM moorage_inbox WHERE state = 'retry' AND topic = $3 AND key = ANY ($4::text[])
"""
_ADD: Final = """
INSERT INTO moorage_inbox
    (source, id, type, topic, partition, position, key, state, attempts, next_at, reason, event)
SELECT e.source, e.id, e.type, $1, $2, e.position, e.key, e.state, e.attempts,
       clock_timestamp() + make_interval(secs => e.pause), e.reason, e.event
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::int[], $10::float8[],
            $11::text[], $12::text[])
     WITH ORDINALITY AS e (source, id, type, position, key, state, attempts, pause, reason, event, n)
ORDER BY e.n
"""
_PROMOTE: Final = """
UPDATE moorage_inbox i SET next_at = clock_timestamp()
FROM (SELECT DISTINCT ON (topic, key) source, id, next_at FROM moorage_inbox
      WHERE state = 'retry' AND ($1::text IS NULL OR (topic = $1 AND key = ANY ($2::text[])))
      ORDER BY topic, key, seq) AS head
WHERE i.source = head.source AND i.id = head.id AND head.next_at IS NULL AND i.state = 'retry'
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One event, as the inbox keeps it."""

    source: str
    id: str
    type: str
    position: int
    key: str
    state: State = "done"
    attempts: int = 1
    pause: float | None = None
    """Seconds until it is due; ``None``: not by itself."""
    reason: str | None = None
    event: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the inbox knows of a batch."""

    events: frozenset[tuple[str, str]]
    """Source and id of those that came before."""
    parked: frozenset[str]
    """Keys with events that wait to be handled again."""


async def lock(connection: AsyncConnection, group: str, topic: str, partition: int, *, idle: float) -> None:
    """Be the only one of *group* who works on a partition, until the end of the transaction.

    A process that stands still in the middle would keep it for ever: its connection is cut after *idle* seconds without
    a statement.
    """
    name = f"moorage-inbox\0{group}\0{topic}\0{partition}".encode()
    number = int.from_bytes(blake2b(name, digest_size=8).digest(), signed=True)
    await connection.exec_driver_sql(_LOCK, (number, str(round(idle * 1000))))


async def known(connection: AsyncConnection, topic: str, rows: Collection[tuple[str, str, str]]) -> Known:
    """What is known of events, given as (source, id, key)."""
    values = ([r[0] for r in rows], [r[1] for r in rows], topic, list({r[2] for r in rows}))
    answer: Sequence[Any] = (await connection.exec_driver_sql(_KNOWN, values)).all()
    return Known(
        frozenset((source, id) for source, id, _ in answer if source is not None),
        frozenset(key for source, _, key in answer if source is None),
    )


async def add(connection: AsyncConnection, topic: str, partition: int, rows: Sequence[Row]) -> None:
    """Note *rows*, in their order; raises the database's error if one is there already."""
    if not rows:
        return
    columns: tuple[Any, ...] = (
        [r.source for r in rows],
        [r.id for r in rows],
        [r.type for r in rows],
        [r.position for r in rows],
        [r.key for r in rows],
        [r.state for r in rows],
        [r.attempts for r in rows],
        [r.pause for r in rows],
        [r.reason for r in rows],
        [r.event for r in rows],
    )
    await connection.exec_driver_sql(_ADD, (topic, partition, *columns))


async def promote(connection: AsyncConnection, topic: str | None = None, keys: Collection[str] = ()) -> None:
    """Give the first parked event of each of *keys* (``topic`` ``None``: of all) a time, if it has none.

    Called in a transaction of its own after each that may have left a key without: then one of two that came at the
    same moment sees what the other has committed.
    """
    await connection.exec_driver_sql(_PROMOTE, (topic, list(keys)))
