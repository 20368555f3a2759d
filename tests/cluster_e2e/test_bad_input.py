"""What goes wrong, on a real cluster: each time a message that names the mend, and recovery by itself."""

from typing import Any

import pytest
from e2e.installation import Installation, names
from e2e.waiting import eventually

from testcluster.handle import Cluster, CommandError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def route(name: str, module: str, host: str, **spec: Any) -> dict[str, Any]:
    rules = [{"name": f"{name}-list", "methods": ["GET"], "path": "/things", "auth": "none"}]
    return {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Route",
        "metadata": {"name": name},
        "spec": {"module": module, "hosts": [host], "prefix": "/api", "rules": rules, **spec},
    }


def module(name: str, image: str, **spec: Any) -> dict[str, Any]:
    """Any image with Python in it, behind the sidecar."""
    command = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "8081"]
    return {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Module",
        "metadata": {"name": name},
        "spec": {"version": "1.0.0", "image": image, "command": command, **spec},
    }


def test_an_image_that_does_not_exist(installation: Installation, cluster: Cluster, space: str) -> None:
    """Not the first one, and not a later one, which leaves the old pods serving."""
    cluster.apply(module("shop", "localhost/moorage/nothing:1", imagePullPolicy="Never"), namespace=space)
    said = installation.wait_condition(space, "module", "shop", "Ready", "ErrImageNeverPull")
    assert "spec.image: `localhost/moorage/nothing:1`" in said
    assert cluster.get("-n", space, "module", "shop")["status"]["phase"] == "Degraded"

    cluster.apply(module("shop", installation.images["blog"]), namespace=space)
    installation.wait_ready(space, "shop")

    cluster.apply(module("shop", "localhost/moorage/nothing:2", imagePullPolicy="Never"), namespace=space)
    installation.wait_condition(space, "module", "shop", "Ready", "ErrImageNeverPull")
    assert installation.conditions(space, "module", "shop")["Available"]["status"] == "True"
    cluster.apply(module("shop", installation.images["blog"]), namespace=space)
    installation.wait_ready(space, "shop")


