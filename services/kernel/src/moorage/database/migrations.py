"""Migrations: one Alembic environment for every module.

A module's migrations are package data, ``<package>/migrations/versions/*.py``; there is no ``env.py`` to
copy. One migrator works at a time (an advisory lock, polled outside any transaction: waiting inside one would
deadlock with ``CREATE INDEX CONCURRENTLY``). Each migration is a transaction of its own together with the
note of its number, so that a migrator killed at any point leaves the last whole migration.

What a migration may say at its top:

- ``timeout_s = 600``: a statement of it needs longer than the default.
- ``transactional = False``: it cannot run in a transaction (``CREATE INDEX CONCURRENTLY``). One that is killed half-way
  is run again, from its start: it has to bear that (``if_not_exists=True``). An index that was left unfinished is
  dropped before.

After each, in its transaction, `policies.findings` may refuse what it leaves.
"""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TextIO

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from moorage.database import platform
from moorage.database.engine import new_engine
from moorage.database.mishaps import MigrationError, explained
from moorage.database.running import (
    LeavesTransaction,
    Migration,
    Rehearsing,
    Report,
    Running,
    drop_invalid_indexes,
)
from moorage.events import schemas

__all__ = [
    "RECORD_TABLE",
    "VERSION_TABLE",
    "Migration",
    "MigrationError",
    "Migrator",
    "Options",
    "Report",
    "Status",
    "as_sql",
    "migrations_folder",
]

VERSION_TABLE: Final = "alembic_version"
RECORD_TABLE: Final = "moorage_migrations"
"""One row for each revision of the Module whose migrations were finished; the operator reads it."""
_POLL: Final = 0.25
_LOCK_TIMEOUT_MS: Final = 5_000
"""Longest wait of a migration for a table's lock: behind a waiting ALTER TABLE every query of the app
queues up.
"""


