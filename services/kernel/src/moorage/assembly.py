"""How a process is put together: its ports, what they open, in which order, and what they give to handlers."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from moorage.config.live import Live, Snapshot
from moorage.config.secrets import Secrets
from moorage.config.settings import Config, Settings
from moorage.errorbus import ErrorBus
from moorage.errorbus.bus import sinks_from
from moorage.health import Health
from moorage.injection import Injection
from moorage.lifecycle import Countdown, Held, within
from moorage.metrics import Metrics
from moorage.module import Module
from moorage.scope import Provider
from moorage.tracing import NullTracer, Tracer

PORTS: Final = (
    "moorage.tracing.port",
    "moorage.audit.port",
    "moorage.database.port",
    "moorage.cache.port",
    "moorage.client.port",
    "moorage.events.port",
)
"""Where `attach(assembly)` is, in the order in which the ports open; they close in reverse."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_SETTLED_S: Final = 5.0
"""Seconds after which background work that was begun anew counts as well."""
_DRAIN_SHARE: Final = 0.8
"""Of the time that is left; the rest is for closing."""
_LEAST_FLUSH_S: Final = 0.5

T = TypeVar("T")
Opening = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Resource:
    """Something that is open while the process serves."""

    name: str
    open: Opening


@dataclass
class Assembly:
    """One module's process while it is put together; nothing is opened before `opened` is entered.

    Args:
        live: the configuration, which may change while the process runs.
        overrides: what handlers get instead of what a port or a factory would give, by type; for tests.
    """

    module: Module
    live: Live
    overrides: Mapping[type, object] = field(default_factory=dict)
    health: Health = field(default_factory=Health)
    tracer: Tracer = field(default_factory=NullTracer)
    providers: dict[type, Provider] = field(default_factory=dict)
    shared: dict[type, object] = field(default_factory=dict)
    resources: list[Resource] = field(default_factory=list)
    _completions: list[Callable[[], None]] = field(default_factory=list)
    _drains: list[tuple[str, Callable[[], Awaitable[None]]]] = field(default_factory=list)
    _draining: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        place = settings.moorage
        self.metrics = Metrics(module=self.name, version=place.version, revision=place.revision)
        self.live.measure(self.metrics)
        self.errors = _errors(settings, self.name, self.metrics)
        self.live.subscribe(self._errors_changed)
        self.countdown = Countdown(settings.server.shutdown_timeout)

    @classmethod
    def of(
        cls, module: Module, settings: Settings | Live, overrides: Mapping[type, object] | None = None
    ) -> "Assembly":
        """*module* with every port that its settings ask for, and what it provides itself.

        Raises:
            ConfigError: a setting is missing or of no use.
            DeclarationError: a factory of the module's cannot work.
        """
        live = settings if isinstance(settings, Live) else Live.fixed(settings, groups_of(module))
        assembly = cls(module, live, overrides or {})
        secrets = Secrets(assembly.settings.moorage.secrets_dir)
        assembly.share(Secrets, secrets)
        assembly.provide(Secrets, always(secrets))
        for port in PORTS:
            importlib.import_module(port).attach(assembly)
        assembly._inject()
        for work in assembly._completions:
            work()
        assembly.background("configuration", live.watch)
        return assembly

    def _inject(self) -> None:
        """Add what the module provides itself, and what tests give instead."""
        injection = Injection(self.module, self.shared, self.providers, self.overrides)
        for name, opening in injection.resources(lambda: self.groups, self.health):
            self.resource(name, opening)
        self.providers.update(injection.given())
        for kind, value in self.overrides.items():
            self.providers[kind] = always(value)

    @property
    def settings(self) -> Settings:
        """The settings in force; what is not `Reloadable` in them never changes."""
        return self.live.now.settings

    @property
    def name(self) -> str:
        """The Module resource's name."""
        return self.settings.moorage.module or self.module.name

    @property
    def namespace(self) -> str:
        """The Module resource's namespace."""
        return self.settings.moorage.namespace

    @property
    def groups(self) -> Mapping[type, Config]:
        """The module's own settings in force, by class; whoever begins a scope takes them once."""
        return self.live.now.groups

    def provide(self, kind: type, provider: Provider) -> None:
        """Let *provider* give the parameters of type *kind*."""
        self.providers[kind] = provider

    def share(self, kind: type[T], value: T) -> None:
        """Keep *value* for ports that attach later; see `get`."""
        self.shared[kind] = value

    def get(self, kind: type[T]) -> T | None:
        """What an earlier port shared as *kind*; None: there is no such port, or it is not configured."""
        return cast("T | None", self.shared.get(kind))

    def resource(self, name: str, opening: Opening) -> None:
        """Hold *opening* open while the process serves."""
        self.resources.append(Resource(name, opening))

    def complete(self, work: Callable[[], None]) -> None:
        """Call *work* when everything that handlers may ask for is known: for a port that calls handlers by itself.

        What it opens opens last, and closes first.
        """
        self._completions.append(work)

    def background(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* while the process serves; if it fails it is started again, with growing pauses.

        While it is down, readiness says so as a degradation.
        """
        self.resource(name, lambda: self._supervised(name, work))

    def drain(self, name: str, finish: Callable[[], Awaitable[None]]) -> None:
        """Call *finish* when the process is about to stop, at the moment in which it takes no new connections.

        Together with all others, while the requests under way are finished and everything is still open: for what takes
        work in by itself, such as consumers. It gets what is left of the shutdown's time, then it is cancelled.
        """
        self._drains.append((name, finish))

    def begin_drain(self) -> None:
        """Stop to take work in: not ready, the time of the shutdown runs, everything that is to finish is told."""
        self.health.draining = True
        self.countdown.begin()
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain_all(), name="drain")

    async def _drain_all(self) -> None:
        left = self.countdown.left * _DRAIN_SHARE
        await asyncio.gather(*(within(left, finish(), f"drain {name}") for name, finish in self._drains))

    @asynccontextmanager
    async def _supervised(self, name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        task = asyncio.create_task(self._again_and_again(name, work), name=name)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _again_and_again(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            began = loop.time()
            settled = loop.call_later(_SETTLED_S, self.health.degraded, name, "")
            try:
                await work()
            except Exception as exc:  # noqa: BLE001 - whatever it was, it is reported, and the work begun anew
                self.errors.publish(exc, where=name)
                self.health.degraded(name, f"{type(exc).__name__}: restarting")
            else:
                self.health.degraded(name, "")
                return
            finally:
                settled.cancel()
            if loop.time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Every resource open, in order; closed in reverse, within what is left of the shutdown's time.

        One that hangs takes at most half of what is left, is then cancelled, and if it does not listen left behind.
        """
        await self.errors.open()
        held: list[Held] = []
        try:
            for resource in self.resources:
                part = Held(resource.name, resource.open)
                await part.open()
                held.append(part)
            yield
        finally:
            self.countdown.begin()
            if self._draining is not None:
                await self._draining
            while held:
                part = held.pop()
                await part.close(self.countdown.left / (2 if held else 1))
            await self.errors.close(max(self.countdown.left, _LEAST_FLUSH_S))

    def _errors_changed(self, now: Snapshot, _: frozenset[str]) -> None:
        self.errors.window, self.errors.rate = now.settings.errors.window, now.settings.errors.rate


def _errors(settings: Settings, name: str, metrics: Metrics) -> ErrorBus:
    options, place = settings.errors, settings.moorage
    bus = ErrorBus(
        module=name,
        version=place.version,
        environment=settings.environment,
        metrics=metrics,
        queue=options.queue,
        window=options.window,
        rate=options.rate,
    )
    for sink in sinks_from(
        options.sentry_dsn.get_secret_value() if options.sentry_dsn is not None else None,
        users=options.sentry_users,
        release=f"{name}@{place.version}",
        environment=settings.environment,
    ):
        bus.add(sink)
    return bus


def group_name(module: Module) -> str:
    """The name of the module's own group of settings."""
    return module.name.replace("-", "_")


def groups_of(module: Module) -> dict[str, type[Config]]:
    """The module's own group by its name; empty if it has none."""
    return {} if module.config is None else {group_name(module): module.config}


def always(value: object) -> Provider:
    """A provider that gives *value* to each scope."""

    async def give(_: object) -> object:
        return value

    return give
