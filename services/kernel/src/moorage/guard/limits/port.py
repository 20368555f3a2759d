"""How a host comes by its limiter: what its settings ask for, measured, and shown in its readiness."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.cache.keys import prefix
from moorage.config.loading import ConfigError
from moorage.config.settings import Settings
from moorage.config.values import is_redis_url
from moorage.guard.limits.arrivals import Arrivals
from moorage.guard.limits.buckets import Buckets
from moorage.guard.limits.limiter import Limiter
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.limits.shared import SharedBuckets
from moorage.health import Health
from moorage.metrics import Metrics

if TYPE_CHECKING:
    from moorage.guard.limits.redis import RedisBuckets


@dataclass(frozen=True)
class Limiting:
    """The limiter of a process, and what has to be open while it serves."""

    limiter: Limiter
    shared: SharedBuckets | None
    """``None``: it counts in memory."""

    @asynccontextmanager
    async def opened(self, health: Health, *, now: bool) -> AsyncIterator[None]:
        """For the length of the block.

        Args:
            now: connect to Redis at once; else when the first request has a limit.
        """
        shared = self.shared
        if shared is None:
            yield
            return
        health.register("limits", shared.ping, required=False)
        if now:
            await shared.open()
        try:
            yield
        finally:
            await shared.close()


def limiting(settings: Settings, module: str, metrics: Metrics) -> Limiting:
    """Make what *settings* ask for; nothing of Redis is imported before it is needed.

    Raises:
        ConfigError: Redis is asked for, and `redis.url` is not set, or is none.
    """
    options = settings.limits
    local = MemoryBuckets(options.max_keys)
    metrics.gauge_function("guard_limit_keys", "Counts of limits in memory.", lambda: float(len(local)))
    shared = _shared(settings, module, metrics, local)
    buckets: Buckets = local if shared is None else shared
    return Limiting(_limiter(settings, buckets, metrics), shared)


def in_memory(settings: Settings, metrics: Metrics) -> Limiter:
    """A limiter of its own for each of the modules that one process guards."""
    return _limiter(settings, MemoryBuckets(settings.limits.max_keys), metrics)


def _limiter(settings: Settings, buckets: Buckets, metrics: Metrics) -> Limiter:
    options = settings.limits
    counter = metrics.counter("guard_limited", "Requests refused by a limit, answered 429.", ("limit",))

    def limited(name: str) -> None:
        counter.labels(name).inc()

    return Limiter(
        buckets,
        bad_tokens=options.bad_tokens,
        limited=limited,
        tried=MemoryBuckets(options.max_keys),
        arrivals=Arrivals(options.address, options.max_keys, limited=limited) if options.address else None,
    )


def _shared(settings: Settings, module: str, metrics: Metrics, local: MemoryBuckets) -> SharedBuckets | None:
    options, url = settings.limits, settings.redis.url
    alone = metrics.counter(
        "guard_limits_alone", "Requests that this process counted by itself, as Redis was away."
    ).labels()
    refused = metrics.counter(
        "guard_limits_unavailable",
        "Requests answered 503, as Redis was away and their rule would not do without.",
    ).labels()
    if options.backend == "redis" and url is None:
        raise ConfigError("limits.backend is redis, but redis.url (REDIS_URL) is not set")
    if options.backend == "memory" or url is None:
        return None
    place, secret = settings.moorage, url.get_secret_value()
    if not is_redis_url(secret):
        raise ConfigError("redis.url: not of the form redis://user:password@host:port/database")

    def connect() -> "RedisBuckets":
        from moorage.guard.limits.redis import RedisBuckets

        return RedisBuckets(
            secret,
            prefix=prefix(place, module),
            timeout=options.timeout,
            max_connections=options.max_connections,
            client_name=f"{place.namespace}/{module}",
        )

    async def opening() -> "RedisBuckets":
        # In a thread: importing its client takes a third of a second, in which others can work.
        return await asyncio.to_thread(connect)

    return SharedBuckets(opening, timeout=options.timeout, local=local, alone=alone.inc, refused=refused.inc)
