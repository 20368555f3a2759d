"""When keys that issuers publish are fetched, over real HTTP: at first, regularly, and once for what nobody knows."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from uuid import UUID

import pytest
from aiohttp import web
from key_world import NEW, OLD, OTHER, Facts, World, a_world, kid, until

from moorage.errors import AppError
from moorage.guard import keyring, tokens
from moorage.guard.keyring import WINDOW_S
from moorage.guard.limits.limiter import Limiter
from moorage.guard.policy import BaseDocument


@pytest.fixture
async def world(make_document: Callable[..., BaseDocument], facts: Facts, now: float) -> AsyncIterator[World]:
    async with a_world(make_document, facts, now) as world:
        yield world


# ---- at first, and then regularly


async def test_keys_are_fetched_at_the_start_and_then_count(world: World) -> None:
    world.start()
    assert "no keys of https://moorage.test yet" in world.guard.waiting
    await until(lambda: not world.guard.waiting)
    assert await world.outcome(OLD) == "me"
    assert world.guard.decide(world.request(world.token(OLD))).name == "me", "without waiting for anything"
    assert await world.outcome(OLD, audience="other") == "invalid_token"
    await world.settled()
    assert world.status == {
        "issuer": "https://moorage.test",
        "jwks_uri": world.server.address,
        "kids": [kid(OLD)],
        "fetched_at": "2027-01-15T08:00:00+00:00",
        "error": None,
    }
    assert (world.server.asked, world.fetches("ok"), world.degraded) == (1, 1, "")
    assert world.server.headers[0]["Accept-Encoding"] == "identity"
    assert "Authorization" not in world.server.headers[0]


async def test_a_withdrawn_key_ends_with_the_next_regular_fetch(world: World) -> None:
    world.start()
    await world.ready()
    kept = await world.admit(OLD)
    ended: list[AppError] = []
    with world.guard.lasting.watching(kept, ended.append):
        world.server.publish(NEW)
        await world.later(299)
        assert await world.outcome(OLD) == "me"
        assert world.server.asked == 1
        await world.later(1)
        await until(lambda: world.server.asked == 2)
        await world.settled()
        assert await world.outcome(NEW) == "me"
        await until(lambda: ended)
    assert (ended[0].code, ended[0].reason) == ("invalid_token", "its key is gone")
    world.use_up()
    assert await world.outcome(OLD) == "invalid_token", "also one that was remembered"


async def test_keys_that_stayed_leave_everything_as_it_was(world: World) -> None:
    world.start()
    await until(lambda: not world.guard.waiting)
    request = world.request(world.token(OLD))
    policy, known = world.guard.policy, (await world.guard.admit(request)).verified
    await world.settled()
    await world.later(301)
    await until(lambda: world.server.asked == 2)
    await world.settled()
    assert world.guard.policy is policy
    world.server.publish(OLD, NEW)
    await world.later(301)
    await until(lambda: world.guard.policy is not policy)
    assert (await world.guard.admit(request)).verified is known, "a further key forgets no token"


async def test_the_pauses_are_spread(world: World) -> None:
    world.start(refresh=100.0)
    await world.ready()
    for chance, due in [(0.0, 90.0), (1.0, 110.0)]:
        world.keyring._chance = lambda chance=chance: chance  # type: ignore[misc]
        asked = world.server.asked
        await world.later(1000)
        await until(lambda asked=asked: world.server.asked == asked + 1)  # type: ignore[misc]
        await world.settled()
        assert world.keyring._pause() == due


# ---- on demand


async def test_a_rotation_under_load_refuses_nobody(world: World) -> None:
    """The issuer signs with a key as soon as it publishes it: each time the first token of it has it fetched."""
    world.start()
    await until(lambda: not world.guard.waiting)
    refused, admitted, current = [], 0, [OLD]
    stop = asyncio.Event()

    async def client(number: int) -> None:
        nonlocal admitted
        while not stop.is_set():
            found = await world.outcome(current[0], user_id=UUID(int=number % 5))
            if found != "me":
                refused.append(found)
            admitted += 1
            await asyncio.sleep(0.001)

    clients = [asyncio.create_task(client(number)) for number in range(20)]
    for key in (NEW, OTHER, tokens.new_es256_key()):
        before = admitted
        await until(lambda before=before: admitted > before + 100)  # type: ignore[misc]
        world.rising += WINDOW_S
        world.server.publish(current[0], key)
        current[0] = key
    before = admitted
    await until(lambda: admitted > before + 100)
    stop.set()
    await asyncio.gather(*clients)
    assert refused == []
    assert world.server.asked == 1 + 3


async def test_what_is_published_a_window_ahead_is_known_whatever_strangers_do(world: World) -> None:
    """Somebody keeps the window used up with names of his own; each of these fetches brings what is there by then."""
    world.start()
    await until(lambda: not world.guard.waiting)
    published, signing = 45.0, 45.0 + WINDOW_S
    found = []
    for _ in range(120):
        world.rising += 1
        since = world.rising - 1000
        if since == published:
            world.server.publish(OLD, NEW)
        assert await world.outcome(tokens.new_es256_key()) == "invalid_token"
        if since >= signing:
            found.append(await world.outcome(NEW))
    assert set(found) == {"me"}
    assert world.server.asked <= 1 + 120 / WINDOW_S


async def test_many_unknown_names_at_once_are_one_fetch_and_none_for_half_a_minute(world: World) -> None:
    world.start()
    await world.ready()
    strangers = [tokens.new_es256_key() for _ in range(5)]
    found = await asyncio.gather(*(world.outcome(strangers[n % 5]) for n in range(500)))
    assert set(found) == {"invalid_token"}
    assert world.server.asked == 2
    world.rising += WINDOW_S - 0.1
    assert {await world.outcome(key) for key in strangers * 20} == {"invalid_token"}
    assert world.server.asked == 2
    world.rising += 0.1
    await asyncio.gather(*(world.outcome(strangers[n % 5]) for n in range(500)))
    assert world.server.asked == 3


async def test_a_new_name_among_many_made_up_ones_is_admitted_with_the_one_fetch(world: World) -> None:
    world.start()
    await world.ready()
    world.server.publish(OLD, NEW)
    stranger = tokens.new_es256_key()
    found = await asyncio.gather(*(world.outcome(NEW if n % 2 else stranger) for n in range(500)))
    assert found == ["invalid_token", "me"] * 250
    assert world.server.asked == 2


async def test_who_meets_a_regular_fetch_that_was_answered_before_has_another(world: World) -> None:
    world.start()
    await world.ready()

    async def answer(_: web.Request) -> web.StreamResponse:
        if world.server.asked == 3:
            world.server.publish(OLD, NEW)
        return web.json_response({"keys": world.server.keys})

    world.server.answer = answer
    world.server.gate = asyncio.Event()
    await world.later(301)
    await until(lambda: world.server.asked == 2)
    first = asyncio.create_task(world.outcome(NEW))
    await asyncio.sleep(0.05)
    assert world.server.asked == 2, "it waits for the one that is under way"
    world.server.gate.set()
    assert await first == "me"
    assert world.server.asked == 3


async def test_a_fetch_of_before_does_not_undo_a_later_one(world: World) -> None:
    """A source that was not trusted for a moment is another one afterwards."""
    gates, sets = [asyncio.Event(), asyncio.Event()], [OLD, NEW]
    asked: list[str] = []

    async def get(address: str) -> bytes:
        asked.append(address)
        number = len(asked) - 1
        await gates[number].wait()
        return json.dumps({"keys": [tokens.public_jwk(sets[number])]}).encode()

    world.start(world.issuer(), get=get)
    await until(lambda: len(asked) == 1)
    world.switch(world.issuer(OTHER, jwks_uri=None))
    world.switch(world.issuer())
    await until(lambda: len(asked) == 2)
    for gate in reversed(gates):
        gate.set()
        await asyncio.sleep(0.02)
    assert world.guard.status()["keys"][0]["kids"] == [kid(NEW)]


async def test_one_that_goes_away_does_not_take_the_fetch_along(world: World) -> None:
    world.start()
    await world.ready()
    world.server.publish(OLD, NEW)
    world.server.gate = asyncio.Event()
    first = asyncio.create_task(world.outcome(NEW))
    await until(lambda: world.server.asked == 2)
    others = [asyncio.create_task(world.outcome(NEW)) for _ in range(3)]
    await asyncio.sleep(0.01)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    world.server.gate.set()
    assert await asyncio.gather(*others) == ["me"] * 3
    assert world.server.asked == 2


async def test_a_request_waits_for_a_bounded_time_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.start()
    await world.ready()
    monkeypatch.setattr(keyring, "WAIT_S", 0.05)
    world.server.publish(OLD, NEW)
    world.server.gate = asyncio.Event()
    assert await world.outcome(NEW) == "invalid_token"
    assert await world.outcome(OLD) == "me", "others do not wait"
    world.server.gate.set()
    await world.settled()
    assert await world.outcome(NEW) == "me"
    assert world.server.asked == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer x"},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "Basic eDp5"},
        {},
    ],
    ids=str,
)
async def test_what_is_no_token_of_the_issuer_has_nothing_fetched(
    world: World, headers: dict[str, str]
) -> None:
    world.start()
    await world.ready()
    with pytest.raises(AppError) as refused:
        await world.guard.admit(world.facts("GET", "/me", headers))
    assert refused.value.status == 401
    assert await world.outcome(NEW, issuer="https://other.test") == "invalid_token"
    _, rest = world.token(OLD).split(".", 1)
    for header in (
        b'{"alg":"none","kid":"x"}',
        b'{"alg":"RS256","kid":"x"}',
        b'{"alg":"ES256"}',
        b'{"alg":"ES256","kid":"x","jku":"https://evil.example"}',
    ):
        token = f"{tokens._base64url(header)}.{rest}"
        with pytest.raises(AppError):
            await world.guard.admit(world.request(token))
    assert world.server.asked == 1


async def test_who_showed_too_many_bad_tokens_has_nothing_fetched(world: World) -> None:
    world.start(limiter=Limiter(bad_tokens=3))
    await world.ready()
    found = [await world.outcome(NEW) for _ in range(5)]
    assert found == ["invalid_token"] * 3 + ["rate_limited"] * 2
    world.rising += WINDOW_S
    assert await world.outcome(NEW) == "rate_limited"
    assert world.server.asked == 2


async def test_a_rule_without_a_token_never_waits(world: World) -> None:
    world.server.gate = asyncio.Event()
    world.start()
    assert (await world.guard.admit(world.request(world.token(NEW), "/posts"))).name == "list"
    world.server.gate.set()


async def test_outside_of_admit_nothing_is_fetched(world: World) -> None:
    world.start(regularly=False)
    with pytest.raises(AppError) as refused:
        world.guard.decide(world.request(world.token(OLD)))
    assert refused.value.code == "no_keys"
    assert world.server.asked == 0


# ---- no keys


async def test_without_any_key_a_token_has_them_fetched(world: World) -> None:
    world.start(regularly=False)
    assert await asyncio.gather(*(world.outcome(OLD) for _ in range(50))) == ["me"] * 50
    assert world.server.asked == 1
    assert world.guard.waiting == ""


async def test_without_any_key_and_an_issuer_that_is_away_it_is_503(world: World) -> None:
    await world.server.stop()
    world.start(regularly=False)
    with pytest.raises(AppError) as refused:
        await world.admit(OLD)
    assert (refused.value.status, refused.value.code) == (503, "no_keys")
    assert refused.value.headers["Retry-After"]
    assert (refused.value.rule, refused.value.route) == ("me", "/me")
    with pytest.raises(AppError) as refused:
        await world.guard.admit(world.facts("GET", "/me"))
    assert refused.value.code == "no_keys"
    await world.server.again()
    assert await world.outcome(OLD) == "no_keys", "not twice in half a minute"
    world.rising += WINDOW_S
    assert await world.outcome(OLD) == "me"
    assert (world.fetches("failed"), world.fetches("ok")) == (1, 1)


async def test_the_key_of_one_issuer_is_none_of_another(world: World) -> None:
    """Modules' tokens go on; of users nobody can tell."""
    cluster = world.issuer(
        OTHER, issuer="https://cluster", audiences=["moorage"], subject="module", jwks_uri=None
    )
    await world.server.stop()
    world.start(cluster, world.issuer())
    await until(lambda: world.degraded)
    assert "no keys of https://moorage.test yet" in world.guard.waiting
    assert await world.outcome(OLD) == "no_keys"
    module = tokens.issue_module_token(
        OTHER, issuer="https://cluster", audience="moorage", namespace="default", module="shop", now=world.now
    )
    assert (await world.guard.admit(world.request(module))).name == "me"


