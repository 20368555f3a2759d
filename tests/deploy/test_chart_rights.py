"""The chart's RBAC: exactly the rights that the operator's reference page explains, nowhere more than asked."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Objects = list[dict[str, Any]]
Template = Callable[..., Objects]
Pick = Callable[..., Objects]
Rights = set[tuple[str, str, str]]

CLUSTER_KINDS = ("ClusterRole", "ClusterRoleBinding")
NAMESPACED = {"namespaces": ["shop", "blog"], "crds": {"install": False}}


def rights(*roles: dict[str, Any]) -> Rights:
    """(API group, resource, verb) of every rule."""
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def documented(page: Path) -> Rights:
    """The same from the table below "Rights"."""
    section = page.read_text().split("## Rights", 1)[1].split("\n## ", 1)[0]
    found = set()
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0] not in ("API group", "URLs") and not set(cells[0]) <= {"-"}:
            group = "" if cells[0] == "core" else cells[0].strip("`")
            verbs = re.split(r"[,\s]+", re.sub(r"\(.*\)", "", cells[2]).strip())
            found |= {
                (group, resource, verb) for resource in re.findall(r"`([^`]+)`", cells[1]) for verb in verbs
            }
    return found


def operator_role(objects: Objects, kind: str, name: str, pick: Pick) -> dict[str, Any]:
    (role,) = [o for o in pick(objects, kind) if o["metadata"]["name"] == name]
    return role


def test_the_operator_may_do_what_its_page_explains_and_no_more(
    template: Template, root: Path, pick: Pick
) -> None:
    role = operator_role(template(), "ClusterRole", "moorage-system-moorage-operator", pick)
    assert rights(role) == documented(root / "docs/operator.md")


def test_in_its_own_namespace_it_keeps_a_lease_and_two_keys(template: Template, pick: Pick) -> None:
    (role,) = pick(template(), "Role")
    assert role["metadata"]["namespace"] == "moorage-system"
    assert rights(role) == {
        *(("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")),
        *(("", "secrets", verb) for verb in ("get", "create")),
    }


@pytest.mark.parametrize("values", [{}, NAMESPACED, {"rbac": {"userRoles": False}}], ids=str)
def test_no_rule_has_a_wildcard_and_none_grants_more_than_its_holder_has(
    template: Template, values: dict[str, Any]
) -> None:
    for role in (o for o in template(values) if o["kind"] in ("Role", "ClusterRole")):
        for group, resource, verb in rights(role):
            assert "*" not in (group, resource, verb)
            assert verb not in ("escalate", "bind", "impersonate")
            assert group != "rbac.authorization.k8s.io"


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["cluster", "namespaces"])
def test_secrets_are_never_listed_or_watched(template: Template, values: dict[str, Any]) -> None:
    roles = [o for o in template(values) if o["kind"] in ("Role", "ClusterRole")]
    assert not {verb for _, resource, verb in rights(*roles) if resource == "secrets"} & {"list", "watch"}


def test_with_namespaces_there_is_nothing_cluster_wide(template: Template, pick: Pick) -> None:
    objects = template(NAMESPACED)
    assert [o["kind"] for o in objects if o["kind"] in (*CLUSTER_KINDS, "CustomResourceDefinition")] == []
    assert all(o["metadata"].get("namespace") for o in objects)
    whole = operator_role(template(), "ClusterRole", "moorage-system-moorage-operator", pick)
    for namespace in ("shop", "blog"):
        (role,) = [
            o for o in pick(objects, "Role", "moorage-operator") if o["metadata"]["namespace"] == namespace
        ]
        (binding,) = [
            o
            for o in pick(objects, "RoleBinding", "moorage-operator")
            if o["metadata"]["namespace"] == namespace
        ]
        assert rights(role) == rights(whole)
        assert binding["roleRef"]["name"] == "moorage-operator"
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "moorage-operator", "namespace": "moorage-system"}
        ]


def test_two_installations_share_no_cluster_wide_name(template: Template) -> None:
    def names(namespace: str) -> set[str]:
        objects = template(namespace=namespace)
        return {o["metadata"]["name"] for o in objects if o["kind"] in CLUSTER_KINDS}

    assert names("blue")
    assert not names("blue") & names("green")


def test_people_get_the_kinds_through_the_clusters_own_roles(template: Template, pick: Pick) -> None:
    roles = {
        label.rpartition("-")[2]: role
        for role in pick(template(), "ClusterRole")
        for label in role["metadata"]["labels"]
        if label.startswith("rbac.authorization.k8s.io/aggregate-to-")
    }
    assert roles.keys() == {"view", "edit", "admin"}
    assert {verb for _, _, verb in rights(roles["view"])} == {"get", "list", "watch"}
    assert {"create", "delete"} <= {verb for _, _, verb in rights(roles["edit"])}
    for role in roles.values():
        resources = {resource for _, resource, _ in rights(role)}
        assert resources == {"modules", "routes", "permissions"}, "status is the operator's alone"


def test_the_service_account_token_is_mounted_only_where_it_is_used(
    template: Template, root: Path, pick: Pick
) -> None:
    objects = template({}, root / "charts/moorage/values-dev.yaml")
    (account,) = pick(objects, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    mounted = {
        o["metadata"]["name"]: o["spec"]["template"]["spec"]["automountServiceAccountToken"]
        for o in pick(objects, "Deployment")
    }
    assert mounted == {"moorage-operator": True, "moorage-dev-postgres": False, "moorage-dev-redis": False}
