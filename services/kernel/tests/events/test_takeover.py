"""Processes of one module that share its events, die, stand still and come back."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text

from moorage import Db, Event, Module
from moorage.events import lane
from moorage.events.bus import BusUnavailable, Message
from rigs.events import MemoryBus, MemorySubscriber, Process, Site, until

pytestmark = pytest.mark.postgres

TYPE = "taking.thing.changed"


class Changed(Event, type=TYPE, key="id"):
    id: str
    n: int


def messages(keys: int, numbers: int) -> list[Message]:
    return [
        Message(
            "taking.thing",
            f"k{k}",
            json.dumps(
                {
                    "specversion": "1.0",
                    "id": str(uuid4()),
                    "source": "/test/elsewhere",
                    "type": TYPE,
                    "partitionkey": f"k{k}",
                    "data": {"id": f"k{k}", "n": n},
                }
            ).encode(),
        )
        for n in range(numbers)
        for k in range(keys)
    ]


class Handler:
    """A module whose handler writes into a table, and can be made to wait."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.calls = 0
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.pause = 0.0
        self.fails: Callable[[], bool] = lambda: False
        self.poison = ""
        self.poisoned = asyncio.Event()
        self.module = Module("things")

        @self.module.on(Changed)
        async def handle(event: Changed, db: Db) -> None:
            self.calls += 1
            values = {"key": event.id, "n": event.n, "who": self.name}
            await db.execute(text("INSERT INTO log (key, n, who) VALUES (:key, :n, :who)"), values)
            if self.fails():
                raise RuntimeError("by chance")
            if event.id == self.poison:
                self.poisoned.set()
                await asyncio.sleep(60)
            if not self.go_on.is_set():
                self.waiting.set()
                await self.go_on.wait()
            await asyncio.sleep(self.pause)


@pytest.fixture(autouse=True)
async def log(site: Site) -> None:
    await site.execute(
        "CREATE TABLE log (seq bigserial, key text, n int, who text); GRANT ALL ON log, log_seq_seq TO PUBLIC"
    )


async def handled(site: Site) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for key, n in await site.query("SELECT key, n FROM log ORDER BY seq"):
        found[key].append(n)
    return found


async def count(site: Site) -> int:
    return int((await site.query("SELECT count(*) FROM log"))[0])


def expected(keys: int, numbers: int) -> dict[str, list[int]]:
    return {f"k{k}": list(range(numbers)) for k in range(keys)}


async def done(site: Site, number: int) -> bool:
    return await count(site) == number


async def test_a_process_that_dies_before_its_position_is_committed_leaves_nothing_to_do_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: MemorySubscriber, positions: object) -> None:
        raise BusUnavailable("the process is about to die")

    with monkeypatch.context() as patched:
        patched.setattr(MemorySubscriber, "commit", refuse)
        first = await site.start(Handler("first").module)
        site.bus.append(messages(5, 20))
        await until(lambda: done(site, 100))
        await first.stop()
    assert sum(site.bus.positions.values()) == 0
    second = Handler("second")
    await site.start(second.module)
    await until(lambda: sum(site.bus.positions.values()) == 100)
    assert second.calls == 0
    assert await handled(site) == expected(5, 20)


async def test_a_process_that_dies_in_mid_batch_leaves_the_whole_batch_to_the_next(site: Site) -> None:
    first = Handler("first")
    first.go_on.clear()
    process = await site.start(first.module, EVENTS_DRAIN="100ms")
    site.bus.append(messages(1, 20))
    await asyncio.wait_for(first.waiting.wait(), 5)
    await process.stop()
    assert await count(site) == 0
    await site.start(Handler("second").module)
    await until(lambda: done(site, 20))
    assert await handled(site) == expected(1, 20)
    assert set(await site.query("SELECT who FROM log")) == {"second"}


async def test_a_stop_lets_the_batch_that_is_under_way_finish(site: Site) -> None:
    handler = Handler()
    handler.go_on.clear()
    process = await site.start(handler.module)
    site.bus.append(messages(1, 10))
    await asyncio.wait_for(handler.waiting.wait(), 5)
    stopping = asyncio.create_task(process.stop())
    await asyncio.sleep(0.2)
    site.bus.append(messages(1, 10))
    handler.go_on.set()
    await stopping
    assert await handled(site) == expected(1, 10)
    assert sum(site.bus.positions.values()) == 10


async def test_a_paused_process_that_wakes_up_after_its_partition_went_to_another_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction stands open with the partition's lock, until the server cuts it for standing still."""
    monkeypatch.setattr(lane, "_IDLE_MARGIN", -29.0)  # of 30 s for the handler: cut after one
    zombie, other = Handler("zombie"), Handler("other")
    zombie.go_on.clear()
    await site.start(zombie.module)
    site.bus.append(messages(1, 10))
    await asyncio.wait_for(zombie.waiting.wait(), 5)
    (paused,) = site.bus.members
    monkeypatch.setattr(MemoryBus, "share", _nothing)
    await site.start(other.module)
    await until(lambda: len(site.bus.members) == 2)
    # The bus has waited for it long enough; it does not know.
    every, paused.owned = paused.owned, frozenset()
    (member,) = (member for member in site.bus.members if member is not paused)
    member.owned = every
    await member.on_change(every)
    await until(lambda: done(site, 10), 20)
    zombie.go_on.set()
    site.bus.append(messages(1, 10))
    await until(lambda: done(site, 20), 20)
    await asyncio.sleep(0.5)
    assert await handled(site) == {"k0": [*range(10), *range(10)]}
    assert set(await site.query("SELECT who FROM log")) == {"other"}


