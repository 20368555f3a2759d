"""The error bus: it never blocks, repeats itself only in numbers, and no sink can harm it or another one."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from moorage.errorbus import ErrorBus, Report, Sink
from moorage.errorbus import bus as bus_module
from moorage.errorbus.bus import fingerprint
from moorage.metrics import Metrics
from moorage.tracing import NullTracer
from rigs.waiting import until

Lines = Callable[[], list[dict[str, Any]]]


class Recorder:
    """A sink that remembers; ``delay`` and ``failing`` make it a bad one."""

    def __init__(self, name: str = "recorder", *, delay: float = 0.0, failing: bool = False) -> None:
        self.name = name
        self.delay, self.failing = delay, failing
        self.reports: list[Report] = []
        self.closed = 0

    async def send(self, report: Report) -> None:
        await asyncio.sleep(self.delay)
        if self.failing:
            raise RuntimeError("the sink is broken")
        self.reports.append(report)

    async def close(self, seconds: float) -> None:
        self.closed += 1


class Made:
    """Buses of a test, closed at its end."""

    def __init__(self) -> None:
        self.buses: list[ErrorBus] = []

    async def __call__(self, *sinks: Sink, **options: Any) -> ErrorBus:
        metrics = Metrics(module="shop", version="1", revision="")
        bus = ErrorBus(module="shop", version="1", environment="test", metrics=metrics, **options)
        for sink in sinks:
            bus.add(sink)
        await bus.open()
        self.buses.append(bus)
        return bus


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    makes = Made()
    yield makes
    for bus in makes.buses:
        await bus.close(0.2)


def raised(text: str = "wrong", kind: type[Exception] = ValueError) -> Exception:
    """An exception with a traceback."""
    try:
        raise kind(text)
    except Exception as exc:
        return exc


def elsewhere() -> Exception:
    try:
        raise ValueError("elsewhere")
    except ValueError as exc:
        return exc


async def test_a_report_has_the_error_its_place_and_who_was_served(made: Made) -> None:
    sink = Recorder()
    bus = await made(sink)
    error = raised()
    with structlog.contextvars.bound_contextvars(request_id="r", trace_id="t", other="x"):
        mark = bus.publish(error, user_id="u", where="posts", tenant_id=None)
    await until(lambda: sink.reports)
    [report] = sink.reports
    assert (report.error, report.count, report.fingerprint) == (error, 1, mark)
    assert (report.module, report.version, report.environment) == ("shop", "1", "test")
    assert report.context == {"request_id": "r", "trace_id": "t", "user_id": "u", "where": "posts"}


async def test_a_report_names_the_span_in_which_it_happened(made: Made) -> None:
    sink = Recorder()
    bus = await made(sink)
    with NullTracer().span("a") as span:
        bus.publish(raised())
    await until(lambda: sink.reports)
    assert sink.reports[0].context == {"trace_id": span.trace.trace_id, "span_id": span.trace.span_id}


async def test_equal_errors_are_one_report_and_then_their_number(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(bus_module, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    sink = Recorder()
    bus = await made(sink, window=0.3)
    for number in range(50):
        bus.publish(raised(f"order {number}"))
    bus.publish(elsewhere())
    await until(lambda: len(sink.reports) == 2)
    now += 0.3
    await until(lambda: len(sink.reports) == 3)
    assert [report.count for report in sink.reports] == [1, 1, 49]
    assert sink.reports[0].fingerprint == sink.reports[2].fingerprint != sink.reports[1].fingerprint
    bus.publish(raised("much later"))
    await until(lambda: len(sink.reports) == 4)


async def test_the_log_hears_of_each_at_once_with_one_traceback(made: Made, log_lines: Lines) -> None:
    bus = await made()
    for _ in range(3):
        bus.publish(raised("no sink is there"), where="posts")
    first, second, third = log_lines()
    assert first["message"] == "unexpected error"
    assert first["exception"][0]["exc_value"] == "no sink is there"
    assert first["where"] == "posts"
    assert second["message"] == third["message"] == "unexpected error, again"
    assert "exception" not in second
    assert second["fingerprint"] == first["fingerprint"]
    assert second["error"] == "ValueError: no sink is there"


async def test_publishing_returns_at_once_when_a_sink_is_stuck_and_what_does_not_fit_is_counted(
    made: Made,
) -> None:
    bus = await made(Recorder(delay=3600), queue=10, rate=10_000)
    await asyncio.sleep(0)
    errors = [_distinct(number) for number in range(100)]
    began = time.perf_counter()
    for error in errors:
        bus.publish(error)
    assert time.perf_counter() - began < 10
    assert bus.dropped >= 89
    assert _counted(bus, "dropped") == bus.dropped


async def test_no_more_reports_in_a_minute_than_are_allowed(made: Made) -> None:
    sink = Recorder()
    bus = await made(sink, rate=5)
    for number in range(20):
        bus.publish(_distinct(number))
    await until(lambda: len(sink.reports) == 5)
    await asyncio.sleep(0.05)
    assert len(sink.reports) == 5
    assert (bus.dropped, _counted(bus, "limited")) == (15, 15)


async def test_a_broken_and_a_slow_sink_do_not_harm_a_good_one(made: Made, log_lines: Lines) -> None:
    good = Recorder("good")
    bus = await made(Recorder("broken", failing=True), Recorder("slow", delay=3600), good, send_timeout=60)
    for number in range(3):
        bus.publish(_distinct(number))
    await until(lambda: len(good.reports) == 3 and _counted(bus, "failed") == 3, 20)
    assert {line["sink"] for line in log_lines() if line["message"] == "a sink of errors failed"} == {
        "broken"
    }


async def test_a_sink_that_fails_or_takes_too_long_is_counted_and_logged(
    made: Made, log_lines: Lines
) -> None:
    bus = await made(Recorder("broken", failing=True), Recorder("slow", delay=3600), send_timeout=0.1)
    for number in range(3):
        bus.publish(_distinct(number))
    await until(lambda: _counted(bus, "failed") == 6)
    told = {line["sink"]: line["why"] for line in log_lines() if line["message"] == "a sink of errors failed"}
    assert told == {"broken": "RuntimeError: the sink is broken", "slow": "TimeoutError: "}


async def test_closing_tells_what_waits_within_its_time_and_twice_is_once(made: Made) -> None:
    sink = Recorder(delay=0.05)
    bus = await made(sink)
    for number in range(4):
        bus.publish(_distinct(number))
    bus.publish(_distinct(0))
    await bus.close(30)
    assert [report.count for report in sink.reports] == [1, 1, 1, 1, 1]
    await bus.close(3)
    assert sink.closed == 1
    bus.publish(_distinct(9))
    assert len(sink.reports) == 5


async def test_closing_does_not_wait_for_a_stuck_sink(made: Made) -> None:
    stuck = Recorder(delay=3600)
    bus = await made(stuck, send_timeout=3600)
    for number in range(4):
        bus.publish(_distinct(number))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    await bus.close(0.3)
    assert time.monotonic() - began < 10
    assert _counted(bus, "dropped") == 3, "one was under way, three waited"


async def test_kinds_beyond_number_do_not_grow_its_memory_and_new_ones_are_still_told(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "_MOST_KNOWN", 10)
    sink = Recorder()
    bus = await made(sink, rate=1000)
    for number in range(50):
        bus.publish(_distinct(number))
        bus.publish(_distinct(number))
    await until(lambda: len(sink.reports) >= 90)
    assert len(bus._known) == 10
    assert sum(report.count for report in sink.reports) >= 90


async def test_without_a_sink_it_keeps_no_error(made: Made) -> None:
    """An error keeps the frames that it came through, and they a request's body."""
    bus = await made()
    bus.publish(raised())
    assert [entry.first for entry in bus._known.values()] == [None]


