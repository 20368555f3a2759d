"""What is seen of a process's database from outside: durations, connections, spans. Never a value."""

import re
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from moorage.database.engine import Connections
from moorage.metrics import Metrics
from moorage.tracing import Tracer

Observe = Callable[[str, float], None]
"""Called with the kind of a statement (``select``) and its seconds."""

_KINDS: Final = frozenset({"select", "insert", "update", "delete", "with"})
_NAME: Final = r'(?:only\s+)?"?([A-Za-z_][\w$]*)(?![\w$])"?'
_TARGET: Final = re.compile(
    rf"\b(?:(?:into|update)\s+{_NAME}|(?:from|join)\s+{_NAME}(?!\s*\())", re.IGNORECASE
)
"""The first table of a statement; what is followed by a parenthesis after ``FROM`` is a function."""
_BEGAN: Final = "moorage_began"
_SPAN: Final = "moorage_span"
_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds."""


def kind_of(statement: str) -> str:
    """The kind of *statement*, one of few: ``select``, ``insert``, …, ``other``."""
    words = statement.split(None, 1)
    kind = words[0].lower() if words else ""
    return kind if kind in _KINDS else "other"


def observe_statements(engine: AsyncEngine, observe: Observe) -> None:
    """Tell *observe* how long each statement took that succeeded."""

    def before(connection: Connection, *_: object) -> None:
        connection.info[_BEGAN] = time.perf_counter()

    def after(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        took = time.perf_counter() - connection.info.pop(_BEGAN, time.perf_counter())
        observe(kind_of(statement), took)

    event.listen(engine.sync_engine, "before_cursor_execute", before)
    event.listen(engine.sync_engine, "after_cursor_execute", after)


def observe_connections(connections: Connections, metrics: Metrics) -> None:
    """Show the pool as ``database_connections{state}``, ``database_connections_waiting`` and the histogram
    ``database_acquire_seconds``.
    """
    metrics.gauge_function(
        "database_connections",
        "Connections, by what they do.",
        lambda: {"in_use": float(connections.checkedout()), "idle": float(connections.checkedin())},
        ("state",),
    )
    metrics.gauge_function(
        "database_connections_waiting", "Who waits for a connection.", lambda: float(connections.waiting)
    )
    acquired = metrics.histogram("database_acquire_seconds", "Waits for a connection.", buckets=_BUCKETS)
    connections.acquired = acquired.labels().observe


def trace_statements(engine: AsyncEngine, tracer: Tracer, *, schema: str | None) -> None:
    """Make a span for each statement: its kind and table, not its text, in which an author may have put a value."""

    def before(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        found = _TARGET.search(statement)
        kind, table = kind_of(statement).upper(), found[1] or found[2] if found else None
        attributes: dict[str, Any] = {"db.system.name": "postgresql", "db.operation.name": kind}
        if table is not None:
            attributes["db.collection.name"] = table
        if schema is not None:
            attributes["db.namespace"] = schema
        span = tracer.span(f"{kind} {table}" if table else kind, kind="client", attributes=attributes)
        span.__enter__()
        connection.info[_SPAN] = span

    def after(connection: Connection, *_: object) -> None:
        span = connection.info.pop(_SPAN, None)
        if span is not None:
            span.__exit__(None, None, None)

    def failed(context: Any) -> None:
        span = context.connection.info.pop(_SPAN, None) if context.connection is not None else None
        if span is not None:
            error = context.original_exception
            span.__exit__(type(error), error, None)

    event.listen(engine.sync_engine, "before_cursor_execute", before)
    event.listen(engine.sync_engine, "after_cursor_execute", after)
    event.listen(engine.sync_engine, "handle_error", failed)
