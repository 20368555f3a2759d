"""The database port behaves alike on the embedded PostgreSQL 18, on Debian's 15, and through PgBouncer."""

import asyncio
import io
import secrets
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import ForeignKeyConstraint, delete, func, select, text, update
from sqlalchemy.orm import Mapped

from moorage import Conflict, Database, Forbidden, Invalid, Paging, Table, Tenanted
from moorage import trace as traces
from moorage.config import ConfigError
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.migrations import MigrationError, Migrator, Options
from moorage.database.pool import Pool
from moorage.database.tenancy import TenancyError
from moorage.errors import Timeout
from moorage.scope import Scope, Stack, current
from moorage.testing import SchemaDatabase
from rigs.waiting import until

pytestmark = pytest.mark.postgres
BACKENDS = ("embedded", "postgres15", "pgbouncer")


class Shelf(Table, Tenanted):
    """A tenant's."""

    name: Mapped[str]


class Book(Table, Tenanted):
    """A tenant's, on a shelf of the same tenant."""

    title: Mapped[str]
    shelf_id: Mapped[UUID | None]
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "shelf_id"], ["shelf.tenant_id", "shelf.id"], name="fk_book_shelf"
        ),
    )


class Ledger(Table, Tenanted):
    """A tenant's, but the module may ask for the rows of all."""

    amount: Mapped[int]


class Notice(Table):
    """Everybody's."""

    title: Mapped[str]


SCHEMA = """
    op.create_table("shelf", sa.Column("name", sa.String(), nullable=False), *standard_columns())
    tenanted("shelf")
    op.create_table(
        "book", sa.Column("title", sa.String(), nullable=False), sa.Column("shelf_id", sa.Uuid()), *standard_columns()
    )
    tenanted("book")
    op.create_foreign_key("fk_book_shelf", "book", "shelf", ["tenant_id", "shelf_id"], ["tenant_id", "id"])
    op.create_table("ledger", sa.Column("amount", sa.Integer(), nullable=False), *standard_columns())
    tenanted("ledger", system=True)
    op.create_table("notice", sa.Column("title", sa.String(), nullable=False, unique=True), *standard_columns())
"""


@dataclass(frozen=True)
class Backend:
    """A server, and how modules reach it."""

    server_dsn: str
    through: Callable[[str], str]

    @property
    def pooled(self) -> bool:
        """Whether that is another way than the migrator's."""
        return self.through(self.server_dsn) != self.server_dsn


class Library:
    """A database with the tables above."""

    def __init__(self, database: SchemaDatabase, backend: Backend, package: "Package") -> None:
        self.database = database
        self.backend = backend
        self.package = package

    def pool(self, **settings: object) -> Pool:
        """A process's pool; to be closed by who asks."""
        values: dict[str, object] = {"dsn": SecretStr(self.backend.through(self.database.app_dsn))}
        if self.backend.pooled:
            values["direct_dsn"] = SecretStr(self.database.app_dsn)
        return Pool(DatabaseSettings.model_validate(values | settings), name="default/library")

    async def migrate(self, upgrade: str) -> None:
        """Run one more migration, as the owner."""
        self.package.add(upgrade)
        await self.package.migrator(self.database).upgrade()

    async def as_owner(self, statement: str) -> list[tuple[object, ...]]:
        """What a person with the owner's rights sees."""
        connection = await asyncpg.connect(self.database.owner_dsn)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()


