"""``moorage serve`` as a process: start, wait, drain, stop."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moorage.guard import signing
from moorage.guard.policy import BaseDocument, Rule
from moorage.testing import SchemaDatabase
from rigs.waiting import until

_CODE = """
import asyncio
from moorage import Config, Module

import logging, os, time
from collections.abc import AsyncIterator
from moorage import Reloadable, Secrets

class ShopConfig(Config):
    greeting: Reloadable[str] = "hello"
    engine: str = "steam"

module = Module("shop", config=ShopConfig)

class Stuck:
    pass

@module.provide
async def stuck() -> AsyncIterator[Stuck]:
    yield Stuck()
    how = os.environ.get("STUCK")
    while how == "deaf":
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass
    if how == "slow":
        await asyncio.sleep(100)
    if how == "blocking":
        time.sleep(100)

@module.handle("slow")
async def slow(config: ShopConfig, secrets: Secrets, seconds: float = 0, block: float = 0) -> str:
    logging.getLogger("shop").debug("a detail")
    await asyncio.sleep(seconds)
    time.sleep(block)
    extra = secrets.current("extra").get_secret_value() if "extra" in secrets else ""
    return config.greeting + extra
"""


class Process:
    """A running ``moorage serve`` with its two ports; ``lines`` are what it has logged so far."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, admin_port: int) -> None:
        self.process, self.port, self.admin_port = process, port, admin_port
        self.lines: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.reading = asyncio.create_task(self._read())

    def said(self, message: str) -> bool:
        """Whether it has logged *message*."""
        return message in [line["message"] for line in self.lines]

    async def ended(self, within: float = 30) -> int:
        """Its status, once it has ended and all that it said was read."""
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await self.reading
        return status

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.other.append(line.decode())

    async def get(self, path: str, *, admin: bool = False) -> tuple[int, Any]:
        """Status and JSON; raises `aiohttp.ClientError` while nobody listens."""
        port = self.admin_port if admin else self.port
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as response,
        ):
            return response.status, await response.json()

    async def wait_for(self, path: str, status: int, *, seconds: float = 30) -> Any:
        """The JSON of an admin path once it answers with *status*."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                got, body = await self.get(path, admin=True)
                if got == status:
                    return body
            assert time.monotonic() < deadline, self.other
            assert self.process.returncode is None, self.other
            await asyncio.sleep(0.05)


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[Start]:
    """Start the module ``shop`` with a policy, on free ports; *environ* is added."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "shop_served.py").write_text(_CODE)
    rule = Rule(name="slow", methods=["GET"], path="/slow", auth="none", timeout_ms=30_000)
    document = BaseDocument(
        namespace="default", module="shop", sequence=1, issued_at="2026-01-01T00:00:00Z", rules=[rule]
    )
    signing.write_folder(tmp_path / "policy", document, signing.new_key())
    started: list[Process] = []

    async def run(target: str = "shop_served:module", **environ: str) -> Process:
        port, admin_port = unused_tcp_port_factory(), unused_tcp_port_factory()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moorage.cli", "serve", target),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
            env={
                **os.environ,
                "SERVER_HOST": "127.0.0.1",
                "SERVER_PORT": str(port),
                "ADMIN_HOST": "127.0.0.1",
                "ADMIN_PORT": str(admin_port),
                "MOORAGE_POLICY_DIR": str(tmp_path / "policy"),
                "SERVER_SHUTDOWN_GRACE": "0s",
                **environ,
            },
        )
        running = Process(process, port, admin_port)
        started.append(running)
        return running

    yield run
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
        await running.ended()


async def test_it_serves_until_sigterm_and_ends_with_0(start: Start) -> None:
    shop = await start(SHOP_GREETING="moin", MOORAGE_VERSION="1.2.3")
    await shop.wait_for("/ready", 200)
    assert await shop.get("/slow") == (200, "moin")
    assert (await shop.get("/healthz", admin=True))[0] == 200
    shop.process.send_signal(signal.SIGTERM)
    assert await shop.ended() == 0
    assert [line["message"] for line in shop.lines] == [
        "policy in force",
        "serving",
        "request",
        "stopping",
        "stopped",
    ]
    assert all(line["service"] == "shop" and line["version"] == "1.2.3" for line in shop.lines)
    assert shop.other == []


