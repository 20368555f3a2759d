"""W3C Trace Context, level 2: what is taken from a stranger, and what is told to the next one."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import trace as traces
from moorage.tracing import NullTracer, current_trace, inject

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def remote(text: str = PARENT, state: str = "") -> traces.Trace:
    trace = traces.parse(text, state)
    assert trace is not None
    return trace


def test_a_callers_span_is_read_and_its_child_names_it() -> None:
    parent = remote()
    assert (parent.trace_id, parent.span_id, parent.flags, parent.remote) == (TRACE, SPAN, "01", True)
    child = parent.child()
    assert (child.trace_id, child.parent_id, child.remote, child.entry) == (TRACE, SPAN, False, True)
    assert child.child().entry is False
    assert remote(child.traceparent).span_id == child.span_id


@pytest.mark.parametrize(
    "text",
    [
        None, "", "00", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}", f" {PARENT}",
        f"{PARENT}\n",
        f"00-{TRACE}-{SPAN}-0g", f"01-{TRACE}-{SPAN}-01x", f"00-{TRACE}-{SPAN}-٠١",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 300,
    ],
)  # fmt: skip
def test_what_is_malformed_counts_as_none(text: str | None) -> None:
    assert traces.parse(text, "a=1") is None


@pytest.mark.parametrize(
    ("flags", "known", "sampled"),
    [("00", "00", False), ("01", "01", True), ("02", "02", False), ("03", "03", True), ("ff", "03", True)],
)
def test_flags_of_level_2_are_kept_and_others_cleared(flags: str, known: str, sampled: bool) -> None:
    trace = remote(PARENT[:-2] + flags)
    assert (trace.flags, trace.sampled) == (known, sampled)
    other = trace.with_sampled(not sampled)
    assert (other.sampled, other.span_id) == (not sampled, trace.span_id)
    assert other.with_sampled(sampled) == trace


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert (
        remote(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings").child().traceparent.startswith(f"00-{TRACE}-")
    )


def test_a_trace_that_begins_here_is_random_and_undecided() -> None:
    first, second = traces.new(), traces.new()
    assert first.trace_id != second.trace_id
    assert (first.flags, first.sampled, first.parent_id, first.entry) == ("02", False, None, True)
    assert remote(first.traceparent).trace_id == first.trace_id


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a=1,b=2", "a=1,b=2"),
        (["a=1", "b=2"], "a=1,b=2"),
        (" a=1 ,\tb=2,,", "a=1,b=2"),
        ("t61rcWkgMzE=x", ""),
        ("fw529a3039@dt=FfGaY,rojo=00f067aa0ba902b7", "fw529a3039@dt=FfGaY,rojo=00f067aa0ba902b7"),
        ("a=1,a=2", ""),
        ("a", ""),
        ("a=", ""),
        ("a=1=2", ""),
        ("a=é", ""),
        ("a=1\r\nx: y", ""),
        ("a=" + "1" * 257, ""),
        (",".join(f"k{i}=1" for i in range(33)), ""),
        (",".join(f"k{i}=1" for i in range(32)), ",".join(f"k{i}=1" for i in range(32))),
        ("big=" + "1" * 200 + ",b=2," + "c=" + "3" * 250 + ",d=" + "4" * 90, "b=2,d=" + "4" * 90),
        (",".join(f"k{i}=" + "1" * 100 for i in range(6)), ",".join(f"k{i}=" + "1" * 100 for i in range(4))),
    ],
)
def test_tracestate_travels_well_formed_and_bounded(given: str | list[str], kept: str) -> None:
    assert traces.state(given) == kept


@given(st.text(max_size=300), st.text(max_size=700))
def test_whatever_is_sent_the_next_hop_gets_well_formed_headers(parent: str, state: str) -> None:
    trace = traces.parse(parent, state) or remote(PARENT, state)
    headers: dict[str, str] = {}
    inject(headers, trace.child())
    assert remote(headers["traceparent"]).trace_id == trace.trace_id
    if trace.state:
        assert len(headers["tracestate"]) <= 512
        assert headers["tracestate"].isascii()
        assert headers["tracestate"].isprintable()


def test_nothing_is_injected_outside_of_a_trace() -> None:
    headers: dict[str, str] = {}
    inject(headers)
    assert headers == {}


async def test_the_null_tracer_lets_traces_pass_through() -> None:
    tracer = NullTracer()
    with tracer.span("GET /", kind="server", trace=remote(state="a=1")) as outer:
        with tracer.span("below") as inner:
            headers: dict[str, str] = {}
            inject(headers)
            assert inner.trace is outer.trace is current_trace()
        assert await asyncio.create_task(_current()) is outer.trace
    assert headers == {"traceparent": outer.trace.traceparent, "tracestate": "a=1"}
    assert (outer.trace.trace_id, outer.trace.parent_id, outer.trace.flags) == (TRACE, SPAN, "01")
    assert current_trace() is None


async def _current() -> traces.Trace | None:
    return current_trace()


def test_a_span_that_nobody_records_takes_everything_and_hides_no_exception() -> None:
    with NullTracer().span("a", attributes={"a": 1}) as span:
        span.set("b", "2")
        span.rename("c")
        span.failed("d")
        assert not span.recording
        assert span.trace.flags == "02"
    with pytest.raises(ValueError, match="x"), NullTracer().span("a"):
        raise ValueError("x")
