"""The chart installed, upgraded and uninstalled on a real cluster, with the operator running as a pod."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from testcluster.handle import Cluster, CommandError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CRDS = ("modules.moorage.dev", "permissions.moorage.dev", "routes.moorage.dev")
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass
class Release:
    """One release of the chart in a namespace of its own, serving another one."""

    cluster: Cluster
    chart: Path
    namespace: str
    served: str
    values: Path
    name: str = "trial"

    def write(self, values: dict[str, Any]) -> None:
        self.values.write_text(yaml.safe_dump(values))

    def install(self, *extra: str) -> None:
        # The CRDs may have been applied by another test: they are one for the whole cluster.
        self.cluster.helm(
            *("upgrade", "--install", self.name, str(self.chart), "--namespace", self.namespace, *extra),
            *("--values", str(self.values), "--take-ownership", "--wait", "--timeout", "120s"),
        )

    def uninstall(self) -> None:
        self.cluster.helm(
            "uninstall", self.name, "--namespace", self.namespace, "--wait", "--ignore-not-found"
        )

    def pods(self) -> list[str]:
        items = self.cluster.get(
            "-n", self.namespace, "pods", "-l", "app.kubernetes.io/name=moorage-operator"
        )["items"]
        return [i["metadata"]["name"] for i in items if "deletionTimestamp" not in i["metadata"]]

    def log(self) -> str:
        return self.cluster.kubectl("-n", self.namespace, "logs", f"deployment/{self.name}-operator")


@pytest.fixture
def release(cluster: Cluster, root: Path, tmp_path: Path, images: dict[str, str]) -> Iterator[Release]:
    """Ready to be installed, in one namespace, with rights in another; everything goes afterwards but the CRDs."""
    core, served = cluster.new_namespace("core", RESTRICTED), cluster.new_namespace("served")
    one = Release(cluster, root / "charts/moorage", core, served, tmp_path / "release.yaml")
    repository, _, tag = images["operator"].rpartition(":")
    one.write({"namespaces": [served], "image": {"repository": repository, "tag": tag}})
    yield one
    one.uninstall()
    for namespace in (core, served):
        cluster.watched.discard(namespace)
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def module(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Module",
        "metadata": {"name": name},
        "spec": {"version": "1.0.0", "image": "localhost/nothing:1", "app": "nothing:module", **spec},
    }


def conditions(cluster: Cluster, namespace: str, name: str) -> dict[str, dict[str, Any]]:
    status = cluster.get("-n", namespace, "module", name).get("status", {})
    return {c["type"]: c for c in status.get("conditions", ())}


def test_install_upgrade_uninstall(release: Release, cluster: Cluster) -> None:
    release.install()
    (first,) = release.pods()
    assert '"version": "0.1.0"' in release.log()

    # It has the rights to work in the namespace that it serves, and none elsewhere: no 403 in its log.
    cluster.apply(module("idle"), namespace=release.served)
    cluster.kubectl("-n", release.served, "wait", "--for=condition=Accepted", "module/idle", "--timeout=60s")
    assert "Forbidden" not in release.log()

    # Unchanged values leave the pod alone; changed settings start a new one.
    release.install()
    assert release.pods() == [first]
    release.install("--set", "issuer=https://other.example.com")
    cluster.kubectl("-n", release.namespace, "rollout", "status", f"deployment/{release.name}-operator")
    (second,) = release.pods()
    assert second != first

    # Uninstalling takes the operator and leaves the kinds, hence the modules, where they are.
    release.uninstall()
    kinds = "deployments,configmaps,serviceaccounts,roles,rolebindings,networkpolicies"
    left = cluster.get("-n", release.namespace, kinds, "-l", "app.kubernetes.io/part-of=moorage")["items"]
    assert left == []
    assert cluster.get("crds", *CRDS)["items"]
    assert cluster.get("-n", release.served, "module", "idle")["spec"]["image"] == "localhost/nothing:1"


def test_an_upgrade_brings_new_crds(release: Release, cluster: Cluster, tmp_path: Path) -> None:
    """From a chart whose CRD knew one column less: Helm's own crds/ folder would leave it at that."""

    def columns() -> list[str]:
        (version,) = cluster.get("crd", "modules.moorage.dev")["spec"]["versions"]
        return [column["name"] for column in version["additionalPrinterColumns"]]

    old = Release(cluster, tmp_path / "old", release.namespace, release.served, release.values)
    shutil.copytree(release.chart, old.chart)
    file = old.chart / "files/crds/moorage.dev_modules.yaml"
    crd = yaml.safe_load(file.read_text())
    dropped = crd["spec"]["versions"][0]["additionalPrinterColumns"].pop(0)
    file.write_text(yaml.safe_dump(crd))
    old.install()
    assert dropped["name"] not in columns()
    release.install()
    assert dropped["name"] in columns()


