"""How a process is put together: its ports, what they open, in which order, and what they give to handlers."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

import structlog

from moorage.config.settings import Config, Settings
from moorage.errorbus import ErrorBus
from moorage.health import Health
from moorage.metrics import Metrics
from moorage.module import Module
from moorage.scope import Provider
from moorage.tracing import NullTracer, Tracer

log = structlog.get_logger("moorage.assembly")

PORTS: Final = (
    "moorage.tracing.port",
    "moorage.database.port",
    "moorage.cache.port",
)
"""Where `attach(assembly)` is, in the order in which the ports open; they close in reverse."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0

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
        overrides: what handlers get instead of what a port would give, by type; for tests.
    """

    module: Module
    settings: Settings
    overrides: Mapping[type, object] = field(default_factory=dict)
    health: Health = field(default_factory=Health)
    tracer: Tracer = field(default_factory=NullTracer)
    providers: dict[type, Provider] = field(default_factory=dict)
    shared: dict[type, object] = field(default_factory=dict)
    resources: list[Resource] = field(default_factory=list)

    def __post_init__(self) -> None:
        place = self.settings.moorage
        self.metrics = Metrics(module=self.name, version=place.version, revision=place.revision)
        options = self.settings.errors
        self.errors = ErrorBus(
            module=self.name,
            version=place.version,
            environment=self.settings.environment,
            metrics=self.metrics,
            queue=options.queue,
            window=options.window,
            rate=options.rate,
        )

    @classmethod
    def of(
        cls, module: Module, settings: Settings, overrides: Mapping[type, object] | None = None
    ) -> "Assembly":
        """*module* with every port that its settings ask for.

        Raises:
            ConfigError: a setting is missing or of no use.
        """
        assembly = cls(module, settings, overrides or {})
        for port in PORTS:
            importlib.import_module(port).attach(assembly)
        for kind, value in assembly.overrides.items():
            assembly.providers[kind] = _always(value)
        return assembly

    @property
    def name(self) -> str:
        """The Module resource's name."""
        return self.settings.moorage.module or self.module.name

    @property
    def namespace(self) -> str:
        """The Module resource's namespace."""
        return self.settings.moorage.namespace

    @property
    def groups(self) -> dict[type, Config]:
        """The module's own settings, by class."""
        if self.module.config is None:
            return {}
        return {self.module.config: getattr(self.settings, group_name(self.module))}

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

    def background(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* while the process serves; if it fails it is started again, with growing pauses.

        While it is down, readiness says so as a degradation.
        """
        self.resource(name, lambda: self._supervised(name, work))

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
        pause = _FIRST_PAUSE
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await work()
            except Exception as exc:
                log.exception("background work failed", work=name, pause_s=pause)
                self.health.degraded(name, f"{type(exc).__name__}: restarting")
            else:
                self.health.degraded(name, "")
                return
            if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            self.health.degraded(name, "")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Every resource open, in order; closed in reverse."""
        async with AsyncExitStack() as stack:
            for resource in self.resources:
                await stack.enter_async_context(resource.open())
            yield


def group_name(module: Module) -> str:
    """The name of the module's own group of settings."""
    return module.name.replace("-", "_")


def _always(value: object) -> Provider:
    async def give(_: object) -> object:
        return value

    return give
