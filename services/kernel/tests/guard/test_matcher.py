"""The matcher: most specific rule wins; compared with a reference that tries every rule in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


# ---- against a reference

LITERALS = ["a", "b", "c"]
METHODS = ["GET", "HEAD", "POST", "OPTIONS"]
HOSTS = ["x.test", "y.x.test", "*.test", "*.x.test"]


@st.composite
def rules(draw: st.DrawFn) -> list[R]:
    found: list[R] = []
    for number in range(draw(st.integers(1, 8))):
        parts = draw(st.lists(st.sampled_from([*LITERALS, "{}"]), max_size=4))
        path = "/" + "/".join(part if part != "{}" else f"{{p{at}}}" for at, part in enumerate(parts))
        if draw(st.booleans()):
            path = path.rstrip("/") + "/**"
        methods = draw(st.lists(st.sampled_from(METHODS), max_size=3, unique=True))
        hosts = draw(st.lists(st.sampled_from(HOSTS), max_size=2, unique=True))
        rule = R(f"r{number}", path, methods, hosts)
        try:
            Matcher([*found, rule])
        except PatternError:
            continue
        found.append(rule)
    return found


def _fits(pattern: str, path: str) -> dict[str, str] | None:
    wanted, given_ = [p for p in pattern.split("/") if p], [p for p in path.split("/") if p]
    params: dict[str, str] = {}
    for at, part in enumerate(wanted):
        if part == "**":
            rest = "/".join(given_[at:])
            params["**"] = rest + "/" if rest and path.endswith("/") else rest
            return params
        if at >= len(given_):
            return None
        if part.startswith("{"):
            params[part[1:-1]] = given_[at]
        elif part != given_[at]:
            return None
    return params if len(wanted) == len(given_) else None


def _host_rank(pattern: str, host: str) -> tuple[int, int] | None:
    if not pattern:
        return (2, 0)
    if not pattern.startswith("*."):
        return (0, 0) if pattern == host else None
    return (1, -len(pattern)) if host.endswith(pattern[1:]) and host != pattern[2:] else None


def _kinds(pattern: str) -> list[int]:
    return [2 if part == "**" else 1 if part.startswith("{") else 0 for part in pattern.split("/") if part]


def reference(
    all_rules: Sequence[R], method: str, host: str, path: str
) -> tuple[str, dict[str, str]] | set[str]:
    """The slow, plain reading of the rules: all that fit, ordered by host, path and method."""
    fitting = []
    for rule in all_rules:
        params = _fits(rule.path, path)
        ranks = [_host_rank(pattern, host) for pattern in rule.hosts or [""]]
        rank = min((rank for rank in ranks if rank is not None), default=None)
        if params is not None and rank is not None:
            fitting.append((rank, _kinds(rule.path), rule, params))
    taking = []
    for rank, kinds, rule, params in fitting:
        if method in rule.methods:
            taking.append((rank, kinds, 0, rule.name, params))
        elif method == "HEAD" and "GET" in rule.methods:
            taking.append((rank, kinds, 1, rule.name, params))
        elif not rule.methods:
            taking.append((rank, kinds, 2, rule.name, params))
    if taking:
        best = min(taking, key=lambda entry: entry[:4])
        return best[3], best[4]
    allowed = {name for _, _, rule, _ in fitting for name in rule.methods}
    return allowed | ({"HEAD"} if "GET" in allowed else set())


paths = st.lists(st.sampled_from([*LITERALS, "d"]), max_size=5).flatmap(
    lambda parts: st.sampled_from(["/" + "/".join(parts), "/" + "/".join([*parts, ""]) if parts else "/"])
)


@given(
    rules(),
    st.sampled_from([*METHODS, "PUT"]),
    st.sampled_from(["x.test", "y.x.test", "z.test", "other", ""]),
    paths,
)
def test_the_compiled_matcher_agrees_with_the_reference(
    all_rules: list[R], method: str, host: str, path: str
) -> None:
    expected = reference(all_rules, method, host, path)
    matcher = Matcher(all_rules)
    if isinstance(expected, tuple):
        rule, params = matcher.match(method, host, path)
        assert (rule.name, params) == expected
    elif expected:
        with pytest.raises(MethodNotAllowed) as caught:
            matcher.match(method, host, path)
        assert set(caught.value.headers["Allow"].split(", ")) == expected
    else:
        with pytest.raises(NotFound):
            matcher.match(method, host, path)


def test_a_request_visits_each_node_at_most_once() -> None:
    """Rules made to branch at every segment cost no more than their number: no exponential search."""
    depth = 12
    many = [R(f"r{at}", "/a" * at + "/{x}" + "/a" * (depth - at) + "/end", ["POST"]) for at in range(depth)]
    matcher = Matcher(many)
    with pytest.raises(NotFound):
        matcher.match("GET", "", "/a" * (depth + 1) + "/no")
