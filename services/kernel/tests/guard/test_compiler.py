"""The compiler: the same resources give the same bytes, only a module's own resources count, and mistakes are named."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.guard.compiler import CompileError, compile_base
from moorage.guard.engine import Guard
from moorage.guard.policy import BaseDocument, Issuer, parse_document
from moorage_crds.v1alpha1 import Module, Permission, Route

Compile = Callable[..., BaseDocument]


def module(name: str = "blog", namespace: str | None = "default") -> Module:
    return Module.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"version": "1.0.0", "image": "acme/blog:1.0.0"},
        }
    )


def route(
    *rules: dict[str, Any], name: str = "blog", namespace: str = "default", of: str = "blog", **spec: Any
) -> Route:
    return Route.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"module": of, "prefix": "/api/v1/blog", "rules": list(rules), **spec},
        }
    )


def unchecked(good: Route, **changes: Any) -> Route:
    """*good* with its first rule changed past the model's checks, as an older CRD might let it through."""
    rules = [good.spec.rules[0].model_copy(update=changes), *good.spec.rules[1:]]
    return good.model_copy(update={"spec": good.spec.model_copy(update={"rules": rules})})


def permission(name: str, namespace: str = "default", **spec: Any) -> Permission:
    return Permission.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": spec})


LIST = {"name": "list", "methods": ["GET"], "path": "/posts", "auth": "none"}
CREATE = {"name": "create", "methods": ["POST"], "path": "/posts", "permission": "blog.post.create"}


@pytest.fixture
def compiled(issuer: Issuer) -> Compile:
    def make(
        routes: list[Route], permissions: Sequence[Permission] = (), of: Module | None = None
    ) -> BaseDocument:
        return compile_base(
            of or module(),
            routes,
            permissions,
            issuers=[issuer],
            sequence=7,
            issued_at="2027-01-15T08:00:00Z",
        )

    return make


