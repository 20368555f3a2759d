"""What the chart renders, for the values that people choose between."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage_operator.plan.settings import PlatformSettings, parse_settings

Objects = list[dict[str, Any]]
Template = Callable[..., Objects]
Pick = Callable[..., Objects]

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "database": {
        "database": {"adminSecretRef": {"name": "postgres-admin", "key": "url"}, "modulePort": 6432}
    },
    "gateway": {"edge": {"gateway": {"name": "edge", "namespace": "gateways", "sectionName": "http"}}},
    "ingress": {"edge": {"ingress": {"className": "nginx", "annotations": {"a.b/c": "60"}}}},
    "one namespace": {"namespaces": ["shop"], "crds": {"install": False}},
    "two replicas": {"replicas": 2, "metrics": {"serviceMonitor": True}},
    "allowances": {"allow": {"*": {"hosts": ["*.example.com"]}, "shop": {"bypassable": True}}},
    "everything else": {
        "installation": "shop",
        "issuer": "https://id.example.com",
        "jwksUri": "https://id.example.com/.well-known/jwks.json",
        "localTokens": True,
        "env": {"HTTPS_PROXY": "http://proxy:3128", "ANSWER": 42},
        "imagePullSecrets": ["registry"],
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "podAnnotations": {"note": "x"},
        "redis": {"url": "redis://redis:6379/1"},
        "kafka": {"brokers": "kafka:9092"},
        "otlp": {"endpoint": "http://otel:4317"},
        "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
        "images": {"sidecar": "registry.example.com/gateway:1", "pullPolicy": "Always"},
        "defaults": {"preStop": 0, "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {}}]},
    },
}


def platform_settings(objects: Objects) -> PlatformSettings:
    """The operator's own reading of the rendered ConfigMap."""
    (settings,) = [
        o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "moorage-platform"
    ]
    return parse_settings(settings["data"]["settings.yaml"])


def pod_specs(objects: Objects) -> list[dict[str, Any]]:
    return [
        o["spec"]["template"]["spec"] for o in objects if o["kind"] in ("Deployment", "Job", "StatefulSet")
    ]


def operator_container(objects: Objects) -> dict[str, Any]:
    (pod,) = [o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "moorage-operator"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_operator_understands_the_settings_of_every_variant(
    template: Template, values: dict[str, Any]
) -> None:
    settings = platform_settings(template(values))
    assert settings.core_namespace == "moorage-system"
    assert settings.installation == values.get("installation", "moorage")
    assert settings.namespaces == values.get("namespaces", [])


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_every_pod_is_restricted(template: Template, root: Path, values: dict[str, Any]) -> None:
    """Pod Security Standards, level `restricted`, and a read-only root file system besides."""
    for spec in pod_specs(template(values, root / "charts/moorage/values-dev.yaml")):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all("hostPath" not in volume for volume in spec["volumes"])
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_no_service_exposes_health_or_metrics_unless_asked(
    template: Template, values: dict[str, Any]
) -> None:
    services = [o for o in template(values) if o["kind"] == "Service"]
    assert bool(services) is ("metrics" in values)


def test_settings_carry_the_values(template: Template) -> None:
    settings = platform_settings(template(VARIANTS["everything else"]))
    assert settings.issuer == "https://id.example.com"
    assert settings.jwks_uri == "https://id.example.com/.well-known/jwks.json"
    assert settings.local_tokens is True
    assert settings.redis.url == "redis://redis:6379/1"
    assert settings.images.sidecar == "registry.example.com/gateway:1"
    assert settings.defaults.pre_stop == 0
    assert str(settings.defaults.resources.limits.cpu) == "1"
    assert settings.defaults.resources.requests.memory == "128Mi"
    assert settings.trusted_proxies == ["10.0.0.0/8", "fd00::/8"]


@pytest.mark.parametrize(
    ("said", "per_user", "per_ip"),
    [
        ({}, "100/minute", "1000/minute"),
        ({"rateLimit": {"perUser": "5/second"}}, "5/second", "1000/minute"),
        ({"rateLimit": {"perIp": None}}, "100/minute", None),
        ({"rateLimit": {"perUser": "unlimited"}}, "unlimited", "1000/minute"),
    ],
)
def test_a_rate_that_is_null_is_switched_off(
    template: Template, said: dict[str, Any], per_user: str | None, per_ip: str | None
) -> None:
    limits = platform_settings(template({"defaults": said})).defaults.rate_limit
    assert limits is not None
    assert (limits.per_user, limits.per_ip) == (per_user, per_ip)


def test_limits_may_be_switched_off_altogether(template: Template) -> None:
    """Helm takes a null value out of the defaults; the operator must not take that for `not said`."""
    assert platform_settings(template({"defaults": {"rateLimit": None}})).defaults.rate_limit is None


def test_defaults_of_the_chart_are_those_of_the_operator(template: Template) -> None:
    rendered = platform_settings(template()).model_dump()
    assert rendered == PlatformSettings().model_dump()


@pytest.mark.parametrize(
    ("edge", "kind"),
    [
        ({}, "none"),
        ({"gateway": {"name": "edge"}}, "gateway"),
        ({"ingress": {"className": "nginx"}}, "ingress"),
        ({"kind": "ingress"}, "ingress"),
        ({"kind": "none", "gateway": {"name": "edge"}}, "none"),
        ({"kind": "ingress", "gateway": {"name": "edge"}}, "ingress"),
    ],
)
def test_the_edge_follows_what_is_configured(template: Template, edge: dict[str, Any], kind: str) -> None:
    settings = platform_settings(template({"edge": edge}))
    assert settings.edge.kind == kind
    if "gateway" in edge:
        assert settings.edge.gateway is not None
        assert settings.edge.gateway.namespace == "moorage-system"


def test_the_database_secret_is_mounted_where_the_settings_say(template: Template) -> None:
    objects = template(VARIANTS["database"])
    (spec,) = pod_specs(objects)
    (volume,) = [v for v in spec["volumes"] if v["name"] == "database"]
    (mount,) = [m for m in operator_container(objects)["volumeMounts"] if m["name"] == "database"]
    path = platform_settings(objects).database.admin_dsn_file
    assert volume["secret"]["secretName"] == "postgres-admin"
    assert volume["secret"]["items"] == [{"key": "url", "path": "dsn"}]
    assert path == f"{mount['mountPath']}/dsn"
    assert mount["readOnly"] is True


def test_without_a_database_no_secret_is_asked_for(template: Template) -> None:
    objects = template()
    assert platform_settings(objects).database.admin_dsn_file is None
    assert all("secret" not in volume for spec in pod_specs(objects) for volume in spec["volumes"])


def test_changed_settings_restart_the_operator_and_nothing_else_does(template: Template) -> None:
    def annotation(values: dict[str, Any]) -> str:
        (deployment,) = [o for o in template(values) if o["kind"] == "Deployment"]
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["moorage.dev/settings"])

    assert annotation({"issuer": "https://a.example.com"}) != annotation({})
    assert annotation({"metrics": {"service": True}}) == annotation({})


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "moorage/operator:0.1.0"),
        ({"repository": "r.example.com/op", "tag": "1"}, "r.example.com/op:1"),
        ({"tag": "1", "digest": "sha256:" + "a" * 64}, "moorage/operator@sha256:" + "a" * 64),
    ],
)
def test_the_image_is_the_one_asked_for(template: Template, image: dict[str, str], reference: str) -> None:
    assert operator_container(template({"image": image}))["image"] == reference


