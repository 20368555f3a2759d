"""A request's deadline holds, and a caller can shorten it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import uvloop

from moorage import Module
from moorage.errors import Timeout
from moorage.http.deadline import Deadline, Deadlines
from moorage.scope import current
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
GET = {"methods": ["GET"], "path": "/", "auth": "none"}


@pytest.mark.parametrize("times", [1, 2])
async def test_swallowing_the_cancellation_does_not_help(serve: Serve, times: int) -> None:
    module = Module("shop")
    ended = []

    @module.handle("slow")
    async def slow() -> str:
        for _ in range(times):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.append(1)
        return "late"

    shop = await serve(module, [{"name": "slow", "timeout": "100ms", **GET}])
    began = time.monotonic()
    answer = await shop.anonymous().get("/")
    assert (answer.status, answer.code) == (504, "timeout")
    assert len(ended) == times
    assert time.monotonic() - began < 5


async def test_the_caller_can_shorten_it_and_not_more(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("left")
    async def left() -> float:
        scope = current.get()
        assert scope is not None
        assert scope.deadline is not None
        return scope.deadline - asyncio.get_running_loop().time()

    shop = await serve(module, [{"name": "left", "timeout": "10s", **GET}])
    for given, least, most in (
        ("500", 0.2, 0.5),
        ("60000", 8, 10),
        ("0", 8, 10),
        ("-5", 8, 10),
        ("1e3", 8, 10),
        ("9" * 50, 8, 10),
    ):
        answer = await shop.anonymous().get("/", headers={"X-Moorage-Timeout-Ms": given})
        assert least < answer.body <= most, given


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop().time() + 30, Deadlines(), precise=True):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_other_errors_after_the_end_are_the_timeout() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop().time() + 0.01, Deadlines(), precise=True):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                raise RuntimeError("the query was cancelled") from None

    with pytest.raises(Timeout):
        await work()
    await asyncio.sleep(0)  # nothing is left to be cancelled


async def test_a_lifted_one_limits_nothing() -> None:
    with Deadline(asyncio.get_running_loop().time() + 0.01, Deadlines(), precise=True) as deadline:
        deadline.lift()
        await asyncio.sleep(0.05)
    assert not deadline.expired


async def test_those_that_share_timers_end_each_in_its_time() -> None:
    loop, others, ended = asyncio.get_running_loop(), Deadlines(), []
    began = loop.time()

    async def work(seconds: float, *, does: float) -> None:
        try:
            with Deadline(began + seconds, others):
                await asyncio.sleep(does)
        except Timeout:
            ended.append((seconds, loop.time() - began))

    await asyncio.gather(work(0.3, does=30), work(0.1, does=30), work(0.1, does=30), work(0.1, does=0))
    assert [seconds for seconds, _ in ended] == [0.1, 0.1, 0.3]
    assert all(took >= seconds for seconds, took in ended)


async def test_one_that_shares_timers_goes_on_cancelling() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop().time() + 0.02, Deadlines()) as deadline:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            assert deadline.expired
            await asyncio.sleep(30)

    with pytest.raises(Timeout):
        await work()


async def test_timers_for_which_nobody_waits_are_gone() -> None:
    others = Deadlines()
    for seconds in (30, 60, 3600):
        with Deadline(asyncio.get_running_loop().time() + seconds, others):
            assert len(others) == 1
    assert len(others) == 0


async def test_one_timer_serves_all_whoever_ends_before() -> None:
    loop, others, ended = asyncio.get_running_loop(), Deadlines(), []
    began, timers = loop.time(), set()

    async def work(seconds: float, does: float) -> None:
        try:
            with Deadline(began + seconds, others):
                timers.add(others._timer)
                await asyncio.sleep(does)
        except Timeout:
            ended.append((seconds, loop.time() - began))

    await work(0.2, does=0)  # for which the timer is set, and comes in vain
    await asyncio.gather(work(0.3, does=30), *(work(0.4, does=0) for _ in range(100)), work(0.5, does=30))
    assert len(timers) == 1
    assert [seconds for seconds, _ in ended] == [0.3, 0.5]
    assert all(took >= seconds for seconds, took in ended)
    await work(0.6, does=30)
    assert len(ended) == 3, "it is set again"
    assert len(others) == 0


def test_under_uvloop_the_timer_comes_once_for_each_that_ends() -> None:
    async def work() -> tuple[int, int]:
        others, fired = Deadlines(), []
        expire = others._expire

        def counted() -> None:
            fired.append(1)
            expire()

        others._expire = counted  # type: ignore[method-assign]
        ended = 0
        for _ in range(20):
            try:
                with Deadline(others.loop.time() + 0.02, others):
                    await asyncio.sleep(30)
            except Timeout:
                ended += 1
        return ended, len(fired)

    assert uvloop.run(work()) == (20, 20)


async def test_one_that_cannot_be_cancelled_holds_up_no_other() -> None:
    class Stubborn(asyncio.Future[None]):
        def cancel(self, msg: object = None) -> bool:
            raise RuntimeError("no")

    loop, others, stubborn = asyncio.get_running_loop(), Deadlines(), Stubborn()
    began = loop.time()

    async def work(seconds: float, what: Awaitable[object]) -> None:
        with Deadline(began + seconds, others):
            await what

    first = asyncio.create_task(work(0.1, stubborn))
    for seconds in (0.1, 0.2):
        with pytest.raises(Timeout):
            await work(seconds, asyncio.sleep(30))
    stubborn.set_result(None)
    with pytest.raises(Timeout):
        await first


async def test_a_lifted_one_that_shared_the_timer_limits_nothing() -> None:
    others = Deadlines()
    with Deadline(asyncio.get_running_loop().time() + 0.01, others) as deadline:
        deadline.lift()
        await asyncio.sleep(0.05)
    assert not deadline.expired
    assert len(others) == 0
