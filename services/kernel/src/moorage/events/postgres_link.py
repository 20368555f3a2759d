"""A module's connections to the Postgres bus: some that ask, and one that listens."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
import structlog
from pydantic import SecretStr

from moorage.config.settings import Database as DatabaseSettings
from moorage.database.engine import TROUBLE, async_url, is_pooled
from moorage.events.bus import BusUnavailable

log = structlog.get_logger("moorage.events")

_COMMAND_TIMEOUT: Final = 30.0
_KEEPALIVE: Final = 30.0


class Link:
    """The module's connections to the bus: few, opened when they are needed."""

    def __init__(self, database: DatabaseSettings, name: str, *, size: int) -> None:
        assert database.dsn is not None, "the bus needs database.dsn"
        self._database = database
        self._pooled = is_pooled(database)
        self._name = name
        self._size = size
        self._pool: Any = None

    async def open(self) -> None:
        if self._pool is None:
            assert self._database.dsn is not None
            with _translated():
                self._pool = await asyncpg.create_pool(
                    _plain(self._database.dsn),
                    min_size=0,
                    max_size=self._size,
                    command_timeout=_COMMAND_TIMEOUT,
                    max_inactive_connection_lifetime=60,
                    reset=_nothing,  # no state of a session is used
                    **self._options(self._pooled),
                )

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), 5)
            except TROUBLE:
                pool.terminate()

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Run *statement*, a transaction of its own; raises `BusUnavailable`."""
        with _translated():
            if self._pool is None:
                raise BusUnavailable("the event bus is not open")
            async with self._pool.acquire(timeout=self._database.acquire_timeout) as connection:
                if not self._pooled:
                    return list(await connection.fetch(statement, *values))
                # Through a pooler, preparing and executing would else meet two servers.
                async with connection.transaction():
                    return list(await connection.fetch(statement, *values))

    async def connect(self) -> Any:
        """A connection straight to the server, if there is a way."""
        dsn = self._database.direct_dsn or self._database.dsn
        assert dsn is not None
        return await asyncpg.connect(
            _plain(dsn), command_timeout=_COMMAND_TIMEOUT, **self._options(pooled=False)
        )

    def _options(self, pooled: bool) -> dict[str, Any]:
        options: dict[str, Any] = {"timeout": self._database.connect_timeout}
        if pooled:
            return {**options, "statement_cache_size": 0}
        return {**options, "server_settings": {"application_name": self._name}}


class Ear:
    """Listens for what the bus notifies of. It heals itself; who is not woken meanwhile polls."""

    def __init__(self, link: Link, heard: Callable[[str | None], None]) -> None:
        self._link = link
        self._heard = heard
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._topics: dict[str, str | None] = {}
        self.backend: int | None = None
        """The server's process for this connection: the others know by it that this member is there."""

    @property
    def listening(self) -> bool:
        return self.backend is not None

    @property
    def topics(self) -> set[str | None]:
        """What the group is subscribed to, as of the last connection."""
        return set(self._topics.values())

    async def start(self) -> None:
        """Returns after the first try, so that a member joins as one that is woken."""
        self._task = asyncio.create_task(self._run(), name="moorage-bus-listen")
        await self._first.wait()

    async def stop(self) -> None:
        await cancel([self._task])
        self._task = None

    async def _run(self) -> None:
        while True:
            try:
                direct = await self._listen()
            except TROUBLE as exc:
                log.warning("nobody wakes the consumer now", reason=_first_line(exc))
            else:
                if not direct:
                    log.info("the database is behind a pooler: the event bus is polled")
                    return
            finally:
                self.backend = None
                self._first.set()
            await asyncio.sleep(1.0)

    async def _listen(self) -> bool:
        """Listen until the connection ends; False at once if it is not the server's own."""
        connection = await self._link.connect()
        try:
            backend = await connection.fetchval("SELECT pg_backend_pid()")
            if backend != connection.get_server_pid():  # a pooler makes one up
                return False
            rows = await connection.fetch("SELECT channel, topic FROM moorage_bus.channels()")
            self._topics = {row["channel"]: row["topic"] for row in rows}
            for channel in self._topics:
                await connection.add_listener(channel, self._on_notify)
            self.backend = backend
            self._first.set()
            for topic in self._topics.values():
                self._heard(topic)  # of what came while nobody listened
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _: ended.set())
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KEEPALIVE):
                        await ended.wait()
                if not ended.is_set():
                    await connection.execute("SELECT 1")
            return True
        finally:
            connection.terminate()

    def _on_notify(self, _: object, __: int, channel: str, ___: object) -> None:
        self._heard(self._topics.get(channel))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TROUBLE as exc:
        raise BusUnavailable(_explained(exc)) from exc


def _explained(exc: BaseException) -> str:
    if isinstance(
        exc,
        (
            asyncpg.InvalidSchemaNameError,
            asyncpg.UndefinedFunctionError,
            asyncpg.InsufficientPrivilegeError,
        ),
    ):
        return (
            f"the database's event bus is not there for this role ({_first_line(exc)}); does spec.events of the "
            "Module declare anything, and has the operator seen it?"
        )
    hint = getattr(exc, "hint", None)
    return f"the event bus: {_first_line(exc)}" + (f" ({hint})" if hint else "")


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _plain(dsn: SecretStr) -> str:
    return str(async_url(dsn).set(drivername="postgresql").render_as_string(hide_password=False))


async def cancel(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _nothing(_: object) -> None:
    return None
