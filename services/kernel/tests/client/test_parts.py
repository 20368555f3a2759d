"""The parts of the client, each alone."""

import json
import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.client.answers import retry_after
from moorage.client.breaker import Breaker, Open
from moorage.client.bulkhead import RetryBudget
from moorage.client.paths import fill, query_string
from moorage.client.targets import Dns, Registry, split
from moorage.config import ConfigError
from moorage.errors import BadRequest, NotFound
from moorage.guard.paths import parse_target


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, **given: float) -> Breaker:
    return Breaker(**{"ratio": 0.5, "calls": 10, "window": 10.0, "pause": 5.0, **given}, clock=clock)  # type: ignore[arg-type]


def end(one: Breaker, *, good: int = 0, bad: int = 0) -> None:
    for _ in range(good):
        one.admit().succeeded()
    for _ in range(bad):
        one.admit().failed()


# -- breaker


def test_it_opens_at_the_ratio_and_not_below_it() -> None:
    one = breaker(Clock())
    end(one, good=10, bad=9)
    assert one.state == "closed"
    end(one, bad=1)
    assert one.state == "open"
    with pytest.raises(Open) as caught:
        one.admit()
    assert 4 <= caught.value.retry_after <= 6


def test_a_few_calls_mean_nothing() -> None:
    one = breaker(Clock())
    end(one, bad=9)
    assert one.state == "closed"


def test_what_is_longer_ago_than_the_window_is_forgotten() -> None:
    clock = Clock()
    one = breaker(clock)
    end(one, bad=9)
    clock.now += 11
    end(one, bad=9)
    assert one.state == "closed"
    assert len(one._slots) == 1


def test_a_target_that_fails_every_second_call_opens_it() -> None:
    clock = Clock()
    one = breaker(clock)
    for _ in range(10):
        clock.now += 0.3
        if one.state == "closed":
            end(one, good=1, bad=1)
    assert one.state == "open"


def test_three_good_trials_close_it_and_a_bad_one_opens_it_for_longer() -> None:
    clock = Clock()
    one = breaker(clock)
    end(one, bad=10)
    clock.now += 6.1
    one.admit().failed()
    clock.now += 6.1
    with pytest.raises(Open) as caught:
        one.admit()
    assert caught.value.retry_after > 1
    clock.now += 6.1
    permits = [one.admit() for _ in range(3)]
    with pytest.raises(Open):
        one.admit()
    for permit in permits:
        permit.succeeded()
    assert one.state == "closed"
    end(one, bad=10)
    clock.now += 6.1
    one.admit().succeeded()
    assert one.state == "half_open", "after a good time the first pause is the short one again"


def test_a_trial_that_was_given_up_lets_another_one_through() -> None:
    clock = Clock()
    one = breaker(clock)
    end(one, bad=10)
    clock.now += 6.1
    for _ in range(10):
        permit = one.admit()
        permit.dropped()
        permit.failed()
    assert one.state == "half_open"


def test_calls_that_began_before_it_opened_do_not_count_as_trials() -> None:
    clock = Clock()
    one = breaker(clock)
    early = [one.admit() for _ in range(5)]
    end(one, bad=10)
    clock.now += 6.1
    late = one.admit()
    for permit in early:
        permit.failed()
    assert one.state == "half_open"
    late.failed()
    assert one.state == "open"


@given(st.lists(st.sampled_from(["good", "bad", "drop", "wait"]), max_size=200))
def test_whatever_happens_it_never_stays_open_for_ever(steps: list[str]) -> None:
    clock = Clock()
    one = breaker(clock, calls=3)
    for step in steps:
        clock.now += 1.0 if step == "wait" else 0.01
        try:
            permit = one.admit()
        except Open:
            continue
        {"good": permit.succeeded, "bad": permit.failed, "drop": permit.dropped, "wait": permit.succeeded}[
            step
        ]()
    clock.now += 40
    for _ in range(3):
        one.admit().succeeded()
    assert one.state == "closed"


# -- budget


def test_a_budget_is_a_part_of_the_calls_and_a_reserve() -> None:
    budget = RetryBudget(0.1)
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert 100 <= spent <= 110
    assert not RetryBudget(0).spend()


# -- addresses


@given(st.text())
def test_a_value_stays_one_segment(value: str) -> None:
    try:
        path = fill("/users/{id}/mails", {"id": value})
    except (NotFound, UnicodeEncodeError):
        return
    parts = path.split("/")
    assert (len(parts), parts[1], parts[3]) == (4, "users", "mails")
    assert unquote(parts[2], errors="surrogatepass") == value
    assert urlsplit("http://h" + path).path == path


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_guard_reads_the_segment_that_was_meant_or_refuses_it(value: str) -> None:
    try:
        target = parse_target(fill("/users/{id}", {"id": value}))
    except (NotFound, BadRequest):
        return
    assert target.path == f"/users/{value}"


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_a_query_arrives_as_it_was(query: dict[str, str]) -> None:
    text = query_string(query)
    assert dict(parse_qsl(text[1:], keep_blank_values=True)) == query


# -- targets


def test_core_modules_are_in_the_core_namespace_unless_another_is_named() -> None:
    def where(name: str, namespace: str | None = None) -> str:
        return "/".join(split(name, namespace, own="shop", core="moorage-system"))

    assert where("stock") == "shop/stock"
    assert where("identity") == "moorage-system/identity"
    assert where("identity", "shop") == "shop/identity"
    assert where("other/stock") == "other/stock"
    assert Dns().url("shop", "stock") == "http://stock.shop.svc"


def test_a_registry_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "registry.json"
    registry = Registry(str(file), clock=clock)
    assert registry.url("a", "x") is None
    for port in (1, 2):
        (tmp_path / "new").write_text(
            json.dumps({"a/x": f"http://127.0.0.1:{port}/", "y": "http://127.0.0.1:9"})
        )
        os.replace(tmp_path / "new", file)  # noqa: PTH105 - as local mode does it
        clock.now += 2
        assert registry.url("a", "x") == f"http://127.0.0.1:{port}"
    assert registry.url("b", "x") is None
    assert registry.url("b", "y") == "http://127.0.0.1:9"
    file.write_text("{")
    registry.failed()
    assert registry.url("a", "x") == "http://127.0.0.1:2", "what was known is better than nothing"


@pytest.mark.parametrize("text", ["{", '{"x": 1}', '{"x": "ftp://h"}', '{"x": "http://"}', '{"x": "h:80"}'])
def test_a_registry_that_is_none_ends_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"client\.registry"):
        Registry(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3), ("0", 0), ("", None), ("soon", None), ("-1", None), ("1e9", None), ("99999999", 3600)],
)
def test_retry_after_is_read_strictly_and_bounded(text: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": text}) == seconds
