"""The units of work of a process."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from moorage.config.loading import ConfigError
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.db import TENANCY, Db
from moorage.database.engine import SURPLUS_S, Connections, async_url, is_pooled, new_pooled_engine
from moorage.database.faults import Again, translated
from moorage.database.tenancy import SCOPE_SETTING, TENANT_POLICY, TENANT_SETTING, Tenancy
from moorage.database.watching import Observe, observe_statements

log = structlog.get_logger("moorage.database")

T = TypeVar("T")
DeadlineOf = Callable[[], float | None]
"""Says until when, in the event loop's time; ``None``: there is no limit (any more)."""
_DEADLINE: Final = "moorage_deadline"
_NEAR: Final = 1.0
"""Seconds: a deadline that is later than this before the statement timeout is not worth a round trip."""
_LEAST_TIMEOUT: Final = 0.001
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
_FIRST_REPEAT: Final = 0.02

_BYPASS: Final = """
SELECT current_user AS role, c.relname,
    CASE WHEN r.rolsuper THEN 'superuser' WHEN r.rolbypassrls THEN 'BYPASSRLS' ELSE 'owner' END AS why
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_roles r ON r.rolname = current_user
WHERE n.nspname = current_schema() AND p.polname = :policy
    AND (r.rolsuper OR r.rolbypassrls OR pg_has_role(current_user, c.relowner, 'USAGE'))
ORDER BY c.relname LIMIT 1
"""


