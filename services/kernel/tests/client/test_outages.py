"""A target that is down or slow: no storm of retries, nothing takes longer than it may, and it recovers by itself."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from moorage import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from rigs.waiting import until


class Lag:
    """The time by which the event loop ran late, altogether: on a busy machine it is not the client's."""

    total = 0.0

    async def __aenter__(self) -> "Lag":
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _measure(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            self.total += max(0.0, time.perf_counter() - began - 0.01)


async def together(count: int, make: Any) -> tuple[list[Any], list[float]]:
    """The results of *count* calls at once, and how long each took."""
    took: list[float] = []

    async def one() -> Any:
        began = time.perf_counter()
        try:
            return await make()
        except UpstreamError as error:
            return error
        finally:
            took.append(time.perf_counter() - began)

    return list(await asyncio.gather(*(one() for _ in range(count)))), took


@pytest.mark.parametrize("how", ["error", "resets", "truncated"])
async def test_a_total_outage_brings_no_storm_of_retries(server: Any, connect: Any, how: str) -> None:
    """200 callers at once, three tries each: without a budget that would be 600 requests."""
    server.error(503) if how == "error" else getattr(server, how)()
    clients = connect(
        retries=2, max_connections=200, max_waiting=0, breaker_calls=10_000, connect_timeout=20, timeout=30
    )
    results, _ = await together(200, lambda: clients.shop.get("/x"))
    assert all(isinstance(result, UpstreamError) for result in results)
    assert 200 <= len(server.seen) <= 200 * 1.1 + 10
    assert clients.count("client_retries_total", target="default/shop") == len(server.seen) - 200


async def test_under_a_lasting_outage_retries_stay_a_part_of_the_calls(server: Any, connect: Any) -> None:
    server.error(503)
    clients = connect(
        retries=2, retry_ratio=0.2, max_connections=200, breaker_calls=10_000, connect_timeout=20, timeout=30
    )
    for _ in range(10):
        await together(50, lambda: clients.shop.get("/x"))
    assert 500 * 1.1 < len(server.seen) <= 500 * 1.2 + 10


async def test_with_the_breaker_most_callers_do_not_even_reach_a_target_that_is_down(
    server: Any, connect: Any
) -> None:
    server.error(503)
    clients = connect(max_connections=20, max_waiting=200, breaker_pause=60, connect_timeout=20, timeout=60)
    results, _ = await together(200, lambda: clients.shop.get("/x"))
    assert len(server.seen) <= 60
    refused = [one for one in results if "left alone" in one.reason]
    assert len(refused) > 100
    assert all(one.status == 503 and one.headers["Retry-After"] for one in refused)
    assert clients.count("client_breaker_state", target="default/shop") == 2


async def test_the_breaker_opens_tries_and_closes(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pauses are 20 s, then 30 s, give or take a fifth; the test's clock goes past them."""
    server.error(503)
    clients = connect(retries=0, breaker_calls=5, breaker_pause=20, connect_timeout=20, timeout=60)
    shop, now = clients.shop, 0.0
    monkeypatch.setattr(clients.target.breaker, "_clock", lambda: now)
    for _ in range(5):
        with pytest.raises(UpstreamUnavailable):
            await shop.get("/x")
    seen = len(server.seen)
    began = time.perf_counter()
    with pytest.raises(UpstreamUnavailable, match="not available"):
        await clients.shop.get("/x")
    assert time.perf_counter() - began < 10, "it does not wait for the pause's end"
    now += 15
    with pytest.raises(UpstreamUnavailable, match="not available"):
        await clients.shop.get("/x")
    assert len(server.seen) == seen == 5

    now += 10
    _, _ = await together(20, lambda: clients.shop.get("/x"))
    assert len(server.seen) - seen <= 3, "still down: only probes may come through"
    assert clients.target.breaker.state == "open"

    server.json("back")
    now += 40
    results, _ = await together(20, lambda: clients.shop.get("/x"))
    assert sum(not isinstance(one, UpstreamError) for one in results) == 3
    assert clients.target.breaker.state == "closed"
    results, _ = await together(20, lambda: clients.shop.get("/x"))
    assert not any(isinstance(one, UpstreamError) for one in results)


async def test_one_bad_endpoint_does_not_take_the_others_along(server: Any, connect: Any) -> None:
    """500 is a bug in a handler; the target itself is there."""
    server.error(500)
    clients = connect(retries=0, breaker_calls=5)
    for _ in range(20):
        with pytest.raises(UpstreamError):
            await clients.shop.get("/x")
    assert clients.target.breaker.state == "closed"


async def test_a_target_that_hangs_is_left_alone_after_a_while(server: Any, connect: Any) -> None:
    server.silent()
    # A fair time to answer is the shorter of the two; equal ones would leave it to the clock's last digit.
    clients = connect(timeout=0.4, connect_timeout=0.2, retries=0, breaker_calls=5, max_connections=5)
    await together(10, lambda: clients.shop.get("/x"))
    assert clients.target.breaker.state == "open"


async def test_callers_without_time_do_not_open_the_breaker(server: Any, connect: Any) -> None:
    """What a target cannot do in 20 ms says nothing about it."""
    server.slow(0.1)
    clients = connect(timeout=30, connect_timeout=20, retries=0, breaker_calls=5)
    results, _ = await together(20, lambda: clients.shop.get("/x", timeout=0.02))
    assert all(isinstance(one, UpstreamTimeout) for one in results)
    assert clients.target.breaker.state == "closed"


@pytest.mark.parametrize("how", ["silent", "dripping", "resets", "slow", "error", "nobody"])
async def test_nothing_takes_longer_than_it_may(server: Any, connect: Any, nobody: str, how: str) -> None:
    """The slowest of 200 calls at once, retries and waiting included; a timeout for each would be twice as long."""
    if how == "error":
        server.error(503, headers={"Retry-After": "0"})
    elif how in ("dripping", "slow"):
        getattr(server, how)(0.3)
    elif how != "nobody":
        getattr(server, how)()
    clients = connect(
        url=nobody if how == "nobody" else None,
        timeout=1,
        retries=5,
        retry_ratio=1,
        max_connections=20,
        max_waiting=200,
    )
    async with Lag() as lag:
        _, took = await together(200, lambda: clients.shop.get("/x"))
    assert max(took) - lag.total < 1.5, f"p100 {max(took):.3f} s of 1 s, loop late by {lag.total:.3f} s"
    assert clients.target.bulkhead.busy == clients.target.bulkhead.waiting == 0


async def test_a_full_bulkhead_refuses_at_once_and_the_others_are_served(server: Any, connect: Any) -> None:
    served = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await served.wait()
        return web.json_response("late")

    server.answer = answer
    clients = connect(max_connections=3, max_waiting=4, connect_timeout=20, timeout=60)
    calls = [asyncio.create_task(clients.shop.get("/x")) for _ in range(20)]
    await until(lambda: server.now == 3)
    await until(lambda: sum(call.done() for call in calls) == 13)  # before anybody was served
    served.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    full = [one for one in results if isinstance(one, UpstreamUnavailable)]
    assert len(full) == 13
    assert all("too many calls" in one.reason and one.status == 503 for one in full)
    assert [one.json() for one in results if not isinstance(one, BaseException)] == ["late"] * 7
    assert server.most == 3
    assert clients.count("client_requests_total", target="default/shop", outcome="full") == 13


async def test_a_slow_target_does_not_hold_up_calls_to_another(server: Any, connect: Any) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await server.stopping.wait()
        return web.json_response("quick")

    server.answer = answer
    slow = connect(max_connections=2, max_waiting=50, connect_timeout=20, timeout=60)
    tasks = [asyncio.create_task(slow.shop.get("/slow")) for _ in range(20)]
    await until(lambda: server.now == 2)
    other = connect(connect_timeout=20, timeout=60).shop
    began = time.perf_counter()
    assert (await other.get("/x")).json() == "quick"
    assert time.perf_counter() - began < 10
    assert server.now == 2
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
