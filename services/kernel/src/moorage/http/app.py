"""The application of one module: its resources, in the order in which they open, and the one route."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from moorage.config.settings import Settings
from moorage.guard.engine import Guard
from moorage.guard.headers import TrustedProxies
from moorage.guard.snapshot import CompiledRule
from moorage.health import Health, NotReady
from moorage.http.binding import Bound, bind
from moorage.http.body import expect_later
from moorage.http.dispatch import Dispatcher
from moorage.http.parameters import Resolver
from moorage.http.request import Context
from moorage.metrics import Metrics
from moorage.module import Module

log = structlog.get_logger("moorage.http")

HEALTH: Final = web.AppKey("health", Health)
METRICS: Final = web.AppKey("metrics", Metrics)
GUARD: Final = web.AppKey("guard", Guard)
SETTINGS: Final = web.AppKey("settings", Settings)


def create_app(module: Module, settings: Settings) -> web.Application:
    """Make the application; nothing is opened before it starts.

    Raises:
        DeclarationError: a handler cannot work.
        ConfigError: a setting is missing.
    """
    place = settings.moorage
    name = place.module or module.name
    app = web.Application(client_max_size=0)  # bodies are read by us, bounded by the rule
    app[SETTINGS] = settings
    app[HEALTH] = Health()
    app[METRICS] = Metrics(module=name, version=place.version, revision=place.revision)
    app[GUARD] = Guard.from_folder(
        Path(place.policy_dir), namespace=place.namespace, module=name, revision=place.revision or None
    )
    providers: dict[type, Resolver] = {}
    if settings.database.dsn is not None:
        providers |= _database(app, f"{place.namespace}/{name}")
    handlers = bind(module, providers)
    app.cleanup_ctx.append(_guarding(handlers))
    dispatcher = Dispatcher(
        guard=app[GUARD],
        handlers=handlers,
        settings=settings,
        metrics=app[METRICS],
        groups={} if module.config is None else {module.config: getattr(settings, group_name(module))},
        trusted=TrustedProxies(settings.server.trusted_proxies),
    )
    app.router.add_route("*", "/{target:.*}", dispatcher.answer, expect_handler=expect_later)
    return app


def group_name(module: Module) -> str:
    """The name of the module's own group of settings."""
    return module.name.replace("-", "_")


def _guarding(handlers: Mapping[str, Bound]) -> Callable[[web.Application], AsyncIterator[None]]:
    """Bind the handlers to the rules and follow the policy folder."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        guard = app[GUARD]
        rules = guard.policy.rules if guard.policy is not None else []
        unfit = {rule.name: why for rule in rules if (why := _unfit(handlers, rule)) is not None}
        for rule, why in unfit.items():
            log.error("rule without a fitting handler", rule=rule, reason=why)
        guard.bind({rule: bound.loader is not None for rule, bound in handlers.items() if rule not in unfit})

        async def loaded() -> None:
            if not guard.ready:
                raise NotReady(str(guard.status()["error"]))

        app[HEALTH].register("policy", loaded)
        watching = asyncio.create_task(guard.watch())
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    return context


def _unfit(handlers: Mapping[str, Bound], rule: CompiledRule) -> str | None:
    """Why no handler answers *rule*; None if one does."""
    bound = handlers.get(rule.name)
    return "it has no handler" if bound is None else bound.fits(rule.path) or None


def _database(app: web.Application, name: str) -> dict[type, Resolver]:
    """The database port: waited for at the start, a unit of work for each request that asks for a `Db`."""
    # Here, because a module without a database should not carry SQLAlchemy (17 MiB).
    from moorage.database.db import Db
    from moorage.database.pool import Pool

    pool = Pool(app[SETTINGS].database, name=name, observe=app[METRICS].queried)

    async def context(app: web.Application) -> AsyncIterator[None]:
        health = app[HEALTH]
        await pool.wait(lambda why: health.waiting("database", why))
        health.register("database", pool.ping)
        yield
        await pool.close()

    async def unit(request: Context) -> object:
        if Db not in request.found:
            user = request.decision.user
            db = await request.stack.enter_async_context(pool.unit(tenant=user.tenant_id if user else None))
            request.found[Db] = db
            request.before_answer.append(db.flush)
            # Attributes that load lazily do so in a greenlet of SQLAlchemy's alone.
            request.run = lambda make: db.session.run_sync(lambda _: make())
        return request.found[Db]

    app.cleanup_ctx.append(context)
    return {Db: unit}