async def _nothing(_: object) -> None: ...


async def test_two_that_handle_the_same_partition_at_once_do_everything_once(site: Site) -> None:
    """The bus gives the partitions to both, as it may for a while when one is cut off."""
    both = [Handler("a"), Handler("b")]
    for handler in both:
        handler.go_on.clear()
        await site.start(handler.module, EVENTS_BATCH="7")
    every = frozenset(("taking.thing", n) for n in range(4))
    for member in site.bus.members:
        member.owned = every
        await member.on_change(every)
    site.bus.append(messages(6, 50))
    await until(lambda: _one_waits_for_the_other(site))
    assert sorted(handler.waiting.is_set() for handler in both) == [False, True]
    for handler in both:
        handler.go_on.set()
    await until(lambda: all(sum(member.read.values()) == 300 for member in site.bus.members), 30)
    await until(lambda: sum(site.bus.positions.values()) == 300, 30)
    assert await handled(site) == expected(6, 50)
    assert all(member.commits for member in site.bus.members)


async def _one_waits_for_the_other(site: Site) -> bool:
    return bool(await site.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))


async def test_partitions_change_hands_in_the_middle_of_batches(site: Site) -> None:
    """Processes come and go while thousands of events come in."""
    keys, numbers = 20, 100
    running: list[Process] = [await site.start(Handler("0").module, EVENTS_BATCH="20")]

    async def feed() -> None:
        every = messages(keys, numbers)
        for start in range(0, len(every), 20):
            site.bus.append(every[start : start + 20])
            await asyncio.sleep(0.02)

    feeding = asyncio.create_task(feed())
    for number in range(1, 5):
        await asyncio.sleep(0.3)
        running.append(await site.start(Handler(str(number)).module, EVENTS_BATCH="20"))
        await asyncio.sleep(0.3)
        await running.pop(0).stop()
    await feeding
    await until(lambda: done(site, keys * numbers), 30)
    await asyncio.sleep(0.3)
    assert await handled(site) == expected(keys, numbers)
    assert len(set(await site.query("SELECT who FROM log"))) > 1


async def test_a_database_that_loses_every_connection_costs_nothing(site: Site) -> None:
    handler = Handler()
    handler.pause = 0.005
    await site.start(handler.module, EVENTS_BATCH="20")
    site.bus.append(messages(4, 100))
    for _ in range(3):
        await asyncio.sleep(0.2)
        admin = await asyncpg.connect(site.database.admin_dsn)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '%_app'"
        )
        await admin.close()
    await until(lambda: done(site, 400), 30)
    assert await handled(site) == expected(4, 100)


async def test_a_bus_that_is_away_for_a_while_costs_nothing(site: Site) -> None:
    process = await site.start(Handler().module, EVENTS_BATCH="20")
    site.bus.append(messages(4, 10))
    await until(lambda: done(site, 40))
    site.bus.away = True
    await asyncio.sleep(0.5)
    problem: Any = (await process.assembly.health.check())["events consumer"]
    assert "no events come: BusUnavailable: the memory is full" in problem
    site.bus.append(messages(4, 10))
    site.bus.away = False
    await until(lambda: done(site, 80))


@pytest.mark.parametrize(
    ("method", "said"), [("commit", "positions are not noted"), ("lag", "the lag is not known")]
)
async def test_what_goes_wrong_beside_fetching_is_said_and_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: str, said: str
) -> None:
    broken, real = [True], getattr(MemorySubscriber, method)

    async def failing(self: MemorySubscriber, *arguments: Any) -> Any:
        if broken:
            raise RuntimeError("a mistake")
        return await real(self, *arguments)

    monkeypatch.setattr(MemorySubscriber, method, failing)
    monkeypatch.setattr("moorage.events.consumer._LAG_EVERY", 0.05)
    monkeypatch.setattr("moorage.events.consumer._LONGEST_PAUSE", 0.05)
    process = await site.start(Handler().module)
    site.bus.append(messages(4, 10))
    await until(lambda: _problem(process, f"{said}: RuntimeError: a mistake"))
    broken.clear()
    await until(lambda: _problem(process, ""))
    await until(lambda: sum(site.bus.positions.values()) == 40)
    assert (
        f'events_lag{{topic="{TYPE.rpartition(".")[0]}"}}' in process.assembly.metrics.exposition().decode()
    )


async def test_a_process_leaves_the_group_though_its_positions_cannot_be_noted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(MemorySubscriber, "commit", failing)
    process = await site.start(Handler().module)
    site.bus.append(messages(1, 1))
    await until(lambda: done(site, 1))
    await process.stop()
    assert site.bus.members == []


