"""The engine: match, token, permission, condition, body, in this order, and no on every doubt."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from multidict import CIMultiDict

from moorage import errors
from moorage.errors import AppError, Forbidden, Unauthenticated, Unavailable
from moorage.guard import tokens
from moorage.guard.decision import Decision, receive
from moorage.guard.engine import Guard
from moorage.guard.headers import TrustedProxies
from moorage.guard.identity import ModuleCaller, User
from moorage.guard.policy import BaseDocument, DocumentError, Issuer, PermissionPolicy, Rule

Ask = Callable[..., Decision]
Facts = Callable[..., Any]


@dataclass
class Post:
    author_id: UUID


# ---- who may do what


@pytest.mark.parametrize(
    ("method", "target", "roles", "outcome"),
    [
        ("GET", "/posts", None, "list"),
        ("HEAD", "/posts", None, "list"),
        ("GET", "/posts/7", None, "read"),
        ("GET", "/posts/7", (), "read"),
        ("GET", "/me", (), "me"),
        ("POST", "/posts", ("author",), "create"),
        ("POST", "/posts", ("visitor", "author"), "create"),
        ("POST", "/posts/7/publish", ("editor",), "publish"),
        ("GET", "/search?q=x", ("author",), "search"),
        ("GET", "/me", None, 401),
        ("POST", "/posts", None, 401),
        ("POST", "/posts", (), 403),
        ("POST", "/posts", ("editor",), 403),
        ("POST", "/posts", ("Author",), 403),
        ("POST", "/posts", ("blog.post.create",), 403),
        ("GET", "/search?q=", ("author",), 403),
        ("GET", "/search", ("author",), 403),
        ("GET", "/search?q=x&q=", ("author",), 403),
        ("GET", "/nowhere", None, 404),
        ("GET", "/nowhere", ("author",), 404),
        ("PUT", "/posts", ("author",), 405),
        ("GET", "//posts", None, 400),
        ("POST", "/posts/%2e%2e/publish", ("author",), 400),
        ("get", "/posts", None, 400),
        ("TRACE", "/posts", ("author",), 405),
    ],
)
def test_each_request_meets_its_rule_or_its_refusal(
    ask: Ask, method: str, target: str, roles: tuple[str, ...] | None, outcome: str | int
) -> None:
    try:
        found: str | int = ask(method, target, roles).name
    except AppError as error:
        found = error.status
        body = errors.error_body(error, "r")["error"]
        assert set(body) == {"code", "message", "details", "request_id"}  # type: ignore[call-overload]
    assert found == outcome


def test_a_decision_tells_the_handler_all_it_needs(ask: Ask, ada: UUID) -> None:
    decision = ask("POST", "/posts/a%20b/publish?x=1", ("author",), X_Request_ID="req-1")
    assert (decision.name, decision.rule.name, decision.route_template) == (
        "publish",
        "publish",
        "/posts/{id}/publish",
    )
    assert decision.params == {"id": "a b"}
    assert decision.user == User(
        ada,
        roles=("author",),
        permissions=frozenset({"blog.post.create", "blog.post.publish", "blog.post.search"}),
        session_id=decision.user.session_id if decision.user else None,
    )
    assert decision.user is not None
    assert decision.user.has("blog.post.create")
    assert decision.module is None
    assert decision.request_id == "req-1"
    assert decision.target.raw_path == "/posts/a%20b/publish"
    assert decision.client.address == "192.0.2.1"
    assert len(decision.trace.trace_id) == 32


def test_without_a_token_there_is_no_caller(ask: Ask) -> None:
    decision = ask("GET", "/posts/7")
    assert (decision.caller, decision.user, decision.module) == (None, None, None)


def test_a_rule_open_to_all_ignores_the_token(ask: Ask) -> None:
    assert ask("GET", "/posts", Authorization="Bearer nonsense").user is None
    assert ask("GET", "/posts", ("author",)).user is None


@pytest.mark.parametrize("target", ["/posts/7", "/me"])
@pytest.mark.parametrize("value", ["Bearer nonsense", "Basic YTpi", "", "Bearer"])
def test_a_bad_token_is_refused_where_a_token_counts(ask: Ask, target: str, value: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        ask("GET", target, Authorization=value)
    assert caught.value.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_two_authorization_headers_are_refused(
    guard: Guard, facts: Facts, make_token: Callable[..., str]
) -> None:
    request = facts("GET", "/me")
    for _ in range(2):
        request.headers.add("Authorization", f"Bearer {make_token()}")
    with pytest.raises(Unauthenticated, match="more than one"):
        guard.decide(request)


def test_two_hosts_are_refused(guard: Guard, facts: Facts) -> None:
    request = facts("GET", "/posts")
    request.headers.add("host", "evil.test")
    with pytest.raises(errors.BadRequest, match="more than one Host"):
        guard.decide(request)


@pytest.mark.parametrize("host", ["a b", "a/b", "a,b", "user@a", "a:port", "[::1", "a\x80", "-a", "a" * 263])
def test_a_host_that_is_none_is_refused(guard: Guard, facts: Facts, host: str) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET", "Host": host}
    for ask in (
        lambda: guard.decide(facts("GET", "/posts", {"Host": host})),
        lambda: guard.preflight(facts("OPTIONS", "/posts", preflight)),
    ):
        with pytest.raises(errors.BadRequest) as refused:
            ask()
        assert refused.value.code == "bad_host"


@pytest.mark.parametrize(
    "host", ["", "a", "A.Example.:443", "under_score.example", "127.0.0.1:80", "[::1]:8080", "a" * 255]
)
def test_a_host_or_none_passes(guard: Guard, facts: Facts, host: str) -> None:
    assert guard.decide(facts("GET", "/posts", {"Host": host})).name == "list"


def test_hosts_divide_rules(make_guard: Callable[..., Guard], facts: Facts) -> None:
    guard = make_guard(
        rules=[
            Rule(name="admin", path="/posts", hosts=["admin.test"]),
            Rule(name="public", path="/posts", auth="none"),
        ]
    )
    assert guard.decide(facts("GET", "/posts")).name == "public"
    with pytest.raises(Unauthenticated):
        guard.decide(facts("GET", "/posts", {"Host": "admin.test:443"}))
    # What proxies or attackers say about the host elsewhere does not count.
    assert guard.decide(facts("GET", "/posts", {"X-Forwarded-Host": "admin.test"})).name == "public"


@pytest.mark.parametrize(
    "name",
    [
        "X-HTTP-Method-Override",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-User-Id",
        "X-Moorage-User",
        "X-Moorage-Roles",
    ],
)
def test_no_header_changes_who_calls_or_what_is_asked(ask: Ask, name: str) -> None:
    decision = ask("GET", "/posts/7", **{name.replace("-", "_"): "author"})
    assert (decision.name, decision.user, decision.facts.method) == ("read", None, "GET")
    with pytest.raises(Unauthenticated):
        ask("GET", "/me", **{name.replace("-", "_"): "author"})


# ---- conditions


def test_a_condition_on_a_resource_waits_for_it(ask: Ask, guard: Guard, ada: UUID) -> None:
    decision = ask("POST", "/posts/7/publish", ("author",))
    assert decision.needs_resource
    guard.authorize(decision, Post(ada))
    assert not decision.needs_resource
    guard.authorize(decision, None)  # nothing is left to judge


@pytest.mark.parametrize(
    "resource", [Post(uuid4()), None, object(), {}, {"author_id": None}, {"author_id": b"x"}]
)
def test_another_or_no_resource_is_refused(ask: Ask, guard: Guard, resource: object) -> None:
    decision = ask("POST", "/posts/7/publish", ("author",))
    with pytest.raises(Forbidden) as caught:
        guard.authorize(decision, resource)
    assert decision.needs_resource
    assert caught.value.details == {"permission": "blog.post.publish"}


def test_a_failing_condition_is_logged_without_what_it_saw(
    ask: Ask, guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    decision = ask("POST", "/posts/7/publish", ("author",))
    caplog.set_level("INFO", "moorage.guard")
    with pytest.raises(Forbidden):
        guard.authorize(decision, {"title": "secret"})
    assert "condition failed" in caplog.text
    assert "secret" not in str(caplog.records[-1].__dict__)


def test_without_a_loader_the_rule_is_503(guard: Guard, ask: Ask) -> None:
    guard.bind(dict.fromkeys(("list", "read", "me", "create", "publish", "search"), False))
    assert guard.status()["missing_loaders"] == ["publish"]
    assert ask("POST", "/posts", ("author",)).name == "create"
    with pytest.raises(Forbidden):
        ask("POST", "/posts/7/publish", ("visitor",))
    with pytest.raises(Unavailable) as caught:
        ask("POST", "/posts/7/publish", ("author",))
    assert (caught.value.status, caught.value.code) == (503, "missing_loader")


def test_a_proxy_has_every_rule_and_no_loader(guard: Guard, ask: Ask) -> None:
    guard.bind_proxy()
    status = guard.status()
    assert (status["unbound_rules"], status["missing_loaders"]) == ([], ["publish"])
    assert ask("GET", "/search?q=x", ("author",)).name == "search"
    with pytest.raises(Unavailable):
        ask("POST", "/posts/7/publish", ("author",))


def test_a_rule_without_handler_is_503_and_known(guard: Guard, ask: Ask) -> None:
    guard.bind({"list": False, "extra": True})
    status = guard.status()
    assert status["unbound_rules"] == ["create", "me", "publish", "read", "search"]
    assert status["unused_handlers"] == ["extra"]
    assert ask("GET", "/posts").name == "list"
    for roles in (None, ("author",)):
        with pytest.raises(Unavailable) as caught:
            ask("POST", "/posts", roles)
        assert caught.value.code == "unbound_rule"


def test_before_anything_is_bound_nothing_passes(
    make_document: Callable[..., BaseDocument], facts: Facts
) -> None:
    guard = Guard.from_document(make_document())
    with pytest.raises(Unavailable):
        guard.decide(facts("GET", "/posts"))


@pytest.mark.parametrize(
    ("condition", "roles", "passes"),
    [
        ("user.tenant == 'acme'", {"tenant_id": "acme"}, True),
        ("user.tenant == 'acme'", {}, False),
        ("tenant == 'acme'", {"tenant_id": "acme"}, True),
        ("tenant == null", {}, False),
        ("tenant != 'evil'", {}, False),
        ("user.email != 'evil@moorage.test'", {}, False),
        ("user.email.endsWith('@moorage.test')", {"email": "a@moorage.test"}, True),
        ("'author' in user.roles && 'blog.post.search' in user.permissions", {}, True),
        ("request.headers['x-flag'] == 'on'", {}, True),
        ("has(request.headers['x-moorage-user'])", {}, None),
        ("'x-user-id' in request.headers", {}, False),
        ("'authorization' in request.headers", {}, False),
        ("request.method == 'GET' && request.path == '/search'", {}, True),
        ("1 + 1", {}, False),
        ("user.id", {}, False),
    ],
)
def test_conditions_without_resource_are_judged_at_once(
    make_document: Callable[..., BaseDocument],
    make_token: Callable[..., str],
    facts: Facts,
    now: float,
    condition: str,
    roles: dict[str, str],
    passes: bool | None,
) -> None:
    document = make_document(permissions={"blog.post.search": PermissionPolicy(condition=condition)})
    if passes is None:
        with pytest.raises(DocumentError):
            Guard.from_document(document)
        return
    guard = Guard.from_document(document, clock=lambda: now)
    guard.bind_proxy()
    headers = {
        "Authorization": f"Bearer {make_token('author', **roles)}",
        "X-Flag": "on",
        "X-User-Id": "root",
    }
    request = facts("GET", "/search", headers)
    if passes:
        assert guard.decide(request).name == "search"
    else:
        with pytest.raises(Forbidden):
            guard.decide(request)


def test_handlers_may_ask_for_further_permissions(ask: Ask, guard: Guard, ada: UUID) -> None:
    decision = ask("GET", "/me", ("author",))
    assert guard.permits(decision, "blog.post.create")
    assert guard.permits(decision, "blog.post.publish", Post(ada))
    assert not guard.permits(decision, "blog.post.publish", Post(uuid4()))
    assert not guard.permits(decision, "blog.post.publish")
    assert not guard.permits(decision, "blog.post.unknown")
    guard.require(decision, "blog.post.create")
    with pytest.raises(Forbidden, match=r"blog\.post\.unknown"):
        guard.require(decision, "blog.post.unknown")
    assert not guard.permits(ask("GET", "/posts/7"), "blog.post.create")


def test_an_undeclared_permission_is_held_by_nobody(make_guard: Callable[..., Guard], ask: Ask) -> None:
    guard = make_guard(rules=[Rule(name="x", path="/x", permission="blog.post.undeclared")])
    with pytest.raises(Forbidden):
        ask("GET", "/x", ("author", "editor"), by=guard)


# ---- modules


@pytest.fixture
def with_modules(make_guard: Callable[..., Guard]) -> tuple[Guard, bytes]:
    key = tokens.new_es256_key()
    cluster = Issuer(
        issuer="https://cluster.test",
        audiences=["moorage"],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(key))],
        subject="module",
    )
    permissions = {
        "blog.post.create": PermissionPolicy(),
        "blog.post.publish": PermissionPolicy(condition="resource.author_id == user.id"),
    }
    grants = {"default/shop": ["blog.post.create", "blog.post.publish"]}
    return make_guard(issuers=[cluster], permissions=permissions, module_grants=grants), key


def service_account(key: bytes, namespace: str, name: str, now: float) -> dict[str, str]:
    import jwt

    claims = {
        "iss": "https://cluster.test",
        "aud": "moorage",
        "sub": f"system:serviceaccount:{namespace}:{name}",
        "iat": int(now),
        "exp": int(now) + 600,
    }
    kid = tokens.public_jwk(key)["kid"]
    return {"Authorization": f"Bearer {jwt.encode(claims, key, algorithm='ES256', headers={'kid': kid})}"}


def test_a_module_calls_with_its_service_account(
    with_modules: tuple[Guard, bytes], facts: Facts, now: float
) -> None:
    guard, key = with_modules
    decision = guard.decide(facts("POST", "/posts", service_account(key, "default", "shop", now)))
    assert isinstance(decision.module, ModuleCaller)
    assert decision.module.key == "default/shop"
    assert decision.module.has("blog.post.create")
    assert decision.user is None
    assert "X-Moorage-User" not in decision.upstream_headers()


@pytest.mark.parametrize(
    ("namespace", "name"), [("other", "shop"), ("default", "blog"), ("default", "default")]
)
def test_a_module_without_grant_is_refused(
    with_modules: tuple[Guard, bytes], facts: Facts, now: float, namespace: str, name: str
) -> None:
    guard, key = with_modules
    with pytest.raises(Forbidden):
        guard.decide(facts("POST", "/posts", service_account(key, namespace, name, now)))


def test_a_condition_on_the_user_denies_a_module(
    with_modules: tuple[Guard, bytes], facts: Facts, now: float, ada: UUID
) -> None:
    guard, key = with_modules
    decision = guard.decide(facts("POST", "/posts/7/publish", service_account(key, "default", "shop", now)))
    with pytest.raises(Forbidden):
        guard.authorize(decision, Post(ada))


# ---- keys and time


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer a.b.c"}])
def test_without_keys_what_needs_a_token_is_503(
    make_guard: Callable[..., Guard], facts: Facts, headers: dict[str, str]
) -> None:
    guard = make_guard(issuers=[])
    with pytest.raises(Unavailable) as caught:
        guard.decide(facts("GET", "/me", headers))
    assert (caught.value.code, caught.value.headers) == ("no_keys", {"Retry-After": "5"})
    assert guard.decide(facts("GET", "/posts", headers)).name == "list"


def test_without_keys_an_optional_token_is_503_and_none_is_fine(
    make_guard: Callable[..., Guard], facts: Facts
) -> None:
    guard = make_guard(issuers=[])
    assert guard.decide(facts("GET", "/posts/7")).name == "read"
    with pytest.raises(Unavailable):
        guard.decide(facts("GET", "/posts/7", {"Authorization": "Bearer a.b.c"}))


def test_a_remembered_token_expires_under_the_running_clock(
    make_document: Callable[..., BaseDocument], make_token: Callable[..., str], facts: Facts, now: float
) -> None:
    clock = [now]
    guard = Guard.from_document(make_document(), clock=lambda: clock[0])
    guard.bind_proxy()
    request = facts("GET", "/me", {"Authorization": f"Bearer {make_token()}"})
    first = guard.decide(request)
    clock[0] = now + 800
    assert guard.decide(request).caller is first.caller
    for jump in (905, -3600, 10**9):
        clock[0] = now + jump
        with pytest.raises(Unauthenticated):
            guard.decide(request)


def test_a_new_policy_changes_what_a_remembered_token_may_do(
    tmp_path: Any,
    make_document: Callable[..., BaseDocument],
    make_token: Callable[..., str],
    facts: Facts,
    now: float,
) -> None:
    from moorage.guard import signing

    key = signing.new_key()
    signing.write_folder(tmp_path, make_document(), key)
    guard = Guard.from_folder(tmp_path, namespace="default", module="blog", clock=lambda: now)
    guard.bind_proxy()
    request = facts("POST", "/posts", {"Authorization": f"Bearer {make_token('author')}"})
    assert guard.decide(request).name == "create"
    signing.write_folder(tmp_path, make_document(sequence=2, grants={}), key)
    assert guard.refresh()
    with pytest.raises(Forbidden):
        guard.decide(request)


def test_a_decision_is_judged_by_one_policy_to_its_end(
    make_document: Callable[..., BaseDocument], ask: Ask, guard: Guard, ada: UUID
) -> None:
    """Between the two steps of a request the policy may switch; the second still knows its condition."""
    from moorage.guard.folder import Loaded

    decision = ask("POST", "/posts/7/publish", ("author",))
    after = make_document(sequence=2, rules=[], permissions={})
    guard._switch(Loaded(after, after.canonical()))
    with pytest.raises(Forbidden):
        guard.authorize(decision, Post(uuid4()))
    guard.authorize(decision, Post(ada))


# ---- bodies


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Content-Length", "100")], 200),
        ([("Transfer-Encoding", "chunked")], 200),
        ([], 200),
        ([("Content-Length", "101")], 413),
        ([("Content-Length", "9" * 40)], 413),
        ([("Content-Length", "9" * 5000)], 413),
        ([("Content-Length", "1"), ("Content-Length", "1")], 400),
        ([("Content-Length", "1"), ("Transfer-Encoding", "chunked")], 400),
        ([("Content-Length", "-1")], 400),
        ([("Content-Length", "+1")], 400),
        ([("Content-Length", "1, 1")], 400),
        ([("Content-Length", "0x1")], 400),
        ([("Content-Length", "\u0661")], 400),
        ([("Content-Length", "")], 400),
    ],
)  # fmt: skip
def test_a_body_that_is_too_large_or_of_unclear_length_is_refused(
    guard: Guard, make_token: Callable[..., str], facts: Facts, headers: list[tuple[str, str]], status: int
) -> None:
    request = facts("POST", "/posts", {"Authorization": f"Bearer {make_token('author')}"})
    request.headers.extend(headers)
    found = 200
    try:
        guard.decide(request)
    except AppError as error:
        found = error.status
    assert found == status


# ---- what hosts tell


def test_an_upstream_is_told_the_caller_and_nothing_a_header_could_break(
    ask: Ask, guard: Guard, make_token: Callable[..., str], facts: Facts, ada: UUID
) -> None:
    token = make_token("author", "two, roles", "é", tenant_id="acme/é")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    sent = {
        "Authorization": f"Bearer {token}",
        "X-Request-ID": "r-1",
        "traceparent": trace,
        "tracestate": "a=1",
    }
    decision = guard.decide(facts("GET", "/me", sent))
    told = decision.upstream_headers()
    assert told == {
        "X-Moorage-User": str(ada),
        "X-Moorage-Roles": "author,two%2C roles,%C3%A9",
        "X-Moorage-Tenant": "acme/%C3%A9",
        "X-Request-ID": "r-1",
        "traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{decision.trace.span_id}-01",
        "tracestate": "a=1",
    }
    assert set(ask("GET", "/posts").upstream_headers()) == {"X-Request-ID", "traceparent"}


def test_taking_a_request_in_never_fails() -> None:
    """Every answer bears the request's id, so the id is there before anything can be refused."""
    headers = CIMultiDict({"X-Request-ID": "\x00", "traceparent": "x", "X-Forwarded-For": "\x00, ,"})
    facts = receive("\x00", "", headers, peer="10.0.0.1", trusted=TrustedProxies(["10.0.0.0/8"]))
    assert len(facts.request_id) == 32
    assert facts.client.address == "10.0.0.1"


