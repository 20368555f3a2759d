"""From a kopf event to the operator's own intake.

Only `on.event` is used: kopf's other handlers write their progress into each object, two more requests for each.
"""

from typing import Any, Protocol

import kopf

from moorage_operator.apply.kinds import Kind
from moorage_operator.plan.world import Manifest


class Sink(Protocol):
    """Who takes events in. It only remembers and queues, so it never waits."""

    def observe(self, kind: Kind, manifest: Manifest, *, deleted: bool) -> None:
        """One event."""
        ...


def forward(registry: kopf.OperatorRegistry, kind: Kind, sink: Sink) -> None:
    """Hand every event of *kind* to *sink*."""

    async def observe(event: kopf.RawEvent, **_: Any) -> None:
        sink.observe(kind, dict(event["object"]), deleted=event["type"] == "DELETED")

    kopf.on.event(
        group=kind.group, version=kind.version, plural=kind.plural, registry=registry, id=kind.plural
    )(observe)
