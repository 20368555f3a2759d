"""What comes from the bus is handled once, in order for each key, whatever fails."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from structlog.contextvars import get_contextvars

from moorage import Config, Db, Event, EventInfo, Module, Reject
from moorage.events.bus import Message
from moorage.module import DeclarationError
from moorage.scope import current
from rigs.events import Process, Site, until

pytestmark = pytest.mark.postgres

TYPE = "handling.thing.changed"
OTHER = "handling.thing.removed"


class Changed(Event, type=TYPE, key="id"):
    id: str
    n: int = 0


class Removed(Event, type=OTHER, key="id"):
    id: str


class Elsewhere(Event, type=TYPE, key="id"):
    """The same type as another module declares it."""

    id: str
    more: str = "unknown to Changed"
    n: int = 0


class Log:
    """Handled events, in a table: what was rolled back is not in it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.calls: list[tuple[str, int]] = []
        self.before: Callable[[Changed, Db, EventInfo], Any] | None = None

    def module(self) -> Module:
        module = Module("things")

        @module.on(Changed)
        async def handle(event: Changed, db: Db, info: EventInfo) -> None:
            self.calls.append((event.id, event.n))
            if self.before is not None:
                await self.before(event, db, info)
            await db.execute(
                text("INSERT INTO log (key, n) VALUES (:key, :n)"), {"key": event.id, "n": event.n}
            )

        return module

    async def rows(self) -> list[tuple[str, int]]:
        return await self.site.query("SELECT key, n FROM log ORDER BY seq")

    async def by_key(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for key, n in await self.rows():
            found[key].append(n)
        return found

    async def count(self) -> int:
        return int((await self.site.query("SELECT count(*) FROM log"))[0])


@pytest.fixture
async def log(site: Site) -> Log:
    await site.execute(
        """
        CREATE TABLE log (seq bigserial, key text, n int);
        GRANT ALL ON log, log_seq_seq TO PUBLIC;
        """
    )
    return Log(site)


async def emit(process: Process, *events: Event, tenant: str | None = None) -> None:
    async with process.pool.unit(tenant=tenant) as db:
        for event in events:
            await db.emit(event)


def message(data: dict[str, Any], *, type: str = TYPE, **attributes: Any) -> Message:
    envelope = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "/test/elsewhere",
        "type": type,
        "partitionkey": str(data.get("id")),
        "time": "2026-01-02T03:04:05Z",
        "data": data,
    }
    return Message("handling.thing", str(data.get("id")), json.dumps(envelope | attributes).encode())


async def test_what_is_emitted_is_handled(site: Site, log: Log) -> None:
    process = await site.start(log.module(), [TYPE])
    await emit(process, *(Changed(id=f"k{i % 5}", n=i) for i in range(50)))
    await until(lambda: _is(log.count, 50))
    assert await log.by_key() == {f"k{k}": list(range(k, 50, 5)) for k in range(5)}
    assert await site.query("SELECT count(*) FROM moorage_outbox") == [0]
    assert await site.states() == {"done": 50}


async def _is(function: Callable[[], Any], value: object) -> bool:
    return bool(await function() == value)


async def test_ten_emitters_at_once_lose_nothing_and_keep_each_keys_order(site: Site, log: Log) -> None:
    """Keys are shared; each emission takes a number under a lock of the application: the order of commits."""
    process = await site.start(log.module(), [TYPE])
    numbers: dict[str, int] = defaultdict(int)
    await site.execute("CREATE TABLE counter (key text PRIMARY KEY, n int); GRANT ALL ON counter TO PUBLIC")
    bump = text(
        "INSERT INTO counter VALUES (:key, 1) ON CONFLICT (key) DO UPDATE SET n = counter.n + 1 RETURNING n"
    )

    async def emitter(number: int) -> None:
        for round in range(100):
            async with process.pool.unit() as db:
                for key in sorted({f"k{(number + round) % 7}", f"k{(number * round) % 7}"}):
                    n = (await db.execute(bump, {"key": key})).scalar_one()
                    numbers[key] += 1
                    await db.emit(Changed(id=key, n=n))

    await asyncio.gather(*(emitter(n) for n in range(10)))
    sent = sum(numbers.values())
    await until(lambda: _is(log.count, sent), 30)
    assert await log.by_key() == {key: list(range(1, n + 1)) for key, n in numbers.items()}


