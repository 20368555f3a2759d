"""What a module is promised of its events, on each bus: from `db.emit` in one process to a handler in another."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from moorage import Db, Event, EventInfo, Module, Reject
from moorage import trace as traces
from moorage.cli.events import events as commands
from moorage.events.bus import Message
from moorage.scope import current
from moorage.testing import SchemaDatabase
from rigs.events import BusName, Process, Site, make_tables, until

pytestmark = pytest.mark.postgres
BACKENDS: tuple[BusName, ...] = ("postgres", "kafka")
TOPIC = "keeping.thing"
PATIENCE = 60.0
FIRST_RETRY_S = 0.2


class Changed(Event, type=f"{TOPIC}.changed", key="id"):
    id: str
    n: int = 0


class Noticed(Event, type=f"{TOPIC}.noticed", key="id"):
    """What the handler of some `Changed` emits."""

    id: str


class Undo(Exception):
    """Raised to have something rolled back."""


PUBLISHES = (Changed.__event_type__, Noticed.__event_type__)
Before = Callable[[Changed, Db, EventInfo], Awaitable[None]]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BusName:
    """What the suite runs on."""
    name: BusName = request.param
    return name


@pytest.fixture
async def site(
    backend: BusName,
    moorage_database: SchemaDatabase,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Site]:
    """A module's database with a table that its handler writes to, and the bus."""
    broker = request.getfixturevalue("kafka_broker") if backend == "kafka" else ""
    await make_tables(moorage_database)
    async with AsyncExitStack() as stack:
        made = Site(moorage_database, stack, monkeypatch, bus=backend, broker=broker)
        await made.execute(
            "CREATE TABLE log (seq bigserial, key text, n int, who text, tenant text); "
            "GRANT ALL ON log, log_seq_seq TO PUBLIC"
        )
        yield made


class Worker:
    """A module that writes down what it handles; *before* may fail, at any time and in any way."""

    def __init__(self, site: Site, name: str = "a") -> None:
        self.site, self.name = site, name
        self.attempts: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
        """Of each event: the number of the try, and when it was."""
        self.noticed: list[EventInfo] = []
        self.before: Before | None = None

    async def start(self, *, retries: int = 3) -> Process:
        """A process of it."""
        return await self.site.start(
            self.module(),
            PUBLISHES,
            EVENTS_SUBSCRIBES=json.dumps([{"type": type, "retries": retries} for type in PUBLISHES]),
            EVENTS_FIRST_RETRY=f"{round(FIRST_RETRY_S * 1000)}ms",
            EVENTS_LONGEST_RETRY="2s",
        )

    def module(self) -> Module:
        module = Module("things")

        @module.on(Changed)
        async def handle(event: Changed, db: Db, info: EventInfo) -> None:
            self.attempts[event.id, event.n].append((info.attempt, asyncio.get_running_loop().time()))
            values = {"key": event.id, "n": event.n, "who": self.name, "tenant": db.tenant}
            await db.execute(
                text("INSERT INTO log (key, n, who, tenant) VALUES (:key, :n, :who, :tenant)"), values
            )
            if self.before is not None:
                await self.before(event, db, info)

        @module.on(Noticed)
        async def notice(_: Noticed, info: EventInfo) -> None:
            self.noticed.append(info)

        return module


async def emit(process: Process, *events: Event, tenant: str | None = None) -> None:
    async with process.pool.unit(tenant=tenant) as db:
        for event in events:
            await db.emit(event)


async def log(site: Site) -> dict[str, list[int]]:
    """What handlers have written and committed, by key."""
    found: dict[str, list[int]] = defaultdict(list)
    for key, n in await site.query("SELECT key, n FROM log ORDER BY seq"):
        found[key].append(n)
    return dict(found)


async def becomes(function: Callable[[], Awaitable[Any]], wanted: object) -> None:
    """Wait until *function* returns *wanted*."""

    async def same() -> bool:
        return bool(await function() == wanted)

    try:
        await until(same, PATIENCE)
    except TimeoutError:
        raise AssertionError(f"{await function()}, not {wanted}") from None


async def dead(site: Site) -> Sequence[Any]:
    return await site.query("SELECT key, attempts, reason FROM moorage_inbox WHERE state = 'dead'")


