"""Running a module: the admin port first, then the module, until a signal; then in reverse, within a
deadline.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from moorage import logs
from moorage.assembly import Assembly, groups_of
from moorage.config.effective import lookalikes
from moorage.config.live import Live
from moorage.config.loading import Source
from moorage.config.secrets import warn_of_open_files
from moorage.config.settings import Settings
from moorage.health import Health
from moorage.http.admin import create_admin
from moorage.http.app import API, ASSEMBLY, DISPATCHER, GUARD, create_app
from moorage.http.server import Runner, listen
from moorage.importing import import_module
from moorage.lifecycle import Stop, settle, within
from moorage.module import DeclarationError, Module

log = structlog.get_logger("moorage.serve")

_GRACE: Final = 5.0
"""Seconds in which endpoints and load balancers learn that the pod is no longer ready."""
_LEAST_DRAIN: Final = 0.2
_FOR_CLOSING_S: Final = 2.0
_ADMIN_S: Final = 2.0
_LATE_S: Final = 0.5


@dataclass(frozen=True)
class Running:
    """A module that serves: its ports and its parts."""

    app: web.Application
    port: int
    admin_port: int

    @property
    def assembly(self) -> Assembly:
        """Its parts."""
        return self.app[ASSEMBLY]

    @property
    def health(self) -> Health:
        """Its readiness."""
        return self.assembly.health


def configuration_of(module: Module, overrides: Sequence[str] = ()) -> Live:
    """The configuration of this process, with the group of *module*; raises `ConfigError`."""
    return Live.start(Source(groups_of(module), overrides=overrides))


def settings_for(module: Module) -> Settings:
    """The settings of `configuration_of`, for commands."""
    return configuration_of(module).now.settings


@asynccontextmanager
async def running(
    module: Module, settings: Settings | Live, *, overrides: Mapping[type, object] | None = None
) -> AsyncIterator[Running]:
    """Serve *module* for the length of the block; *overrides* stand in for what ports give, by type.

    The admin port answers before anything is waited for, so that a process that waits is alive and says for
    what.

    Raises:
        DeclarationError, ConfigError, OSError: it cannot start.
    """
    assembly = Assembly.of(module, settings, overrides)
    server, admin = assembly.settings.server, assembly.settings.admin
    app, health = create_app(assembly), assembly.health
    admin_app = create_admin(health, assembly.metrics, app[GUARD], app[API], assembly.live)
    admin_runner = Runner(admin_app, idle_timeout=server.idle_timeout, shutdown_timeout=1.0)
    runner = Runner(
        app,
        app[DISPATCHER].answer,
        idle_timeout=server.idle_timeout,
        shutdown_timeout=_drain(assembly.settings),
    )
    await admin_runner.setup()
    try:
        admin_port = await listen(admin_runner, admin.host, admin.port)
        try:
            await runner.setup()
            port = await listen(runner, server.host, server.port)
            health.started = True
            log.info("serving", module=module.name, host=server.host, port=port, admin_port=admin_port)
            yield Running(app, port, admin_port)
        finally:
            assembly.begin_drain()
            await within(assembly.countdown.left + _LATE_S, runner.cleanup(), "close the module")
    finally:
        await within(_ADMIN_S, admin_runner.cleanup(), "close the admin port")


async def serve(module: Module, live: Live, *, begun: Callable[[], object] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the grace period. *begun* is called once it serves."""
    stop = Stop(live.now.settings.server.shutdown_timeout)
    starting = asyncio.create_task(_until(module, live, stop, begun))
    stopping = asyncio.create_task(stop.asked.wait())
    try:
        # A signal while it still waits for the database must end it, too.
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await starting
    finally:
        stopping.cancel()
    log.info("stopped")


async def _until(module: Module, live: Live, stop: Stop, begun: Callable[[], object]) -> None:
    entering = asyncio.current_task()
    assert entering is not None
    started = False

    async def abort() -> None:
        await stop.asked.wait()
        if not started:
            entering.cancel()

    aborting = asyncio.create_task(abort())
    try:
        async with running(module, live) as server:
            started = True
            begun()
            await stop.asked.wait()
            server.health.draining = True
            server.assembly.countdown.begin()
            await stop.grace(_grace(live.now.settings))
    except asyncio.CancelledError:
        if started or not stop.asked.is_set():
            raise
    finally:
        aborting.cancel()


def _grace(settings: Settings) -> float:
    given = settings.server.shutdown_grace
    if given is None:
        return 0.0 if settings.development else _GRACE
    return min(given, settings.server.shutdown_timeout)


def _drain(settings: Settings) -> float:
    """Seconds after which aiohttp ceases to wait for a running request; it waits twice, before it cancels.

    A fifth of the whole time, two seconds at most, is left for closing what is open.
    """
    whole = settings.server.shutdown_timeout
    return max((whole - _grace(settings) - min(whole / 5, _FOR_CLOSING_S)) / 2, _LEAST_DRAIN)


def run(target: str, overrides: Sequence[str] = ()) -> None:
    """Import, configure and serve: the body of ``moorage serve``.

    Raises:
        ImportFailed, ConfigError, DeclarationError, OSError
    """
    import uvloop

    module = import_module(target)
    live = configuration_of(module, overrides)
    settings = live.now.settings
    if settings.moorage.module not in (None, module.name):
        raise DeclarationError(
            f"{target} is the module {module.name!r}, but MOORAGE_MODULE says {settings.moorage.module!r}: "
            "metadata.name of the Module resource and the name in the code must be the same"
        )
    logs.configure(settings, service=module.name)
    live.subscribe(lambda now, _: logs.set_level(now.settings))
    warn_of_open_files(settings.moorage.secrets_dir)
    for name, meant in lookalikes(type(settings), os.environ).items():
        log.warning("a variable that sets nothing", variable=name, meant=meant)
    uvloop.run(serve(module, live, begun=settle))
