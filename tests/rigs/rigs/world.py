"""Two modules that talk by events, as processes of their own, on real servers: what chaos tests and benchmarks run.

async with World(folder, "kafka").running() as world:
    shop = await world.spawn(SHOP, "shop-0")
    ...
    shop.kill()
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from pydantic import SecretStr

from moorage.database import platform
from moorage.database.embedded import EmbeddedPostgres
from moorage.database.engine import new_engine
from moorage.events.busschema import Access, converge_access, ensure_bus
from moorage.guard import signing
from moorage.guard.policy import BaseDocument, Rule
from rigs import kafka

_NAMESPACE: Final = "default"
_DATABASE: Final = "world"
_READY_TIMEOUT: Final = 60.0
BACKENDS: Final = ("postgres", "kafka")


@dataclass(frozen=True)
class Part:
    """One module: where its code is, what it declares, and the tables that it has besides the kernel's."""

    name: str
    target: str
    """``package:object``, found below the world's ``code`` folder."""
    publishes: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    routes: Mapping[str, str] = field(default_factory=dict)
    """Handler → ``METHOD /path``; open to everybody."""
    tables: str = ""


class Server:
    """A running ``moorage serve``."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, admin_port: int, log: Path) -> None:
        self.process, self.port, self.admin_port, self.log = process, port, admin_port, log

    @property
    def url(self) -> str:
        """Of the port for clients."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 40.0) -> None:
        """Ask it to end, as Kubernetes does, and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self.process.send_signal(signal.SIGCONT)

    def memory(self) -> int:
        """Its resident memory in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def cpu(self) -> float:
        """Seconds of processor time that it used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def ready(self) -> None:
        """Wait until it says so; raises `RuntimeError` with the end of its log where it does not."""
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READY_TIMEOUT):
                    while self.process.poll() is None:
                        with contextlib.suppress(aiohttp.ClientError):
                            async with session.get(f"http://127.0.0.1:{self.admin_port}/ready") as answer:
                                if answer.status == 200:
                                    return
                        await asyncio.sleep(0.05)
        raise RuntimeError(f"{self.log.stem} is not ready; the end of its log:\n{self.tail()}")

    def tail(self, characters: int = 3000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:]


class World:
    """A PostgreSQL, a broker where *backend* is Kafka, and the module processes on them.

    Args:
        folder: for data, policies and logs.
        backend: one of `BACKENDS`.
        code: folder that holds the modules' code.
        parts: the modules.
        environ: settings of every process.
        postgres: the server's parameters; by default without fsync, because killed processes lose nothing that the
            machine's kernel has.
    """

    def __init__(
        self,
        folder: Path,
        backend: str,
        *,
        code: Path,
        parts: tuple[Part, ...],
        environ: Mapping[str, str] | None = None,
        postgres: Mapping[str, str] = MappingProxyType({"fsync": "off"}),
    ) -> None:
        assert backend in BACKENDS
        self.folder, self.backend, self.code = folder, backend, code
        self.parts = {part.name: part for part in parts}
        self.environ = dict(environ or {})
        self.installation = f"w{secrets.token_hex(4)}"
        self.servers: dict[str, Server] = {}
        self.broker: kafka.Broker | None = None
        self.postgres = EmbeddedPostgres(folder / "postgres", settings=postgres, with_parent=True)
        self._password = secrets.token_hex(16)
        self._ports: dict[str, tuple[int, int]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Servers and schemas are there; everything ends with the block."""
        # The PostgreSQL of a root user has a user id of its own, which has to get to its folder.
        self.folder.chmod(0o711)
        try:
            await self.postgres.start()
            if self.backend == "kafka":
                self.broker = kafka.Broker(self.folder / "kafka")
                await asyncio.to_thread(self.broker.start)
            await self._provision()
            yield self
        finally:
            for server in self.servers.values():
                server.thaw()
                server.kill()
            if self.broker is not None:
                await asyncio.to_thread(self.broker.stop)
            await self.postgres.stop()
            self.postgres.purge()

    def spawn(self, part: str, name: str) -> Server:
        """Start a process of the module *part*; it has the ports that it had under this *name* before."""
        if name not in self._ports:
            self._ports[name] = _free_port(), _free_port()
        port, admin_port = self._ports[name]
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "moorage.cli", "serve", self.parts[part].target],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.code,
                env=self.environment(part, port, admin_port),
            )
        self.servers[name] = Server(process, port, admin_port, log)
        return self.servers[name]

    def environment(self, part: str, port: int = 0, admin_port: int = 0) -> dict[str, str]:
        """The variables of a process of *part*, as the platform would set them."""
        declared = self.parts[part]
        kafkas = {} if self.broker is None else {"KAFKA_BROKERS": self.broker.bootstrap}
        return {
            **os.environ,
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": str(port),
            "SERVER_SHUTDOWN_GRACE": "0s",
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": str(admin_port),
            "MOORAGE_INSTALLATION": self.installation,
            "MOORAGE_MODULE": part,
            "MOORAGE_NAMESPACE": _NAMESPACE,
            "MOORAGE_POLICY_DIR": str(self.folder / "policy" / part),
            "DATABASE_DSN": self.dsn(part),
            "EVENTS_PUBLISHES": json.dumps(declared.publishes),
            "EVENTS_SUBSCRIBES": json.dumps(
                [{"type": one, "retries": 5, "dead_letter": True} for one in declared.subscribes]
            ),
            **kafkas,
            **self.environ,
        }

    def dsn(self, part: str, role: str = "app") -> str:
        """How *part* reaches its schema; *role* ``owner`` may change tables."""
        return self._dsn(f"{part}_{role}:{self._password}")

    async def connect(self) -> Any:
        """A superuser's connection to the modules' database."""
        return await asyncpg.connect(self._dsn())

    async def value(self, query: str, *arguments: Any) -> Any:
        """One value, read by a superuser."""
        connection = await self.connect()
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    def logs(self) -> str:
        """The ends of all logs, for a failed test's report."""
        return "\n".join(f"--- {name}\n{server.tail()}" for name, server in self.servers.items())

    def _dsn(self, user: str | None = None) -> str:
        parts = urlsplit(self.postgres.dsn)
        netloc = parts.netloc if user is None else f"{user}@{parts.netloc.rpartition('@')[2]}"
        return urlunsplit(parts._replace(netloc=netloc, path=f"/{_DATABASE}"))

    async def _provision(self) -> None:
        server = await asyncpg.connect(self.postgres.dsn)
        try:
            await server.execute(f"CREATE DATABASE {_DATABASE}")
            await server.execute("CREATE ROLE bus NOLOGIN")
        finally:
            await server.close()
        admin = await self.connect()
        try:
            if self.backend == "postgres":
                await ensure_bus(admin, "bus")
            for part in self.parts.values():
                await self._provision_part(admin, part)
        finally:
            await admin.close()

    async def _provision_part(self, admin: Any, part: Part) -> None:
        owner, app = f"{part.name}_owner", f"{part.name}_app"
        await admin.execute(
            f"""
            CREATE ROLE {owner} LOGIN PASSWORD '{self._password}';
            CREATE ROLE {app} LOGIN PASSWORD '{self._password}';
            CREATE SCHEMA {part.name} AUTHORIZATION {owner};
            GRANT USAGE ON SCHEMA {part.name} TO {app};
            ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {part.name}
                GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
            ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {part.name}
                GRANT USAGE, SELECT ON SEQUENCES TO {app};
            ALTER ROLE {owner} IN DATABASE {_DATABASE} SET search_path = {part.name};
            ALTER ROLE {app} IN DATABASE {_DATABASE} SET search_path = {part.name};
            """
        )
        engine = new_engine(SecretStr(self.dsn(part.name, "owner")), connect_args={})
        async with engine.connect() as connection:
            await platform.converge(connection)
        await engine.dispose()
        own = await asyncpg.connect(self.dsn(part.name, "owner"))
        try:
            if part.tables:
                await own.execute(part.tables)
        finally:
            await own.close()
        if self.backend == "postgres":
            access = Access(app, _NAMESPACE, part.name, part.publishes, part.subscribes)
            await converge_access(admin, access)
        self._write_policy(part)

    def _write_policy(self, part: Part) -> None:
        rules = []
        for name, route in part.routes.items():
            method, _, path = route.partition(" ")
            rules.append(Rule(name=name, methods=[method], path=path, auth="none", timeout_ms=60_000))
        document = BaseDocument(
            namespace=_NAMESPACE, module=part.name, sequence=1, issued_at="2026-01-01T00:00:00Z", rules=rules
        )
        signing.write_folder(self.folder / "policy" / part.name, document, signing.new_key())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
