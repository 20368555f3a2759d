"""Databases for tests: each with one module's schema and its two roles, as a provisioned one has them."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection, MetaData
from sqlalchemy.pool import NullPool

from moorage.database.embedded import EmbeddedPostgres
from moorage.database.migrations import VERSION_TABLE
from moorage.database.platform import PREFIX
from moorage.database.engine import new_engine


@contextmanager
def throwaway_server() -> Iterator[EmbeddedPostgres]:
    """A server to be started and stopped within the block; its files are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="moorage-test-", ignore_cleanup_errors=True) as folder:
        # As root the server has a user id of its own, which has to get there; what it keeps there stays private.
        Path(folder).chmod(0o711)
        # Durability is not what tests are about, and fsync is what they would wait for.
        server = EmbeddedPostgres(Path(folder), settings={"fsync": "off"}, with_parent=True)
        try:
            yield server
        finally:
            server.purge()


@dataclass(frozen=True)
class SchemaDatabase:
    """A database with one schema. ``owner_dsn`` migrates, ``app_dsn`` reads and writes rows; all are secrets."""

    admin_dsn: str
    name: str
    schema: str
    owner_dsn: str
    app_dsn: str

    @classmethod
    async def create(cls, server_dsn: str, schema: str = "test") -> "SchemaDatabase":
        """Make a new database on the server of *server_dsn* (a superuser's)."""
        name = f"t_{secrets.token_hex(6)}"
        password = secrets.token_hex(16)
        owner, app = f"{name}_owner", f"{name}_app"
        admin = await asyncpg.connect(server_dsn)
        try:
            for role in (owner, app):
                await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
            await admin.execute(f"CREATE DATABASE {name}")
        finally:
            await admin.close()
        admin_dsn = _with(server_dsn, database=name)
        connection = await asyncpg.connect(admin_dsn)
        try:
            await connection.execute(
                f"""
                CREATE SCHEMA "{schema}" AUTHORIZATION {owner};
                GRANT USAGE ON SCHEMA "{schema}" TO {app};
                ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA "{schema}"
                    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
                ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA "{schema}"
                    GRANT USAGE, SELECT ON SEQUENCES TO {app};
                ALTER ROLE {owner} IN DATABASE {name} SET search_path = "{schema}";
                ALTER ROLE {app} IN DATABASE {name} SET search_path = "{schema}";
                """
            )
        finally:
            await connection.close()
        return cls(
            admin_dsn=admin_dsn,
            name=name,
            schema=schema,
            owner_dsn=_with(admin_dsn, user=owner, password=password),
            app_dsn=_with(admin_dsn, user=app, password=password),
        )

    async def drop(self) -> None:
        """Remove the database and its roles, whoever is still connected."""
        admin = await asyncpg.connect(_with(self.admin_dsn, database="postgres"))
        try:
            await admin.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
            await admin.execute(f"DROP ROLE IF EXISTS {self.name}_owner, {self.name}_app")
        finally:
            await admin.close()


def _with(
    dsn: str, *, user: str | None = None, password: str | None = None, database: str | None = None
) -> str:
    parts = urlsplit(dsn)
    who = f"{user}:{password}" if user is not None else parts.netloc.rpartition("@")[0]
    where = parts.netloc.rpartition("@")[2]
    return urlunsplit(
        parts._replace(netloc=f"{who}@{where}", path=f"/{database}" if database else parts.path)
    )


async def schema_differences(database: SchemaDatabase, metadata: MetaData) -> list[str]:
    """What migrated tables and declared tables do not agree about, a line each; empty: they agree."""
    engine = new_engine(SecretStr(database.owner_dsn), connect_args={}, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            found = await connection.run_sync(lambda sync: compare_metadata(_context(sync), metadata))
    finally:
        await engine.dispose()
    return [str(difference) for difference in found]


def _context(connection: Connection) -> MigrationContext:
    def ours(name: str | None, kind: str, _: object) -> bool:
        return not (kind == "table" and name is not None and name.startswith((VERSION_TABLE, PREFIX)))

    options = {"compare_type": True, "compare_server_default": False, "include_name": ours}
    return MigrationContext.configure(connection, opts=options)
