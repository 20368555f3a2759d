"""The cache behaves alike in memory and in Redis."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from moorage.cache.cache import Cache, Engine
from moorage.cache.keys import Names
from moorage.cache.memory import MemoryStore
from moorage.cache.observed import Counts
from moorage.cache.port import asks
from moorage.cache.redis import RedisStore
from moorage.cache.resilient import ResilientStore
from moorage.cache.store import LARGEST, Store
from moorage.metrics import Metrics
from moorage.tracing import NullTracer
from rigs.waiting import until

BACKENDS = ["memory", "redis"]


class Post(BaseModel):
    id: UUID
    title: str
    at: datetime


def post(title: str = "one") -> Post:
    return Post(id=uuid4(), title=title, at=datetime(2026, 1, 2, tzinfo=UTC))


@dataclass
class Computing:
    """Counts how often it computes, and how many at once."""

    result: Any = "value"
    seconds: float = 0.0
    calls: int = 0
    most: int = 0
    now: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self) -> Any:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.set()
        try:
            await asyncio.sleep(self.seconds)
            if isinstance(self.result, Exception):
                raise self.result
            return self.result
        finally:
            self.now -= 1


Open = Callable[..., Cache]


async def run(
    compute: Callable[..., Awaitable[Any]], tenant: str | None, encode: Callable[[Any], bytes]
) -> bytes:
    """What the port does with a function that has parameters, with nothing to fill in."""
    return encode(await compute("filled"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def processes(backend: str, request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Each call gives another process's cache on the same store; `inside` names another module's."""
    engines: list[Engine] = []
    mine = secrets.token_hex(4)
    shared: Store | None = None
    if backend == "memory":
        shared = MemoryStore(max_entries=1000, max_bytes=2**24)

    def make_store(counts: Counts) -> Store:
        if shared is not None:
            return shared

        async def connect() -> RedisStore:
            url = request.getfixturevalue("redis_server")
            return RedisStore(url, timeout=20, max_connections=10, client_name="test")

        return ResilientStore(connect, timeout=20, everything=b"x", counts=counts, tracer=NullTracer())

    if backend == "redis":
        request.getfixturevalue("redis_server")

    def make(inside: str = "i:n:m:", **options: Any) -> Cache:
        counts = Counts(Metrics(module="m", version="1", revision=""))
        engine = Engine(make_store(counts), counts, run, asks, **{"lease": 30.0, **options})
        engines.append(engine)
        return Cache(engine, Names(f"{mine}:{inside}".encode()))

    yield make
    for engine in engines:
        await engine.close()


@pytest.fixture
def cache(processes: Open) -> Cache:
    return processes()


# -- values


async def test_what_is_set_is_found_until_it_is_deleted(cache: Cache) -> None:
    await cache.set("a", {"b": [1, None, "ü"]})
    assert await cache.get("a") == {"b": [1, None, "ü"]}
    assert await cache.exists("a")
    assert await cache.delete("a", "never") == 1
    assert await cache.get("a") is None
    assert not await cache.exists("a")


async def test_a_model_comes_back_as_itself_and_as_a_copy(cache: Cache) -> None:
    kept = post()
    await cache.set("p", kept)
    await cache.set("l", [kept])
    found = await cache.get("p", Post)
    assert found == kept
    assert found is not kept
    assert await cache.get("l", list[Post]) == [kept]


async def test_an_entry_that_is_not_of_the_kind_asked_for_is_none(cache: Cache) -> None:
    await cache.set("p", {"title": "of an older version"})
    assert await cache.get("p", Post) is None


@pytest.mark.parametrize("value", [None, 0, "", [], False])
async def test_what_counts_as_false_is_still_an_entry(cache: Cache, value: object) -> None:
    await cache.set("n", value)
    assert await cache.exists("n")
    assert await cache.get("n") == value


async def test_what_json_cannot_hold_is_refused_by_name(cache: Cache) -> None:
    with pytest.raises(TypeError, match="object"):
        await cache.set("o", object())
    assert not await cache.exists("o")