class Package:
    """A module's migrations."""

    def __init__(self, root: Path) -> None:
        self.name = f"library_{secrets.token_hex(4)}"
        self.versions = root / self.name / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        (root / self.name / "__init__.py").touch()
        self.count = 0

    def add(self, upgrade: str, *, top: str = "") -> str:
        """One more migration; returns its number."""
        self.count += 1
        number, before = f"{self.count:04}", f"{self.count - 1:04}" if self.count > 1 else None
        body = textwrap.indent(textwrap.dedent(upgrade).strip(), "    ")
        (self.versions / f"{number}_step.py").write_text(
            f'"""Step {number}."""\nimport sqlalchemy as sa\nfrom alembic import op\n'
            f"from moorage.migrations import standard_columns, tenanted, untenanted\n"
            f"revision = {number!r}\ndown_revision = {before!r}\n{top}\ndef upgrade():\n{body}\n"
        )
        return number

    def drop_last(self) -> None:
        """Take the last migration away."""
        (self.versions / f"{self.count:04}_step.py").unlink()
        self.count -= 1

    def migrator(self, database: SchemaDatabase) -> Migrator:
        """For the schema of *database*."""
        self.events: list[dict[str, object]] = []
        options = Options(schema=database.schema)
        return Migrator(self.name, SecretStr(database.owner_dsn), options, self.events.append)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend, started when it is first asked for."""
    if request.param == "embedded":
        return Backend(request.getfixturevalue("moorage_postgres"), lambda dsn: dsn)
    server = request.getfixturevalue("postgres15")
    if request.param == "postgres15":
        return Backend(server, lambda dsn: dsn)
    return Backend(server, request.getfixturevalue("pgbouncer").through)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Package(tmp_path)
    for name in [name for name in sys.modules if name.startswith("library_")]:
        del sys.modules[name]


@pytest.fixture
async def library(backend: Backend, package: Package) -> AsyncIterator[Library]:
    database = await SchemaDatabase.create(backend.server_dsn, "default_library")
    try:
        library = Library(database, backend, package)
        await library.migrate(SCHEMA)
        yield library
    finally:
        await database.drop()


@pytest.fixture
async def pool(library: Library) -> AsyncIterator[Pool]:
    pool = library.pool()
    yield pool
    await pool.close()


async def titles(pool: Pool, tenant: str | None) -> list[str]:
    async with pool.unit(tenant=tenant) as db:
        return list(await db.scalars(select(Book.title).order_by(Book.title)))


# -- units of work


async def test_a_unit_is_committed_as_a_whole_or_not_at_all(pool: Pool) -> None:
    async with pool.unit() as db:
        row = await db.add(Notice(title="kept"))
        assert row.created_at.tzinfo is not None
    with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
        async with pool.unit() as db:
            await db.add(Notice(title="lost"))
            raise RuntimeError
    async with pool.unit() as db:
        assert list(await db.scalars(select(Notice.title))) == ["kept"]


async def test_a_savepoint_fails_alone(pool: Pool) -> None:
    async with pool.unit(tenant="acme") as db:
        await db.add(Book(title="first"))
        with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
            async with db.savepoint():
                await db.add(Book(title="undone"))
                raise RuntimeError
        async with db.savepoint():
            await db.add(Book(title="second"))
        await db.add(Book(title="third"))
    assert await titles(pool, "acme") == ["first", "second", "third"]


async def test_pages_are_of_one_tenant_and_so_is_their_total(pool: Pool) -> None:
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            for number in range(12):
                await db.add(Book(title=f"{tenant} {number:02}"))
    async with pool.unit(tenant="bolt") as db:
        page = await db.page(select(Book).order_by(Book.title), Paging(limit=10, offset=10))
    assert ([book.title for book in page.items], page.total) == (["bolt 10", "bolt 11"], 12)


async def test_errors_of_the_database_are_errors_that_a_caller_understands(
    library: Library, pool: Pool
) -> None:
    async with pool.unit() as db:
        await db.add(Notice(title="taken"))
    with pytest.raises(Conflict):
        async with pool.unit() as db:
            await db.add(Notice(title="taken"))
    with pytest.raises(Invalid):
        async with pool.unit(tenant="acme") as db:
            await db.add(Ledger(amount=2**40))
    with pytest.raises(Invalid, match="refers to something"):
        async with pool.unit(tenant="acme") as db:
            await db.add(Book(title="x", shelf_id=UUID(int=1)))
    assert await titles(pool, "acme") == []


async def test_a_statement_ends_after_its_timeout_and_the_connection_is_usable_again(
    library: Library,
) -> None:
    pool = library.pool(statement_timeout="200ms", max_connections=1)
    with pytest.raises(Timeout):
        async with pool.unit() as db:
            await db.execute(text("SELECT pg_sleep(20)"))
    async with pool.unit() as db:
        assert await db.session.scalar(text("SHOW statement_timeout")) == "200ms"
    await pool.close()


async def test_no_statement_goes_on_past_the_deadline_of_its_scope(pool: Pool) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(Timeout):
        async with pool.unit(deadline=lambda: began + 0.3) as db:
            await db.execute(text("SELECT pg_sleep(20)"))
    assert loop.time() - began < 5


async def test_a_deadlock_is_told_to_be_repeated_and_a_repeatable_unit_is(pool: Pool) -> None:
    async with pool.unit() as db:
        first, second = await db.add(Notice(title="a")), await db.add(Notice(title="b"))
    met = asyncio.Barrier(2)
    runs = 0

    async def both(one: UUID, other: UUID) -> None:
        async def work(db: object) -> None:
            nonlocal runs
            runs += 1
            await db.execute(
                update(Notice).where(Notice.id == one).values(title=func.concat(Notice.title, "!"))
            )
            if runs <= 2:
                await met.wait()
            await db.execute(
                update(Notice).where(Notice.id == other).values(title=func.concat(Notice.title, "!"))
            )

        await pool.repeatable(work)

    await asyncio.gather(both(first.id, second.id), both(second.id, first.id))
    assert runs == 3
    async with pool.unit() as db:
        assert list(await db.scalars(select(Notice.title).order_by(Notice.title))) == ["a!!", "b!!"]


async def test_more_work_than_connections_waits_its_turn(library: Library) -> None:
    pool = library.pool(max_connections=3, acquire_timeout="60s")

    async def one(number: int) -> None:
        async with pool.unit(tenant=f"t{number}") as db:
            await db.add(Book(title=str(number)))

    await asyncio.gather(*(one(number) for number in range(40)))
    assert pool.connections.checkedout() == 0
    assert await library.as_owner("SELECT count(*) FROM book") == [(40,)]
    await pool.close()


async def test_connections_that_were_cut_are_replaced_and_idle_ones_closed(library: Library) -> None:
    pool = library.pool(conn_max_idle_time="100ms")
    await titles(pool, "acme")
    admin = await asyncpg.connect(library.database.admin_dsn)
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await admin.close()
    assert await titles(pool, "acme") == []
    assert pool.connections.checkedin() == 1
    reaper = asyncio.create_task(pool.reap())
    await until(lambda: pool.connections.checkedin() == 0)
    assert await titles(pool, "acme") == []
    reaper.cancel()
    await pool.close()


async def test_sessions_are_alike_however_they_are_reached(pool: Pool) -> None:
    async with pool.unit() as db:
        shown = [await db.session.scalar(text(f"SHOW {name}")) for name in ("timezone", "search_path")]
        assert shown == ["UTC", "default_library"]
        assert await db.session.scalar(text("SHOW application_name")) == "default/library"


async def test_prepared_statements_do_not_pile_up_behind_a_pooler(library: Library, pool: Pool) -> None:
    for number in range(30):
        async with pool.unit(tenant="acme") as db:
            await db.scalars(select(Book).where(Book.title == str(number)).limit(number + 1))
    if library.backend.pooled:
        async with pool.unit() as db:
            assert await db.session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0


# -- tenants


async def test_each_tenant_sees_and_changes_its_own_rows_alone_without_naming_itself(pool: Pool) -> None:
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            book = await db.add(Book(title=f"of {tenant}"))
            assert book.tenant_id == tenant
    async with pool.unit(tenant="acme") as db:
        others = await db.execute(update(Book).where(Book.title == "of bolt").values(title="stolen"))
        assert others.rowcount == 0
        assert (await db.execute(delete(Book))).rowcount == 1
        assert await db.get(Book, book.id) is None
    assert await titles(pool, "acme") == []
    assert await titles(pool, "bolt") == ["of bolt"]


async def test_raw_sql_without_a_filter_meets_no_other_tenant(pool: Pool) -> None:
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.add(Book(title=f"of {tenant}"))
    async with pool.unit(tenant="acme") as db:
        assert await db.session.scalar(text("SELECT string_agg(title, ',') FROM book")) == "of acme"
        assert (
            await db.session.scalar(text("SELECT count(*) FROM book WHERE tenant_id = 'bolt' OR true")) == 1
        )
        await db.execute(text("DELETE FROM book"))
    assert await titles(pool, "bolt") == ["of bolt"]


async def test_without_a_tenant_there_are_no_rows_and_none_is_added(pool: Pool) -> None:
    async with pool.unit(tenant="acme") as db:
        await db.add(Book(title="x"))
    assert await titles(pool, None) == []
    assert await titles(pool, "") == []
    for row in (Book(title="y"), Book(title="y", tenant_id="acme")):
        with pytest.raises(Forbidden) as caught:
            async with pool.unit() as db:
                await db.add(row)
        assert caught.value.code == "tenant_required"
        assert "acme" not in caught.value.message


async def test_a_row_for_another_tenant_is_refused(pool: Pool) -> None:
    with pytest.raises(Forbidden):
        async with pool.unit(tenant="acme") as db:
            await db.add(Book(title="x", tenant_id="bolt"))
    async with pool.unit(tenant="acme") as db:
        book = await db.add(Book(title="x"))
    with pytest.raises(Forbidden):  # noqa: PT012 - the unit of work has several steps
        async with pool.unit(tenant="acme") as db:
            mine = await db.get(Book, book.id)
            assert mine is not None
            mine.tenant_id = "bolt"
            await db.flush()
    assert await titles(pool, "bolt") == []


async def test_a_commit_in_mid_request_keeps_the_tenant(pool: Pool) -> None:
    async with pool.unit(tenant="acme") as db:
        await db.add(Book(title="before"))
        await db.session.commit()
        await db.add(Book(title="after"))
        await db.session.rollback()
        await db.add(Book(title="after the rollback"))
        assert len(await db.scalars(select(Book))) == 2
    assert await titles(pool, "acme") == ["after the rollback", "before"]


async def test_a_savepoint_that_is_undone_leaves_the_tenant(pool: Pool) -> None:
    async with pool.unit(tenant="acme") as db:
        with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
            async with db.savepoint():
                await db.add(Book(title="x"))
                raise RuntimeError
        await db.add(Book(title="y"))
    assert await titles(pool, "acme") == ["y"]


async def test_an_anonymous_route_names_the_tenant_it_found(pool: Pool) -> None:
    async with pool.unit() as db:
        await db.add(Notice(title="public"))
        assert db.tenant is None
        await db.use_tenant("acme")
        await db.add(Book(title="x"))
        await db.session.commit()
        assert [book.title for book in await db.scalars(select(Book))] == ["x"]
        await db.use_tenant("acme")
        with pytest.raises(TenancyError, match="cannot turn to tenant 'bolt'"):
            await db.use_tenant("bolt")
    assert await titles(pool, "acme") == ["x"]


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 201])
async def test_a_tenant_has_a_name(pool: Pool, name: str) -> None:
    async with pool.unit() as db:
        with pytest.raises(TenancyError):
            await db.use_tenant(name)


async def test_names_of_tenants_are_values_never_sql_or_scopes(pool: Pool) -> None:
    for name in ("system", "*", "'; SELECT 1 --", "%", "acme ", "ACME"):
        async with pool.unit(tenant=name) as db:
            await db.add(Ledger(amount=1))
            assert await db.session.scalar(select(func.count()).select_from(Ledger)) == 1


async def test_the_system_scope_reaches_tables_that_declare_it_and_no_others(pool: Pool) -> None:
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.add(Ledger(amount=1))
            await db.add(Book(title=tenant))
    async with pool.unit() as db:
        assert await db.scalar(select(func.count()).select_from(Ledger)) == 0
        await db.use_system("add up what everybody owes")
        assert await db.scalar(select(func.sum(Ledger.amount))) == 2
        assert await db.scalar(select(func.count()).select_from(Book)) == 0
        await db.add(Ledger(amount=3, tenant_id="bolt"))
        with pytest.raises(TenancyError):
            await db.use_tenant("acme")
    async with pool.unit(tenant="acme", system="the same, for a user") as db:
        assert await db.scalar(select(func.sum(Ledger.amount))) == 5
        assert (await db.add(Ledger(amount=7))).tenant_id == "acme"
    with pytest.raises(TenancyError, match="needs a reason"):
        async with pool.unit(system=" "):
            pass
    with pytest.raises(Forbidden):
        async with pool.unit(system="a row of nobody's") as db:
            await db.add(Ledger(amount=1))


async def test_neither_scope_can_be_entered_within_a_savepoint(pool: Pool) -> None:
    async with pool.unit() as db, db.savepoint():
        with pytest.raises(TenancyError, match="before the savepoint"):
            await db.use_tenant("acme")


async def test_a_batch_for_several_tenants_is_one_transaction(pool: Pool) -> None:
    async with pool.unit() as db:
        for tenant in ("acme", "bolt", "acme"):
            await pool.switch(db, tenant)
            book = await db.add(Book(title=f"of {tenant}"))
        await pool.switch(db, None)
        assert await db.get(Book, book.id) is None
        assert await titles(pool, "acme") == []
    assert await titles(pool, "acme") == ["of acme", "of acme"]


async def test_units_of_a_scope_are_for_its_tenant(library: Library, pool: Pool) -> None:
    database = Database(pool)
    async with database.unit(tenant="acme") as db:  # a task outside of any request may name whom it works for
        await db.add(Book(title="of acme"))
    async with database.unit() as db:
        assert await db.scalar(select(func.count()).select_from(Book)) == 0
    scope = Scope(stack=Stack(), groups={}, trace=traces.new(), request_id="r", tenant="bolt")
    token = current.set(scope)
    try:
        async with database.unit() as db:
            assert (await db.add(Book(title="of bolt"))).tenant_id == "bolt"
        assert await database.repeatable(lambda db: db.scalar(select(Book.title))) == "of bolt"
        with pytest.raises(TenancyError, match="is for tenant 'bolt'"):
            async with database.unit(tenant="acme"):
                pass
    finally:
        current.reset(token)


async def test_copy_reads_the_tenants_rows_and_cannot_write(library: Library, pool: Pool) -> None:
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.add(Book(title=f"of {tenant}"))
    async with pool.unit(tenant="acme") as db:
        raw = await (await db.session.connection()).get_raw_connection()
        connection = raw.driver_connection
        out = io.BytesIO()
        await connection.copy_from_table("book", columns=["title"], output=out)
        assert out.getvalue() == b"of acme\n"
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await connection.copy_records_to_table("book", records=[("x",)], columns=["title"])


async def test_a_reference_to_another_tenants_row_is_none(pool: Pool) -> None:
    async with pool.unit(tenant="acme") as db:
        shelf = await db.add(Shelf(name="a"))
        await db.add(Book(title="x", shelf_id=shelf.id))
    with pytest.raises(Invalid, match="refers to something"):
        async with pool.unit(tenant="bolt") as db:
            await db.add(Book(title="y", shelf_id=shelf.id))
    async with pool.unit(tenant="bolt") as db:
        await db.execute(delete(Shelf))
    assert await titles(pool, "acme") == ["x"]


async def test_the_owner_backfills_the_rows_of_all_tenants(library: Library, pool: Pool) -> None:
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.add(Book(title=f"of {tenant}"))
    await library.migrate(
        """
        op.add_column("book", sa.Column("length", sa.Integer()))
        op.execute("UPDATE book SET length = length(title)")
        op.alter_column("book", "length", nullable=False)
        """
    )
    assert await library.as_owner("SELECT tenant_id, length FROM book ORDER BY 1") == [
        ("acme", 7),
        ("bolt", 7),
    ]


async def test_a_view_of_the_invokers_rights_shows_the_tenants_rows(library: Library, pool: Pool) -> None:
    await library.migrate(
        'op.execute("CREATE VIEW named WITH (security_invoker = true) AS SELECT title FROM book")'
    )
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.add(Book(title=f"of {tenant}"))
    async with pool.unit(tenant="acme") as db:
        assert (await db.execute(text("SELECT title FROM named"))).scalars().all() == ["of acme"]


async def test_even_a_view_or_function_of_the_owners_made_by_hand_shows_one_tenants_rows(
    library: Library, pool: Pool
) -> None:
    """`moorage migrate` refuses them; the owner's policy is for sessions of the owner alone."""
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.add(Book(title=f"of {tenant}"))
    await library.as_owner("CREATE VIEW wide AS SELECT title FROM book")
    function = "CREATE FUNCTION titles() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS"
    await library.as_owner(f"{function} 'SELECT title FROM default_library.book'")
    for query in ("SELECT title FROM wide", "SELECT titles()"):
        async with pool.unit(tenant="acme") as db:
            assert (await db.execute(text(query))).scalars().all() == ["of acme"]
        async with pool.unit() as db:
            assert (await db.execute(text(query))).scalars().all() == []


