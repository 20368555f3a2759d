"""The code's tenants and the schema's are held to each other."""

import secrets
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import MetaData
from sqlalchemy.orm import Mapped

from moorage import Table, Tenanted
from moorage.database import policies
from moorage.database.migrations import Migrator, Options, as_sql
from moorage.testing import SchemaDatabase, schema_differences

pytestmark = pytest.mark.postgres


class PolicyThing(Table, Tenanted):
    """A table of this test alone."""

    name: Mapped[str]


@pytest.fixture
def metadata() -> MetaData:
    metadata = MetaData(naming_convention=PolicyThing.metadata.naming_convention)
    PolicyThing.__table__.to_metadata(metadata)  # type: ignore[attr-defined]  # a Table, as it is declared
    return metadata


@pytest.fixture
def migrator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moorage_database: SchemaDatabase) -> Migrator:
    """Of a package whose one migration is what an author writes for `PolicyThing`."""
    name = f"policy_{secrets.token_hex(4)}"
    versions = tmp_path / name / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    (versions / "0001_things.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "from moorage.migrations import standard_columns, tenanted\n"
        "revision, down_revision = '0001', None\n"
        "def upgrade():\n"
        "    op.create_table('policy_thing', sa.Column('name', sa.String(), nullable=False), *standard_columns())\n"
        "    tenanted('policy_thing')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return Migrator(name, SecretStr(moorage_database.owner_dsn), Options(schema=moorage_database.schema))


async def run(database: SchemaDatabase, statements: str) -> None:
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


async def test_what_the_helpers_make_is_what_the_classes_say(
    migrator: Migrator, moorage_database: SchemaDatabase, metadata: MetaData
) -> None:
    await migrator.upgrade()
    assert await schema_differences(moorage_database, metadata) == []
    steps = as_sql(migrator).partition("-- Running upgrade")[2].partition("INSERT INTO alembic")[0]
    again = steps[steps.index("DO $$") :]  # what `tenanted` does, to mend what was changed by hand
    await run(moorage_database, again)
    assert await schema_differences(moorage_database, metadata) == []


async def test_before_postgres_15_any_view_of_tenants_rows_is_refused(
    migrator: Migrator, moorage_database: SchemaDatabase, metadata: MetaData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no older server here to try it on: this one is taken for one."""
    await migrator.upgrade()
    await run(moorage_database, "CREATE VIEW v WITH (security_invoker) AS SELECT name FROM policy_thing")
    assert await schema_differences(moorage_database, metadata) == []
    monkeypatch.setattr(policies, "_POSTGRES_15", 10**9)
    (difference,) = await schema_differences(moorage_database, metadata)
    assert "use PostgreSQL 15 or later" in difference


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ("ALTER TABLE policy_thing NO FORCE ROW LEVEL SECURITY", "its owner passes by"),
        ("ALTER TABLE policy_thing DISABLE ROW LEVEL SECURITY", "no row-level security"),
        ("ALTER TABLE policy_thing DROP COLUMN tenant_id CASCADE", "its class is Tenanted"),
        (
            "CREATE POLICY moorage_untenanted ON policy_thing USING (true);"
            "ALTER TABLE policy_thing DISABLE ROW LEVEL SECURITY",
            "its class is Tenanted",
        ),
        ("CREATE VIEW v AS SELECT name FROM policy_thing", "security_invoker"),
    ],
)
async def test_a_schema_that_lets_tenants_meet_differs(
    migrator: Migrator, moorage_database: SchemaDatabase, metadata: MetaData, statements: str, said: str
) -> None:
    await migrator.upgrade()
    await run(moorage_database, statements)
    assert said in "\n".join(await schema_differences(moorage_database, metadata))
