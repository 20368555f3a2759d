"""Killed operators, deleted Modules, and their data."""

import time

import pytest
from e2e.installation import DOMAIN, NAME, Installation, names
from e2e.waiting import eventually

from moorage_operator.plan.names import database_names
from testcluster.handle import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_an_operator_that_is_killed_over_and_over_leaves_nothing_half_made(
    installation: Installation, cluster: Cluster
) -> None:
    """Each kill comes at another moment of the reconciliation of three modules with databases."""
    spaces = [installation.new_space() for _ in range(3)]
    for at, space in enumerate(spaces):
        cluster.apply(*installation.blog(f"kill-{at}-{space}.{DOMAIN}"), namespace=space)
        time.sleep(at * 1.5)
        pod = installation.operator_pod()
        cluster.kubectl("-n", installation.core, "delete", "pod", pod, "--force", "--grace-period=0")
        eventually(lambda: len(_running(installation)) == 1, "the operator is back", 60)
    for space in spaces:
        installation.wait_ready(space, "blog", timeout=120)
        label = ("-l", "moorage.dev/module=blog")
        # The app role's access and nothing else: no owner's DSN, no password that nobody uses.
        inventory = cluster.get("-n", space, "module", "blog")["status"]["inventory"]
        for kind, plural, count in (("Secret", "secrets", 1), ("ConfigMap", "configmaps", 2)):
            there = names(cluster.get("-n", space, plural, *label)["items"])
            assert there == {one["name"] for one in inventory if one["kind"] == kind}
            assert len(there) == count
        (owner,) = installation.database.fetch(
            "SELECT rolcanlogin FROM pg_roles JOIN pg_namespace ON nspowner = pg_roles.oid WHERE nspname = $1",
            f"{space}_blog",
        )
        assert owner["rolcanlogin"] is False
        installation.drop_space(space)


def _running(installation: Installation) -> list[str]:
    pods = installation.cluster.get(
        "-n", installation.core, "pods", "-l", "app.kubernetes.io/name=moorage-operator"
    )["items"]
    return [
        one["metadata"]["name"]
        for one in pods
        if "deletionTimestamp" not in one["metadata"] and one["status"]["phase"] == "Running"
    ]


def test_deleting_keeps_the_data_until_somebody_adopts_it(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    posts = f"{host}/api/v1/blog/posts"
    token = installation.token("alice", "author")
    cluster.apply(*installation.blog(host), namespace=space)
    installation.wait_ready(space, "blog")
    installation.wait_edge(posts)
    made = installation.call("POST", posts, token=token, json_body={"title": "Kept", "content": "…"}).json
    old = cluster.get("-n", space, "module", "blog")["metadata"]["uid"]

    cluster.kubectl("-n", space, "delete", "module", "blog")
    kinds = "deployments,services,configmaps,secrets,jobs,httproutes,serviceaccounts,networkpolicies"
    label = ("-l", "moorage.dev/module=blog")
    eventually(lambda: not cluster.get("-n", space, kinds, *label)["items"], "its objects are gone", 60)
    assert f"{space}_blog" in installation.database.schemas()
    installation.wait_condition(space, "route", "blog", "Accepted", "ModuleNotFound")

    cluster.apply(*installation.blog(host), namespace=space)
    said = installation.wait_condition(space, "module", "blog", "DatabaseReady", "SchemaNotOurs")
    assert f"moorage.dev/adopt-database={old}" in said
    cluster.kubectl("-n", space, "annotate", "module", "blog", f"moorage.dev/adopt-database={old}")
    installation.wait_ready(space, "blog")
    assert installation.wait_edge(f"{posts}/{made['id']}", token=token).json["title"] == "Kept"


def test_on_delete_drop_takes_the_data_along(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    cluster.apply(*installation.blog(host, database={"onDelete": "Drop"}), namespace=space)
    installation.wait_ready(space, "blog")
    assert cluster.get("-n", space, "module", "blog")["metadata"]["finalizers"] == ["moorage.dev/database"]
    assert f"{space}_blog" in installation.database.schemas()
    its = database_names(NAME, space, "blog")

    def left() -> list[str]:
        """The module's roles, and its entry on the event bus."""
        roles = installation.database.fetch(
            "SELECT rolname AS name FROM pg_roles WHERE rolname IN ($1, $2) "
            "UNION ALL SELECT module FROM moorage_bus.principal WHERE namespace = $3",
            its.owner,
            its.app,
            space,
        )
        return [str(row["name"]) for row in roles]

    assert set(left()) == {its.owner, its.app, "blog"}
    cluster.kubectl("-n", space, "delete", "module", "blog", "--timeout=90s")
    assert f"{space}_blog" not in installation.database.schemas()
    assert left() == []


def test_a_namespace_that_is_deleted_goes_away_with_its_data(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    """The finalizer creates nothing, which a terminating namespace would refuse."""
    cluster.apply(*installation.blog(host, database={"onDelete": "Drop"}), namespace=space)
    installation.wait_ready(space, "blog")
    cluster.kubectl("delete", "namespace", space, "--timeout=120s", timeout=150)
    assert f"{space}_blog" not in installation.database.schemas()
