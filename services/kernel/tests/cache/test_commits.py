"""A write commits first, then it invalidates: on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from moorage import Cache
from moorage import trace as traces
from moorage.cache.cache import Engine
from moorage.cache.keys import Names
from moorage.cache.memory import MemoryStore
from moorage.cache.observed import Counts
from moorage.cache.port import asks
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.pool import Pool
from moorage.metrics import Metrics
from moorage.scope import Scope, Stack, current
from moorage.testing import SchemaDatabase

pytestmark = pytest.mark.postgres


@pytest.fixture
async def pool(moorage_database: SchemaDatabase) -> AsyncIterator[Pool]:
    connection = await asyncpg.connect(moorage_database.owner_dsn)
    await connection.execute(
        "CREATE TABLE price (id int PRIMARY KEY, cents int); INSERT INTO price VALUES (1, 10)"
    )
    await connection.close()
    pool = Pool(DatabaseSettings(dsn=SecretStr(moorage_database.app_dsn)), name="test")
    yield pool
    await pool.close()


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    async def run(*_: Any) -> bytes:
        raise AssertionError("nothing here has parameters")

    counts = Counts(Metrics(module="m", version="1", revision=""))
    engine = Engine(MemoryStore(max_entries=100, max_bytes=10**6), counts, run, asks)
    yield Cache(engine, Names(b"i:n:m:"))
    await engine.close()


async def price(pool: Pool) -> int:
    async with pool.unit() as db:
        return int((await db.execute(text("SELECT cents FROM price"))).scalar_one())


async def cached(cache: Cache, pool: Pool) -> int:
    return await cache.get_or_compute("price", lambda: price(pool), tags=["prices"])


async def raise_price(db: Any, cents: int) -> None:
    await db.execute(text("UPDATE price SET cents = :cents"), {"cents": cents})


async def test_an_entry_goes_with_the_commit_and_not_before(pool: Pool, cache: Cache) -> None:
    assert await cached(cache, pool) == 10
    async with pool.unit() as db:
        await raise_price(db, 20)
        cache.invalidate_after(db, "prices")
        assert await cached(cache, pool) == 10, "what is not committed is nobody's business"
    assert await cached(cache, pool) == 20


async def test_what_others_compute_while_it_commits_is_not_kept(pool: Pool, cache: Cache) -> None:
    """The reader has read the old price when the writer commits, and would keep it after the invalidation."""
    read, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> int:
        cents = await price(pool)
        read.set()
        await go_on.wait()
        return cents

    reading = asyncio.create_task(cache.get_or_compute("price", slowly, tags=["prices"]))
    await read.wait()
    async with pool.unit() as db:
        await raise_price(db, 20)
        cache.invalidate_after(db, "prices")
    go_on.set()
    assert await reading == 10
    assert await cached(cache, pool) == 20


async def test_a_rollback_ends_nothing(pool: Pool, cache: Cache) -> None:
    await cached(cache, pool)
    with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
        async with pool.unit() as db:
            await raise_price(db, 20)
            cache.delete_after(db, "price")
            raise RuntimeError
    assert await cache.get("price") == 10


async def test_a_commit_in_the_middle_ends_what_was_named_before_it(pool: Pool, cache: Cache) -> None:
    await cached(cache, pool)
    await cache.set("other", 1)
    async with pool.unit() as db:
        await raise_price(db, 20)
        cache.delete_after(db, "price")
        await db.session.commit()
        assert await cache.get("price") is None
        await db.execute(text("SELECT 1"))
        cache.delete_after(db, "other")
        await db.session.rollback()
        await db.execute(text("SELECT 1"))
    assert await cache.get("other") == 1


async def test_a_savepoint_is_no_commit(pool: Pool, cache: Cache) -> None:
    await cached(cache, pool)
    async with pool.unit() as db:
        async with db.session.begin_nested():
            await raise_price(db, 20)
            cache.delete_after(db, "price")
        assert await cache.get("price") == 10
        with pytest.raises(RuntimeError):
            async with db.session.begin_nested():
                raise RuntimeError
    assert await cache.get("price") is None


async def test_within_the_unit_of_work_that_changed_it_nothing_is_found_and_nothing_kept(
    pool: Pool, cache: Cache
) -> None:
    """It sees its own change, which the others must not see before the commit, if there is one at all."""
    await cached(cache, pool)
    scope = Scope(stack=Stack(), groups={}, trace=traces.new(), request_id="r")
    token = current.set(scope)
    try:
        with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
            async with pool.unit() as db:
                await raise_price(db, 20)
                cache.invalidate_after(db, "prices")

                async def mine() -> int:
                    return int((await db.execute(text("SELECT cents FROM price"))).scalar_one())

                assert await cache.get_or_compute("price", mine, tags=["prices"]) == 20
                raise RuntimeError
    finally:
        current.reset(token)
    assert await cache.get("price") == 10
    assert await cached(cache, pool) == 10
