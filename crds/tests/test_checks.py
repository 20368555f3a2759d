"""Checks between resources."""

from typing import Any, ClassVar

import pytest

from moorage_crds import checks
from moorage_crds.problems import Problem, errors
from moorage_crds.v1alpha1 import Module, Permission, Route


def module(name: str = "blog", namespace: str = "default", **spec: Any) -> Module:
    spec = {"version": "1.0.0", "image": f"acme/{name}:1"} | spec
    return Module.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": spec})


def route(name: str = "blog", namespace: str = "default", created: str | None = None, **spec: Any) -> Route:
    spec = {"module": "blog", "rules": [{"name": "all", "path": "/**"}]} | spec
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return Route.model_validate({"metadata": metadata, "spec": spec})


def permission(name: str = "blog.post.read", namespace: str = "default", **spec: Any) -> Permission:
    return Permission.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": spec})


def told(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.field, problem.reason) for problem in problems]


class TestUnsupported:
    """Every field that waits for a later release is refused by its path."""

    @pytest.mark.parametrize(
        ("spec", "field"),
        [
            ({"autoscaling": {"max": 3}}, "spec.autoscaling"),
            ({"podTemplate": {"spec": {}}}, "spec.podTemplate"),
            ({"jobs": [{"name": "tidy"}]}, "spec.jobs"),
            ({"database": {"approval": "manual"}}, "spec.database.approval"),
            (
                {"dependencies": [{"module": "core"}, {"module": "shop", "namespace": "other"}]},
                "spec.dependencies[1].namespace",
            ),
        ],
    )
    def test_of_a_module(self, spec: dict[str, Any], field: str) -> None:
        (problem,) = checks.unsupported(module(**spec))
        assert (problem.field, problem.reason, problem.message) == (
            field,
            "NotSupported",
            "is not supported yet",
        )
        assert problem.resource == "Module default/blog"
        assert problem.mend

    @pytest.mark.parametrize(
        "part",
        [
            {"retries": {}},
            {"circuitBreaker": {}},
        ],
        ids=lambda part: next(iter(part)),
    )
    def test_of_a_route_and_of_its_rules(self, part: dict[str, Any]) -> None:
        (name,) = part
        rules = [{"name": "one", "path": "/"}, {"name": "two", "path": "/a", **part}]
        assert told(checks.unsupported(route(**part))) == [(f"spec.{name}", "NotSupported")]
        assert told(checks.unsupported(route(rules=rules))) == [(f"spec.rules[1].{name}", "NotSupported")]

    def test_what_is_supported_is_taken(self) -> None:
        whole = module(
            imagePullPolicy="Always",
            imagePullSecrets=["pull"],
            port=3000,
            command=["/serve"],
            args=["-v"],
            env=[{"name": "A", "value": "b"}],
            config={"a": 1},
            secretRefs=[{"name": "keys"}],
            replicas=2,
            resources={"requests": {"cpu": "1"}},
            probes={"readiness": {"path": "/ok"}},
            dependencies=[
                {"module": "shop", "namespace": "default", "version": ">=1"},
                {"module": "moorage"},
            ],
            database={"migrations": "none", "approval": "auto", "onDelete": "Drop"},
            events={"publishes": ["blog.post.made"], "subscribes": [{"type": "user.created"}]},
            sidecar="always",
        )
        rule = {"name": "r", "path": "/", "methods": ["GET"], "permission": "blog.a.b", "timeout": "5s"}
        edge: dict[str, Any] = {
            "cors": {"origins": ["*"]},
            "request": {"remove": ["X-A"]},
            "response": {"set": {"X-A": "b"}},
        }
        rules = [rule | edge | {"maxBody": 5, "rewrite": "/b", "audit": "all"}]
        its_route = route(hosts=["a.example"], prefix="/b", audit="failures", rules=rules, **edge)
        granted = permission(description="d", roles=["a"], modules=[{"name": "shop", "namespace": "x"}])
        assert [p for resource in (whole, its_route, granted) for p in checks.unsupported(resource)] == []

    def test_every_line_of_the_table_names_a_field_that_exists(self) -> None:
        """A misspelt line would never refuse anything."""
        samples = {"Module": module(), "Route": route(), "Permission": permission()}
        for entry in checks.NOT_YET:
            assert checks.unsupported(samples[entry.kind]) == []
            part: Any = type(samples[entry.kind])
            name = entry.field.rpartition(".")[2].removesuffix("[]")
            assert f'"{name}"' in str(part.model_json_schema()).replace("'", '"')


