"""Limits in memory: bounded whatever comes, and right when the clock is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.guard.limits import gcra
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.memory import MemoryBuckets

MINUTE = 60 * gcra.SECOND


class Clock:
    """A clock that tests move, also back."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def charge(key: str = "a", limit: str = "user", requests: int = 60) -> Charge:
    return Charge(limit, key, requests, MINUTE)


def test_thousands_of_addresses_are_kept_within_the_bound(clock: Clock) -> None:
    buckets = MemoryBuckets(max_keys=500, clock=clock)
    for number in range(10_000):
        assert buckets.take_now([charge(f"{number}", "address")]).passed
    assert len(buckets) == 500


def test_a_flood_of_addresses_does_not_push_out_a_user(clock: Clock) -> None:
    buckets = MemoryBuckets(max_keys=100, clock=clock)
    assert buckets.take_now([charge(requests=1)]).passed
    for number in range(1000):
        buckets.take_now([charge(f"{number}", "address")])
    assert not buckets.take_now([charge(requests=1)]).passed


def test_who_keeps_asking_is_not_the_one_that_is_forgotten(clock: Clock) -> None:
    buckets = MemoryBuckets(max_keys=100, clock=clock)
    passed = 0
    for number in range(1000):
        passed += buckets.take_now([charge("busy", requests=5)]).passed
        buckets.take_now([charge(f"{number}")])
    assert passed == 5


def test_what_is_over_goes_as_new_ones_come(clock: Clock) -> None:
    buckets = MemoryBuckets(max_keys=10_000, clock=clock)
    for number in range(1000):
        buckets.take_now([charge(f"{number}")])
    clock.now += 3600
    for number in range(1000):
        buckets.take_now([charge(f"later {number}")])
    assert len(buckets) <= 1001


def test_a_clock_that_is_set_back_locks_nobody_out_and_gives_nothing_away(clock: Clock) -> None:
    buckets = MemoryBuckets(clock=clock)
    for _ in range(60):
        assert buckets.take_now([charge()]).passed
    clock.now -= 100_000
    assert not buckets.take_now([charge()]).passed
    clock.now += 1.01  # the share of one request, as if nothing had happened
    assert buckets.take_now([charge()]).passed
    assert not buckets.take_now([charge()]).passed


@given(jumps=st.lists(st.floats(-5000, 5000), max_size=40))
def test_whatever_the_clock_does_nobody_waits_longer_than_a_window(jumps: list[float]) -> None:
    clock = Clock()
    buckets = MemoryBuckets(clock=clock)
    for jump in jumps:
        clock.now += jump
        passed = 0
        while buckets.take_now([charge(requests=10)]).passed:
            passed += 1
        assert passed <= 10
    clock.now += 60.001
    assert buckets.take_now([charge(requests=10)]).passed


def test_looking_takes_nothing(clock: Clock) -> None:
    buckets = MemoryBuckets(clock=clock)
    assert buckets.used(charge()) == 0
    assert len(buckets) == 0
    buckets.take_now([charge()])
    assert [buckets.used(charge()) for _ in range(3)] == [pytest.approx(gcra.SECOND)] * 3