async def test_the_app_role_can_neither_switch_the_policy_off_nor_empty_the_table(pool: Pool) -> None:
    for statement in (
        "ALTER TABLE book DISABLE ROW LEVEL SECURITY",
        "DROP POLICY moorage_tenant ON book",
        "CREATE POLICY open ON book USING (true)",
        "TRUNCATE book",
        "CREATE VIEW mine AS SELECT * FROM book",
    ):
        with pytest.raises(Exception, match=r"must be owner|permission denied"):
            async with pool.unit(tenant="acme") as db:
                await db.execute(text(statement))


async def test_a_role_that_passes_the_policies_by_is_refused_at_the_start(
    library: Library, pool: Pool
) -> None:
    await pool.refuse_bypass()
    for dsn, why in ((library.database.admin_dsn, "superuser"), (library.database.owner_dsn, "owner")):
        connection = dsn + "?options=-csearch_path%3Ddefault_library"
        wide = Pool(DatabaseSettings(dsn=SecretStr(connection)), name="default/library")
        with pytest.raises(ConfigError, match=rf"passes row-level security by \({why}\).*table book"):
            await wide.refuse_bypass()
        await wide.close()


async def test_many_tenants_on_few_connections_never_meet(library: Library) -> None:
    """Two server connections behind PgBouncer, fifty tenants at once, with commits, rollbacks and errors between."""
    pool = library.pool(max_connections=20, acquire_timeout="60s")
    tenants = [f"tenant-{number}" for number in range(50)]

    async def one(tenant: str) -> None:
        for turn in range(4):
            async with pool.unit(tenant=tenant) as db:
                await db.add(Book(title=tenant))
                await db.session.commit()
                assert set(await db.scalars(select(Book.tenant_id))) == {tenant}
            if turn == 1:
                with pytest.raises(Exception, match="division by zero"):
                    async with pool.unit(tenant=tenant) as db:
                        await db.execute(text("SELECT 1/0"))
            async with pool.unit() as db:
                assert await db.scalar(select(func.count()).select_from(Book)) == 0

    await asyncio.gather(*map(one, tenants))
    rows = await library.as_owner("SELECT tenant_id, count(*) FROM book GROUP BY 1 HAVING count(*) <> 4")
    assert rows == []
    await pool.close()