async def test_too_large_a_value_is_not_kept_and_ends_the_one_before(processes: Open) -> None:
    cache = processes(largest=100)
    await cache.set("k", "small")
    await cache.set("k", "x" * 200)
    assert await cache.get("k") is None
    computing = Computing("y" * 200)
    assert await cache.get_or_compute("k", computing) == "y" * 200
    assert not await cache.exists("k")


# -- time


async def test_an_entry_ends_with_its_ttl(cache: Cache) -> None:
    began = time.monotonic()
    await cache.set("short", 1, ttl=0.4)
    await cache.set("long", 1, ttl=60)
    assert await cache.exists("short") or time.monotonic() - began > 0.4
    await asyncio.sleep(0.45)
    assert await cache.get("short") is None
    assert await cache.exists("long")


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan")])
async def test_a_ttl_is_more_than_nothing_and_less_than_for_ever(cache: Cache, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        await cache.set("a", 1, ttl=ttl)


async def test_setting_again_begins_a_new_life(cache: Cache) -> None:
    await cache.set("a", 1, ttl=0.05)
    await cache.set("a", 2, ttl=60)
    await asyncio.sleep(0.1)
    assert await cache.get("a") == 2


# -- counting


async def test_increments_count_up_and_down_and_are_readable(cache: Cache) -> None:
    assert [await cache.increment("n") for _ in range(3)] == [1, 2, 3]
    assert await cache.increment("n", -5) == -2
    assert await cache.get("n", int) == -2
    await cache.set("m", 41)
    assert await cache.increment("m") == 42


async def test_the_ttl_of_a_count_begins_with_its_first_increment(cache: Cache) -> None:
    await cache.increment("n", ttl=2)
    await asyncio.sleep(0.3)
    assert await cache.increment("n", ttl=60) == 2
    await asyncio.sleep(1.75)
    assert await cache.increment("n") == 1


async def test_what_is_no_number_cannot_be_counted_up_and_stays(cache: Cache) -> None:
    for value in ("text", 1.5, {"a": 1}, None):
        await cache.set("n", value)
        with pytest.raises(TypeError, match="no whole number"):
            await cache.increment("n")
        assert await cache.get("n") == value


async def test_a_count_has_64_bits(cache: Cache) -> None:
    assert await cache.increment("n", LARGEST) == LARGEST
    with pytest.raises(TypeError, match="64 bits"):
        await cache.increment("n")
    assert await cache.get("n") == LARGEST
    with pytest.raises(ValueError, match="64 bits"):
        await cache.increment("other", LARGEST + 1)


async def test_increments_of_many_at_once_are_all_counted(processes: Open) -> None:
    caches = [processes() for _ in range(4)]
    sums = await asyncio.gather(*(caches[n % 4].increment("n") for n in range(40)))
    assert sorted(sums) == list(range(1, 41))


# -- keys


HOSTILE = [
    "a:b",
    "a%3Ab",
    "*",
    "a\nb",
    "\x00",
    "a\x00lease",
    "x" * 5000,
    "{a}",
    "..",
    " ",
    "ü",
    "\ud800",
    "v::a",
]


async def test_hostile_keys_are_all_different_and_stay_inside(processes: Open) -> None:
    cache, other = processes(), processes("i:n:other:")
    for number, key in enumerate(HOSTILE):
        await cache.set(key, number)
    assert [await cache.get(key) for key in HOSTILE] == list(range(len(HOSTILE)))
    assert [await other.get(key) for key in HOSTILE] == [None] * len(HOSTILE)
    await other.delete(*HOSTILE)
    assert await cache.get("a:b") == 0


async def test_a_part_of_a_key_cannot_pretend_to_be_two(cache: Cache) -> None:
    await cache.set(("user", "1:admin"), "hers")
    await cache.set(("user", "1", "admin"), "his")
    assert await cache.get(("user", "1:admin")) == "hers"
    assert await cache.get("user:1:admin") == "his"


async def test_an_empty_key_is_refused(cache: Cache) -> None:
    with pytest.raises(ValueError, match="empty"):
        await cache.get("")


async def test_tenants_do_not_meet_nor_end_each_others_entries(cache: Cache) -> None:
    acme, tricky = cache.of("acme"), cache.of("acme:x")
    await cache.set("k", "all")
    await acme.set("k", "acme", tags=["t"])
    await tricky.set("k", "tricky", tags=["t"])
    await acme.set("x:k", "acme's own")
    assert [await one.get("k") for one in (cache, acme, tricky)] == ["all", "acme", "tricky"]
    await acme.invalidate("t")
    assert [await one.get("k") for one in (cache, acme, tricky)] == ["all", None, "tricky"]


# -- tags


async def test_a_tag_ends_its_entries_and_no_others(cache: Cache) -> None:
    await cache.set("a", 1, tags=["x", "y"])
    await cache.set("b", 2, tags=["y"])
    await cache.set("c", 3)
    await cache.invalidate("x")
    assert [await cache.get(key) for key in "abc"] == [None, 2, 3]
    await cache.set("a", 4, tags=["x"])
    assert await cache.get("a") == 4
    await cache.invalidate("x", "y", "unknown")
    assert [await cache.get(key) for key in "abc"] == [None, None, 3]


async def test_an_entry_without_its_old_tags_outlives_them(cache: Cache) -> None:
    await cache.set("a", 1, tags=["x"])
    await cache.set("a", 2)
    await cache.invalidate("x")
    assert await cache.get("a") == 2


async def test_a_tag_and_an_entry_of_the_same_name_are_two_things(cache: Cache) -> None:
    await cache.set("x", 1, tags=["x"])
    await cache.delete("x")
    await cache.set("x", 2)
    await cache.invalidate("x")
    assert await cache.get("x") == 2


async def test_one_text_instead_of_tags_is_refused(cache: Cache) -> None:
    with pytest.raises(TypeError, match="several"):
        await cache.set("a", 1, tags="user")


async def test_a_count_that_was_invalidated_begins_anew(cache: Cache) -> None:
    await cache.set("n", 5, tags=["t"])
    await cache.invalidate("t")
    assert await cache.increment("n") == 1


async def test_many_entries_of_one_tag_end_in_one_step(processes: Open) -> None:
    writer, reader = processes(), processes()
    await asyncio.gather(*(writer.set(f"k{n}", n, tags=["all"]) for n in range(300)))
    await writer.invalidate("all")
    assert await asyncio.gather(*(reader.get(f"k{n}") for n in range(300))) == [None] * 300


# -- computing


async def test_it_is_computed_once_and_then_found(processes: Open) -> None:
    computing = Computing({"a": 1})
    first, second = processes(), processes()
    assert await first.get_or_compute("k", computing) == {"a": 1}
    assert await first.get_or_compute("k", computing) == {"a": 1}
    assert await second.get_or_compute("k", computing) == {"a": 1}
    assert computing.calls == 1


async def test_what_was_computed_is_as_it_will_be_found(cache: Cache) -> None:
    made = post()

    async def load() -> Post:
        return made

    first = await cache.get_or_compute("k", load)
    second = await cache.get_or_compute("k", load)
    assert first == second == made
    assert first is not second


async def test_a_result_without_a_declared_kind_must_be_plain(cache: Cache) -> None:
    with pytest.raises(TypeError, match="kind="):
        await cache.get_or_compute("k", Computing(post()))
    assert await cache.get_or_compute("k", Computing(post()), Post, ttl=1)


async def test_nothing_found_is_kept_too(cache: Cache) -> None:
    computing = Computing(None)
    assert await cache.get_or_compute("k", computing) is None
    assert await cache.get_or_compute("k", computing) is None
    assert computing.calls == 1


async def test_an_exception_is_not_kept(processes: Open) -> None:
    cache = processes(lease=60.0)
    with pytest.raises(LookupError, match="gone"):
        await cache.get_or_compute("k", Computing(LookupError("gone")))
    # Another process does not wait for the end of a lease that nobody needs.
    async with asyncio.timeout(20):
        assert await processes(lease=60.0).get_or_compute("k", Computing("there")) == "there"


async def test_of_many_in_many_processes_one_computes(processes: Open) -> None:
    caches = [processes() for _ in range(5)]
    computing = Computing("v", seconds=0.1)
    results = await asyncio.gather(*(caches[n % 5].get_or_compute("k", computing) for n in range(100)))
    assert results == ["v"] * 100
    assert computing.calls == 1


async def test_other_keys_do_not_wait(cache: Cache) -> None:
    computing = Computing(seconds=60)
    slow = asyncio.create_task(cache.get_or_compute("slow", computing))
    await computing.begun.wait()
    async with asyncio.timeout(20):
        assert await cache.get_or_compute("quick", Computing("q")) == "q"
    slow.cancel()
    with suppress(asyncio.CancelledError):
        await slow


async def test_whoever_waits_gets_the_exception_of_whoever_computes(cache: Cache) -> None:
    computing = Computing(LookupError("no"), seconds=1)
    results = await asyncio.gather(
        *(cache.get_or_compute("k", computing) for _ in range(5)), return_exceptions=True
    )
    assert [type(one) for one in results] == [LookupError] * 5
    assert computing.calls == 1


async def test_a_waiter_that_is_cancelled_takes_nobody_along(cache: Cache) -> None:
    go_on, computing = asyncio.Event(), Computing("v")

    async def compute() -> Any:
        result = await computing()
        await go_on.wait()
        return result

    tasks = [asyncio.create_task(cache.get_or_compute("k", compute))]
    await computing.begun.wait()  # by the first one: which of several comes first is for the store to say
    tasks += [asyncio.create_task(cache.get_or_compute("k", compute)) for _ in range(3)]
    await asyncio.sleep(0.1)
    tasks[2].cancel()
    go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [str, str, asyncio.CancelledError, str]
    assert computing.calls == 1


async def test_when_the_one_who_computes_is_cancelled_the_next_takes_over(processes: Open) -> None:
    here, there = processes(), processes()
    computing = Computing("v", seconds=30)
    tasks = [asyncio.create_task(here.get_or_compute("k", computing))]
    await computing.begun.wait()
    computing.seconds = 0.05
    tasks += [asyncio.create_task(one.get_or_compute("k", computing)) for one in (here, there)]
    await asyncio.sleep(0.05)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [asyncio.CancelledError, str, str]
    assert computing.calls == 2
    assert computing.most == 1


async def test_a_lease_is_held_as_long_as_it_takes(processes: Open) -> None:
    """Computing for longer than a lease lasts does not bring in a second one."""
    first, second = processes(lease=1.5), processes(lease=1.5)
    computing = Computing("v", seconds=2.5)
    assert await asyncio.gather(
        first.get_or_compute("k", computing), second.get_or_compute("k", computing)
    ) == ["v", "v"]
    assert computing.calls == 1


async def test_a_process_that_died_while_computing_is_waited_for_no_longer_than_its_lease(
    processes: Open,
) -> None:
    dead, alive = processes(lease=0.3), processes(lease=0.3)
    name = dead._names.entry("k")
    began = asyncio.get_running_loop().time()
    assert await dead._engine.store.lease(name, (), 0.3) is not None
    assert await alive.get_or_compute("k", Computing("v")) == "v"
    assert 0.28 < asyncio.get_running_loop().time() - began < 15


async def test_computing_what_is_being_computed_is_an_error_not_a_standstill(cache: Cache) -> None:
    async def again() -> str:
        return await cache.get_or_compute("k", again)

    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="asks for that entry"):
            await cache.get_or_compute("k", again)


