"""Engines and connections: how a process reaches PostgreSQL, straight or through a pooler."""

import time
from collections.abc import Callable
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.queue import Empty

from moorage.config.loading import ConfigError
from moorage.config.settings import Database as DatabaseSettings
from moorage.database.faults import Unreachable

TROUBLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that was ended while it was idle, and does not know that it is closed
)
"""What asyncpg raises when the server or the way to it fails, on a connection of our own."""
_IDLE_SINCE: Final = "moorage_idle_since"
SURPLUS_S: Final = 5.0
"""How long connections beyond ``max_idle_connections`` wait for the next burst; opening one costs some 10 ms."""
_TRUSTED_S: Final = 1.0
"""A connection that was used so short a time ago is not asked whether it lives; whether it was closed is known."""


class Connections(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool, which can also be watched, and closes what nobody has used for long.

    The connection that was used last is taken first, so that the others become idle and go.
    """

    waiting = 0
    """How many wait for a connection now, or for a new one to be opened."""
    acquired: Callable[[float], None] | None = None
    """Gets how many seconds it took each time."""

    def connect(self) -> PoolProxiedConnection:
        """As SQLAlchemy's."""
        self.waiting += 1
        began = time.perf_counter()
        try:
            return super().connect()
        finally:
            self.waiting -= 1
            if self.acquired is not None:
                self.acquired(time.perf_counter() - began)

    async def reap(self, longest: float, keep: int) -> int:
        """Close idle connections; returns how many they were.

        Args:
            longest: seconds after which any is closed; 0: none is.
            keep: more than these are closed after `SURPLUS_S`.
        """
        idle: list[ConnectionPoolEntry] = []
        while True:
            try:
                idle.append(self._pool.get(False))
            except Empty:
                break
        now = time.monotonic()
        lain = [now - _info(entry).get(_IDLE_SINCE, now) for entry in idle]
        stale = [
            entry
            for at, (entry, seconds) in enumerate(zip(idle, lain, strict=True))
            if 0 < longest < seconds or (at >= keep and seconds > SURPLUS_S)
        ]
        for entry in reversed(idle):  # the last in is the first out
            if entry not in stale:
                self._pool.put(entry, False)
        for entry in stale:
            self._dec_overflow()
            await greenlet_spawn(entry.close)
        return len(stale)


def new_pooled_engine(settings: DatabaseSettings, name: str) -> tuple[AsyncEngine, Connections]:
    """The engine of a process by its settings, with its pool; ``dsn`` must be set."""
    assert settings.dsn is not None
    engine = new_engine(
        settings.dsn,
        poolclass=Connections,
        pool_size=settings.max_connections,
        max_overflow=0,
        pool_timeout=settings.acquire_timeout,
        pool_recycle=round(settings.conn_max_lifetime) or -1,
        pool_use_lifo=True,
        connect_args=connect_arguments(settings, name, settings.statement_timeout),
    )
    pool = engine.sync_engine.pool
    assert isinstance(pool, Connections)

    def note(connection: object, entry: ConnectionPoolEntry) -> None:
        _info(entry)[_IDLE_SINCE] = time.monotonic()

    def look(connection: Any, entry: ConnectionPoolEntry, _: object) -> None:
        since = _info(entry).get(_IDLE_SINCE)
        if since is None:
            return
        if connection.driver_connection.is_closed():
            raise InvalidatePoolError
        if time.monotonic() - since > _TRUSTED_S:
            try:
                engine.dialect.do_ping(connection)
            except Exception as exc:
                raise InvalidatePoolError from exc

    event.listen(pool, "checkin", note)
    event.listen(pool, "checkout", look)
    return engine, pool


def _info(entry: ConnectionPoolEntry) -> dict[Any, Any]:
    """What we have noted of a pooled connection; the entries of this pool always have it."""
    info = entry.record_info
    assert info is not None
    return info


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
        try:
            return await asyncpg.connect(plain, **arguments)
        except (OSError, TimeoutError) as exc:
            raise Unreachable(*(exc.args or ("it took too long to connect",))) from exc

    return create_async_engine(
        url.set(query={}),
        hide_parameters=True,
        connect_args={**connect_args, "async_creator_fn": connect},
        **options,
    )


def connect_arguments(settings: DatabaseSettings, name: str, statement_timeout_s: float) -> dict[str, Any]:
    """What asyncpg is given.

    Through a pooler no prepared statement outlives its transaction, and of settings only those that PgBouncer itself
    keeps for each client: others would be refused, or stay with a connection that the next client gets.
    """
    arguments: dict[str, Any] = {"timeout": settings.connect_timeout}
    server = {"application_name": name, "timezone": "UTC"}
    if is_pooled(settings):
        return {
            **arguments,
            "server_settings": server,
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,  # unnamed: one with a name would stay on some server connection
        }
    if statement_timeout_s:
        server["statement_timeout"] = str(round(statement_timeout_s * 1000))
    return {**arguments, "server_settings": server}
