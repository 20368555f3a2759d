"""Units of work beside the one that a handler's `Db` is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from moorage.database.db import Db
from moorage.database.pool import DeadlineOf, Pool
from moorage.database.tenancy import TenancyError
from moorage.scope import current

T = TypeVar("T")


class Database:
    """For what should not be one transaction from beginning to end: a WebSocket, a long stream, a loop over tenants.

    A handler, or a factory of the process, asks for it by type::

        async def follow(socket: WebSocket[Ask, Tell], database: Database) -> None:
            async for message in socket:
                async with database.unit() as db:
                    await db.add(Note(text=message.text))

    Its units work for the tenant of the request or event in which they are opened, and within its deadline.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def unit(self, *, tenant: str | None = None, system: str | None = None) -> AsyncIterator[Db]:
        """A unit of work: committed at the end of the block, rolled back if it raises.

        Args:
            tenant: for whom, where the request or event (or a task outside of any) is for nobody.
            system: why it needs the rows of all tenants; see `Db.use_system`.

        Raises:
            TenancyError: the request or event is for another tenant.
            AppError: what the database's errors mean to a caller.
        """
        own, deadline = _here()
        if own is not None and tenant not in (None, own):
            raise TenancyError(f"what runs here is for tenant {own!r}; it cannot work for tenant {tenant!r}")
        async with self._pool.unit(tenant=tenant or own, system=system, deadline=deadline) as db:
            yield db

    async def repeatable(self, work: Callable[[Db], Awaitable[T]], *, attempts: int = 3) -> T:
        """Do *work* in a unit of its own, up to *attempts* times while others' changes get in its way.

        For work that changes nothing but the database: it is begun again after a serialisation failure, a deadlock or a
        lock that could not be had. Any other error is raised at once.
        """
        tenant, deadline = _here()
        return await self._pool.repeatable(work, attempts=attempts, tenant=tenant, deadline=deadline)


def _here() -> tuple[str | None, DeadlineOf | None]:
    """Tenant and deadline of what runs here."""
    scope = current.get()
    return (None, None) if scope is None else (scope.tenant, lambda: scope.deadline)
