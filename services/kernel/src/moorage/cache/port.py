"""The cache port: a `Cache` for every scope that asks for one, for the tenant of that scope."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import typing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from moorage import trace as traces
from moorage.cache.cache import Cache, Compute, Engine
from moorage.cache.keys import Names, prefix
from moorage.cache.memory import MemoryStore
from moorage.cache.nothing import NothingStore
from moorage.cache.observed import Counts
from moorage.cache.resilient import ResilientStore
from moorage.cache.store import Store
from moorage.cache.values import plain
from moorage.config.loading import ConfigError
from moorage.config.settings import Config
from moorage.config.values import is_redis_url
from moorage.module import DeclarationError
from moorage.scope import Scope, Stack, current

if TYPE_CHECKING:
    from moorage.assembly import Assembly
    from moorage.cache.redis import RedisStore


def attach(assembly: Assembly) -> None:
    """Give `Cache` parameters a cache; nothing of Redis is imported before the process opens.

    Raises:
        ConfigError: Redis is asked for, and `redis.url` is not set, or is none.
    """
    settings = assembly.settings
    backend = _backend(assembly)
    names = Names(prefix(settings.moorage, assembly.name))
    computing = Computing(assembly)
    engine = Engine(
        store=_memory(assembly) if backend == "memory" else NothingStore(),
        counts=Counts(assembly.metrics),
        run=computing.run,
        asks=asks,
        default_ttl=settings.cache.ttl,
        largest=settings.cache.max_value,
        lease=settings.cache.lease,
        tracer=assembly.tracer,
    )
    cache = Cache(engine, names)

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        engine.tracer = assembly.tracer
        if backend == "redis":
            engine.store = store = _redis(assembly, engine.counts)
            if _wanted(assembly):
                await store.open()
        try:
            yield
        finally:
            await engine.close()

    async def give(scope: Scope) -> object:
        return cache if scope.tenant is None else cache.of(scope.tenant)

    assembly.share(Cache, cache)
    assembly.resource("cache", opened)
    assembly.provide(Cache, give)


def _backend(assembly: Assembly) -> str:
    cache, url = assembly.settings.cache, assembly.settings.redis.url
    if not cache.enabled:
        return "nothing"
    if cache.backend == "redis" and url is None:
        raise ConfigError("cache.backend is redis, but redis.url (REDIS_URL) is not set")
    backend = cache.backend
    if backend == "auto":
        backend = "memory" if url is None else "redis"
    if backend == "redis" and url is not None and not is_redis_url(url.get_secret_value()):
        raise ConfigError("redis.url: not of the form redis://user:password@host:port/database")
    return backend


def _memory(assembly: Assembly) -> Store:
    settings = assembly.settings.cache
    store = MemoryStore(max_entries=settings.max_entries, max_bytes=settings.max_bytes)
    assembly.metrics.gauge_function("cache_entries", "Entries in memory.", lambda: float(len(store)))
    assembly.metrics.gauge_function("cache_bytes", "Bytes of them.", lambda: float(store.bytes))
    return store


def _redis(assembly: Assembly, counts: Counts) -> ResilientStore:
    settings = assembly.settings
    assert settings.redis.url is not None
    url = settings.redis.url.get_secret_value()

    def connect() -> RedisStore:
        from moorage.cache.redis import RedisStore

        return RedisStore(
            url,
            timeout=settings.cache.timeout,
            max_connections=settings.cache.max_connections,
            client_name=f"{assembly.namespace}/{assembly.name}",
        )

    async def opening() -> RedisStore:
        # In a thread: importing its client takes a third of a second, in which others can work.
        made = await asyncio.to_thread(connect)
        assembly.health.register("cache", store.ping, required=False)
        return made

    store = ResilientStore(
        opening,
        timeout=settings.cache.timeout,
        everything=_all_of(prefix(settings.moorage, assembly.name)),
        counts=counts,
        tracer=assembly.tracer,
    )
    return store


def _wanted(assembly: Assembly) -> bool:
    """Whether a handler says that it uses the cache; others find it when they first do."""
    handlers = assembly.module.handlers.values()
    functions = [
        one for handler in handlers for one in (handler.function, handler.resource) if one is not None
    ]
    return any(Cache in _hints(function).values() for function in functions)


def _hints(function: Callable[..., Any]) -> dict[str, object]:
    try:
        return typing.get_type_hints(plain(function))
    except (NameError, TypeError) as exc:
        raise DeclarationError(f"{function!r}: an annotation cannot be read: {exc}") from None


def _all_of(inside: bytes) -> bytes:
    """The pattern of the cache's keys that begin with *inside*, in which no character is a wildcard.

    What else a module has in Redis, such as the guard's counts, is none of the cache's.
    """
    escaped = b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^" else bytes([byte]) for byte in inside)
    return escaped + b"[vVtT]:*"


def asks(compute: Compute[Any]) -> bool:
    """Whether the function has parameters that have to be filled."""
    parameters = inspect.signature(compute).parameters.values()
    return any(parameter.default is parameter.empty for parameter in parameters)


class Computing:
    """Calls functions that compute entries, each in a scope of its own: it may outlive the request's."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    async def run(self, compute: Compute[Any], tenant: str | None, encode: Callable[[Any], bytes]) -> bytes:
        """Fill the parameters by type and call it for *tenant*; its unit of work is committed at the end.

        Raises:
            DeclarationError: a parameter's type is none that a port or the module's settings provide.
        """
        outer = current.get()
        async with Stack() as stack:
            scope = Scope(
                stack=stack,
                groups=self._assembly.groups,
                trace=traces.current_trace() or traces.new(),
                request_id=traces.random_id() if outer is None else outer.request_id,
                tenant=tenant,
            )
            token = current.set(scope)
            try:
                result = await compute(**await self._arguments(compute, scope))
                for prepare in scope.before_answer:
                    await prepare()
                return encode(result) if scope.run is None else await scope.run(lambda: encode(result))
            finally:
                # A task of its own may have ended in another context: then there is nothing to go back to.
                with contextlib.suppress(ValueError):
                    current.reset(token)

    async def _arguments(self, compute: Compute[Any], scope: Scope) -> dict[str, object]:
        hints = _hints(compute)
        arguments: dict[str, object] = {}
        for name, parameter in inspect.signature(compute).parameters.items():
            if parameter.default is not parameter.empty:
                continue
            kind = hints.get(name)
            if kind in self._assembly.providers:
                arguments[name] = await self._assembly.providers[kind](scope)
            elif isinstance(kind, type) and issubclass(kind, Config) and kind in scope.groups:
                arguments[name] = scope.groups[kind]
            else:
                raise DeclarationError(
                    f"{compute!r}: nothing provides the parameter {name!r} outside of a request; use Db, Clients, "
                    "a settings group, or bind other values before, as a default or in a closure"
                )
        return arguments
