"""What is seen of a database from outside: connections, spans; never a value."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from moorage.config.settings import Database as DatabaseSettings
from moorage.database import engine
from moorage.database.pool import Pool
from moorage.database.watching import observe_connections, trace_statements
from moorage.errors import Unavailable
from moorage.metrics import Metrics
from moorage.testing import SchemaDatabase
from moorage.tracing import Kind, NullTracer, Span, Trace, Tracer, Value

pytestmark = pytest.mark.postgres


class Recorded(NullTracer):
    """A tracer that keeps names, attributes and failures."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any], str | None]] = []

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        trace: Trace | None = None,
        links: Sequence[Trace] = (),
    ) -> AbstractContextManager[Span]:
        return _Kept(self, super().span(name, trace=trace), name, dict(attributes or {}))


class _Kept(AbstractContextManager[Span]):
    def __init__(
        self, tracer: Recorded, inner: AbstractContextManager[Span], name: str, attributes: dict[str, Any]
    ) -> None:
        self.tracer, self.inner, self.name, self.attributes = tracer, inner, name, attributes

    def __enter__(self) -> Self:  # type: ignore[override]  # nothing is called on it here
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.tracer.spans.append((self.name, self.attributes, kind.__name__ if kind else None))
        self.inner.__exit__(kind, exc, at)


@pytest.fixture
async def pool(moorage_database: SchemaDatabase) -> AsyncIterator[Pool]:
    settings = {"dsn": SecretStr(moorage_database.app_dsn), "max_connections": 2, "acquire_timeout": "200ms"}
    pool = Pool(DatabaseSettings.model_validate(settings), name="test")
    yield pool
    await pool.close()


async def test_a_statement_is_a_span_with_its_kind_and_table_and_without_its_text(pool: Pool) -> None:
    tracer = Recorded()
    assert isinstance(tracer, Tracer)
    trace_statements(pool.engine, tracer, schema="default_shop")
    async with pool.unit() as db:
        await db.execute(text("SELECT relname FROM pg_class WHERE relname = 'hunter2'"))
    with pytest.raises(Exception, match="division"):
        async with pool.unit() as db:
            await db.execute(text("SELECT 1/0"))
    assert [name for name, _, _ in tracer.spans] == ["SELECT pg_class", "SELECT"]
    assert tracer.spans[0][1] == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.collection.name": "pg_class",
        "db.namespace": "default_shop",
    }
    assert tracer.spans[0][2] is None
    assert tracer.spans[1][2] is not None
    assert "hunter2" not in str(tracer.spans)


async def test_the_gauges_follow_the_pool(pool: Pool) -> None:
    metrics = Metrics(module="shop", version="1", revision="r")
    observe_connections(pool.connections, metrics)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    async with pool.unit() as one, pool.unit() as two:
        for db in (one, two):
            await db.execute(text("SELECT 1"))
        assert value("database_connections", state="in_use") == 2

        async def third() -> None:
            async with pool.unit() as db:
                await db.execute(text("SELECT 1"))

        waiting = asyncio.create_task(third())
        await asyncio.sleep(0.05)
        assert value("database_connections_waiting") == 1
        with pytest.raises(Unavailable):
            await waiting
    assert value("database_connections", state="in_use") == 0
    assert value("database_connections", state="idle") == 2
    assert value("database_connections_waiting") == 0
    assert value("database_acquire_seconds_count") == 3


async def test_a_burst_does_not_open_and_close_connections(
    moorage_database: SchemaDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond ``max_idle_connections`` wait a moment for the next burst, and are closed then."""
    settings = DatabaseSettings(
        dsn=SecretStr(moorage_database.app_dsn),
        max_connections=8,
        max_idle_connections=2,
        conn_max_idle_time=0,
    )
    pool = Pool(settings, name="test")

    async def burst() -> set[int]:
        together = asyncio.Barrier(8)

        async def one() -> int:
            async with pool.unit() as db:
                found = await db.session.scalar(text("SELECT pg_backend_pid()"))
                await together.wait()
                return int(found or 0)

        return set(await asyncio.gather(*(one() for _ in range(8))))

    first = await burst()
    assert len(first) == 8
    assert await burst() == first
    assert await pool.connections.reap(0, 2) == 0
    monkeypatch.setattr(engine, "SURPLUS_S", 0.05)
    await asyncio.sleep(0.1)
    assert await pool.connections.reap(0, 2) == 6
    assert pool.connections.checkedin() == 2
    assert len(await burst()) == 8
    await pool.close()