@dataclass(frozen=True)
class Status:
    """Where a schema stands: the last migration that ran (``None``: none), and those still to run, in
    order.
    """

    current: str | None
    head: str | None
    pending: tuple[Migration, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to migrate; times in seconds."""

    schema: str | None = None
    """Pins ``search_path``; ``None``: the role's own."""
    timeout: float = 30.0
    """Longest statement, unless the migration sets ``timeout_s``."""
    wait: float = 300.0
    """Longest wait for another migrator of the same schema."""
    revision: str | None = None
    """The Module's revision to record when everything has run."""
    version: str | None = None


@dataclass
class Migrator:
    """The migrations of one package against one database.

    Args:
        package: name of the module's package; it is found, not imported.
        dsn: of the schema's owner, straight to the server (no pooler).
    """

    package: str
    dsn: SecretStr
    options: Options = field(default_factory=Options)
    report: Report = lambda _: None

    async def status(self) -> Status:
        """What has run and what would; changes nothing.

        Raises:
            MigrationError: see there.
        """
        with explained():
            async with self._connection() as connection:
                return await connection.run_sync(self._status, self._script())

    async def upgrade(self) -> Status:
        """Run what is pending, record the revision, and return where the schema stands then.

        Raises:
            MigrationError: one failed (those before it have run and stay), or another migrator did not finish within
                ``options.wait``.
        """
        script = self._script()
        with explained():
            async with self._connection() as connection, self._lock(connection):
                await platform.converge(connection)
                await self._refuse_breaking_events(connection)
                await connection.run_sync(self._upgrade, script)
                await schemas.store(connection, self.package)
                await self._record(connection, script.get_current_head())
                return await connection.run_sync(self._status, script)

    async def _refuse_breaking_events(self, connection: AsyncConnection) -> None:
        """Before anything else, so that what was deployed goes on as it was."""
        try:
            broken = await schemas.refused(connection, self.package)
        except schemas.SchemasUnreadable as error:
            raise MigrationError(str(error)) from None
        if broken:
            raise MigrationError(
                "this version emits events that others could not read any more: " + "\n".join(broken)
            )

    async def rehearse(self) -> Status:
        """Run what is pending in one transaction and roll it back; the reports have statements and locks.

        It takes the locks that the real run takes, for as long as all of it runs: not longer than a few seconds for a
        table that is in use. One that leaves the transaction cannot be rehearsed, nor those after it.

        Raises:
            MigrationError: one would fail.
        """
        script = self._script()
        with explained():
            async with self._connection() as connection, self._lock(connection):
                await self._refuse_breaking_events(connection)
                await connection.run_sync(self._rehearse, script)
                return await connection.run_sync(self._status, script)

    def sql(self, out: TextIO) -> None:
        """Write all migrations as SQL, for a person to read or run, without a database.

        Raises:
            MigrationError: a migration reads from the database, which cannot be written down.
        """
        script = self._script()
        environment = EnvironmentContext(
            Config(), script, fn=lambda rev, _: script._upgrade_revs("heads", rev), as_sql=True
        )
        with explained(), environment:
            environment.configure(
                dialect_name="postgresql",
                dialect_opts={"paramstyle": "named"},  # else every % would be written twice
                literal_binds=True,
                output_buffer=out,
                transaction_per_migration=True,
                version_table=VERSION_TABLE,
            )
            if self.options.schema is not None:
                out.write(f"SET search_path = {_quoted(self.options.schema)};\n\n")
            out.write(f"BEGIN;\n\n{platform.script()}\nCOMMIT;\n\n")
            environment.run_migrations()

    def scripts(self) -> list[Script]:
        """Alembic's scripts, in the order in which they run."""
        return list(reversed(list(self._script().walk_revisions())))

    # -- the scripts

    def _script(self) -> ScriptDirectory:
        """The package's migrations; a package without any has an empty list."""
        script = ScriptDirectory(str(migrations_folder(self.package)))
        with explained():
            heads = script.get_heads()
        if len(heads) > 1:
            raise MigrationError(
                f"package {self.package} has several last migrations ({', '.join(sorted(heads))}); "
                f"let one of them follow the other (its down_revision)"
            )
        return script

    def _status(self, connection: Connection, script: ScriptDirectory) -> Status:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        current = context.get_current_heads()
        connection.rollback()
        self._check_known(script, current)
        # A tuple of heads is what it takes, whatever its annotation says.
        steps = script._upgrade_revs("heads", current)  # type: ignore[arg-type]
        pending = tuple(Migration.of(step.revision) for step in steps)
        return Status(current[0] if current else None, script.get_current_head(), pending)

    def _check_known(self, script: ScriptDirectory, current: tuple[str, ...]) -> None:
        known = {revision.revision for revision in script.walk_revisions()}
        for revision in current:
            if revision not in known:
                raise MigrationError(
                    f"the schema is at migration {revision}, which this version of {self.package} does "
                    f"not have: a newer version migrated it; deploy that version, or restore the schema"
                )

    # -- running them

    def _upgrade(self, connection: Connection, script: ScriptDirectory) -> None:
        if self._status(connection, script).pending:
            drop_invalid_indexes(connection, self.report)
        self._run(connection, script, Running(connection, self.options.timeout, self.report))
        connection.commit()

    def _rehearse(self, connection: Connection, script: ScriptDirectory) -> None:
        # Begun here, so that Alembic takes it for somebody else's transaction, and neither commits nor leaves it.
        with connection.begin() as transaction:
            running = Rehearsing(connection, self.options.timeout, self.report)
            try:
                self._run(connection, script, running)
            except LeavesTransaction:
                reason = f"{running.reached} leaves the transaction: it and those after it were not tried"
                self.report({"event": "not_rehearsed", "message": reason})
            finally:
                transaction.rollback()

    def _run(self, connection: Connection, script: ScriptDirectory, running: Running) -> None:
        """Run what is pending, one transaction for each unless the connection is in one already."""

        def steps(heads: Any, context: MigrationContext) -> Iterator[Any]:
            self._check_known(script, context.get_current_heads())
            for step in script._upgrade_revs("heads", heads):
                with running.step(step, context):
                    yield step

        environment = EnvironmentContext(Config(), script, fn=steps)
        with environment, running.named():
            environment.configure(
                connection=connection, transaction_per_migration=True, version_table=VERSION_TABLE
            )
            with Operations.context(environment.get_context()):
                environment.get_context().run_migrations()

    async def _record(self, connection: AsyncConnection, head: str | None) -> None:
        """Note that everything of the Module's revision has run; also when there was nothing to run."""
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {RECORD_TABLE} (revision text PRIMARY KEY, head text, version text, "
                f"applied_at timestamptz NOT NULL DEFAULT now())"
            )
        )
        if self.options.revision:
            await connection.execute(
                text(
                    f"INSERT INTO {RECORD_TABLE} (revision, head, version) "  # noqa: S608 - the name is a constant
                    f"VALUES (:revision, :head, :version) ON CONFLICT (revision) DO UPDATE "
                    f"SET head = excluded.head, version = excluded.version, applied_at = now()"
                ),
                {"revision": self.options.revision, "head": head, "version": self.options.version},
            )
        await connection.commit()

    # -- connection and lock

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        settings = {
            "application_name": f"moorage-migrate {self.package}",
            "timezone": "UTC",
            "lock_timeout": str(_LOCK_TIMEOUT_MS),
        }
        if self.options.schema is not None:
            settings["search_path"] = _quoted(self.options.schema)
        engine = new_engine(self.dsn, connect_args={"server_settings": settings}, poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()

    @contextlib.asynccontextmanager
    async def _lock(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """Be the only migrator of the schema. The lock goes with the session: a killed migrator leaves
        none.
        """
        deadline = time.monotonic() + self.options.wait
        told = False
        while not await self._try_lock(connection):
            if not told:
                self.report({"event": "waiting", "message": "another migrator works on this schema"})
                told = True
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"another migrator has held this schema for {self.options.wait:g} s; see pg_stat_activity "
                    f"for application_name 'moorage-migrate {self.package}'"
                )
            await asyncio.sleep(_POLL)
        yield  # released with the session: nothing may run between the last commit and that

    @staticmethod
    async def _try_lock(connection: AsyncConnection) -> bool:
        got = await connection.scalar(
            text("SELECT pg_try_advisory_lock(hashtextextended('moorage-migrate:' || current_schema(), 0))")
        )
        await connection.commit()  # never wait inside a transaction
        return bool(got)


def migrations_folder(package: str) -> Path:
    """Where *package* keeps its migrations; found without importing it.

    Raises:
        MigrationError: there is no such package, or no such folder in it.
    """
    try:
        spec = find_spec(package.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MigrationError(
            f"there is no package {package!r}; is it installed, or its folder on PYTHONPATH?"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "migrations"
    if not (folder / "versions").is_dir():
        raise MigrationError(
            f"package {package} has no folder migrations/versions; make it, "
            f"or set spec.database.migrations: none"
        )
    return folder


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def as_sql(migrator: Migrator) -> str:
    """`Migrator.sql` as a string."""
    out = io.StringIO()
    migrator.sql(out)
    return out.getvalue()
