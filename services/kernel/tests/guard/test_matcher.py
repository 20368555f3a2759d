"""The matcher: most specific rule wins. `test_matcher_reference` compares it with one that tries every rule."""

from dataclasses import dataclass, field

import pytest

from moorage.errors import BadRequest, MethodNotAllowed, NotFound
from moorage.guard.matcher import Matcher, PatternError, normal_host, segments


@dataclass
class R:
    name: str
    path: str
    methods: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)


BLOG = [
    R("list", "/posts", ["GET"]),
    R("create", "/posts", ["POST"]),
    R("read", "/posts/{id}", ["GET"]),
    R("drafts", "/posts/drafts", ["GET"]),
    R("publish", "/posts/{id}/publish", ["POST"]),
    R("head", "/posts/{id}/comments", ["HEAD"]),
    R("comments", "/posts/{id}/comments", ["GET"]),
    R("anything", "/posts/{post}/any", []),
    R("files", "/files/**", ["GET"]),
    R("file", "/files/{name}", ["DELETE"]),
    R("deep", "/files/a/{b}/**", ["GET"]),
    R("shop", "/**", ["GET"], ["shop.test"]),
    R("tenants", "/posts", ["GET"], ["*.tenants.test"]),
    R("vip", "/posts", ["GET"], ["*.vip.tenants.test"]),
]


@pytest.mark.parametrize(
    ("method", "host", "path", "name", "params"),
    [
        ("GET", "", "/posts", "list", {}),
        ("GET", "any.test:8080", "/posts/", "list", {}),
        ("HEAD", "", "/posts", "list", {}),
        ("POST", "", "/posts", "create", {}),
        ("GET", "", "/posts/7", "read", {"id": "7"}),
        ("GET", "", "/posts/7/", "read", {"id": "7"}),
        ("GET", "", "/posts/drafts", "drafts", {}),
        ("POST", "", "/posts/drafts/publish", "publish", {"id": "drafts"}),
        ("HEAD", "", "/posts/7/comments", "head", {"id": "7"}),
        ("GET", "", "/posts/7/comments", "comments", {"id": "7"}),
        ("PROPFIND", "", "/posts/7/any", "anything", {"post": "7"}),
        ("OPTIONS", "", "/posts/7/any", "anything", {"post": "7"}),
        ("GET", "", "/files", "files", {"**": ""}),
        ("GET", "", "/files/", "files", {"**": ""}),
        ("GET", "", "/files/x", "files", {"**": "x"}),
        ("GET", "", "/files/x/y/", "files", {"**": "x/y/"}),
        ("GET", "", "/files/a", "files", {"**": "a"}),
        ("GET", "", "/files/a/b", "deep", {"b": "b", "**": ""}),
        ("GET", "", "/files/a/b/c/d", "deep", {"b": "b", "**": "c/d"}),
        ("DELETE", "", "/files/a", "file", {"name": "a"}),
        ("GET", "shop.test", "/", "shop", {"**": ""}),
        ("GET", "SHOP.test.:443", "/posts", "shop", {"**": "posts"}),
        ("POST", "shop.test", "/posts", "create", {}),
        ("GET", "a.tenants.test", "/posts", "tenants", {}),
        ("GET", "a.vip.tenants.test", "/posts", "vip", {}),
        ("GET", "tenants.test", "/posts", "list", {}),
        ("GET", "a.tenants.test", "/posts/7", "read", {"id": "7"}),
    ],
)
def test_the_most_specific_rule_wins(
    method: str, host: str, path: str, name: str, params: dict[str, str]
) -> None:
    rule, values = Matcher(BLOG).match(method, host, path)
    assert (rule.name, values) == (name, params)


@pytest.mark.parametrize(
    "path", ["/", "/post", "/posts/7/unknown", "/posts/7/publish/now", "/Posts", "/posts."]
)
def test_an_unknown_path_is_404(path: str) -> None:
    with pytest.raises(NotFound):
        Matcher(BLOG).match("GET", "", path)


@pytest.mark.parametrize(
    ("method", "host", "path", "allowed"),
    [
        ("PUT", "", "/posts", "GET, HEAD, POST"),
        ("OPTIONS", "", "/posts", "GET, HEAD, POST"),
        ("PUT", "", "/posts/drafts", "GET, HEAD"),
        ("GET", "", "/posts/7/publish", "POST"),
        ("PUT", "", "/files/a", "GET, HEAD, DELETE"),
        ("PUT", "shop.test", "/posts", "GET, HEAD, POST"),
        ("POST", "shop.test", "/", "GET, HEAD"),
        ("get", "", "/posts", None),
        ("TRACE", "", "/posts/7/any", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("CONNECT", "", "/nowhere", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    ],
)
def test_a_known_path_with_another_method_is_405_with_allow(
    method: str, host: str, path: str, allowed: str | None
) -> None:
    if allowed is None:
        with pytest.raises(BadRequest):
            Matcher(BLOG).match(method, host, path)
        return
    with pytest.raises(MethodNotAllowed) as caught:
        Matcher(BLOG).match(method, host, path)
    assert caught.value.headers["Allow"] == allowed


def test_a_rule_without_a_host_is_not_reached_where_there_is_none() -> None:
    only = Matcher([R("shop", "/posts", ["GET"], ["shop.test"])])
    assert only.match("GET", "shop.test", "/posts")[0].name == "shop"
    for host in ("", "other.test", "shop.test.evil.test", "evilshop.test"):
        with pytest.raises(NotFound):
            only.match("GET", host, "/posts")


@pytest.mark.parametrize(
    "path",
    [
        "/a//b",
        "//",
        "/a/**/b",
        "/{a}/{a}",
        "/{1}",
        "/{a}b",
        "/a*",
        "/*",
        "/%20",
        "/..",
        "/a/.",
        "/a;b",
        "/{a",
    ],
)
def test_a_path_that_means_nothing_is_not_compiled(path: str) -> None:
    with pytest.raises(PatternError, match="path"):
        segments(path)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (R("a", "/x", ["GET"]), R("b", "/x", ["GET", "POST"])),
        (R("a", "/x/{p}", ["GET"]), R("b", "/x/{q}", ["GET"])),
        (R("a", "/x/**"), R("b", "/x/**")),
        (R("a", "/x", ["GET"]), R("b", "/x/", ["GET"])),
        (R("a", "/x", ["GET"], ["h.test", "i.test"]), R("b", "/x", ["GET"], ["i.test"])),
    ],
)
def test_two_rules_for_the_same_requests_are_not_compiled(one: R, two: R) -> None:
    with pytest.raises(PatternError, match="rules a and b take the same requests"):
        Matcher([one, two])


def test_hosts_are_compared_without_case_port_and_final_dot() -> None:
    assert normal_host("Blog.Test:8080") == "blog.test"
    assert normal_host("blog.test.") == "blog.test"
    assert normal_host("[::1]:8080") == "[::1]"


def test_a_request_visits_each_node_at_most_once() -> None:
    """Rules made to branch at every segment cost no more than their number: no exponential search."""
    depth = 12
    many = [R(f"r{at}", "/a" * at + "/{x}" + "/a" * (depth - at) + "/end", ["POST"]) for at in range(depth)]
    matcher = Matcher(many)
    with pytest.raises(NotFound):
        matcher.match("GET", "", "/a" * (depth + 1) + "/no")
