"""A steady stream for minutes: everything arrives, and no process grows."""

import asyncio
import random
import statistics
from pathlib import Path

import pytest
from mayhem import PROCESSES, Books, Load, modules

from rigs.plugin import available
from rigs.world import BACKENDS, World

SHORT, LONG = 10.0, 600.0
GROWTH = 6.0
"""MiB by which a process may grow in the minutes measured: arenas and caches settle, a leak of 100 bytes for each event
would already be twice that."""
RATE = 200.0


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """What carries the events."""
    if request.param == "kafka":
        from rigs import kafka

        with available():
            kafka.libraries()
    return str(request.param)


async def memories(world: World, seconds: float) -> dict[str, float]:
    """MiB by which each process grows in *seconds*, going by the line through what was measured."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    times: list[float] = []
    sizes: dict[str, list[float]] = {name: [] for name in PROCESSES}
    while loop.time() < began + seconds:
        times.append(loop.time() - began)
        for name in PROCESSES:
            sizes[name].append(world.servers[name].memory() / 2**20)
        await asyncio.sleep(min(2.0, seconds / 4))
    return {name: statistics.linear_regression(times, some).slope * seconds for name, some in sizes.items()}


@pytest.mark.chaos
@pytest.mark.timeout(2 * LONG)
async def test_a_steady_stream_arrives_whole_and_needs_no_more_memory(
    request: pytest.FixtureRequest, backend: str, tmp_path: Path
) -> None:
    """Ten minutes with `--long`; else only long enough to see that all of it arrives."""
    long = bool(request.config.getoption("--long", default=False))
    environ = {"LEDGER_FLAKY": "false", "EVENTS_RETENTION": "60s"}
    async with modules(tmp_path, backend, environ) as world:
        load = Load(world, random.Random(0), customers=20, rate=RATE)
        async with load.running():
            await asyncio.sleep(LONG / 4 if long else 1.0)  # pools, caches and the interpreter's arenas fill
            grown = await memories(world, LONG * 3 / 4 if long else SHORT)
        books = await Books.settled(world, 60.0)
        print(f"{load.number} sent, {sum(books.committed.values())} committed; grown in MiB: {grown}")
        # A request that failed may have committed all the same.
        committed = sum(books.committed.values())
        assert load.number <= committed <= load.number + sum(load.failed.values())
        books.check(load.acknowledged)
        if long:
            assert all(size < GROWTH for size in grown.values()), grown