async def test_a_handler_gets_what_it_asks_for(site: Site, log: Log) -> None:
    class Settings(Config):
        size: int = 7

    module = Module("things", config=Settings)
    seen: list[Any] = []

    @module.on(Changed)
    async def handle(event: Changed, info: EventInfo, config: Settings, db: Db) -> None:
        scope = current.get()
        assert scope is not None
        seen.append(
            (event, info, config.size, db.tenant, scope.tenant, scope.trace.trace_id, scope.request_id)
        )

    process = await site.start(module, [TYPE])
    trace, user = "0af7651916cd43dd8448eb211c80319c", uuid4()
    sent = message(
        {"id": "a", "n": 3, "new": True},
        tenantid="acme",
        userid=str(user),
        requestid="r-1",
        traceparent=f"00-{trace}-b7ad6b7169203331-01",
        id="42",
    )
    site.bus.append([sent])
    await until(lambda: seen)
    event, info, *rest = seen[0]
    assert event == Changed(id="a", n=3)
    assert rest == [7, "acme", "acme", trace, "r-1"]
    assert (info.id, info.type, info.source, info.key) == ("42", TYPE, "/test/elsewhere", "a")
    assert (info.tenant, info.user_id, info.trace_id, info.attempt) == ("acme", user, trace, 1)
    assert info.time.isoformat() == "2026-01-02T03:04:05+00:00"
    assert process.events.source == "/test/things"


async def test_logs_and_reports_of_errors_say_whose_request_led_to_the_event(
    site: Site, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[str, Any]] = []

    async def before(event: Changed, _: Db, info: EventInfo) -> None:
        seen.append(get_contextvars())
        raise RuntimeError("not today")

    log.before = before
    trace, user = "0af7651916cd43dd8448eb211c80319c", str(uuid4())
    known = {"request_id": "r-1", "trace_id": trace, "user_id": user, "tenant_id": "acme"}
    site.bus.append(
        [
            message(
                {"id": "a", "n": 1},
                id="42",
                requestid="r-1",
                tenantid="acme",
                userid=user,
                traceparent=f"00-{trace}-b7ad6b7169203331-01",
            )
        ]
    )
    subscribes = json.dumps([{"type": TYPE, "retries": 1}])
    await site.start(log.module(), [TYPE], EVENTS_SUBSCRIBES=subscribes)
    await until(lambda: _is(site.states, {"dead": 1}))
    assert [context.items() >= known.items() for context in seen] == [True, True]
    reports = [vars(record) for record in caplog.records if record.name == "moorage.errors"]
    assert len(reports) == 2, "the lane's, and that of the second try"
    for report in reports:
        assert report.items() >= (known | {"event_id": "42"}).items()


async def test_events_of_several_tenants_in_one_batch_are_handled_each_for_its_own(
    site: Site, log: Log
) -> None:
    module, seen = Module("things"), []

    @module.on(Changed)
    async def handle(event: Changed, db: Db) -> None:
        setting = await db.execute(text("SELECT nullif(current_setting('moorage.tenant', true), '')"))
        seen.append((event.n, db.tenant, setting.scalar_one()))

    tenants = ["a", "b", None, "a", None]
    site.bus.append(
        message({"id": "k", "n": n}, **({"tenantid": tenant} if tenant else {}))
        for n, tenant in enumerate(tenants)
    )
    await site.start(module, [TYPE])
    await until(lambda: len(seen) == 5)
    assert seen == [(n, tenant, tenant) for n, tenant in enumerate(tenants)]


async def test_an_event_that_comes_twice_takes_effect_once(site: Site, log: Log) -> None:
    process = await site.start(log.module(), [TYPE])
    twice = message({"id": "a", "n": 1})
    site.bus.append([twice, twice])
    site.bus.append([message({"id": "a", "n": 2})])
    await until(lambda: _is(log.count, 2))
    site.bus.append([twice, message({"id": "a", "n": 3})])
    await until(lambda: _is(log.count, 3))
    assert await log.by_key() == {"a": [1, 2, 3]}
    metrics = process.assembly.metrics.exposition().decode()
    assert f'events_handled_total{{outcome="duplicate",type="{TYPE}"}} 2.0' in metrics
    assert f'events_handled_total{{outcome="handled",type="{TYPE}"}} 3.0' in metrics


async def test_types_without_a_handler_leave_no_trace(site: Site, log: Log) -> None:
    await site.start(log.module(), [TYPE])
    site.bus.append([message({"id": "a"}, type=OTHER), message({"id": "a", "n": 1})])
    await until(lambda: _is(log.count, 1))
    assert await site.states() == {"done": 1}
    await until(lambda: sum(site.bus.positions.values()) == 2)


