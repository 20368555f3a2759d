"""Modules that emit and handle events, on a real PostgreSQL and a bus in memory."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from moorage.testing import SchemaDatabase
from rigs.events import Site, make_tables


@pytest.fixture
async def site(moorage_database: SchemaDatabase, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    await make_tables(moorage_database)
    async with AsyncExitStack() as stack:
        yield Site(moorage_database, stack, monkeypatch)
