"""Reading folders: what runs here, what is refused and why, in which order things start."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage_operator.local import catalog, edge
from moorage_operator.local.policies import Policies
from moorage_operator.local.runner import SETTINGS, WITHOUT_RATE_LIMITS
from moorage_operator.local.state import State

Write = Callable[..., Path]


def module(name: str, spec: str = 'app: "blog:module"', namespace: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return (
        f"apiVersion: moorage.dev/v1alpha1\nkind: Module\nmetadata: {{name: {name}{where}}}\n"
        f"spec:\n  version: 1.0.0\n  image: acme/{name}:1.0.0\n  {spec}\n"
    )


def route(name: str, prefix: str, rules: str, extra: str = "") -> str:
    return (
        f"apiVersion: moorage.dev/v1alpha1\nkind: Route\nmetadata: {{name: {name}}}\n"
        f"spec:\n  module: {name}\n  prefix: {prefix}\n  {extra}\n  rules:\n{rules}\n"
    )


LIST = "  - {name: list, methods: [GET], path: /posts}"
GET_ONE = '  - {name: read, methods: [GET], path: "/posts/{id}", permission: blog.post.read}'
FILES = '  - {name: files, path: "/files/**", auth: none}'
READ = (
    "apiVersion: moorage.dev/v1alpha1\nkind: Permission\nmetadata: {name: blog.post.read}\n"
    "spec: {roles: [reader]}\n"
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def folder(name: str, *documents: str) -> Path:
        manifests = tmp_path / name / "manifests"
        manifests.mkdir(parents=True, exist_ok=True)
        (manifests / "all.yaml").write_text("---\n".join(documents))
        return tmp_path / name

    return folder


def test_a_module_gets_its_routes_permissions_and_folder(write: Write) -> None:
    folder = write("blog", module("blog"), route("blog", "/api", f"{LIST}\n{GET_ONE}"), READ)
    found = catalog.read([folder])
    assert [str(problem) for problem in found.errors] == []
    (blog,) = found.modules
    assert (blog.key, blog.label, blog.folder) == (("default", "blog"), "blog", folder.resolve())
    assert len(blog.routes) == 1
    assert [permission.code for permission in blog.permissions] == ["blog.post.read"]
    assert blog.import_path == (folder.resolve() / "src", folder.resolve())


def test_several_folders_are_checked_together_and_start_in_order_of_their_dependencies(write: Write) -> None:
    shop = write("shop", module("shop", 'app: "shop:module"\n  dependencies: [{module: blog}]'))
    blog = write("blog", module("blog"))
    found = catalog.read([shop, blog])
    assert [str(problem) for problem in found.errors] == []
    assert [m.label for m in found.modules] == ["blog", "shop"]
    assert any("blog" in str(problem) for problem in catalog.read([shop]).errors)


def test_modules_of_one_name_in_two_namespaces_have_labels_of_their_own(write: Write) -> None:
    first = write("one", module("blog"))
    second = write("two", module("blog", namespace="shop"))
    assert [m.label for m in catalog.read([first, second]).modules] == ["blog", "shop.blog"]


def test_a_module_without_app_needs_a_program_that_is_here(write: Write) -> None:
    missing = catalog.read([write("a", module("legacy", "command: [no-such-program]"))])
    (problem,) = missing.errors
    assert problem.field == "spec.command"
    assert "`no-such-program` is not there" in problem.message
    assert "all.yaml:" in problem.source
    image_only = catalog.read([write("b", module("legacy", "port: 8081"))])
    assert "a module without `app` needs a `command` on the PATH" in image_only.errors[0].message
    assert catalog.read([write("c", module("legacy", "command: [sh]"))]).errors == []


def test_a_program_with_a_slash_is_looked_for_in_the_modules_folder(write: Write) -> None:
    folder = write("legacy", module("legacy", "command: [./run]"))
    assert catalog.read([folder]).errors
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (legacy,) = catalog.read([folder]).modules
    assert catalog.program(legacy) == os.fspath(folder.resolve() / "run")


def test_a_condition_that_is_no_cel_is_found_before_anything_starts(write: Write) -> None:
    bad = READ.replace("{roles: [reader]}", '{roles: [reader], condition: "resource.author_id =="}')
    found = catalog.read([write("blog", module("blog"), route("blog", "/api", GET_ONE), bad)])
    assert any(problem.field == "spec.condition" for problem in found.errors)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: [", "all.yaml"),
        (module("blog", 'app: "blog:module"\n  imagePulPolicy: Always'), "imagePullPolicy"),
        (module("blog").replace("1.0.0", "one"), "spec.version"),
        (module("b" * 50), "metadata.name"),
        (route("blog", "/api", LIST), "spec.module"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n", "no Module found"),
    ],
    ids=["no YAML", "unknown field", "bad version", "long name", "Route to nowhere", "no Module"],
)
def test_bad_manifests_are_named_with_line_and_mend(write: Write, text: str, says: str) -> None:
    found = catalog.read([write("blog", text)])
    assert any(says in str(problem) for problem in found.errors), [str(p) for p in found.problems]


def test_the_edge_gets_the_prefix_and_hosts(write: Write) -> None:
    rules = f"{LIST}\n{GET_ONE}\n{FILES}"
    folder = write("blog", module("blog"), route("blog", "/api/v1", rules, "hosts: [blog.example.com]"), READ)
    (blog,) = catalog.read([folder]).modules
    assert edge.prefixes(blog) == ["/api/v1"]
    assert edge.hosts(blog) == ["blog.example.com"]
    (entry,) = edge.configuration(8080, 9900, [edge.Upstream(blog, 8091, Path("/p"))])["modules"]
    assert (entry["upstream"], entry["guarded"]) == ("http://127.0.0.1:8091", True)


def test_a_module_that_cannot_guard_itself_is_guarded_by_the_gateway(write: Write) -> None:
    folder = write("legacy", module("legacy", "command: [sh]"), route("legacy", "/old", LIST))
    (legacy,) = catalog.read([folder]).modules
    (entry,) = edge.configuration(8080, 9900, [edge.Upstream(legacy, 8091, Path("/p"))])["modules"]
    assert (entry["guarded"], entry["policy_dir"]) == (False, "/p")


def test_a_policy_is_written_with_a_rising_sequence_and_only_when_it_changed(
    write: Write, tmp_path: Path
) -> None:
    state = State(tmp_path / ".moorage")
    state.create()
    policies = Policies(state, SETTINGS)
    folder = write("blog", module("blog"), route("blog", "/api", f"{LIST}\n{GET_ONE}"), READ)
    (blog,) = catalog.read([folder]).modules
    assert policies.write(blog) == 1
    assert policies.write(blog) is None
    write("blog", module("blog"), route("blog", "/api", GET_ONE), READ)
    (changed,) = catalog.read([folder]).modules
    assert Policies(state, SETTINGS).write(changed) == 2
    document = policies.read(changed)
    assert document is not None
    assert [rule.path for rule in document.rules] == ["/api/posts/{id}"]
    assert document.issuers[0].audiences == [SETTINGS.installation]
    (limits,) = [rule.limits for rule in document.rules]
    assert limits is not None, "the installation's, as on a cluster"
    assert limits.user is not None
    assert limits.user.count == 100
    assert Policies(state, WITHOUT_RATE_LIMITS).write(changed) == 3
    unbounded = policies.read(changed)
    assert unbounded is not None
    assert [rule.limits for rule in unbounded.rules] == [None]
    for key in (state.policy_key, state.token_key):
        assert key.stat().st_mode & 0o777 == 0o600
