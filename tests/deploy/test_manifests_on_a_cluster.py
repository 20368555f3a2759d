"""What chart and kustomize render, held to a real API server: its schemas (kubeconform) and its admission."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from testcluster import build
from testcluster.handle import Cluster

pytestmark = pytest.mark.cluster

Objects = list[dict[str, Any]]
Template = Callable[..., Objects]

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all parts": {
        "replicas": 2,
        "metrics": {"service": True},
        "database": {"adminSecretRef": {"name": "postgres-admin"}},
        "edge": {"gateway": {"name": "edge", "namespace": "projectcontour"}},
        "imagePullSecrets": ["registry"],
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "nodeSelector": {"disk": "fast"},
        "env": {"A": "b"},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {}}]},
    },
    "one namespace": {"namespaces": ["default"], "crds": {"install": False}},
}


def strict(schema: Any) -> Any:
    """The same schema, but unknown fields are wrong: that is what finds misspelt ones."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    open_ended = result.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in result
    if isinstance(result.get("properties"), dict) and not open_ended:
        result["additionalProperties"] = False
    return result


@pytest.fixture(scope="session")
def schemas(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a JSON Schema for each kind that the API server serves, from its own OpenAPI."""
    folder = tmp_path_factory.mktemp("schemas")
    for group, entry in json.loads(cluster.kubectl("get", "--raw", "/openapi/v3"))["paths"].items():
        if not group.startswith(("api/v", "apis/")) or group.count("/") not in (1, 2):
            continue
        document = json.loads(cluster.kubectl("get", "--raw", entry["serverRelativeURL"]))
        definitions = strict(document.get("components", {}).get("schemas", {}))
        text = json.dumps({"components": {"schemas": definitions}})
        shared = f"_{group.replace('/', '_')}.json"
        (folder / shared).write_text(text)
        for name, schema in definitions.items():
            for kind in schema.get("x-kubernetes-group-version-kind", ()):
                # kubeconform takes the version for the group where there is none.
                version = kind["version"]
                target = folder / f"{kind['kind']}-{kind['group'] or version}-{version}.json".lower()
                target.write_text(json.dumps({"$ref": f"{shared}#/components/schemas/{name}"}))
    return folder


@pytest.fixture(scope="session")
def kubeconform(
    schemas: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Objects], dict[str, Any]]:
    """Validates objects and returns kubeconform's report."""
    program = build.ensure("kubeconform")["kubeconform"]
    location = f"{schemas}/{{{{ .ResourceKind }}}}-{{{{ .Group }}}}-{{{{ .ResourceAPIVersion }}}}.json"

    def check(objects: Objects) -> dict[str, Any]:
        text = yaml.safe_dump_all(objects)
        command = [program, "-strict", "-summary", "-output", "json", "-schema-location", location, "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert not done.stderr, done.stderr
        return dict(json.loads(done.stdout))

    return check


def kustomized(root: Path, run_kubectl: Callable[..., str], overlay: str) -> Objects:
    text = run_kubectl("kustomize", str(root / "kustomize/overlays" / overlay))
    return [item for item in yaml.safe_load_all(text) if item]


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_charts_output_is_valid(
    template: Template, kubeconform: Callable[[Objects], dict[str, Any]], values: dict[str, Any]
) -> None:
    objects = template(values)
    report = kubeconform(objects)
    assert report["resources"] == []
    assert report["summary"] == {"valid": len(objects), "invalid": 0, "errors": 0, "skipped": 0}


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_the_overlays_are_valid(
    root: Path,
    run_kubectl: Callable[..., str],
    kubeconform: Callable[[Objects], dict[str, Any]],
    overlay: str,
) -> None:
    objects = kustomized(root, run_kubectl, overlay)
    report = kubeconform(objects)
    assert report["resources"] == []
    assert report["summary"]["valid"] == len(objects)


def test_kubeconform_would_find_a_misspelt_field(
    template: Template, kubeconform: Callable[[Objects], dict[str, Any]]
) -> None:
    (deployment,) = [o for o in template() if o["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert kubeconform([deployment])["summary"]["invalid"] == 1


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_api_server_takes_the_charts_output(
    cluster: Cluster, template: Template, values: dict[str, Any]
) -> None:
    """Strictly, with admission, in a namespace that enforces restricted pods; nothing is stored."""
    namespace = cluster.new_namespace("dry-run", {"pod-security.kubernetes.io/enforce": "restricted"})
    try:
        objects = template(
            {**values, "namespaces": [namespace] if "namespaces" in values else []}, namespace=namespace
        )
        output = cluster.kubectl(
            *(
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "--validate=strict",
                "-f",
                "-",
            ),
            input=yaml.safe_dump_all(objects),
        )
        assert output.count("(server dry run)") == len(objects)
        assert "would violate PodSecurity" not in output
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
        cluster.watched.discard(namespace)


def test_without_a_cluster_role_binding_the_operator_reaches_only_its_namespaces(
    cluster: Cluster, template: Template
) -> None:
    """The rendered rights as the API server's authorizer understands them."""
    core, served, other = (cluster.new_namespace(name) for name in ("core", "served", "other"))
    try:
        rights = [
            o
            for o in template({"namespaces": [served], "crds": {"install": False}}, namespace=core)
            if o["kind"] in ("Role", "RoleBinding", "ServiceAccount")
        ]
        cluster.apply(*rights)

        def may(verb: str, what: str, namespace: str) -> bool:
            resource, _, subresource = what.partition("/")
            resource, _, group = resource.partition(".")
            attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": f"system:serviceaccount:{core}:moorage-operator",
                    "resourceAttributes": {**attributes, "subresource": subresource},
                },
            }
            place = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
            answer = cluster.kubectl("create", "--raw", place, "-f", "-", input=json.dumps(review))
            return bool(json.loads(answer)["status"]["allowed"])

        assert may("create", "deployments.apps", served)
        assert may("patch", "modules.moorage.dev/status", served)
        assert may("get", "secrets", served)
        assert may("update", "leases.coordination.k8s.io", core)
        assert not may("list", "secrets", served)
        assert not may("list", "secrets", core)
        assert not may("create", "pods", served)
        assert not may("create", "roles.rbac.authorization.k8s.io", served)
        assert not may("get", "secrets", other)
        assert not may("list", "modules.moorage.dev", other)
        assert not may("create", "deployments.apps", core)
    finally:
        for namespace in (core, served, other):
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")
            cluster.watched.discard(namespace)
