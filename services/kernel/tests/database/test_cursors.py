"""Pages by cursor: every row once, whatever happens meanwhile."""

import base64
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Mapped, mapped_column

from moorage import CursorPaging, Invalid, Table
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.pool import Pool
from moorage.testing import SchemaDatabase

pytestmark = pytest.mark.postgres
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


class CursorThing(Table):
    """A table of this test alone."""

    n: Mapped[int] = mapped_column(unique=True)
    rank: Mapped[int | None]
    seen: Mapped[datetime | None]
    price: Mapped[Decimal]


@pytest.fixture
async def pool(moorage_database: SchemaDatabase) -> AsyncIterator[Pool]:
    connection = await asyncpg.connect(moorage_database.owner_dsn)
    await connection.execute(
        """
        CREATE TABLE cursor_thing (
            id uuid PRIMARY KEY, n integer UNIQUE, rank integer, seen timestamptz, price numeric,
            created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    await connection.close()
    settings = DatabaseSettings.model_validate({"dsn": SecretStr(moorage_database.app_dsn)})
    pool = Pool(settings, name="test")
    await add(pool, range(25))
    yield pool
    await pool.close()


async def add(pool: Pool, numbers: Sequence[int]) -> None:
    async with pool.unit() as db:
        for n in numbers:
            await db.add(
                CursorThing(
                    n=n,
                    rank=None if n % 5 == 0 else n % 3,
                    seen=None if n % 4 == 0 else NOW + timedelta(microseconds=n % 6),
                    price=Decimal(n % 4) / 10,
                )
            )


async def pages(pool: Pool, query: Select[tuple[CursorThing]], limit: int = 4) -> list[int]:
    """The numbers of all pages, one after the other."""
    found: list[int] = []
    cursor = None
    while True:
        async with pool.unit() as db:
            part = await db.page(query, CursorPaging(limit=limit, cursor=cursor))
        assert len(part.items) <= limit
        found += [thing.n for thing in part.items]
        cursor = part.next_cursor
        if cursor is None:
            return found
        assert len(part.items) == limit


@pytest.mark.parametrize(
    "order",
    [
        [],
        [CursorThing.n.desc()],
        [CursorThing.rank],
        [CursorThing.rank.desc()],
        [CursorThing.rank.desc().nulls_last(), CursorThing.n],
        [CursorThing.rank.asc().nulls_first(), CursorThing.seen.desc()],
        [CursorThing.seen.desc(), CursorThing.rank.asc(), CursorThing.price.desc()],
        [func.coalesce(CursorThing.rank, 7).desc()],
        [CursorThing.price, CursorThing.seen.asc().nulls_first()],
    ],
    ids=str,
)
async def test_the_pages_together_are_the_whole_list_in_its_order(pool: Pool, order: list[Any]) -> None:
    query = select(CursorThing).where(CursorThing.n < 23).order_by(*order)
    async with pool.unit() as db:
        whole = [thing.n for thing in await db.scalars(query.order_by(CursorThing.id))]
    assert len(whole) == 23
    for limit in (1, 4, 22, 23, 100):
        assert await pages(pool, query, limit) == whole


async def test_what_comes_and_goes_meanwhile_neither_repeats_nor_skips_the_rest(pool: Pool) -> None:
    query = select(CursorThing).order_by(CursorThing.n)
    async with pool.unit() as db:
        first = await db.page(query, CursorPaging(limit=10))
    await add(pool, [-3, -2, -1, 100])
    async with pool.unit() as db:
        # The very row that the cursor points to may go.
        await db.execute(text("DELETE FROM cursor_thing WHERE n IN (2, 9, 15)"))
    async with pool.unit() as db:
        rest = await db.page(query, CursorPaging(limit=100, cursor=first.next_cursor))
    assert [thing.n for thing in rest.items] == [*range(10, 15), *range(16, 25), 100]
    assert rest.next_cursor is None


def encoded(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


async def test_a_cursor_that_is_none_is_refused(pool: Pool) -> None:
    query = select(CursorThing).order_by(CursorThing.n)
    async with pool.unit() as db:
        good = (await db.page(query, CursorPaging(limit=1))).next_cursor
        other = (
            await db.page(query.order_by(None).order_by(CursorThing.rank), CursorPaging(limit=1))
        ).next_cursor
    assert good is not None
    version, mark, number, identity = json.loads(base64.urlsafe_b64decode(good + "=="))
    bad = [
        "",
        "x",
        "é",
        good[:-3],
        other,
        encoded(),
        encoded(version + 1, mark, number, identity),
        encoded(version, mark, "1", identity),
        encoded(version, mark, number, "no uuid"),
        encoded(version, mark, number),
        encoded(version, mark, [number], identity),
        base64.urlsafe_b64encode(b"[" * 1200).decode(),
    ]
    for cursor in bad:
        with pytest.raises(Invalid) as refused:
            async with pool.unit() as db:
                await db.page(query, CursorPaging(cursor=cursor))
        assert refused.value.fields.keys() == {"cursor"}, cursor
    async with pool.unit() as db:
        assert (await db.page(query, CursorPaging(cursor=encoded(version, mark, 22, identity)))).items[
            -1
        ].n == 24
    with pytest.raises(Invalid):
        async with pool.unit() as db:
            await db.page(query, CursorPaging(cursor=encoded(version, mark, 2**70, identity)))


async def test_an_order_without_a_cursor_is_the_authors_mistake(pool: Pool) -> None:
    async with pool.unit() as db:
        with pytest.raises(ValueError, match="no cursor for an order by"):
            await db.page(select(CursorThing).order_by(text("n")), CursorPaging())
        with pytest.raises(ValueError, match="a query of a table"):
            await db.page(select(func.now()), CursorPaging())
