"""Paths, methods and headers that mean one thing to the guard and another to somebody else: generated.

No spelling of a path reaches another rule than the one it literally names, and no header changes what is asked.
"""

import re
from collections import Counter
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

import naive
from moorage.errors import AppError
from moorage.guard.decision import Decision, receive
from moorage.guard.engine import Guard
from moorage.guard.policy import BaseDocument, Rule
from naive import Found

RULES = [
    {"name": "front", "path": "/", "auth": "none"},
    {"name": "page", "path": "/{page}", "methods": ["GET"], "auth": "none"},
    {"name": "public", "path": "/public/**", "methods": ["GET", "POST"], "auth": "none"},
    {"name": "file", "path": "/public/files/{name}", "methods": ["GET"], "auth": "none"},
    {"name": "inner", "path": "/public/private/**"},
    {"name": "admin", "path": "/admin/**"},
    {"name": "user", "path": "/admin/users/{id}", "methods": ["GET", "DELETE"]},
]
READ = [naive.Rule.of(raw) for raw in RULES]
OPEN = {raw["name"] for raw in RULES if raw.get("auth") == "none"}
REFUSALS = {400, 401, 404, 405, 414}


@pytest.fixture(scope="module")
def guard() -> Guard:
    """A tree that is open to all, with a protected one inside it and another beside it."""
    document = BaseDocument(
        namespace="default", module="blog", sequence=1, issued_at="", rules=[Rule(**raw) for raw in RULES]
    )
    # A key, or what needs a token would be 503; nobody has its private half.
    key = {
        "kty": "EC", "crv": "P-256", "kid": "k", "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
        "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
    }  # fmt: skip
    issuer = {"issuer": "https://moorage.test", "audiences": ["test"], "algorithms": ["ES256"], "keys": [key]}
    document = BaseDocument.model_validate(
        {**document.model_dump(), "issuers": [{**issuer, "subject": "user"}]}
    )
    guard = Guard.from_document(document, clock=lambda: 1_800_000_000)
    guard.bind_proxy()
    return guard


def decide(guard: Guard, method: str, target: str, headers: CIMultiDict[str] | None = None) -> Decision | int:
    given_headers = CIMultiDict({"Host": "blog.test"})
    given_headers.extend(headers or {})
    try:
        return guard.decide(receive(method, target, given_headers, peer="192.0.2.1"))
    except AppError as error:
        return error.status


# ---- paths

TRICKS = [
    # slashes, dots, parameters
    "//", "///", "/./", "/../", "/.", "/..", "/...", "/.../", "/..;/", "/;/", "/.;/", "/..;a=b/", ";", ";a=b", ";/../",
    ".", "..", "...", "/ ",
    # encoded
    "%2f", "%2F", "%2f%2f", "/%2e/", "/%2e%2e/", "/%2E%2e/", "/.%2e/", "/%2e./", "%2e", "/..%2f", "/%2e%2e%2f",
    "%5c", "%5C", "\\", "/..\\", "\\..\\", "%5c..%5c", "/..%5c", "/..%3b/", "/%3b/", "/.%3B/", "/..%3Ba/", "%3b", "%3f",
    "%23", "%20",
    # control characters
    "%00", "/%00/", "\x00", "%0a", "%0d%0a", "%09", "\t", "\n", "\r\n", " ", "%7f", "%c2%85", "\x85",
    "/..%00/", "/..%09/",
    # encoded twice, or in other ways
    "%252f", "%252e%252e", "/%252e%252e/", "%25252f", "%25%32%66", "%%32%66", "%u002f", "%u2215", "%", "%2", "%zz",
    "%2g", "% 2f", "%+2f",
    # not UTF-8: overlong, surrogates, beyond the last code point
    "%c0%af", "%c0%ae%c0%ae", "/%c0%ae%c0%ae/", "%e0%80%af", "%f0%80%80%af", "%c1%9c", "%ff", "%fe", "%ed%a0%80",
    "%f4%90%80%80", "\ud800",
    # lookalikes, and what normalisation changes
    "%e2%88%95", "∕", "%ef%bc%8f", "／", "%ef%bc%8e%ef%bc%8e", "．．", "%e2%81%84", "%ef%bf%bd", "%e2%80%8b",
    "%ef%bb%bf", "%c2%ad", "é", "%c3%a9", "e%cc%81", "\xa0",
    # other parts of a URL
    "#", "/#/", "/..#", "?", "/?/", "??", "*", "/*", "**", "http://blog.test", "//blog.test", "://", "@blog.test",
    ":80", "_method=DELETE", "+", "@", ":", "|", "^", "[", "]", "~", "$", "&", "'", "(", ",", '"', "<", ">", "`",
    "{id}", "a", "1",
]  # fmt: skip
NAMES = ["public", "private", "admin", "files", "users", "Public", "ADMIN", "aDmin", "ａdmin", "admın", "x"]


