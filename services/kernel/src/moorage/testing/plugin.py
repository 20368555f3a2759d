"""Fixtures for pytest, registered by installing `moorage`. Nothing of them is imported before it is asked for."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moorage.testing.databases import SchemaDatabase


@pytest.fixture(scope="session")
def moorage_postgres() -> Iterator[str]:
    """An embedded PostgreSQL for the whole session; gives the superuser's DSN."""
    from moorage.testing.databases import throwaway_server

    with throwaway_server() as server:
        yield asyncio.run(server.start())
        asyncio.run(server.stop())


@pytest.fixture
def moorage_database(moorage_postgres: str) -> "Iterator[SchemaDatabase]":
    """An empty database for one test, with a schema ``test``, its owner and its app role."""
    from moorage.testing.databases import SchemaDatabase

    database = asyncio.run(SchemaDatabase.create(moorage_postgres))
    yield database
    asyncio.run(database.drop())
