"""Running a module: the admin port first, then the module, until a signal; then in reverse, within a
deadline.
"""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from moorage import logs
from moorage.assembly import Assembly, group_name
from moorage.config import load
from moorage.config.settings import Settings
from moorage.health import Health
from moorage.http.admin import create_admin
from moorage.http.app import API, ASSEMBLY, GUARD, create_app
from moorage.http.server import Runner, listen
from moorage.lifecycle import Stop
from moorage.module import DeclarationError, Module

log = structlog.get_logger("moorage.serve")

_GRACE: Final = 5.0
"""Seconds in which endpoints and load balancers learn that the pod is no longer ready."""
_LEAST_DRAIN: Final = 1.0


class ImportFailed(Exception):  # noqa: N818 - a message for people, shown without a trace where it is ours
    """The named module cannot be imported, or is none; the text says which part of ``package:object`` is
    wrong.
    """


@dataclass(frozen=True)
class Running:
    """A module that serves: its ports and its parts."""

    app: web.Application
    port: int
    admin_port: int

    @property
    def health(self) -> Health:
        """Its readiness."""
        return self.app[ASSEMBLY].health


def import_module(target: str) -> Module:
    """Import ``package.module:object``; the working directory and its ``src`` count as import paths.

    Raises:
        ImportFailed: there is no such thing, or it is no `Module`.
    """
    name, colon, attribute = target.partition(":")
    if not (name and colon and attribute.isidentifier()):
        raise ImportFailed(f"{target!r} is not of the form package:object, such as blog:module")
    for folder in (Path.cwd(), Path.cwd() / "src"):
        if str(folder) not in sys.path and folder.is_dir():
            sys.path.append(str(folder))
    try:
        found = getattr(importlib.import_module(name), attribute)
    except ModuleNotFoundError as exc:
        if exc.name is None or not name.startswith(exc.name):
            raise
        raise ImportFailed(
            f"there is no package {exc.name!r}; is it installed, or below {Path.cwd()}?"
        ) from None
    except AttributeError as exc:
        if exc.name != attribute:
            raise
        raise ImportFailed(f"{name} has no {attribute!r}") from None
    if not isinstance(found, Module):
        raise ImportFailed(f"{target} is a {type(found).__name__}, not a moorage.Module")
    return found


def settings_for(module: Module, overrides: Sequence[str] = ()) -> Settings:
    """The settings of this process, with the group of *module*; raises `ConfigError`."""
    groups = {} if module.config is None else {group_name(module): module.config}
    return load(groups, overrides=overrides)


@asynccontextmanager
async def running(
    module: Module, settings: Settings, *, overrides: Mapping[type, object] | None = None
) -> AsyncIterator[Running]:
    """Serve *module* for the length of the block; *overrides* stand in for what ports give, by type.

    The admin port answers before anything is waited for, so that a process that waits is alive and says for
    what.

    Raises:
        DeclarationError, ConfigError, OSError: it cannot start.
    """
    server, admin = settings.server, settings.admin
    assembly = Assembly.of(module, settings, overrides)
    app, health = create_app(assembly), assembly.health
    admin_app = create_admin(health, assembly.metrics, app[GUARD], app[API])
    admin_runner = Runner(admin_app, idle_timeout=server.idle_timeout, shutdown_timeout=1.0)
    runner = Runner(app, idle_timeout=server.idle_timeout, shutdown_timeout=_drain(settings))
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
            health.draining = True
            await runner.cleanup()
    finally:
        await admin_runner.cleanup()


async def serve(module: Module, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the grace period."""
    stop = Stop()
    starting = asyncio.create_task(_until(module, settings, stop))
    stopping = asyncio.create_task(stop.asked.wait())
    try:
        # A signal while it still waits for the database must end it, too.
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await starting
    finally:
        stopping.cancel()
    log.info("stopped")


async def _until(module: Module, settings: Settings, stop: Stop) -> None:
    entering = asyncio.current_task()
    assert entering is not None
    started = False

    async def abort() -> None:
        await stop.asked.wait()
        if not started:
            entering.cancel()

    aborting = asyncio.create_task(abort())
    try:
        async with running(module, settings) as server:
            started = True
            await stop.asked.wait()
            server.health.draining = True
            await stop.grace(_grace(settings))
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
    """Seconds that are left for running requests. aiohttp waits that long, then cancels and waits as
    long again.
    """
    return max((settings.server.shutdown_timeout - _grace(settings)) / 2, _LEAST_DRAIN)


def run(target: str, overrides: Sequence[str] = ()) -> None:
    """Import, configure and serve: the body of ``moorage serve``.

    Raises:
        ImportFailed, ConfigError, DeclarationError, OSError
    """
    import uvloop

    module = import_module(target)
    settings = settings_for(module, overrides)
    if settings.moorage.module not in (None, module.name):
        raise DeclarationError(
            f"{target} is the module {module.name!r}, but MOORAGE_MODULE says {settings.moorage.module!r}: "
            "metadata.name of the Module resource and the name in the code must be the same"
        )
    logs.configure(settings, service=module.name)
    uvloop.run(serve(module, settings))
