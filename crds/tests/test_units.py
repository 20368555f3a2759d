"""Durations, amounts and rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_crds import units


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("250ms", 250), ("30s", 30_000), ("1m30s", 90_000), ("1h", 3_600_000), ("1h1m1s1ms", 3_661_001)],
)
def test_durations_are_milliseconds(text: str, milliseconds: int) -> None:
    assert units.duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "30", "1.5s", "-1s", "1 s", "1d", "s", "1s "])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        units.duration_ms(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 2**20), ("1Mi", 2**20), ("1.5k", 1500), ("2G", 2 * 10**9), ("0.001Ki", 2), (7, 7)],
)
def test_amounts_are_bytes_rounded_up(text: str | int, size: int) -> None:
    assert units.quantity_bytes(text) == size


@pytest.mark.parametrize("text", ["", "100m", "1e3", "Mi", "1 Mi", "-1", "1KB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount"):
        units.quantity_bytes(text)


@pytest.mark.parametrize(
    ("text", "millis"), [("250m", 250), ("2", 2000), ("0.5", 500), ("1.125", 1125), (3, 3000)]
)
def test_cpus_are_thousandths(text: str | int, millis: int) -> None:
    assert units.cpu_millis(text) == millis


@pytest.mark.parametrize("text", ["", "m", "0.5m", "1.0001", "two"])
def test_what_is_no_number_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of CPUs"):
        units.cpu_millis(text)


@given(st.integers(0, 999_999), st.sampled_from(["ms", "s", "m", "h"]), st.integers(0, 999_999))
def test_parts_of_a_duration_add_up(first: int, unit: str, second: int) -> None:
    whole = units.duration_ms(f"{first}{unit}{second}ms")
    assert whole == units.duration_ms(f"{first}{unit}") + second


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1/second", (1, 1)),
        ("100/minute", (100, 60)),
        ("5/hour", (5, 3600)),
        ("999999999/day", (999_999_999, 86_400)),
        ("unlimited", None),
    ],
)
def test_rates_are_a_count_and_seconds(text: str, rate: tuple[int, int] | None) -> None:
    assert units.rate(text) == rate


@pytest.mark.parametrize("text", ["", "0/minute", "100", "1.5/second", "1/week", "100/min", "-1/second"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        units.rate(text)
