"""Units of work on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.orm import Mapped, mapped_column

from moorage import Conflict, Invalid, Model, Paging, Table, Unavailable
from moorage.config import ConfigError
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.pool import Pool
from moorage.database.table import metadata_of, uuid7
from moorage.errors import Timeout
from moorage.testing import SchemaDatabase

pytestmark = pytest.mark.postgres


class PoolThing(Table):
    """A table of this test alone."""

    name: Mapped[str] = mapped_column(unique=True)
    size: Mapped[int] = mapped_column(default=1)


@pytest.fixture
async def pool(moorage_database: SchemaDatabase) -> AsyncIterator[Pool]:
    connection = await asyncpg.connect(moorage_database.owner_dsn)
    await connection.execute(
        """
        CREATE TABLE pool_thing (
            id uuid PRIMARY KEY, name text NOT NULL UNIQUE, size integer NOT NULL CHECK (size > 0),
            created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    await connection.close()
    pool = _pool(moorage_database)
    yield pool
    await pool.close()


def _pool(database: SchemaDatabase, **settings: object) -> Pool:
    values = {"dsn": SecretStr(database.app_dsn), **settings}
    return Pool(DatabaseSettings.model_validate(values), name="test")


async def _names(pool: Pool) -> list[str]:
    async with pool.unit() as db:
        return list(await db.scalars(select(PoolThing.name).order_by(PoolThing.name)))


async def test_what_the_block_did_is_committed_at_its_end(pool: Pool) -> None:
    async with pool.unit() as db:
        row = await db.add(PoolThing(name="a"))
        assert row.id.version == 7
        assert row.created_at == row.updated_at
        assert await _names(pool) == []
    assert await _names(pool) == ["a"]


async def test_an_error_leaves_nothing(pool: Pool) -> None:
    with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
        async with pool.unit() as db:
            await db.add(PoolThing(name="a"))
            raise RuntimeError
    assert await _names(pool) == []


async def test_a_change_moves_updated_at(pool: Pool) -> None:
    async with pool.unit() as db:
        row = await db.add(PoolThing(name="a"))
    async with pool.unit() as db:
        again = await db.get(PoolThing, row.id)
        assert again is not None
        again.size = 5
        await db.flush()
        assert again.updated_at > row.updated_at
        assert again.created_at == row.created_at


class Change(Model):
    name: str
    size: int = 7


async def test_assign_sets_what_the_model_has(pool: Pool) -> None:
    async with pool.unit() as db:
        row = await db.add(PoolThing(name="a"))
        row.assign(Change(name="b"))
        assert (row.name, row.size) == ("b", 7)


async def test_delete_and_get(pool: Pool) -> None:
    async with pool.unit() as db:
        row = await db.add(PoolThing(name="a"))
        await db.delete(row)
        assert await db.get(PoolThing, row.id) is None
        assert await db.scalar(select(PoolThing)) is None


async def test_pages_have_a_total_order_and_the_number_of_all(pool: Pool) -> None:
    """Equal rows are ordered by the primary key, so that none is on two pages."""
    async with pool.unit() as db:
        for number in range(25):
            await db.add(PoolThing(name=f"{number:02}", size=number % 2 + 1))
        seen: list[UUID] = []
        for offset in (0, 10, 20):
            query = select(PoolThing).order_by(PoolThing.size)
            page = await db.page(query, Paging(limit=10, offset=offset))
            assert (page.total, page.limit, page.offset) == (25, 10, offset)
            seen += [row.id for row in page.items]
        assert len(set(seen)) == 25
        few = await db.page(select(PoolThing).where(PoolThing.size == 2), Paging(limit=1))
        assert (few.total, len(few.items)) == (12, 1)


async def test_the_app_role_cannot_change_the_tables_shape(pool: Pool) -> None:
    async with pool.unit() as db:
        with pytest.raises(Exception, match="must be owner"):
            await db.execute(text("ALTER TABLE pool_thing ADD COLUMN evil text"))


async def test_a_taken_value_is_a_conflict_that_quotes_nothing(pool: Pool) -> None:
    with pytest.raises(Conflict) as caught:  # noqa: PT012 - the unit of work has several steps
        async with pool.unit() as db:
            await db.add(PoolThing(name="hunter2"))
            await db.add(PoolThing(name="hunter2"))
    assert (caught.value.code, caught.value.details) == (
        "already_exists",
        {"constraint": "pool_thing_name_key"},
    )
    assert "hunter2" not in caught.value.message


async def test_a_value_that_a_check_refuses_is_invalid(pool: Pool) -> None:
    with pytest.raises(Invalid):
        async with pool.unit() as db:
            await db.add(PoolThing(name="a", size=0))


@pytest.mark.parametrize(
    "change", [{"name": "a\x00b"}, {"size": 2**40}, {"name": "a", "size": 2**70}], ids=["NUL", "int4", "int8"]
)
async def test_a_value_that_no_column_holds_is_invalid(pool: Pool, change: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        async with pool.unit() as db:
            await db.add(PoolThing(**{"name": "x"} | change))


async def test_libpqs_parameters_are_understood(pool: Pool, moorage_database: SchemaDatabase) -> None:
    dsn = SecretStr(moorage_database.app_dsn + "?sslmode=prefer&application_name=mine")
    other = Pool(DatabaseSettings(dsn=dsn), name="test")
    await other.ping()
    await other.close()


async def test_a_statement_that_takes_too_long_is_a_timeout(
    pool: Pool, moorage_database: SchemaDatabase
) -> None:
    quick = _pool(moorage_database, statement_timeout="100ms")
    with pytest.raises(Timeout):
        async with quick.unit() as db:
            await db.execute(text("SELECT pg_sleep(10)"))
    await quick.close()


async def test_behind_a_pooler_the_timeout_is_set_for_each_transaction(
    pool: Pool, moorage_database: SchemaDatabase
) -> None:
    direct = SecretStr(moorage_database.app_dsn + "?application_name=other")
    pooled = _pool(moorage_database, direct_dsn=direct, statement_timeout="150ms")
    async with pooled.unit() as db:
        assert await db.session.scalar(text("SHOW statement_timeout")) == "150ms"
        await db.session.commit()
        assert await db.session.scalar(text("SHOW statement_timeout")) == "150ms"
    await pooled.close()


async def test_the_tenant_is_set_in_every_transaction_and_gone_after_it(pool: Pool) -> None:
    """A commit in mid-request starts a new transaction; it has to know the tenant, too."""
    asked = text("SELECT nullif(current_setting('moorage.tenant', true), '')")
    async with pool.unit(tenant="acme") as db:
        assert await db.session.scalar(asked) == "acme"
        await db.session.commit()
        assert await db.session.scalar(asked) == "acme"
    async with pool.unit() as db:
        assert await db.session.scalar(asked) is None


async def test_more_units_than_connections_wait_and_then_get_503(
    pool: Pool, moorage_database: SchemaDatabase
) -> None:
    small = _pool(moorage_database, max_connections=1, acquire_timeout="100ms")
    async with small.unit() as db:
        await db.scalar(select(PoolThing))
        with pytest.raises(Unavailable) as caught:
            async with small.unit() as other:
                await other.scalar(select(PoolThing))
    assert "Retry-After" in caught.value.headers
    await small.close()


async def test_connections_that_the_server_cut_are_replaced(
    pool: Pool, moorage_database: SchemaDatabase
) -> None:
    driver = await _driver(pool)
    ended = asyncio.Event()
    driver.add_termination_listener(lambda _: ended.set())
    admin = await asyncpg.connect(moorage_database.admin_dsn)
    await admin.execute("SELECT pg_terminate_backend($1)", driver.get_server_pid())
    await admin.close()
    await asyncio.wait_for(ended.wait(), 10)
    assert await _names(pool) == []


async def _driver(pool: Pool) -> Any:
    """The one connection that *pool* has, idle."""
    async with pool.engine.connect() as connection:
        return (await connection.get_raw_connection()).driver_connection


async def test_a_connection_that_the_server_is_about_to_end_is_503_and_then_replaced(
    moorage_database: SchemaDatabase,
) -> None:
    """Its last word is here, the end of the connection not yet."""
    address = urlsplit(moorage_database.app_dsn)
    clients: list[asyncio.StreamWriter] = []

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection(address.hostname, address.port)
        clients.append(writer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, to_server))
                both.create_task(_pump(there, writer))
        finally:
            writer.close()
            to_server.close()

    proxy = await asyncio.start_server(between, "127.0.0.1", 0)
    host, port = proxy.sockets[0].getsockname()
    dsn = address._replace(netloc=f"{address.username}:{address.password}@{host}:{port}").geturl()
    pool = Pool(DatabaseSettings(dsn=SecretStr(dsn)), name="test")
    driver = await _driver(pool)
    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    clients[0].write(b"E" + (len(fields) + 4).to_bytes(4) + fields)
    await clients[0].drain()
    await asyncio.sleep(0.1)
    assert not driver.is_closed()
    with pytest.raises(Unavailable):
        await _one(pool)
    assert await _one(pool) == 1
    assert len(clients) == 2
    await pool.close()
    proxy.close()


async def _pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        to.write(data)
        await to.drain()
    to.write_eof()


async def _one(pool: Pool) -> int:
    async with pool.unit() as db:
        return int(await db.session.scalar(text("SELECT 1")) or 0)


async def test_a_connection_cut_in_the_middle_is_503(pool: Pool, moorage_database: SchemaDatabase) -> None:
    with pytest.raises(Unavailable):  # noqa: PT012 - the unit of work has several steps
        async with pool.unit() as db:
            pid = await db.session.scalar(text("SELECT pg_backend_pid()"))
            admin = await asyncpg.connect(moorage_database.admin_dsn)
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
            await admin.close()
            await asyncio.sleep(0.1)
            await db.scalar(select(PoolThing))


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "no such file"), ConnectionRefusedError(), BrokenPipeError(), TimeoutError()],
)
async def test_what_the_block_itself_raises_is_not_the_databases(pool: Pool, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:  # noqa: PT012 - the unit of work has several steps
        async with pool.unit() as db:
            await db.add(PoolThing(name="a"))
            raise error
    assert caught.value is error
    assert await _names(pool) == []


async def test_a_database_that_cannot_be_reached_is_503() -> None:
    nowhere = Pool(DatabaseSettings(dsn=SecretStr("postgresql://u:p@127.0.0.1:1/none")), name="test")
    with pytest.raises(Unavailable):
        async with nowhere.unit() as db:
            await db.scalar(select(PoolThing))
    await nowhere.close()


async def test_a_database_that_does_not_answer_in_time_is_503() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    dsn = SecretStr(f"postgresql://u:p@{host}:{port}/none")
    silent = Pool(DatabaseSettings.model_validate({"dsn": dsn, "connect_timeout": "100ms"}), name="test")
    with pytest.raises(Unavailable):
        async with silent.unit() as db:
            await db.scalar(select(PoolThing))
    await silent.close()
    server.close()


async def test_waiting_says_for_what_and_shows_no_password(moorage_database: SchemaDatabase) -> None:
    host = moorage_database.app_dsn.rpartition("@")[2]
    nowhere = moorage_database.app_dsn.replace(host, "127.0.0.1:1/none")
    pool = Pool(DatabaseSettings(dsn=SecretStr(nowhere)), name="test")
    reports: list[str] = []
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.wait(reports.append), 0.5)
    await pool.close()
    assert reports[0].startswith("waiting for the database at 127.0.0.1:1/none: ")
    password = moorage_database.app_dsn.partition("@")[0].rpartition(":")[2]
    assert password not in "".join(reports)


