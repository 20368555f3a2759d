"""One computes for all of a process, also where no store says what is outdated."""

import asyncio

import pytest

from moorage.cache.flights import Flights, Result


@pytest.mark.parametrize("how", ["key", "tag"])
async def test_whoever_comes_after_a_change_joins_nobody_who_began_before(how: str) -> None:
    flights = Flights()
    began, go_on = asyncio.Event(), asyncio.Event()

    async def old() -> Result:
        began.set()
        await go_on.wait()
        return Result(b"old")

    async def new() -> Result:
        return Result(b"new")

    first = asyncio.create_task(flights.once(b"k", old, [b"t"]))
    await began.wait()
    flights.leave([b"other"], [b"another"])
    joined = asyncio.create_task(flights.once(b"k", new, [b"t"]))
    await asyncio.sleep(0.01)
    assert not joined.done(), "nothing of it has changed"
    if how == "key":
        flights.leave([b"k"])
    else:
        flights.leave(tags=[b"t"])
    assert await flights.once(b"k", new, [b"t"]) == b"new"
    go_on.set()
    assert (await first, await joined) == (b"old", b"old")
    assert b"k" not in flights
