"""An answer that has begun may take as long as it likes, and so may what its handler asks of others meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from sqlalchemy import text

from moorage import Database, Db, Model, Module, ServerSent, WebSocket
from moorage.scope import current
from moorage.testing import ModuleHarness, SchemaDatabase

Serve = Callable[..., Awaitable[ModuleHarness]]
RULE = {"methods": ["GET"], "auth": "none", "timeout": "20s"}


class Said(Model):
    limited: bool


def limited() -> bool:
    """Whether what runs here has a deadline: calls to modules and units of work go by it."""
    scope = current.get()
    assert scope is not None
    return scope.deadline is not None


async def test_a_stream_has_a_deadline_until_it_begins(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("bytes")
    async def every() -> AsyncIterator[bytes]:
        yield str(limited()).encode()
        yield str(limited()).encode()

    @module.handle("events")
    async def events() -> AsyncIterator[ServerSent]:
        yield ServerSent(str(limited()))

    shop = await serve(
        module, [{"name": "bytes", "path": "/bytes", **RULE}, {"name": "events", "path": "/events", **RULE}]
    )
    assert (await shop.anonymous().get("/bytes")).content == b"TrueFalse"
    assert (await shop.anonymous().get("/events")).content == b"data: False\n\n"  # its head is sent at once


async def test_a_websocket_has_no_deadline(serve: Serve) -> None:
    module = Module("shop")

    @module.websocket("talk")
    async def talk(socket: WebSocket[Said, Said]) -> None:
        await socket.send(Said(limited=limited()))

    shop = await serve(module, [{"name": "talk", "path": "/talk", **RULE}])
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{shop.url}/talk") as socket:
        assert await socket.receive_json() == {"limited": False}


@pytest.mark.postgres
async def test_statements_of_a_stream_are_not_cut_for_a_deadline_that_was_lifted(
    serve: Serve, kernel_schema: Callable[..., Awaitable[SchemaDatabase]]
) -> None:
    module = Module("shop")
    asked = text("SHOW statement_timeout")

    @module.handle("all")
    async def every(db: Db, database: Database) -> AsyncIterator[bytes]:
        yield f"{await db.session.scalar(asked)} ".encode()
        await db.session.commit()  # the next transaction asks anew
        yield f"{await db.session.scalar(asked)} ".encode()
        async with database.unit() as other:
            yield str(await other.session.scalar(asked)).encode()

    schema = await kernel_schema()
    environ = {"DATABASE_DSN": schema.app_dsn, "DATABASE_STATEMENT_TIMEOUT": "50s"}
    shop = await serve(module, [{"name": "all", "path": "/all", **RULE}], environ=environ)
    before, *after = (await shop.anonymous().get("/all")).content.decode().split()
    assert before.endswith("ms")
    assert 0 < int(before[:-2]) <= 20_000
    assert after == ["50s", "50s"]