# -- what migrations are refused


@pytest.mark.parametrize(
    ("upgrade", "said"),
    [
        (
            'op.create_table("pen", sa.Column("tenant_id", sa.Text()))',
            r"table pen: .*no row-level.*tenanted\('pen'\)",
        ),
        ('op.execute("ALTER TABLE book NO FORCE ROW LEVEL SECURITY")', "its owner passes by"),
        ('op.execute("ALTER TABLE book DISABLE ROW LEVEL SECURITY")', "no row-level security"),
        ('op.execute("DROP POLICY moorage_tenant ON book")', "has no policy moorage_tenant"),
        (
            'op.execute("ALTER POLICY moorage_tenant ON book USING (true)")',
            "has another policy moorage_tenant",
        ),
        ('op.execute("DROP POLICY moorage_owner ON book")', "moorage_owner"),
        ('op.execute("ALTER POLICY moorage_owner ON book USING (true)")', "moorage_owner"),
        ('op.execute("CREATE POLICY wide ON book USING (true)")', "wide lets rows through"),
        ('op.execute("CREATE VIEW v AS SELECT title FROM book")', r"view v: .*security_invoker"),
        (
            'op.execute("CREATE VIEW inner_v WITH (security_invoker) AS SELECT title FROM book");'
            'op.execute("CREATE VIEW outer_v AS SELECT title FROM inner_v")',
            "view outer_v",
        ),
        ('op.execute("CREATE MATERIALIZED VIEW m AS SELECT title FROM book")', "materialized view m"),
        (
            'op.execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT 1 $$")',
            r"function f\(\)",
        ),
        (
            'op.create_foreign_key("bad", "book", "shelf", ["shelf_id"], ["id"])',
            r"foreign key bad of table book: .*\(tenant_id, shelf_id\) referring to shelf \(tenant_id, id\)",
        ),
    ],
)
async def test_a_migration_by_which_tenants_would_meet_is_undone(
    library: Library, package: Package, upgrade: str, said: str
) -> None:
    package.add(upgrade)
    with pytest.raises(MigrationError, match=rf"(?s)0002.*{said}"):
        await package.migrator(library.database).upgrade()
    assert (await package.migrator(library.database).status()).current == "0001"
    package.drop_last()
    await library.migrate("pass")