class TestModules:
    def test_a_missing_dependency_is_told_with_the_nearest_name(self) -> None:
        blog = module(dependencies=[{"module": "shopp"}, {"module": "gone", "optional": True}])
        (problem,) = checks.check_module(blog, [module("shop"), module("shopp", "other")])
        assert told([problem]) == [("spec.dependencies[0].module", "DependencyMissing")]
        assert problem.mend == "did you mean `shop`?"

    @pytest.mark.parametrize(
        ("wanted", "optional", "found"),
        [
            (">=1.0,<2", False, []),
            (">=2", False, [("error", "spec.dependencies[0].version")]),
            (">=2", True, [("warning", "spec.dependencies[0].version")]),
        ],
    )
    def test_versions_of_dependencies_are_compared(
        self, wanted: str, optional: bool, found: list[tuple[str, str]]
    ) -> None:
        blog = module(dependencies=[{"module": "shop", "version": wanted, "optional": optional}])
        problems = checks.check_module(blog, [module("shop", version="1.4.0")])
        assert [(problem.severity, problem.field) for problem in problems] == found

    @pytest.mark.parametrize("name", ["core", "moorage"])
    def test_a_dependency_on_the_platform_is_compared_with_its_version(self, name: str) -> None:
        blog = module(dependencies=[{"module": name, "version": ">=2"}])
        assert [problem.reason for problem in checks.check_module(blog, [])] == ["DependencyVersion"]
        assert checks.check_module(blog, [], platform_version="2.1.0") == []
        (problem,) = checks.check_module(blog, [], platform_version="1.9.0")
        assert problem.reason == "DependencyVersion"
        assert "1.9.0" in problem.message

    def test_a_cycle_is_told_to_each_of_its_modules_with_the_way(self) -> None:
        a = module("a", dependencies=[{"module": "b"}])
        b = module("b", dependencies=[{"module": "c"}])
        c = module("c", dependencies=[{"module": "a"}])
        outside = module("d", dependencies=[{"module": "a"}])
        found = {m.metadata.name: checks.check_module(m, [a, b, c, outside]) for m in (a, b, c, outside)}
        assert found["a"][0].message == "depends on itself: a → b → c → a"
        assert found["b"][0].message == "depends on itself: b → c → a → b"
        assert found["c"][0].reason == "DependencyCycle"
        assert found["d"] == []

    def test_a_module_that_needs_itself_is_a_cycle_and_an_optional_one_is_none(self) -> None:
        assert told(checks.check_module(module(dependencies=[{"module": "blog"}]), [])) == [
            ("spec.dependencies", "DependencyCycle")
        ]
        assert checks.check_module(module(dependencies=[{"module": "blog", "optional": True}]), []) == []

    def test_variables_of_the_platform_are_not_set_twice(self) -> None:
        variable = [{"name": "DATABASE_DSN", "value": "x"}]
        assert checks.check_module(module(env=variable), []) == []
        (problem,) = checks.check_module(module(env=variable, database={}), [])
        assert problem.field == "spec.env[0].name"

    @pytest.mark.parametrize(
        ("image", "warned"),
        [
            ("a/b", True),
            ("a/b:latest", True),
            ("host:5000/b", True),
            ("a/b:1", False),
            ("a/b@sha256:" + "0" * 64, False),
        ],
    )
    def test_an_image_without_a_version_is_warned_about(self, image: str, warned: bool) -> None:
        problems = checks.check_module(module(image=image), [])
        assert told(problems) == ([("spec.image", "Invalid")] if warned else [])
        assert errors(problems) == []

    def test_an_unguarded_module_is_warned_about(self) -> None:
        problems = checks.check_module(module(sidecar="never"), [])
        assert [(problem.field, problem.severity) for problem in problems] == [("spec.sidecar", "warning")]
        assert checks.check_module(module(sidecar="never", app="blog:module"), []) == []


