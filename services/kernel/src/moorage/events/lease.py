"""Leases: what only one of a module's processes may do at a time."""

import time
from typing import Final
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

_TAKE: Final = """
INSERT INTO moorage_lease AS l (name, holder, token, until)
VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder,
    token = l.token + CASE WHEN l.holder = excluded.holder THEN 0 ELSE 1 END,
    until = excluded.until
WHERE l.holder = excluded.holder OR l.until < clock_timestamp()
RETURNING token
"""
_RELEASE: Final = "UPDATE moorage_lease SET until = '-infinity' WHERE name = $1 AND holder = $2"
_PART: Final = 3
"""A lease is renewed after this part of its time, so that one late renewal does not lose it."""


class Lease:
    """One name in the module's schema that at most one process holds, by the database's clock.

    Whoever holds it may be paused at any point and go on later, believing that he still holds it. What must not happen
    then has to be fenced: a statement that joins `FENCE` does nothing for a holder whose token is not the last one.

    Args:
        seconds: after which it is free if it was not renewed.
    """

    FENCE: Final = "EXISTS (SELECT FROM moorage_lease l WHERE l.name = $1 AND l.token = $2)"

    def __init__(self, engine: AsyncEngine, name: str, *, seconds: float) -> None:
        self._engine = engine
        self.name = name
        self._seconds = seconds
        self._holder = uuid4().hex
        self._taken = 0.0
        self.token: int | None = None
        """While this process believes to hold it; rises with each change of hands."""

    @property
    def fresh(self) -> bool:
        """Whether it is held and need not be renewed yet."""
        return self.token is not None and time.monotonic() - self._taken < self._seconds / _PART

    async def take(self) -> bool:
        """Take or renew it; returns whether it is this process's."""
        began = time.monotonic()
        async with self._engine.begin() as connection:
            answer = await connection.exec_driver_sql(_TAKE, (self.name, self._holder, float(self._seconds)))
            token = answer.scalar()
        self.token = None if token is None else int(token)
        self._taken = began
        return self.token is not None

    async def release(self) -> None:
        """Let another process take it at once."""
        if self.token is not None:
            self.token = None
            async with self._engine.begin() as connection:
                await connection.exec_driver_sql(_RELEASE, (self.name, self._holder))