def test_the_status_is_json_and_tells_nothing_secret(
    guard: Guard, ask: Ask, make_token: Callable[..., str]
) -> None:
    ask("GET", "/me", ("author",))
    text = json.dumps(guard.status())
    assert make_token("author")[:20] not in text
    for secret in ("eyJ", "kid", "author", "resource."):
        assert secret not in text


def test_a_guard_of_a_document_has_nothing_to_refresh(guard: Guard) -> None:
    assert guard.refresh()
    assert guard.ready


def test_remembered_combinations_of_roles_are_bounded(guard: Guard) -> None:
    policy = guard.policy
    assert policy is not None
    for number in range(5000):
        assert policy.codes_of((f"role-{number}", "editor")) == {"blog.post.publish"}
    assert len(policy._codes) <= 4096


@pytest.mark.parametrize(
    ("method", "target", "roles", "named"),
    [
        ("POST", "/posts", None, ("create", "/posts")),
        ("POST", "/posts/7/publish", (), ("publish", "/posts/{id}/publish")),
        ("PUT", "/posts", ("author",), (None, None)),
        ("GET", "/nowhere", ("author",), (None, None)),
    ],
)
def test_a_refusal_names_the_rule_that_had_matched_for_logs_and_metrics(
    ask: Ask, method: str, target: str, roles: tuple[str, ...] | None, named: tuple[str | None, str | None]
) -> None:
    with pytest.raises(AppError) as caught:
        ask(method, target, roles)
    assert (caught.value.rule, caught.value.route) == named
