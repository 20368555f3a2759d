"""Transforms of headers, rewritten paths, and what both can never do."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import ValidationError

from moorage.errors import BadRequest
from moorage.guard.edge import Edge
from moorage.guard.engine import Guard
from moorage.guard.matcher import Matcher, PatternError
from moorage.guard.paths import parse_target
from moorage.guard.policy import BaseDocument, DocumentError, Rule, parse_document
from moorage.guard.rewrite import Rewrite
from moorage.guard.transforms import RequestTransform, ResponseTransform

NOTHING: "CIMultiDict[str]" = CIMultiDict()


def edge(**parts: Any) -> Edge:
    made = Edge.of(Rule.model_validate({"name": "a", "path": "/posts/{id}/**", "auth": "none", **parts}))
    assert made is not None
    return made


def test_a_rule_that_asks_for_nothing_has_no_edge() -> None:
    assert Edge.of(Rule(name="a", path="/")) is None


# -- transforms


def test_what_is_set_replaces_and_what_is_removed_is_gone_whatever_the_capitals() -> None:
    request = {"set": {"X-Source": "edge", "x-new": "1"}, "remove": ["X-DEBUG", "X-Absent"]}
    headers = CIMultiDict([("x-source", "a"), ("X-Source", "b"), ("x-debug", "1"), ("Accept", "*/*")])
    edge(request=request).inward(headers)
    assert sorted(headers.items()) == [("Accept", "*/*"), ("X-Source", "edge"), ("x-new", "1")]


def test_errors_lose_fields_and_get_none() -> None:
    """A page's `Cache-Control` on a 401 or 503 would keep it for everybody."""
    response = {"set": {"Cache-Control": "public, max-age=60"}, "remove": ["X-Powered-By"]}
    for status, kept in ((200, "public, max-age=60"), (304, "public, max-age=60"), (404, "no-store")):
        answer = CIMultiDict({"Cache-Control": "no-store", "X-Powered-By": "PHP"})
        edge(response=response).outward(answer, status, NOTHING, "GET")
        assert dict(answer) == {"Cache-Control": kept}


def test_the_answer_to_a_handshake_stays_as_it_is() -> None:
    answer = CIMultiDict({"Upgrade": "websocket"})
    asked = edge(response={"set": {"X-A": "b"}}, cors={"origins": ["*"]})
    asked.outward(answer, 101, NOTHING, "GET")
    assert dict(answer) == {"Upgrade": "websocket"}


FORGED = [
    "X-Moorage-User",
    "x-moorage-roles",
    "X_Moorage_Tenant",
    "X.Moorage.User",
    "X-User-Id",
    "X_User_Id",
    "X-User-Plan",
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "Remote-User",
    "X-Envoy-Anything",
    "Client-IP",
    "X-HTTP-Method-Override",
    "Authorization",
    "Host",
    "Connection",
    "Content-Length",
    "Transfer-Encoding",
    "transfer_encoding",
    "TE",
    "Upgrade",
    "Expect",
    "Sec-WebSocket-Key",
    "X-Request-ID",
    "traceparent",
    "tracestate",
]


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("part", ["set", "remove"])
def test_a_request_cannot_be_given_what_the_guard_or_http_say(name: str, part: str) -> None:
    with pytest.raises(ValidationError):
        RequestTransform.model_validate({part: {name: "x"} if part == "set" else [name]})


@given(
    name=st.sampled_from(FORGED[:13]),
    upper=st.lists(st.booleans(), min_size=32, max_size=32),
    between=st.sampled_from("-_."),
)
def test_no_spelling_of_what_the_guard_takes_off_can_be_set(
    name: str, upper: list[bool], between: str
) -> None:
    spelt = "".join(
        between if char in "-_." else char.upper() if up else char.lower()
        for char, up in zip(name, upper, strict=False)
    )
    with pytest.raises(ValidationError):
        RequestTransform(set={spelt: "x"})


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Content-Encoding",
        "Trailer",
        "Upgrade",
        "X-Request-ID",
        "Vary",
        "Date",
        "Access-Control-Allow-Origin",
        "access-control-allow-credentials",
    ],
)
@pytest.mark.parametrize("part", ["set", "remove"])
def test_an_answers_framing_and_what_others_go_by_stays(name: str, part: str) -> None:
    with pytest.raises(ValidationError):
        ResponseTransform.model_validate({part: {name: "x"} if part == "set" else [name]})


@pytest.mark.parametrize(
    "name",
    [
        "Content-Security-Policy",
        "X-Frame-Options",
        "X-Content-Type-Options",
        "Referrer-Policy",
        "Strict-Transport-Security",
        "Cache-Control",
    ],
)
def test_what_protects_a_reader_can_be_set_but_not_removed(name: str) -> None:
    assert ResponseTransform(set={name: "x"})
    with pytest.raises(ValidationError, match="another value"):
        ResponseTransform(remove=[name])