async def test_an_event_is_sent_if_and_only_if_its_unit_of_work_commits(site: Site) -> None:
    process = await Worker(site).start()
    with contextlib.suppress(Undo):
        async with process.pool.unit() as db:
            await db.emit(Changed(id="rolled back"))
            raise Undo
    async with process.pool.unit() as db:
        with contextlib.suppress(Undo):
            async with db.session.begin_nested():
                await db.emit(Changed(id="of a savepoint"))
                raise Undo
        await db.emit(Changed(id="committed"))
    await becomes(lambda: log(site), {"committed": [0]})
    await becomes(lambda: site.query("SELECT count(*) FROM moorage_outbox"), [0])
    assert await site.states() == {"done": 1}


async def test_events_of_one_key_are_handled_in_the_order_of_their_commits(site: Site) -> None:
    """Several tasks emit for the same keys; each number is taken within the transaction that emits it."""
    process = await Worker(site).start()
    await site.execute("CREATE TABLE counter (key text PRIMARY KEY, n int); GRANT ALL ON counter TO PUBLIC")
    bump = text(
        "INSERT INTO counter VALUES (:key, 1) ON CONFLICT (key) DO UPDATE SET n = counter.n + 1 RETURNING n"
    )

    async def emitter(number: int) -> None:
        for round in range(10):
            async with process.pool.unit() as db:
                key = f"k{(number + round) % 5}"
                n = (await db.execute(bump, {"key": key})).scalar_one()
                await db.emit(Changed(id=key, n=n))

    await asyncio.gather(*(emitter(n) for n in range(5)))
    await becomes(lambda: log(site), {f"k{k}": list(range(1, 11)) for k in range(5)})


async def test_an_event_that_comes_twice_takes_effect_once(site: Site) -> None:
    process = await Worker(site).start()
    twice = message({"id": "a", "n": 1})
    await site.publish(process, [twice, twice, message({"id": "a", "n": 2})])
    await becomes(lambda: log(site), {"a": [1, 2]})
    await site.publish(process, [twice, message({"id": "a", "n": 3})])
    await becomes(lambda: log(site), {"a": [1, 2, 3]})
    assert await site.states() == {"done": 3}


async def test_a_failing_event_is_tried_again_after_growing_pauses(site: Site) -> None:
    """What the tries that failed have written is undone."""
    worker = Worker(site)

    async def before(_: Changed, __: Db, info: EventInfo) -> None:
        if info.attempt < 3:
            raise RuntimeError("not yet")

    worker.before = before
    process = await worker.start()
    await emit(process, Changed(id="a"))
    await becomes(lambda: log(site), {"a": [0]})
    tries = worker.attempts["a", 0]
    assert [attempt for attempt, _ in tries] == [1, 2, 3]
    pauses = [later - sooner for (_, sooner), (_, later) in pairwise(tries)]
    for number, pause in enumerate(pauses):
        assert pause > FIRST_RETRY_S * 2**number * 0.7, "they are spread by a quarter"


async def test_a_parked_event_holds_up_its_key_and_no_other(site: Site) -> None:
    worker, broken = Worker(site), [True]

    async def before(event: Changed, *_: object) -> None:
        if event.id == "bad" and event.n == 1 and broken:
            raise RuntimeError("not today")

    worker.before = before
    process = await worker.start(retries=100)
    await emit(process, *(Changed(id=key, n=n) for n in range(3) for key in ("good", "bad", "fine")))
    await becomes(lambda: log(site), {"good": [0, 1, 2], "bad": [0], "fine": [0, 1, 2]})
    await emit(process, Changed(id="bad", n=3), Changed(id="good", n=3))
    await becomes(lambda: log(site), {"good": [0, 1, 2, 3], "bad": [0], "fine": [0, 1, 2]})
    broken.clear()
    await becomes(lambda: log(site), {"good": [0, 1, 2, 3], "bad": [0, 1, 2, 3], "fine": [0, 1, 2]})


async def test_an_event_that_fails_every_time_is_given_up_and_can_be_sent_again(site: Site) -> None:
    worker, broken = Worker(site), [True]

    async def before(event: Changed, *_: object) -> None:
        if event.n == 1 and broken:
            raise RuntimeError(f"no such thing: {event.id}\nsecond line")

    worker.before = before
    process = await worker.start(retries=1)
    await emit(process, *(Changed(id="a", n=n) for n in range(3)))
    await becomes(lambda: log(site), {"a": [0, 2]})
    assert await dead(site) == [("a", 2, "RuntimeError: no such thing: a")]
    broken.clear()
    environ = {"DATABASE_DSN": site.database.app_dsn}
    done = await asyncio.to_thread(CliRunner().invoke, commands, ["replay", "--all-dead"], env=environ)
    assert done.exit_code == 0, done.output
    await becomes(lambda: log(site), {"a": [0, 2, 1]})
    assert await site.states() == {"done": 3}