class Pool:
    """The module's database for one process.

    Args:
        settings: the group ``database``; its ``dsn`` must be set.
        name: what the server shows as ``application_name``.
        observe: gets every statement's duration; ``None``: nobody.
    """

    def __init__(self, settings: DatabaseSettings, *, name: str, observe: Observe | None = None) -> None:
        if settings.dsn is None:
            raise ConfigError("database.dsn: not set; the environment variable is DATABASE_DSN")
        self._settings = settings
        self._url = async_url(settings.dsn)
        self._engine, self._connections = new_pooled_engine(settings, name)
        session_class = type("UnitSession", (Session,), {})  # of its own: events are registered on classes
        event.listen(session_class, "after_begin", self._begin)
        self.session_class = session_class
        """Of every unit of work; other ports listen to its events."""
        self.info: dict[str, object] = {}
        """What every unit of work carries in its session's ``info``, for other ports."""
        self._sessions = async_sessionmaker(
            self._engine, expire_on_commit=False, sync_session_class=session_class
        )
        if observe is not None:
            observe_statements(self._engine, observe)

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine."""
        return self._engine

    @property
    def connections(self) -> Connections:
        """SQLAlchemy's pool of connections."""
        return self._connections

    @asynccontextmanager
    async def unit(
        self, *, tenant: str | None = None, system: str | None = None, deadline: DeadlineOf | None = None
    ) -> AsyncIterator[Db]:
        """A unit of work: committed at the end, rolled back if the block raises.

        Args:
            tenant: whom every transaction in it works for; ``None``: nobody, rows of tenants are not seen.
            system: why it needs the rows of all tenants; ``None``: it does not.
            deadline: says when it has to be done, in the event loop's time; no statement goes on much longer. It is
                asked for each transaction, as it may be lifted meanwhile.

        Raises:
            AppError: what `faults.translated` makes of the database's errors.
        """
        info = {**self.info, TENANCY: Tenancy.of(tenant, system), _DEADLINE: deadline}
        with translated():
            async with self._sessions(info=info) as session:
                yield Db(session)
                await session.commit()

    async def repeatable(
        self,
        work: Callable[[Db], Awaitable[T]],
        *,
        attempts: int = 3,
        tenant: str | None = None,
        system: str | None = None,
        deadline: DeadlineOf | None = None,
    ) -> T:
        """Do *work* in a unit of its own, again if it failed only because of what others did at the same time.

        Use it for work that changes nothing but the database. Serialisation failures, deadlocks and locks that could
        not be had are repeated after a random pause; any other error is raised at once, the last of those too.
        """
        for attempt in range(attempts):
            try:
                async with self.unit(tenant=tenant, system=system, deadline=deadline) as db:
                    return await work(db)
            except Again:
                if attempt + 1 == attempts:
                    raise
                # Random, or those who met once meet again.
                await asyncio.sleep(random.uniform(0, _FIRST_REPEAT * 2**attempt))  # noqa: S311 - no secret
        raise AssertionError("attempts must be at least 1")

    async def switch(self, db: Db, tenant: str | None) -> None:
        """Let the open transaction of *db* work for *tenant* from here on, and forget what it has loaded.

        For infrastructure that does the work of several tenants in one transaction, such as a batch of events. Modules
        have `Db.use_tenant`, which never leaves a tenant for another one.
        """
        await db.session.flush()
        db.session.expunge_all()
        tenancy = Tenancy.of(tenant)
        db.session.info[TENANCY] = tenancy
        if db.session.in_transaction():
            values = {TENANT_SETTING: "", SCOPE_SETTING: "", **tenancy.settings()}
            calls = (func.set_config(name, value, True) for name, value in values.items())
            await db.session.execute(select(*calls))

    async def ping(self) -> None:
        """Ask the server for an answer; raises what goes wrong."""
        async with self._engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def wait(self, report: Callable[[str], None]) -> None:
        """Wait until the server answers, telling *report* why it does not yet."""
        pause = _FIRST_PAUSE
        began = time.monotonic()
        while True:
            try:
                await self.ping()
            except Exception as exc:  # noqa: BLE001 - whatever it is: a server that starts says many things
                reason = f"{type(exc).__name__}: {_first_line(exc)}"
                report(f"waiting for the database at {self.address}: {reason}")
                log.warning(
                    "waiting for the database",
                    address=self.address,
                    reason=reason,
                    waited_s=round(time.monotonic() - began, 1),
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                report("")
                return

    async def refuse_bypass(self) -> None:
        """See to it that row-level security holds for our role, if the schema has tables of tenants.

        Raises:
            ConfigError: it is a superuser, has BYPASSRLS, or owns such a table: it would see the rows of all tenants.
        """
        async with self._engine.connect() as connection:
            found = (await connection.execute(text(_BYPASS), {"policy": TENANT_POLICY})).first()
        if found is not None:
            raise ConfigError(
                f"database.dsn: the role {found.role} passes row-level security by ({found.why}), so that it would see "
                f"the rows of all tenants in table {found.relname}; connect as the module's app role, which only reads "
                "and writes rows"
            )

    async def reap(self) -> None:
        """Close connections that nobody has used for ``conn_max_idle_time``, and sooner those beyond
        ``max_idle_connections``, for as long as the process runs.
        """
        longest, keep = self._settings.conn_max_idle_time, self._settings.max_idle_connections
        while True:
            await asyncio.sleep(max(min(longest / 4 or SURPLUS_S, SURPLUS_S), 0.05))
            await self._connections.reap(longest, keep)

    @property
    def address(self) -> str:
        """Host, port and database, for messages: no user, no password."""
        return f"{self._url.host}:{self._url.port or 5432}/{self._url.database}"

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    def _begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        """At the start of *every* transaction, as a commit in mid-request starts a new one without settings.

        Local to the transaction: with a pooler in transaction mode the next one on this connection is
        another's.
        """
        if transaction.nested:
            return  # a savepoint has the settings of its transaction
        settings: dict[str, str] = dict(session.info[TENANCY].settings())
        deadline: DeadlineOf | None = session.info[_DEADLINE]
        timeout = self._timeout(None if deadline is None else deadline())
        if timeout is not None:
            settings["statement_timeout"] = str(round(timeout * 1000))
        if settings:
            calls = (func.set_config(name, value, True) for name, value in settings.items())
            connection.execute(select(*calls))

    def _timeout(self, deadline: float | None) -> float | None:
        """The statement timeout to set for a transaction, in seconds; ``None``: the session has a fitting one.

        A connection through a pooler has none of its own. The deadline is kept by who set it, too, but by cutting the
        connection: the server's own timeout leaves it usable.
        """
        usual = self._settings.statement_timeout
        own = usual if usual and is_pooled(self._settings) else None
        left = None if deadline is None else deadline - asyncio.get_running_loop().time()
        if left is None or left < _LEAST_TIMEOUT:
            # Past its deadline, whoever still runs may: an answer that has begun to stream, for one.
            return own
        return left if not usual or left < usual - _NEAR else own


def _first_line(exc: BaseException) -> str:
    """The cause's text; SQLAlchemy puts the statement and a link behind it."""
    origin: Any = getattr(exc, "orig", None) or exc
    return (str(origin).splitlines() or [""])[0]
