"""The span of events on their way to the bus."""

import os
from pathlib import Path

import pytest

from moorage import trace as traces
from moorage.config import load
from moorage.metrics import Metrics
from moorage.tracing import NullTracer, current_trace
from moorage.tracing.choosing import Tracing
from moorage.tracing.messages import publishing
from rigs import otlp


def parents(count: int, *, sampled: bool) -> list[str]:
    return [traces.new().with_sampled(sampled).traceparent for _ in range(count)]


async def test_a_batch_belongs_to_its_first_recorded_message_and_is_linked_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    batch = [*parents(1, sampled=False), *parents(3, sampled=True), None, "nonsense"]
    async with otlp.collecting() as collector:
        settings = load(environ={"TRACING_OTLP_ENDPOINT": collector.url}, folder=tmp_path)
        metrics = Metrics(module="notes", version="1", revision="r")
        tracing = Tracing.of(settings, name="notes", metrics=metrics)
        async with tracing.opened():
            with publishing(tracing.tracer, batch, count=len(batch)):
                assert current_trace() is not None
            with publishing(tracing.tracer, [None, *parents(5, sampled=False)], count=6) as nobodys:
                assert not nobodys.recording
            with publishing(tracing.tracer, parents(1000, sampled=True), count=1000):
                pass
    first, large = collector.spans
    ids = [tuple(text.split("-")[1:3]) for text in batch[1:4] if text is not None]
    assert (first.name, first.kind, first.attributes["messaging.batch.message_count"]) == (
        "publish",
        "producer",
        6,
    )
    assert (first.trace_id, first.parent_id) == ids[0]
    assert list(first.links) == ids[1:]
    assert len(large.links) == 32


def test_without_a_collector_nothing_is_made() -> None:
    with publishing(NullTracer(), parents(2, sampled=True), count=2) as span:
        assert not span.recording
