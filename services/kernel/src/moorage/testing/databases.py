"""Databases for tests: each with one module's schema and its two roles, as a provisioned one has them."""

import secrets
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection, MetaData
from sqlalchemy.pool import NullPool

from moorage.database import policies
from moorage.database.embedded import EmbeddedPostgres
from moorage.database.engine import new_engine
from moorage.database.migrations import VERSION_TABLE
from moorage.database.platform import PREFIX
from moorage.events.busschema import Access, converge_access, ensure_bus, installed, remove_access


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
    shared: bool = False
    """Whether it is the database of another one, which drops it."""

    @classmethod
    async def create(cls, server_dsn: str, schema: str = "test") -> "SchemaDatabase":
        """Make a new database on the server of *server_dsn* (a superuser's)."""
        name = f"t_{secrets.token_hex(6)}"
        async with _connected(server_dsn) as admin:
            await admin.execute(f"CREATE DATABASE {name}")
        return await cls._furnish(_with(server_dsn, database=name), name, schema)

    async def beside(self, schema: str) -> "SchemaDatabase":
        """Another schema in the same database, with roles of its own: a second module of an installation."""
        return replace(await self._furnish(self.admin_dsn, self.name, schema), shared=True)

    @classmethod
    async def _furnish(cls, admin_dsn: str, name: str, schema: str) -> "SchemaDatabase":
        password = secrets.token_hex(16)
        prefix = f"t_{secrets.token_hex(6)}"
        owner, app = f"{prefix}_owner", f"{prefix}_app"
        async with _connected(admin_dsn) as admin:
            await admin.execute(
                f"""
                CREATE ROLE {owner} LOGIN PASSWORD '{password}';
                CREATE ROLE {app} LOGIN PASSWORD '{password}';
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
        return cls(
            admin_dsn=admin_dsn,
            name=name,
            schema=schema,
            owner_dsn=_with(admin_dsn, user=owner, password=password),
            app_dsn=_with(admin_dsn, user=app, password=password),
        )

    async def open_bus(
        self,
        namespace: str,
        module: str,
        *,
        publishes: Collection[str] = (),
        subscribes: Collection[str] = (),
    ) -> None:
        """Let the app role publish and read these types on the database's event bus; it is made if it is missing."""
        access = Access(_user(self.app_dsn), namespace, module, publishes, subscribes)
        async with _connected(self.admin_dsn) as admin:
            if not await installed(admin):
                await admin.execute(f"CREATE ROLE {self._bus_role} NOLOGIN")
            await ensure_bus(admin, self._bus_role)
            await converge_access(admin, access)

    async def drop(self) -> None:
        """Remove the database and its roles, whoever is still connected; of a shared one its own schema and roles."""
        roles = [_user(self.owner_dsn), _user(self.app_dsn)]
        if self.shared:
            async with _connected(self.admin_dsn) as admin:
                await remove_access(admin, roles[1])
                for role in roles:
                    await admin.execute(f"DROP OWNED BY {role} CASCADE")
                await admin.execute(f"DROP ROLE {', '.join(roles)}")
            return
        async with _connected(_with(self.admin_dsn, database="postgres")) as admin:
            await admin.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
            await admin.execute(f"DROP ROLE IF EXISTS {', '.join(roles)}, {self._bus_role}")

    @property
    def _bus_role(self) -> str:
        return f"{self.name}_bus"


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def _user(dsn: str) -> str:
    return urlsplit(dsn).username or ""


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
            apart = await connection.run_sync(lambda sync: policies.differences(sync, metadata))
    finally:
        await engine.dispose()
    return [str(difference) for difference in (*found, *apart)]


def _context(connection: Connection) -> MigrationContext:
    def ours(name: str | None, kind: str, _: object) -> bool:
        return not (kind == "table" and name is not None and name.startswith((VERSION_TABLE, PREFIX)))

    options = {"compare_type": True, "compare_server_default": False, "include_name": ours}
    return MigrationContext.configure(connection, opts=options)
