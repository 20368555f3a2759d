"""The cache in Redis (7 and what speaks its protocol, with Lua)."""

import os
from collections.abc import Sequence
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from moorage.cache import scripts
from moorage.cache.keys import LEASE
from moorage.cache.store import Found, Lease, Life, not_a_number
from moorage.config.loading import ConfigError

_TAG_S: Final = 3600.0
"""How long a tag lives at least that no entry needs yet: longer than anything takes to compute."""
_BATCH: Final = 500


def connect(url: str, *, timeout: float, max_connections: int, client_name: str) -> Any:
    """A client that waits for nothing longer than *timeout* seconds, and tries nothing twice; connects when it is used.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user and password.
        max_connections: how many there are at most; more callers wait.
        client_name: what Redis shows in ``CLIENT LIST``.

    Raises:
        ConfigError: *url* is none; the text does not show it.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # Whoever waits can go on without; and a count must not be sent twice.
            retry=Retry(NoBackoff(), 0),
            client_name=client_name,
        )
    except (ValueError, TypeError):
        raise ConfigError("redis.url: not of the form redis://user:password@host:port/database") from None
    return cast("Any", Redis).from_pool(pool)


class RedisStore:
    """The backend.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user and password.
        timeout: seconds that one step may take: connecting, sending, reading, waiting for a connection.
        max_connections: how many there are at most; more callers wait.
        client_name: what Redis shows in ``CLIENT LIST``.

    Raises:
        ConfigError: *url* is none; the text does not show it.
    """

    errors: Final = (RedisError, OSError, TimeoutError)
    """What a call may raise when Redis is away, or does not want."""
    refusals: Final = (ResponseError,)
    """Those of them by which it says that it does not want; so it is there."""

    def __init__(self, url: str, *, timeout: float, max_connections: int, client_name: str) -> None:
        self._client = connect(url, timeout=timeout, max_connections=max_connections, client_name=client_name)
        self._get = self._script(scripts.GET)
        self._set = self._script(scripts.SET)
        self._delete = self._script(scripts.DELETE)
        self._increment = self._script(scripts.INCREMENT)
        self._lease = self._script(scripts.LEASE)
        self._renew = self._script(scripts.RENEW)
        self._fill = self._script(scripts.FILL)
        self._release = self._script(scripts.RELEASE)

    def _script(self, text: str) -> Any:
        return self._client.register_script(scripts.COMMON + text)

    async def get(self, key: bytes) -> Found | None:
        """As `Store.get`."""
        answer = await self._get([key])
        return None if answer is None else Found(answer[0], bool(answer[1]))

    async def set(self, key: bytes, value: bytes, life: Life, tags: Sequence[bytes] = ()) -> None:
        """As `Store.set`."""
        await self._set([key, _lease_key(key), *tags], [_nonce(), value, _ms(life.ttl), _ms(life.whole)])

    async def delete(self, keys: Sequence[bytes]) -> int:
        """As `Store.delete`; in one step for up to 500 keys."""
        count = 0
        for first in range(0, len(keys), _BATCH):
            both = [one for key in keys[first : first + _BATCH] for one in (key, _lease_key(key))]
            count += int(await self._delete(both))
        return count

    async def increment(self, key: bytes, by: int, ttl: float) -> int:
        """As `Store.increment`."""
        try:
            return int(await self._increment([key, _lease_key(key)], [by, _ms(ttl)]))
        except ResponseError as exc:
            if "NOTANUMBER" in str(exc):
                raise not_a_number(key) from None
            raise

    async def invalidate(self, tags: Sequence[bytes]) -> None:
        """As `Store.invalidate`."""
        if tags:
            await self._client.unlink(*tags)

    async def lease(self, key: bytes, tags: Sequence[bytes], seconds: float) -> Found | Lease | None:
        """As `Store.lease`."""
        nonce = _nonce()
        answer = await self._lease([key, _lease_key(key), *tags], [nonce, _ms(seconds), _ms(_TAG_S)])
        if answer is None:
            return None
        if answer[0] is not None:
            return Found(answer[0], True)
        return Lease(key, nonce, tuple(tags), tuple(answer[1]))

    async def renew(self, lease: Lease, seconds: float) -> None:
        """As `Store.renew`."""
        await self._renew([_lease_key(lease.key)], [lease.token, _ms(seconds)])

    async def fill(self, lease: Lease, value: bytes, life: Life) -> bool:
        """As `Store.fill`."""
        keys = [lease.key, _lease_key(lease.key), *lease.tags]
        arguments = [lease.token, value, _ms(life.ttl), _ms(life.whole), *lease.versions]
        return bool(await self._fill(keys, arguments))

    async def release(self, lease: Lease) -> None:
        """As `Store.release`."""
        await self._release([_lease_key(lease.key)], [lease.token])

    async def forget(self, pattern: bytes) -> None:
        """Remove every key that matches *pattern*, one batch after the other: for when nobody waits."""
        async for keys in self._batches(pattern):
            await self._client.unlink(*keys)

    async def _batches(self, pattern: bytes) -> Any:
        cursor: int = 0
        while True:
            cursor, keys = await self._client.scan(cursor, match=pattern, count=_BATCH)
            if keys:
                yield keys
            if not cursor:
                return

    async def ping(self) -> None:
        """As `Store.ping`."""
        await self._client.ping()

    async def close(self) -> None:
        """As `Store.close`."""
        await self._client.aclose(close_connection_pool=True)


def _lease_key(key: bytes) -> bytes:
    return key + LEASE


def _nonce() -> bytes:
    return os.urandom(12).hex().encode()


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
