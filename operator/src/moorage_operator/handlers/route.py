"""Events of Routes."""

import kopf

from moorage_operator.apply.kinds import ROUTE
from moorage_operator.handlers.sink import Sink, forward


def register(registry: kopf.OperatorRegistry, sink: Sink) -> None:
    """Hand every event of a Route to *sink*."""
    forward(registry, ROUTE, sink)
