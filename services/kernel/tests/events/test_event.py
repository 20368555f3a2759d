"""Event classes, and their form on the wire."""

import enum
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import NewType
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import Event
from moorage.events.cloudevents import Origin, Undecodable, decode, encode, read
from moorage.events.event import declared, topic_of
from moorage.ids import uuid7
from moorage.module import DeclarationError
from moorage.trace import Trace

PostId = NewType("PostId", UUID)


class Colour(enum.Enum):
    RED = "red"


class Painted(Event, type="events.wall.painted", key="colour"):
    colour: Colour
    at: datetime | None = None


class Base(Event):
    """Fields that several events have."""

    id: PostId


class Moved(Base, type="events.wall.moved", key="id"):
    to: str = "there"


def test_a_topic_is_the_type_without_its_last_word() -> None:
    assert topic_of("blog.post.published") == "blog.post"
    assert topic_of("user.created") == "user"


def test_the_key_is_text() -> None:
    assert Painted(colour=Colour.RED).event_key == "red"
    id = uuid4()
    assert Moved(id=PostId(id)).event_key == str(id)


def test_classes_of_a_package_are_found_by_type() -> None:
    package = __name__.partition(".")[0]
    assert {"events.wall.moved", "events.wall.painted"} <= {cls.__event_type__ for cls in declared(package)}
    assert Base not in list(declared(package))


@pytest.mark.parametrize(
    ("options", "fields", "why"),
    [
        ({"type": "Published", "key": "id"}, {"id": str}, "cannot be an event's type"),
        ({"type": "published", "key": "id"}, {"id": str}, "at least two lower-case words"),
        ({"type": "blog.post-x", "key": "id"}, {"id": str}, "cannot be an event's type"),
        ({"type": "a." + "b" * 200, "key": "id"}, {"id": str}, "at most 200"),
        ({"type": "blog.post.published"}, {"id": str}, "has no key"),
        ({"key": "id"}, {"id": str}, "has no type"),
        (
            {"type": "blog.post.published", "key": "post"},
            {"id": str, "n": int},
            r"none of its fields \(id, n\)",
        ),
        ({"type": "blog.post.published", "key": "id"}, {"id": str | None}, "never None"),
        ({"type": "blog.post.published", "key": "id"}, {"id": list[str]}, "never None"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_at_once(
    options: dict[str, str], fields: dict[str, object], why: str
) -> None:
    with pytest.raises(DeclarationError, match=why):
        type(Event)("Wrong", (Event,), {"__annotations__": fields, "__module__": __name__}, **options)


def test_an_event_cannot_be_changed() -> None:
    event = Painted(colour=Colour.RED)
    with pytest.raises(ValueError, match="frozen"):
        event.colour = Colour.RED  # type: ignore[misc]


ORIGIN = Origin(
    "/test/walls",
    tenant="acme",
    user_id="0b0e2e6e-5a3b-4a59-9f3b-0f3f3f3f3f3f",
    request_id="r-1",
    trace=Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", None, "01", "a=b"),
)


def test_the_envelope_is_cloudevents_1_0() -> None:
    id, time = uuid7(), datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    assert json.loads(encode(Painted(colour=Colour.RED), ORIGIN, id=id, time=time)) == {
        "specversion": "1.0",
        "id": str(id),
        "source": "/test/walls",
        "type": "events.wall.painted",
        "subject": "red",
        "time": "2026-01-02T03:04:05.000678Z",
        "datacontenttype": "application/json",
        "partitionkey": "red",
        "tenantid": "acme",
        "userid": "0b0e2e6e-5a3b-4a59-9f3b-0f3f3f3f3f3f",
        "requestid": "r-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "data": {"colour": "red", "at": None},
    }


class Free(Event, type="events.free.said", key="id"):
    id: str
    text: str
    number: float
    many: dict[str, list[int]]


@given(
    st.builds(
        Free,
        # The database refuses a NUL in a key, so it is never sent.
        id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
        text=st.text(),
        number=st.floats(allow_nan=False, allow_infinity=False),
        many=st.dictionaries(st.text(), st.lists(st.integers(-(2**53), 2**53), max_size=3), max_size=3),
    )
)
def test_what_was_written_is_read(event: Free) -> None:
    id, time = uuid7(), datetime.now(UTC)
    envelope = decode(encode(event, ORIGIN, id=id, time=time).encode())
    assert read(Free, envelope) == event
    assert (envelope.id, envelope.key, envelope.time, envelope.tenant) == (str(id), event.id, time, "acme")
    assert envelope.trace is not None
    assert envelope.trace.trace_id == "0af7651916cd43dd8448eb211c80319c"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_undecodable_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(body)


def test_importing_event_brings_neither_database_nor_bus() -> None:
    code = (
        "import sys; from moorage import Event, EventInfo, Reject, Module; "
        "print([m for m in ('sqlalchemy', 'asyncpg', 'aiokafka', 'aiohttp', 'alembic') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
