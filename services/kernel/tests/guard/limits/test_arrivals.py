"""A limit for everything that an address sends, before anything is decided about it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import AppError, RateLimited
from moorage.guard.cors import Cors
from moorage.guard.engine import Guard
from moorage.guard.limits import gcra
from moorage.guard.limits.arrivals import Arrivals
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.limiter import Limiter
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.policy import BaseDocument, Rule

Ask = Callable[..., Any]


class Clock:
    """Seconds that stand still until somebody adds to them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passes(arrivals: Arrivals, address: str | None = "192.0.2.1") -> bool:
    try:
        arrivals.take(address)
    except RateLimited:
        return False
    return True


def test_so_many_at_once_and_then_one_whenever_its_share_of_the_minute_has_passed() -> None:
    clock = Clock()
    refused: list[str] = []
    arrivals = Arrivals(3, limited=refused.append, clock=clock)
    assert [passes(arrivals) for _ in range(5)] == [True, True, True, False, False]
    assert refused == ["requests"] * 2
    with pytest.raises(RateLimited) as error:
        arrivals.take("192.0.2.1")
    assert error.value.details == {"limit": "requests", "retry_after": 20}
    clock.now += 20
    assert [passes(arrivals) for _ in range(2)] == [True, False], "who was refused meanwhile was not charged"
    assert passes(arrivals, "192.0.2.2"), "another address"


@given(st.integers(1, 50), st.lists(st.floats(0, 40), max_size=60))
def test_it_counts_as_every_other_limit_does(per_minute: int, pauses: list[float]) -> None:
    clock = Clock()
    arrivals, buckets = Arrivals(per_minute, clock=clock), MemoryBuckets(clock=clock)
    charge = Charge("user", "a", per_minute, 60 * gcra.SECOND)
    for pause in pauses:
        clock.now += pause
        assert passes(arrivals) == buckets.take_now([charge]).passed


def test_addresses_are_what_they_are_for_other_limits() -> None:
    arrivals = Arrivals(1, clock=Clock())
    asked = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "192.0.2.1", "::ffff:192.0.2.1"]
    assert [passes(arrivals, one) for one in asked] == [True, False, True, True, False]
    assert [passes(arrivals, None) for _ in range(5)] == [True] * 5


def test_memory_is_bounded_and_who_rests_is_forgotten() -> None:
    clock = Clock()
    arrivals = Arrivals(1, 100, clock=clock)
    assert passes(arrivals, "192.0.2.1")
    for number in range(150):
        passes(arrivals, f"198.51.100.{number}")
        assert not passes(arrivals, "192.0.2.1"), "who goes on is remembered"
    assert len(arrivals) == 100
    clock.now += 61
    for number in range(60):
        passes(arrivals, f"203.0.113.{number}")
    assert len(arrivals) < 100


@pytest.fixture
def guard() -> Guard:
    cors = Cors(origins=["https://app.example.com"])
    rules = [
        Rule(name="open", path="/open", auth="none", cors=cors, methods=["GET"]),
        Rule(name="mine", path="/mine"),
    ]
    document = BaseDocument(namespace="n", module="m", sequence=1, issued_at="", rules=rules)
    guard = Guard.from_document(document, limiter=Limiter(arrivals=Arrivals(2, clock=Clock())))
    guard.bind_proxy()
    return guard


ORIGIN = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "before"),
    [
        ("GET", "/open", {}, "ok"),
        ("GET", "/nothing", {}, "not_found"),
        ("DELETE", "/open", {}, "method_not_allowed"),
        ("GET", "/a//b", {}, "bad_path"),
        ("GET", "/mine", {}, "no_keys"),
        ("OPTIONS", "/open", ORIGIN, "preflight"),
        ("OPTIONS", "/open", {**ORIGIN, "Origin": "https://evil.example"}, "cors_refused"),
    ],
)
async def test_whatever_it_is_for_it_is_counted_first(
    guard: Guard, facts: Ask, method: str, path: str, headers: dict[str, str], before: str
) -> None:
    async def ask() -> str:
        request = facts(method, path, headers, peer="192.0.2.1")
        try:
            if guard.preflight(request) is not None:
                return "preflight"
            await guard.admit(request)
        except AppError as error:
            if error.code == "rate_limited":
                assert (error.rule, error.headers["Retry-After"]) == (None, "30")  # noqa: PT017 - of many
            return error.code
        return "ok"

    assert [await ask() for _ in range(3)] == [before, before, "rate_limited"]