# -- computing while something changes


@pytest.mark.parametrize("how", ["delete", "invalidate", "set"])
async def test_what_changed_while_it_was_computed_is_not_kept_as_it_was(processes: Open, how: str) -> None:
    """The computation has read the old row; the write commits and removes the entry; only then it is stored."""
    reader, writer = processes(), processes()
    computing = Computing("old", seconds=0.1)
    reading = asyncio.create_task(reader.get_or_compute("k", computing, tags=["t"]))
    await computing.begun.wait()
    match how:
        case "delete":
            await writer.delete("k")
        case "invalidate":
            await writer.invalidate("t")
        case "set":
            await writer.set("k", "new")
    assert await reading == "old"
    assert await reader.get_or_compute("k", Computing("new"), tags=["t"]) == "new"


async def test_whoever_asks_after_a_change_does_not_get_what_was_computed_before(processes: Open) -> None:
    reader, writer = processes(), processes()
    old = Computing("old", seconds=0.15)
    first = asyncio.create_task(reader.get_or_compute("k", old, tags=["t"]))
    await old.begun.wait()
    await writer.invalidate("t")
    assert await reader.get_or_compute("k", Computing("new"), tags=["t"]) == "new"
    assert await first == "old"


async def test_a_process_that_lost_its_lease_does_not_overwrite(processes: Open) -> None:
    slow, quick = processes(), processes()
    name = slow._names.entry("k")
    lease = await slow._engine.store.lease(name, (), 0.05)
    await asyncio.sleep(0.1)
    await quick.get_or_compute("k", Computing("newer"))
    from moorage.cache.store import Lease, Life

    assert isinstance(lease, Lease)
    assert not await slow._engine.store.fill(lease, b'"older"', Life(60))
    assert await quick.get("k") == "newer"


