"""The process's metrics. Labels are bounded: rules, known methods, statuses, codes; never paths or ids."""

import platform
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; 0.3 is the service level."""
UNMATCHED: Final = "(no rule)"


class Metrics:
    """One registry for each process, handed around instead of the library's global one."""

    def __init__(self, *, module: str, version: str, revision: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests", "Requests answered.", labels, registry=self.registry)
        self.duration = Histogram(
            "http_request_duration_seconds",
            "From the request's head to the answer's.",
            labels,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.errors = Counter("errors", "Errors answered, by code.", ("code",), registry=self.registry)
        self.queries = Histogram(
            "database_query_duration_seconds",
            "Statements, by kind.",
            ("kind",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        build = Gauge(
            "moorage_build_info",
            "What runs here; always 1.",
            ("module", "version", "revision", "python"),
            registry=self.registry,
        )
        build.labels(module, version, revision, platform.python_version()).set(1)

    def answered(self, method: str, route: str, status: int, seconds: float, error: str | None) -> None:
        """Count one answer; *route* is the rule's path, `UNMATCHED` where none matched."""
        labels = (method if method in _METHODS else "OTHER", route, str(status))
        self.requests.labels(*labels).inc()
        self.duration.labels(*labels).observe(seconds)
        if error is not None:
            self.errors.labels(error).inc()

    def queried(self, kind: str, seconds: float) -> None:
        """Count one statement."""
        self.queries.labels(kind).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry)
