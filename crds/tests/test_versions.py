"""Semantic versions and ranges."""

import itertools
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_crds import versions

ORDERED = [
    "1.0.0-1",
    "1.0.0-2",
    "1.0.0-10",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1-0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0",
]


@pytest.mark.parametrize(("lower", "higher"), list(itertools.combinations(ORDERED, 2)))
def test_versions_come_in_semvers_order(lower: str, higher: str) -> None:
    assert versions.parse(lower) < versions.parse(higher)
    assert not versions.parse(higher) < versions.parse(lower)


def test_build_metadata_plays_no_part() -> None:
    assert versions.parse("1.0.0+a") == versions.parse("1.0.0+b-c")


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0-a..b", "1.0.0\n"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"semantic version|leading zero"):
        versions.parse(text)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("", ["0.0.1", "9.9.9"], ["1.0.0-rc.1"]),
        (">=1.0,<2", ["1.0.0", "1.99.0"], ["0.9.9", "2.0.0", "2.0.0-rc.1", "1.5.0-rc.1"]),
        (">= 1.0.0", ["1.0.0", "3.0.0"], ["0.9.0"]),
        ("1.4", ["1.4.0", "1.4.9"], ["1.3.9", "1.5.0"]),
        ("==1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        ("=1.4.2", ["1.4.2"], ["1.4.3"]),
        (">1.4", ["1.4.1"], ["1.4.0"]),
        ("<=1.4", ["1.4.0"], ["1.4.1"]),
        (">=1, !=1.4", ["1.3.0", "1.5.0"], ["1.4.7"]),
        (">=1.0.0-rc.1", ["1.0.0-rc.2", "1.0.0"], ["1.0.0-beta", "1.1.0-rc.1"]),
    ],
)
def test_a_range_lets_in_what_its_bounds_say(text: str, inside: list[str], outside: list[str]) -> None:
    found = versions.parse_range(text)
    assert [version for version in [*inside, *outside] if found.allows(versions.parse(version))] == inside


@pytest.mark.parametrize("text", ["^1.0", "~1", "1.0 2.0", ">=", ">=1,", "1.x", ",", "1.0-rc"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no range"):
        versions.parse_range(text)


@given(st.tuples(*[st.integers(0, 50)] * 3), st.tuples(*[st.integers(0, 50)] * 3))
def test_every_release_is_on_one_side_of_a_bound(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    version, bound = versions.parse(".".join(map(str, one))), ".".join(map(str, other))
    below, above = versions.parse_range(f"<{bound}"), versions.parse_range(f">={bound}")
    assert below.allows(version) != above.allows(version)
    assert above.allows(version) == (one >= other)


def test_the_platforms_version_is_that_of_every_distribution() -> None:
    root = Path(__file__).parents[2]
    for folder in ("crds", "operator", "services/kernel", "services/gateway"):
        project = tomllib.loads((root / folder / "pyproject.toml").read_text())["project"]
        assert project["version"] == versions.PLATFORM_VERSION, folder
    chart = (root / "charts" / "moorage" / "Chart.yaml").read_text()
    assert (
        f'appVersion: "{versions.PLATFORM_VERSION}"' in chart
        or f"appVersion: {versions.PLATFORM_VERSION}" in chart
    )
