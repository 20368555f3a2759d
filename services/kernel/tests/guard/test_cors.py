"""Cross-origin requests: whose are allowed, what their answers carry, and which preflights the guard answers."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import ValidationError

from moorage.errors import AppError, Forbidden, Unauthenticated
from moorage.guard.cors import EXPOSED, Cors, CrossOrigin, Preflight, serialized, vary
from moorage.guard.decision import RequestFacts
from moorage.guard.engine import Guard
from moorage.guard.policy import Rule

APP = "https://app.example.com"
ADMIN = "https://admin.example.com:8443"
CORS = Cors(origins=[APP, ADMIN])
NEVER = [
    "null",
    "*",
    "",
    "https://app.example.com.evil.test",
    "https://evil.test/https://app.example.com",
    "https://evil-app.example.com",
    "https://sub.app.example.com",
    "https://app.example.co",
    "https://app.example.comm",
    "https://app.example.com@evil.test",
    "https://evil.test@app.example.com",
    "https://app.example.com:443",
    "https://app.example.com:8443",
    "https://admin.example.com",
    "https://app.example.com/",
    "https://app.example.com.",
    "HTTPS://APP.EXAMPLE.COM",
    "https://App.example.com",
    "http://app.example.com",
    "https://app%2eexample.com",
    "https://app.example.com\t",
    " https://app.example.com",
    "https://app.example.com, https://app.example.com",
    "https://app.example.com https://admin.example.com:8443",
    "https://\u0430pp.example.com",  # a Cyrillic letter
    "file://",
]


def headers(*origins: str, **more: str) -> "CIMultiDict[str]":
    given = CIMultiDict([("Origin", origin) for origin in origins])
    given.extend({name.replace("_", "-"): value for name, value in more.items()})
    return given


def answered(cors: Cors, *origins: str, method: str = "GET", **before: str) -> "CIMultiDict[str]":
    answer = CIMultiDict({name.replace("_", "-"): value for name, value in before.items()})
    CrossOrigin(cors, ["GET"], token=True).finish(answer, headers(*origins), method)
    return answer


# -- origins


@pytest.mark.parametrize("origin", [APP, ADMIN])
def test_an_origin_on_the_list_is_allowed_and_named(origin: str) -> None:
    answer = answered(CORS, origin)
    assert answer["Access-Control-Allow-Origin"] == origin
    assert answer["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in answer


@pytest.mark.parametrize("origin", NEVER)
def test_any_other_origin_gets_nothing_but_vary(origin: str) -> None:
    assert dict(answered(CORS, origin)) == {"Vary": "Origin"}


@given(
    origin=st.one_of(st.text(max_size=80), st.from_regex(r"https?://[a-z.:@/\\-]{0,40}example\.com.{0,20}"))
)
def test_whatever_is_sent_nothing_is_reflected_but_what_is_on_the_list(origin: str) -> None:
    allowed = CrossOrigin(CORS, ["GET"], token=True).allowed(headers(origin), "GET")
    assert allowed is None or allowed in {APP, ADMIN}
    assert (allowed is not None) == (origin in {APP, ADMIN})


def test_two_origins_are_none() -> None:
    assert "Access-Control-Allow-Origin" not in answered(CORS, APP, APP)


def test_an_answer_to_a_request_without_origin_varies_by_it_too() -> None:
    """Or a cache would give it to a page, which would miss its `Access-Control-Allow-Origin`."""
    assert dict(answered(CORS)) == {"Vary": "Origin"}


def test_every_page_is_every_page_and_no_answer_depends_on_it() -> None:
    for origins in ((), (APP,), ("null",), ("https://evil.test",)):
        answer = answered(Cors(origins=["*"]), *origins)
        assert answer["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in answer


def test_credentials_are_for_the_list_alone() -> None:
    cors = Cors(origins=[APP], credentials=True)
    assert answered(cors, APP)["Access-Control-Allow-Credentials"] == "true"
    assert dict(answered(cors, "https://evil.test")) == {"Vary": "Origin"}
    assert dict(answered(cors, "null")) == {"Vary": "Origin"}


@pytest.mark.parametrize(
    ("declared", "sent"),
    [
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:08080", "http://localhost:8080"),
        ("http://localhost:443", "http://localhost:443"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("null", None),
        ("https://app.example.com:0", None),
        ("https://app.example.com:65536", None),
        ("https://app..example.com", None),
        ("https://app.example.com/", None),
        ("https://me@app.example.com", None),
        ("https://*.example.com", None),
        ("https://App.example.com", None),
        ("https://app.example.com\n", None),
        ("app.example.com", None),
    ],
)
def test_a_declared_origin_is_read_as_browsers_send_it(declared: str, sent: str | None) -> None:
    assert serialized(declared) == sent


@pytest.mark.parametrize(
    "wrong",
    [
        {"origins": []},
        {"origins": ["null"]},
        {"origins": ["https://*.example.com"]},
        {"origins": ["*"], "credentials": True},
        {"origins": ["*", APP], "credentials": True},
        {"origins": [APP], "headers": ["*"]},
        {"origins": [APP], "headers": ["X-A\r\nX-B"]},
        {"origins": [APP], "expose_headers": ["*"]},
        {"origins": [APP], "methods": ["get"]},
        {"origins": [APP], "max_age": -1},
        {"origins": [APP], "more": True},
    ],
)
def test_a_document_with_a_bad_list_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate({"name": "a", "path": "/", "cors": wrong})


# -- answers


def test_what_the_code_behind_said_about_origins_is_replaced() -> None:
    answer = answered(
        CORS,
        "https://evil.test",
        Access_Control_Allow_Origin="https://evil.test",
        Access_control_Allow_Credentials="true",
        X_Other="stays",
    )
    assert dict(answer) == {"X-Other": "stays", "Vary": "Origin"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], "Origin"),
        (["Accept-Encoding"], "Accept-Encoding, Origin"),
        (["Accept-Encoding", "Accept"], "Accept-Encoding, Accept, Origin"),
        (["origin, Accept"], "origin, Accept"),
        (["Accept, *"], "Accept, *"),
        ([" , Accept ,"], "Accept, Origin"),
    ],
)
def test_vary_is_added_to(before: list[str], after: str) -> None:
    answer = CIMultiDict([("Vary", value) for value in before])
    vary(answer, "Origin")
    assert ", ".join(answer.getall("Vary")) == after


def test_scripts_may_read_the_platforms_headers_and_those_named() -> None:
    exposed = answered(Cors(origins=[APP], expose_headers=["X-Total", "etag"]), APP)[
        "Access-Control-Expose-Headers"
    ]
    assert exposed == ", ".join([*EXPOSED, "X-Total"])


def test_a_method_that_pages_may_not_use_gets_nothing() -> None:
    """`POST` needs no preflight, so that its answer has to be kept back."""
    cors = CrossOrigin(Cors(origins=[APP], methods=["GET"]), ["GET", "POST"], token=True)
    assert [cors.allowed(headers(APP), method) for method in ("GET", "HEAD", "POST")] == [APP, APP, None]


# -- preflights

RULES = [
    Rule(name="list", methods=["GET"], path="/posts", auth="none", cors=CORS),
    Rule(
        name="create",
        methods=["POST"],
        path="/posts",
        cors=Cors(origins=[APP], headers=["X-Trial", "content-type"], credentials=True, max_age=600),
    ),
    Rule(name="drop", methods=["DELETE"], path="/posts", auth="none"),
    Rule(name="all", path="/all", auth="none", cors=CORS),
    Rule(name="some", methods=["GET", "PUT"], path="/some", cors=Cors(origins=[APP], methods=["GET"])),
    Rule(name="own", methods=["GET"], path="/own/{id}", auth="none", cors=CORS),
    Rule(name="own-options", methods=["OPTIONS"], path="/own/{other}", auth="none"),
    Rule(name="wide-options", methods=["OPTIONS"], path="/**", auth="none"),
    Rule(name="both", methods=["GET", "OPTIONS"], path="/both", auth="none", cors=CORS),
    Rule(
        name="shop",
        hosts=["shop.test"],
        methods=["GET"],
        path="/posts",
        cors=Cors(origins=["https://shop.test"]),
    ),
]

Ask = Callable[..., Preflight | None]


@pytest.fixture
def cors_guard(make_guard: Callable[..., Guard]) -> Guard:
    return make_guard(rules=RULES)


@pytest.fixture
def preflight(cors_guard: Guard, facts: Callable[..., RequestFacts]) -> Ask:
    def ask(path: str, method: str, origin: str = APP, **more: str) -> Preflight | None:
        sent = {"Origin": origin, "Access-Control-Request-Method": method, **more}
        return cors_guard.preflight(facts("OPTIONS", path, sent))

    return ask


def test_a_preflight_is_answered_for_the_rule_that_the_request_would_meet(preflight: Ask) -> None:
    asked = preflight("/posts", "POST")
    assert asked is not None
    assert (asked.rule, asked.route) == ("create", "/posts")
    assert dict(asked.headers) == {
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Trial",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin, Access-Control-Request-Method",
    }


def test_a_token_may_be_sent_where_the_rule_looks_at_it(preflight: Ask) -> None:
    public, private = preflight("/posts", "GET"), preflight("/some", "GET")
    assert public is not None
    assert private is not None
    assert dict(public.headers)["Access-Control-Allow-Headers"] == "Content-Type"
    assert dict(private.headers)["Access-Control-Allow-Headers"] == "Authorization, Content-Type"


def test_a_rule_for_all_methods_allows_those_that_a_route_can_name(preflight: Ask) -> None:
    asked = preflight("/all", "PATCH")
    assert asked is not None
    methods = dict(asked.headers)["Access-Control-Allow-Methods"]
    assert methods == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


@pytest.mark.parametrize("origin", NEVER)
def test_a_preflight_of_another_origin_is_refused(preflight: Ask, origin: str) -> None:
    with pytest.raises(Forbidden) as refused:
        preflight("/posts", "GET", origin)
    error = refused.value
    assert (error.code, error.status, error.rule, error.route) == ("cors_refused", 403, "list", "/posts")
    assert error.headers == {"Vary": "Origin, Access-Control-Request-Method"}
    assert origin not in str(error.details) or origin in ("", "null", "*")


def test_a_preflight_for_a_method_that_pages_may_not_use_is_refused(preflight: Ask) -> None:
    assert preflight("/some", "GET") is not None
    with pytest.raises(Forbidden, match="may not send"):
        preflight("/some", "PUT")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/nothing/here", "GET"),  # unknown path
        ("/some", "DELETE"),  # unknown method of a known path
        ("/posts", "DELETE"),  # a rule without `cors`
        ("/posts", "patch"),  # no method at all
        ("/posts", "TRACE"),
        ("/posts", ""),
        ("/own/1", "GET"),  # a rule for that very path answers OPTIONS itself
    ],
)
def test_what_no_rule_with_cors_would_take_is_a_request_like_any_other(
    preflight: Ask, path: str, method: str
) -> None:
    assert preflight(path, method) is None


def test_a_wider_rule_for_options_takes_no_preflight_of_a_rule_with_cors(preflight: Ask) -> None:
    assert preflight("/posts", "GET") is not None
    assert preflight("/both", "GET") is not None


def test_the_host_decides_as_for_the_request_itself(preflight: Ask) -> None:
    asked = preflight("/posts", "GET", "https://shop.test", Host="shop.test")
    assert asked is not None
    assert asked.rule == "shop"
    with pytest.raises(Forbidden):
        preflight("/posts", "GET", "https://shop.test")


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("GET", {"Origin": APP, "Access-Control-Request-Method": "GET"}),
        ("OPTIONS", {"Origin": APP}),
        ("OPTIONS", {"Access-Control-Request-Method": "GET"}),
        ("options", {"Origin": APP, "Access-Control-Request-Method": "GET"}),
    ],
)
def test_nothing_else_is_a_preflight(
    cors_guard: Guard, facts: Callable[..., RequestFacts], method: str, sent: dict[str, str]
) -> None:
    assert cors_guard.preflight(facts(method, "/posts", sent)) is None


def test_without_a_policy_a_preflight_is_not_answered(
    facts: Callable[..., RequestFacts], tmp_path: Any
) -> None:
    guard = Guard.from_folder(tmp_path, namespace="default", module="blog")
    sent = {"Origin": APP, "Access-Control-Request-Method": "GET"}
    assert guard.preflight(facts("OPTIONS", "/posts", sent)) is None


# -- the engine tells its host which rule the answer is for


def test_a_refusal_knows_the_edge_of_the_rule_that_was_met(
    cors_guard: Guard, facts: Callable[..., RequestFacts]
) -> None:
    asked = facts("POST", "/posts", {"Origin": APP})
    with pytest.raises(Unauthenticated):
        cors_guard.decide(asked)
    assert asked.edge is not None
    answer: CIMultiDict[str] = CIMultiDict()
    asked.edge.outward(answer, 401, asked.headers, asked.method)
    assert answer["Access-Control-Allow-Origin"] == APP


@pytest.mark.parametrize(("method", "path", "status"), [("PUT", "/some/", 401), ("DELETE", "/posts", None)])
def test_what_the_edge_is_of(
    cors_guard: Guard, facts: Callable[..., RequestFacts], method: str, path: str, status: int | None
) -> None:
    """Of the rule that was met; none where that asks for nothing."""
    asked = facts(method, path, {"Origin": APP})
    if status is None:
        cors_guard.decide(asked)
        assert asked.edge is None
    else:
        with pytest.raises(AppError) as refused:
            cors_guard.decide(asked)
        assert (refused.value.status, asked.edge is not None) == (status, True)


@pytest.mark.parametrize(("method", "path"), [("GET", "/unknown"), ("PATCH", "/posts")])
def test_where_no_rule_was_met_there_is_no_edge(
    cors_guard: Guard, facts: Callable[..., RequestFacts], method: str, path: str
) -> None:
    asked = facts(method, path, {"Origin": APP})
    with pytest.raises(AppError) as refused:
        cors_guard.decide(asked)
    assert refused.value.status in (404, 405)
    assert asked.edge is None
