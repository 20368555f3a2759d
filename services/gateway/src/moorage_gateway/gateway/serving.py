"""``moorage gateway``: the file, the proxy and the admin port put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from moorage import logs
from moorage.audit.port import auditing_of
from moorage.config import load as load_settings
from moorage.config.settings import Admin, Settings
from moorage.guard import following
from moorage.guard.headers import TrustedProxies
from moorage.guard.limits.port import in_memory
from moorage.health import Health
from moorage.http.admin import create_admin
from moorage.metrics import Metrics
from moorage.tracing.choosing import Tracing
from moorage_gateway.forward.upstream import open_clients
from moorage_gateway.gateway.modules import Modules
from moorage_gateway.proxy import Proxy
from moorage_gateway.server import Drain, Running, serving, until_stopped


@asynccontextmanager
async def running(
    modules: Modules, settings: Settings, metrics: Metrics | None = None
) -> AsyncIterator[Running]:
    """The gateway for the length of the block. Raises `OSError` if it cannot listen."""
    config = modules.config
    health = Health()
    metrics = metrics or metrics_of(settings)
    tracing = Tracing.of(settings, name="gateway", metrics=metrics)
    auditing = auditing_of(settings, "gateway", metrics)
    async with tracing.opened(), auditing.opened(health), open_clients() as clients:
        trusted = TrustedProxies(config.trusted_proxies)
        proxy = Proxy(clients, modules.find, trusted, metrics, auditing, tracing.tracer)
        keys = partial(following.follow_keys, settings=settings, metrics=metrics)
        watching = asyncio.create_task(modules.watch(keys))
        server = settings.server.model_copy(update=config.listen.model_dump())
        try:
            async with serving(
                proxy,
                health,
                create_admin(health, metrics, modules),
                server=server,
                admin_at=Admin.model_validate(config.admin.model_dump()),
                drain=Drain.of(settings),
            ) as server_running:
                yield server_running
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


def metrics_of(settings: Settings) -> Metrics:
    """The gateway's metrics, to be made once in a process."""
    return Metrics(module="gateway", version=settings.moorage.version, revision=settings.moorage.revision)


def run(path: Path) -> None:
    """Serve until a signal: the body of ``moorage gateway``. Raises `ConfigError` (both kinds) and `OSError`."""
    import uvloop

    settings = load_settings()
    metrics = metrics_of(settings)
    modules = Modules(path, lambda: in_memory(settings, metrics))
    logs.configure(settings, service="gateway")
    uvloop.run(until_stopped(running(modules, settings, metrics), Drain.of(settings)))