async def test_errors_of_threads_arrive(made: Made) -> None:
    sink = Recorder()
    bus = await made(sink, rate=1000)
    threads = [threading.Thread(target=bus.publish, args=(_distinct(number),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await until(lambda: len(sink.reports) == 20)


async def test_an_error_that_cannot_be_shown_is_no_trouble_for_who_publishes_it(made: Made) -> None:
    class Evil(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    sink = Recorder()
    bus = await made(sink)
    for _ in range(2):
        bus.publish(raised_evil(Evil))
    await until(lambda: sink.reports)


def raised_evil(kind: type[Exception]) -> Exception:
    try:
        raise kind
    except Exception as exc:
        return exc


def test_a_fingerprint_is_of_type_and_place_not_of_text() -> None:
    assert len({fingerprint(raised(str(number))) for number in range(5)}) == 1
    assert len({fingerprint(error) for error in (raised(), raised(kind=KeyError), elsewhere())}) == 3
    looping = ValueError("itself")
    looping.__cause__ = looping
    assert len(fingerprint(looping)) == 16


def _distinct(number: int) -> Exception:
    """An error whose type nobody else has."""
    kind = type(f"Error{number}", (Exception,), {"__module__": "distinct"})
    return kind(f"number {number}")


def _counted(bus: ErrorBus, outcome: str) -> float:
    return float(bus._reports.labels(outcome)._value.get())