# -- stale


async def test_a_stale_entry_is_returned_while_one_computes_it_behind_requests(cache: Cache) -> None:
    calls = 0
    go_on, done = asyncio.Event(), asyncio.Event()
    go_on.set()

    async def load(filled: str) -> str:
        nonlocal calls
        calls += 1
        await go_on.wait()
        done.set()
        return f"{filled} {calls}"

    async def ask(ttl: float = 60) -> str:
        return await cache.get_or_compute("k", load, ttl=ttl, stale=60)

    async def fresh() -> bool:
        return await cache.get("k") == "filled 2"

    assert await ask(ttl=0.3) == "filled 1"
    go_on.clear()
    done.clear()
    await asyncio.sleep(0.35)
    assert [await ask() for _ in range(3)] == ["filled 1"] * 3
    assert not done.is_set()
    go_on.set()
    await done.wait()
    await until(fresh)
    assert await ask() == "filled 2"
    assert calls == 2


async def test_a_refresh_may_ask_for_the_entry_from_whose_computation_it_began(cache: Cache) -> None:
    """It waits for that one; it is not that one."""
    refreshed = asyncio.Event()
    primed = False

    async def inner(filled: str) -> str:
        if primed:
            assert await cache.get_or_compute("outer", outer) == "outer"
            refreshed.set()
        return "inner"

    async def outer() -> str:
        await cache.get_or_compute("inner", inner, ttl=0.03, stale=60)
        await asyncio.sleep(0.05)
        return "outer"

    await cache.get_or_compute("inner", inner, ttl=0.03, stale=60)
    await asyncio.sleep(0.05)
    primed = True
    assert await cache.get_or_compute("outer", outer) == "outer"
    async with asyncio.timeout(20):
        await refreshed.wait()


