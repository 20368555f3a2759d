"""The arithmetic of limits, held to a naive reference in exact numbers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.guard.limits import gcra
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.memory import MemoryBuckets


class Naive:
    """A bucket that leaks evenly: what is in it, in requests, and when that was looked at."""

    def __init__(self, requests: int, seconds: int) -> None:
        self.most, self.rate = Fraction(requests), Fraction(requests, seconds)
        self.level, self.at = Fraction(0), Fraction(0)

    def takes(self, at: Fraction, cost: int) -> tuple[bool, Fraction]:
        """Whether a request at this time passes, and how far from the edge that was, in seconds."""
        self.level = max(self.level - (at - self.at) * self.rate, Fraction(0))
        self.at = at
        room = self.most - self.level - cost
        if room >= 0:
            self.level += cost
        return room >= 0, abs(room) / self.rate


@given(
    requests=st.integers(1, 200),
    seconds=st.sampled_from([1, 60, 3600]),
    steps=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 5)), max_size=60),
)
def test_what_passes_is_what_a_leaking_bucket_would_take(requests, seconds, steps) -> None:
    now = [0.0]
    buckets = MemoryBuckets(clock=lambda: now[0])
    naive, micros = Naive(requests, seconds), 0
    for pause, cost in steps:
        micros += pause
        now[0] = micros / 1_000_000
        cost = min(cost, requests)
        wanted, margin = naive.takes(Fraction(micros, 1_000_000), cost)
        if 0 < margin < Fraction(1, 100_000):
            return  # too near for floats: either will do, and from here on they may differ
        charge = Charge("user", "a", requests, seconds * gcra.SECOND, cost)
        assert buckets.take_now([charge]).passed is wanted


@given(requests=st.integers(1, 10_000), seconds=st.sampled_from([1, 60, 3600, 86_400]))
def test_at_once_exactly_the_limit_passes(requests, seconds) -> None:
    charge = Charge("user", "a", requests, seconds * gcra.SECOND)
    taken = 0.0
    passed = 0
    while gcra.fits(taken, charge):
        taken += charge.step
        passed += 1
    assert passed == requests
    assert gcra.remaining(taken, charge) == 0


@pytest.mark.parametrize(
    ("taken", "left"), [(0.0, 10), (0.5, 9), (1.0, 9), (1.5, 8), (9.0, 1), (9.5, 0), (10.0, 0)]
)
def test_remaining_are_those_that_would_pass_now(taken, left) -> None:
    assert gcra.remaining(taken * gcra.SECOND, Charge("user", "a", 10, 10 * gcra.SECOND)) == left


def test_the_wait_is_until_the_next_would_pass() -> None:
    charge = Charge("user", "a", 10, 10 * gcra.SECOND)
    assert gcra.wait(10 * gcra.SECOND, charge) == gcra.SECOND
    assert gcra.wait(3 * gcra.SECOND, charge) == 0
    assert gcra.wait(10 * gcra.SECOND, charge._replace(cost=10)) == 10 * gcra.SECOND


@given(requests=st.integers(1, 1000), parts=st.integers(1, 100))
def test_parts_of_a_limit_make_no_more_than_the_whole_and_none_is_nothing(requests, parts) -> None:
    whole = Charge("user", "a", requests, 60 * gcra.SECOND, cost=min(requests, 10))
    part = whole.divided(parts)
    assert 1 <= part.cost <= part.requests
    assert parts * part.requests / part.window <= requests / whole.window * (1 + 1e-9)
    assert part.requests >= requests // parts


def test_the_longest_and_the_shortest_limits_can_be_told_apart() -> None:
    """999,999,999 a second are more than anybody can ask for; it must still be a number that passes."""
    charge = Charge("user", "a", 999_999_999, gcra.SECOND)
    buckets = MemoryBuckets(clock=lambda: 1_000_000.0)
    assert all(buckets.take_now([charge]).passed for _ in range(1000))
