"""How a host wires in what changes by the minute: issuers' keys, and the policy stream if the installation has one."""

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from moorage.config.settings import Settings
from moorage.guard.engine import Guard
from moorage.guard.keyring import Keyring
from moorage.health import Health, NotReady
from moorage.metrics import Metrics

STREAM: Final = "policy stream"
KEYS: Final = "token keys"

Work = Callable[[], Coroutine[Any, Any, None]]


def follow(
    guard: Guard, settings: Settings, *, module: str, health: Health, metrics: Metrics
) -> Mapping[str, Work]:
    """Let *guard* rely on issuers' keys and on the stream that *settings* name; what has to run while the host serves,
    by name.
    """
    work = {KEYS: follow_keys(guard, settings, metrics, degraded=partial(health.degraded, KEYS))}
    if settings.moorage.policy_stream is not None:
        work[STREAM] = _follow_stream(
            guard, settings, settings.moorage.policy_stream, module, health, metrics
        )
    return work


def follow_keys(
    guard: Guard, settings: Settings, metrics: Metrics, *, degraded: Callable[[str], object] = lambda _: None
) -> Work:
    """Let *guard* rely on the keys that issuers of its policy publish; what has to run meanwhile.

    Args:
        degraded: told what does not work at the moment; an empty text: all does.
    """
    keyring = Keyring(
        guard,
        metrics=metrics,
        refresh=settings.guard.keys_refresh,
        alone=settings.guard.start_alone,
        degraded=degraded,
    )
    guard.find_keys(keyring)
    return keyring.run


def _follow_stream(
    guard: Guard, settings: Settings, urls: str, module: str, health: Health, metrics: Metrics
) -> Work:
    # Nothing of it is imported where there is none.
    from moorage.guard.feed import Feed
    from moorage.guard.stream import StreamClient

    place = settings.moorage
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

    health.register(STREAM, working, required=False)
    client = StreamClient(
        feed,
        urls.split(","),
        token_file=Path(settings.client.token_file),
        metrics=metrics,
        heartbeat=settings.guard.heartbeat,
    )
    return client.run


def register(health: Health, guard: Guard) -> None:
    """Let readiness depend on a policy, on one full sync where there is a stream, on keys where they are fetched."""

    async def loaded() -> None:
        if guard.waiting:
            raise NotReady(guard.waiting)

    health.register("policy", loaded)
