"""Limits count alike in memory and in Redis, and Redis for all processes together."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from moorage.errors import RateLimited
from moorage.guard.decision import receive
from moorage.guard.engine import Guard
from moorage.guard.limits import gcra
from moorage.guard.limits.buckets import Buckets
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.limiter import Limiter
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.limits.redis import RedisBuckets
from moorage.guard.limits.shared import SharedBuckets
from moorage.guard.policy import BaseDocument, Rule

BACKENDS = ["memory", "redis"]
DAY = 86_400 * gcra.SECOND
"""A window in which nothing comes back while a test runs."""

Open = Callable[..., Buckets]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def processes(backend: str, request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Each call gives another process's buckets on the same store; `inside` names another module's."""
    mine = secrets.token_hex(4)
    memory: dict[str, MemoryBuckets] = {}
    made: list[SharedBuckets] = []

    def make(inside: str = "i:n:m:") -> Buckets:
        if backend == "memory":
            return memory.setdefault(inside, MemoryBuckets())

        async def connect() -> RedisBuckets:
            return RedisBuckets(
                request.getfixturevalue("redis_server"),
                prefix=f"{mine}:{inside}".encode(),
                timeout=5,
                max_connections=10,
                client_name="test",
            )

        shared = SharedBuckets(connect, timeout=5, local=MemoryBuckets(), alone=unexpected)
        made.append(shared)
        return shared

    if backend == "redis":
        request.getfixturevalue("redis_server")
    yield make
    for shared in made:
        await shared.close()


def unexpected() -> None:
    raise AssertionError("Redis is there, and must be asked")


@pytest.fixture
def buckets(processes: Open) -> Buckets:
    return processes()


def charge(key: str = "a", requests: int = 3, window: float = DAY, **more: Any) -> Charge:
    return Charge(**{"limit": "user", "key": key, "requests": requests, "window": window, **more})


async def passes(buckets: Buckets, *charges: Charge) -> bool:
    return (await buckets.take(charges)).passed


# -- one limit


async def test_as_many_as_the_limit_says_pass_at_once_and_then_none(buckets: Buckets) -> None:
    assert [await passes(buckets, charge()) for _ in range(5)] == [True, True, True, False, False]


async def test_the_next_one_passes_when_its_share_of_the_time_is_over(buckets: Buckets) -> None:
    quick = charge(requests=2, window=gcra.SECOND)
    began = time.monotonic()
    assert await passes(buckets, quick)
    assert await passes(buckets, quick)
    async with asyncio.timeout(20):
        while not await passes(buckets, quick):  # noqa: ASYNC110 - what is tested tells nobody
            await asyncio.sleep(0.02)
    assert time.monotonic() - began > 0.49  # half a second for each; how much more is the machine's affair


async def test_what_is_in_use_is_told(buckets: Buckets) -> None:
    first = await buckets.take([charge(requests=100)])
    assert first.used[0] == pytest.approx(DAY / 100, rel=1e-3)
    assert gcra.remaining(first.used[0], first.charges[0]) == 99
    for _ in range(99):
        await buckets.take([charge(requests=100)])
    refused = await buckets.take([charge(requests=100)])
    assert not refused.passed
    assert gcra.remaining(refused.used[0], refused.charges[0]) == 0
    assert math.ceil(gcra.wait(refused.used[0], refused.charges[0]) / gcra.SECOND) == pytest.approx(
        864, abs=30
    )


async def test_a_request_may_count_for_several(buckets: Buckets) -> None:
    assert await passes(buckets, charge(cost=2))
    assert not await passes(buckets, charge(cost=2))
    assert await passes(buckets, charge())
    assert not await passes(buckets, charge())


async def test_a_limit_that_was_wider_before_holds_nobody_longer_than_one_window(buckets: Buckets) -> None:
    assert await passes(buckets, charge(requests=1))
    narrow = charge(requests=1, window=60 * gcra.SECOND)
    refused = await buckets.take([narrow])
    assert not refused.passed
    assert 50 * gcra.SECOND < refused.used[0] <= 60 * gcra.SECOND
    again = await buckets.take([narrow])
    assert again.used[0] <= refused.used[0]


