"""Messages that somebody made to do harm: each ends as a dead letter, and what comes behind it is handled."""

import json
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from moorage import Db, Event, EventInfo, Module
from moorage.events.bus import Message
from rigs.events import Site, until

pytestmark = pytest.mark.postgres

TOPIC = "hostile.thing"
TYPE = f"{TOPIC}.changed"
OTHER = "hostile.other"
ASTRAL = "".join(chr(0x10000 + i * 37) for i in range(1000))
"""1000 characters of four bytes each, which no compression makes small enough for an index."""


class Changed(Event, type=TYPE, key="id"):
    id: str


class OtherChanged(Event, type=f"{OTHER}.changed", key="id"):
    id: str


class Ended(Event, type=f"{TOPIC}.ended", key="id"):
    id: str


class Strict(Event, type=TYPE, key="id"):
    """Whose own code has a mistake."""

    id: str

    def model_post_init(self, _: Any) -> None:
        if self.id == "boom":
            raise KeyError("a mistake")


def module(event: type[Event] = Changed) -> Module:
    made = Module("things")

    @made.on(event)
    async def handle(event: event, db: Db, info: EventInfo) -> None:  # type: ignore[valid-type]
        await db.execute(
            text("INSERT INTO log (key, source) VALUES (:key, :source)"),
            {"key": event.id, "source": info.source},  # type: ignore[attr-defined]
        )

    @made.on(OtherChanged)
    async def handle_other(event: OtherChanged) -> None:
        pass

    return made


@pytest.fixture(autouse=True)
async def table(site: Site) -> None:
    await site.execute("CREATE TABLE log (key text, source text); GRANT ALL ON log TO PUBLIC")


def message(*, topic: str = TOPIC, bus_key: str = "k", **attributes: Any) -> Message:
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "/test/elsewhere",
        "type": TYPE,
        "partitionkey": "k",
        "data": {"id": "k"},
    }
    return Message(topic, bus_key, json.dumps(envelope | attributes).encode())


async def _handled(site: Site) -> list[str]:
    return await site.query("SELECT key FROM log")


@pytest.mark.parametrize(
    "poison",
    [
        message(id="a\0"),
        message(source="a\0"),
        message(partitionkey="a\0"),
        message(tenantid="a\0"),
        message(requestid="a\0", id="a\nb"),
        message(id=ASTRAL, source=ASTRAL),
        message(partitionkey=ASTRAL, data={"id": 7}),
        message(partitionkey=None, bus_key="a\0"),
        Message(TOPIC, "a\0", b"no event"),
        Message(TOPIC, ASTRAL * 3, b"no event"),
    ],
    ids=lambda m: repr(m.body[:40]) + repr(m.key[:4]),
)
async def test_no_text_stops_a_partition(site: Site, poison: Message) -> None:
    await site.start(module(), [TYPE])
    site.bus.append([poison])
    partition = next(place for place, log in site.bus.logs.items() if log)
    site.bus.logs[partition].append(message(data={"id": "after"}))
    site.bus.append([])
    await until(lambda: _is(site, "after"))


async def test_of_a_huge_message_little_is_looked_at_and_kept(site: Site) -> None:
    """Compressed, 300 MB pass any broker's limit for a message."""
    await site.start(module(), [TYPE])
    site.bus.append([message(data={"id": "x" * 3_000_000}), message(data={"id": "after"})])
    await until(lambda: _is(site, "after"))
    assert await site.query("SELECT reason, octet_length(event) FROM moorage_inbox WHERE state = 'dead'") == [
        ("it is no CloudEvent: it has 3000171 bytes, more than 2097152", 2097152)
    ]


async def test_an_event_class_that_raises_stops_no_partition(site: Site) -> None:
    await site.start(module(Strict), [TYPE])
    site.bus.append([message(data={"id": "boom"}), message(data={"id": "after"})])
    await until(lambda: _is(site, "after"))
    assert await site.query("SELECT reason FROM moorage_inbox WHERE state = 'dead'") == [
        "its data is no Strict: it raised KeyError"
    ]


async def test_a_type_comes_from_its_own_topic_alone(site: Site) -> None:
    """Who may publish one topic must not speak for the owner of another."""
    await site.start(module(), [TYPE])
    site.bus.append([message(topic=OTHER, data={"id": "forged"}), message(data={"id": "after"})])
    await until(lambda: _is(site, "after"))
    await until(lambda: _states(site, {"done": 1, "dead": 1}))
    assert await _handled(site) == ["after"]


async def test_an_id_that_another_topic_used_first_suppresses_nothing(site: Site) -> None:
    await site.start(module(), [TYPE])
    known = str(uuid4())
    site.bus.append([message(topic=OTHER, type=f"{OTHER}.changed", id=known)])
    await until(lambda: _states(site, {"done": 1}))
    site.bus.append([message(id=known, data={"id": "real"})])
    await until(lambda: _is(site, "real"))


@pytest.mark.parametrize("way", ["commit", "rollback"])
async def test_a_handler_that_ends_the_transaction_undoes_and_repeats_nothing_of_others(
    site: Site, way: str
) -> None:
    made = module()

    @made.on(Ended)
    async def end(_: Ended, db: Db) -> None:
        await getattr(db.session, way)()

    await site.start(made, [TYPE])
    bad = message(type=f"{TOPIC}.ended", partitionkey="bad", data={"id": "bad"})
    site.bus.append([message(data={"id": "before"}), bad, message(data={"id": "after"})])
    await until(lambda: _states(site, {"done": 2, "retry": 1}))
    assert sorted(await _handled(site)) == ["after", "before"]


async def _is(site: Site, key: str) -> bool:
    return key in await _handled(site)


async def _states(site: Site, wanted: dict[str, int]) -> bool:
    return await site.states() == wanted