def test_a_disruption_budget_stands_only_beside_several_replicas(template: Template, pick: Pick) -> None:
    """With one replica it would keep nodes from being drained."""
    assert pick(template(), "PodDisruptionBudget") == []
    assert len(pick(template({"replicas": 2}), "PodDisruptionBudget")) == 1


def test_the_environment_reaches_the_operator_as_strings(template: Template) -> None:
    container = operator_container(template(VARIANTS["everything else"]))
    assert {"name": "ANSWER", "value": "42"} in container["env"]


def test_network_policy_lets_out_only_what_is_needed(template: Template, pick: Pick) -> None:
    (policy,) = pick(template({"networkPolicy": {"egressPorts": [6443]}}), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []
    ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 6443, 9901]
    assert pick(template({"networkPolicy": {"enabled": False}}), "NetworkPolicy") == []


def test_metrics_can_be_scraped_from_named_peers(template: Template, pick: Pick) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    (policy,) = pick(template({"networkPolicy": {"metricsFrom": [peer]}}), "NetworkPolicy")
    assert policy["spec"]["ingress"] == [{"from": [peer], "ports": [{"protocol": "TCP", "port": "admin"}]}]


def test_crds_are_upgraded_and_outlive_the_release(template: Template, root: Path, pick: Pick) -> None:
    """They are templates (Helm never upgrades `crds/`), and deleting them would delete every Module."""
    crds = pick(template(), "CustomResourceDefinition")
    assert {crd["spec"]["names"]["kind"] for crd in crds} == {"Module", "Route", "Permission"}
    for crd in crds:
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        (file,) = (root / "charts/moorage/files/crds").glob(f"*{crd['spec']['names']['plural']}*.yaml")
        assert crd["spec"] == yaml.safe_load(file.read_text())["spec"]
    assert pick(template({"crds": {"install": False}}), "CustomResourceDefinition") == []


def test_the_development_servers_are_off_by_default(template: Template, root: Path, pick: Pick) -> None:
    assert pick(template(), "Secret") == []
    objects = template({}, root / "charts/moorage/values-dev.yaml")
    assert {o["metadata"]["name"] for o in pick(objects, "Deployment")} == {
        "moorage-operator",
        "moorage-dev-postgres",
        "moorage-dev-redis",
    }
    settings = platform_settings(objects)
    assert settings.redis.url == "redis://moorage-dev-redis.moorage-system.svc:6379/0"
    (secret,) = pick(objects, "Secret")
    password = secret["stringData"]["password"]
    assert len(password) >= 32
    assert f"postgres:{password}@moorage-dev-postgres.moorage-system.svc" in secret["stringData"]["dsn"]


def test_lint_finds_nothing(run_helm: Callable[..., subprocess.CompletedProcess[str]], root: Path) -> None:
    for values in ("values.yaml", "values-dev.yaml"):
        done = run_helm(
            "lint",
            "--strict",
            str(root / "charts/moorage"),
            "--values",
            str(root / "charts/moorage" / values),
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_versions_agree(root: Path) -> None:
    """Chart, operator and the Python distributions are released together."""
    import tomllib

    chart = yaml.safe_load((root / "charts/moorage/Chart.yaml").read_text())
    operator = tomllib.loads((root / "operator/pyproject.toml").read_text())
    assert chart["version"] == chart["appVersion"] == operator["project"]["version"]
