"""Answers of requests with an idempotency key, kept in the module's schema by the transaction that they are about."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.sql import bindparam

from moorage.database.db import Db
from moorage.database.pool import Pool
from moorage.errors import Conflict
from moorage.kept import Kept
from moorage.scope import Scope

log = structlog.get_logger("moorage.database")

STEPS: Final = (
    (
        1,
        """
        CREATE TABLE moorage_idempotency (
            key bytea PRIMARY KEY,
            fingerprint bytea NOT NULL,
            status smallint NOT NULL,
            headers jsonb NOT NULL,
            body bytea,
            expires_at timestamptz NOT NULL
        );
        CREATE INDEX ix_moorage_idempotency_expires_at ON moorage_idempotency (expires_at);
        """,
    ),
)
_READY: Final = text("SELECT to_regclass('moorage_idempotency') IS NOT NULL")
_LOCK: Final = text(
    "SELECT pg_try_advisory_xact_lock(hashtextextended(current_schema() || encode(:key, 'hex'), 0))"
)
_FIND: Final = text(
    "SELECT fingerprint, status, headers, body FROM moorage_idempotency WHERE key = :key AND expires_at > now()"
).columns(headers=JSONB)
_KEEP: Final = text(
    """
    INSERT INTO moorage_idempotency AS kept (key, fingerprint, status, headers, body, expires_at)
    VALUES (:key, :fingerprint, :status, :headers, :body, now() + :ttl * interval '1 second')
    ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, status = excluded.status,
        headers = excluded.headers, body = excluded.body, expires_at = excluded.expires_at
    WHERE kept.expires_at <= now()
    RETURNING 1
    """
).bindparams(bindparam("headers", type_=JSONB))
_CLEAN: Final = text(
    """
    DELETE FROM moorage_idempotency WHERE key IN
        (SELECT key FROM moorage_idempotency WHERE expires_at <= now() LIMIT :limit FOR UPDATE SKIP LOCKED)
    """
)
_BATCH: Final = 1000
_PAUSE_S: Final = 600.0


class KeptAnswers:
    """The `moorage.kept.AnswerStore` of a module with a database.

    Args:
        unit: gives the scope's unit of work.
        ttl: seconds for which an answer is kept.
    """

    def __init__(self, unit: Callable[[Scope], Awaitable[Db]], ttl: float) -> None:
        self._unit = unit
        self._ttl = ttl
        self._ready = False

    async def ready(self, scope: Scope) -> bool:
        """See the protocol; asked again until there is the table."""
        if not self._ready:
            session = (await self._unit(scope)).session
            self._ready = bool(await session.scalar(_READY))
            if not self._ready:
                log.warning("idempotency keys are ignored: the schema has not the kernel's tables")
        return self._ready

    async def claim(self, scope: Scope, key: bytes) -> Kept | None:
        """See the protocol."""
        session = (await self._unit(scope)).session
        # A lock, not a row: whoever comes second is answered at once and holds no connection while he waits.
        if not await session.scalar(_LOCK, {"key": key}):
            raise Conflict(
                "The first request with this Idempotency-Key still runs; ask again for its answer.",
                code="idempotency_in_progress",
                headers={"Retry-After": "1"},
            )
        row = (await session.execute(_FIND, {"key": key})).one_or_none()
        return None if row is None else Kept(*row)

    async def keep(self, scope: Scope, key: bytes, kept: Kept) -> None:
        """See the protocol."""
        session = (await self._unit(scope)).session
        values = {
            "key": key,
            "fingerprint": kept.fingerprint,
            "status": kept.status,
            "headers": dict(kept.headers),
            "body": kept.body,
            "ttl": self._ttl,
        }
        if (await session.execute(_KEEP, values)).first() is None:
            # The handler committed in between, and so let go of the lock.
            raise Conflict(
                "Another request with this Idempotency-Key was faster.", code="idempotency_in_progress"
            )


async def clean(pool: Pool) -> None:
    """Remove what has expired, now and then, until cancelled."""
    while True:
        # Not all replicas at once.
        await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        try:
            await clean_once(pool)
        except ProgrammingError as exc:
            log.warning("kept answers cannot be cleaned; is the schema migrated?", reason=str(exc.orig))


async def clean_once(pool: Pool) -> int:
    """Remove what has expired; returns how much it was."""
    removed = 0
    while True:
        async with pool.engine.begin() as connection:
            part = (await connection.execute(_CLEAN, {"limit": _BATCH})).rowcount
        removed += part
        if part < _BATCH:
            return removed