async def _problem(process: Process, said: str) -> bool:
    found = (await process.assembly.health.check())["events consumer"]
    return said in found if said else not found


async def test_handlers_that_fail_at_random_in_two_processes_keep_each_keys_order(site: Site) -> None:
    chance = random.Random(7)
    environ = {"EVENTS_BATCH": "20", "EVENTS_FIRST_RETRY": "10ms", "EVENTS_LONGEST_RETRY": "20ms"}
    environ["EVENTS_SUBSCRIBES"] = json.dumps([{"type": TYPE, "retries": 100}])
    for name in ("a", "b"):
        handler = Handler(name)
        handler.fails = lambda: chance.random() < 0.2
        await site.start(handler.module, **environ)
    site.bus.append(messages(8, 25))
    await until(lambda: done(site, 200), 60)
    assert await handled(site) == expected(8, 25)
    await until(lambda: _only_done(site, 200))


async def _only_done(site: Site, number: int) -> bool:
    return await site.states() == {"done": number}


async def test_a_process_that_dies_while_it_tries_again_has_used_up_that_try(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_IDLE_MARGIN", -29.5)  # of 30 s for the handler: the claim ends after 1.5 s
    first, failures = Handler("first"), [True]
    first.fails = lambda: bool(failures and failures.pop())
    process = await site.start(first.module, EVENTS_DRAIN="100ms")
    site.bus.append(messages(1, 1))
    await until(lambda: not failures)
    first.go_on.clear()
    await asyncio.wait_for(first.waiting.wait(), 5)
    await process.stop()
    assert await site.query("SELECT state, attempts FROM moorage_inbox") == [("retry", 2)]
    await site.start(Handler("second").module)
    await until(lambda: done(site, 1))
    assert await site.query("SELECT who FROM log") == ["second"]
    await until(lambda: _only_done(site, 1))
    assert await site.query("SELECT attempts FROM moorage_inbox") == [3]


async def test_a_slow_handler_pauses_its_partition_alone(site: Site) -> None:
    handler = Handler()
    handler.go_on.clear()
    await site.start(handler.module, EVENTS_BATCH="10", EVENTS_CONCURRENCY="1")
    site.bus.append(messages(1, 500))
    (member,) = site.bus.members
    await until(lambda: member.paused)
    read = sum(member.read.values())
    assert read < 60
    handler.go_on.set()
    await until(lambda: done(site, 500), 20)
    assert await handled(site) == expected(1, 500)
    await until(lambda: sum(site.bus.positions.values()) == 500)


async def _die_of_it(site: Site, limit: int) -> int:
    """Start processes that stand still at ``k1`` and are ended there, until it is given up; returns how many."""
    subscribes = json.dumps([{"type": TYPE, "retries": 0}])
    for deaths in range(limit):
        handler = Handler(str(deaths))
        handler.poison = "k1"
        process = await site.start(handler.module, EVENTS_DRAIN="50ms", EVENTS_SUBSCRIBES=subscribes)
        await until(lambda handler=handler: _stands_or_is_over(site, handler))
        if not handler.poisoned.is_set():
            return deaths
        await process.stop()
    raise AssertionError(f"{limit} processes died of it: {await site.states()}")


async def _stands_or_is_over(site: Site, handler: Handler) -> bool:
    return handler.poisoned.is_set() or "dead" in await site.states()


async def test_an_event_that_kills_its_process_again_and_again_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its first delivery it leaves a mark alone; then its tries count."""
    monkeypatch.setattr(lane, "_IDLE_MARGIN", -29.5)  # of 30 s for the handler: a claim ends after 1.5 s
    site.bus.append(messages(3, 2)[:5])  # k1 twice, k2 once
    assert await _die_of_it(site, 12) > 2
    (reason,) = await site.query("SELECT reason FROM moorage_inbox WHERE state = 'dead' LIMIT 1")
    assert reason == "ProcessDied: the process died while handling it, again and again"
    assert {k: n for k, n in (await handled(site)).items() if k != "k1"} == {"k0": [0, 1], "k2": [0]}


async def test_a_parked_event_that_kills_its_process_is_claimed_no_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_IDLE_MARGIN", -29.5)
    first, failures = Handler("first"), [True]
    first.fails = lambda: bool(failures and failures.pop())
    process = await site.start(first.module, EVENTS_FIRST_RETRY="60s", EVENTS_LONGEST_RETRY="60s")
    site.bus.append(messages(1, 1))
    await until(lambda: _state(site, "retry"))
    await process.stop()
    # Five retries, and as many processes that died of them as are borne.
    await site.execute("UPDATE moorage_inbox SET attempts = 8, next_at = now()")
    second = Handler("second")
    await site.start(second.module)
    await until(lambda: _state(site, "dead"))
    assert second.calls == 0
    assert await site.query("SELECT attempts FROM moorage_inbox") == [9]


async def _state(site: Site, state: str) -> bool:
    return await site.states() == {state: 1}
