"""Names, paths, ports, variables and documents that the parts share: the table of docs/architecture.md, executed.

Whoever changes one of these changes what other parts, dashboards and users rely on: change the page as well.
"""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest

from moorage.config.settings import Settings
from moorage.errors import NotFound, error_body
from moorage.guard import policy
from moorage_operator.plan import names
from moorage_operator.plan.module import ModulePlan

ROOT = Path(__file__).parents[2]


def one(plan: ModulePlan, kind: str) -> dict[str, Any]:
    (found,) = plan.of_kind(kind)
    return found


def pod(plan: ModulePlan) -> dict[str, Any]:
    spec: dict[str, Any] = one(plan, "Deployment")["spec"]["template"]["spec"]
    return spec


def variables(container: dict[str, Any]) -> dict[str, Any]:
    """Name to value, or to the key of a Secret."""
    return {e["name"]: e.get("value", e.get("valueFrom", {}).get("secretKeyRef")) for e in container["env"]}


def mounts(container: dict[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in container["volumeMounts"]}


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_a_kernel_module_serves_on_8080_and_9901_and_only_8080_is_in_its_service(blog: ModulePlan) -> None:
    assert ports(pod(blog)["containers"][0]) == {"http": 8080, "admin": 9901}
    service = one(blog, "Service")
    assert service["metadata"]["name"] == "blog"
    assert [(p["name"], p["port"], p["targetPort"]) for p in service["spec"]["ports"]] == [
        ("http", 80, "http")
    ]


def test_a_pods_files_are_where_every_part_expects_them(blog: ModulePlan) -> None:
    app = pod(blog)["containers"][0]
    assert {"/etc/moorage/config", "/etc/moorage/policy", "/var/run/secrets/moorage"} <= mounts(app)
    (token,) = [volume for volume in pod(blog)["volumes"] if volume["name"] == "token"]
    assert token["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "moorage", "expirationSeconds": 3600, "path": "token"}}
    ]
    assert all("subPath" not in mount for mount in app["volumeMounts"])


def test_a_pods_variables_have_the_names_that_the_kernel_reads(blog: ModulePlan) -> None:
    found = variables(pod(blog)["containers"][0])
    assert {name: found[name] for name in found if name.startswith("MOORAGE_")} == {
        "MOORAGE_INSTALLATION": "moorage",
        "MOORAGE_NAMESPACE": "default",
        "MOORAGE_MODULE": "blog",
        "MOORAGE_VERSION": "0.1.0",
        "MOORAGE_REVISION": blog.revision,
        "MOORAGE_CONFIG_DIR": "/etc/moorage/config",
        "MOORAGE_SECRETS_DIR": "/etc/moorage/secrets",
        "MOORAGE_POLICY_DIR": "/etc/moorage/policy",
        "MOORAGE_CORE_NAMESPACE": "moorage-system",
    }
    place = Settings.model_fields["moorage"].default
    known = {f"MOORAGE_{field.upper()}" for field in type(place).model_fields}
    assert {name for name in found if name.startswith("MOORAGE_")} <= known
    assert found["DATABASE_DSN"]["key"] == "dsn"
    assert found["DATABASE_DIRECT_DSN"]["key"] == "direct_dsn"


def test_a_kernel_module_is_served_by_its_app(blog: ModulePlan) -> None:
    app = pod(blog)["containers"][0]
    assert (app["command"], app["args"]) == (["moorage"], ["serve", "blog:module"])


def test_migrations_run_as_a_job_of_the_revision_with_the_owners_dsn(blog: ModulePlan) -> None:
    assert blog.migration is not None
    assert blog.migration["metadata"]["name"] == f"blog-migrate-{blog.revision}"
    (migrator,) = blog.migration["spec"]["template"]["spec"]["containers"]
    assert (migrator["command"], migrator["args"]) == (["moorage"], ["migrate", "blog:module"])
    assert variables(migrator)["DATABASE_DSN"]["name"] == f"blog-migrate-{blog.revision}"
    assert "DATABASE_DIRECT_DSN" not in variables(migrator)
    server = variables(pod(blog)["containers"][0])
    assert server["DATABASE_DSN"]["name"] != f"blog-migrate-{blog.revision}"


def test_what_revisions_own_is_named_by_content(blog: ModulePlan) -> None:
    assert re.fullmatch(r"blog-config-[0-9a-f]{10}", one(blog, "ConfigMap")["metadata"]["name"])
    assert re.fullmatch(r"blog-database-[0-9a-f]{10}", one(blog, "Secret")["metadata"]["name"])
    assert one(blog, "Secret")["immutable"] is True


def test_every_object_has_the_labels_by_which_it_is_found(blog: ModulePlan) -> None:
    for manifest in (*blog.objects, blog.migration):
        assert manifest is not None
        labels = manifest["metadata"]["labels"]
        wanted = {
            f"app.kubernetes.io/{part}" for part in ("name", "instance", "version", "managed-by", "part-of")
        }
        assert wanted | {"moorage.dev/module"} <= set(labels), manifest["kind"]
    assert (
        one(blog, "Deployment")["spec"]["template"]["metadata"]["labels"]["moorage.dev/revision"]
        == blog.revision
    )


def test_schema_and_roles_are_named_after_namespace_and_module() -> None:
    found = names.database_names("moorage", "default", "blog")
    assert found.schema == "default_blog"
    assert re.fullmatch(r"mg_[0-9a-f]+_owner", found.owner)
    assert re.fullmatch(r"mg_[0-9a-f]+_app", found.app)
    longest = names.database_names("i" * 63, "n" * 63, "m" * 40)
    assert all(len(name) <= 63 for name in (longest.schema, longest.owner, longest.app))


def test_behind_a_sidecar_the_app_listens_on_loopback_and_the_guard_takes_the_pods_ports(
    plain: ModulePlan,
) -> None:
    (sidecar,) = pod(plain)["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert ports(sidecar) == {"http": 8080, "admin": 9901}
    (app,) = pod(plain)["containers"]
    assert (variables(app)["HOST"], variables(app)["PORT"]) == ("127.0.0.1", "3000")
    assert variables(sidecar)["UPSTREAM_PORT"] == "3000"
    assert "preStop" in app["lifecycle"]
    assert "/etc/moorage/policy" in mounts(sidecar)
    assert "/etc/moorage/policy" not in mounts(app)
    assert "/var/run/secrets/moorage" in mounts(app) | mounts(sidecar)


@pytest.mark.parametrize("which", ["blog", "plain"])
def test_pods_meet_the_restricted_pod_security_level(which: str, request: pytest.FixtureRequest) -> None:
    spec = pod(request.getfixturevalue(which))
    assert spec["automountServiceAccountToken"] is False
    assert not spec.get("hostNetwork")
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_base_document_has_the_fields_that_guards_and_authz_read(blog: ModulePlan) -> None:
    document = blog.policy.model_dump(mode="json")
    assert set(document) == {
        *("v", "kind", "namespace", "module", "sequence", "issued_at", "issuers", "rules", "permissions"),
        *("grants", "module_grants", "replicas"),
    }
    assert (document["v"], document["kind"], document["namespace"], document["module"]) == (
        1,
        "base",
        "default",
        "blog",
    )
    (create,) = [rule for rule in document["rules"] if rule["name"] == "create-post"]
    assert create["methods"] == ["POST"]
    assert create["path"] == "/api/v1/blog/posts"
    assert (create["auth"], create["permission"]) == ("required", "blog.post.create")
    assert set(create) >= {"name", "hosts", "methods", "path", "auth", "permission", "limits"}
    assert set(create) >= {"timeout_ms", "max_body"}
    assert create["limits"]["user"] == {"count": 100, "seconds": 60, "scope": "", "modules": False}
    assert set(create["limits"]) == {"user", "address", "rule", "outage"}
    assert "resource.author_id" in document["permissions"]["blog.post.update"]["condition"]
    assert "blog.post.create" in document["grants"]["author"]
    assert set(policy.Issuer.model_fields) == {
        *("issuer", "audiences", "algorithms", "keys", "subject", "jwks_uri"),
    }


def test_the_policy_folder_holds_document_signature_and_trust_anchor() -> None:
    assert (policy.BASE_FILE, policy.SIGNATURE_FILE, policy.TRUST_FILE) == (
        "base.json",
        "base.sig",
        "trust.pem",
    )
    assert names.policy_name("blog") == "blog-policy"


def test_equal_documents_have_equal_bytes() -> None:
    assert policy.canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'.encode()


def test_every_error_has_one_shape() -> None:
    body = error_body(_not_found(), "req-1")
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details", "request_id"}
    assert body["error"]["request_id"] == "req-1"


def _not_found() -> Exception:
    try:
        NotFound.throw("post", "1")
    except NotFound as error:
        return error
    raise AssertionError("throw returned")


def test_names_and_defaults_of_settings_are_those_that_users_know() -> None:
    defaults = Settings()
    assert (defaults.server.port, defaults.server.host, defaults.admin.port) == (8080, "0.0.0.0", 9901)
    assert (defaults.server.read_timeout, defaults.server.write_timeout) == (30.0, 30.0)
    assert (defaults.database.max_connections, defaults.database.max_idle_connections) == (25, 5)
    assert defaults.logging.level == "info"


def test_the_blog_is_found_as_a_module_and_carries_its_manifests() -> None:
    (found,) = importlib.metadata.entry_points(group="moorage.modules", name="blog")
    assert found.value == "blog"
    assert {path.name for path in (ROOT / "services/blog/manifests").iterdir()} == {
        *("module.yaml", "route.yaml", "permissions.yaml")
    }


def test_run_time_commands_come_with_the_kernel_and_platform_commands_by_entry_point() -> None:
    from moorage.cli.group import LazyGroup

    own = set(LazyGroup().list_commands(None))  # type: ignore[arg-type]
    assert {"serve", "migrate", "check", "permissions"} <= own
    assert {"up", "down", "plan", "status", "token", "operator", "gateway", "sidecar"} <= own


def test_the_page_names_what_this_test_holds() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name in (
        "8080",
        "9901",
        "/etc/moorage/policy",
        "MOORAGE_POLICY_DIR",
        "mg_<hash>_owner",
        "moorage.dev/{module",
    ):
        assert name in page, name
