"""The unit of work that handlers are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Executable, Result, Select, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from moorage.model import Paging

T = TypeVar("T")


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

    async def page(self, query: Select[T], paging: Paging) -> Rows[T]:
        """The part of *query* that *paging* asks for, and the number of all its rows.

        The primary key is added as the last thing to order by: without a total order, rows would be on two
        pages or on none.
        """
        total = await self.session.scalar(select(func.count()).select_from(query.order_by(None).subquery()))
        entity = query.column_descriptions[0]["entity"]
        tie_breaker = inspect(entity).primary_key if entity is not None else ()
        part = query.order_by(*tie_breaker).limit(paging.limit).offset(paging.offset)
        items = (await self.session.scalars(part)).all()
        return Rows(items, paging.limit, paging.offset, total or 0)
