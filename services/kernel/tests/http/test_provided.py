"""What a module provides, and configuration that changes, as handlers see them over a real connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from moorage import Config, Model, Module, Reloadable, Secrets, User
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
GET = {"methods": ["GET"], "auth": "none"}


class ShopConfig(Config):
    greeting: Reloadable[str] = "hello"
    again: Reloadable[str] = "hello"
    engine: str = "steam"


class Counter:
    def __init__(self) -> None:
        self.count = 0


class Basket:
    def __init__(self, counter: Counter, config: ShopConfig) -> None:
        self.counter, self.config = counter, config


async def test_handlers_ask_for_what_the_module_provides(serve: Serve) -> None:
    module = Module("shop", config=ShopConfig)
    closed: list[str] = []

    @module.provide
    async def counter() -> AsyncIterator[Counter]:
        yield Counter()
        closed.append("counter")

    @module.provide(per="scope")
    async def basket(counter: Counter, config: ShopConfig, user: User | None) -> AsyncIterator[Basket]:
        yield Basket(counter, config)
        closed.append("basket")

    @module.handle("count")
    async def count(basket: Basket, counter: Counter) -> dict[str, Any]:
        assert basket.counter is counter
        counter.count += 1
        return {"count": counter.count, "greeting": basket.config.greeting}

    shop = await serve(module, [{"name": "count", "path": "/count", **GET}])
    client = shop.anonymous()
    assert [(await client.get("/count")).body["count"] for _ in range(3)] == [1, 2, 3]
    assert closed == ["basket"] * 3
    shop.set_config({"shop": {"greeting": "moin"}})
    assert (await client.get("/count")).body["greeting"] == "moin"


async def test_a_request_sees_one_configuration_from_its_beginning_to_its_end(serve: Serve) -> None:
    """It changes all the time; within a request both fields are always of the same version."""
    module = Module("shop", config=ShopConfig)
    torn: list[tuple[str, str]] = []

    @module.provide(per="scope")
    async def basket(config: ShopConfig) -> Basket:
        await asyncio.sleep(0.002)
        return Basket(Counter(), config)

    @module.handle("read")
    async def read(config: ShopConfig, basket: Basket) -> str:
        if not config.greeting == config.again == basket.config.greeting:
            torn.append((config.greeting, basket.config.greeting))
        return config.greeting

    shop = await serve(module, [{"name": "read", "path": "/", **GET}])

    enough = asyncio.Event()

    async def change() -> None:
        number = 0
        while not enough.is_set():
            shop.set_config({"shop": {"greeting": str(number), "again": str(number)}})
            number += 1
            await asyncio.sleep(0.003)

    async def ask() -> None:
        client, seen = shop.anonymous(), set()
        while len(seen) < 12:
            seen |= {answer.body for answer in await asyncio.gather(*(client.get("/") for _ in range(4)))}
        enough.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(change())
        group.create_task(ask())
    assert not torn


class Order(Model):
    engine: str = ""


async def slowly(seconds: float = 0.3) -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(seconds)
    yield b"}"


async def test_limits_change_while_it_runs_and_other_fields_are_refused(serve: Serve) -> None:
    module = Module("shop", config=ShopConfig)

    @module.handle("order")
    async def order(new: Order, config: ShopConfig) -> Order:
        return Order(engine=config.engine)

    shop = await serve(module, [{"name": "order", "path": "/", "methods": ["POST"], "auth": "none"}])
    client = shop.anonymous()
    json = {"Content-Type": "application/json"}
    assert (await client.post("/", data=slowly(), headers=json)).status == 200
    shop.set_config({"server": {"read_timeout": "50ms", "port": 1}, "shop": {"engine": "diesel"}})
    assert (await client.post("/", data=slowly(2), headers=json)).status == 408
    told = (await shop.admin.get("/config")).body
    assert [one["field"] for one in told["refused"]] == ["shop.engine"], "SERVER_PORT of the environment wins"
    shop.set_config({})
    answer = await client.post("/", data=slowly(), headers=json)
    assert (answer.status, answer.body) == (200, {"engine": "steam"})


async def test_a_secret_that_is_missing_is_503_without_its_name(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("pay")
    async def pay(secrets: Secrets) -> str:
        return str(secrets.current("stripe_key"))

    shop = await serve(module, [{"name": "pay", "path": "/pay", **GET}])
    answer = await shop.anonymous().get("/pay")
    assert (answer.status, answer.code) == (503, "secret_missing")
    assert b"stripe" not in answer.content


async def test_the_ready_page_shows_each_dependencys_state(serve: Serve) -> None:
    module = Module("shop")

    class Mailer:
        away = False

        async def ping(self) -> None:
            if self.away:
                raise ConnectionError("nobody at mail:25")

    @module.provide(required=False)
    async def mailer() -> Mailer:
        return Mailer()

    @module.handle("read")
    async def read(mailer: Mailer) -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "path": "/", **GET}])
    ready = (await shop.admin.get("/ready")).body
    [name] = [name for name in ready["checks"] if name.endswith("Mailer")]
    assert ready["checks"][name]["state"] == "ok"
    Mailer.away = True
    shop.health._last = (0.0, {})
    answer = await shop.admin.get("/ready")
    assert (answer.status, answer.body["status"]) == (200, "degraded")
    check = answer.body["checks"][name]
    assert (check["ok"], check["state"]) == (False, "degraded")
    assert check["error"] == check["last_error"]["error"] == "ConnectionError: nobody at mail:25"
    assert check["since"].endswith("+00:00")


async def test_an_unexpected_error_is_published_once_with_its_place(serve: Serve, log_lines: Any) -> None:
    module = Module("shop")

    @module.handle("fail")
    async def fail() -> str:
        raise ValueError("postgresql://u:hunter2@h/d")

    shop = await serve(module, [{"name": "fail", "path": "/fail", **GET}])
    first, second = [await shop.anonymous().get("/fail") for _ in range(2)]
    assert first.code == second.code == "internal"
    lines = [line for line in log_lines() if line["logger"] == "moorage.errors"]
    assert [line["message"] for line in lines] == ["unexpected error", "unexpected error, again"]
    assert lines[0]["where"] == "fail"
    assert lines[0]["request_id"] == first.headers["X-Request-ID"]
    assert "hunter2" not in str(lines)