async def test_without_parameters_the_first_caller_computes_and_the_others_get_the_stale_entry(
    processes: Open,
) -> None:
    caches = [processes(), processes()]
    go_on, calls = asyncio.Event(), 0

    async def new() -> str:
        nonlocal calls
        calls += 1
        await go_on.wait()
        return "new"

    await caches[0].get_or_compute("k", Computing("old"), ttl=0.05, stale=60)
    await asyncio.sleep(0.1)
    asking = [
        asyncio.create_task(caches[n % 2].get_or_compute("k", new, ttl=60, stale=60)) for n in range(10)
    ]
    await until(lambda: sum(task.done() for task in asking) == 9)
    go_on.set()
    assert sorted(await asyncio.gather(*asking)) == ["new"] + ["old"] * 9
    assert await caches[1].get_or_compute("k", new, ttl=60) == "new"
    assert calls == 1


async def test_a_stale_entry_is_no_entry_for_get(cache: Cache) -> None:
    await cache.get_or_compute("k", Computing(1), ttl=0.05, stale=60)
    await asyncio.sleep(0.08)
    assert await cache.get("k") is None
    assert not await cache.exists("k")
    assert await cache.increment("k") == 1


async def test_a_stale_entry_stays_if_it_cannot_be_computed_anew(cache: Cache) -> None:
    await cache.get_or_compute("k", Computing("old"), ttl=0.05, stale=60)
    await asyncio.sleep(0.08)
    assert await cache.get_or_compute("k", Computing(LookupError("no")), ttl=0.05, stale=60) == "old"


