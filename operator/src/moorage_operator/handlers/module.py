"""Events of Modules."""

import kopf

from moorage_operator.apply.kinds import MODULE
from moorage_operator.handlers.sink import Sink, forward


def register(registry: kopf.OperatorRegistry, sink: Sink) -> None:
    """Hand every event of a Module to *sink*."""
    forward(registry, MODULE, sink)
