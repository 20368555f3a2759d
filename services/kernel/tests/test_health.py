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


async def test_a_dependency_has_a_state_since_when_and_its_last_error() -> None:
    problem = ""

    async def database() -> None:
        if problem:
            raise ConnectionError(problem)

    health = Health(started=True)
    health.waiting("database", "refused")
    assert health.dependencies["database"].state == "waiting"
    health.register("database", database)
    await health.check()
    known = health.dependencies["database"]
    assert (known.state, known.error, known.last_error) == ("ok", "", "refused")
    since = known.since
    problem = "no route to postgresql://u:hunter2@h/d"
    health._last = (0.0, {})
    await health.check()
    assert known.state == "failed"
    assert known.since >= since
    assert known.last_error == "ConnectionError: no route to postgresql://u:***@h/d", "it is shown to others"
    failed_at = known.since
    health._last = (0.0, {})
    await health.check()
    assert known.since == failed_at, "it is the time of the change"


async def test_what_is_not_required_degrades_and_requests_still_come() -> None:
    health = Health(started=True)
    health.register("cache", _broken, required=False)
    health.degraded("relay", "restarting")
    ready, problems = await health.ready()
    assert ready
    assert set(problems) == {"cache", "relay"}
    assert {known.state for known in health.dependencies.values()} == {"degraded"}
    health.degraded("relay", "")
    assert health.dependencies["relay"].state == "ok"


async def test_a_dependency_may_be_added_while_others_are_asked() -> None:
    """Ports open one after the other, and the kubelet asks meanwhile."""
    health = Health()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await answer.wait()

    async def quick() -> None: ...

    health.register("slow", slow)
    checking = asyncio.create_task(health.check())
    await asked.wait()
    health.register("quick", quick)
    answer.set()
    assert await checking == {"slow": ""}