async def test_what_is_meant_is_let_through(library: Library, package: Package) -> None:
    await library.migrate(
        """
        op.create_table("customer", sa.Column("tenant_id", sa.Text(), primary_key=True))
        untenanted("customer", "the list of tenants: read before one is known")
        op.execute("CREATE POLICY business_hours ON book AS RESTRICTIVE USING (true)")
        op.execute("CREATE VIEW notices AS SELECT title FROM notice")
        op.create_foreign_key("to_all", "book", "notice", ["title"], ["title"])
        op.create_unique_constraint("one_name", "shelf", ["name"])
        """
    )
    warned = [event["message"] for event in package.events if event["event"] == "warning"]
    assert len(warned) == 1
    assert "unique one_name of table shelf" in str(warned[0])


async def test_a_partitioned_table_and_its_partitions_keep_tenants_apart(
    library: Library, package: Package, pool: Pool
) -> None:
    parts = """
        op.execute("CREATE TABLE entry (id uuid, day date, text text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)")
        tenanted("entry", key=("id", "day"))
        op.execute("CREATE TABLE entry_26 PARTITION OF entry FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')")
        """
    package.add(parts)
    with pytest.raises(MigrationError, match=r"table entry_26: .*no row-level security"):
        await package.migrator(library.database).upgrade()
    package.drop_last()
    await library.migrate(parts + 'tenanted("entry_26", key=())')
    for tenant in ("acme", "bolt"):
        async with pool.unit(tenant=tenant) as db:
            await db.execute(text("INSERT INTO entry VALUES (gen_random_uuid(), '2026-05-05', 'x')"))
    async with pool.unit(tenant="acme") as db:
        for table in ("entry", "entry_26"):
            assert await db.session.scalar(text(f"SELECT count(*) FROM {table}")) == 1


