"""Messages that somebody made to do harm: each ends as a dead letter, and what comes behind it is handled."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from pydantic import Field
from sqlalchemy import text

from moorage import Db, Event, EventInfo, Module, Reject
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


class Sent(Event, type=f"{TOPIC}.sent", key="id"):
    id: str
    country: str = ""
    counts: dict[str, int] = Field(default_factory=dict)


class SentBefore(Event, type=f"{TOPIC}.sent", key="id"):
    """What it was before ``counts`` became numbers."""

    id: str
    counts: dict[str, str] = Field(default_factory=dict)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


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


FAILURES: dict[str, tuple[dict[str, Any], Callable[[str], Exception], str]] = {
    "a rejection that quotes a NUL": (
        {"country": "x\0"},
        lambda country: Reject(f"we do not ship to {country}"),
        "rejected: we do not ship to x\\x00",
    ),
    "an error that quotes a surrogate": (
        {"country": "x"},
        lambda country: ValueError(f"no such file: {country}\udcff"),
        "ValueError: no such file: x\\udcff",
    ),
    "an error that cannot be shown": (
        {"country": "x"},
        lambda _: Unspeakable(),
        "Unspeakable: (it cannot be shown)",
    ),
    "data that its class refuses by name": (
        {"counts": {"x\0": "no"}},
        lambda _: AssertionError("never called"),
        "its data is no Sent: counts.x\\x00: Input should be a valid integer, unable to parse string as an integer",
    ),
}


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("settled", [False, True])
async def test_what_an_error_quotes_stops_neither_partition_nor_key(
    site: Site, failure: str, settled: bool, retries: int
) -> None:
    """*settled*: the process has handled an event of the partition before."""
    data, failing, why = FAILURES[failure]
    made = module()

    @made.on(Sent)
    async def send(event: Sent) -> None:
        raise failing(event.country)

    subscribes = [{"type": one, "retries": retries} for one in made.reactions]
    await site.start(made, [TYPE], EVENTS_SUBSCRIBES=json.dumps(subscribes))
    if settled:
        site.bus.append([message(data={"id": "before"})])
        await until(lambda: _is(site, "before"))
    # On one partition, as their key on the bus is one; the event's own keys differ.
    site.bus.append(
        [
            message(type=f"{TOPIC}.sent", partitionkey="bad", data={"id": "bad", **data}),
            message(data={"id": "after"}),
            message(partitionkey="other", data={"id": "other"}),
            message(partitionkey="bad", data={"id": "same key"}),
        ]
    )
    await until(lambda: _are(site, {"after", "other", "same key"}))
    await until(lambda: _states(site, {"done": 3 + settled, "dead": 1}))
    assert await site.query("SELECT reason FROM moorage_inbox WHERE state = 'dead'") == [why]
    await until(lambda: sum(site.bus.positions.values()) == 4 + settled)


async def test_a_parked_event_that_cannot_be_read_any_more_gives_its_key_free(site: Site) -> None:
    older, newer = module(), module()

    @older.on(SentBefore)
    async def fail(_: SentBefore) -> None:
        raise RuntimeError("later")

    @newer.on(Sent)
    async def send(_: Sent) -> None:
        raise AssertionError("never called")

    process = await site.start(older, [TYPE], EVENTS_FIRST_RETRY="1h", EVENTS_LONGEST_RETRY="1h")
    site.bus.append([message(type=f"{TOPIC}.sent", data={"id": "bad", "counts": {"x\0": "no"}})])
    await until(lambda: _states(site, {"retry": 1}))
    await process.stop()
    site.bus.append([message(data={"id": "behind"})])
    await site.start(newer, [TYPE])
    await until(lambda: _states(site, {"retry": 2}))
    await site.execute("UPDATE moorage_inbox SET next_at = now() WHERE next_at IS NOT NULL")
    await until(lambda: _is(site, "behind"))
    (why,) = await site.query("SELECT reason FROM moorage_inbox WHERE state = 'dead'")
    assert why.startswith("its data is no Sent: counts.x\\x00: ")


async def test_a_reason_that_is_refused_all_the_same_is_replaced(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module()

    @made.on(Sent)
    async def send(_: Sent) -> None:
        raise RuntimeError

    monkeypatch.setattr("moorage.events.lane.reason", lambda _: "\0")
    await site.start(made, [TYPE], EVENTS_FIRST_RETRY="1h", EVENTS_LONGEST_RETRY="1h")
    site.bus.append([message(type=f"{TOPIC}.sent", partitionkey="bad"), message(data={"id": "after"})])
    await until(lambda: _is(site, "after"))
    assert await site.query("SELECT state, reason FROM moorage_inbox WHERE key = 'bad'") == [
        ("retry", "it failed, and the reason cannot be stored")
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


async def _are(site: Site, keys: set[str]) -> bool:
    return keys <= set(await _handled(site))


async def _is(site: Site, key: str) -> bool:
    return key in await _handled(site)


async def _states(site: Site, wanted: dict[str, int]) -> bool:
    return await site.states() == wanted
