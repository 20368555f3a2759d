"""What `moorage policy explain` says is what the guard does, and why."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from moorage.errors import AppError
from moorage.guard.engine import Guard
from moorage.guard.explain import Explanation, Question, explain, lines
from moorage.guard.identity import User
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.policy import BaseDocument, Rule

ADA = UUID("3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11")


def user(*roles: str) -> User:
    return User(id=ADA, roles=roles)


@pytest.fixture
def about(make_document: Callable[..., BaseDocument]) -> Callable[..., Explanation]:
    def ask(method: str, target: str, **question: Any) -> Explanation:
        return explain(make_document(), Question(method, target, **question))

    return ask


def test_a_public_rule_is_allowed_for_nobody(about: Callable[..., Explanation]) -> None:
    found = about("GET", "/posts")
    assert found.allowed is True
    assert found.rule is not None
    assert (found.rule.name, found.rule.auth, found.permission) == ("list", "none", None)


def test_without_a_caller_it_is_401_and_names_the_rule(about: Callable[..., Explanation]) -> None:
    found = about("POST", "/posts")
    assert (found.allowed, found.status, found.code) == (False, 401, "unauthenticated")
    assert found.rule is not None
    assert found.rule.name == "create"


def test_the_role_that_grants_is_named(about: Callable[..., Explanation]) -> None:
    found = about("POST", "/posts", user=user("reader", "author"))
    assert found.allowed is True
    assert found.permission is not None
    assert found.permission.through == ["author"]
    assert found.permission.granted_to == ["author", "default/shop"]


def test_who_holds_no_role_learns_which_would_do(about: Callable[..., Explanation]) -> None:
    found = about("POST", "/posts/7/publish", user=user("reader"))
    assert (found.allowed, found.status, found.code) == (False, 403, "forbidden")
    assert found.permission is not None
    assert (found.permission.held, found.permission.granted_to) == (False, ["author", "editor"])
    assert found.rule is not None
    assert found.rule.params == {"id": "7"}


@pytest.mark.parametrize(
    ("resource", "allowed", "result"),
    [
        (None, None, None),
        ({"author_id": str(ADA)}, True, True),
        ({"author_id": "somebody"}, False, False),
        ({}, False, False),
    ],
)
def test_a_condition_is_judged_with_the_resource_that_is_named(
    about: Callable[..., Explanation], resource: object, allowed: bool | None, result: bool | None
) -> None:
    found = about("POST", "/posts/7/publish", user=user("author"), resource=resource)
    assert found.allowed is allowed
    assert found.rule is not None
    assert found.permission is not None
    condition = found.permission.condition
    assert condition is not None
    assert condition.result is result
    assert bool(condition.problem) == (resource == {})  # a member that is not there: why it denies is said


def test_a_condition_about_the_request_is_judged_at_once(about: Callable[..., Explanation]) -> None:
    assert about("GET", "/search?q=x", user=user("author")).allowed is True
    refused = about("GET", "/search?q=a&q=b", user=user("author"))
    assert refused.allowed is False
    assert refused.permission is not None
    assert refused.permission.condition is not None
    assert "twice" in refused.permission.condition.problem


def test_a_module_that_calls_holds_what_it_was_granted(about: Callable[..., Explanation]) -> None:
    granted = about("POST", "/posts", module="default/shop")
    assert granted.allowed is True
    assert granted.permission is not None
    assert granted.permission.through == ["default/shop"]
    assert about("POST", "/posts", module="default/other").code == "forbidden"


def test_a_module_of_another_form_is_no_question(about: Callable[..., Explanation]) -> None:
    with pytest.raises(ValueError, match="namespace/name"):
        about("POST", "/posts", module="shop")


def test_other_methods_of_the_path_are_named(about: Callable[..., Explanation]) -> None:
    found = about("DELETE", "/posts")
    assert (found.status, found.rule) == (405, None)
    assert found.nearest == ["list (GET /posts)", "create (POST /posts)"]


def test_similar_paths_are_named(about: Callable[..., Explanation]) -> None:
    found = about("GET", "/serch")
    assert found.status == 404
    assert "search (GET /search)" in found.nearest


def test_a_path_that_no_guard_takes_is_explained_as_well(about: Callable[..., Explanation]) -> None:
    assert about("GET", "/posts/../me").code == "bad_path"


def test_rules_that_would_fit_as_well_are_named(make_document: Callable[..., BaseDocument]) -> None:
    rules = [
        Rule(name="one", methods=["GET"], path="/a/{id}", auth="none"),
        Rule(name="mine", methods=["GET"], path="/a/me", auth="none"),
        Rule(name="rest", path="/**", auth="none"),
        Rule(name="posted", methods=["POST"], path="/a/{id}", auth="none"),
    ]
    found = explain(make_document(rules=rules), Question("GET", "/a/me"))
    assert found.rule is not None
    assert found.rule.name == "mine"
    assert found.rule.also_fit == ["one (GET /a/{id})", "rest (any method /**)"]


def test_the_limits_of_the_rule_are_said(make_document: Callable[..., BaseDocument]) -> None:
    limits = Limits(
        user=Limit(count=100, seconds=60),
        address=Limit(count=5, seconds=1, scope="route/blog"),
        rule=Limit(count=9, seconds=3600, scope="rule/one"),
        outage="refuse",
    )
    rules = [Rule(name="one", path="/a", auth="none", limits=limits)]
    found = explain(make_document(rules=rules), Question("GET", "/a"))
    assert list(lines(found))[3:7] == [
        ("limit", "user: 100 in 60 s, together with all rules of the module"),
        ("", "address: 5 in 1 s, together with route/blog"),
        ("", "rule: 9 in 3600 s"),
        ("", "503 limits_unavailable while Redis is away"),
    ]


@pytest.mark.parametrize("roles", [(), ("author",), ("editor",), ("reader", "editor")])
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/posts"),
        ("GET", "/posts/7"),
        ("GET", "/me"),
        ("POST", "/posts"),
        ("POST", "/posts/7/publish"),
        ("GET", "/search?q=x"),
        ("PUT", "/posts"),
        ("GET", "/nothing"),
        ("GET", "/a//b"),
    ],
)
def test_it_says_what_the_guard_does(
    about: Callable[..., Explanation],
    guard: Guard,
    facts: Callable[..., Any],
    make_token: Callable[..., str],
    method: str,
    target: str,
    roles: tuple[str, ...],
) -> None:
    found = about(method, target, user=user(*roles), host="blog.test")
    request = facts(method, target, {"Authorization": f"Bearer {make_token(*roles)}"})
    if found.allowed is False:
        with pytest.raises(AppError) as caught:
            guard.decide(request)
        assert (found.status, found.code) == (caught.value.status, caught.value.code)
    else:
        decision = guard.decide(request)
        assert found.allowed is (None if decision.needs_resource else True)
        assert found.rule is not None
        assert found.rule.name == decision.name


def test_people_get_lines(about: Callable[..., Explanation]) -> None:
    found = about("POST", "/posts/7/publish", user=user("author"), resource={"author_id": "somebody"})
    assert list(lines(found)) == [
        ("rule", "publish: POST /posts/{id}/publish"),
        ("", 'id = "7"'),
        ("caller", f"user {ADA}; roles author"),
        ("token", "required"),
        ("permission", "blog.post.publish: held through author; granted to author, editor"),
        ("condition", "resource.author_id == user.id: false"),
        ("answer", "403 forbidden: You need the permission blog.post.publish for this."),
    ]


@pytest.mark.parametrize(
    ("audit", "said", "shown"),
    [
        (None, "none", []),
        ("failures", "failures", [("audit", "failures")]),
        ("all", "all", [("audit", "all")]),
    ],
)
def test_it_says_what_is_recorded(
    make_document: Callable[..., BaseDocument], audit: Any, said: str, shown: list[tuple[str, str]]
) -> None:
    rules = [Rule(name="one", path="/a", auth="none", audit=audit)]
    found = explain(make_document(rules=rules), Question("GET", "/a"))
    assert found.as_dict()["rule"]["audit"] == said
    assert [line for line in lines(found) if line[0] == "audit"] == shown
