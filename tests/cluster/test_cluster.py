"""What every provider's cluster has to offer to the tests that stand on it."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
import jwt
import pytest

from testcluster.handle import Cluster, CommandError
from testcluster.providers.incluster import PortForward
from testcluster.waiting import until

pytestmark = pytest.mark.cluster

_WAIT = 60.0
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image built here: Python with one file of ours in it."""
    context = tmp_path_factory.mktemp("context")
    (context / "hello.txt").write_text("hello from a pod\n")
    (context / "Containerfile").write_text(
        "ARG BASE=must-be-given\nFROM ${BASE}\nCOPY hello.txt /srv/hello.txt\n"
        "RUN python3 -c 'print(1)'\nUSER 65532\n"
    )
    built = cluster.build_image(context, context / "Containerfile", "moorage-test/self:1")
    return cluster.load_image(built)


@pytest.fixture
def web(cluster: Cluster, namespace: str, image: str) -> str:
    """A web server `web` behind a Service of that name, port 80; returns the namespace."""
    container = {
        **_container("web", image, "python3", "-m", "http.server", "8080", "--directory", "/srv"),
        "readinessProbe": {"httpGet": {"path": "/hello.txt", "port": 8080}, "periodSeconds": 1},
    }
    pod = {**_pod("web", container), "metadata": {"name": "web", "labels": {"app": "web"}}}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    cluster.apply(pod, service, namespace=namespace)
    cluster.kubectl("-n", namespace, "wait", "pod/web", "--for=condition=Ready", f"--timeout={_WAIT:.0f}s")
    return namespace


def _container(name: str, image: str, *command: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "command": list(command),
        "imagePullPolicy": "IfNotPresent",
        "securityContext": _RESTRICTED,
    }


def _pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 1, **spec},
    }


def _output_of(cluster: Cluster, namespace: str, image: str, script: str) -> str:
    """Run a Python script in a pod of its own; returns what it printed, and fails with that if it fails."""
    pod = _pod("script", _container("script", image, "python3", "-c", script), restartPolicy="Never")
    cluster.apply(pod, namespace=namespace)

    def finished() -> str | None:
        phase: str = cluster.get("-n", namespace, "pod/script")["status"].get("phase", "")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = until("the script ends", finished, _WAIT)
    output = cluster.kubectl("-n", namespace, "logs", "script")
    assert phase == "Succeeded", output
    return output


def _fetch(cluster: Cluster, host: str, path: str) -> str:
    request = urllib.request.Request(cluster.edge_url + path, headers={"Host": host})
    with urllib.request.urlopen(request, timeout=5) as answer:
        body: bytes = answer.read()
    return body.decode()


def _eventually(fetch: Callable[[], str]) -> str:
    """Retry while the edge does not know the route yet (404), or its pod (503)."""

    def attempt() -> str | None:
        try:
            return fetch()
        except urllib.error.HTTPError as error:
            error.close()
            return None

    return until("the edge routes", attempt, 30)


def test_a_pod_reaches_a_service_by_name(cluster: Cluster, web: str, image: str) -> None:
    script = (
        f"import urllib.request as u; print(u.urlopen('http://web.{web}.svc.cluster.local/hello.txt').read())"
    )
    assert "hello from a pod" in _output_of(cluster, web, image, script)


def test_a_pod_reaches_the_api_server_with_its_own_account(
    cluster: Cluster, namespace: str, image: str
) -> None:
    script = """
import ssl, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
trust = ssl.create_default_context(cafile=account + "ca.crt")
token = open(account + "token").read()
request = urllib.request.Request("https://kubernetes.default.svc/version", headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(request, context=trust).read().decode())
"""
    assert json.loads(_output_of(cluster, namespace, image, script))["major"] == "1"


def test_an_httproute_answers_at_the_edge(cluster: Cluster, web: str) -> None:
    if not cluster.gateway_api:
        pytest.skip("this cluster does not serve Gateway API")
    namespace, gateway = cluster.gateway
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web"},
        "spec": {
            "parentRefs": [{"namespace": namespace, "name": gateway}],
            "hostnames": [f"{web}.route.example"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/hello.txt"}}],
                    "backendRefs": [{"name": "web", "port": 80}],
                }
            ],
        },
    }
    cluster.apply(route, namespace=web)
    host = f"{web}.route.example"
    assert _eventually(lambda: _fetch(cluster, host, "/hello.txt")) == "hello from a pod\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        _fetch(cluster, host, "/elsewhere")
    refused.value.close()


def test_an_ingress_answers_at_the_edge(cluster: Cluster, web: str) -> None:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "web"},
        "spec": {
            "ingressClassName": cluster.ingress_class,
            "rules": [{"host": f"{web}.ingress.example", "http": {"paths": [path]}}],
        },
    }
    cluster.apply(ingress, namespace=web)
    host = f"{web}.ingress.example"
    assert _eventually(lambda: _fetch(cluster, host, "/hello.txt")) == "hello from a pod\n"


def test_a_token_for_an_audience_verifies_against_the_published_keys(
    cluster: Cluster, namespace: str
) -> None:
    """What guards rely on for calls between modules: audience, issuer, subject, and the issuer's keys."""
    token = cluster.kubectl("-n", namespace, "create", "token", "default", "--audience=moorage").strip()
    keys = jwt.PyJWKSet.from_json(cluster.kubectl("get", "--raw", "/openid/v1/jwks"))
    issuer = json.loads(cluster.kubectl("get", "--raw", "/.well-known/openid-configuration"))["issuer"]
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(
        token, keys[header["kid"]].key, algorithms=[header["alg"]], audience="moorage", issuer=issuer
    )
    assert claims["sub"] == f"system:serviceaccount:{namespace}:default"
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(token, keys[header["kid"]].key, algorithms=[header["alg"]], audience="other")