def problems(compiled: Compile, *args: Any) -> list[str]:
    with pytest.raises(CompileError) as caught:
        compiled(*args)
    assert all(problem.mend for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_the_examples_of_the_design_become_their_document(compiled: Compile, issuer: Issuer) -> None:
    document = compiled(
        [route(LIST, CREATE)],
        [
            permission("blog.post.create", roles=["author", "admin"], modules=[{"name": "shop"}]),
            permission(
                "blog.post.publish",
                roles=["author"],
                condition="resource.author_id == user.id",
                modules=[{"name": "shop", "namespace": "other"}],
            ),
        ],
    )
    assert (document.namespace, document.module, document.sequence) == ("default", "blog", 7)
    assert document.issuers == [issuer]
    assert document.grants == {
        "admin": ["blog.post.create"],
        "author": ["blog.post.create", "blog.post.publish"],
    }
    assert document.module_grants == {
        "default/shop": ["blog.post.create"],
        "other/shop": ["blog.post.publish"],
    }
    assert document.permissions["blog.post.create"].condition is None
    assert document.permissions["blog.post.publish"].condition == "resource.author_id == user.id"
    create, listing = document.rules
    assert (create.name, create.path, create.methods) == ("create", "/api/v1/blog/posts", ["POST"])
    assert (create.auth, create.permission) == ("required", "blog.post.create")
    assert (create.timeout_ms, create.max_body) == (30_000, 1_048_576)
    assert (listing.name, listing.auth, listing.permission) == ("list", "none", None)
    assert parse_document(document.canonical()) == document
    assert Guard.from_document(document).ready


def test_defaults_of_the_route_are_merged_into_its_rules(compiled: Compile) -> None:
    rules = [
        {"name": "a", "path": "/a"},
        {"name": "b", "path": "/b", "timeout": "5s", "maxBody": "2Ki", "permission": "blog.post.other"},
        {"name": "c", "path": "/c", "auth": "optional"},
        {"name": "d", "path": "/d", "auth": "required"},
    ]
    document = compiled(
        [
            route(
                *rules, timeout="1m30s", maxBody="1k", permission="blog.post.edit", hosts=["b.test", "a.test"]
            )
        ]
    )
    found = {rule.name: rule for rule in document.rules}
    assert (found["a"].timeout_ms, found["a"].max_body) == (90_000, 1000)
    assert (found["b"].timeout_ms, found["b"].max_body) == (5_000, 2048)
    assert [found[name].permission for name in "abcd"] == [
        "blog.post.edit",
        "blog.post.other",
        None,
        "blog.post.edit",
    ]
    assert (found["c"].auth, found["d"].auth) == ("optional", "required")
    assert found["a"].hosts == ["a.test", "b.test"]


def test_a_rules_audit_counts_over_its_routes_and_none_is_not_said(compiled: Compile) -> None:
    rules = [
        {"name": "a", "path": "/a"},
        {"name": "b", "path": "/b", "audit": "all"},
        {"name": "c", "path": "/c", "audit": "none"},
    ]
    document = compiled([route(*rules, audit="failures")])
    assert [rule.audit for rule in document.rules] == ["failures", "all", None]
    assert parse_document(document.canonical()) == document
    for none in ({}, {"audit": "none"}):
        silent = compiled([route({"name": "a", "path": "/a"}, **none)])
        assert b"audit" not in silent.canonical(), "a guard older than the field takes it"


def test_a_route_open_by_default_may_guard_single_rules(compiled: Compile) -> None:
    rules = [
        {"name": "a", "path": "/a"},
        {"name": "b", "path": "/b", "auth": "required", "permission": "blog.p.q"},
    ]
    found = {rule.name: rule for rule in compiled([route(*rules, auth="none")]).rules}
    assert (found["a"].auth, found["b"].auth) == ("none", "required")


def test_only_the_modules_own_resources_count(compiled: Compile) -> None:
    """Neither another namespace nor another module can add to a module's policy, whatever it is called."""
    document = compiled(
        [
            route(LIST),
            route(CREATE, name="other", namespace="evil"),
            route({"name": "x", "path": "/x", "auth": "none"}, name="shop", of="shop"),
        ],
        [
            permission("blog.post.create", namespace="evil", roles=["visitor"]),
            permission("shop.post.create", roles=["visitor"]),
            permission("blogger.post.create", roles=["visitor"]),
            permission("blog.post.read", roles=["reader"]),
        ],
    )
    assert [rule.name for rule in document.rules] == ["list"]
    assert document.grants == {"reader": ["blog.post.read"]}
    assert set(document.permissions) == {"blog.post.read"}


def test_a_missing_namespace_means_default(compiled: Compile) -> None:
    own = Route.model_validate({"metadata": {"name": "blog"}, "spec": {"module": "blog", "rules": [LIST]}})
    document = compiled([own], [], module(namespace=None))
    assert document.namespace == "default"
    assert [rule.path for rule in document.rules] == ["/posts"]


@given(st.randoms(use_true_random=False))
def test_the_order_of_resources_makes_no_difference(chance: random.Random) -> None:
    routes = [
        route(*({"name": f"r{number}-{at}", "path": f"/{number}/{at}"} for at in range(3)), name=f"r{number}")
        for number in range(4)
    ]
    permissions = [
        permission(f"blog.post.a{at}", roles=["author", f"role{at}"], modules=[{"name": "shop"}])
        for at in range(4)
    ]

    def make() -> bytes:
        document = compile_base(module(), routes, permissions, issuers=[], sequence=1, issued_at="")
        return document.canonical()

    before = make()
    chance.shuffle(routes)
    chance.shuffle(permissions)
    assert make() == before


@pytest.mark.parametrize("auth", ["none", "optional"])
def test_a_permission_without_a_caller_is_a_mistake(compiled: Compile, auth: str) -> None:
    found = problems(compiled, [unchecked(route(CREATE), auth=auth)])
    assert len(found) == 1
    assert found[0].startswith(
        "Route default/blog: spec.rules[0].permission: a permission needs to know who calls"
    )
    assert "auth: required" in found[0]


def test_all_mistakes_are_named_at_once(compiled: Compile) -> None:
    found = problems(
        compiled,
        [
            unchecked(
                route(
                    {"name": "x", "path": "/x"},
                    LIST,
                    {"name": "twin", "path": "/posts", "methods": ["GET", "PUT"]},
                ),
                path="/a/**/b",
            ),
            route({"name": "list", "path": "/else"}, name="second"),
        ],
        [
            permission("blog.post.publish", condition="resource.author == nobody"),
        ],
    )
    text = "\n".join(found)
    assert "spec.rules[2].path: rules list and twin take the same requests: GET /api/v1/blog/posts" in text
    assert "spec.rules[0].path: path /api/v1/blog/a/**/b: ** can only be the last segment" in text
    assert "Route default/second: spec.rules[0].name: the module has another rule list in Route blog" in text
    assert (
        "Permission default/blog.post.publish: spec.condition: the condition is not taken: there is no nobody"
        in text
    )
    assert len(found) == 4


def test_the_error_itself_reads_well(compiled: Compile) -> None:
    with pytest.raises(CompileError, match=r"spec\.rules\[0\]\.path"):
        compiled([unchecked(route(LIST), path="/{a}/{a}")])
