"""From a Route's `cors`, `request`, `response` and `rewrite` to the document; what is wrong is named with its field."""

from typing import Any

import pytest

from moorage.guard.compiler import CompileError, compile_base
from moorage.guard.policy import BaseDocument, Rule, parse_document
from moorage_crds.v1alpha1 import Module, Route

APP = "https://app.example.com"
READ = {"name": "read", "methods": ["GET"], "path": "/posts/{id}", "auth": "none"}


def compiled(*rules: dict[str, Any], app: bool = False, **spec: Any) -> BaseDocument:
    about = {"version": "1.0.0", "image": "acme/blog:1.0.0"} | ({"app": "blog:module"} if app else {})
    module = Module.model_validate({"metadata": {"name": "blog", "namespace": "default"}, "spec": about})
    wanted = {"module": "blog", "prefix": "/api", "rules": [*rules], **spec}
    route = Route.model_validate({"metadata": {"name": "blog", "namespace": "default"}, "spec": wanted})
    return compile_base(module, [route], [], issuers=[], sequence=1, issued_at="")


def problems(*rules: dict[str, Any], **more: Any) -> list[str]:
    with pytest.raises(CompileError) as caught:
        compiled(*rules, **more)
    assert all(problem.mend for problem in caught.value.problems)
    return [f"{problem.field}: {problem.message}" for problem in caught.value.problems]


def test_all_of_it_reaches_the_document() -> None:
    rule = {
        **READ,
        "cors": {
            "origins": [APP, "http://localhost:3000"],
            "methods": ["GET"],
            "headers": ["X-Trial"],
            "exposeHeaders": ["X-Total"],
            "credentials": True,
            "maxAge": "1h",
        },
        "request": {"set": {"X-B": "2", "X-A": "1"}, "remove": ["X-C"]},
        "response": {"set": {"Content-Security-Policy": "default-src 'self'"}, "remove": ["Server"]},
        "rewrite": "/v2/{id}",
    }
    document = compiled(rule)
    assert document.rules == [
        Rule.model_validate(
            {
                "name": "read",
                "methods": ["GET"],
                "path": "/api/posts/{id}",
                "auth": "none",
                "timeout_ms": 30_000,
                "max_body": 1024 * 1024,
                "cors": {
                    "origins": ["http://localhost:3000", APP],
                    "methods": ["GET"],
                    "headers": ["X-Trial"],
                    "expose_headers": ["X-Total"],
                    "credentials": True,
                    "max_age": 3600,
                },
                "request": {"set": {"X-A": "1", "X-B": "2"}, "remove": ["X-C"]},
                "response": {"set": {"Content-Security-Policy": "default-src 'self'"}, "remove": ["Server"]},
                "rewrite": "/v2/{id}",
            }
        )
    ]
    assert parse_document(document.canonical()) == document


def test_a_rule_takes_over_what_its_route_says_as_a_whole_or_not_at_all() -> None:
    own = {**READ, "name": "own", "path": "/own", "cors": {"origins": ["*"]}}
    inherited, said = reversed(
        compiled(
            READ,
            own,
            cors={"origins": [APP], "credentials": True, "methods": ["GET", "POST"]},
            request={"remove": ["X-A"]},
        ).rules
    )
    assert inherited.cors is not None
    assert said.cors is not None
    assert (inherited.cors.origins, inherited.cors.credentials) == ([APP], True)
    assert (said.cors.origins, said.cors.credentials) == (["*"], False)
    assert inherited.request == said.request
    assert inherited.request is not None
    assert inherited.request.remove == ["X-A"]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (
            {"cors": {"origins": ["https://a.example:70000"]}},
            "cors.origins: `https://a.example:70000` is no origin",
        ),
        ({"cors": {"origins": [APP], "headers": ["*"]}}, "cors.headers: `*` is no header's name"),
        ({"cors": {"origins": [APP], "exposeHeaders": ["*"]}}, "cors.exposeHeaders: `*` is no header's name"),
        (
            {"request": {"set": {"X-User-Id": "1"}}},
            "request.set: `X-User-Id` says who or where the caller is",
        ),
        ({"request": {"set": {"X_Moorage.User": "1"}}}, "request.set: `X_Moorage.User` is not a name"),
        ({"request": {"remove": ["X-Moorage-User"]}}, "request.remove: `X-Moorage-User` says who"),
        ({"request": {"set": {"Host": "a"}}}, "request.set: `Host` belongs to the guard or to HTTP itself"),
        ({"request": {"remove": ["Content-Length"]}}, "request.remove: `Content-Length` belongs"),
        ({"request": {"set": {"X-A": "1", "x-a": "2"}}}, "request.set: `x-a` is there twice"),
        ({"response": {"set": {"Transfer-Encoding": "x"}}}, "response.set: `Transfer-Encoding` belongs"),
        ({"response": {"remove": ["X-Frame-Options"]}}, "response.remove: `X-Frame-Options` protects"),
        (
            {"response": {"set": {"Access-Control-Allow-Origin": "*"}}},
            "response.set: `Access-Control-Allow-Origin` is",
        ),
    ],
)
def test_what_no_guard_could_do_is_told_with_its_field(part: dict[str, Any], told: str) -> None:
    for field, found in (
        ("spec.rules[1].", problems({**READ, "name": "first", "path": "/first"}, {**READ, **part})),
        ("spec.", problems(READ, **part)),
    ):
        assert any(one.startswith(field + told) for one in found), found


@pytest.mark.parametrize("rewrite", ["/{other}", "/**", "/{id}/**"])
def test_a_rewrite_with_what_the_path_does_not_capture_is_told(rewrite: str) -> None:
    (told,) = problems({**READ, "rewrite": rewrite})
    assert told.startswith("spec.rules[0].rewrite: rewrite")


def test_methods_that_a_rule_does_not_take_cannot_be_asked_for() -> None:
    told = problems({**READ, "cors": {"origins": [APP], "methods": ["GET", "HEAD", "POST"]}})
    assert told == ["spec.rules[0].cors.methods: the rule does not take POST"]


@pytest.mark.parametrize("name", ["Content-Type", "If-Match", "idempotency-key", "Accept-Encoding", "Origin"])
def test_what_the_process_itself_reads_it_reads_as_it_was_sent(name: str) -> None:
    changed = {**READ, "request": {"remove": [name]}}
    assert "goes by" in problems(changed, app=True)[0]
    assert compiled(changed).rules[0].request is not None


def test_the_process_says_server_itself() -> None:
    changed = {**READ, "response": {"remove": ["server"]}}
    assert "Server: moorage" in problems(changed, app=True)[0]
    assert compiled(changed).rules[0].response is not None
