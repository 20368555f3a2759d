"""Where a process began on a partition: the trace that is left when an event kills the process that handles it.

One row for each partition in ``moorage_lease``: ``holder`` is a position, ``token`` how often handling began there.
It is written in a transaction of its own *before* the handler runs, so it outlives a process that was killed.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage.events.bus import Partition

_READ: Final = "SELECT name, holder::bigint FROM moorage_lease WHERE name = ANY ($1::text[])"
_NOTE: Final = """
INSERT INTO moorage_lease AS l (name, holder, token, until) VALUES ($1, $2, 1, '-infinity')
ON CONFLICT (name) DO UPDATE
SET token = CASE WHEN l.holder = excluded.holder THEN l.token + 1 ELSE 1 END, holder = excluded.holder
RETURNING token
"""


def _name(partition: Partition) -> str:
    topic, number = partition
    return f"lane {topic}/{number}"


async def read(connection: AsyncConnection, partitions: Collection[Partition]) -> Mapping[Partition, int]:
    """The positions that were noted last, of those of *partitions* that have one."""
    names = {_name(partition): partition for partition in partitions}
    rows: Any = (await connection.exec_driver_sql(_READ, (list(names),))).all()
    return {names[name]: int(position) for name, position in rows}


async def note(connection: AsyncConnection, partition: Partition, position: int) -> int:
    """Note that handling begins at *position*; returns how many times in succession it was noted."""
    answer = await connection.exec_driver_sql(_NOTE, (_name(partition), str(position)))
    return int(answer.scalar_one())
