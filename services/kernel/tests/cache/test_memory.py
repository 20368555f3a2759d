"""What is particular to the cache in memory: its bounds."""

import tracemalloc
from typing import Any

import pytest

from moorage.cache.memory import MemoryStore
from moorage.cache.store import Lease, Life


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(**given: Any) -> MemoryStore:
    return MemoryStore(**{"max_entries": 3, "max_bytes": 10**6, **given})


async def test_the_least_recently_used_goes_first() -> None:
    one = store()
    for key in (b"a", b"b", b"c"):
        await one.set(key, b"1", Life(60))
    await one.get(b"a")
    await one.set(b"d", b"1", Life(60), [b"t"])
    assert [await one.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


async def test_bytes_are_bounded_as_well() -> None:
    one = store(max_entries=1000, max_bytes=10_000)
    for number in range(100):
        await one.set(b"%d" % number, b"x" * 1000, Life(60), [b"t"])
        assert one.bytes <= 10_000
    assert 1 < len(one) < 10
    await one.set(b"huge", b"x" * 20_000, Life(60))
    assert await one.get(b"huge") is None
    assert len(one) > 1, "one that does not fit drives nobody out"


@pytest.mark.parametrize("step", ["set", "delete", "invalidate", "increment", "expire"])
async def test_nothing_is_left_of_entries_that_are_gone(step: str) -> None:
    clock = Clock()
    one = store(max_entries=10, clock=clock)
    for number in range(50):
        await one.set(b"k%d" % (number % 7), b"1", Life(5), [b"t%d" % number])
        match step:
            case "delete":
                await one.delete([b"k%d" % (number % 7)])
            case "invalidate":
                await one.invalidate([b"t%d" % number])
            case "increment":
                await one.increment(b"k%d" % (number % 7), 10**9, 5)
    clock.now = 10
    for number in range(7):
        assert await one.get(b"k%d" % number) is None
    assert (len(one), one.bytes, one._tagged) == (0, 0, {})


async def test_memory_stays_flat_under_a_flood_of_keys() -> None:
    one = store(max_entries=500)
    tracemalloc.start()
    try:
        for number in range(1000):
            await one.set(b"k%d" % number, b"x" * 100, Life(60), [b"t%d" % number])
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1000, 20_000):
            await one.set(b"k%d" % number, b"x" * 100, Life(60), [b"t%d" % number])
        assert tracemalloc.get_traced_memory()[0] - before < 200_000
    finally:
        tracemalloc.stop()


async def test_a_lease_that_ran_out_keeps_nothing() -> None:
    clock = Clock()
    one = store(clock=clock)
    lease = await one.lease(b"k", (), 5)
    assert isinstance(lease, Lease)
    clock.now = 4
    await one.renew(lease, 5)
    clock.now = 8
    assert await one.lease(b"k", (), 5) is None
    clock.now = 10
    assert not await one.fill(lease, b"1", Life(60))
    assert await one.get(b"k") is None
