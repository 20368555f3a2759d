"""Spans as a collector sees them, and that nothing of it disturbs the process."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from moorage import errors
from moorage import trace as traces
from moorage.config import ConfigError, load
from moorage.guard.decision import receive
from moorage.metrics import UNMATCHED, Metrics
from moorage.tracing import NullTracer, Tracer, Unrecorded, current_trace, inject
from moorage.tracing.choosing import Tracing, endpoint
from moorage.tracing.http import served, serving
from rigs import otlp
from rigs.waiting import until

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def collector() -> AsyncIterator[otlp.Collector]:
    async with otlp.collecting() as collector:
        yield collector


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine exports; and batches are sent at once."""
    import os

    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


def choose(folder: Path, metrics: Metrics | None = None, **variables: str) -> Tracing:
    """The tracer of a process with these environment variables."""
    settings = load(environ=variables, folder=folder)
    metrics = metrics or Metrics(module="notes", version="1", revision="r")
    return Tracing.of(settings, name="notes", metrics=metrics, environ=variables)


@asynccontextmanager
async def tracing(
    folder: Path, url: str, metrics: Metrics | None = None, **more: str
) -> AsyncIterator[Tracer]:
    chosen = choose(folder, metrics, TRACING_OTLP_ENDPOINT=url, **more)
    async with chosen.opened():
        yield chosen.tracer


async def test_a_span_arrives_with_its_names_ids_and_resource(
    collector: otlp.Collector, tmp_path: Path
) -> None:
    async with tracing(tmp_path, collector.url, MOORAGE_NAMESPACE="shop", MOORAGE_VERSION="1.2.3") as tracer:
        with tracer.span("GET /a", kind="server", attributes={"http.request.method": "GET"}) as span:
            span.set("http.response.status_code", 200)
            span.set("client.address", None)
            span.rename("GET /b")
            trace = span.trace
    (seen,) = collector.spans
    assert (seen.name, seen.kind, seen.parent_id, seen.failed) == ("GET /b", "server", "", False)
    assert (seen.trace_id, seen.span_id) == (trace.trace_id, trace.span_id)
    assert trace.traceparent.endswith("-03"), "sampled, and with a random id"
    assert seen.attributes == {"http.request.method": "GET", "http.response.status_code": 200}
    assert seen.nanoseconds[0] < seen.nanoseconds[1]
    assert seen.resource["service.name"] == "notes"
    assert seen.resource["service.namespace"] == "shop"
    assert seen.resource["service.version"] == "1.2.3"
    assert seen.resource["telemetry.sdk.name"] == "opentelemetry"


async def test_spans_below_are_children_and_headers_name_the_innermost(
    collector: otlp.Collector, tmp_path: Path
) -> None:
    async with tracing(tmp_path, collector.url) as tracer:
        with tracer.span("outer") as outer:
            with tracer.span("inner", kind="client") as inner:
                headers: dict[str, str] = {}
                inject(headers)
                assert headers == {"traceparent": inner.trace.traceparent}
                assert current_trace() is inner.trace
            assert current_trace() is outer.trace
        assert current_trace() is None
    first, second = collector.spans
    assert (first.name, first.parent_id, first.remote_parent) == ("inner", second.span_id, False)
    assert first.trace_id == second.trace_id


async def test_a_callers_trace_is_continued_with_its_state(collector: otlp.Collector, tmp_path: Path) -> None:
    remote = traces.parse(PARENT, "a=1")
    assert remote is not None
    async with tracing(tmp_path, collector.url) as tracer:
        with tracer.span("consume", kind="consumer", trace=remote, links=[remote]) as span:
            headers: dict[str, str] = {}
            inject(headers)
    (seen,) = collector.spans
    assert (seen.trace_id, seen.parent_id, seen.remote_parent) == (remote.trace_id, remote.span_id, True)
    assert seen.links == [(remote.trace_id, remote.span_id)]
    assert seen.state == "a=1"
    assert headers == {"traceparent": f"00-{remote.trace_id}-{seen.span_id}-01", "tracestate": "a=1"}
    assert span.trace.span_id == seen.span_id


