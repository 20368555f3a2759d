"""What the HTTP client counts; docs/ports/http-client.md lists it."""

from collections.abc import Callable, Mapping
from typing import Final

from moorage.metrics import Metrics

STATES: Final = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


class Counts:
    """The client's metrics, registered once for each process; *states* gives the breakers' for each target."""

    def __init__(self, metrics: Metrics, states: Callable[[], Mapping[str, float]]) -> None:
        self.calls = metrics.counter(
            "client_requests", "Calls to other modules, by how they ended.", ("target", "outcome")
        )
        self.seconds = metrics.histogram(
            "client_request_duration_seconds", "Calls, retries and waiting included.", ("target",)
        )
        self.retries = metrics.counter("client_retries", "Further tries of calls.", ("target",))
        self.in_flight = metrics.gauge("client_requests_in_flight", "Calls under way.", ("target",))
        metrics.gauge_function(
            "client_breaker_state", "0 closed, 1 being tried, 2 left alone.", states, ("target",)
        )
