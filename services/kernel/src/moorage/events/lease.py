"""Leases: what only one of a module's processes may do at a time."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
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

Fetch = Callable[..., Awaitable[Sequence[Any]]]
"""Runs a statement with its values, as a transaction of its own; gives the rows."""

_PART: Final = 3
"""A lease is renewed after this part of its time, so that one late renewal does not lose it."""


class Lease:
    """One name in the module's schema that at most one process holds, by the database's clock.

    Whoever holds it may be paused at any point and go on later, believing that he still holds it. What must not happen
    then has to be fenced: a statement that joins `FENCE` does nothing for a holder whose token is not the last one.

    Args:
        fetch: the connections by which it is taken, renewed and let go.
        seconds: after which it is free if it was not renewed.
    """

    FENCE: Final = "EXISTS (SELECT FROM moorage_lease l WHERE l.name = $1 AND l.token = $2)"

    def __init__(self, fetch: Fetch, name: str, *, seconds: float) -> None:
        self._fetch = fetch
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
        rows = await self._fetch(_TAKE, self.name, self._holder, float(self._seconds))
        self.token = int(rows[0][0]) if rows else None
        self._taken = began
        return self.token is not None

    async def release(self) -> None:
        """Let another process take it at once."""
        if self.token is not None:
            self.token = None
            await self._fetch(_RELEASE, self.name, self._holder)


def by_engine(engine: AsyncEngine) -> Fetch:
    """The connections of *engine*, for a lease that may wait behind others who use them."""

    async def fetch(statement: str, *values: object) -> Sequence[Any]:
        async with engine.begin() as connection:
            answer = await connection.exec_driver_sql(statement, values)
            return answer.all() if answer.returns_rows else []

    return fetch
