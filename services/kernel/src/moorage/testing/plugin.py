"""Fixtures for pytest, registered by installing `moorage`. Nothing of them is imported before it is asked for."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moorage.testing.databases import SchemaDatabase


@pytest.fixture(scope="session")
def moorage_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An embedded PostgreSQL for the whole session; gives the superuser's DSN."""
    from moorage.database.embedded import EmbeddedPostgres

    # Durability is not what these tests are about, and fsync is what they would wait for.
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings={"fsync": "off"})
    dsn = asyncio.run(server.start())
    yield dsn
    asyncio.run(server.stop())
    server.purge()


@pytest.fixture
def moorage_database(moorage_postgres: str) -> "Iterator[SchemaDatabase]":
    """An empty database for one test, with a schema ``test``, its owner and its app role."""
    from moorage.testing.databases import SchemaDatabase

    database = asyncio.run(SchemaDatabase.create(moorage_postgres))
    yield database
    asyncio.run(database.drop())
