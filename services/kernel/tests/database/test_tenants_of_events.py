"""A handler of events sees the rows of the tenant for whom the event was emitted, and of no other."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import MetaData, func, select
from sqlalchemy.orm import Mapped

from moorage import Db, Event, Module, Table, Tenanted
from moorage.database.migrations import Migrator, Options
from moorage.testing import SchemaDatabase
from rigs.events import Site, until

pytestmark = pytest.mark.postgres


class Parcel(Table, Tenanted):
    """A table of this test alone."""

    metadata = MetaData()
    content: Mapped[str]


class Sent(Event, type="parcels.parcel.sent", key="content"):
    content: str


@pytest.fixture
async def site(
    moorage_database: SchemaDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    name = f"parcels_{secrets.token_hex(4)}"
    versions = tmp_path / name / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    (versions / "0001_parcels.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "from moorage.migrations import standard_columns, tenanted\n"
        "revision, down_revision = '0001', None\n"
        "def upgrade():\n"
        "    op.create_table('parcel', sa.Column('content', sa.String()), *standard_columns())\n"
        "    tenanted('parcel', system=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = Options(schema=moorage_database.schema)
    await Migrator(name, SecretStr(moorage_database.owner_dsn), options).upgrade()
    async with AsyncExitStack() as stack:
        yield Site(moorage_database, stack, monkeypatch)


async def test_each_event_is_handled_for_its_own_tenant(site: Site) -> None:
    """Also after a handler that looked at the rows of all, and after one that named a tenant itself."""
    module = Module("parcels")
    seen: list[tuple[str, str | None, int]] = []

    @module.on(Sent)
    async def receive(event: Sent, db: Db) -> None:
        if event.content == "count":
            await db.use_system("count everybody's parcels")
        elif db.tenant is None:
            await db.use_tenant("acme")
        else:
            await db.add(Parcel(content=event.content))
        seen.append(
            (event.content, db.tenant, await db.scalar(select(func.count()).select_from(Parcel)) or 0)
        )

    process = await site.start(module, ["parcels.parcel.sent"])
    events = [("a", "acme"), ("b", "bolt"), ("c", "bolt"), ("count", None), ("anonymous", None)]
    for number, (content, tenant) in enumerate(events, 1):
        async with process.pool.unit(tenant=tenant) as db:
            await db.emit(Sent(content=content))
        await until(lambda wanted=number: len(seen) == wanted)  # keys of different partitions have no order
    assert seen == [
        ("a", "acme", 1),
        ("b", "bolt", 1),
        ("c", "bolt", 2),
        ("count", None, 3),
        ("anonymous", "acme", 1),
    ]
