"""Server-sent events: the same events however the bytes are cut, and nothing beyond the bounds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.guard.sse import Event, EventParser, SseError

STREAM = (
    "\ufeff: a comment\r\n"
    "event: snapshot\r\nid: 7\r\ndata: ä\r\ndata:  two\r\n\r\n"
    "event:change\rid:8\rdata:one\rdata\rdata:three\r\r"
    "retry: 5\nunknown: x\nignored\nevent: nothing\n\n"
    "data: unnamed\n\n"
    "id: 9\nevent: heartbeat\ndata: {}\n\n"
    "event: unfinished\ndata: x\n"
).encode()
EVENTS = [
    Event("snapshot", "ä\n two", "7"),
    Event("change", "one\n\nthree", "8"),
    Event("message", "unnamed", None),
    Event("heartbeat", "{}", "9"),
]


def read(*chunks: bytes, limit: int = 1000) -> list[Event]:
    parser = EventParser(limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_events_are_read_as_the_standard_says() -> None:
    assert read(STREAM) == EVENTS


def test_it_does_not_matter_where_the_bytes_are_cut() -> None:
    for at in range(len(STREAM) + 1):
        assert read(STREAM[:at], STREAM[at:]) == EVENTS, at
    assert read(*(bytes([one]) for one in STREAM)) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_it_does_not_matter_how_often_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[a:b] for a, b in itertools.pairwise(edges))) == EVENTS


def test_only_one_mark_of_byte_order_is_taken_off() -> None:
    assert read("\ufeff\ufeffdata: x\n\n".encode()) == []
    assert read("data: x\n\ufeffdata: y\n\n".encode()) == [Event("message", "x", None)]


@pytest.mark.parametrize(
    "content",
    [
        b"data: \xff\n\n",
        b"data: \xed\xa0\x80\n",
        b"data: " + b"x" * 200,
        b": " + b"x" * 200 + b"\n",
        b"data: 1234567890\n" * 20,
    ],
    ids=["no UTF-8", "a surrogate", "an endless line", "a long comment", "an endless event"],
)
def test_what_is_no_utf8_or_too_large_is_refused(content: bytes) -> None:
    with pytest.raises(SseError):
        read(content, limit=100)
    with pytest.raises(SseError):
        read(*(bytes([one]) for one in content), limit=100)


def test_many_events_are_not_one_large_event() -> None:
    assert len(read(b"data: 1234567890\n\n" * 20, limit=100)) == 20
    assert read(b": comment\n" * 100, limit=100) == []


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_read_alike_however_they_are_cut(content: bytes, at: int) -> None:
    def outcome(*chunks: bytes) -> object:
        try:
            return read(*chunks, limit=100)
        except SseError as exc:
            return type(exc)

    whole, parts = outcome(content), outcome(content[:at], content[at:])
    # With a part alone the bound on what has no end yet may be met earlier, never later.
    assert parts == whole or parts is SseError
