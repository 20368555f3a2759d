"""Events of Permissions."""

import kopf

from moorage_operator.apply.kinds import PERMISSION
from moorage_operator.handlers.sink import Sink, forward


def register(registry: kopf.OperatorRegistry, sink: Sink) -> None:
    """Hand every event of a Permission to *sink*."""
    forward(registry, PERMISSION, sink)
