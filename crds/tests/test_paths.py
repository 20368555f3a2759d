"""Paths of rules, and what an edge knows of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_crds import paths

SEGMENT = st.sampled_from(["a", "b", "{id}", "posts"])
PATH = st.lists(SEGMENT, max_size=5).map(lambda parts: "/" + "/".join(parts))


@pytest.mark.parametrize(
    ("prefix", "path", "joined"),
    [
        ("/", "/", "/"),
        ("/", "/a", "/a"),
        ("/api", "/", "/api"),
        ("/api", "/a/{b}", "/api/a/{b}"),
        ("/api", "/**", "/api/**"),
    ],
)
def test_a_path_is_joined_to_its_prefix(prefix: str, path: str, joined: str) -> None:
    assert paths.join(prefix, path) == joined


@pytest.mark.parametrize(
    ("path", "prefix", "exact"),
    [
        ("/", "/", True),
        ("/api/posts", "/api/posts", True),
        ("/api/posts/{id}/publish", "/api/posts", False),
        ("/{id}", "/", False),
        ("/**", "/", False),
        ("/files/**", "/files", False),
    ],
)
def test_the_edge_gets_the_literal_segments(path: str, prefix: str, exact: bool) -> None:
    assert paths.literal_prefix(path) == (prefix, exact)


@given(PATH)
def test_a_literal_prefix_covers_every_path_of_the_rule(path: str) -> None:
    prefix, exact = paths.literal_prefix(path)
    actual = path.replace("{id}", "7")
    assert paths.covers(prefix, actual)
    assert exact == ("{" not in path)
    assert not exact or prefix == actual


def test_a_prefix_covers_whole_segments_only() -> None:
    assert paths.covers("/api", "/api/x")
    assert paths.covers("/api", "/api")
    assert not paths.covers("/api", "/apix")
    assert paths.covers("/", "/anything")


def test_shapes_forget_the_names_of_captures() -> None:
    assert paths.shape("/a/{x}/b") == paths.shape("/a/{y}/b") == ("a", "{}", "b")
    assert paths.captures("/a/{x}/{y}/{x}") == ("x", "y", "x")