async def test_staleness_ends_too_and_so_does_an_invalidated_stale_entry(cache: Cache) -> None:
    for key in ("a", "b"):
        await cache.get_or_compute(key, Computing("old"), ttl=0.03, stale=0.4, tags=[key])
    await asyncio.sleep(0.05)
    await cache.invalidate("b")
    assert await cache.get_or_compute("b", Computing("new"), stale=1) == "new"
    await asyncio.sleep(0.4)
    assert await cache.get_or_compute("a", Computing("new"), stale=1) == "new"


# -- all of it

_KEYS = st.sampled_from(["a", "b"])
_TAGS = st.lists(st.sampled_from(["x", "y"]), unique=True, max_size=2)
_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("set"), _KEYS, st.one_of(st.integers(-3, 3), st.text(max_size=3), st.none()), _TAGS
        ),
        st.tuples(st.just("get"), _KEYS),
        st.tuples(st.just("exists"), _KEYS),
        st.tuples(st.just("delete"), _KEYS),
        st.tuples(st.just("increment"), _KEYS, st.integers(-2, 2)),
        st.tuples(st.just("invalidate"), _TAGS),
        st.tuples(st.just("compute"), _KEYS, st.integers(10, 12), _TAGS),
    ),
    max_size=25,
)


@given(steps=_STEPS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
async def test_any_sequence_of_steps_gives_what_a_dictionary_gives(processes: Open, steps: list[Any]) -> None:
    """Against the simplest thing that could be right: a dictionary of values and tags."""
    cache = processes(f"{secrets.token_hex(4)}:")
    model: dict[str, tuple[Any, frozenset[str]]] = {}
    for step in steps:
        assert await applied(cache, step) == expected(model, step), step


async def applied(cache: Cache, step: Any) -> Any:
    match step:
        case ("set", key, value, tags):
            return await cache.set(key, value, tags=tags)
        case ("get", key):
            return await cache.get(key)
        case ("exists", key):
            return await cache.exists(key)
        case ("delete", key):
            return await cache.delete(key)
        case ("increment", key, by):
            try:
                return await cache.increment(key, by)
            except TypeError:
                return "TypeError"
        case ("invalidate", tags):
            return await cache.invalidate(*tags)
        case ("compute", key, value, tags):
            return await cache.get_or_compute(key, Computing(value), tags=tags)


def expected(model: dict[str, tuple[Any, frozenset[str]]], step: Any) -> Any:
    match step:
        case ("set", key, value, tags):
            model[key] = (value, frozenset(tags))
        case ("get", key):
            return model.get(key, (None,))[0]
        case ("exists", key):
            return key in model
        case ("delete", key):
            return int(model.pop(key, None) is not None)
        case ("increment", key, by):
            value, tags = model.get(key, (0, frozenset()))
            if not isinstance(value, int):
                return "TypeError"
            model[key] = (value + by, tags)
            return value + by
        case ("invalidate", tags):
            for key in [key for key, (_, its) in model.items() if its & set(tags)]:
                del model[key]
        case ("compute", key, value, tags):
            return model.setdefault(key, (value, frozenset(tags)))[0]
    return None
