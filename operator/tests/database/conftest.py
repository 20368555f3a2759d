"""One embedded server for these tests, a database and an admin without superuser rights for each."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from moorage.database.embedded import EmbeddedPostgres
from moorage_operator.database import Provisioner


@dataclass
class Server:
    """A database of its own; ``admin`` has CREATEROLE and CREATE on it, ``superuser`` everything."""

    superuser: str
    admin: str

    async def run(self, dsn: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def run_script(self, dsn: str, script: str) -> None:
        """Several statements at once."""
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(script)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pg")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedded(postgres_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(postgres_folder)
    await server.start()
    yield server
    await server.stop()
    server.purge()


@pytest.fixture
async def server(embedded: EmbeddedPostgres) -> Server:
    name = f"t_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(embedded.dsn)
    try:
        await connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'admin'")
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.execute(f"GRANT CREATE ON DATABASE {name} TO {name}")
    finally:
        await connection.close()
    base = embedded.dsn.rpartition("@")[2].partition("/")[0]
    return Server(
        superuser=embedded.dsn.rpartition("/")[0] + f"/{name}",
        admin=f"postgresql://{name}:admin@{base}/{name}",
    )


@pytest.fixture
async def provisioner(server: Server) -> AsyncIterator[Provisioner]:
    async with Provisioner(server.admin) as made:
        yield made