async def test_a_failing_event_waits_with_its_key_while_other_keys_go_on(site: Site, log: Log) -> None:
    broken = True

    async def before(event: Changed, _: Db, info: EventInfo) -> None:
        if event.id == "bad" and event.n == 1 and broken:
            raise RuntimeError("not today")

    log.before = before
    await site.start(log.module(), [TYPE], EVENTS_SUBSCRIBES=json.dumps([{"type": TYPE, "retries": 50}]))
    site.bus.append(message({"id": key, "n": n}) for n in range(4) for key in ("good", "bad", "fine"))
    await until(lambda: _is(log.count, 9))
    assert await log.by_key() == {"good": [0, 1, 2, 3], "bad": [0], "fine": [0, 1, 2, 3]}
    assert await site.states() == {"done": 9, "retry": 3}
    site.bus.append([message({"id": "bad", "n": 4}), message({"id": "good", "n": 4})])
    await until(lambda: _is(log.count, 10))
    assert (await log.by_key())["bad"] == [0]
    broken = False
    await until(lambda: _is(log.count, 14))
    assert (await log.by_key())["bad"] == [0, 1, 2, 3, 4]
    assert await site.states() == {"done": 14}


async def test_an_event_that_fails_every_time_is_given_up_and_its_key_goes_on(site: Site, log: Log) -> None:
    attempts = []

    async def before(event: Changed, db: Db, info: EventInfo) -> None:
        if event.n == 1:
            attempts.append(info.attempt)
            await db.execute(text("INSERT INTO log (key, n) VALUES ('half', 1)"))
            raise RuntimeError("never\nsecond line")

    log.before = before
    process = await site.start(
        log.module(), [TYPE], EVENTS_SUBSCRIBES=json.dumps([{"type": TYPE, "retries": 2}])
    )
    site.bus.append(message({"id": "a", "n": n}) for n in range(3))
    await until(lambda: _is(log.count, 2))
    assert await log.by_key() == {"a": [0, 2]}
    # Twice at first: in the batch, and alone.
    assert attempts == [1, 1, 2, 3]
    assert await site.query(
        "SELECT attempts, reason, event IS NOT NULL FROM moorage_inbox WHERE state = 'dead'"
    ) == [(3, "RuntimeError: never", True)]
    assert f'{{outcome="dead",type="{TYPE}"}} 1.0' in process.assembly.metrics.exposition().decode()


async def test_without_a_dead_letter_it_is_dropped(site: Site, log: Log) -> None:
    async def before(event: Changed, *_: object) -> None:
        if event.n == 1:
            raise RuntimeError

    log.before = before
    subscribes = json.dumps([{"type": TYPE, "retries": 0, "dead_letter": False}])
    await site.start(log.module(), [TYPE], EVENTS_SUBSCRIBES=subscribes)
    site.bus.append(message({"id": "a", "n": n}) for n in range(3))
    await until(lambda: _is(log.count, 2))
    await until(lambda: _is(site.states, {"done": 3}))
    assert await site.query("SELECT event FROM moorage_inbox WHERE reason IS NOT NULL") == [None]


async def test_a_rejected_event_is_given_up_at_once(site: Site, log: Log) -> None:
    async def before(event: Changed, *_: object) -> None:
        if event.n == 1:
            raise Reject("we do not ship there")

    log.before = before
    await site.start(log.module(), [TYPE])
    site.bus.append(message({"id": "a", "n": n}) for n in range(3))
    await until(lambda: _is(log.count, 2))
    assert await site.query("SELECT attempts, reason FROM moorage_inbox WHERE state = 'dead'") == [
        (1, "rejected: we do not ship there")
    ]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"specversion": "0.3"}', "specversion is '0.3', not '1.0'"),
        (message({"id": "a"}, id=7).body, "id is 7, not a text"),
        (message({"id": "a"}, time="yesterday").body, "time is 'yesterday', not a time as RFC 3339 has it"),
        (message({"n": 1}).body, "its data is no Changed: id: Field required"),
        (
            message({"id": "a", "n": "secret"}).body,
            "its data is no Changed: n: Input should be a valid integer",
        ),
    ],
)
async def test_what_cannot_be_read_is_a_dead_letter_at_once(
    site: Site, log: Log, body: bytes, why: str
) -> None:
    await site.start(log.module(), [TYPE])
    site.bus.append([Message("handling.thing", "a", body), message({"id": "a", "n": 1})])
    await until(lambda: _is(log.count, 1))
    (reason,) = await site.query("SELECT reason FROM moorage_inbox WHERE state = 'dead'")
    assert why in reason
    assert "secret" not in reason


