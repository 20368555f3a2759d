"""What the cache counts; docs/ports/cache.md lists it."""

from typing import Final

from moorage.metrics import Metrics

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Seconds of one step in Redis."""


class Counts:
    """The cache's metrics, registered once for each process."""

    def __init__(self, metrics: Metrics) -> None:
        hits = metrics.counter(
            "cache_hits", "Entries found; stale: they were being computed anew.", ("state",)
        )
        self.fresh = hits.labels("fresh")
        self.stale = hits.labels("stale")
        self.misses = metrics.counter("cache_misses", "Entries asked for that were not there.").labels()
        self.computed = metrics.counter(
            "cache_computations", "Entries computed: kept, outdated before they were, failed.", ("outcome",)
        )
        self.errors = metrics.counter(
            "cache_errors", "Steps that failed, or were left out because Redis is away.", ("operation",)
        )
        self.seconds = metrics.histogram(
            "cache_operation_duration_seconds", "Steps in Redis.", ("operation",), buckets=_BUCKETS
        )