async def test_a_request_that_runs_is_finished_before_it_stops(start: Start) -> None:
    """Readiness goes first, then the door, then the process."""
    shop = await start(SERVER_SHUTDOWN_GRACE="60s", SERVER_SHUTDOWN_TIMEOUT="120s", LOGGING_LEVEL="debug")
    await shop.wait_for("/ready", 200)
    slow = asyncio.create_task(shop.get("/slow?seconds=2"))
    await until(lambda: shop.said("a detail"))
    shop.process.send_signal(signal.SIGTERM)
    body = await shop.wait_for("/ready", 503)
    assert body["status"] == "draining"
    assert (await shop.get("/slow"))[0] == 200, "during the grace period it still answers"
    shop.process.send_signal(signal.SIGTERM)  # enough of the grace period
    assert await slow == (200, "hello")
    assert await shop.ended() == 0


async def test_a_request_that_never_ends_is_cut_at_the_deadline(start: Start) -> None:
    shop = await start(SERVER_SHUTDOWN_TIMEOUT="2s", LOGGING_LEVEL="debug")
    await shop.wait_for("/ready", 200)
    slow = asyncio.create_task(shop.get("/slow?seconds=25"))
    await until(lambda: shop.said("a detail"))
    began = time.monotonic()
    shop.process.send_signal(signal.SIGTERM)
    assert await shop.ended() == 0
    assert time.monotonic() - began < 10
    with contextlib.suppress(aiohttp.ClientError, OSError):
        await slow


