"""Readiness is what the pings say, and less while starting and draining."""

import asyncio

from moorage.health import Health, NotReady


async def _well() -> None: ...


async def _broken() -> None:
    raise ConnectionError("no route")


async def test_ready_is_started_and_every_ping_well() -> None:
    health = Health()
    health.register("database", _well)
    assert (await health.ready())[0] is False
    health.started = True
    assert await health.ready() == (True, {"database": ""})


async def test_one_failing_ping_makes_it_unready_and_says_why() -> None:
    health = Health(started=True)
    health.register("database", _broken)
    health.register("policy", _well)
    assert await health.ready() == (False, {"database": "ConnectionError: no route", "policy": ""})


async def test_a_ping_may_say_itself_what_is_missing() -> None:
    async def missing() -> None:
        raise NotReady("base.json is missing")

    health = Health(started=True)
    health.register("policy", missing)
    assert (await health.ready())[1] == {"policy": "base.json is missing"}


async def test_draining_is_unready_however_well_everything_is() -> None:
    health = Health(started=True, draining=True)
    assert (await health.ready())[0] is False


async def test_waiting_for_something_shows_why() -> None:
    health = Health()
    health.waiting("database", "refused")
    assert (await health.check()) == {"database": "refused"}
    health.waiting("database", "")
    assert (await health.check()) == {}


async def test_pings_are_asked_together_and_once_a_second_at_most() -> None:
    asked = 0

    async def slow() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)

    health = Health(started=True)
    for name in ("a", "b", "c"):
        health.register(name, slow)
    for _ in range(5):
        await health.ready()
    assert asked == 3
