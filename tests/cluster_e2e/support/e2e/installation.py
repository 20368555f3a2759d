"""The chart, installed on the test cluster as a user would: operator, edge, database."""

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2e.database import Database
from e2e.waiting import eventually
from moorage.guard import tokens
from moorage_operator.cli.token import user_id
from testcluster.handle import Cluster

ROOT = Path(__file__).resolve().parents[4]
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
NAME, ISSUER, DOMAIN = "moorage", "https://moorage.local", "e2e.example.test"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the edge answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the standard error body."""
        error = self.json["error"]
        assert set(error) == {"code", "message", "details", "request_id"}, error
        return str(error["code"])


@dataclass
class Installation:
    """One release of the chart, serving the whole cluster."""

    cluster: Cluster
    core: str
    images: dict[str, str]
    database: Database
    values: Path
    spaces: list[str] = field(default_factory=list)
    """Namespaces that tests made, gone or not."""
    extra: Manifest = field(default_factory=dict)
    """Values that a test adds before it installs again."""
    _key: bytes = field(default=b"", repr=False)

    def write_values(self) -> None:
        """The values with which it is installed: non-superuser database admin, Gateway API, tokens for trying out."""
        repository, _, tag = self.images["operator"].rpartition(":")
        assert self.cluster.gateway is not None
        namespace, gateway = self.cluster.gateway
        values = {
            "image": {"repository": repository, "tag": tag},
            "localTokens": True,
            "database": {"adminSecretRef": {"name": "postgres-admin"}},
            "edge": {"kind": "gateway", "gateway": {"name": gateway, "namespace": namespace}},
            "allow": {"*": {"hosts": [f"*.{DOMAIN}"]}},
            "images": {"sidecar": self.images["gateway"]},
            # No limits but those of Routes: tests ask again and again until something has changed.
            "defaults": {"preStop": 1, "migrationTimeout": "2m", "rateLimit": None},
        }
        self.values.write_text(yaml.safe_dump(values | self.extra))

    def install(self) -> None:
        """Apply Secret and chart, and wait for the operator."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "postgres-admin"},
            "stringData": {"dsn": self.database.admin_dsn},
        }
        self.cluster.apply(secret, namespace=self.core)
        self.write_values()
        self.cluster.helm(
            *("upgrade", "--install", NAME, str(ROOT / "charts/moorage"), "--namespace", self.core),
            *("--values", str(self.values), "--take-ownership", "--wait", "--timeout", "120s"),
        )

    def new_space(self, prefix: str = "mod") -> str:
        """A namespace of a test's own, which lets only restricted pods in."""
        namespace = self.cluster.new_namespace(prefix, RESTRICTED)
        self.spaces.append(namespace)
        return namespace

    def drop_space(self, namespace: str) -> None:
        """Let a namespace go, without waiting for its end (`uninstall` does)."""
        self.cluster.watched.discard(namespace)
        self.cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")

    def uninstall(self) -> None:
        """Remove the release; the CRDs stay.

        Namespaces go first: nobody would take off the finalizers in them, and the next operator would find them.
        """
        for namespace in self.spaces:
            self.drop_space(namespace)
        for namespace in self.spaces:
            where = f"namespace/{namespace}"
            self.cluster.kubectl("wait", "--for=delete", where, "--timeout=120s", check=False, timeout=150)
        self.cluster.helm("uninstall", NAME, "--namespace", self.core, "--wait", "--ignore-not-found")

    # -- resources

    def blog(self, host: str, **spec: Any) -> list[Manifest]:
        """services/blog/manifests with this cluster's image and *host*; *spec* changes the Module."""
        found = []
        for file in sorted((ROOT / "services/blog/manifests").glob("*.yaml")):
            found += [document for document in yaml.safe_load_all(file.read_text()) if document]
        for manifest in found:
            if manifest["kind"] == "Module":
                manifest["spec"] |= {"image": self.images["blog"], **spec}
            if manifest["kind"] == "Route":
                manifest["spec"]["hosts"] = [host]
        return found

    def conditions(self, namespace: str, kind: str, name: str) -> dict[str, Manifest]:
        """The conditions of a resource, by type."""
        status = self.cluster.get("-n", namespace, kind, name).get("status", {})
        return {one["type"]: one for one in status.get("conditions", ())}

    def wait_condition(
        self,
        namespace: str,
        kind: str,
        name: str,
        type_: str,
        reason: str,
        status: str = "False",
        timeout: float = 60,
    ) -> str:
        """Wait until a condition has *status* and *reason*; returns its message."""

        def seen() -> Any:
            one = self.conditions(namespace, kind, name).get(type_, {})
            return one if (one.get("status"), one.get("reason")) == (status, reason) else None

        message = eventually(seen, f"{kind}/{name} {type_}={status} {reason}", timeout)["message"]
        assert isinstance(message, str)
        return message

    def wait_ready(self, namespace: str, *modules: str, timeout: int = 90) -> None:
        """`kubectl wait`, as a user would."""
        names = [f"module/{name}" for name in modules]
        self.cluster.kubectl(
            "-n",
            namespace,
            "wait",
            "--for=condition=Ready",
            *names,
            f"--timeout={timeout}s",
            timeout=timeout + 30,
        )

    def serving_pods(self, namespace: str) -> set[str]:
        """Names of the pods that serve, without those that are on their way out."""
        label = ("-l", "app.kubernetes.io/component=server")
        items = self.cluster.get("-n", namespace, "pods", *label)["items"]
        return {one["metadata"]["name"] for one in items if "deletionTimestamp" not in one["metadata"]}

    # -- requests

    def token(self, user: str, *roles: str) -> str:
        """What `moorage token --cluster` prints."""
        if not self._key:
            secret = self.cluster.get("-n", self.core, "secret", "moorage-token-signing")
            self._key = base64.b64decode(secret["data"]["key.pem"])
        return tokens.issue_user_token(
            self._key, issuer=ISSUER, audience=NAME, user_id=user_id(user, ISSUER), roles=roles
        )

    def call(
        self, method: str, url: str, *, token: str | None = None, json_body: Any = None, headers: Any = None
    ) -> Answer:
        """A request through the edge; *url* is ``host/path``."""
        host, _, path = url.partition("/")
        sent = {"Host": host, **(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = None
        if json_body is not None:
            data, sent["Content-Type"] = json.dumps(json_body).encode(), "application/json"
        request = urllib.request.Request(f"{self.cluster.edge_url}/{path}", data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read())

    def wait_edge(self, url: str, status: int = 200, token: str | None = None) -> Answer:
        """Wait until the edge knows the route and the guard answers *status*."""

        def asked() -> Any:
            answer = self.call("GET", url, token=token)
            return answer if answer.status == status else None

        answer = eventually(asked, f"GET {url} → {status}", 30)
        assert isinstance(answer, Answer)
        return answer

    # -- the operator itself

    def operator_pod(self) -> str:
        """The pod that runs."""
        pods = self.cluster.get("-n", self.core, "pods", "-l", "app.kubernetes.io/name=moorage-operator")[
            "items"
        ]
        (name,) = [one["metadata"]["name"] for one in pods if "deletionTimestamp" not in one["metadata"]]
        return str(name)

    def operator_log(self) -> str:
        """All of its log so far."""
        return self.cluster.kubectl("-n", self.core, "logs", self.operator_pod())

    def metrics(self) -> str:
        """The operator's own metrics, through the API server."""
        pod = self.operator_pod()
        return self.cluster.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self.core}/pods/{pod}:9901/proxy/metrics"
        )

    def writes(self) -> dict[str, float]:
        """How many requests that change something it made, by verb and kind; its Lease left out."""
        found = re.findall(
            r'^moorage_operator_writes_total\{kind="(.+)",verb="(.+)"\} (.+)$', self.metrics(), re.M
        )
        return {f"{verb} {kind}": float(count) for kind, verb, count in found if kind != "Lease"}

    def wait_quiet(self, seconds: float = 4) -> None:
        """Wait until it writes nothing for a while."""
        last = self.writes()

        def quiet() -> bool:
            nonlocal last
            before, last = last, self.writes()
            return before == last

        eventually(quiet, "the operator still writes", 60, every=seconds)


def names(items: Sequence[Manifest]) -> set[str]:
    """The names of objects."""
    return {item["metadata"]["name"] for item in items}
