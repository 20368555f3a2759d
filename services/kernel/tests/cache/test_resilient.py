"""Redis that is killed, hangs or refuses: the process goes on without, and nothing outdated comes back."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from moorage.cache.cache import Cache, Engine
from moorage.cache.keys import Names
from moorage.cache.observed import Counts
from moorage.cache.port import _all_of, asks
from moorage.cache.redis import RedisStore
from moorage.cache.resilient import ResilientStore
from moorage.cache.store import CacheUnavailable
from moorage.health import NotReady
from moorage.metrics import Metrics
from moorage.tracing import NullTracer
from rigs.waiting import until

QUICK = 0.2
"""Seconds that a call may take where Redis hangs; elsewhere it has time, or a busy machine would be an outage."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Any]:
    """A Redis of this module's own, which it may kill."""
    from rigs import RigUnavailable, redis
    from rigs.plugin import available

    assert RigUnavailable is not None
    with available(), redis.running() as server:
        yield server


@dataclass
class Process:
    """One process's cache on the rig."""

    cache: Cache
    store: ResilientStore
    metrics: Metrics

    async def back(self, patience: float = 60.0) -> None:
        """Wait until it is believed again."""
        async with asyncio.timeout(patience):
            while self.store.away:  # noqa: ASYNC110 - what is tested tells nobody
                await asyncio.sleep(0.02)

    def errors(self, operation: str) -> float:
        return self.metrics.registry.get_sample_value("cache_errors_total", {"operation": operation}) or 0


async def run(compute: Any, tenant: str | None, encode: Any) -> bytes:
    return encode(await compute("filled"))


@pytest.fixture
async def start(rig: Any) -> AsyncIterator[Any]:
    """``start(timeout)``: another process on the same entries."""
    inside = f"test:{secrets.token_hex(4)}:".encode()
    made: list[Engine] = []

    def process(timeout: float = 20.0) -> Process:
        metrics = Metrics(module="m", version="1", revision="")
        counts = Counts(metrics)

        async def connect() -> RedisStore:
            return RedisStore(rig.url, timeout=timeout, max_connections=10, client_name="t")

        store = ResilientStore(
            connect, timeout=timeout, everything=_all_of(inside), counts=counts, tracer=NullTracer()
        )
        engine = Engine(store, counts, run, asks, lease=1.0)
        made.append(engine)
        return Process(Cache(engine, Names(inside)), store, metrics)

    yield process
    for engine in made:
        await engine.close()


async def value() -> str:
    return "computed"


async def quickly(work: Any, seconds: float = 10.0) -> Any:
    began = time.perf_counter()
    result = await work
    assert time.perf_counter() - began < seconds
    return result


async def test_without_redis_everything_goes_on_but_counts(rig: Any, start: Any) -> None:
    one = start()
    await one.cache.set("k", "kept")
    rig.kill()
    try:
        for _ in range(3):
            assert await quickly(one.cache.get("k")) is None
        assert one.store.away
        with pytest.raises(NotReady, match=r"Error"):
            await one.store.ping()
        assert await quickly(one.cache.get_or_compute("k", value)) == "computed"
        assert not await one.cache.exists("k")
        assert await one.cache.delete("k") == 0
        await one.cache.invalidate("t")
        with pytest.raises(CacheUnavailable) as caught:
            await one.cache.increment("n")
        assert caught.value.status == 503
    finally:
        rig.start()
    await one.back()
    assert await one.cache.increment("n") == 1
    await one.store.ping()


