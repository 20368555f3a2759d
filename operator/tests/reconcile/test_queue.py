"""The queue: one worker per key, events coalesce, failures come back later."""

import asyncio
from typing import Any

import pytest

from moorage_operator.reconcile.queue import MAX_DELAY, KeyedQueue

A, B = ("n", "a"), ("n", "b")


async def test_events_of_one_key_coalesce() -> None:
    queue = KeyedQueue()
    for _ in range(5):
        queue.add(A)
    queue.add(B)
    assert [await queue.next(), await queue.next()] == [A, B]
    assert len(queue) == 0


async def test_a_key_is_never_given_to_two_workers_and_gets_another_turn_after() -> None:
    queue = KeyedQueue()
    queue.add(A)
    assert await queue.next() == A
    queue.add(A)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.next(), 0.05)
    assert not queue.idle
    queue.done(A)
    assert await queue.next() == A
    queue.done(A)
    assert queue.idle


async def test_the_earliest_of_two_delayed_turns_counts_and_an_event_comes_before_both() -> None:
    queue = KeyedQueue()
    queue.add_later(A, 60)
    queue.add_later(A, 0.02)
    queue.add_later(A, 60)
    assert await asyncio.wait_for(queue.next(), 1) == A
    queue.done(A)
    queue.add_later(A, 0.05)
    queue.add(A)
    assert await queue.next() == A
    queue.done(A)
    await asyncio.sleep(0.1)
    assert queue.idle  # the delayed turn was given up for the earlier one


async def test_delays_grow_with_failures_and_end_with_success() -> None:
    queue = KeyedQueue(jitter=lambda: 0.5)
    delays = [queue.failed(A) for _ in range(12)]
    assert delays[:4] == [0.5, 1, 2, 4]
    assert max(delays) == MAX_DELAY
    assert queue.failed(B, at_least=7) == 7
    queue.succeeded(A)
    assert queue.failed(A) == 0.5
    queue.close()


async def test_a_closed_queue_gives_out_nothing() -> None:
    queue = KeyedQueue()
    waiting = asyncio.create_task(queue.next())
    await asyncio.sleep(0)
    queue.add_later(A, 0)
    queue.close()
    found: Any = await asyncio.wait_for(waiting, 1)
    assert found is None
    queue.add(A)
    assert await queue.next() is None
