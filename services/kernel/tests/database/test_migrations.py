"""Migrations on a real PostgreSQL: in order, one migrator at a time, nothing half-made."""

import asyncio
import json
import secrets
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from moorage.database.migrations import MigrationError, Migrator, Options, as_sql
from moorage.database.platform import PREFIX
from moorage.testing import SchemaDatabase

pytestmark = pytest.mark.postgres


@pytest.fixture
async def dsn(moorage_postgres: str) -> AsyncIterator[str]:
    """A schema ``a-b_c`` (a name that needs quoting) and its owner."""
    database = await SchemaDatabase.create(moorage_postgres, "a-b_c")
    yield database.owner_dsn
    await database.drop()


class Package:
    """A package with migrations, on the path for the length of a test."""

    def __init__(self, root: Path) -> None:
        self.name = f"shop_{secrets.token_hex(4)}"
        self.versions = root / self.name / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        (root / self.name / "__init__.py").write_text(
            "raise RuntimeError('a migrator does not import the module')"
        )
        self._last: str | None = None

    def add(self, number: str, upgrade: str, *, after: str | None = "last", top: str = "") -> None:
        down = self._last if after == "last" else after
        self._last = number
        body = textwrap.indent(textwrap.dedent(upgrade).strip() or "pass", "    ")
        (self.versions / f"{number}_step.py").write_text(
            f'"""Step {number}."""\nimport time\nfrom alembic import op\nimport sqlalchemy as sa\n{top}\n'
            f"revision = {number!r}\ndown_revision = {down!r}\n\ndef upgrade():\n{body}\n"
        )

    def migrator(self, dsn: str, **options: object) -> Migrator:
        self.events: list[dict[str, object]] = []
        wanted = Options(schema="a-b_c", **options)  # type: ignore[arg-type]
        return Migrator(self.name, SecretStr(dsn), wanted, self.events.append)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Package(tmp_path)
    for name in [name for name in sys.modules if name.startswith("shop_")]:
        del sys.modules[name]


async def query(dsn: str, statement: str) -> list[object]:
    connection = await asyncpg.connect(dsn, server_settings={"search_path": '"a-b_c"'})
    try:
        return [row[0] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'a-b_c' ORDER BY 1"


async def test_pending_migrations_run_in_order_into_the_schema_and_once(package: Package, dsn: str) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer, primary_key=True))")
    package.add("0002", "op.add_column('post', sa.Column('title', sa.Text))")
    migrator = package.migrator(dsn, revision="r1", version="1.0.0")
    before = await migrator.status()
    assert (before.current, [m.revision for m in before.pending]) == (None, ["0001", "0002"])
    assert await query(dsn, TABLES) == []
    after = await migrator.upgrade()
    assert (after.current, after.head, after.pending) == ("0002", "0002", ())
    tables = await query(dsn, TABLES)
    assert [table for table in tables if not table.startswith(PREFIX)] == ["alembic_version", "post"]
    assert {"moorage_migrations", "moorage_outbox", "moorage_inbox", "moorage_lease"} <= set(tables)
    assert await query(dsn, "SELECT revision || ' ' || head FROM moorage_migrations") == ["r1 0002"]
    await migrator.upgrade()
    applied = [event["migration"] for event in package.events if event["event"] == "applied"]
    assert applied == ["0001", "0002"]


async def test_a_failed_migration_leaves_those_before_it_and_nothing_of_its_own(
    package: Package, dsn: str
) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    package.add(
        "0002", "op.create_table('half', sa.Column('id', sa.Integer)); op.execute('SELECT 1 FROM missing')"
    )
    package.add("0003", "op.create_table('never', sa.Column('id', sa.Integer))")
    migrator = package.migrator(dsn, revision="r1")
    with pytest.raises(MigrationError) as caught:
        await migrator.upgrade()
    assert "0002" in str(caught.value)
    assert '"missing" does not exist' in str(caught.value)
    assert "migrations/versions/0002_step.py" in str(caught.value)
    assert "post" in await query(dsn, TABLES)
    assert not {"half", "never", "moorage_migrations"} & set(await query(dsn, TABLES))
    assert (await migrator.status()).current == "0001"
    package.add("0002", "op.create_table('whole', sa.Column('id', sa.Integer))", after="0001")
    assert (await package.migrator(dsn).upgrade()).current == "0003"


async def test_twenty_migrators_at_once_apply_each_migration_once(package: Package, dsn: str) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer)); time.sleep(0.3)")
    package.add("0002", "op.execute('INSERT INTO post VALUES (1)')")
    await asyncio.gather(*(package.migrator(dsn, revision="r1").upgrade() for _ in range(20)))
    assert await query(dsn, "SELECT count(*) FROM post") == [1]


