"""The cache in this process's memory: bounded in entries and bytes, the least recently used go first."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from moorage.cache.store import LARGEST, Found, Lease, Life, not_a_number

_OVERHEAD: Final = 400
"""Bytes that an entry takes beside its key and value, about."""


@dataclass(slots=True)
class _Entry:
    value: bytes
    fresh_until: float
    until: float
    tags: tuple[bytes, ...]

    def size(self, key: bytes) -> int:
        return len(key) + len(self.value) + _OVERHEAD


@dataclass(slots=True)
class _Held:
    token: bytes
    until: float
    tags: tuple[bytes, ...]


class MemoryStore:
    """The backend; nothing in it waits, so every method is one step for all who share it.

    Args:
        max_entries, max_bytes: the bounds; an entry that alone is larger than *max_bytes* is not kept.
        clock: seconds that only rise.
    """

    def __init__(
        self, *, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._tagged: dict[bytes, set[bytes]] = {}
        self._leases: dict[bytes, _Held] = {}
        self._tokens = 0
        self.bytes = 0
        """What the entries take, about."""

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: bytes) -> Found | None:
        """As `Store.get`."""
        return self._read(key)

    async def set(self, key: bytes, value: bytes, life: Life, tags: Sequence[bytes] = ()) -> None:
        """As `Store.set`."""
        self._leases.pop(key, None)
        self._write(key, value, life, tuple(tags))

    async def delete(self, keys: Sequence[bytes]) -> int:
        """As `Store.delete`."""
        found = 0
        for key in keys:
            self._leases.pop(key, None)
            found += self._read(key) is not None
            self._drop(key)
        return found

    async def increment(self, key: bytes, by: int, ttl: float) -> int:
        """As `Store.increment`."""
        found = self._read(key)
        if found is None or not found.fresh:
            count = 0
        elif found.value.isdigit() or (found.value[:1] == b"-" and found.value[1:].isdigit()):
            count = int(found.value)
        else:
            raise not_a_number(key)
        count += by
        if not -LARGEST - 1 <= count <= LARGEST:
            raise not_a_number(key)
        self._leases.pop(key, None)
        if found is None or not found.fresh:
            self._write(key, b"%d" % count, Life(ttl), ())
        else:
            entry = self._entries[key]
            self.bytes -= len(entry.value)
            entry.value = b"%d" % count
            self.bytes += len(entry.value)
        return count

    async def invalidate(self, tags: Sequence[bytes]) -> None:
        """As `Store.invalidate`."""
        for tag in tags:
            for key in tuple(self._tagged.get(tag, ())):
                self._drop(key)
        gone = set(tags)
        for key in [key for key, held in self._leases.items() if gone.intersection(held.tags)]:
            del self._leases[key]

    async def lease(self, key: bytes, tags: Sequence[bytes], seconds: float) -> Found | Lease | None:
        """As `Store.lease`."""
        found = self._read(key)
        if found is not None and found.fresh:
            return found
        held = self._leases.get(key)
        if held is not None and held.until > self._clock():
            return None
        self._tokens += 1
        token = b"%d" % self._tokens
        self._leases[key] = _Held(token, self._clock() + seconds, tuple(tags))
        return Lease(key, token, tuple(tags))

    async def renew(self, lease: Lease, seconds: float) -> None:
        """As `Store.renew`."""
        held = self._leases.get(lease.key)
        if held is not None and held.token == lease.token:
            held.until = self._clock() + seconds

    async def fill(self, lease: Lease, value: bytes, life: Life) -> bool:
        """As `Store.fill`."""
        if not self._end(lease):
            return False
        self._write(lease.key, value, life, lease.tags)
        return True

    async def release(self, lease: Lease) -> None:
        """As `Store.release`."""
        self._end(lease)

    async def ping(self) -> None:
        """As `Store.ping`: memory is always there."""

    async def close(self) -> None:
        """As `Store.close`."""
        self._entries.clear()
        self._tagged.clear()
        self._leases.clear()
        self.bytes = 0

    def _end(self, lease: Lease) -> bool:
        """End the lease; whether it was still held."""
        held = self._leases.get(lease.key)
        if held is None or held.token != lease.token:
            return False
        del self._leases[lease.key]
        return held.until > self._clock()

    def _read(self, key: bytes) -> Found | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._clock()
        if entry.until <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return Found(entry.value, entry.fresh_until > now)

    def _write(self, key: bytes, value: bytes, life: Life, tags: tuple[bytes, ...]) -> None:
        self._drop(key)
        now = self._clock()
        entry = _Entry(value, now + life.ttl, now + life.whole, tags)
        if entry.size(key) > self._max_bytes:
            return
        self._entries[key] = entry
        self.bytes += entry.size(key)
        for tag in tags:
            self._tagged.setdefault(tag, set()).add(key)
        while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.bytes -= entry.size(key)
        for tag in entry.tags:
            keys = self._tagged[tag]
            keys.discard(key)
            if not keys:
                del self._tagged[tag]
