"""Events between two Modules of a real cluster, through the database and through Kafka."""

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.installation import DOMAIN, ROOT, Installation, Manifest
from e2e.waiting import eventually

from rigs import kafka
from testcluster.handle import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
DIGEST = ROOT / "tests/modules/digest"


@pytest.fixture(scope="module")
def digest_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The module of tests/modules as an image, built by the Containerfile that every module uses."""
    context = tmp_path_factory.mktemp("context")
    for part in ("images", "crds", "services/kernel", "requirements"):
        shutil.copytree(ROOT / part, context / part, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    shutil.copytree(
        DIGEST, context / "services/digest", ignore=shutil.ignore_patterns("tests", "__pycache__")
    )
    shutil.copy(context / "requirements/blog.lock", context / "requirements/digest.lock")
    file, arguments = context / "images/service.Containerfile", {"PACKAGE": "services/digest"}
    return cluster.load_image(cluster.build_image(context, file, "moorage/digest:e2e", arguments))


@dataclass
class Pair:
    """The blog and who listens to it, in one namespace."""

    installation: Installation
    namespace: str
    host: str
    token: str

    def post(self, title: str) -> str:
        """Write and publish a post; its id."""
        posts = f"{self.host}/api/v1/blog/posts"
        made = self.installation.call(
            "POST", posts, token=self.token, json_body={"title": title, "content": "…"}
        )
        assert made.status == 201, made
        published = self.installation.call("POST", f"{posts}/{made.json['id']}/publish", token=self.token)
        assert published.status == 200, published
        return str(made.json["id"])

    def archive(self, post: str) -> None:
        """Take a post out of sight."""
        url = f"{self.host}/api/v1/blog/posts/{post}/archive"
        assert self.installation.call("POST", url, token=self.token).status == 200

    def headlines(self) -> dict[str, str]:
        """What the listener knows: post → title."""
        answer = self.installation.call("GET", f"{self.host}/api/v1/digest/headlines?limit=100")
        assert answer.status == 200, answer
        return {one["post_id"]: one["title"] for one in answer.json["items"]}


@pytest.fixture(scope="module")
def pair(installation: Installation, cluster: Cluster, digest_image: str) -> Iterator[Pair]:
    namespace = installation.new_space("events")
    host = f"{uuid.uuid4().hex[:8]}.{DOMAIN}"
    cluster.apply(*installation.blog(host), *digest(digest_image, host), namespace=namespace)
    installation.wait_ready(namespace, "blog", "digest", timeout=120)
    installation.wait_edge(f"{host}/api/v1/blog/posts")
    installation.wait_edge(f"{host}/api/v1/digest/headlines")
    yield Pair(installation, namespace, host, installation.token("alice", "author"))
    installation.drop_space(namespace)


def digest(image: str, host: str) -> list[Manifest]:
    """The manifests of tests/modules/digest with this cluster's image and *host*."""
    found: list[Any] = list(yaml.safe_load_all((DIGEST / "manifests/digest.yaml").read_text()))
    module, route = found
    module["spec"]["image"], route["spec"]["hosts"] = image, [host]
    return found


def test_what_one_module_emits_another_handles(pair: Pair) -> None:
    """Published posts appear, archived ones go: in the order in which it happened."""
    first, second = pair.post("First"), pair.post("Second")
    eventually(lambda: {first, second} <= pair.headlines().keys(), "both headlines", 20)
    assert pair.headlines()[second] == "Second"
    pair.archive(first)
    eventually(lambda: first not in pair.headlines(), "the archived post is forgotten", 20)


def test_what_happens_while_nobody_listens_is_handled_later(pair: Pair, cluster: Cluster) -> None:
    """Also when the emitter is killed right after: what was answered is in its outbox."""
    where = ("-n", pair.namespace)
    cluster.kubectl(*where, "patch", "module", "digest", "--type=merge", "-p", '{"spec": {"replicas": 0}}')
    eventually(
        lambda: not any(pod.startswith("digest-") for pod in pair.installation.serving_pods(pair.namespace)),
        "nobody listens",
        60,
    )
    post = pair.post("Unheard")
    blog_pods = [one for one in pair.installation.serving_pods(pair.namespace) if one.startswith("blog-")]
    cluster.kubectl(*where, "delete", "pod", *blog_pods, "--grace-period=0", "--force")
    cluster.kubectl(*where, "patch", "module", "digest", "--type=merge", "-p", '{"spec": {"replicas": 1}}')
    pair.installation.wait_ready(pair.namespace, "blog", "digest")
    pair.installation.wait_edge(f"{pair.host}/api/v1/digest/headlines")
    eventually(lambda: post in pair.headlines(), "the headline", 30)


def test_a_second_module_cannot_publish_in_anothers_topic(
    pair: Pair, cluster: Cluster, digest_image: str
) -> None:
    rival, _ = digest(digest_image, pair.host)
    rival["metadata"]["name"] = "rival"
    rival["spec"]["events"] = {"publishes": ["blog.post.vanished"]}
    cluster.apply(rival, namespace=pair.namespace)
    message = pair.installation.wait_condition(
        pair.namespace, "module", "rival", "DatabaseReady", "TopicTaken", timeout=60
    )
    assert "blog.post" in message
    assert f"{pair.namespace}/blog" in message
    cluster.kubectl("-n", pair.namespace, "delete", "module", "rival")


def test_the_same_modules_over_kafka(pair: Pair, cluster: Cluster, tmp_path: Path) -> None:
    """The installation is given brokers: pods are rolled, and what they emit goes that way from then on."""
    with kafka.running(tmp_path, also=(cluster.node_address,)) as broker:
        brokers = broker.bootstrap_at(cluster.node_address)
        pair.installation.extra = {"kafka": {"brokers": brokers, "partitions": 3}}
        pair.installation.install()
        try:
            label = ("-l", "moorage.dev/module=digest,app.kubernetes.io/component=server")

            def told() -> bool:
                pods = cluster.get("-n", pair.namespace, "pods", *label)["items"]
                names = [{one["name"] for one in pod["spec"]["containers"][0]["env"]} for pod in pods]
                return bool(names) and all("KAFKA_BROKERS" in found for found in names)

            eventually(told, "the pods know the brokers", 120)
            pair.installation.wait_ready(pair.namespace, "blog", "digest", timeout=120)
            pair.installation.wait_edge(f"{pair.host}/api/v1/digest/headlines")
            post = pair.post("By Kafka")
            eventually(lambda: post in pair.headlines(), "the headline", 60)
        finally:
            pair.installation.extra = {}
            pair.installation.install()