@pytest.mark.parametrize("kind", [RequestTransform, ResponseTransform])
@pytest.mark.parametrize(
    "wrong",
    [
        {"X-A": "b\r\nSet-Cookie: c=d"},
        {"X-A": "b\nc"},
        {"X-A": "b\n"},
        {"X-A": "\r"},
        {"X-A": "b\x00c"},
        {"X-A": "ä"},
        {"X-A": "b" * 1025},
        {"X-A\r\nX-B": "c"},
        {"X-A\n": "c"},
        {"X-A: b": "c"},
        {"X_A": "c"},
        {"": "c"},
        {"X-A": "b", "x-a": "c"},
        {"X-A": 1},
    ],
)
def test_nothing_that_ends_a_line_or_has_two_readings_is_taken(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate({"set": wrong})


@pytest.mark.parametrize("wrong", [["X-A\n"], ["X A"], [""], ["X-A:"]])
def test_no_bad_name_can_be_removed(wrong: list[str]) -> None:
    with pytest.raises(ValidationError):
        ResponseTransform(remove=wrong)


# -- rewrites


@pytest.mark.parametrize(
    ("path", "template", "target", "rewritten"),
    [
        ("/posts/{id}", "/v2/articles/{id}", "/posts/7", "/v2/articles/7"),
        ("/posts/{id}", "/v2/articles/{id}", "/posts/7/", "/v2/articles/7"),
        ("/posts/{id}", "/v2/articles/{id}", "/posts/7?a=1&b=/x%20y", "/v2/articles/7?a=1&b=/x%20y"),
        ("/posts/{id}", "/v2", "/posts/7?", "/v2?"),
        ("/{a}/{b}", "/{b}/{a}", "/x/y", "/y/x"),
        ("/posts", "/", "/posts?q", "/?q"),
        ("/posts/{id}", "/p/{id}", "/posts/a%3Fb%23c", "/p/a%3Fb%23c"),
        ("/posts/{id}", "/p/{id}", "/posts/a%3Bb", "/p/a%3Bb"),
        ("/posts/{id}", "/p/{id}", "/posts/100%25", "/p/100%25"),
        ("/posts/{id}", "/p/{id}", "/posts/caf%c3%a9%20x", "/p/caf%C3%A9%20x"),
        ("/posts/{id}", "/p/{id}", "/posts/a|b[c]", "/p/a%7Cb%5Bc%5D"),
        ("/posts/{id}", "/p/{id}", "/posts/a%40b:c@d", "/p/a@b:c@d"),
        ("/files/**", "/data/**", "/files", "/data"),
        ("/files/**", "/data/**", "/files/a/b%20c", "/data/a/b%20c"),
        ("/files/**", "/data/**", "/files/a/", "/data/a/"),
        ("/files/**", "/**", "/files", "/"),
        ("/files/**", "/all", "/files/a/b", "/all"),
    ],
)
def test_the_path_is_made_of_captures_and_the_query_stays(
    path: str, template: str, target: str, rewritten: str
) -> None:
    rule = Rule(name="a", path=path, auth="none", rewrite=template)
    made = Edge.of(rule)
    assert made is not None
    _, params = Matcher([rule]).match("GET", "", parse_target(target).path)
    assert made.target(target, params) == rewritten


@given(
    raw=st.lists(
        st.text("abz09._~!$&'()*+,=:@|^[]-", max_size=8)
        | st.text(min_size=1, max_size=6).map(
            lambda text: "".join(f"%{octet:02X}" for octet in text.encode("utf-8", "replace"))
        ),
        min_size=2,
        max_size=5,
    ).map(lambda parts: "/" + "/".join(parts))
)
def test_no_capture_can_add_a_segment_a_dot_segment_or_a_query(raw: str) -> None:
    """Whatever the guard lets in comes out as the very same values, in a path that it would let in again."""
    try:
        path = parse_target(raw).path
    except BadRequest:
        assume(False)
        return
    rule = Rule(name="a", path="/{one}/**", rewrite="/v2/**")
    assume(path != "/")
    _, params = Matcher([rule]).match("GET", "", path)
    first = Rewrite("/up/{one}/end", rule.path)(params)
    assert first.count("/") == 3
    assert not set(first) & set("?#;\\ \r\n")
    assert unquote(first) == f"/up/{params['one']}/end"
    assert parse_target(first).path == unquote(first)
    rest = Rewrite("/up/**", rule.path)(params)
    assert unquote(rest) == (f"/up/{params['**']}" if params["**"] else "/up")
    assert parse_target(rest).path == unquote(rest)


@pytest.mark.parametrize(
    "template", ["/{other}", "/**", "/{id}/**", "/a//b", "/../{id}", "/a?b={id}", "/%2e", "/x{id}"]
)
def test_a_path_that_is_not_there_to_be_used_is_refused(template: str) -> None:
    with pytest.raises(PatternError):
        Rewrite(template, "/posts/{id}")


# -- documents


def test_a_document_with_a_bad_rewrite_is_refused_as_a_whole(
    make_document: Callable[..., BaseDocument],
) -> None:
    rules = [Rule(name="a", path="/posts/{id}", rewrite="/{other}")]
    with pytest.raises(DocumentError, match="does not capture"):
        Guard.from_document(make_document(rules=rules))


def test_documents_without_these_fields_have_the_bytes_that_they_had(
    make_document: Callable[..., BaseDocument],
) -> None:
    content = make_document().canonical()
    for field in (b'"cors"', b'"request"', b'"response"', b'"rewrite"'):
        assert field not in content
    assert parse_document(content) == make_document()


def test_a_document_with_them_is_read_as_it_was_written(make_document: Callable[..., BaseDocument]) -> None:
    rule = Rule.model_validate(
        {
            "name": "a",
            "path": "/posts/{id}",
            "cors": {"origins": ["https://app.example.com"], "max_age": 5},
            "request": {"set": {"X-A": "b"}},
            "response": {"remove": ["X-B"]},
            "rewrite": "/p/{id}",
        }
    )
    document = make_document(rules=[rule])
    assert parse_document(document.canonical()) == document
