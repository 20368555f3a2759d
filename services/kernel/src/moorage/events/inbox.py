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

from moorage.events.bus import Partition

LONGEST_REASON: Final = 500

State = Literal["done", "retry", "dead"]

# Two statements: what the second one sees is decided when it begins, which must be after the lock.
_LOCK: Final = """
SELECT set_config('idle_in_transaction_session_timeout', $2, true), count(pg_advisory_xact_lock(number))
FROM unnest($1::bigint[]) AS number
"""
_KNOWN: Final = """
SELECT i.source, i.id, i.topic, NULL AS key
FROM unnest($1::text[], $2::text[], $3::text[]) AS e (source, id, topic) JOIN moorage_inbox i USING (source, id, topic)
UNION ALL
SELECT DISTINCT NULL, NULL, i.topic, i.key
FROM unnest($4::text[], $5::text[]) AS e (topic, key) JOIN moorage_inbox i USING (topic, key) WHERE i.state = 'retry'
"""
_ADD: Final = """
INSERT INTO moorage_inbox
    (source, id, type, topic, partition, position, key, state, attempts, next_at, reason, event)
SELECT e.source, e.id, e.type, e.topic, e.partition, e.position, e.key, e.state, e.attempts,
       clock_timestamp() + make_interval(secs => e.pause), e.reason, e.event
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::bigint[], $7::text[], $8::text[], $9::int[],
            $10::float8[], $11::text[], $12::text[])
     WITH ORDINALITY
     AS e (source, id, type, topic, partition, position, key, state, attempts, pause, reason, event, n)
ORDER BY e.n
"""
_PROMOTE: Final = """
UPDATE moorage_inbox i SET next_at = clock_timestamp()
FROM (SELECT DISTINCT ON (topic, key) source, id, topic, next_at FROM {those} WHERE state = 'retry'
      ORDER BY topic, key, seq) AS head
WHERE i.source = head.source AND i.id = head.id AND i.topic = head.topic AND head.next_at IS NULL AND i.state = 'retry'
"""
_PROMOTE_ALL: Final = _PROMOTE.format(those="moorage_inbox")
_PROMOTE_SOME: Final = _PROMOTE.format(
    those="unnest($1::text[], $2::text[]) AS k (topic, key) JOIN moorage_inbox USING (topic, key)"
)

Key = tuple[str, str]
"""Topic and key: what order holds for."""
Name = tuple[str, str, str]
"""Source, id and topic: what an event is known by. Who publishes another topic can write any source and id there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One event, as the inbox keeps it."""

    source: str
    id: str
    type: str
    topic: str
    partition: int
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

    events: frozenset[Name]
    """Those that came before."""
    parked: frozenset[Key]
    """Those with events that wait to be handled again."""


def storable(text: str, longest: int | None = None) -> str:
    """*text* as a table can keep it: PostgreSQL's texts hold neither NUL nor surrogates. At most *longest* characters.

    For all that comes from elsewhere, be it quoted in an error: a row that is refused would stop its partition.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:longest]


async def lock(
    connection: AsyncConnection, group: str, partitions: Collection[Partition], *, idle: float
) -> None:
    """Be the only one of *group* who works on *partitions*, until the end of the transaction.

    A process that stands still in the middle would keep them for ever: its connection is cut after *idle* seconds
    without a statement.
    """
    numbers = sorted(_number(f"moorage-inbox\0{group}\0{topic}\0{number}") for topic, number in partitions)
    await connection.exec_driver_sql(_LOCK, (numbers, str(round(idle * 1000))))


def _number(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)


async def known(connection: AsyncConnection, events: Collection[Name], keys: Collection[Key]) -> Known:
    """What is known of *events* and of *keys*."""
    names = ([e[0] for e in events], [e[1] for e in events], [e[2] for e in events])
    values = (*names, [k[0] for k in keys], [k[1] for k in keys])
    answer: Sequence[Any] = (await connection.exec_driver_sql(_KNOWN, values)).all()
    return Known(
        frozenset((source, id, topic) for source, id, topic, _ in answer if source is not None),
        frozenset((topic, key) for source, _, topic, key in answer if source is None),
    )


async def add(connection: AsyncConnection, rows: Sequence[Row]) -> None:
    """Note *rows*, in their order; raises the database's error if one is there already."""
    if not rows:
        return
    columns: tuple[Any, ...] = (
        [r.source for r in rows],
        [r.id for r in rows],
        [r.type for r in rows],
        [r.topic for r in rows],
        [r.partition for r in rows],
        [r.position for r in rows],
        [r.key for r in rows],
        [r.state for r in rows],
        [r.attempts for r in rows],
        [r.pause for r in rows],
        [r.reason for r in rows],
        [r.event for r in rows],
    )
    await connection.exec_driver_sql(_ADD, columns)


async def promote(connection: AsyncConnection, keys: Collection[Key] | None) -> None:
    """Give the first parked event of each of *keys* (``None``: of all) a time, if it has none.

    Called in a transaction of its own after each that may have left a key without: then one of two that came at the
    same moment sees what the other has committed.
    """
    if keys is None:
        await connection.exec_driver_sql(_PROMOTE_ALL)
    else:
        await connection.exec_driver_sql(_PROMOTE_SOME, ([k[0] for k in keys], [k[1] for k in keys]))
