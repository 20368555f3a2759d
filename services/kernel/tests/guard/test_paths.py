"""Request targets: what two programs could read differently never gets as far as the matcher."""

import string
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moorage.errors import BadRequest
from moorage.guard.paths import MAX_TARGET, parse_target

CONFUSING = [
    "", "*", "posts", "?a=1", "http://blog.test/posts", "//", "//posts", "/posts//1", "/posts//",
    "/.", "/..", "/./posts", "/posts/.", "/posts/..", "/posts/../admin", "/...", "/posts/.../1",
    "/%2e", "/%2E%2e/admin", "/posts/.%2e/admin", "/posts/%2e%2e%2fadmin",
    "/posts%2fadmin", "/posts%2Fadmin", "/posts%5cadmin", "/posts%5Cadmin", "/posts\\admin", "/..\\admin",
    "/posts;a=b", "/..;/admin", "/posts;", "/posts%00", "/posts%00.png", "/posts\x00", "/posts%0a", "/posts\n",
    "/posts%7f", "/posts\t", "/a b", "/posts%", "/posts%2", "/posts%zz", "/posts%u002f",
    "/%c0%ae%c0%ae/admin", "/%c0%af", "/%ff", "/%e2%82", "/posts%c2%85",
    "/posts%252fadmin", "/posts%25%32%66admin", "/%252e%252e", "/pösts", "/posts#admin", '/"', "/<a>", "/{id}",
    "/`", "/posts%ed%a0%80",
]  # fmt: skip


@pytest.mark.parametrize("target", CONFUSING)
def test_confusing_paths_are_refused(target: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_target(target)
    assert caught.value.status == 400
    assert caught.value.code == "bad_path"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/posts", "/posts", ""),
        ("/posts/", "/posts/", ""),
        ("/posts?", "/posts", ""),
        ("/posts?a=/../%00;&b=?", "/posts", "a=/../%00;&b=?"),
        ("/%61dmin", "/admin", ""),
        ("/a%20b/%C3%A9", "/a b/é", ""),
        ("/100%25", "/100%", ""),
        ("/a%3Bb%3F%23", "/a;b?#", ""),
        ("/.well-known/jwks.json", "/.well-known/jwks.json", ""),
        ("/a.b/..c/d..", "/a.b/..c/d..", ""),
        ("/$&'()*+,=:@-._~!|^[]", "/$&'()*+,=:@-._~!|^[]", ""),
    ],
)
def test_honest_paths_are_decoded_once(target: str, path: str, query: str) -> None:
    parsed = parse_target(target)
    assert (parsed.path, parsed.query) == (path, query)
    assert parsed.raw_path == target.partition("?")[0]


def test_a_target_that_is_too_long_is_414() -> None:
    parse_target("/" + "a" * (MAX_TARGET - 1))
    with pytest.raises(BadRequest) as caught:
        parse_target("/?" + "a" * MAX_TARGET)
    assert caught.value.status == 414


@given(st.text(alphabet=string.printable + "%%%%....////;\\é\x00", max_size=40))
def test_whatever_passes_reads_the_same_to_everyone(text: str) -> None:
    """A path that passes has no empty or dot segments, hides no separator, and a second decoding changes nothing."""
    try:
        target = parse_target("/" + text)
    except BadRequest:
        return
    path = target.path
    assert path.startswith("/")
    assert unquote(target.raw_path) == path
    assert unquote(path) == path
    assert path.count("/") == target.raw_path.count("/")
    assert not {"", ".", ".."} & set(path.split("/")[1:-1])
    assert path.rpartition("/")[2] not in (".", "..")
    assert path.isprintable()
    assert "\\" not in path
    assert ";" not in target.raw_path


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4))
@example(["a;b", "a;", "..;x", ";"])
def test_honest_segments_come_through(parts: list[str]) -> None:
    """Any printable text that hides nothing can be a segment, if it is percent-encoded."""
    honest = [
        part
        for part in parts
        # What stands before a `;` is what is left of it for a program that cuts parameters off.
        if part.isprintable() and part.partition(";")[0].strip(".") and not set(part) & set("/\\%")
    ] or ["posts"]
    target = "/" + "/".join(quote(part, safe="") for part in honest)
    assert parse_target(target).path.split("/")[1:] == honest
