"""The relay: one at a time, taken over when it dies, harmless when it wakes up again."""

import asyncio
import time
from collections import defaultdict
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from moorage import Event, Module
from moorage.events.bus import Message
from moorage.events.lease import Lease, by_engine
from rigs.events import Process, Site, until

pytestmark = pytest.mark.postgres

TYPE = "relaying.thing.changed"


class Changed(Event, type=TYPE, key="id"):
    id: UUID
    n: int


async def emit(process: Process, key: UUID, *numbers: int) -> None:
    async with process.pool.unit() as db:
        for n in numbers:
            await db.emit(Changed(id=key, n=n))


def sent(site: Site) -> dict[str, list[int]]:
    """Numbers by key, in the order in which they came to the bus for the first time."""
    found: dict[str, list[int]] = defaultdict(list)
    for envelope in site.bus.published:
        if envelope["data"]["n"] not in found[envelope["subject"]]:
            found[envelope["subject"]].append(envelope["data"]["n"])
    return found


async def pending(site: Site) -> int:
    return int((await site.query("SELECT count(*) FROM moorage_outbox"))[0])


async def test_it_wakes_at_once(site: Site) -> None:
    process = await site.start(Module("things"), [TYPE], EVENTS_POLL="60s", EVENTS_LEASE="600s")
    for n in range(11):
        await emit(process, uuid4(), n)
        await until(lambda n=n: len(site.bus.published) == n + 1, 20)


async def test_another_process_wakes_it_as_well(site: Site) -> None:
    module = Module("things")
    first = await site.start(module, [TYPE], EVENTS_POLL="60s", EVENTS_LEASE="600s")
    await until(lambda: _leads(site))
    await until(lambda: _listens(site))
    second = await site.start(module, [TYPE], EVENTS_POLL="60s", EVENTS_LEASE="600s")
    await emit(second, uuid4(), 1)
    await until(lambda: len(site.bus.published) == 1, 20)
    assert first.events.source == second.events.source


async def _leads(site: Site) -> bool:
    return bool(await site.query("SELECT token FROM moorage_lease WHERE name = 'relay'"))


async def _listens(site: Site) -> bool:
    """Its connection asks for nothing but this once it listens."""
    asked = "query = 'SELECT 1' AND state = 'idle' AND application_name LIKE '%outbox'"
    return bool(await site.query(f"SELECT 1 FROM pg_stat_activity WHERE {asked}"))


async def test_while_the_bus_is_away_events_wait_and_readiness_says_so(site: Site) -> None:
    process = await site.start(Module("things"), [TYPE])
    await until(lambda: _leads(site))
    await until(lambda: "events_outbox_pending 0.0" in process.assembly.metrics.exposition().decode())
    assert await _says(process, "")
    site.bus.away = True
    key = uuid4()
    await emit(process, key, *range(20))
    await until(lambda: _says(process, "events wait in the outbox"))
    assert await pending(site) == 20
    process.assembly.health.started = True
    assert (await process.assembly.health.ready())[0]
    site.bus.away = False
    await until(lambda: len(site.bus.published) == 20)
    assert sent(site) == {str(key): list(range(20))}
    await until(lambda: _says(process, ""))


async def _says(process: Process, text: str) -> bool:
    said = (await process.assembly.health.check())["events relay"]
    return text in said if text else not said


async def test_the_gauge_follows_the_outbox_while_the_bus_is_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.events.relay._COUNT_EVERY", 0.0)
    process = await site.start(Module("things"), [TYPE])
    await until(lambda: _leads(site))
    site.bus.away = True
    for number in (20, 40):
        await emit(process, uuid4(), *range(20))
        await until(lambda number=number: _gauge(process) == number)
    site.bus.away = False
    await until(lambda: _gauge(process) == 0)


async def test_the_gauge_follows_the_outbox_while_a_long_one_is_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.events.relay._COUNT_EVERY", 0.0)
    process = await site.start(Module("things"), [TYPE], EVENTS_BATCH="10")
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold_the_second(_: list[Message]) -> None:
        if len(site.bus.published) == 10:
            held.set()
            await go_on.wait()

    site.bus.before_publish = hold_the_second
    await emit(process, uuid4(), *range(35))
    await asyncio.wait_for(held.wait(), 10)
    assert _gauge(process) == 25
    go_on.set()
    await until(lambda: _gauge(process) == 0)


def _gauge(process: Process) -> float:
    (line,) = (
        line
        for line in process.assembly.metrics.exposition().decode().splitlines()
        if line.startswith("events_outbox_pending ")
    )
    return float(line.split()[1])


async def test_more_than_a_batch_goes_at_once(site: Site) -> None:
    process = await site.start(Module("things"), [TYPE], EVENTS_BATCH="10", EVENTS_POLL="60s")
    key = uuid4()
    await emit(process, key, *range(95))
    await until(lambda: len(site.bus.published) == 95, 20)
    assert sent(site) == {str(key): list(range(95))}


