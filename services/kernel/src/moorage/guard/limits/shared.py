"""Redis as something one can do without: a short wait, and none at all while it is known to be away.

Meanwhile each process counts by itself, up to its share of each limit: as many processes together let pass what the
limit says, and fewer where requests are not spread evenly. Rules that will not have that are answered 503.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from moorage.guard.limits.buckets import LimitsUnavailable
from moorage.guard.limits.gcra import Charge, Verdict
from moorage.guard.limits.memory import MemoryBuckets
from moorage.health import NotReady

if TYPE_CHECKING:
    from moorage.guard.limits.redis import RedisBuckets

log = structlog.get_logger("moorage.guard")

_FAILURES: Final = 3
"""So many in a row, and it counts as away."""
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0


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
        self._failures = 0
        self._why = ""
        self._recovery: asyncio.Task[None] | None = None

    @property
    def away(self) -> bool:
        """Whether nobody asks Redis at the moment, but for the recovery."""
        return self._recovery is not None

    async def open(self) -> "RedisBuckets":
        """The store, made now if it has not been needed before."""
        if self._store is None:
            async with self._lock:
                if self._store is None:
                    self._store = await self._opening()
        return self._store

    async def take(self, charges: Sequence[Charge], parts: int = 1, *, together: bool = False) -> Verdict:
        """As `Buckets.take`; alone, with the *parts*-th part of each limit, where Redis does not answer."""
        if self._recovery is None:
            store = self._store or await self.open()
            try:
                async with asyncio.timeout(self._timeout):
                    verdict = await store.take(charges)
            except store.errors as exc:
                self._failed(exc)
            else:
                self._failures = 0
                return verdict
        if together:
            self._refused()
            raise LimitsUnavailable(retry_after=math.ceil(_LONGEST_PAUSE), reason=self._why)
        self._alone()
        return self._local.take_now([charge.divided(parts) for charge in charges])

    async def ping(self) -> None:
        """Raise `NotReady` with the reason while it is away, or what an attempt raises."""
        if self.away:
            raise NotReady(f"each process counts by itself: {self._why}")
        if self._store is not None:  # else nothing has had a limit yet
            async with asyncio.timeout(self._timeout):
                await self._store.ping()

    async def close(self) -> None:
        """End the recovery and the connections."""
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
        store, self._store = self._store, None  # or a last look at readiness would connect anew
        if store is not None:
            await store.close()

    def _failed(self, exc: Exception) -> None:
        self._note(exc)
        self._failures += 1
        # Here a refusal, such as that of a full Redis, counts as well: asking again is of no use to anybody.
        if self._failures >= _FAILURES and self._recovery is None:
            log.warning("limits cannot be counted in Redis; each process counts its share", reason=self._why)
            self._recovery = asyncio.create_task(self._recover(), name="limits recovery")

    def _note(self, exc: Exception) -> None:
        self._why = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}".rstrip(": ")

    async def _recover(self) -> None:
        """Try again and again, in the background, so that no request waits for it."""
        pause = _FIRST_PAUSE
        store = await self.open()
        while True:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, hides nothing
            try:
                async with asyncio.timeout(self._timeout):
                    await store.ping()
            except Exception as exc:  # noqa: BLE001 - whatever it is: giving up would mean to be without for ever
                self._note(exc)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                break
        self._failures = 0
        self._why = ""
        self._recovery = None
        log.info("limits are counted in Redis again")
