"""Leader election by a Lease: of several operators one works, the others wait.

Own code, since the client library's election cancels the leader's work in the same moment in which it loses: here the
holder learns of it (`lost`) while its lease still runs, ends the writes it has begun, and only then gives up.
"""

import asyncio
import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moorage_operator.apply.client import ApiError, Cluster
from moorage_operator.apply.events import utc_now
from moorage_operator.apply.kinds import LEASE
from moorage_operator.plan.world import Manifest

logger = logging.getLogger(__name__)
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. The rest between ``renew_deadline`` and ``duration`` is for ending what was begun."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class Lease:
    """One candidate's view of the Lease ``namespace/name``."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        terms: Terms | None = None,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._terms = terms or Terms()
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        """The record as it was last seen to change, and when (of the loop's clock, which no other host shares)."""
        self.lost = asyncio.Event()
        """Set when the lease could not be renewed in time."""

    async def acquire(self) -> None:
        """Wait until this candidate leads."""
        while not await self._try():  # noqa: ASYNC110 - the event is in another process
            await asyncio.sleep(self._terms.retry)
        logger.info("%s leads", self._identity)

    async def hold(self) -> None:
        """Renew until that fails for too long; then set `lost` and return."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while loop.time() - renewed < self._terms.renew_deadline:
            await asyncio.sleep(self._terms.retry)
            try:
                async with asyncio.timeout(self._terms.renew_deadline - self._terms.retry):
                    if await self._try():
                        renewed = loop.time()
            except TimeoutError:
                logger.warning("renewing the lease takes too long")
        logger.error("%s leads no more", self._identity)
        self.lost.set()

    async def release(self) -> None:
        """Let the next one lead at once."""
        try:
            live = await self._cluster.get(LEASE, self._namespace, self._name)
            if live is not None and live["spec"].get("holderIdentity") == self._identity:
                spec = live["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._cluster.replace(LEASE, live | {"spec": spec})
        except ApiError as error:
            logger.warning("the lease could not be released: %s", error)

    async def _try(self) -> bool:
        """Take or renew the lease; whether that worked. Whoever else writes it meanwhile wins (409)."""
        try:
            live = await self._cluster.get(LEASE, self._namespace, self._name)
            if live is None:
                await self._cluster.create(LEASE, self._lease(None))
                return True
            if not self._may_take(live):
                return False
            await self._cluster.replace(LEASE, self._lease(live))
        except ApiError as error:
            if not error.conflict:
                logger.warning("the lease cannot be taken: %s", error)
            return False
        return True

    def _may_take(self, live: Manifest) -> bool:
        spec = live.get("spec") or {}
        holder = spec.get("holderIdentity")
        if holder in (None, "", self._identity):
            return True
        # By our own clock since the record last changed: two machines' clocks need not agree.
        now, record = asyncio.get_running_loop().time(), f"{holder} {spec.get('renewTime')}"
        if self._seen is None or self._seen[0] != record:
            self._seen = record, now
        return now - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._terms.duration)

    def _lease(self, live: Manifest | None) -> Manifest:
        now = self._clock().strftime(_TIME)
        before = (live or {}).get("spec") or {}
        same = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._terms.duration),
            "acquireTime": before.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if same or live is None else 1),
        }
        if live is not None:
            return live | {"spec": spec}
        metadata = {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
