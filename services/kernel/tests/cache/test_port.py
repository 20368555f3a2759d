"""The cache as a module's handlers get it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moorage import Cache, Config, Module
from moorage.assembly import Assembly
from moorage.cache.port import _all_of
from moorage.config import ConfigError, load
from moorage.module import DeclarationError
from moorage.scope import current
from moorage.testing import ModuleHarness
from rigs.waiting import until


class ShopConfig(Config):
    greeting: str = "hello"


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., ModuleHarness]:
    """``harness(module, **environ)``: served with a rule ``any``, GET /."""

    def make(module: Module, **environ: str) -> ModuleHarness:
        rules = [{"name": "any", "methods": ["GET"], "path": "/", "auth": "optional"}]
        resources: list[Any] = [
            {"kind": "Module", "spec": {"version": "1.0.0", "image": "x:1", "app": "x:y"}},
            {"kind": "Route", "spec": {"module": "shop", "rules": rules}},
        ]
        for resource in resources:
            resource |= {"apiVersion": "moorage.dev/v1alpha1", "metadata": {"name": "shop"}}
        (tmp_path / "all.yaml").write_text("\n---\n".join(json.dumps(one) for one in resources))
        return ModuleHarness(tmp_path, module=module, environ=environ)

    return make


def counting(calls: list[object]) -> Module:
    module = Module("shop", config=ShopConfig)

    async def load(config: ShopConfig) -> dict[str, str | None]:
        scope = current.get()
        assert scope is not None
        calls.append(scope)
        return {"greeting": config.greeting, "tenant": scope.tenant}

    @module.handle("any")
    async def handle(cache: Cache) -> dict[str, str | None]:
        return await cache.get_or_compute("k", load)

    return module


@pytest.fixture(params=["memory", "redis"])
def environ(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "memory":
        return {}
    # Nobody else of this session uses an installation of this name.
    name = f"t{id(request):x}"
    url = request.getfixturevalue("redis_server")
    return {"REDIS_URL": url, "MOORAGE_INSTALLATION": name, "CACHE_TIMEOUT": "20s"}


async def test_it_is_computed_in_a_scope_of_its_own_for_the_callers_tenant(
    harness: Any, environ: dict[str, str]
) -> None:
    calls: list[Any] = []
    async with harness(counting(calls), SHOP_GREETING="hi", **environ) as shop:
        for tenant in (None, "acme", "bolt"):
            for _ in range(2):
                answer = await shop.client(tenant=tenant).get("/")
                assert answer.body == {"greeting": "hi", "tenant": tenant}
        assert [scope.tenant for scope in calls] == [None, "acme", "bolt"]
        problems = (await shop.admin.get("/ready")).body
        assert "cache" not in str(problems) or "degraded" not in str(problems)


async def test_switched_off_everything_is_computed(harness: Any) -> None:
    calls: list[Any] = []
    async with harness(counting(calls), CACHE_ENABLED="false") as shop:
        for _ in range(3):
            assert (await shop.anonymous().get("/")).status == 200
    assert len(calls) == 3


async def test_a_redis_that_is_not_there_degrades_and_does_not_keep_from_starting(
    harness: Any,
) -> None:
    calls: list[Any] = []
    async with harness(
        counting(calls), REDIS_URL="redis://:hunter2@127.0.0.1:1/0", CACHE_TIMEOUT="50ms"
    ) as shop:
        for _ in range(5):
            assert (await shop.anonymous().get("/")).status == 200
        ready = await shop.admin.get("/ready")
        assert ready.status == 200
        assert "cache" in ready.content.decode()
        assert "degraded" in ready.content.decode()
        assert "hunter2" not in ready.content.decode()
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"CACHE_BACKEND": "redis"}, "REDIS_URL"),
        ({"REDIS_URL": "http://user:hunter2@x"}, r"redis\.url"),
        ({"REDIS_URL": "redis://user:hunter2@host:port/0"}, r"redis\.url"),
        ({"CACHE_TTL": "0s"}, r"cache\.ttl"),
    ],
)
def test_settings_that_cannot_work_end_the_start_without_showing_secrets(
    environ: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Assembly.of(Module("shop"), load(environ=environ, folder=tmp_path))
    assert "hunter2" not in str(caught.value)


async def test_what_nothing_provides_is_named(harness: Any) -> None:
    module = Module("shop")
    found: list[str] = []

    async def load(body: int) -> int:
        return body

    @module.handle("any")
    async def handle(cache: Cache) -> None:
        with pytest.raises(DeclarationError) as caught:
            await cache.get_or_compute("k", load)
        found.append(str(caught.value))

    async with harness(module) as shop:
        assert (await shop.anonymous().get("/")).status == 204
    assert "nothing provides the parameter 'body'" in found[0]


async def test_values_can_be_bound_before(harness: Any) -> None:
    module = Module("shop", config=ShopConfig)

    async def greet(name: str, config: ShopConfig) -> tuple[str, str]:
        return config.greeting, name

    @module.handle("any")
    async def handle(cache: Cache) -> list[str]:
        found = [
            await cache.get_or_compute(("greet", name), partial(greet, name)) for name in ("a", "b", "a")
        ]
        assert all(isinstance(one, tuple) for one in found)
        return [" ".join(one) for one in found]

    async with harness(module) as shop:
        assert (await shop.anonymous().get("/")).body == ["hello a", "hello b", "hello a"]


async def test_a_refresh_outlives_the_request_that_began_it(harness: Any) -> None:
    """Its scope is its own: what the request held open is closed by then."""
    module = Module("shop")
    done: list[object] = []
    answered = asyncio.Event()

    async def load(cache: Cache) -> str:
        mine = current.get()
        if await cache.exists("primed"):
            await answered.wait()
        assert current.get() is mine
        done.append(mine)
        return "v"

    @module.handle("any")
    async def handle(cache: Cache) -> str:
        result = await cache.get_or_compute("k", load, ttl=0.05, stale=60)
        await cache.set("primed", True)
        return result

    async with harness(module) as shop:
        await shop.anonymous().get("/")
        await asyncio.sleep(0.08)
        assert (await shop.anonymous().get("/")).body == "v"
        assert len(done) == 1
        answered.set()
        await until(lambda: len(done) == 2)
        assert done[0] is not done[1]


def test_the_pattern_of_everything_matches_nothing_else() -> None:
    assert _all_of(b"a*[x]?\\:") == rb"a\*\[x\]\?\\:[vVtT]:*"


def test_a_module_without_a_cache_does_not_carry_redis() -> None:
    """Measured in a process of its own: the client of Redis takes 12 MiB."""
    script = """
import asyncio, sys, tempfile, pathlib
from moorage import Module
from moorage.assembly import Assembly
from moorage.config import load

async def main():
    environ = {"REDIS_URL": "redis://127.0.0.1:1/0"}
    assembly = Assembly.of(Module("shop"), load(environ=environ, folder=pathlib.Path(tempfile.mkdtemp())))
    async with assembly.opened():
        pass

asyncio.run(main())
print(sorted(name for name in ("redis", "sqlalchemy", "aiokafka", "stamina") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
