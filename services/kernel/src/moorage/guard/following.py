"""How a host wires the policy stream in, if the installation has one; else nothing of it is imported."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from moorage.config.settings import Settings
from moorage.guard.engine import Guard
from moorage.health import Health, NotReady
from moorage.metrics import Metrics

NAME: Final = "policy stream"


def follow(
    guard: Guard, settings: Settings, *, module: str, health: Health, metrics: Metrics
) -> Callable[[], Coroutine[Any, Any, None]] | None:
    """Let *guard* rely on the stream that *settings* name; what has to run while the host serves, or None."""
    place = settings.moorage
    if place.policy_stream is None:
        return None
    from moorage.guard.feed import Feed
    from moorage.guard.stream import StreamClient

    feed = Feed(
        guard,
        namespace=place.namespace,
        module=module,
        core_namespace=place.core_namespace,
        max_staleness=settings.guard.max_staleness,
        alone=settings.guard.start_alone,
    )
    guard.follow(feed)

    async def working() -> None:
        if feed.degraded:
            raise NotReady(feed.degraded)

    health.register(NAME, working, required=False)
    client = StreamClient(
        feed,
        place.policy_stream.split(","),
        token_file=Path(settings.client.token_file),
        metrics=metrics,
        heartbeat=settings.guard.heartbeat,
    )
    return client.run


def register(health: Health, guard: Guard) -> None:
    """Let readiness depend on a policy, and on one full sync where there is a stream."""

    async def loaded() -> None:
        if guard.waiting:
            raise NotReady(guard.waiting)

    health.register("policy", loaded)