def test_a_failing_migration_leaves_the_old_pods_serving(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    cluster.apply(*installation.blog(host), namespace=space)
    installation.wait_ready(space, "blog")
    url = f"{host}/api/v1/blog/posts"
    installation.wait_edge(url)
    before = installation.serving_pods(space)

    cluster.apply(*installation.blog(host, app="nowhere:module"), namespace=space)
    said = installation.wait_condition(space, "module", "blog", "Migrated", "MigrationFailed")
    assert "nowhere" in said
    assert cluster.get("-n", space, "module", "blog")["status"]["phase"] == "Degraded"
    assert installation.serving_pods(space) == before
    assert installation.call("GET", url).status == 200
    events = cluster.get("-n", space, "events.events.k8s.io")["items"]
    assert any("nowhere" in one.get("note", "") for one in events if one["regarding"]["kind"] == "Module")

    cluster.apply(*installation.blog(host), namespace=space)
    installation.wait_ready(space, "blog")
    owners = [
        one["rolcanlogin"]
        for one in installation.database.fetch(
            "SELECT rolcanlogin FROM pg_roles JOIN pg_namespace ON nspowner = pg_roles.oid WHERE nspname = $1",
            f"{space}_blog",
        )
    ]
    assert owners == [False]
    secrets = names(cluster.get("-n", space, "secrets", "-l", "moorage.dev/module=blog")["items"])
    assert not any("migrate" in name for name in secrets)
    assert len(secrets) == 1


def test_two_blogs_in_two_namespaces_never_meet(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    other_space, other_host = installation.new_space(), f"other-{host}"
    cluster.apply(*installation.blog(host), namespace=space)
    cluster.apply(*installation.blog(other_host), namespace=other_space)
    installation.wait_ready(space, "blog")
    installation.wait_ready(other_space, "blog")
    assert {f"{space}_blog", f"{other_space}_blog"} <= installation.database.schemas()
    first, second = f"{host}/api/v1/blog/posts", f"{other_host}/api/v1/blog/posts"
    installation.wait_edge(first)
    installation.wait_edge(second)
    token = installation.token("alice", "author")
    made = installation.call("POST", first, token=token, json_body={"title": "Mine", "content": "…"})
    assert made.status == 201
    assert installation.call("GET", f"{second}/{made.json['id']}", token=token).status == 404
    installation.drop_space(other_space)


def test_a_place_belongs_to_who_claimed_it_first(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    """The second is refused with the first one's name, and gets it when the first one is gone."""
    image = installation.images["blog"]
    cluster.apply(module("one", image), module("two", image), route("one", "one", host), namespace=space)
    installation.wait_condition(space, "route", "one", "Programmed", "Programmed", "True")
    cluster.apply(route("two", "two", host), namespace=space)
    said = installation.wait_condition(space, "route", "two", "Accepted", "ClaimConflict")
    assert f"{space}/one" in said
    assert host in said
    cluster.kubectl("-n", space, "delete", "route.moorage.dev", "one")
    installation.wait_condition(space, "route", "two", "Accepted", "Accepted", "True")
    routes = cluster.get("-n", space, "httproutes")["items"]
    assert [one["metadata"]["labels"]["moorage.dev/module"] for one in routes] == ["two"]


def test_a_host_that_the_installation_does_not_allow(
    installation: Installation, cluster: Cluster, space: str
) -> None:
    cluster.apply(
        module("one", installation.images["blog"]), route("one", "one", "bank.example"), namespace=space
    )
    said = installation.wait_condition(space, "route", "one", "Accepted", "HostNotAllowed")
    assert "spec.hosts[0]" in said
    assert f"allow.{space}.hosts" in said
    assert cluster.get("-n", space, "httproutes")["items"] == []


def test_a_route_to_a_missing_module_and_a_permission_of_another(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    permission = {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Permission",
        "metadata": {"name": "elsewhere.thing.read"},
        "spec": {"roles": ["author"]},
    }
    cluster.apply(route("lost", "later", host), permission, namespace=space)
    said = installation.wait_condition(space, "route", "lost", "Accepted", "ModuleNotFound")
    assert "spec.module" in said
    assert f"{space}/later" in said
    said = installation.wait_condition(
        space, "permission", "elsewhere.thing.read", "Accepted", "ModuleNotFound"
    )
    assert "metadata.name" in said

    cluster.apply(module("later", installation.images["blog"]), namespace=space)
    installation.wait_condition(space, "route", "lost", "Programmed", "Programmed", "True")


def test_what_the_api_server_itself_refuses(installation: Installation, cluster: Cluster, space: str) -> None:
    good = module("shop", installation.images["blog"])
    bad: list[tuple[dict[str, Any], str]] = [
        (module("a" * 41, "x:1"), "40"),
        (good | {"spec": good["spec"] | {"version": "1.0"}}, "version"),
        (good | {"spec": good["spec"] | {"replcias": 2}}, "replcias"),
    ]
    for manifest, word in bad:
        with pytest.raises(CommandError, match=word):
            cluster.apply(manifest, namespace=space)


def test_a_field_that_is_not_supported_yet_is_refused(
    installation: Installation, cluster: Cluster, space: str
) -> None:
    cluster.apply(module("shop", installation.images["blog"], autoscaling={"max": 3}), namespace=space)
    said = installation.wait_condition(space, "module", "shop", "Accepted", "NotSupported")
    assert "spec.autoscaling" in said
    assert cluster.get("-n", space, "module", "shop")["status"]["phase"] == "Rejected"
    assert cluster.get("-n", space, "deployments")["items"] == []


def test_an_object_of_somebody_else_in_the_way(
    installation: Installation, cluster: Cluster, space: str
) -> None:
    """It is left alone, and named."""
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop"},
        "spec": {"ports": [{"port": 1234}], "selector": {"mine": "yes"}},
    }
    cluster.apply(foreign, namespace=space)
    cluster.apply(module("shop", installation.images["blog"]), namespace=space)
    said = installation.wait_condition(space, "module", "shop", "Accepted", "ObjectExists")
    assert f"Service {space}/shop" in said
    assert cluster.get("-n", space, "service", "shop")["spec"]["selector"] == {"mine": "yes"}
    cluster.kubectl("-n", space, "delete", "service", "shop")
    installation.wait_ready(space, "shop")


def test_a_missing_secret_is_waited_for_and_a_changed_one_rolls_out(
    installation: Installation, cluster: Cluster, space: str
) -> None:
    def secret(value: str) -> dict[str, Any]:
        metadata = {"name": "mine"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"key": value}}

    cluster.apply(module("shop", installation.images["blog"], secretRefs=[{"name": "mine"}]), namespace=space)
    said = installation.wait_condition(space, "module", "shop", "Accepted", "SecretMissing")
    assert f"{space}/mine" in said
    cluster.apply(secret("first"), namespace=space)
    installation.wait_ready(space, "shop")
    before = cluster.get("-n", space, "module", "shop")["status"]["revision"]
    cluster.apply(secret("second"), namespace=space)
    cluster.kubectl(
        "-n", space, "annotate", "module", "shop", "look=now"
    )  # instead of waiting for the next round
    eventually(
        lambda: cluster.get("-n", space, "module", "shop")["status"]["revision"] != before,
        "a new revision",
        30,
    )
    installation.wait_ready(space, "shop")


def test_a_database_that_is_away_at_the_start_and_later(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    relay = installation.database.relay
    relay.cut()
    try:
        cluster.apply(*installation.blog(host), namespace=space)
        said = installation.wait_condition(space, "module", "blog", "DatabaseReady", "DatabaseUnavailable")
        assert "does not answer" in said
        assert installation.database.admin_dsn.split(":")[2].split("@")[0] not in said
        assert cluster.get("-n", space, "deployments")["items"] == []
    finally:
        relay.mend()
    installation.wait_ready(space, "blog")
    installation.wait_edge(f"{host}/api/v1/blog/posts")
    before = installation.serving_pods(space)
    relay.cut()
    try:
        installation.wait_condition(space, "module", "blog", "DatabaseReady", "DatabaseUnavailable")
        assert installation.serving_pods(space) == before
    finally:
        relay.mend()
    installation.wait_ready(space, "blog")
    installation.wait_edge(f"{host}/api/v1/blog/posts")