def test_a_missing_database_secret_is_named(release: Release, cluster: Cluster) -> None:
    release.write(
        {**yaml.safe_load(release.values.read_text()), "database": {"adminSecretRef": {"name": "nowhere"}}}
    )
    with pytest.raises(CommandError, match=r"deadline|timed out"):
        cluster.helm(
            *("install", release.name, str(release.chart), "-n", release.namespace, "--take-ownership"),
            *("--values", str(release.values), "--wait", "--timeout", "8s"),
        )
    events = cluster.kubectl("-n", release.namespace, "get", "events", "-o", "json")
    assert any('secret "nowhere" not found' in e["message"] for e in json.loads(events)["items"])


@pytest.fixture(scope="module")
def server_image(cluster: Cluster, root: Path) -> str:
    folder = root / "tests/deploy/servers"
    return cluster.load_image(cluster.build_image(folder, folder / "Containerfile", "moorage-test/servers:1"))


def test_the_development_values_run_servers_and_keep_their_password(
    release: Release, cluster: Cluster, root: Path, server_image: str
) -> None:
    """values-dev.yaml as it is, but for the images: these come from Debian's packages here."""
    servers = {"postgres": {"image": server_image}, "redis": {"image": server_image}}
    release.write({**yaml.safe_load(release.values.read_text()), "dev": servers})
    dev = ("--values", str(root / "charts/moorage/values-dev.yaml"))
    release.install(*dev)

    def password() -> str:
        return str(cluster.get("-n", release.namespace, "secret", "moorage-dev-postgres")["data"]["password"])

    first = password()
    cluster.apply(module("stored", database={}), namespace=release.served)
    cluster.kubectl(
        "-n", release.served, "wait", "--for=condition=DatabaseReady", "module/stored", "--timeout=90s"
    )
    redis = cluster.kubectl(
        *("-n", release.namespace, "exec", "deployment/moorage-dev-redis", "--", "redis-cli", "ping")
    )
    assert redis.strip() == "PONG"

    # The next rendering must not lock the operator out of a database that keeps the first password.
    release.install(*dev, "--set", "issuer=https://other.example.com")
    assert password() == first
    assert "DatabaseReady" in conditions(cluster, release.served, "stored")


async def test_the_operator_takes_an_administrator_without_superuser(
    release: Release, cluster: Cluster, run_kubectl: Callable[..., str]
) -> None:
    """What docs/install.md asks for: CREATEROLE, and CREATE on the database. Managed PostgreSQL gives no more."""
    name = f"admin_{uuid.uuid4().hex[:8]}"
    owner = await asyncpg.connect(cluster.postgres_local_dsn)
    try:
        await owner.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'p-{name}'")
        await owner.execute(f"CREATE DATABASE {name}")
        await owner.execute(f"GRANT CREATE, CONNECT ON DATABASE {name} TO {name} WITH GRANT OPTION")
        place = cluster.postgres_admin_dsn.rpartition("@")[2].partition("/")[0]
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "postgres-admin", "namespace": release.namespace},
            "stringData": {"dsn": f"postgresql://{name}:p-{name}@{place}/{name}"},
        }
        cluster.apply(secret)
        release.install("--set", "database.adminSecretRef.name=postgres-admin")
        cluster.apply(module("stored", database={"onDelete": "Drop"}), namespace=release.served)
        cluster.kubectl(
            "-n", release.served, "wait", "--for=condition=DatabaseReady", "module/stored", "--timeout=90s"
        )
        cluster.kubectl("-n", release.served, "delete", "module", "stored", "--timeout=60s")
    finally:
        release.uninstall()
        await owner.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        roles = await owner.fetch(
            "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid "
            "JOIN pg_roles g ON g.oid = m.member WHERE g.rolname = $1",
            name,
        )
        for (role,) in roles:
            await owner.execute(f'DROP ROLE IF EXISTS "{role}"')
        await owner.execute(f"DROP ROLE {name}")
        await owner.close()