async def test_one_process_relays_and_the_next_takes_over_when_it_stops(site: Site) -> None:
    module = Module("things")
    first = await site.start(module, [TYPE], EVENTS_LEASE="600s")
    await until(lambda: _leads(site))
    second = await site.start(module, [TYPE], EVENTS_LEASE="600s")
    await asyncio.sleep(0.5)
    assert await site.query("SELECT token FROM moorage_lease WHERE name = 'relay'") == [1]
    await first.stop()
    await emit(second, uuid4(), 1)
    await until(lambda: len(site.bus.published) == 1, 20)
    assert await site.query("SELECT token FROM moorage_lease WHERE name = 'relay'") == [2]


async def test_a_relay_that_was_paused_loses_nothing_and_sends_nothing_out_of_order(site: Site) -> None:
    """It stands still before it publishes, longer than its lease; another one goes on; then it wakes up."""
    module, key = Module("things"), uuid4()
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def pause(messages: list[Message]) -> None:
        site.bus.before_publish = None
        paused.set()
        await go_on.wait()

    site.bus.before_publish = pause
    zombie = await site.start(module, [TYPE])
    await emit(zombie, key, 1, 2)
    await asyncio.wait_for(paused.wait(), 30)
    began = time.monotonic()
    other = await site.start(module, [TYPE])
    await until(lambda: sent(site) == {str(key): [1, 2]})
    assert time.monotonic() - began < 10, "taken over within the lease (1 s) and a poll"
    site.bus.away = True
    await emit(other, key, 3)
    await asyncio.sleep(0.2)
    site.bus.away = False
    site.bus.before_publish = None
    go_on.set()  # publishes 1 and 2 again
    await until(lambda: _all_sent(site, 0))
    assert sent(site) == {str(key): [1, 2, 3]}
    assert len(site.bus.published) <= 6
    assert await site.query("SELECT token FROM moorage_lease WHERE name = 'relay'") == [2]


async def _all_sent(site: Site, left: int) -> bool:
    return await pending(site) == left and not site.bus.away


async def test_a_process_that_dies_after_publishing_leaves_duplicates_in_order(site: Site) -> None:
    module, key = Module("things"), uuid4()
    published = asyncio.Event()

    async def die(messages: list[Message]) -> None:
        site.bus.before_publish = None
        site.bus.append(messages)
        published.set()
        await asyncio.sleep(3600)

    site.bus.before_publish = die
    first = await site.start(module, [TYPE])
    await emit(first, key, 1, 2, 3)
    await asyncio.wait_for(published.wait(), 30)
    await _kill(first)
    assert await pending(site) == 3
    await site.start(module, [TYPE])
    await until(lambda: _all_sent(site, 0))
    assert [e["data"]["n"] for e in site.bus.published] == [1, 2, 3, 1, 2, 3]


async def _kill(process: Process) -> None:
    """As SIGKILL: nothing is released, the tasks just end."""
    await process.pool.engine.dispose()
    for task in asyncio.all_tasks():
        if task.get_name() == "events relay":
            task.cancel()


async def test_the_relay_survives_the_loss_of_every_connection(site: Site) -> None:
    process = await site.start(Module("things"), [TYPE])
    key = uuid4()
    await emit(process, key, 1)
    await until(lambda: len(site.bus.published) == 1)
    admin = await asyncpg.connect(site.database.admin_dsn)
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '%_app'")
    await admin.close()
    await asyncio.sleep(0.1)
    await emit(process, key, 2)
    await until(lambda: sent(site) == {str(key): [1, 2]})


async def test_it_never_waits_behind_requests(site: Site) -> None:
    """Its lease is renewed while slow requests hold every connection of the pool, for as long as they like."""
    options = {"DATABASE_MAX_CONNECTIONS": "2", "DATABASE_ACQUIRE_TIMEOUT": "60s"}
    process = await site.start(Module("things"), [TYPE], **options)
    await until(lambda: _leads(site))
    site.bus.away = True
    await emit(process, uuid4(), *range(20))
    async with process.pool.unit() as one, process.pool.unit() as other:
        for request in (one, other):
            await request.execute(text("SELECT 1"))
        await asyncio.sleep(1.0)  # the lease's time: it has to be renewed
        site.bus.away = False
        await until(lambda: len(site.bus.published) == 20, 20)


async def test_a_lease_is_held_by_one_and_its_token_rises_with_each_change_of_hands(site: Site) -> None:
    process = await site.start(Module("things"))
    first, second = (Lease(by_engine(process.pool.engine), "x", seconds=2) for _ in range(2))
    results: list[Any] = [await first.take(), await second.take(), await first.take()]
    assert results == [True, False, True]
    assert (first.token, second.token) == (1, None)
    await asyncio.sleep(2.1)
    assert await second.take()
    assert not await first.take()
    assert (first.token, second.token) == (None, 2)
    await second.release()
    assert await first.take()
    assert first.token == 3