async def test_the_ids_that_the_guard_made_are_the_spans(collector: otlp.Collector, tmp_path: Path) -> None:
    remote = traces.parse(PARENT)
    assert remote is not None
    own = remote.child()
    async with tracing(tmp_path, collector.url) as tracer:
        with tracer.span("GET /", kind="server", trace=own):
            pass
    (seen,) = collector.spans
    assert (seen.span_id, seen.parent_id) == (own.span_id, remote.span_id)


async def test_an_exception_marks_the_span_and_its_text_stays_out(
    collector: otlp.Collector, tmp_path: Path
) -> None:
    async with tracing(tmp_path, collector.url) as tracer:
        with pytest.raises(ValueError, match="hunter2"), tracer.span("a"):
            raise ValueError("hunter2")
        with pytest.raises(errors.NotFound), tracer.span("b"):
            raise errors.NotFound
        with pytest.raises(errors.Unavailable), tracer.span("c"):
            raise errors.Unavailable
    found = {span.name: (span.failed, span.attributes.get("error.type")) for span in collector.spans}
    assert found == {"a": (True, "ValueError"), "b": (False, "not_found"), "c": (True, "unavailable")}
    assert "hunter2" not in repr(collector.spans)


async def test_unsampled_traces_pass_through_unchanged(collector: otlp.Collector, tmp_path: Path) -> None:
    remote = traces.parse(PARENT[:-1] + "0")
    assert remote is not None
    async with tracing(tmp_path, collector.url) as tracer:
        with tracer.span("a", trace=remote) as span, tracer.span("b") as below:
            assert not below.recording
            assert below.trace is span.trace, "no ids that nobody could look up"
            assert span.trace.traceparent.endswith("-00")
    assert collector.spans == []


async def test_what_is_decided_for_a_trace_holds_for_all_of_it(tmp_path: Path) -> None:
    """A span below one that is not recorded is not either, whatever the share would say about it."""
    metrics = Metrics(module="notes", version="1", revision="r")
    async with tracing(tmp_path, "http://127.0.0.1:9", metrics, TRACING_SAMPLE="0") as tracer:
        with tracer.span("a") as above, tracer.span("b") as below:
            assert below.trace is above.trace
    async with tracing(tmp_path, "http://127.0.0.1:9", TRACING_SAMPLE="1") as tracer:
        with NullTracer().span("a") as above, tracer.span("b") as below:
            assert not below.recording


async def test_calls_on_nobodys_account_make_no_traces(collector: otlp.Collector, tmp_path: Path) -> None:
    """A ping or a poll outside of any span."""
    async with tracing(tmp_path, collector.url) as tracer:
        with tracer.span("SELECT", kind="client"):
            pass
        with tracer.span("clean up"), tracer.span("DELETE", kind="client"):
            pass
    assert sorted(span.name for span in collector.spans) == ["DELETE", "clean up"]


async def test_a_share_of_the_traces_begun_here_is_recorded(
    collector: otlp.Collector, tmp_path: Path
) -> None:
    async with tracing(tmp_path, collector.url, TRACING_SAMPLE="0.25", TRACING_MAX_FOLLOWED="1000") as tracer:
        for _ in range(400):
            with tracer.span("root"), tracer.span("below"):
                pass
        for _ in range(20):
            with tracer.span("followed", trace=traces.parse(PARENT)):
                pass
    assert 50 < len(collector.named("root")) < 160
    assert len(collector.named("root")) == len(collector.named("below"))
    assert len(collector.named("followed")) == 20


async def test_forged_flags_cannot_have_everything_recorded(
    collector: otlp.Collector, tmp_path: Path
) -> None:
    """Beyond so many a second, a trace that says *sampled* has the chance of any other."""
    metrics = Metrics(module="notes", version="1", revision="r")
    async with tracing(
        tmp_path, collector.url, metrics, TRACING_SAMPLE="0", TRACING_MAX_FOLLOWED="5"
    ) as tracer:
        for _ in range(200):
            with tracer.span("forged", trace=traces.parse(PARENT)) as span:
                pass
        assert not span.trace.sampled, "who is called from here is not told to record either"
    assert 5 <= len(collector.spans) < 20
    assert value(metrics, "tracing_unfollowed_total") == 200 - len(collector.spans)


