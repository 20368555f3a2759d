"""Events are stored by the commit of the unit of work that emitted them, in the order of commits for each key."""

import asyncio
import json
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from moorage import Event, Module
from moorage.module import DeclarationError
from rigs.events import Process, Site, until

pytestmark = pytest.mark.postgres

TYPE = "emitting.thing.changed"


class Changed(Event, type=TYPE, key="id"):
    id: UUID
    n: int = 0


class Undeclared(Event, type="emitting.thing.forgotten", key="id"):
    id: UUID


@pytest.fixture
async def process(site: Site) -> Process:
    """A process whose relay sends nothing, so that the outbox can be looked at."""
    site.bus.away = True
    return await site.start(Module("things"), [TYPE])


async def outbox(site: Site) -> list[int]:
    return [
        json.loads(e)["data"]["n"] for e in await site.query("SELECT event FROM moorage_outbox ORDER BY seq")
    ]


async def test_what_a_unit_of_work_emits_is_stored_when_it_commits(site: Site, process: Process) -> None:
    async with process.pool.unit(tenant="acme") as db:
        await db.emit(Changed(id=uuid4(), n=1))
        await db.emit(Changed(id=uuid4(), n=2))
        assert await outbox(site) == []
    assert await outbox(site) == [1, 2]
    (row,) = await site.query("SELECT topic, type, key, event, id::text FROM moorage_outbox WHERE seq = 1")
    envelope = json.loads(row[3])
    assert row[:2] == ("emitting.thing", TYPE)
    assert envelope["subject"] == envelope["partitionkey"] == row[2]
    assert envelope["source"] == "/test/things"
    assert envelope["tenantid"] == "acme"
    assert envelope["id"] == row[4]


async def test_a_rollback_drops_them(site: Site, process: Process) -> None:
    with pytest.raises(RuntimeError):  # noqa: PT012 - the unit of work has several steps
        async with process.pool.unit() as db:
            await db.emit(Changed(id=uuid4()))
            raise RuntimeError
    async with process.pool.unit() as db:
        await db.emit(Changed(id=uuid4(), n=1))
        await db.session.rollback()
        await db.emit(Changed(id=uuid4(), n=2))
    assert await outbox(site) == [2]


async def test_a_commit_in_the_middle_sends_what_was_emitted_until_then(site: Site, process: Process) -> None:
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with process.pool.unit() as db:
            await db.emit(Changed(id=uuid4(), n=1))
            await db.session.commit()
            assert await outbox(site) == [1]
            await db.emit(Changed(id=uuid4(), n=2))
            raise RuntimeError
    assert await outbox(site) == [1]


async def test_a_savepoint_that_is_rolled_back_takes_its_events_with_it(site: Site, process: Process) -> None:
    async with process.pool.unit() as db:
        await db.emit(Changed(id=uuid4(), n=1))
        with pytest.raises(RuntimeError):  # noqa: PT012
            async with db.savepoint():
                await db.emit(Changed(id=uuid4(), n=2))
                async with db.savepoint():
                    await db.emit(Changed(id=uuid4(), n=3))
                raise RuntimeError
        async with db.savepoint():
            await db.emit(Changed(id=uuid4(), n=4))
    assert await outbox(site) == [1, 4]


async def test_an_undeclared_type_is_refused(process: Process) -> None:
    with pytest.raises(DeclarationError, match=r"emitting.thing.forgotten is not in spec.events.publishes"):
        async with process.pool.unit() as db:
            await db.emit(Undeclared(id=uuid4()))


async def test_a_module_without_events_is_told_what_to_declare(site: Site) -> None:
    process = await site.start(Module("things"))
    with pytest.raises(DeclarationError, match=r"add spec.events.publishes: \[emitting.thing.changed\]"):
        async with process.pool.unit() as db:
            await db.emit(Changed(id=uuid4()))


async def test_a_large_event_and_an_empty_key_are_refused(process: Process) -> None:
    class Long(Event, type=TYPE, key="id"):
        id: str
        text: str = ""

    async with process.pool.unit() as db:
        with pytest.raises(ValueError, match="more than 900000"):
            await db.emit(Long(id="1", text="x" * 900_000))
        with pytest.raises(ValueError, match="key has 0 characters"):
            await db.emit(Long(id=""))


async def test_the_order_of_numbers_is_the_order_of_commits_for_each_key(
    site: Site, process: Process
) -> None:
    """The one that began to emit first commits last: a number that was given out early would lie."""
    key, first, go_on = uuid4(), asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with process.pool.unit() as db:
            await db.emit(Changed(id=key, n=1))
            first.set()
            await go_on.wait()

    task = asyncio.create_task(slow())
    await first.wait()
    async with process.pool.unit() as db:
        await db.emit(Changed(id=key, n=2))
    go_on.set()
    await task
    assert await outbox(site) == [2, 1]


async def test_a_commit_waits_for_one_that_has_stored_an_event_of_its_key(
    site: Site, process: Process
) -> None:
    """Between the insert and the end of the commit nobody else gets a number for the key."""
    key = uuid4()
    await site.execute(
        """
        CREATE TABLE pause (id int);
        GRANT INSERT ON pause TO PUBLIC;
        CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER pause AFTER INSERT ON pause DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION pause();
        """
    )

    async def emit(n: int, *, slow: bool) -> None:
        async with process.pool.unit() as db:
            if slow:
                await db.execute(text("INSERT INTO pause VALUES (1)"))
            await db.emit(Changed(id=key, n=n))

    tasks = [asyncio.create_task(emit(1, slow=True))]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    await until(lambda: _is_one(site, waiting))
    tasks += [asyncio.create_task(emit(n, slow=False)) for n in (2, 3)]
    await asyncio.gather(*tasks)
    found = await outbox(site)
    assert found[0] == 1
    assert sorted(found) == [1, 2, 3]


async def _is_one(site: Site, sql: str) -> bool:
    return await site.query(sql) == [1]


async def test_commits_with_many_keys_in_any_order_do_not_block_each_other(
    site: Site, process: Process
) -> None:
    keys = [uuid4() for _ in range(40)]

    async def emit(order: list[UUID]) -> None:
        for _ in range(5):
            async with process.pool.unit() as db:
                for key in order:
                    await db.emit(Changed(id=key))

    await asyncio.wait_for(asyncio.gather(emit(keys), emit(keys[::-1]), emit(keys[20:] + keys[:20])), 20)
    assert await site.query("SELECT count(*) FROM moorage_outbox") == [600]


async def test_committed_events_are_counted(site: Site, process: Process) -> None:
    async with process.pool.unit() as db:
        await db.emit(Changed(id=uuid4()))
    assert f'events_emitted_total{{type="{TYPE}"}} 1.0' in process.assembly.metrics.exposition().decode()