async def test_without_any_key_it_is_tried_again_soon_and_then_less_often(world: World) -> None:
    world.server.says("away", 503)
    world.start()
    pauses = []
    for number in range(1, 8):
        await until(lambda number=number: world.server.asked == number)  # type: ignore[misc]
        await world.settled()
        pauses.append(world.keyring._pause())
        await world.later(pauses[-1] or 0)
    assert pauses == [2, 4, 8, 16, 30, 30, 30]
    world.server.answer = None
    await until(lambda: world.server.asked == 8)
    await world.settled()
    await world.later(30)
    await until(lambda: not world.guard.waiting)


async def test_a_service_that_publishes_the_keys_itself_does_not_wait_for_them(world: World) -> None:
    world.server.says("away", 503)
    world.start(alone=True)
    await until(lambda: world.degraded)
    assert world.guard.waiting == ""
    assert await world.outcome(OLD) == "no_keys"


async def test_ready_it_stays_whatever_a_later_policy_says(world: World) -> None:
    world.start(world.issuer(OLD, jwks_uri=None))
    assert world.guard.waiting == ""
    world.server.says("away", 503)
    world.switch(world.issuer())
    await until(lambda: world.degraded)
    assert world.guard.waiting == ""
    assert await world.outcome(OLD) == "no_keys"
