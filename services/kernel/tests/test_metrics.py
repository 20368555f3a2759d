"""What Prometheus reads: bounded labels, gauges that are asked, examples that lead to traces."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from moorage import trace as traces
from moorage.health import Health
from moorage.http.admin import create_admin
from moorage.http.server import Runner, listen
from moorage.metrics import MAX_VALUES, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(module="notes", version="1", revision="r")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_port_registers_and_counts_its_own(metrics: Metrics) -> None:
    hits = metrics.counter("cache_hits", "Entries found.", ("tier",))
    hits.labels("memory").inc()
    hits.labels("memory").inc(2)
    plain = metrics.counter("runs", "Runs.").labels()
    plain.inc()
    metrics.histogram("wait_seconds", "Waits.", buckets=(1, 2)).labels().observe(1.5)
    metrics.gauge("size", "Size.", ("of",)).labels("a").set(7)
    assert value(metrics, "cache_hits_total", tier="memory") == 3
    assert value(metrics, "runs_total") == 1
    assert value(metrics, "wait_seconds_bucket", le="1.0") == 0
    assert value(metrics, "wait_seconds_bucket", le="2.0") == 1
    assert value(metrics, "size", of="a") == 7


def test_a_name_means_one_thing(metrics: Metrics) -> None:
    hits = metrics.counter("cache_hits", "Entries found.", ("tier",))
    metrics.gauge_function("depth", "Depth.", lambda: 1)
    assert metrics.counter("cache_hits", "Entries found.", ("tier",)) is hits
    with pytest.raises(ValueError, match="cache_hits"):
        metrics.counter("cache_hits", "Entries found.")
    with pytest.raises(ValueError, match="cache_hits"):
        metrics.histogram("cache_hits", "Entries found.", ("tier",))
    with pytest.raises(ValueError, match="depth"):
        metrics.gauge_function("depth", "Depth.", lambda: 1)


def test_a_label_with_too_many_values_goes_on_as_other_and_is_counted(metrics: Metrics) -> None:
    seen = metrics.counter("seen", "Seen.", ("who", "how"), limits={"who": 3})
    for number in range(10):
        seen.labels(f"user-{number}", "a").inc()
    seen.labels("user-0", "b").inc()
    assert value(metrics, "seen_total", who="user-2", how="a") == 1
    assert value(metrics, "seen_total", who="user-3", how="a") is None
    assert value(metrics, "seen_total", who="other", how="a") == 7
    assert value(metrics, "seen_total", who="user-0", how="b") == 1
    assert value(metrics, "metrics_label_overflow_total", metric="seen") == 7


def test_the_number_of_series_is_bounded_without_anybody_saying_so(metrics: Metrics) -> None:
    seen = metrics.histogram("seen", "Seen.", ("a", "b"), buckets=(1,))
    for first in range(MAX_VALUES + 50):
        for second in range(60):
            seen.labels(str(first), str(second)).observe(0)
    families = [family for family in metrics.registry.collect() if family.name == "seen"]
    counts = [sample.value for sample in families[0].samples if sample.name == "seen_count"]
    assert len(counts) <= 10_001
    assert sum(counts) == (MAX_VALUES + 50) * 60, "nothing is lost"


def test_a_gauge_is_asked_when_somebody_reads(metrics: Metrics) -> None:
    depth = [1.0]
    states = {"idle": 3.0}
    metrics.gauge_function("depth", "Depth.", lambda: depth[0])
    metrics.gauge_function("connections", "By state.", lambda: states, ("state",))
    metrics.gauge_function("lag", "Lag.", lambda: {("blog.post", "0"): 5}, ("topic", "partition"))
    depth[0], states["used"] = 2.0, 1.0
    assert value(metrics, "depth") == 2
    assert value(metrics, "connections", state="idle") == 3
    assert value(metrics, "connections", state="used") == 1
    assert value(metrics, "lag", topic="blog.post", partition="0") == 5


def test_a_gauge_with_too_many_values_sums_the_rest(metrics: Metrics) -> None:
    metrics.gauge_function("lag", "Lag.", lambda: {str(n): 1 for n in range(MAX_VALUES + 5)}, ("topic",))
    assert value(metrics, "lag", topic="other") == 5


def test_a_gauge_that_fails_hides_no_other(
    metrics: Metrics, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    def broken() -> float:
        raise RuntimeError

    metrics.gauge_function("broken", "Broken.", broken)
    metrics.gauge_function("whole", "Whole.", lambda: 1)
    for _ in range(3):
        assert b"whole 1.0" in metrics.exposition()
    assert [line["metric"] for line in log_lines()] == ["broken"], "said once, not at every reading"


def test_answers_are_counted_by_known_methods_alone(metrics: Metrics) -> None:
    for number in range(50):
        metrics.answered(f"BREW{number}", "/a", 501, 0.01, "not_implemented")
    metrics.answered("GET", "/a", 200, 0.01, None)
    assert value(metrics, "http_requests_total", method="OTHER", route="/a", status="501") == 50
    assert value(metrics, "http_request_duration_seconds_count", method="GET", route="/a", status="200") == 1
    assert value(metrics, "errors_total", code="not_implemented") == 50


def test_the_examples_of_a_bucket_are_recorded_traces(metrics: Metrics) -> None:
    recorded = traces.new().with_sampled(True)
    metrics.answered("GET", "/a", 200, 0.02, None, traces.new())
    assert list(examples(metrics)) == []
    metrics.answered("GET", "/a", 200, 0.02, None, recorded)
    assert list(examples(metrics)) == [{"trace_id": recorded.trace_id, "span_id": recorded.span_id}]


def examples(metrics: Metrics) -> Iterator[dict[str, str]]:
    body, _ = metrics.exposed("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.exemplar is not None:
                yield sample.exemplar.labels


async def test_the_admin_port_speaks_both_formats(metrics: Metrics) -> None:
    metrics.answered("GET", "/a", 200, 0.02, None, traces.new().with_sampled(True))
    runner = Runner(create_admin(Health(), metrics, _NoPolicy()), idle_timeout=1, shutdown_timeout=0.1)
    await runner.setup()
    try:
        url = f"http://127.0.0.1:{await listen(runner, '127.0.0.1', 0)}/metrics"
        async with ClientSession() as client:
            plain = await client.get(url)
            text = await plain.text()
            assert plain.headers["Content-Type"].startswith("text/plain; version=")
            assert "trace_id" not in text
            accept = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.1"}
            open_metrics = await client.get(url, headers=accept)
            text = await open_metrics.text()
            assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text; version=1")
            assert text.endswith("# EOF\n")
            assert "trace_id" in text
    finally:
        await runner.cleanup()


async def test_gauges_are_asked_in_the_event_loop_and_the_text_is_written_by_a_thread(
    metrics: Metrics,
) -> None:
    where: list[bool] = []

    def here() -> float:
        where.append(threading.current_thread() is threading.main_thread())
        return len(where)

    metrics.gauge_function("asked", "Asked.", here)
    bodies = await asyncio.gather(*(metrics.read("") for _ in range(3)))
    assert where == [True] * 3
    assert [f"asked {n}.0".encode() in body for n, (body, _) in enumerate(bodies, 1)] == [True] * 3


async def test_requests_do_not_wait_for_who_reads_the_metrics(metrics: Metrics) -> None:
    """The event loop goes on while the text is made."""
    for number in range(500):
        metrics.answered("GET", f"/{number}", 200, 0.01, None)
    reading = asyncio.create_task(metrics.read("application/openmetrics-text"))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert (await reading)[0].count(b"\n") > 5000


class _NoPolicy:
    def status(self) -> dict[str, Any]:
        return {}


async def test_a_blocked_event_loop_shows(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.metrics._LAG_EVERY_S", 0.05)
    async with metrics.watching_loop():
        await asyncio.sleep(0.08)
        time.sleep(0.3)  # noqa: ASYNC251 - that is what is looked for
        await asyncio.sleep(0.1)
    assert value(metrics, "event_loop_lag_seconds_sum") > 0.2  # type: ignore[operator]  # it is there
    assert value(metrics, "event_loop_lag_seconds_bucket", le="0.1") < value(  # type: ignore[operator]
        metrics, "event_loop_lag_seconds_count"
    )


def test_the_process_and_its_garbage_collector_are_in_it(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    for name in ("process_resident_memory_bytes", "python_gc_collections_total", "moorage_build_info"):
        assert f"\n{name}" in text
