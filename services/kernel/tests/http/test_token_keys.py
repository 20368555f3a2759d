"""A module whose users' issuer publishes its keys: over real sockets, with rotation under load."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from key_server import KeyServer

from moorage import Module
from moorage.guard import tokens
from moorage.testing import Client, ModuleHarness
from moorage.testing.harness import AUDIENCE, ISSUER

Serve = Callable[..., Awaitable[ModuleHarness]]
SURE_S = 30.0
RULES: list[dict[str, Any]] = [
    {"name": "me", "methods": ["GET"], "path": "/me"},
    {"name": "open", "methods": ["GET"], "path": "/open", "auth": "none"},
]
OLD, NEW = tokens.new_es256_key(), tokens.new_es256_key()


def shop() -> Module:
    module = Module("shop")

    @module.handle("me")
    async def me() -> dict[str, str]:
        return {}

    @module.handle("open")
    async def everybody() -> dict[str, str]:
        return {}

    return module


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(SURE_S):
        while not await condition():  # noqa: ASYNC110 - the state is a server's
            await asyncio.sleep(0.01)


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with KeyServer(OLD) as server:
        yield server


def publish_at(harness: ModuleHarness, address: str) -> None:
    """Put a policy in force whose users' issuer has the keys at *address*, and no others."""
    document = harness.compile()
    issuer = document.issuers[0].model_copy(update={"keys": [], "jwks_uri": address})
    harness.set_policy(document.model_copy(update={"issuers": [issuer]}))


def client(harness: ModuleHarness, key: bytes) -> Client:
    token = tokens.issue_user_token(key, issuer=ISSUER, audience=AUDIENCE, user_id=uuid4())
    return Client(harness._session, harness.url, {"Authorization": f"Bearer {token}"})


async def state(harness: ModuleHarness) -> str:
    answer = await harness.admin.get("/ready")
    found: str = answer.body["checks"].get("token keys", {"state": "ok"})["state"]
    return f"{answer.status} {found}"


async def test_a_policy_that_names_a_place_has_the_keys_fetched(serve: Serve, server: KeyServer) -> None:
    harness = await serve(shop(), RULES)
    before = harness.client()
    assert (await before.get("/me")).status == 200
    publish_at(harness, server.address)
    assert (await client(harness, OLD).get("/me")).status == 200
    assert (await before.get("/me")).code == "invalid_token", "the document's own key is gone"
    (status,) = (await harness.admin.get("/policy")).body["keys"]
    assert (status["issuer"], status["error"]) == (ISSUER, None)
    assert status["kids"] == [tokens.public_jwk(OLD)["kid"]]
    assert 'guard_key_fetches_total{result="ok"}' in (await harness.admin.get("/metrics")).content.decode()


async def test_a_rotation_under_load_is_no_401(serve: Serve, server: KeyServer) -> None:
    """Published and signed with at once: the first token of it has the set fetched, and waits meanwhile."""
    harness = await serve(shop(), RULES, environ={"GUARD_KEYS_REFRESH": "1h"})
    publish_at(harness, server.address)
    current, stop = [OLD], asyncio.Event()
    statuses: list[int] = []

    async def user() -> None:
        while not stop.is_set():
            statuses.append((await client(harness, current[0]).get("/me")).status)

    users = [asyncio.create_task(user()) for _ in range(8)]
    await until(lambda: _reached(statuses, 50))
    server.publish(OLD, NEW)
    current[0] = NEW
    more = len(statuses) + 50
    await until(lambda: _reached(statuses, more))
    stop.set()
    await asyncio.gather(*users)
    assert set(statuses) == {200}
    assert server.asked == 2


async def _reached(found: list[int], count: int) -> bool:
    return len(found) >= count


async def test_an_issuer_that_is_away_degrades_and_what_is_known_counts_on(
    serve: Serve, server: KeyServer
) -> None:
    harness = await serve(shop(), RULES, environ={"GUARD_KEYS_REFRESH": "1s"})
    publish_at(harness, server.address)
    assert (await client(harness, OLD).get("/me")).status == 200
    await server.stop()
    await until(lambda: _is(harness, "200 degraded"))
    assert (await client(harness, OLD).get("/me")).status == 200
    assert (await client(harness, NEW).get("/me")).code == "invalid_token"


async def _is(harness: ModuleHarness, expected: str) -> bool:
    return await state(harness) == expected


async def test_a_key_that_is_withdrawn_ends(serve: Serve, server: KeyServer) -> None:
    harness = await serve(shop(), RULES, environ={"GUARD_KEYS_REFRESH": "1s"})
    publish_at(harness, server.address)
    known = client(harness, OLD)
    assert (await known.get("/me")).status == 200
    server.publish(NEW)

    async def gone() -> bool:
        return (await known.get("/me")).code == "invalid_token"

    await until(gone)
    assert (await client(harness, NEW).get("/me")).status == 200


async def test_a_module_that_uses_no_published_keys_says_nothing_of_them(serve: Serve) -> None:
    harness = await serve(shop(), RULES)
    assert "token keys" not in (await harness.admin.get("/ready")).body["checks"]
    assert (await harness.admin.get("/policy")).body["keys"] == []
