"""The events port: outbox and relay where the module emits, consumer and retries where it handles."""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import structlog

from moorage.assembly import Assembly
from moorage.config.loading import ConfigError
from moorage.events.event import Event, topic_of
from moorage.health import NotReady
from moorage.ids import uuid7
from moorage.module import DeclarationError

if TYPE_CHECKING:
    from moorage.events.bus import Publisher, Subscriber
    from moorage.events.handling import Handling, Item
    from moorage.events.lane import Rules, Work
    from moorage.events.outbox import Emitted

log = structlog.get_logger("moorage.events")

E = TypeVar("E", bound=Event)


def attach(assembly: Assembly) -> None:
    """Give the module its events, if it declares any or handles any.

    Raises:
        DeclarationError: it handles a type that it does not declare, or a handler cannot work.
        ConfigError: it has no database.
    """
    settings = assembly.settings.events
    handled = assembly.module.reactions
    if not (settings.publishes or settings.subscribes or handled):
        return
    if assembly.settings.database.dsn is None:
        raise ConfigError("database.dsn: not set, and events need a database; give the Module `database: {}`")
    for type, reaction in handled.items():
        if type not in {one.type for one in settings.subscribes}:
            raise DeclarationError(
                f"{reaction.where} handles {type}, which is not in spec.events.subscribes of the Module; add it there"
            )
    for one in settings.subscribes:
        if one.type not in handled:
            log.error("no handler for a subscription", event_type=one.type)
    port = EventsPort(assembly)
    assembly.share(EventsPort, port)
    assembly.complete(port.complete)


@dataclass
class EventsPort:
    """The parts of the port in one process."""

    assembly: Assembly
    committed: list["Emitted"] | None = None
    """What was emitted and committed here, if somebody wants to see it (tests do); else ``None``."""
    handling: "Handling" = field(init=False)
    _draining: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Here, because a module without events should not carry any of it.
        from moorage.database.pool import Pool
        from moorage.events.meters import Meters
        from moorage.events.outbox import Outbox

        assembly = self.assembly
        pool = assembly.get(Pool)
        assert pool is not None, "the database port comes first"
        self._pool = pool
        self._meters = Meters(assembly.metrics)
        self._outbox = Outbox(self.source, frozenset(assembly.settings.events.publishes), self._committed)
        self._outbox.install(pool)

    def complete(self) -> None:
        """Bind the handlers, now that everything that they may ask for is known.

        Raises:
            DeclarationError: one cannot work.
        """
        from moorage.events.binding import bind
        from moorage.events.handling import Handling

        assembly = self.assembly
        self.handling = Handling(
            pool=self._pool,
            bound=bind(assembly.module, assembly.providers),
            groups=lambda: assembly.groups,
            tracer=assembly.tracer,
            meters=self._meters,
            timeout=assembly.settings.events.handler_timeout,
        )
        assembly.resource("events", self.opened)
        assembly.drain("events", self._drain)

    @property
    def source(self) -> str:
        """The CloudEvents source of what this module emits."""
        return f"/{self.assembly.namespace}/{self.assembly.name}"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Relay, consumer and retries at work; at the end the consumer finishes what is under way."""
        settings = self.assembly.settings.events
        publisher, subscriber = self._bus()
        async with AsyncExitStack() as stack:
            if settings.publishes:
                await stack.enter_async_context(self._relaying(publisher))
            if self.handling.bound:
                await stack.enter_async_context(self._consuming(subscriber))
            log.debug("events are open", publishes=settings.publishes, handles=sorted(self.handling.bound))
            yield

    async def deliver(
        self, event: Event, *, source: str = "/test/emitter", tenant: str | None = None
    ) -> None:
        """Call the handler of *event* as if it had come from the bus, in a unit of work of its own; for tests.

        Raises:
            LookupError: the module handles no such type.
            Exception: whatever the handler raised, or why the event cannot be read.
        """
        from moorage.events.bus import Delivery
        from moorage.events.cloudevents import Origin, encode

        text = encode(event, Origin(source, tenant), id=uuid7(), time=datetime.now(UTC))
        item = self.handling.item(
            Delivery(topic_of(event.__event_type__), 0, 0, event.event_key, text.encode())
        )
        if item is None:
            raise LookupError(f"the module has no handler for {event.__event_type__}")
        if item.problem:
            raise ValueError(item.problem)
        async with self._pool.unit() as db:
            await self.handling.run(db, item, attempt=1)

    # -- the parts

    @asynccontextmanager
    async def _relaying(self, publisher: "Publisher") -> AsyncIterator[None]:
        import asyncio
        import contextlib

        from moorage.events.postgres_link import Link
        from moorage.events.relay import Relay, RelayOptions

        settings = self.assembly.settings
        options = RelayOptions(settings.events.batch, settings.events.poll, settings.events.lease)
        link = Link(settings.database, f"moorage{self.source} outbox", size=1)
        relay = Relay(
            publisher,
            self._outbox.stored,
            self._meters,
            link=link,
            options=options,
            tracer=self.assembly.tracer,
        )
        self.assembly.health.register("events relay", relay.ping, required=False)
        task = asyncio.create_task(relay.run(), name="events relay")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await publisher.close()

    @asynccontextmanager
    async def _consuming(self, subscriber: "Subscriber") -> AsyncIterator[None]:
        from moorage.events.consumer import Consumer, ConsumerOptions
        from moorage.events.retries import Retries, RetryOptions

        settings = self.assembly.settings.events
        topics = {topic_of(type) for type in self.handling.bound}
        work = self._work()
        retries = Retries(
            work,
            self._meters,
            RetryOptions(
                settings.poll, settings.lease, settings.drain, settings.retention, settings.dead_retention
            ),
        )
        work.parked = retries.wake
        options = ConsumerOptions(settings.batch, settings.concurrency, settings.poll, settings.drain)
        consumer = Consumer(subscriber, topics, work, self._meters, options)

        async def ping() -> None:
            if consumer.problem:
                raise NotReady(consumer.problem)

        self.assembly.health.register("events consumer", ping, required=False)
        self._draining = [consumer.close, retries.close]
        await retries.open()
        try:
            await consumer.open()
            yield
        finally:
            await self._drain()

    async def _drain(self) -> None:
        """Take nothing from the bus any more, and finish what is under way."""
        while self._draining:
            await self._draining.pop(0)()

    def _work(self) -> "Work":
        from moorage.events.lane import Work

        return Work(handling=self.handling, group=self.source, rules=self._rules(), failed=self._failed)

    def _rules(self) -> dict[str, "Rules"]:
        from moorage.events.lane import Rules

        settings = self.assembly.settings.events
        return {
            one.type: Rules(one.retries, one.dead_letter, settings.first_retry, settings.longest_retry)
            for one in settings.subscribes
        }

    def _bus(self) -> tuple["Publisher", "Subscriber"]:
        settings = self.assembly.settings
        backend = settings.events.backend
        if backend == "auto":
            backend = "kafka" if settings.kafka.brokers else "postgres"
        if backend == "kafka" and not settings.kafka.brokers:
            raise ConfigError(
                "kafka.brokers: not set, but events.backend is kafka; the variable is KAFKA_BROKERS"
            )
        publisher, subscriber = importlib.import_module(f"moorage.events.{backend}").bus(self.assembly)
        return publisher, subscriber

    def _committed(self, events: Sequence["Emitted"]) -> None:
        for event in events:
            self._meters.emitted(event.type)
        if self.committed is not None:
            self.committed.extend(events)

    def _failed(self, error: BaseException, item: "Item") -> None:
        self.assembly.errors.publish(error, where=f"event {item.type}", event_id=item.id)
