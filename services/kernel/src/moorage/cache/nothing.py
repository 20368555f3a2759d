"""The cache that is switched off (`cache.enabled: false`): nothing is there, nothing is kept."""

from collections.abc import Sequence

from moorage.cache.store import CacheUnavailable, Found, Lease, Life


class NothingStore:
    """The backend. Of those who ask at once in this process, still one computes for all."""

    async def get(self, key: bytes) -> Found | None:
        """As `Store.get`."""
        return None

    async def set(self, key: bytes, value: bytes, life: Life, tags: Sequence[bytes] = ()) -> None:
        """As `Store.set`."""

    async def delete(self, keys: Sequence[bytes]) -> int:
        """As `Store.delete`."""
        return 0

    async def increment(self, key: bytes, by: int, ttl: float) -> int:
        """As `Store.increment`; there is no count that would be right."""
        raise CacheUnavailable(reason="the cache is switched off: cache.enabled")

    async def invalidate(self, tags: Sequence[bytes]) -> None:
        """As `Store.invalidate`."""

    async def lease(self, key: bytes, tags: Sequence[bytes], seconds: float) -> Found | Lease | None:
        """As `Store.lease`; nobody keeps what is computed."""
        return Lease(key, b"", tuple(tags))

    async def renew(self, lease: Lease, seconds: float) -> None:
        """As `Store.renew`."""

    async def fill(self, lease: Lease, value: bytes, life: Life) -> bool:
        """As `Store.fill`."""
        return False

    async def release(self, lease: Lease) -> None:
        """As `Store.release`."""

    async def ping(self) -> None:
        """As `Store.ping`."""

    async def close(self) -> None:
        """As `Store.close`."""
