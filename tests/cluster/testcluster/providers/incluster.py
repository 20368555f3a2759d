"""What a cluster that is not made of host processes gets as pods: a database, and an edge proxy."""

import base64
import os
import re
import secrets
import subprocess
from dataclasses import replace

import yaml

from testcluster import build, paths
from testcluster.handle import Cluster, CommandError
from testcluster.progress import step

_NAMESPACE = "moorage-test-postgres"


class PortForward:
    """`kubectl port-forward` to a Service, on a loopback port of its choice."""

    def __init__(self, cluster: Cluster, namespace: str, service: str, port: int) -> None:
        """Start forwarding; raises CommandError if kubectl ends before it listens."""
        kubectl = build.tool("kubectl")
        arguments = ["port-forward", "-n", namespace, f"service/{service}", f":{port}", "--address=127.0.0.1"]
        self._process = subprocess.Popen(
            [kubectl, f"--kubeconfig={cluster.kubeconfig}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+)", line)
        if found is None:
            self.close()
            raise CommandError(f"kubectl port-forward to {service} failed: {line.strip()}")
        self.port = int(found.group(1))

    def close(self) -> None:
        """Stop forwarding."""
        self._process.terminate()
        self._process.wait(timeout=10)
        if self._process.stdout is not None:
            self._process.stdout.close()


def probe_gateway_api(cluster: Cluster) -> Cluster:
    """Return the handle with `gateway_api` as the cluster has it."""
    resources = cluster.kubectl(
        "api-resources", "--api-group=gateway.networking.k8s.io", "-o", "name", check=False
    )
    return replace(cluster, gateway_api="httproutes." in resources)


def postgres_of(cluster: Cluster) -> tuple[PortForward | None, Cluster]:
    """Return the handle with a database: the one of `MOORAGE_TEST_POSTGRES_DSN`, or a pod's.

    A pod's database is reached from this process by a port-forward, which the caller has to close.
    """
    if given := os.environ.get("MOORAGE_TEST_POSTGRES_DSN"):
        local = os.environ.get("MOORAGE_TEST_POSTGRES_LOCAL_DSN", given)
        return None, replace(cluster, postgres_admin_dsn=given, postgres_local_dsn=local)
    with step("PostgreSQL in the cluster"):
        password = _postgres_password(cluster)
        cluster.kubectl("apply", "-f", str(paths.MANIFESTS / "postgres.yaml"))
        cluster.kubectl(
            *("-n", _NAMESPACE, "rollout", "status", "deployment/postgres", "--timeout=300s"), timeout=310
        )
        forward = PortForward(cluster, _NAMESPACE, "postgres", 5432)
    user = f"postgresql://postgres:{password}"
    return forward, replace(
        cluster,
        postgres_admin_dsn=f"{user}@postgres.{_NAMESPACE}.svc:5432/postgres",
        postgres_local_dsn=f"{user}@127.0.0.1:{forward.port}/postgres",
    )


def _postgres_password(cluster: Cluster) -> str:
    """Return the password of the database's Secret, which is made on first use and kept."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
    found = cluster.kubectl(
        *(
            "-n",
            _NAMESPACE,
            "get",
            "secret",
            "postgres",
            "--ignore-not-found",
            "-o",
            "jsonpath={.data.password}",
        )
    )
    if found:
        return base64.b64decode(found).decode()
    password = secrets.token_urlsafe(24)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "postgres", "namespace": _NAMESPACE},
        "stringData": {"password": password},
    }
    cluster.apply(secret)
    return password


def install_contour(cluster: Cluster) -> None:
    """Run Contour and Envoy as pods, from the manifests of its release, with the Gateway of the tests."""
    files = build.ensure("contour-deployment", "gateway-api-crds")
    release = files["contour-deployment"]
    create = ("apply", "--server-side", "--force-conflicts")
    with step("Contour"):
        definitions = sorted(files["gateway-api-crds"].glob("gateway.networking.k8s.io_*.yaml"))
        named = [f"--filename={path}" for path in (release / "01-crds.yaml", *definitions)]
        cluster.kubectl(*create, *named)
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        cluster.kubectl(*create, "-f", str(paths.MANIFESTS / "edge.yaml"))
        rest = sorted(p for p in release.glob("*.yaml") if p.name != "01-crds.yaml")
        cluster.kubectl(*create, *(f"--filename={path}" for path in rest))
        namespace, name = cluster.gateway
        config = yaml.safe_dump({"gateway": {"gatewayRef": {"namespace": namespace, "name": name}}})
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "contour", "namespace": namespace},
                "data": {"contour.yaml": config},
            }
        )
        # Contour reads its configuration at its start only.
        cluster.kubectl("-n", namespace, "rollout", "restart", "deployment/contour")
        for workload in ("deployment/contour", "daemonset/envoy"):
            cluster.kubectl(*("-n", namespace, "rollout", "status", workload, "--timeout=300s"), timeout=310)
