"""Redis as something one can do without: a short wait, and none at all while it is known to be away.

While it is away nothing is found and nothing is kept, so everything is computed: the process is degraded, not down.
What was to be removed meanwhile is remembered, and removed before anything of it is believed again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final, TypeVar, cast

import structlog

from moorage.cache.keys import LEASE
from moorage.cache.observed import Counts
from moorage.cache.store import CacheUnavailable, Found, Lease, Life
from moorage.health import NotReady
from moorage.outage import Outage
from moorage.tracing import Tracer

if TYPE_CHECKING:
    from moorage.cache.redis import RedisStore

log = structlog.get_logger("moorage.cache")

T = TypeVar("T")

_MOST_OWED: Final = 10_000
"""Removals that are remembered one by one; beyond that, everything of the module is removed."""


class ResilientStore:
    """A `Store` over Redis that raises nothing but `TypeError` and, for counts, `CacheUnavailable`.

    Args:
        opening: makes the store when it is first needed: its client takes memory that a module which has no use for
            a cache should not pay for.
        timeout: seconds that one call may take, in all.
        everything: the pattern of all keys of the module, as ``SCAN`` reads it.
    """

    def __init__(
        self,
        opening: Callable[[], Awaitable["RedisStore"]],
        *,
        timeout: float,
        everything: bytes,
        counts: Counts,
        tracer: Tracer,
    ) -> None:
        self._opening = opening
        self._lock = asyncio.Lock()
        self._store: RedisStore | None = None
        self._timeout = timeout
        self._everything = everything
        self._counts = counts
        self._tracer = tracer
        self._outage = Outage("cache recovery", self._probe, lost=_lost, back=_back)
        self._owed: dict[bytes, None] = {}
        self._ending: set[asyncio.Task[object]] = set()

    @property
    def away(self) -> bool:
        """Whether nobody asks it at the moment, but for the recovery."""
        return self._outage.away

    async def open(self) -> "RedisStore":
        """The store, made now if it has not been needed before."""
        if self._store is None:
            async with self._lock:
                if self._store is None:
                    self._store = await self._opening()
        return self._store

    async def get(self, key: bytes) -> Found | None:
        """As `Store.get`; None while it is away."""
        return await self._ask("get", lambda store: store.get(key), None)

    async def set(self, key: bytes, value: bytes, life: Life, tags: Sequence[bytes] = ()) -> None:
        """As `Store.set`; while it is away, what was there before is removed later."""

        async def write() -> None:
            if not await self._ask("set", lambda store: _done(store.set(key, value, life, tags)), False):
                self._owe([key, key + LEASE])

        await self._to_the_end(write())

    async def delete(self, keys: Sequence[bytes]) -> int:
        """As `Store.delete`; later, while it is away."""

        async def remove() -> int:
            count = await self._ask("delete", lambda store: store.delete(keys), -1)
            if count < 0:
                self._owe([one for key in keys for one in (key, key + LEASE)])
            return max(count, 0)

        return await self._to_the_end(remove())

    async def increment(self, key: bytes, by: int, ttl: float) -> int:
        """As `Store.increment`.

        Raises:
            CacheUnavailable: it is away; a made-up count would be worse than none.
        """
        count = await self._ask("increment", lambda store: store.increment(key, by, ttl), None)
        if count is None:
            raise CacheUnavailable(reason=self._outage.why)
        return count

    async def invalidate(self, tags: Sequence[bytes]) -> None:
        """As `Store.invalidate`; later, while it is away."""

        async def remove() -> None:
            if not await self._ask("invalidate", lambda store: _done(store.invalidate(tags)), False):
                self._owe(tags)

        await self._to_the_end(remove())

    async def lease(self, key: bytes, tags: Sequence[bytes], seconds: float) -> Found | Lease | None:
        """As `Store.lease`; while it is away, everybody may compute and nobody keeps it."""
        loose = Lease(key, b"", tuple(tags))
        return await self._ask("lease", lambda store: store.lease(key, tags, seconds), loose)

    async def renew(self, lease: Lease, seconds: float) -> None:
        """As `Store.renew`."""
        if lease.token:
            await self._ask("renew", lambda store: store.renew(lease, seconds), None)

    async def fill(self, lease: Lease, value: bytes, life: Life) -> bool:
        """As `Store.fill`; False while it is away."""
        if not lease.token:
            return False
        return await self._ask("fill", lambda store: store.fill(lease, value, life), False)

    async def release(self, lease: Lease) -> None:
        """As `Store.release`."""
        if lease.token:
            await self._ask("release", lambda store: store.release(lease), None)

    async def ping(self) -> None:
        """Raise `NotReady` with the reason while it is away, or what an attempt raises."""
        if self.away:
            raise NotReady(self._outage.why)
        store = await self.open()
        async with asyncio.timeout(self._timeout):
            await store.ping()

    async def close(self) -> None:
        """As `Store.close`."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=self._timeout)
        await self._outage.close()
        if self._store is not None:
            await self._store.close()

    async def _to_the_end(self, work: Coroutine[object, object, T]) -> T:
        """Do it, also if whoever waits for it is cancelled: what was committed must not stay cached as it was."""
        task = asyncio.create_task(work)
        self._ending.add(cast("asyncio.Task[object]", task))
        task.add_done_callback(self._ending.discard)
        return await asyncio.shield(task)

    async def _ask(self, operation: str, call: Callable[["RedisStore"], Awaitable[T]], otherwise: T) -> T:
        """The call's answer, or *otherwise* if there is none in time."""
        if self.away:
            self._counts.errors.labels(operation).inc()
            return otherwise
        store = await self.open()
        began = time.perf_counter()
        attributes = {"db.system.name": "redis", "db.operation.name": operation}
        try:
            with self._tracer.span(f"cache {operation}", kind="client", attributes=attributes):
                async with asyncio.timeout(self._timeout):
                    answer = await call(store)
        except store.errors as exc:
            self._failed(operation, exc, refused=isinstance(exc, store.refusals))
            return otherwise
        self._counts.seconds.labels(operation).observe(time.perf_counter() - began)
        self._outage.worked()
        return answer

    def _failed(self, operation: str, exc: Exception, *, refused: bool) -> None:
        self._counts.errors.labels(operation).inc()
        # A refusal, such as that of a full Redis, is an answer.
        self._outage.failed(exc, answered=refused)
        log.debug("cache operation failed", operation=operation, reason=self._outage.why)

    def _owe(self, keys: Sequence[bytes]) -> None:
        """Remember what has to be removed; until that is done, nothing that is there may be believed."""
        if len(self._owed) < _MOST_OWED:
            self._owed.update(dict.fromkeys(keys))
        self._outage.leave_alone()

    async def _probe(self) -> None:
        store = await self.open()
        async with asyncio.timeout(self._timeout):
            await store.ping()
        await self._settle(store)

    async def _settle(self, store: "RedisStore") -> None:
        """Remove what could not be removed; what is added meanwhile as well."""
        while self._owed:
            owed = list(self._owed)
            if len(owed) >= _MOST_OWED:
                await store.forget(self._everything)
            else:
                await store.invalidate(owed)
            for key in owed:
                self._owed.pop(key, None)


def _lost(why: str) -> None:
    log.warning("the cache is away; going on without", reason=why)


def _back(seconds: float) -> None:
    log.info("the cache is back", away_s=round(seconds, 1))


async def _done(call: Awaitable[None]) -> bool:
    await call
    return True
