"""Idempotency keys: one effect, one answer, on a real PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.orm import Mapped

from moorage import Conflict, Content, Db, Model, Module, Out, Table, User
from moorage.assembly import Assembly
from moorage.database import kept
from moorage.database.pool import Pool
from moorage.http.app import ASSEMBLY
from moorage.testing import ModuleHarness, SchemaDatabase

pytestmark = pytest.mark.postgres
Serve = Callable[..., Awaitable[ModuleHarness]]


class KeyedThing(Table):
    """A table of this test alone."""

    name: Mapped[str]


class ThingIn(Model):
    name: str
    wait: float = 0


class ThingOut(Model):
    name: str


@pytest.fixture
async def schema(kernel_schema: Callable[..., Awaitable[SchemaDatabase]]) -> SchemaDatabase:
    return await kernel_schema(KeyedThing)


def shop_module() -> Module:
    module = Module("shop")

    @module.handle("make", status=201)
    async def make(new: ThingIn, db: Db) -> Out[ThingOut]:
        row = await db.add(KeyedThing(name=new.name))
        await asyncio.sleep(new.wait)
        if new.name == "clash":
            raise Conflict
        return row

    @module.handle("must", idempotent=True)
    async def must(new: ThingIn, db: Db) -> None:
        await db.add(KeyedThing(name=new.name))

    @module.handle("never", idempotent=False)
    async def never(new: ThingIn, db: Db) -> None:
        await db.add(KeyedThing(name=new.name))

    async def load(id: UUID, db: Db) -> KeyedThing | None:
        return await db.get(KeyedThing, id)

    @module.handle("close", resource=load)
    async def close(thing: KeyedThing, db: Db) -> Content:
        await db.delete(thing)
        return Content(b"closed", "text/plain")

    @module.handle("large")
    async def large(db: Db) -> Content:
        await db.add(KeyedThing(name="large"))
        return Content(b"x" * 300_000, "text/plain", {"X-Kind": "large", "Set-Cookie": "secret"})

    @module.handle("small")
    async def small(user: User, db: Db) -> Content:
        await db.add(KeyedThing(name="small"))
        return Content(str(uuid4()).encode(), "text/plain", {"X-Kind": "small", "Set-Cookie": "secret"})

    return module


def rule(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "methods": ["POST"], "path": f"/{name}", **more}


@pytest.fixture
async def shop(serve: Serve, schema: SchemaDatabase) -> ModuleHarness:
    rules = [rule(name, auth="optional") for name in ("make", "must", "never", "large")]
    return await serve(
        shop_module(),
        [
            *rules,
            rule("small"),
            rule("close", path="/things/{id}/close"),
            rule("other", path="/other", auth="none"),
        ],
        environ={"DATABASE_DSN": schema.app_dsn},
    )


async def count(schema: SchemaDatabase, table: str = "keyed_thing") -> int:
    connection = await asyncpg.connect(schema.owner_dsn)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
    finally:
        await connection.close()


def key() -> dict[str, str]:
    return {"Idempotency-Key": f'"{uuid4()}"'}


async def test_the_same_request_again_gets_the_same_answer_and_has_no_effect(
    shop: ModuleHarness, schema: SchemaDatabase
) -> None:
    client, headers = shop.client(), key()
    first = await client.post("/small", headers=headers)
    again = await client.post("/small", headers=headers)
    assert (again.status, again.content, again.headers["X-Kind"]) == (200, first.content, "small")
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Set-Cookie" in first.headers
    assert "Set-Cookie" not in again.headers, "what is kept must not hold credentials"
    assert await count(schema) == 1


async def test_a_request_that_removed_its_resource_gets_the_same_answer_again(
    shop: ModuleHarness, schema: SchemaDatabase
) -> None:
    id, client, headers = uuid4(), shop.client(), key()
    connection = await asyncpg.connect(schema.owner_dsn)
    await connection.execute("INSERT INTO keyed_thing (id, name) VALUES ($1, 'a')", id)
    await connection.close()
    answers = [await client.post(f"/things/{id}/close", headers=headers) for _ in range(2)]
    assert [(answer.status, answer.content) for answer in answers] == [(200, b"closed")] * 2
    missing = await client.post(f"/things/{id}/close", headers=key())
    assert missing.status == 404
    assert (await client.post(f"/things/{id}/close", headers=headers)).content == b"closed"


async def test_fifty_at_once_have_one_effect(shop: ModuleHarness, schema: SchemaDatabase) -> None:
    client, headers, body = shop.client(), key(), {"name": "a", "wait": 0.2}

    async def until_answered() -> tuple[int, Any]:
        while True:
            answer = await client.post("/make", headers=headers, json=body)
            if answer.code != "idempotency_in_progress":
                return answer.status, answer.body
            assert answer.headers["Retry-After"] == "1"
            await asyncio.sleep(0.05)

    answers = await asyncio.gather(*(until_answered() for _ in range(50)))
    assert {status for status, _ in answers} == {201}
    assert all(body == {"name": "a"} for _, body in answers)
    assert await count(schema) == 1


async def test_another_request_with_the_key_is_refused(shop: ModuleHarness, schema: SchemaDatabase) -> None:
    client, headers = shop.client(), key()
    assert (await client.post("/make", headers=headers, json={"name": "a"})).status == 201
    assert (await client.post("/make", headers=headers, json={"name": "b"})).code == "idempotency_key_reused"
    assert (
        await client.post("/make?x=1", headers=headers, json={"name": "a"})
    ).code == "idempotency_key_reused"
    assert await count(schema) == 1


async def test_a_key_belongs_to_a_caller_and_a_rule(shop: ModuleHarness, schema: SchemaDatabase) -> None:
    headers, body = key(), {"name": "a"}
    callers = [shop.client(), shop.client(), shop.anonymous()]
    for client in callers:
        answer = await client.post("/make", headers=headers, json=body)
        assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (201, None)
    assert (await callers[0].post("/must", headers=headers, json=body)).status == 204
    assert await count(schema) == 4
    assert (await shop.anonymous().post("/make", headers=headers, json=body)).headers["Idempotency-Replayed"]


async def test_what_an_error_undid_can_be_tried_again(shop: ModuleHarness, schema: SchemaDatabase) -> None:
    client, headers = shop.client(), key()
    for _ in range(2):
        assert (await client.post("/make", headers=headers, json={"name": "clash"})).code == "conflict"
    assert await count(schema) == 0
    assert await count(schema, "moorage_idempotency") == 0


async def test_who_asks_for_a_key_gets_one_and_who_does_not_ignores_it(
    shop: ModuleHarness, schema: SchemaDatabase
) -> None:
    client, body = shop.client(), {"name": "a"}
    assert (await client.post("/must", json=body)).code == "idempotency_key_missing"
    headers = key()
    for _ in range(2):
        assert (await client.post("/must", headers=headers, json=body)).status == 204
        assert (await client.post("/never", headers=headers, json=body)).status == 204
    assert await count(schema) == 3


@pytest.mark.parametrize("bad", ["", "a b", "x" * 256, '""'])
async def test_what_is_no_key_is_refused(shop: ModuleHarness, bad: str) -> None:
    answer = await shop.client().post("/make", headers={"Idempotency-Key": bad}, json={"name": "a"})
    assert (answer.status, answer.code) == (400, "bad_idempotency_key")


async def test_an_answer_that_is_too_large_is_not_kept_but_its_effect_is(
    shop: ModuleHarness, schema: SchemaDatabase
) -> None:
    client, headers = shop.client(), key()
    assert (await client.post("/large", headers=headers)).status == 200
    assert (await client.post("/large", headers=headers)).code == "answer_not_kept"
    assert await count(schema) == 1


async def test_what_has_expired_counts_no_longer_and_is_removed(
    shop: ModuleHarness, schema: SchemaDatabase
) -> None:
    client, headers, body = shop.client(), key(), {"name": "a"}
    assembly: Assembly = shop.app[ASSEMBLY]
    pool = assembly.get(Pool)
    assert pool is not None
    await client.post("/make", headers=headers, json=body)
    assert await kept.clean_once(pool) == 0
    connection = await asyncpg.connect(schema.owner_dsn)
    await connection.execute("UPDATE moorage_idempotency SET expires_at = now()")
    again = await client.post("/make", headers=headers, json=body)
    assert (again.status, again.headers.get("Idempotency-Replayed")) == (201, None)
    assert await kept.clean_once(pool) == 0
    await connection.execute("UPDATE moorage_idempotency SET expires_at = now()")
    await connection.close()
    assert await kept.clean_once(pool) == 1
    assert await count(schema, "moorage_idempotency") == 0


async def test_without_the_kernels_tables_keys_are_ignored_where_they_may_be(
    serve: Serve, moorage_database: SchemaDatabase
) -> None:
    """As of a Module with ``migrations: none``."""
    connection = await asyncpg.connect(moorage_database.owner_dsn)
    await connection.execute(
        "CREATE TABLE keyed_thing (id uuid, name text, created_at timestamptz, updated_at timestamptz)"
    )
    await connection.close()
    rules = [rule(name, auth="optional") for name in ("make", "must")]
    shop = await serve(shop_module(), rules, environ={"DATABASE_DSN": moorage_database.app_dsn})
    client, headers, body = shop.client(), key(), {"name": "a"}
    assert (await client.post("/make", headers=headers, json=body)).status == 201
    assert (await client.post("/make", headers=headers, json=body)).status == 201
    assert (await client.post("/must", headers=headers, json=body)).status == 503
