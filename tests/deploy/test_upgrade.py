"""From a frozen release (tests/fixtures/release-…, made by scripts/freeze) to what is in the checkout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage_crds import manifests
from testcluster.handle import Cluster

ROOT = Path(__file__).resolve().parents[2]
RELEASES = sorted((ROOT / "tests/fixtures").glob("release-*"))
assert RELEASES, "run scripts/freeze"
FLOORS = ("minLength", "minItems", "minimum", "minProperties")
CEILINGS = ("maxLength", "maxItems", "maximum", "maxProperties")

pytestmark = pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)


def schema(folder: Path, kind: str) -> dict[str, Any]:
    crd = yaml.safe_load((folder / f"moorage.dev_{kind}.yaml").read_text())
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1alpha1"]
    return dict(version["schema"]["openAPIV3Schema"])


def narrowed(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield where `new` refuses, or prunes, what `old` took."""
    if old.get("type") != new.get("type"):
        yield f"{path}: type {old.get('type')} became {new.get('type')}"
    if set(new.get("required", ())) - set(old.get("required", ())):
        yield f"{path}: more is required"
    if "enum" in new and not set(old.get("enum", ["anything"])) <= set(new["enum"]):
        yield f"{path}: fewer values"
    yield from (f"{path}: {key} grew" for key in FLOORS if new.get(key, 0) > old.get(key, 0))
    yield from (
        f"{path}: {key} shrank" for key in CEILINGS if new.get(key, float("inf")) < old.get(key, float("inf"))
    )
    for name, child in old.get("properties", {}).items():
        if name in new.get("properties", {}):
            yield from narrowed(child, new["properties"][name], f"{path}.{name}")
        elif not new.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{name}: gone"
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict):
            yield from narrowed(old[key], new.get(key) or {}, f"{path}[]")


@pytest.mark.parametrize("kind", ["modules", "routes", "permissions"])
def test_stored_resources_stay_valid(release: Path, kind: str) -> None:
    """Objects of an older release are in etcd: no field may go, and none may take less than it did."""
    old, new = schema(release / "chart/files/crds", kind), schema(ROOT / "charts/moorage/files/crds", kind)
    assert list(narrowed(old["properties"]["spec"], new["properties"]["spec"], "spec")) == []


def test_narrowing_would_be_found(release: Path) -> None:
    old = schema(release / "chart/files/crds", "modules")["properties"]["spec"]
    new = {
        **old,
        "properties": {k: v for k, v in old["properties"].items() if k != "port"},
        "required": ["port"],
    }
    assert list(narrowed(old, new, "spec")) == ["spec: more is required", "spec.port: gone"]


def test_manifests_of_the_release_are_still_understood(release: Path) -> None:
    found = manifests.load(release / "manifests")
    assert [str(problem) for problem in found.problems if problem.severity == "error"] == []
    assert found.modules


def test_names_that_outlive_an_upgrade_are_kept(release: Path) -> None:
    """Helm and kubectl upgrade in place only what keeps its name; selectors can never change."""
    helm_output = (release / "output/defaults.yaml").read_text()
    old = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(helm_output) if o}
    new = {
        (o["kind"], o["metadata"]["name"]): o
        for o in yaml.safe_load_all((ROOT / "kustomize/base/operator.yaml").read_text())
    }
    kept = {key for key in old if key[0] in ("Deployment", "ServiceAccount", "ConfigMap")}
    assert kept <= new.keys()
    for key in kept:
        if key[0] == "Deployment":
            assert old[key]["spec"]["selector"] == new[key]["spec"]["selector"]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_helm_upgrades_from_the_release(
    release: Path, cluster: Cluster, tmp_path: Path, images: dict[str, str]
) -> None:
    """The old chart is installed, its example applied, then the checkout's chart takes over: no resource is lost."""
    repository, _, tag = images["operator"].rpartition(":")
    core, served = cluster.new_namespace("core"), cluster.new_namespace("served")
    values = tmp_path / "values.yaml"
    values.write_text(
        yaml.safe_dump({"namespaces": [served], "image": {"repository": repository, "tag": tag}})
    )

    def install(chart: Path) -> None:
        cluster.helm(
            *("upgrade", "--install", "trial", str(chart), "--namespace", core, "--values", str(values)),
            *("--take-ownership", "--wait", "--timeout", "120s"),
        )

    try:
        install(release / "chart")
        cluster.kubectl("-n", served, "apply", "-f", str(release / "manifests"))
        before = cluster.get("-n", served, "modules,mroute,mperm")["items"]
        install(ROOT / "charts/moorage")
        after = cluster.get("-n", served, "modules,mroute,mperm")["items"]
        assert [o["spec"] for o in after] == [o["spec"] for o in before]
        cluster.kubectl("-n", served, "wait", "--for=condition=Accepted", "module/blog", "--timeout=60s")
    finally:
        cluster.helm("uninstall", "trial", "--namespace", core, "--ignore-not-found")
        for namespace in (core, served):
            cluster.watched.discard(namespace)
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")
