"""What a backend of the cache does, the same in memory and in Redis; values are bytes, keys are whole.

An entry is *fresh* for its ``ttl`` and *stale* for ``stale`` seconds more, then gone. It may have tags; when one of
them is invalidated, every entry that was computed before has gone, also one whose computation has only begun: who
computes holds a *lease*, and what he brings is taken only if neither the key nor a tag was touched meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from moorage.errors import Unavailable


class CacheUnavailable(Unavailable):
    """503: a count cannot be had, because Redis is away. Everything else of a cache does without."""

    code = "cache_unavailable"
    default_message = "This needs a count that cannot be had at the moment."


@dataclass(frozen=True, slots=True)
class Found:
    """An entry; not ``fresh``: it may be used, but should be computed anew."""

    value: bytes
    fresh: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to compute the entry of *key*; ``versions`` are those of its tags when it began.

    An empty ``token``: nobody keeps what is computed, as the backend is away.
    """

    key: bytes
    token: bytes
    tags: tuple[bytes, ...] = ()
    versions: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Life:
    """How long an entry counts: *ttl* seconds fresh, then *stale* seconds more."""

    ttl: float
    stale: float = 0.0

    @property
    def whole(self) -> float:
        """Seconds until it is gone."""
        return self.ttl + self.stale


class Store(Protocol):
    """A backend. Its own errors are for `moorage.cache.resilient` to handle; `TypeError` is the caller's fault."""

    async def get(self, key: bytes) -> Found | None:
        """The entry; None: there is none."""
        ...

    async def set(self, key: bytes, value: bytes, life: Life, tags: Sequence[bytes] = ()) -> None:
        """Put an entry there, whatever was."""
        ...

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many there were."""
        ...

    async def increment(self, key: bytes, by: int, ttl: float) -> int:
        """Add to a whole number, which begins at 0 and counts *ttl* seconds from then; returns the sum.

        Raises:
            TypeError: the entry is no whole number, or the sum needs more than 64 bits.
        """
        ...

    async def invalidate(self, tags: Sequence[bytes]) -> None:
        """Remove every entry that has one of *tags*, in one step."""
        ...

    async def lease(self, key: bytes, tags: Sequence[bytes], seconds: float) -> Found | Lease | None:
        """The entry if it is fresh; else the right to compute it; None: somebody else has that."""
        ...

    async def renew(self, lease: Lease, seconds: float) -> None:
        """Keep the lease for *seconds* from now."""
        ...

    async def fill(self, lease: Lease, value: bytes, life: Life) -> bool:
        """Put what was computed, and end the lease; False: it was touched meanwhile, and is not kept."""
        ...

    async def release(self, lease: Lease) -> None:
        """End the lease without a result."""
        ...

    async def ping(self) -> None:
        """Raise what keeps it from working."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


LARGEST: int = 2**63 - 1
"""Counts have 64 bits, as Redis' have."""


def not_a_number(key: bytes) -> TypeError:
    """What `Store.increment` raises for an entry that cannot be counted up."""
    return TypeError(f"the entry {key!r} is no whole number of 64 bits; it cannot be counted up")
