"""Emitting: events are kept with the unit of work and stored in the outbox as part of its commit.

Readers of the outbox go by ``seq``. A sequence's numbers are given out before the commit, so two transactions could
commit in the other order. Hence locks: each commit that stores events takes those of its keys first, and holds them
until it is visible. With that, ``seq`` rises in the order of commits for each key, which is all that is promised.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from sqlalchemy import event as listening
from sqlalchemy.orm import Session, SessionTransaction

from moorage import scope as scopes
from moorage.database.pool import Pool
from moorage.events.cloudevents import Origin, encode
from moorage.events.event import Event, EventInfo, topic_of
from moorage.guard.identity import User
from moorage.ids import uuid7
from moorage.module import DeclarationError
from moorage.trace import current_trace

OUTBOX: Final = "moorage_outbox"
"""Key of the `Outbox` in a session's ``info``."""
_COLLECTED: Final = "moorage_emitted"
_STORED: Final = "moorage_stored"
_SLOTS: Final = 512
"""Locks that a module's keys share: a server's table of locks is small, and one commit may emit for many keys."""

_INSERT: Final = """
WITH locked AS MATERIALIZED (SELECT count(pg_advisory_xact_lock(slot)) AS n FROM unnest($1::bigint[]) AS slot)
INSERT INTO moorage_outbox (id, topic, type, key, event)
SELECT e.id, e.topic, e.type, e.key, e.event
FROM locked, unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
     WITH ORDINALITY AS e (id, topic, type, key, event, n)
WHERE locked.n > 0
ORDER BY e.n
"""


@dataclass(frozen=True, slots=True)
class Emitted:
    """One event that waits for the commit."""

    id: UUID
    topic: str
    type: str
    key: str
    text: str
    within: tuple[SessionTransaction, ...]
    """The savepoints around the emission: rolled back, they take it with them."""


class Outbox:
    """Stores what units of work of one process emit.

    Args:
        source: ``/<namespace>/<module>``.
        publishes: the types that the Module declares.
        committed: told what was committed.
    """

    def __init__(
        self, source: str, publishes: frozenset[str], committed: Callable[[Sequence["Emitted"]], None]
    ) -> None:
        self._source = source
        self._publishes = publishes
        self._tell = committed
        self.stored = asyncio.Event()
        """Set when something was committed here; the relay clears it."""

    def install(self, pool: Pool) -> None:
        """Take part in every unit of work of *pool*."""
        pool.info[OUTBOX] = self
        for name, listener in (
            ("before_commit", self._store),
            ("after_commit", self._committed),
            ("after_soft_rollback", self._forget),
            ("after_transaction_end", self._ended),
        ):
            listening.listen(pool.session_class, name, listener)

    def collect(self, session: Session, event: Event, tenant: str | None) -> Emitted:
        """Keep *event* until *session* commits.

        Raises:
            DeclarationError: the Module does not declare its type.
            ValueError: it is too large, or its key is.
        """
        type = event.__event_type__
        if type not in self._publishes:
            self._refuse(event, type)
        id = uuid7()
        text = encode(event, self._origin(tenant), id=id, time=datetime.now(UTC))
        if not session.in_transaction():
            session.begin()  # without a statement yet: so that a rollback concerns the event
        emitted = Emitted(id, topic_of(type), type, event.event_key, text, _savepoints(session))
        session.info.setdefault(_COLLECTED, []).append(emitted)
        return emitted

    def _refuse(self, event: Event, type: str) -> None:
        cls = event.__class__
        where = f"{cls.__module__}.{cls.__qualname__}"
        if not type:
            raise DeclarationError(f"{where} has no type; emit a class with type= and key=")
        raise DeclarationError(
            f"{where} cannot be emitted: {type} is not in spec.events.publishes of the Module {self._source}; add it "
            "there"
        )

    def _origin(self, tenant: str | None) -> Origin:
        scope = scopes.current.get()
        trace = current_trace()
        if scope is None:
            return Origin(self._source, tenant, trace=trace)
        user: UUID | None = None
        if isinstance(scope.caller, User):
            user = scope.caller.id
        elif isinstance(info := scope.found.get(EventInfo), EventInfo):
            user = info.user_id
        return Origin(
            self._source,
            tenant,
            user_id=None if user is None else str(user),
            request_id=scope.request_id,
            trace=trace or scope.trace,
        )

    def _slot(self, emitted: Emitted) -> int:
        name = f"{self._source}\0{emitted.topic}\0{emitted.key}".encode()
        return int.from_bytes(blake2b(name, digest_size=4).digest()) % _SLOTS

    def _lock(self, slot: int) -> int:
        digest = blake2b(f"moorage-outbox\0{self._source}\0{slot}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, signed=True)

    # -- SQLAlchemy calls these, within its greenlet

    def _store(self, session: Session) -> None:
        """Before the commit: the last thing that waits for locks, so that it cannot wait in a circle."""
        emitted: list[Emitted] | None = session.info.get(_COLLECTED)
        if not emitted or session.in_nested_transaction():
            return
        session.flush()
        rows = list(zip(*((e.id, e.topic, e.type, e.key, e.text) for e in emitted), strict=True))
        locks = sorted({self._lock(slot) for slot in {self._slot(e) for e in emitted}})
        values: tuple[Any, ...] = (locks, *(list(column) for column in rows))
        session.connection().exec_driver_sql(_INSERT, values)
        session.info[_STORED] = tuple(emitted)
        emitted.clear()

    def _committed(self, session: Session) -> None:
        if not session.in_nested_transaction() and (stored := session.info.pop(_STORED, None)):
            self._tell(stored)
            self.stored.set()

    def _forget(self, session: Session, transaction: SessionTransaction) -> None:
        """A rollback: of a savepoint, what was emitted within; of all, everything."""
        if emitted := session.info.get(_COLLECTED):
            rest = [e for e in emitted if transaction.nested and transaction not in e.within]
            session.info[_COLLECTED] = rest

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.info.pop(_COLLECTED, None)
            session.info.pop(_STORED, None)


def _savepoints(session: Session) -> tuple[SessionTransaction, ...]:
    found = []
    transaction = session.get_nested_transaction()
    while transaction is not None:
        if transaction.nested:
            found.append(transaction)
        transaction = transaction.parent
    return tuple(found)