async def test_a_rejected_event_is_given_up_at_once(site: Site) -> None:
    worker = Worker(site)

    async def before(event: Changed, *_: object) -> None:
        if event.n == 1:
            raise Reject("we do not ship to \0")

    worker.before = before
    process = await worker.start(retries=100)
    await emit(process, *(Changed(id="a", n=n) for n in range(3)))
    await becomes(lambda: log(site), {"a": [0, 2]})
    assert await dead(site) == [("a", 1, r"rejected: we do not ship to \x00")]


async def test_what_cannot_be_read_is_given_up_and_holds_up_nothing(site: Site) -> None:
    process = await Worker(site).start()
    unreadable = [Message(TOPIC, "a", b"\xff\0"), message({"id": "a", "n": "many"})]
    await site.publish(process, [*unreadable, message({"id": "a", "n": 1})])
    await becomes(lambda: log(site), {"a": [1]})
    why = sorted(reason for _, _, reason in await dead(site))
    assert why[0].startswith("it is no CloudEvent: not JSON")
    assert why[1].startswith("its data is no Changed: n: Input should be a valid integer")


async def test_each_event_is_handled_for_the_tenant_for_whom_it_was_emitted(site: Site) -> None:
    process = await Worker(site).start()
    for n, tenant in enumerate(("acme", "other", None)):
        await emit(process, Changed(id="k", n=n), tenant=tenant)

    async def tenants() -> Sequence[Any]:
        return await site.query("SELECT n, tenant FROM log ORDER BY seq")

    await becomes(tenants, [(0, "acme"), (1, "other"), (2, None)])


async def test_an_event_says_whose_request_led_to_it_over_every_step(site: Site) -> None:
    """Of the first event, which came from elsewhere; the second is emitted by its handler."""
    worker, seen = Worker(site), list[tuple[str, str]]()

    async def before(event: Changed, db: Db, _: EventInfo) -> None:
        scope, trace = current.get(), traces.current_trace()
        assert scope is not None
        assert trace is not None
        seen.append((scope.request_id, trace.trace_id))
        await db.emit(Noticed(id=event.id))

    worker.before = before
    process = await worker.start()
    trace, user = traces.new().trace_id, uuid4()
    known = {"requestid": "r-1", "tenantid": "acme", "userid": str(user)}
    await site.publish(
        process, [message({"id": "a"}, traceparent=f"00-{trace}-b7ad6b7169203331-01", **known)]
    )
    await until(lambda: worker.noticed, PATIENCE)
    assert seen == [("r-1", trace)]
    (info,) = worker.noticed
    assert (info.source, info.key, info.attempt) == ("/test/things", "a", 1)
    assert (info.tenant, info.user_id, info.trace_id) == ("acme", user, trace)


async def test_what_was_emitted_while_nobody_handled_comes_once_somebody_does(site: Site) -> None:
    first = await Worker(site, "first").start()
    await emit(first, *(Changed(id=f"k{n % 3}", n=n) for n in range(9)))
    handled = {f"k{k}": [k, k + 3, k + 6] for k in range(3)}
    await becomes(lambda: log(site), handled)
    await emit(first, *(Changed(id=f"k{n % 3}", n=n) for n in range(9, 12)))
    await first.stop()
    await Worker(site, "second").start()
    await becomes(lambda: log(site), {key: [*numbers, numbers[-1] + 3] for key, numbers in handled.items()})
    assert await site.states() == {"done": 12}


async def test_processes_of_a_module_share_its_events(site: Site) -> None:
    """A second one joins: each event is handled once, each key in order, and at last both have had some."""
    process = await Worker(site, "first").start()
    await Worker(site, "second").start()
    rounds = 0

    async def both_have_had_some() -> bool:
        nonlocal rounds
        await emit(process, *(Changed(id=f"k{k}", n=rounds) for k in range(20)))
        rounds += 1
        await asyncio.sleep(0.2)
        return len(await site.query("SELECT DISTINCT who FROM log")) == 2

    await until(both_have_had_some, PATIENCE)
    await becomes(lambda: log(site), {f"k{k}": list(range(rounds)) for k in range(20)})


def message(data: dict[str, Any], **attributes: Any) -> Message:
    """A `Changed` as another implementation would send it."""
    envelope = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "/test/elsewhere",
        "type": Changed.__event_type__,
        "partitionkey": data["id"],
        "data": data,
    }
    return Message(TOPIC, data["id"], json.dumps(envelope | attributes).encode())