@pytest.mark.parametrize(
    "dsn", ["mysql://u:hunter2@h/d", "nonsense hunter2", "postgresql+psycopg://u:hunter2@h/d", ""]
)
def test_a_dsn_of_another_kind_is_refused_without_showing_it(dsn: str) -> None:
    with pytest.raises(ConfigError, match=r"database\.dsn") as caught:
        Pool(DatabaseSettings(dsn=SecretStr(dsn)), name="test")
    assert "hunter2" not in str(caught.value)


def test_ids_sort_by_the_time_they_were_made() -> None:
    first = uuid7()
    ids = [uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(id.version == 7 and id.variant == "specified in RFC 4122" for id in ids)
    assert first.int >> 80 <= ids[-1].int >> 80


def test_tables_belong_to_their_package() -> None:
    assert PoolThing.metadata is metadata_of(PoolThing.__module__.partition(".")[0])
    assert PoolThing.__tablename__ == "pool_thing"


async def test_every_statement_is_observed(pool: Pool, moorage_database: SchemaDatabase) -> None:
    seen: list[tuple[str, float]] = []
    settings = DatabaseSettings(dsn=SecretStr(moorage_database.app_dsn))
    watched = Pool(settings, name="test", observe=lambda kind, seconds: seen.append((kind, seconds)))
    async with watched.unit() as db:
        await db.add(PoolThing(name="a"))
        await db.scalars(select(PoolThing))
    await watched.close()
    assert {"insert", "select"} <= {kind for kind, _ in seen}
    assert all(0 <= seconds < 10 for _, seconds in seen)
