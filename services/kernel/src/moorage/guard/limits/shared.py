"""Redis as something one can do without: a short wait, and none at all while it is known to be away.

Meanwhile each process counts by itself, up to its share of each limit: as many processes together let pass what the
limit says, and fewer where requests are not spread evenly. Rules that will not have that are answered 503.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from moorage.guard.limits.buckets import LimitsUnavailable
from moorage.guard.limits.gcra import Charge, Verdict
from moorage.guard.limits.memory import MemoryBuckets
from moorage.health import NotReady
from moorage.outage import LONGEST_PAUSE, Outage

if TYPE_CHECKING:
    from moorage.guard.limits.redis import RedisBuckets

log = structlog.get_logger("moorage.guard")


class SharedBuckets:
    """Buckets in Redis that raise nothing but `LimitsUnavailable`.

    Args:
        opening: makes the store when it is first needed: its client takes memory that who has no limits should not
            pay for.
        timeout: seconds that one call may take, in all.
        local: what counts while Redis is away.
        alone: called for each request that only this process counted.
        refused: called for each request that was refused instead.
    """

    def __init__(
        self,
        opening: Callable[[], Awaitable["RedisBuckets"]],
        *,
        timeout: float,
        local: MemoryBuckets,
        alone: Callable[[], object] = lambda: None,
        refused: Callable[[], object] = lambda: None,
    ) -> None:
        self._opening = opening
        self._lock = asyncio.Lock()
        self._store: RedisBuckets | None = None
        self._timeout = timeout
        self._local = local
        self._alone = alone
        self._refused = refused
        self._outage = Outage("limits recovery", self._probe, lost=_lost, back=_back)

    @property
    def away(self) -> bool:
        """Whether nobody asks Redis at the moment, but for the recovery."""
        return self._outage.away

    async def open(self) -> "RedisBuckets":
        """The store, made now if it has not been needed before."""
        if self._store is None:
            async with self._lock:
                if self._store is None:
                    self._store = await self._opening()
        return self._store

    async def take(self, charges: Sequence[Charge], parts: int = 1, *, together: bool = False) -> Verdict:
        """As `Buckets.take`; alone, with the *parts*-th part of each limit, where Redis does not answer."""
        if not self._outage.away:
            store = self._store or await self.open()
            try:
                async with asyncio.timeout(self._timeout):
                    verdict = await store.take(charges)
            except store.errors as exc:
                # A refusal, such as that of a full Redis, is no answer here: asking again is of no use to anybody.
                self._outage.failed(exc)
            else:
                self._outage.worked()
                return verdict
        if together:
            self._refused()
            raise LimitsUnavailable(retry_after=math.ceil(LONGEST_PAUSE), reason=self._outage.why)
        self._alone()
        return self._local.take_now([charge.divided(parts) for charge in charges])

    async def ping(self) -> None:
        """Raise `NotReady` with the reason while it is away, or what an attempt raises."""
        if self.away:
            raise NotReady(f"each process counts by itself: {self._outage.why}")
        if self._store is not None:  # else nothing has had a limit yet
            async with asyncio.timeout(self._timeout):
                await self._store.ping()

    async def close(self) -> None:
        """End the recovery and the connections."""
        await self._outage.close()
        store, self._store = self._store, None  # or a last look at readiness would connect anew
        if store is not None:
            await store.close()

    async def _probe(self) -> None:
        store = await self.open()
        async with asyncio.timeout(self._timeout):
            await store.ping()


def _lost(why: str) -> None:
    log.warning("limits cannot be counted in Redis; each process counts its share", reason=why)


def _back(seconds: float) -> None:
    log.info("limits are counted in Redis again", away_s=round(seconds, 1))