async def test_a_table_with_rows_becomes_tenanted(library: Library, pool: Pool) -> None:
    async with pool.unit() as db:
        await db.add(Notice(title="old"))
    with pytest.raises(MigrationError, match="contains null values"):
        await library.migrate('tenanted("notice")')
    library.package.drop_last()
    await library.migrate("""tenanted("notice", existing="a:b's")""")
    async with pool.unit(tenant="a:b's") as db:
        assert await db.session.scalar(text("SELECT title FROM notice")) == "old"
    assert await library.as_owner("SELECT tenant_id FROM notice") == [("a:b's",)]


async def test_the_tenants_index_is_used_with_and_without_the_system_scope(
    library: Library, pool: Pool
) -> None:
    connection = await asyncpg.connect(library.database.owner_dsn)
    for table, columns, values in (("book", "title", "'x'"), ("ledger", "amount", "1")):
        await connection.execute(
            f"INSERT INTO {table} (id, tenant_id, {columns}) "
            f"SELECT gen_random_uuid(), 't' || n % 1000, {values} FROM generate_series(1, 20000) n; ANALYZE {table}"
        )
    await connection.close()
    for table in ("book", "ledger"):
        async with pool.unit(tenant="t7") as db:
            plan = "\n".join((await db.execute(text(f"EXPLAIN SELECT * FROM {table}"))).scalars())
        assert f"uq_{table}_tenant_id_id" in plan, plan