async def test_a_handler_that_takes_too_long_has_failed(site: Site, log: Log) -> None:
    async def before(event: Changed, *_: object) -> None:
        if event.n == 1:
            await asyncio.sleep(60)

    log.before = before
    subscribes = json.dumps([{"type": TYPE, "retries": 0}])
    await site.start(log.module(), [TYPE], EVENTS_HANDLER_TIMEOUT="200ms", EVENTS_SUBSCRIBES=subscribes)
    site.bus.append(message({"id": "a", "n": n}) for n in range(3))
    await until(lambda: _is(log.count, 2))
    assert await site.query("SELECT reason FROM moorage_inbox WHERE state = 'dead'") == [
        "TimeoutError: the handler took too long"
    ]


@pytest.mark.parametrize(
    ("failing", "why"),
    [
        (
            lambda: Path("/nowhere/prices.csv").read_text(),
            "FileNotFoundError: [Errno 2] No such file or directory",
        ),
        (lambda: asyncio.sleep(60), "TimeoutError: the handler took too long"),
    ],
    ids=["a missing file", "the end of its time"],
)
async def test_what_is_tried_again_fails_for_its_own_reason(
    site: Site, log: Log, failing: Callable[[], Any], why: str
) -> None:
    """Both look like trouble with the database to a unit of work."""

    async def before(*_: object) -> None:
        await failing()

    log.before = before
    subscribes = json.dumps([{"type": TYPE, "retries": 1}])
    await site.start(log.module(), [TYPE], EVENTS_HANDLER_TIMEOUT="200ms", EVENTS_SUBSCRIBES=subscribes)
    site.bus.append([message({"id": "a", "n": 1})])
    await until(lambda: _is(site.states, {"dead": 1}))
    assert len(log.calls) == 2
    (reason,) = await site.query("SELECT reason FROM moorage_inbox")
    assert reason.startswith(why)


async def test_what_only_the_commit_finds_is_a_failure_of_its_event_alone(site: Site, log: Log) -> None:
    await site.execute("ALTER TABLE log ADD CONSTRAINT one UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    subscribes = json.dumps([{"type": TYPE, "retries": 0}])
    await site.start(log.module(), [TYPE], EVENTS_SUBSCRIBES=subscribes)
    site.bus.append(message({"id": "a", "n": n}) for n in (1, 2, 2, 3))
    await until(lambda: _is(log.count, 3))
    assert await log.by_key() == {"a": [1, 2, 3]}
    await until(lambda: _is(site.states, {"done": 3, "dead": 1}))


async def test_events_emitted_by_a_handler_are_sent_if_it_succeeds(site: Site, log: Log) -> None:
    module, seen, fail = Module("things"), [], [True]

    @module.on(Changed)
    async def handle(event: Changed, db: Db) -> None:
        await db.emit(Removed(id=event.id))
        if fail:
            fail.pop()
            raise RuntimeError

    @module.on(Removed)
    async def removed(event: Removed, info: EventInfo) -> None:
        seen.append((event.id, info.tenant))

    await site.start(module, [TYPE, OTHER])
    site.bus.append([message({"id": "a"}, tenantid="acme"), message({"id": "b"})])
    await until(lambda: len(seen) == 2)
    await asyncio.sleep(0.2)
    assert sorted(seen, key=str) == [("a", "acme"), ("b", None)]


async def test_a_handler_of_an_undeclared_type_stops_the_start(site: Site, log: Log) -> None:
    with pytest.raises(
        DeclarationError, match=r"handles handling.thing.changed, which is not in spec.events.subscrib"
    ):
        site.assembly(log.module(), EVENTS_SUBSCRIBES="[]")


async def test_a_parameter_that_nothing_provides_stops_the_start(site: Site) -> None:
    module = Module("things")

    @module.on(Changed)
    async def handle(event: Changed, other: UUID) -> None: ...

    with pytest.raises(DeclarationError, match=r"nothing provides a <class 'uuid\.UUID'> for"):
        site.assembly(module)


async def test_old_events_are_forgotten_and_dead_letters_kept(site: Site, log: Log) -> None:
    async def before(event: Changed, *_: object) -> None:
        if event.n == 1:
            raise Reject("no")

    log.before = before
    site.bus.append(message({"id": "a", "n": n}) for n in range(3))
    process = await site.start(log.module(), [TYPE], EVENTS_RETENTION="60s")
    await until(lambda: _is(log.count, 2))
    await process.stop()
    await site.execute("UPDATE moorage_inbox SET received_at = now() - interval '1 hour'")
    site.bus.append([message({"id": "a", "n": 5})])
    await site.start(log.module(), [TYPE], EVENTS_RETENTION="60s")
    await until(lambda: _is(log.count, 3))
    await until(lambda: _is(site.states, {"done": 1, "dead": 1}))
