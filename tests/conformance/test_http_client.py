"""Calls to modules are alike whether modules are found in a registry or by DNS."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from moorage import Clients, Model, UpstreamError, UpstreamNotFound, UpstreamTimeout, UpstreamUnavailable
from moorage.client.calls import Caller, Target
from moorage.client.client import states
from moorage.client.identity import OwnToken
from moorage.client.observed import Counts
from moorage.client.targets import Dns, Registry
from moorage.config.settings import Client as ClientSettings
from moorage.metrics import Metrics
from moorage.tracing import NullTracer

BACKENDS = ["registry", "registry file", "dns"]


class Shelf(Model):
    left: int


@dataclass
class ClusterDns(AbstractResolver):
    """What a cluster's DNS knows: Services by name. It gives ports as well, since none of ours can be 80 here."""

    services: dict[str, int] = field(default_factory=dict)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self.services:
            raise OSError(f"{host}: name or service not known")
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=self.services[host],
                family=socket.AF_INET,
                proto=0,
                flags=0,
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Stock:
    """The called module, wherever it is."""

    port: int = 0
    seen: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        match request.path:
            case "/shelf/tea":
                return web.json_response({"left": 3, "newer": True})
            case "/slow":
                await asyncio.sleep(3600)
            case "/busy" if len(self.seen) == 1:
                return web.json_response({}, status=503)
            case "/busy":
                return web.json_response({"left": 1})
        body = {"error": {"code": "article_not_found", "message": "No.", "details": {}, "request_id": "r"}}
        return web.json_response(body, status=404)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def stock() -> AsyncIterator[Stock]:
    stock = Stock()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stock.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stock.port = site.port
    yield stock
    await runner.cleanup()


@pytest.fixture
async def clients(backend: str, stock: Stock, tmp_path: Path) -> AsyncIterator[Clients]:
    """``stock`` in the own namespace and ``identity`` in the core's are the same server; ``down`` is nobody."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    ports = {("default", "stock"): stock.port, ("core", "identity"): stock.port, ("default", "down"): nobody}
    resolver = None
    if backend == "dns":
        places: Any = Dns()
        resolver = ClusterDns({f"{name}.{namespace}.svc": port for (namespace, name), port in ports.items()})
    else:
        text = json.dumps(
            {f"{space}/{name}": f"http://127.0.0.1:{port}" for (space, name), port in ports.items()}
        )
        (tmp_path / "registry.json").write_text(text)
        places = Registry(text if backend == "registry" else str(tmp_path / "registry.json"))
    token = tmp_path / "token"
    token.write_text("own")
    targets: dict[str, Target] = {}
    caller = Caller(
        ClientSettings(timeout=60, connect_timeout=20),
        places=places,
        identity=OwnToken(token),
        counts=Counts(Metrics(module="m", version="1", revision=""), lambda: states(targets)),
        tracer=NullTracer(),
        resolver=resolver,
    )
    yield Clients(caller, targets, namespace="default", core_namespace="core")
    await caller.close()


async def test_a_module_is_found_by_its_name(clients: Clients) -> None:
    assert await clients("stock").get("/shelf/{article}", article="tea", into=Shelf) == Shelf(left=3)


async def test_a_core_module_is_found_without_its_namespace(clients: Clients) -> None:
    assert await clients("identity").get("/shelf/tea", into=Shelf) == Shelf(left=3)
    assert clients("identity").target == "core/identity"


async def test_the_own_token_and_what_time_is_left_go_along(clients: Clients, stock: Stock) -> None:
    await clients("stock").get("/shelf/tea", timeout=20)
    headers = stock.seen[0].headers
    assert headers["Authorization"] == "Bearer own"
    assert 10_000 < int(headers["X-Moorage-Timeout-Ms"]) <= 20_000


async def test_a_refusal_is_an_error_with_the_others_code(clients: Clients) -> None:
    with pytest.raises(UpstreamNotFound) as caught:
        await clients("stock").get("/shelf/wine", into=Shelf)
    assert (caught.value.answered, caught.value.upstream_code) == (404, "article_not_found")


async def test_a_module_that_is_down_is_unavailable(clients: Clients) -> None:
    with pytest.raises(UpstreamUnavailable):
        await clients("down").get("/")


@pytest.mark.parametrize("name", ["unknown", "elsewhere/stock"])
async def test_a_module_that_nobody_knows_is_unavailable(clients: Clients, name: str) -> None:
    with pytest.raises(UpstreamUnavailable) as caught:
        await clients(name).get("/shelf/tea")
    assert caught.value.status == 503


async def test_a_passing_failure_is_tried_again(clients: Clients, stock: Stock) -> None:
    assert await clients("stock").get("/busy", into=Shelf) == Shelf(left=1)
    assert len(stock.seen) == 2


async def test_a_call_ends_in_time(clients: Clients) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(UpstreamTimeout):
        await clients("stock").get("/slow", timeout=0.2)
    assert asyncio.get_running_loop().time() - began < 10


async def test_every_failure_is_of_one_kind(clients: Clients) -> None:
    for name, path in (("down", "/"), ("unknown", "/"), ("stock", "/shelf/wine")):
        with pytest.raises(UpstreamError):
            await clients(name).get(path)
