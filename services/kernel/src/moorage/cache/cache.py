"""The cache that handlers are given: `Cache`."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import structlog

from moorage.cache import values
from moorage.cache.commits import after_commit
from moorage.cache.flights import Elsewhere, Flights, Result, apart
from moorage.cache.keys import Key, Names
from moorage.cache.observed import Counts
from moorage.cache.store import LARGEST, Found, Lease, Life, Store
from moorage.scope import Scope
from moorage.scope import current as current_scope
from moorage.tracing import NullTracer, Tracer

if TYPE_CHECKING:
    from moorage.database.db import Db

log = structlog.get_logger("moorage.cache")

T = TypeVar("T")
Compute = Callable[..., Awaitable[T]]
Run = Callable[[Compute[Any], str | None, Callable[[Any], bytes]], Awaitable[bytes]]
"""Calls a function in a scope of its own, for a tenant, with what its parameters ask for by type; and what makes bytes
of its result while that scope is still open.
"""

_MOST_REFRESHING: Final = 100
"""Entries that are computed anew behind requests, at once in this process."""
_PATIENCE: Final = 6
"""So many leases long others wait for one that renews its own and does not come to an end."""
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.1


class _Outdated:
    """In a scope's ``found``: what its unit of work has changed and not yet committed."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()


@dataclass
class Engine:
    """What the caches of a process share, whoever's they are.

    Args:
        run: see `Run`.
        asks: whether a function has parameters to be filled, so that `run` is how it is called.
        default_ttl, lease: seconds.
        largest: bytes of an entry.
    """

    store: Store
    counts: Counts
    run: Run
    asks: Callable[[Compute[Any]], bool]
    default_ttl: float = 300.0
    largest: int = 1024 * 1024
    lease: float = 5.0
    tracer: Tracer = field(default_factory=NullTracer)
    flights: Flights = field(default_factory=Flights)
    refreshing: dict[bytes, asyncio.Task[bytes | None]] = field(default_factory=dict)

    async def close(self) -> None:
        """Give up what is computed behind requests, and close the store."""
        tasks = list(self.refreshing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.close()


@dataclass(frozen=True)
class _Plan:
    """How one entry is computed."""

    key: bytes
    tags: tuple[bytes, ...]
    life: Life
    compute: Compute[Any]
    kind: object


class Cache:
    """Results kept for a while, within this module, and for the tenant of the request.

    Keys are texts, or their parts: ``("user", id, "permissions")``. Values are whatever JSON can hold, models too; a
    read value is a copy. Without Redis (`cache.backend`) each process has its own.

    It never fails because Redis is away: then nothing is found and nothing is kept; `increment` alone cannot do
    without.
    """

    def __init__(self, engine: Engine, names: Names) -> None:
        self._engine = engine
        self._names = names

    def of(self, tenant: str | None) -> "Cache":
        """The cache of another tenant; ``None``: what is the same for all, such as a list of currencies."""
        return Cache(self._engine, self._names.of(tenant))

    @overload
    async def get(self, key: Key) -> Any: ...
    @overload
    async def get(self, key: Key, kind: type[T]) -> T | None: ...
    async def get(self, key: Key, kind: object = Any) -> Any:
        """The entry as a *kind* (a model, ``list[Model]``, ``int``); None if there is none, or it is ``None``."""
        name = self._names.entry(key)
        found = None if self._outdated([name]) else await self._engine.store.get(name)
        if found is not None and found.fresh:
            with contextlib.suppress(values.Unreadable):
                value = values.decode(found.value, kind)
                self._engine.counts.fresh.inc()
                return value
        self._engine.counts.misses.inc()
        return None

    async def set(
        self, key: Key, value: object, ttl: float | None = None, *, tags: Iterable[Key] = ()
    ) -> None:
        """Keep *value* for *ttl* seconds (``None``: `cache.ttl`); one that is too large is not kept.

        Raises:
            TypeError: it cannot be JSON.
        """
        engine = self._engine
        name, life = self._names.entry(key), self._life(ttl, 0)
        data = values.encode(value)
        engine.flights.leave([name])
        if len(data) > engine.largest:
            self._too_large(name, data)
            await engine.store.delete([name])
        else:
            await engine.store.set(name, data, life, self._names.tags(tags))

    async def delete(self, *keys: Key) -> int:
        """Remove entries; returns how many there were. After a write: see `delete_after`."""
        if not keys:
            return 0
        names = [self._names.entry(key) for key in keys]
        self._engine.flights.leave(names)
        return await self._engine.store.delete(names)

    async def exists(self, key: Key) -> bool:
        """Whether there is an entry, be it ``None``."""
        name = self._names.entry(key)
        found = None if self._outdated([name]) else await self._engine.store.get(name)
        return found is not None and found.fresh

    async def increment(self, key: Key, by: int = 1, ttl: float | None = None) -> int:
        """Add to a whole number; *ttl* counts from its first increment. Returns the sum.

        Raises:
            TypeError: the entry is no whole number of 64 bits.
            CacheUnavailable: Redis is away; a made-up count would be worse than none.
        """
        if not -LARGEST - 1 <= by <= LARGEST:
            raise ValueError(f"by={by}: counts have 64 bits")
        return await self._engine.store.increment(self._names.entry(key), by, self._life(ttl, 0).ttl)

    async def invalidate(self, *tags: Key) -> None:
        """Remove all entries that have one of *tags*, those that are just being computed too."""
        if tags:
            names = self._names.tags(tags)
            self._engine.flights.leave(tags=names)
            await self._engine.store.invalidate(names)

    def invalidate_after(self, db: "Db", *tags: Key) -> None:
        """`invalidate` when *db* has committed, before the request is answered; not at all if it is rolled back."""
        self._after(db, self._names.tags(tags), lambda: self.invalidate(*tags))

    def delete_after(self, db: "Db", *keys: Key) -> None:
        """`delete` when *db* has committed, before the request is answered; not at all if it is rolled back."""

        async def remove() -> None:
            await self.delete(*keys)

        self._after(db, [self._names.entry(key) for key in keys], remove)

    @overload
    async def get_or_compute(
        self,
        key: Key,
        compute: Compute[T],
        *,
        ttl: float | None = None,
        stale: float = 0,
        tags: Iterable[Key] = (),
    ) -> T: ...
    @overload
    async def get_or_compute(
        self,
        key: Key,
        compute: Compute[Any],
        kind: type[T],
        *,
        ttl: float | None = None,
        stale: float = 0,
        tags: Iterable[Key] = (),
    ) -> T: ...
    async def get_or_compute(
        self,
        key: Key,
        compute: Compute[Any],
        kind: object = None,
        *,
        ttl: float | None = None,
        stale: float = 0,
        tags: Iterable[Key] = (),
    ) -> Any:
        """The entry, or what *compute* returns, which is kept: ``None`` too, exceptions not.

        However many ask at once, in however many processes, one computes and the others wait.

        Args:
            compute: an async function. Its parameters are filled by type as a handler's (``db: Db``), in a unit of
                work of its own; one without parameters runs in the caller's.
            kind: as what it is kept and returned; default: what *compute* says it returns.
            ttl: seconds for which it counts; ``None``: `cache.ttl`.
            stale: seconds after that in which it is still returned while one computes it anew: in the background if
                *compute* has parameters, else the caller who came first; if that fails, too.
            tags: for `invalidate`.

        Raises:
            TypeError: what was computed cannot be kept as *kind*.
        """
        kind = values.declared(compute) if kind is None else kind
        life = self._life(ttl, stale)
        plan = _Plan(self._names.entry(key), self._names.tags(tags), life, compute, kind)
        if self._outdated([plan.key, *plan.tags]):
            # What this unit of work has written is its own until it commits: nobody else may see it computed.
            return values.decode(await self._made(plan), plan.kind)
        found, value = await self._found(plan)
        if found is None:
            self._engine.counts.misses.inc()
        elif found.fresh:
            self._engine.counts.fresh.inc()
            return value
        else:
            self._engine.counts.stale.inc()
        new = await (self._computed(plan) if found is None else self._renewed(plan))
        return value if new is None else values.decode(new, plan.kind)

    # -- computing

    async def _found(self, plan: _Plan) -> tuple[Found | None, Any]:
        """The entry and its value; none where it is of another form than it should be."""
        found = await self._engine.store.get(plan.key)
        if found is None:
            return None, None
        try:
            return found, values.decode(found.value, plan.kind)
        except values.Unreadable as exc:
            log.info("entry of another form removed", key=plan.key.decode(errors="replace"), reason=str(exc))
            await self._engine.store.delete([plan.key])
            return None, None

    async def _renewed(self, plan: _Plan) -> bytes | None:
        """A stale entry, computed anew by this request; None where that is done elsewhere, or failed."""
        engine = self._engine
        if plan.key in engine.flights or plan.key in engine.refreshing:
            return None
        if not engine.asks(plan.compute):
            return await self._refreshed(plan)
        if len(engine.refreshing) < _MOST_REFRESHING:
            task = asyncio.create_task(self._refreshed(plan), name="cache refresh", context=apart())
            engine.refreshing[plan.key] = task
            task.add_done_callback(lambda _: engine.refreshing.pop(plan.key, None))
        return None

    async def _refreshed(self, plan: _Plan) -> bytes | None:
        try:
            return await self._computed(plan, patient=False)
        except Elsewhere:
            return None
        except Exception as exc:
            key = plan.key.decode(errors="replace")
            log.warning("a stale entry could not be computed anew", key=key, exc_info=exc)
            return None

    async def _computed(self, plan: _Plan, *, patient: bool = True) -> bytes:
        """The new entry.

        Raises:
            Elsewhere: another process computes it, and nobody here is *patient*.
        """
        return await self._engine.flights.once(plan.key, lambda: self._lead(plan, patient), plan.tags)

    async def _lead(self, plan: _Plan, patient: bool) -> Result:
        engine = self._engine
        pause = _FIRST_PAUSE
        until = asyncio.get_running_loop().time() + _PATIENCE * engine.lease
        while (lease := await engine.store.lease(plan.key, plan.tags, engine.lease)) is None:
            if not patient:
                raise Elsewhere
            if asyncio.get_running_loop().time() > until:
                return Result(await self._made(plan))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, hides nothing
            pause = min(pause * 2, _LONGEST_PAUSE)
        if isinstance(lease, Found):
            return Result(lease.value)
        return await self._filled(plan, lease)

    async def _filled(self, plan: _Plan, lease: Lease) -> Result:
        """Compute the entry and put it there; an empty lease: nobody would keep it."""
        engine = self._engine
        outcome = "failed"
        try:
            async with self._held(lease):
                data = await self._made(plan)
            if not lease.token:
                outcome = "not_kept"
            elif len(data) > engine.largest:
                outcome = "not_kept"
                self._too_large(plan.key, data)
            else:
                kept = await engine.store.fill(lease, data, plan.life)
                outcome = "kept" if kept else "outdated"
            return Result(data, outcome == "outdated")
        finally:
            engine.counts.computed.labels(outcome).inc()
            if outcome != "kept" and lease.token:
                await engine.store.release(lease)

    async def _made(self, plan: _Plan) -> bytes:
        engine, compute = self._engine, plan.compute

        def encode(value: Any) -> bytes:
            return _encoded(plan, value)

        with engine.tracer.span("cache compute"):
            if engine.asks(compute):
                return await engine.run(compute, self._names.tenant, encode)
            value = await compute()
            scope = current_scope.get()
            # Attributes of a row may be loaded when they are read.
            return (
                encode(value)
                if scope is None or scope.run is None
                else await scope.run(lambda: encode(value))
            )

    @asynccontextmanager
    async def _held(self, lease: Lease) -> AsyncIterator[None]:
        """Within the block, the lease does not end."""
        seconds = self._engine.lease

        async def renew() -> None:
            while True:
                await asyncio.sleep(seconds / 3)
                await self._engine.store.renew(lease, seconds)

        renewing = asyncio.create_task(renew(), name="cache lease") if lease.token else None
        try:
            yield
        finally:
            if renewing is not None:
                renewing.cancel()

    # -- the rest

    def _after(self, db: "Db", names: Sequence[bytes], work: Callable[[], Awaitable[None]]) -> None:
        if not names:
            return
        scope = current_scope.get()
        outdated = _outdated_in(scope)
        if outdated is not None:
            outdated.keys.update(names)

        async def done() -> None:
            await work()
            if outdated is not None:
                outdated.keys.difference_update(names)

        after_commit(db, done)

    @staticmethod
    def _outdated(names: Sequence[bytes]) -> bool:
        """Whether the unit of work of this request has changed what one of *names* was computed from."""
        scope = current_scope.get()
        found = None if scope is None else scope.found.get(_Outdated)
        return isinstance(found, _Outdated) and not found.keys.isdisjoint(names)

    def _life(self, ttl: float | None, stale: float) -> Life:
        ttl = self._engine.default_ttl if ttl is None else ttl
        if not 0 < ttl < float("inf") or not 0 <= stale < float("inf"):
            raise ValueError(f"ttl={ttl}, stale={stale}: seconds, and ttl more than none")
        return Life(ttl, stale)

    def _too_large(self, name: bytes, data: bytes) -> None:
        self._engine.counts.errors.labels("too_large").inc()
        log.warning("too large for the cache", key=name.decode(errors="replace"), bytes=len(data))


def _encoded(plan: _Plan, value: Any) -> bytes:
    data = values.encode(value, plan.kind)
    if plan.kind is Any and values.decode(data) != value:
        raise TypeError(
            f"{plan.compute!r} returned a {type(value).__name__}, which JSON does not give back: say as what it is "
            "kept, with kind=… or by what it declares to return"
        )
    return data


def _outdated_in(scope: Scope | None) -> _Outdated | None:
    if scope is None:
        return None
    found = scope.found.setdefault(_Outdated, _Outdated())
    assert isinstance(found, _Outdated)
    return found
