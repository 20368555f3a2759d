"""Event buses for tests that hold for each of them: a `Bus` gives the halves of any module, real and unopened."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from pydantic import SecretStr

from moorage.config.settings import Database
from moorage.events.bus import Publisher, Subscriber
from moorage.events.busschema import Access, converge_access, ensure_bus
from moorage.events.postgres import PostgresPublisher, PostgresSubscriber


class Bus(Protocol):
    """One empty bus. Modules are named by namespace and name; their group is theirs alone."""

    core_namespace: str

    async def declare(
        self, namespace: str, module: str, *, publishes: Sequence[str] = (), subscribes: Sequence[str] = ()
    ) -> None:
        """What ``spec.events`` of the Module says, as types; before anything of it is opened."""

    def publisher(self, namespace: str, module: str) -> Publisher:
        """The module's sending half."""

    def subscriber(self, namespace: str, module: str, *, lease: float = 15.0) -> Subscriber:
        """A new member of the module's group."""

    async def freeze(self, subscriber: Subscriber) -> None:
        """Have *subscriber* say nothing any more, as if its process was stopped; its connections stay."""


@dataclass
class PostgresBus:
    """A database with a bus, on the server of *admin_dsn*; *through*: how modules reach it, if by a pooler."""

    admin_dsn: str
    name: str
    through: Callable[[str], str] | None = None
    core_namespace: str = "moorage-system"

    def __post_init__(self) -> None:
        self.password = secrets.token_hex(16)
        self._roles: dict[tuple[str, str], str] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def create(
        cls, server_dsn: str, through: Callable[[str], str] | None = None
    ) -> AsyncIterator["PostgresBus"]:
        """Make the database; it is dropped at the end, with all roles."""
        name = f"bus_{secrets.token_hex(5)}"
        async with _connected(server_dsn) as server:
            await server.execute(f"CREATE DATABASE {name}")
            await server.execute(f"CREATE ROLE {name} NOLOGIN")
        bus = cls(_with(server_dsn, path=f"/{name}"), name, through)
        try:
            async with _connected(bus.admin_dsn) as admin:
                await ensure_bus(admin, name)
            yield bus
        finally:
            async with _connected(server_dsn) as server:  # a new one: a test may have killed the server
                await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
                for role in (*bus._roles.values(), name):
                    await server.execute(f"DROP ROLE {role}")

    async def declare(
        self, namespace: str, module: str, *, publishes: Sequence[str] = (), subscribes: Sequence[str] = ()
    ) -> None:
        """See `Bus`."""
        role = await self.role(namespace, module)
        access = Access(role, namespace, module, publishes, subscribes, self.core_namespace)
        async with _connected(self.admin_dsn) as admin:
            await converge_access(admin, access)

    async def role(self, namespace: str, module: str) -> str:
        """The module's app role; made if it is missing."""
        if (namespace, module) not in self._roles:
            role = f"{self.name}_{len(self._roles)}"
            async with _connected(self.admin_dsn) as admin:
                await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{self.password}'")
            self._roles[namespace, module] = role
        return self._roles[namespace, module]

    def settings(self, namespace: str, module: str) -> Database:
        """The group ``database`` of a declared module."""
        direct = self.dsn(namespace, module)
        if self.through is None:
            return Database(dsn=SecretStr(direct))
        return Database(dsn=SecretStr(self.through(direct)), direct_dsn=SecretStr(direct))

    def dsn(self, namespace: str, module: str) -> str:
        """A declared module's way straight to the server."""
        return _with(self.admin_dsn, user=f"{self._roles[namespace, module]}:{self.password}")

    def publisher(self, namespace: str, module: str) -> PostgresPublisher:
        """See `Bus`."""
        return PostgresPublisher(self.settings(namespace, module), name=module)

    def subscriber(self, namespace: str, module: str, *, lease: float = 15.0) -> PostgresSubscriber:
        """See `Bus`."""
        return PostgresSubscriber(self.settings(namespace, module), name=module, lease=lease, poll=0.5)

    async def freeze(self, subscriber: Subscriber) -> None:
        """See `Bus`."""
        assert isinstance(subscriber, PostgresSubscriber)
        for task in subscriber._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def _with(dsn: str, *, user: str | None = None, path: str | None = None) -> str:
    parts = urlsplit(dsn)
    before, _, address = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user or before}@{address}", path=path or parts.path))