async def test_files_that_change_are_taken_and_what_may_not_change_is_refused(
    start: Start, tmp_path: Path
) -> None:
    """Level and greeting in the middle of its life, without a request that fails; a secret as well."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    shop = await start(MOORAGE_SECRETS_DIR=str(secrets))
    await shop.wait_for("/ready", 200)
    assert await shop.get("/slow") == (200, "hello")
    assert not shop.said("a detail")
    (secrets / "extra").write_text("!")
    assert await shop.get("/slow") == (200, "hello!")
    (tmp_path / "config.yaml").write_text("shop: {greeting: moin, engine: diesel}\nlogging: {level: debug}")
    deadline = time.monotonic() + 30
    while (await shop.get("/slow")) == (200, "hello!"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert await shop.get("/slow") == (200, "moin!")
    await until(lambda: shop.said("a detail"))
    status, told = await shop.get("/config", admin=True)
    assert (status, told["sequence"], told["error"]) == (200, 2, None)
    assert [one["field"] for one in told["refused"]] == ["shop.engine"]
    (tmp_path / "config.yaml").write_text("shop: {greeting: [}")
    while (told := (await shop.get("/config", admin=True))[1])["error"] is None:
        assert time.monotonic() < deadline + 30
        await asyncio.sleep(0.1)
    assert "config.yaml is not YAML" in told["error"]
    assert await shop.get("/slow") == (200, "moin!"), "the last good values stay"


@pytest.mark.parametrize(("how", "status"), [("slow", 0), ("deaf", 1), ("blocking", 1)])
async def test_what_is_stuck_while_closing_does_not_keep_the_process(
    start: Start, how: str, status: int
) -> None:
    """The whole shutdown ends in its time, about: at the latest a second after it the process ends itself."""
    shop = await start(SERVER_SHUTDOWN_TIMEOUT="2s", STUCK=how)
    await shop.wait_for("/ready", 200)
    began = time.monotonic()
    shop.process.send_signal(signal.SIGTERM)
    assert await shop.ended() == status
    assert time.monotonic() - began < 15, "it is stuck for 100 s"
    told = [line.get("part") for line in shop.lines if line["level"] == "error"] + shop.other
    assert any("Stuck" in str(one) or "shop_served.py" in str(one) for one in told)


async def test_a_handler_that_blocks_the_event_loop_does_not_keep_the_process(start: Start) -> None:
    shop = await start(SERVER_SHUTDOWN_TIMEOUT="1s", LOGGING_LEVEL="debug")
    await shop.wait_for("/ready", 200)
    blocked = asyncio.create_task(shop.get("/slow?block=60"))
    await until(lambda: shop.said("a detail"))
    began = time.monotonic()
    shop.process.send_signal(signal.SIGTERM)
    assert await shop.ended() == 1
    assert time.monotonic() - began < 15
    assert "shop_served.py" in "".join(shop.other), "it says where it was stuck"
    with contextlib.suppress(aiohttp.ClientError, OSError):
        await blocked


async def test_without_a_policy_it_is_alive_not_ready_and_denies(start: Start, tmp_path: Path) -> None:
    shop = await start(MOORAGE_POLICY_DIR=str(tmp_path / "none"))
    body = await shop.wait_for("/ready", 503)
    while body["status"] == "starting":
        await asyncio.sleep(0.05)
        body = await shop.wait_for("/ready", 503)
    assert "cannot be read" in body["checks"]["policy"]["error"]
    assert (await shop.get("/healthz", admin=True))[0] == 200
    status, answer = await shop.get("/slow")
    assert (status, answer["error"]["code"]) == (503, "no_policy")


@pytest.mark.postgres
async def test_it_waits_for_the_database_and_says_so(
    start: Start, moorage_database: SchemaDatabase, unused_tcp_port: int
) -> None:
    """A relay stands for a database that comes up late, goes away, and comes back."""
    host, port = moorage_database.app_dsn.rpartition("@")[2].partition("/")[0].split(":")
    dsn = moorage_database.app_dsn.replace(f"{host}:{port}", f"127.0.0.1:{unused_tcp_port}")
    shop = await start(DATABASE_DSN=dsn)
    body = await shop.wait_for("/ready", 503)
    while "database" not in body["checks"]:
        await asyncio.sleep(0.05)
        body = await shop.wait_for("/ready", 503)
    assert f"waiting for the database at 127.0.0.1:{unused_tcp_port}" in body["checks"]["database"]["error"]
    async with _relay(unused_tcp_port, host, int(port)):
        await shop.wait_for("/ready", 200)
    body = await shop.wait_for("/ready", 503)
    assert body["checks"]["database"]["ok"] is False
    async with _relay(unused_tcp_port, host, int(port)):
        await shop.wait_for("/ready", 200)
    password = dsn.partition("@")[0].rpartition(":")[2]
    assert password not in json.dumps(shop.lines)


@pytest.mark.postgres
async def test_sigterm_ends_it_while_it_waits(start: Start, unused_tcp_port: int) -> None:
    shop = await start(DATABASE_DSN=f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d")
    await shop.wait_for("/healthz", 200)
    shop.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(shop.process.wait(), 10) == 0


@contextlib.asynccontextmanager
async def _relay(port: int, host: str, target: int) -> AsyncIterator[None]:
    writers: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, target)
        writers.update((writer, server_writer))
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    yield
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("target", "environ", "message"),
    [
        ("shop_served", {}, "not of the form package:object"),
        ("nowhere:module", {}, "there is no package 'nowhere'"),
        ("shop_served:nothing", {}, "shop_served has no 'nothing'"),
        ("shop_served:ShopConfig", {}, "not a moorage.Module"),
        ("shop_served:module", {"SERVER_PORT": "x"}, "environment variable SERVER_PORT: server.port"),
        ("shop_served:module", {"MOORAGE_MODULE": "blog"}, "MOORAGE_MODULE says 'blog'"),
        ("shop_served:module", {"DATABASE_DSN": "mysql://u:hunter2@h/d"}, "database.dsn"),
        ("shop_served:module", {"SERVER_HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
)
async def test_what_cannot_start_says_why_in_a_line_and_ends_with_1(
    start: Start, target: str, environ: dict[str, str], message: str
) -> None:
    shop = await start(target, **environ)
    assert await asyncio.wait_for(shop.process.wait(), 20) == 1
    await asyncio.sleep(0.1)
    text = "".join(shop.other)
    assert message in text
    assert text.startswith("Error: ")
    assert "Traceback" not in text
    assert "hunter2" not in text
