"""The unit of work that handlers are given."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from sqlalchemy import Executable, Result, Select, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from moorage.database import cursors
from moorage.database.cursors import CursorRows
from moorage.database.tenancy import Tenancy, TenancyError
from moorage.model import CursorPaging, Paging
from moorage.module import DeclarationError

if TYPE_CHECKING:
    from moorage.events.event import Event

T = TypeVar("T")
TENANCY: Final = "moorage_tenancy"
"""Key of a session's `Tenancy` in its ``info``."""


@dataclass(frozen=True)
class Rows(Generic[T]):
    """One page of a query's rows; answered as a `moorage.Page` of the model that the handler declares."""

    items: Sequence[T]
    limit: int
    offset: int
    total: int


class Db:
    """The module's database for one request: everything in it is committed together, or not at all.

    The transaction begins with the first statement, and ends when the handler has returned (commit, before
    the answer is sent) or raised (rollback). ``session`` is SQLAlchemy's own, for what is not offered here.

    Its methods raise what SQLAlchemy raises; the host turns a lost connection into 503, a violated unique
    constraint into 409, a statement that took too long into 504.
    """

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def get(self, table: type[T], id: object, *, lock: bool = False) -> T | None:
        """The row with this primary key; ``lock``: against changes by others until the commit."""
        return await self.session.get(table, id, with_for_update=lock or None)

    async def add(self, row: T) -> T:
        """Insert *row*; it then has what the database computed."""
        self.session.add(row)
        await self.session.flush()
        return row

    async def delete(self, row: object) -> None:
        """Delete *row*."""
        await self.session.delete(row)
        await self.session.flush()

    async def flush(self) -> None:
        """Send pending changes to the database now."""
        await self.session.flush()

    async def scalars(self, query: Select[T]) -> Sequence[T]:
        """What *query* selects (``select(Post)``, ``select(Post.id)``), from all rows."""
        return (await self.session.scalars(query)).all()

    async def scalar(self, query: Select[T]) -> T | None:
        """What *query* selects, from its first row; None if there is none."""
        return (await self.session.scalars(query.limit(1))).first()

    async def execute(self, statement: Executable, parameters: Any = None) -> Result[Any]:
        """Run any statement."""
        return await self.session.execute(statement, parameters)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A part that may fail alone: if the block raises, what it did is undone, and the rest goes on."""
        async with self.session.begin_nested():
            yield

    @property
    def tenant(self) -> str | None:
        """Whose rows of `Tenanted` tables are seen and written; ``None``: nobody's."""
        return self._tenancy.tenant

    async def use_tenant(self, tenant: str) -> None:
        """Work for *tenant* from here on: for a job, or an anonymous route that learned it from what it loaded.

        A request of a user is for the tenant that the access token names already; an event for the one that its
        emitter worked for.

        Raises:
            TenancyError: it works for another tenant, or for all.
        """
        await self._turn_to(self._tenancy.naming(tenant))

    async def use_system(self, why: str) -> None:
        """See the rows of all tenants from here on, in tables whose migration says ``tenanted(…, system=True)``.

        A row that is added must name its ``tenant_id`` unless the unit of work has a tenant.

        Args:
            why: the reason, for whoever reviews the code and for the log.

        Raises:
            TenancyError: there is no reason.
        """
        await self._turn_to(self._tenancy.widened(why))

    @property
    def _tenancy(self) -> Tenancy:
        tenancy: Tenancy = self.session.info[TENANCY]
        return tenancy

    async def _turn_to(self, wanted: Tenancy) -> None:
        if self.session.in_nested_transaction():
            # Rolled back, it would take the setting with it, and leave us believing in it.
            raise TenancyError("say for whom to work before the savepoint, not inside it")
        self.session.info[TENANCY] = wanted
        if self.session.in_transaction():  # its start has set what was known then
            for name, value in wanted.settings().items():
                await self.session.execute(select(func.set_config(name, value, True)))

    async def emit(self, event: "Event") -> None:
        """Tell other modules that *event* happened, if and when this unit of work commits; never otherwise.

        Events with one key are handled in the order of their commits.

        Raises:
            DeclarationError: its type is not in the Module's ``spec.events.publishes``.
            ValueError: it is too large, or its key is.
        """
        outbox = self.session.info.get("moorage_outbox")
        if outbox is None:
            raise DeclarationError(
                f"{type(event).__qualname__} cannot be emitted: the Module declares no events; add "
                f"spec.events.publishes: [{event.__event_type__}]"
            )
        outbox.collect(self.session.sync_session, event, self.tenant)

    @overload
    async def page(self, query: Select[T], paging: Paging) -> Rows[T]: ...
    @overload
    async def page(self, query: Select[T], paging: CursorPaging) -> CursorRows[T]: ...
    async def page(self, query: Select[T], paging: Paging | CursorPaging) -> Rows[T] | CursorRows[T]:
        """The part of *query* that *paging* asks for, and, with an offset, the number of all its rows.

        The primary key is added as the last thing to order by: without a total order, rows would be on two
        pages or on none.

        Raises:
            Invalid: the cursor is none of this query's.
        """
        if isinstance(paging, CursorPaging):
            return await cursors.page(self.session, query, paging)
        total = await self.session.scalar(select(func.count()).select_from(query.order_by(None).subquery()))
        entity = query.column_descriptions[0]["entity"]
        tie_breaker = inspect(entity).primary_key if entity is not None else ()
        part = query.order_by(*tie_breaker).limit(paging.limit).offset(paging.offset)
        items = (await self.session.scalars(part)).all()
        return Rows(items, paging.limit, paging.offset, total or 0)
