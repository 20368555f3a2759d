"""A database and an admin without superuser rights for each test."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import asyncpg
import pytest

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


async def _new_server(superuser: str) -> Server:
    name = f"t_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(superuser)
    try:
        await connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'admin'")
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.execute(f"GRANT CREATE ON DATABASE {name} TO {name}")
    finally:
        await connection.close()
    base = superuser.rpartition("@")[2].partition("/")[0]
    return Server(
        superuser=superuser.rpartition("/")[0] + f"/{name}", admin=f"postgresql://{name}:admin@{base}/{name}"
    )


@pytest.fixture
def new_server() -> Callable[[str], Awaitable[Server]]:
    """Makes a `Server` from a superuser's DSN."""
    return _new_server


@pytest.fixture
async def server(moorage_postgres: str) -> Server:
    return await _new_server(moorage_postgres)


@pytest.fixture
async def provisioner(server: Server) -> AsyncIterator[Provisioner]:
    async with Provisioner(server.admin) as made:
        yield made
