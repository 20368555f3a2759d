"""What limits leave in Redis, and how often they ask it."""

import secrets
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from moorage.guard.limits import gcra
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.redis import _EPOCH, RedisBuckets

MINUTE = 60 * gcra.SECOND
USER = Charge("user", ":ada", 100, MINUTE)
ADDRESS = Charge("address", "route/blog:192.0.2.1", 1000, MINUTE)
RULE = Charge("rule", "rule/list:", 10, gcra.SECOND)


@pytest.fixture
def prefix() -> str:
    return f"test:{secrets.token_hex(4)}:m:"


@pytest.fixture
async def buckets(redis_server: str, prefix: str) -> AsyncIterator[RedisBuckets]:
    made = RedisBuckets(
        redis_server, prefix=prefix.encode(), timeout=5, max_connections=5, client_name="test"
    )
    yield made
    await made.close()


@pytest.fixture
async def client(redis_server: str) -> "AsyncIterator[Redis]":
    made = Redis.from_url(redis_server, decode_responses=True)
    yield made
    await made.aclose()


async def test_all_keys_are_the_modules_own_and_end_by_themselves(
    buckets: RedisBuckets, client: "Redis", prefix: str
) -> None:
    await buckets.take([USER, ADDRESS, RULE])
    await buckets.take([one._replace(window=gcra.SECOND * 3600) for one in (USER, ADDRESS, RULE)])
    keys = sorted(await client.keys(f"{prefix}*"))
    assert keys == [
        f"{prefix}limit:address:route/blog:192.0.2.1",
        f"{prefix}limit:rule:rule/list:",
        f"{prefix}limit:user::ada",
    ]
    lives = [await client.pttl(key) for key in keys]
    assert all(0 < life <= 3_600_001 for life in lives), "as long as anything of it is in use, no longer"


async def test_a_request_is_one_round_trip(buckets: RedisBuckets, client: "Redis") -> None:
    await buckets.take([USER, ADDRESS, RULE])
    before = await calls(client)
    for _ in range(10):
        await buckets.take([USER, ADDRESS, RULE])
    after = await calls(client)
    assert after - before == 10


async def calls(client: "Redis") -> int:
    """How often a script was run on the server, by anybody."""
    found = await client.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def test_a_clock_that_was_set_back_holds_nobody_longer_than_a_window(
    buckets: RedisBuckets, client: "Redis", prefix: str
) -> None:
    seconds, _ = await client.time()
    ahead = (seconds - _EPOCH + 100_000) * 1_000_000
    await client.set(f"{prefix}limit:user::ada", str(ahead))
    refused = await buckets.take([USER])
    assert not refused.passed
    assert refused.used[0] <= MINUTE
    assert float(await client.get(f"{prefix}limit:user::ada")) < ahead - 90_000 * 1_000_000
    assert 0 < await client.pttl(f"{prefix}limit:user::ada") <= 60_001


async def test_what_is_no_number_counts_as_nothing(
    buckets: RedisBuckets, client: "Redis", prefix: str
) -> None:
    await client.set(f"{prefix}limit:user::ada", "nonsense")
    assert (await buckets.take([USER])).passed


async def test_a_redis_that_refuses_is_not_well(redis_server: str) -> None:
    made = RedisBuckets(
        redis_server.replace("redis://:", "redis://:wrong"),
        prefix=b"x:",
        timeout=5,
        max_connections=1,
        client_name="t",
    )
    with pytest.raises(made.errors):
        await made.ping()
    await made.close()
