"""A database of the tests' own on the cluster's PostgreSQL, with an admin that is no superuser."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from e2e.relay import Relay


class Database:
    """One database, reached by pods through a relay that tests can cut."""

    def __init__(self, superuser_dsn: str, node_address: str) -> None:
        self._superuser_dsn = superuser_dsn
        self.name = self.admin = f"e2e_{uuid.uuid4().hex[:12]}"
        self._password = uuid.uuid4().hex
        parts = urlsplit(superuser_dsn)
        self.relay = Relay(node_address, (parts.hostname or "127.0.0.1", parts.port or 5432))
        self.execute(
            f"CREATE ROLE {self.admin} LOGIN CREATEROLE PASSWORD '{self._password}'",
            f"CREATE DATABASE {self.name} OWNER {self.admin}",
            database="postgres",
        )

    @property
    def admin_dsn(self) -> str:
        """The admin's DSN for pods, by the relay."""
        address = f"{self.relay_host}:{self.relay.port}"
        return f"postgresql://{self.admin}:{self._password}@{address}/{self.name}"

    @property
    def relay_host(self) -> str:
        """Where pods reach the relay."""
        return self.relay._host

    def execute(self, *statements: str, database: str | None = None) -> None:
        """Run statements as superuser."""

        async def run() -> None:
            connection = await asyncpg.connect(self._dsn(database))
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    def fetch(self, query: str, *values: Any) -> Sequence[Any]:
        """Rows of *query*, as superuser."""

        async def run() -> Sequence[Any]:
            connection = await asyncpg.connect(self._dsn(None))
            try:
                rows: Sequence[Any] = await connection.fetch(query, *values)
                return rows
            finally:
                await connection.close()

        return asyncio.run(run())

    def schemas(self) -> set[str]:
        """Names of the schemas that are not PostgreSQL's own."""
        rows = self.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public)'"
        )
        return {row["nspname"] for row in rows}

    def drop(self) -> None:
        """Remove the database, the roles that were made in it, and the relay."""
        roles = [
            row["rolname"]
            for row in self.fetch(
                "SELECT rolname FROM pg_roles r WHERE rolname ~ '^mg_' AND EXISTS (SELECT FROM pg_namespace n "
                "WHERE n.nspowner = r.oid) OR EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_database d "
                "ON d.oid = s.setdatabase WHERE s.setrole = r.oid AND d.datname = current_database())"
            )
        ]
        self.relay.cut()
        self.execute(f"DROP DATABASE {self.name} WITH (FORCE)", database="postgres")
        self.execute(*(f'DROP ROLE IF EXISTS "{role}"' for role in [*roles, self.admin]), database="postgres")

    def _dsn(self, database: str | None) -> str:
        return urlunsplit(urlsplit(self._superuser_dsn)._replace(path=f"/{database or self.name}"))
