"""``moorage sidecar``: the guard before one app, the admin port for both, put together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from moorage import logs
from moorage.audit.port import auditing_of
from moorage.config import ConfigError, load
from moorage.config.settings import Settings
from moorage.guard import following
from moorage.guard.engine import Guard
from moorage.guard.headers import TrustedProxies
from moorage.guard.limits.port import limiting
from moorage.health import Health, NotReady
from moorage.http.admin import create_admin
from moorage.http.answers import json_response
from moorage.metrics import Metrics
from moorage.tracing.choosing import Tracing
from moorage_gateway.forward.upstream import Upstream, open_clients
from moorage_gateway.proxy import Proxy, Target
from moorage_gateway.server import Drain, Running, serving, until_stopped
from moorage_gateway.sidecar.listeners import bypassable
from moorage_gateway.sidecar.probes import AppProbes
from moorage_gateway.sidecar.settings import UpstreamSettings


@dataclass(frozen=True)
class Reporter:
    """What ``GET /policy`` answers: the guard's state, and through which sockets the app can be reached past it."""

    guard: Guard
    own_ports: tuple[int, ...]

    def status(self) -> dict[str, Any]:
        """The guard's status with ``bypassable``; ``null`` there: the kernel does not tell."""
        return {**self.guard.status(), "bypassable": bypassable(self.own_ports)}


def upstream_of(settings: Settings) -> UpstreamSettings:
    """The group `upstream`, which `settings` was loaded with."""
    group: UpstreamSettings = getattr(settings, "upstream")  # noqa: B009 - a field that was added at run time
    return group


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """The sidecar for the length of the block. Raises `ConfigError`, or `OSError` if it cannot listen."""
    place, upstream = settings.moorage, upstream_of(settings)
    if not place.module:
        raise ConfigError("MOORAGE_MODULE is not set: the name of the Module whose policy is enforced here")
    health = Health()
    metrics = Metrics(module=place.module, version=place.version, revision=place.revision)
    limits = limiting(settings, place.module, metrics)
    guard = Guard.from_folder(
        Path(place.policy_dir),
        namespace=place.namespace,
        module=place.module,
        revision=place.revision or None,
        limiter=limits.limiter,
    )
    guard.bind_proxy()
    origin = f"http://{upstream.host}:{upstream.port}"
    target = Target(
        place.namespace,
        place.module,
        Upstream(f"{place.namespace}/{place.module}", origin),
        guard,
        timeout_s=settings.server.write_timeout,
    )
    followed = following.follow(guard, settings, module=place.module, health=health, metrics=metrics)
    own_ports = (settings.server.port, settings.admin.port)
    tracing = Tracing.of(settings, name=f"{place.module}-sidecar", metrics=metrics)
    auditing = auditing_of(settings, place.module, metrics)
    now = guard.policy is not None and bool(guard.policy.limits)
    async with (
        tracing.opened(),
        auditing.opened(health),
        limits.opened(health, now=now),
        open_clients() as clients,
    ):
        probes = AppProbes(clients.http, upstream)
        _register(health, guard, probes)
        admin = create_admin(health, metrics, Reporter(guard, own_ports))
        _add_app_probes(admin, probes)
        proxy = Proxy(
            clients,
            lambda host, path: target,
            TrustedProxies(settings.server.trusted_proxies),
            metrics,
            auditing,
            tracing.tracer,
        )
        watching = [asyncio.create_task(guard.watch())]
        watching += [asyncio.create_task(work(), name=name) for name, work in followed.items()]
        try:
            async with serving(
                proxy,
                health,
                admin,
                server=settings.server,
                admin_at=settings.admin,
                drain=drain_of(settings),
            ) as server:
                yield server
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)


def _register(health: Health, guard: Guard, probes: AppProbes) -> None:
    following.register(health, guard)
    health.register("app", probes.ready)


def _add_app_probes(admin: web.Application, probes: AppProbes) -> None:
    """``/app/healthz``, ``/app/ready``, ``/app/startup``: for kubelet's probes of the app's container."""

    def asking(ping: Callable[[], Awaitable[None]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            try:
                await ping()
            except NotReady as exc:
                return json_response({"status": "unready", "error": str(exc)}, 503)
            return json_response({"status": "ok"})

        return answer

    admin.add_routes(
        [
            web.get("/app/healthz", asking(probes.alive)),
            web.get("/app/ready", asking(probes.ready)),
            web.get("/app/startup", asking(probes.started)),
        ]
    )


def drain_of(settings: Settings) -> Drain:
    """Without a grace period of its own: a native sidecar is told to stop when the app is gone (KEP-753), long after
    the app's `preStop` has given the edge its time.
    """
    return Drain.of(settings, grace_s=0.0)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The sidecar's settings, from *environ* (``None``: this process's); raises `ConfigError`."""
    return load({"upstream": UpstreamSettings}, environ=environ)


def run() -> None:
    """Serve until a signal: the body of ``moorage sidecar``. Raises `ConfigError` and `OSError`."""
    import uvloop

    settings = load_settings()
    logs.configure(settings, service=settings.moorage.module or "sidecar")
    uvloop.run(until_stopped(running(settings), drain_of(settings)))