def spelled(name: str, ways: int, forms: int) -> str:
    """*name* in one of many spellings: of each character, the digit of *ways* to the base *forms* says which."""
    found = ""
    for char in name:
        ways, way = divmod(ways, forms)
        octets = char.encode().hex(" ").split()
        plain = char if char.isascii() else "".join(f"%{octet}" for octet in octets)
        once = "".join(f"%{octet}" for octet in octets)
        found += (plain, plain, once, once.upper(), once.replace("%", "%25"))[way]
    return found


ways = st.just(0) | st.integers(0, 5**8)
honest_names = st.builds(spelled, st.sampled_from(NAMES), ways, st.just(4))
names = st.one_of(
    honest_names, st.builds(spelled, st.sampled_from(NAMES), ways, st.just(5)), st.sampled_from(NAMES)
)
pieces = st.one_of(names, names, st.just("/"), st.just("/"), st.sampled_from(TRICKS))
starts = st.sampled_from(
    ["/", "/", "/", "/public/", "/public/", "/public/files/", "/public/private", "/admin", "/public", "", "//",
     "http://blog.test/", "https://blog.test/public/", "HTTP://admin/", "*", "blog.test:443", "\\", ";/", "?", "#/"]
)  # fmt: skip
targets = st.builds(lambda start, parts: start + "".join(parts), starts, st.lists(pieces, max_size=6))
climbs = st.builds(
    lambda start, trick, way, end: start + trick + way + end,
    st.sampled_from(["/public/x", "/public", "/public/files", "/public/x/y", "", "/x", "/public/private/.."]),
    st.sampled_from(TRICKS),
    st.sampled_from(["", "/", "..", "../", "../..", "%2e%2e/", "..;/"]),
    st.sampled_from(["admin", "/admin", "/admin/users/1", "private/x", "%61dmin", "admin/", "admin%2fusers"]),
)
methods = st.sampled_from(["GET", "GET", "POST", "HEAD", "DELETE", "OPTIONS", "PUT"])


def test_no_spelling_of_a_path_reaches_another_rule_than_it_names(guard: Guard) -> None:
    """Without a token: refused, or an open rule, which is the one that the path names, decoded once and literally."""
    seen: Counter[object] = Counter()

    @settings(max_examples=1000, deadline=None, print_blob=True)
    @given(methods, targets | climbs)
    def check(method: str, target: str) -> None:
        answer = decide(guard, method, target)
        seen[answer if isinstance(answer, int) else answer.name] += 1
        if isinstance(answer, int):
            assert answer in REFUSALS
            return
        path = naive.decode(target)
        assert path is not None
        assert path == answer.target.path
        expected = naive.match(READ, method, "blog.test", path)
        assert Found(answer.name, dict(answer.params)) == expected
        assert answer.name in OPEN
        if answer.name in ("public", "file"):
            assert naive.below(path, "/public")
        for other in readings(target):
            assert not protected(other), other

    check()
    # Both sides of the fence were reached, and what is refused was refused for more than one reason.
    assert {"public", "page", 400, 401, 404, 405} <= set(seen)
    assert seen[400] > 100
    assert seen["public"] > 20


def protected(path: str) -> bool:
    """Whether *path* is in one of the two protected trees."""
    return (
        naive.below(path, "/admin/users")
        or naive.below(path, "/public/private")
        or path.startswith("/admin/")
    )


def without_dots(path: str) -> str:
    """*path* as RFC 3986, 5.2.4, resolves it."""
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


TIDY = [
    without_dots,
    unquote,
    lambda path: re.sub("/+", "/", path),
    lambda path: path.replace("\\", "/"),
    lambda path: path.partition("\x00")[0],
]


