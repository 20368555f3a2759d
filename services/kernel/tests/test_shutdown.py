"""The end of a process comes in time, whatever is stuck; and in order."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moorage.assembly import Assembly
from moorage.config import Settings
from moorage.lifecycle import Backoff, Countdown, Held, wait_for, within
from moorage.module import Module

Lines = Callable[[], list[dict[str, Any]]]


def assembled(seconds: float) -> Assembly:
    settings = Settings.model_validate({"server": {"shutdown_timeout": seconds}, "cache": {"enabled": False}})
    return Assembly.of(Module("shop"), settings)


async def _deaf(seconds: float = 60) -> None:
    """Does not listen to being cancelled."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(end - time.monotonic())
        except asyncio.CancelledError:
            if _deaf_ends.is_set():
                return


_deaf_ends = asyncio.Event()


@pytest.fixture
async def deaf_at_the_end() -> AsyncIterator[None]:
    """Lets deaf tasks end with the test."""
    _deaf_ends.clear()
    yield
    _deaf_ends.set()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=1) if others else None


def part(events: list[str], name: str, closing: Callable[[], Any] | None = None) -> Any:
    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        events.append(f"{name} opens")
        yield
        if closing is not None:
            await closing()
        events.append(f"{name} closes")

    return opened


async def test_parts_open_in_order_and_close_in_reverse() -> None:
    assembly, events = assembled(5), list[str]()
    for name in ("a", "b", "c"):
        assembly.resource(name, part(events, name))
    async with assembly.opened():
        events.append("serving")
    assert events == ["a opens", "b opens", "c opens", "serving", "c closes", "b closes", "a closes"]


async def test_what_drains_is_told_together_while_everything_is_open() -> None:
    assembly, events = assembled(30), list[str]()
    assembly.resource("database", part(events, "database"))
    both = asyncio.Barrier(2)

    async def consumer() -> None:
        await both.wait()  # for ever, if the other one is told only after this one
        events.append("consumer finished")

    assembly.drain("consumer", consumer)
    assembly.drain("other", consumer)
    async with assembly.opened():
        assembly.begin_drain()
        assert assembly.health.draining
    assert events == ["database opens", "consumer finished", "consumer finished", "database closes"]


@pytest.mark.parametrize("stuck", ["drain", "part", "deaf part", "deaf drain", "raising"])
async def test_one_stuck_part_keeps_neither_the_others_nor_the_deadline(
    stuck: str, log_lines: Lines, deaf_at_the_end: None
) -> None:
    assembly, events = assembled(1.0), list[str]()

    async def sleep() -> None:
        await asyncio.sleep(60)

    async def fail() -> None:
        raise RuntimeError("it will not close")

    closing = {"part": sleep, "deaf part": _deaf, "raising": fail}.get(stuck)
    assembly.resource("first", part(events, "first"))
    assembly.resource("stuck", part(events, "stuck", closing))
    assembly.resource("last", part(events, "last"))
    if "drain" in stuck:
        assembly.drain("consumer", _deaf if "deaf" in stuck else sleep)
    async with assembly.opened():
        began = time.monotonic()
        assembly.begin_drain()
    took = time.monotonic() - began
    assert took < 10, "it has 1 s, and is stuck for 60"
    assert "first closes" in events
    assert "last closes" in events
    [error] = [line for line in log_lines() if line["level"] == "error"]
    assert (error.get("part") or error["step"]) == ("drain consumer" if "drain" in stuck else "stuck")


async def test_a_part_is_opened_and_closed_by_the_same_task() -> None:
    tasks: list[object] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        tasks.append(asyncio.current_task())

    held = Held("x", opened)
    await held.open()
    await asyncio.create_task(held.close(1))
    assert tasks[0] is tasks[1]


async def test_a_start_that_is_given_up_does_not_leave_the_opening_behind() -> None:
    ended = asyncio.Event()

    @asynccontextmanager
    async def waiting() -> AsyncIterator[None]:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        yield

    opening = asyncio.create_task(Held("database", waiting).open())
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert ended.is_set()


def test_a_countdown_runs_from_its_beginning_and_never_below_zero() -> None:
    countdown = Countdown(0.05)
    assert countdown.left == 0.05
    countdown.begin()
    time.sleep(0.03)
    countdown.begin()
    assert countdown.left < 0.03
    time.sleep(0.03)
    assert countdown.left == 0


async def test_within_tells_whether_it_ended_and_logs_what_failed(log_lines: Lines) -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    assert await within(1, asyncio.sleep(0), "quick")
    assert await within(1, fail(), "failing")
    assert not await within(0.05, asyncio.sleep(5), "slow")
    assert [line["step"] for line in log_lines()] == ["failing", "slow"]


async def test_waiting_pauses_longer_each_time_and_says_once_for_what(log_lines: Lines) -> None:
    told: list[tuple[str, str]] = []
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise ConnectionRefusedError("nobody listens")

    await wait_for("redis", attempt, lambda *what: told.append(what), backoff=Backoff(0.01, 0.02))
    assert told == [("redis", "nobody listens")] * 3 + [("redis", "")]
    assert [line["message"] for line in log_lines()] == ["waiting for a dependency", "dependency is there"]
    with pytest.raises(ValueError, match="not worth it"):
        await wait_for("redis", _wrong, lambda *what: None)


async def _wrong() -> None:
    raise ValueError("not worth it")


def test_pauses_grow_to_their_bound_and_differ() -> None:
    backoff = Backoff(1.0, 4.0)
    pauses = [backoff.next() for _ in range(8)]
    assert all(pause <= 4.0 for pause in pauses)
    assert pauses[0] <= 1.0 < pauses[4]
    assert len(set(pauses)) == 8
