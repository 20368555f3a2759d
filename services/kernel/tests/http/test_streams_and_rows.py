"""A stream's unit of work: open until its last piece, committed before its end, rolled back if it breaks off."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import asyncpg
import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Mapped, mapped_column

from moorage import CursorPage, CursorPaging, Database, Db, Model, Module, Out, Table, WebSocket
from moorage.testing import ModuleHarness, SchemaDatabase

pytestmark = pytest.mark.postgres
Serve = Callable[..., Awaitable[ModuleHarness]]
GET = {"methods": ["GET"], "path": "/", "auth": "none"}


class StreamedThing(Table):
    """A table of this test alone."""

    n: Mapped[int] = mapped_column(unique=True)


class Line(Model):
    n: int


@pytest.fixture
async def schema(kernel_schema: Callable[..., Awaitable[SchemaDatabase]]) -> SchemaDatabase:
    return await kernel_schema(StreamedThing)


async def count(schema: SchemaDatabase) -> int:
    connection = await asyncpg.connect(schema.owner_dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM streamed_thing"))
    finally:
        await connection.close()


async def test_rows_are_read_while_they_are_sent(serve: Serve, schema: SchemaDatabase) -> None:
    module = Module("shop")

    @module.handle("all")
    async def every(db: Db) -> AsyncIterator[Out[Line]]:
        for n in range(50):
            db.session.add(StreamedThing(n=n))
        await db.flush()
        rows = await db.session.stream_scalars(select(StreamedThing).order_by(StreamedThing.n))
        async for row in rows:
            yield row

    shop = await serve(module, [{"name": "all", **GET}], environ={"DATABASE_DSN": schema.app_dsn})
    answer = await shop.anonymous().get("/")
    assert [json.loads(line)["n"] for line in answer.content.splitlines()] == list(range(50))
    assert await count(schema) == 50


async def test_a_stream_whose_commit_fails_has_no_end(serve: Serve, schema: SchemaDatabase) -> None:
    connection = await asyncpg.connect(schema.owner_dsn)
    await connection.execute(
        "ALTER TABLE streamed_thing ADD CONSTRAINT late UNIQUE (n) DEFERRABLE INITIALLY DEFERRED;"
        "ALTER TABLE streamed_thing DROP CONSTRAINT uq_streamed_thing_n"
    )
    await connection.close()
    module = Module("shop")

    @module.handle("all")
    async def every(db: Db) -> AsyncIterator[bytes]:
        for _ in range(2):
            await db.add(StreamedThing(n=1))
            yield b"done"

    shop = await serve(module, [{"name": "all", **GET}], environ={"DATABASE_DSN": schema.app_dsn})
    with pytest.raises(aiohttp.ClientPayloadError):
        await shop.anonymous().get("/")
    assert await count(schema) == 0


async def test_a_client_that_leaves_undoes_what_the_stream_did(serve: Serve, schema: SchemaDatabase) -> None:
    module = Module("shop")
    ended = asyncio.Event()

    @module.handle("all")
    async def every(db: Db) -> AsyncIterator[bytes]:
        try:
            await db.add(StreamedThing(n=1))
            yield b"begun"
            await asyncio.sleep(60)
        finally:
            ended.set()

    shop = await serve(module, [{"name": "all", **GET}], environ={"DATABASE_DSN": schema.app_dsn})
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"{shop.url}/")
        assert await answer.content.readexactly(5) == b"begun"
        answer.close()
    async with asyncio.timeout(5):
        await ended.wait()
    assert await count(schema) == 0


async def test_a_deadline_ends_the_statement_and_undoes_the_work(
    serve: Serve, schema: SchemaDatabase
) -> None:
    module = Module("shop")

    @module.handle("slow")
    async def slow(db: Db) -> str:
        await db.add(StreamedThing(n=1))
        try:
            await db.execute(text("SELECT pg_sleep(20)"))
        except Exception:
            return "whatever it was"
        return "done"

    rules = [{"name": "slow", **GET, "timeout": "500ms"}]
    shop = await serve(module, rules, environ={"DATABASE_DSN": schema.app_dsn})
    began = asyncio.get_running_loop().time()
    answer = await shop.anonymous().get("/")
    assert answer.status == 504
    assert asyncio.get_running_loop().time() - began < 10
    assert await count(schema) == 0
    connection = await asyncpg.connect(schema.admin_dsn)
    running = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND state = 'active' "
        "AND pid <> pg_backend_pid()"
    )
    await connection.close()
    assert running == 0, "the server works on for nobody"


async def test_a_websocket_holds_no_transaction_open(serve: Serve, schema: SchemaDatabase) -> None:
    module = Module("shop")

    async def load(n: int, db: Db) -> StreamedThing | None:
        return await db.scalar(select(StreamedThing).where(StreamedThing.n == n).with_for_update())

    @module.websocket("talk", resource=load)
    async def talk(thing: StreamedThing, socket: WebSocket[int, int], database: Database) -> None:
        async for number in socket:
            async with database.unit() as db:
                await db.add(StreamedThing(n=number))
            await socket.send(thing.n + number)

    rule = {"name": "talk", **GET, "path": "/{n}"}
    shop = await serve(module, [rule], environ={"DATABASE_DSN": schema.app_dsn})
    connection = await asyncpg.connect(schema.owner_dsn)
    await connection.execute("INSERT INTO streamed_thing (id, n) VALUES (gen_random_uuid(), 1)")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
            await session.ws_connect(f"{shop.url}/2")
        async with session.ws_connect(f"{shop.url}/1") as socket:
            await socket.send_json(10)
            assert await socket.receive_json() == 11
            await connection.execute("SET lock_timeout = '2s'; UPDATE streamed_thing SET n = 5 WHERE n = 1")
    await connection.close()
    assert await count(schema) == 2


async def test_lists_by_cursor_over_http(serve: Serve, schema: SchemaDatabase) -> None:
    module = Module("shop")

    @module.handle("list")
    async def index(paging: CursorPaging, db: Db) -> Out[CursorPage[Line]]:
        return await db.page(select(StreamedThing).order_by(StreamedThing.n.desc()), paging)

    @module.handle("add", idempotent=False)
    async def add(db: Db, n: int = 0) -> None:
        await db.add(StreamedThing(n=n))

    shop = await serve(
        module,
        [{"name": "list", **GET}, {"name": "add", "methods": ["POST"], "path": "/", "auth": "none"}],
        environ={"DATABASE_DSN": schema.app_dsn},
    )
    client = shop.anonymous()
    for n in range(5):
        assert (await client.post(f"/?n={n}")).status == 204
    first = (await client.get("/?limit=3")).body
    assert ([item["n"] for item in first["items"]], first["limit"]) == ([4, 3, 2], 3)
    await client.post("/?n=9")
    second = (await client.get("/", params={"limit": 3, "cursor": first["next_cursor"]})).body
    assert ([item["n"] for item in second["items"]], second["next_cursor"]) == ([1, 0], None)
    refused = await client.get("/?cursor=nonsense")
    assert (refused.status, refused.body["error"]["details"]["fields"][0]["field"]) == (422, "cursor")
