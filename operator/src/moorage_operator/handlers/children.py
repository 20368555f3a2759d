"""Events of the objects that the operator made, and of modules' pods: found by the module's label."""

from collections.abc import Iterable

import kopf

from moorage_operator.apply.kinds import Kind
from moorage_operator.handlers.sink import Sink, forward
from moorage_operator.plan.names import LABEL_MODULE


def register(
    registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, sink: Sink, kinds: Iterable[Kind]
) -> None:
    """Hand events of *kinds* to *sink*; what has no such label is filtered by the API server."""
    for kind in kinds:
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = LABEL_MODULE
        forward(registry, kind, sink)