class TestRoutes:
    def test_a_missing_module_is_told_and_one_of_another_namespace_does_not_count(self) -> None:
        (problem,) = checks.check_route(route(module="blog"), [module("blog", "other")], [])
        assert told([problem]) == [("spec.module", "ModuleNotFound")]
        (problem,) = checks.check_route(route(module="blgo"), [module("blog")], [])
        assert problem.mend == "did you mean `blog`?"

    def test_a_module_without_a_guard_takes_no_route(self) -> None:
        assert told(checks.check_route(route(), [module(sidecar="never")], [])) == [
            ("spec.module", "NotGuarded")
        ]

    def test_a_path_can_be_rewritten_for_an_upstream_alone(self) -> None:
        """Handlers of a module with `app` are found by the rule's name."""
        rewriting = route(rules=[{"name": "a", "path": "/a"}, {"name": "b", "path": "/b", "rewrite": "/c"}])
        assert checks.check_route(rewriting, [module()], []) == []
        assert told(checks.check_route(rewriting, [module(app="blog:module")], [])) == [
            ("spec.rules[1].rewrite", "NotSupported")
        ]

    def test_an_undeclared_permission_is_told(self) -> None:
        rules = [{"name": "a", "path": "/", "permission": "blog.post.raed"}]
        (problem,) = checks.check_route(
            route(rules=rules), [module()], [permission(), permission("blog.post.raed", "other")]
        )
        assert told([problem]) == [("spec.rules[0].permission", "PermissionNotFound")]
        assert problem.mend == "did you mean `blog.post.read`?"
        assert checks.check_route(route(permission="blog.post.read"), [module()], [permission()]) == []

    def test_a_permission_of_another_module_is_refused(self) -> None:
        """Its grants are in the other module's policy: nobody could ever pass."""
        found = checks.check_route(
            route(permission="shop.order.read"), [module()], [permission("shop.order.read")]
        )
        assert told(found) == [("spec.permission", "PermissionNotFound")]
        assert "`blog.`" in found[0].mend

    def test_a_capture_named_twice_is_told(self) -> None:
        found = checks.check_route(route(rules=[{"name": "a", "path": "/{id}/b/{id}"}]), [module()], [])
        assert [(problem.field, "{id}" in problem.message) for problem in found] == [
            ("spec.rules[0].path", True)
        ]

    @pytest.mark.parametrize(
        ("first", "second", "ambiguous"),
        [
            ({"path": "/a/{x}"}, {"path": "/a/{y}"}, True),
            ({"path": "/a/{x}"}, {"path": "/a/b"}, False),
            ({"path": "/a/**"}, {"path": "/a/{x}"}, False),
            ({"path": "/a", "methods": ["GET", "PUT"]}, {"path": "/a", "methods": ["PUT"]}, True),
            ({"path": "/a", "methods": ["GET"]}, {"path": "/a", "methods": ["PUT"]}, False),
            ({"path": "/a", "methods": ["GET"]}, {"path": "/a"}, False),
            ({"path": "/a"}, {"path": "/a"}, True),
        ],
    )
    def test_rules_for_the_same_requests_are_ambiguous(
        self, first: dict[str, Any], second: dict[str, Any], ambiguous: bool
    ) -> None:
        rules = [{"name": "one"} | first, {"name": "two"} | second]
        found = checks.check_route(route(rules=rules), [module()], [])
        assert told(found) == ([("spec.rules[1].path", "Ambiguous")] if ambiguous else [])

    def test_rules_of_all_routes_of_a_module_are_told_apart(self) -> None:
        old = route("old", created="2026-01-01T00:00:00Z", prefix="/a", rules=[{"name": "x", "path": "/b"}])
        new = route("new", created="2026-01-02T00:00:00Z", rules=[{"name": "y", "path": "/a/b"}])
        same_name = route("zoo", rules=[{"name": "x", "path": "/c"}])
        elsewhere = route("old", "other", rules=[{"name": "x", "path": "/c"}])
        everything = [old, new, same_name, elsewhere]
        found = {r.metadata.name: checks.check_route(r, [module()], [], everything) for r in everything[:3]}
        assert found["old"] == []
        assert told(found["new"]) == [("spec.rules[0].path", "Ambiguous")]
        assert "rule x of Route old" in found["new"][0].message
        assert told(found["zoo"]) == [("spec.rules[0].name", "Duplicate")]

    def test_a_route_for_a_host_and_one_for_all_hosts_are_told_apart(self) -> None:
        routes = [route("a"), route("b", hosts=["x.example"], rules=[{"name": "b", "path": "/**"}])]
        assert [problem for r in routes for problem in checks.check_route(r, [module()], [], routes)] == []