# -- several limits


async def test_each_key_and_each_limit_is_counted_by_itself(buckets: Buckets) -> None:
    one = charge(requests=1)
    others = [one._replace(key="b"), one._replace(limit="address"), one._replace(limit="rule", key="")]
    assert await passes(buckets, one)
    assert [await passes(buckets, other) for other in others] == [True, True, True]
    assert [await passes(buckets, other) for other in (one, *others)] == [False] * 4


async def test_a_request_that_one_limit_refuses_takes_nothing_from_the_others(buckets: Buckets) -> None:
    user, address = charge(requests=1), charge("192.0.2.1", requests=2, limit="address")
    assert await passes(buckets, address, user)
    for _ in range(5):
        assert not await passes(buckets, address, user)
    assert await passes(buckets, address)
    assert not await passes(buckets, address)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.lists(
            st.tuples(st.sampled_from("abcd"), st.integers(1, 3)),
            min_size=1,
            max_size=3,
            unique_by=lambda x: x[0],
        ),
        max_size=25,
    )
)
async def test_nothing_passes_that_naive_counting_would_refuse(
    buckets: Buckets, asked: list[list[tuple[str, int]]]
) -> None:
    most = {"a": 1, "b": 3, "c": 7, "d": 20}
    run = secrets.token_hex(4)
    counted = dict.fromkeys(most, 0)
    for request in asked:
        costs = {key: min(cost, most[key]) for key, cost in request}
        wanted = all(counted[key] + cost <= most[key] for key, cost in costs.items())
        charges = [charge(f"{run}{key}", requests=most[key], cost=cost) for key, cost in costs.items()]
        assert await passes(buckets, *charges) is wanted
        if wanted:
            for key, cost in costs.items():
                counted[key] += cost


# -- several processes


async def test_processes_count_together(processes: Open) -> None:
    several = [processes() for _ in range(3)]
    taken = [await passes(several[turn % 3], charge(requests=7)) for turn in range(12)]
    assert taken == [True] * 7 + [False] * 5


async def test_however_many_ask_at_once_no_more_pass(processes: Open) -> None:
    several = [processes() for _ in range(3)]
    asked = [passes(several[turn % 3], charge(requests=50)) for turn in range(200)]
    assert sum(await asyncio.gather(*asked)) == 50


async def test_modules_do_not_count_for_each_other(processes: Open) -> None:
    one, other = processes(), processes("i:n:other:")
    assert await passes(one, charge(requests=1))
    assert await passes(other, charge(requests=1))
    assert not await passes(one, charge(requests=1))


async def test_three_guards_under_full_load_let_pass_what_the_limit_says_within_five_percent(
    processes: Open,
) -> None:
    """At the end all that has come back is used up, so that a slow machine changes nothing."""
    rate, seconds = 50, 2.0
    rule = Rule(
        name="r", path="/", auth="none", limits=Limits(rule=Limit(count=rate, seconds=1, scope="rule/r"))
    )
    document = BaseDocument(namespace="n", module="m", sequence=1, issued_at="", replicas=3, rules=[rule])
    guards = [Guard.from_document(document, limiter=Limiter(processes())) for _ in range(3)]
    for guard in guards:
        guard.bind_proxy()
        assert await admitted(guard) is True  # connected, and the script is loaded
    spent = len(guards)
    began = time.monotonic()

    async def hammer(guard: Guard) -> int:
        count = 0
        while time.monotonic() - began < seconds:
            count += await admitted(guard)
            await asyncio.sleep(0)
        return count

    count = sum(await asyncio.gather(*(hammer(guard) for guard in guards for _ in range(3))))
    while await admitted(guards[0]):
        count += 1
    lasted = time.monotonic() - began
    assert count == pytest.approx(rate - spent + lasted * rate, rel=0.05)


async def admitted(guard: Guard) -> bool:
    facts = receive("GET", "/", CIMultiDict({"Host": "a.test"}), peer="192.0.2.1")
    try:
        await guard.admit(facts)
    except RateLimited:
        return False
    return True
