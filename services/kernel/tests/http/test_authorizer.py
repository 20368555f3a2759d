"""Handlers ask the guard about what no rule can decide beforehand."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from moorage import Authorizer, Model, Module, User
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
OWN = "resource.owner == user.id"


class Move(Model):
    owner: str


def shop(code: str = "shop.thing.move") -> Module:
    module = Module("shop")

    @module.handle("move")
    async def move(to: Move, guard: Authorizer) -> dict[str, Any]:
        guard.authorize(code, to)
        return {"moved": True}

    @module.handle("mine")
    async def mine(guard: Authorizer, user: User | None) -> list[str]:
        things = [{"owner": "somebody"}, {"owner": str(user.id) if user else ""}]
        return [thing["owner"] for thing in things if guard.permits(code, thing)]

    return module


RULES = [
    {"name": "move", "methods": ["POST"], "path": "/moves"},
    {"name": "mine", "methods": ["GET"], "path": "/things", "auth": "optional"},
]


async def test_the_condition_is_judged_with_what_the_handler_names(serve: Serve) -> None:
    harness = await serve(shop(), RULES, permissions={"shop.thing.move": OWN})
    author = harness.client(roles=["author"])
    assert (await author.post("/moves", json={"owner": str(author.user_id)})).body == {"moved": True}
    refused = await author.post("/moves", json={"owner": "somebody"})
    assert (refused.status, refused.code) == (403, "forbidden")
    assert (await author.get("/things")).body == [str(author.user_id)]


async def test_who_does_not_hold_the_permission_may_not(serve: Serve) -> None:
    harness = await serve(shop(), RULES, permissions={"shop.thing.move": None})
    stranger = harness.client(roles=["reader"])
    assert (await stranger.post("/moves", json={"owner": "x"})).status == 403
    assert (await stranger.get("/things")).body == []
    assert (await harness.anonymous().get("/things")).body == []


async def test_a_permission_that_the_policy_does_not_have_is_nobodys(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = await serve(shop("shop.thing.mov"), RULES, permissions={"shop.thing.move": None})
    assert (await harness.client(roles=["author"]).post("/moves", json={"owner": "x"})).status == 403
    assert "the policy has no permission shop.thing.mov" in capsys.readouterr().out
