"""The database port: waited for at the start, a unit of work for each scope that asks for a `Db`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from moorage.assembly import Assembly
from moorage.kept import AnswerStore
from moorage.scope import Scope
from moorage.tracing import NullTracer


def attach(assembly: Assembly) -> None:
    """Open the module's database, if it has one."""
    if assembly.settings.database.dsn is None:
        return
    # Here, because a module without a database should not carry SQLAlchemy (17 MiB).
    from moorage.database.db import Db
    from moorage.database.kept import KeptAnswers, clean
    from moorage.database.pool import Pool
    from moorage.database.units import Database
    from moorage.database.watching import observe_connections, trace_statements

    pool = Pool(
        assembly.settings.database,
        name=f"{assembly.namespace}/{assembly.name}",
        observe=assembly.metrics.queried,
    )
    observe_connections(pool.connections, assembly.metrics)
    if not isinstance(assembly.tracer, NullTracer):
        trace_statements(pool.engine, assembly.tracer, schema=assembly.settings.database.schema_)

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        health = assembly.health
        await pool.wait(lambda why: health.waiting("database", why))
        await pool.refuse_bypass()
        health.register("database", pool.ping)
        try:
            yield
        finally:
            await pool.close()

    async def unit(scope: Scope) -> Db:
        if Db not in scope.found:
            db = await scope.stack.enter_async_context(
                pool.unit(tenant=scope.tenant, deadline=lambda: scope.deadline)
            )
            scope.found[Db] = db
            scope.before_answer.append(db.flush)
            # Attributes that load lazily do so in a greenlet of SQLAlchemy's alone.
            scope.run = lambda make: db.session.run_sync(lambda _: make())
        found = scope.found[Db]
        assert isinstance(found, Db)
        return found

    database = Database(pool)

    async def units(_: Scope) -> Database:
        return database

    assembly.share(Pool, pool)
    assembly.share(Database, database)
    assembly.share(AnswerStore, KeptAnswers(unit, assembly.settings.server.idempotency_ttl))  # type: ignore[type-abstract]  # shared by its protocol
    assembly.resource("database", opened)
    assembly.background("idle database connections", pool.reap)
    assembly.background("kept answers", lambda: clean(pool))
    assembly.provide(Db, unit)
    assembly.provide(Database, units)
