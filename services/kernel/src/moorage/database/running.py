"""One migration after the other: limits, reports, checks, and what a broken one leaves behind."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Connection, event

from moorage.database import policies
from moorage.database.mishaps import MigrationError, words

Report = Callable[[dict[str, Any]], None]
"""Gets what happens, as ``{"event": "applied", "migration": "0002", …}``."""

_WEAK_LOCKS: Final = ("AccessShareLock", "RowShareLock", "RowExclusiveLock")
"""Taken by the queries of an app, so they stop none."""


@dataclass(frozen=True)
class Migration:
    """One migration: its number, first line of its docstring, and file."""

    revision: str
    title: str
    file: str

    @classmethod
    def of(cls, script: Script) -> "Migration":
        """Alembic's *script*."""
        path = Path(script.path)
        title = (script.doc or "").strip().splitlines()
        return cls(script.revision, title[0] if title else "", "/".join(path.parts[-4:]))

    def __str__(self) -> str:
        return f"migration {self.revision} ({self.file})"


def is_transactional(script: Script) -> bool:
    """Whether it runs inside a transaction; ``transactional = False`` at its top says no."""
    return bool(getattr(script.module, "transactional", True))


class Running:
    """The migration that runs at the moment: its time limit, its report, and its name when it fails."""

    def __init__(self, connection: Connection, timeout: float, report: Report) -> None:
        self._connection = connection
        self._default = timeout
        self._report = report
        self._current: Migration | None = None
        self._warned: set[str] = set()

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Give an error the name of the migration in which it was raised."""
        try:
            yield
        except (MigrationError, LeavesTransaction):
            raise
        except Exception as error:
            if self._current is None:
                raise
            raise MigrationError(f"{self._current} failed: {words(error)}") from error

    @contextlib.contextmanager
    def step(self, step: Any, context: MigrationContext) -> Iterator[None]:
        """One migration, from before its transaction until the next one is asked for."""
        script: Script = step.revision
        current = self._current = Migration.of(script)
        timeout = float(getattr(script.module, "timeout_s", self._default))
        step.migration_fn = self._around(step.migration_fn, timeout, context, is_transactional(script))
        began = time.monotonic()
        self._report({"event": "applying", "migration": current.revision, "title": current.title})
        yield
        self._applied(current, round(time.monotonic() - began, 3))
        self._current = None

    def _applied(self, migration: Migration, seconds: float) -> None:
        self._report({"event": "applied", "migration": migration.revision, "seconds": seconds})

    def _around(
        self, upgrade: Callable[..., None], timeout: float, context: MigrationContext, transactional: bool
    ) -> Callable[..., None]:
        """*upgrade* with a limit on each statement, and the check of what it leaves, which can still undo it.

        The limit is for the session, since an autocommit block leaves the transaction.
        """

        def run(**arguments: Any) -> None:
            self._connection.exec_driver_sql(f"SET statement_timeout = {round(timeout * 1000)}")
            with contextlib.nullcontext() if transactional else context.autocommit_block():
                self._upgrade(upgrade, arguments)
            self._check(transactional)

        return run

    def _upgrade(self, upgrade: Callable[..., None], arguments: dict[str, Any]) -> None:
        upgrade(**arguments)

    def _check(self, transactional: bool) -> None:
        found = policies.findings(self._connection)
        refused = [str(finding) for finding in found if finding.refused]
        if refused:
            outcome = (
                "is refused" if transactional else "is refused, though what it did stays (no transaction)"
            )
            raise MigrationError(f"{self._current} {outcome}: {'; '.join(refused)}")
        for finding in found:
            if str(finding) not in self._warned:
                self._warned.add(str(finding))
                self._report({"event": "warning", "message": str(finding)})


class LeavesTransaction(Exception):  # noqa: N818 - it says what a migration does
    """Raised in a rehearsal by a migration that would leave the transaction, so that it could not be undone."""


class Rehearsing(Running):
    """Migrations that are run to be undone: all in one transaction, with their statements and locks reported."""

    def __init__(self, connection: Connection, timeout: float, report: Report) -> None:
        super().__init__(connection, timeout, report)
        self._known = self._tables()
        self._statements: list[str] = []
        self._told: set[str] = set()

    @contextlib.contextmanager
    def step(self, step: Any, context: MigrationContext) -> Iterator[None]:
        """As `Running.step`; a migration that leaves the transaction is not begun, or is left where it does."""
        self._current = Migration.of(step.revision)
        if not is_transactional(step.revision):
            raise LeavesTransaction
        context.autocommit_block = _leave  # type: ignore[method-assign,assignment]  # of this context alone
        with super().step(step, context):
            yield

    @property
    def reached(self) -> Migration | None:
        """The migration that runs, or at which it ended."""
        return self._current

    def _upgrade(self, upgrade: Callable[..., None], arguments: dict[str, Any]) -> None:
        def note(connection: object, cursor: object, statement: str, *_: object) -> None:
            self._statements.append(statement.strip())

        event.listen(self._connection, "before_cursor_execute", note)
        try:
            upgrade(**arguments)
        finally:
            event.remove(self._connection, "before_cursor_execute", note)

    def _applied(self, migration: Migration, seconds: float) -> None:
        fresh = [lock for lock in self._locks() if lock not in self._told]
        self._told.update(fresh)
        self._report(
            {
                "event": "rehearsed",
                "migration": migration.revision,
                "seconds": seconds,
                "statements": self._statements,
                "locks": fresh,
            }
        )
        self._statements = []

    def _tables(self) -> set[str]:
        rows = self._connection.exec_driver_sql(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'm')"
        )
        return {str(table) for (table,) in rows}

    def _locks(self) -> list[str]:
        """Our locks on tables that stop queries of other sessions; those on tables that we made stop nobody."""
        rows = self._connection.exec_driver_sql(
            "SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() "
            "AND c.relkind IN ('r', 'p', 'm') AND l.pid = pg_backend_pid() ORDER BY 1, 2"
        )
        return [
            f"{table}: {mode}" for table, mode in rows if table in self._known and mode not in _WEAK_LOCKS
        ]


def _leave() -> contextlib.AbstractContextManager[None]:
    raise LeavesTransaction


def drop_invalid_indexes(connection: Connection, report: Report) -> None:
    """Drop what an interrupted ``CREATE INDEX CONCURRENTLY`` has left: it is not used, but slows down every write, and
    ``IF NOT EXISTS`` takes it for the real one.

    The caller is the only migrator of the schema; an index that somebody else builds just now is left alone.
    """
    found = connection.exec_driver_sql(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relname FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname = current_schema() "
        "AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)"
    ).all()
    for quoted, name in found:
        connection.exec_driver_sql(f"DROP INDEX {quoted}")
        report({"event": "mended", "message": f"dropped the index {name}, which was never finished"})
    connection.commit()