class TestPermissions:
    def test_a_permission_of_a_missing_module_is_told(self) -> None:
        (problem,) = checks.check_permission(
            permission("blgo.post.read"), [module(), module("blgo", "other")]
        )
        assert told([problem]) == [("metadata.name", "ModuleNotFound")]
        assert problem.mend == "did you mean `blog.post.read`?"

    def test_a_grant_to_a_missing_module_is_warned_about(self) -> None:
        granted = permission(
            modules=[{"name": "shop"}, {"name": "shop", "namespace": "other"}, {"name": "blog"}]
        )
        problems = checks.check_permission(granted, [module()])
        assert [(problem.field, problem.severity) for problem in problems] == [
            ("spec.modules[0].name", "warning")
        ]


def test_a_whole_set_is_checked_by_every_check() -> None:
    found = checks.check(
        [module(dependencies=[{"module": "gone"}]), module("shop", jobs=[{"name": "j"}])],
        [route(), route("two", module="shop", rules=[{"name": "r", "path": "/{x}"}])],
        [permission("gone.a.b")],
    )
    assert sorted(problem.reason for problem in found) == [
        "ClaimConflict",
        "DependencyMissing",
        "ModuleNotFound",
        "NotSupported",
    ]
    assert all(problem.resource and problem.mend for problem in found)


def test_problems_are_json_and_one_line() -> None:
    (problem,) = checks.check_permission(permission("gone.a.b"), [])
    assert problem.as_dict()["severity"] == "error"
    assert "\n" not in str(problem)
    assert str(problem).startswith("Permission default/gone.a.b: metadata.name: names the Module")


class TestEvents:
    """What a Module needs for its events, and whose a topic is."""

    publishing: ClassVar[dict[str, Any]] = {
        "app": "blog:module",
        "database": {},
        "events": {"publishes": ["blog.post.created", "blog.post.published"]},
    }

    def test_a_module_with_app_and_database_may_have_them(self) -> None:
        events = {"publishes": ["blog.post.created"], "subscribes": [{"type": "platform.user.deleted"}]}
        assert errors(checks.check_module(module(**self.publishing | {"events": events}), [])) == []

    @pytest.mark.parametrize(
        ("change", "field", "reason"),
        [
            ({"app": None}, "spec.events", "NotSupported"),
            ({"database": {"migrations": "none"}}, "spec.events", "Invalid"),
            (
                {"database": None, "events": {"subscribes": [{"type": "user.made"}]}},
                "spec.events.subscribes",
                "Invalid",
            ),
            ({"events": {"publishes": ["platform.user.made"]}}, "spec.events.publishes[0]", "Invalid"),
        ],
    )
    def test_what_they_need(self, change: dict[str, Any], field: str, reason: str) -> None:
        (problem,) = errors(checks.check_module(module(**self.publishing | change), []))
        assert (problem.field, problem.reason) == (field, reason)
        assert problem.mend

    def test_the_platforms_types_are_published_in_the_core_namespace(self) -> None:
        core = module(
            "identity", "core", **self.publishing | {"events": {"publishes": ["platform.user.made"]}}
        )
        assert errors(checks.check_module(core, [], core_namespace="core")) == []

    def test_a_topic_belongs_to_one_module_of_a_namespace(self) -> None:
        """Also where the two publish different types of it: their order would be lost."""
        other = module(
            "shop", **self.publishing | {"events": {"publishes": ["blog.tag.made", "blog.post.made"]}}
        )
        elsewhere = module("blog", "staging", **self.publishing)
        problems = errors(checks.check([module(**self.publishing), other, elsewhere], [], []))
        assert [(problem.resource, problem.field) for problem in problems] == [
            ("Module default/shop", "spec.events.publishes[1]")
        ]
        assert "`blog.post`" in problems[0].message
        assert "Module default/blog" in problems[0].message

    def test_a_subscription_to_a_misspelt_type_is_pointed_out(self) -> None:
        listening = {"subscribes": [{"type": "blog.post.publishd"}, {"type": "shop.order.made"}]}
        mail = module("mail", **self.publishing | {"events": listening})
        (problem,) = checks.check([module(**self.publishing), mail], [], [])
        assert (problem.field, problem.severity) == ("spec.events.subscribes[0].type", "warning")
        assert "blog.post.published" in problem.mend
