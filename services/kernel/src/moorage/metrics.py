"""The process's metrics. Labels are bounded: rules, known methods, statuses, codes; never paths or ids.

A port registers its own when it is attached; a handler may ask for `Metrics` by type::

    hits = metrics.counter("cache_hits", "Entries found.", ("tier",))
    hits.labels("memory").inc()
    metrics.gauge_function("database_connections", "By state.", lambda: {"idle": 3, "used": 1}, ("state",))

However wrong a port's labels are, the number of series stays bounded: see `Family`.
"""

import asyncio
import platform
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Generic, TypeVar

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.registry import Collector

from moorage.trace import Trace

log = structlog.get_logger("moorage.metrics")

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; 0.3 is the service level."""
UNMATCHED: Final = "(no rule)"
OTHER: Final = "other"
"""What a label says for values beyond its bound."""
MAX_VALUES: Final = 200
_MAX_SERIES: Final = 10_000
_MOST_UNCOUNTED: Final = 64
_MAX_ROUTES: Final = 5_000
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LAG_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LAG_EVERY_S: Final = 1.0

M = TypeVar("M", bound=MetricWrapperBase)
Gauged = (
    Callable[[], float] | Callable[[], Mapping[str, float]] | Callable[[], Mapping[tuple[str, ...], float]]
)


class Family(Generic[M]):
    """One metric with its labels; ``labels(…)`` gives the series to count on.

    The values of a label are kept apart up to a limit, 200 if nothing else is said. What comes later counts as
    ``other``, and `overflow` is told: a mistake in a label costs precision, not the memory of Prometheus.
    """

    def __init__(
        self, metric: M, labels: Sequence[str], limits: Mapping[str, int], overflow: Callable[[], None]
    ) -> None:
        self._metric = metric
        self._seen: list[tuple[set[str], int]] = [(set(), limits.get(name, MAX_VALUES)) for name in labels]
        self._children: dict[tuple[str, ...], M] = {}
        self._overflow = overflow

    def labels(self, *values: str) -> M:
        """The series with these values, in the order of the labels' names; the metric itself without labels."""
        child = self._children.get(values)
        return child if child is not None else self._new(values)

    def _new(self, values: tuple[str, ...]) -> M:
        if not self._seen:
            return self._children.setdefault(values, self._metric)
        bounded = tuple(
            _bounded(value, seen, limit) for value, (seen, limit) in zip(values, self._seen, strict=True)
        )
        if bounded not in self._children and len(self._children) >= _MAX_SERIES:
            bounded = (OTHER,) * len(values)
        if bounded != values:
            self._overflow()
        return self._children.setdefault(bounded, self._metric.labels(*bounded))


def _bounded(value: str, seen: set[str], limit: int) -> str:
    if value not in seen:
        if len(seen) >= limit:
            return OTHER
        seen.add(value)
    return value


