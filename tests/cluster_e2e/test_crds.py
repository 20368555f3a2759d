"""The CRDs on a real API server: accepted, their rules enforced, their columns, defaults and pruning as meant.

The examples of the rules are those of crds/tests/rule_cases.yaml, which the pydantic models pass as well.
"""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from moorage_crds import manifests
from testcluster.handle import Cluster

ROOT = Path(__file__).parents[2]
TABLE = yaml.safe_load((ROOT / "crds/tests/rule_cases.yaml").read_text())
KINDS = ("modules", "routes", "permissions")

pytestmark = pytest.mark.cluster


def overlay(kind: str, patch: dict[str, Any], name: str = "") -> dict[str, Any]:
    base = TABLE["base"][kind]
    return {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name or patch.get("name", base["name"])},
        "spec": base["spec"] | patch.get("spec", {}),
    }


def module(name: str, **spec: Any) -> dict[str, Any]:
    return overlay("Module", {"name": name, "spec": spec})


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator["Api"]:
    """The CRDs and a namespace of their own; an operator of other tests may run beside."""
    for kind in KINDS:
        file = ROOT / f"crds/generated/moorage.dev_{kind}.yaml"
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    names = [f"crd/{kind}.moorage.dev" for kind in KINDS]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    namespace = cluster.new_namespace("crds")
    yield Api(cluster, namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
    cluster.watched.discard(namespace)


class Api:
    """kubectl in the namespace of these tests."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def ask(self, verb: str, resource: dict[str, Any], *options: str) -> str:
        """What kubectl says, the error included."""
        text = json.dumps(resource)
        return self.cluster.kubectl("-n", self.namespace, verb, *options, "-f", "-", input=text, check=False)

    def dry(self, resource: dict[str, Any]) -> str:
        return self.ask("create", resource, "--dry-run=server")

    def make(self, resource: dict[str, Any]) -> dict[str, Any]:
        said = self.ask("create", resource, "-o", "json")
        assert said.startswith("{"), said
        return dict(json.loads(said))

    def get(self, *arguments: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, "get", *arguments)

    def listed(
        self, kind: str, name: str, status: dict[str, Any], mark: str, *options: str
    ) -> tuple[list[str], list[str]]:
        """Header and cells of `kubectl get` once `status` is written; `mark` is a cell that shows it."""
        patch = json.dumps({"status": status})
        for _ in range(5):  # an operator of other tests may write another status in between
            to = ("--subresource=status", "--type=merge", "-p", patch)
            self.cluster.kubectl("-n", self.namespace, "patch", kind, name, *to)
            header, line = self.get(kind, name, *options).splitlines()
            if mark in line.split():
                break
        return header.split(), line.split()


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:6]}"


STATIC = [case for case in TABLE["cases"] if "old" not in case]
CHANGES = [case for case in TABLE["cases"] if "old" in case]


def identifier(case: dict[str, Any]) -> str:
    return f"{case['field']}-{case['rule'][:30]}"


@pytest.mark.parametrize("case", STATIC, ids=identifier)
def test_a_rule_takes_its_good_example_and_refuses_its_bad_one(api: Api, case: dict[str, Any]) -> None:
    accepted = api.dry(overlay(case["kind"], case["accepted"]))
    assert "created (server dry run)" in accepted, accepted
    refused = api.dry(overlay(case["kind"], case["refused"]))
    assert case["rule"] in refused, refused
    assert case["field"] in refused or case["field"].startswith("metadata."), refused


@pytest.mark.parametrize("case", CHANGES, ids=identifier)
def test_a_rule_about_changes_looks_at_the_object_before(api: Api, case: dict[str, Any]) -> None:
    name = unique("change")
    api.make(overlay(case["kind"], case["old"], name))
    refused = api.ask("replace", overlay(case["kind"], case["refused"], name))
    assert case["rule"] in refused, refused
    assert case["field"] in refused
    accepted = api.ask("replace", overlay(case["kind"], case["accepted"], name))
    assert "replaced" in accepted, accepted


@pytest.mark.parametrize(
    ("field", "pieces"),
    [
        ("path", "/ / /a { } {id} {A} * ** /** . .. %2f é ? ~ -b ' \" ; $ ("),
        ("timeout", "0 1 60 s m h ms 1h .5 - 3600s 9999999"),
        ("maxBody", "0 1 60 Mi k m G .5 - 123456789012345"),
        ("name", "a - b 1 A . é list"),
        ("permission", "a . b-c . .d A 1 a.b.c sample.thing.read"),
    ],
)
def test_python_and_the_api_server_judge_random_values_alike(api: Api, field: str, pieces: str) -> None:
    """Two engines of regular expressions, and every rule twice: what passes one has to pass the other."""
    random = Random(field)
    texts = {"".join(random.choices(pieces.split(), k=random.randint(1, 5))) for _ in range(64)}
    rules = [{"name": f"r{index}", "path": "/"} | {field: text} for index, text in enumerate(sorted(texts))]
    wanted = overlay("Route", {"spec": {"rules": rules}})
    place = re.compile(r"spec\.rules\[(\d+)\]\." + field)
    by_server = set(place.findall(api.dry(wanted)))
    by_python = {found for problem in manifests.parse(wanted)[1] for found in place.findall(problem.field)}
    assert by_server == by_python
    assert len(by_python) > 0, "nothing was refused: the pieces are too tame"
    assert len(by_python) < len(rules), "nothing was accepted: the pieces are too wild"


def test_defaults_are_filled_in_where_they_are_safe(api: Api) -> None:
    made = api.make(module(unique("defaults"), database={}, resources={"limits": {"cpu": 2}}))
    assert made["spec"]["database"] == {"migrations": "auto", "approval": "auto", "onDelete": "Retain"}
    assert made["spec"]["sidecar"] == "auto"
    assert made["spec"]["resources"] == {"limits": {"cpu": 2}}
    assert "replicas" not in made["spec"], "its default is the operator's, since autoscaling excludes it"
    assert "config" not in made["spec"]
    route = api.make(overlay("Route", {}, unique("defaults")))
    assert route["spec"]["prefix"] == "/"


def test_free_form_configuration_is_kept_as_it_is(api: Api) -> None:
    config = {"page": {"size": 20, "sizes": [1, 2.5]}, "empty": None, "on": True}
    made = api.make(module(unique("config"), config=config))
    assert made["spec"]["config"] == config


def test_an_unknown_field_is_refused_by_kubectl_and_pruned_for_others(api: Api) -> None:
    wrong = module(unique("unknown"), repliacs=3)
    assert 'unknown field "spec.repliacs"' in api.dry(wrong)
    text = api.ask("create", wrong, "--validate=ignore", "-o", "json")
    assert "repliacs" not in json.loads(text)["spec"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"replicas": "3"}, "must be of type integer"),
        ({"env": [{"name": "A"}, {"name": "A"}]}, "Duplicate value"),
        ({"imagePullSecrets": ["a", "a"]}, "Duplicate value"),
        ({"sidecar": "sometimes"}, 'supported values: "auto", "always", "never"'),
        ({"dependencies": [{"module": "x" * 41}]}, "Too long"),
        ({"args": ["x"] * 65}, "must have at most 64 items"),
        ({"autoscaling": {"max": 0}}, "should be greater than or equal to 1"),
    ],
)
def test_types_and_bounds_hold(api: Api, spec: dict[str, Any], said: str) -> None:
    assert said in api.dry(module("bounds", **spec))


def test_modules_are_listed_with_phase_version_ready_and_age(api: Api) -> None:
    name = unique("columns")
    api.make(module(name))
    status = {"phase": "Running", "ready": "1/1", "url": "http://edge/api", "observedGeneration": 1}
    header, cells = api.listed("mod", name, status, "1/1")
    assert header == ["NAME", "PHASE", "VERSION", "READY", "AGE"]
    assert cells[:4] == [name, "Running", "1.0.0", "1/1"]
    header, cells = api.listed("mod", name, status, "1/1", "-o", "wide")
    assert header == ["NAME", "PHASE", "VERSION", "READY", "URL", "AGE"]
    assert cells[4] == "http://edge/api"


@pytest.mark.parametrize(
    ("kind", "short", "columns", "shown"),
    [
        ("Route", "mroute", ["MODULE", "PREFIX"], ["sample", "/"]),
        ("Permission", "mperm", ["ROLES"], ['["reader"]']),
    ],
)
def test_routes_and_permissions_show_whether_they_are_accepted(
    api: Api, kind: str, short: str, columns: list[str], shown: list[str]
) -> None:
    name = unique("accepted") + (".thing.read" if kind == "Permission" else "")
    api.make(overlay(kind, {}, name))
    condition = {
        "type": "Accepted",
        "status": "Unknown",
        "reason": "NotSupported",
        "message": "spec.cors: is not supported yet",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    header, cells = api.listed(short, name, {"conditions": [condition]}, "Unknown")
    assert header == ["NAME", *columns, "ACCEPTED", "AGE"]
    assert cells[:-1] == [name, *shown, "Unknown"]


def test_the_status_is_written_by_its_own_door_only(api: Api) -> None:
    made = api.make(module(unique("status")) | {"status": {"phase": "Running"}})
    assert "status" not in made


def test_all_kinds_are_found_by_the_category(api: Api) -> None:
    name = unique("category")
    api.make(module(name))
    api.make(overlay("Route", {}, name))
    listed = api.get("moorage", "-o", "name").split()
    assert {f"module.moorage.dev/{name}", f"route.moorage.dev/{name}"} <= set(listed)


def test_every_field_is_explained_by_kubectl(api: Api) -> None:
    said = api.cluster.kubectl("explain", "module.spec.database.onDelete")
    assert "What happens to schema and data" in said
    said = api.cluster.kubectl("explain", "route.spec.rules.path")
    assert "Below the Route's prefix" in said