@pytest.mark.parametrize(
    ("variables", "recorded"),
    [
        ({}, True),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, False),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off", "TRACING_SAMPLE": "1"}, True),
    ],
)
async def test_the_standard_samplers_are_known(
    variables: dict[str, str], recorded: bool, tmp_path: Path
) -> None:
    async with tracing(tmp_path, "http://127.0.0.1:9", **variables) as tracer:
        with tracer.span("a") as span:
            assert span.recording is span.trace.sampled is recorded


async def test_standard_variables_say_where_to_and_who(
    collector: otlp.Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=sesame",
        "OTEL_SERVICE_NAME": "default/notes",
        "OTEL_RESOURCE_ATTRIBUTES": "team=a%20b,service.version=9,service.name=no",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "HOSTNAME": "notes-abc-1",
        "NODE_NAME": "n1",
    }
    for name, text in variables.items():
        if name.startswith("OTEL_"):
            monkeypatch.setenv(name, text)
    chosen = choose(tmp_path, **variables)
    async with chosen.opened():
        with chosen.tracer.span("a"):
            pass
    (seen,) = collector.spans
    assert (
        seen.resource.items()
        >= {
            "service.name": "default/notes",
            "service.version": "9",
            "team": "a b",
            "k8s.pod.name": "notes-abc-1",
            "k8s.namespace.name": "default",
            "k8s.node.name": "n1",
            "service.instance.id": "notes-abc-1",
        }.items()
    )
    assert collector.headers[0]["x-key"] == "sesame"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "TRACING_ENABLED": "false"},
    ],
)
def test_nothing_is_recorded_where_nobody_asks_for_it(variables: dict[str, str], tmp_path: Path) -> None:
    chosen = choose(tmp_path, **variables)
    assert isinstance(chosen.tracer, NullTracer)
    with chosen.tracer.span("a") as span:
        assert isinstance(span, Unrecorded)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TRACING_ENABLED": "true"}, r"tracing\.enabled: there is no endpoint"),
        ({"TRACING_OTLP_ENDPOINT": "collector:4318"}, r"tracing\.otlp_endpoint: 'collector:4318'"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'x'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc'"),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER: 'jaeger'"),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER: 'jaeger_remote'"),
        ({"OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG: '2'"),
    ],
)
def test_what_cannot_be_meant_is_said(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    if set(variables) <= {"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_EXPORTER"} or "SAMPLER" in str(
        variables
    ):
        variables = {"TRACING_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables}
    with pytest.raises(ConfigError, match=said):
        choose(tmp_path, **variables)


def test_the_port_of_another_protocol_is_pointed_out(
    tmp_path: Path, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    settings = load(environ={"TRACING_OTLP_ENDPOINT": "http://collector:4317"}, folder=tmp_path)
    assert endpoint(settings.tracing, {}) == "http://collector:4317/v1/traces"
    assert "4318" in log_lines()[0]["message"]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_a_collector_that_is_down_costs_a_metric_and_one_line(
    tmp_path: Path, log_lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    metrics = Metrics(module="notes", version="1", revision="r")
    async with tracing(tmp_path, "http://127.0.0.1:9", metrics) as tracer:
        for number in range(1, 4):
            with tracer.span("a"):
                pass
            await until(
                lambda number=number: value(metrics, "tracing_spans_total", outcome="failed") == number
            )
    assert value(metrics, "tracing_spans_total", outcome="failed") == 3
    assert value(metrics, "tracing_spans_total", outcome="exported") == 0
    (line,) = [line for line in log_lines() if line["level"] != "debug"]
    assert line["message"] == "spans could not be exported"
    assert line["address"] == "127.0.0.1:9"
    assert "batch" in line["reason"]


async def test_a_full_queue_drops_and_counts_and_says_nothing(
    collector: otlp.Collector,
    tmp_path: Path,
    log_lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    collector.silent = True
    metrics = Metrics(module="notes", version="1", revision="r")
    chosen = choose(tmp_path, metrics, TRACING_OTLP_ENDPOINT=collector.url)
    for _ in range(100):
        with chosen.tracer.span("a"):
            pass
        await asyncio.sleep(0)
    assert (value(metrics, "tracing_spans_waiting") or 0) <= 10
    assert (value(metrics, "tracing_spans_total", outcome="dropped") or 0) >= 80
    assert log_lines() == []
    assert chosen.exporting is not None
    collector.silent = False
    await chosen.exporting.close(0.1)


async def test_a_collector_that_does_not_answer_does_not_hold_the_stop(
    collector: otlp.Collector,
    tmp_path: Path,
    log_lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    collector.silent = True
    chosen = choose(tmp_path, TRACING_OTLP_ENDPOINT=collector.url)
    with chosen.tracer.span("a"):
        pass
    assert chosen.exporting is not None
    began = time.monotonic()
    await chosen.exporting.close(0.3)
    assert time.monotonic() - began < 15
    assert "spans were not sent in time and are lost" in {line["message"] for line in log_lines()}


async def test_what_waits_is_sent_at_the_end(
    collector: otlp.Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    async with tracing(tmp_path, collector.url) as tracer:
        for _ in range(700):
            with tracer.span("a"):
                pass
    assert len(collector.spans) == 700


async def test_two_modules_of_one_process_do_not_mix(tmp_path: Path) -> None:
    async with otlp.collecting() as one, otlp.collecting() as two:
        first = tracing(tmp_path, one.url, TRACING_SERVICE_NAME="a")
        second = tracing(tmp_path, two.url, TRACING_SERVICE_NAME="b")
        async with first as a, second as b:
            with a.span("of a"), b.span("of b"):
                pass
        assert [(span.name, span.service) for span in one.spans] == [("of a", "a")]
        assert [(span.name, span.service) for span in two.spans] == [("of b", "b")]
        assert two.spans[0].parent_id == one.spans[0].span_id


async def test_lines_say_the_innermost_span(
    collector: otlp.Collector, tmp_path: Path, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async with tracing(tmp_path, collector.url) as tracer:
        with tracer.span("outer") as outer:
            with tracer.span("inner") as inner:
                logging.getLogger("a").info("within")
            logging.getLogger("a").info("after")
        logging.getLogger("a").info("outside")
    within, after, outside = [line for line in log_lines() if line["logger"] == "a"]
    assert (within["trace_id"], within["span_id"]) == (inner.trace.trace_id, inner.trace.span_id)
    assert after["span_id"] == outer.trace.span_id
    assert "span_id" not in outside


def test_without_the_extra_it_is_said_and_the_process_goes_on(
    tmp_path: Path, log_lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("opentelemetry.sdk.trace", "opentelemetry.sdk.resources"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("moorage.tracing.otlp", "moorage.tracing.sampling"):
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(name, raising=False)
    chosen = choose(tmp_path, TRACING_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert isinstance(chosen.tracer, NullTracer)
    [line] = log_lines()
    assert "moorage[otlp]" in line["message"]


def test_nothing_of_opentelemetry_is_imported_where_nothing_is_exported() -> None:
    code = (
        "import sys, pathlib, moorage.serve\n"
        "from moorage.assembly import Assembly\n"
        "from moorage.config import load\n"
        "from moorage import Module\n"
        "assembly = Assembly.of(Module('notes'), load(environ={}, folder=pathlib.Path('/nowhere')))\n"
        "print([name for name in sys.modules if name.partition('.')[0] in {'opentelemetry', 'google', 'requests'}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout == "[]\n"


async def test_a_secret_in_the_path_is_not_in_the_span(collector: otlp.Collector, tmp_path: Path) -> None:
    facts = receive("GET", "/reset/hunter2?a=b", CIMultiDict(), peer="192.0.2.7")
    async with tracing(tmp_path, collector.url) as tracer:
        for template in ("/reset/{reset_token}", "/reset/{id}", UNMATCHED):
            with serving(tracer, facts) as span:
                served(span, facts, template, 200, None)
    paths = [span.attributes["url.path"] for span in collector.spans]
    assert paths == ["/reset/{reset_token}", "/reset/hunter2", "/reset/hunter2"]