def readings(target: str) -> set[str]:
    """The path of *target* as programs behind the guard may read it: tidied up in any order, decoded ever again.

    Parameters and fragments are cut off before that: encoded, `;` and `#` are letters like others.
    """
    raw = target.partition("?")[0].partition("#")[0]
    found, fresh = set(), {raw, re.sub(";[^/]*", "", raw)}
    while fresh:
        found |= fresh
        fresh = {tidy(path) for path in fresh for tidy in TIDY} - found
    return found


@pytest.mark.parametrize("trick", TRICKS)
def test_no_way_leads_out_of_an_open_tree(guard: Guard, trick: str) -> None:
    """Every trick in every place of a way from the open tree to the protected ones."""
    for way in (
        f"/public{trick}admin",
        f"/public{trick}/admin",
        f"/public/x{trick}..{trick}..{trick}admin",
        f"/public/{trick}{trick}admin/users/1",
        f"/public{trick}private/x",
        f"/public/{trick}/private/x",
        f"/public/private{trick}x",
        f"/admin{trick}",
        f"/admin{trick}users/1",
        f"{trick}admin/users/1",
        f"/x/{trick}/{trick}/admin/x",
    ):
        for method in ("GET", "POST"):
            answer = decide(guard, method, way)
            if isinstance(answer, int):
                assert answer in REFUSALS
            else:
                assert answer.name in OPEN
                assert not any(protected(other) for other in readings(way)), way


HIDDEN = [
    "/..%3b/admin",
    "/public/..%3b/admin",
    "/public/.%3Bx/a",
    "/public/%3b/a",
    "/public/%3bx",
    "/public/...%3b",
]


@pytest.mark.parametrize("target", HIDDEN)
def test_a_dot_segment_with_an_encoded_parameter_is_refused(guard: Guard, target: str) -> None:
    """`..%3b` is `..;` to a program that decodes first, and `..` once that has cut off the parameter."""
    assert decide(guard, "GET", target) == 400


@settings(max_examples=200, deadline=None, print_blob=True)
@given(st.lists(honest_names, min_size=1, max_size=4), methods)
def test_an_honest_path_reaches_what_it_names(guard: Guard, segments: list[str], method: str) -> None:
    """The other direction: percent-encoded letters alone change nothing, in either case of hexadecimals."""
    target = "/" + "/".join(segments)
    path = naive.decode(target)
    assert path is not None
    expected = naive.match(READ, method, "blog.test", path)
    answer = decide(guard, method, target)
    if isinstance(expected, Found):
        assert (answer if isinstance(answer, int) else answer.name) == (
            expected.name if expected.name in OPEN else 401
        )
    else:
        assert answer == expected.status


# ---- methods

OVERRIDES = [
    "X-HTTP-Method-Override",
    "X-HTTP-Method",
    "X-Method-Override",
    "X-Original-Method",
    "X-Method",
    "Method",
]
OTHER_TARGETS = [
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Original-URI",
    "X-Forwarded-Prefix",
    "X-Forwarded-Path",
    "Referer",
]
honest = st.sampled_from(
    [
        "/",
        "/about",
        "/public",
        "/public/x",
        "/public/files/a",
        "/admin",
        "/admin/users/1",
        "/public/private",
        "/a/b",
    ]
)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    methods,
    honest,
    st.lists(
        st.tuples(
            st.sampled_from(OVERRIDES + OTHER_TARGETS).flatmap(
                lambda name: st.sampled_from([name, name.lower(), name.upper(), name.replace("-", "_")])
            ),
            st.sampled_from(["GET", "POST", "DELETE", "get", "OPTIONS", "TRACE", "/", "/public", "/admin/x", "x", ""]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["", "?_method=DELETE", "?_method=GET&method=POST", "?x=/public"]),
)  # fmt: skip
def test_no_header_or_parameter_asks_for_another_method_or_path(
    guard: Guard, method: str, target: str, said: list[tuple[str, str]], query: str
) -> None:
    plain, overridden = (
        decide(guard, method, target),
        decide(guard, method, target + query, CIMultiDict(said)),
    )
    if isinstance(plain, int) or isinstance(overridden, int):
        assert plain == overridden
        return
    assert (overridden.name, overridden.params, overridden.caller) == (plain.name, plain.params, None)
    assert (overridden.facts.method, overridden.target.path) == (method, plain.target.path)
