"""The connections of a process, and the units of work on them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
import structlog
from pydantic import SecretStr
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from moorage.config.loading import ConfigError
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.db import Db
from moorage.database.faults import translated

log = structlog.get_logger("moorage.database")

Observe = Callable[[str, float], None]
"""Called with the kind of a statement (``select``) and its seconds."""

_TENANT: Final = "tenant"
_KINDS: Final = frozenset({"select", "insert", "update", "delete", "with"})
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0


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
        self._engine = _engine(settings.dsn, settings, name)
        session_class = type("UnitSession", (Session,), {})  # of its own: events are registered on classes
        event.listen(session_class, "after_begin", self._begin)
        self._sessions = async_sessionmaker(
            self._engine, expire_on_commit=False, sync_session_class=session_class
        )
        if observe is not None:
            _observe(self._engine, observe)

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine."""
        return self._engine

    @asynccontextmanager
    async def unit(self, *, tenant: str | None = None) -> AsyncIterator[Db]:
        """A unit of work: committed at the end, rolled back if the block raises.

        Args:
            tenant: whom every transaction in it works for; ``None``: nobody.

        Raises:
            AppError: what `faults.translated` makes of the database's errors.
        """
        with translated():
            async with self._sessions(info={_TENANT: tenant}) as session:
                yield Db(session)
                await session.commit()

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

    @property
    def address(self) -> str:
        """Host, port and database, for messages: no user, no password."""
        return f"{self._url.host}:{self._url.port or 5432}/{self._url.database}"

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    def _begin(self, session: Session, transaction: object, connection: Connection) -> None:
        """At the start of *every* transaction, as a commit in mid-request starts a new one without settings.

        Local to the transaction: with a pooler in transaction mode the next one on this connection is
        another's.
        """
        settings: dict[str, str] = {}
        if self._pooled and self._settings.statement_timeout:
            settings["statement_timeout"] = str(round(self._settings.statement_timeout * 1000))
        if session.info.get(_TENANT) is not None:
            settings["moorage.tenant"] = session.info[_TENANT]
        if settings:
            calls = ", ".join(f"set_config(:n{i}, :v{i}, true)" for i in range(len(settings)))
            values = {f"n{i}": name for i, name in enumerate(settings)}
            values |= {f"v{i}": value for i, value in enumerate(settings.values())}
            connection.execute(text(f"SELECT {calls}"), values)

    @property
    def _pooled(self) -> bool:
        return is_pooled(self._settings)


def is_pooled(settings: DatabaseSettings) -> bool:
    """Whether ``dsn`` leads through a pooler, told by a ``direct_dsn`` that is another."""
    return settings.direct_dsn is not None and settings.direct_dsn != settings.dsn


def async_url(dsn: SecretStr) -> URL:
    """SQLAlchemy's URL for a ``postgresql://`` DSN; raises `ConfigError` without showing the DSN."""
    try:
        url = make_url(dsn.get_secret_value())
    except (ArgumentError, ValueError):
        raise ConfigError(
            "database.dsn: not of the form postgresql://user:password@host:port/database"
        ) from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+asyncpg"}:
        raise ConfigError(f"database.dsn: {url.drivername}:// is not supported, only postgresql://")
    return url.set(drivername="postgresql+asyncpg")


def new_engine(dsn: SecretStr, *, connect_args: dict[str, Any], **options: Any) -> AsyncEngine:
    """An engine that connects by *dsn* as asyncpg reads it, with ``sslmode`` and the like in its query.

    SQLAlchemy would hand parts of the query such as ``sslmode=verify-full`` on as arguments that nobody takes.
    """
    url = async_url(dsn)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)

    async def connect(
        *_: object,
        host: str | None = None,
        port: int | None = None,
        user: str | None = None,
        password: str | None = None,
        database: str | None = None,
        **arguments: Any,
    ) -> Any:
        return await asyncpg.connect(plain, **arguments)

    return create_async_engine(
        url.set(query={}),
        hide_parameters=True,
        connect_args={**connect_args, "async_creator_fn": connect},
        **options,
    )


def connect_arguments(settings: DatabaseSettings, name: str, statement_timeout_s: float) -> dict[str, Any]:
    """What asyncpg is given. Through a pooler: no prepared statement and no setting outlives its
    transaction.
    """
    arguments: dict[str, Any] = {"timeout": settings.connect_timeout}
    if is_pooled(settings):
        return {
            **arguments,
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"moorage_{uuid4().hex}",
        }
    server = {"application_name": name, "timezone": "UTC"}
    if statement_timeout_s:
        server["statement_timeout"] = str(round(statement_timeout_s * 1000))
    return {**arguments, "server_settings": server}


def _engine(dsn: SecretStr, settings: DatabaseSettings, name: str) -> AsyncEngine:
    kept = min(settings.max_idle_connections, settings.max_connections)
    return new_engine(
        dsn,
        pool_size=max(kept, 1),
        max_overflow=settings.max_connections - max(kept, 1),
        pool_timeout=settings.acquire_timeout,
        pool_recycle=round(settings.conn_max_lifetime) or -1,
        pool_pre_ping=True,
        connect_args=connect_arguments(settings, name, settings.statement_timeout),
    )


def _observe(engine: AsyncEngine, observe: Observe) -> None:
    def before(connection: Connection, *_: object) -> None:
        connection.info["moorage_began"] = time.perf_counter()

    def after(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        kind = statement.lstrip().split(None, 1)[0].lower() if statement.strip() else ""
        took = time.perf_counter() - connection.info.pop("moorage_began", time.perf_counter())
        observe(kind if kind in _KINDS else "other", took)

    event.listen(engine.sync_engine, "before_cursor_execute", before)
    event.listen(engine.sync_engine, "after_cursor_execute", after)


def _first_line(exc: BaseException) -> str:
    """The cause's text; SQLAlchemy puts the statement and a link behind it."""
    origin = getattr(exc, "orig", None) or exc
    return (str(origin).splitlines() or [""])[0]
