"""The blog on a real cluster: from `kubectl apply` to authenticated answers through a real edge."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from e2e.installation import DOMAIN, Installation
from e2e.waiting import eventually

from moorage_operator.cli.plan import plan as plan_command
from moorage_operator.cli.status import status as status_command
from moorage_operator.cli.token import token as token_command
from testcluster.handle import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass
class Blog:
    """The blog in one namespace, under one host."""

    installation: Installation
    namespace: str
    host: str

    @property
    def posts(self) -> str:
        return f"{self.host}/api/v1/blog/posts"

    def manifests(self, folder: Path) -> Path:
        target = folder / "manifests"
        target.mkdir()
        (target / "all.yaml").write_text(yaml.safe_dump_all(self.installation.blog(self.host)))
        return folder


@pytest.fixture(scope="module")
def blog(cluster: Cluster, installation: Installation) -> Iterator[Blog]:
    namespace = installation.new_space("blog")
    one = Blog(installation, namespace, f"{uuid.uuid4().hex[:8]}.{DOMAIN}")
    cluster.apply(*installation.blog(one.host), namespace=namespace)
    installation.wait_ready(namespace, "blog")
    installation.wait_edge(one.posts)
    yield one
    installation.drop_space(namespace)


def test_kubectl_shows_phase_version_readiness_and_age(blog: Blog, cluster: Cluster) -> None:
    head, line = cluster.kubectl("-n", blog.namespace, "get", "modules").splitlines()
    assert head.split() == ["NAME", "PHASE", "VERSION", "READY", "AGE"]
    assert line.split()[:4] == ["blog", "Running", "0.1.0", "1/1"]


def test_calls_through_the_edge(blog: Blog, installation: Installation) -> None:
    """Create, list, read, publish; and each refusal with the standard error body."""
    alice, bob = installation.token("alice", "author"), installation.token("bob", "author")
    reader = installation.token("carol", "user")
    made = installation.call(
        "POST", blog.posts, token=alice, json_body={"title": "Hello", "content": "First"}
    )
    assert made.status == 201
    post = f"{blog.posts}/{made.json['id']}"
    assert installation.call("GET", post, token=alice).json["title"] == "Hello"

    def refused(method: str, url: str, token: str | None = None, body: object = None) -> tuple[int, str]:
        answer = installation.call(method, url, token=token, json_body=body)
        return answer.status, answer.code

    new = {"title": "x", "content": "y"}
    assert refused("POST", blog.posts, None, new) == (401, "unauthenticated")
    assert refused("POST", blog.posts, "eyJhbGciOiJub25lIn0.e30.", new)[0] == 401
    assert refused("POST", blog.posts, reader, new) == (403, "forbidden")
    assert refused("PUT", post, bob, new) == (403, "forbidden")  # by condition: somebody else's draft
    assert refused("GET", f"{blog.host}/api/v1/blog/nothing", alice) == (404, "not_found")
    assert refused("PATCH", blog.posts, alice, new) == (405, "method_not_allowed")
    assert installation.call("POST", f"{post}/publish", token=bob).status == 403
    assert installation.call("POST", f"{post}/publish", token=alice).json["status"] == "published"
    listed = installation.call("GET", blog.posts).json["items"]
    assert made.json["id"] in {one["id"] for one in listed}


def test_identity_headers_from_outside_count_for_nothing(blog: Blog, installation: Installation) -> None:
    forged = {"X-Moorage-User": str(uuid.uuid4()), "X-Moorage-Roles": "author"}
    answer = installation.call("POST", blog.posts, json_body={"title": "x", "content": "y"}, headers=forged)
    assert answer.status == 401


def test_deleted_and_edited_children_are_repaired(
    blog: Blog, installation: Installation, cluster: Cluster
) -> None:
    kinds = "service,deployment,configmap,serviceaccount,networkpolicy,httproute"
    label = ("-l", "moorage.dev/module=blog")

    def children() -> set[tuple[str, str]]:
        items = cluster.get("-n", blog.namespace, kinds, *label)["items"]
        return {
            (one["kind"], one["metadata"]["name"])
            for one in items
            if "deletionTimestamp" not in one["metadata"]
        }

    before = children()
    assert {kind for kind, _ in before} == {
        *("Service", "Deployment", "ConfigMap", "ServiceAccount", "NetworkPolicy", "HTTPRoute")
    }
    cluster.kubectl("-n", blog.namespace, "delete", kinds, *label)
    eventually(lambda: children() == before, "every child is back", 30)
    installation.wait_ready(blog.namespace, "blog")

    patch = [
        {"op": "add", "path": "/spec/selector/extra", "value": "x"},
        {"op": "replace", "path": "/spec/ports/0/port", "value": 81},
    ]
    cluster.kubectl("-n", blog.namespace, "patch", "service", "blog", "--type=json", "-p", json.dumps(patch))
    cluster.kubectl("-n", blog.namespace, "set", "env", "deployment/blog", "EXTRA=1")
    cluster.kubectl("-n", blog.namespace, "scale", "deployment/blog", "--replicas=3")

    def as_planned() -> bool:
        service = cluster.get("-n", blog.namespace, "service", "blog")["spec"]
        deployment = cluster.get("-n", blog.namespace, "deployment", "blog")["spec"]
        (app,) = deployment["template"]["spec"]["containers"]
        return (
            "extra" not in service["selector"]
            and service["ports"][0]["port"] == 80
            and deployment["replicas"] == 1
            and "EXTRA" not in {one["name"] for one in app["env"]}
        )

    eventually(as_planned, "edits are undone", 30)
    installation.wait_ready(blog.namespace, "blog")
    installation.wait_edge(blog.posts)


def test_plan_shows_no_difference_to_what_is_there(
    blog: Blog, installation: Installation, cluster: Cluster, tmp_path: Path
) -> None:
    folder = blog.manifests(tmp_path)
    where = [
        "-n",
        blog.namespace,
        "--kubeconfig",
        str(cluster.kubeconfig),
        "--core-namespace",
        installation.core,
    ]
    same = CliRunner().invoke(plan_command, [str(folder), "--diff", *where])
    assert (same.exit_code, same.stdout) == (0, ""), same.output

    text = (folder / "manifests/all.yaml").read_text().replace("0.1.0", "0.2.0")
    (folder / "manifests/all.yaml").write_text(text)
    changed = CliRunner().invoke(plan_command, [str(folder), "--diff", *where])
    assert changed.exit_code == 1
    assert "spec.version: '0.1.0' → '0.2.0'" in changed.stdout
    assert f"+ Job {blog.namespace}/blog-migrate-" in changed.stdout


def test_a_token_and_the_status_from_the_command_line(
    blog: Blog, installation: Installation, cluster: Cluster
) -> None:
    where = ["--kubeconfig", str(cluster.kubeconfig)]
    made = CliRunner().invoke(
        token_command,
        ["--user", "dora", "--role", "author", "--cluster", "--core-namespace", installation.core, *where],
    )
    assert made.exit_code == 0, made.output
    body = {"title": "By hand", "content": "…"}
    assert installation.call("POST", blog.posts, token=made.stdout.strip(), json_body=body).status == 201
    shown = CliRunner().invoke(status_command, ["-n", blog.namespace, *where])
    assert shown.exit_code == 0, shown.output
    assert f"{blog.namespace}" in shown.stdout
    assert "Running" in shown.stdout


def test_a_policy_change_reaches_running_pods_without_a_roll_out(
    blog: Blog, installation: Installation, cluster: Cluster
) -> None:
    def create() -> int:
        token = installation.token("eve", "newcomer")
        return installation.call(
            "POST", blog.posts, token=token, json_body={"title": "t", "content": "c"}
        ).status

    before = installation.serving_pods(blog.namespace)
    assert create() == 403
    cluster.kubectl(
        *("-n", blog.namespace, "patch", "mperm", "blog.post.create", "--type=merge"),
        *("-p", '{"spec": {"roles": ["author", "editor", "newcomer"]}}'),
    )
    eventually(lambda: create() == 201, "the new grant is in force", 15)
    installation.wait_condition(blog.namespace, "module", "blog", "PolicyLoaded", "Loaded", "True")
    assert installation.serving_pods(blog.namespace) == before


def test_a_round_without_news_writes_nothing(
    blog: Blog, installation: Installation, cluster: Cluster
) -> None:
    """Neither does a new leader: what is right is left alone."""
    installation.wait_quiet()
    old = installation.operator_pod()
    cluster.kubectl("-n", installation.core, "delete", "pod", old, "--wait=true")
    cluster.kubectl(
        "-n",
        installation.core,
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app.kubernetes.io/name=moorage-operator",
        "--timeout=60s",
    )
    rounds = 'moorage_operator_reconcile_total{result="ok"} '

    def turns() -> float:
        lines = [line for line in installation.metrics().splitlines() if line.startswith(rounds)]
        return float(lines[0].removeprefix(rounds)) if lines else 0.0

    eventually(lambda: turns() >= 1, "the new leader has looked at the module", 40)
    first = turns()
    eventually(lambda: turns() > first, "the round after the first list", 60, every=1)
    installation.wait_quiet()
    assert installation.writes() == {}
