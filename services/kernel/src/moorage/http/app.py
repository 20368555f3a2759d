"""The application of one module: its resources, in the order in which they open, and what answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from moorage import machine
from moorage.assembly import Assembly
from moorage.guard import following
from moorage.guard.auditing import Auditing
from moorage.guard.engine import Guard
from moorage.guard.headers import TrustedProxies
from moorage.guard.limits.port import Limiting, limiting
from moorage.guard.snapshot import CompiledRule
from moorage.http.apidocs import ApiDocument
from moorage.http.binding import Bound, bind
from moorage.http.dispatch import Dispatcher
from moorage.http.openapi import About, document_of
from moorage.http.websocket import Sockets
from moorage.kept import AnswerStore

log = structlog.get_logger("moorage.http")

ASSEMBLY: Final = web.AppKey("assembly", Assembly)
GUARD: Final = web.AppKey("guard", Guard)
DISPATCHER: Final = web.AppKey("dispatcher", Dispatcher)
"""What answers; not a route of the application, whose table would match every path a second time."""
API: Final = web.AppKey("api", ApiDocument)


def create_app(assembly: Assembly) -> web.Application:
    """Make the application; nothing is opened before it starts.

    Raises:
        DeclarationError: a handler cannot work.
    """
    settings = assembly.settings
    place = settings.moorage
    app = web.Application(client_max_size=0)  # bodies are read by us, bounded by the rule
    app[ASSEMBLY] = assembly
    limits = limiting(settings, assembly.name, assembly.metrics)
    app[GUARD] = Guard.from_folder(
        Path(place.policy_dir),
        namespace=place.namespace,
        module=assembly.name,
        revision=place.revision or None,
        limiter=limits.limiter,
    )
    followed = following.follow(
        app[GUARD], settings, module=assembly.name, health=assembly.health, metrics=assembly.metrics
    )
    for name, work in followed.items():
        assembly.background(name, work)
    handlers = bind(assembly.module, assembly.providers)
    app.cleanup_ctx.append(_opened)
    app.cleanup_ctx.append(_counting(limits))
    app.cleanup_ctx.append(_guarding(handlers))
    guard = app[GUARD]
    store = assembly.get(AnswerStore)  # type: ignore[type-abstract]  # asked for by its protocol
    about = About(assembly.name, place.version, keeps_answers=store is not None)
    app[API] = document_of(about, handlers, lambda: guard.policy.document if guard.policy else None)
    sockets = Sockets(assembly.metrics)
    auditing = assembly.get(Auditing)
    assert auditing is not None  # its port is always there
    dispatcher = Dispatcher(
        guard=guard,
        handlers=handlers,
        live=assembly.live,
        metrics=assembly.metrics,
        errors=assembly.errors,
        api=app[API],
        sockets=sockets,
        auditing=auditing,
        store=store,
        trusted=TrustedProxies(settings.server.trusted_proxies),
        tracer=assembly.tracer,
    )
    app.on_shutdown.append(dispatcher.end)
    app[DISPATCHER] = dispatcher
    return app


async def _opened(app: web.Application) -> AsyncIterator[None]:
    """Every port, open."""
    async with app[ASSEMBLY].opened():
        yield


def _counting(limits: Limiting) -> Callable[[web.Application], AsyncIterator[None]]:
    """What the guard counts with, open; connected at once if there is something to count."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        policy = app[GUARD].policy
        async with limits.opened(app[ASSEMBLY].health, now=policy is not None and bool(policy.limits)):
            yield

    return context


def _guarding(handlers: Mapping[str, Bound]) -> Callable[[web.Application], AsyncIterator[None]]:
    """Bind the handlers to the rules and follow the policy folder."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        guard = app[GUARD]
        rules = guard.policy.rules if guard.policy is not None else []
        unfit = {rule.name: why for rule in rules if (why := _unfit(handlers, rule)) is not None}
        for rule, why in unfit.items():
            log.error("rule without a fitting handler", rule=rule, reason=why)
        guard.bind({rule: bound.loader is not None for rule, bound in handlers.items() if rule not in unfit})
        following.register(app[ASSEMBLY].health, guard)
        machine.register(app[ASSEMBLY].health)
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
