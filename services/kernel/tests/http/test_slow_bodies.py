"""A client that sends slowly holds its own connection, and nothing that others need."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from moorage import Db, Model, Module
from moorage.testing import ModuleHarness, SchemaDatabase
from rigs.waiting import until

pytestmark = pytest.mark.postgres
Serve = Callable[..., Awaitable[ModuleHarness]]


class Row(Model):
    name: str


class Change(Model):
    name: str


async def load(db: Db) -> Row:
    await db.execute(text("SELECT 1"))
    return Row(name="a")


def module() -> Module:
    made = Module("shop")

    @made.handle("change", resource=load)
    async def change(row: Row, new: Change) -> None:
        pass

    @made.handle("touch", resource=load)
    async def touch(row: Row) -> None:
        pass

    @made.handle("look")
    async def look(db: Db) -> None:
        await db.execute(text("SELECT 1"))

    return made


@pytest.mark.parametrize(
    ("path", "media", "status"),
    [
        ("/change", "application/json", 204),
        ("/change", "text/plain", 415),
        ("/touch", "application/json", 204),
    ],
)
async def test_slow_bodies_hold_no_connection_of_the_database(
    serve: Serve, kernel_schema: Callable[..., Awaitable[SchemaDatabase]], path: str, media: str, status: int
) -> None:
    rules = [
        {"name": name, "methods": ["POST"], "path": f"/{name}", "auth": "none"}
        for name in ("change", "touch", "look")
    ]
    limits = {"DATABASE_MAX_CONNECTIONS": "2", "DATABASE_MAX_IDLE_CONNECTIONS": "2"}
    schema = await kernel_schema()
    shop = await serve(
        module(), rules, environ={"DATABASE_DSN": schema.app_dsn, "DATABASE_ACQUIRE_TIMEOUT": "5s", **limits}
    )
    go_on = asyncio.Event()

    begun = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal begun
        yield b'{"name": '
        begun += 1
        await go_on.wait()
        yield b'"x"}'

    def send(number: int) -> Any:
        headers = {"Content-Type": media, "Idempotency-Key": f"key-{number}"}
        return asyncio.create_task(shop.anonymous().post(path, data=body(), headers=headers))

    slow = [send(number) for number in range(4)]

    async def all_begun() -> bool:
        """Each is being answered, or was without its body."""
        metrics = (await shop.admin.get("/metrics")).content.decode()
        answered = sum(one.done() for one in slow)
        return begun == 4 and f"http_requests_in_flight {4 - answered}.0" in metrics

    await until(all_begun)
    assert (await shop.anonymous().post("/look")).status == 204
    go_on.set()
    assert [answer.status for answer in await asyncio.gather(*slow)] == [status] * 4
