"""The metrics of the events port."""

from typing import Literal

from moorage.metrics import Metrics

Outcome = Literal["handled", "duplicate", "parked", "dead", "dropped"]


class Meters:
    """Counters and gauges; types and topics are what the Module declares, so that their number is bounded."""

    def __init__(self, metrics: Metrics) -> None:
        self._emitted = metrics.counter("events_emitted", "Events committed to the outbox.", ("type",))
        self._published = metrics.counter("events_published", "Events that the bus has taken.").labels()
        self._handled = metrics.counter(
            "events_handled", "Deliveries, by what became of them.", ("type", "outcome")
        )
        self._duration = metrics.histogram("event_handling_duration_seconds", "A handler's time.", ("type",))
        self._pending = metrics.gauge("events_outbox_pending", "Events that wait to be sent.").labels()
        self._parked = metrics.gauge("events_parked", "Events that wait to be handled again.").labels()
        self._dead = metrics.gauge("events_dead", "Dead letters.").labels()
        self._lag = metrics.gauge("events_lag", "Events on the bus that are not handled yet.", ("topic",))

    def emitted(self, type: str) -> None:
        """One was committed."""
        self._emitted.labels(type).inc()

    def published(self, number: int) -> None:
        """The bus has taken some."""
        self._published.inc(number)

    def handled(self, type: str, outcome: Outcome, number: int = 1) -> None:
        """Deliveries have come to an end."""
        self._handled.labels(type, outcome).inc(number)

    def took(self, type: str, seconds: float) -> None:
        """A handler has returned."""
        self._duration.labels(type).observe(seconds)

    def pending(self, number: int) -> None:
        """So many are in the outbox."""
        self._pending.set(number)

    def waiting(self, parked: int, dead: int) -> None:
        """So many are in the inbox."""
        self._parked.set(parked)
        self._dead.set(dead)

    def lag(self, topic: str, number: int) -> None:
        """So many are on the bus."""
        self._lag.labels(topic).set(number)