def test_a_native_sidecar_starts_first_and_does_not_keep_a_job_from_completing(
    cluster: Cluster, namespace: str, image: str
) -> None:
    sidecar = {
        **_container("sidecar", image, "python3", "-m", "http.server", "8081", "--directory", "/srv"),
        "restartPolicy": "Always",
        "startupProbe": {"httpGet": {"path": "/hello.txt", "port": 8081}, "periodSeconds": 1},
    }
    # Asks once, without a retry: it works only because the sidecar was there before.
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/hello.txt').read())"
    main = _container("main", image, "python3", "-c", script)
    spec = {
        "restartPolicy": "Never",
        "initContainers": [sidecar],
        "containers": [main],
        "terminationGracePeriodSeconds": 1,
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }
    cluster.apply(job, namespace=namespace)
    cluster.kubectl(
        "-n", namespace, "wait", "job/once", "--for=condition=Complete", f"--timeout={_WAIT:.0f}s"
    )
    assert "hello from a pod" in cluster.kubectl("-n", namespace, "logs", "job/once", "-c", "main")


def test_restricted_pod_security_is_enforced(cluster: Cluster, image: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = cluster.new_namespace("restricted", labels)
    try:
        # The namespace's account may take a moment; before it, every pod is refused for another reason.
        account = ("-n", namespace, "get", "serviceaccount", "default", "--ignore-not-found", "-o", "name")
        until("the account exists", lambda: cluster.kubectl(*account), 30)
        root = {**_container("root", image, "id"), "securityContext": {"privileged": True}}
        with pytest.raises(CommandError, match='violates PodSecurity "restricted'):
            cluster.apply(_pod("root", root), namespace=namespace)
        cluster.apply(_pod("good", _container("good", image, "python3", "-V")), namespace=namespace)
    finally:
        cluster.watched.discard(namespace)
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


async def test_the_database_asks_for_its_password(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.postgres_local_dsn)
    try:
        assert await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
    finally:
        await connection.close()
    user, _, server = cluster.postgres_local_dsn.rpartition("@")
    wrong = f"{user.rpartition(':')[0]}:wrong@{server}"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


def test_a_pod_reaches_the_database(cluster: Cluster, namespace: str, image: str) -> None:
    """By its wire protocol: an SSLRequest (code 80877103) is answered with one letter."""
    server = cluster.postgres_admin_dsn.rpartition("@")[2].partition("/")[0]
    host, port = server.split(":")
    script = (
        f"import socket, struct; s = socket.create_connection(('{host}', {port}), 5); "
        "s.sendall(struct.pack('!ii', 8, 80877103)); print('answer', s.recv(1).decode())"
    )
    assert _output_of(cluster, namespace, image, script).strip() in ("answer N", "answer S")


def test_a_service_is_reached_through_a_port_forward(cluster: Cluster, web: str) -> None:
    forward = PortForward(cluster, web, "web", 80)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{forward.port}/hello.txt", timeout=5) as answer:
            assert answer.read() == b"hello from a pod\n"
    finally:
        forward.close()


def test_a_port_forward_to_nothing_says_why(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(CommandError, match='services "absent" not found'):
        PortForward(cluster, namespace, "absent", 80)


def test_exec_runs_in_a_container(cluster: Cluster, web: str) -> None:
    assert cluster.kubectl("-n", web, "exec", "web", "--", "cat", "/srv/hello.txt") == "hello from a pod\n"


def test_helm_installs_into_the_cluster(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 0.1.0\n")
    (tmp_path / "templates/config.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  key: value\n"
    )
    cluster.helm("install", "one", str(tmp_path), "-n", namespace)
    assert cluster.get("-n", namespace, "configmap/one")["data"] == {"key": "value"}


@pytest.fixture
def failing(cluster: Cluster, namespace: str, image: str) -> str:
    """A namespace with a pod that says something and fails, over and over, and a Secret."""
    script = "import sys; print('about to give up'); sys.exit(3)"
    cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "do-not-show"}},
        _pod("bad", _container("bad", image, "python3", "-c", script)),
        _pod("lost", _container("lost", "localhost/no/such:image", "true")),
        namespace=namespace,
    )

    def restarted() -> bool:
        statuses = cluster.get("-n", namespace, "pod/bad")["status"].get("containerStatuses", ())
        return any(s["restartCount"] for s in statuses)

    until("the pod was restarted", restarted, _WAIT, interval=0.5)
    return namespace


def test_diagnostics_tell_why_pods_fail_and_no_secrets(cluster: Cluster, failing: str) -> None:
    text = cluster.diagnostics(failing)
    for part in (
        "about to give up",
        "BackOff",
        "log of bad/bad before its last restart",
        "localhost/no/such:image",
    ):
        assert part in text
    assert "do-not-show" not in text


def test_a_failed_command_tells_what_the_server_said(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(CommandError, match=r'kubectl .* failed \(1\):\n.*configmaps "absent" not found'):
        cluster.kubectl("-n", namespace, "get", "configmap", "absent")
    assert "not found" in cluster.kubectl("-n", namespace, "get", "configmap", "absent", check=False)