async def test_a_migrator_that_waits_too_long_says_for_what(package: Package, dsn: str) -> None:
    package.add("0001", "pass")
    first = await asyncpg.connect(dsn, server_settings={"search_path": '"a-b_c"'})
    await first.execute(
        "SELECT pg_advisory_lock(hashtextextended('moorage-migrate:' || current_schema(), 0))"
    )
    with pytest.raises(MigrationError, match="another migrator has held"):
        await package.migrator(dsn, wait=0.1).upgrade()
    await first.close()


async def test_an_index_is_built_concurrently_outside_a_transaction(package: Package, dsn: str) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    package.add(
        "0002",
        """
        with op.get_context().autocommit_block():
            op.create_index('post_id', 'post', ['id'], postgresql_concurrently=True)
        """,
    )
    await asyncio.gather(*(package.migrator(dsn).upgrade() for _ in range(3)))
    assert "post_id" in await query(dsn, "SELECT indexname FROM pg_indexes WHERE schemaname = 'a-b_c'")


async def test_a_statement_ends_after_the_timeout_that_the_migration_names(
    package: Package, dsn: str
) -> None:
    package.add("0001", "op.execute('SELECT pg_sleep(1)')", top="timeout_s = 0.2")
    with pytest.raises(MigrationError, match=r"0001.*statement timeout"):
        await package.migrator(dsn).upgrade()
    package.add("0001", "op.execute('SELECT pg_sleep(0.4)')", top="timeout_s = 30", after=None)
    assert (await package.migrator(dsn, timeout=0.1).upgrade()).current == "0001"


async def test_a_schema_that_a_newer_version_migrated_is_refused(package: Package, dsn: str) -> None:
    package.add("0001", "pass")
    package.add("0002", "pass")
    await package.migrator(dsn).upgrade()
    (package.versions / "0002_step.py").unlink()
    with pytest.raises(MigrationError, match=r"at migration 0002, which this version .* does not have"):
        await package.migrator(dsn).upgrade()


async def test_two_last_migrations_are_refused_by_name(package: Package, dsn: str) -> None:
    package.add("0001", "pass")
    package.add("0002", "pass", after="0001")
    package.add("0003", "pass", after="0001")
    with pytest.raises(MigrationError, match=r"0002, 0003"):
        await package.migrator(dsn).status()


async def test_errors_name_neither_password_nor_values(package: Package, dsn: str) -> None:
    package.add("0001", "op.execute(sa.text('SELECT missing(:v)').bindparams(v='hunter2'))")
    with pytest.raises(MigrationError) as caught:
        await package.migrator(dsn).upgrade()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(MigrationError) as caught:
        await package.migrator("postgresql://me:sesame@127.0.0.1:9/none").upgrade()
    assert "sesame" not in str(caught.value)


def test_the_sql_is_written_as_the_migration_says_it(package: Package) -> None:
    package.add("0001", "op.execute(r\"UPDATE post SET a = '50%' WHERE b LIKE 'x%' AND c::text = ' \\:d'\")")
    written = as_sql(package.migrator("postgresql://nobody@127.0.0.1:9/none"))
    assert "UPDATE post SET a = '50%' WHERE b LIKE 'x%' AND c::text = ' :d';" in written


def test_the_sql_can_be_written_without_a_database(package: Package) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    written = as_sql(package.migrator("postgresql://nobody@127.0.0.1:9/none"))
    assert 'SET search_path = "a-b_c";' in written
    assert "CREATE TABLE post" in written
    assert "INSERT INTO alembic_version" in written


def test_a_package_without_migrations_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare_pkg").mkdir()
    (tmp_path / "bare_pkg" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MigrationError, match="no folder migrations/versions"):
        as_sql(Migrator("bare_pkg", SecretStr("")))
    with pytest.raises(MigrationError, match="no package 'nowhere_pkg'"):
        as_sql(Migrator("nowhere_pkg", SecretStr("")))


async def test_the_dsns_query_says_how_to_connect(package: Package, dsn: str) -> None:
    package.add("0001", "pass")
    assert (await package.migrator(f"{dsn}?sslmode=prefer&application_name=x").upgrade()).current == "0001"
    with pytest.raises(MigrationError, match="SSL"):
        await package.migrator(f"{dsn}?sslmode=require").upgrade()


async def test_a_migration_that_cannot_run_in_a_transaction_says_so(package: Package, dsn: str) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    package.add(
        "0002",
        "op.create_index('post_id', 'post', ['id'], postgresql_concurrently=True, if_not_exists=True)",
        top="transactional = False",
    )
    await package.migrator(dsn).upgrade()
    assert "post_id" in await query(dsn, INDEXES)