async def test_a_dead_redis_costs_nothing_once_it_is_known(
    rig: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = start()
    asked: list[bytes] = []

    async def get(store: RedisStore, key: bytes) -> None:
        asked.append(key)

    rig.kill()
    try:
        for _ in range(3):
            await one.cache.get("k")
        monkeypatch.setattr(RedisStore, "get", get)
        began = time.process_time()
        for _ in range(1000):
            await one.cache.get("k")
        assert time.process_time() - began < 2
        assert asked == []
        assert one.errors("get") > 1000
    finally:
        rig.start()
    await one.back()


async def test_a_redis_that_hangs_holds_a_request_up_for_no_longer_than_the_timeout(
    rig: Any, start: Any
) -> None:
    await start().cache.set("k", "kept")
    one = start(QUICK)
    rig.freeze()
    try:
        work = asyncio.gather(*(one.cache.get_or_compute(f"k{n}", value) for n in range(50)))
        assert await quickly(work) == ["computed"] * 50
        assert one.store.away
        assert await quickly(one.cache.get_or_compute("k", value)) == "computed"
    finally:
        rig.thaw()
    await one.back()
    assert await start().cache.get("k") == "kept"


@pytest.mark.parametrize("how", ["invalidate", "delete", "set"])
async def test_what_changed_while_redis_hung_is_not_found_as_it_was(rig: Any, start: Any, how: str) -> None:
    """The entry outlives the outage; the removal that did not reach it must not be lost."""
    await start().cache.set("k", "old", tags=["t"])
    one = start(QUICK)
    rig.freeze()
    try:
        match how:
            case "invalidate":
                await quickly(one.cache.invalidate("t"))
            case "delete":
                await quickly(one.cache.delete("k"))
            case "set":
                await quickly(one.cache.set("k", "new"))
    finally:
        rig.thaw()
    await one.back()
    assert await one.cache.get("k") in (None, "new")
    assert await start().cache.get("k") in (None, "new")


async def test_a_removal_goes_on_when_whoever_asked_for_it_is_cancelled(rig: Any, start: Any) -> None:
    await start().cache.set("k", "old", tags=["t"])
    one = start(QUICK)
    await one.store.open()  # but it is not connected yet: its command waits for a greeting that does not come
    rig.freeze()
    try:
        removing = asyncio.create_task(one.cache.invalidate("t"))
        await asyncio.sleep(0.02)
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        await until(lambda: one.store.away)  # it went on, and found that Redis hangs
    finally:
        rig.thaw()
    await one.back()
    assert await start().cache.get("k") is None


async def test_more_removals_than_are_remembered_remove_everything_of_the_module_and_nothing_else(
    rig: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.cache.resilient._MOST_OWED", 10)
    before, one = start(), start(QUICK)
    other = Cache(before.cache._engine, Names(b"test:of-another-module:"))
    await other.set("k", "stays")
    for n in range(20):
        await before.cache.set(f"k{n}", n)
    rig.freeze()
    try:
        for n in range(20):
            await one.cache.delete(f"k{n}")
    finally:
        rig.thaw()
    await one.back()
    assert [await before.cache.get(f"k{n}") for n in range(20)] == [None] * 20
    assert await other.get("k") == "stays"


async def test_redis_that_comes_back_empty_is_used_again(rig: Any, start: Any) -> None:
    """Its scripts are gone, too."""
    one = start()
    await one.cache.set("k", 1, tags=["t"])
    rig.kill()
    rig.start()
    for _ in range(4):
        await one.cache.get("k")
    await one.back()
    assert await one.cache.get_or_compute("k", value, tags=["t"]) == "computed"
    assert await one.cache.get("k") == "computed"


async def test_a_restart_between_two_requests_is_not_noticed(rig: Any, start: Any) -> None:
    one = start()
    await one.cache.set("k", 1)
    rig.kill()
    rig.start()
    await asyncio.sleep(0.05)
    assert await one.cache.get("k") is None
    assert not one.store.away
    assert one.errors("get") == 0


async def test_a_refusal_is_not_an_absence(rig: Any, start: Any) -> None:
    """A full Redis refuses to write; what it has can still be read."""
    one = start()
    await one.cache.set("k", "kept")
    client = (await one.store.open())._client
    await client.config_set("maxmemory", "1mb")
    try:
        for _ in range(5):
            assert await one.cache.get_or_compute("other", value) == "computed"
        assert not one.store.away
        assert await one.cache.get("k") == "kept"
        assert one.errors("fill") + one.errors("lease") >= 5
    finally:
        await client.config_set("maxmemory", "64mb")


async def test_a_forgotten_tag_ends_its_entries(rig: Any, start: Any) -> None:
    """Redis may evict any key; an entry whose tag is gone could be outdated."""
    one = start()
    await one.cache.set("k", 1, tags=["t"])
    client = (await one.store.open())._client
    assert await client.delete(*await client.keys("*:t:*")) >= 1
    assert await one.cache.get("k") is None


async def test_no_key_is_outside_of_the_modules_prefix_nor_lives_for_ever(rig: Any, start: Any) -> None:
    client = (await start().store.open())._client
    await client.flushdb()
    one = start()
    await one.cache.of("acme").get_or_compute(("a", "*:?"), value, tags=["x"], ttl=5, stale=5)
    await one.cache.set("x" * 1000, 1)
    await one.cache.increment("n")
    keys = await client.keys("*")
    assert len(keys) == 4
    assert all(key.startswith(one.cache._names._inside) for key in keys)
    lives = {key: await client.pttl(key) for key in keys}
    assert all(0 < life <= 3_600_000 for life in lives.values()), lives


async def test_connections_stay_within_their_limit(rig: Any, start: Any) -> None:
    one = start()
    client = (await one.store.open())._client
    await asyncio.gather(*(one.cache.get(f"k{n}") for n in range(200)))
    assert not one.store.away
    clients = await client.client_list()
    assert len([each for each in clients if each["name"] == "t"]) <= 10


async def test_the_rights_that_the_page_names_are_enough_and_keep_modules_apart(
    rig: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/ports/cache.md: what an ACL has to allow."""
    client = (await start().store.open())._client
    mine = start()
    prefix = mine.cache._names._inside.decode()
    rules = "+@connection +@scripting +@hash +@string +@keyspace +time -@dangerous"
    await client.execute_command("ACL", "SETUSER", "module", "on", ">pw", f"~{prefix}*", *rules.split())
    monkeypatch.setattr(type(rig), "url", property(lambda self: f"redis://module:pw@127.0.0.1:{self.port}/0"))
    try:
        one = start()
        await one.cache.set("a", 1, tags=["t"])
        assert await one.cache.get("a") == 1
        assert await one.cache.get_or_compute("b", value, tags=["t"], stale=5) == "computed"
        assert await one.cache.increment("n") == 1
        assert await one.cache.delete("n") == 1
        await one.cache.invalidate("t")
        assert not await one.cache.exists("b")
        await (await one.store.open()).forget(f"{prefix}*".encode())
        assert not one.store.away
        assert sum(one.errors(name) for name in ("get", "set", "fill", "lease", "delete", "invalidate")) == 0
        other = Cache(one.cache._engine, Names(b"test:of-another-module:"))
        assert await other.get_or_compute("k", value) == "computed"
        assert one.errors("get") == 1
    finally:
        await client.execute_command("ACL", "DELUSER", "module")


async def test_nobody_reads_what_was_ended_before_however_redis_fares(rig: Any, start: Any) -> None:
    """A writer, many readers, and a Redis that hangs and dies between any two steps: no read is older than the last
    write that was over when the read began.
    """
    one = start(0.1)
    written = ended = reads = 0
    stop = asyncio.Event()

    def hits() -> float:
        return one.metrics.registry.get_sample_value("cache_hits_total", {"state": "fresh"}) or 0

    async def load() -> int:
        seen = written
        await asyncio.sleep(random.uniform(0, 0.01))
        return seen

    async def read() -> None:
        nonlocal reads
        while not stop.is_set():
            least = ended
            got = await one.cache.get_or_compute("k", load, ttl=60, tags=["t"])
            assert got >= least, f"read {got} after {least} was over"
            reads += 1
            await asyncio.sleep(random.uniform(0, 0.003))

    async def write() -> None:
        nonlocal written, ended
        while not stop.is_set():
            written += 1
            mine = written
            await one.cache.invalidate("t")
            ended = mine
            await asyncio.sleep(random.uniform(0, 0.05))

    async def trouble() -> None:
        for harm, mend in ((rig.freeze, rig.thaw), (rig.kill, rig.start)) * 3:
            await asyncio.sleep(random.uniform(0.1, 0.6))
            harm()
            await asyncio.sleep(random.uniform(0.05, 0.5))
            await asyncio.to_thread(mend)
        await one.back()
        await asyncio.sleep(0.3)
        await until(lambda: reads > 200 and written > 20 and hits() > 20, 120)  # a busy machine takes longer
        stop.set()

    async with asyncio.TaskGroup() as group:
        for work in (trouble, write, *[read] * 10):
            group.create_task(work())
    assert reads > 200
    assert written > 20
    assert hits() > 20