class Metrics:
    """One registry for each process, handed around instead of the library's global one."""

    def __init__(self, *, module: str, version: str, revision: str) -> None:
        self.registry = CollectorRegistry()
        self._asked: list[_Asked] = []
        self._reading = asyncio.Lock()
        self._families: dict[str, tuple[type, tuple[str, ...], Family[Any]]] = {}
        self._uncounted: deque[tuple[tuple[str, str, int], float, str | None, Trace | None]] = deque()
        self.registry.register(_First(self._count))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._overflow = self.counter(
            "metrics_label_overflow",
            "Observations whose label had too many values and was counted as other.",
            ("metric",),
            limits={"metric": _MAX_SERIES},  # as many as there can be metrics; it must not count itself
        )
        labels = ("method", "route", "status")
        routes = {"route": _MAX_ROUTES}
        self._requests = self.counter("http_requests", "Requests answered.", labels, limits=routes)
        self._duration = self.histogram(
            "http_request_duration_seconds", "From the request's head to the answer's.", labels, limits=routes
        )
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = self.gauge("http_requests_in_flight", "Requests being answered.").labels()
        self._errors = self.counter("errors", "Errors answered, by code.", ("code",))
        self._queries = self.histogram("database_query_duration_seconds", "Statements, by kind.", ("kind",))
        self._lag = self.histogram(
            "event_loop_lag_seconds", "By how much a timer of the event loop was late.", buckets=_LAG_BUCKETS
        ).labels()
        build = self.gauge(
            "moorage_build_info", "What runs here; always 1.", ("module", "version", "revision", "python")
        )
        build.labels(module, version, revision, platform.python_version()).set(1)

    def counter(
        self, name: str, help: str, labels: Sequence[str] = (), *, limits: Mapping[str, int] | None = None
    ) -> Family[Counter]:
        """A counter; Prometheus shows it as *name* with ``_total``. Asked for again, it is the same one.

        Args:
            limits: the most values of a label, where the usual limit does not fit.

        Raises:
            ValueError: there is another metric of that name, or it has other labels.
        """
        return self._family(Counter, name, help, labels, limits)

    def gauge(
        self, name: str, help: str, labels: Sequence[str] = (), *, limits: Mapping[str, int] | None = None
    ) -> Family[Gauge]:
        """A gauge that is set; see `gauge_function` for what can be asked for. As `counter` otherwise."""
        return self._family(Gauge, name, help, labels, limits)

    def histogram(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = BUCKETS,
        limits: Mapping[str, int] | None = None,
    ) -> Family[Histogram]:
        """A histogram; *buckets* are upper bounds, in seconds as a rule. As `counter` otherwise."""
        return self._family(Histogram, name, help, labels, limits, buckets=buckets)

    def gauge_function(self, name: str, help: str, function: Gauged, labels: Sequence[str] = ()) -> None:
        """A gauge that is asked for each time somebody reads the metrics.

        Args:
            function: gives the value; with *labels* a mapping from their values (a text for one label, a tuple for
                several) to the value. Must not block; if it raises, the gauge is missing from that reading.

        Raises:
            ValueError: there is a metric of that name.
        """
        asked = _Asked(name, help, function, tuple(labels), self._overflowing(name))
        self.registry.register(asked)
        self._asked.append(asked)

    def _family(
        self,
        kind: type[M],
        name: str,
        help: str,
        labels: Sequence[str],
        limits: Mapping[str, int] | None,
        **options: Any,
    ) -> Family[M]:
        known = self._families.get(name)
        if known is not None and known[:2] == (kind, tuple(labels)):
            found: Family[M] = known[2]
            return found
        metric = kind(name, help, labels, registry=self.registry, **options)
        family = Family(metric, labels, limits or {}, self._overflowing(name))
        self._families[name] = (kind, tuple(labels), family)
        return family

    def _overflowing(self, name: str) -> Callable[[], None]:
        return lambda: self._overflow.labels(name).inc()

    def answered(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        error: str | None,
        trace: Trace | None = None,
    ) -> None:
        """Count one answer.

        Args:
            route: the rule's path, `UNMATCHED` where none matched.
            error: the error's code, if it was one.
            trace: the request's; a recorded one is shown as the example of its bucket.
        """
        sampled = trace if trace is not None and trace.sampled else None
        self._uncounted.append(((method, route, status), seconds, error, sampled))
        # Many at once are counted in half the time. Whoever reads has them counted before.
        if len(self._uncounted) >= _MOST_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        """Count the answers that are not yet."""
        for _ in range(len(self._uncounted)):
            try:
                key, seconds, error, trace = self._uncounted.popleft()
            except IndexError:  # a reader in another thread was there before
                return
            series = self._answered.get(key) or self._series(key)
            series[0].inc()
            exemplar = {"trace_id": trace.trace_id, "span_id": trace.span_id} if trace is not None else None
            series[1].observe(seconds, exemplar)
            if error is not None:
                self._errors.labels(error).inc()

    def _series(self, key: tuple[str, str, int]) -> tuple[Counter, Histogram]:
        method, route, status = key
        labels = (method if method in _METHODS else "OTHER", route, str(status))
        series = self._requests.labels(*labels), self._duration.labels(*labels)
        if method in _METHODS and len(self._answered) < _MAX_SERIES:
            self._answered[key] = series
        return series

    def queried(self, kind: str, seconds: float) -> None:
        """Count one statement."""
        self._queries.labels(kind).observe(seconds)

    @asynccontextmanager
    async def watching_loop(self) -> AsyncIterator[None]:
        """Measure the event loop's lag for the length of the block."""
        task = asyncio.create_task(self._watch_loop(), name="event loop lag")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag.observe(max(loop.time() - due, 0.0))

    def exposition(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type, for a reader that sent *accept*: OpenMetrics, the format that has
        room for examples (``trace_id``), if it takes that.
        """
        if "application/openmetrics-text" in accept:
            body: bytes = openmetrics_exposition.generate_latest(self.registry)  # type: ignore[no-untyped-call]  # has no annotations
            return body, _OPENMETRICS
        return self.exposition(), CONTENT_TYPE

    async def read(self, accept: str) -> tuple[bytes, str]:
        """As `exposed`, written by a thread: 300 routes make 6,000 lines, for which requests should not wait.

        Gauges are asked before, in the event loop, to which what they look at belongs. One reader at a time.
        """
        async with self._reading:
            for asked in self._asked:
                asked.ask()
            return await asyncio.to_thread(self.exposed, accept)


_OPENMETRICS: Final = openmetrics_exposition.CONTENT_TYPE_LATEST


class _First(Collector):
    """Registered, and so asked, before all others: has *count* count what they are to show."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._do = count

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: it has no metric of its own."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, when everything is counted."""
        self._do()
        return []


class _Asked(Collector):
    """The gauge of `Metrics.gauge_function`."""

    def __init__(
        self,
        name: str,
        help: str,
        function: Callable[[], Any],
        labels: tuple[str, ...],
        overflow: Callable[[], None],
    ) -> None:
        self._name, self._help, self._function = name, help, function
        self._labels, self._overflow = labels, overflow
        self._failed = False
        self._asked: Sequence[GaugeMetricFamily] | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Its name, for the registry to refuse a second one."""
        return [GaugeMetricFamily(self._name, self._help, labels=self._labels)]

    def ask(self) -> None:
        """Ask now for the next `collect`, which may be in another thread."""
        self._asked = self._values_now()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Its values when it was asked, or now."""
        asked, self._asked = self._asked, None
        return self._values_now() if asked is None else asked

    def _values_now(self) -> Sequence[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        try:
            for values, value in self._values().items():
                family.add_metric(values, value)
        except Exception as exc:
            # One wrong gauge must not hide the others.
            if not self._failed:
                log.warning("a metric cannot be read", metric=self._name, exc_info=exc)
            self._failed = True
            return []
        self._failed = False
        return [family]

    def _values(self) -> dict[tuple[str, ...], float]:
        found = self._function()
        if not self._labels:
            return {(): float(found)}
        values: dict[tuple[str, ...], float] = {}
        for key, value in found.items():
            labels = (key,) if isinstance(key, str) else tuple(key)
            if len(values) >= MAX_VALUES and labels not in values:
                self._overflow()
                labels = (OTHER,) * len(self._labels)
                value += values.get(labels, 0.0)
            values[labels] = float(value)
        return values