async def test_a_refused_migration_without_a_transaction_says_that_it_stays(
    package: Package, dsn: str
) -> None:
    package.add("0001", "op.execute('CREATE TABLE open (tenant_id text)')", top="transactional = False")
    with pytest.raises(MigrationError, match=r"though what it did stays.*table open"):
        await package.migrator(dsn).upgrade()
    package.add("0001", "tenanted('open', key=())", top="from moorage.migrations import tenanted", after=None)
    assert (await package.migrator(dsn).upgrade()).current == "0001"


INDEXES = "SELECT indexname FROM pg_indexes WHERE schemaname = 'a-b_c'"
INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


async def test_an_index_that_was_left_unfinished_is_dropped_and_built_again(
    package: Package, dsn: str
) -> None:
    """As when a migrator was killed while PostgreSQL built it, or a duplicate stopped it."""
    package.add(
        "0001", "op.execute('CREATE TABLE post (id int)'); op.execute('INSERT INTO post VALUES (1), (1)')"
    )
    package.add(
        "0002",
        "op.create_index('Post id', 'post', ['id'], unique=True, postgresql_concurrently=True, if_not_exists=True)",
        top="transactional = False",
    )
    with pytest.raises(MigrationError, match="could not create unique index"):
        await package.migrator(dsn).upgrade()
    assert len(await query(dsn, INVALID)) == 1
    await query(dsn, "DELETE FROM post WHERE ctid = '(0,1)'")
    assert (await package.migrator(dsn).upgrade()).current == "0002"
    assert [event for event in package.events if event["event"] == "mended"]
    assert await query(dsn, INVALID) == []
    assert "Post id" in await query(dsn, INDEXES)


async def test_a_rehearsal_shows_statements_and_locks_and_leaves_nothing(package: Package, dsn: str) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    await package.migrator(dsn).upgrade()
    package.add("0002", "op.add_column('post', sa.Column('title', sa.Text))")
    package.add(
        "0003", "op.execute('UPDATE post SET title = 1'); op.create_table('tag', sa.Column('id', sa.Integer))"
    )
    before = await query(dsn, TABLES)
    status = await package.migrator(dsn).rehearse()
    assert (status.current, len(status.pending)) == ("0001", 2)
    assert await query(dsn, TABLES) == before
    second, third = (event for event in package.events if event["event"] == "rehearsed")
    assert second["statements"] == ["ALTER TABLE post ADD COLUMN title TEXT"]
    assert second["locks"] == ["post: AccessExclusiveLock"]
    assert third["locks"] == []
    assert (await package.migrator(dsn).upgrade()).current == "0003"


async def test_a_version_whose_events_others_cannot_read_is_refused_and_its_rehearsal_as_well(
    package: Package, dsn: str
) -> None:
    def emits(**fields: str) -> None:
        schema = {"properties": {name: {"type": kind} for name, kind in fields.items()}}
        events = {"shop.thing.made": {"key": "id", "schema": schema}}
        (package.versions.parents[1] / "events.json").write_text(json.dumps({"events": events}))

    emits(id="string", size="integer")
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    await package.migrator(dsn).rehearse()  # nothing was deployed before
    await package.migrator(dsn).upgrade()
    emits(id="string")
    package.add("0002", "op.add_column('post', sa.Column('title', sa.Text))")
    for run in (package.migrator(dsn).rehearse, package.migrator(dsn).upgrade):
        with pytest.raises(MigrationError, match=r"others could not read any more.*the field size is gone"):
            await run()
    assert (await package.migrator(dsn).status()).current == "0001"
    emits(id="string", size="integer", more="string")
    assert (await package.migrator(dsn).upgrade()).current == "0002"


async def test_a_rehearsal_finds_what_would_fail(package: Package, dsn: str) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    package.add("0002", "op.execute('SELECT 1 FROM missing')")
    with pytest.raises(MigrationError, match="0002"):
        await package.migrator(dsn).rehearse()
    assert await query(dsn, TABLES) == []


@pytest.mark.parametrize(
    ("upgrade", "top"),
    [
        ("with op.get_context().autocommit_block(): op.execute('SELECT 1')", ""),
        ("op.execute('CREATE TABLE never (id int)')", "transactional = False"),
    ],
)
async def test_a_rehearsal_ends_where_it_could_not_be_undone(
    package: Package, dsn: str, upgrade: str, top: str
) -> None:
    package.add("0001", "op.create_table('post', sa.Column('id', sa.Integer))")
    package.add("0002", upgrade, top=top)
    package.add("0003", "pass")
    await package.migrator(dsn).rehearse()
    done = [event.get("migration") for event in package.events if event["event"] == "rehearsed"]
    assert done == ["0001"]
    assert "migration 0002" in str(package.events[-1]["message"])
    assert await query(dsn, TABLES) == []
