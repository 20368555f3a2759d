"""From a message on the bus to a call of its handler."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import event as listening
from sqlalchemy.orm import Session
from structlog.contextvars import bind_contextvars, reset_contextvars

from moorage import scope as scopes
from moorage.database.db import TENANCY, Db
from moorage.database.pool import Pool
from moorage.database.tenancy import Tenancy
from moorage.events.binding import Bound
from moorage.events.bus import Delivery
from moorage.events.cloudevents import LARGEST_READ, Envelope, Undecodable, decode, read
from moorage.events.event import LONGEST_KEY, Event, EventInfo, topic_of
from moorage.events.inbox import storable
from moorage.events.meters import Meters
from moorage.scope import Scope, Stack
from moorage.tracing import Span, Tracer

_HANDLING: Final = "moorage_handling"
"""In a session's ``info`` while a handler has it."""
UNREADABLE: str = "(unreadable)"
"""Source of a message that is no CloudEvent: it has none that one could believe."""


@dataclass(frozen=True, slots=True)
class Item:
    """One delivery that this module has to do with."""

    source: str
    id: str
    type: str
    topic: str
    partition: int
    position: int
    key: str
    body: bytes
    envelope: Envelope | None = None
    event: Event | None = None
    problem: str = ""
    """Why it can never be handled; then there may be neither envelope nor event."""

    @property
    def name(self) -> tuple[str, str, str]:
        """What the inbox knows it by."""
        return self.source, self.id, self.topic

    @property
    def text(self) -> str:
        """The body, as a table can keep it."""
        return storable(self.body[:LARGEST_READ].decode("utf-8", "backslashreplace"))


@dataclass
class Handling:
    """Calls the handlers of one module.

    Args:
        groups: gives the module's own settings in force.
        timeout: seconds for each handler.
    """

    pool: Pool
    bound: Mapping[str, Bound]
    groups: Callable[[], Mapping[type, object]]
    tracer: Tracer
    meters: Meters
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not listening.contains(self.pool.session_class, "before_commit", _refuse_commit):
            listening.listen(self.pool.session_class, "before_commit", _refuse_commit)

    def sort(self, deliveries: Iterable[Delivery]) -> list[Item]:
        """Read *deliveries*, and leave out those whose type has no handler here."""
        return [item for item in map(self.item, deliveries) if item is not None]

    def item(self, delivery: Delivery) -> Item | None:
        """Read one message; None: its type has no handler here."""
        topic, partition, position = delivery.topic, delivery.partition, delivery.position
        place, body = (topic, partition, position), delivery.body
        try:
            envelope = decode(body)
        except Undecodable as exc:
            name, key = f"{topic}/{partition}/{position}", storable(delivery.key, LONGEST_KEY)
            return Item(UNREADABLE, name, "", *place, key, body, problem=f"it is no CloudEvent: {exc}")
        bound = self.bound.get(envelope.type)
        if bound is None:
            return None
        key, event, problem = envelope.key or storable(delivery.key, LONGEST_KEY), None, ""
        if topic_of(envelope.type) != topic:
            # Else whoever may publish any topic that we read could speak for the owners of all others.
            problem = f"its type {envelope.type} does not belong to the topic {topic}"
        else:
            try:
                event = read(bound.event, envelope)
            except Undecodable as exc:
                problem = str(exc)
        return Item(envelope.source, envelope.id, envelope.type, *place, key, body, envelope, event, problem)

    async def run(self, db: Db, item: Item, attempt: int) -> None:
        """Call the handler of *item* in the transaction of *db*, and send what it changed to the database.

        Raises:
            TimeoutError: it took too long.
            RuntimeError: it ended the transaction, which is also that of the events before it.
            Exception: whatever the handler raised.
        """
        envelope, event = item.envelope, item.event
        assert envelope is not None
        assert event is not None
        info = envelope.info(attempt)
        session = db.session
        if session.info[TENANCY] != Tenancy.of(envelope.tenant):
            await self.pool.switch(db, envelope.tenant)
        await session.connection()  # begins the transaction, if nothing has yet
        transaction = session.sync_session.get_transaction()
        session.info[_HANDLING] = True
        began = time.perf_counter()
        logged = bind_contextvars(event_type=envelope.type, event_id=envelope.id, **envelope.context)
        try:
            with self._span(envelope) as span:
                async with asyncio.timeout(self.timeout) as limit, Stack() as stack:
                    scope = Scope(
                        stack=stack,
                        groups=self.groups(),
                        trace=span.trace,
                        request_id=envelope.request,
                        tenant=envelope.tenant,
                        deadline=limit.when(),
                        found={Db: db, EventInfo: info},
                    )
                    await self._call(scope, event)
                if session.new or session.dirty or session.deleted:
                    await session.flush()
                if session.sync_session.get_transaction() is not transaction:
                    raise RuntimeError(f"the handler rolled back more than its own work: {_SAVEPOINT}")
        finally:
            del session.info[_HANDLING]
            reset_contextvars(**logged)
        # The next event of the batch finds nothing of this one in memory, as if it had a transaction of its own.
        session.expunge_all()
        self.meters.took(envelope.type, time.perf_counter() - began)

    async def _call(self, scope: Scope, event: Event) -> None:
        token = scopes.current.set(scope)
        try:
            await self.bound[event.__event_type__].call(scope, event)
            for work in scope.before_answer:
                await work()
        finally:
            scopes.current.reset(token)

    def _span(self, envelope: Envelope) -> AbstractContextManager[Span]:
        """A span below the emitter's, so that one trace leads from the request to here; linked to it as well."""
        return self.tracer.span(
            f"process {envelope.type}",
            kind="consumer",
            trace=envelope.trace,
            links=() if envelope.trace is None else (envelope.trace,),
            attributes={"messaging.operation.type": "process", "messaging.message.id": envelope.id},
        )


_SAVEPOINT: Final = (
    "what may fail goes into `async with db.session.begin_nested():`, or into a unit of work of its own"
)


def _refuse_commit(session: Session) -> None:
    """A commit in the middle of a batch would keep what others did without the note that they did it."""
    if _HANDLING in session.info and not session.in_nested_transaction():
        raise RuntimeError(f"a handler of events cannot commit: its batch is committed as one; {_SAVEPOINT}")
