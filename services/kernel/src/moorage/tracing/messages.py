"""The span of messages that go to a bus; names and attributes as OpenTelemetry's conventions have them
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/, in development there).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Final

from moorage import trace as traces
from moorage.trace import Trace
from moorage.tracing import NullTracer, Span, Tracer, Unrecorded

_MOST_LINKS: Final = 32


def publishing(tracer: Tracer, parents: Iterable[str | None], *, count: int) -> AbstractContextManager[Span]:
    """The span of a batch of *count* messages that is sent.

    It belongs to the trace of the first message that is recorded, and is linked to the others': most batches hold
    one message, whose trace then shows how long it took to the bus.

    Args:
        parents: the messages' ``traceparent``, in their order.
    """
    recorded: list[Trace] = []
    for text in () if isinstance(tracer, NullTracer) else parents:
        parent = traces.parse(text)
        if parent is not None and parent.sampled:
            recorded.append(parent)
            if len(recorded) > _MOST_LINKS:
                break
    if not recorded:
        return Unrecorded(traces.new())
    return tracer.span(
        "publish",
        kind="producer",
        trace=recorded[0],
        links=recorded[1:],
        attributes={"messaging.operation.type": "send", "messaging.batch.message_count": count},
    )
