"""The two modules of `modules/`, with tables, manifests and a gateway process before them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from moorage.testing import ModuleHarness
from rigs import otlp

HERE = Path(__file__).parent
_ORDERS = """\
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: orders}
spec: {version: 1.0.0, image: "x:1", app: "orders:module", database: {}, events: {publishes: [orders.order.placed]}}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: orders}
spec:
  module: orders
  prefix: /api/v1/orders
  rules: [{name: place, methods: [POST], path: "/{item}", auth: none}]
"""
_LEDGER = """\
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: ledger}
spec:
  version: 1.0.0
  image: x:1
  app: "ledger:module"
  database: {}
  events: {subscribes: [{type: orders.order.placed}]}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: ledger}
spec:
  module: ledger
  prefix: /api/v1/ledger
  rules: [{name: known, methods: [GET], path: "/items/{item}", auth: none}]
"""
_MIGRATION = '''\
"""The only table."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE TABLE {table}")
'''


@dataclass
class Site:
    """What runs: the edge's URL, the modules, what the collector has seen, what the gateway logged."""

    url: str
    orders: ModuleHarness
    ledger: ModuleHarness
    collector: otlp.Collector


def _module(root: Path, name: str, manifests: str, table: str) -> Path:
    folder = root / name
    (folder / "manifests").mkdir(parents=True)
    (folder / "manifests" / "all.yaml").write_text(manifests)
    versions = folder / "src" / name / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / "src" / name / "__init__.py").write_text(f"from traced import {name} as module\n")
    (versions / "0001_table.py").write_text(_MIGRATION.format(table=table))
    return folder


@asynccontextmanager
async def _gateway(root: Path, port: int, upstream: str, variables: Mapping[str, str]) -> AsyncIterator[str]:
    """A gateway process; gives its URL when it answers."""
    entry = {
        "namespace": "default",
        "module": "orders",
        "prefixes": ["/api/v1/orders"],
        "upstream": upstream,
        "guarded": True,
    }
    file = root / "gateway.json"
    file.write_text(json.dumps({"listen": {"port": port}, "admin": {"port": 0}, "modules": [entry]}))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "moorage",
        "gateway",
        "--config",
        file,
        env=environ | {"ENVIRONMENT": "development", **variables},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as client:
            while True:
                with suppress(aiohttp.ClientError):
                    async with client.get(f"http://127.0.0.1:{port}/"):
                        break
                assert process.returncode is None
                await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.fixture
async def site(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moorage_postgres: str,
    redis_server: str,
    unused_tcp_port_factory: Callable[[], int],
    backend: str,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Site]:
    """Both modules on *backend*, and the edge."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.syspath_prepend(HERE / "modules")
    shared = {"REDIS_URL": redis_server, "MOORAGE_INSTALLATION": f"traced-{os.urandom(4).hex()}"}
    # A busy machine is no failure: what is late is waited for.
    shared |= {"CACHE_TIMEOUT": "10s", "CLIENT_CONNECT_TIMEOUT": "10s", "CLIENT_TIMEOUT": "20s"}
    if backend == "kafka":
        shared["KAFKA_BROKERS"] = request.getfixturevalue("kafka_broker")
    folders = {
        name: _module(tmp_path, name, manifests, table)
        for name, manifests, table in (
            ("orders", _ORDERS, "placed (item text)"),
            ("ledger", _LEDGER, "entry (item text, trace_id text)"),
        )
    }
    for folder in folders.values():
        monkeypatch.syspath_prepend(folder / "src")
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(otlp.collecting())
        shared["TRACING_OTLP_ENDPOINT"] = collector.url
        ledger = await stack.enter_async_context(
            ModuleHarness(folders["ledger"], server_dsn=moorage_postgres, environ=shared)
        )
        registry = {"CLIENT_REGISTRY": json.dumps({"default/ledger": ledger.url})}
        orders = await stack.enter_async_context(
            ModuleHarness(folders["orders"], environ=shared | registry, beside=ledger)
        )
        variables = {"TRACING_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        url = await stack.enter_async_context(
            _gateway(tmp_path, unused_tcp_port_factory(), orders.url, variables)
        )
        yield Site(url, orders, ledger, collector)
    for name in ("orders", "ledger", "traced"):
        sys.modules.pop(name, None)
